//! Threads that work for ckrun at the same time, of one process or of many.
//!
//! One after the other, each would cost ckrun a sleep and a wake-up. Here all of them are let go first, and the one that was
//! let go last is awaited first: when it has stopped, most of the others have as well.

use crate::program::{Answers, Program, RECORD};
use crate::worker::{HEADER, Worker};
use crate::{Failure, sys::ptrace::Registers};
use std::fs::File;
use std::sync::Arc;

/// ckrun has the programs of so many in its memory at a time: more would gain nothing.
pub(crate) const CREW: usize = 32;

/// A thread by its id in the job, and what it is to do.
pub(crate) type Task<'a> = (i32, &'a Worker, Program);

/// Runs each program in its thread. Those of one process share their stubs.
///
/// # Errors
/// As [`Worker::run`], with the id of the thread.
pub(crate) fn run(tasks: &[Task<'_>]) -> Result<Vec<Answers>, (i32, Failure)> {
    let mut all = Vec::with_capacity(tasks.len());
    in_rounds(tasks, |round| {
        for part in round.parts() {
            part.of(|worker| worker.tracee.start())?;
        }
        for part in round.parts().rev() {
            part.of(|worker| worker.tracee.await_trap())?;
        }
        round.answers(&mut all)
    })?;
    Ok(all)
}

/// Begins the one call of each program and interrupts it. The answers are the results, an `-ERESTART*` where the call waits
/// for something: then the thread is, for the kernel, in that call.
///
/// # Errors
/// As [`run`].
pub(crate) fn begin(tasks: &[Task<'_>]) -> Result<Vec<i64>, (i32, Failure)> {
    let mut all = Vec::with_capacity(tasks.len());
    in_rounds(tasks, |round| {
        for part in round.parts() {
            part.of(|worker| worker.tracee.start_call())?;
        }
        for part in round.parts().rev() {
            part.of(|worker| worker.tracee.interrupt_call())?;
        }
        for part in round.parts() {
            all.push(part.of(|worker| worker.tracee.end_call())?);
        }
        Ok(())
    })?;
    Ok(all)
}

/// Writes as many programs as fit, gives the threads the registers to begin them with, and does `work` with them; then the
/// rest.
fn in_rounds(
    tasks: &[Task<'_>],
    mut work: impl FnMut(&Round<'_>) -> Result<(), (i32, Failure)>,
) -> Result<(), (i32, Failure)> {
    let mut rest = tasks;
    while !rest.is_empty() {
        let round = Round::of(&mut rest)?;
        for part in round.parts() {
            part.of(|worker| worker.put(&part.registers))?;
        }
        work(&round)?;
    }
    Ok(())
}

/// Programs that lie in the areas of their processes, one behind the other where there are several for one.
struct Round<'a> {
    parts: Vec<Part<'a>>,
    areas: Vec<Area<'a>>,
}

struct Part<'a> {
    task: &'a Task<'a>,
    /// Which area, and where in it.
    area: usize,
    at: usize,
    registers: Registers,
}

struct Area<'a> {
    tid: i32,
    worker: &'a Worker,
    bytes: Vec<u8>,
}

impl<'a> Round<'a> {
    /// Takes the first ones off `rest`, and writes their programs.
    fn of(rest: &mut &'a [Task<'a>]) -> Result<Round<'a>, (i32, Failure)> {
        let mut round = Round { parts: Vec::new(), areas: Vec::new() };
        while let Some((task, later)) = rest.split_first() {
            let (tid, worker, program) = task;
            // Threads of one process are made one after the other.
            let known = round.areas.iter().rposition(|area| same(&area.worker.memory, &worker.memory));
            let area = known.unwrap_or_else(|| {
                round.areas.push(Area { tid: *tid, worker, bytes: Vec::new() });
                round.areas.len() - 1
            });
            let bytes = &mut round.areas[area].bytes;
            let at = bytes.len();
            // One that does not fit even alone is refused.
            let full = worker.check_room(at + size(program));
            if full.is_err() && at > 0 {
                break;
            }
            full.map_err(|failure| (*tid, failure))?;
            let base = worker.area.start + HEADER + at as u64;
            bytes.extend(program.encode(base));
            bytes.resize(at + size(program), 0);
            round.parts.push(Part { task, area, at, registers: worker.registers(base, program) });
            *rest = later;
        }
        for Area { tid, worker, bytes } in &round.areas {
            worker.write(worker.area.start + HEADER, bytes).map_err(|failure| (*tid, failure))?;
        }
        Ok(round)
    }

    /// Those who have something to do.
    fn parts(&self) -> impl DoubleEndedIterator<Item = &Part<'a>> {
        self.parts.iter().filter(|part| !part.task.2.is_empty())
    }

    /// Reads what the programs have answered.
    fn answers(&self, all: &mut Vec<Answers>) -> Result<(), (i32, Failure)> {
        let read = |area: &Area<'_>| {
            let mut bytes = vec![0; area.bytes.len()];
            let read = area.worker.read(area.worker.area.start + HEADER, &mut bytes);
            read.map(|()| bytes).map_err(|failure| (area.tid, failure))
        };
        let areas = self.areas.iter().map(read).collect::<Result<Vec<_>, _>>()?;
        for Part { task: (tid, _, program), area, at, .. } in &self.parts {
            let bytes = areas[*area][*at..*at + program.size()].to_vec();
            all.push(program.decode(bytes).map_err(|failure| (*tid, failure))?);
        }
        Ok(())
    }
}

impl Part<'_> {
    fn of<T>(&self, work: impl FnOnce(&Worker) -> Result<T, Failure>) -> Result<T, (i32, Failure)> {
        work(self.task.1).map_err(|failure| (self.task.0, failure))
    }
}

fn same(one: &Arc<File>, other: &Arc<File>) -> bool {
    Arc::ptr_eq(one, other)
}

fn size(program: &Program) -> usize {
    program.size().next_multiple_of(RECORD)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::testing::{free_pid, newborn};
    use crate::nursery::beget_threads;

    #[test]
    fn threads_of_several_processes_work_together() {
        let (mut one, other) = (newborn(), newborn());
        let thread = beget_threads(&mut one, &[free_pid()]).unwrap().remove(0);
        let ask = || {
            let mut program = Program::new();
            let asked = program.call("get its id", libc::SYS_gettid, &[]);
            (program, asked)
        };
        let all = [&one, &other, &thread, &other];
        // Nobody works twice at a time: the last one has nothing to do.
        let tasks: Vec<_> = (0..).zip(all).map(|(n, worker)| (n, worker, ask().0)).take(3).collect();
        let idle = [(3, &other, Program::new())];
        let answers = run(&[&tasks[..], &idle].concat()).unwrap();
        let ids: Vec<_> = answers[..3].iter().map(|answers| answers.of(ask().1).unwrap()).collect();
        let hosts: Vec<_> = all[..3].iter().map(|worker| i64::from(worker.host().as_raw())).collect();
        assert_eq!(ids, hosts);
    }

    #[test]
    fn a_call_that_waits_is_interrupted_and_another_has_its_result() {
        let workers = [newborn(), newborn(), newborn()];
        let mut sleep = Program::new();
        let time = sleep.put(&[1000_u64, 0].map(u64::to_ne_bytes).concat());
        sleep.attempt("sleep", libc::SYS_nanosleep, &[time.into(), 0.into()]);
        let mut ask = Program::new();
        ask.call("get its id", libc::SYS_getpid, &[]);
        let programs = [sleep.clone(), ask, sleep];
        let tasks: Vec<_> =
            (0..).zip(&workers).zip(programs).map(|((n, worker), program)| (n, worker, program)).collect();
        let id = i64::from(workers[1].host().as_raw());
        // -ERESTART_RESTARTBLOCK of linux/errno.h.
        assert_eq!(begin(&tasks).unwrap(), [-516, id, -516]);
    }

    #[test]
    fn every_thread_does_its_own_part() {
        let mut leader = newborn();
        let first = free_pid();
        let free = |tid: &i32| !std::path::Path::new(&format!("/proc/{tid}")).exists();
        let tids: Vec<i32> = (0..first).rev().filter(free).take(40).collect();
        let threads = beget_threads(&mut leader, &tids).unwrap();
        let task = |(tid, worker), program: &dyn Fn(i32, &mut Program)| {
            let mut own = Program::new();
            program(tid, &mut own);
            (tid, worker, own)
        };
        let all = |program: &dyn Fn(i32, &mut Program)| {
            let tasks: Vec<_> = tids.iter().copied().zip(&threads).map(|one| task(one, program)).collect();
            run(&tasks)
        };
        all(&|tid, program| {
            let name = program.put_cstr(format!("thread {tid}").as_bytes());
            program.call("name it", libc::SYS_prctl, &[libc::PR_SET_NAME.into(), name.into()]);
        })
        .unwrap();
        for (tid, worker) in tids.iter().zip(&threads) {
            let name = std::fs::read_to_string(format!("/proc/{}/comm", worker.host())).unwrap();
            assert_eq!(name, format!("thread {tid}\n"));
        }
        // One has nothing to do, and one fails.
        let failed = all(&|tid, program| {
            let fd = if tid == tids[17] { -1 } else { 0 };
            if tid != tids[20] {
                program.call("duplicate a descriptor", libc::SYS_dup, &[fd.into()]);
            }
        });
        let (tid, failure) = failed.unwrap_err();
        assert_eq!(
            (tid, failure.to_string().as_str()),
            (tids[17], "duplicate a descriptor: bad file number")
        );
        // More than fits into the area is done in parts.
        all(&|_, program| {
            program.put(&vec![1; 64 << 10]);
            program.call("get its id", libc::SYS_gettid, &[]);
        })
        .unwrap();
        let too_much = all(&|_, program| {
            program.put(&vec![1; 2 << 20]);
            program.call("get its id", libc::SYS_gettid, &[]);
        });
        assert_eq!(too_much.unwrap_err().1.errno, nix::errno::Errno::E2BIG);
    }
}

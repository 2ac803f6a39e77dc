//! Threads of one process that work for ckrun at the same time.
//!
//! One after the other, each would cost ckrun a sleep and a wake-up. Here all of them are let go first, and the one that was
//! let go last is awaited first: when it has stopped, most of the others have as well.

use crate::Failure;
use crate::program::{Program, RECORD};
use crate::worker::{HEADER, Worker};

/// A thread by its id in the job, and what it is to do.
pub(crate) type Task<'a> = (i32, &'a Worker, Program);

/// Runs each program in its thread. All threads must be of one process, and their stubs in the same place.
///
/// # Errors
/// As [`Worker::run`], with the id of the thread.
pub(crate) fn run(tasks: &[Task<'_>]) -> Result<(), (i32, Failure)> {
    let mut rest = tasks;
    while let Some((_, first, _)) = rest.first() {
        let room = first.room() as usize;
        let mut used = 0;
        let fitting = rest.iter().take_while(|(.., program)| {
            used += size(program);
            used <= room
        });
        // One that does not fit even alone is refused.
        let (now, later) = rest.split_at(fitting.count().max(1));
        run_together(now)?;
        rest = later;
    }
    Ok(())
}

fn size(program: &Program) -> usize {
    program.size().next_multiple_of(RECORD)
}

/// The programs lie one behind the other in the area that all threads share.
fn run_together(tasks: &[Task<'_>]) -> Result<(), (i32, Failure)> {
    let Some((tid, first, _)) = tasks.first() else { return Ok(()) };
    let mine = |failure| (*tid, failure);
    let base = first.area.start + HEADER;
    let mut bytes = Vec::new();
    let mut started = Vec::with_capacity(tasks.len());
    for (tid, worker, program) in tasks.iter().filter(|(.., program)| !program.is_empty()) {
        let at = bytes.len();
        bytes.extend(program.encode(base + at as u64));
        bytes.resize(at + size(program), 0);
        started.push((*tid, worker, program, at));
    }
    first.check_room(bytes.len()).and_then(|()| first.write(base, &bytes)).map_err(mine)?;
    for (tid, worker, program, at) in &started {
        let regs = worker.registers(base + *at as u64, program);
        worker.put(&regs).and_then(|()| worker.tracee.start()).map_err(|failure| (*tid, failure))?;
    }
    for (tid, worker, ..) in started.iter().rev() {
        worker.tracee.await_trap().map_err(|failure| (*tid, failure))?;
    }
    first.read(base, &mut bytes).map_err(mine)?;
    for (tid, _, program, at) in started {
        program.results(&bytes[at..]).map_err(|failure| (tid, failure))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::testing::{free_pid, newborn};
    use crate::nursery::beget_threads;

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

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

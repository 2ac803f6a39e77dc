//! Calls for a task, run whenever there are many of them: an address space can need more than fit into one program.

use crate::Failure;
use crate::program::{Answers, Program};
use crate::worker::Worker;

/// Calls of one program, and the bytes of their paths. The area of a task holds more than twice as much.
const CALLS: usize = 2000;
const BYTES: usize = 384 << 10;

/// Collects calls.
#[derive(Debug)]
pub(super) struct Batch<'a> {
    worker: &'a mut Worker,
    /// What is collected.
    pub program: Program,
}

impl<'a> Batch<'a> {
    pub fn new(worker: &'a mut Worker) -> Self {
        Batch { worker, program: Program::new() }
    }

    /// Runs what is there if there is much of it. To be called where no later call refers to the result of an earlier
    /// one.
    pub fn pause(&mut self) -> Result<(), Failure> {
        if self.program.len() >= CALLS || self.program.size() >= BYTES {
            self.run()?;
        }
        Ok(())
    }

    /// What is there, to be run by somebody else.
    pub fn rest(self) -> Program {
        self.program
    }

    /// Runs what is there.
    pub fn run(&mut self) -> Result<Answers, Failure> {
        self.worker.run(&std::mem::take(&mut self.program))
    }
}

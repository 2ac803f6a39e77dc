//! The threads of a process work one after the other, each on duty for its turn.

use super::Visit;
use crate::Failure;
use crate::program::{Answers, Program, RECORD};
use crate::tracee::Tracee;

impl Visit {
    /// Runs a program in each of these threads of the process.
    ///
    /// # Errors
    /// As [`Worker::run`].
    pub fn run_each(&mut self, tasks: &[(&Tracee, Program)]) -> Result<Vec<Answers>, Failure> {
        let mut answers = Vec::with_capacity(tasks.len());
        let mut rest = tasks;
        while !rest.is_empty() {
            let mut used = RECORD;
            let fitting = rest.iter().take_while(|(_, program)| {
                used += program.size().next_multiple_of(RECORD);
                used <= self.worker.room() as usize
            });
            // One that does not fit even alone is refused.
            let (now, later) = rest.split_at(fitting.count().max(1));
            answers.extend(self.run_relay(now)?);
            rest = later;
        }
        Ok(answers)
    }

    /// Runs programs that lie one behind the other in the area, each in its thread. A thread comes out while the next one
    /// works: for both together ckrun sleeps and wakes hardly more often than for one.
    fn run_relay(&mut self, tasks: &[(&Tracee, Program)]) -> Result<Vec<Answers>, Failure> {
        self.arm()?;
        let base = self.program();
        let mut bytes: Vec<u8> = Vec::new();
        let mut places = Vec::with_capacity(tasks.len());
        for (_, program) in tasks {
            places.push(bytes.len());
            bytes.extend(program.encode(base + bytes.len() as u64));
            bytes.resize(bytes.len().next_multiple_of(RECORD), 0);
        }
        self.worker.check_room(RECORD + bytes.len())?;
        self.worker.write(base, &bytes)?;
        self.begin_to_stand()?;
        for ((thread, program), place) in tasks.iter().zip(&places) {
            let former = self.take_over(thread)?;
            if former.is_none() {
                thread.settled()?;
            }
            let regs = self.worker.registers(base + *place as u64, program);
            self.worker.put(&regs)?;
            thread.start()?;
            // Both run on this CPU, and each wait lets either of them.
            if let Some(former) = former {
                former.thread.settled()?;
                former.come_out()?;
            }
            thread.await_trap()?;
            self.begin_to_stand()?;
        }
        self.duty.thread.settled()?;
        self.worker.read(base, &mut bytes)?;
        let answers = tasks.iter().zip(&places);
        answers.map(|((_, program), &at)| program.decode(bytes[at..][..program.size()].to_vec())).collect()
    }
}

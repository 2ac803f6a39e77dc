//! The last steps before the tasks are let go: from here on the stub runs no more.

use super::{Making, running};
use crate::cpu::sleep;
use crate::rooms::OutsideThread;
use crate::signals::{Action, Actions};
use crate::sys::ptrace::Registers;
use crate::worker::Worker;
use crate::{Error, Failure, stub};

impl Making<'_> {
    /// Takes ckrun's traces out of every process, and gives every thread its registers.
    ///
    /// # Errors
    /// The kernel's; registers that no thread can have.
    pub fn registers(&mut self) -> Result<(), Error> {
        let job = self.job;
        for member in running(job) {
            let regs =
                member.threads.iter().map(|&tid| self.call_in_flight(tid)).collect::<Result<Vec<_>, _>>()?;
            let trap = job.processes.actions.get(&member.pid).map(Actions::trap).unwrap_or_default();
            self.leader(member.pid, |worker| vanish(worker, trap))?;
            for (&tid, regs) in member.threads.iter().zip(regs) {
                let (Some(cpu), Some(regs)) = (job.cpu.get(&tid), regs) else { continue };
                self.task(tid, |worker| {
                    cpu.extended.write(worker.host())?;
                    worker.tracee.regs = regs;
                    worker.tracee.mask = cpu.mask.0;
                    job.outside_threads.restore(tid, worker.host(), &OutsideThread::default())
                })?;
            }
        }
        Ok(())
    }

    /// Puts a thread into the call that the old one was in, if it was in one that goes on with the rest of its time. The
    /// answer is the registers that it is to get.
    fn call_in_flight(&mut self, tid: i32) -> Result<Option<Registers>, Error> {
        let Some(cpu) = self.job.cpu.get(&tid) else { return Ok(None) };
        let bad = |why| Error::Damaged(format!("cpu.json: thread {tid}: {why}"));
        let regs = cpu.checked().map_err(bad)?;
        match cpu.sleep.as_ref().map(|sleep| sleep.plan(&regs)) {
            None => Ok(Some(regs)),
            Some(sleep::Plan::Registers(regs)) => Ok(Some(regs)),
            Some(sleep::Plan::Start(start)) => {
                let result = self.task(tid, |worker| worker.begin(&start.program))?;
                Ok(Some(start.registers(result)))
            }
        }
    }
}

/// Gives SIGTRAP its action, for the stub runs no more, and unmaps ckrun's area.
fn vanish(worker: &mut Worker, trap: Action) -> Result<(), Failure> {
    if trap != Action::default() {
        let at = worker.area.start;
        worker.write(at, &trap.to_bytes())?;
        let syscall = worker.code + stub::syscall();
        worker.single(syscall, libc::SYS_rt_sigaction, &[libc::SIGTRAP as u64, at, 0, 8])?;
    }
    worker.unmap()
}

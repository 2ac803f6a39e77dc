//! The last steps before the tasks are let go: from here on the stub runs no more.

use super::{Making, blame, running};
use crate::cpu::sleep::{self, Start};
use crate::cpu::state::CpuState;
use crate::crew::{self, CREW};
use crate::signals::{Action, Actions};
use crate::sys::ptrace::Registers;
use crate::tree::Member;
use crate::worker::Worker;
use crate::{Error, Failure, stub};

impl Making<'_> {
    /// Takes ckrun's traces out of every process, and gives every thread its registers.
    ///
    /// # Errors
    /// The kernel's; registers that no thread can have.
    pub fn registers(&mut self) -> Result<(), Error> {
        let job = self.job;
        let mut threads: Vec<i32> = Vec::new();
        for member in running(job) {
            threads.extend(&member.threads);
        }
        for tids in threads.chunks(CREW) {
            self.calls_in_flight(tids)?;
        }
        let members: Vec<_> = running(job).collect();
        for members in members.chunks(CREW) {
            self.vanish(members)?;
        }
        for tid in threads {
            let Some(cpu) = job.cpu.get(&tid) else { continue };
            let born = &self.born.outside_thread;
            let worker = self.threads.get(&tid).or_else(|| self.leaders.get(&tid));
            let set = worker.map_or(Ok(()), |worker| {
                cpu.extended.write(worker.host())?;
                job.outside_threads.restore(tid, worker.host(), born)
            });
            set.map_err(|failure| blame(job, tid, failure))?;
        }
        Ok(())
    }

    /// Puts threads into the calls that the old ones were in, if those go on with the rest of their time, and decides with
    /// which registers each is to go on.
    fn calls_in_flight(&mut self, tids: &[i32]) -> Result<(), Error> {
        let job = self.job;
        let mut starts = Vec::new();
        for &tid in tids {
            let Some(cpu) = job.cpu.get(&tid) else { continue };
            let bad = |why| Error::Damaged(format!("cpu.json: thread {tid}: {why}"));
            let regs = cpu.checked().map_err(bad)?;
            let regs = match cpu.sleep.as_ref().map(|sleep| sleep.plan(&regs)) {
                None => regs,
                Some(sleep::Plan::Registers(regs)) => regs,
                Some(sleep::Plan::Start(start)) => {
                    starts.push((tid, start));
                    continue;
                }
            };
            self.go_on(tid, regs, cpu);
        }
        let task = |(tid, start): &(i32, Start)| Some((*tid, self.worker(*tid)?, start.program.clone()));
        let tasks: Vec<_> = starts.iter().filter_map(task).collect();
        let results = crew::begin(&tasks).map_err(|(tid, failure)| blame(job, tid, failure))?;
        for ((tid, start), result) in starts.into_iter().zip(results) {
            let Some(cpu) = job.cpu.get(&tid) else { continue };
            self.go_on(tid, start.registers(result), cpu);
        }
        Ok(())
    }

    fn go_on(&mut self, tid: i32, regs: Registers, cpu: &CpuState) {
        if let Some(worker) = self.worker_mut(tid) {
            worker.tracee.regs = regs;
            worker.tracee.mask = cpu.mask.0;
        }
    }

    /// Gives SIGTRAP its action, for the stub runs no more, and unmaps ckrun's area.
    fn vanish(&self, members: &[&Member]) -> Result<(), Error> {
        let job = self.job;
        let all = |work: &dyn Fn(i32, &Worker) -> Result<(), Failure>| {
            let leaders = members.iter().filter_map(|m| Some((m.pid, self.leaders.get(&m.pid)?)));
            let mut done = leaders.map(|(pid, worker)| work(pid, worker).map_err(|e| blame(job, pid, e)));
            done.try_for_each(|done| done)
        };
        all(&|pid, worker| {
            let trap = job.processes.actions.get(&pid).map(Actions::trap).unwrap_or_default();
            if trap != Action::default() {
                let at = worker.area.start;
                worker.write(at, &trap.to_bytes())?;
                let syscall = worker.code + stub::syscall();
                worker.single(syscall, libc::SYS_rt_sigaction, &[libc::SIGTRAP as u64, at, 0, 8])?;
            }
            worker.start_unmap()
        })?;
        all(&|_, worker| worker.tracee.interrupt_call())?;
        all(&|_, worker| worker.end_unmap())
    }
}

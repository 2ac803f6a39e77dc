//! The state of tasks that exist: everything but their memory, their files and their registers.

use super::Making;
use crate::endings;
use crate::job::Job;
use crate::program::Program;
use crate::resource::Resource;
use crate::signals::Action;
use crate::sys::ptrace;
use crate::tree::{Life, Member};
use crate::{Doing, Error};
use nix::errno::Errno;

impl Making<'_> {
    /// Who does not get the login that it had does without.
    pub(super) fn login(&mut self, member: &Member) -> Result<(), Error> {
        let Some(&login) = self.job.logins.get(&member.pid).filter(|login| Some(**login) != self.login)
        else {
            return Ok(());
        };
        for &tid in &member.threads {
            self.task(tid, |worker| match login.set(worker) {
                Err(e) if e.errno != Errno::ESRCH => {
                    log::warn!("{e}");
                    Ok(())
                }
                other => other,
            })?;
        }
        Ok(())
    }

    /// What a thread can have before its process is complete.
    pub(super) fn thread(&mut self, tid: i32) -> Result<(), Error> {
        let job = self.job;
        let mut program = Program::new();
        restore(job.threads.memory_policy.get(&tid), &mut program);
        restore(job.threads.at_exit.get(&tid), &mut program);
        restore(job.threads.alt_stack.get(&tid), &mut program);
        restore(job.threads.switches.get(&tid), &mut program);
        let Some(cpu) = job.cpu.get(&tid) else { return Ok(()) };
        if let Some(rseq) = &cpu.rseq {
            rseq.check().map_err(|_| Error::Damaged(format!("cpu.json: thread {tid}: rseq")))?;
            rseq.register(&mut program);
        }
        self.task(tid, |worker| {
            worker.run(&program)?;
            cpu.extended.expansion().map_or(Ok(()), |(code, data)| worker.run_code(code, &data))
        })
    }

    /// Everything else but the registers. Children come before their parents, who must not hear of the ends and stops that
    /// happen on the way.
    ///
    /// # Errors
    /// The kernel's.
    pub fn state(&mut self) -> Result<(), Error> {
        let job = self.job;
        for member in job.members.iter().rev() {
            if let Life::Zombie { status } = member.state {
                if let Some(worker) = self.leaders.remove(&member.pid) {
                    self.ended.push(worker.host());
                    endings::end(worker, status)?;
                }
                continue;
            }
            self.process(member)?;
            if let Life::Stopped { signal, .. } = member.state {
                self.leader(member.pid, |worker| endings::stop(worker, signal))?;
            }
        }
        Ok(())
    }

    fn process(&mut self, member: &Member) -> Result<(), Error> {
        let job = self.job;
        let pid = member.pid;
        let mut program = Program::new();
        hush_children(job, pid, &mut program);
        restore(job.processes.actions.get(&pid), &mut program);
        restore(job.processes.pending.get(&pid), &mut program);
        restore(job.threads.pending.get(&pid), &mut program);
        self.leader(pid, |worker| worker.run(&program).map(drop))?;
        for &tid in member.threads.iter().skip(1) {
            let mut program = Program::new();
            restore(job.threads.pending.get(&tid), &mut program);
            self.task(tid, |worker| worker.run(&program).map(drop))?;
        }
        let mut program = Program::new();
        // One of those who share a table does it, after all that are made by it.
        let own_table = job.files.processes.get(&pid).is_some_and(|holdings| holdings.table.is_none());
        for &fd in self.made.kept().iter().filter(|_| own_table) {
            program.call("close ckrun's descriptor", libc::SYS_close, &[fd.into()]);
        }
        restore(job.processes.limits.get(&pid), &mut program);
        restore(job.processes.switches.get(&pid), &mut program);
        restore(job.processes.timers.get(&pid), &mut program);
        if let Some(timers) = job.timers.get(&pid) {
            let now = self.leader(pid, |worker| timers.now(|program| worker.run(program)))?;
            timers.restore(&now, &mut program);
        }
        self.leader(pid, |worker| worker.run(&program).map(drop))?;
        self.confine(member)?;
        let host = self.host(pid)?;
        job.outside_processes.restore(pid, host)?;
        Ok(())
    }

    /// Filters, then credentials: after them a thread can do little for us.
    fn confine(&mut self, member: &Member) -> Result<(), Error> {
        let job = self.job;
        let for_all = job.filters.same(&member.threads);
        for &tid in member.threads.iter().rev() {
            let mut program = Program::new();
            if !for_all || tid == member.pid {
                job.filters.restore(tid, for_all, &mut program);
            }
            restore(job.threads.creds.get(&tid), &mut program);
            if tid == member.pid {
                restore(job.processes.dumpable.get(&tid), &mut program);
            }
            self.task(tid, |worker| {
                let options = libc::PTRACE_O_EXITKILL | libc::PTRACE_O_TRACESYSGOOD | ptrace::SUSPEND_SECCOMP;
                ptrace::set_options(worker.host(), options).doing(|| "suspend filters")?;
                worker.run(&program).map(drop)
            })?;
        }
        Ok(())
    }
}

pub(super) fn restore<T: Resource>(state: Option<&T>, program: &mut Program) {
    if let Some(state) = state {
        state.restore(program);
    }
}

/// Forgets the signals that ended and stopped children have sent, and asks for the stops that the parent had asked for.
fn hush_children(job: &Job, pid: i32, program: &mut Program) {
    for child in job.members.iter().filter(|m| m.parent == pid) {
        if let Life::Stopped { reported: true, .. } = child.state {
            const P_PID: u64 = 1;
            let flags = libc::WSTOPPED | libc::WNOHANG;
            let info = program.room(size_of::<libc::siginfo_t>());
            let args = [P_PID.into(), child.pid.into(), info.into(), flags.into(), 0.into()];
            program.attempt("ask for a child's stop", libc::SYS_waitid, &args);
        }
    }
    // To set an action that ignores a signal discards those that wait.
    let ignore = program.put(&Action::default().to_bytes());
    let args = [libc::SIGCHLD.into(), ignore.into(), 0.into(), 8.into()];
    program.call("forget what children have told", libc::SYS_rt_sigaction, &args);
}

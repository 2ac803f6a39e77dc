//! The state of tasks that exist: everything but their memory, their files and their registers.

use super::{Making, blame};
use crate::Error;
use crate::crew::{self, CREW};
use crate::endings;
use crate::job::Job;
use crate::program::Program;
use crate::resource::Resource;
use crate::signals::Action;
use crate::timers::PosixTimers;
use crate::tree::{self, Life, Member};
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

    /// Brings a thread to have room for all of its extended state.
    pub(super) fn expand(&mut self, tid: i32) -> Result<(), Error> {
        let expansion = self.job.cpu.get(&tid).and_then(|cpu| cpu.extended.expansion());
        expansion.map_or(Ok(()), |(code, data)| self.task(tid, |worker| worker.run_code(code, &data)))
    }

    /// Everything else but the registers. Children come before their parents, who must not hear of the ends and stops that
    /// happen on the way.
    ///
    /// # Errors
    /// The kernel's.
    pub fn state(&mut self) -> Result<(), Error> {
        let mut crew = Vec::with_capacity(CREW);
        for member in tree::children_first(&self.job.members) {
            if let Life::Zombie { status } = member.state {
                self.complete(&mut crew)?;
                if let Some(worker) = self.leaders.remove(&member.pid) {
                    self.ended.insert(member.pid, worker.host());
                    endings::end(worker, status)?;
                }
                continue;
            }
            crew.push((member.pid, self.process(member)?));
            let stopped = matches!(member.state, Life::Stopped { .. });
            // Those that have waiting timers were asked what time it is for them.
            let timed =
                self.job.timers.get(&member.pid).is_some_and(|timers| *timers != PosixTimers::default());
            if stopped || timed || crew.len() == CREW {
                self.complete(&mut crew)?;
            }
            if let Life::Stopped { signal, .. } = member.state {
                self.leader(member.pid, |worker| endings::stop(worker, signal))?;
            }
        }
        self.complete(&mut crew)?;
        // All pages are in place, and what has failed on the way is told.
        self.filler.finish()
    }

    /// Runs the last programs of some processes.
    fn complete(&mut self, crew: &mut Vec<(i32, Program)>) -> Result<(), Error> {
        let job = self.job;
        let task = |(pid, program)| Some((pid, self.leaders.get(&pid)?, program));
        let tasks: Vec<_> = crew.drain(..).filter_map(task).collect();
        crew::run(&tasks).map_err(|(pid, failure)| blame(job, pid, failure))?;
        for (pid, worker, _) in tasks {
            let set = job.outside_processes.restore(pid, worker.host(), &self.born.outside_process);
            set.map_err(|failure| blame(job, pid, failure))?;
        }
        Ok(())
    }

    /// Does what has to be done before the others; the answer is the rest. The process's pages are in place then.
    fn process(&mut self, member: &Member) -> Result<Program, Error> {
        let job = self.job;
        let pid = member.pid;
        let mut program = self.closed(pid)?;
        self.own(pid, &mut program)?;
        hush_children(job, pid, &mut program);
        restore(job.processes.actions.get(&pid), &mut program);
        self.queue(pid, job.processes.pending.get(&pid).iter().flat_map(|all| all.pieces()), &mut program)?;
        self.queue(pid, job.threads.pending.get(&pid).iter().flat_map(|own| own.pieces()), &mut program)?;
        if member.threads.len() > 1 {
            self.leader(pid, |worker| worker.run(&std::mem::take(&mut program)).map(drop))?;
            self.others(member)?;
        }
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
        self.confine(pid, job.filters.same(&member.threads), &mut program);
        if let Some(limits) = job.processes.limits.get(&pid) {
            limits.restore_last(&mut program);
        }
        restore(job.processes.dumpable.get(&pid), &mut program);
        Ok(program)
    }

    /// Everything that the threads have but the leader: its filters may be theirs as well, and come last.
    fn others(&mut self, member: &Member) -> Result<(), Error> {
        let job = self.job;
        let for_all = job.filters.same(&member.threads);
        // Not all at once: ckrun would need that much more memory for their programs, and gain nothing.
        for tids in member.threads.get(1..).unwrap_or_default().chunks(CREW) {
            let mut programs = Vec::with_capacity(tids.len());
            for &tid in tids {
                let mut program = Program::new();
                self.own(tid, &mut program)?;
                let pending = job.threads.pending.get(&tid);
                self.queue(tid, pending.iter().flat_map(|own| own.pieces()), &mut program)?;
                self.confine(tid, for_all, &mut program);
                programs.push((tid, program));
            }
            let with = |(tid, program)| Some((tid, self.threads.get(&tid)?, program));
            let tasks: Vec<_> = programs.into_iter().filter_map(with).collect();
            crew::run(&tasks).map_err(|(tid, failure)| blame(job, tid, failure))?;
        }
        Ok(())
    }

    /// Queues the signals that wait. What has been gathered runs when there are as many as fit into a program.
    fn queue<T: Resource>(
        &mut self,
        tid: i32,
        pieces: impl Iterator<Item = T>,
        program: &mut Program,
    ) -> Result<(), Error> {
        for (n, piece) in pieces.enumerate() {
            if n > 0 {
                self.task(tid, |worker| worker.run(&std::mem::take(program)).map(drop))?;
            }
            piece.restore(program);
        }
        Ok(())
    }

    /// What a thread has for itself, and can have before its process is complete.
    fn own(&self, tid: i32, program: &mut Program) -> Result<(), Error> {
        let threads = &self.job.threads;
        let policy = threads.memory_policy.get(&tid);
        restore(policy.filter(|policy| **policy != self.born.memory_policy), program);
        restore(threads.at_exit.get(&tid), program);
        restore(threads.alt_stack.get(&tid), program);
        if let Some(switches) = threads.switches.get(&tid) {
            switches.restore_over(Some(&self.born.switches), program);
        }
        if let Some(rseq) = self.job.cpu.get(&tid).and_then(|cpu| cpu.rseq.as_ref()) {
            rseq.check().map_err(|_| Error::Damaged(format!("cpu.json: thread {tid}: rseq")))?;
            rseq.register(program);
        }
        Ok(())
    }

    /// Filters, then credentials: after them a thread can do little for us.
    fn confine(&self, tid: i32, for_all: bool, program: &mut Program) {
        let job = self.job;
        // The leader's are those of all.
        if !for_all || self.leaders.contains_key(&tid) {
            job.filters.restore(tid, for_all, program);
        }
        if let Some(creds) = job.threads.creds.get(&tid) {
            creds.restore_over(Some(&self.born.creds), program);
        }
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

//! A copy of a stopped process's memory, so that the process itself need not wait until it has been read.
//!
//! The process forks, without knowing it: the copy is made by the stub, is traced from birth, and never runs an
//! instruction. It shares nothing that another process could miss (its descriptors are the very table of its parent),
//! and its end sends no signal. The kernel copies pages only when the process writes to them.
//!
//! What a fork leaves out can't be read from the copy: memory shared with others goes on changing, and ranges marked
//! MADV_DONTFORK or MADV_WIPEONFORK are missing or empty.

use crate::proc::Stat;
use crate::program::Program;
use crate::status::Status;
use crate::sys::ptrace::{self, Change};
use crate::tracee::Tracee;
use crate::visit::{Lifted, Visit, stay_on_this_cpu};
use crate::{Doing, Failure, Process};
use crate::{listing, seize};
use nix::errno::Errno;
use nix::unistd::Pid;
use std::time::Duration;

/// How long to wait for the process to stop once more, so that the copy can be reaped; and for the end of a copy that
/// has been killed.
const PATIENCE: Duration = Duration::from_secs(10);

/// A copy. It ends when this is dropped.
#[derive(Debug)]
pub struct Snapshot {
    copy: Pid,
    /// The copy's id in the job.
    id: i32,
    parent: Pid,
    alive: bool,
}

impl Snapshot {
    /// Copies the process that `leader` leads and `visit` is in.
    ///
    /// # Errors
    /// `EAGAIN` when the job may have no more processes, `ENOMEM`.
    pub fn take(visit: &mut Visit, leader: &Tracee) -> Result<Snapshot, Failure> {
        let mut program = Program::new();
        // struct clone_args, linux/sched.h: flags, pidfd, child_tid, parent_tid, exit_signal, and zeroes.
        let flags = (libc::CLONE_PTRACE | libc::CLONE_FILES | libc::CLONE_FS) as u64;
        let mut words = [0_u64; 11];
        words[0] = flags;
        let args = program.put(&words.map(u64::to_ne_bytes).concat());
        // A copy that is let go before it is told to end with ckrun does so at its first instruction: that writes to the area.
        let area = visit.area();
        program.call(
            "keep ckrun's memory out of the copy",
            libc::SYS_madvise,
            &[area.start.into(), (area.end - area.start).into(), libc::MADV_DONTFORK.into()],
        );
        let what = "copy the memory of the process";
        let made = program.call(what, libc::SYS_clone3, &[args.into(), args.len.into()]);
        let answers = match visit.run(leader, &program) {
            Err(e) if e.errno == Errno::EAGAIN => {
                let _lifted = Lifted::processes(leader.pid()).map_err(|_| e)?;
                visit.run(leader, &program)?
            }
            answers => answers?,
        };
        let id = answers.of(made).doing(|| what)? as i32;
        let born = ptrace::wait(Pid::from_raw(-1), libc::__WNOTHREAD).doing(|| what)?;
        let Some((copy, Change::Stopped(_))) = born else { return Err(Failure::new(what, Errno::ECHILD)) };
        let snapshot = Snapshot { copy, id, parent: leader.pid(), alive: true };
        // A copy that nobody holds any more must not run.
        ptrace::set_options(copy, libc::PTRACE_O_EXITKILL).doing(|| what)?;
        Ok(snapshot)
    }

    /// The copy's id in ckrun's pid namespace.
    pub fn pid(&self) -> Pid {
        self.copy
    }

    /// The id, in ckrun's pid namespace, of the process that was copied.
    pub fn parent(&self) -> Pid {
        self.parent
    }

    /// Ends the copy, and makes its parent reap it, which stops that for about 0.1 ms.
    ///
    /// # Errors
    /// When the parent does not stop: then a zombie is left in the job until the parent ends.
    pub fn discard(mut self, cpu: usize) -> Result<(), Failure> {
        self.end();
        reap(self.parent, self.id, cpu)
    }

    fn end(&mut self) {
        if std::mem::take(&mut self.alive) {
            // SAFETY: a signal to a process that we trace: its id can't be another's as long as we have not waited for it.
            unsafe { libc::kill(self.copy.as_raw(), libc::SIGKILL) };
            while !matches!(ptrace::wait(self.copy, 0), Ok(Some((_, Change::Ended(_)))) | Err(_)) {}
        }
    }
}

impl Drop for Snapshot {
    fn drop(&mut self) {
        self.end();
    }
}

/// Makes `parent` reap its child `id`.
fn reap(parent: Pid, id: i32, cpu: usize) -> Result<(), Failure> {
    let Some(parent) = seize::stop_one(parent, PATIENCE)? else { return Ok(()) };
    let mut program = Program::new();
    let flags = libc::__WALL | libc::WNOHANG;
    program.attempt("reap the copy", libc::SYS_wait4, &[id.into(), 0.into(), flags.into(), 0.into()]);
    let reaped = Visit::enter(&parent, cpu).and_then(|mut visit| {
        visit.run(&parent, &program)?;
        visit.leave()
    });
    parent.release()?;
    reaped
}

/// Reaps what the copies of a ckrun that was killed have left in the job whose first process is `init`. The kernel kills
/// them with their tracer, and they end without telling their parents: no process of a job's own ends like that, unless
/// it was cloned without a signal and then killed.
///
/// # Errors
/// As [`Snapshot::discard`].
pub fn sweep(init: Pid) -> Result<(), Failure> {
    let cpu = stay_on_this_cpu()?;
    for host in listing::descendants(init) {
        if Stat::of(host).is_none_or(|stat| stat.exit_signal != 0) || !has_died(host)? {
            continue;
        }
        let Some(stat) = Stat::of(host).filter(|s| s.exit_code == libc::SIGKILL) else { continue };
        let path = format!("/proc/{host}/status");
        let status = Status::parse(&crate::proc::read(&path).doing(|| format!("read {path}"))?);
        reap(stat.parent, status.ns_tgid.last().copied().unwrap_or(0), cpu)?;
    }
    Ok(())
}

/// A process has ended; one that has been killed is given the moment that it needs for that.
fn has_died(host: Pid) -> Result<bool, Failure> {
    let Some(process) = Process::open_now(host) else { return Ok(false) };
    let Ok(text) = crate::proc::read(&format!("/proc/{host}/status")) else { return Ok(false) };
    let Status { sig_pnd, shd_pnd, .. } = Status::parse(&text);
    let killed = (sig_pnd | shd_pnd) & (1 << (libc::SIGKILL - 1)) != 0;
    process.wait(if killed { PATIENCE } else { Duration::ZERO })
}

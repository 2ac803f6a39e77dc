//! Handles of processes and threads (pidfd_open(2)).
//!
//! Whoever has one opens it again when all tasks are there. That of one that has ended for good tells nothing but that: it
//! is made of a process that ends at once.

use super::Trouble;
use super::capture::Job;
use super::making::Making;
use super::{Files, Object};
use crate::program::Program;
use crate::status::Status;
use crate::sys::{Clone3, Cloned};
use crate::{Doing, Failure};
use nix::errno::Errno;
use nix::sched::{CloneFlags, setns};
use nix::sys::wait::waitpid;
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd, RawFd};

/// The handle is of a thread and not of a process (`PIDFD_THREAD`).
const THREAD: u32 = libc::O_EXCL as u32;

/// A handle of a process or a thread.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Pidfd {
    /// Its id in the job, unless it has been reaped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task: Option<i32>,
    /// Which of those that have been reaped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dead: Option<u64>,
}

impl Job<'_> {
    pub(super) fn pidfd(&mut self, node: usize) -> Result<Pidfd, Trouble> {
        let seen = &self.graph.nodes[node].seen;
        let host: i32 = seen.info.number("Pid");
        if host < 0 {
            return Ok(Pidfd { task: None, dead: Some(seen.stat.st_ino) });
        }
        // A group or a session may have been begun outside of the job; there it has no id.
        match self.virtual_id(host).filter(|&task| task > 0) {
            Some(task) => Ok(Pidfd { task: Some(task), dead: None }),
            None if self.running() && self.is_thread(host) => Ok(Pidfd { task: Some(0), dead: None }),
            None => {
                let what = if host > 0 { format!("pidfd of host process {host}") } else { "pidfd".into() };
                Err(Trouble::refused(what, "the process is outside of the job"))
            }
        }
    }
}

impl Job<'_> {
    /// A thread of the job, whose threads are not listed as long as they come and go.
    fn is_thread(&self, host: i32) -> bool {
        let status = crate::proc::read(&format!("/proc/{host}/status"));
        let process = status.ok().and_then(|text| Status::parse(&text).ns_tgid.first().copied());
        process.is_some_and(|process| self.virtual_id(process).is_some())
    }
}

impl Pidfd {
    /// Opens it as descriptor `to` of a process that has its final descriptors, and no number from `free` on.
    pub(super) fn open_late(&self, flags: u32, to: (RawFd, bool), free: RawFd, program: &mut Program) {
        let Some(task) = self.task else { return };
        let flags = flags & (THREAD | libc::O_NONBLOCK as u32);
        let what = format!("open a pidfd of task {task}");
        let opened = program.call(what, libc::SYS_pidfd_open, &[task.into(), flags.into()]);
        super::pseudo::place_late(opened, to, free, program);
    }
}

impl Files {
    /// Makes the handles of those that have been reaped.
    pub(super) fn make_dead_pidfds(&self, making: &mut Making<'_>) -> Result<(), Failure> {
        let mut dead: BTreeMap<u64, Vec<(u32, u32)>> = BTreeMap::new();
        for (id, description) in (0..).zip(&self.descriptions) {
            if let Object::Pidfd(Pidfd { task: None, dead: Some(which) }) = description.object {
                dead.entry(which).or_default().push((id, description.flags));
            }
        }
        for handles in dead.values() {
            let opened = passing(making.worker.host(), handles.iter().map(|(_, flags)| *flags))?;
            for ((id, _), opened) in handles.iter().zip(opened) {
                let to = making.at(*id);
                making.receive(opened.as_fd(), to)?;
            }
            making.run()?;
        }
        Ok(())
    }
}

/// Handles, one for each of `flags`, of one process that has ended and been reaped. It was born in the pid namespace of
/// `first`, or nobody there could name it.
fn passing(first: Pid, flags: impl Iterator<Item = u32>) -> Result<Vec<OwnedFd>, Failure> {
    let what = || "make a process that ends";
    let open = |path: String| File::open(&path).doing(|| format!("open {path}"));
    let (own, theirs) = (open("/proc/self/ns/pid".into())?, open(format!("/proc/{first}/ns/pid"))?);
    setns(&theirs, CloneFlags::CLONE_NEWPID).doing(|| "have children in the job's pid namespace")?;
    // SAFETY: the child makes one system call, which needs no lock.
    let cloned = unsafe { Clone3::default().call() };
    if !matches!(cloned, Ok(Cloned::Child)) {
        setns(&own, CloneFlags::CLONE_NEWPID).doing(|| "have children in ckrun's pid namespace")?;
    }
    let Cloned::Parent(pid, _) = cloned.doing(what)? else {
        // SAFETY: ends this process at once, without destructors.
        unsafe { libc::_exit(0) }
    };
    let opened = flags.map(|flags| {
        let flags = flags & (THREAD | libc::O_NONBLOCK as u32);
        let raw =
            rustix::process::Pid::from_raw(pid.as_raw()).ok_or_else(|| Failure::new(what(), Errno::ESRCH))?;
        rustix::process::pidfd_open(raw, rustix::process::PidfdFlags::from_bits_retain(flags)).doing(what)
    });
    let opened: Result<Vec<_>, Failure> = opened.collect();
    while waitpid(pid, None) == Err(Errno::EINTR) {}
    opened
}

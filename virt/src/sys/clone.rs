//! clone3(2): a new process in new namespaces, and already in its cgroup.

use super::check;
use nix::errno::Errno;
use nix::unistd::Pid;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// `linux/sched.h`; the constant of libc is too narrow for it.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// What a new process is to be born with.
#[derive(Debug, Default)]
pub struct Clone3<'a> {
    /// `CLONE_NEW*` and `CLONE_PARENT`. Nothing that shares memory: the child goes on alone with a copy of it.
    pub flags: u64,
    /// A cgroup2 directory to be born in (CLONE_INTO_CGROUP, Linux 5.7). Unlike a write to `cgroup.procs` it waits for
    /// no RCU grace period.
    pub cgroup: Option<BorrowedFd<'a>>,
}

/// The two sides of a clone.
#[derive(Debug)]
pub enum Cloned {
    /// In the new process.
    Child,
    /// In the caller: the child's id in the caller's pid namespace, and a pidfd that is always the same process.
    Parent(Pid, OwnedFd),
}

impl Clone3<'_> {
    /// Calls clone3 with `CLONE_PIDFD` and, unless it is a `CLONE_PARENT` clone (the kernel then takes the caller's
    /// own), `SIGCHLD` as exit signal.
    ///
    /// # Errors
    /// The kernel's: `EPERM` (a namespace needs a privilege), `EBUSY` (the cgroup has children with controllers), …
    ///
    /// # Safety
    /// The child has only the calling thread. The caller must have no other thread that could hold a lock (malloc's,
    /// stdio's) at this moment; ckrun itself has one thread.
    pub unsafe fn call(&self) -> Result<Cloned, Errno> {
        let mut pidfd: libc::c_int = -1;
        let parent = libc::CLONE_PARENT as u64;
        // SAFETY: clone_args is a plain C struct of u64 for which all zeroes is the documented default.
        let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
        args.flags = self.flags | libc::CLONE_PIDFD as u64;
        args.pidfd = &raw mut pidfd as u64;
        args.exit_signal = if self.flags & parent == 0 { libc::SIGCHLD as u64 } else { 0 };
        if let Some(cgroup) = self.cgroup {
            args.flags |= CLONE_INTO_CGROUP;
            args.cgroup = cgroup.as_raw_fd() as u64;
        }
        // SAFETY: args lives through the call and its size is passed; without CLONE_VM the child runs on its own copy
        // of this stack, so it returns from here like fork(2). The caller vouches for the absence of other threads.
        let pid = check(unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of_val(&args)) })?;
        if pid == 0 {
            return Ok(Cloned::Child);
        }
        // SAFETY: the kernel stored a new descriptor, which nobody else owns, because CLONE_PIDFD was set.
        let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
        Ok(Cloned::Parent(Pid::from_raw(pid as libc::pid_t), pidfd))
    }
}

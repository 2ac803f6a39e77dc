//! A process that can't be mistaken for another one.

use crate::proc::Stat;
use crate::{Doing, Failure, sys};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use rustix::process::{PidfdFlags, pidfd_open};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

/// A live process, held by a pidfd. Ids are reused by the kernel, this handle is not: a signal through it reaches that
/// process or nobody.
#[derive(Debug)]
pub struct Process {
    pid: Pid,
    fd: OwnedFd,
}

impl Process {
    /// Takes over a pidfd that clone3 made.
    pub fn from_clone(pid: Pid, fd: OwnedFd) -> Self {
        Process { pid, fd }
    }

    /// Opens `pid` if it is still the process that started at `started` (see [`Stat::started`]) and has not ended.
    pub fn open(pid: Pid, started: u64) -> Option<Self> {
        let fd = pidfd_open(rustix::process::Pid::from_raw(pid.as_raw())?, PidfdFlags::empty()).ok()?;
        // Only now look: had the id been reused before the open, the start time would differ; after it, it can't be.
        let stat = Stat::of(pid)?;
        (stat.started == started && !stat.ended()).then_some(Process { pid, fd })
    }

    /// Opens `pid` as it is now, for a process that the caller keeps from being reaped or checks by other means.
    pub fn open_now(pid: Pid) -> Option<Self> {
        let fd = pidfd_open(rustix::process::Pid::from_raw(pid.as_raw())?, PidfdFlags::empty()).ok()?;
        Some(Process { pid, fd })
    }

    /// Its id in ckrun's pid namespace.
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// Sends `signal`.
    ///
    /// # Errors
    /// `ESRCH` when it has ended and was reaped, `EPERM`.
    pub fn signal(&self, signal: Signal) -> Result<(), Failure> {
        self.signal_number(signal as i32)
    }

    /// Sends a signal by its number, real-time signals included; 0 only asks whether the process is there.
    ///
    /// # Errors
    /// As [`Process::signal`], and `EINVAL` for a number that is no signal.
    pub fn signal_number(&self, number: i32) -> Result<(), Failure> {
        sys::pidfd_send_signal(self.fd.as_fd(), number)
            .doing(|| format!("send signal {number} to process {}", self.pid))
    }

    /// Waits for its end, and says whether that came within `limit`.
    ///
    /// # Errors
    /// The kernel's.
    pub fn wait(&self, limit: Duration) -> Result<bool, Failure> {
        let limit = PollTimeout::try_from(limit).unwrap_or(PollTimeout::MAX);
        loop {
            match poll(&mut [PollFd::new(self.as_fd(), PollFlags::POLLIN)], limit) {
                Err(Errno::EINTR) => {}
                ready => return Ok(ready.doing(|| format!("wait for the end of process {}", self.pid))? > 0),
            }
        }
    }
}

impl AsFd for Process {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

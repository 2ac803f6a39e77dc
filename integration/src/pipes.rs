//! Events that a test waits for: a line from a pipe, the end of a process. A deadline turns a hang into a failure.

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use std::io::{ErrorKind, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

/// Far beyond what anything here takes, on a busy machine too: what has not come by then never comes.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// Waits until one of `fds` is readable (or closed, or ended); which of them are.
pub fn any_ready(fds: &[BorrowedFd<'_>]) -> Vec<bool> {
    ready(fds).unwrap_or_else(|| panic!("nothing happened within {PATIENCE:?}"))
}

fn ready(fds: &[BorrowedFd<'_>]) -> Option<Vec<bool>> {
    let mut polled: Vec<_> = fds.iter().map(|fd| PollFd::new(*fd, PollFlags::POLLIN)).collect();
    let timeout = PollTimeout::try_from(PATIENCE).unwrap();
    loop {
        match poll(&mut polled, timeout) {
            Ok(0) => return None,
            Err(nix::errno::Errno::EINTR) => {}
            other => {
                other.expect("poll");
                return Some(polled.iter().map(|fd| fd.any().unwrap_or(true)).collect());
            }
        }
    }
}

/// A handle on a process, by which its end can be awaited.
pub fn pidfd(pid: i32) -> OwnedFd {
    try_pidfd(pid).unwrap_or_else(|| panic!("there is no process {pid}"))
}

/// As [`pidfd`]; None when there is no such process.
pub fn try_pidfd(pid: i32) -> Option<OwnedFd> {
    pidfd_open(Pid::from_raw(pid)?, PidfdFlags::empty()).ok()
}

/// Waits for the end of the process behind a pidfd.
pub fn await_end(pidfd: impl AsFd) {
    any_ready(&[pidfd.as_fd()]);
}

/// Text from a pipe, a terminal or a socket, as it comes.
#[derive(Debug)]
pub struct Lines {
    from: std::fs::File,
    held: Vec<u8>,
    open: bool,
}

impl Lines {
    /// Reads from the end `fd`.
    pub fn new(fd: impl Into<OwnedFd>) -> Lines {
        let fd = fd.into();
        let flags = OFlag::from_bits_retain(fcntl(&fd, FcntlArg::F_GETFL).expect("F_GETFL"));
        fcntl(&fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK)).expect("F_SETFL");
        Lines { from: fd.into(), held: Vec::new(), open: true }
    }

    /// Waits for a whole line and returns it without its end.
    pub fn line(&mut self) -> String {
        self.until("\n").trim_end().to_owned()
    }

    /// Waits until `word` has been said and returns everything up to it.
    pub fn until(&mut self, word: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(at) = find(&self.held, word.as_bytes()) {
                let rest = self.held.split_off(at + word.len());
                return String::from_utf8_lossy(&std::mem::replace(&mut self.held, rest)).into_owned();
            }
            let said = || String::from_utf8_lossy(&self.held).into_owned();
            assert!(self.open, "{word:?} was never said, only {:?}", said());
            assert!(Instant::now() < deadline, "{word:?} has not been said yet, only {:?}", said());
            assert!(ready(&[self.from.as_fd()]).is_some(), "{word:?} is not said, only {:?}", said());
            self.fill();
        }
    }

    /// Waits for the end and returns what came before it.
    pub fn rest(&mut self) -> String {
        while self.open {
            any_ready(&[self.from.as_fd()]);
            self.fill();
        }
        String::from_utf8_lossy(&std::mem::take(&mut self.held)).into_owned()
    }

    /// Takes what is there by now.
    pub fn fill(&mut self) {
        let mut buffer = [0; 4096];
        loop {
            match self.from.read(&mut buffer) {
                Ok(0) => return self.open = false,
                Ok(length) => self.held.extend_from_slice(&buffer[..length]),
                Err(e) if e.kind() == ErrorKind::WouldBlock => return,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                // A terminal whose other side is closed everywhere.
                Err(e) if e.raw_os_error() == Some(libc::EIO) => return self.open = false,
                Err(e) => panic!("read: {e}"),
            }
        }
    }

    /// Whether the other end is still open, as far as was read.
    pub fn is_open(&self) -> bool {
        self.open
    }

    /// What has been read and not yet returned.
    pub fn take(&mut self) -> String {
        String::from_utf8_lossy(&std::mem::take(&mut self.held)).into_owned()
    }
}

impl AsFd for Lines {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.from.as_fd()
    }
}

fn find(text: &[u8], word: &[u8]) -> Option<usize> {
    text.windows(word.len()).position(|w| w == word)
}

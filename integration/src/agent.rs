//! A seccomp agent: it receives the listeners of containers and answers for the kernel (seccomp_unotify(2)).

use crate::pipes::any_ready;
use crate::terminal::receive_fds;
use serde_json::Value;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::Path;

nix::ioctl_readwrite!(notif_recv, b'!', 0, libc::seccomp_notif);
nix::ioctl_readwrite!(notif_send, b'!', 1, libc::seccomp_notif_resp);

/// A socket at which ckrun delivers listeners.
#[derive(Debug)]
pub struct Agent(UnixListener);

/// The listener of one filter.
#[derive(Debug)]
pub struct Listener(OwnedFd);

/// A system call that waits for an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Call {
    id: u64,
    /// The caller, as the agent's pid namespace calls it.
    pub pid: i32,
    /// The number of the system call.
    pub number: i32,
}

impl Agent {
    /// Listens at `path` (`linux.seccomp.listenerPath`).
    pub fn at(path: &Path) -> Agent {
        Agent(UnixListener::bind(path).expect("bind the agent's socket"))
    }

    /// Waits for a listener, and the state that comes with it.
    pub fn receive(&self) -> (Listener, Value) {
        let (mut fds, text) = receive_fds(&self.0);
        assert_eq!(fds.len(), 1, "one descriptor, the listener");
        (Listener(fds.remove(0)), serde_json::from_slice(&text).expect("the container process state is JSON"))
    }
}

impl Listener {
    /// Waits for a system call.
    pub fn next(&self) -> Call {
        any_ready(&[self.0.as_fd()]);
        // SAFETY: the structure is plain numbers, for which zero is a value, and the kernel wants it zeroed.
        let mut notif: libc::seccomp_notif = unsafe { std::mem::zeroed() };
        // SAFETY: the kernel writes one structure of this type.
        unsafe { notif_recv(self.0.as_raw_fd(), &raw mut notif) }.expect("receive a notification");
        Call { id: notif.id, pid: notif.pid.cast_signed(), number: notif.data.nr }
    }

    /// Lets a call fail with `errno`.
    pub fn fail(&self, call: Call, errno: i32) {
        self.send(call, -errno, 0);
    }

    /// Lets a call be made.
    pub fn allow(&self, call: Call) {
        self.send(call, 0, libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32);
    }

    fn send(&self, call: Call, error: i32, flags: u32) {
        let mut answer = libc::seccomp_notif_resp { id: call.id, val: 0, error, flags };
        // SAFETY: the kernel reads one structure of this type.
        unsafe { notif_send(self.0.as_raw_fd(), &raw mut answer) }.expect("answer a notification");
    }
}

//! Handing a filter's listener to the agent that answers for the container (`SCMP_ACT_NOTIFY`).

use crate::error::{Error, Result};
use ckrun_virt::{Doing, Failure};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use oci_spec::runtime::ContainerProcessState;
use rustix::process::{PidfdGetfdFlags, pidfd_getfd};
use std::io::IoSlice;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

/// The name under which the runtime-spec lists the listener in [`ContainerProcessState`].
pub const FD_NAME: &str = "seccompFd";

/// Takes a copy of descriptor `number` of the process behind `pidfd`. The container's init has only to tell the number,
/// as its own filter may hold sendmsg.
///
/// # Errors
/// `EBADF` (it has no such descriptor), `ESRCH` (it has ended), `EPERM` (ptrace(2) of it is not allowed).
pub fn fetch(pidfd: BorrowedFd<'_>, number: i32) -> Result<OwnedFd, Failure> {
    pidfd_getfd(pidfd, number, PidfdGetfdFlags::empty())
        .doing(|| format!("fetch descriptor {number} of the container's init"))
}

/// Sends `fd`, with the state as JSON, to the agent that listens on the stream socket `path`.
///
/// # Errors
/// The agent is not there or does not take the message; the error names `linux.seccomp.listenerPath`.
pub fn send_listener(path: &Path, state: &ContainerProcessState, fd: BorrowedFd<'_>) -> Result<()> {
    let agent = UnixStream::connect(path)
        .doing(|| format!("connect to {}", path.display()))
        .map_err(|why| Error::config("linux.seccomp.listenerPath", why.to_string()))?;
    let json = serde_json::to_vec(state)
        .map_err(|e| Error::Json { path: path.into(), why: format!("can't write the state: {e}") })?;
    let fds = [fd.as_raw_fd()];
    let rights = [ControlMessage::ScmRights(&fds)];
    let mut sent =
        sendmsg::<()>(agent.as_raw_fd(), &[IoSlice::new(&json)], &rights, MsgFlags::MSG_NOSIGNAL, None)
            .doing(|| format!("send the seccomp listener to {}", path.display()))?;
    // The descriptor went with the first byte; a stream socket may take the rest in parts.
    while sent < json.len() {
        sent += nix::sys::socket::send(agent.as_raw_fd(), &json[sent..], MsgFlags::MSG_NOSIGNAL)
            .doing(|| format!("send the container's state to {}", path.display()))?;
    }
    Ok(())
}

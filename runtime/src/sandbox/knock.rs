//! How `ckrun start` reaches an init that waits: a socket in the container's directory.

use crate::error::Result;
use crate::sandbox::channel::Channel;
use crate::state::Entry;
use ckrun_virt::Doing;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, connect, listen as listen_on, socket,
};
use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};

fn seqpacket() -> Result<OwnedFd> {
    Ok(socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None)
        .doing(|| "make a socket for ckrun start")?)
}

/// A socket's address holds 108 bytes (unix(7)); the path to the store may be longer, so it goes through a descriptor.
fn with_address<T>(entry: &Entry, what: &str, call: impl FnOnce(&UnixAddr) -> nix::Result<T>) -> Result<T> {
    let dir = File::open(entry.dir()).doing(|| format!("open {}", entry.dir().display()))?;
    let short = format!("/proc/self/fd/{}/start", dir.as_raw_fd());
    let path = entry.start_socket();
    Ok(UnixAddr::new(short.as_str()).and_then(|a| call(&a)).doing(|| format!("{what} {}", path.display()))?)
}

/// Makes the socket; its existence says that the container is created and not started.
pub fn listen(entry: &Entry) -> Result<OwnedFd> {
    let fd = seqpacket()?;
    with_address(entry, "bind", |address| bind(fd.as_raw_fd(), address))?;
    listen_on(&fd, Backlog::new(1).unwrap_or(Backlog::MAXCONN)).doing(|| "listen for ckrun start")?;
    Ok(fd)
}

/// Wakes the init and returns the line to it.
pub fn knock(entry: &Entry) -> Result<Channel> {
    let fd = seqpacket()?;
    with_address(entry, "connect to", |address| connect(fd.as_raw_fd(), address))?;
    Ok(fd.into())
}

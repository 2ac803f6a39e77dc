//! What no image can hold yet, by name.

use super::Trouble;
use super::capture::Job;
use super::seen::Seen;
use crate::Failure;
use rustix::fs::FileType;
use std::os::fd::{AsRawFd, OwnedFd};

/// The refusal of something that has no room of its own.
pub(super) fn refuse(job: &Job<'_>, node: usize) -> Trouble {
    let seen = &job.graph.nodes[node].seen;
    if seen.type_() == FileType::Socket && !seen.has_path() {
        return match socket(job, node) {
            Ok(what) => Trouble::refused(what, "sockets can't be checkpointed yet"),
            Err(failure) => failure.into(),
        };
    }
    let (what, why) = reason(seen);
    Trouble::refused(what, why)
}

fn reason(seen: &Seen) -> (String, &'static str) {
    let Some(name) = seen.anonymous() else {
        return match seen.type_() {
            FileType::Symlink => (seen.name(), "a symbolic link that was deleted"),
            FileType::BlockDevice => (seen.name(), "a block device"),
            FileType::Socket => (seen.name(), "a socket's place in the file system, opened"),
            _ => (seen.name(), "a file of an unknown kind"),
        };
    };
    let plain = |text: &str| (text.to_owned(), "can't be checkpointed");
    match name {
        b"io_uring" => ("io_uring".into(), "its rings and its requests are known to the kernel alone"),
        b"userfaultfd" => ("userfaultfd".into(), "page faults are handled by the job itself"),
        b"perf_event" => ("perf event".into(), "a counter of this host"),
        b"inotify" | b"fanotify" => {
            let text = String::from_utf8_lossy(name).into_owned();
            (text, "watches of files can't be checkpointed yet")
        }
        b"pidfd" => {
            let pid: i32 = seen.info.number("Pid");
            let whose = if pid > 0 { format!("pidfd of host process {pid}") } else { "pidfd".into() };
            (whose, "handles of processes can't be checkpointed yet")
        }
        b"seccomp notify" => ("seccomp listener".into(), "system calls are answered by the job itself"),
        _ => match name.iter().position(|&b| b == b':').map(|colon| &name[..colon]) {
            Some(b"mnt" | b"net" | b"pid" | b"user" | b"uts" | b"ipc" | b"cgroup" | b"time") => {
                (seen.name(), "an open namespace")
            }
            _ => plain(&String::from_utf8_lossy(name)),
        },
    }
}

/// A socket with its addresses, as far as they are easily told.
fn socket(job: &Job<'_>, node: usize) -> Result<String, Failure> {
    let fd = job.graph.take(node)?;
    let number = |name| option(&fd, name);
    let kind = match number(libc::SO_TYPE) {
        Some(libc::SOCK_STREAM) => "stream",
        Some(libc::SOCK_DGRAM) => "datagram",
        Some(libc::SOCK_SEQPACKET) => "seqpacket",
        Some(libc::SOCK_RAW) => "raw",
        _ => "",
    };
    Ok(match number(libc::SO_DOMAIN) {
        Some(libc::AF_UNIX) => {
            let socket = std::os::unix::net::UnixStream::from(fd);
            let path = |address: std::io::Result<std::os::unix::net::SocketAddr>| {
                address.ok().and_then(|a| a.as_pathname().map(|path| format!(" {}", path.display())))
            };
            let at = path(socket.local_addr()).unwrap_or_default();
            let to = socket.peer_addr();
            let peer = if to.is_ok() { " with a peer" } else { "" };
            format!(
                "unix {kind} socket{at}{}",
                path(to).map_or(peer.to_owned(), |path| format!(" connected to{path}"))
            )
        }
        Some(libc::AF_INET | libc::AF_INET6) => {
            let protocol = match number(libc::SO_PROTOCOL) {
                Some(libc::IPPROTO_TCP) => "tcp",
                Some(libc::IPPROTO_UDP) => "udp",
                _ => kind,
            };
            let socket = std::net::TcpStream::from(fd);
            let at = socket.local_addr().map(|a| format!(" {a}")).unwrap_or_default();
            let to = socket.peer_addr().map(|a| format!(" connected to {a}")).unwrap_or_default();
            format!("{protocol} socket{at}{to}")
        }
        Some(libc::AF_NETLINK) => "netlink socket".into(),
        Some(libc::AF_VSOCK) => "vsock socket".into(),
        Some(libc::AF_PACKET) => "packet socket".into(),
        Some(family) => format!("{kind} socket of address family {family}"),
        None => "socket".into(),
    })
}

fn option(fd: &OwnedFd, name: libc::c_int) -> Option<libc::c_int> {
    let mut value: libc::c_int = 0;
    let mut len = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: value and len live through the call, and len is the size of value.
    let answer = unsafe {
        libc::getsockopt(fd.as_raw_fd(), libc::SOL_SOCKET, name, (&raw mut value).cast(), &raw mut len)
    };
    (answer == 0).then_some(value)
}

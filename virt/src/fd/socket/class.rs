//! What a socket is, and what it is called when it can't be carried.

use crate::fd::Trouble;
use crate::sys::sockopt;
use crate::{Doing, Failure};
use nix::errno::Errno;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd};

/// The arguments of socket(2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Class {
    /// `AF_*`.
    pub domain: i32,
    /// `SOCK_*`.
    #[serde(rename = "type")]
    pub kind: i32,
    /// Which protocol of the family.
    pub protocol: i32,
}

impl Class {
    /// That of a socket.
    pub(crate) fn of(fd: BorrowedFd<'_>) -> Result<Class, Failure> {
        let number =
            |name| sockopt::number(fd, libc::SOL_SOCKET, name).doing(|| "find out of what kind a socket is");
        Ok(Class {
            domain: number(libc::SO_DOMAIN)?,
            kind: number(libc::SO_TYPE)?,
            protocol: number(libc::SO_PROTOCOL)?,
        })
    }

    /// A new one of ckrun's.
    pub(crate) fn socket(&self) -> Result<OwnedFd, Failure> {
        // SAFETY: three numbers.
        let fd = unsafe { libc::socket(self.domain, self.kind | libc::SOCK_CLOEXEC, self.protocol) };
        let fd = Errno::result(fd).doing(|| format!("make a {self}"))?;
        // SAFETY: the kernel has just made it, for nobody else.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }

    /// The refusal of a socket of a family that has no file here, with its addresses.
    pub(super) fn refuse(&self, fd: OwnedFd) -> Trouble {
        let socket = std::net::TcpStream::from(fd);
        let at = socket.local_addr().map(|a| format!(" {a}")).unwrap_or_default();
        let to = socket.peer_addr().map(|a| format!(" connected to {a}")).unwrap_or_default();
        Trouble::refused(format!("{self}{at}{to}"), "sockets of this kind can't be checkpointed yet")
    }
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            libc::SOCK_STREAM => "stream",
            libc::SOCK_DGRAM => "datagram",
            libc::SOCK_SEQPACKET => "seqpacket",
            libc::SOCK_RAW => "raw",
            _ => "odd",
        };
        match (self.domain, self.protocol) {
            (libc::AF_UNIX, _) => write!(f, "unix {kind} socket"),
            (libc::AF_INET | libc::AF_INET6, libc::IPPROTO_TCP) => f.write_str("tcp socket"),
            (libc::AF_INET | libc::AF_INET6, libc::IPPROTO_UDP) => f.write_str("udp socket"),
            (libc::AF_INET | libc::AF_INET6, protocol) => {
                write!(f, "{kind} socket of IP protocol {protocol}")
            }
            (libc::AF_NETLINK, protocol) => write!(f, "netlink socket of protocol {protocol}"),
            (libc::AF_VSOCK, _) => f.write_str("vsock socket"),
            (libc::AF_PACKET, _) => f.write_str("packet socket"),
            (family, _) => write!(f, "{kind} socket of address family {family}"),
        }
    }
}

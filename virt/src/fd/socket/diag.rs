//! What the kernel tells of all sockets of a network namespace (sock_diag(7)): who is connected to whom, what waits.

use crate::namespace::{Kind, Namespace};
use crate::netlink::{Netlink, protocols};
use crate::{Doing, Failure};
use nix::errno::Errno;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

pub use crate::netlink::attributes;

/// `linux/sock_diag.h`.
const SOCK_DIAG_BY_FAMILY: u16 = 20;
/// `linux/sockios.h`; not in libc.
const SIOCGSKNS: libc::c_ulong = 0x894C;

/// The network namespace that a socket is in. That is where it was made, wherever its owner is now.
///
/// # Errors
/// `EPERM` without CAP_NET_ADMIN over that namespace.
pub fn namespace_of(socket: impl AsFd) -> Result<OwnedFd, Failure> {
    // SAFETY: the call has no further argument; its answer is a new descriptor.
    let fd = unsafe { libc::ioctl(socket.as_fd().as_raw_fd(), SIOCGSKNS) };
    let fd = Errno::result(fd).doing(|| "find the network namespace of a socket")?;
    // SAFETY: the kernel has just made it, for nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Asks for all sockets that `request` (`struct unix_diag_req`, `struct inet_diag_req_v2`) is about in the network
/// namespace `net`. Each answer is the structure of its family, with attributes behind it.
///
/// # Errors
/// `ENOENT` from a kernel that has no CONFIG_UNIX_DIAG, CONFIG_INET_DIAG and so on; `EPERM`.
pub fn dump(net: OwnedFd, request: &[u8]) -> Result<Vec<Vec<u8>>, Failure> {
    let what = || "list the sockets of a network namespace";
    let other = Namespace::open(net, Kind::Net)?;
    let abroad = other.as_ref().map(Namespace::enter).transpose()?;
    let asker = Netlink::open(protocols::SOCK_DIAG);
    drop(abroad);
    let found = asker.and_then(|mut asker| asker.dump(SOCK_DIAG_BY_FAMILY, request)).doing(what)?;
    Ok(found.into_iter().map(|message| message.payload).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pair_is_in_the_list_of_its_namespace() {
        let (one, other) = std::os::unix::net::UnixStream::pair().unwrap();
        let inode = |socket: &std::os::unix::net::UnixStream| rustix::fs::fstat(socket).unwrap().st_ino;
        // struct unix_diag_req: all states, no inode, UDIAG_SHOW_PEER, no cookie.
        let mut request = vec![libc::AF_UNIX as u8, 0, 0, 0];
        for word in [u32::MAX, 0, 4, u32::MAX, u32::MAX] {
            request.extend(word.to_ne_bytes());
        }
        let all = dump(namespace_of(&one).unwrap(), &request).unwrap();
        let word = |bytes: &[u8]| u64::from(u32::from_ne_bytes(*bytes.first_chunk().unwrap()));
        let found = all.iter().find(|answer| word(&answer[4..]) == inode(&one)).unwrap();
        let peers: Vec<_> = attributes(&found[16..]).filter(|(kind, _)| *kind == 2).collect();
        assert_eq!(peers.iter().map(|(_, value)| word(value)).collect::<Vec<_>>(), [inode(&other)]);
    }
}

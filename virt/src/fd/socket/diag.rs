//! What the kernel tells of all sockets of a network namespace (sock_diag(7)): who is connected to whom, what waits.

use crate::namespace::{Kind, Namespace};
use crate::{Doing, Failure};
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, socket,
};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

/// `linux/sock_diag.h`.
const SOCK_DIAG_BY_FAMILY: u16 = 20;
/// `linux/sockios.h`; not in libc.
const SIOCGSKNS: libc::c_ulong = 0x894C;
/// `struct nlmsghdr`.
const HEADER: usize = 16;
/// The kernel fills at most this much at once (`netlink_dump`).
const ROOM: usize = 32 << 10;

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
    let asker =
        socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkSockDiag)
            .doing(what)?;
    drop(abroad);
    let length = u32::try_from(HEADER + request.len()).map_err(|_| Failure::new(what(), Errno::E2BIG))?;
    let flags = (libc::NLM_F_REQUEST | libc::NLM_F_DUMP) as u16;
    let mut message = Vec::with_capacity(length as usize);
    message.extend(length.to_ne_bytes());
    message.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    message.extend(flags.to_ne_bytes());
    message.extend([0; 8]);
    message.extend(request);
    sendto(asker.as_raw_fd(), &message, &NetlinkAddr::new(0, 0), MsgFlags::empty()).doing(what)?;
    let mut found = Vec::new();
    let mut buffer = vec![0; ROOM];
    loop {
        let length = match recv(asker.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
            Err(Errno::EINTR) => continue,
            answer => answer.doing(what)?,
        };
        let mut rest = &buffer[..length];
        while let Some((kind, payload, tail)) = message_of(rest) {
            match i32::from(kind) {
                libc::NLMSG_DONE => return Ok(found),
                libc::NLMSG_ERROR => {
                    let errno = payload.first_chunk().map_or(0, |code| i32::from_ne_bytes(*code));
                    return Err(Failure::new(what(), Errno::from_raw(-errno)));
                }
                _ => found.push(payload.to_vec()),
            }
            rest = tail;
        }
    }
}

/// The first message: its type and its payload; and the rest.
fn message_of(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let length = u32::from_ne_bytes(*bytes.first_chunk()?) as usize;
    let kind = u16::from_ne_bytes(*bytes.get(4..)?.first_chunk()?);
    let payload = bytes.get(HEADER..length)?;
    Some((kind, payload, bytes.get(length.next_multiple_of(4)..).unwrap_or_default()))
}

/// The attributes behind the structure: their types and their values.
pub fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes(*bytes.first_chunk()?));
        let kind = u16::from_ne_bytes(*bytes.get(2..)?.first_chunk()?);
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
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

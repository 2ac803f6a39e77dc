//! The TCP sockets of a network namespace, also those that nobody has a descriptor of (sock_diag(7)).

use super::address::canonical;
use super::connection::State;
use crate::fd::socket::diag::dump;
use crate::{Doing, Failure};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::BorrowedFd;

/// `struct inet_diag_msg`.
const MESSAGE: usize = 72;
/// `struct inet_diag_req_v2`.
const REQUEST: usize = 56;

/// A TCP socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    pub state: State,
    pub local: SocketAddr,
    pub peer: SocketAddr,
    /// Bytes that nobody has read.
    pub unread: u32,
    /// Bytes that the peer has not acknowledged; of one that listens, the length of the queue that it asked for.
    pub unacknowledged: u32,
    /// 0 when nobody has a descriptor of it: it waits to be accepted, or was closed.
    pub inode: u32,
}

/// All of the network namespace `net`, in no order that means something.
///
/// # Errors
/// The kernel's.
pub fn list(net: BorrowedFd<'_>) -> Result<Vec<Entry>, Failure> {
    let mut found = Vec::new();
    for family in [libc::AF_INET as u8, libc::AF_INET6 as u8] {
        let mut request = vec![family, libc::IPPROTO_TCP as u8, 0, 0];
        // All states.
        request.extend(u32::MAX.to_ne_bytes());
        request.resize(REQUEST, 0);
        let net = net.try_clone_to_owned().doing(|| "copy a descriptor")?;
        found.extend(dump(net, &request)?.iter().filter_map(|answer| parse(answer)));
    }
    Ok(found)
}

fn parse(body: &[u8]) -> Option<Entry> {
    let body = body.get(..MESSAGE)?;
    // idiag_family, _state, _timer, _retrans; the ports and the addresses in the order of the network.
    let port = |at: usize| u16::from_be_bytes([body[at], body[at + 1]]);
    let address = |at: usize, port: u16| {
        let bytes: [u8; 16] = body.get(at..at + 16)?.try_into().ok()?;
        let [a, b, c, d, ..] = bytes;
        Some(match i32::from(body[0]) {
            libc::AF_INET => SocketAddr::new(Ipv4Addr::new(a, b, c, d).into(), port),
            _ => canonical(SocketAddr::new(Ipv6Addr::from(bytes).into(), port)),
        })
    };
    Some(Entry {
        state: State::of(body[1]),
        local: address(8, port(4))?,
        peer: address(24, port(6))?,
        unread: number(body, 56),
        unacknowledged: number(body, 60),
        inode: number(body, 68),
    })
}

fn number(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_ne_bytes)
}

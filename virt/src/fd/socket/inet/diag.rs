//! The TCP sockets of a network namespace, also those that nobody has a descriptor of (sock_diag(7)).

use super::address::canonical;
use super::connection::State;
use crate::fd::socket::diag::{attributes, dump};
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

/// INET_DIAG_SHUTDOWN (`linux/inet_diag.h`).
const SHUTDOWN: u16 = 8;

/// The UDP sockets of the network namespace `net` that have shut something down: their inode numbers, and what (1 that they
/// receive, 2 that they send).
///
/// # Errors
/// The kernel's.
pub fn shut(net: BorrowedFd<'_>) -> Result<Vec<(u32, u8)>, Failure> {
    let mut found = Vec::new();
    for answer in ask(net, libc::IPPROTO_UDP as u8)? {
        let behind = answer.get(MESSAGE..).unwrap_or_default();
        let shut = attributes(behind).find(|(kind, _)| *kind == SHUTDOWN);
        let shut = shut.and_then(|(_, value)| value.first().copied()).filter(|shut| *shut != 0);
        found.extend(shut.map(|shut| (number(&answer, 68), shut)));
    }
    Ok(found)
}

/// All of the network namespace `net`, in no order that means something.
///
/// # Errors
/// The kernel's.
pub fn list(net: BorrowedFd<'_>) -> Result<Vec<Entry>, Failure> {
    Ok(ask(net, libc::IPPROTO_TCP as u8)?.iter().filter_map(|answer| parse(answer)).collect())
}

fn ask(net: BorrowedFd<'_>, protocol: u8) -> Result<Vec<Vec<u8>>, Failure> {
    let mut found = Vec::new();
    for family in [libc::AF_INET as u8, libc::AF_INET6 as u8] {
        let mut request = vec![family, protocol, 0, 0];
        // All states.
        request.extend(u32::MAX.to_ne_bytes());
        request.resize(REQUEST, 0);
        let net = net.try_clone_to_owned().doing(|| "copy a descriptor")?;
        found.extend(dump(net, &request)?);
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

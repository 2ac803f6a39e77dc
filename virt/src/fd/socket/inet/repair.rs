//! A TCP connection as the kernel keeps it: read from a socket, and put into a new one.
//!
//! In repair mode (`TCP_REPAIR`, which takes CAP_NET_ADMIN) the kernel tells and takes sequence numbers, windows and what
//! was negotiated; the contents of both queues are read and written as if they were ordinary data; and a socket is
//! connected or closed without a packet. A job could not use a socket that is in this mode: one whose owner may go on is
//! read elsewhere ([`reading`](super::reading)).

use super::connection::State;
use crate::sys::sockopt;
use nix::errno::Errno;
use rustix::net::SendFlags;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

const TCP: i32 = libc::IPPROTO_TCP;
/// `linux/tcp.h`: on, off, and off without a probe of the peer's window (Linux 4.19).
const REPAIR_ON: i32 = 1;
const REPAIR_OFF: i32 = -1;
/// `SIOCINQ`, `SIOCOUTQ`, `SIOCOUTQNSD`.
pub(super) const UNREAD: u64 = 0x541b;
pub(super) const UNACKNOWLEDGED: u64 = 0x5411;
pub(super) const UNSENT: u64 = 0x894b;
/// The kernel makes one buffer of each write to the receive queue.
const PIECE: usize = 32 << 10;
/// The queue that repair mode is about.
#[derive(Debug, Clone, Copy)]
pub enum Queue {
    None = 0,
    Receive = 1,
    Send = 2,
}

/// What is in the queues of a connection.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Queues {
    /// Not yet read by the job.
    pub receive: Vec<u8>,
    /// Not yet acknowledged by the peer, and not yet sent.
    pub send: Vec<u8>,
}

/// The first bytes of `struct tcp_info`.
#[derive(Debug, Clone, Copy)]
pub struct Info {
    /// How far the connection is.
    pub state: State,
    /// `TCPI_OPT_*`.
    pub options: u8,
    /// The binary logarithms of the factors of the peer's and of the own window.
    pub scales: (u8, u8),
}

impl Info {
    /// # Errors
    /// The kernel's.
    pub fn of(fd: BorrowedFd<'_>) -> Result<Info, Errno> {
        let mut bytes = [0; 8];
        sockopt::get(fd, TCP, libc::TCP_INFO, &mut bytes)?;
        // tcpi_state, _ca_state, _retransmits, _probes, _backoff, _options, then two numbers of four bits.
        Ok(Info { state: State::of(bytes[0]), options: bytes[5], scales: (bytes[6] & 15, bytes[6] >> 4) })
    }
}

/// Says which queue is meant from now on.
///
/// # Errors
/// `EPERM` out of the repair mode.
pub fn choose_queue(fd: BorrowedFd<'_>, queue: Queue) -> Result<(), Errno> {
    sockopt::set_number(fd, TCP, libc::TCP_REPAIR_QUEUE, queue as i32)
}

/// Says where a queue of a socket that is not connected begins.
///
/// # Errors
/// `EPERM` of a connected one.
pub fn set_sequence(fd: BorrowedFd<'_>, queue: Queue, number: u32) -> Result<(), Errno> {
    choose_queue(fd, queue)?;
    sockopt::set_number(fd, TCP, libc::TCP_QUEUE_SEQ, number.cast_signed())
}

/// Writes to the queue that is chosen, or, out of the repair mode, sends.
///
/// # Errors
/// The kernel's: `EAGAIN` when there is no room.
pub fn fill(fd: BorrowedFd<'_>, bytes: &[u8]) -> Result<(), Errno> {
    for piece in bytes.chunks(PIECE) {
        let mut rest = piece;
        while !rest.is_empty() {
            let sent = rustix::net::send(fd, rest, SendFlags::DONTWAIT);
            let sent = sent.map_err(|errno| Errno::from_raw(errno.raw_os_error()))?;
            rest = rest.get(sent..).unwrap_or_default();
        }
    }
    Ok(())
}

/// Puts a socket into repair mode. A bind(2) then takes an address that is in use, and a close(2) sends nothing.
///
/// # Errors
/// `EPERM`, also of a socket that listens.
pub fn enter(fd: BorrowedFd<'_>) -> Result<(), Errno> {
    sockopt::set_number(fd, TCP, libc::TCP_REPAIR, REPAIR_ON)
}

/// Takes a socket out of repair mode, without a packet. SO_REUSEADDR is off then.
///
/// # Errors
/// `EPERM`.
pub fn leave(fd: BorrowedFd<'_>) -> Result<(), Errno> {
    sockopt::set_number(fd, TCP, libc::TCP_REPAIR, REPAIR_OFF)
}

/// Ends the connection of a socket in repair mode, without a packet. It can have another one then.
///
/// # Errors
/// The kernel's.
pub fn disconnect(fd: BorrowedFd<'_>) -> Result<(), Errno> {
    // struct sockaddr with AF_UNSPEC (connect(2)).
    let nobody = [0_u8; 16];
    // SAFETY: the address lives through the call, and its length is given.
    let done = unsafe { libc::connect(fd.as_raw_fd(), nobody.as_ptr().cast(), 16) };
    Errno::result(done)?;
    // The kernel notes that the connection was broken off.
    sockopt::number(fd, libc::SOL_SOCKET, libc::SO_ERROR).map(drop)
}

/// As [`leave`], and asks the peer where it is: it may have had no answer for a long time.
///
/// # Errors
/// `EPERM`.
pub fn leave_and_probe(fd: BorrowedFd<'_>) -> Result<(), Errno> {
    sockopt::set_number(fd, TCP, libc::TCP_REPAIR, 0)
}

/// Makes room for this many bytes in a queue of a socket, whatever the host's limits say. Options that are set later take
/// it back.
///
/// # Errors
/// The kernel's.
pub fn make_room(fd: impl AsFd, queues: &Queues) -> Result<(), Errno> {
    let fd = fd.as_fd();
    // The kernel doubles the number, and buffers of a few bytes each cost many times that.
    let room = |bytes: usize| i32::try_from(bytes.saturating_mul(4) + (1 << 20)).unwrap_or(i32::MAX / 2);
    if !queues.receive.is_empty() {
        sockopt::set_number(fd, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, room(queues.receive.len()))?;
    }
    if !queues.send.is_empty() {
        sockopt::set_number(fd, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, room(queues.send.len()))?;
    }
    Ok(())
}

/// Asks for a number by ioctl(2).
pub(super) fn count(fd: BorrowedFd<'_>, request: u64) -> Result<u32, Errno> {
    let mut value: libc::c_int = 0;
    // SAFETY: the kernel stores one int.
    let got = unsafe { libc::ioctl(fd.as_raw_fd(), request as _, &raw mut value) };
    Errno::result(got).map(|_| value.max(0).cast_unsigned())
}

/// How many bytes the job can read.
///
/// # Errors
/// `EINVAL` of a socket that listens.
pub fn unread(fd: BorrowedFd<'_>) -> Result<u32, Errno> {
    count(fd, UNREAD)
}

//! A TCP connection as the kernel keeps it: read from a socket, and put into a new one.
//!
//! In repair mode (`TCP_REPAIR`, which takes CAP_NET_ADMIN) the kernel tells and takes sequence numbers, windows and what
//! was negotiated; the contents of both queues are read and written as if they were ordinary data; and a socket is
//! connected or closed without a packet. A job could not send through a socket that is in this mode, so a socket whose
//! owner may go on is in it only for the few calls that read it ([`session`]).

use super::connection::{Connection, Negotiated, State, Window};
use crate::sys::sockopt;
use crate::{Doing, Failure};
use nix::errno::Errno;
use rustix::net::{RecvFlags, SendFlags};
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::time::Duration;

const TCP: i32 = libc::IPPROTO_TCP;
/// `linux/tcp.h`: on, off, and off without a probe of the peer's window (Linux 4.19).
const REPAIR_ON: i32 = 1;
const REPAIR_OFF: i32 = -1;
/// `TCPI_OPT_*`.
const HAS_TIMESTAMPS: u8 = 1;
const HAS_SACK: u8 = 2;
const HAS_SCALE: u8 = 4;
/// `SIOCINQ`, `SIOCOUTQ`, `SIOCOUTQNSD`.
const UNREAD: u64 = 0x541b;
const UNACKNOWLEDGED: u64 = 0x5411;
const UNSENT: u64 = 0x894b;
/// The kernel makes one buffer of each write to the receive queue.
const PIECE: usize = 32 << 10;
/// How often a connection is read that changes meanwhile: the peer's packets go on coming in.
const LOOKS: usize = 50;
/// How often a peer is asked what it has got, and how long it may take to answer.
const ANSWERS: usize = 20;
const ANSWER: Duration = Duration::from_millis(2);

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
    options: u8,
    scales: (u8, u8),
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

/// What is read in one go.
#[derive(Clone, Copy)]
struct Look {
    send: u32,
    receive: u32,
    unread: u32,
    unacknowledged: u32,
    unsent: u32,
    mss: u32,
    clock: u32,
    window: [u32; 5],
    sent: usize,
    peeked: usize,
}

/// Reads a connection and what is in its queues; the socket stays as it is. None when there is no connection any more.
///
/// # Errors
/// The kernel's: `EPERM` without CAP_NET_ADMIN, `EAGAIN` when it changes all the time.
pub fn read(
    fd: BorrowedFd<'_>,
    local: SocketAddr,
    peer: SocketAddr,
) -> Result<Option<(Connection, Queues)>, Failure> {
    read_in(fd, local, peer, false)
}

/// As [`read`], of a socket that is in repair mode and stays in it.
///
/// # Errors
/// As [`read`].
pub fn read_entered(
    fd: BorrowedFd<'_>,
    local: SocketAddr,
    peer: SocketAddr,
) -> Result<Option<(Connection, Queues)>, Failure> {
    read_in(fd, local, peer, true)
}

fn read_in(
    fd: BorrowedFd<'_>,
    local: SocketAddr,
    peer: SocketAddr,
    entered: bool,
) -> Result<Option<(Connection, Queues)>, Failure> {
    let what = || format!("read the tcp connection from {local} to {peer}");
    for _ in 0..LOOKS {
        let info = Info::of(fd).doing(what)?;
        if !info.state.is_connected() {
            return Ok(None);
        }
        // One byte more than there should be: what is longer has grown.
        let room = |request| count(fd, request).map(|bytes| vec![0_u8; bytes as usize + 1]);
        let mut queues =
            Queues { receive: room(UNREAD).doing(what)?, send: room(UNACKNOWLEDGED).doing(what)? };
        let look = session(fd, &mut queues, entered).doing(what)?;
        let after = Info::of(fd).doing(what)?;
        let Some(look) = look.filter(|_| after.state == info.state) else { continue };
        let (state, ended) = (info.state, u32::from(info.state.end_is_queued()));
        let came_to_end = u32::from(state.received_end());
        let queued = look.unacknowledged.saturating_sub(ended);
        // The end is sent behind everything else.
        let unsent = if look.unsent > 0 { look.unsent - ended } else { 0 };
        if look.peeked != look.unread as usize || look.sent != queued as usize || unsent > queued {
            continue;
        }
        queues.receive.truncate(look.peeked);
        queues.send.truncate(look.sent);
        let [updated_by, peer_window, peer_most, own, advertised_at] = look.window;
        let end = look.receive.wrapping_sub(came_to_end);
        // What was told when the end had come counts it.
        let behind = u32::from(came_to_end == 1 && advertised_at == look.receive);
        let has = |option: u8| info.options & option != 0;
        let connection = Connection {
            state,
            local,
            peer,
            send: look.send.wrapping_sub(look.unacknowledged + u32::from(state == State::FinWait2)),
            unacknowledged: queued - unsent,
            unsent,
            receive: end.wrapping_sub(look.unread),
            unread: look.unread,
            negotiated: Negotiated {
                mss: look.mss,
                scales: has(HAS_SCALE).then_some(info.scales),
                sack: has(HAS_SACK),
                clock: has(HAS_TIMESTAMPS).then_some(look.clock),
            },
            window: Window {
                updated_by,
                peer: peer_window,
                peer_most,
                own: own + behind,
                advertised_at: advertised_at.wrapping_sub(behind),
            },
        };
        return Ok(Some((connection, queues)));
    }
    Err(Failure::new(what(), Errno::EAGAIN))
}

/// Reads all that takes the repair mode. Nothing is allocated in between, so that it is over soon. None if something has
/// changed meanwhile.
fn session(fd: BorrowedFd<'_>, queues: &mut Queues, entered: bool) -> Result<Option<Look>, Errno> {
    // To leave the mode clears the one; in it, the other would move on.
    let reuse = sockopt::number(fd, libc::SOL_SOCKET, libc::SO_REUSEADDR)?;
    let offset = sockopt::number(fd, libc::SOL_SOCKET, libc::SO_PEEK_OFF).unwrap_or(-1);
    if entered {
        return look(fd, queues, offset);
    }
    sockopt::set_number(fd, TCP, libc::TCP_REPAIR, REPAIR_ON)?;
    let look = look(fd, queues, offset);
    sockopt::set_number(fd, TCP, libc::TCP_REPAIR, REPAIR_OFF)?;
    sockopt::set_number(fd, libc::SOL_SOCKET, libc::SO_REUSEADDR, reuse)?;
    look
}

fn look(fd: BorrowedFd<'_>, queues: &mut Queues, offset: i32) -> Result<Option<Look>, Errno> {
    let counts = || -> Result<[u32; 5], Errno> {
        let sequence = |queue: Queue| {
            choose_queue(fd, queue)?;
            sockopt::number(fd, TCP, libc::TCP_QUEUE_SEQ).map(i32::cast_unsigned)
        };
        Ok([
            sequence(Queue::Send)?,
            sequence(Queue::Receive)?,
            count(fd, UNREAD)?,
            count(fd, UNACKNOWLEDGED)?,
            count(fd, UNSENT)?,
        ])
    };
    let before = counts()?;
    if before[2] as usize >= queues.receive.len() || before[3] as usize >= queues.send.len() {
        return Ok(None);
    }
    let mss = sockopt::number(fd, TCP, libc::TCP_MAXSEG)?;
    let mut bytes = [0; 20];
    sockopt::get(fd, TCP, libc::TCP_REPAIR_WINDOW, &mut bytes)?;
    let mut window = [0; 5];
    for (word, bytes) in window.iter_mut().zip(bytes.as_chunks::<4>().0) {
        *word = u32::from_ne_bytes(*bytes);
    }
    let clock = sockopt::number(fd, TCP, libc::TCP_TIMESTAMP)?;
    let peek = |queue: Queue, into: &mut [u8]| {
        choose_queue(fd, queue)?;
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        match rustix::net::recv(fd, into, flags) {
            Ok((bytes, _)) => Ok(bytes),
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::NOTCONN) => Ok(0),
            Err(errno) => Err(Errno::from_raw(errno.raw_os_error())),
        }
    };
    let sent = peek(Queue::Send, &mut queues.send)?;
    if offset >= 0 {
        sockopt::set_number(fd, libc::SOL_SOCKET, libc::SO_PEEK_OFF, 0)?;
    }
    // With nothing to read, to wait for data would be an error that an end of the stream is not.
    let peeked = if before[2] == 0 { 0 } else { peek(Queue::Receive, &mut queues.receive)? };
    if offset >= 0 {
        sockopt::set_number(fd, libc::SOL_SOCKET, libc::SO_PEEK_OFF, offset)?;
    }
    if counts()? != before {
        return Ok(None);
    }
    let [send, receive, unread, unacknowledged, unsent] = before;
    let clock = clock.cast_unsigned();
    let mss = mss.cast_unsigned();
    Ok(Some(Look { send, receive, unread, unacknowledged, unsent, mss, clock, window, sent, peeked }))
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

/// Waits until the peer has acknowledged what has reached it, which it may put off: it is asked to say where it is. What
/// is not acknowledged then has not arrived, as far as can be known.
///
/// # Errors
/// The kernel's.
pub fn await_acknowledgement(fd: BorrowedFd<'_>) -> Result<(), Errno> {
    let reuse = sockopt::number(fd, libc::SOL_SOCKET, libc::SO_REUSEADDR)?;
    for _ in 0..ANSWERS {
        if count(fd, UNACKNOWLEDGED)? == count(fd, UNSENT)? {
            break;
        }
        enter(fd)?;
        leave_and_probe(fd)?;
        sockopt::set_number(fd, libc::SOL_SOCKET, libc::SO_REUSEADDR, reuse)?;
        std::thread::sleep(ANSWER);
    }
    Ok(())
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
fn count(fd: BorrowedFd<'_>, request: u64) -> Result<u32, Errno> {
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

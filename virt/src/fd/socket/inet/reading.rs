//! A TCP connection of a job that stands still, read.
//!
//! It takes the repair mode, for some twenty calls. They are made where a kill of ckrun does not reach ([`apart`]), for all
//! connections of the job at once.

use super::connection::{Connection, Negotiated, State, Window};
use super::repair::{
    Info, Queue, Queues, UNACKNOWLEDGED, UNREAD, UNSENT, choose_queue, count, enter, leave, leave_and_probe,
};
use crate::sys::{apart, is_orphan, sockopt};
use crate::{Doing, Failure};
use nix::errno::Errno;
use rustix::net::RecvFlags;
use std::net::SocketAddr;
use std::os::fd::BorrowedFd;
use std::time::Duration;

const TCP: i32 = libc::IPPROTO_TCP;
/// `TCPI_OPT_*`.
const HAS_TIMESTAMPS: u8 = 1;
const HAS_SACK: u8 = 2;
const HAS_SCALE: u8 = 4;
/// How often a connection is read that changes meanwhile: the peer's packets go on coming in.
const LOOKS: usize = 50;
/// How often a peer is asked what it has got, and how long it may take to answer: at first so long, then twice as long each
/// time. No event tells of an acknowledgement.
const ANSWERS: u32 = 9;
const ANSWER: Duration = Duration::from_micros(100);

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

/// What is known of a connection, or None when there is none any more.
pub type Found = Option<(Connection, Queues)>;

/// A connection to be read: a socket, its own address, and its peer's.
pub type Wanted<'a> = (BorrowedFd<'a>, SocketAddr, SocketAddr);

/// Reads connections and what is in their queues; the sockets stay as they are, even if ckrun is killed.
///
/// # Errors
/// The kernel's, for each: `EPERM` without CAP_NET_ADMIN, `EAGAIN` when it changes all the time.
pub fn read(wanted: &[Wanted<'_>]) -> Vec<Result<Found, Failure>> {
    let mut found: Vec<Option<Result<Found, Failure>>> = wanted.iter().map(|_| None).collect();
    let ckrun = nix::unistd::getpid();
    for _ in 0..LOOKS {
        let mut tries = Vec::new();
        for (answer, wanted) in found.iter_mut().zip(wanted).filter(|(answer, _)| answer.is_none()) {
            match Try::begin(*wanted) {
                Ok(Some(begun)) => tries.push((begun, answer)),
                Ok(None) => *answer = Some(Ok(None)),
                Err(failure) => *answer = Some(Err(failure)),
            }
        }
        if tries.is_empty() {
            break;
        }
        let all = apart(|| {
            // When ckrun is no more the job goes on.
            for (begun, _) in tries.iter_mut().take_while(|_| !is_orphan(ckrun)) {
                begun.look = session(begun.wanted.0, &mut begun.queues);
            }
        });
        for (begun, answer) in tries {
            let what = begun.what();
            *answer = match all {
                Ok(()) => begun.end().transpose(),
                Err(errno) => Some(Err(Failure::new(what, errno))),
            };
        }
    }
    let changing = |(_, local, peer): &Wanted<'_>| Err(Failure::new(what(*local, *peer), Errno::EAGAIN));
    found.into_iter().zip(wanted).map(|(answer, wanted)| answer.unwrap_or_else(|| changing(wanted))).collect()
}

/// As [`read`], of a socket that is in repair mode and stays in it.
///
/// # Errors
/// As [`read`].
pub fn read_entered(wanted: Wanted<'_>) -> Result<Found, Failure> {
    for _ in 0..LOOKS {
        let Some(mut begun) = Try::begin(wanted)? else { return Ok(None) };
        let offset = peek_offset(wanted.0);
        begun.look = look(wanted.0, &mut begun.queues, offset);
        if let Some(found) = begun.end()? {
            return Ok(found);
        }
    }
    Err(Failure::new(what(wanted.1, wanted.2), Errno::EAGAIN))
}

fn what(local: SocketAddr, peer: SocketAddr) -> String {
    format!("read the tcp connection from {local} to {peer}")
}

/// One try to read a connection.
struct Try<'a> {
    wanted: Wanted<'a>,
    info: Info,
    queues: Queues,
    look: Result<Option<Look>, Errno>,
}

impl<'a> Try<'a> {
    fn what(&self) -> String {
        what(self.wanted.1, self.wanted.2)
    }

    /// Makes room. None when there is no connection.
    fn begin(wanted: Wanted<'a>) -> Result<Option<Try<'a>>, Failure> {
        let (fd, local, peer) = wanted;
        let what = || what(local, peer);
        let info = Info::of(fd).doing(what)?;
        if !info.state.is_connected() {
            return Ok(None);
        }
        // One byte more than there should be: what is longer has grown.
        let room = |request| count(fd, request).map(|bytes| vec![0_u8; bytes as usize + 1]);
        let queues = Queues { receive: room(UNREAD).doing(what)?, send: room(UNACKNOWLEDGED).doing(what)? };
        Ok(Some(Try { wanted, info, queues, look: Ok(None) }))
    }

    /// Makes sense of what was read; None when it has changed meanwhile.
    fn end(self) -> Result<Option<Found>, Failure> {
        let what = self.what();
        let Try { wanted: (fd, local, peer), info, mut queues, look } = self;
        let look = match look {
            Ok(look) => look,
            Err(errno) => return Err(Failure::new(what, errno)),
        };
        let after = Info::of(fd).doing(|| what)?;
        let Some(look) = look.filter(|_| after.state == info.state) else { return Ok(None) };
        let (state, ended) = (info.state, u32::from(info.state.end_is_queued()));
        let came_to_end = u32::from(state.received_end());
        let queued = look.unacknowledged.saturating_sub(ended);
        // The end is sent behind everything else.
        let unsent = if look.unsent > 0 { look.unsent - ended } else { 0 };
        if look.peeked != look.unread as usize || look.sent != queued as usize || unsent > queued {
            return Ok(None);
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
        Ok(Some(Some((connection, queues))))
    }
}

/// Reads all that takes the repair mode. Nothing is allocated in between, so that it is over soon. None if something has
/// changed meanwhile.
fn session(fd: BorrowedFd<'_>, queues: &mut Queues) -> Result<Option<Look>, Errno> {
    // To leave the mode clears the one; in it, the other would move on.
    let reuse = sockopt::number(fd, libc::SOL_SOCKET, libc::SO_REUSEADDR)?;
    let offset = peek_offset(fd);
    enter(fd)?;
    let look = look(fd, queues, offset);
    leave(fd)?;
    sockopt::set_number(fd, libc::SOL_SOCKET, libc::SO_REUSEADDR, reuse)?;
    look
}

fn peek_offset(fd: BorrowedFd<'_>) -> i32 {
    sockopt::number(fd, libc::SOL_SOCKET, libc::SO_PEEK_OFF).unwrap_or(-1)
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

/// Waits until the peer has acknowledged what has reached it, which it may put off: it is asked to say where it is. What
/// is not acknowledged then has not arrived, as far as can be known.
///
/// # Errors
/// The kernel's.
pub fn await_acknowledgement(fd: BorrowedFd<'_>) -> Result<(), Errno> {
    let reuse = sockopt::number(fd, libc::SOL_SOCKET, libc::SO_REUSEADDR)?;
    let all = || Ok::<_, Errno>(count(fd, UNACKNOWLEDGED)? == count(fd, UNSENT)?);
    for n in 0..ANSWERS {
        if all()? {
            break;
        }
        apart(|| {
            enter(fd)?;
            leave_and_probe(fd)?;
            sockopt::set_number(fd, libc::SOL_SOCKET, libc::SO_REUSEADDR, reuse)
        })??;
        // On one machine the answer is there already.
        if !all()? {
            std::thread::sleep(ANSWER * (1 << n));
        }
    }
    Ok(())
}

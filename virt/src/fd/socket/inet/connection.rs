//! A TCP connection as an image has it, and how it is put into a new socket.

use super::repair::{Queue, Queues, choose_queue, fill, set_sequence};
use crate::sys::sockopt;
use crate::{Doing, Failure};
use nix::errno::Errno;
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::os::fd::BorrowedFd;

const TCP: i32 = libc::IPPROTO_TCP;
/// `TCPOPT_*`: what was negotiated.
const OPTION_MSS: u32 = 2;
const OPTION_SCALE: u32 = 3;
const OPTION_SACK: u32 = 4;
const OPTION_TIMESTAMP: u32 = 8;

/// What TCP_MAXSEG takes: `TCP_MIN_MSS` and `MAX_TCP_WINDOW` of `net/tcp.h`.
const LEAST_MSS: u32 = 88;
const MOST_MSS: u32 = 32767;

/// The states of a connection (RFC 9293), with the kernel's numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    Established = 1,
    SynSent = 2,
    SynReceived = 3,
    FinWait1 = 4,
    FinWait2 = 5,
    TimeWait = 6,
    Close = 7,
    CloseWait = 8,
    LastAck = 9,
    Listen = 10,
    Closing = 11,
}

impl State {
    /// By the kernel's number.
    pub fn of(number: u8) -> State {
        use State::*;
        let all = [
            Established,
            SynSent,
            SynReceived,
            FinWait1,
            FinWait2,
            TimeWait,
            Close,
            CloseWait,
            LastAck,
            Listen,
            Closing,
        ];
        all.into_iter().find(|state| *state as u8 == number).unwrap_or(State::Close)
    }

    /// The peer has said that it sends nothing more, and that is counted in the sequence numbers.
    pub fn received_end(self) -> bool {
        matches!(self, State::CloseWait | State::LastAck | State::Closing)
    }

    /// The job has said so.
    pub fn sent_end(self) -> bool {
        matches!(self, State::FinWait1 | State::FinWait2 | State::LastAck | State::Closing)
    }

    /// The job has said so, and the peer has not acknowledged that.
    pub fn end_is_queued(self) -> bool {
        matches!(self, State::FinWait1 | State::LastAck | State::Closing)
    }

    /// There are both a peer and sequence numbers.
    pub fn is_connected(self) -> bool {
        self == State::Established || self.received_end() || self.sent_end()
    }
}

/// What both sides said when they connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Negotiated {
    /// The longest segment that the peer takes, in bytes.
    pub mss: u32,
    /// The binary logarithms of the factors of the peer's and of the own window, if both scale them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scales: Option<(u8, u8)>,
    /// Selective acknowledgement.
    pub sack: bool,
    /// The own clock, if segments are stamped. The kernel's word for it is opaque.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clock: Option<u32>,
}

/// `struct tcp_repair_window`: how much either side may send.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Window {
    /// The segment that updated the peer's window last.
    pub updated_by: u32,
    /// The peer's window, in bytes.
    pub peer: u32,
    /// The largest that it has had.
    pub peer_most: u32,
    /// The own window, in bytes, behind `advertised_at`.
    pub own: u32,
    /// What was expected when it was told.
    pub advertised_at: u32,
}

/// A connection. Sequence numbers don't count the ends of the streams: those are in the state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Connection {
    /// How far it is.
    pub state: State,
    /// The job's end.
    pub local: SocketAddr,
    /// The other.
    pub peer: SocketAddr,
    /// The sequence number of the first byte that the peer has not acknowledged.
    pub send: u32,
    /// Bytes from there on that were sent.
    pub unacknowledged: u32,
    /// Bytes behind those that were not.
    pub unsent: u32,
    /// The sequence number of the first byte that the job has not read.
    pub receive: u32,
    /// Bytes from there on that have come.
    pub unread: u32,
    /// What both sides said when they connected.
    pub negotiated: Negotiated,
    /// How much either side may send.
    pub window: Window,
}

impl Connection {
    /// For people.
    pub fn name(&self) -> String {
        format!("tcp connection from {} to {}", self.local, self.peer)
    }

    /// Connects `fd`, a new socket in repair mode that is bound to the local address, as if nothing had ended and nothing
    /// were unsent. Its buffers must have room. It stays in the mode.
    ///
    /// # Errors
    /// The kernel's.
    pub fn establish(&self, fd: BorrowedFd<'_>, queues: &Queues) -> Result<(), Failure> {
        let what = || format!("make the {}", self.name());
        set_sequence(fd, Queue::Send, self.send).doing(what)?;
        set_sequence(fd, Queue::Receive, self.receive).doing(what)?;
        // The kernel reckons the size of its segments when it connects, here from what the peer would have said at the least,
        // and not again when it is told what that has said.
        let most = self.negotiated.mss.clamp(LEAST_MSS, MOST_MSS).cast_signed();
        sockopt::set_number(fd, TCP, libc::TCP_MAXSEG, most).doing(what)?;
        rustix::net::connect(fd, &self.peer).doing(what)?;
        sockopt::set_number(fd, TCP, libc::TCP_MAXSEG, 0).doing(what)?;
        self.negotiated.set(fd).doing(what)?;
        choose_queue(fd, Queue::Receive).doing(what)?;
        fill(fd, &queues.receive).doing(what)?;
        choose_queue(fd, Queue::Send).doing(what)?;
        let sent = queues.send.get(..self.unacknowledged as usize).unwrap_or(&queues.send);
        fill(fd, sent).doing(what)?;
        choose_queue(fd, Queue::None).doing(what)?;
        self.window.set(fd).doing(what)
    }

    /// What was to be sent and was not.
    pub fn unsent<'q>(&self, queues: &'q Queues) -> &'q [u8] {
        queues.send.get(self.unacknowledged as usize..).unwrap_or_default()
    }
}

impl Negotiated {
    fn set(&self, fd: BorrowedFd<'_>) -> Result<(), Errno> {
        // struct tcp_repair_opt: the code, and its value.
        let mut options = vec![OPTION_MSS, self.mss];
        if let Some((peer, own)) = self.scales {
            options.extend([OPTION_SCALE, u32::from(peer) | u32::from(own) << 16]);
        }
        if self.sack {
            options.extend([OPTION_SACK, 0]);
        }
        if self.clock.is_some() {
            options.extend([OPTION_TIMESTAMP, 0]);
        }
        let bytes: Vec<u8> = options.iter().flat_map(|word| word.to_ne_bytes()).collect();
        sockopt::set(fd, TCP, libc::TCP_REPAIR_OPTIONS, &bytes)?;
        match self.clock {
            Some(clock) => sockopt::set_number(fd, TCP, libc::TCP_TIMESTAMP, clock.cast_signed()),
            None => Ok(()),
        }
    }
}

impl Window {
    fn set(&self, fd: BorrowedFd<'_>) -> Result<(), Errno> {
        let words = [self.updated_by, self.peer, self.peer_most, self.own, self.advertised_at];
        sockopt::set(fd, TCP, libc::TCP_REPAIR_WINDOW, &words.map(u32::to_ne_bytes).concat())
    }
}

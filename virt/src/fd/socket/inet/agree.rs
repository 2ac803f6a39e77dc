//! Both ends of a TCP connection of a job, read so that they agree.
//!
//! A job that stands still sends nothing, but the kernel sends in its name what it has paced, delayed or lost. So one end
//! may have got, when it is read, what the other one, which was read before, had not sent yet; or not have got what the
//! other, read later, knows to be acknowledged. A restart would make a connection of this that goes on after a long time,
//! or never: each end takes what the other says for nonsense.

use super::address;
use super::connection::{Connection, State};
use super::repair::{self, Queues};
use crate::Failure;
use crate::fd::Trouble;
use crate::fd::capture::Job;
use nix::errno::Errno;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};

/// How often two ends are read that go on talking.
const LOOKS: usize = 50;

/// One end.
pub(in crate::fd) type End = (Connection, Queues);

impl Job<'_> {
    /// Reads the connection behind `node`, and keeps what its other end, also of the job, had at that time. None when there
    /// is no connection any more.
    pub(super) fn either_end(
        &mut self,
        node: usize,
        fd: &OwnedFd,
        (local, peer): (SocketAddr, SocketAddr),
    ) -> Result<Option<End>, Trouble> {
        if let Some(end) = self.ends_read.remove(&node) {
            return Ok(Some(end));
        }
        let read = || repair::read(fd.as_fd(), local, peer);
        let Some(other) = self.links.other_end(local, peer) else { return Ok(read()?) };
        let theirs = self.graph.take(other)?;
        let names = (address::local(theirs.as_fd())?, address::peer(theirs.as_fd())?);
        let (Some(their_local), Some(their_peer)) = names else { return Ok(read()?) };
        for _ in 0..LOOKS {
            let Some(mut one) = read()? else { return Ok(None) };
            let Some(mut two) = repair::read(theirs.as_fd(), their_local, their_peer)? else {
                return Ok(Some(one));
            };
            if settle(&mut one, &two.0) && settle(&mut two, &one.0) {
                self.ends_read.insert(other, two);
                return Ok(Some(one));
            }
        }
        let what = format!("read both ends of the tcp connection from {local} to {peer}");
        Err(Failure::new(what, Errno::EAGAIN).into())
    }
}

/// What the receiver has got is acknowledged, and what it has not got was not sent: it is sent when the connection comes to
/// life, and nobody has to wait until it is taken for lost. False if both were read at times that don't fit together.
fn settle((connection, queues): &mut End, receiver: &Connection) -> bool {
    let expected = receiver.receive.wrapping_add(receiver.unread);
    // What the sender has no longer and the receiver not yet makes this one of the largest numbers.
    let got = expected.wrapping_sub(connection.send) as usize;
    let end_is_lost = connection.state == State::FinWait2 && !receiver.state.received_end();
    if got > queues.send.len() || end_is_lost {
        return false;
    }
    queues.send.drain(..got);
    connection.send = expected;
    connection.unacknowledged = 0;
    connection.unsent = queues.send.len() as u32;
    let window = &mut connection.window;
    let edge = receiver.window.advertised_at.wrapping_add(receiver.window.own);
    window.peer = edge.wrapping_sub(expected).cast_signed().max(0).cast_unsigned();
    window.peer_most = window.peer_most.max(window.peer);
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fd::socket::inet::connection::{Negotiated, Window};

    fn end(send: u32, to_send: &[u8], receive: u32, unread: u32) -> End {
        let address = SocketAddr::from(([127, 0, 0, 1], 1));
        let queues = Queues { receive: vec![0; unread as usize], send: to_send.to_vec() };
        let connection = Connection {
            state: State::Established,
            local: address,
            peer: address,
            send,
            unacknowledged: to_send.len() as u32,
            unsent: 0,
            receive,
            unread,
            negotiated: Negotiated { mss: 1460, scales: None, sack: false, clock: None },
            window: Window {
                updated_by: 0,
                peer: 9,
                peer_most: 9,
                own: 20,
                advertised_at: receive.wrapping_add(unread),
            },
        };
        (connection, queues)
    }

    #[test]
    fn what_has_arrived_is_not_sent_again() {
        // Five bytes, across the end of the sequence numbers, of which two have arrived.
        let mut sender = end(u32::MAX - 1, b"abcde", 100, 0);
        let receiver = end(100, b"", u32::MAX - 2, 3).0;
        assert!(settle(&mut sender, &receiver));
        assert_eq!(sender.1.send, b"cde");
        let connection = sender.0;
        assert_eq!((connection.send, connection.unacknowledged, connection.unsent), (0, 0, 3));
        assert_eq!((connection.window.peer, connection.window.peer_most), (20, 20));
    }

    #[test]
    fn what_nobody_has_is_noticed() {
        // The sender knows that all was acknowledged; the receiver was read before.
        assert!(!settle(&mut end(105, b"", 7, 0), &end(7, b"", 90, 14).0));
        // The receiver has more than the sender had ever been given.
        assert!(!settle(&mut end(100, b"abc", 7, 0), &end(7, b"", 100, 4).0));
        let mut ended = end(100, b"", 7, 0);
        ended.0.state = State::FinWait2;
        assert!(!settle(&mut ended, &end(7, b"", 100, 0).0));
    }
}

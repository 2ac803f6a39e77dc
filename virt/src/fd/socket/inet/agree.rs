//! Both ends of a TCP connection of a job, read so that they agree.
//!
//! A job that stands still sends nothing, but the kernel sends in its name what it has paced, delayed or lost. So one end
//! may have got, when it is read, what the other one, which was read before, had not sent yet; or not have got what the
//! other, read later, knows to be acknowledged. A restart would make a connection of this that goes on after a long time,
//! or never: each end takes what the other says for nonsense.

use super::address::canonical;
use super::connection::{Connection, State};
use super::reading::{self, Found, Wanted};
use super::repair::Queues;
use crate::Failure;
use nix::errno::Errno;
use std::collections::HashMap;

/// How often two ends are read that go on talking.
const LOOKS: usize = 50;

type End = (Connection, Queues);

/// Reads all connections of a job.
///
/// # Errors
/// As [`reading::read`], for each.
pub fn read(wanted: &[Wanted<'_>]) -> Vec<Result<Found, Failure>> {
    let mut found = reading::read(wanted);
    let mut pairs = pairs(wanted);
    for _ in 0..LOOKS {
        pairs.retain(|pair| match found.get_disjoint_mut(*pair) {
            Ok([Ok(Some(one)), Ok(Some(two))]) => !(settle(one, &two.0) && settle(two, &one.0)),
            _ => false,
        });
        if pairs.is_empty() {
            break;
        }
        let again: Vec<usize> = pairs.iter().flatten().copied().collect();
        let wanted: Vec<Wanted<'_>> = again.iter().map(|&at| wanted[at]).collect();
        for (at, answer) in again.into_iter().zip(reading::read(&wanted)) {
            found[at] = answer;
        }
    }
    for &[one, two] in &pairs {
        let (_, local, peer) = wanted[one];
        let what = format!("read both ends of the tcp connection from {local} to {peer}");
        found[one] = Err(Failure::new(what.clone(), Errno::EAGAIN));
        found[two] = Err(Failure::new(what, Errno::EAGAIN));
    }
    found
}

/// Which of them are two ends of one connection.
fn pairs(wanted: &[Wanted<'_>]) -> Vec<[usize; 2]> {
    let names = wanted.iter().map(|(_, local, peer)| (canonical(*local), canonical(*peer)));
    let numbers: HashMap<_, _> = names.clone().zip(0..).collect();
    let two = |(one, (local, peer))| numbers.get(&(peer, local)).map(|&other| [one, other]);
    names.enumerate().filter_map(two).filter(|[one, other]| one < other).collect()
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
    use std::net::SocketAddr;

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

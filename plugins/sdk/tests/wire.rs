//! The socket: descriptors and their lines, limits, a peer that means harm.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by a panic")]

use ckrun_plugin::message::{Id, Message};
use ckrun_plugin::wire::{Broken, DESCRIPTORS, Filled, Incoming, LINE, Wire};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use serde_json::json;
use std::fs::File;
use std::io::{IoSlice, Write};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;

fn pair() -> (Wire, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    (Wire::new(ours.into()), theirs)
}

fn null() -> OwnedFd {
    File::open("/dev/null").unwrap().into()
}

/// A message that announces `fds` descriptors.
fn line(id: u64, fds: usize) -> Vec<u8> {
    Message::Answer { id: Id::Number(id), outcome: Ok(json!({})), fds }.line()
}

fn send(peer: &UnixStream, bytes: &[u8], count: usize) {
    let null = null();
    let fds: Vec<RawFd> = vec![null.as_raw_fd(); count];
    let control = [ControlMessage::ScmRights(&fds)];
    let control = if count == 0 { &[][..] } else { &control[..] };
    let sent =
        sendmsg::<()>(peer.as_raw_fd(), &[IoSlice::new(bytes)], control, MsgFlags::empty(), None).unwrap();
    assert_eq!(sent, bytes.len());
}

fn id(incoming: &Incoming) -> u64 {
    match &incoming.message {
        Message::Answer { id: Id::Number(id), .. } => *id,
        other => panic!("{other:?}"),
    }
}

#[test]
fn descriptors_come_with_their_line() {
    let (mut wire, peer) = pair();
    // Both lines without descriptors come in one read with the one in the middle.
    send(&peer, &line(1, 0), 0);
    send(&peer, &line(2, 2), 2);
    send(&peer, &line(3, 0), 0);
    send(&peer, &line(4, 16), 16);
    for (number, count) in [(1, 0), (2, 2), (3, 0), (4, 16)] {
        let incoming = wire.receive().unwrap();
        assert_eq!((id(&incoming), incoming.fds.len()), (number, count));
        for fd in incoming.fds {
            let flags = nix::fcntl::fcntl(&fd, nix::fcntl::FcntlArg::F_GETFD).unwrap();
            assert_eq!(flags, nix::libc::FD_CLOEXEC, "a descriptor would be inherited");
        }
    }
}

#[test]
fn a_line_in_pieces_is_one() {
    let (mut wire, peer) = pair();
    let bytes = line(1, 1);
    send(&peer, &bytes[..1], 1);
    assert_eq!(wire.fill(false).unwrap(), Filled::Bytes);
    assert!(wire.take().unwrap().is_none());
    assert_eq!(wire.fill(false).unwrap(), Filled::Nothing);
    send(&peer, &bytes[1..], 0);
    assert_eq!(wire.receive().unwrap().fds.len(), 1);
}

#[test]
fn descriptors_that_were_not_announced_are_a_violation() {
    for (first, second, came, why) in [
        (line(1, 0), Vec::new(), 1, Broken::Unannounced(1)),
        (line(1, 2), Vec::new(), 1, Broken::Miscounted { announced: 2, came: 1 }),
        (line(1, 1), Vec::new(), 0, Broken::Miscounted { announced: 1, came: 0 }),
        (line(1, 16), Vec::new(), 17, Broken::TooMany),
        // In the middle of a line.
        (b"{\"jsonrpc\"".to_vec(), b":\"2.0\"".to_vec(), 1, Broken::Unannounced(1)),
    ] {
        let (mut wire, peer) = pair();
        if second.is_empty() {
            send(&peer, &first, came);
        } else {
            send(&peer, &first, 0);
            assert_eq!(wire.fill(false).unwrap(), Filled::Bytes);
            assert!(wire.take().unwrap().is_none());
            send(&peer, &second, came);
        }
        assert_eq!(wire.receive().unwrap_err(), why);
    }
}

#[test]
fn descriptors_of_a_refused_line_are_closed() {
    let (mut wire, peer) = pair();
    let (reader, writer) = std::io::pipe().unwrap();
    let fds = [writer.as_raw_fd()];
    let bytes = line(1, 0);
    let control = [ControlMessage::ScmRights(&fds)];
    sendmsg::<()>(peer.as_raw_fd(), &[IoSlice::new(&bytes)], &control, MsgFlags::empty(), None).unwrap();
    drop(writer);
    assert_eq!(wire.receive().unwrap_err(), Broken::Unannounced(1));
    drop(wire);
    assert_eq!(std::io::read_to_string(reader).unwrap(), "", "someone still holds the pipe");
}

#[test]
fn a_line_has_a_limit() {
    // A message of exactly the limit passes, one byte more does not.
    for (extra, passes) in [(0, true), (1, false)] {
        let (mut wire, mut peer) = pair();
        let message = |text: String| Message::Notification { method: text, params: json!({}) };
        let bytes = message("x".repeat(LINE - message(String::new()).line().len() + extra)).line();
        assert_eq!(bytes.len(), LINE + extra);
        let writer = std::thread::spawn(move || {
            let _ = peer.write_all(&bytes);
        });
        match wire.receive() {
            Ok(_) => assert!(passes),
            Err(why) => assert_eq!((why, passes), (Broken::TooLong, false)),
        }
        drop(wire);
        writer.join().unwrap();
    }
}

#[test]
fn the_end_of_the_file_is_told_from_a_torn_line() {
    let (mut wire, mut peer) = pair();
    peer.write_all(&line(1, 0)).unwrap();
    drop(peer);
    assert!(wire.receive().is_ok());
    assert_eq!(wire.receive().unwrap_err(), Broken::Ended);
    let (mut wire, mut peer) = pair();
    peer.write_all(b"{\"jsonrpc\"").unwrap();
    drop(peer);
    assert_eq!(wire.receive().unwrap_err(), Broken::Torn);
}

#[test]
fn a_peer_that_does_not_read_blocks_nobody() {
    let (mut wire, peer) = pair();
    let message = Message::Notification { method: "x".repeat(LINE / 2), params: json!({}) };
    for _ in 0..4 {
        wire.queue(&message, Vec::new()).unwrap();
    }
    assert!(!wire.flush(false).unwrap());
    assert!(wire.unsent() > 0);
    let mut theirs = Wire::new(peer.into());
    for _ in 0..4 {
        while theirs.take().unwrap().is_none() {
            wire.flush(false).unwrap();
            theirs.fill(false).unwrap();
        }
    }
    assert_eq!(wire.unsent(), 0);
}

#[test]
fn what_would_break_the_framing_is_not_sent() {
    let (mut wire, _peer) = pair();
    let long = Message::Notification { method: "x".repeat(LINE), params: json!({}) };
    assert_eq!(wire.queue(&long, Vec::new()).unwrap_err(), Broken::TooLong);
    let count = DESCRIPTORS + 1;
    let many = Message::Answer { id: Id::Number(1), outcome: Ok(json!({})), fds: count };
    let fds = (0..count).map(|_| null()).collect();
    assert_eq!(wire.queue(&many, fds).unwrap_err(), Broken::TooMany);
    assert_eq!(wire.unsent(), 0);
}

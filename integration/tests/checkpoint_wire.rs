//! Sockets to the kernel and to the wire: netlink and packet sockets.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by a panic")]

use ckrun_integration::job::Job;
use ckrun_integration::modes_survive;

modes_survive!("wire": netlink packet ; else "netlink-unread" "packet-unread");

/// The kernel's messages can't be said again.
#[test]
fn netlink_unread() {
    Job::up("wire", "netlink-unread").is_refused(&["netlink socket", "has not read"]);
}

/// Frames come once.
#[test]
fn packet_unread() {
    Job::up("wire", "packet-unread").is_refused(&["packet socket", "nobody has read"]);
}

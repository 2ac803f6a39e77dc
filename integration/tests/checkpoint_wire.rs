//! Sockets to the kernel and to the wire: netlink and packet sockets.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by a panic")]

use ckrun_integration::job::Job;
use ckrun_integration::modes_survive;

modes_survive!("wire": netlink audit packet packet_mapped ; else "netlink-unread" "packet-unread" "packet-used");

/// Where in a mapped ring the kernel writes next, it keeps to itself.
#[test]
fn packet_used() {
    Job::up("wire", "packet-used").is_refused_beforehand(&["rings of a packet socket"]);
}

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

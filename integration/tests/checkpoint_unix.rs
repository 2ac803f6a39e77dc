//! Unix sockets: pairs and names, what waits in them, who is at the other end.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by a panic")]

use ckrun_integration::job::Job;
use ckrun_integration::modes_survive;
use std::os::unix::net::UnixListener;

modes_survive!("unix":
    pair full packets datagrams half_closed peer_gone reset listener abstract_name listener_gone relative moved mailbox
    own rights rights_of_packets rights_nested credentials signed signed_stream urgent options epoll server
    ; else "unaccepted" "outside"
);

/// What was sent to where nobody is yet can't be read without taking it.
#[test]
fn unaccepted() {
    Job::up("unix", "unaccepted").is_refused(&[
        "(guest)",
        "unix stream socket /listener",
        "waits to be accepted",
    ]);
}

/// A socket of the host in the container's file system.
#[test]
fn outside() {
    let job = Job::new("unix", "outside");
    let _listener = UnixListener::bind(job.container.rootfs().join("outside")).unwrap();
    job.start();
    job.is_refused(&["(guest): fd", "unix stream socket connected to /", "/outside: its other end"]);
}

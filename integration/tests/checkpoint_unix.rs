//! Unix sockets: pairs and names, what waits in them, who is at the other end.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by a panic")]

use ckrun_integration::job::Job;
use ckrun_integration::modes_survive;
use ckrun_integration::networks::Network;
use std::os::unix::net::UnixListener;

modes_survive!("unix":
    pair full packets datagrams half_closed peer_gone reset listener abstract_name listener_gone relative moved mailbox
    own rights rights_of_packets rights_nested credentials signed signed_stream urgent options epoll server
    ; else "unaccepted" "outside" "loop"
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

/// The network namespace stays, and in it for a moment the sockets of the job that has ended, which the kernel has not found yet.
#[test]
fn loop_of_garbage() {
    let job = Job::new("unix", "loop");
    let network = Network::new(job.container.id().replace("ckrun-", "net-"));
    network.take(&job);
    job.start();
    job.survives();
}

//! System V IPC, message queues of POSIX, and the names of the host.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by a panic")]

use ckrun_integration::job::Job;
use ckrun_integration::modes_survive;

modes_survive!("sysv":
    segment segment_unattached segment_doomed semaphores semaphores_waiting messages messages_waiting posix posix_waiting names
    ; else "segment-open"
);

#[test]
fn a_segment_that_is_open() {
    Job::up("sysv", "segment-open").is_refused_beforehand(&[
        "fd ",
        "/SYSV",
        "a System V segment, open by way of",
    ]);
}

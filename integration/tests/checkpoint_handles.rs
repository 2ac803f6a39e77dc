//! Watches of files, and handles of processes.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by a panic")]

use ckrun_integration::job::Job;
use ckrun_integration::modes_survive;

modes_survive!("handles": pidfd ; else "inotify" "inotify-unread");

#[test]
fn watches_keep_their_numbers() {
    Job::up("handles", "inotify").survives_and_acts();
}

#[test]
fn events_that_nobody_has_read_are_refused() {
    Job::up("handles", "inotify-unread").is_refused(&["inotify", "events in it that nobody has read"]);
}

//! Jobs that are told by signals when something is ready.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by a panic")]

use ckrun_integration::job::Job;
use ckrun_integration::modes_survive;

modes_survive!("told":
    tcp pipe pair room passed passed_timer
    ; else "directory"
);

#[test]
fn a_directory_that_is_watched() {
    Job::up("told", "directory").is_refused_beforehand(&["fd ", "/watched", "dnotify", "inotify(7)"]);
}

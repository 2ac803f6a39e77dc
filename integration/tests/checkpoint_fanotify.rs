//! Marks of files, mounts and file systems.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by a panic")]

use ckrun_integration::job::Job;
use ckrun_integration::modes_survive;

modes_survive!("fanotify": opens ; else "files" "names" "unprivileged" "unread" "asks");

#[test]
fn of_files_and_mounts() {
    Job::up("fanotify", "files").survives_and_acts();
}

#[test]
fn of_a_file_system_by_names() {
    Job::up("fanotify", "names").survives_and_acts();
}

#[test]
fn of_somebody_without_privilege() {
    Job::up("fanotify", "unprivileged").survives_and_acts();
}

#[test]
fn events_that_nobody_has_read_are_refused() {
    Job::up("fanotify", "unread").is_refused(&["fanotify", "events in it that nobody has read"]);
}

#[test]
fn who_must_be_asked_is_refused() {
    Job::up("fanotify", "asks").is_refused_beforehand(&["fanotify", "waits for the job's permission"]);
}

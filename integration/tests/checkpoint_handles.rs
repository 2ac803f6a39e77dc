//! Watches of files, and handles of processes.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by a panic")]

use ckrun_integration::job::Job;
use ckrun_integration::modes_survive;
use std::fs;

modes_survive!("handles": pidfd ; else "inotify" "inotify-unread");

#[test]
fn watches_keep_their_numbers() {
    let job = Job::up("handles", "inotify");
    let act = job.container.rootfs().join("act");
    for image in ["first", "second"] {
        fs::write(&act, "").unwrap();
        job.is_well();
        fs::remove_file(&act).unwrap();
        job.is_well();
        let image = job.image(image);
        job.checkpoint(&image);
        job.restore(&image);
    }
    fs::write(&act, "").unwrap();
    job.is_well();
}

#[test]
fn events_that_nobody_has_read_are_refused() {
    Job::up("handles", "inotify-unread").is_refused(&["inotify", "events in it that nobody has read"]);
}

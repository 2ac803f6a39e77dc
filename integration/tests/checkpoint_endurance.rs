//! A thousand checkpoints of one job: nothing grows. `make test-all` runs it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by a panic")]

use ckrun_integration::job::Job;
use ckrun_integration::snapshot::{pids, snapshot, unchanged};
use std::fs;
use std::path::Path;

/// The pages that all processes of the job have, and the cgroup directories below its own.
fn resident(job: &Job) -> u64 {
    let of = |pid: i32| {
        let text = fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("statm")).unwrap();
        text.split(' ').nth(1).unwrap().parse::<u64>().unwrap()
    };
    pids(&job.container).into_iter().map(of).sum()
}

fn again_and_again(guest: &str, mode: &str, times: u32) {
    let job = Job::up(guest, mode);
    let image = job.image("image");
    let one = |job: &Job| {
        job.leave_running(&image);
        fs::remove_dir_all(&image).unwrap();
    };
    // The first touches what the others find touched.
    for _ in 0..10 {
        one(&job);
    }
    let (before, pages, groups) = (snapshot(&job.container), resident(&job), job.container.cgroups());
    for _ in 0..times {
        one(&job);
    }
    unchanged(&before, &snapshot(&job.container), "afterwards");
    assert!(resident(&job) <= pages + pages / 10 + 64, "{} pages instead of {pages}", resident(&job));
    assert_eq!(job.container.cgroups(), groups);
    for dir in groups {
        let below = fs::read_dir(&dir).unwrap().flatten().filter(|entry| entry.file_type().unwrap().is_dir());
        assert_eq!(below.count(), 0, "{}", dir.display());
    }
    job.is_well();
    job.checkpoint(&image);
    job.restore(&image);
}

#[test]
#[ignore = "heavy: make test-all"]
fn a_thousand_checkpoints() {
    again_and_again("processes", "threads-in-tree", 1000);
}

#[test]
#[ignore = "heavy: make test-all"]
fn a_thousand_checkpoints_of_memory() {
    again_and_again("memory", "private", 1000);
}

#[test]
fn fifty_checkpoints() {
    again_and_again("processes", "threads-in-tree", 40);
}

//! Nothing is lost: whatever happens to ckrun, to the disk or to the job, the job runs or there is a complete image.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by a panic")]

use ckrun_integration::job::{Job, cleared, path};
use ckrun_integration::run::{elsewhere, finish};
use ckrun_integration::snapshot::{Seen, snapshot, unchanged};
use ckrun_virt::fault::POINTS;
use nix::mount::{MsFlags, mount};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// It goes on as it was.
fn goes_on(job: &Job, before: &BTreeMap<i32, Seen>, when: &str) {
    cleared(&job.container);
    assert_eq!(job.container.status(), "running", "{when}");
    unchanged(before, &snapshot(&job.container), when);
    job.is_well();
}

/// checkpoint_crash.rs looks at what becomes of the image; this, at every descriptor, mapping and signal of the job.
#[test]
fn ckrun_dies_before_the_image_is_complete() {
    let job = Job::up("processes", "threads-in-tree");
    let before = snapshot(&job.container);
    for point in POINTS.iter().filter(|point| point.starts_with("checkpoint:")) {
        if *point == "checkpoint:committed" {
            break;
        }
        for leave_running in [false, true] {
            if *point == "checkpoint:resume" && !leave_running {
                continue;
            }
            let image = job.image("image");
            let mut words = vec!["checkpoint", "--image-path", path(&image)];
            words.extend(leave_running.then_some("--leave-running"));
            words.push("ID");
            for fault in [(*point).to_owned(), format!("fail@{point}")] {
                let mut command = job.container.command(&words);
                command.env("CKRUN_FAULT", &fault);
                assert_ne!(finish(command).code, 0, "{fault}");
                goes_on(&job, &before, &fault);
                assert!(!image.exists(), "{fault}");
            }
        }
    }
    let image = job.image("image");
    job.checkpoint(&image);
    job.restore(&image);
}

/// A checkpoint to a place like this fails, in words, and the job goes on.
fn nowhere(
    job: &Job,
    image: &Path,
    words: &[&str],
    change: impl Fn() -> nix::Result<()> + Clone + Send + Sync + 'static,
) {
    let before = snapshot(&job.container);
    for leave_running in [false, true] {
        let mut all = vec!["checkpoint", "--image-path", path(image)];
        all.extend(leave_running.then_some("--leave-running"));
        all.push("ID");
        let mut command = job.container.command(&all);
        elsewhere(&mut command, change.clone());
        finish(command).fails(1, words);
        goes_on(job, &before, words[0]);
    }
}

#[test]
fn the_disk_is_full() {
    let job = Job::up("memory", "private");
    let disk = job.image("disk");
    fs::create_dir(&disk).unwrap();
    for size in ["size=16k", "size=64k", "size=1m", "size=4m"] {
        let target = disk.clone();
        let change = move || mount(Some("disk"), &target, Some("tmpfs"), MsFlags::empty(), Some(size));
        nowhere(&job, &disk.join("image"), &["no space left on device"], change);
    }
    // And then there is room.
    job.checkpoint(&disk.join("image"));
}

#[test]
fn a_place_that_can_not_be_written() {
    let job = Job::up("memory", "private");
    fs::write(job.image("file"), "").unwrap();
    nowhere(&job, &job.image("file").join("image"), &["file"], || Ok(()));
    nowhere(&job, Path::new("/proc/image"), &["/proc/image"], || Ok(()));
    let disk = job.image("disk");
    fs::create_dir(&disk).unwrap();
    let target = disk.clone();
    let read_only = move || mount(Some("disk"), &target, Some("tmpfs"), MsFlags::MS_RDONLY, None::<&str>);
    nowhere(&job, &disk.join("image"), &["read-only file system"], read_only);
    job.checkpoint(&disk.join("image"));
}

#[test]
fn processes_that_come_and_go_during_the_freeze() {
    for mode in ["fork-storm", "traced-storm", "exec-storm", "thread-storm"] {
        let job = Job::up("processes", mode);
        for round in 0..5 {
            let image = job.image(&format!("round-{round}"));
            job.leave_running(&image);
            job.is_well();
        }
        for round in 0..3 {
            let image = job.image(&format!("generation-{round}"));
            job.checkpoint(&image);
            job.restore(&image);
        }
    }
}

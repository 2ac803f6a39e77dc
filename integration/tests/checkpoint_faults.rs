//! Nothing is lost: whatever happens to ckrun, to the disk or to the job, the job runs or there is a complete image.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by a panic")]

use ckrun_integration::job::{Job, path, settles};
use ckrun_integration::leftovers;
use ckrun_integration::pipes::PATIENCE;
use ckrun_integration::run::{Ended, elsewhere, finish};
use ckrun_integration::snapshot::{Seen, snapshot};
use ckrun_virt::fault::POINTS;
use nix::mount::{MsFlags, mount};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::thread::yield_now;
use std::time::Instant;

fn points(verb: &str) -> Vec<&'static str> {
    POINTS.iter().copied().filter(|point| point.starts_with(verb)).collect()
}

/// A verb with a fault in it.
fn faulty(job: &Job, fault: &str, words: &[&str]) -> Ended {
    let mut command = job.container.command(words);
    command.env("CKRUN_FAULT", fault);
    finish(command)
}

/// It goes on as it was, and can be checkpointed.
fn goes_on(job: &Job, before: &BTreeMap<i32, Seen>, when: &str) {
    assert_eq!(job.container.status(), "running", "{when}");
    assert_eq!(&snapshot(&job.container), before, "{when}");
    job.is_well();
}

#[test]
fn ckrun_dies_at_any_step_of_a_checkpoint() {
    for leave_running in [false, true] {
        for point in points("checkpoint:") {
            let job = Job::up("processes", "threads-in-tree");
            let image = job.image("image");
            let before = snapshot(&job.container);
            let mut words = vec!["checkpoint", "--image-path", path(&image)];
            words.extend(leave_running.then_some("--leave-running"));
            words.push("ID");
            let ended = faulty(&job, point, &words);
            if ended.code == 0 {
                // Not on the way of this kind of checkpoint.
                assert!(
                    ["checkpoint:resume", "checkpoint:kill", "checkpoint:destroy"].contains(&point),
                    "{point}"
                );
                continue;
            }
            assert_eq!(ended.code, -9, "{point}: {}", ended.stderr);
            let complete = image.join("manifest.json").exists();
            assert_eq!(complete, committed(point), "{point}");
            if complete && !leave_running {
                // The job may or may not have got its end: it has an image.
                job.container.ckrun(&["delete", "--force", "ID"]).ok();
                settles(&job.container);
                job.container.no_trace();
                job.restore(&image);
            } else {
                goes_on(&job, &before, point);
                let again = job.image("again");
                job.checkpoint(&again);
                job.restore(&again);
            }
            no_half(&image, point);
        }
    }
}

/// At this step the image is complete.
fn committed(point: &str) -> bool {
    ["checkpoint:committed", "checkpoint:kill", "checkpoint:destroy"].contains(&point)
}

/// Whoever clears up after ckrun may still be at it.
fn no_half(image: &Path, when: &str) {
    let name = image.file_name().unwrap().to_str().unwrap();
    let half = |entry: &fs::DirEntry| {
        let found = entry.file_name().to_string_lossy().into_owned();
        found.contains(name) && found != name
    };
    let deadline = Instant::now() + PATIENCE;
    loop {
        let left: Vec<_> = fs::read_dir(image.parent().unwrap()).unwrap().flatten().filter(half).collect();
        if left.is_empty() {
            return;
        }
        assert!(Instant::now() < deadline, "{when}: {left:?}");
        yield_now();
    }
}

#[test]
fn a_step_of_a_checkpoint_fails() {
    for point in points("checkpoint:") {
        let job = Job::up("processes", "threads-in-tree");
        let image = job.image("image");
        let before = snapshot(&job.container);
        let ended =
            faulty(&job, &format!("fail@{point}"), &["checkpoint", "--image-path", path(&image), "ID"]);
        if image.join("manifest.json").exists() {
            // What goes wrong after the commit takes nothing back.
            job.container.ckrun(&["delete", "--force", "ID"]).ok();
            job.container.no_trace();
            job.restore(&image);
            continue;
        }
        ended.fails(1, &[point]);
        goes_on(&job, &before, point);
        job.is_unharmed(&image);
        job.checkpoint(&image);
    }
}

/// After which nothing is left, and the image can be restored.
fn comes_to_nothing(job: &Job, image: &Path, when: &str) {
    settles(&job.container);
    let left = leftovers::traces(job.container.id(), &job.container.store().join(job.container.id()));
    assert_eq!(left, [], "{when}");
    job.restore(image);
    job.container.ckrun(&["delete", "--force", "ID"]).ok();
}

#[test]
fn ckrun_dies_at_any_step_of_a_restore() {
    for (guest, mode) in [("processes", "threads-in-tree"), ("memory", "sysv")] {
        let job = Job::up(guest, mode);
        let image = job.image("image");
        job.checkpoint(&image);
        for point in points("restore:") {
            let restore =
                ["restore", "--detach", "--image-path", path(&image), "--changed-files", "ignore", "ID"];
            faulty(&job, point, &restore).exits(-9);
            if job.container.ckrun(&["state", "ID"]).code == 0 && job.container.status() == "running" {
                // It was so late that the job runs, like any other.
                assert!(["restore:release", "restore:save", "restore:done"].contains(&point), "{point}");
                job.is_well();
                job.container.ckrun(&["delete", "--force", "ID"]).ok();
            }
            comes_to_nothing(&job, &image, point);
        }
    }
}

#[test]
fn a_step_of_a_restore_fails() {
    let job = Job::up("processes", "threads-in-tree");
    let image = job.image("image");
    job.checkpoint(&image);
    for point in points("restore:") {
        let restore =
            ["restore", "--detach", "--image-path", path(&image), "--changed-files", "ignore", "ID"];
        faulty(&job, &format!("fail@{point}"), &restore).fails(1, &[point]);
        comes_to_nothing(&job, &image, point);
    }
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
    for mode in ["fork-storm", "exec-storm", "thread-storm"] {
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

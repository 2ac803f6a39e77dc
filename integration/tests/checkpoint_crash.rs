//! ckrun killed, or failing, in the middle of a checkpoint or of a restart: nothing is lost and nothing is left.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by a panic")]

use ckrun_integration::job::{Job, cleared, path};
use ckrun_integration::trace::{kill_at, kill_at_calls};
use ckrun_virt::fault::POINTS;
use std::fs;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};

/// From here on the image is complete, whatever happens.
const COMPLETE: [&str; 3] = ["checkpoint:committed", "checkpoint:kill", "checkpoint:destroy"];

/// At this one there is no guardian yet, and nothing but an empty directory, which the next one takes over.
const UNGUARDED: &str = "restore:claim";

fn points(verb: &str) -> impl Iterator<Item = &'static str> {
    POINTS.iter().copied().filter(move |point| point.starts_with(verb))
}

fn job() -> Job {
    Job::up("processes", "wide")
}

/// ckrun with a fault.
fn with_fault(job: &Job, fault: &str, words: &[&str]) -> ExitStatus {
    let mut command: Command = job.container.command(words);
    command.env("CKRUN_FAULT", fault).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let ended = command.status().unwrap();
    cleared(&job.container);
    ended
}

/// The files of the job have changed since the checkpoint, where it ran on for a moment.
fn again(job: &Job, image: &Path) {
    job.restore_with(image, &["--changed-files", "ignore"]);
}

fn killed(ended: ExitStatus) -> bool {
    std::os::unix::process::ExitStatusExt::signal(&ended) == Some(libc::SIGKILL)
}

fn delete(job: &Job) {
    job.container.ckrun(&["delete", "--force", "ID"]).ok();
    job.container.no_trace();
}

/// Whatever became of the job, its image brings it back.
fn comes_back(job: &Job, image: &Path) {
    delete(job);
    again(job, image);
}

#[test]
fn a_checkpoint_killed_at_every_step() {
    let job = job();
    for leave in [true, false] {
        for point in points("checkpoint:") {
            let image = job.image(&format!("{}-{leave}", point.replace(':', "-")));
            let mut words = vec!["checkpoint", "--image-path", path(&image)];
            words.extend(leave.then_some("--leave-running"));
            words.push("ID");
            let ended = with_fault(&job, point, &words);
            if !killed(ended) {
                // A step of the other kind of checkpoint.
                assert!(ended.success(), "{point} {leave}: {ended}");
                comes_back(&job, &image);
            } else if COMPLETE.contains(&point) {
                comes_back(&job, &image);
            } else {
                job.is_unharmed(&image);
            }
        }
    }
    delete(&job);
}

#[test]
fn a_checkpoint_that_fails_at_every_step() {
    let job = job();
    for leave in [true, false] {
        for point in points("checkpoint:").filter(|point| !COMPLETE.contains(point)) {
            let image = job.image(&format!("{}-{leave}", point.replace(':', "-")));
            let mut words = vec!["checkpoint", "--image-path", path(&image)];
            words.extend(leave.then_some("--leave-running"));
            words.push("ID");
            let ended = with_fault(&job, &format!("fail@{point}"), &words);
            if ended.success() {
                comes_back(&job, &image);
            } else {
                assert_eq!(ended.code(), Some(1), "{point} {leave}");
                job.is_unharmed(&image);
            }
        }
    }
    delete(&job);
}

#[test]
fn a_half_image_is_cleared_away_also_inside_a_directory_that_was_there() {
    let job = job();
    let image = job.image("there");
    fs::create_dir(&image).unwrap();
    fs::write(image.join("of-others"), "").unwrap();
    let words = ["checkpoint", "--image-path", path(&image), "ID"];
    assert!(killed(with_fault(&job, "checkpoint:commit", &words)));
    let left: Vec<_> = fs::read_dir(&image).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["of-others"]);
    job.is_well();
    job.container.ckrun(&words).ok();
    comes_back(&job, &image);
    delete(&job);
}

#[test]
fn a_restart_killed_at_every_step() {
    let job = job();
    let image = job.image("image");
    job.checkpoint(&image);
    let words = ["restore", "--detach", "--changed-files", "ignore", "--image-path", path(&image), "ID"];
    for point in points("restore:") {
        let ended = with_fault(&job, point, &words);
        assert!(killed(ended), "{point}: {ended}");
        if point != UNGUARDED {
            job.container.no_trace();
        }
    }
    again(&job, &image);
    delete(&job);
}

#[test]
fn a_restart_that_fails_at_every_step() {
    let job = job();
    let image = job.image("image");
    job.checkpoint(&image);
    let words = ["restore", "--detach", "--changed-files", "ignore", "--image-path", path(&image), "ID"];
    for point in points("restore:") {
        assert_eq!(with_fault(&job, &format!("fail@{point}"), &words).code(), Some(1), "{point}");
        job.container.no_trace();
    }
    again(&job, &image);
    delete(&job);
}

#[test]
fn a_restart_killed_at_any_system_call() {
    const KILLS: usize = 60;
    let job = job();
    let image = job.image("image");
    job.checkpoint(&image);
    let words = ["restore", "--detach", "--changed-files", "ignore", "--image-path", path(&image), "ID"];
    let (all, killed) = kill_at(job.container.command(&words), usize::MAX);
    assert!(!killed && all > 100, "{all}");
    delete(&job);
    for kill in 0..KILLS {
        let at = kill * all / KILLS;
        kill_at(job.container.command(&words), at);
        cleared(&job.container);
        let state = job.container.store().join(job.container.id());
        if fs::read_dir(&state).is_ok_and(|mut listing| listing.next().is_none()) {
            fs::remove_dir(&state).unwrap();
        }
        // At the very end nobody is there to clear up any more, because there is a whole container.
        if job.container.ckrun(&["state", "ID"]).code == 0 {
            assert!(kill > KILLS / 2, "killed at {at} of {all}");
            job.is_well();
            delete(&job);
        }
        job.container.no_trace();
    }
    again(&job, &image);
    delete(&job);
}

fn leave(image: &Path) -> [&str; 5] {
    ["checkpoint", "--leave-running", "--image-path", path(image), "ID"]
}

/// What is in sockets and queues can only be read by changing them for a moment. The kill comes before or after that.
fn unharmed_by_kills(job: &Job, calls: &[i64]) {
    const KILLS: usize = 60;
    let image = job.image("all");
    let wanted = |number| calls.contains(&number);
    let (all, killed) = kill_at_calls(job.container.command(&leave(&image)), wanted, usize::MAX);
    assert!(!killed && all > 0, "{all}");
    job.is_well();
    for kill in 0..all.min(KILLS) {
        let image = job.image("killed");
        let (_, killed) =
            kill_at_calls(job.container.command(&leave(&image)), wanted, kill * all / all.min(KILLS));
        if !killed {
            // It took fewer calls than the first time.
            fs::remove_dir_all(&image).unwrap();
            continue;
        }
        cleared(&job.container);
        job.is_unharmed(&image);
    }
    delete(job);
}

#[test]
fn sockets_are_unharmed_by_a_kill() {
    let job = Job::up("streams", "full");
    unharmed_by_kills(&job, &[libc::SYS_setsockopt, libc::SYS_clone]);
}

#[test]
fn message_queues_are_unharmed_by_a_kill() {
    let job = Job::up("sysv", "posix");
    unharmed_by_kills(&job, &[libc::SYS_mq_timedreceive, libc::SYS_mq_timedsend, libc::SYS_clone]);
}

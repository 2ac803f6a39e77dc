//! Mount namespaces of a job's own.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by a panic")]

use ckrun_integration::job::{Job, cleared, path};
use ckrun_integration::modes_survive;
use ckrun_integration::trace::kill_at;
use ckrun_virt::fault::POINTS;
use serde_json::json;
use std::os::unix::process::ExitStatusExt;
use std::process::Stdio;

modes_survive!("mounts":
    private pivot read_only peers same hidden sockets nested handles gone_and_late
    ; else "shared-root" "pivot-of-first"
);

/// The sandbox of a restart has the bundle's root.
#[test]
fn a_first_process_with_another_root() {
    Job::up("mounts", "pivot-of-first").is_refused_beforehand(&["mount /", "pivot_root"]);
}

/// In a user namespace what a copy of a mount namespace has from another one can't be taken apart.
#[test]
fn in_a_user_namespace() {
    for mode in ["private", "read-only", "peers", "same", "sockets", "nested"] {
        let job = Job::new("mounts", mode);
        job.container.change(|c| {
            c["linux"]["namespaces"].as_array_mut().unwrap().push(json!({"type": "user"}));
            let map = json!([{"containerID": 0, "hostID": 200_000, "size": 65536}]);
            c["linux"]["uidMappings"] = map.clone();
            c["linux"]["gidMappings"] = map;
        });
        let mut rootfs = std::process::Command::new("chown");
        assert!(rootfs.args(["-R", "200000:200000"]).arg(job.container.rootfs()).status().unwrap().success());
        job.start();
        job.survives();
    }
}

/// What is mounted in a namespace that was made from the sandbox's is propagated there, and back.
#[test]
fn with_a_root_that_is_shared() {
    for mode in ["shared-root", "private", "peers"] {
        let job = Job::new("mounts", mode);
        job.container.change(|c| c["linux"]["rootfsPropagation"] = json!("rshared"));
        job.start();
        job.survives();
    }
}

#[test]
fn a_job_that_goes_on_meanwhile_is_unharmed() {
    for mode in ["private", "hidden", "peers"] {
        let job = Job::up("mounts", mode);
        let (first, second) = (job.image("first"), job.image("second"));
        job.leave_running(&first);
        job.is_well();
        job.checkpoint(&second);
        job.restore(&second);
        delete(&job);
        job.restore_with(&first, &["--changed-files", "ignore"]);
        delete(&job);
    }
}

fn delete(job: &Job) {
    job.container.ckrun(&["delete", "--force", "ID"]).ok();
    job.container.no_trace();
}

/// ckrun, killed at a step.
fn killed_at(job: &Job, point: &str, words: &[&str]) -> bool {
    let mut command = job.container.command(words);
    command.env("CKRUN_FAULT", point).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let ended = command.status().unwrap();
    cleared(&job.container);
    ended.signal() == Some(libc::SIGKILL)
}

#[test]
fn ckrun_killed_at_every_step() {
    let job = Job::up("mounts", "hidden");
    let image = job.image("image");
    for point in POINTS.iter().filter(|point| point.starts_with("checkpoint:")) {
        let words = ["checkpoint", "--leave-running", "--image-path", path(&image), "ID"];
        killed_at(&job, point, &words);
        assert_eq!(job.container.status(), "running");
        job.is_well();
        let _ = std::fs::remove_dir_all(&image);
    }
    job.checkpoint(&image);
    let words = ["restore", "--detach", "--changed-files", "ignore", "--image-path", path(&image), "ID"];
    for point in POINTS.iter().filter(|point| point.starts_with("restore:")) {
        assert!(killed_at(&job, point, &words), "{point}");
        if *point != "restore:claim" {
            job.container.no_trace();
        }
    }
    job.restore_with(&image, &["--changed-files", "ignore"]);
    delete(&job);
}

#[test]
fn a_restart_killed_at_any_system_call() {
    const KILLS: usize = 30;
    let job = Job::up("mounts", "nested");
    let image = job.image("image");
    job.checkpoint(&image);
    let words = ["restore", "--detach", "--changed-files", "ignore", "--image-path", path(&image), "ID"];
    let (all, killed) = kill_at(job.container.command(&words), usize::MAX);
    assert!(!killed && all > 100, "{all}");
    delete(&job);
    for kill in 0..KILLS {
        kill_at(job.container.command(&words), kill * all / KILLS);
        cleared(&job.container);
        let state = job.container.store().join(job.container.id());
        if std::fs::read_dir(&state).is_ok_and(|mut listing| listing.next().is_none()) {
            std::fs::remove_dir(&state).unwrap();
        }
        if job.container.ckrun(&["state", "ID"]).code == 0 {
            job.is_well();
            delete(&job);
        }
        job.container.no_trace();
    }
    job.restore_with(&image, &["--changed-files", "ignore"]);
    delete(&job);
}

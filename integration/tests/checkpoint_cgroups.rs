//! Cgroups that a job has made below its container's own, on every layout of hierarchies.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by a panic")]

use ckrun_integration::bundle::Container;
use ckrun_integration::guests::{guest, modes};
use ckrun_integration::job::{Job, cleared, path};
use ckrun_integration::pipes::{await_end, pidfd};
use ckrun_integration::run::install;
use ckrun_integration::trace::kill_at;
use serde_json::json;
use std::fs;
use std::process::Stdio;

/// A job that may write to its cgroups, and runs; on this host, or on one with nothing but cgroup2.
fn up(mode: &str, only_cgroup2: bool) -> Job {
    let change = |container: Container| {
        let container = if only_cgroup2 { container.on_cgroup2() } else { container };
        container.with(|c| {
            let mounts = c["mounts"].as_array_mut().unwrap();
            let cgroup = mounts.iter_mut().find(|mount| mount["type"] == "cgroup").unwrap();
            cgroup["options"] = json!(["nosuid", "noexec", "nodev", "rw"]);
        })
    };
    let job = Job::with(&["/guest", mode, "/status"], change);
    install(&guest("cgroups"), &job.container.rootfs().join("guest"));
    job.start();
    job
}

macro_rules! survive {
    ($($mode:ident)*) => {
        mod on_this_host {
            $(
                #[test]
                fn $mode() {
                    super::up(&stringify!($mode).replace('_', "-"), false).survives();
                }
            )*
        }

        mod on_cgroup2 {
            $(
                #[test]
                fn $mode() {
                    super::up(&stringify!($mode).replace('_', "-"), true).survives();
                }
            )*
        }

        #[test]
        fn no_mode_is_forgotten() {
            let mut tested = vec![$(stringify!($mode).replace('_', "-"),)*];
            let mut known = modes("cgroups");
            tested.sort();
            known.sort();
            assert_eq!(tested, known);
        }
    };
}

survive!(v1 v2 threaded frozen_v2 frozen_v1 open);

/// Also what it has frozen.
#[test]
fn a_job_that_goes_on_is_not_harmed() {
    for mode in ["v1", "v2", "threaded", "frozen-v1", "frozen-v2"] {
        let job = up(mode, false);
        for turn in 0..3 {
            let image = job.image(&format!("image-{turn}"));
            job.leave_running(&image);
            job.is_well();
        }
        let image = job.image("refused");
        let mut command = job.container.command(&["checkpoint", "--image-path", path(&image), "ID"]);
        command.env("CKRUN_FAULT", "fail@checkpoint:write").stderr(Stdio::null());
        assert_eq!(command.status().unwrap().code(), Some(1));
        job.is_unharmed(&image);
    }
}

/// Whatever part of itself the job has frozen.
#[test]
fn a_job_dies_of_sigkill() {
    for mode in ["frozen-v1", "frozen-v2"] {
        let job = up(mode, false);
        let end = pidfd(job.container.pid());
        job.container.ckrun(&["kill", "ID", "KILL"]).ok();
        await_end(end);
        job.container.ckrun(&["delete", "ID"]).ok();
        job.container.no_trace();
    }
}

/// What is below the container's cgroups goes as well.
#[test]
fn a_restart_that_is_killed_leaves_no_cgroup() {
    const KILLS: usize = 30;
    let job = up("v1", false);
    let image = job.image("image");
    job.checkpoint(&image);
    let words = ["restore", "--detach", "--changed-files", "ignore", "--image-path", path(&image), "ID"];
    let (all, _) = kill_at(job.container.command(&words), usize::MAX);
    job.container.ckrun(&["delete", "--force", "ID"]).ok();
    for kill in 0..KILLS {
        kill_at(job.container.command(&words), kill * all / KILLS);
        cleared(&job.container);
        job.container.ckrun(&["delete", "--force", "ID"]).ok();
        job.container.no_trace();
    }
    job.restore_with(&image, &["--changed-files", "ignore"]);
}

/// `--manage-cgroups-mode`: nothing of the job's cgroups, or also what is set in the container's own.
#[test]
fn as_much_is_carried_as_is_asked_for() {
    let job = up("open", false);
    let own = || job.container.cgroups();
    let file = own().into_iter().map(|dir| dir.join("cgroup.max.depth")).find(|file| file.exists()).unwrap();
    let image = job.image("image");
    fs::write(&file, "5").unwrap();
    let checkpoint = |mode: &str, image: &str| {
        job.container.ckrun(&["checkpoint", "--manage-cgroups-mode", mode, "--image-path", image, "ID"]).ok();
        job.container.no_trace();
    };
    checkpoint("full", path(&image));
    let depth = || fs::read_to_string(&file).unwrap().trim().to_owned();
    for (mode, found) in [("soft", "max"), ("full", "5"), ("strict", "5")] {
        job.restore_with(&image, &["--changed-files", "ignore", "--manage-cgroups-mode", mode]);
        assert_eq!(depth(), found, "{mode}");
        job.container.ckrun(&["delete", "--force", "ID"]).ok();
        job.container.no_trace();
    }
    // The files that it has open there are not there.
    let words = ["restore", "--detach", "--changed-files", "ignore", "--manage-cgroups-mode", "ignore"];
    let refused = job.quietly(&[&words[..], &["--image-path", path(&image), "ID"]].concat());
    assert!(refused.code == 1 && refused.stderr.contains("watched"), "{refused:?}");
    job.container.no_trace();
}

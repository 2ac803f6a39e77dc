//! `ckrun migrate`: a job moves to another host, which is another network namespace with a store, a bundle and a device of
//! its own.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by a panic")]

use ckrun_integration::emulator::Emulator;
use ckrun_integration::job::{Job, path};
use ckrun_integration::pipes::any_ready;
use ckrun_integration::run::{Ended, binary, finish, needs};
use ckrun_integration::status::Status;
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use serde_json::{Value, json};
use std::fs;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::Command;

/// A network namespace, by name.
struct Network(String);

impl Network {
    fn new(name: String) -> Network {
        ip(&["netns", "add", &name]);
        Network(name)
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        ip(&["netns", "delete", &self.0]);
    }
}

fn ip(words: &[&str]) {
    let mut command = Command::new(needs("ip", "iproute2"));
    command.args(words);
    finish(command).ok();
}

/// A job that runs, and a host where it could run as well.
struct Move {
    here: Job,
    there: Job,
    network: Network,
    devices: (Emulator, Emulator),
}

impl Move {
    fn new() -> Move {
        let here = Job::new("link", "device");
        let devices = (Emulator::at_work(), Emulator::at_work());
        here.start_with(&["--map", &devices.0.map()]);
        let there = here.elsewhere();
        // In truth another host has other cgroups.
        let cgroups = format!("/{}-b", here.container.id());
        there.container.change(|config| config["linux"]["cgroupsPath"] = json!(cgroups));
        let network = Network::new(here.container.id().replace("ckrun-", "host-"));
        Move { here, there, network, devices }
    }

    /// Moves it, with a ckrun there whose environment has `fault`, and with more options.
    fn go(&self, fault: &str, more: &[&str]) -> Ended {
        self.go_from("", fault, more)
    }

    /// With a fault here, too.
    fn go_from(&self, here: &str, fault: &str, more: &[&str]) -> Ended {
        let store = self.there.container.store();
        let ckrun = format!("env CKRUN_FAULT={fault} {} --root {}", binary().display(), store.display());
        // Not by `ip netns exec`, which mounts a /sys without cgroups.
        let to = format!("--to=--net=/run/netns/{}", self.network.0);
        let (bundle, map) = (self.there.container.bundle(), self.devices.1.map());
        let mut words = vec!["migrate", &to, "--via", "nsenter", "--ckrun", &ckrun];
        words.extend_from_slice(more);
        words.extend(["ID", "--", "--bundle", path(&bundle), "--map", &map, "--changed-files", "ignore"]);
        let mut command = self.here.container.command(&words);
        command.env("CKRUN_FAULT", here);
        finish(command)
    }

    /// ckrun of the other host.
    fn ask(&self, words: &[&str]) -> Ended {
        let mut command = Command::new(binary());
        command.arg("--root").arg(self.there.container.store()).args(words).arg(self.here.container.id());
        finish(command)
    }

    /// It goes on here, and nothing of it is there.
    fn stays(&self) {
        self.here.is_well();
        assert!(!self.there.container.store().join(self.here.container.id()).exists());
        no_images(&self.here);
    }
}

/// What a move of this job has left in the place for images.
fn images(job: &Job) -> Vec<PathBuf> {
    let prefix = format!("ckrun-{}-", job.container.id());
    let entries = fs::read_dir("/var/tmp").unwrap().map(|entry| entry.unwrap().path());
    entries.filter(|path| path.file_name().unwrap().to_string_lossy().starts_with(&prefix)).collect()
}

/// Waits until none is left: after a ckrun that was killed another process clears away.
fn no_images(job: &Job) {
    let events = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK).unwrap();
    inotify::add_watch(&events, "/var/tmp", WatchFlags::DELETE | WatchFlags::MOVED_FROM).unwrap();
    while !images(job).is_empty() {
        any_ready(&[events.as_fd()]);
        while rustix::io::read(&events, &mut [0; 4096]).is_ok() {}
    }
}

#[test]
fn a_job_moves() {
    let job = Move::new();
    let said = job.go("", &["--json"]).ok();
    let said: Value = serde_json::from_str(&said).unwrap();
    for phase in ["frozenMs", "checkpointMs", "transferMs", "restoreMs", "totalMs", "bytes"] {
        assert!(said[phase].as_f64().unwrap() > 0.0, "{said:#}");
    }
    assert_eq!(said["processes"], 2);
    assert!(!job.here.container.store().join(job.here.container.id()).exists());
    no_images(&job.here);

    let state: Value = serde_json::from_str(&job.ask(&["state"]).ok()).unwrap();
    let status = Status::at(&job.there.container.rootfs().join("status"));
    status.rises(60, i32::try_from(state["pid"].as_i64().unwrap()).unwrap());
    let real = job.ask(&["ids", "--to-real", "dev:/dev/emu0"]).ok();
    assert!(job.devices.1.map().ends_with(real.trim().trim_start_matches("dev:")), "{real}");
    job.ask(&["delete", "--force"]).ok();
    assert!(job.devices.0.end() > 0);
    assert!(job.devices.1.end() > 0);
}

#[test]
fn a_job_that_can_not_be_restored_there_goes_on_here() {
    let job = Move::new();
    let (bundle, hidden) = (job.there.container.bundle(), job.there.container.file("hidden"));
    fs::rename(&bundle, &hidden).unwrap();
    job.go("", &[]).fails(1, &["bundle", "goes on here"]);
    job.stays();
    fs::rename(&hidden, &bundle).unwrap();
    // Whenever the other one fails, or dies, until it has the job.
    for fault in
        ["restore:check", "fail@restore:sandbox", "restore:tree", "restore:registers", "restore:save"]
    {
        job.go(fault, &[]).fails(1, &["goes on here"]);
        job.stays();
    }
    job.here
        .container
        .ckrun(&["migrate", "--to", "b", "--via", "/no/such/command", "ID"])
        .fails(1, &["/no/such"]);
    job.stays();
    // And then it moves.
    job.go("", &[]).ok();
    job.ask(&["delete", "--force"]).ok();
}

/// ckrun is killed here before it has given the job away.
#[test]
fn a_killed_ckrun_leaves_no_image() {
    let job = Move::new();
    for fault in ["checkpoint:commit", "checkpoint:committed"] {
        assert_eq!(job.go_from(fault, "", &[]).code, -9);
        job.stays();
    }
    // And when it was just about to, nothing is lost.
    assert_eq!(job.go_from("checkpoint:kill", "", &[]).code, -9);
    job.here.is_well();
    let given = |image: &&PathBuf| path(image).ends_with("-given");
    let kept = images(&job.here).iter().find(given).unwrap().clone();
    job.here.container.ckrun(&["inspect", path(&kept)]).ok();
    fs::remove_dir_all(kept).unwrap();
    job.stays();
    job.go("", &[]).ok();
    job.ask(&["delete", "--force"]).ok();
}

/// The other ckrun is killed when it has the job and has not said that it runs: it may run there, so it must not run here;
/// but the image is kept.
#[test]
fn a_job_that_was_given_away_runs_at_most_once() {
    let job = Move::new();
    let said = job.go("restore:done", &[]).fails(1, &["did not say that it runs", "The image is kept"]);
    assert!(!job.here.container.store().join(job.here.container.id()).exists(), "{said:?}");
    let kept = PathBuf::from(said.stderr.split("The image is kept: ").nth(1).unwrap().trim_end());
    let again = Emulator::at_work();
    job.here.restore_with(&kept, &["--map", &again.map(), "--changed-files", "ignore"]);
    job.here.container.ckrun(&["delete", "--force", "ID"]).ok();
    fs::remove_dir_all(&kept).unwrap();
    no_images(&job.here);
}

#[test]
fn the_image_is_kept_where_it_was_asked_for() {
    let job = Move::new();
    let image = job.here.image("image");
    job.go("", &["--image-path", path(&image)]).ok();
    job.ask(&["delete", "--force"]).ok();
    no_images(&job.here);
    let again = Emulator::at_work();
    job.here.restore_with(&image, &["--map", &again.map(), "--changed-files", "ignore"]);
    job.here.container.ckrun(&["delete", "--force", "ID"]).ok();
}

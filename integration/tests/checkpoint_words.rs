//! What `checkpoint` and `restore` say to clients and refuse, before anything is done.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by a panic")]

use ckrun_integration::bundle::Container;
use ckrun_integration::job::{Job, path};
use ckrun_integration::run::{Ended, binary, finish};
use serde_json::{Value, json};
use std::fs;
use std::process::Command;

fn plain(words: &[&str]) -> Ended {
    let mut command = Command::new(binary());
    command.args(words);
    finish(command)
}

fn sleeper() -> Container {
    Container::sh("echo up; exec sleep 1000")
}

#[test]
fn podman_finds_what_it_looks_for() {
    let help = plain(&["checkpoint", "--help"]).exits(0);
    assert!(help.stdout.contains("--leave-running"), "{}", help.stdout);
    let said = plain(&["restore", "--lsm-mount-context"]).exits(1);
    assert!(said.stderr.contains("flag needs an argument"), "{}", said.stderr);
}

#[test]
fn a_wrong_word_says_which() {
    for words in [
        &["checkpoint"][..],
        &["restore", "--image-path", "x"],
        &["restore", "--changed-files", "never", "x"],
    ] {
        plain(words).exits(1);
    }
}

#[test]
fn what_is_not_done_is_refused_by_its_name() {
    let container = sleeper();
    let mut live = container.up();
    assert_eq!(live.stdout.line(), "up");
    for (option, value) in [
        ("--pre-dump", None),
        ("--page-server", Some("127.0.0.1:1")),
        ("--lazy-pages", None),
        ("--lsm-profile", Some("a:b")),
    ] {
        let mut words = vec!["checkpoint", option];
        words.extend(value);
        words.push("ID");
        container.ckrun(&words).fails(1, &["checkpoint", option, "not supported"]);
    }
    for words in [&["--lazy-pages"][..], &["--status-fd", "3"], &["--preserve-fds", "1"]] {
        let refused = container.ckrun(&[&["restore"], words, &["ID"]].concat());
        refused.fails(1, &["restore", words[0], "not supported"]);
    }
    assert_eq!(container.status(), "running");
    assert!(!container.bundle().join("checkpoint").exists());
}

#[test]
fn only_what_runs_can_be_checkpointed() {
    let container = sleeper();
    container.ckrun(&["checkpoint", "ID"]).fails(1, &["does not exist"]);
    let live = container.create();
    container.ckrun(&["checkpoint", "ID"]).fails(1, &["cannot checkpoint", "created"]);
    container.ckrun(&["checkpoint", "--dry-run", "ID"]).fails(1, &["cannot checkpoint", "created"]);
    container.ckrun(&["kill", "ID", "KILL"]).ok();
    live.await_end();
    container.ckrun(&["checkpoint", "ID"]).fails(1, &["cannot checkpoint", "container not running"]);
    assert!(!container.bundle().join("checkpoint").exists());
}

#[test]
fn a_job_needs_a_pid_namespace_of_its_own() {
    let container = sleeper();
    container.change(|c| {
        c["linux"]["namespaces"].as_array_mut().unwrap().retain(|ns| ns["type"] != "pid");
        c["mounts"].as_array_mut().unwrap().retain(|mount| mount["type"] != "proc");
        c["linux"]["maskedPaths"] = json!([]);
        c["linux"]["readonlyPaths"] = json!([]);
    });
    let mut live = container.up();
    assert_eq!(live.stdout.line(), "up");
    container.ckrun(&["checkpoint", "ID"]).fails(1, &["linux.namespaces", "pid namespace of its own"]);
    assert_eq!(container.status(), "running");
}

#[test]
fn what_is_no_image_is_not_restored() {
    let container = sleeper();
    container.ckrun(&["restore", "ID"]).fails(1, &["checkpoint", "no such file or directory"]);
    let dir = container.file("image");
    fs::create_dir(&dir).unwrap();
    let path = dir.to_str().unwrap();
    container.ckrun(&["restore", "--image-path", path, "ID"]).fails(1, &[path, "manifest.json"]);
    container.no_trace();
    // Its reason is where clients look for it.
    let log = fs::read_to_string(dir.join("restore.log")).unwrap();
    assert!(log.ends_with('\n') && log.contains("error: ") && log.contains("manifest.json"), "{log}");
}

#[test]
fn the_log_is_where_it_is_wanted() {
    let container = sleeper();
    let (image, work) = (container.file("image"), container.file("work/of/mine"));
    let words =
        ["restore", "--image-path", image.to_str().unwrap(), "--work-path", work.to_str().unwrap(), "ID"];
    container.ckrun(&words).fails(1, &["no such file or directory"]);
    assert!(fs::read_to_string(work.join("restore.log")).unwrap().contains("error: "));
    assert!(!image.exists());
}

#[test]
fn the_log_of_clients_holds_one_object() {
    let container = sleeper();
    let (log, dir) = (container.file("log.json"), container.file("image"));
    fs::create_dir(&dir).unwrap();
    let (log_path, dir_path) = (log.to_str().unwrap(), dir.to_str().unwrap());
    container
        .ckrun(&["--log", log_path, "--log-format", "json", "restore", "--image-path", dir_path, "ID"])
        .fails(1, &["manifest.json"]);
    let said: Value = serde_json::from_slice(&fs::read(&log).unwrap()).unwrap();
    assert_eq!(said["level"], "error");
    // The journal has lines for people.
    assert!(!fs::read_to_string(dir.join("restore.log")).unwrap().contains('{'));
}

#[test]
fn what_clients_want_to_find() {
    let job = Job::up("processes", "wide");
    let (image, work, pid_file) = (job.image("image"), job.image("work"), job.image("pid"));
    let words = [
        "checkpoint",
        "--json",
        "--leave-running",
        "--image-path",
        path(&image),
        "--work-path",
        path(&work),
        "ID",
    ];
    let report: Value = serde_json::from_str(&job.container.ckrun(&words).ok()).unwrap();
    let (frozen, total) = (report["frozenMs"].as_f64().unwrap(), report["totalMs"].as_f64().unwrap());
    assert!(0.0 < frozen && frozen <= total, "{report}");
    assert!(report["processes"].as_u64().unwrap() > 1, "{report}");
    assert_eq!(report["image"], path(&image));
    assert!(image.join("inventory.img").exists() && work.join("dump.log").exists());
    assert!(work.join("stats-dump").exists());
    let kept: Value = serde_json::from_slice(&fs::read(image.join("config.json")).unwrap()).unwrap();
    assert_eq!(kept["process"]["args"], job.container.config()["process"]["args"]);
    job.container.ckrun(&["delete", "--force", "ID"]).ok();
    job.restore_with(
        &image,
        &["--changed-files", "ignore", "--work-path", path(&work), "--pid-file", path(&pid_file)],
    );
    assert_eq!(fs::read_to_string(&pid_file).unwrap(), job.container.pid().to_string());
    assert!(fs::read_to_string(work.join("restore.log")).unwrap().contains("the sandbox stands"));
    job.container.ckrun(&["delete", "--force", "ID"]).ok();
}

//! `ckrun inspect`: an image, shown to a person and to a program.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by a panic")]

use ckrun_integration::bundle::Container;
use ckrun_integration::images::{moved, write};
use ckrun_integration::run::Ended;
use serde_json::{Value, json};
use std::fs;

fn inspected(container: &Container, words: &[&str]) -> Ended {
    let dir = container.file("image");
    container.ckrun(&[&["inspect", dir.to_str().unwrap()], words].concat())
}

fn image() -> Container {
    let container = Container::new();
    let task = |pid: i32, parent: i32, comm: &str, state: Value| json!({"pid": pid, "parent": parent, "comm": comm, "state": state, "threads": [pid, pid + 100], "session": 1, "group": 1, "exit-signal": 17});
    let tasks = json!([
        task(7, 1, "python3\u{1b}[2J", json!("running")),
        task(1, 0, "sh", json!("running")),
        task(9, 7, "gone", json!({"zombie": {"status": 0}})),
    ]);
    let object = |kind: Value| json!({"device": 1, "inode": 2, "size": 8192, "mode": 33188, "owner": [0, 0], "kind": kind});
    let file = object(json!({"file": {"path": "/bin/sh", "modified": [1, 2]}}));
    let shared = object(json!({"shared": {"huge": 0}}));
    let objects = json!([file.clone(), file.clone(), file.clone(), file, shared]);
    let files = [("table.json", &moved(48211)), ("tasks.json", &tasks), ("objects.json", &objects)];
    write(&container.file("image"), &files);
    container
}

#[test]
fn a_person_sees_what_is_in_an_image() {
    let container = image();
    let text = inspected(&container, &[]).ok();
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let words = |start: &str| {
        let line =
            text.lines().find(|line| line.starts_with(start)).unwrap_or_else(|| panic!("{start:?}: {text}"));
        line.split_whitespace().map(str::to_owned).collect::<Vec<_>>()
    };
    assert!(words("taken ").join(" ").contains("generation 1, by ckrun "));
    assert!(words("host ").join(" ").starts_with(&format!("host Linux {} on ", kernel.trim())));
    assert!(text.contains("memory 12.0 KiB, files 7 B, all else "), "{text}");
    assert_eq!(words("1 "), ["1", "sh", "running", "2", "0", "B", "8.0", "KiB", "1", "48211"]);
    assert_eq!(words("└─ 7 "), ["└─", "7", "python3\\u{1b}[2J", "running", "2", "0", "B", "0", "B", "0"]);
    assert_eq!(words("   └─ 9 ")[2..4], ["gone", "zombie"]);
    assert_eq!(words("0 "), ["0", "file", "8.0", "KiB", "-", "/bin/sh"]);
    assert_eq!(words("4 "), ["4", "shared", "memory", "8.0", "KiB", "4.0", "KiB"]);
    assert_eq!(words("7 "), ["7", "/dev/pts/4", "1:3"], "the description");
    assert_eq!(words("dev:/dev/emu0 ")[..2], ["dev:/dev/emu0", "dev:/dev/pts/4"]);
    assert_eq!(words("generation 1: ")[2..4], ["host", "emu-b,"]);
    assert!(text.lines().any(|line| line.contains("dev:/dev/pts/9") && line.contains("emu-a")), "{text}");
}

#[test]
fn a_program_reads_the_same() {
    let container = image();
    let all: Value = serde_json::from_str(&inspected(&container, &["--json"]).ok()).unwrap();
    assert_eq!(all["manifest"]["generation"], 1);
    assert!(all["manifest"]["files"]["tasks.json"]["size"].is_u64());
    assert_eq!((&all["sizes"]["pages"], &all["sizes"]["contents"]), (&json!(12288), &json!(7)));
    assert_eq!(all["sizes"]["processes"], json!({"1": 8192}));
    assert_eq!(all["sizes"]["shared"], json!({"4": 4096}));
    assert_eq!(all["tasks"][1]["comm"], "sh");
    assert_eq!(all["table"]["bound"][0]["virtual"], "pid:1");
}

#[test]
fn a_checkpoint_shows_the_job_that_it_was_taken_of() {
    let job = "sleep 1000000 & until grep -q sleep /proc/$!/comm; do :; done; echo up; read end; kill $!";
    let container = Container::sh(job);
    let mut live = container.up();
    assert_eq!(live.stdout.line(), "up");
    let dir = container.file("image");
    let image = dir.to_str().unwrap();
    container.ckrun(&["checkpoint", "--leave-running", "--image-path", image, "ID"]).ok();
    let text = inspected(&container, &[]).ok();
    let words = |start: &str| {
        let line =
            text.lines().find(|line| line.starts_with(start)).unwrap_or_else(|| panic!("{start:?}: {text}"));
        line.split_whitespace().map(str::to_owned).collect::<Vec<_>>()
    };
    let first = words("1 ");
    assert_eq!(first[1..4], ["sh", "running", "1"]);
    assert_eq!(first.last().unwrap(), &live.pid.to_string());
    assert_eq!(words("└─ 2 ")[2..5], ["sleep", "running", "1"]);
    assert!(text.lines().any(|line| line.ends_with("/bin/busybox")), "{text}");
    assert_eq!(container.ckrun(&["ids", "--image", image, "--to-real", "1"]).ok(), live.pid.to_string());
    // The first generation begins with the container, and not with its first checkpoint.
    let ids: Value =
        serde_json::from_str(&container.ckrun(&["ids", "--image", image, "--json"]).ok()).unwrap();
    let created = container.state()["created"].as_str().unwrap()[..23].to_owned();
    assert_eq!(ids["generations"][0]["since"], format!("{created}Z"));
    assert_eq!(ids["generations"][0]["number"], 0);
}

#[test]
fn what_is_no_image_or_a_damaged_one_is_refused() {
    let container = image();
    let bundle = container.bundle();
    container
        .ckrun(&["inspect", bundle.to_str().unwrap()])
        .fails(1, &["no checkpoint image", "manifest.json"]);
    let path = container.file("image").join("tasks.json");
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text.replace("python3", "python2")).unwrap();
    inspected(&container, &[]).fails(1, &["tasks.json", "the image is damaged"]);
    fs::remove_file(&path).unwrap();
    inspected(&container, &[]).fails(1, &["tasks.json"]);
}

//! A job that is tied to a device by its vendor's name for it (CDI) goes from host to host: each host's description says what
//! that is there.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by a panic")]

use ckrun_integration::emulator::Emulator;
use ckrun_integration::hosts::board::USUAL;
use ckrun_integration::hosts::{Host, Site};
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::MetadataExt;

const NAME: &str = "emulator.example/board=slot0";

/// Puts what the vendor says of the device into a host's /etc/cdi.
fn describe(host: &Host, edits: &Value) {
    let devices = json!([{"name": "slot0", "containerEdits": edits}]);
    let all = json!({"cdiVersion": "0.6.0", "kind": "emulator.example/board", "devices": devices});
    fs::create_dir_all(host.path("/etc/cdi")).unwrap();
    fs::write(host.path("/etc/cdi/emulator.json"), all.to_string()).unwrap();
}

fn mount(from: &str, to: &str) -> Value {
    json!({"mounts": [{"hostPath": from, "containerPath": to, "options": ["rbind", "rw"]}]})
}

fn real(host: &Host, name: &str) -> String {
    host.ckrun(&["ids", "ID", "--to-real", name]).ok().trim_end().to_owned()
}

#[test]
fn a_name_is_another_pty_on_each_host() {
    let site = Site::new();
    let guest = site.guest("link", "device");
    let (a, b) = (site.host("a"), site.host("b"));
    // So that the numbers differ.
    let _other = Emulator::on(&b);
    let mut emulator = Emulator::on(&a);
    describe(&a, &mount(emulator.device.to_str().unwrap(), "/dev/emu0"));
    guest.start(&a, &["--device", NAME]);
    let shown = a.ckrun(&["ids", "ID"]).ok();
    assert!(shown.lines().any(|line| line.starts_with("dev:/dev/emu0 ") && line.ends_with(NAME)), "{shown}");
    let mut here = &a;
    for (generation, there) in [(1, &b), (2, &a), (3, &b)] {
        let image = format!("image-{generation}");
        guest.checkpoint(here, &image);
        assert!(emulator.end() > 0);
        emulator = Emulator::on(there);
        describe(there, &mount(emulator.device.to_str().unwrap(), "/dev/emu0"));
        let line = format!("--device {NAME}");
        guest.is_refused(there, &image, &[], &["/dev/emu0", &line, "--map /dev/emu0=DEVICE"]);
        guest.restore(there, &image, &["--device", NAME]);
        assert_eq!(real(there, "dev:/dev/emu0"), format!("dev:{}", emulator.device.display()));
        let all: Value = serde_json::from_str(&there.ckrun(&["ids", "--json", "ID"]).ok()).unwrap();
        assert_eq!(all["vendors"], json!({"dev:/dev/emu0": NAME}));
        here = there;
    }
    // Who has said how the device is called need not do so for ever.
    guest.checkpoint(here, "image");
    assert!(emulator.end() > 0);
    emulator = Emulator::on(&a);
    guest.restore(&a, "image", &["--map", &emulator.map()]);
    here = &a;
    let all: Value = serde_json::from_str(&here.ckrun(&["ids", "--json", "ID"]).ok()).unwrap();
    assert!(all["vendors"].is_null(), "{all:#}");
    here.ckrun(&["delete", "--force", "ID"]).ok();
    assert!(emulator.end() > 0);
    drop((a, b));
    site.no_trace();
}

/// By an annotation of config.json nothing needs to be said at a restart; `ckrun migrate` neither.
#[test]
fn an_annotation_is_another_directory_of_devices_on_each_host() {
    let site = Site::new();
    let guest = site.guest("board", "directory");
    guest.change(|config| config["annotations"] = json!({"cdi.k8s.io/testbench": NAME}));
    let (a, b) = (site.host("a"), site.host("b"));
    let mut board = site.board(&a, "/run/boards-a");
    describe(&a, &mount("/run/boards-a", "/dev/boards"));
    guest.start(&a, &[]);
    let mut here = &a;
    for (generation, there) in [(1, &b), (2, &a), (3, &b)] {
        board.was_asked(&USUAL);
        let image = format!("image-{generation}");
        guest.checkpoint(here, &image);
        let directory = format!("/srv/boards-{generation}");
        board = site.board(there, &directory);
        describe(there, &mount(&directory, "/dev/boards"));
        guest.restore(there, &image, &[]);
        assert_eq!(real(there, "dev:/dev/boards"), format!("dev:{directory}"));
        here = there;
    }
    board.was_asked(&USUAL);
    here.ckrun(&["delete", "--force", "ID"]).ok();
    drop((board, a, b));
    site.no_trace();
}

#[test]
fn a_node_is_another_device_on_each_host() {
    let site = Site::new();
    let guest = site.guest("link", "node");
    let (a, b) = (site.host("a"), site.host("b"));
    let node = |host, real: &str| {
        describe(host, &json!({"deviceNodes": [{"path": "/dev/emu0-reset", "hostPath": real}]}));
    };
    let numbers = |host: &Host| {
        let fds = fs::read_dir(format!("/proc/{}/fd", host.pid_of("ID"))).unwrap();
        let numbers = fds.filter_map(|fd| Some(fs::metadata(fd.unwrap().path()).ok()?.rdev()));
        numbers.filter(|number| *number != 0).collect::<Vec<_>>()
    };
    let (full, zero) = (libc::makedev(1, 7), libc::makedev(1, 5));
    node(&a, "/dev/full");
    guest.start(&a, &["--device", NAME]);
    assert!(numbers(&a).contains(&full));
    guest.checkpoint(&a, "image");
    node(&b, "/dev/zero");
    guest.restore(&b, "image", &["--device", NAME]);
    assert_eq!(real(&b, "dev:/dev/emu0-reset"), "dev:/dev/zero");
    let numbers = numbers(&b);
    assert!(numbers.contains(&zero) && !numbers.contains(&full), "{numbers:?}");
    b.ckrun(&["delete", "--force", "ID"]).ok();
    drop((a, b));
    site.no_trace();
}

//! Devices by the names that their vendors give them (CDI).

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by a panic")]

use ckrun_integration::bundle::Container;
use ckrun_integration::run::{Ended, elsewhere, finish};
use ckrun_integration::terminal::{listen_to, terminal};
use nix::mount::{MsFlags, mount};
use serde_json::{Value, json};
use std::fs;
use std::path::PathBuf;

/// Runs ckrun where /var/run/cdi (a directory of /run) holds only `description`.
fn where_described(container: &Container, description: &Value, words: &[&str]) -> Ended {
    let run: PathBuf = container.file("run");
    fs::create_dir_all(run.join("cdi")).unwrap();
    fs::write(run.join("cdi/emulator.json"), description.to_string()).unwrap();
    let mut command = container.command(words);
    elsewhere(&mut command, move || mount(Some(&run), "/run", None::<&str>, MsFlags::MS_BIND, None::<&str>));
    finish(command)
}

/// The emulator behind `slot0` is a pseudoterminal; its place on this host is what a vendor would write down.
fn board(pty: &str) -> Value {
    json!({
        "cdiVersion": "0.6.0",
        "kind": "emulator.example/board",
        "devices": [{
            "name": "slot0",
            "containerEdits": {
                "mounts": [{"hostPath": pty, "containerPath": "/dev/emu0", "options": ["bind", "rw"]}],
                "deviceNodes": [{"path": "/dev/emu0-reset", "hostPath": "/dev/full"}],
                "env": ["EMU_SLOT=0"],
            },
        }],
    })
}

#[test]
fn a_job_reaches_the_emulator_by_the_path_that_it_knows() {
    let (master, slave) = terminal(24, 80);
    let pty = fs::read_link(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&slave))).unwrap();
    let mut emulator = listen_to(&master);
    let script = "echo request > /dev/emu0; echo slot $EMU_SLOT; echo x > /dev/emu0-reset || stat -c %t:%T /dev/emu0-reset";
    let container = Container::sh(script);
    let words = ["run", "--device", "emulator.example/board=slot0", "ID"];
    let ended = where_described(&container, &board(pty.to_str().unwrap()), &words).exits(0);
    assert_eq!(ended.stdout, "slot 0\n1:7\n");
    assert_eq!(emulator.line().trim_end(), "request");
    container.no_trace();
}

#[test]
fn an_annotation_asks_too() {
    let container = Container::sh("test -c /dev/emu0-reset && echo there")
        .with(|c| c["annotations"] = json!({"cdi.k8s.io/testbench": "emulator.example/board=slot0"}));
    let ended = where_described(&container, &board("/dev/null"), &["run", "ID"]).exits(0);
    assert_eq!(ended.stdout, "there\n");
}

#[test]
fn a_name_that_nobody_describes_is_refused_with_those_that_are() {
    let container = Container::new();
    let words = ["run", "--device", "emulator.example/board=slot7", "ID"];
    where_described(&container, &board("/dev/null"), &words).fails(1, &["slot7", "slot0"]);
    container.no_trace();
}

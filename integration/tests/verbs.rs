//! The verbs that look at containers, and the command line itself.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by a panic")]

use ckrun_integration::bundle::Container;
use ckrun_integration::run::{Ended, binary, finish};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use std::fs;
use std::io::Write;
use std::process::{Command, Stdio};

fn up() -> (Container, ckrun_integration::bundle::Live) {
    let container = Container::sh("echo up; read end");
    let mut live = container.up();
    assert_eq!(live.stdout.line(), "up");
    (container, live)
}

fn plain(words: &[&str]) -> Ended {
    let mut command = Command::new(binary());
    command.args(words);
    finish(command)
}

#[test]
fn list_shows_containers_in_three_forms() {
    let (container, live) = up();
    let table = container.ckrun(&["list"]).ok();
    let mut lines = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    assert_eq!(lines.next().unwrap(), ["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"]);
    let row = lines.next().unwrap();
    let (pid, bundle) = (live.pid.to_string(), container.bundle().display().to_string());
    assert_eq!(row[..4], [container.id(), &pid, "running", &bundle]);
    assert_eq!(row[5], "root");
    assert_eq!(container.ckrun(&["list", "--quiet"]).ok(), container.id());
    let all: Value = serde_json::from_str(&container.ckrun(&["list", "--format", "json"]).ok()).unwrap();
    assert_eq!(all, json!([container.state()]));
    container.ckrun(&["delete", "--force", "ID"]).ok();
    assert_eq!(container.ckrun(&["list", "-f", "json"]).ok(), "[]");
    assert_eq!(container.ckrun(&["list", "-q"]).ok(), "");
    let nowhere = container.file("nowhere");
    assert_eq!(
        plain(&["--root", nowhere.to_str().unwrap(), "list", "-q"]).ok(),
        "",
        "no store, no containers"
    );
}

#[test]
fn ps_shows_the_containers_processes() {
    let (container, live) = up();
    let pids: Vec<i32> =
        serde_json::from_str(&container.ckrun(&["ps", "--format", "json", "ID"]).ok()).unwrap();
    assert_eq!(pids, [live.pid]);
    let table = container.ckrun(&["ps", "ID"]).ok();
    let rows: Vec<&str> = table.lines().collect();
    assert_eq!(rows.len(), 2, "{table}");
    assert!(rows[0].contains("PID") && rows[1].contains(&live.pid.to_string()), "{table}");
    let own = container.ckrun(&["ps", "ID", "-o", "pid,comm"]).ok();
    assert_eq!(
        own.lines().nth(1).unwrap().split_whitespace().collect::<Vec<_>>(),
        [&live.pid.to_string(), "sh"]
    );
    container.ckrun(&["ps", "ID", "-o", "comm"]).fails(1, &["PID column"]);
}

#[test]
fn a_pause_stops_the_clock_of_the_job() {
    let container = Container::sh("echo up; while read line; do echo $line; done");
    let mut live = container.up();
    assert_eq!(live.stdout.line(), "up");
    container.ckrun(&["pause", "ID"]).ok();
    live.say("later");
    live.stdout.fill();
    assert_eq!(live.stdout.take(), "");
    // A kernel with both generations of cgroups has a freezer in each.
    let frozen = [("freezer.state", "FROZEN"), ("cgroup.freeze", "1")].iter().any(|(file, value)| {
        container
            .cgroups()
            .iter()
            .any(|dir| fs::read_to_string(dir.join(file)).is_ok_and(|text| text.trim() == *value))
    });
    assert!(frozen);
    container.ckrun(&["resume", "ID"]).ok();
    assert_eq!(live.stdout.line(), "later");
}

#[test]
fn events_tell_what_is_used() {
    let (container, _live) = up();
    container.ckrun(&["update", "--pids-limit", "77", "--memory", "64m", "ID"]).ok();
    let line = container.ckrun(&["events", "--stats", "ID"]).ok();
    assert_eq!(line.lines().count(), 1);
    let stats: Value = serde_json::from_str(&line).unwrap();
    assert_eq!((stats["type"].as_str(), stats["id"].as_str()), (Some("stats"), Some(container.id())));
    let data = &stats["data"];
    assert_eq!(data["pids"], json!({"current": 1, "limit": 77}));
    assert_eq!(data["memory"]["usage"]["limit"], 64 << 20);
    assert!(data["memory"]["usage"]["usage"].as_u64().unwrap() > 0);
    assert!(data["cpu"]["usage"]["total"].as_u64().unwrap() > 0);
}

#[test]
fn events_go_on_until_the_end() {
    let (container, mut live) = up();
    let mut events = container.start(&["events", "--interval", "1ms", "ID"]);
    for _ in 0..3 {
        let stats: Value = serde_json::from_str(&events.stdout.line()).unwrap();
        assert_eq!(stats["type"], "stats");
    }
    live.say("end");
    events.wait().exits(0);
    container.ckrun(&["events", "--stats", "ID"]).fails(1, &["not running"]);
    container.ckrun(&["events", "--interval", "soon", "ID"]).fails(1, &[]);
}

#[test]
fn update_changes_limits_by_options_files_and_stdin() {
    let (container, _live) = up();
    let pids = || container.cgroup_file(&["pids.max"]);
    let memory = || container.cgroup_file(&["memory.limit_in_bytes", "memory.max"]);
    container.ckrun(&["update", "--pids-limit", "20", "--memory", "32m", "ID"]).ok();
    assert_eq!((pids().as_str(), memory().as_str()), ("20", "33554432"));
    let file = container.file("resources.json");
    fs::write(&file, json!({"pids": {"limit": 30}}).to_string()).unwrap();
    container.ckrun(&["update", "--resources", file.to_str().unwrap(), "ID"]).ok();
    assert_eq!((pids().as_str(), memory().as_str()), ("30", "33554432"), "only what is given changes");
    for option in [&["--resources=-"][..], &["--resources", "-"], &["-r", "-"]] {
        let mut command = container.command(&[&["update"], option, &["ID"]].concat());
        let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
        child
            .stdin
            .take()
            .unwrap()
            .write_all(br#"{"pids": {"limit": -1}, "memory": {"limit": 67108864}}"#)
            .unwrap();
        assert!(child.wait().unwrap().success());
        assert_eq!((pids().as_str(), memory().as_str()), ("max", "67108864"));
    }
    container.ckrun(&["update", "--memory", "much", "ID"]).fails(1, &["--memory much", "size"]);
    fs::write(&file, json!({"pids": {"limit": "many"}}).to_string()).unwrap();
    container
        .ckrun(&["update", "--resources", file.to_str().unwrap(), "ID"])
        .fails(1, &["resources.json", "pids.limit"]);
}

#[test]
fn update_throttles_the_processor() {
    let (container, _live) = up();
    container
        .ckrun(&["update", "--cpu-quota", "20000", "--cpu-period", "50000", "--cpu-shares", "512", "ID"])
        .ok();
    let quota = container.cgroup_file(&["cpu.cfs_quota_us", "cpu.max"]);
    assert!(["20000", "20000 50000"].contains(&quota.as_str()), "{quota}");
    container.ckrun(&["update", "--cpuset-cpus", "0", "ID"]).ok();
    assert_eq!(container.cgroup_file(&["cpuset.cpus"]), "0");
    container
        .ckrun(&["update", "--cpuset-cpus", "9999", "ID"])
        .fails(1, &["linux.resources.cpu.cpus", "9999"]);
}

#[test]
fn a_failure_is_one_json_object_in_the_log() {
    let container = Container::new();
    let log = container.file("log.json");
    let words = ["--log", log.to_str().unwrap(), "--log-format", "json", "state", "ID"];
    container.ckrun(&words).fails(1, &["does not exist"]);
    let said: Value =
        serde_json::from_str(&fs::read_to_string(&log).unwrap()).expect("one object and nothing else");
    assert_eq!(said["level"], "error");
    assert_eq!(said["msg"], format!("container {:?} does not exist", container.id()));
    assert!(said["time"].as_str().unwrap().contains('T'));
    let plain = container.file("log.txt");
    container.ckrun(&["state", "--log", plain.to_str().unwrap(), "ID"]).fails(1, &["does not exist"]);
    let text = fs::read_to_string(&plain).unwrap();
    assert!(text.contains("error") && text.contains("does not exist") && text.lines().count() == 1, "{text}");
}

#[test]
fn a_failing_create_logs_one_object_in_spite_of_warnings() {
    let container = Container::sh("true").with(|c| {
        c["process"]["capabilities"]["bounding"] = json!(["CAP_OF_THE_FUTURE"]);
        c["process"]["args"] = json!(["/nothing"]);
    });
    let log = container.file("log.json");
    let words = ["--log", log.to_str().unwrap(), "--log-format=json", "create", "ID"];
    container.ckrun(&words).fails(1, &["no such file"]);
    let said: Value =
        serde_json::from_str(&fs::read_to_string(&log).unwrap()).expect("one object and nothing else");
    assert!(
        said["msg"]
            .as_str()
            .unwrap()
            .contains("exec: \"/nothing\": stat /nothing: no such file or directory")
    );
    container.no_trace();
}

#[test]
fn help_and_version_are_there() {
    let help = plain(&["--help"]).ok();
    for verb in [
        "run",
        "create",
        "start",
        "state",
        "kill",
        "delete",
        "exec",
        "list",
        "ps",
        "pause",
        "resume",
        "update",
        "events",
        "spec",
        "features",
        "completions",
    ] {
        assert!(
            help.lines().any(|line| line.trim_start().starts_with(&format!("{verb} "))),
            "{verb}\n{help}"
        );
        assert!(plain(&[verb, "--help"]).ok().contains("Usage: ckrun"), "{verb}");
    }
    for verb in ["run", "create", "exec", "kill", "delete", "state", "start", "update", "events"] {
        assert!(plain(&[verb, "--help"]).ok().contains("Example"), "{verb} has no example");
    }
    let version = plain(&["--version"]).ok();
    let lines: Vec<&str> = version.lines().collect();
    assert!(lines[0].starts_with("ckrun version "), "docker parses this: {version}");
    assert!(lines[1].starts_with("commit: "), "{version}");
    assert!(lines.iter().any(|line| line.starts_with("spec: 1.")), "{version}");
    for shell in ["bash", "zsh", "fish"] {
        assert!(plain(&["completions", shell]).ok().contains("ckrun"), "{shell}");
    }
}

#[test]
fn wrong_words_are_refused() {
    assert_eq!(plain(&["fly"]).code, 3);
    assert_eq!(plain(&["run", "--fly", "x"]).code, 1);
    assert_eq!(plain(&["state"]).code, 1);
    assert_eq!(plain(&["list", "--format", "xml"]).code, 1);
}

#[test]
fn a_reader_that_goes_is_no_error() {
    let (container, _live) = up();
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut command = container.command(&["list"]);
    command.stdout(writer).stderr(Stdio::piped());
    let ended = command.output().unwrap();
    assert_eq!((ended.status.code(), ended.stderr.as_slice()), (Some(0), &b""[..]));
}

#[test]
fn short_verbs_end_at_a_signal() {
    // Only run and exec pass signals on; everything else can be stopped like any program.
    let (container, _live) = up();
    let mut events = container.start(&["events", "--interval", "1h", "ID"]);
    assert!(events.stdout.line().starts_with('{'));
    events.signal(Signal::SIGTERM);
    assert_eq!(events.wait().code, -(Signal::SIGTERM as i32));
}

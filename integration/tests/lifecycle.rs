//! From create to delete: the verbs that every client uses, in every state that a container can be in.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by a panic")]

use ckrun_integration::bundle::Container;
use ckrun_integration::pipes::{await_end, pidfd};
use ckrun_integration::run::{finish, start};
use nix::sys::signal::Signal;
use serde_json::json;
use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;

#[test]
fn run_passes_the_exit_status_on() {
    assert_eq!(Container::new().run().ok(), "");
    Container::sh("exit 42").run().exits(42);
    let said = Container::sh("echo out; echo err >&2").run();
    assert_eq!((said.code, said.stdout.as_str(), said.stderr.as_str()), (0, "out\n", "err\n"));
}

#[test]
fn death_by_a_signal_is_128_and_its_number() {
    // An init is safe from signals of its own pid namespace for which it has no handler, so the job is its child.
    Container::sh("sh -c 'kill -9 $$'; exit $?").run().exits(137);
    let container = Container::sh("echo up; read end");
    let mut running = container.start(&["run", "ID"]);
    assert_eq!(running.stdout.line(), "up");
    container.ckrun(&["kill", "ID", "KILL"]).ok();
    running.wait().exits(137);
    container.no_trace();
}

#[test]
fn run_finds_the_bundle_and_makes_up_an_id() {
    let container = Container::sh("cat /proc/1/cgroup >/dev/null; hostname");
    let bundle = format!("{}/", container.bundle().display());
    let away = |words: &[&str]| {
        let mut command = container.command(words);
        command.current_dir("/");
        let ended = finish(command);
        container.no_trace();
        ended.ok()
    };
    for words in [
        &["run", "ID", "-b", &bundle][..],
        &["run", "-b", &bundle, "ID"],
        &["run", "--bundle", &bundle],
        &["run", &format!("--bundle={bundle}"), "ID"],
        &["run", &bundle],
    ] {
        assert_eq!(away(words), "test", "{words:?}");
    }
    assert_eq!(fs::read_dir(container.store()).unwrap().count(), 0, "made-up ids are forgotten too");
}

#[test]
fn a_made_up_id_is_the_bundles_name_and_a_number() {
    let container = Container::sh("read end");
    let bundle = format!("{}/", container.bundle().display());
    let pid_file = container.file("pid");
    let mut running = container.start(&["run", "--pid-file", pid_file.to_str().unwrap(), &bundle]);
    let ids = loop {
        let listed = container.ckrun(&["list", "-q"]).ok();
        if !listed.is_empty() {
            break listed;
        }
    };
    running.stdin = None;
    running.wait();
    let (name, number) = ids.rsplit_once('-').unwrap();
    assert_eq!(name, "bundle");
    assert_eq!(number.len(), 8, "{ids}");
}

#[test]
fn the_state_tells_every_stage() {
    let container =
        Container::sh("echo up; read end; exit 3").with(|c| c["annotations"] = json!({"a.b": "c"}));
    let mut live = container.create();
    let state = container.state();
    assert_eq!(state["ociVersion"].as_str().unwrap().split('.').next(), Some("1"));
    assert_eq!(state["id"], container.id());
    assert_eq!(state["status"], "created");
    assert_eq!(state["pid"], live.pid);
    assert_eq!(state["bundle"], container.bundle().to_str().unwrap());
    assert_eq!(state["rootfs"], container.rootfs().to_str().unwrap());
    assert_eq!(state["annotations"], json!({"a.b": "c"}));
    assert_eq!(state["owner"], "root");
    let created = state["created"].as_str().unwrap();
    assert!(created.len() == "2026-01-02T03:04:05.123456789Z".len() && created.ends_with('Z'), "{created}");

    container.ckrun(&["start", "ID"]).ok();
    assert_eq!(live.stdout.line(), "up");
    let running = container.state();
    assert_eq!((running["status"].as_str(), &running["pid"]), (Some("running"), &json!(live.pid)));
    assert_eq!(running["created"], created);

    container.ckrun(&["pause", "ID"]).ok();
    assert_eq!(container.status(), "paused");
    container.ckrun(&["resume", "ID"]).ok();
    assert_eq!(container.status(), "running");

    live.say("end");
    live.await_end();
    let stopped = container.state();
    assert_eq!((stopped["status"].as_str(), &stopped["pid"]), (Some("stopped"), &json!(0)));
    container.ckrun(&["delete", "ID"]).ok();
    container.no_trace();
    container.ckrun(&["state", "ID"]).fails(1, &["does not exist"]);
}

#[test]
fn the_job_begins_with_start_and_not_before() {
    let container = Container::sh("echo begun; cat");
    let mut live = container.create();
    live.stdout.fill();
    assert_eq!(live.stdout.take(), "");
    container.ckrun(&["start", "ID"]).ok();
    assert_eq!(live.stdout.line(), "begun");
    container.ckrun(&["start", "ID"]).fails(1, &["cannot start", "running"]);
    live.hang_up();
    // Nobody but the job holds its streams: when it ends, so do they.
    assert_eq!(live.stdout.rest(), "");
    assert_eq!(live.complaints.rest(), "");
    live.await_end();
    container.ckrun(&["start", "ID"]).fails(1, &["cannot start", "not running"]);
}

#[test]
fn what_can_not_be_done_is_refused() {
    let container = Container::sh("read end");
    for words in [
        &["state", "ID"][..],
        &["kill", "ID"],
        &["start", "ID"],
        &["delete", "ID"],
        &["pause", "ID"],
        &["resume", "ID"],
        &["ps", "ID"],
        &["events", "--stats", "ID"],
        &["update", "--pids-limit", "9", "ID"],
    ] {
        container.ckrun(words).fails(1, &["does not exist", container.id()]);
    }
    container.ckrun(&["exec", "ID", "true"]).fails(255, &["does not exist"]);
    container.ckrun(&["delete", "--force", "ID"]).ok();
    container.ckrun(&["create", "a/b"]).fails(1, &["invalid container id"]);
    container.ckrun(&["state", "../.."]).fails(1, &["invalid container id"]);
    assert_eq!(container.ckrun(&["fly", "ID"]).code, 3, "as runc answers to an unknown verb");

    let live = container.up();
    container.ckrun(&["create", "ID"]).fails(1, &["already exists"]);
    assert_eq!(container.status(), "running", "the one that was there is not touched");
    container.ckrun(&["delete", "ID"]).fails(1, &["cannot delete", "running"]);
    container.ckrun(&["resume", "ID"]).fails(1, &["cannot resume", "running"]);
    container.ckrun(&["pause", "ID"]).ok();
    container.ckrun(&["pause", "ID"]).fails(1, &["cannot pause", "paused"]);
    container.ckrun(&["delete", "ID"]).fails(1, &["cannot delete", "paused"]);
    container.ckrun(&["delete", "--force", "ID"]).ok();
    live.await_end();
    container.no_trace();
    container.ckrun(&["delete", "ID"]).fails(1, &["does not exist"]);
}

#[test]
fn a_created_container_can_be_killed_and_deleted() {
    let container = Container::sh("echo never");
    let mut live = container.create();
    container.ckrun(&["kill", "ID", "9"]).ok();
    live.await_end();
    assert_eq!(container.status(), "stopped");
    container.ckrun(&["delete", "ID"]).ok();
    assert_eq!(live.stdout.rest(), "");
    let live = container.create();
    container.ckrun(&["delete", "ID"]).ok();
    live.await_end();
    container.no_trace();
}

#[test]
fn kill_knows_signals_in_every_spelling() {
    let script =
        "trap 'echo term' TERM; trap 'echo usr1' USR1; trap 'echo winch' WINCH; trap 'echo rt' 37; echo up
        while :; do read line; done";
    let container = Container::sh(script);
    let mut live = container.up();
    assert_eq!(live.stdout.line(), "up");
    for (signal, said) in [
        ("TERM", "term"),
        ("SIGTERM", "term"),
        ("15", "term"),
        ("sigusr1", "usr1"),
        ("10", "usr1"),
        ("winch", "winch"),
        ("RTMIN+3", "rt"),
        ("37", "rt"),
    ] {
        container.ckrun(&["kill", "ID", signal]).ok();
        assert_eq!(live.stdout.line(), said, "{signal}");
    }
    container.ckrun(&["kill", "ID"]).ok();
    assert_eq!(live.stdout.line(), "term", "TERM is the default");
    container.ckrun(&["kill", "ID", "NOPE"]).fails(1, &["unknown signal", "NOPE"]);
    container.ckrun(&["kill", "ID", "KILL"]).ok();
    live.await_end();
    container.ckrun(&["kill", "ID", "KILL"]).fails(1, &["container not running"]);
    container.ckrun(&["kill", "--all", "ID", "KILL"]).ok();
}

#[test]
fn kill_all_reaches_every_process() {
    let child = "sh -c 'trap \"echo got; exit\" TERM; echo up; while :; do read x; done <&3' &";
    // The init itself has no handler, which for an init means that nothing happens.
    let container = Container::sh(&format!("exec 3<&0; {child} {child} {child} wait; echo all"));
    let mut live = container.up();
    for _ in 0..3 {
        assert_eq!(live.stdout.line(), "up");
    }
    container.ckrun(&["kill", "--all", "ID", "TERM"]).ok();
    let mut said: Vec<String> = (0..4).map(|_| live.stdout.line()).collect();
    said.sort();
    assert_eq!(said, ["all", "got", "got", "got"]);
}

#[test]
fn without_a_pid_namespace_all_processes_die() {
    let container = Container::sh("sleep 1000 & echo $!; read end").with(|c| {
        c["linux"]["namespaces"].as_array_mut().unwrap().retain(|ns| ns["type"] != "pid");
    });
    let mut live = container.up();
    let child = pidfd(live.stdout.line().parse().unwrap());
    container.ckrun(&["kill", "ID", "KILL"]).ok();
    live.await_end();
    await_end(child);
    container.ckrun(&["delete", "ID"]).ok();
    let mut live = container.up();
    let child = pidfd(live.stdout.line().parse().unwrap());
    container.ckrun(&["delete", "--force", "ID"]).ok();
    await_end(child);
    container.no_trace();
}

#[test]
fn a_paused_container_dies_of_kill_and_delete() {
    let container = Container::sh("echo up; read end");
    for words in [&["kill", "ID", "KILL"][..], &["delete", "--force", "ID"]] {
        let mut live = container.up();
        assert_eq!(live.stdout.line(), "up");
        container.ckrun(&["pause", "ID"]).ok();
        container.ckrun(words).ok();
        live.await_end();
        container.ckrun(&["delete", "--force", "ID"]).ok();
        container.no_trace();
    }
}

#[test]
fn pid_files_hold_the_number_and_nothing_else() {
    let container = Container::sh("read end");
    let file = container.file("pid");
    let live =
        container.create_by(container.command(&["create", "--pid-file", file.to_str().unwrap(), "ID"]));
    assert_eq!(fs::read_to_string(&file).unwrap(), live.pid.to_string());
    assert_eq!(container.pid(), live.pid);
}

#[test]
fn run_detached_leaves_the_job_running() {
    let container = Container::sh("echo up; read end");
    let mut live = container.create_by(container.command(&["run", "--detach", "ID"]));
    assert_eq!(live.stdout.line(), "up");
    assert_eq!(container.status(), "running");
    live.say("end");
    live.await_end();
    assert_eq!(container.status(), "stopped");
}

#[test]
fn run_keeps_the_container_if_told_to() {
    let container = Container::sh("exit 7");
    container.ckrun(&["run", "--keep", "ID"]).exits(7);
    assert_eq!(container.status(), "stopped");
    container.ckrun(&["delete", "ID"]).ok();
    container.no_trace();
}

#[test]
fn signals_to_run_reach_the_job() {
    let container = Container::sh(
        "for s in TERM INT HUP USR1 USR2 WINCH; do trap \"echo $s\" $s; done; echo up
        while :; do read line; [ \"$line\" = end ] && exit 5; done",
    );
    let mut running = container.start(&["run", "ID"]);
    assert_eq!(running.stdout.line(), "up");
    for signal in
        [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGUSR1, Signal::SIGUSR2, Signal::SIGWINCH]
    {
        running.signal(signal);
        assert_eq!(format!("SIG{}", running.stdout.line()), signal.as_str());
    }
    running.say("end");
    running.wait().exits(5);
    container.no_trace();
}

#[test]
fn only_the_preserved_descriptors_are_passed() {
    let container = Container::sh("ls /proc/self/fd | tr '\\n' ' '; cat <&3; cat <&4");
    let (three, four) = (container.put("a", "a", 0o644), container.put("b", "b", 0o644));
    let mut opened = Vec::new();
    let mut with_fds = |words: &[&str], listen: bool| {
        let files = [&three, &four].map(|path| fs::File::open(path).unwrap());
        let numbers = files.each_ref().map(|f| f.as_raw_fd());
        opened.push(files);
        let mut command = container.command(words);
        if listen {
            command.env("LISTEN_FDS", "2");
        }
        // SAFETY: dup2 is async-signal-safe, and 20 and 21 are used by nobody between fork and exec.
        unsafe {
            command.pre_exec(move || {
                for (i, number) in (20..).zip(numbers) {
                    libc::dup2(number, i);
                }
                for (i, to) in [(20, 3), (21, 4), (20, 5)] {
                    libc::dup2(i, to);
                }
                Ok(())
            })
        };
        command
    };
    // ls itself has one more open: the directory that it lists.
    let kept = finish(with_fds(&["run", "--preserve-fds", "2", "ID"], false)).ok();
    assert_eq!(kept, "0 1 2 3 4 5 ab");
    container.no_trace();
    container.change(|c| {
        c["process"]["args"] =
            json!(["sh", "-c", "env | grep LISTEN | sort | tr '\\n' ' '; cat <&3; cat <&4"])
    });
    let passed = finish(with_fds(&["run", "ID"], true)).ok();
    assert_eq!(passed, "LISTEN_FDS=2 LISTEN_PID=1 ab");
    container.no_trace();
    container.change(|c| {
        c["process"]["args"] = json!(["sh", "-c", "ls /proc/self/fd | wc -l; env | grep -c LISTEN"])
    });
    assert_eq!(finish(with_fds(&["run", "ID"], false)).stdout, "4\n0\n");
}

#[test]
fn a_container_deleted_meanwhile_ends_its_run() {
    let container = Container::sh("echo up; read end");
    let mut running = start(container.command(&["run", "ID"]));
    assert_eq!(running.stdout.line(), "up");
    container.ckrun(&["delete", "--force", "ID"]).ok();
    running.wait().exits(137);
    container.no_trace();
}

#[test]
fn ids_may_be_as_long_as_a_file_name() {
    let container = Container::new();
    let long = format!("{}-{}", container.id(), "x".repeat(200 - container.id().len()));
    container.ckrun(&["run", &long]).ok();
    let too_long = "x".repeat(256);
    container.ckrun(&["run", &too_long]).fails(1, &["invalid container id"]);
    container.no_trace();
}

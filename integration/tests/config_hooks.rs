//! Hooks: programs that run at fixed points of a container's life.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by a panic")]

use ckrun_integration::bundle::Container;
use ckrun_integration::run::install_text;
use serde_json::{Value, json};
use std::fs;

const KINDS: [&str; 6] =
    ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"];

fn hook(script: &str) -> Value {
    json!({"path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"]})
}

/// A container whose hooks each write what `script` says to a file of their kind. Those in the container's root
/// write to /out, which is the same directory.
fn recording(job: &str, script: &str) -> Container {
    let container = Container::sh(job);
    let out = container.file("out");
    fs::create_dir(&out).unwrap();
    let container = container.mount("/out", "bind", &out, &["bind"]);
    container.change(|c| {
        for kind in KINDS {
            let dir = if kind == "startContainer" { "/out".to_owned() } else { out.display().to_string() };
            c["hooks"][kind] = json!([hook(&format!(
                "cd {dir}; ({script}) > {kind}.new; mv {kind}.new {kind}; echo {kind} >> order"
            ))]);
        }
    });
    container
}

fn said(container: &Container, kind: &str) -> String {
    fs::read_to_string(container.file("out").join(kind)).unwrap_or_else(|e| panic!("{kind}: {e}"))
}

#[test]
fn all_six_run_in_their_order() {
    let container = recording("echo job >> /out/order", "true");
    let live = container.create();
    let order = || said(&container, "order").lines().map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(order(), KINDS[..3]);
    container.ckrun(&["start", "ID"]).ok();
    live.await_end();
    // The job starts before poststart, but may be slower or faster.
    let mut started = order();
    started.retain(|word| word != "job");
    assert_eq!(started, KINDS[..5]);
    assert!(order().iter().position(|w| w == "job").unwrap() >= 4, "after startContainer");
    container.ckrun(&["delete", "ID"]).ok();
    assert_eq!(order().last().unwrap(), "poststop");
}

#[test]
fn each_reads_the_state() {
    let container = recording("read end", "cat").with(|c| c["annotations"] = json!({"a": "b"}));
    let mut live = container.up();
    live.hang_up();
    live.await_end();
    let pid = live.pid;
    container.ckrun(&["delete", "ID"]).ok();
    for (kind, status) in
        KINDS.iter().zip(["created", "creating", "creating", "created", "running", "stopped"])
    {
        let state: Value =
            serde_json::from_str(&said(&container, kind)).unwrap_or_else(|e| panic!("{kind}: {e}"));
        assert!(state["ociVersion"].as_str().unwrap().starts_with("1."), "{kind}");
        assert_eq!(state["id"], container.id(), "{kind}");
        assert_eq!(state["bundle"], container.bundle().to_str().unwrap(), "{kind}");
        assert_eq!(state["annotations"], json!({"a": "b"}), "{kind}");
        assert_eq!(state["status"], status, "{kind}");
        assert_eq!(state["pid"], if *kind == "poststop" { 0 } else { pid }, "{kind}");
    }
}

#[test]
fn each_runs_in_its_namespaces() {
    let container = recording(
        "read end",
        "readlink /proc/self/ns/mnt /proc/self/ns/net; ls -d /work /bin/busybox 2>/dev/null",
    );
    let live = container.up();
    container.ckrun(&["kill", "ID", "KILL"]).ok();
    live.await_end();
    container.ckrun(&["delete", "ID"]).ok();
    let own = |kind: &str| fs::read_link(format!("/proc/self/ns/{kind}")).unwrap().display().to_string();
    for kind in KINDS {
        let said = said(&container, kind);
        let inside = ["createContainer", "startContainer"].contains(&kind);
        assert_eq!(said.lines().next() != Some(&own("mnt")), inside, "{kind}: {said}");
        assert_eq!(said.lines().nth(1) != Some(&own("net")), inside, "{kind}: {said}");
    }
}

#[test]
fn hooks_of_one_kind_run_one_after_the_other() {
    let container = Container::new();
    let out = container.file("out");
    let add = |word: &str| hook(&format!("echo {word} >> {}", out.display()));
    container.change(|c| c["hooks"] = json!({"createRuntime": [add("one"), add("two"), add("three")]}));
    container.run().ok();
    assert_eq!(fs::read_to_string(out).unwrap(), "one\ntwo\nthree\n");
}

#[test]
fn arguments_and_environment_are_the_hooks_own() {
    let container = Container::new();
    let out = container.file("out");
    let script = container.file("script");
    let text = format!(
        "#!/bin/sh\necho $0 \"$@\" > {0}\nenv | grep -v -E '^(PWD|_|SHLVL|OLDPWD)=' >> {0}\n",
        out.display()
    );
    install_text(&text, &script);
    container.change(|c| {
        c["hooks"]["createRuntime"] =
            json!([{"path": script, "args": ["name", "a b", "c"], "env": ["X=1", "PATH=/bin:/usr/bin"]}]);
    });
    container.run().ok();
    let said = fs::read_to_string(out).unwrap();
    let mut lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines.remove(0), format!("{} a b c", script.display()));
    lines.sort_unstable();
    assert_eq!(lines, ["PATH=/bin:/usr/bin", "X=1"]);
}

#[test]
fn one_that_fails_before_the_start_stops_everything() {
    for kind in &KINDS[..3] {
        let container = Container::new();
        let out = container.file("out");
        container.change(|c| {
            let second = hook(&format!("touch {}", out.display()));
            c["hooks"][kind] = json!([hook("echo it is broken >&2; exit 7"), second]);
        });
        for verb in ["run", "create"] {
            container
                .ckrun(&[verb, "ID"])
                .fails(1, &["hook", kind, "/bin/sh", "exit status 7", "it is broken"]);
            container.no_trace();
        }
        assert!(!out.exists(), "{kind}: the next one does not run");
        container.change(|c| c["hooks"] = json!({*kind: [{"path": "/no/such/hook"}]}));
        container.run().fails(1, &["hook", kind, "/no/such/hook", "no such file or directory"]);
    }
}

#[test]
fn a_failing_start_container_hook_fails_the_start() {
    let container =
        Container::sh("echo never").with(|c| c["hooks"]["startContainer"] = json!([hook("exit 7")]));
    container.run().fails(1, &["hook startContainer", "exit status 7"]);
    let mut live = container.create();
    container.ckrun(&["start", "ID"]).fails(1, &["hook startContainer", "exit status 7"]);
    live.await_end();
    assert_eq!(live.stdout.rest(), "");
    assert_eq!(container.status(), "stopped");
}

#[test]
fn later_ones_only_complain() {
    for kind in &KINDS[4..] {
        let container = Container::sh("exit 5").with(|c| c["hooks"][kind] = json!([hook("exit 7")]));
        let ended = container.run().exits(5);
        assert!(ended.stderr.contains(kind) && ended.stderr.contains("exit status 7"), "{ended:?}");
    }
}

#[test]
fn one_that_takes_too_long_is_killed() {
    let container = Container::new();
    let pid = container.file("pid");
    container.change(|c| {
        let mut slow = hook(&format!("echo $$ > {}; exec sleep 1000", pid.display()));
        slow["timeout"] = json!(4);
        c["hooks"]["createRuntime"] = json!([slow]);
    });
    container.run().fails(1, &["hook createRuntime", "timeout of 4 s"]);
    // On a busy host the time may be over before it has written that.
    let pid = fs::read_to_string(pid).unwrap_or_default();
    let path = std::path::Path::new("/proc").join(pid.trim());
    assert!(pid.trim().is_empty() || !path.exists(), "the hook is gone");
}

#[test]
fn one_that_reads_nothing_is_fine() {
    let container = Container::new().with(|c| {
        c["annotations"] = json!({"large": "x".repeat(200_000)});
        c["hooks"]["createRuntime"] = json!([hook("exec <&-; true")]);
    });
    container.run().ok();
}

#[test]
fn poststop_runs_after_delete_by_force_too() {
    let container = recording("read end", "cat");
    let _live = container.up();
    container.ckrun(&["delete", "--force", "ID"]).ok();
    assert!(said(&container, "poststop").contains("stopped"));
}

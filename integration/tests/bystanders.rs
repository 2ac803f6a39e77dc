//! ckrun never signals, freezes or limits a process that it did not make.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by a panic")]

use ckrun_integration::bundle::Container;
use ckrun_integration::bystander::{Bystander, OwnCgroup, everywhere};
use ckrun_integration::run::finish;
use serde_json::{Value, json};
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::Path;

fn at(path: &str) -> impl FnOnce(&mut Value) {
    move |c| c["linux"]["cgroupsPath"] = json!(path)
}

#[test]
fn the_root_cgroup_is_refused() {
    for path in ["/", "//", "/.", ".", "/..", "../..", "/a/../.."] {
        let container = Container::new().with(at(path));
        container.run().fails(1, &["linux.cgroupsPath"]);
    }
}

#[test]
fn its_own_cgroup_and_those_above_are_refused() {
    let container = Container::new();
    let names = [format!("above-{}", container.id().replace("ckrun-", "")), "inner".to_owned()];
    let above = OwnCgroup::new(&names[0]);
    let inner = OwnCgroup::new(&names.join("/"));
    let bystander = Bystander::new();
    inner.take(bystander.pid());
    let from_inside = |words: &[&str]| {
        let procs = inner.procs();
        let mut command = container.command(words);
        // SAFETY: the closure only opens, writes and closes a file, on memory that was allocated before the fork.
        unsafe { command.pre_exec(move || fs::write(&procs, "0")) };
        finish(command)
    };
    for path in [format!("/{}", names[0]), format!("/{}/", names[0]), format!("/{}", names.join("/"))] {
        container.change(at(&path));
        for words in [&["run", "ID"][..], &["create", "ID"]] {
            from_inside(words).fails(1, &["linux.cgroupsPath", &names[0], "ckrun's own cgroup or above"]);
        }
        container.ckrun(&["delete", "--force", "ID"]).ok();
    }
    // Below its own it may.
    container.change(at(&format!("/{}/{}", names.join("/"), container.id())));
    from_inside(&["run", "ID"]).ok();
    bystander.survives();
    drop((inner, above));
}

#[test]
fn a_cgroup_in_use_is_refused() {
    let container = Container::new();
    let name = format!("used-{}", container.id().replace("ckrun-", ""));
    let cgroup = OwnCgroup::new(&name);
    let bystander = Bystander::new();
    cgroup.take(bystander.pid());
    container.change(at(&format!("/{name}")));
    container.run().fails(1, &["linux.cgroupsPath", "processes in cgroup", &name]);
    container.ckrun(&["delete", "--force", "ID"]).ok();
    bystander.survives();
    drop(cgroup);
}

#[test]
fn who_joins_a_cgroup_that_was_there_before_is_not_killed() {
    for words in [&["delete", "--force", "ID"][..], &["kill", "--all", "ID", "KILL"], &["kill", "ID", "KILL"]]
    {
        let container = Container::sh("read end");
        let name = format!("before-{}", container.id().replace("ckrun-", ""));
        let cgroup = OwnCgroup::new(&name);
        container.change(at(&format!("/{name}")));
        let _live = container.up();
        let bystander = Bystander::new();
        cgroup.take(bystander.pid());
        // Where another hierarchy has a cgroup of the container's own, its processes are known from there.
        container.ckrun(words);
        container.ckrun(&["delete", "--force", "ID"]).ok();
        assert!(cgroup.path().exists(), "what was there before stays");
        bystander.survives();
        for dir in everywhere(&name) {
            assert_eq!(dir, cgroup.path());
        }
        drop(cgroup);
    }
}

fn edit_state(container: &Container, change: impl FnOnce(&mut Value)) {
    let path = container.store().join(container.id()).join("state.json");
    let mut state: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    change(&mut state);
    fs::write(&path, state.to_string()).unwrap();
}

#[test]
fn a_reused_process_id_is_not_taken_for_the_container() {
    let container = Container::sh("read end");
    let live = container.up();
    container.ckrun(&["kill", "ID", "KILL"]).ok();
    live.await_end();
    let bystander = Bystander::new();
    // The id is another's now; the start time is still that of the init.
    edit_state(&container, |state| state["init"]["pid"] = json!(bystander.pid()));
    assert_eq!(container.status(), "stopped");
    container.ckrun(&["kill", "ID", "KILL"]).fails(1, &["container not running"]);
    container.ckrun(&["kill", "--all", "ID", "KILL"]).ok();
    container.ckrun(&["exec", "ID", "true"]).fails(255, &["not running"]);
    container.ckrun(&["pause", "ID"]).fails(1, &["not running"]);
    container.ckrun(&["delete", "--force", "ID"]).ok();
    bystander.survives();
}

#[test]
fn a_process_that_is_no_container_can_not_be_claimed_by_its_id() {
    let container = Container::sh("read end");
    let _live = container.create();
    edit_state(&container, |state| state["init"] = json!({"pid": 1, "started": 1}));
    assert_eq!(container.status(), "stopped");
    container.ckrun(&["delete", "--force", "ID"]).ok();
    assert!(Path::new("/proc/1").exists());
}

#[test]
fn a_job_in_the_hosts_pid_namespace_is_all_that_dies() {
    let bystander = Bystander::new();
    let container = Container::sh("echo up; read end").with(|c| {
        c["linux"]["namespaces"].as_array_mut().unwrap().retain(|ns| ns["type"] != "pid");
    });
    let mut live = container.up();
    assert_eq!(live.stdout.line(), "up");
    container.ckrun(&["delete", "--force", "ID"]).ok();
    live.await_end();
    bystander.survives();
}

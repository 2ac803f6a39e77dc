//! ckrun run by an ordinary user.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by a panic")]

use ckrun_integration::bundle::Container;
use ckrun_integration::leftovers;
use ckrun_integration::run::{Ended, binary, finish, install, needs};
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;
use std::process::Command;

/// Nobody's id on this machine, it is hoped; nothing depends on it but that it is not root's.
const USER: u32 = 12_345;

/// A container of the user's, with a user namespace in which he is root.
fn container(script: &str) -> Container {
    let container = Container::sh(script).with(|c| {
        c["linux"]["namespaces"].as_array_mut().unwrap().push(json!({"type": "user"}));
        for map in ["uidMappings", "gidMappings"] {
            c["linux"][map] = json!([{"containerID": 0, "hostID": USER, "size": 1}]);
        }
        // No more than what an ordinary user may ask for.
        c["linux"].as_object_mut().unwrap().remove("resources");
        c["mounts"].as_array_mut().unwrap().retain(|m| m["type"] != "cgroup");
        let pts = c["mounts"].as_array_mut().unwrap().iter_mut().find(|m| m["type"] == "devpts").unwrap();
        pts["options"].as_array_mut().unwrap().retain(|o| o != "gid=5");
    });
    fs::create_dir(container.store()).unwrap();
    fs::create_dir(container.file("home")).unwrap();
    give(&container.bundle());
    give(&container.store());
    give(&container.file("home"));
    container
}

fn give(path: &Path) {
    std::os::unix::fs::lchown(path, Some(USER), Some(USER)).unwrap();
    if path.is_dir() && !path.is_symlink() {
        for entry in fs::read_dir(path).unwrap() {
            give(&entry.unwrap().path());
        }
    }
}

/// A copy of ckrun that the user can reach.
fn reachable(container: &Container) -> std::path::PathBuf {
    let path = container.file("ckrun");
    if !path.exists() {
        install(&binary(), &path);
    }
    path
}

/// ckrun, as the user.
fn user(container: &Container, words: &[&str]) -> Command {
    let inner = container.command_of(&reachable(container), words);
    let mut command = Command::new(needs("setpriv", "util-linux"));
    command.args([&format!("--reuid={USER}"), &format!("--regid={USER}"), "--clear-groups", "--"]);
    command.arg(inner.get_program()).args(inner.get_args()).current_dir(container.bundle());
    command.env_clear().env("HOME", container.file("home")).env("XDG_RUNTIME_DIR", container.file("home"));
    command
}

fn as_user(container: &Container, words: &[&str]) -> Ended {
    finish(user(container, words))
}

#[test]
fn one_id_is_enough() {
    let container = container(
        "id -u; cat /proc/self/uid_map | tr -s ' '; cat /proc/self/setgroups; hostname; echo x > /dev/null; ls /proc/1/exe",
    );
    assert_eq!(as_user(&container, &["run", "ID"]).ok(), format!("0\n 0 {USER} 1\ndeny\ntest\n/proc/1/exe"));
    container.no_trace();
}

#[test]
fn the_whole_life_of_a_container() {
    let container = container("echo up; read end; exit 3");
    let mut live = container.create_by(user(&container, &["create", "ID"]));
    let status = || {
        let state: Value = serde_json::from_str(&as_user(&container, &["state", "ID"]).ok()).unwrap();
        state["status"].as_str().unwrap().to_owned()
    };
    assert_eq!(status(), "created");
    as_user(&container, &["start", "ID"]).ok();
    assert_eq!(live.stdout.line(), "up");
    assert_eq!(status(), "running");
    assert_eq!(as_user(&container, &["exec", "ID", "sh", "-c", "id -u; hostname"]).ok(), "0\ntest");
    as_user(&container, &["exec", "ID", "sh", "-c", "exit 7"]).exits(7);
    assert_eq!(as_user(&container, &["list", "-q"]).ok(), container.id());
    live.say("end");
    live.await_end();
    assert_eq!(status(), "stopped");
    as_user(&container, &["delete", "ID"]).ok();
    container.no_trace();
}

#[test]
fn a_kill_and_a_delete_by_force() {
    let container = container("echo up; read end");
    for words in [&["kill", "ID", "KILL"][..], &["delete", "--force", "ID"]] {
        let mut live = container.create_by(user(&container, &["run", "--detach", "ID"]));
        assert_eq!(live.stdout.line(), "up");
        as_user(&container, words).ok();
        live.await_end();
        as_user(&container, &["delete", "--force", "ID"]).ok();
        container.no_trace();
    }
}

#[test]
fn the_state_is_in_the_users_runtime_directory() {
    let container = container("true");
    let mut command = Command::new(needs("setpriv", "util-linux"));
    command.args([&format!("--reuid={USER}"), &format!("--regid={USER}"), "--clear-groups", "--"]);
    command
        .arg(reachable(&container))
        .args(["run", "--keep", container.id()])
        .current_dir(container.bundle());
    command.env_clear().env("XDG_RUNTIME_DIR", container.file("home"));
    finish(command).ok();
    let place = container.file("home").join("ckrun").join(container.id());
    assert!(place.join("state.json").exists());
    assert_eq!(fs::metadata(&place).unwrap().permissions().mode() & 0o777, 0o700);
}

/// The user's subordinate ids, in a mount namespace of the command's own: the host's files stay as they are.
fn with_subordinate_ids(container: &Container, words: &[&str]) -> Ended {
    needs("newuidmap", "uidmap");
    let passwd = fs::read_to_string("/etc/passwd").unwrap();
    let user_line = format!("ckrun-tester:x:{USER}:{USER}::/:/bin/sh\n");
    for (name, text) in
        [("passwd", format!("{passwd}{user_line}")), ("subid", "ckrun-tester:500000:1000\n".into())]
    {
        fs::write(container.file(name), text).unwrap();
    }
    let script =
        "set -e; mount --make-rprivate /; mkdir -p $D/etc; cp /etc/group /etc/nsswitch.conf /etc/login.defs $D/etc
        mount --bind $D/etc /etc
        cat $D/passwd > /etc/passwd; cat $D/subid > /etc/subuid; cat $D/subid > /etc/subgid; exec \"$@\"";
    let inner = user(container, words);
    let mut command = Command::new(needs("unshare", "util-linux"));
    command.args(["--mount", "sh", "-c", script, "sh"]).arg(inner.get_program()).args(inner.get_args());
    command.env("D", container.file("")).current_dir(container.bundle());
    finish(command)
}

#[test]
fn more_ids_come_from_newuidmap() {
    let container =
        container("cat /proc/self/uid_map | tr -s ' '; id -u; id -G; touch /tmp/new; stat -c %u /tmp/new");
    container.change(|c| {
        for map in ["uidMappings", "gidMappings"] {
            c["linux"][map] = json!([
                {"containerID": 0, "hostID": USER, "size": 1},
                {"containerID": 1, "hostID": 500_000, "size": 1000},
            ]);
        }
        c["process"]["user"] = json!({"uid": 5, "gid": 6, "additionalGids": [7]});
        c["root"]["readonly"] = json!(false);
    });
    let said = with_subordinate_ids(&container, &["run", "ID"]).ok();
    assert_eq!(said, format!(" 0 {USER} 1\n 1 500000 1000\n5\n6 7\n5"));
    let new = fs::metadata(container.rootfs().join("tmp/new")).unwrap();
    assert_eq!(std::os::unix::fs::MetadataExt::uid(&new), 500_004);
    container.no_trace();
    // More than the user has.
    container.change(|c| c["linux"]["uidMappings"][1]["size"] = json!(5000));
    with_subordinate_ids(&container, &["run", "ID"]).fails(1, &["linux.uidMappings", "newuidmap"]);
    container.no_trace();
}

#[test]
fn an_id_that_is_not_ones_own_is_refused() {
    let container = container("true");
    container.change(|c| c["linux"]["uidMappings"][0]["hostID"] = json!(0));
    as_user(&container, &["run", "ID"]).fails(1, &["linux.uidMappings"]);
    container.no_trace();
}

#[test]
fn limits_need_cgroups_that_the_user_has_not() {
    for (resources, field) in [
        (json!({"memory": {"limit": 50 << 20}}), "linux.resources.memory.limit"),
        (json!({"pids": {"limit": 20}}), "linux.resources.pids.limit"),
        (json!({"cpu": {"quota": 20000}}), "linux.resources.cpu.quota"),
    ] {
        let container = container("true");
        container.change(|c| c["linux"]["resources"] = resources);
        as_user(&container, &["run", "ID"]).fails(1, &[field]);
        container.no_trace();
    }
}

#[test]
fn without_a_user_namespace_it_says_what_is_missing() {
    let container = container("true");
    container.change(|c| {
        c["linux"]["namespaces"].as_array_mut().unwrap().retain(|ns| ns["type"] != "user");
        for map in ["uidMappings", "gidMappings"] {
            c["linux"].as_object_mut().unwrap().remove(map);
        }
    });
    as_user(&container, &["run", "ID"]).fails(1, &["operation not permitted"]);
    container.no_trace();
}

#[test]
fn a_store_of_somebody_else_is_refused() {
    let container = container("true");
    chown(container.store(), Some(0), Some(0)).unwrap();
    as_user(&container, &["run", "ID"]).fails(1, &[container.store().to_str().unwrap(), "permission denied"]);
    leftovers::check(container.id(), &container.store().join(container.id()));
}

#[test]
fn the_users_copy_of_ckrun_can_not_be_written_from_inside() {
    // To the host the container's root is the user, to whom the binary belongs.
    let container = container(
        "echo up; read pid; (echo evil >> /proc/$pid/exe) 2>&1; exec 3</proc/$pid/exe; echo opened; read end; (echo evil >> /proc/self/fd/3) 2>&1; echo done",
    );
    let binary = reachable(&container);
    give(&binary);
    let before = fs::read(&binary).unwrap();
    std::os::unix::fs::symlink("/proc/self/exe", container.rootfs().join("entry")).unwrap();
    nix::unistd::mkfifo(&container.rootfs().join("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    give(&container.bundle());
    let mut live = container.create_by(user(&container, &["run", "--detach", "ID"]));
    assert_eq!(live.stdout.line(), "up");
    let pid_file = container.file("home").join("pid");
    let words = [
        "exec",
        "--detach",
        "--pid-file",
        pid_file.to_str().unwrap(),
        "ID",
        "/entry",
        "--log",
        "/fifo",
        "state",
        "x",
    ];
    as_user(&container, &words).exits(0);
    let pid = fs::read_to_string(&pid_file).unwrap();
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let inner = status
        .lines()
        .find(|l| l.starts_with("NSpid:"))
        .unwrap()
        .split_whitespace()
        .last()
        .unwrap()
        .to_owned();
    live.say(&inner);
    live.stdout.until("opened\n");
    let end = ckrun_integration::pipes::pidfd(pid.parse().unwrap());
    drop(fs::read(container.rootfs().join("fifo")));
    ckrun_integration::pipes::await_end(end);
    live.say("end");
    live.stdout.until("done\n");
    assert!(fs::read(&binary).unwrap() == before, "the binary has been written to");
}

//! A host with nothing but cgroup2, as most are now.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by a panic")]

use ckrun_integration::bundle::Container;
use serde_json::{Value, json};

#[test]
fn a_container_lives_from_birth_to_death() {
    let container = Container::new().on_cgroup2().args(&["sleep", "1000"]);
    container.ckrun(&["run", "--detach", "ID"]).ok();
    let own = container.ckrun(&["exec", "ID", "grep", "^0::", "/proc/self/cgroup"]).ok();
    assert_eq!(own, "0::/", "in the container's cgroup namespace, elsewhere would be 0::/..");
    let mounts = container.ckrun(&["exec", "ID", "grep", " /sys/fs/cgroup ", "/proc/mounts"]).ok();
    assert!(mounts.starts_with("cgroup2 /sys/fs/cgroup cgroup2 ro"), "{mounts}");

    let status = || -> Value { serde_json::from_str(&container.ckrun(&["state", "ID"]).ok()).unwrap() };
    container.ckrun(&["pause", "ID"]).ok();
    assert_eq!(status()["status"], "paused");
    container.ckrun(&["resume", "ID"]).ok();
    assert_eq!(status()["status"], "running");

    let pids: Vec<i32> =
        serde_json::from_str(&container.ckrun(&["ps", "--format", "json", "ID"]).ok()).unwrap();
    assert_eq!(pids, [i32::try_from(status()["pid"].as_i64().unwrap()).unwrap()]);
    container.ckrun(&["kill", "--all", "ID", "KILL"]).ok();
    container.ckrun(&["delete", "ID"]).ok();
    container.no_trace();
}

#[test]
fn devices_are_guarded_by_a_program() {
    // 1:11 is /dev/kmsg, which the default rules do not allow; 1:3 is /dev/null, which they do.
    let script =
        "cat /dev/kmsg 2>&1 >/dev/null | head -n 1; mknod /dev/mine c 1 11 && head -c 0 /dev/mine; echo $?";
    let container = Container::sh(script).on_cgroup2().with(|c| {
        c["linux"]["devices"] = json!([{"path": "/dev/kmsg", "type": "c", "major": 1, "minor": 11}]);
        for set in ["bounding", "effective", "permitted"] {
            let set = c["process"]["capabilities"][set].as_array_mut().unwrap();
            set.extend(["CAP_MKNOD".into(), "CAP_SYSLOG".into()]);
        }
    });
    let denied = container.ckrun(&["run", "ID"]).exits(0);
    assert_eq!(denied.stdout, "cat: can't open '/dev/kmsg': Operation not permitted\n1\n");
    let rule = json!([{"allow": true, "type": "c", "major": 1, "minor": 11, "access": "r"}]);
    container.change(|c| c["linux"]["resources"] = json!({ "devices": rule }));
    container.change(|c| c["process"]["args"][2] = "head -c 0 /dev/kmsg && echo open".into());
    assert_eq!(container.ckrun(&["run", "ID"]).ok(), "open");
    container.no_trace();
}

#[test]
fn a_limit_without_its_controller_is_refused() {
    let container =
        Container::new().with(|c| c["linux"]["resources"] = json!({"memory": {"limit": 64 << 20}}));
    let ended = container.ckrun(&["run", "ID"]);
    // Where the memory controller belongs to cgroup2, the limit is simply set.
    if ended.code != 0 {
        ended.fails(1, &["linux.resources.memory.limit"]);
    }
    container.no_trace();
}

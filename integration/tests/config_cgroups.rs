//! What config.json says of resources and cgroups is in the cgroup files and has its effect.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by a panic")]

use ckrun_integration::bundle::{Container, Live};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;

fn limited(resources: &Value) -> (Container, Live) {
    let container = Container::sh("echo up; read end").with(|c| {
        for (name, value) in resources.as_object().unwrap() {
            c["linux"]["resources"][name] = value.clone();
        }
    });
    let mut live = container.up();
    assert_eq!(live.stdout.line(), "up");
    (container, live)
}

/// v2's weight for v1's shares and weights depends on the kernel's version, so only the side that there is is checked.
fn one_of(found: &str, wanted: &[&str]) {
    assert!(wanted.contains(&found), "{found:?} is none of {wanted:?}");
}

#[test]
fn memory_is_limited() {
    let (container, _live) = limited(&json!({"memory": {"limit": 50 << 20, "reservation": 20 << 20}}));
    assert_eq!(container.cgroup_file(&["memory.limit_in_bytes", "memory.max"]), (50 << 20).to_string());
    assert_eq!(container.cgroup_file(&["memory.soft_limit_in_bytes", "memory.low"]), (20 << 20).to_string());
    // And who takes more is killed.
    let hungry = Container::sh("sh -c 'x=x; while :; do x=$x$x; done'; echo $?; true").with(|c| {
        c["linux"]["resources"]["memory"] = json!({"limit": 20 << 20});
    });
    let ended = hungry.run();
    assert!(ended.stdout == "137\n" || ended.code == 137, "{ended:?}");
}

#[test]
fn memory_limits_may_be_infinite_and_zero_is_no_wish() {
    let (container, _live) = limited(&json!({"memory": {"limit": -1}}));
    let unlimited = container.cgroup_file(&["memory.limit_in_bytes", "memory.max"]);
    assert!(unlimited == "max" || unlimited.parse::<u64>().unwrap() > 1 << 60, "{unlimited}");
    let (container, _live) =
        limited(&json!({"memory": {"limit": 0}, "pids": {"limit": 0}, "cpu": {"shares": 0, "quota": 0}}));
    let unlimited = container.cgroup_file(&["memory.limit_in_bytes", "memory.max"]);
    assert!(unlimited == "max" || unlimited.parse::<u64>().unwrap() > 1 << 60, "{unlimited}");
}

#[test]
fn the_number_of_processes_is_limited() {
    let (container, _live) = limited(&json!({"pids": {"limit": 13}}));
    assert_eq!(container.cgroup_file(&["pids.max"]), "13");
    let forking = Container::sh("for i in 1 2 3 4 5 6 7 8; do sleep 1000 & done; echo never").with(|c| {
        c["linux"]["resources"]["pids"] = json!({"limit": 4});
    });
    let ended = forking.run();
    assert!(ended.stderr.contains("can't fork") && !ended.stdout.contains("never"), "{ended:?}");
}

#[test]
fn the_processor_is_limited() {
    let (container, _live) =
        limited(&json!({"cpu": {"shares": 512, "quota": 30000, "period": 60000, "cpus": "0", "mems": "0"}}));
    one_of(&container.cgroup_file(&["cpu.cfs_quota_us", "cpu.max"]), &["30000", "30000 60000"]);
    one_of(&container.cgroup_file(&["cpu.cfs_period_us", "cpu.max"]), &["60000", "30000 60000"]);
    one_of(&container.cgroup_file(&["cpu.shares", "cpu.weight"]), &["512", "20", "59"]);
    assert_eq!(container.cgroup_file(&["cpuset.cpus"]), "0");
    assert_eq!(
        container.ckrun(&["exec", "ID", "grep", "Cpus_allowed_list", "/proc/self/status"]).ok(),
        "Cpus_allowed_list:\t0"
    );
}

#[test]
fn what_no_controller_can_do_is_refused() {
    let refused = |resources: Value, words: &[&str]| {
        let container = Container::new().with(|c| {
            for (name, value) in resources.as_object().unwrap() {
                c["linux"]["resources"][name] = value.clone();
            }
        });
        container.run().fails(1, words);
    };
    refused(
        json!({"hugepageLimits": [{"pageSize": "3MB", "limit": 1}]}),
        &["linux.resources.hugepageLimits"],
    );
    refused(json!({"rdma": {"no_such_device": {"hcaHandles": 3}}}), &["linux.resources.rdma"]);
    refused(json!({"unified": {"no.such.file": "1"}}), &["linux.resources.unified", "no.such.file"]);
    refused(json!({"unified": {"../../cgroup.procs": "1"}}), &["linux.resources.unified"]);
}

#[test]
fn devices_are_denied_but_for_the_rules() {
    // FIFOs and /dev/null for everybody; the mem device (1:1) and what the rules do not name for nobody.
    let script = "for d in null zero mem mine; do (head -c 1 /dev/$d) >/dev/null 2>&1 && echo $d yes || echo $d no; done
        (mknod /dev/made c 1 1) 2>/dev/null && echo made || echo not made";
    let container = Container::sh(script).with(|c| {
        c["linux"]["devices"] = json!([
            {"path": "/dev/mem", "type": "c", "major": 1, "minor": 1, "fileMode": 0o666},
            {"path": "/dev/mine", "type": "c", "major": 1, "minor": 2, "fileMode": 0o666},
        ]);
        for set in ["bounding", "effective", "permitted"] {
            c["process"]["capabilities"][set] = json!(["CAP_MKNOD", "CAP_SYS_RAWIO", "CAP_DAC_OVERRIDE"]);
        }
    });
    // 1:1 can't be read past the first megabyte or at all on some kernels; 1:2 (kmem) does not even exist on new ones. That
    // the cgroup denies it shows in the errno.
    let errno = |name: &str, c: &Container| {
        c.change(|c| {
            c["process"]["args"] = json!(["sh", "-c", format!("cat /dev/{name} 2>&1 | head -c 200; true")])
        });
        c.run().stdout
    };
    let said = container.run().ok();
    assert_eq!(said, "null yes\nzero yes\nmem no\nmine no\nmade");
    assert!(errno("mine", &container).contains("Operation not permitted"));
    container.change(|c| {
        c["linux"]["resources"]["devices"] = json!([
            {"allow": false, "access": "rwm"},
            {"allow": true, "type": "c", "major": 1, "minor": 2, "access": "r"},
        ]);
    });
    assert!(!errno("mine", &container).contains("Operation not permitted"), "allowed, it is only not there");
}

#[test]
fn update_changes_the_devices() {
    let (container, _live) = limited(&json!({}));
    let zero = || container.ckrun(&["exec", "ID", "head", "-c", "1", "/dev/full"]).code;
    assert_eq!(zero(), 0);
    let file = container.file("resources");
    fs::write(&file, json!({"devices": [{"allow": false, "access": "rwm"}]}).to_string()).unwrap();
    container.ckrun(&["update", "-r", file.to_str().unwrap(), "ID"]).ok();
    assert_eq!(zero(), 1);
}

#[test]
fn the_cgroup_is_where_it_is_asked_for() {
    let container = Container::sh("echo up; read end");
    let name = format!("parent-{0}/{0}", container.id());
    container.change(|c| c["linux"]["cgroupsPath"] = json!(format!("/{name}")));
    let mut live = container.up();
    assert_eq!(live.stdout.line(), "up");
    let member = fs::read_to_string(format!("/proc/{}/cgroup", live.pid)).unwrap();
    for line in member.lines() {
        let place = line.rsplit(':').next().unwrap();
        assert!(place == format!("/{name}"), "{line}");
    }
    for dir in container.cgroups() {
        assert!(dir.ends_with(&name), "{dir:?}");
        assert!(
            fs::read_to_string(dir.join("cgroup.procs")).unwrap().lines().any(|l| l == live.pid.to_string())
        );
    }
    let parents: Vec<_> = container.cgroups().iter().map(|dir| dir.parent().unwrap().to_owned()).collect();
    container.ckrun(&["delete", "--force", "ID"]).ok();
    // The parent is not the container's alone: other containers may be below it by now.
    for parent in parents {
        assert!(!parent.join(container.id()).exists());
        let _ = fs::remove_dir(parent);
    }
}

#[test]
fn without_a_manager_the_container_stays_with_its_caller() {
    let container = Container::sh("cat /proc/self/cgroup").with(|c| {
        c["linux"]["namespaces"].as_array_mut().unwrap().retain(|ns| ns["type"] != "cgroup");
        c["mounts"].as_array_mut().unwrap().retain(|m| m["type"] != "cgroup");
    });
    let ended = container.ckrun(&["--cgroup-manager", "disabled", "run", "ID"]);
    assert_eq!(ended.ok(), fs::read_to_string("/proc/self/cgroup").unwrap().trim_end());
}

/// The files of a controller, as the container sees them below /sys/fs/cgroup: v1's and v2's place.
const LOOK: &str = "for f in /sys/fs/cgroup/pids/pids.max /sys/fs/cgroup/pids.max; do [ -e $f ] && cat $f; done; cat /proc/self/cgroup | cut -d: -f3 | sort -u";

#[test]
fn the_container_sees_its_own_cgroup() {
    for namespaced in [true, false] {
        let container = Container::sh(&format!(
            "{LOOK}; (echo 5 > /sys/fs/cgroup/pids/pids.max || echo 5 > /sys/fs/cgroup/pids.max) 2>&1"
        ))
        .with(|c| {
            c["linux"]["resources"]["pids"] = json!({"limit": 17});
            if !namespaced {
                c["linux"]["namespaces"].as_array_mut().unwrap().retain(|ns| ns["type"] != "cgroup");
            }
        });
        let ended = container.run();
        let mut lines = ended.stdout.lines();
        assert_eq!(lines.next(), Some("17"), "{namespaced}: {ended:?}");
        if namespaced {
            assert_eq!(lines.next(), Some("/"), "{ended:?}");
        } else {
            assert!(lines.next().unwrap().contains(container.id()), "{ended:?}");
        }
        assert!(ended.stdout.contains("Read-only file system"), "{ended:?}");
    }
}

#[test]
fn a_writable_cgroup_mount_can_be_written() {
    let container = Container::sh(&format!(
        "{LOOK}; (mkdir /sys/fs/cgroup/pids/sub || mkdir /sys/fs/cgroup/sub) 2>/dev/null && echo made"
    ))
    .with(|c| {
        c["linux"]["resources"]["pids"] = json!({"limit": 17});
        let mount = c["mounts"].as_array_mut().unwrap().iter_mut().find(|m| m["type"] == "cgroup").unwrap();
        mount["options"] = json!(["nosuid", "noexec", "nodev", "rw"]);
    });
    // What it makes below its own is removed with it.
    assert!(container.run().ok().ends_with("made"));
}

#[test]
fn whatever_the_job_makes_in_its_cgroup_goes_too() {
    let script = "cd /sys/fs/cgroup/freezer 2>/dev/null || cd /sys/fs/cgroup; mkdir -p a/b c && sh -c 'echo 0 > a/b/cgroup.procs; echo in; exec sleep 1000' & read end";
    let container = Container::sh(script).with(|c| {
        c["linux"]["namespaces"].as_array_mut().unwrap().retain(|ns| ns["type"] != "pid");
        let mount = c["mounts"].as_array_mut().unwrap().iter_mut().find(|m| m["type"] == "cgroup").unwrap();
        mount["options"] = json!(["rw"]);
    });
    let mut live = container.up();
    assert_eq!(live.stdout.line(), "in");
    container.ckrun(&["delete", "--force", "ID"]).ok();
    live.await_end();
    container.no_trace();
}

#[test]
fn unified_files_are_written_as_they_are() {
    let Some(mount) = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"]
        .iter()
        .find(|m| Path::new(m).join("cgroup.controllers").exists())
    else {
        panic!("this kernel has no cgroup2 mounted: the test needs one");
    };
    let (container, _live) = limited(&json!({"unified": {"cgroup.max.depth": "3"}}));
    let dir = container
        .cgroups()
        .into_iter()
        .find(|dir| dir.starts_with(mount) && dir.join("cgroup.max.depth").exists());
    assert_eq!(fs::read_to_string(dir.unwrap().join("cgroup.max.depth")).unwrap(), "3\n");
}

//! What config.json says of namespaces has its effect inside.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by a panic")]

use ckrun_integration::bundle::Container;
use ckrun_integration::run::{Running, needs, start};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use std::process::Command;

fn namespaces(config: &mut Value) -> &mut Vec<Value> {
    config["linux"]["namespaces"].as_array_mut().unwrap()
}

fn without(config: &mut Value, kind: &str) {
    namespaces(config).retain(|ns| ns["type"] != kind);
}

fn joining(config: &mut Value, kind: &str, path: &Path) {
    without(config, kind);
    namespaces(config).push(json!({"type": kind, "path": path}));
}

fn own(file: &str) -> String {
    fs::read_link(format!("/proc/self/ns/{file}")).unwrap().display().to_string()
}

/// The kinds of config.json and the names in /proc/PID/ns.
const KINDS: [(&str, &str); 6] = [
    ("pid", "pid"),
    ("network", "net"),
    ("ipc", "ipc"),
    ("uts", "uts"),
    ("mount", "mnt"),
    ("cgroup", "cgroup"),
];

/// A process in new namespaces of all kinds, with a time namespace whose clocks are set apart.
fn holder(options: &[&str]) -> Running {
    let mut command = Command::new(needs("unshare", "util-linux"));
    command.args(options).args(["--fork", "sh", "-c", "echo up; read end"]);
    let mut running = start(command);
    assert_eq!(running.stdout.line(), "up");
    running
}

/// The process in the namespaces: the child of unshare.
fn child_of(running: &Running) -> String {
    let pid = running.pid();
    fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap().trim().to_owned()
}

#[test]
fn they_are_new_or_the_hosts() {
    for (kind, file) in KINDS {
        let script = format!("readlink /proc/self/ns/{file}");
        let told = Container::sh(&script).run().ok();
        assert!(told.starts_with(file) && told != own(file), "{kind}: {told}");
        if kind == "mount" {
            continue;
        }
        let container = Container::sh(&script).with(|c| {
            without(c, kind);
            if kind == "uts" {
                c.as_object_mut().unwrap().remove("hostname");
            }
            if kind == "network" {
                // Without a network namespace of its own the kernel lets nobody mount its sysfs.
                c["mounts"].as_array_mut().unwrap().retain(|m| m["type"] != "sysfs");
            }
        });
        assert_eq!(container.run().ok(), own(file), "{kind}");
    }
}

#[test]
fn others_can_be_joined() {
    let other = holder(&["--pid", "--net", "--ipc", "--uts", "--cgroup"]);
    let pid = child_of(&other);
    for (kind, file) in KINDS.iter().filter(|(kind, _)| *kind != "mount") {
        let path = format!("/proc/{pid}/ns/{file}");
        let theirs = fs::read_link(&path).unwrap().display().to_string();
        let container = Container::sh(&format!("readlink /proc/self/ns/{file}"));
        container.change(|c| {
            joining(c, kind, Path::new(&path));
            if *kind == "uts" {
                c.as_object_mut().unwrap().remove("hostname");
            }
        });
        assert_eq!(container.run().ok(), theirs, "{kind}");
        // And an exec goes to the same.
        container.change(|c| c["process"]["args"] = json!(["sh", "-c", "echo up; read end"]));
        let mut live = container.up();
        assert_eq!(live.stdout.line(), "up");
        assert_eq!(
            container.ckrun(&["exec", "ID", "readlink", &format!("/proc/self/ns/{file}")]).ok(),
            theirs
        );
        live.say("end");
        live.await_end();
    }
    let mut other = other;
    other.say("end");
    other.wait();
}

#[test]
fn a_container_can_share_those_of_another() {
    let first = Container::sh("hostname first; echo up; read end").with(|c| {
        c["process"]["capabilities"]["bounding"] = json!(["CAP_SYS_ADMIN"]);
        c["process"]["capabilities"]["effective"] = json!(["CAP_SYS_ADMIN"]);
        c["process"]["capabilities"]["permitted"] = json!(["CAP_SYS_ADMIN"]);
    });
    let mut live = first.up();
    assert_eq!(live.stdout.line(), "up");
    let second = Container::sh("hostname; ps | grep -c 'read end'; echo $$").with(|c| {
        c.as_object_mut().unwrap().remove("hostname");
        for (kind, file) in [("pid", "pid"), ("uts", "uts"), ("ipc", "ipc"), ("network", "net")] {
            joining(c, kind, Path::new(&format!("/proc/{}/ns/{file}", live.pid)));
        }
    });
    let said = second.run().ok();
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines[0], "first");
    assert_ne!(lines[1], "0", "it sees the first one's processes");
    assert_ne!(lines[2], "1", "and is not the init of their namespace");
}

#[test]
fn the_mount_namespace_of_another_has_its_mounts() {
    let first = Container::sh("echo of the first > /mark/file; echo up; read end").mount(
        "/mark",
        "tmpfs",
        "tmpfs",
        &[],
    );
    let mut live = first.up();
    assert_eq!(live.stdout.line(), "up");
    let path = format!("/proc/{}/ns/mnt", live.pid);
    let second = Container::sh("cat /mark/file").with(|c| {
        joining(c, "mount", Path::new(&path));
        c["root"] = json!({"path": "/"});
        c["mounts"] = json!([]);
        c["linux"]["maskedPaths"] = json!([]);
        c["linux"]["readonlyPaths"] = json!([]);
        without(c, "pid");
    });
    assert_eq!(second.run().ok(), "of the first");
}

#[test]
fn names_of_the_host() {
    let container = Container::sh("hostname; cat /proc/sys/kernel/domainname").with(|c| {
        c["hostname"] = json!("a-name");
        c["domainname"] = json!("a-domain");
    });
    assert_eq!(container.run().ok(), "a-name\na-domain");
    let long = Container::new().with(|c| c["hostname"] = json!("x".repeat(65)));
    long.run().fails(1, &["hostname: invalid argument"]);
}

#[test]
fn sysctls_are_set_where_they_are_namespaced() {
    let container = Container::sh(
        "cat /proc/sys/net/ipv4/ip_forward /proc/sys/kernel/shmmni /proc/sys/net/ipv4/ping_group_range",
    );
    container.change(|c| {
        c["linux"]["sysctl"] =
            json!({"net.ipv4.ip_forward": "1", "kernel.shmmni": "123", "net/ipv4/ping_group_range": "0 0"});
    });
    assert_eq!(container.run().ok(), "1\n123\n0\t0");
    for (without_kind, name) in [("network", "net.ipv4.ip_forward"), ("ipc", "kernel.shmmni")] {
        let container = Container::new().with(|c| {
            without(c, without_kind);
            c["linux"]["sysctl"] = json!({name: "1"});
        });
        container.run().fails(1, &["linux.sysctl", name]);
    }
}

#[test]
fn the_loopback_is_up() {
    let said = Container::sh("ip link show lo; ls /sys/class/net").run().ok();
    assert!(said.contains("UP") && said.ends_with("lo"), "{said}");
}

#[test]
fn a_user_namespace_maps_ids() {
    let map = |inside: u32, outside: u32, size: u32| json!({"containerID": inside, "hostID": outside, "size": size});
    let container = Container::sh(
        "cat /proc/self/uid_map /proc/self/gid_map | tr -s ' '; id -u; touch /new; stat -c %u /new; cat /proc/self/setgroups; id -G",
    );
    container.change(|c| {
        namespaces(c).push(json!({"type": "user"}));
        c["linux"]["uidMappings"] = json!([map(0, 100_000, 1000), map(1000, 200_000, 10)]);
        c["linux"]["gidMappings"] = json!([map(0, 300_000, 65536)]);
        c["process"]["user"] = json!({"uid": 1003, "gid": 5, "additionalGids": [6]});
        c["root"]["readonly"] = json!(false);
    });
    fs::set_permissions(container.rootfs(), std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    let wanted = " 0 100000 1000\n 1000 200000 10\n 0 300000 65536\n1003\n1003\nallow\n5 6";
    assert_eq!(container.run().ok(), wanted);
    let new = fs::metadata(container.rootfs().join("new")).unwrap();
    use std::os::unix::fs::MetadataExt;
    assert_eq!((new.uid(), new.gid()), (200_003, 300_005));
    container.change(|c| c["process"]["user"] = json!({"uid": 5000, "gid": 0}));
    container.run().fails(1, &["process.user.uid", "5000", "linux.uidMappings"]);
}

#[test]
fn in_a_user_namespace_everything_else_works_too() {
    let container = Container::sh(
        "cat /m/file; echo x > /dev/null; ls /dev/pts; mount | grep -c cgroup; hostname; echo up; read end",
    );
    let source = container.file("source");
    fs::create_dir(&source).unwrap();
    // Only the image's owner could make it.
    fs::create_dir(container.rootfs().join("m")).unwrap();
    fs::write(source.join("file"), "content").unwrap();
    // Root in there could not reach it by itself.
    fs::set_permissions(&source, std::os::unix::fs::PermissionsExt::from_mode(0o711)).unwrap();
    let container = container.mount("/m", "bind", &source, &["rbind", "ro"]).with(|c| {
        namespaces(c).push(json!({"type": "user"}));
        for map in ["uidMappings", "gidMappings"] {
            c["linux"][map] = json!([{"containerID": 0, "hostID": 100_000, "size": 65536}]);
        }
    });
    let mut live = container.up();
    assert_eq!(live.stdout.line(), "contentptmx");
    assert_ne!(live.stdout.line(), "0");
    assert_eq!(live.stdout.line(), "test");
    assert_eq!(live.stdout.line(), "up");
    assert_eq!(
        container
            .ckrun(&["exec", "--user", "7", "ID", "sh", "-c", "id -u; cat /proc/self/uid_map | tr -s ' '"])
            .ok(),
        "7\n 0 100000 65536"
    );
    container.ckrun(&["pause", "ID"]).ok();
    container.ckrun(&["resume", "ID"]).ok();
}

#[test]
fn a_user_namespace_can_be_joined() {
    let map = "0 100000 65536";
    let mut other = holder(&["--user"]);
    let pid = child_of(&other);
    fs::write(format!("/proc/{pid}/uid_map"), map).unwrap();
    fs::write(format!("/proc/{pid}/gid_map"), map).unwrap();
    let container = Container::sh("readlink /proc/self/ns/user; cat /proc/self/uid_map | tr -s ' '");
    let path = format!("/proc/{pid}/ns/user");
    let theirs = fs::read_link(&path).unwrap().display().to_string();
    container.change(|c| joining(c, "user", Path::new(&path)));
    assert_eq!(container.run().ok(), format!("{theirs}\n 0 100000 65536"));
    other.say("end");
    other.wait();
}

#[test]
fn a_time_namespace_has_its_own_clocks() {
    let container = Container::sh("cut -d. -f1 /proc/uptime; cat /proc/self/timens_offsets").with(|c| {
        namespaces(c).push(json!({"type": "time"}));
        c["linux"]["timeOffsets"] =
            json!({"monotonic": {"secs": 1_000_000, "nanosecs": 5}, "boottime": {"secs": 2_000_000}});
    });
    let said = container.run().ok();
    let mut lines = said.lines();
    let uptime: u64 = lines.next().unwrap().parse().unwrap();
    assert!(uptime >= 2_000_000, "{said}");
    let fields: Vec<Vec<&str>> = lines.map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(fields, [["monotonic", "1000000", "5"], ["boottime", "2000000", "0"]]);
    container.change(|c| c["process"]["args"] = json!(["sh", "-c", "echo up; read end"]));
    let mut live = container.up();
    assert_eq!(live.stdout.line(), "up");
    let uptime = container.ckrun(&["exec", "ID", "sh", "-c", "cut -d. -f1 /proc/uptime"]).ok();
    assert!(uptime.parse::<u64>().unwrap() >= 2_000_000, "{uptime}");
}

#[test]
fn without_a_mount_namespace_there_is_only_another_root() {
    let container = Container::sh("echo $(ls /); readlink /bin/sh").with(|c| {
        c["linux"] = json!({"namespaces": [{"type": "pid"}]});
        c.as_object_mut().unwrap().remove("hostname");
        c["mounts"] = json!([]);
        c["root"]["readonly"] = json!(false);
    });
    assert_eq!(container.run().ok(), "bin dev etc proc root sys tmp\nbusybox");
}

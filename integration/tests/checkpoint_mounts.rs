//! Mounts that a job has made, changed or taken away: a restart makes the sandbox's, and then the job's changes.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by a panic")]

use ckrun_integration::bundle::Container;
use ckrun_integration::job::{path, quietly};
use ckrun_integration::pipes::{await_end, pidfd};
use ckrun_integration::run::Ended;
use serde_json::json;
use std::path::Path;

/// A container that sleeps, and whose root may be written to.
fn sleeper() -> Container {
    let container = Container::new().args(&["sleep", "100000"]);
    container.change(|c| {
        c["root"]["readonly"] = json!(false);
        for set in ["bounding", "permitted", "effective"] {
            c["process"]["capabilities"][set].as_array_mut().unwrap().push(json!("CAP_SYS_ADMIN"));
        }
    });
    let container = container.mount("/scratch", "tmpfs", "tmpfs", &["size=1m"]);
    quietly(&container, &["run", "--detach", "ID"]).ok();
    container
}

/// Runs a script in it, which may mount.
fn sh(container: &Container, script: &str) -> Ended {
    container.ckrun(&["exec", "--cap", "CAP_SYS_ADMIN", "ID", "sh", "-ec", script])
}

/// Everything that does not change from one mount namespace to the next: what is where, with which options, and which
/// mounts are peers of each other.
fn mounts(container: &Container) -> Vec<String> {
    let text = sh(container, "cat /proc/self/mountinfo").ok();
    let mut groups = Vec::new();
    let mut line = |line: &str| {
        let (mount, fs) = line.split_once(" - ").unwrap();
        let words: Vec<&str> = mount.split(' ').collect();
        let group = words.iter().find_map(|word| word.strip_prefix("shared:")).map(|group| {
            groups.iter().position(|known| known == group).unwrap_or_else(|| {
                groups.push(group.to_owned());
                groups.len() - 1
            })
        });
        format!("{} {} {} {group:?} {fs}", words[4], words[3], words[5])
    };
    text.lines().map(&mut line).collect()
}

fn move_to(container: &Container, image: &Path) {
    let end = pidfd(container.pid());
    container.ckrun(&["checkpoint", "--image-path", path(image), "ID"]).ok();
    await_end(end);
    container.no_trace();
    container.ckrun(&["restore", "--dry-run", "--image-path", path(image), "ID"]).ok();
    quietly(container, &["restore", "--detach", "--image-path", path(image), "ID"]).ok();
}

/// After two moves everything is as `script` has made it, and `look` says the same.
fn survives(script: &str, look: &str) {
    let container = sleeper();
    let untouched = mounts(&container);
    sh(&container, script).ok();
    let (before, said) = (mounts(&container), sh(&container, look).ok());
    assert_ne!(before, untouched, "the script has changed nothing");
    for name in ["first", "second"] {
        move_to(&container, &container.file(name));
        assert_eq!(mounts(&container), before, "{name}");
        assert_eq!(sh(&container, look).ok(), said, "{name}");
    }
    container.ckrun(&["delete", "--force", "ID"]).ok();
    container.no_trace();
}

#[test]
fn a_file_system_in_memory_comes_back_with_its_content_and_its_limits() {
    survives(
        "mkdir -p /a; mount -t tmpfs -o size=640k,mode=750,noexec mine /a; echo precious > /a/file; mkdir /a/deep
        mount -t tmpfs -o ro deeper /a/deep",
        "cat /a/file; stat -c %a /a; ! touch /a/deep/x 2>/dev/null; df -k /a | tail -n 1 | awk '{print $2}'",
    );
}

#[test]
fn what_a_mount_hides_is_there_when_it_goes() {
    survives(
        "mkdir /scratch/under; echo hidden > /scratch/under/file; mount -t tmpfs over /scratch/under; echo seen > /scratch/under/x",
        "cat /scratch/under/*; umount /scratch/under; cat /scratch/under/*; mount -t tmpfs over /scratch/under
        echo seen > /scratch/under/x",
    );
}

#[test]
fn what_was_unmounted_one_below_the_other_stays_so() {
    survives("umount /dev/pts /dev/shm /dev/mqueue; umount -l /sys", "ls /sys /dev/shm");
}

#[test]
fn what_is_bound_elsewhere_is_bound_again() {
    survives(
        "mkdir -p /here/sub /there /root2; echo one > /here/sub/file; touch /there/file
        mount --bind /here/sub /there; mount --bind /here/sub/file /there/file; mount --bind / /root2
        echo two > /scratch/two; mkdir /scratch/dir /scratch/at; mount --bind /scratch/dir /scratch/at
        echo three > /scratch/dir/three",
        "cat /there/file /scratch/two /scratch/at/three; ls /root2 | sort",
    );
}

#[test]
fn read_only_mounts_stay_read_only() {
    survives(
        "mkdir -p /d; mount --bind /d /d; mount -o remount,bind,ro /d; mount -o remount,bind,ro /scratch
        mount -o remount,bind,ro /",
        "! touch /d/x 2>/dev/null; ! touch /scratch/x 2>/dev/null; ! touch /x 2>/dev/null; echo read-only",
    );
}

#[test]
fn what_is_unmounted_stays_so() {
    survives("umount /scratch; umount /dev/mqueue", "! grep ' /scratch ' /proc/mounts; ls /scratch");
}

#[test]
fn file_systems_of_the_kernel_are_mounted_again() {
    survives(
        "mkdir -p /p /q; mount -t proc -o hidepid=1 proc /p; mount -t mqueue mqueue /q",
        "cat /p/1/comm; grep ' /p ' /proc/mounts",
    );
}

#[test]
fn peers_are_peers_again() {
    let look =
        "mkdir -p /one/dir; mount -t tmpfs x /one/dir; grep -c ' /[a-z]*/dir ' /proc/mounts; umount /one/dir";
    survives(
        "mkdir -p /one /two; mount --bind /one /one; mount --make-shared /one; mount --bind /one /two
        mkdir -p /three; mount --bind /three /three; mount --make-shared /three",
        look,
    );
}

#[test]
fn who_only_receives_goes_on_to_receive() {
    survives(
        "mkdir -p /one/dir /two /three /four; mount --bind /one /one; mount --make-shared /one; mount --bind /one /two
        mount --make-slave /two; mount --bind /two /three; mount --make-shared /two; mount --bind /one/dir /four; mkdir -p /five/in; mount -t tmpfs five /five; mkdir /five/in; mount -t tmpfs in /five/in; mount --make-unbindable /five",
        "mkdir -p /one/dir/in; mount -t tmpfs one /one/dir/in; mount -t tmpfs two /two/dir; grep -c '^one' /proc/mounts
        grep -c '^two' /proc/mounts; umount /two/dir /one/dir/in; grep -c '^one\\|^two' /proc/mounts || true",
    );
}

#[test]
fn what_was_deleted_stays_mounted() {
    survives(
        "mkdir -p /gone/deep /scratch/gone /at /there; touch /file /scratch/at; echo content > /scratch/file
        chmod 751 /gone/deep; mount --bind /gone/deep /at; rmdir /gone/deep; mount --bind /scratch/gone /there; rmdir /scratch/gone
        mount --bind /scratch/file /scratch/at; mount --bind /scratch/file /file; rm /scratch/file",
        "stat -c %a /at; ! touch /at/x 2>/dev/null; ls /scratch /at /there; cat /file; : > /scratch/at; wc -c /file; echo content > /scratch/at; cat /file",
    );
}

#[test]
fn whatever_is_hidden_comes_back() {
    survives(
        "mkdir -p /a/b; mount -t tmpfs one /a/b; echo 1 > /a/b/1; mount -t tmpfs two /a/b; mkdir /a/b/c; echo 2 > /a/b/2
        mount -t tmpfs three /a/b/c; echo 3 > /a/b/c/3; mount -t tmpfs four /a; echo 4 > /a/4; mkdir /a/b
        mount -t tmpfs five /a/b; echo 5 > /a/b/5; echo scratch > /scratch/0; mount -t tmpfs over /scratch",
        "unshare -m sh -c 'cat /a/b/*; umount /a/b; cat /a/*; umount /a; cat /a/b/c/*; umount /a/b/c; cat /a/b/*
        umount /a/b; cat /a/b/*; umount /a/b; ls /a/b; umount /scratch; cat /scratch/*' 2>&1",
    );
}

#[test]
fn a_first_process_with_another_root_is_named() {
    let script = "mkdir /new; mount -t tmpfs new /new; cp -a /bin /new; mkdir /new/old; cd /new
        busybox pivot_root . old; /bin/busybox umount -l /old; exec /bin/busybox sleep 100000";
    let container = Container::new().args(&["sh", "-ec", script]);
    container.change(|c| {
        c["root"]["readonly"] = json!(false);
        for set in ["bounding", "permitted", "effective"] {
            c["process"]["capabilities"][set].as_array_mut().unwrap().push(json!("CAP_SYS_ADMIN"));
        }
    });
    quietly(&container, &["run", "--detach", "ID"]).ok();
    let mountinfo = format!("/proc/{}/mountinfo", container.pid());
    let alone = |list: String| list.lines().count() == 1 && list.contains(" / / rw,relatime - tmpfs new");
    while !alone(std::fs::read_to_string(&mountinfo).unwrap()) {
        std::thread::yield_now();
    }
    let image = container.file("image");
    container.ckrun(&["checkpoint", "--image-path", path(&image), "ID"]).fails(1, &["mount /", "its root"]);
    assert_eq!(container.status(), "running");
}

#[test]
fn what_can_not_be_mounted_again_is_named_and_the_job_goes_on() {
    for (script, point, why) in [
        ("mkdir /t; mount -t ramfs r /t", "mount /t", "can't be made again"),
        (
            "mkdir /t /u; mount -t tmpfs t /t; mkdir /t/d; mount --bind /t/d /u; umount /t",
            "mount /u",
            "a part of what is mounted nowhere",
        ),
    ] {
        let container = sleeper();
        sh(&container, script).ok();
        let image = container.file("image");
        let refused = ["checkpoint", "--dry-run", "--image-path", path(&image), "ID"];
        let said = container.ckrun(&refused).stdout;
        assert!(said.contains(point) && said.contains(why), "{said}");
        container.ckrun(&["checkpoint", "--image-path", path(&image), "ID"]).fails(1, &[point, why]);
        assert!(!image.exists());
        assert_eq!(container.status(), "running");
    }
}

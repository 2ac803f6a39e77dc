//! Images that put symlinks to the host where ckrun works: nothing is made, mounted or read outside of the container.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by a panic")]

use ckrun_integration::bundle::Container;
use ckrun_integration::run::Ended;
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

fn refusal(ended: &Ended, words: &[&str]) {
    ended.clone().fails(1, words);
}

/// A directory of the host that a container would like to get at.
struct Canary(PathBuf);

impl Canary {
    fn of(container: &Container) -> Canary {
        let dir = container.file("canary");
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join("precious"), "of the host").unwrap();
        Canary(dir)
    }

    fn is_unharmed(&self) {
        let names: Vec<_> = fs::read_dir(&self.0).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(names, ["precious"]);
        assert_eq!(fs::read_to_string(self.0.join("precious")).unwrap(), "of the host");
    }

    /// The ways to it that a symlink in the rootfs can take.
    fn ways(&self) -> [PathBuf; 3] {
        let up = PathBuf::from("../".repeat(20)).join(self.0.strip_prefix("/").unwrap());
        [self.0.clone(), up, Path::new("/proc/1/root").join(self.0.strip_prefix("/").unwrap())]
    }
}

/// Runs `script` in a container whose rootfs has a symlink at `place` to somewhere in the canary's directory.
fn with_link(place: &str, below: &str, script: &str, change: impl Fn(&mut Value), judge: impl Fn(&Ended)) {
    for way in 0..3 {
        let container = Container::sh(script).with(&change);
        let canary = Canary::of(&container);
        let link = container.rootfs().join(place);
        let _ = fs::remove_dir(&link);
        fs::create_dir_all(link.parent().unwrap()).unwrap();
        symlink(canary.ways()[way].join(below), link).unwrap();
        judge(&container.run());
        canary.is_unharmed();
    }
}

#[test]
fn proc_and_sys_are_not_mounted_over_symlinks() {
    for place in ["proc", "sys"] {
        with_link(
            place,
            "",
            "true",
            |_| (),
            |ended| refusal(ended, &["must be mounted on ordinary directory"]),
        );
    }
    // Nor where a symlink on the way would put them.
    let deep = |c: &mut Value| c["mounts"][0]["destination"] = json!("/a/proc");
    with_link("a", "", "true", deep, |ended| refusal(ended, &["must be mounted on ordinary directory"]));
}

#[test]
fn a_proc_that_is_something_else_is_noticed() {
    // Another mount at /proc afterwards, so that the masks would protect nothing.
    let container = Container::new().mount("/proc", "tmpfs", "tmpfs", &[]);
    container.run().fails(1, &["/proc of the container is not a procfs"]);
}

#[test]
fn dev_and_what_is_in_it_stay_inside() {
    // A link by way of procfs is refused, any other leads to nothing inside.
    let fine = |ended: &Ended| match ended.code {
        0 => assert_eq!(ended.stderr, ""),
        _ => refusal(ended, &["/dev", "too many symbolic links"]),
    };
    with_link("dev", "", "true", |_| (), fine);
    let no_dev = |c: &mut Value| c["mounts"].as_array_mut().unwrap().retain(|m| m["type"] == "proc");
    let writable = |c: &mut Value| {
        no_dev(c);
        c["linux"]["devices"] = json!([{"path": "/dev/sub/x", "type": "c", "major": 1, "minor": 3}]);
    };
    // Without a mount at /dev the nodes and links are made in the rootfs itself.
    with_link("dev", "", "true", no_dev, |_| ());
    with_link("dev/pts", "", "true", |_| (), fine);
    with_link("dev/null", "precious", "true", no_dev, |_| ());
    with_link("dev/ptmx", "precious", "true", no_dev, |_| ());
    with_link("dev/fd", "precious", "true", no_dev, |_| ());
    with_link("dev/sub", "", "true", writable, |_| ());
    let terminal = |c: &mut Value| c["process"]["cwd"] = json!("/srv/dir");
    with_link("work", "", "pwd", terminal, |_| ());
}

#[test]
fn the_console_is_not_mounted_outside() {
    use std::os::unix::net::UnixListener;
    for way in 0..3 {
        let container = Container::sh("true").with(|c| {
            c["process"]["terminal"] = json!(true);
            let keep = ["proc", "devpts"];
            c["mounts"].as_array_mut().unwrap().retain(|m| keep.contains(&m["type"].as_str().unwrap()));
        });
        let canary = Canary::of(&container);
        symlink(canary.ways()[way].join("precious"), container.rootfs().join("dev/console")).unwrap();
        let socket = container.file("socket");
        let _listener = UnixListener::bind(&socket).unwrap();
        container.ckrun(&["create", "--console-socket", socket.to_str().unwrap(), "ID"]);
        canary.is_unharmed();
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains(container.id()), "{mounts}");
    }
}

#[test]
fn mounts_over_symlinks_stay_inside() {
    let tmpfs = |c: &mut Value| {
        let mounts = c["mounts"].as_array_mut().unwrap();
        mounts.push(
            json!({"destination": "/data", "type": "tmpfs", "source": "tmpfs", "options": ["mode=777"]}),
        );
        mounts.push(json!({"destination": "/data/deep/er", "type": "tmpfs", "source": "tmpfs"}));
    };
    with_link("data", "", "echo x > /data/new && ls /data/precious", tmpfs, |ended| {
        assert!(ended.stdout.is_empty(), "{ended:?}");
    });
    with_link("data", "not/there/yet", "echo x > /data/new", tmpfs, |_| ());
    // A file of the bundle, which the container may write to: the host has no other that it could spare.
    let file = |c: &mut Value| {
        let mounts = c["mounts"].as_array_mut().unwrap();
        mounts.push(
            json!({"destination": "/etc/file", "type": "bind", "source": "config.json", "options": ["bind"]}),
        );
    };
    with_link("etc/file", "precious", "cat /etc/file >/dev/null; echo x > /etc/file", file, |_| ());
    with_link("etc/file", "new", "true", file, |_| ());
    let copy_up = |c: &mut Value| {
        let mounts = c["mounts"].as_array_mut().unwrap();
        mounts.push(
            json!({"destination": "/data", "type": "tmpfs", "source": "tmpfs", "options": ["tmpcopyup"]}),
        );
    };
    with_link("data", "", "cat /data/precious; cat /data/*", copy_up, |ended| {
        assert!(!ended.stdout.contains("of the host"), "{ended:?}");
    });
}

#[test]
fn masks_and_read_only_paths_stay_inside() {
    // A link by way of procfs is refused, any other leads to nothing inside.
    let harmless = |ended: &Ended| match ended.code {
        0 => assert_eq!(ended.stderr, ""),
        _ => refusal(ended, &["linux.", "Paths: open /secret", "too many symbolic links"]),
    };
    for field in ["maskedPaths", "readonlyPaths"] {
        let change = |c: &mut Value| c["linux"][field] = json!(["/secret"]);
        with_link("secret", "precious", "true", change, harmless);
        with_link("secret", "", "true", change, harmless);
    }
}

//! What can't be run: one line that says what is wrong, and nothing left behind.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by a panic")]

use ckrun_integration::bundle::Container;
use ckrun_integration::run::{binary, finish, needs};
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

/// Neither run nor create works, and the line holds all of `words`.
fn refused(container: &Container, words: &[&str]) {
    for verb in ["run", "create"] {
        container.ckrun(&[verb, "ID"]).fails(1, words);
        container.no_trace();
        container.ckrun(&["state", "ID"]).fails(1, &["does not exist"]);
    }
}

fn with(change: impl FnOnce(&mut Value), words: &[&str]) {
    refused(&Container::new().with(change), words);
}

#[test]
fn a_config_that_is_none() {
    let container = Container::new();
    let config = container.bundle().join("config.json");
    let whole = fs::read_to_string(&config).unwrap();
    fs::remove_file(&config).unwrap();
    refused(&container, &[config.to_str().unwrap(), "no such file or directory"]);
    for half in ["", "{", &whole[..whole.len() / 2], "null", "\u{0}"] {
        fs::write(&config, half).unwrap();
        refused(&container, &["config.json"]);
    }
    fs::remove_file(&config).unwrap();
    fs::create_dir(&config).unwrap();
    refused(&container, &["config.json", "is a directory"]);
    let nowhere = container.file("nowhere");
    container
        .ckrun(&["run", "-b", nowhere.to_str().unwrap(), "ID"])
        .fails(1, &[nowhere.to_str().unwrap(), "no such file or directory"]);
}

#[test]
fn a_wrong_type_is_named_by_its_field() {
    for (pointer, value, field) in [
        ("/process/args", json!("true"), "process.args"),
        ("/process/user/uid", json!("root"), "process.user.uid"),
        ("/process/cwd", json!(5), "process.cwd"),
        ("/root/path", json!({}), "root.path"),
        ("/linux/namespaces/0/type", json!("imaginary"), "linux.namespaces[0].type"),
        ("/mounts/1/options", json!("ro"), "mounts[1].options"),
        ("/linux/resources", json!("none"), "linux.resources"),
        ("/process/rlimits/0/soft", json!(-1), "process.rlimits[0].soft"),
        ("/hostname", json!(7), "hostname"),
    ] {
        with(|c| *c.pointer_mut(pointer).unwrap() = value, &["config.json", field]);
    }
}

#[test]
fn a_version_that_is_not_known() {
    for version in ["2.0.0", "0.9.0", "1", "x", ""] {
        with(|c| c["ociVersion"] = json!(version), &["ociVersion", version]);
    }
    with(|c| drop(c.as_object_mut().unwrap().remove("ociVersion")), &["ociVersion"]);
}

#[test]
fn a_rootfs_that_is_none() {
    with(|c| c["root"]["path"] = json!("missing"), &["missing", "no such file or directory"]);
    with(|c| c["root"]["path"] = json!("config.json"), &["root.path", "config.json", "not a directory"]);
    with(|c| drop(c.as_object_mut().unwrap().remove("root")), &["root", "is missing"]);
    with(|c| drop(c.as_object_mut().unwrap().remove("linux")), &["linux", "is missing"]);
}

#[test]
fn a_command_that_can_not_be_run() {
    let args = |args: &[&str]| {
        let args = json!(args);
        move |c: &mut Value| c["process"]["args"] = args
    };
    with(args(&["nothing"]), &["exec: \"nothing\": executable file not found in $PATH"]);
    with(args(&["/bin/nothing"]), &["exec: \"/bin/nothing\": stat /bin/nothing: no such file or directory"]);
    with(args(&["/etc/passwd"]), &["exec: \"/etc/passwd\": permission denied"]);
    with(args(&["/etc"]), &["exec: \"/etc\": permission denied: is a directory"]);
    with(args(&["/etc/passwd/x"]), &["/etc/passwd/x", "not a directory"]);
    with(args(&[]), &["process.args", "empty"]);
    with(args(&["true", "a\u{0}b"]), &["process", "zero byte"]);
    // What only the exec itself can tell comes from run, and from start.
    let container = Container::new().args(&["/bad"]);
    for (text, why) in
        [("#!/no/interpreter\n", "no such file or directory"), ("\u{7f}ELF", "exec format error")]
    {
        container.put("/bad", text, 0o755);
        container.run().fails(1, &["exec: \"/bad\"", why]);
        container.create();
        container.ckrun(&["start", "ID"]).fails(1, &["exec: \"/bad\"", why]);
        container.ckrun(&["delete", "--force", "ID"]).ok();
        container.no_trace();
    }
}

#[test]
fn a_mount_that_can_not_be_made_is_explained_in_the_kernels_words() {
    let mount = |kind: &str, source: &str, options: &[&str]| {
        let mount = json!({"destination": "/tmp/m", "type": kind, "source": source, "options": options});
        move |c: &mut Value| c["mounts"].as_array_mut().unwrap().push(mount)
    };
    with(mount("imaginary", "none", &[]), &["mounts[7] (/tmp/m)", "imaginary"]);
    with(
        mount("tmpfs", "tmpfs", &["fly=high"]),
        &["mounts[7] (/tmp/m)", "fly=high", "Unknown parameter 'fly'"],
    );
    with(
        mount("tmpfs", "tmpfs", &["size=much"]),
        &["mounts[7] (/tmp/m)", "size=much", "Bad value for 'size'"],
    );
    with(
        mount("bind", "/no/such/thing", &["bind"]),
        &["mounts[7] (/tmp/m)", "/no/such/thing", "no such file"],
    );
    with(mount("", "", &["rbind"]), &["mounts[7] (/tmp/m)", "source"]);
    with(mount("", "/tmp", &[]), &["mounts[7] (/tmp/m)", "type"]);
    with(mount("ext4", "/dev/null", &[]), &["mounts[7] (/tmp/m)", "ext4"]);
    with(mount("bind", "/tmp", &["bind", "tmpcopyup"]), &["mounts[7] (/tmp/m)", "tmpcopyup"]);
    with(
        |c| {
            let mount = json!({"destination": "/etc/passwd/x", "type": "tmpfs", "source": "tmpfs"});
            c["mounts"].as_array_mut().unwrap().push(mount);
        },
        &["mounts[7] (/etc/passwd/x)", "not a directory"],
    );
}

#[test]
fn a_namespace_that_can_not_be_joined() {
    let join = |kind: &'static str, path: &'static str| {
        move |c: &mut Value| {
            let all = c["linux"]["namespaces"].as_array_mut().unwrap();
            all.retain(|ns| ns["type"] != kind);
            all.push(json!({"type": kind, "path": path}));
        }
    };
    with(join("network", "/no/such/netns"), &["/no/such/netns", "no such file or directory"]);
    with(join("network", "/etc/passwd"), &["linux.namespaces", "/etc/passwd is not a namespace"]);
    with(join("network", "/proc/self/ns/uts"), &["join the", "net", "invalid argument"]);
    with(join("pid", "/proc/self/ns/uts"), &["join the", "pid", "invalid argument"]);
    with(
        |c| c["linux"]["namespaces"].as_array_mut().unwrap().push(json!({"type": "mount"})),
        &["linux.namespaces", "given twice"],
    );
}

#[test]
fn fields_that_need_each_other() {
    let without = |kind: &'static str| {
        move |c: &mut Value| c["linux"]["namespaces"].as_array_mut().unwrap().retain(|ns| ns["type"] != kind)
    };
    with(without("uts"), &["hostname", "uts"]);
    with(|c| c["process"]["cwd"] = json!("relative"), &["process.cwd", "relative"]);
    with(
        |c| c["linux"]["uidMappings"] = json!([{"containerID": 0, "hostID": 1, "size": 1}]),
        &["linux.uidMappings"],
    );
    with(
        |c| c["linux"]["namespaces"].as_array_mut().unwrap().push(json!({"type": "user"})),
        &["linux.uidMappings"],
    );
    with(|c| c["linux"]["timeOffsets"] = json!({"monotonic": {"secs": 5}}), &["linux.timeOffsets", "time"]);
    with(|c| c["linux"]["rootfsPropagation"] = json!("loud"), &["linux.rootfsPropagation", "loud"]);
    with(|c| c["linux"]["sysctl"] = json!({"vm.swappiness": "1"}), &["linux.sysctl", "vm.swappiness"]);
    with(|c| c["linux"]["sysctl"] = json!({"net.no.such": "1"}), &["linux.sysctl", "net.no.such"]);
}

#[test]
fn limits_that_the_kernel_refuses() {
    with(|c| c["linux"]["resources"]["cpu"] = json!({"cpus": "4000"}), &["linux.resources.cpu.cpus", "4000"]);
    with(|c| c["linux"]["resources"]["cpu"] = json!({"quota": 5, "period": 1}), &["linux.resources.cpu"]);
    with(
        |c| c["process"]["rlimits"] = json!([{"type": "RLIMIT_NOFILE", "soft": 9, "hard": 3}]),
        &["RLIMIT_NOFILE"],
    );
    with(|c| c["process"]["oomScoreAdj"] = json!(2000), &["process.oomScoreAdj", "2000"]);
}

#[test]
fn a_pid_file_that_can_not_be_written() {
    let container = Container::sh("read end");
    for verb in ["run", "create"] {
        for path in ["/no/such/dir/pid", "/proc/pid", "/"] {
            container.ckrun(&[verb, "--pid-file", path, "ID"]).fails(1, &[path.trim_end_matches("pid")]);
            container.no_trace();
        }
    }
    let _live = container.up();
    container
        .ckrun(&["exec", "-d", "--pid-file", "/no/such/dir/pid", "ID", "sleep", "1000"])
        .fails(255, &["/no/such/dir"]);
    let pids: Value = serde_json::from_str(&container.ckrun(&["ps", "-f", "json", "ID"]).ok()).unwrap();
    assert_eq!(pids.as_array().unwrap().len(), 1, "a process of whom nobody was told does not stay");
}

/// Runs ckrun with `prepare`, a shell script for which `$S` is the store, in a mount namespace of its own. What is
/// left in the store goes to stdout.
fn with_store(prepare: &str, container: &Container, words: &[&str]) {
    for verb in ["run", "create"] {
        let script = format!(
            "set -e; mkdir -p $S; {prepare}; set +e; \"$C\" --root \"$S\" {verb} x; code=$?; ls -A $S; exit $code"
        );
        let mut command = Command::new(needs("unshare", "util-linux"));
        command.args(["--mount", "sh", "-c", &script]).env("S", container.file("special")).env("C", binary());
        command.current_dir(container.bundle());
        let ended = finish(command).fails(1, words);
        let left: Vec<&str> = ended.stdout.lines().filter(|name| *name != "filler").collect();
        assert!(left.is_empty(), "{left:?}");
        container.no_trace();
    }
}

#[test]
fn a_full_disk() {
    // Room for nothing, for one page (the copy of the configuration), for two, ….
    for pages in 1..4 {
        let container = Container::new().with(|c| c["annotations"] = json!({"much": "x".repeat(3000)}));
        let prepare = format!(
            "mount -t tmpfs -o size={0}k tmpfs $S; dd if=/dev/zero of=$S/filler bs=4k count={1} status=none",
            4 * (pages + 1),
            2,
        );
        with_store(&prepare, &container, &["no space left on device", "special/x/"]);
        if pages == 1 {
            let no_inodes = "mount -t tmpfs -o nr_inodes=2 tmpfs $S; touch $S/filler";
            with_store(no_inodes, &container, &["no space left on device", "special/x"]);
        }
    }
}

#[test]
fn a_store_that_can_not_be_written() {
    let container = Container::new();
    with_store("mount -t tmpfs -o ro tmpfs $S", &container, &["special/x", "read-only file system"]);
    let file = container.file("file");
    fs::write(&file, "").unwrap();
    let mut command = Command::new(binary());
    command.arg("--root").arg(&file).args(["run", "x"]).current_dir(container.bundle());
    finish(command).fails(1, &[file.to_str().unwrap()]);
    container.no_trace();
}

#[test]
fn a_store_with_rubbish_in_it() {
    let container = Container::new();
    fs::create_dir_all(container.store().join("half")).unwrap();
    fs::write(container.store().join("file"), "").unwrap();
    fs::create_dir(container.store().join("broken")).unwrap();
    fs::write(container.store().join("broken/state.json"), "{").unwrap();
    assert_eq!(container.ckrun(&["list", "-q"]).ok(), "");
    container.ckrun(&["state", "half"]).fails(1, &["does not exist"]);
    container.ckrun(&["state", "broken"]).fails(1, &["broken/state.json"]);
    container.ckrun(&["delete", "half"]).fails(1, &["does not exist"]);
    container.ckrun(&["delete", "--force", "half"]).ok();
    assert!(!container.store().join("half").exists());
    container.run().ok();
}

#[test]
fn a_root_that_can_not_be_entered() {
    let container = Container::new();
    fs::set_permissions(container.rootfs().join("bin/busybox"), fs::Permissions::from_mode(0o000)).unwrap();
    refused(&container, &["exec: \"true\"", "permission denied"]);
}

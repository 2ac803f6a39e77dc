//! A container's life on other layouts than this machine's: each test runs itself again where mounts make one.

use super::*;

/// Runs one test of this file again in a mount namespace of its own, after `script`.
fn in_layout(script: &str, test: &str) {
    let exe = std::env::current_exe().unwrap();
    let run = format!("{script} && exec \"$0\" --exact cgroup::tests::layouts::{test} --test-threads 1");
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-ec", &run]).arg(exe).env(LAYOUT, "1");
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
}

const LAYOUT: &str = "CKRUN_TEST_LAYOUT";

/// What a container goes through, on any layout.
fn a_life() {
    let mut scratch = Scratch::plan();
    scratch.cgroups.create().unwrap();
    let mut shell = Shell::in_cgroups(&scratch.cgroups);
    assert_eq!(scratch.cgroups.pids().unwrap(), [shell.pid()]);
    scratch.cgroups.apply_devices(&default_device_rules()).unwrap();
    assert!(shell.can("(: <>/dev/null)"));
    scratch.cgroups.freeze().unwrap();
    assert!(scratch.cgroups.frozen().unwrap());
    scratch.cgroups.thaw().unwrap();
    assert!(shell.can("true"));
    scratch.cgroups.stats().unwrap();
    scratch.cgroups.remove().unwrap();
    assert_eq!(shell.died_of(), Some(libc::SIGKILL));
}

#[test]
fn a_life_on_pure_cgroup2() {
    if std::env::var_os(LAYOUT).is_none() {
        return in_layout("mount -t cgroup2 none /sys/fs/cgroup", "a_life_on_pure_cgroup2");
    }
    a_life();
    let scratch = Scratch::new();
    assert_eq!(scratch.cgroups.dirs.len(), 1);
    assert!(matches!(scratch.cgroups.view(), View::Unified(path) if path == scratch.cgroups.dirs[0].path));
    // All that the root has is there for the container.
    let controllers = |dir: &Path| std::fs::read_to_string(dir.join("cgroup.controllers")).unwrap();
    assert_eq!(controllers(&scratch.cgroups.dirs[0].path), controllers(Path::new("/sys/fs/cgroup")));
    if !controllers(Path::new("/sys/fs/cgroup")).contains("memory") {
        let text = refused(scratch.apply(r#"{"memory":{"limit":1048576}}"#), "linux.resources.memory.limit");
        assert!(text.ends_with("cgroup2 at /sys/fs/cgroup has the memory controller"), "{text}");
    }
    for (field, json) in [
        ("memory.swappiness", r#"{"memory":{"swappiness":60}}"#),
        ("memory.disableOOMKiller", r#"{"memory":{"disableOOMKiller":true}}"#),
        ("memory.kernelTCP", r#"{"memory":{"kernelTCP":4096}}"#),
        ("cpu.realtimeRuntime", r#"{"cpu":{"realtimeRuntime":1000}}"#),
        ("network.classID", r#"{"network":{"classID":1048577}}"#),
        ("unified[../x]", r#"{"unified":{"../x":"1"}}"#),
        ("unified[nodot]", r#"{"unified":{"nodot":"1"}}"#),
        ("unified[cgroup.nothing]", r#"{"unified":{"cgroup.nothing":"1"}}"#),
    ] {
        refused(scratch.apply(json), &format!("linux.resources.{field}"));
    }
    // A cgroup with processes can't give its children controllers, and the error says so.
    let root_has = std::fs::read_to_string("/sys/fs/cgroup/cgroup.controllers").unwrap();
    if let Some(controller) = root_has.split_whitespace().find(|c| *c == "hugetlb") {
        let shell = Shell::in_cgroups(&scratch.cgroups);
        let below = Cgroups::plan(&request(Path::new(&format!("/{}/leaf/below", scratch.parent))));
        let mut below = below.unwrap();
        below.create().unwrap();
        let limit = r#"{"hugepageLimits":[{"pageSize":"2MB","limit":0}]}"#;
        let text = below.apply(&serde_json::from_str(limit).unwrap()).unwrap_err().to_string();
        assert!(
            text.contains(&format!("needs the {controller} controller: enable it in /sys/fs/")),
            "{text}"
        );
        assert!(text.ends_with("cgroup.subtree_control: device or resource busy"), "{text}");
        below.remove().unwrap();
        drop(shell);
    }
    scratch.apply(r#"{"unified":{"cgroup.max.depth":"7"}}"#).unwrap();
    assert_eq!(scratch.read("", "cgroup.max.depth"), "7");
}

#[test]
fn a_life_without_cgroup2() {
    if std::env::var_os(LAYOUT).is_none() {
        let members = layout::detect().unwrap();
        let (Some(v2), true) = (
            members.iter().find(|h| h.version == Version::V2),
            members.iter().any(|h| h.version == Version::V1),
        ) else {
            return;
        };
        return in_layout(&format!("umount {}", v2.mount.display()), "a_life_without_cgroup2");
    }
    a_life();
    let scratch = Scratch::plan();
    assert!(scratch.cgroups.v2().is_none() && scratch.cgroups.clone_target().is_none());
    refused(scratch.apply(r#"{"unified":{"memory.max":"1"}}"#), "linux.resources.unified[memory.max]");
}

#[test]
fn a_life_in_a_bind_mounted_part() {
    if std::env::var_os(LAYOUT).is_none() {
        // A cgroup is all that is seen of cgroup2, and we are below it.
        let scratch = Scratch::new().only(Dir::is_v2);
        let Some(dir) = scratch.cgroups.dirs.first() else { return };
        let (part, own) = (dir.path.display(), dir.path.join("own"));
        std::fs::create_dir(&own).unwrap();
        let script = format!(
            "echo $$ >{}/cgroup.procs; mount --bind {part} /mnt; mount -t tmpfs none /sys/fs/cgroup; \
             mkdir /sys/fs/cgroup/unified; mount --move /mnt /sys/fs/cgroup/unified",
            own.display()
        );
        return in_layout(&script, "a_life_in_a_bind_mounted_part");
    }
    let mount = Path::new("/sys/fs/cgroup/unified");
    let found = layout::detect().unwrap();
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].own.as_deref(), Some(mount.join("own").as_path()));
    a_life();
    refused(Cgroups::plan(&request(Path::new("/own"))), "linux.cgroupsPath");
    // Beside our own, because our own has processes.
    let cgroups = Cgroups::plan(&request(Path::new("relative"))).unwrap();
    assert_eq!(cgroups.dirs[0].path, mount.join("relative"));
}

#[test]
fn rootless_does_without_what_it_may_not_make() {
    if std::env::var_os(LAYOUT).is_none() {
        // Read-only mounts forbid it to root, too.
        let mounts: Vec<_> = layout::detect().unwrap().into_iter().map(|h| h.mount).collect();
        let remount = |m: &PathBuf| format!("mount -o remount,bind,ro {0} {0}", m.display());
        let script = mounts.iter().map(remount).collect::<Vec<_>>().join(" && ");
        return in_layout(&script, "rootless_does_without_what_it_may_not_make");
    }
    let mut rootful = Cgroups::plan(&request(Path::new("/ckrun-test-forbidden"))).unwrap();
    let error = rootful.create().unwrap_err().to_string();
    assert!(error.ends_with("read-only file system"), "{error}");
    let mut rootless =
        Cgroups::plan(&Request { rootless: true, ..request(Path::new("/ckrun-test-forbidden")) }).unwrap();
    rootless.create().unwrap();
    assert!(rootless.is_empty());
    rootless.apply(&serde_json::from_str(r#"{"pids":{"limit":0},"blockIO":{"weight":0}}"#).unwrap()).unwrap();
    rootless.apply_devices(&default_device_rules()).unwrap();
    let limit = serde_json::from_str(r#"{"pids":{"limit":5}}"#).unwrap();
    let text = refused(rootless.apply(&limit), "linux.resources.pids.limit");
    assert!(text.contains("no cgroup with the pids controller"), "{text}");
}

#[test]
fn a_user_works_in_a_delegated_subtree() {
    use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};
    if std::env::var_os(LAYOUT).is_none() {
        let scratch = Scratch::new().only(Dir::is_v2);
        let Some(dir) = scratch.cgroups.dirs.first() else { return };
        scratch.cgroups.delegate(65_534).unwrap();
        // Its own cgroup is below, as a session's is below its user's.
        let own = format!("/sys/fs/cgroup/{}/leaf/own", scratch.parent);
        let script =
            format!("mount -t cgroup2 none /sys/fs/cgroup && mkdir {own} && echo $$ >{own}/cgroup.procs");
        assert!(dir.path.exists());
        return in_layout(&script, "a_user_works_in_a_delegated_subtree");
    }
    let (uid, gid) = (Uid::from_raw(65_534), Gid::from_raw(65_534));
    setgroups(&[gid]).unwrap();
    setresgid(gid, gid, gid).unwrap();
    setresuid(uid, uid, uid).unwrap();
    let place = Request { rootless: true, ..request(Path::new("relative")) };
    let mut cgroups = Cgroups::plan(&place).unwrap();
    cgroups.create().unwrap();
    assert!(!cgroups.is_empty());
    let mut shell = Shell::in_cgroups(&cgroups);
    cgroups.freeze().unwrap();
    cgroups.thaw().unwrap();
    cgroups.remove().unwrap();
    assert_eq!(shell.died_of(), Some(libc::SIGKILL));
    // Elsewhere it may make nothing.
    let mut elsewhere = Cgroups::plan(&Request { path: Some(Path::new("/elsewhere")), ..place }).unwrap();
    elsewhere.create().unwrap();
    assert!(elsewhere.is_empty());
}

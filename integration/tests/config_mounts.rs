//! What config.json says of mounts, devices and protected paths has its effect inside.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by a panic")]

use ckrun_integration::bundle::Container;
use ckrun_integration::run::install_text;
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::PathBuf;

/// A directory of the host with a file in it.
fn source(container: &Container) -> PathBuf {
    let dir = container.file("source");
    fs::create_dir(&dir).unwrap();
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o777)).unwrap();
    fs::write(dir.join("file"), "content").unwrap();
    dir
}

/// The options of the mount at `place`, as the kernel shows them: those of the mount, propagation, the file system's.
fn options(place: &str) -> String {
    format!("awk '$5 == \"{place}\"' /proc/self/mountinfo | tail -n 1 | cut -d' ' -f6-")
}

fn bound(script: &str, mount_options: &[&str]) -> Container {
    let container = Container::sh(script);
    let from = source(&container);
    container.mount("/m", "bind", from, mount_options)
}

#[test]
fn the_root_is_read_only_or_not() {
    for (readonly, said) in [(true, "ro"), (false, "rw")] {
        let container = Container::sh("(touch /new) 2>/dev/null && echo rw || echo ro");
        container.change(|c| c["root"]["readonly"] = json!(readonly));
        assert_eq!(container.run().ok(), said);
        assert_eq!(container.rootfs().join("new").exists(), !readonly);
    }
}

#[test]
fn a_bind_mount_shows_a_directory_or_a_file_of_the_host() {
    let container = bound("cat /m/file; echo new > /m/new", &["rbind"]);
    assert_eq!(container.run().ok(), "content");
    assert_eq!(fs::read_to_string(container.file("source/new")).unwrap(), "new\n");
    let container = Container::sh("cat /etc/deep/file");
    let from = source(&container).join("file");
    let container = container.mount("/etc/deep/file", "bind", from, &["bind", "ro"]);
    assert_eq!(container.run().ok(), "content");
    // Relative sources are the bundle's.
    let container = Container::sh("cat /m").mount("/m", "none", "beside", &["bind"]);
    fs::write(container.bundle().join("beside"), "in the bundle").unwrap();
    assert_eq!(container.run().ok(), "in the bundle");
}

#[test]
fn missing_destinations_are_made() {
    let container = Container::sh("stat -c '%F %a' /a /a/b /a/b/c; cat /x/y")
        .mount("/a/b/c", "tmpfs", "tmpfs", &["mode=700"])
        .mount("/x/y", "bind", "config.json", &["bind", "ro"]);
    let said = container.run().ok();
    assert!(said.starts_with("directory 755\ndirectory 755\ndirectory 700\n"), "{said}");
    assert!(container.rootfs().join("x/y").is_file());
}

#[test]
fn destinations_may_be_symlinks_inside() {
    let container = Container::sh("cat /link/file; ls /real").with(|c| c["root"]["readonly"] = json!(false));
    let from = source(&container);
    fs::create_dir_all(container.rootfs().join("real/dir")).unwrap();
    symlink("/real/dir", container.rootfs().join("link")).unwrap();
    let container = container.mount("/link", "bind", from, &["bind"]);
    assert_eq!(container.run().ok(), "contentdir");
}

#[test]
fn options_become_flags() {
    for (options_given, flags) in [
        (&["bind"][..], "rw,relatime"),
        (&["bind", "ro"], "ro,relatime"),
        (&["bind", "ro", "rw"], "rw,relatime"),
        (&["bind", "nosuid", "nodev", "noexec"], "rw,nosuid,nodev,noexec,relatime"),
        (&["bind", "nosuid", "suid"], "rw,relatime"),
        (&["bind", "noatime"], "rw,noatime"),
        (&["bind", "strictatime"], "rw"),
        (&["bind", "nodiratime"], "rw,nodiratime,relatime"),
        (&["bind", "nosymfollow"], "rw,relatime,nosymfollow"),
    ] {
        let said = bound(&options("/m"), options_given).run().ok();
        assert_eq!(said.split(' ').next().unwrap(), flags, "{options_given:?}");
    }
    assert_eq!(
        bound("(touch /m/x) 2>&1", &["bind", "ro"]).run().stdout,
        "touch: /m/x: Read-only file system\n"
    );
    let container = bound("/m/tool", &["bind", "noexec"]);
    install_text("#!/bin/sh\n", &container.file("source/tool"));
    assert_eq!(container.run().code, 126);
}

#[test]
fn recursive_flags_reach_the_mounts_below() {
    // The host's /dev has at least the devpts below it.
    let shown = format!("{}; {}", options("/m"), options("/m/pts"));
    let of_both = |given: &[&str]| {
        let said = Container::sh(&shown).mount("/m", "bind", "/dev", given).run().ok();
        said.lines().map(|line| line.split(',').next().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(of_both(&["rbind", "rro"]), ["ro", "ro"]);
    // Without the r only the top.
    assert_eq!(of_both(&["rbind", "ro"]), ["ro", "rw"]);
    // bind takes nothing below along.
    let container = Container::sh(&options("/m/pts")).mount("/m", "bind", "/dev", &["bind"]);
    assert_eq!(container.run().ok(), "");
}

#[test]
fn tmpfs_takes_its_own_options() {
    let container = Container::sh(&format!("stat -c '%a %u %g' /m; df -k /m 2>/dev/null; {}", options("/m")))
        .mount(
            "/m",
            "tmpfs",
            "tmpfs",
            &["size=64k", "mode=1750", "uid=7", "gid=8", "nr_inodes=50", "noexec"],
        );
    let said = container.run().ok();
    assert!(said.starts_with("1750 7 8\n"), "{said}");
    for word in ["size=64k", "nr_inodes=50", "noexec"] {
        assert!(said.contains(word), "{word}: {said}");
    }
    let full = Container::sh("dd if=/dev/zero of=/m/x bs=1k count=65 2>&1 | head -n 1").mount(
        "/m",
        "tmpfs",
        "tmpfs",
        &["size=64k"],
    );
    assert!(full.run().ok().contains("No space left on device"));
}

#[test]
fn tmpcopyup_fills_a_tmpfs_with_what_was_there() {
    let script = "cat /data/a /data/sub/b; readlink /data/link; stat -c '%a %u %g' /data /data/a /data/c; echo new > /data/a; cat /data/a";
    let container = Container::sh(script).mount("/data", "tmpfs", "tmpfs", &["tmpcopyup"]);
    let a = container.put("/data/a", "A", 0o640);
    container.put("/data/sub/b", "B", 0o600);
    symlink("a", container.rootfs().join("data/link")).unwrap();
    chown(container.put("/data/c", "", 0o604), Some(7), Some(8)).unwrap();
    fs::set_permissions(container.rootfs().join("data"), fs::Permissions::from_mode(0o751)).unwrap();
    assert_eq!(container.run().ok(), "ABa\n751 0 0\n640 0 0\n604 7 8\nnew");
    assert_eq!(fs::read_to_string(a).unwrap(), "A", "what is below stays as it was");
    let ro = Container::sh("cat /data/a; (touch /data/x) 2>&1").mount(
        "/data",
        "tmpfs",
        "tmpfs",
        &["tmpcopyup", "ro"],
    );
    ro.put("/data/a", "A", 0o644);
    assert_eq!(ro.run().stdout, "Atouch: /data/x: Read-only file system\n");
}

#[test]
fn id_mapped_mounts_show_other_owners() {
    let map = |inside: u32, outside: u32| json!([{"containerID": inside, "hostID": outside, "size": 10}]);
    let container = Container::sh("stat -c '%u %g' /m/file");
    let from = source(&container);
    chown(from.join("file"), Some(0), Some(0)).unwrap();
    container.change(|c| {
        c["mounts"].as_array_mut().unwrap().push(json!({
            "destination": "/m", "type": "bind", "source": from, "options": ["bind", "idmap"],
            "uidMappings": map(0, 1000), "gidMappings": map(0, 2000),
        }));
    });
    // The kernel's "outside" of an id-mapped mount is what the container sees.
    assert_eq!(container.run().ok(), "1000 2000");
    container.change(|c| {
        c["process"]["user"] = json!({"uid": 1003, "gid": 2003});
        c["process"]["args"] = json!(["touch", "/m/new"]);
    });
    container.run().ok();
    let new = container.file("source/new").metadata().unwrap();
    assert_eq!((new.uid(), new.gid()), (3, 3), "who writes is mapped back");
    let bad = bound("true", &["bind", "idmap"]);
    bad.run().fails(1, &["mounts[7] (/m)", "idmap", "uidMappings"]);
}

#[test]
fn propagation_is_set() {
    for (option, field) in
        [("private", ""), ("slave", "master:"), ("shared", "shared:"), ("unbindable", "unbindable")]
    {
        let said = bound(&options("/m"), &["bind", option]).run().ok();
        let optional: Vec<&str> = said.split(" - ").next().unwrap().split(' ').skip(1).collect();
        match field {
            "" => assert!(optional.is_empty(), "{said}"),
            // A slave of nobody is private: the host's mount need not be shared.
            "master:" => assert!(optional.iter().all(|word| word.starts_with("master:")), "{said}"),
            field => assert!(optional.iter().any(|word| word.starts_with(field)), "{option}: {said}"),
        }
    }
}

#[test]
fn the_roots_propagation_is_set() {
    for (word, field) in [
        ("shared", "shared:"),
        ("rshared", "shared:"),
        ("private", ""),
        ("rslave", ""),
        ("unbindable", "unbindable"),
    ] {
        let container = Container::sh(&options("/")).with(|c| c["linux"]["rootfsPropagation"] = json!(word));
        let said = container.run().ok();
        let optional = said.split(" - ").next().unwrap();
        assert_eq!(optional.contains("shared:"), field == "shared:", "{word}: {said}");
        assert_eq!(optional.contains("unbindable"), field == "unbindable", "{word}: {said}");
    }
}

#[test]
fn the_usual_file_systems_are_there() {
    let said = Container::sh("awk '{print $5, $(NF-2)}' /proc/self/mountinfo").run().ok();
    for mount in
        ["/proc proc", "/dev tmpfs", "/dev/pts devpts", "/dev/shm tmpfs", "/dev/mqueue mqueue", "/sys sysfs"]
    {
        assert!(said.lines().any(|line| line == mount), "{mount}: {said}");
    }
    assert!(!said.contains("ckrun-"), "nothing of the host's mount table: {said}");
}

#[test]
fn default_devices_and_links_are_there() {
    let said = Container::sh(
        "for d in null zero full random urandom tty; do stat -c '%n %t:%T %a %F' /dev/$d; done
        for l in fd stdin stdout stderr ptmx; do echo $l $(readlink /dev/$l); done; head -c 2 /dev/zero | od -An -tx1; echo x > /dev/null",
    )
    .run()
    .ok();
    let wanted = "/dev/null 1:3 666 character special file\n/dev/zero 1:5 666 character special file\n\
        /dev/full 1:7 666 character special file\n/dev/random 1:8 666 character special file\n\
        /dev/urandom 1:9 666 character special file\n/dev/tty 5:0 666 character special file\n\
        fd /proc/self/fd\nstdin /proc/self/fd/0\nstdout /proc/self/fd/1\nstderr /proc/self/fd/2\nptmx pts/ptmx\n 00 00";
    assert_eq!(said, wanted);
}

#[test]
fn configured_devices_are_made() {
    let container = Container::sh("stat -c '%n %t:%T %a %u %g %F' /dev/mine /dev/sub/fifo /dev/null").with(|c| {
        c["linux"]["devices"] = json!([
            {"path": "/dev/mine", "type": "c", "major": 1, "minor": 5, "fileMode": 0o640, "uid": 7, "gid": 8},
            {"path": "/dev/sub/fifo", "type": "p", "fileMode": 0o600},
            {"path": "/dev/null", "type": "c", "major": 1, "minor": 3, "fileMode": 0o600},
        ]);
    });
    let wanted = "/dev/mine 1:5 640 7 8 character special file\n/dev/sub/fifo 0:0 600 0 0 fifo\n/dev/null 1:3 600 0 0 character special file";
    assert_eq!(container.run().ok(), wanted);
    let bad = |device: Value| Container::new().with(|c| c["linux"]["devices"] = json!([device])).run();
    bad(json!({"path": "/dev/x", "type": "a", "major": 1, "minor": 1}))
        .fails(1, &["linux.devices[0] (/dev/x)"]);
    bad(json!({"path": "/dev/x", "type": "c", "major": -1, "minor": 1}))
        .fails(1, &["linux.devices[0] (/dev/x)", "major"]);
}

#[test]
fn masked_and_read_only_paths_are_protected() {
    let container = Container::sh(
        "wc -c < /secret; ls /hidden; (echo x > /secret) 2>&1 || true; (touch /hidden/x) 2>&1
        cat /fixed/file; (touch /fixed/x) 2>&1; (echo 1 > /proc/sys/kernel/panic) 2>&1; wc -c < /proc/version; true",
    )
    .with(|c| {
        c["root"]["readonly"] = json!(false);
        c["linux"]["maskedPaths"] = json!(["/secret", "/hidden", "/not/there", "/proc/version"]);
        c["linux"]["readonlyPaths"] = json!(["/fixed", "/proc/sys", "/not/there"]);
    });
    container.put("/secret", "secret", 0o644);
    container.put("/hidden/secret", "secret", 0o644);
    container.put("/fixed/file", "seen ", 0o644);
    let said = container.run().ok();
    let read_only = "Read-only file system";
    let wanted = format!(
        "0\ntouch: /hidden/x: {read_only}\nseen touch: /fixed/x: {read_only}\nsh: can't create /proc/sys/kernel/panic: {read_only}\n0"
    );
    assert_eq!(said, wanted);
    assert_eq!(fs::read_to_string(container.rootfs().join("secret")).unwrap(), "secret");
}

#[test]
fn a_read_only_dev_is_furnished_first() {
    let container = Container::sh("echo x > /dev/null && (touch /dev/x) 2>&1").with(|c| {
        let options = c["mounts"][1]["options"].as_array_mut().unwrap();
        options.push(json!("ro"));
    });
    assert_eq!(container.run().stdout, "touch: /dev/x: Read-only file system\n");
}

#[test]
fn a_dev_of_the_host_is_left_alone() {
    let container = Container::sh("ls /dev");
    let dev = container.file("dev");
    fs::create_dir(&dev).unwrap();
    container.change(|c| {
        let mounts = c["mounts"].as_array_mut().unwrap();
        mounts.retain(|m| !m["destination"].as_str().unwrap().starts_with("/dev"));
        mounts.push(json!({"destination": "/dev", "type": "bind", "source": dev, "options": ["bind"]}));
    });
    assert_eq!(container.run().ok(), "");
    assert_eq!(fs::read_dir(dev).unwrap().count(), 0);
}

#[test]
fn no_pivot_works_too() {
    let container = Container::sh(
        "ls / | tr '\\n' ' '; grep -c . /proc/self/mountinfo >/dev/null; (cat /../../etc/hostname) 2>&1",
    );
    let ended = container.ckrun(&["run", "--no-pivot", "ID"]);
    assert!(ended.stdout.starts_with("bin dev etc proc root sys tmp"), "{ended:?}");
    assert!(ended.stdout.contains("No such file"), "{ended:?}");
    container.no_trace();
}

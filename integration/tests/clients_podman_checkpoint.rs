//! `podman container checkpoint` and `restore`, with ckrun as the runtime and as the `criu` that podman asks for its version.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by a panic")]

use ckrun_integration::clients::{Done, Podman, ckrun, program};
use serde_json::Value;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::Stdio;

/// It counts the signals that it gets, in memory only; the count is its exit code too, above 40.
const COUNTER: &str = "n=0; trap 'n=$((n+1)); echo count $n' USR1; trap 'exit $((40+n))' TERM; \
                       echo ready; sleep 100000 & while :; do wait; done";

/// A podman that finds ckrun as `criu` on its PATH.
fn podman() -> Podman {
    let mut podman = Podman::new();
    let bin = podman.enclosure.path("bin");
    fs::create_dir(&bin).unwrap();
    symlink(ckrun(), format!("{bin}/criu")).unwrap();
    let path = std::env::var("PATH").unwrap();
    podman.enclosure.set_env("PATH", format!("{bin}:{path}"));
    podman
}

/// Starts a counter.
#[track_caller]
fn start(podman: &Podman, options: &[&str], name: &str) {
    let name_option = format!("--name={name}");
    let job = ["bb", "sh", "-c", COUNTER];
    podman.call(&[&["run", "-d", &name_option], options, &job[..]].concat()).ok();
    podman.await_log(name, "ready");
}

/// Lets it count, and checks that it is at `n` then.
#[track_caller]
fn count(podman: &Podman, name: &str, n: u32) {
    podman.call(&["kill", "--signal=USR1", name]).ok();
    podman.await_log(name, &format!("count {n}\r"));
}

#[track_caller]
fn checkpoint(podman: &Podman, words: &[&str]) -> Done {
    podman.call(&[&["container", "checkpoint"], words].concat())
}

#[track_caller]
fn restore(podman: &Podman, words: &[&str]) -> Done {
    podman.call(&[&["container", "restore"], words].concat())
}

/// Where podman keeps what belongs to a container, the image among it.
fn userdata(podman: &Podman, name: &str) -> PathBuf {
    let id = podman.inspect(name, "{{.Id}}");
    podman.enclosure.path(&format!("root/overlay-containers/{id}/userdata")).into()
}

#[test]
fn a_container_goes_on_where_it_was() {
    let podman = podman();
    start(&podman, &["--env=A=kept"], "web");
    count(&podman, "web", 1);
    count(&podman, "web", 2);
    checkpoint(&podman, &["web"]).ok();
    assert_eq!(podman.inspect("web", "{{.State.Status}} {{.State.Checkpointed}}"), "exited true");
    let image = userdata(&podman, "web").join("checkpoint");
    let inventory: Value = serde_json::from_slice(&fs::read(image.join("inventory.img")).unwrap()).unwrap();
    assert_eq!(inventory["container"], podman.inspect("web", "{{.Id}}"));

    restore(&podman, &["web"]).ok();
    assert!(!image.exists(), "podman removes what is used up");
    assert_eq!(podman.inspect("web", "{{.State.Status}}"), "running");
    count(&podman, "web", 3);
    assert_eq!(podman.call(&["exec", "--env=B=new", "web", "sh", "-c", "echo $A $B"]).ok(), "kept new");
    assert!(podman.call(&["top", "web", "pid", "comm"]).ok().contains("sh"));
    podman.call(&["pause", "web"]).ok();
    podman.call(&["unpause", "web"]).ok();
    restore(&podman, &["web"]).fails().complains("is running or paused, cannot restore");
    // Once more: the second image is one of a restored job.
    checkpoint(&podman, &["--tcp-established", "--file-locks", "--keep", "web"]).ok();
    restore(&podman, &["--tcp-established", "--file-locks", "--keep", "web"]).ok();
    assert!(image.join("manifest.json").exists());
    count(&podman, "web", 4);
    // What went through conmon's pipes, on both sides of each checkpoint: nothing is lost and nothing said twice.
    let log: Vec<String> = podman.call(&["logs", "web"]).ok().lines().map(str::to_owned).collect();
    assert_eq!(log, ["ready", "count 1", "count 2", "count 3", "count 4"]);

    podman.call(&["stop", "--time=120", "web"]).ok();
    assert_eq!(podman.call(&["wait", "web"]).ok(), "44");
    assert_eq!(podman.inspect("web", "{{.State.Status}} {{.State.ExitCode}}"), "exited 44");
    podman.finish();
}

/// The standard streams are conmon's pipes, and after a restart those of another conmon.
#[test]
fn what_is_typed_reaches_a_restored_job() {
    let podman = podman();
    podman.call(&["run", "-d", "-i", "--name=web", "bb", "cat"]).ok();
    checkpoint(&podman, &["web"]).ok();
    restore(&podman, &["web"]).ok();
    // cat ends when its standard input does.
    let attach = podman.words(&["attach", "web"]);
    assert_eq!(podman.enclosure.call_with(attach, "through the pipe\n").ok(), "through the pipe");
    assert_eq!(podman.call(&["logs", "web"]).ok(), "through the pipe");
    podman.finish();
}

#[test]
fn an_exported_checkpoint_starts_many() {
    let podman = podman();
    start(&podman, &[], "web");
    count(&podman, "web", 1);
    for (at, compression) in (2..).zip(["none", "gzip", "zstd"]) {
        // The directory has the image of the last time, which the new one replaces.
        let file = podman.enclosure.path(compression);
        let options = ["--leave-running", "--compress", compression, "--export", &file];
        checkpoint(&podman, &[&options[..], &["web"]].concat()).ok();
        restore(&podman, &["--import", &file, "--name", compression]).ok();
        assert_eq!(podman.inspect(compression, "{{.State.Status}}"), "running");
        // The one that was left running, and the one that was made: each has its own count from here on.
        count(&podman, "web", at);
        count(&podman, compression, at);
        count(&podman, compression, at + 1);
    }
    podman.call(&["stop", "--time=120", "zstd"]).ok();
    assert_eq!(podman.call(&["wait", "zstd"]).ok(), "45");

    // As it was, when the container that it was taken of has gone.
    checkpoint(&podman, &["--export", &podman.enclosure.path("last"), "web"]).ok();
    let id = podman.inspect("web", "{{.Id}}");
    podman.call(&["rm", "web"]).ok();
    restore(&podman, &["--import", &podman.enclosure.path("last")]).ok();
    assert_eq!(podman.inspect("web", "{{.Id}}"), id);
    count(&podman, "web", 5);
    podman.finish();
}

#[test]
fn a_checkpoint_can_be_an_image() {
    let podman = podman();
    start(&podman, &[], "web");
    count(&podman, "web", 1);
    checkpoint(&podman, &["--create-image=taken:1", "web"]).ok();
    podman.call(&["rm", "web"]).ok();
    restore(&podman, &["--name=one", "taken:1"]).ok();
    restore(&podman, &["--name=two", "taken:1"]).ok();
    count(&podman, "one", 2);
    count(&podman, "two", 2);
    podman.finish();
}

/// Files that were open: in a volume, in the root file system, in /dev/shm, and one without a name.
#[test]
fn files_go_with_the_container() {
    let podman = podman();
    let open = "exec 4>>/vol/file 5>>/file 6>>/dev/shm/file 8<>/gone; rm /gone; \
                echo unseen >&8; trap 'for to in 4 5 6 8; do echo $n >&$to; done' HUP;";
    let job = format!("{open} {COUNTER}");
    podman.call(&["run", "-d", "--name=web", "--volume=kept:/vol", "bb", "sh", "-c", &job]).ok();
    podman.await_log("web", "ready");
    count(&podman, "web", 1);
    let file = podman.enclosure.path("exported");
    checkpoint(&podman, &["--file-locks", "--export", &file, "web"]).ok();
    podman.call(&["rm", "web"]).ok();
    podman.call(&["volume", "rm", "kept"]).ok();
    restore(&podman, &["--file-locks", "--import", &file]).ok();
    podman.call(&["kill", "--signal=HUP", "web"]).ok();
    // The signals are taken in the order of their numbers: when the count is there, the files are written.
    count(&podman, "web", 2);
    let inside = |job: &str| podman.call(&["exec", "web", "sh", "-c", job]).ok();
    assert_eq!(inside("cat /vol/file /file /dev/shm/file; cat /proc/1/fd/8"), "1\n1\n1\nunseen\n1");

    // Without the root file system's changes one of the files is missing: podman shows what ckrun says of it.
    checkpoint(&podman, &["--ignore-rootfs", "--export", &file, "web"]).ok();
    podman.call(&["rm", "web"]).ok();
    podman.call(&["volume", "rm", "kept"]).ok();
    let words = ["--ignore-rootfs", "--ignore-static-ip", "--ignore-static-mac", "--import", &file];
    restore(&podman, &words).fails().complains("/file");
    podman.call(&["rm", "--force", "--time=0", "web"]);

    // Without its volume too; what needs nothing of either comes back.
    start(&podman, &["--volume=other:/vol"], "small");
    checkpoint(&podman, &["--ignore-rootfs", "--ignore-volumes", "--export", &file, "small"]).ok();
    podman.call(&["rm", "small"]).ok();
    restore(&podman, &["--ignore-rootfs", "--ignore-volumes", "--import", &file]).ok();
    count(&podman, "small", 1);
    podman.finish();
}

/// A file that the job had open has grown since: that is refused, unless the container's annotation says what to do.
#[test]
fn one_image_is_restored_again() {
    let podman = podman();
    let job = format!("exec 4>>/file; trap 'echo grown >&4' HUP; {COUNTER}");
    for (name, annotation) in [("plain", ""), ("annotated", "/file=ignore")] {
        let annotation = format!("--annotation=dev.ckrun.changed-files={annotation}");
        let name_option = format!("--name={name}");
        podman.call(&["run", "-d", &name_option, &annotation, "bb", "sh", "-c", &job]).ok();
        podman.await_log(name, "ready");
        checkpoint(&podman, &["--keep", name]).ok();
        restore(&podman, &["--keep", name]).ok();
        podman.call(&["kill", "--signal=HUP", name]).ok();
        count(&podman, name, 1);
        podman.call(&["kill", name]).ok();
        podman.call(&["wait", name]).ok();
    }
    restore(&podman, &["--keep", "plain"]).fails().complains("/file");
    restore(&podman, &["--keep", "annotated"]).ok();
    podman.call(&["kill", "--signal=USR1", "annotated"]).ok();
    podman.call(&["stop", "--time=120", "annotated"]).ok();
    assert_eq!(podman.call(&["wait", "annotated"]).ok(), "41");
    podman.finish();
}

#[test]
fn a_shell_goes_on_at_another_terminal() {
    let podman = podman();
    let mut shell = podman.terminal(&["run", "-it", "--name=web", "bb", "sh"]);
    shell.awaits("# ");
    shell.types("kept=7; echo set $((kept*2))\n");
    shell.awaits("set 14\r\n");
    checkpoint(&podman, &["web"]).ok();
    shell.ends();
    restore(&podman, &["web"]).ok();
    let mut shell = podman.terminal(&["attach", "web"]);
    shell.types("echo is $((kept*3)); stty size; tty\n");
    shell.awaits("is 21\r\n");
    shell.awaits("/dev/");
    shell.types("exit 9\n");
    shell.ends();
    assert_eq!(podman.call(&["wait", "web"]).ok(), "9");
    podman.finish();
}

/// podman's archive, made a directory that ckrun can look into and restore, and an archive for podman again.
#[test]
fn an_archive_can_be_taken_apart_and_put_together() {
    let podman = podman();
    let [exported, packed, image] =
        ["exported", "packed.tar.gz", "image"].map(|name| podman.enclosure.path(name));
    let job = format!("exec 4>>/file; echo before >&4; {COUNTER}");
    podman.call(&["run", "-d", "--name=web", "bb", "sh", "-c", &job]).ok();
    podman.await_log("web", "ready");
    count(&podman, "web", 1);
    checkpoint(&podman, &["--export", &exported, "web"]).ok();
    podman.call(&["rm", "web"]).ok();
    let ckrun = ckrun();
    let call = |words: &[&str]| podman.enclosure.call([&[ckrun.to_str().unwrap()], words].concat());
    call(&["image", "unpack", &exported, &image]).ok();
    let seen: Value = serde_json::from_str(&call(&["inspect", "--json", &image]).ok()).unwrap();
    assert!(seen.to_string().contains("sleep"), "{seen}");
    for name in ["config.dump", "spec.dump", "rootfs-diff.tar", "ctr.log"] {
        assert!(fs::exists(format!("{image}/client/{name}")).unwrap(), "{name}");
    }
    call(&["image", "unpack", &exported, &image]).fails().complains("is not overwritten");

    call(&["image", "pack", &image, &packed]).ok();
    restore(&podman, &["--import", &packed]).ok();
    count(&podman, "web", 2);
    assert_eq!(podman.call(&["exec", "web", "cat", "/file"]).ok(), "before");
    podman.finish();
}

#[test]
fn networks_are_as_they_were() {
    let podman = podman();
    program("/usr/lib/cni/bridge", "containernetworking-plugins");
    let links = |name: &str| podman.call(&["exec", name, "ip", "-o", "addr", "show"]).ok();
    let address =
        |name: &str| podman.inspect(name, "{{.NetworkSettings.IPAddress}} {{.NetworkSettings.MacAddress}}");
    start(&podman, &["--network=podman"], "bridge");
    let before = address("bridge");
    assert!(before.len() > 2, "{before:?}");
    checkpoint(&podman, &["bridge"]).ok();
    restore(&podman, &["bridge"]).ok();
    assert_eq!(address("bridge"), before);
    assert!(links("bridge").contains(before.split(' ').next().unwrap()));
    count(&podman, "bridge", 1);

    // Under another name beside the first one it gets an address of its own.
    let file = podman.enclosure.path("exported");
    checkpoint(&podman, &["--leave-running", "--export", &file, "bridge"]).ok();
    let words = ["--ignore-static-ip", "--ignore-static-mac", "--import", &file, "--name=second"];
    restore(&podman, &words).ok();
    count(&podman, "second", 2);
    assert_ne!(address("second"), before);

    start(&podman, &["--network=host"], "host");
    checkpoint(&podman, &["host"]).ok();
    restore(&podman, &["host"]).ok();
    count(&podman, "host", 1);
    let namespace = |words: &[&str]| podman.enclosure.call(words).ok();
    let own = namespace(&["readlink", "/proc/self/ns/net"]);
    assert_eq!(podman.call(&["exec", "host", "readlink", "/proc/1/ns/net"]).ok(), own);
    podman.finish();
}

#[test]
fn a_container_of_a_pod_comes_back_into_it() {
    let podman = podman();
    let words =
        ["pod", "create", "--name=peas", "--infra-image=localhost/bb:latest", "--infra-command=sleep 1000"];
    let pod = podman.call(&[&words[..], &["--share=net,uts,ipc"]].concat()).ok();
    start(&podman, &["--pod=peas"], "one");
    count(&podman, "one", 1);
    checkpoint(&podman, &["one"]).ok();
    restore(&podman, &["one"]).ok();
    count(&podman, "one", 2);

    let file = podman.enclosure.path("exported");
    checkpoint(&podman, &["--export", &file, "one"]).ok();
    podman.call(&["rm", "one"]).ok();
    restore(&podman, &["--import", &file, "--pod", &pod]).ok();
    count(&podman, "one", 3);
    let infra = podman.call(&["pod", "inspect", "--format={{.InfraContainerID}}", "peas"]).ok();
    let namespace = |name: &str| {
        let pid = podman.inspect(name, "{{.State.Pid}}");
        podman.enclosure.call(["readlink", &format!("/proc/{pid}/ns/net")]).ok()
    };
    assert_eq!(namespace("one"), namespace(&infra));
    podman.finish();
}

#[test]
fn figures_are_printed() {
    let podman = podman();
    start(&podman, &[], "web");
    let figures = |done: Done| -> Value {
        let all: Value = serde_json::from_str(&done.ok()).unwrap();
        all["container_statistics"][0]["criu_statistics"].clone()
    };
    let dumped = figures(checkpoint(&podman, &["--print-stats", "web"]));
    assert!(dumped["pages_written"].as_u64().unwrap() > 0, "{dumped}");
    assert!(dumped["frozen_time"].as_u64().unwrap() > 0, "{dumped}");
    let restored = figures(restore(&podman, &["--print-stats", "web"]));
    assert!(restored["pages_restored"].as_u64().unwrap() > 0, "{restored}");
    assert!(restored["restore_time"].as_u64().unwrap() > 0, "{restored}");
    podman.finish();
}

#[test]
fn what_can_not_be_done_is_said_and_the_container_goes_on() {
    let podman = podman();
    start(&podman, &[], "web");
    checkpoint(&podman, &["--pre-checkpoint", "web"]).fails().complains("--pre-dump is not supported");
    count(&podman, "web", 1);
    start(&podman, &["--pid=host"], "host");
    checkpoint(&podman, &["host"]).fails().complains("only if it has a pid namespace of its own");
    count(&podman, "host", 1);
    // Killed by name: in the host's pid namespace nobody kills the children with their parent.
    podman.call(&["rm", "--force", "--time=0", "host"]).ok();

    // A process of `podman exec` is not the container's own.
    let mut visitor = podman.enclosure.command(podman.words(&["exec", "-i", "web", "cat"]));
    let mut visitor = visitor.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut stdin = visitor.stdin.take().unwrap();
    stdin.write_all(b"here\n").unwrap();
    let mut line = String::new();
    BufReader::new(visitor.stdout.take().unwrap()).read_line(&mut line).unwrap();
    checkpoint(&podman, &["web"]).fails().complains("cat");
    count(&podman, "web", 2);
    drop(stdin);
    assert!(visitor.wait().unwrap().success());

    // An image that was damaged.
    checkpoint(&podman, &["--keep", "web"]).ok();
    let pages = userdata(&podman, "web").join("checkpoint/tasks.json");
    let mut bytes = fs::read(&pages).unwrap();
    bytes[3] ^= 1;
    fs::write(&pages, &bytes).unwrap();
    restore(&podman, &["web"]).fails().complains("tasks.json");
    bytes[3] ^= 1;
    fs::write(&pages, &bytes).unwrap();
    restore(&podman, &["web"]).ok();
    count(&podman, "web", 3);
    podman.finish();
}

#[test]
fn as_criu_it_does_nothing_else() {
    let podman = podman();
    let criu = podman.enclosure.path("bin/criu");
    assert!(podman.enclosure.call([&criu, "--version"]).ok().starts_with("Version: 4."));
    for words in [&["dump", "-t", "1"][..], &["swrk"], &["swrk", "x"], &["swrk", "99"], &[]] {
        podman.enclosure.call([&[criu.as_str()], words].concat()).fails().complains("criu: ");
    }
    podman.enclosure.call([criu.as_str(), "check"]).fails().complains("this criu is ckrun");
}

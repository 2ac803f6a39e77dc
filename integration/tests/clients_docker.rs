//! ckrun as a runtime of Docker.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by a panic")]

use ckrun_integration::clients::{Daemon, Done, Enclosure, Terminal, ckrun, image, program};
use std::fs;

/// A dockerd with a containerd and a root of its own, and an image `bb` in it.
struct Docker {
    docker: Vec<String>,
    _daemon: Daemon,
    enclosure: Enclosure,
}

impl Docker {
    fn new() -> Self {
        let enclosure = Enclosure::new();
        let config = enclosure.path("daemon.json");
        let content = serde_json::json!({
            "runtimes": {"ckrun": {"path": ckrun()}},
            "default-runtime": "ckrun",
            "cgroup-parent": enclosure.cgroup(),
            "exec-opts": ["native.cgroupdriver=cgroupfs"],
            "storage-driver": "overlay2",
            "experimental": true,
            "iptables": false, "ip6tables": false, "bridge": "none",
            "data-root": enclosure.path("data"),
            "exec-root": enclosure.path("exec"),
            "pidfile": enclosure.path("pid"),
        });
        fs::write(&config, content.to_string()).unwrap();
        let dockerd = program("/usr/sbin/dockerd", "docker.io");
        let host = format!("--host=unix://{}", enclosure.path("sock"));
        let daemon = enclosure.daemon([&dockerd, "--config-file", &config, &host], "API listen on");
        let docker = Docker { docker: vec!["/usr/bin/docker".into(), host], _daemon: daemon, enclosure };
        let tar = image::rootfs_tar(docker.enclosure.dir());
        docker.call(&["import", tar.to_str().unwrap(), "bb"]).ok();
        docker
    }

    fn words(&self, words: &[&str]) -> Vec<String> {
        let mut all = self.docker.clone();
        all.extend(words.iter().map(|word| (*word).to_owned()));
        if words[0] == "run" && !words.iter().any(|word| word.starts_with("--network")) {
            all.insert(self.docker.len() + 1, "--network=none".into());
        }
        all
    }

    #[track_caller]
    fn call(&self, words: &[&str]) -> Done {
        self.enclosure.call(self.words(words))
    }

    fn terminal(&self, words: &[&str]) -> Terminal {
        self.enclosure.terminal(self.words(words))
    }

    #[track_caller]
    fn inspect(&self, name: &str, format: &str) -> String {
        self.call(&["inspect", "--format", format, name]).ok()
    }

    #[track_caller]
    fn finish(self) {
        assert_eq!(self.call(&["ps", "--all", "--quiet"]).ok(), "");
        let root = self.enclosure.path("exec/runtime-runc/moby");
        self.enclosure.assert_clean(&root, &[]);
    }
}

#[test]
fn jobs_run_to_their_end() {
    let docker = Docker::new();
    docker.call(&["run", "--rm", "bb", "true"]).exits(0);
    let done = docker.call(&["run", "--rm", "bb", "sh", "-c", "echo out; echo err >&2; exit 7"]).exits(7);
    assert_eq!((done.out.as_str(), done.err.as_str()), ("out\n", "err\n"));
    docker
        .call(&["run", "--rm", "bb", "no-such-command"])
        .exits(127)
        .complains("executable file not found in $PATH");
    docker.call(&["run", "--rm", "bb", "/no/such/command"]).exits(127).complains("no such file or directory");
    docker.call(&["run", "--rm", "bb", "/noexec"]).exits(126).complains("permission denied");
    docker.call(&["run", "--rm", "bb", "/tmp"]).exits(126);
    let cat = docker.words(&["run", "--rm", "-i", "bb", "cat"]);
    assert_eq!(docker.enclosure.call_with(cat, "through the pipe").ok(), "through the pipe");

    let words =
        ["run", "--rm", "--user=guest", "--hostname=wonderland", "--env=A=b c", "--workdir=/var", "bb"];
    let job = ["sh", "-c", "id -un; id -Gn; hostname; echo $A; pwd; grep -w Seccomp: /proc/self/status"];
    let out = docker.call(&[&words[..], &job].concat()).ok();
    assert_eq!(out, "guest\nguest friends\nwonderland\nb c\n/var\nSeccomp:\t2");
    let words = ["run", "--rm", "--read-only", "--tmpfs=/tmp", "bb", "sh", "-c", "touch /tmp/x && touch /x"];
    docker.call(&words).fails().complains("Read-only file system");
    // With Docker's own init in front of the job.
    let out =
        docker.call(&["run", "--rm", "--init", "bb", "sh", "-c", "cat /proc/1/comm; exit 3"]).exits(3).out;
    assert_eq!(out, "docker-init\n");
    let job = "mknod /tmp/kmsg c 1 11 && head -c0 /tmp/kmsg";
    let words = ["run", "--rm", "--cap-add=syslog", "bb", "sh", "-c", job];
    docker.call(&words).fails().complains("Operation not permitted");
    let words = [
        "run",
        "--rm",
        "--device=/dev/zero:/dev/nothing",
        "bb",
        "sh",
        "-c",
        "head -c 3 /dev/nothing | wc -c",
    ];
    assert_eq!(docker.call(&words).ok(), "3");
    // libnetwork's prestart hook hands over this network namespace: it has the loopback interface, which is up.
    assert!(
        docker.call(&["run", "--rm", "bb", "ip", "address", "show", "lo"]).ok().contains("inet 127.0.0.1/8")
    );
    let host = docker.enclosure.call(["readlink", "/proc/self/ns/net"]).ok();
    let namespace =
        |network: &str| docker.call(&["run", "--rm", network, "bb", "readlink", "/proc/self/ns/net"]).ok();
    assert_eq!(namespace("--network=host"), host);
    assert_ne!(namespace("--network=none"), host);
    docker.finish();
}

#[test]
fn a_container_obeys() {
    let docker = Docker::new();
    let job = "trap 'echo asked; exit 12' TERM; echo up; while :; do sleep 1; done";
    let limits =
        ["--memory=64m", "--memory-swap=64m", "--cpus=0.5", "--pids-limit=50", "--oom-score-adj=321"];
    let words = [&["run", "--detach", "--name=web"], &limits[..], &["bb", "sh", "-c", job]].concat();
    let id = docker.call(&words).ok();
    let cgroup = format!("{}/{id}", docker.enclosure.cgroup());
    let file = |v2, v1| docker.enclosure.cgroup_file(&cgroup, v2, v1);
    assert_eq!(file("memory.max", "memory.limit_in_bytes"), (64 << 20).to_string());
    assert_eq!(file("pids.max", "pids.max"), "50");
    assert!(["50000 100000", "50000"].contains(&file("cpu.max", "cpu.cfs_quota_us").as_str()));
    docker
        .call(&["update", "--memory=128m", "--memory-swap=128m", "--cpus=0.25", "--pids-limit=60", "web"])
        .ok();
    assert_eq!(file("memory.max", "memory.limit_in_bytes"), (128 << 20).to_string());
    assert_eq!(file("pids.max", "pids.max"), "60");
    assert!(["25000 100000", "25000"].contains(&file("cpu.max", "cpu.cfs_quota_us").as_str()));

    docker.call(&["exec", "web", "sh", "-c", "exit 9"]).exits(9);
    // The client of Docker 20.10 has one exit code for both, and says why on its standard output.
    let done = docker.call(&["exec", "web", "no-such-command"]).fails();
    assert!(done.out.contains("executable file not found in $PATH"), "{done:?}");
    let done = docker.call(&["exec", "web", "/noexec"]).exits(126);
    assert!(done.out.contains("permission denied"), "{done:?}");
    assert_eq!(
        docker.call(&["exec", "--user=guest", "--workdir=/var", "web", "sh", "-c", "id -un; pwd"]).ok(),
        "guest\n/var"
    );
    assert_eq!(docker.call(&["exec", "web", "cat", "/proc/1/oom_score_adj"]).ok(), "321");
    let mut shell = docker.terminal(&["exec", "-it", "web", "sh"]);
    shell.awaits("# ");
    // The client sets the size only after the start.
    shell.types("tty; until stty size | grep '^40 100'; do :; done; exit 5\n");
    let (code, seen) = shell.ends();
    assert_eq!(code, 5, "{seen:?}");
    assert!(seen.contains("/dev/pts/"), "{seen:?}");
    assert!(docker.call(&["top", "web"]).ok().contains("sh -c trap"));

    docker.call(&["pause", "web"]).ok();
    assert_eq!(docker.inspect("web", "{{.State.Status}}"), "paused");
    docker.call(&["exec", "web", "true"]).fails();
    docker.call(&["unpause", "web"]).ok();
    assert_eq!(docker.inspect("web", "{{.State.Status}}"), "running");
    let mut log = docker.terminal(&["logs", "--follow", "web"]);
    log.awaits("up\r\n");
    docker.call(&["stop", "--time=120", "web"]).ok();
    log.awaits("asked\r\n");
    assert_eq!(docker.inspect("web", "{{.State.Status}} {{.State.ExitCode}}"), "exited 12");
    docker.call(&["start", "web"]).ok();
    docker.call(&["restart", "--time=0", "web"]).ok();
    docker.call(&["kill", "web"]).ok();
    assert_eq!(docker.call(&["wait", "web"]).ok(), "137");
    docker.call(&["rm", "web"]).ok();

    let mut job = docker.terminal(&["run", "--rm", "-it", "bb", "sh"]);
    job.awaits("# ");
    job.types("test -t 0 && tty; exit 6\n");
    let (code, seen) = job.ends();
    assert_eq!((code, seen.contains("/dev/pts/0")), (6, true), "{seen:?}");

    // A job that needs more than it may have is killed, and Docker learns why.
    let words = ["run", "--name=eater", "--memory=32m", "--memory-swap=32m", "bb", "tail", "/dev/zero"];
    docker.call(&words).exits(137);
    docker.call(&["rm", "eater"]).ok();
    docker.call(&["run", "--detach", "--name=paused", "bb", "sleep", "1000"]).ok();
    docker.call(&["pause", "paused"]).ok();
    docker.call(&["rm", "--force", "paused"]).ok();
    docker
        .call(&["run", "--detach", "--name=host", "--pid=host", "bb", "sh", "-c", "sleep 1001 & sleep 1000"])
        .ok();
    docker.call(&["rm", "--force", "host"]).ok();
    docker.finish();
}

/// Checkpoints are an experimental feature of Docker.
#[test]
fn a_container_goes_on_from_a_checkpoint() {
    let docker = Docker::new();
    let job = "n=0; mkfifo /said; trap 'n=$((n+1)); echo count $n >/said' USR1; trap 'exit $((40+n))' TERM; \
               sleep 100000 & echo ready >/said; while :; do wait; done";
    docker.call(&["run", "-d", "--name=web", "bb", "sh", "-c", job]).ok();
    let said = |job: &str| docker.call(&["exec", "web", "sh", "-c", job]).ok();
    assert_eq!(said("until test -p /said; do :; done; cat /said"), "ready");
    let count = |n: u32| {
        docker.call(&["kill", "--signal=USR1", "web"]).ok();
        assert_eq!(said("cat /said"), format!("count {n}"));
    };
    count(1);
    // Another container's: a second one of this would meet the first one's description in containerd's store, and fail.
    docker.call(&["run", "-d", "--name=other", "bb", "sleep", "100000"]).ok();
    docker.call(&["checkpoint", "create", "--leave-running", "other", "first"]).ok();
    docker.call(&["exec", "other", "true"]).ok();
    assert!(docker.call(&["checkpoint", "ls", "other"]).ok().contains("first"));
    docker.call(&["rm", "--force", "other"]).ok();
    count(2);
    docker.call(&["checkpoint", "create", "web", "second"]).ok();
    assert_eq!(docker.call(&["wait", "web"]).ok(), "137");
    let list = docker.call(&["checkpoint", "ls", "web"]).ok();
    assert!(list.contains("second"), "{list}");
    // Docker puts the checkpoint into containerd's store, which may still have it from its making until that is collected.
    let start = || docker.call(&["start", "--checkpoint=second", "web"]);
    let mut tries = (0..100).map(|_| start());
    let started =
        tries.find(|done| !done.err.contains("already exists")).expect("containerd's store is cleared");
    started.ok();
    assert_eq!(docker.inspect("web", "{{.State.Status}}"), "running");
    count(3);
    docker.call(&["stop", "--time=120", "web"]).ok();
    assert_eq!(docker.inspect("web", "{{.State.ExitCode}}"), "43");
    docker.call(&["rm", "web"]).ok();
    docker.finish();
}

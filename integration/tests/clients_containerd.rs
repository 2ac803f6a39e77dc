//! ckrun under containerd, with its shim runc.v2 and its client ctr.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by a panic")]

use ckrun_integration::clients::Containerd;

#[test]
fn jobs_run_to_their_end() {
    let containerd = Containerd::new();
    containerd.run(&["--rm"], "one", &["true"]).exits(0);
    let done = containerd.run(&["--rm"], "one", &["sh", "-c", "echo out; echo err >&2; exit 7"]).exits(7);
    assert_eq!((done.out.as_str(), done.err.trim_end()), ("out\n", "err"));
    let words = containerd.run_words(&["--rm"], "one", &["sh", "-c", "read line; echo got $line"]);
    assert_eq!(containerd.enclosure.call_with(words, "a line\n").ok(), "got a line");

    // containerd passes on what ckrun has written to its log.
    containerd
        .run(&["--rm"], "one", &["no-such-command"])
        .fails()
        .complains("executable file not found in $PATH");
    containerd.run(&["--rm"], "one", &["/noexec"]).fails().complains("permission denied");
    containerd.run(&["--rm", "--cwd=/noexec"], "one", &["true"]).fails().complains("/noexec");

    let job =
        ["sh", "-c", "grep -w Seccomp: /proc/self/status; readlink /proc/self/ns/net; ls /sys/class/net"];
    let out = containerd.run(&["--rm", "--seccomp", "--net-host"], "one", &job).ok();
    let host = containerd.enclosure.call(["readlink", "/proc/self/ns/net"]).ok();
    assert!(out.starts_with(&format!("Seccomp:\t2\n{host}\n")), "{out}");
    let job = ["sh", "-c", "cat /proc/self/uid_map | xargs; touch /x && stat -c %u /x"];
    let maps = ["--rm", "--uidmap=0:100000:3000", "--gidmap=0:100000:3000"];
    assert_eq!(containerd.run(&maps, "one", &job).ok(), "0 100000 3000\n0");
    containerd
        .run(&["--rm", "--read-only"], "one", &["touch", "/x"])
        .fails()
        .complains("Read-only file system");
    let limits = ["--memory-limit=67108864", "--cpu-quota=50000", "--cpu-period=100000", "--env=A=b"];
    containerd.run(&[&limits[..], &["--detach"]].concat(), "limited", &["sleep", "1000"]).ok();
    let cgroup = format!("{}/limited", containerd.enclosure.cgroup());
    let memory = containerd.enclosure.cgroup_file(&cgroup, "memory.max", "memory.limit_in_bytes");
    assert_eq!(memory, (64 << 20).to_string());
    // ctr may lose what a short process of `exec` wrote, but not how it ended.
    containerd.exec("limited", &[], &["sh", "-c", "test $A = b"]).exits(0);
    containerd.remove("limited");
    containerd.finish();
}

#[test]
fn a_task_obeys() {
    let containerd = Containerd::new();
    containerd.run(&["--detach"], "web", &["sleep", "1000"]).ok();
    assert_eq!(containerd.status("web"), "RUNNING");
    containerd.exec("web", &[], &["sh", "-c", "exit 9"]).exits(9);
    containerd.exec("web", &[], &["no-such-command"]).fails().complains("executable file not found in $PATH");
    let job = ["sh", "-c", "test $(id -u):$(pwd) = 1000:/var"];
    containerd.exec("web", &["--user=1000:1000", "--cwd=/var"], &job).exits(0);
    containerd.exec("web", &[], &["grep", "-qx", "sleep", "/proc/1/comm"]).exits(0);
    // The header and the one process, by its host id.
    let processes = containerd.call(&["task", "ps", "web"]).ok();
    let pid = processes.lines().nth(1).and_then(|line| line.split_whitespace().next()).unwrap();
    let comm = containerd.enclosure.call(["cat", &format!("/proc/{pid}/comm")]).ok();
    assert_eq!((processes.lines().count(), comm.as_str()), (2, "sleep"), "{processes}");

    containerd.call(&["task", "pause", "web"]).ok();
    assert_eq!(containerd.status("web"), "PAUSED");
    containerd.call(&["task", "pause", "web"]).fails();
    containerd.exec("web", &[], &["true"]).fails();
    containerd.call(&["task", "resume", "web"]).ok();
    assert_eq!(containerd.status("web"), "RUNNING");

    let shell = ["task", "exec", "--exec-id=shell", "--tty", "web", "sh"];
    let mut shell = containerd.terminal(containerd.words(&shell));
    shell.awaits("# ");
    // The client may set the size only after the start.
    shell.types("tty; until stty size | grep '^40 100'; do :; done; exit 5\n");
    let (code, seen) = shell.ends();
    assert_eq!(code, 5, "{seen:?}");
    assert!(seen.contains("\n/dev/pts/"), "{seen:?}");

    containerd.call(&["container", "rm", "web"]).fails();
    containerd.remove("web");
    let words = containerd.run_words(&["--rm", "--tty"], "tty", &["sh", "-c", "echo up; exec sleep 1000"]);
    let mut job = containerd.terminal(words);
    job.awaits("up\r");
    containerd.call(&["task", "kill", "--signal=KILL", "tty"]).ok();
    assert_eq!(job.ends().0, 137);

    // A signal that the job handles, sent to the container whose end ctr waits for.
    let job = "trap 'echo asked; exit 12' TERM; echo up; while :; do sleep 1; done";
    let mut web = containerd.terminal(containerd.run_words(&["--rm", "--tty"], "tty", &["sh", "-c", job]));
    web.awaits("up\r");
    containerd.call(&["task", "kill", "--signal=TERM", "tty"]).ok();
    let (code, seen) = web.ends();
    assert_eq!((code, seen.contains("asked")), (12, true), "{seen:?}");

    // A paused one goes as well, and one whose id is taken is refused.
    containerd.run(&["--detach"], "web", &["sleep", "1000"]).ok();
    containerd.run(&["--detach"], "web", &["sleep", "1000"]).fails().complains("already exists");
    containerd.call(&["task", "pause", "web"]).ok();
    containerd.remove("web");

    // In the host's pid namespace the children of the first process are killed with it (`kill --all`).
    let job = ["sh", "-c", "sleep 1001 & sleep 1000"];
    let host = "--with-ns=pid:/proc/1/ns/pid";
    containerd.run(&["--detach", host], "host", &job).ok();
    containerd.remove("host");
    containerd.finish();
}

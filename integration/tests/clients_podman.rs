//! ckrun as podman's runtime.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by a panic")]

use ckrun_integration::clients::{Enclosure, Podman, ckrun, image, podman, program};
use ckrun_integration::run::install;
use serde_json::Value;
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};

#[test]
fn exit_codes_are_passed_on() {
    let podman = Podman::new();
    podman.call(&["run", "--rm", "bb", "true"]).exits(0);
    podman.call(&["run", "--rm", "bb", "sh", "-c", "exit 7"]).exits(7);
    podman
        .call(&["run", "--rm", "bb", "no-such-command"])
        .exits(127)
        .complains("executable file not found in $PATH");
    podman.call(&["run", "--rm", "bb", "/no/such/command"]).exits(127).complains("no such file or directory");
    podman.call(&["run", "--rm", "bb", "/noexec"]).exits(126).complains("permission denied");
    podman.call(&["run", "--rm", "bb", "/tmp"]).exits(126);
    podman.call(&["run", "--rm", "--workdir=/no/where", "bb", "true"]).fails();
    podman.finish();
}

#[test]
fn streams_user_and_environment_reach_the_job() {
    let podman = Podman::new();
    let cat = podman.words(&["run", "--rm", "-i", "bb", "cat"]);
    assert_eq!(podman.enclosure.call_with(cat, "through the pipe").ok(), "through the pipe");
    let done = podman.call(&["run", "--rm", "bb", "sh", "-c", "echo out; echo err >&2"]).exits(0);
    assert_eq!((done.out.as_str(), done.err.as_str()), ("out\n", "err\n"));

    let id = podman.call(&["run", "--rm", "--user=guest", "bb", "id"]).ok();
    assert_eq!(id, "uid=1000(guest) gid=1000(guest) groups=1000(guest),2000(friends)");
    let id = podman.call(&["run", "--rm", "--user=5:6", "--group-add=7", "bb", "id"]).ok();
    assert_eq!(id, "uid=5(5) gid=6(6) groups=6(6),7");
    let words = ["run", "--rm", "--hostname=wonderland", "--env=A=b c", "--workdir=/var", "bb", "sh", "-c"];
    let job = "hostname; echo $A; pwd; cat /etc/hostname; umask; echo $$";
    let out = podman.call(&[&words[..], &[job]].concat()).ok();
    assert_eq!(out, "wonderland\nb c\n/var\nwonderland0022\n1");

    // The engine's descriptors from 3 on belong to the job if it asks for them, and none does otherwise.
    let file = podman.enclosure.path("kept");
    fs::write(&file, "kept open").unwrap();
    let line = |flags: &str| {
        let podman = podman.words(&["run", "--rm"]).join(" ");
        format!("exec 3<{file}; {podman} {flags} bb sh -c 'ls /proc/self/fd | xargs; cat <&3'")
    };
    let out = podman.enclosure.call(["sh", "-c", &line("--preserve-fds=1")]).ok();
    assert_eq!(out, "0 1 2 3 4\nkept open");
    podman.enclosure.call(["sh", "-c", &line("")]).fails().complains("3: Bad file descriptor");
    podman.finish();
}

#[test]
fn exec_joins_the_container() {
    let podman = Podman::new();
    podman.call(&["run", "-d", "--name=web", "--env=A=run", "--hostname=web", "bb", "sleep", "1000"]).ok();
    podman.call(&["exec", "web", "sh", "-c", "exit 9"]).exits(9);
    podman
        .call(&["exec", "web", "no-such-command"])
        .exits(127)
        .complains("executable file not found in $PATH");
    podman.call(&["exec", "web", "/noexec"]).exits(126).complains("permission denied");
    assert_eq!(podman.call(&["exec", "web", "cat", "/proc/1/comm"]).ok(), "sleep");
    assert_eq!(podman.call(&["exec", "web", "hostname"]).ok(), "web");
    assert_eq!(podman.call(&["exec", "--env=B=exec", "web", "sh", "-c", "echo $A $B"]).ok(), "run exec");
    assert_eq!(podman.call(&["exec", "--user=guest", "web", "id", "-un"]).ok(), "guest");
    assert_eq!(podman.call(&["exec", "--workdir=/var", "web", "pwd"]).ok(), "/var");
    let cat = podman.words(&["exec", "-i", "web", "cat"]);
    assert_eq!(podman.enclosure.call_with(cat, "to the second job").ok(), "to the second job");
    // An exec'ed process is in the container's cgroups.
    let groups =
        |process: &str| podman.call(&["exec", "web", "cat", &format!("/proc/{process}/cgroup")]).ok();
    assert_eq!(groups("self"), groups("1"));

    // In the background: the FIFO tells when it runs.
    podman.call(&["exec", "web", "mkfifo", "/tmp/fifo"]).ok();
    podman.call(&["exec", "-d", "web", "sh", "-c", "echo detached > /tmp/fifo"]).ok();
    assert_eq!(podman.call(&["exec", "web", "cat", "/tmp/fifo"]).ok(), "detached");

    let mut shell = podman.terminal(&["exec", "-it", "web", "sh"]);
    shell.awaits("# ");
    shell.types("stty size; tty; exit 5\n");
    let (code, seen) = shell.ends();
    assert_eq!(code, 5, "{seen:?}");
    assert!(seen.contains("40 100\r\n/dev/pts/"), "{seen:?}");
    podman.finish();
}

#[test]
fn a_terminal_is_a_terminal() {
    let podman = Podman::new();
    let mut shell = podman.terminal(&["run", "--rm", "-it", "bb", "sh"]);
    shell.awaits("# ");
    shell.types("test -t 0 && tty; stty size\n");
    shell.awaits("/dev/pts/0\r\n40 100\r\n");
    // The terminal is the controlling one: the interrupt key ends the foreground job and not the shell.
    shell.types("sh -c 'trap \"echo stopped; exit\" INT; echo at work; while :; do sleep 1; done'\n");
    shell.awaits("\nat work\r\n");
    shell.types("\x03");
    shell.awaits("stopped\r\n");
    shell.types("exit 3\n");
    let (code, seen) = shell.ends();
    assert_eq!(code, 3, "{seen:?}");

    // The job hears of a window's new size, and of the keys that are signals.
    let job = "trap 'stty size' WINCH; trap 'exit 4' INT; echo up; while :; do sleep 1; done";
    let mut job = podman.terminal(&["run", "--rm", "-it", "bb", "sh", "-c", job]);
    job.awaits("up\r\n");
    job.resize(30, 90);
    job.awaits("30 90\r\n");
    job.types("\x03");
    assert_eq!(job.ends().0, 4);
    podman.finish();
}

#[test]
fn a_container_lives_and_dies_as_told() {
    let podman = Podman::new();
    let job = "trap 'echo asked; exit 12' TERM; echo started; while :; do sleep 1; done";
    let id = podman.call(&["run", "-d", "--name=web", "bb", "sh", "-c", job]).ok();
    let status = || podman.inspect("web", "{{.State.Status}}");
    assert_eq!(status(), "running");
    assert_eq!(podman.call(&["ps", "--no-trunc", "--format={{.ID}}"]).ok(), id);
    podman.await_log("web", "started");

    podman.call(&["pause", "web"]).ok();
    assert_eq!(status(), "paused");
    assert_eq!(frozen(&podman, "web"), "yes");
    podman.call(&["exec", "web", "true"]).fails();
    podman.call(&["unpause", "web"]).ok();
    assert_eq!((status().as_str(), frozen(&podman, "web")), ("running", "no"));

    podman.call(&["stop", "--time=120", "web"]).ok();
    assert_eq!(podman.inspect("web", "{{.State.Status}} {{.State.ExitCode}}"), "exited 12");
    assert_eq!(podman.call(&["logs", "web"]).ok(), "started\nasked");
    podman.call(&["exec", "web", "true"]).fails();

    podman.call(&["start", "web"]).ok();
    podman.call(&["restart", "--time=0", "web"]).ok();
    podman.call(&["kill", "--signal=KILL", "web"]).ok();
    assert_eq!(podman.call(&["wait", "web"]).ok(), "137");
    podman.call(&["start", "web"]).ok();
    podman.call(&["kill", "--signal=TERM", "web"]).ok();
    podman.call(&["wait", "web"]).ok();
    podman.call(&["rm", "web"]).ok();
    podman.call(&["inspect", "web"]).fails();

    // By force: a running one that ignores signals, a paused one, one that has only been created, and one in the host's pid
    // namespace with a second process.
    podman
        .call(&["run", "-d", "--name=deaf", "bb", "sh", "-c", "trap '' TERM; while :; do sleep 1000; done"])
        .ok();
    podman.call(&["stop", "--time=1", "deaf"]).ok();
    assert_eq!(podman.inspect("deaf", "{{.State.ExitCode}}"), "137");
    podman.call(&["start", "deaf"]).ok();
    podman.call(&["rm", "--force", "--time=0", "deaf"]).ok();
    podman.call(&["run", "-d", "--name=paused", "bb", "sleep", "1000"]).ok();
    podman.call(&["pause", "paused"]).ok();
    podman.call(&["rm", "--force", "--time=0", "paused"]).ok();
    podman.call(&["create", "--name=created", "bb", "sleep", "1000"]).ok();
    podman.call(&["init", "created"]).ok();
    assert_eq!(podman.inspect("created", "{{.State.Status}}"), "initialized");
    podman.call(&["rm", "--force", "--time=0", "created"]).ok();
    podman
        .call(&["run", "-d", "--name=host", "--pid=host", "bb", "sh", "-c", "sleep 1001 & sleep 1000"])
        .ok();
    podman.call(&["rm", "--force", "--time=0", "host"]).ok();
    podman.finish();
}

/// Whether the kernel has frozen the container.
fn frozen(podman: &Podman, name: &str) -> &'static str {
    match podman.enclosure.cgroup_file(&podman.cgroup(name), "cgroup.freeze", "freezer.state").as_str() {
        "1" | "FROZEN" => "yes",
        "0" | "THAWED" => "no",
        _ => "on the way",
    }
}

#[test]
fn containers_can_be_watched() {
    let podman = Podman::new();
    let words =
        ["run", "-d", "--name=web", "--health-cmd=test -e /tmp/healthy", "--health-interval=disable", "bb"];
    podman.call(&[&words[..], &["sleep", "1000"]].concat()).ok();
    podman.call(&["healthcheck", "run", "web"]).exits(1);
    podman.call(&["exec", "web", "touch", "/tmp/healthy"]).ok();
    podman.call(&["healthcheck", "run", "web"]).exits(0);

    let top = podman.call(&["top", "web", "pid", "comm", "user"]).ok();
    assert_eq!(
        top.lines().nth(1).map(|l| l.split_whitespace().collect()),
        Some(vec!["1", "sleep", "root"]),
        "{top}"
    );
    let stats = podman.call(&["stats", "--no-stream", "--format=json", "web"]).ok();
    let stats: Value = serde_json::from_str(&stats).unwrap();
    assert_eq!(stats[0]["pids"], "1", "{stats}");
    assert!(!stats[0]["mem_usage"].as_str().unwrap().starts_with("0B"), "{stats}");

    let pid = podman.inspect("web", "{{.State.Pid}}");
    let comm = podman.enclosure.call(["cat", &format!("/proc/{pid}/comm")]).ok();
    assert_eq!(comm, "sleep");
    assert_eq!(podman.inspect("web", "{{.OCIRuntime}}"), "ckrun");
    let info = podman.call(&["info", "--format={{.Host.OCIRuntime.Version}}"]).ok();
    assert!(info.contains("ckrun version "), "{info}");
    podman.finish();
}

#[test]
fn limits_hold_and_can_be_changed() {
    let podman = Podman::new();
    let limits = ["--memory=64m", "--memory-swap=64m", "--cpus=0.5", "--cpu-shares=512", "--pids-limit=50"];
    let more = ["--cpuset-cpus=0", "--oom-score-adj=321", "--shm-size=1m"];
    let ulimits = ["--ulimit=nofile=100:200", "--ulimit=nproc=300:400"];
    let words =
        [&["run", "-d", "--name=web"], &limits[..], &more[..], &ulimits[..], &["bb", "sleep", "1000"]]
            .concat();
    podman.call(&words).ok();
    let cgroup = podman.cgroup("web");
    let file = |v2, v1| podman.enclosure.cgroup_file(&cgroup, v2, v1);
    assert_eq!(file("memory.max", "memory.limit_in_bytes"), (64 << 20).to_string());
    assert_eq!(file("pids.max", "pids.max"), "50");
    assert_eq!(file("cpuset.cpus", "cpuset.cpus"), "0");
    assert!(["50000 100000", "50000"].contains(&file("cpu.max", "cpu.cfs_quota_us").as_str()));
    let inside = |job: &str| podman.call(&["exec", "web", "sh", "-c", job]).ok();
    assert_eq!(inside("cat /proc/1/oom_score_adj; ulimit -n; ulimit -Hn"), "321\n100\n200");
    assert!(inside("df -k /dev/shm").contains(" 1024 "));

    podman.call(&["update", "--memory=128m", "--memory-swap=128m", "--cpus=0.25", "web"]).ok();
    assert_eq!(file("memory.max", "memory.limit_in_bytes"), (128 << 20).to_string());
    assert!(["25000 100000", "25000"].contains(&file("cpu.max", "cpu.cfs_quota_us").as_str()));

    // A job that needs more than it may have is killed, and podman learns why.
    let eat = "head -c 200m /dev/zero | tail >/dev/null & wait $!; tail /dev/zero";
    let limits = ["--memory=32m", "--memory-swap=32m"];
    podman.call(&[&["run", "--name=eater"], &limits[..], &["bb", "sh", "-c", eat]].concat()).exits(137);
    assert_eq!(podman.inspect("eater", "{{.State.ExitCode}}"), "137");
    podman
        .call(&["run", "--rm", "--pids-limit=3", "bb", "sh", "-c", "sleep 9 & sleep 9 & sleep 9 & sleep 9"])
        .fails();
    podman.finish();
}

#[test]
fn pods_share_namespaces() {
    let podman = Podman::new();
    let words =
        ["pod", "create", "--name=peas", "--infra-image=localhost/bb:latest", "--infra-command=sleep 1000"];
    podman.call(&[&words[..], &["--share=net,uts,ipc,pid", "--hostname=pod"]].concat()).ok();
    podman.call(&["run", "-d", "--pod=peas", "--name=one", "bb", "sleep", "1000"]).ok();
    podman.call(&["run", "-d", "--pod=peas", "--name=two", "bb", "sleep", "1000"]).ok();
    let namespace = |name: &str, kind: &str| {
        podman.call(&["exec", name, "readlink", &format!("/proc/self/ns/{kind}")]).ok()
    };
    for kind in ["net", "uts", "ipc", "pid"] {
        assert_eq!(namespace("one", kind), namespace("two", kind), "{kind}");
    }
    assert_ne!(namespace("one", "mnt"), namespace("two", "mnt"));
    assert_eq!(podman.call(&["exec", "one", "hostname"]).ok(), "pod");
    // The processes of the one are seen in the other, and the pod goes as a whole.
    assert!(podman.call(&["exec", "one", "ps"]).ok().matches("sleep 1000").count() >= 2);
    podman.call(&["pod", "pause", "peas"]).ok();
    podman.call(&["pod", "unpause", "peas"]).ok();
    podman.call(&["pod", "stop", "--time=0", "peas"]).ok();
    podman.call(&["pod", "start", "peas"]).ok();
    assert_eq!(podman.inspect("two", "{{.State.Status}}"), "running");

    // The same without a pod.
    podman.call(&["run", "-d", "--name=base", "--ipc=shareable", "bb", "sleep", "1000"]).ok();
    let joined = ["--pid=container:base", "--network=container:base", "--ipc=container:base"];
    let job = "readlink /proc/self/ns/net; readlink /proc/1/ns/net; cat /proc/1/comm";
    let job = ["bb", "sh", "-c", job];
    let out = podman.call(&[&["run", "--rm"], &joined[..], &job[..]].concat()).ok();
    let lines: Vec<&str> = out.lines().collect();
    assert_eq!((lines[0], lines[2]), (lines[1], "sleep"));
    podman.finish();
}

#[test]
fn root_file_systems_and_mounts() {
    let podman = Podman::new();
    // podman asks for tmpfs with `tmpcopyup` on /tmp, /run and /var/tmp.
    let job =
        "touch /x; touch /var/tmp/mine && cat /var/tmp/copied && grep -c ' /var/tmp tmpfs ' /proc/mounts";
    let done = podman.call(&["run", "--rm", "--read-only", "bb", "sh", "-c", job]).exits(0);
    assert_eq!(done.out, "from the image\n1\n");
    assert!(done.err.contains("Read-only file system"), "{}", done.err);

    let volume = podman.enclosure.path("volume");
    fs::create_dir(&volume).unwrap();
    fs::write(format!("{volume}/file"), "shared\n").unwrap();
    let ro = format!("--volume={volume}:/ro:ro");
    let rw = format!("--volume={volume}:/rw");
    let tmpfs = "--mount=type=tmpfs,destination=/small,tmpfs-size=64k,tmpfs-mode=1777";
    let job = "cat /ro/file; echo new > /rw/new; echo x > /ro/no || cat /ro/new; df -k /small | tail -n1; stat -c %a /small";
    let out = podman.call(&["run", "--rm", &ro, &rw, tmpfs, "bb", "sh", "-c", job]).ok();
    assert!(out.starts_with("shared\nnew\ntmpfs ") && out.ends_with("1777") && out.contains(" 64 "), "{out}");
    assert_eq!(fs::read_to_string(format!("{volume}/new")).unwrap(), "new\n");

    // What the engine masks, and what of /proc and /sys is read-only.
    let job = "cat /proc/kcore | wc -c; echo 1 > /proc/sys/kernel/panic; mkdir /sys/fs/cgroup/x";
    let done = podman.call(&["run", "--rm", "bb", "sh", "-c", job]).fails();
    assert_eq!(done.out, "0\n");
    assert_eq!(done.err.matches("Read-only file system").count(), 2, "{}", done.err);
    let out = podman
        .call(&["run", "--rm", "--sysctl=kernel.msgmax=4321", "bb", "cat", "/proc/sys/kernel/msgmax"])
        .ok();
    assert_eq!(out, "4321");
    podman.finish();
}

#[test]
fn devices_are_those_asked_for() {
    let podman = Podman::new();
    let job = "head -c 3 /dev/nothing | od -An -tx1; ls /dev";
    let out = podman.call(&["run", "--rm", "--device=/dev/zero:/dev/nothing:r", "bb", "sh", "-c", job]).ok();
    assert!(out.starts_with("00 00 00"), "{out}");
    let names: Vec<&str> = out.lines().skip(1).collect();
    assert!(
        ["full", "null", "nothing", "ptmx", "pts", "random", "shm", "tty", "urandom", "zero"]
            .iter()
            .all(|n| names.contains(n))
    );
    // 1:11 is /dev/kmsg: its node can be made, but not opened.
    let job = "mknod /tmp/kmsg c 1 11 && head -c0 /tmp/kmsg";
    let words = ["run", "--rm", "--cap-add=syslog"];
    let job = ["bb", "sh", "-c", job];
    podman.call(&[&words[..], &job].concat()).fails().complains("Operation not permitted");
    podman.call(&[&words[..], &["--device-cgroup-rule=c 1:11 r"], &job].concat()).ok();
    podman.finish();
}

#[test]
fn a_user_namespace_maps_ids() {
    let podman = Podman::new();
    let maps = ["--uidmap=0:100000:3000", "--gidmap=0:200000:3000"];
    podman.call(&[&["run", "-d", "--name=web"], &maps[..], &["bb", "sleep", "1000"]].concat()).ok();
    let inside = |job: &str| podman.call(&["exec", "web", "sh", "-c", job]).ok();
    let map = inside("cat /proc/self/uid_map");
    assert_eq!(map.split_whitespace().collect::<Vec<_>>(), ["0", "100000", "3000"]);
    assert_eq!(
        inside("id -u; stat -c %u:%g /bin/busybox; touch /tmp/mine && stat -c %u /tmp/mine"),
        "0\n0:0\n0"
    );
    let pid = podman.inspect("web", "{{.State.Pid}}");
    let owner = podman.enclosure.call(["stat", "-c", "%u:%g", &format!("/proc/{pid}/root/tmp/mine")]).ok();
    assert_eq!(owner, "100000:200000");
    let out = podman.call(&["exec", "--user=guest", "web", "id", "-u"]).ok();
    assert_eq!(out, "1000");
    let words = [
        &["run", "--rm", "--read-only", "-t"],
        &maps[..],
        &["bb", "sh", "-c", "test -t 0 && ls -n /dev/null"],
    ]
    .concat();
    assert!(podman.call(&words).ok().contains("65534"));
    podman.finish();
}

#[test]
fn the_engines_confinement_is_applied() {
    let podman = Podman::new();
    let run = |options: &[&str], job: &str| {
        podman.call(&[&["run", "--rm"], options, &["bb", "sh", "-c", job]].concat())
    };
    // podman's default profile forbids swapoff(2) even to CAP_SYS_ADMIN, to whom the kernel says that nothing is swapped here.
    run(&["--cap-add=sys_admin"], "swapoff /etc/passwd").fails().complains("Operation not permitted");
    let unconfined = ["--cap-add=sys_admin", "--security-opt=seccomp=unconfined"];
    run(&unconfined, "swapoff /etc/passwd").fails().complains("Invalid argument");
    assert_eq!(run(&[], "grep -w Seccomp: /proc/self/status").ok(), "Seccomp:\t2");
    assert_eq!(
        run(&["--security-opt=seccomp=unconfined"], "grep -w Seccomp: /proc/self/status").ok(),
        "Seccomp:\t0"
    );
    let profile = podman.enclosure.path("profile.json");
    let rule = r#"{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 28}"#;
    fs::write(&profile, format!(r#"{{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{rule}]}}"#)).unwrap();
    run(&[&format!("--security-opt=seccomp={profile}")], "mkdir /x")
        .fails()
        .complains("No space left on device");

    let caps = "grep -E 'CapEff|CapBnd|CapPrm' /proc/self/status | cut -f2 | xargs";
    let none = "0000000000000000";
    assert_eq!(run(&["--cap-drop=all"], caps).ok(), [none; 3].join(" "));
    let chown = "0000000000000001";
    assert_eq!(run(&["--cap-drop=all", "--cap-add=chown"], caps).ok(), [chown; 3].join(" "));
    assert!(run(&["--user=guest"], caps).ok().starts_with(&format!("{none} {none} ")));
    let flag = "grep NoNewPrivs /proc/self/status";
    assert_eq!(run(&["--security-opt=no-new-privileges"], flag).ok(), "NoNewPrivs:\t1");
    assert_eq!(run(&[], flag).ok(), "NoNewPrivs:\t0");
    podman.finish();
}

#[test]
fn hooks_run_around_the_job() {
    let podman = Podman::new();
    let hooks = podman.enclosure.path("hooks");
    let log = podman.enclosure.path("hooks.log");
    let script = podman.enclosure.path("hook.sh");
    fs::create_dir(&hooks).unwrap();
    fs::write(&script, "#!/bin/sh\nread -r state\necho \"$1 $state\" >> \"$2\"\n").unwrap();
    podman.enclosure.call(["chmod", "755", &script]).ok();
    let stages = ["prestart", "createRuntime", "poststart", "poststop"];
    for stage in stages {
        let hook = serde_json::json!({"version": "1.0.0", "when": {"always": true}, "stages": [stage],
            "hook": {"path": script, "args": [script, stage, log]}});
        fs::write(format!("{hooks}/{stage}.json"), hook.to_string()).unwrap();
    }
    let mut words = podman.words(&["run", "--name=web", "bb", "true"]);
    words.insert(1, format!("--hooks-dir={hooks}"));
    podman.enclosure.call(words).ok();
    let id = podman.inspect("web", "{{.Id}}");
    podman.call(&["rm", "web"]).ok();
    let log = fs::read_to_string(&log).unwrap();
    let seen: Vec<(&str, Value)> = log
        .lines()
        .map(|line| line.split_once(' ').unwrap())
        .map(|(stage, state)| (stage, serde_json::from_str(state).unwrap()))
        .collect();
    assert_eq!(seen.iter().map(|(stage, _)| *stage).collect::<Vec<_>>(), stages, "{log}");
    assert!(seen.iter().all(|(_, state)| state["id"] == id.as_str()), "{log}");
    podman.finish();
}

#[test]
fn containers_can_stay_in_the_engines_cgroup() {
    let podman = Podman::new();
    let words = ["run", "--rm", "--cgroups=disabled", "bb", "sh", "-c", "echo up; exit 6"];
    // Without a cgroup of its own there is no parent to name.
    let all: Vec<String> =
        podman.words(&words).into_iter().filter(|w| !w.starts_with("--cgroup-parent")).collect();
    let done = podman.enclosure.call(all).exits(6);
    assert_eq!(done.out, "up\n");
    podman.finish();
}

#[test]
fn containers_meet_on_a_bridge() {
    let podman = Podman::new();
    program("/usr/lib/cni/bridge", "containernetworking-plugins");
    podman
        .call(&["run", "-d", "--name=web", "--network=podman", "bb", "sh", "-c", "echo hello | nc -l -p 80"])
        .ok();
    let address = podman.inspect("web", "{{.NetworkSettings.IPAddress}}");
    let job = format!("until nc {address} 80 </dev/null; do :; done");
    assert_eq!(podman.call(&["run", "--rm", "--network=podman", "bb", "sh", "-c", &job]).ok(), "hello");
    podman.finish();
}

/// podman of an ordinary user starts the runtime as root of a user namespace, without a right to any cgroup.
#[test]
fn an_ordinary_user_can_run_containers() {
    let mut enclosure = Enclosure::new();
    program("/usr/bin/newuidmap", "uidmap");
    let (user, id) = ("ordinary", 4242);
    for (file, line) in [
        ("/etc/passwd", format!("{user}:x:{id}:{id}::{}:/bin/sh", enclosure.path("home"))),
        ("/etc/group", format!("{user}:x:{id}:")),
        ("/etc/subuid", format!("{user}:500000:65536")),
        ("/etc/subgid", format!("{user}:500000:65536")),
    ] {
        let own = enclosure.path(&file.replace('/', "_"));
        let known = fs::read_to_string(file).unwrap_or_default();
        fs::write(&own, format!("{known}{line}\n")).unwrap();
        fs::set_permissions(&own, fs::Permissions::from_mode(0o644)).unwrap();
        enclosure.call(["mount", "--bind", &own, file]).ok();
    }
    // What the user must be able to reach, and what must be the user's own.
    let runtime = enclosure.dir().join("ckrun");
    install(&ckrun(), &runtime);
    let conf = podman::configuration(&enclosure, &runtime);
    let tar = image::rootfs_tar(enclosure.dir());
    fs::set_permissions(enclosure.dir(), fs::Permissions::from_mode(0o755)).unwrap();
    let (home, run) = (enclosure.path("home"), enclosure.path("xdg"));
    for dir in [&home, &run] {
        fs::create_dir(dir).unwrap();
        fs::set_permissions(dir, fs::Permissions::from_mode(0o700)).unwrap();
        chown(dir, Some(id), Some(id)).unwrap();
    }
    for (name, value) in [("CONTAINERS_CONF", &conf), ("HOME", &home), ("XDG_RUNTIME_DIR", &run)] {
        enclosure.set_env(name, value);
    }
    let podman = |words: &str| {
        let become_user =
            format!("cd {home}; exec setpriv --reuid={id} --regid={id} --init-groups /usr/bin/podman");
        let places =
            format!("--root={home}/root --runroot={run}/run --tmpdir={run}/tmp --storage-driver=overlay");
        enclosure.call(["sh", "-c", &format!("{become_user} {places} {words}")])
    };
    podman(&format!("import {} bb", tar.display())).ok();
    let out =
        podman("run --rm --network=none bb sh -c 'id -u; xargs < /proc/self/uid_map; exit 7'").exits(7).out;
    assert_eq!(out, format!("0\n0 {id} 1 1 500000 65536\n"));
    podman("run --rm --network=none bb no-such-command").exits(127);
    podman("run --rm --network=none --cap-add=mknod bb mknod /x c 1 3")
        .fails()
        .complains("Operation not permitted");
    assert_eq!(podman("run --rm --network=none -t bb tty").ok(), "/dev/pts/0");
    podman("run -d --name=web --network=none bb sleep 1000").ok();
    podman("exec web sh -c 'exit 9'").exits(9);
    assert_eq!(podman("exec --user=guest web id -un").ok(), "guest");
    podman("stop --time=0 web").ok();
    assert_eq!(podman("inspect --format='{{.State.ExitCode}}' web").ok(), "137");
    podman("rm web").ok();
    // This ends the process that keeps the user namespace alive.
    podman("system migrate").ok();
    enclosure.assert_clean(&format!("{run}/ckrun"), &[]);
}

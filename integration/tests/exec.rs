//! Further processes in a running container.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by a panic")]

use ckrun_integration::bundle::Container;
use ckrun_integration::pipes::{await_end, pidfd};
use ckrun_integration::run::Ended;
use serde_json::{Value, json};
use std::fs;

fn up() -> (Container, ckrun_integration::bundle::Live) {
    let container = Container::sh("echo up; read end");
    let mut live = container.up();
    assert_eq!(live.stdout.line(), "up");
    (container, live)
}

fn exec(container: &Container, options: &[&str], script: &str) -> Ended {
    container.ckrun(&[&["exec"], options, &["ID", "sh", "-c", script]].concat())
}

#[test]
fn the_process_is_one_of_the_container() {
    let (container, live) = up();
    let namespaces = "for ns in cgroup ipc mnt net pid uts; do readlink /proc/self/ns/$ns; done";
    let theirs: Vec<String> = ["cgroup", "ipc", "mnt", "net", "pid", "uts"]
        .iter()
        .map(|ns| fs::read_link(format!("/proc/{}/ns/{ns}", live.pid)).unwrap().display().to_string())
        .collect();
    assert_eq!(exec(&container, &[], namespaces).ok(), theirs.join("\n"));
    assert_eq!(exec(&container, &[], "hostname; ls /").ok().lines().next(), Some("test"));
    // In the same cgroups as the init, in every hierarchy.
    let own = exec(&container, &[], "cat /proc/self/cgroup; echo; cat /proc/1/cgroup").ok();
    let (ours, inits) = own.split_once("\n\n").unwrap();
    assert_eq!(ours, inits);
    let session = exec(&container, &[], "set -- $(cat /proc/$$/stat); [ $1 = $6 ] && echo leader");
    assert_eq!(session.ok(), "leader");
}

#[test]
fn the_exit_status_is_the_commands() {
    let (container, _live) = up();
    exec(&container, &[], "exit 3").exits(3);
    exec(&container, &[], "kill -9 $$").exits(137);
    let said = exec(&container, &[], "echo out; echo err >&2; exit 1");
    assert_eq!((said.code, said.stdout.as_str(), said.stderr.as_str()), (1, "out\n", "err\n"));
    container
        .ckrun(&["exec", "ID", "nothing"])
        .fails(255, &["exec: \"nothing\"", "executable file not found in $PATH"]);
    container.ckrun(&["exec", "ID", "/nothing"]).fails(255, &["/nothing", "no such file or directory"]);
    container.ckrun(&["exec", "ID", "/etc/passwd"]).fails(255, &["/etc/passwd", "permission denied"]);
    container.ckrun(&["exec", "ID", "/etc"]).fails(255, &["/etc", "is a directory"]);
    assert_eq!(container.status(), "running", "a failed exec does the container no harm");
}

#[test]
fn options_change_what_the_container_gives() {
    let (container, _live) = up();
    let status = |options: &[&str], line: &str| {
        exec(&container, options, &format!("grep ^{line}: /proc/self/status | tr -s '\\t' ' '")).ok()
    };
    assert_eq!(exec(&container, &["--cwd", "/tmp"], "pwd").ok(), "/tmp");
    assert_eq!(exec(&container, &["--env", "A=b c", "-e", "D="], "echo \"$A|$D|$TERM\"").ok(), "b c||xterm");
    assert_eq!(exec(&container, &["--user", "12:34"], "id -u; id -g").ok(), "12\n34");
    assert_eq!(exec(&container, &["-u", "1000"], "id -u; echo $HOME").ok(), "1000\n/home/user");
    assert_eq!(status(&["-g", "7", "--additional-gids", "8"], "Groups").trim_end(), "Groups: 7 8");
    // What is in config.json: CAP_KILL (5), CAP_NET_BIND_SERVICE (10), CAP_AUDIT_WRITE (29).
    assert_eq!(status(&[], "CapEff"), "CapEff: 0000000020000420");
    assert_eq!(status(&["--cap", "CAP_CHOWN"], "CapEff"), "CapEff: 0000000020000421");
    assert_eq!(status(&["--cap", "CAP_CHOWN"], "CapInh"), "CapInh: 0000000000000000");
    assert_eq!(status(&["--cap", "CAP_CHOWN", "--user", "5"], "CapBnd"), "CapBnd: 0000000020000421");
    container.ckrun(&["exec", "--cap", "CAP_FLY", "ID", "true"]).fails(255, &["CAP_FLY"]);
    container.ckrun(&["exec", "--user", "me", "ID", "true"]).fails(255, &["--user me", "number"]);
}

#[test]
fn no_new_privs_is_an_option() {
    let container =
        Container::sh("echo up; read end").with(|c| c["process"]["noNewPrivileges"] = json!(false));
    let mut live = container.up();
    assert_eq!(live.stdout.line(), "up");
    let told = |options| exec(&container, options, "grep NoNewPrivs /proc/self/status | cut -f2").ok();
    assert_eq!(told(&[]), "0");
    assert_eq!(told(&["--no-new-privs"]), "1");
}

#[test]
fn a_process_file_says_everything() {
    let (container, _live) = up();
    let file = container.file("process.json");
    let process = json!({
        "args": ["sh", "-c", "echo $A; pwd; id -u; id -G; umask; ulimit -n; grep CapEff /proc/self/status | cut -f2"],
        "env": ["PATH=/bin", "A=1"],
        "cwd": "/tmp",
        "user": {"uid": 3, "gid": 4, "additionalGids": [5], "umask": 0o77},
        "rlimits": [{"type": "RLIMIT_NOFILE", "soft": 33, "hard": 44}],
    });
    fs::write(&file, process.to_string()).unwrap();
    let said = container.ckrun(&["exec", "--process", file.to_str().unwrap(), "ID"]).ok();
    assert_eq!(said, "1\n/tmp\n3\n4 5\n0077\n33\n0000000000000000");
    fs::write(&file, "{\"args\": 5}").unwrap();
    container
        .ckrun(&["exec", "--process", file.to_str().unwrap(), "ID"])
        .fails(255, &["process.json", "args"]);
}

#[test]
fn detached_it_runs_on_and_its_id_is_known() {
    let (container, live) = up();
    let file = container.file("pid");
    let detached =
        container.ckrun(&["exec", "--detach", "--pid-file", file.to_str().unwrap(), "ID", "sleep", "1000"]);
    assert_eq!(detached.ok(), "");
    let text = fs::read_to_string(&file).unwrap();
    let pid: i32 = text.parse().unwrap();
    assert_eq!(text, pid.to_string());
    let end = pidfd(pid);
    // Its program has been executed when ckrun returns.
    assert_eq!(fs::read(format!("/proc/{pid}/cmdline")).unwrap(), b"sleep\x001000\0");
    let listed: Vec<i32> = serde_json::from_str(&container.ckrun(&["ps", "-f", "json", "ID"]).ok()).unwrap();
    assert!(listed.contains(&pid) && listed.contains(&live.pid), "{listed:?}");
    container.ckrun(&["kill", "ID", "KILL"]).ok();
    await_end(end);
}

#[test]
fn it_waits_out_a_pause_only_when_told_to() {
    let (container, _live) = up();
    container.ckrun(&["pause", "ID"]).ok();
    container.ckrun(&["exec", "ID", "true"]).fails(255, &["cannot exec", "paused"]);
    let fifo = container.file("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let mut running = container.start(&["exec", "--ignore-paused", "ID", "echo", "thawed"]);
    // Not before the new process is where it will be frozen can the resume tell anything.
    let frozen = || {
        let pids: Vec<i32> =
            serde_json::from_str(&container.ckrun(&["ps", "-f", "json", "ID"]).ok()).unwrap();
        pids.len() > 1
    };
    while !frozen() {
        std::thread::yield_now();
    }
    running.stdout.fill();
    assert_eq!(running.stdout.take(), "");
    container.ckrun(&["resume", "ID"]).ok();
    assert_eq!(running.stdout.line(), "thawed");
    running.wait().ok();
}

#[test]
fn a_created_container_takes_one_and_a_stopped_one_does_not() {
    let container = Container::sh("read end");
    let mut live = container.create();
    assert_eq!(exec(&container, &[], "hostname").ok(), "test");
    container.ckrun(&["start", "ID"]).ok();
    live.hang_up();
    live.await_end();
    container.ckrun(&["exec", "ID", "true"]).fails(255, &["cannot exec", "not running"]);
}

#[test]
fn it_keeps_preserved_descriptors_only() {
    use std::os::fd::AsRawFd;
    use std::os::unix::process::CommandExt;
    let (container, _live) = up();
    let kept = fs::File::open(container.put("kept", "kept", 0o644)).unwrap();
    let number = kept.as_raw_fd();
    let mut command = container.command(&[
        "exec",
        "--preserve-fds",
        "1",
        "ID",
        "sh",
        "-c",
        "cat <&3; ls /proc/self/fd | wc -l",
    ]);
    // SAFETY: dup2 is async-signal-safe; 30 to 32 are used by nobody between fork and exec.
    unsafe {
        command.pre_exec(move || {
            for (from, to) in [(number, 30), (30, 3), (30, 4), (30, 31)] {
                libc::dup2(from, to);
            }
            Ok(())
        })
    };
    // The streams, the kept one, and ls's own.
    assert_eq!(ckrun_integration::run::finish(command).ok(), "kept5");
}

#[test]
fn the_containers_filter_and_limits_hold_for_it_too() {
    let container = Container::sh("echo up; read end").with(|c| {
        c["process"]["rlimits"] = json!([{"type": "RLIMIT_NOFILE", "soft": 77, "hard": 88}]);
        c["process"]["oomScoreAdj"] = json!(321);
        c["linux"]["seccomp"] = json!({
            "defaultAction": "SCMP_ACT_ALLOW",
            "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38}],
        });
    });
    let mut live = container.up();
    assert_eq!(live.stdout.line(), "up");
    let said = exec(
        &container,
        &[],
        "ulimit -n; cat /proc/self/oom_score_adj; mkdir /tmp/x 2>&1; grep Seccomp: /proc/self/status",
    );
    assert_eq!(
        said.stdout,
        "77\n321\nmkdir: can't create directory '/tmp/x': Function not implemented\nSeccomp:\t2\n"
    );
}

#[test]
fn words_after_the_id_are_the_commands() {
    let (container, _live) = up();
    assert_eq!(container.ckrun(&["exec", "ID", "echo", "-n", "--tty", "--help"]).ok(), "--tty --help");
    container.ckrun(&["exec", "ID"]).fails(255, &["no command"]);
    let help: Value = json!(container.ckrun(&["exec", "--help"]).ok());
    assert!(help.as_str().unwrap().contains("--process"));
}

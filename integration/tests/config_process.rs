//! What config.json says of the process has its effect inside.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by a panic")]

use ckrun_integration::bundle::Container;
use serde_json::{Value, json};

/// What a script says in a container with a changed `process`.
fn process(script: &str, change: impl FnOnce(&mut Value)) -> String {
    Container::sh(script).with(|c| change(&mut c["process"])).run().ok()
}

fn status(field: &str, change: impl FnOnce(&mut Value)) -> String {
    process(&format!("grep ^{field}: /proc/self/status | cut -f2"), change)
}

#[test]
fn arguments_and_environment() {
    let container = Container::new().args(&["printf", "<%s>", "a b", "", "*", "$HOME", "ä"]);
    assert_eq!(container.run().ok(), "<a b><><*><$HOME><ä>");
    let said = process("env | sort | grep -vE '^(PWD|SHLVL|OLDPWD)='", |p| {
        p["env"] = json!(["PATH=/bin", "B=2 3", "A=", "B=4"]);
    });
    assert_eq!(said.lines().next(), Some("A="));
    assert!(said.contains("PATH=/bin") && said.contains("B="), "{said}");
    assert!(!said.contains("CARGO"), "the environment of the host stays outside: {said}");
}

#[test]
fn home_is_the_users() {
    let home = |uid: u32| process("echo $HOME", |p| p["user"]["uid"] = json!(uid));
    assert_eq!((home(0).as_str(), home(1000).as_str(), home(77).as_str()), ("/root", "/home/user", "/"));
    let own = process("echo $HOME", |p| p["env"].as_array_mut().unwrap().push(json!("HOME=/my")));
    assert_eq!(own, "/my");
}

#[test]
fn the_command_is_searched_in_the_path() {
    let container = Container::new().args(&["tool", "x"]);
    container.put("/opt/a/tool", "#!/bin/sh\necho first $0 $1\n", 0o755);
    container.put("/opt/b/tool", "#!/bin/sh\necho second $0 $1\n", 0o755);
    container.put("/opt/none/tool", "", 0o644);
    let path = |path: &str| {
        container.change(|c| c["process"]["env"] = json!([format!("PATH={path}")]));
        container.run()
    };
    assert_eq!(path("/nowhere:/opt/none:/opt/b:/opt/a").ok(), "second /opt/b/tool x");
    assert_eq!(path("/opt/a:/opt/b").ok(), "first /opt/a/tool x");
    path("/opt/none").fails(1, &["exec: \"tool\": permission denied"]);
    path("").fails(1, &["executable file not found in $PATH"]);
    container.change(|c| {
        c["process"]["cwd"] = json!("/opt/b");
        c["process"]["args"] = json!(["./tool", "y"]);
    });
    assert_eq!(container.run().ok(), "second ./tool y");
}

#[test]
fn the_working_directory_is_made_when_missing() {
    let container = Container::sh("pwd; stat -c '%a %u' .").with(|c| {
        c["process"]["cwd"] = json!("/srv/deep/er");
    });
    assert_eq!(container.run().ok(), "/srv/deep/er\n755 0");
    container.put("/file", "", 0o644);
    container.change(|c| c["process"]["cwd"] = json!("/file"));
    container.run().fails(1, &["process.cwd", "not a directory"]);
    let closed = Container::sh("pwd").with(|c| {
        c["process"]["cwd"] = json!("/root");
        c["process"]["user"]["uid"] = json!(1000);
    });
    std::fs::set_permissions(
        closed.rootfs().join("root"),
        std::os::unix::fs::PermissionsExt::from_mode(0o700),
    )
    .unwrap();
    closed.run().fails(1, &["process.cwd", "/root", "permission denied"]);
}

#[test]
fn user_groups_and_umask() {
    let said = process("id -u; id -g; id -G; umask", |p| {
        p["user"] = json!({"uid": 11, "gid": 22, "additionalGids": [33, 44], "umask": 0o27});
    });
    assert_eq!(said, "11\n22\n22 33 44\n0027");
    assert_eq!(process("umask", |_| ()), "0022");
    // The standard streams are the user's, so that /dev/stdout can be opened.
    assert_eq!(process("echo opened > /dev/stdout", |p| p["user"]["uid"] = json!(1000)), "opened");
}

#[test]
fn capability_sets_are_taken_one_by_one() {
    let sets = |p: &mut Value| {
        p["capabilities"] = json!({
            "bounding": ["CAP_CHOWN", "CAP_KILL", "CAP_SETUID", "CAP_SYS_CHROOT"],
            "permitted": ["CAP_CHOWN", "CAP_KILL", "CAP_SETUID"],
            "effective": ["CAP_CHOWN", "CAP_KILL"],
            "inheritable": ["CAP_CHOWN", "CAP_KILL"],
            "ambient": ["CAP_KILL"],
        });
    };
    // CHOWN is 0, KILL 5, SETUID 7, SYS_CHROOT 18. root's exec gets what is bounding as well as inheritable.
    assert_eq!(status("CapBnd", sets), "00000000000400a1");
    assert_eq!(status("CapInh", sets), "0000000000000021");
    assert_eq!(status("CapAmb", sets), "0000000000000020");
    let user = |p: &mut Value| {
        sets(p);
        p["user"]["uid"] = json!(1000);
    };
    assert_eq!(status("CapEff", user), "0000000000000020", "an ordinary user keeps the ambient ones");
    assert_eq!(status("CapPrm", user), "0000000000000020");
    let none = |p: &mut Value| p["capabilities"] = json!({});
    assert_eq!(status("CapBnd", none), "0000000000000000");
    assert_eq!(status("CapEff", none), "0000000000000000");
    let root = |p: &mut Value| {
        p["capabilities"] = json!({"bounding": ["CAP_KILL"], "permitted": [], "effective": []});
        p["noNewPrivileges"] = json!(false);
    };
    assert_eq!(status("CapEff", root), "0000000000000020", "the kernel gives root what is bounding");
}

#[test]
fn an_unknown_capability_is_a_warning() {
    let container = Container::sh("grep ^CapBnd /proc/self/status | cut -f2");
    container
        .change(|c| c["process"]["capabilities"] = json!({"bounding": ["CAP_KILL", "CAP_OF_THE_FUTURE"]}));
    let ended = container.run().exits(0);
    assert_eq!(ended.stdout, "0000000000000020\n");
    assert!(ended.stderr.contains("CAP_OF_THE_FUTURE"), "{ended:?}");
}

#[test]
fn no_new_privileges() {
    assert_eq!(status("NoNewPrivs", |p| p["noNewPrivileges"] = json!(true)), "1");
    assert_eq!(status("NoNewPrivs", |p| p["noNewPrivileges"] = json!(false)), "0");
}

#[test]
fn resource_limits() {
    let said = process("cat /proc/self/limits", |p| {
        p["rlimits"] = json!([
            {"type": "RLIMIT_NOFILE", "soft": 100, "hard": 200},
            {"type": "RLIMIT_CORE", "soft": 0, "hard": 0},
            {"type": "RLIMIT_STACK", "soft": 1_048_576, "hard": 2_097_152},
            {"type": "RLIMIT_NICE", "soft": 0, "hard": 0},
            {"type": "RLIMIT_FSIZE", "soft": 4096, "hard": 8192},
        ]);
    });
    let limit = |name: &str| {
        let line = said.lines().find(|line| line.starts_with(name)).unwrap();
        line[name.len()..].split_whitespace().take(2).map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(limit("Max open files"), ["100", "200"]);
    assert_eq!(limit("Max core file size"), ["0", "0"]);
    assert_eq!(limit("Max stack size"), ["1048576", "2097152"]);
    assert_eq!(limit("Max file size"), ["4096", "8192"]);
    let twice = Container::new().with(|c| {
        let limit = json!({"type": "RLIMIT_CORE", "soft": 0, "hard": 0});
        c["process"]["rlimits"] = json!([limit, limit]);
    });
    twice.run().fails(1, &["process.rlimits", "RLIMIT_CORE"]);
}

#[test]
fn oom_score_scheduler_and_io_priority() {
    assert_eq!(process("cat /proc/self/oom_score_adj", |p| p["oomScoreAdj"] = json!(234)), "234");
    let nice = process("set -- $(cat /proc/self/stat); echo ${19} ${41}", |p| {
        p["scheduler"] = json!({"policy": "SCHED_BATCH", "nice": 7});
    });
    assert_eq!(nice, "7 3");
    let idle = process("set -- $(cat /proc/self/stat); echo ${41}", |p| {
        p["scheduler"] = json!({"policy": "SCHED_IDLE"})
    });
    assert_eq!(idle, "5");
    let io = process("ionice", |p| p["ioPriority"] = json!({"class": "IOPRIO_CLASS_BE", "priority": 6}));
    assert_eq!(io, "best-effort: prio 6");
    let io = process("ionice", |p| p["ioPriority"] = json!({"class": "IOPRIO_CLASS_IDLE", "priority": 0}));
    assert!(io.starts_with("idle"), "{io}");
    let bad = Container::new()
        .with(|c| c["process"]["ioPriority"] = json!({"class": "IOPRIO_CLASS_BE", "priority": 9}));
    bad.run().fails(1, &["process.ioPriority"]);
    let bad =
        Container::new().with(|c| c["process"]["scheduler"] = json!({"policy": "SCHED_FIFO", "priority": 0}));
    bad.run().fails(1, &["process.scheduler"]);
}

#[test]
fn personality() {
    if cfg!(target_arch = "x86_64") {
        let container =
            Container::sh("uname -m").with(|c| c["linux"]["personality"] = json!({"domain": "LINUX32"}));
        assert_eq!(container.run().ok(), "i686");
    }
    let bad =
        Container::new().with(|c| c["linux"]["personality"] = json!({"domain": "LINUX32", "flags": ["FLY"]}));
    bad.run().fails(1, &["personality"]);
}

#[test]
fn signals_and_streams_are_as_at_a_login() {
    // Nothing ignored, nothing blocked, a session of its own; whatever the caller ignored, real-time signals included.
    // SAFETY: the disposition of a signal that nobody sends.
    unsafe { libc::signal(libc::SIGRTMAX() - 3, libc::SIG_IGN) };
    let said = process(
        "grep -E '^Sig(Blk|Ign):' /proc/self/status | cut -f2; set -- $(cat /proc/$$/stat); echo $(($5 == $$)) $(($6 == $$))",
        |_| (),
    );
    assert_eq!(said, "0000000000000000\n0000000000000000\n1 1");
}

#[test]
fn annotations_are_shown_and_kept() {
    let container = Container::sh("read end")
        .with(|c| c["annotations"] = json!({"org.example.key": "value", "empty": ""}));
    let _live = container.create();
    assert_eq!(container.state()["annotations"], json!({"org.example.key": "value", "empty": ""}));
}

#[test]
fn a_container_without_a_process_can_be_created_and_not_started() {
    let container = Container::new().with(|c| drop(c.as_object_mut().unwrap().remove("process")));
    let live = container.create();
    assert_eq!(container.status(), "created");
    container.ckrun(&["start", "ID"]).fails(1, &["process", "missing"]);
    live.await_end();
}

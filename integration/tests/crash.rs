//! ckrun killed in the middle: `delete --force` clears up whatever there is by then.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by a panic")]

use ckrun_integration::bundle::Container;
use ckrun_integration::leftovers;
use ckrun_integration::pipes::Lines;
use ckrun_integration::trace::kill_at;
use nix::sys::signal::Signal;
use serde_json::json;
use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;

/// What anybody does after a crash; nothing may stay, not even a process that only ckrun knew of.
fn clear(container: &Container, when: &str) {
    let deleted = container.ckrun(&["delete", "--force", "ID"]);
    assert_eq!((deleted.code, deleted.stderr.as_str()), (0, ""), "{when}");
    leftovers::settle(container.id());
    let left = leftovers::traces(container.id(), &container.store().join(container.id()));
    assert_eq!(left, [], "{when}");
}

#[test]
fn in_a_hook() {
    for kind in ["prestart", "createRuntime", "createContainer"] {
        let container = Container::new();
        let (here, go) = (container.file("here"), container.file("go"));
        for fifo in [&here, &go] {
            nix::unistd::mkfifo(fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        }
        let script = format!("exec >&- 2>&-; echo here > {}; read go < {}", here.display(), go.display());
        container.change(|c| c["hooks"] = json!({kind: [{"path": "/bin/sh", "args": ["sh", "-c", script]}]}));
        let running = container.start(&["create", "ID"]);
        let mut at = Lines::new(OpenOptions::new().read(true).write(true).open(&here).unwrap());
        assert_eq!(at.line(), "here", "{kind}");
        running.signal(Signal::SIGKILL);
        running.wait().exits(-9);
        let release =
            OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open(&go).unwrap();
        let deleted = container.ckrun(&["delete", "--force", "ID"]);
        assert_eq!((deleted.code, deleted.stderr.as_str()), (0, ""), "{kind}");
        // A hook of ckrun's is not the container's; it goes on and ends as it likes.
        std::io::Write::write_all(&mut &release, b"go\n").unwrap();
        clear(&container, kind);
        drop(release);
    }
}

/// Kills a verb at every so many system calls; `prepare` brings the container to where the verb applies.
fn sweep(container: &Container, words: &[&str], points: usize, prepare: impl Fn()) {
    // How many there are depends on how often it had to wait.
    let whole = || {
        prepare();
        let (all, killed) = kill_at(container.command(words), usize::MAX);
        assert!(!killed && all > 40, "{all}");
        clear(container, "unharmed");
        all
    };
    let all = whole().min(whole()).min(whole());
    let mut reached = 0;
    for point in 0..points {
        let count = point * all / points;
        prepare();
        let (_, killed) = kill_at(container.command(words), count);
        reached += usize::from(killed);
        clear(container, &format!("{words:?} killed at stop {count} of {all}"));
        // It can be made again under the same name, at once.
        if point % 8 == 0 {
            create_silently(container);
            clear(container, "made again");
        }
    }
    assert!(reached > points * 3 / 4, "only {reached} were killed");
}

#[test]
fn create_at_any_system_call() {
    sweep(&Container::new(), &["create", "ID"], 48, || ());
}

#[test]
fn create_with_a_user_namespace_at_any_system_call() {
    let container = Container::new().with(|c| {
        c["linux"]["namespaces"].as_array_mut().unwrap().push(json!({"type": "user"}));
        c["linux"]["uidMappings"] = json!([{"containerID": 0, "hostID": 100_000, "size": 65536}]);
        c["linux"]["gidMappings"] = json!([{"containerID": 0, "hostID": 100_000, "size": 65536}]);
    });
    sweep(&container, &["create", "ID"], 24, || ());
}

#[test]
fn start_at_any_system_call() {
    let container = Container::sh("exec sleep 1000");
    sweep(&container, &["start", "ID"], 16, || create_silently(&container));
}

#[test]
fn delete_at_any_system_call() {
    let container = Container::sh("exec sleep 1000");
    sweep(&container, &["delete", "--force", "ID"], 24, || {
        create_silently(&container);
        container.ckrun(&["start", "ID"]).ok();
    });
}

#[test]
fn run_at_any_system_call() {
    sweep(&Container::new(), &["run", "ID"], 24, || ());
}

/// Its streams lead nowhere, so that nothing waits for their end.
fn create_silently(container: &Container) {
    container.ckrun(&["create", "ID"]).ok();
}

#[test]
fn what_a_killed_run_leaves_is_a_container_like_any_other() {
    let container = Container::sh("echo up; read end; exit 3");
    let mut running = container.start(&["run", "ID"]);
    assert_eq!(running.stdout.line(), "up");
    running.signal(Signal::SIGKILL);
    // The job has lost its ckrun, not its life.
    assert_eq!(container.status(), "running");
    container.ckrun(&["kill", "ID", "KILL"]).ok();
    drop(running);
    clear(&container, "run killed");
}

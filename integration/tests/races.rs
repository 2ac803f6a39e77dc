//! Verbs at the same time, and callers that leave odd things behind.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by a panic")]

use ckrun_integration::bundle::Container;
use ckrun_integration::pipes::Lines;
use ckrun_integration::run::{Ended, Running, finish};
use serde_json::json;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::process::CommandExt;

/// Starts the same verb several times at once.
fn at_once(container: &Container, words: &[&str], times: usize) -> Vec<Ended> {
    let scope = || finish(container.command(words));
    std::thread::scope(|s| {
        let started: Vec<_> = (0..times).map(|_| s.spawn(scope)).collect();
        started.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

fn succeeded(all: &[Ended]) -> usize {
    all.iter().filter(|ended| ended.code == 0).count()
}

#[test]
fn one_create_wins() {
    let container = Container::sh("exec sleep 1000");
    for _ in 0..5 {
        let all = at_once(&container, &["create", "ID"], 4);
        assert_eq!(succeeded(&all), 1, "{all:?}");
        for lost in all.into_iter().filter(|ended| ended.code != 0) {
            lost.fails(1, &["already exists"]);
        }
        assert_eq!(container.status(), "created");
        container.ckrun(&["delete", "--force", "ID"]).ok();
        container.no_trace();
    }
}

#[test]
fn one_start_wins() {
    for _ in 0..3 {
        let container = Container::sh("exec sleep 1000");
        container.ckrun(&["create", "ID"]).ok();
        let all = at_once(&container, &["start", "ID"], 4);
        assert_eq!(succeeded(&all), 1, "{all:?}");
        for lost in all.into_iter().filter(|ended| ended.code != 0) {
            lost.fails(1, &["cannot start", "running"]);
        }
    }
}

#[test]
fn every_delete_by_force_succeeds() {
    let container = Container::sh("exec sleep 1000");
    for _ in 0..5 {
        container.ckrun(&["run", "--detach", "ID"]).ok();
        let all = at_once(&container, &["delete", "--force", "ID"], 4);
        assert_eq!(succeeded(&all), 4, "{all:?}");
        container.no_trace();
    }
}

#[test]
fn pause_and_resume_do_not_tear_a_container_apart() {
    let container = Container::sh("echo up; while read line; do echo $line; done");
    let mut live = container.up();
    assert_eq!(live.stdout.line(), "up");
    std::thread::scope(|s| {
        for verb in ["pause", "resume"] {
            let container = &container;
            s.spawn(move || (0..10).for_each(|_| drop(container.ckrun(&[verb, "ID"]))));
        }
    });
    container.ckrun(&["resume", "ID"]);
    assert_eq!(container.status(), "running");
    live.say("still here");
    assert_eq!(live.stdout.line(), "still here");
}

/// `create` with a hook that waits until the test lets it go.
fn held_back(container: &Container) -> (Running, impl FnOnce()) {
    let (here, go) = (container.file("here"), container.file("go"));
    for fifo in [&here, &go] {
        nix::unistd::mkfifo(fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    }
    let script = format!("echo here > {}; read go < {}", here.display(), go.display());
    container.change(|c| {
        c["hooks"] = json!({"createRuntime": [{"path": "/bin/sh", "args": ["sh", "-c", script]}]})
    });
    let running = container.start(&["create", "ID"]);
    let mut at = Lines::new(OpenOptions::new().read(true).write(true).open(&here).unwrap());
    assert_eq!(at.line(), "here");
    (running, move || fs::OpenOptions::new().write(true).open(&go).unwrap().write_all(b"go\n").unwrap())
}

#[test]
fn who_comes_during_a_create_waits_for_it() {
    for (words, code) in [(&["delete", "--force", "ID"][..], 0), (&["start", "ID"], 0)] {
        let container = Container::sh("exec sleep 1000");
        let (create, go) = held_back(&container);
        let other = container.start(words);
        // A look does not wait.
        assert!(["creating", "created"].contains(&container.status().as_str()));
        assert_eq!(container.ckrun(&["list", "-q"]).ok(), container.id());
        container.ckrun(&["create", "ID"]).fails(1, &["already exists"]);
        go();
        // The job holds the pipe, if it still lives; so only the end of create itself is awaited.
        create.wait().exits(0);
        other.wait().exits(code);
        match words[0] {
            "start" => assert_eq!(container.status(), "running"),
            _ => container.no_trace(),
        }
    }
}

#[test]
fn a_caller_that_ignores_its_children_hears_the_status() {
    let container = Container::sh("exit 3").with(|c| {
        c["hooks"] = json!({"createRuntime": [{"path": "/bin/sh", "args": ["sh", "-c", "exit 0"]}]});
    });
    let mut command = container.command(&["run", "ID"]);
    // SAFETY: signal is async-signal-safe.
    unsafe {
        command.pre_exec(|| {
            libc::signal(libc::SIGCHLD, libc::SIG_IGN);
            Ok(())
        })
    };
    finish(command).exits(3);
    container.no_trace();
}

#[test]
fn closed_standard_streams_are_no_obstacle() {
    // Asked by the shell itself, without a pipe or a directory of its own that would count too.
    let count =
        "n=0; for fd in $(seq 0 30); do [ -e /proc/$$/fd/$fd ] && n=$((n+1)); done; echo $n > /out/count";
    let container = Container::sh(count).mount("/out", "tmpfs", "tmpfs", &[]);
    let out = container.file("out");
    fs::create_dir(&out).unwrap();
    container.change(|c| {
        let mounts = c["mounts"].as_array_mut().unwrap();
        mounts.pop();
        mounts.push(json!({"destination": "/out", "type": "bind", "source": out, "options": ["bind"]}));
    });
    let mut command = container.command(&["run", "ID"]);
    // SAFETY: close is async-signal-safe, and nothing uses the streams between fork and exec.
    unsafe {
        command.pre_exec(|| {
            (0..3).for_each(|fd| {
                libc::close(fd);
            });
            Ok(())
        })
    };
    finish(command).exits(0);
    assert_eq!(fs::read_to_string(out.join("count")).unwrap().trim(), "3");
    container.no_trace();
}

#[test]
fn a_caller_may_block_and_ignore_what_it_likes() {
    let container = Container::sh("grep -E '^Sig(Blk|Ign):' /proc/self/status | cut -f2");
    let mut command = container.command(&["run", "ID"]);
    // SAFETY: the calls are async-signal-safe.
    unsafe {
        command.pre_exec(|| {
            let mut all: libc::sigset_t = std::mem::zeroed();
            libc::sigfillset(&raw mut all);
            libc::sigprocmask(libc::SIG_BLOCK, &raw const all, std::ptr::null_mut());
            for signal in [libc::SIGINT, libc::SIGQUIT, libc::SIGHUP, libc::SIGPIPE, libc::SIGTTOU, 40] {
                libc::signal(signal, libc::SIG_IGN);
            }
            Ok(())
        })
    };
    assert_eq!(finish(command).ok(), "0000000000000000\n0000000000000000");
}

#[test]
fn many_containers_run_at_once() {
    let containers: Vec<_> = (0..6).map(|i| Container::sh(&format!("echo {i}; exit {i}"))).collect();
    std::thread::scope(|s| {
        for (i, container) in containers.iter().enumerate() {
            s.spawn(move || {
                for _ in 0..3 {
                    let ended = container.run();
                    assert_eq!((ended.code, ended.stdout), (i32::try_from(i).unwrap(), format!("{i}\n")));
                }
            });
        }
    });
}

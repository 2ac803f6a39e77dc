//! What a checkpoint may refuse: either it is kept, or it is named, before the job is stopped if it can be seen then, and
//! the job goes on.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by a panic")]

use ckrun_integration::agent::Agent;
use ckrun_integration::guests::modes;
use ckrun_integration::job::{Job, path};
use serde_json::{Value, json};

macro_rules! kept_or_refused {
    (kept: $($kept:ident)*; refused: $($mode:ident: $($word:literal)*;)*) => {
        $(
            #[test]
            fn $kept() {
                Job::up("others", &stringify!($kept).replace('_', "-")).survives();
            }
        )*
        $(
            #[test]
            fn $mode() {
                Job::up("others", &stringify!($mode).replace('_', "-")).is_refused_beforehand(&["(guest)", $($word),*]);
            }
        )*

        #[test]
        fn no_mode_is_forgotten() {
            let mut tested = vec![$(stringify!($kept).replace('_', "-"),)* $(stringify!($mode).replace('_', "-"),)*];
            let others = ["core-scheduling", "several", "namespaces", "program-of-32-bits", "landlock", "own-segment", "filter-without-listener"];
            tested.extend(others.map(str::to_owned));
            let mut known = modes("others");
            tested.sort();
            known.sort();
            assert_eq!(tested, known);
        }
    };
}

kept_or_refused! {
    kept: bpf_maps unix_pair tcp_listener pidfd mount mount_over mount_gone;
    refused:
    io_uring: "fd" "io_uring" "linux.seccomp";
    userfaultfd: "fd" "userfaultfd";
    bpf_program: "fd" "BPF program";
    queue_watched: "/queue" "mq_notify";
    queue_unlinked: "fd" "POSIX message queue" "no name";
    filter_with_listener: "fd" "seccomp listener";
    traced: "thread 2" "debugged";
    pending_trap: "thread 1" "pending SIGTRAP";
    timer_of_a_thread: "timer 0" "CPU time";
}

/// Only where CPUs share a core.
#[test]
fn core_scheduling() {
    Job::up("others", "core-scheduling").survives_or_is_refused(&["(guest)", "thread 1", "core scheduling"]);
}

/// One that is not the guest.
#[test]
fn program_of_32_bits() {
    Job::up("others", "program-of-32-bits").is_refused_beforehand(&["process 2 (narrow)", "32-bit program"]);
}

/// Each child has one of its own.
#[test]
fn namespaces() {
    let kinds = ["user", "network", "IPC", "UTS", "cgroup", "time", "pid"];
    let words = kinds.map(|kind| format!("(guest): {kind} namespace"));
    Job::up("others", "namespaces").is_refused_beforehand(&words.each_ref().map(String::as_str));
}

/// The filter comes from config.json, and whoever answers for the kernel is not part of the job.
#[test]
fn filter_of_the_configuration() {
    let job = Job::new("others", "own-segment");
    let socket = job.container.file("agent");
    job.container.change(|c| {
        c["linux"]["seccomp"] = json!({"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": socket,
            "syscalls": [{"names": ["mkdir"], "action": "SCMP_ACT_NOTIFY"}]});
    });
    let agent = Agent::at(&socket);
    job.start();
    let listener = agent.receive();
    job.is_refused_beforehand(&["thread 1", "seccomp filter with a listener"]);
    drop(listener);
}

/// What a filter does, once nobody in the job has its listener, is known only to who traces the thread.
#[test]
fn filter_without_listener() {
    Job::up("others", "filter-without-listener").is_refused(&["(guest)", "seccomp filter with a listener"]);
}

/// So are registers.
#[test]
fn own_segment() {
    Job::up("others", "own-segment").is_refused(&["(guest)", "segment", "modify_ldt"]);
}

/// Whether a task is confined can only be seen from inside it, so that a look at the running job does not tell.
#[test]
fn landlock() {
    Job::up("others", "landlock").is_refused(&["(guest)", "Landlock"]);
}

/// A list on stdout, one line for each thing in the way, of whichever process it is; and nothing happens.
#[test]
fn a_dry_run_names_everything_at_once() {
    let job = Job::up("others", "several");
    let image = job.image("image");
    let words = |more: &'static str| {
        ["checkpoint", "--image-path", path(&image), "--dry-run", more, "ID"].map(str::to_owned)
    };
    let run = |words: [String; 6]| {
        let words: Vec<&str> = words.iter().map(String::as_str).filter(|word| !word.is_empty()).collect();
        job.container.ckrun(&words)
    };
    let said = run(words("")).exits(1);
    assert_eq!(said.stderr, "");
    let lines: Vec<_> = said.stdout.lines().collect();
    assert_eq!(lines.len(), 2, "{}", said.stdout);
    assert!(lines[0].contains("process 1 ") && lines[0].contains("io_uring"), "{}", lines[0]);
    assert!(lines[1].contains("process 2 ") && lines[1].contains("userfaultfd"), "{}", lines[1]);
    let json: Value = serde_json::from_str(&run(words("--json")).exits(1).stdout).unwrap();
    let blockers = json["blockers"].as_array().unwrap();
    assert_eq!(blockers.len(), 2, "{json}");
    assert_eq!((&blockers[0]["pid"], &blockers[1]["pid"]), (&Value::from(1), &Value::from(2)));
    // And the same in one error.
    job.is_refused(&["io_uring", "userfaultfd"]);
}

#[test]
fn a_dry_run_that_finds_nothing_does_nothing() {
    let job = Job::up("processes", "tree");
    let image = job.image("image");
    let said = job.container.ckrun(&["checkpoint", "--dry-run", "--image-path", path(&image), "ID"]).ok();
    assert!(said.contains("nothing stands in the way"), "{said}");
    job.is_unharmed(&image);
}

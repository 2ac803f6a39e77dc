//! Signals: handlers, masks, stacks, queues and timers.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by a panic")]

use ckrun_integration::job::{Job, path};
use ckrun_integration::modes_survive;
use ckrun_integration::pipes::PATIENCE;
use ckrun_virt::signals::SharedPending;
use ckrun_virt::status::Status;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Instant;

modes_survive!("signals":
    handlers trap_ignored masks alternate_stack in_handler exception pending pending_many pending_in_threads waiters
    itimer alarm timers timer_of_thread timer_overrun flood soon
    ; else "trap-pending"
);

#[test]
fn a_breakpoint_that_waits() {
    Job::up("signals", "trap-pending").is_refused(&["pending SIGTRAP"]);
}

/// A checkpoint during which `meanwhile` happens, when ckrun stands at a point where the job does so, too.
fn checkpoint(job: &Job, point: &str, image: &Path, meanwhile: impl FnOnce()) {
    let (mut ckrun, pid) = job.stopped_at(point, &["checkpoint", "--image-path", path(image), "ID"]);
    meanwhile();
    kill(pid, Signal::SIGCONT).unwrap();
    assert!(ckrun.wait().unwrap().success());
}

#[test]
fn timers_go_off_while_the_job_stands_still() {
    let job = Job::up("signals", "soon");
    for generation in 0..3 {
        let pid = job.container.pid();
        let processes = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
        let is_told = |pid: &str| {
            let status = Status::parse(&fs::read(format!("/proc/{pid}/status")).unwrap());
            status.sig_pnd | status.shd_pnd != 0
        };
        let image = job.image(&format!("image-{generation}"));
        checkpoint(&job, "checkpoint:capture", &image, || {
            let since = Instant::now();
            while !processes.split_whitespace().any(is_told) {
                assert!(since.elapsed() < PATIENCE, "no timer goes off");
            }
        });
        job.restore(&image);
    }
}

#[test]
fn somebody_sends_signals_while_the_job_stands_still() {
    let job = Job::up("signals", "masks");
    let image = job.image("image");
    let pid = job.container.pid();
    checkpoint(&job, "checkpoint:network", &image, || {
        for signal in [Signal::SIGWINCH, Signal::SIGURG, Signal::SIGWINCH] {
            kill(Pid::from_raw(pid), signal).unwrap();
        }
    });
    let told: BTreeMap<i32, SharedPending> =
        serde_json::from_slice(&fs::read(image.join("pending-process.json")).unwrap()).unwrap();
    let signals: Vec<_> = told[&1].0.iter().map(|queued| queued.signal).collect();
    assert_eq!(signals, [libc::SIGWINCH, libc::SIGURG]);
    job.restore(&image);
}

//! The processes of ckrun that a job with plugins has.

use crate::bundle::Container;
use crate::pipes::{await_end, pidfd, try_pidfd};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use std::fs;

/// What the supervisor has written down.
pub fn record(container: &Container) -> Value {
    let path = container.store().join(container.id()).join("supervisor.json");
    serde_json::from_slice(&fs::read(path).expect("a supervisor's record")).expect("JSON")
}

/// The process that starts another supervisor when one is killed.
pub fn keeper(container: &Container) -> i32 {
    record(container)["keeper"]["pid"].as_i64().and_then(|pid| pid.try_into().ok()).expect("a keeper")
}

/// The supervisor, the keeper's only child.
pub fn supervisor(container: &Container) -> i32 {
    let keeper = keeper(container);
    let children =
        fs::read_to_string(format!("/proc/{keeper}/task/{keeper}/children")).expect("its children");
    children.trim().parse().expect("one child")
}

/// Kills a process, and waits for its end.
pub fn killed(pid: i32) {
    let end = pidfd(pid);
    kill(Pid::from_raw(pid), Signal::SIGKILL).expect("kill");
    await_end(end);
}

/// Kills the supervisor. Another one will take over.
pub fn kill_supervisor(container: &Container) {
    killed(supervisor(container));
}

/// Waits until a supervisor has written down that it has taken over, for the `times`th time. It answers calls before that.
pub fn taken_over(container: &Container, times: u64) {
    while record(container)["killed"] != times {
        let keeper = keeper(container);
        assert!(try_pidfd(keeper).is_some(), "the keeper, process {keeper}, has given up");
        std::thread::yield_now();
    }
}

/// Kills both.
pub fn kill_both(container: &Container) {
    let supervisor = supervisor(container);
    killed(keeper(container));
    killed(supervisor);
}

//! Signals: handlers, masks, stacks, queues and timers.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by a panic")]

use ckrun_integration::job::Job;
use ckrun_integration::modes_survive;

modes_survive!("signals":
    handlers trap_ignored masks alternate_stack in_handler exception pending pending_in_threads waiters itimer alarm
    timers timer_of_thread timer_overrun flood
    ; else "trap-pending"
);

#[test]
fn a_breakpoint_that_waits() {
    Job::up("signals", "trap-pending").is_refused(&["pending SIGTRAP"]);
}

//! Terminals that a job has made itself.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by a panic")]

use ckrun_integration::job::Job;
use ckrun_integration::modes_survive;

modes_survive!("tty":
    pairs lines bytes output output_full output_stopped end_modes closed watched session
    peer ; else "discipline"
);

#[test]
fn another_line_discipline_is_refused() {
    Job::up("tty", "discipline").survives_or_is_refused(&["/dev/pts/0", "line discipline is number 27"]);
}

/// To look at what waits in a terminal, ckrun has to take it out and put it back.
#[test]
fn what_waits_is_still_there_when_the_job_goes_on() {
    for mode in ["lines", "bytes", "output", "output-full", "output-stopped", "closed"] {
        let job = Job::up("tty", mode);
        for image in ["first", "second"] {
            job.leave_running(&job.image(image));
            job.is_well();
        }
    }
}

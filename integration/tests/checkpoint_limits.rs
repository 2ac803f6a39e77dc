//! Processes that have all that their limits allow.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by a panic")]

use ckrun_integration::job::Job;
use ckrun_integration::modes_survive;

modes_survive!("limits":
    address_space data locked processes descriptors small
    ; else "address-space-for-good" "again"
);

/// To raise the hard limit takes a capability, which ckrun may lack.
#[test]
fn the_hard_limit_leaves_no_room() {
    Job::up("limits", "address-space-for-good").survives_or_is_refused(&[
        "memory: ",
        "RLIMIT_AS",
        "CAP_SYS_RESOURCE",
    ]);
}

/// A checkpoint that lets the job go on makes copies of its processes.
#[test]
fn the_job_goes_on() {
    for mode in ["address-space", "locked"] {
        let job = Job::up("limits", mode);
        let image = job.image("image");
        job.leave_running(&image);
        job.is_well();
        job.container.ckrun(&["delete", "--force", "ID"]).ok();
        job.restore_with(&image, &["--changed-files", "ignore"]);
    }
}

//! Credentials, filters, limits, scheduling, directories and names.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by a panic")]

use ckrun_integration::job::Job;
use ckrun_integration::modes_survive;

modes_survive!("identity":
    ids many_groups ids_of_threads capabilities securebits no_new_privs seccomp seccomp_family
    seccomp_strict limits scheduling personality umask cwd chroot chroot_cwd_outside names death_signal
    not_dumpable oom_score prctls mdwe tsc clocks login deleted_program
    ; else "chroot-of-first"
);

/// What the first process sees as `/` is what every path of the image is told by.
#[test]
fn a_first_process_that_has_called_chroot() {
    Job::up("identity", "chroot-of-first").survives_or_is_refused(&["root"]);
}

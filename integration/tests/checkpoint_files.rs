//! Files: positions, flags, names that are gone, locks, what is no file, and file systems in memory.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by a panic")]

use ckrun_integration::job::Job;
use ckrun_integration::modes_survive;

modes_survive!("files":
    regular append direct path deleted deleted_in_two deleted_linked deleted_sparse tmpfile
    deleted_directory renamed replaced directory fifo fifo_deleted fifo_both_ends fifo_waited_for dup many
    closed signal_driven flock flock_of_child posix_lock ofd_lock locks_of_two devices proc proc_net tmpfs
    ended_process deleted_link ; else "lease"
);

#[test]
fn leases() {
    Job::up("files", "lease").survives_or_is_refused(&["lease"]);
}

//! Processes and threads: trees of any shape, sessions, groups, zombies, stopped ones.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by a panic")]

use ckrun_integration::job::Job;
use ckrun_integration::modes_survive;

modes_survive!("processes":
    wide deep tree threads threads_in_tree condition robust_mutex zombies zombie_leads_session
    stopped stopped_with_signals stopped_by_tstp stopped_and_waited sessions late_sessions lost_session_leader lost_group_leader subreaper
    fork_storm traced_storm exec_storm thread_storm late_pid
    shared_files ; else "shared-memory" "shared-elsewhere" "leaderless"
);

#[test]
fn processes_that_share_all_their_memory() {
    Job::up("processes", "shared-memory").survives_or_is_refused(&["memory", "CLONE_VM"]);
}

#[test]
fn processes_that_share_directories_in_a_mount_namespace_of_their_own() {
    Job::up("processes", "shared-elsewhere").is_refused_beforehand(&["CLONE_FS", "mount namespace"]);
}

#[test]
fn a_process_without_its_first_thread() {
    Job::up("processes", "leaderless").survives_or_is_refused(&["first thread"]);
}

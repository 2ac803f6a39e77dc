//! System V IPC, message queues of POSIX, and the names of the host.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by a panic")]

use ckrun_integration::modes_survive;

modes_survive!("sysv":
    segment segment_unattached segment_doomed semaphores semaphores_waiting messages messages_waiting posix posix_waiting names
    ; else
);

//! Mount namespaces of a job's own.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by a panic")]

use ckrun_integration::modes_survive;

modes_survive!("mounts":
    private pivot read_only peers same hidden sockets nested
    ; else
);

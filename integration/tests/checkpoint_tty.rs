//! Terminals: those of the job itself, and the container's own.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by a panic")]

use ckrun_integration::modes_survive;

modes_survive!("tty":
    pairs lines bytes output output_full output_stopped end_modes closed watched session discipline
    ; else
);

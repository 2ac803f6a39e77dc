//! Every kind of state is captured from a real process and given to another one, which must then have the same.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod creds;
mod job;
mod landlock;
mod place;
mod seccomp;
mod signals;
mod switches;
mod timers;

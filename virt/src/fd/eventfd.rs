//! Counters of eventfd(2).

use super::Trouble;
use super::capture::Job;
use super::making::Making;
use serde::{Deserialize, Serialize};
use std::os::fd::RawFd;

/// A counter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Eventfd {
    /// What the next read gets.
    pub count: u64,
    /// A read takes one instead of all (EFD_SEMAPHORE).
    pub semaphore: bool,
}

impl Job<'_> {
    pub(super) fn eventfd(&mut self, node: usize) -> Result<Eventfd, Trouble> {
        let seen = &self.graph.nodes[node].seen;
        let count = seen.info.field("eventfd-count").and_then(|hex| u64::from_str_radix(hex, 16).ok());
        // Linux 6.5 began to tell.
        match (count, seen.info.field("eventfd-semaphore")) {
            (Some(count), Some(semaphore)) => Ok(Eventfd { count, semaphore: semaphore != "0" }),
            _ => Err(Trouble::refused("eventfd", "this kernel does not tell its state (Linux 6.5 does)")),
        }
    }
}

impl Eventfd {
    /// The count comes later: a counter of 0 can be written to, which epoll needs.
    pub(super) fn make(&self, to: RawFd, making: &mut Making<'_>) {
        let flags = libc::EFD_CLOEXEC | if self.semaphore { libc::EFD_SEMAPHORE } else { 0 };
        let made = making.program.call("make an eventfd", libc::SYS_eventfd2, &[0.into(), flags.into()]);
        making.put_at(made.into(), to);
    }

    pub(super) fn settle(&self, to: RawFd, making: &mut Making<'_>) {
        if self.count > 0 {
            let count = making.program.put(&self.count.to_ne_bytes());
            making.program.call(
                "set an eventfd",
                libc::SYS_write,
                &[to.into(), count.into(), count.len.into()],
            );
        }
    }
}

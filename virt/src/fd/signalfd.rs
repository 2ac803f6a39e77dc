//! Queues of signals of signalfd(2). The signals are the process's, only the choice of them is the description's.

use super::Trouble;
use super::capture::Job;
use super::making::Making;
use serde::{Deserialize, Serialize};
use std::os::fd::RawFd;

/// A queue of signals.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Signalfd {
    /// Bit N-1 is signal N.
    pub mask: u64,
}

impl Job<'_> {
    pub(super) fn signalfd(&mut self, node: usize) -> Result<Signalfd, Trouble> {
        let seen = &self.graph.nodes[node].seen;
        let mask = seen.info.field("sigmask").and_then(|hex| u64::from_str_radix(hex, 16).ok());
        mask.map(|mask| Signalfd { mask })
            .ok_or_else(|| Trouble::refused("signalfd", "this kernel does not tell its state"))
    }
}

impl Signalfd {
    pub(super) fn make(&self, to: RawFd, making: &mut Making<'_>) {
        let mask = making.program.put(&self.mask.to_ne_bytes());
        let made = making.program.call(
            "make a signalfd",
            libc::SYS_signalfd4,
            &[(-1).into(), mask.into(), mask.len.into(), libc::SFD_CLOEXEC.into()],
        );
        making.put_at(made.into(), to);
    }
}

//! What one thread has in the CPU, together.

use super::registers::{self, General};
use super::rseq::Rseq;
use super::sleep::Sleep;
use super::xstate::Xstate;
use crate::Failure;
use crate::hex::Hex;
use crate::tracee::Tracee;
use serde::{Deserialize, Serialize};

/// The CPU state of a stopped thread, and its signal mask.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct CpuState {
    /// General registers and segment bases.
    pub registers: General,
    /// Blocked signals; bit N-1 is signal N.
    pub mask: Hex,
    /// Restartable sequences.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rseq: Option<Rseq>,
    /// Floating point, vectors, tiles.
    pub extended: Xstate,
    /// A call that goes on with the rest of its time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sleep: Option<Sleep>,
}

impl CpuState {
    /// Reads the state of a thread whose restartable sequence, if it was in one of those of `rseq`, has been aborted.
    ///
    /// # Errors
    /// `ESRCH` when it has been killed.
    pub fn capture(thread: &Tracee, rseq: Option<Rseq>) -> Result<Self, Failure> {
        Ok(CpuState {
            registers: General::from(&thread.regs),
            mask: Hex(thread.mask),
            rseq,
            extended: Xstate::read(thread.pid())?,
            sleep: None,
        })
    }

    /// The registers, if they are such as a thread can have.
    ///
    /// # Errors
    /// See [`General::checked`].
    pub fn checked(&self) -> Result<registers::Raw, String> {
        self.registers.checked()
    }
}

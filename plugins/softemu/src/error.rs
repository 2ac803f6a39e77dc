//! What went wrong, said so that a person can act on it.

use crate::state::Unfit;
use nix::errno::Errno;
use serde::{Deserialize, Serialize};
use std::io;
use std::path::PathBuf;

/// Why something that was asked of this crate did not happen.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A system call failed.
    #[error("{what}: {}", reason(.why))]
    Call {
        /// The action and its object, in the present tense: `open /dev/emu0`.
        what: String,
        /// The kernel's reason.
        why: io::Error,
    },
    /// A state file does not fit.
    #[error("{}: {why}", file.display())]
    State {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        why: Unfit,
    },
    /// An argument is of no use.
    #[error("{what}: {why}")]
    Argument {
        /// Which one, or its value.
        what: String,
        /// Why not, and what would be right.
        why: String,
    },
    /// The server refused a request on the control socket.
    #[error("{message}")]
    Refused {
        /// What kind of refusal.
        kind: Refusal,
        /// The server's sentence.
        message: String,
    },
    /// The emulator has gone away, and with it the link.
    #[error("{link}: the emulator has gone: {why}")]
    Gone {
        /// The link, as it was given.
        link: String,
        /// How that was noticed.
        why: String,
    },
    /// The server has not answered in time. Whether it has done what was asked is not known.
    #[error("{link}: no answer within {seconds} s")]
    Late {
        /// The control socket.
        link: String,
        /// How long it had, in whole seconds.
        seconds: u64,
    },
    /// The other side does not keep to the protocol.
    #[error("{link}: {why}")]
    Protocol {
        /// The link or socket.
        link: String,
        /// What was wrong.
        why: String,
    },
    /// A reply is not what the testbench's model says.
    #[error("transaction {sequence}, {request}: {why}")]
    Mismatch {
        /// Its sequence number.
        sequence: u32,
        /// The transaction, as the log words it.
        request: String,
        /// What was expected, and what came.
        why: String,
    },
}

/// Kinds of refusal by the server, so that a plugin can choose a code of its own protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Refusal {
    /// No slot is free, or the one asked for is not.
    Taken,
    /// There is no such slot, link or state element.
    Unknown,
    /// The slot is not this owner's.
    Owner,
    /// Not in this state: frozen or not frozen.
    State,
    /// A file that does not fit: damaged, of another design, of other links.
    Mismatch,
    /// A system call of the server failed.
    System,
    /// The request could not be understood.
    Request,
}

/// Short for results of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// Adds what was being done to an error of the kernel. The text is made only when there is an error.
pub trait Doing<T> {
    /// Names the action and its object.
    fn doing<S: Into<String>>(self, what: impl FnOnce() -> S) -> Result<T>;
}

impl<T> Doing<T> for io::Result<T> {
    fn doing<S: Into<String>>(self, what: impl FnOnce() -> S) -> Result<T> {
        self.map_err(|why| Error::Call { what: what().into(), why })
    }
}

impl<T> Doing<T> for rustix::io::Result<T> {
    fn doing<S: Into<String>>(self, what: impl FnOnce() -> S) -> Result<T> {
        self.map_err(|errno| Error::Call { what: what().into(), why: errno.into() })
    }
}

/// The kernel's reason in lower case and without a number.
fn reason(error: &io::Error) -> String {
    error.raw_os_error().map_or_else(|| error.to_string(), |n| Errno::from_raw(n).desc().to_lowercase())
}

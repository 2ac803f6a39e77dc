//! Sockets.
//!
//! A socket is one open file description: nobody can open it a second time. What family it is of decides which file of this
//! folder captures and restores it; what all have in common is in [`options`] and [`diag`].
//!
//! All of them are made in the job's first process at the numbers of their descriptions ([`make`]), filled by ckrun from
//! outside when every description of the job is there ([`fill`]), which may travel in their messages, and last get what
//! would have been in the way.

mod class;
#[allow(dead_code, reason = "families come one by one")]
pub(crate) mod diag;
pub(crate) mod inet;
pub(crate) mod options;

use super::Files;
use super::Trouble;
use super::capture::Job;
use super::making::Making;
use crate::Error;
use crate::image::Image;
use crate::restore;
pub(crate) use class::Class;
use options::Options;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::os::fd::AsFd;

/// A socket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Socket {
    /// What socket(2) was asked for.
    pub class: Class,
    /// Options of all families.
    #[serde(default, skip_serializing_if = "Options::is_default")]
    pub options: Options,
    /// What only sockets of its family have.
    pub of: Family,
}

/// What only sockets of one family have.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "family", rename_all = "kebab-case")]
pub enum Family {
    /// The internet's.
    Inet(inet::Inet),
}

impl fmt::Display for Socket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.class.fmt(f)
    }
}

impl Job<'_> {
    /// The socket behind `node`.
    pub(super) fn socket(&mut self, node: usize) -> Result<Socket, Trouble> {
        let fd = self.graph.take(node)?;
        let class = Class::of(fd.as_fd())?;
        let options = |job: &Self| {
            if job.running() { Ok(Options::default()) } else { Options::capture(fd.as_fd(), &class) }
        };
        Ok(match class.domain {
            libc::AF_INET | libc::AF_INET6 => {
                let inet = self.inet(node, &fd, &class)?;
                Socket { class, options: options(self)?, of: Family::Inet(inet) }
            }
            _ => return Err(class.refuse(fd)),
        })
    }
}

impl Socket {
    /// Why an image can't be right.
    pub(super) fn wrong(&self, files: &Files) -> Option<String> {
        let _ = files;
        self.options.wrong().or_else(|| match &self.of {
            Family::Inet(inet) => inet.wrong(),
        })
    }
}

/// Makes all sockets in the first process, where all other descriptions are that do not have to wait for the other
/// processes.
pub(super) fn make(files: &Files, making: &mut Making<'_>) -> Result<(), Error> {
    inet::make(files, making)?;
    Ok(())
}

/// Puts into all sockets what waits in them, and then sets what would have been in the way.
/// The answer is what has to wait until the job is let go.
pub(super) fn fill(
    files: &Files,
    making: &mut Making<'_>,
    image: &Image,
    wanted: &restore::Options,
) -> Result<inet::Late, Error> {
    inet::fill(files, making, image, wanted)
}

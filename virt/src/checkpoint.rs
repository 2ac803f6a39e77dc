//! Stand-in: the story of a checkpoint is still to come.

use crate::events::Events;
use crate::resource::Blocker;
use crate::{Error, fault};
use nix::unistd::Pid;
use serde::Serialize;
use std::path::PathBuf;
use std::time::Duration;

/// What is wanted.
#[derive(Debug, Clone)]
pub struct Options {
    /// The directory that becomes the image.
    pub image: PathBuf,
    /// The job goes on afterwards.
    pub leave_running: bool,
}

/// What was done.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// How long the job stood still.
    pub frozen: Duration,
    /// How long all of it took.
    pub total: Duration,
    /// Processes in the image.
    pub processes: usize,
    /// Threads in the image.
    pub threads: usize,
    /// Size of the image.
    pub bytes: u64,
}

/// What stands in the way.
pub fn survey(_init: Pid) -> Result<Vec<Blocker>, Error> {
    Err(Error::Unsupported("checkpoint: the engine is missing".into()))
}

/// Writes the image.
pub fn checkpoint(
    _init: Pid,
    _options: &Options,
    _extra_files: &[(&str, Vec<u8>)],
    _events: &mut dyn Events,
) -> Result<Report, Error> {
    fault::point("checkpoint:look")?;
    Err(Error::Unsupported("checkpoint: the engine is missing".into()))
}

//! Stand-in: the story of a restart is still to come.

use crate::events::Events;
use crate::{Error, Failure, fault};
use nix::unistd::Pid;
use serde::Serialize;
use std::fmt;
use std::os::fd::{BorrowedFd, OwnedFd, RawFd};
use std::path::PathBuf;
use std::time::Duration;

/// The number of the one descriptor, besides the standard streams, that a process has which is to become the first one
/// of a restored job: a SOCK_SEQPACKET socket, whose other end ckrun has.
pub const HATCH: RawFd = 3;

/// What to do with a file that is not as it was at the checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Changed {
    /// Refuse.
    #[default]
    Strict,
    /// Cut what was appended.
    Truncate,
    /// Take it as it is.
    Ignore,
}

/// What is wanted.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// For all files that are not named.
    pub changed: Changed,
    /// For single files, by their path in the container.
    pub changed_files: Vec<(PathBuf, Changed)>,
}

/// Something that makes a restart impossible here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// Which thing.
    pub what: String,
    /// Why it can't be had.
    pub why: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.what, self.why)
    }
}

/// What was done.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// How long all of it took.
    pub total: Duration,
    /// Processes of the job.
    pub processes: usize,
    /// Threads of the job.
    pub threads: usize,
    /// Size of the memory that was read.
    pub bytes: u64,
}

/// Checks everything that can be known before the first process exists.
pub fn check(_image: &Image, _options: &Options) -> Result<Vec<Problem>, Error> {
    fault::point("restore:check")?;
    Ok(Vec::new())
}

/// What a process that is to become the job's first one does inside the sandbox: contents of file systems.
pub fn inside(_image: BorrowedFd<'_>) -> Result<(), Failure> {
    Ok(())
}

/// Makes `init` the job.
pub fn restore(
    _image: &Image,
    _init: Pid,
    _hatch: OwnedFd,
    _options: &Options,
    _events: &mut dyn Events,
) -> Result<Report, Error> {
    fault::point("restore:seize")?;
    Err(Error::Unsupported("restore: the engine is missing".into()))
}

/// Stand-in for the image.
#[derive(Debug)]
pub struct Image {
    dir: OwnedFd,
}

impl Image {
    /// Opens one.
    pub fn open(dir: &std::path::Path) -> Result<Image, Error> {
        use crate::Doing;
        let flags = rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::CLOEXEC;
        let dir = rustix::fs::open(dir, flags, rustix::fs::Mode::empty())
            .doing(|| format!("open the image {}", dir.display()))?;
        Ok(Image { dir })
    }

    /// Its directory.
    pub fn dir_fd(&self) -> BorrowedFd<'_> {
        std::os::fd::AsFd::as_fd(&self.dir)
    }

    /// A file in it.
    pub fn json<T: serde::de::DeserializeOwned>(&self, name: &str) -> Result<T, Error> {
        use std::os::fd::AsRawFd;
        let path = format!("/proc/self/fd/{}/{name}", self.dir.as_raw_fd());
        let text = std::fs::read(&path).map_err(|e| Error::Damaged(format!("{name}: {e}")))?;
        serde_json::from_slice(&text).map_err(|e| Error::Damaged(format!("{name}: {e}")))
    }
}

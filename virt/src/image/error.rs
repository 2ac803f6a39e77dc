//! What can be wrong with an image, or with the place for one.

use super::FORMAT;
use crate::Failure;
use crate::error::text;
use nix::errno::Errno;
use std::path::{Path, PathBuf};

/// Why an image can't be written or read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no image in this directory: no checkpoint was written there, or one was cut off before its end.
    #[error("{}: no checkpoint image: there is no manifest.json in it (one appears when a checkpoint is complete)", dir.display())]
    NoImage {
        /// The directory that was looked into.
        dir: PathBuf,
    },

    /// A later ckrun wrote it.
    #[error("{}: image format {found} is newer than this ckrun, which reads format {FORMAT}: use the version that made it, or a later one", file.display())]
    Newer {
        /// The manifest.
        file: PathBuf,
        /// The format that it says it has.
        found: u64,
    },

    /// A file is not what the manifest, or the format, says. Nothing of it may be used.
    #[error("{}: {why}: the image is damaged or was altered; restore from another copy or another checkpoint", file.display())]
    Damaged {
        /// The file.
        file: PathBuf,
        /// What was found, and what should have been.
        why: String,
    },

    /// Something has the name that is to be written, and is not ours to replace.
    #[error("{} exists and is not overwritten: remove it, or choose another place for the image", path.display())]
    Exists {
        /// What is in the way.
        path: PathBuf,
    },

    /// Another ckrun is writing an image in the same place.
    #[error("{}: another ckrun is writing an image there: wait until it has ended, or choose another place", path.display())]
    Busy {
        /// The folder that the other one works in.
        path: PathBuf,
    },

    /// The name of the folder to work in belongs to somebody else.
    #[error("{}: {why}: remove it, or choose another place for the image", path.display())]
    Foreign {
        /// The folder.
        path: PathBuf,
        /// What is wrong with it.
        why: &'static str,
    },

    /// The disk, the quota or the limit on the size of files is exhausted.
    #[error("write {}: {}: make room, or choose another place for the image", file.display(), text(*errno))]
    NoRoom {
        /// The file that was being written.
        file: PathBuf,
        /// `ENOSPC`, `EDQUOT` or `EFBIG`.
        errno: Errno,
    },

    /// The file would not be read again, so it is not written either.
    #[error("{}: {size} bytes are more than the {most} that an image may have there", file.display())]
    TooBig {
        /// The file.
        file: PathBuf,
        /// Its size in bytes.
        size: u64,
        /// The most that it may have.
        most: u64,
    },

    /// No file of an image may be called this.
    #[error("image file {name:?}: {why}")]
    Name {
        /// The name.
        name: String,
        /// The rule that it breaks.
        why: &'static str,
    },

    /// A value has no form in JSON, or a page run breaks the rules of the index.
    #[error("{}: {why}", file.display())]
    Unfit {
        /// The file that it was for.
        file: PathBuf,
        /// The reason.
        why: String,
    },

    /// A file was begun but not finished when the image was to be committed.
    #[error("{}: begun but not finished, so there is no complete image", file.display())]
    Unfinished {
        /// The file.
        file: PathBuf,
    },

    /// A system call failed.
    #[error(transparent)]
    Sys(#[from] Failure),
}

impl Error {
    pub(super) fn damaged(file: &Path, why: impl Into<String>) -> Self {
        Error::Damaged { file: file.to_owned(), why: why.into() }
    }

    /// A failed write, with an answer of its own for a full disk: it is the one that a person can do something about.
    pub(super) fn write(file: &Path, errno: Errno) -> Self {
        match errno {
            Errno::ENOSPC | Errno::EDQUOT | Errno::EFBIG => Error::NoRoom { file: file.to_owned(), errno },
            _ => Failure::new(format!("write {}", file.display()), errno).into(),
        }
    }
}

/// The errno of an I/O error; one that did not come from the kernel (a short write, say) becomes `EIO`.
pub(super) fn errno(error: &std::io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}

//! A file of an image for somebody who can't open it himself: it is opened first, and read and checked later.

use super::digest::Digest;
use super::{Error, Result, error};
use crate::Failure;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use xxhash_rust::xxh3::Xxh3;

/// A file of an image, open. Its size is the manifest's; its digest is still to be compared.
#[derive(Debug)]
pub struct Stored {
    pub(super) file: File,
    pub(super) path: PathBuf,
    pub(super) size: u64,
    pub(super) sum: u128,
}

impl Stored {
    /// Bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Reads it from its beginning.
    pub fn reader(&self) -> StoredReader<'_> {
        StoredReader { stored: self, at: 0, sum: Xxh3::new() }
    }
}

/// Reads a file of an image once, from its beginning to its end.
#[must_use = "what was read is not checked before finish()"]
pub struct StoredReader<'s> {
    stored: &'s Stored,
    at: u64,
    sum: Xxh3,
}

impl StoredReader<'_> {
    /// Reads the next bytes, as many as there is room for. The descriptor's offset is not used: processes may share it.
    ///
    /// # Errors
    /// [`Error::Damaged`] when there are less, system errors.
    pub fn read(&mut self, buffer: &mut [u8]) -> Result<()> {
        self.stored.file.read_exact_at(buffer, self.at).map_err(|e| {
            if e.raw_os_error().is_none() {
                return Error::damaged(&self.stored.path, "it ends too early");
            }
            Failure::new(format!("read {}", self.stored.path.display()), error::errno(&e)).into()
        })?;
        self.sum.update(buffer);
        self.at += buffer.len() as u64;
        Ok(())
    }

    /// Everything has been read, and is what was written.
    ///
    /// # Errors
    /// [`Error::Damaged`].
    pub fn finish(self) -> Result<()> {
        let Stored { path, size, sum, .. } = self.stored;
        if self.at != *size {
            return Err(Error::damaged(path, format!("{} of its {size} bytes are in use", self.at)));
        }
        let (found, wanted) = (Digest::Plain(self.sum.digest128()), Digest::Plain(*sum));
        if found != wanted {
            return Err(Error::damaged(
                path,
                format!("its digest is {found}, and the manifest says {wanted}"),
            ));
        }
        Ok(())
    }
}

impl std::fmt::Debug for StoredReader<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StoredReader")
            .field("stored", self.stored)
            .field("at", &self.at)
            .finish_non_exhaustive()
    }
}

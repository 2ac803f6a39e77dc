//! `pages-N.img`: the contents of memory, nothing else. Which page is where stands in the index.

use super::{Error, Result, name};
use rustix::fd::BorrowedFd;
use rustix::fs::OFlags;
use std::fs::File;
use std::io::IoSlice;
use std::path::{Path, PathBuf};
use xxhash_rust::xxh3::xxh3_64;

/// The size of a page, and what runs are aligned to in their files: 4096 bytes.
pub const PAGE: u64 = 4096;

/// The most pages in a run: 1 MiB, so that a run can be read, checked and put into memory in one piece.
pub const MAX_RUN_PAGES: u32 = 256;

/// What the kernel takes in one call: UIO_MAXIOV of `<linux/uio.h>`.
const MAX_PARTS: usize = 1024;

/// Pages side by side in memory and in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageRun {
    /// The address of the first page; in a shared object its offset, in bytes.
    pub vaddr: u64,
    /// How many pages, 1 to [`MAX_RUN_PAGES`].
    pub pages: u32,
    /// The N of `pages-N.img`.
    pub file: u16,
    /// For those who fill memory; the image does not look at them.
    pub flags: u16,
    /// Where the first page is in the file, in bytes.
    pub offset: u64,
    /// XXH3-64 of all bytes of the run, see [`PageRun::digest_of`].
    pub digest: u64,
}

impl PageRun {
    /// Its length in bytes.
    pub fn len(&self) -> u64 {
        u64::from(self.pages) * PAGE
    }

    /// A run always has a page.
    pub fn is_empty(&self) -> bool {
        self.pages == 0
    }

    /// The digest of a run with these bytes.
    pub fn digest_of(bytes: &[u8]) -> u64 {
        xxh3_64(bytes)
    }

    /// Checks what was read for this run.
    ///
    /// # Errors
    /// [`Error::Damaged`] with the file and the place.
    pub fn verify(&self, bytes: &[u8]) -> Result<()> {
        if bytes.len() as u64 == self.len() && xxh3_64(bytes) == self.digest {
            return Ok(());
        }
        let (pages, offset, vaddr) = (self.pages, self.offset, self.vaddr);
        Err(Error::damaged(
            Path::new(&name::pages(self.file)),
            format!(
                "the {pages} pages at offset {offset:#x}, for address {vaddr:#x}, don't have the digest in pages.idx"
            ),
        ))
    }
}

/// Writes one file of pages. It belongs to one thread; two threads that write to one file would wait for each other.
#[derive(Debug)]
pub struct PagesWriter {
    file: File,
    number: u16,
    end: u64,
    path: PathBuf,
}

impl PagesWriter {
    pub(super) fn create(folder: BorrowedFd<'_>, number: u16, path: PathBuf) -> Result<Self> {
        let file = super::folder::create(folder, &name::pages(number), OFlags::RDWR, &path)?;
        Ok(PagesWriter { file, number, end: 0, path })
    }

    /// The file, open for reading and writing: a task may write its own pages to places that [`PagesWriter::reserve`]
    /// gave.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// The N of `pages-N.img`, for [`PageRun::file`].
    pub fn number(&self) -> u16 {
        self.number
    }

    /// Sets the next `len` bytes aside, rounded up to whole pages, and returns their offset.
    pub fn reserve(&mut self, len: u64) -> u64 {
        let offset = self.end;
        self.end += len.next_multiple_of(PAGE);
        offset
    }

    /// Appends whole pages and returns their offset.
    ///
    /// # Errors
    /// [`Error::NoRoom`] when the disk is full, [`Error::Unfit`] when these are not whole pages, other system errors.
    pub fn write(&mut self, bytes: &[u8]) -> Result<u64> {
        self.write_parts(&mut [IoSlice::new(bytes)])
    }

    /// Appends what is whole pages when it stands one part behind the other, and returns the offset of the first part.
    ///
    /// # Errors
    /// As [`PagesWriter::write`].
    pub fn write_parts(&mut self, mut parts: &mut [IoSlice<'_>]) -> Result<u64> {
        let len: u64 = parts.iter().map(|part| part.len() as u64).sum();
        if !len.is_multiple_of(PAGE) {
            return Err(Error::Unfit {
                file: self.path.clone(),
                why: format!("{len} bytes are no whole pages"),
            });
        }
        let offset = self.reserve(len);
        let mut at = offset;
        while !parts.is_empty() {
            let now = parts.len().min(MAX_PARTS);
            match rustix::io::pwritev(&self.file, &parts[..now], at) {
                Ok(0) => return Err(self.failed(&std::io::ErrorKind::WriteZero.into())),
                Ok(written) => {
                    at += written as u64;
                    IoSlice::advance_slices(&mut parts, written);
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(self.failed(&errno.into())),
            }
        }
        Ok(offset)
    }

    /// The error for a write to this file that somebody else made and that failed.
    pub fn failed(&self, error: &std::io::Error) -> Error {
        Error::write(&self.path, super::error::errno(error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_that_differs_in_a_bit_or_in_length_is_named() {
        let mut bytes = vec![7u8; 8192];
        let digest = PageRun::digest_of(&bytes);
        let run = PageRun { vaddr: 0x1000, pages: 2, file: 3, flags: 0, offset: 0x5000, digest };
        run.verify(&bytes).unwrap();
        assert!(run.verify(&bytes[..4096]).is_err());
        bytes[8191] ^= 0x80;
        let said = run.verify(&bytes).unwrap_err().to_string();
        assert!(said.starts_with("pages-3.img: the 2 pages at offset 0x5000, for address 0x1000"), "{said}");
    }
}

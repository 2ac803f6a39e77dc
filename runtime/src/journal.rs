//! The log that a checkpoint and a restart leave for whoever looks for a reason afterwards: dump.log and restore.log, where
//! clients look for them.
//!
//! It holds every line of the run, whatever the command line asks to be shown. It is written at the end: before, the
//! directory may not exist, or must be empty to become an image. Until then the lines are in a memory file, to which
//! ckrun's init adds its own.

use crate::error::{Error, Result};
use ckrun_virt::Doing;
use nix::sys::memfd::{MFdFlags, memfd_create};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// A log under way.
#[derive(Debug)]
pub struct Journal {
    lines: File,
    place: Place,
}

/// Where a journal goes.
#[derive(Debug, Clone)]
pub struct Place {
    /// The directory.
    pub dir: PathBuf,
    /// The file's name in it.
    pub name: &'static str,
    /// Somebody asked for this directory: it is made if missing, and it is an error when the file can't be.
    pub wanted: bool,
}

impl Journal {
    /// Begins one.
    ///
    /// # Errors
    /// The kernel's.
    pub fn begin(place: Place) -> Result<Journal> {
        let lines = memfd_create(c"journal", MFdFlags::MFD_CLOEXEC).doing(|| "make a memfd")?;
        Ok(Journal { lines: lines.into(), place })
    }

    /// Adds a line.
    pub fn note(&self, line: &str) {
        // Memory that is not to be had for a log is not worth a failure. The position is that of all copies of the
        // descriptor, so that no line of another process is overwritten.
        let _ = (&self.lines).write_all(line.as_bytes());
    }

    /// Writes what there is so far.
    ///
    /// # Errors
    /// The directory that was asked for can't be written.
    pub fn save(&self) -> Result<()> {
        let Place { dir, name, wanted } = &self.place;
        let path = dir.join(name);
        if *wanted {
            std::fs::create_dir_all(dir).map_err(|e| Error::file(dir, &e))?;
        }
        match self.copy_to(&path) {
            Err(e) if *wanted => Err(Error::file(&path, &e)),
            _ => Ok(()),
        }
    }

    fn copy_to(&self, path: &Path) -> std::io::Result<()> {
        // Through /proc, to read from the beginning without moving the position at which others write.
        let mut lines = File::open(format!("/proc/self/fd/{}", self.lines.as_raw_fd()))?;
        std::io::copy(&mut lines, &mut create_anew(path)?).map(drop)
    }
}

/// Makes a new file in the place of an older one.
///
/// The directory may be an image from anywhere: whatever has the name there is not written to, least of all what a link
/// leads to.
pub(crate) fn create_anew(path: &Path) -> std::io::Result<File> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn journal(dir: PathBuf, wanted: bool) -> Journal {
        Journal::begin(Place { dir, name: "dump.log", wanted }).unwrap()
    }

    #[test]
    fn it_can_be_saved_more_than_once() {
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().join("made/for/it");
        let journal = journal(place.clone(), true);
        for (line, all) in [("one\n", "one\n"), ("two\n", "one\ntwo\n")] {
            journal.note(line);
            journal.save().unwrap();
            assert_eq!(std::fs::read_to_string(place.join("dump.log")).unwrap(), all);
        }
    }

    #[test]
    fn nothing_is_written_through_a_link() {
        let dir = tempfile::tempdir().unwrap();
        let victim = dir.path().join("victim");
        std::fs::write(&victim, "precious").unwrap();
        let log = dir.path().join("dump.log");
        for hard in [true, false] {
            let linked = if hard {
                std::fs::hard_link(&victim, &log)
            } else {
                std::os::unix::fs::symlink(&victim, &log)
            };
            linked.unwrap();
            let journal = journal(dir.path().into(), true);
            journal.note("line\n");
            journal.save().unwrap();
            assert_eq!(std::fs::read_to_string(&victim).unwrap(), "precious");
            assert_eq!(std::fs::read_to_string(&log).unwrap(), "line\n");
            std::fs::remove_file(&log).unwrap();
        }
    }

    #[test]
    fn only_a_place_that_was_asked_for_is_made() {
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().join("image");
        let unasked = journal(place.clone(), false);
        unasked.save().unwrap();
        assert!(!place.exists());
        std::fs::write(&place, "").unwrap();
        unasked.save().unwrap();
        let said = journal(place, true).save().unwrap_err().to_string();
        assert!(said.contains("image"), "{said}");
    }
}

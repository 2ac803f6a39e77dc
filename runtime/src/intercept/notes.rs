//! What those who answer learn on the way, and the job relies on: written down before the job hears of it, and so not lost when
//! they are killed. A line is added for each; when the supervisor's record has it all, they are cleared.

use super::listen::lock;
use super::names::Name;
use crate::error::{Error, Result};
use ckrun_virt::Doing;
use rustix::event::{EventfdFlags, eventfd};
use serde::{Deserialize, Serialize};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::{Mutex, MutexGuard};

/// The file.
pub const NAME: &str = "answers.log";

/// So many bytes are worth a new record.
const MANY: usize = 64 << 10;

/// One line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Note {
    /// A driver has given the job a number that nobody has bound.
    Handle {
        /// Where it is unique.
        space: String,
        /// As the job knows it.
        number: u64,
        /// As the driver does.
        real: u64,
    },
    /// By which of several names the job has connected a socket.
    Peer {
        /// The socket's cookie.
        cookie: u64,
        /// What it called its peer.
        name: Name,
    },
}

/// Where they are written; by default nowhere.
#[derive(Debug, Default)]
pub struct Notes {
    book: Mutex<Option<Book>>,
    /// Readable when there are many.
    bell: Option<OwnedFd>,
}

#[derive(Debug)]
struct Book {
    file: File,
    size: usize,
}

impl Notes {
    /// In a directory.
    ///
    /// # Errors
    /// The kernel's.
    pub fn open(dir: &Path) -> Result<Notes> {
        let path = dir.join(NAME);
        let file = OpenOptions::new().create(true).append(true).mode(0o600).open(&path);
        let mut file = file.map_err(|e| Error::file(&path, &e))?;
        // Behind a line that was not finished.
        file.write_all(b"\n").map_err(|e| Error::file(&path, &e))?;
        let bell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).doing(|| "make an eventfd")?;
        // What is there already has been taken over, and will be cleared with the rest.
        Ok(Notes { book: Mutex::new(Some(Book { file, size: MANY })), bell: Some(bell) })
    }

    /// Those of somebody who was killed. A line that is not whole was not relied upon.
    ///
    /// # Errors
    /// The kernel's.
    pub fn read(dir: &Path) -> Result<Vec<Note>> {
        let path = dir.join(NAME);
        match std::fs::read(&path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
            other => {
                let text = other.map_err(|e| Error::file(&path, &e))?;
                let lines = text.split(|byte| *byte == b'\n');
                Ok(lines.filter_map(|line| serde_json::from_slice(line).ok()).collect())
            }
        }
    }

    /// Adds one.
    pub fn add(&self, note: &Note) {
        let mut book = lock(&self.book);
        let (Some(book), Ok(mut line)) = (&mut *book, serde_json::to_vec(note)) else { return };
        line.push(b'\n');
        if let Err(e) = book.file.write_all(&line) {
            return log::warn!("{NAME}: {e}");
        }
        book.size += line.len();
        if let Some(bell) = self.bell.as_ref().filter(|_| book.size > MANY) {
            let _ = rustix::io::write(bell, &1_u64.to_ne_bytes());
        }
    }

    /// To be polled: a new record would be good.
    pub fn bell(&self) -> Option<BorrowedFd<'_>> {
        self.bell.as_ref().map(AsFd::as_fd)
    }

    /// Holds all others up until what is written down elsewhere has everything.
    pub fn settle(&self) -> Settling<'_> {
        if let Some(bell) = &self.bell {
            let _ = rustix::io::read(bell, &mut [0; 8]);
        }
        Settling(lock(&self.book))
    }
}

/// See [`Notes::settle`].
#[derive(Debug)]
pub struct Settling<'a>(MutexGuard<'a, Option<Book>>);

impl Settling<'_> {
    /// It is written: they are not needed any more.
    pub fn settled(mut self) {
        let Some(book) = self.0.as_mut().filter(|book| book.size > 0) else { return };
        match book.file.set_len(0) {
            Ok(()) => book.size = 0,
            Err(e) => log::warn!("{NAME}: {e}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_noted_is_read_until_it_is_settled() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Notes::read(dir.path()).unwrap(), []);
        let notes = Notes::open(dir.path()).unwrap();
        let handle = Note::Handle { space: "session".into(), number: 6, real: 5 };
        let peer = Note::Peer { cookie: 77, name: Name::Abstract(b"emu".to_vec()) };
        notes.add(&handle);
        notes.add(&peer);
        std::fs::OpenOptions::new()
            .append(true)
            .open(dir.path().join(NAME))
            .and_then(|mut file| file.write_all(b"{\"handle\":{\"sp"))
            .unwrap();
        assert_eq!(Notes::read(dir.path()).unwrap(), [handle, peer]);
        notes.settle().settled();
        assert_eq!(Notes::read(dir.path()).unwrap(), []);
    }
}

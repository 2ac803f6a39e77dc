//! The two ends of a migration, which talk through whatever connects the hosts: ssh, or a command like it.
//!
//! ```text
//!      the old host                                the new host (ckrun restore --handover)
//!      the image          ─────────────────────▶   written, checked, the job made of it
//!                         ◀─────────────────────   ready
//!      from now on the job is not its own   go ─▶  the job runs
//!                         ◀─────────────────────   running
//!      the job is killed
//! ```
//!
//! Up to `go` the old host has the job, and an end of the connection is the end of what the new host has made. After it
//! the new host has the job: an old host that hears no `running` does not know whether it runs, and must not let it run.

use crate::error::{Error, Result};
use crate::progress::Progress;
use crate::sandbox::guardian::{Charge, Guardian};
use ckrun_virt::image::{self, stream};
use ckrun_virt::{Doing, Failure};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl, open};
use nix::sys::stat::Mode;
use nix::unistd::{dup2_stderr, dup2_stdin, dup2_stdout};
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};

/// The new host's end.
#[derive(Debug)]
pub struct Arrival {
    from: BufReader<File>,
    to: File,
    image: PathBuf,
    /// Removes the image after ckrun's sudden end.
    _guardian: Guardian,
}

impl Arrival {
    /// Takes the standard input and output for the conversation, so that nobody else has them, and receives the image.
    ///
    /// # Errors
    /// The image is not whole; the directory is there already, or can't be written.
    pub fn receive(dir: &Path) -> Result<Arrival> {
        let mine = |fd: BorrowedFd<'_>| -> Result<File> {
            let copy = fcntl(fd, FcntlArg::F_DUPFD_CLOEXEC(3)).doing(|| "duplicate a standard stream")?;
            // SAFETY: a new descriptor, which nobody else owns.
            Ok(unsafe { OwnedFd::from_raw_fd(copy) }.into())
        };
        let (from, to) = (mine(std::io::stdin().as_fd())?, mine(std::io::stdout().as_fd())?);
        let nothing = nothing()?;
        dup2_stdin(&nothing).and_then(|()| dup2_stdout(&nothing)).doing(|| "put standard streams away")?;
        if dir.exists() {
            // Not ours to remove.
            return Err(image::Error::Exists { path: dir.to_owned() }.into());
        }
        let guardian = Guardian::post(None, Charge::Passing(dir.as_os_str()))?;
        let mut from = BufReader::new(from);
        let mut progress = Progress::new("receive");
        stream::receive(&mut from, dir, &mut |done, all| progress.update(done, all))?;
        Ok(Arrival { from, to, image: dir.to_owned(), _guardian: guardian })
    }

    /// Says that the job is about to run, and waits for the word.
    ///
    /// # Errors
    /// `ECANCELED`: the old host keeps the job.
    pub fn await_go(&mut self) -> Result<()> {
        self.say("ready")?;
        let mut word = String::new();
        let read = self.from.by_ref().take(16).read_line(&mut word);
        match read {
            Ok(_) if word == "go\n" => Ok(()),
            _ => Err(Failure::new("take the job over: the old host keeps it", Errno::ECANCELED).into()),
        }
    }

    /// Says a word.
    ///
    /// # Errors
    /// `EPIPE`: nobody listens.
    pub fn say(&mut self, word: &str) -> Result<()> {
        writeln!(self.to, "{word}").map_err(|e| Error::file("the old host", &e))
    }
}

impl Drop for Arrival {
    /// The image was made for this restart alone.
    fn drop(&mut self) {
        if let Err(e) = std::fs::remove_dir_all(&self.image) {
            log::warn!("remove {}: {e}", self.image.display());
        }
    }
}

/// Does something while standard error leads nowhere: what is started meanwhile does not hold up the end of whoever reads
/// it.
///
/// # Errors
/// The kernel's.
pub fn without_stderr<T>(work: impl FnOnce() -> T) -> Result<T> {
    let kept = std::io::stderr().as_fd().try_clone_to_owned().doing(|| "duplicate standard error")?;
    dup2_stderr(&nothing()?).doing(|| "put standard error away")?;
    let done = work();
    dup2_stderr(&kept).doing(|| "put standard error back")?;
    Ok(done)
}

fn nothing() -> Result<OwnedFd> {
    Ok(open("/dev/null", OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty()).doing(|| "open /dev/null")?)
}

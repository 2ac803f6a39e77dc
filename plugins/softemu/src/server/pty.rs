//! The server's end of a pty: its master. The job opens the slave like any other device file.

use super::port::{AHEAD, Port, Received};
use crate::control::Drain;
use crate::error::{Doing, Result};
use crate::link::{Kind, Name};
use rustix::event::PollFlags;
use rustix::fs::{OFlags, fcntl_setfl};
use rustix::io::{Errno, ioctl_fionread, read, retry_on_intr, write};
use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, ptsname, unlockpt};
use rustix::termios::{OptionalActions, QueueSelector, tcflush, tcgetattr, tcsetattr};
use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

/// A pty in raw mode.
#[derive(Debug)]
pub struct Pty {
    name: Name,
    shown: PathBuf,
    master: OwnedFd,
    /// A slave of our own, until the job's first request. Without any, what is written to the master is lost or refused;
    /// with one, the master never says that the job has closed its one.
    slave: Option<OwnedFd>,
    reconnect: bool,
}

impl Pty {
    /// Makes one, with a symbolic link to it at `shown`.
    pub fn open(shown: &Path, reconnect: bool) -> Result<Pty> {
        let doing = || "make a pty";
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).doing(doing)?;
        grantpt(&master).doing(doing)?;
        unlockpt(&master).doing(doing)?;
        let slave = peer(&master).doing(doing)?;
        let mut attributes = tcgetattr(&slave).doing(doing)?;
        attributes.make_raw();
        tcsetattr(&slave, OptionalActions::Now, &attributes).doing(doing)?;
        fcntl_setfl(&master, OFlags::RDWR | OFlags::NONBLOCK).doing(doing)?;
        let path = ptsname(&master, Vec::new()).doing(doing)?.to_string_lossy().into_owned();
        let _ = fs::remove_file(shown);
        symlink(&path, shown).doing(|| format!("link {} to {path}", shown.display()))?;
        let name = Name { kind: Kind::Pty, address: path };
        Ok(Pty { name, shown: shown.to_owned(), master, slave: Some(slave), reconnect })
    }
}

/// Another slave, opened through the master: its path may be in another mount namespace.
fn peer(master: &OwnedFd) -> rustix::io::Result<OwnedFd> {
    let slave = ioctl_tiocgptpeer(master, OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    fcntl_setfl(&slave, OFlags::RDWR | OFlags::NONBLOCK)?;
    Ok(slave)
}

/// Appends all that can be read now.
fn read_all(fd: &OwnedFd, into: &mut Vec<u8>) -> rustix::io::Result<()> {
    let mut buffer = [0; 4096];
    loop {
        match retry_on_intr(|| read(fd, &mut buffer)) {
            Ok(0) | Err(Errno::AGAIN) => return Ok(()),
            Ok(count) => into.extend_from_slice(&buffer[..count]),
            Err(errno) => return Err(errno),
        }
    }
}

impl Port for Pty {
    fn name(&self) -> &Name {
        &self.name
    }

    fn interest(&self, reading: bool, writing: bool) -> Option<(BorrowedFd<'_>, PollFlags)> {
        let mut flags = PollFlags::empty();
        flags.set(PollFlags::IN, reading);
        flags.set(PollFlags::OUT, writing);
        (!flags.is_empty()).then_some((self.master.as_fd(), flags))
    }

    fn receive(&mut self, into: &mut Vec<u8>) -> std::result::Result<Received, String> {
        let mut buffer = [0; AHEAD / 4];
        match retry_on_intr(|| read(&self.master, &mut buffer)) {
            Ok(count) => {
                into.extend_from_slice(&buffer[..count]);
                self.slave = None;
                // The line discipline hands out 4 KiB at most, so a short read says nothing.
                Ok(Received::More)
            }
            Err(Errno::AGAIN) => Ok(Received::Everything),
            // EIO: the last slave was closed. What its job has not read must not be read by the next one.
            Err(Errno::IO) if self.reconnect => {
                let again = || format!("open {} again", self.name);
                let slave = peer(&self.master).map_err(|errno| format!("{}: {errno}", again()))?;
                tcflush(&slave, QueueSelector::IFlush).map_err(|errno| format!("{}: {errno}", again()))?;
                self.slave = Some(slave);
                Ok(Received::Another)
            }
            Err(errno) => Err(format!("the job has closed it: {errno}")),
        }
    }

    fn send(&mut self, bytes: &[u8]) -> std::result::Result<usize, String> {
        match retry_on_intr(|| write(&self.master, bytes)) {
            Ok(count) => Ok(count),
            Err(Errno::AGAIN) => Ok(0),
            // Reading will tell.
            Err(Errno::IO) if self.reconnect => Ok(0),
            Err(errno) => Err(format!("the job has closed it: {errno}")),
        }
    }

    /// What the job has not read is in the slave's line discipline, and anybody who opens the slave can read it there.
    fn gather(&mut self, requests: &mut Vec<u8>, replies: &mut Vec<u8>) -> std::result::Result<(), String> {
        let mut recalled = Vec::new();
        let gathered = peer(&self.master).and_then(|slave| {
            read_all(&slave, &mut recalled)?;
            read_all(&self.master, requests)
        });
        recalled.append(replies);
        *replies = recalled;
        gathered.map_err(|errno| format!("take everything off {}: {errno}", self.name))
    }

    fn drain(&self, status: &mut Drain) {
        status.connected = self.slave.is_none();
        status.unserved += ioctl_fionread(&self.master).unwrap_or(0);
        status.undelivered = peer(&self.master).and_then(ioctl_fionread).ok();
    }
}

impl Drop for Pty {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.shown);
    }
}

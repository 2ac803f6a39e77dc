//! A pseudoterminal between guest and job, in which bytes may be that neither of them has.

use crate::machine::Machine;
use ckrun_plugin::{Code, Fault};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags, open};
use rustix::io::{Errno, read, retry_on_intr, write};
use rustix::termios::{LocalModes, tcgetattr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Nothing is waited for.
const NOW: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };

/// A pseudoterminal. QEMU has its master, the job its slave.
#[derive(Debug)]
pub struct Pty {
    path: String,
    /// So that QEMU sees somebody there, whatever the job does; and to take off what the job has not read.
    slave: OwnedFd,
}

impl Pty {
    /// Opens the slave.
    ///
    /// # Errors
    /// [`Code::Lost`].
    pub fn open(path: &str) -> Result<Pty, Fault> {
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let slave =
            open(path, flags, Mode::empty()).map_err(|e| Fault::lost(format!("the link {path}: {e}")))?;
        Ok(Pty { path: path.to_owned(), slave })
    }

    /// Its name, /dev/pts/N.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// QEMU's master. TIOCOUTQ on the slave would not tell what is in it: for a pseudoterminal that is always 0.
    ///
    /// # Errors
    /// [`Code::Lost`].
    pub fn master(&self, machine: &Machine) -> Result<OwnedFd, Fault> {
        let index = self.path.rsplit('/').next().unwrap_or_default();
        let masters = machine.descriptors(|link, info| {
            let ptmx = link.file_name().is_some_and(|name| name == "ptmx");
            let mut lines = info.lines();
            ptmx && lines.any(|line| line.strip_prefix("tty-index:").is_some_and(|n| n.trim() == index))
        })?;
        masters.into_iter().next().ok_or_else(|| Fault::lost(format!("qemu has closed {}", self.path)))
    }

    /// Whether the guest has everything that the job has sent. poll(2) also sees what the kernel has not handed on yet.
    ///
    /// # Errors
    /// The kernel's.
    pub fn taken(&self, master: &OwnedFd) -> Result<bool, Fault> {
        ready(master.as_fd(), PollFlags::IN).map(|ready| !ready)
    }

    /// What the job has not read. It stays there, and the guest must stand still.
    ///
    /// # Errors
    /// [`Code::Veto`] if it can't be told; the kernel's.
    pub fn unread(&self, master: &OwnedFd) -> Result<Vec<u8>, Fault> {
        if tcgetattr(&self.slave).map_err(failed)?.local_modes.contains(LocalModes::ICANON) {
            let why = "the job has given it back the mode for lines, in which half a line can't be seen";
            return Err(Fault::veto(format!("{}: {why}", self.path)));
        }
        if !ready(master.as_fd(), PollFlags::OUT)? {
            // What is taken off would make room for QEMU to send more, in the middle of what is put back.
            return Err(Fault::veto(format!("{} is full of replies that the job does not read", self.path)));
        }
        let mut all = Vec::new();
        let mut buffer = [0; 4096];
        loop {
            // The kernel hands on what it has before it says EAGAIN.
            match retry_on_intr(|| read(&self.slave, &mut buffer)) {
                Ok(0) | Err(Errno::AGAIN) => break,
                Ok(count) => all.extend_from_slice(&buffer[..count]),
                Err(errno) => return Err(failed(errno)),
            }
        }
        self.send(master, &all)?;
        Ok(all)
    }

    /// Puts what the guest had sent where the job reads it.
    ///
    /// # Errors
    /// The kernel's.
    pub fn send(&self, master: &OwnedFd, mut bytes: &[u8]) -> Result<(), Fault> {
        while !bytes.is_empty() {
            // There is room for what was there before, but the kernel hands it on in its own time.
            if !ready_within(master.as_fd(), PollFlags::OUT, &Timespec { tv_sec: 1, tv_nsec: 0 })? {
                return Err(Fault::lost(format!(
                    "{} does not take back what it had: {} bytes",
                    self.path,
                    bytes.len()
                )));
            }
            match retry_on_intr(|| write(master, bytes)) {
                Ok(count) => bytes = &bytes[count..],
                Err(Errno::AGAIN) => {}
                Err(errno) => return Err(failed(errno)),
            }
        }
        Ok(())
    }
}

fn ready(fd: BorrowedFd<'_>, what: PollFlags) -> Result<bool, Fault> {
    ready_within(fd, what, &NOW)
}

fn ready_within(fd: BorrowedFd<'_>, what: PollFlags, limit: &Timespec) -> Result<bool, Fault> {
    let mut fds = [PollFd::from_borrowed_fd(fd, what)];
    retry_on_intr(|| poll(&mut fds, Some(limit))).map_err(failed)?;
    Ok(fds[0].revents().contains(what))
}

fn failed(errno: Errno) -> Fault {
    Fault::new(Code::Internal, format!("the link: {}", std::io::Error::from(errno)))
}

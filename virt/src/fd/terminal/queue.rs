//! What waits in a pseudoterminal: what was typed and not read yet, what was written and not seen yet.
//!
//! The kernel lets nobody look at these bytes but by reading them. So they are read, by descriptions of ckrun's own, and
//! put back at once, while nobody of the job runs: TIOCSTI puts a byte where the other end's come from, past the workers
//! that carry them, and is done when it returns. Meanwhile the settings are such that no byte means anything, and that
//! nothing is echoed. ICANON alone stays as it is: with a change of it the kernel forgets where lines end.

use crate::image::Bytes;
use crate::sys::tty::{self, Settings};
use nix::errno::Errno;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::{Deserialize, Serialize};
use std::os::fd::{AsFd, BorrowedFd};

/// The most bytes that a line discipline holds for a reader (`N_TTY_BUF_SIZE`, which one byte of stays free). More of them wait in
/// the buffer before it, which TIOCSTI goes past.
pub(super) const ROOM: usize = 4095;
/// The most bytes of whole lines with which there surely is room for the one that is being typed, and none wait before
/// the line discipline, to be echoed as soon as there is room.
const LINES: usize = 3000;
/// The sizes of the buffers before it (`MIN_TTYB_SIZE`, `TTY_BUFFER_PAGE`).
const SMALL: usize = 256;
const LARGE: usize = 1792;
/// Far more than a pseudoterminal holds.
const MOST: usize = 64 << 10;

/// What was typed and not read yet.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Input {
    /// Whole lines, if it is read by lines.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lines: Vec<Line>,
    /// All else.
    #[serde(default, skip_serializing_if = "<[u8]>::is_empty")]
    pub rest: Bytes,
}

/// A line that can be read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Line {
    /// Its bytes, with the one that ended it.
    pub bytes: Bytes,
    /// It was not ended by its last byte but by the end-of-file character, of which nothing is seen.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub cut: bool,
}

impl Input {
    pub fn is_empty(&self) -> bool {
        self.lines.is_empty() && self.rest.is_empty()
    }

    /// An image may not ask for more than there can be.
    pub fn fits(&self) -> bool {
        let lines = self.lines.iter().map(|line| line.bytes.len() + 1);
        lines.sum::<usize>() + self.rest.len() <= ROOM
    }

    /// Reads what waits at `slave`, which does not block. None when it is too much to be put back.
    ///
    /// # Errors
    /// The kernel's; what was read is lost then.
    pub fn take(slave: BorrowedFd<'_>, settings: &Settings) -> Result<Option<Input>, Errno> {
        let waiting = rustix::io::ioctl_fionread(slave).map_err(raw)?;
        if waiting > if by_lines(settings) { LINES as u64 } else { ROOM as u64 - 1 } {
            return Ok(None);
        }
        let mut input = Input::default();
        if by_lines(settings) {
            let ends = [Some(b'\n'), special(settings, libc::VEOL), special(settings, libc::VEOL2)];
            while let Some(bytes) = read(slave)? {
                let cut = bytes.last().is_none_or(|last| !ends.contains(&Some(*last)));
                input.lines.push(Line { bytes: bytes.into(), cut });
            }
        }
        // Now that there is no line, what is being typed can be read.
        tty::set_settings(slave, &Settings { local: 0, ..quiet(settings) })?;
        let mut rest = Vec::new();
        while let Some(bytes) = read(slave)?.filter(|bytes| !bytes.is_empty()) {
            rest.extend(bytes);
        }
        input.rest = rest.into();
        tty::set_settings(slave, settings)?;
        Ok(Some(input))
    }

    /// Puts it where it was, and gives the slave its settings.
    ///
    /// # Errors
    /// The kernel's.
    pub fn put(&self, slave: BorrowedFd<'_>, settings: &Settings) -> Result<(), Errno> {
        let quiet = quiet(settings);
        for line in &self.lines {
            let mut ending = quiet.clone();
            match line.bytes.last() {
                _ if line.cut => {
                    let unused = (1..=u8::MAX).find(|byte| *byte != b'\n' && !line.bytes.contains(byte));
                    let eof = unused.ok_or(Errno::EOVERFLOW)?;
                    ending.characters[libc::VEOF] = eof;
                    tty::set_settings(slave, &ending)?;
                    push(slave, &line.bytes)?;
                    tty::push(slave, eof)?;
                    continue;
                }
                Some(last) if *last != b'\n' => ending.characters[libc::VEOL] = *last,
                _ => {}
            }
            tty::set_settings(slave, &ending)?;
            push(slave, &line.bytes)?;
        }
        tty::set_settings(slave, &quiet)?;
        push(slave, &self.rest)?;
        tty::set_settings(slave, settings)
    }
}

/// Reads what waits at `master`, which is not in packet mode. It must be put back by [`put_output`].
///
/// # Errors
/// The kernel's; what was read is lost then.
pub(super) fn take_output(master: BorrowedFd<'_>) -> Result<Vec<u8>, Errno> {
    let mut bytes = Vec::new();
    let flags = rustix::fs::fcntl_getfl(master).map_err(raw)?;
    // There is no second description of a master; it gets its flag back before anybody can see it.
    rustix::fs::fcntl_setfl(master, flags | rustix::fs::OFlags::NONBLOCK).map_err(raw)?;
    let read = loop {
        match read(master) {
            Ok(Some(more)) if !more.is_empty() && bytes.len() < MOST => bytes.extend(more),
            Ok(_) => break Ok(bytes),
            // The slave is closed, and nothing waits.
            Err(Errno::EIO) => break Ok(bytes),
            Err(errno) => break Err(errno),
        }
    };
    rustix::fs::fcntl_setfl(master, flags).map_err(raw)?;
    read
}

/// Puts back what waits at `master`. More than a line discipline holds waits before it, where only `slave` can put it.
///
/// # Errors
/// The kernel's; `ENOSPC` when there is no room for it.
pub(super) fn put_output(
    master: BorrowedFd<'_>,
    slave: Option<BorrowedFd<'_>>,
    settings: &Settings,
    bytes: &[u8],
) -> Result<(), Errno> {
    if bytes.len() <= ROOM {
        return push(master, bytes);
    }
    let slave = slave.ok_or(Errno::ENOSPC)?;
    tty::set_settings(slave, &Settings { output: 0, ..settings.clone() })?;
    let written = flood(master, slave, bytes);
    tty::set_settings(slave, settings)?;
    written
}

/// What waits before the line discipline is in buffers, of [`SMALL`] bytes or as large as a write, up to [`LARGE`]; there
/// is a limit on their sum, beyond which there may be one buffer. So the last of them is a large one, and what is left
/// of the buffers that have been read is made to go first.
fn flood(master: BorrowedFd<'_>, slave: BorrowedFd<'_>, bytes: &[u8]) -> Result<(), Errno> {
    let (first, bytes) = bytes.split_at(1);
    write_all(slave, first)?;
    // That carries it over.
    while !ready(master, PollFlags::IN).contains(PollFlags::IN) {}
    let (now, then) = bytes.split_at(ROOM - 1);
    push(master, now)?;
    let (small, large) = then.split_at(then.len().saturating_sub(LARGE));
    small.chunks(SMALL).chain([large]).try_for_each(|piece| write_all(slave, piece))
}

fn write_all(to: BorrowedFd<'_>, mut bytes: &[u8]) -> Result<(), Errno> {
    while !bytes.is_empty() {
        match rustix::io::write(to, bytes).map_err(raw) {
            Ok(0) | Err(Errno::EAGAIN) => return Err(Errno::ENOSPC),
            Ok(written) => bytes = bytes.get(written..).unwrap_or_default(),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

/// The slave is read line by line.
fn by_lines(settings: &Settings) -> bool {
    settings.local & (libc::ICANON | libc::EXTPROC) == libc::ICANON
}

/// Settings with which every byte is nothing but a byte. That IXON stays keeps a stopped output stopped.
fn quiet(settings: &Settings) -> Settings {
    let mut characters = [0; 19];
    characters[libc::VMIN] = 1;
    Settings {
        input: settings.input & libc::IXON,
        output: settings.output,
        local: settings.local & (libc::ICANON | libc::EXTPROC),
        characters,
        ..settings.clone()
    }
}

fn special(settings: &Settings, which: usize) -> Option<u8> {
    settings.characters.get(which).copied().filter(|byte| *byte != 0)
}

fn push(end: BorrowedFd<'_>, bytes: &[u8]) -> Result<(), Errno> {
    bytes.iter().try_for_each(|byte| tty::push(end, *byte))
}

/// One read; None when there is nothing.
fn read(from: BorrowedFd<'_>) -> Result<Option<Vec<u8>>, Errno> {
    let mut bytes = vec![0; 8192];
    loop {
        match rustix::io::read(from, &mut bytes).map_err(raw) {
            Ok(length) => {
                bytes.truncate(length);
                return Ok(Some(bytes));
            }
            Err(Errno::EAGAIN) => return Ok(None),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
        }
    }
}

fn raw(errno: rustix::io::Errno) -> Errno {
    Errno::from_raw(errno.raw_os_error())
}

/// poll(2) reports these events of an end.
pub(super) fn ready(end: impl AsFd, wanted: PollFlags) -> PollFlags {
    let mut fds = [PollFd::new(&end, wanted)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut fds, Some(&now)).map_or(PollFlags::empty(), |_| fds[0].revents())
}

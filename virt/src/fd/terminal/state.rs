//! What the kernel knows of a terminal: settings, size, modes, and what waits in it.

use super::super::Trouble;
use super::super::capture::Job;
use super::super::stream::reopen;
use super::Ends;
use super::queue::{self, Input, ready};
use crate::image::Bytes;
use crate::sys::tty::{self, Locked, Settings, Window};
use crate::{Doing, Failure};
use nix::errno::Errno;
use rustix::event::PollFlags;
use rustix::fs::{Mode, OFlags, ResolveFlags};
use serde::{Deserialize, Serialize};
use std::os::fd::{AsFd, OwnedFd};

/// What the kernel knows of a terminal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct State {
    /// Its settings.
    pub settings: Settings,
    /// Which of them are locked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub locked_settings: Option<Locked>,
    /// The size of its window.
    pub window: Window,
    /// The slave's owner and group, as the container knows them.
    pub owner: (u32, u32),
    /// The slave's permissions.
    pub mode: u32,
    /// Whether somebody has the slave open.
    pub slave: Slave,
    /// The slave can't be opened (TIOCSPTLCK).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub locked: bool,
    /// The master tells of what happens to the slave (TIOCPKT).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub packet: bool,
    /// Only root can open the master, the slave once more (TIOCEXCL).
    #[serde(default, skip_serializing_if = "is_free")]
    pub exclusive: (bool, bool),
    /// Output is held back, by TCOOFF or ^S.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub stopped: bool,
    /// What the slave has not read yet.
    #[serde(default, skip_serializing_if = "Input::is_empty")]
    pub input: Input,
    /// What the master has not read yet.
    #[serde(default, skip_serializing_if = "<[u8]>::is_empty")]
    pub output: Bytes,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde asks for a reference")]
fn is_free(exclusive: &(bool, bool)) -> bool {
    *exclusive == (false, false)
}

/// The line discipline that every terminal begins with (`linux/tty.h`).
const N_TTY: i32 = 0;

/// Whether the slave of a terminal is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Slave {
    /// It is.
    Open,
    /// It was: the master reads an error.
    Closed,
    /// It never was: the master waits.
    Unopened,
}

impl Job<'_> {
    /// The terminal whose slave is at `path`.
    pub(super) fn terminal_state(&self, ends: &Ends, path: &[u8]) -> Result<State, Trouble> {
        let name = String::from_utf8_lossy(path).into_owned();
        let what = || format!("look at terminal {name}");
        let master = ends.master.map(|node| self.graph.take(node)).transpose()?;
        let own = match (&master, ends.slave) {
            (Some(master), _) => master.try_clone().doing(what)?,
            (None, Some(slave)) => self.graph.take(slave)?,
            (None, None) => self.open_terminal(path)?,
        };
        let slave = ends.slave.map(|node| self.graph.take(node)).transpose()?;
        for end in [Some(&own), slave.as_ref()].into_iter().flatten() {
            let discipline = tty::discipline(end).doing(what)?;
            if discipline != N_TTY {
                let why =
                    format!("its line discipline is number {discipline}, and only N_TTY can be carried");
                return Err(Trouble::refused(name, why));
            }
        }
        let locked = tty::locked(&own).doing(what)?;
        let node = match self.container().find(path)? {
            Some(node) => node,
            None if self.running() => return Err(Failure::new(what(), Errno::ENOENT).into()),
            None => return Err(Trouble::refused(name, "it is not in the container's devpts")),
        };
        let mut state = State {
            settings: tty::settings(&own).doing(what)?,
            locked_settings: (!locked.is_empty()).then_some(locked),
            window: tty::window(&own).doing(what)?,
            owner: self.container().owner(node.st_uid, node.st_gid)?,
            mode: node.st_mode & 0o7777,
            slave: Slave::Open,
            locked: false,
            packet: false,
            exclusive: (false, false),
            stopped: false,
            input: Input::default(),
            output: Bytes::default(),
        };
        if let Some(slave) = slave {
            state.exclusive.1 = tty::is_exclusive(slave).doing(what)?;
        }
        if let Some(master) = &master {
            state.slave = match ends.slave {
                Some(_) => Slave::Open,
                None if ready(master, PollFlags::IN).contains(PollFlags::HUP) => Slave::Closed,
                None => Slave::Unopened,
            };
            state.locked = tty::is_locked(master).doing(what)?;
            state.packet = tty::is_packet(master).doing(what)?;
            state.exclusive.0 = tty::is_exclusive(master).doing(what)?;
        }
        if !self.running() {
            self.contents(&mut state, master.as_ref(), ends, path)?;
        }
        Ok(state)
    }

    fn open_terminal(&self, path: &[u8]) -> Result<OwnedFd, Failure> {
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        rustix::fs::openat2(self.container().root(), path, flags, Mode::empty(), ResolveFlags::IN_ROOT)
            .doing(|| format!("open terminal {}", String::from_utf8_lossy(path)))
    }

    /// What waits in it.
    fn contents(
        &self,
        state: &mut State,
        master: Option<&OwnedFd>,
        ends: &Ends,
        path: &[u8],
    ) -> Result<(), Trouble> {
        let name = String::from_utf8_lossy(path).into_owned();
        let what = || format!("read what waits in terminal {name}");
        if state.packet && master.is_some_and(|m| ready(m, PollFlags::PRI).contains(PollFlags::PRI)) {
            let why = "its master is in packet mode and has not read what was told of the slave";
            return Err(Trouble::refused(name, why));
        }
        let slave = match (master, state.slave) {
            // To open a slave for the first time, and close it, is what its master would notice.
            (Some(_), Slave::Unopened) => None,
            (Some(master), _) => Some(unlocked(master, state.locked).doing(what)?),
            (None, _) => Some(match ends.slave {
                Some(slave) => reopen(self.graph.take(slave)?, (libc::O_RDWR | libc::O_NONBLOCK) as u32)?,
                None => self.open_terminal(path)?,
            }),
        };
        if let Some(master) = master {
            state.output = carried(master, slave.as_ref(), state).doing(what)?.into();
        }
        let Some(slave) = slave else {
            if !state.output.is_empty() {
                let why = "its slave was never opened, and there is something in it";
                return Err(Trouble::refused(name, why));
            }
            return Ok(());
        };
        let Some(input) = Input::take(slave.as_fd(), &state.settings).doing(what)? else {
            return Err(Trouble::refused(name, "more was typed than ckrun can put back"));
        };
        if !input.is_empty() {
            input.put(slave.as_fd(), &state.settings).doing(what)?;
        }
        state.input = input;
        Ok(())
    }
}

/// What waits at the master, which stays there; and whether output is held back, which is not told otherwise: then the slave
/// has no room although there is nothing in it.
fn carried(master: &OwnedFd, slave: Option<&OwnedFd>, state: &mut State) -> Result<Vec<u8>, Errno> {
    if state.packet {
        tty::set_packet(master, false)?;
    }
    let bytes = queue::take_output(master.as_fd())?;
    state.stopped = slave.is_some_and(|slave| !ready(slave, PollFlags::OUT).contains(PollFlags::OUT));
    let full = slave.filter(|_| state.stopped && bytes.len() > queue::ROOM);
    full.map_or(Ok(()), tty::start_output)?;
    let mut back = queue::put_output(master.as_fd(), slave.map(AsFd::as_fd), &state.settings, &bytes);
    if let Some(slave) = full {
        back = back.and(state.stop(slave));
    }
    if state.packet {
        tty::set_packet(master, true)?;
    }
    back.map(|()| bytes)
}

/// Opens the slave even if it is locked.
fn unlocked(master: &OwnedFd, locked: bool) -> Result<OwnedFd, Errno> {
    if !locked {
        return tty::slave(master);
    }
    tty::lock(master, false)?;
    let slave = tty::slave(master);
    tty::lock(master, true)?;
    slave
}

impl State {
    /// Gives a new terminal all of it. Of the console there is no `master`, of one that nobody has opened no `slave`.
    pub(super) fn put(&self, master: Option<&OwnedFd>, slave: Option<&OwnedFd>) -> Result<(), Errno> {
        let any = slave.or(master).ok_or(Errno::EBADF)?;
        tty::set_window(any, self.window)?;
        tty::set_settings(any, &self.settings)?;
        if let Some(slave) = slave {
            self.input.put(slave.as_fd(), &self.settings)?;
        }
        if let Some(master) = master {
            queue::put_output(master.as_fd(), slave.map(AsFd::as_fd), &self.settings, &self.output)?;
            if self.packet {
                tty::set_packet(master, true)?;
            }
        }
        if let Some(locked) = &self.locked_settings {
            tty::set_locked(any, locked)?;
        }
        slave.filter(|_| self.stopped).map_or(Ok(()), |slave| self.stop(slave))
    }

    /// Holds output back, in the way that the settings suggest: by ^S, which ^Q ends, or by TCOOFF.
    fn stop(&self, slave: &OwnedFd) -> Result<(), Errno> {
        let stop = self.settings.characters[libc::VSTOP];
        if self.settings.input & libc::IXON != 0 && stop != 0 {
            tty::push(slave, stop)
        } else {
            tty::stop_output(slave)
        }
    }

    /// What keeps others from opening it, when all is open.
    pub(super) fn close_off(&self, master: Option<&OwnedFd>, slave: Option<&OwnedFd>) -> Result<(), Errno> {
        if let Some(master) = master {
            if self.locked {
                tty::lock(master, true)?;
            }
            if self.exclusive.0 {
                tty::make_exclusive(master)?;
            }
        }
        slave.filter(|_| self.exclusive.1).map_or(Ok(()), tty::make_exclusive)
    }

    /// Why no terminal can be so.
    pub(super) fn wrong(&self) -> Option<String> {
        // A line discipline of another number would be one of the kernel's modules.
        let settings = self.settings.line == 0 && self.input.fits() && self.output.len() <= MOST;
        (!settings).then(|| "a terminal that can't be".into())
    }
}

/// The most bytes that an image may put into a terminal: what its buffers hold, and the line discipline.
const MOST: usize = 32 << 10;

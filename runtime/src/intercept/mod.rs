//! System calls of a job that somebody else answers: a connect(2) to an address that is elsewhere on this host, the names
//! of both ends of such a socket, and the ioctl(2) commands that a plugin has claimed. Everything else runs native.
//!
//! A filter that the job's first process loads before anything else asks a listener about these calls
//! ([`Claims::filter`]), and about no others, as narrowly as BPF can tell: addresses and structures are in memory, out of its
//! sight. The supervisor has the listener ([`listen`]), and answers with what it has done in the place of the task: with a
//! duplicate of the task's descriptor, which is the same open file description.
//!
//! This is no protection: a call that is none of ours is let through by its number, after the task could have changed
//! what its arguments point to (seccomp_unotify(2)). It hides from a job where its emulator is, and no more.

mod call;
mod connect;
mod device;
mod ends;
pub mod handles;
pub mod hosts;
pub mod listen;
pub mod names;
pub mod notes;
pub mod pending;

use crate::error::Result;
use crate::sandbox::seccomp::{Asked, Filter};
use ckrun_plugin::binding::Ioctl;
use handles::Handles;
use listen::lock;
use names::Name;
use notes::{Note, Notes};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

/// An address that the job knows, and where it is on this host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// What tables and people call it: `emu:4000`.
    pub name: String,
    /// As the job says it.
    pub to: Name,
    /// Here.
    pub real: Name,
}

/// What is answered for a job. Routes and handles may change while it runs, the kinds of calls can't.
#[derive(Debug, Default)]
pub struct Claims {
    /// Sockets.
    pub routes: Mutex<Vec<Route>>,
    /// Commands of devices.
    pub ioctls: Vec<Command>,
    /// The numbers in those.
    pub handles: Mutex<Handles>,
    /// Which name the job has used for a socket, by the socket's cookie, when its peer's address does not tell.
    pub used: Mutex<BTreeMap<u64, Name>>,
    /// By which name the job knows its own end of a connection that a restart has made anew, by the socket's cookie.
    pub locals: Mutex<BTreeMap<u64, Name>>,
    /// Connections that a plugin has made, by the names for which the job's first one is to be that.
    pub given: Mutex<BTreeMap<Name, OwnedFd>>,
    /// What of this has changed since it was last written down as a whole.
    pub notes: Notes,
}

/// A claimed command, and the device on this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Command {
    /// What the plugin has claimed.
    pub claim: Ioctl,
    /// The path on this host of its device.
    pub device: PathBuf,
}

impl Claims {
    /// Answers for these.
    pub fn new(routes: Vec<Route>, ioctls: Vec<Command>, handles: Handles) -> Claims {
        Claims { routes: routes.into(), ioctls, handles: handles.into(), ..Claims::default() }
    }

    /// Writes down in `dir` what changes, from now on, and takes over what somebody before has written there.
    ///
    /// # Errors
    /// The kernel's.
    pub fn note_in(&mut self, dir: &Path) -> Result<()> {
        for note in Notes::read(dir)? {
            match note {
                Note::Handle { space, number, real } => {
                    if let Err(other) = lock(&self.handles).bind(&space, number, real) {
                        log::warn!("{space} {number} and {other} are both {real}");
                    }
                }
                Note::Peer { cookie, name } => drop(lock(&self.used).insert(cookie, name)),
            }
        }
        self.notes = Notes::open(dir)?;
        Ok(())
    }
}

/// The filter that asks about sockets, if there are any, and about these ioctl commands; None if about nothing.
pub fn filter<'a>(sockets: bool, ioctls: impl IntoIterator<Item = &'a Ioctl>) -> Option<Filter> {
    let mut asked = Vec::new();
    if sockets {
        asked.extend([libc::SYS_connect, libc::SYS_getpeername, libc::SYS_getsockname].map(Asked::always));
    }
    // The kernel, too, takes the lower half only (`unsigned int cmd`).
    let commands: BTreeSet<u32> = ioctls.into_iter().map(|ioctl| ioctl.command.0 as u32).collect();
    if !commands.is_empty() {
        asked.push(Asked { number: libc::SYS_ioctl, among: Some((1, commands.into_iter().collect())) });
    }
    (!asked.is_empty()).then(|| Filter::asking(asked))
}

#[cfg(test)]
mod tests;

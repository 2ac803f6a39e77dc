//! Descriptors and what is behind them.
//!
//! The graph is process → descriptor (a number, close-on-exec) → open file description (position, flags, owner, locks)
//! → object: a file, a pipe, an eventfd. Processes share descriptions by fork and dup, descriptions share objects.
//!
//! All of it is read from outside, while the job is stopped ([`capture`]), or, to tell beforehand what can't be carried,
//! while it runs ([`survey`]). A restart makes every description once, in the job's first process, at numbers that the
//! job does not use ([`Files::make`]); all processes inherit them, put them at their own numbers and close the rest
//! ([`Files::place`]). What needs the other processes comes last ([`Files::finish`], [`Files::hand_over`]).
//!
//! A kind of object is one file of this folder, capture and restore side by side, and a line in each `match` on
//! [`Object`].

mod bpf_map;
mod capture;
mod captured;
mod check;
mod cloexec;
mod container;
mod device;
mod epoll;
mod eventfd;
mod fanotify;
mod fifo;
mod finish;
mod ghost;
mod given;
mod graph;
mod inotify;
mod located;
mod lock;
mod make;
mod making;
mod memfd;
mod namespace;
mod owner;
mod path;
mod pidfd;
mod pipe;
mod place;
mod pseudo;
mod queue;
mod refused;
mod regular;
mod remains;
mod seen;
mod show;
mod signalfd;
mod socket;
mod stream;
mod tables;
mod terminal;
#[cfg(test)]
mod tests;
mod timerfd;
mod told;
mod tun;
mod watched;

pub(crate) use capture::{capture, survey};
pub use captured::Captured;
pub use lock::{Lock, Locks};
pub use make::Made;
pub use refused::Refused;
pub use regular::Stamp;
pub use socket::inet::{Connections, Renewed};

pub(crate) use capture::Job;
pub(crate) use container::{
    Container, DELETED, Mount, find_followed, join, mount_id, mounted, mounts, open_followed, other_name,
    unescape,
};
pub(crate) use graph::{Graph, Member};
pub(crate) use located::{Located, locate};

use crate::fs::Fs;
use crate::image::Image;
use crate::{Error, Failure};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::os::fd::RawFd;

/// The file of the image.
pub const FILE: &str = "files.json";

/// Everything that a job has open. The lists name each other's members by their places.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Files {
    /// Open file descriptions.
    pub descriptions: Vec<Description>,
    /// Pipes without a name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pipes: Vec<pipe::Pipe>,
    /// Pipes with a name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub fifos: Vec<fifo::Fifo>,
    /// Files without a name any more.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ghosts: Vec<ghost::Ghost>,
    /// Files of memfd_create(2).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub memfds: Vec<memfd::Memfd>,
    /// Pseudoterminals.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub terminals: Vec<terminal::Terminal>,
    /// What each process has, by its id in the job.
    pub processes: BTreeMap<i32, Holdings>,
}

/// What a process has.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Holdings {
    /// Its descriptors, by their numbers.
    pub descriptors: Vec<Descriptor>,
    /// Its POSIX locks.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub locks: Vec<Lock>,
    /// Its directories and its umask.
    pub fs: Fs,
    /// The process whose table of descriptors it has, and whose locks, if it has none of its own (CLONE_FILES).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub table: Option<i32>,
    /// The process whose directories and umask it has, if they are not its own (CLONE_FS).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub directories: Option<i32>,
}

/// A number that a process has for a description.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Descriptor {
    /// The number.
    pub fd: RawFd,
    /// Which description.
    pub description: u32,
    /// It is closed by execve(2).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub cloexec: bool,
}

/// An open file description.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Description {
    /// Access mode and status, as F_GETFL has them.
    pub flags: u32,
    /// The offset of the next read or write.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub position: i64,
    /// Who gets its signals, if anybody.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<owner::Owner>,
    /// Which signal instead of SIGIO.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<i32>,
    /// Its locks.
    #[serde(default, skip_serializing_if = "Locks::is_empty")]
    pub locks: Locks,
    /// The mount namespace in which its path is to be looked for; 0 is that of the first process.
    #[serde(default, skip_serializing_if = "is_first")]
    pub namespace: u32,
    /// What it is of.
    pub object: Object,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde asks for a reference")]
fn is_zero(position: &i64) -> bool {
    *position == 0
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde asks for a reference")]
pub(crate) fn is_first(namespace: &u32) -> bool {
    *namespace == 0
}

/// What a description is of.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Object {
    /// A standard stream that leads out of the container.
    Given(given::Given),
    /// A regular file.
    Regular(regular::Regular),
    /// A directory.
    Directory(path::Directory),
    /// A place in the file system, opened with O_PATH.
    Path(path::PathOnly),
    /// A device of the default set.
    Device(device::Device),
    /// A device for packets.
    Tun(tun::Tun),
    /// An end of a terminal.
    Terminal(terminal::TerminalUse),
    /// A file of `/proc`, `/sys` and the like.
    Pseudo(pseudo::Pseudo),
    /// A deleted file.
    Ghost(ghost::GhostUse),
    /// A pipe with a name.
    Fifo(fifo::FifoUse),
    /// A pipe without one.
    Pipe(pipe::PipeUse),
    /// A counter.
    Eventfd(eventfd::Eventfd),
    /// A map of bpf(2).
    BpfMap(bpf_map::BpfMap),
    /// A queue of signals.
    Signalfd(signalfd::Signalfd),
    /// A timer.
    Timerfd(timerfd::Timerfd),
    /// Memory as a file.
    Memfd(memfd::MemfdUse),
    /// Watches of files.
    Inotify(inotify::Inotify),
    /// Marks of files, mounts and file systems.
    Fanotify(fanotify::Fanotify),
    /// A POSIX message queue.
    Queue(queue::Queue),
    /// A handle of a namespace.
    Namespace(namespace::Namespace),
    /// A handle of a process or a thread.
    Pidfd(pidfd::Pidfd),
    /// A set of descriptions that are watched.
    Epoll(epoll::Epoll),
    /// A socket.
    Socket(Box<socket::Socket>),
}

/// Why one thing can't be captured.
#[derive(Debug)]
pub(crate) enum Trouble {
    /// It can't be carried.
    Refused(Refusal),
    /// It could not be read.
    Call(Failure),
}

impl From<Failure> for Trouble {
    fn from(failure: Failure) -> Self {
        Trouble::Call(failure)
    }
}

/// What can't be carried, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub what: String,
    pub why: String,
    pub remedy: Option<String>,
    /// It is so for a moment, and gone when the job has run on a little.
    pub passing: bool,
}

impl Trouble {
    /// Says of what use the thing was.
    pub(crate) fn of(self, what: &str) -> Self {
        match self {
            Trouble::Refused(refusal) => {
                Trouble::Refused(Refusal { what: format!("{what} {}", refusal.what), ..refusal })
            }
            call @ Trouble::Call(_) => call,
        }
    }

    pub(crate) fn refused(what: impl Into<String>, why: impl Into<String>) -> Self {
        Trouble::Refused(Refusal { what: what.into(), why: why.into(), remedy: None, passing: false })
    }

    /// Says what to do about it.
    pub(crate) fn or(self, remedy: String) -> Self {
        match self {
            Trouble::Refused(refusal) => Trouble::Refused(Refusal { remedy: Some(remedy), ..refusal }),
            call @ Trouble::Call(_) => call,
        }
    }

    /// Says that it will soon be over.
    pub(crate) fn passing(self) -> Self {
        match self {
            Trouble::Refused(refusal) => Trouble::Refused(Refusal { passing: true, ..refusal }),
            call @ Trouble::Call(_) => call,
        }
    }
}

impl Files {
    /// Reads what an image holds, and checks that everything that is named in it is there.
    ///
    /// # Errors
    /// Those of the image; [`Error::Damaged`].
    pub fn read(image: &Image) -> Result<Files, Error> {
        let files: Files = image.json(FILE)?;
        files.consistent()?;
        Ok(files)
    }

    /// The description of this number.
    fn description(&self, id: u32) -> Option<&Description> {
        self.descriptions.get(id as usize)
    }
}

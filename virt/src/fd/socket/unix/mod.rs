//! Sockets of the family AF_UNIX (unix(7)).
//!
//! Who is connected to whom is told by sock_diag(7) ([`world`]), and what waits in a socket is looked at without being taken
//! ([`peek`]): the bytes, the packets they are, who sent them, and descriptors that travel with them. Such a descriptor is
//! often in nobody's table any more; it becomes a description like all others.
//!
//! A restart makes each pair by the calls by which it came to be ([`make`], [`plan`]), in the name of the process that made
//! them then ([`agent`]): socketpair(2), or connect(2) and accept(2) at a listening socket, which is one of the job's, or one
//! for the moment. A socket with a file is bound aside, and the file is then moved to where it was ([`name`]).

mod agent;
mod capture;
mod fill;
mod make;
mod name;
mod outside;
mod peek;
mod plan;
mod reveal;
pub(in crate::fd) mod world;

use super::super::check::is_path;
use super::super::{Files, Object, is_first};
use super::{Class, Family};
use crate::image::Bytes;
pub(super) use make::Unmade;
use serde::{Deserialize, Serialize};

/// The longest name (`sun_path`).
const LONGEST: usize = 108;

/// What only a socket of this family has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Unix {
    /// Its name, as bind(2) was given it, or as it got it from the listening socket that it was accepted at. An abstract
    /// one begins with a NUL.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<Bytes>,
    /// Where the file of the name is now, if it still has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<Place>,
    /// Whom it has to do with.
    pub state: State,
    /// What shutdown(2) has ended: 1 reading, 2 writing.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub shutdown: u8,
    /// What waits to be read.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub queue: Vec<Message>,
    /// The file of the image with the bytes of the queue.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content: Option<String>,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde asks for a reference")]
fn is_zero(bits: &u8) -> bool {
    *bits == 0
}

/// The file of a name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Place {
    /// From the container's root.
    pub path: Bytes,
    /// In which mount namespace.
    #[serde(default, skip_serializing_if = "is_first")]
    pub namespace: u32,
    /// Its permissions.
    pub mode: u32,
    /// Its owner and group, as the container knows them.
    pub owner: (u32, u32),
}

/// Whom a socket has to do with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "is", rename_all = "kebab-case", deny_unknown_fields)]
pub enum State {
    /// Nobody.
    Alone,
    /// It waits for connections.
    Listening {
        /// How many may wait, as listen(2) was told.
        backlog: u32,
        /// Who has called listen(2).
        by: Credentials,
        /// Which descriptions are connected to it, and not accepted yet, in the order in which they came; and who has
        /// connected them.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        waiting: Vec<(u32, Credentials)>,
    },
    /// It is connected, and not accepted yet: a listening socket of the job lists it.
    Waiting,
    /// It is connected to another one of the job. Datagram sockets need not be connected mutually.
    Connected {
        /// To which description.
        to: u32,
        /// Who SO_PEERCRED says is at the other end.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        with: Option<Credentials>,
    },
    /// It is connected to one outside of the job, and is connected anew at a restart.
    Outside {
        /// To what: the job's name for it, or its path in the container, or its abstract name, which begins with a NUL.
        to: Bytes,
        /// Somebody answers for it, and says where it is then.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        owned: bool,
    },
    /// It was connected to a socket that is gone.
    Orphaned {
        /// The other one's name.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        from: Option<Bytes>,
        /// Who SO_PEERCRED says is at the other end.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        with: Option<Credentials>,
        /// The other one went with something unread: ECONNRESET is to be reported.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        reset: bool,
    },
}

/// What is sent in one piece.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Message {
    /// How many bytes of the content.
    pub size: u64,
    /// Descriptions that travel with it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rights: Vec<u32>,
    /// Who has sent it, where the kernel has noted that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<Credentials>,
    /// The name of the socket that it comes from, of a datagram.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<Bytes>,
    /// It is one byte out of band.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub urgent: bool,
}

/// A process, as those see it whom it has to do with.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Credentials {
    /// Its id in the job; 0 if it has ended and nobody knows any more which one it had.
    pub pid: i32,
    /// Its effective user.
    pub uid: u32,
    /// Its effective group.
    pub gid: u32,
    /// Its other groups.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<u32>,
}

impl Unix {
    /// Why an image can't be right.
    pub(super) fn wrong(&self, class: &Class, files: &Files) -> Option<String> {
        let unix = |id: u32| unix_of(files, id).is_some();
        let named = |name: &Bytes| !name.is_empty() && name.len() <= LONGEST;
        let waiting = match &self.state {
            State::Listening { waiting, .. } => waiting.as_slice(),
            _ => &[],
        };
        let peers = match self.state {
            State::Connected { to, .. } => Some(to),
            _ => None,
        };
        let credentials =
            self.queue.iter().filter_map(|message| message.by.as_ref()).chain(match &self.state {
                State::Listening { by, .. } => Some(by),
                State::Connected { with, .. } | State::Orphaned { with, .. } => with.as_ref(),
                State::Alone | State::Waiting | State::Outside { .. } => None,
            });
        let described = |id: &u32| files.description(*id).is_some() && !files.is_late(*id);
        let why = if class.domain != libc::AF_UNIX {
            "another family than its own"
        } else if !matches!(class.kind, libc::SOCK_STREAM | libc::SOCK_DGRAM | libc::SOCK_SEQPACKET) {
            "a unix socket of no type"
        } else if !self.name.iter().all(named) || !self.queue.iter().all(|m| m.from.iter().all(named)) {
            "an impossible name"
        } else if self
            .file
            .as_ref()
            .is_some_and(|file| !file.path.starts_with(b"/") || file.path.contains(&0))
        {
            "an impossible path"
        } else if matches!(&self.state, State::Outside { to, .. } if to.is_empty()) || {
            self.leads_to().is_some_and(|to| !to.starts_with(&[0]) && !is_path(to))
        } {
            "a connection to an impossible place"
        } else if !self.queue.is_empty() && matches!(self.state, State::Outside { .. }) {
            "something unread from somebody who can't send it again"
        } else if !peers.into_iter().chain(waiting.iter().map(|(id, _)| *id)).all(unix) {
            "a peer that is none"
        } else if !self.queue.iter().flat_map(|message| &message.rights).all(described) {
            "a message with a description that is not there"
        } else if credentials.chain(waiting.iter().map(|(_, by)| by)).any(|by| by.pid < 0) {
            "a process of an impossible number"
        } else {
            return None;
        };
        Some(why.into())
    }
}

/// The socket of this family that a description is of.
fn unix_of(files: &Files, id: u32) -> Option<(&Class, &Unix)> {
    match &files.description(id)?.object {
        Object::Socket(socket) => match &socket.of {
            Family::Unix(unix) => Some((&socket.class, unix)),
            _ => None,
        },
        _ => None,
    }
}

/// All of them, with the numbers of their descriptions.
fn all(files: &Files) -> impl Iterator<Item = (u32, &Class, &Unix)> {
    let ids = 0..u32::try_from(files.descriptions.len()).unwrap_or(u32::MAX);
    ids.filter_map(|id| unix_of(files, id).map(|(class, unix)| (id, class, unix)))
}

/// For people: an abstract name begins with `@`.
pub(in crate::fd) fn readable(name: &[u8]) -> String {
    match name.split_first() {
        Some((0, rest)) => format!("@{}", String::from_utf8_lossy(rest)),
        _ => String::from_utf8_lossy(name).into_owned(),
    }
}

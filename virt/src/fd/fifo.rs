//! Pipes with a name (mkfifo(3)).

use super::capture::Job;
use super::ghost::GhostUse;
use super::located::{Located, locate};
use super::making::{Making, OPEN};
use super::refused::OTHER_END;
use super::stream::{Stream, hung_up};
use super::{Files, Object, Trouble, is_first, path};
use crate::image::Bytes;
use serde::{Deserialize, Serialize};
use std::os::fd::AsFd;

/// A FIFO that is open.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Fifo {
    /// Where it is; one without a name is a ghost.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<Bytes>,
    /// In which mount namespace.
    #[serde(default, skip_serializing_if = "is_first")]
    pub namespace: u32,
    /// Which one of [`Files::ghosts`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ghost: Option<u32>,
    /// Its size and its content, which it has only as long as somebody has it open.
    pub stream: Stream,
}

/// A description of a FIFO.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct FifoUse {
    /// Which one of [`Files::fifos`].
    pub fifo: u32,
    /// It had a writer since this reader opened it, and has none now: poll(2) reports a hang-up.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub hung_up: bool,
}

impl Job<'_> {
    pub(super) fn fifo(&mut self, node: usize) -> Result<(u32, Object), Trouble> {
        let seen = &self.graph.nodes[node].seen;
        let (namespace, located) = locate(self, &seen.link, &seen.stat, seen.info.mount)?;
        if seen.path_only() {
            let object = match located {
                Located::Named(path) => Object::Path(path::PathOnly::new(path, seen)),
                Located::Deleted(last) => Object::Ghost(self.ghost(node, &last)?),
            };
            return Ok((namespace, object));
        }
        if self.ends.lead_out(seen) {
            return Err(Trouble::refused(seen.name(), OTHER_END));
        }
        // It waits for a reader that may open the FIFO some day; to open it for ckrun would let a waiting writer go on.
        if !self.ends.has_reader(seen)
            && rustix::io::ioctl_fionread(self.graph.take(node)?).is_ok_and(|n| n > 0)
        {
            return Err(Trouble::refused(seen.name(), "it holds bytes, and nobody has it open for reading"));
        }
        let hung_up = seen.reads() && !seen.writes() && hung_up(self.graph.take(node)?.as_fd());
        let key = (seen.stat.st_dev, seen.stat.st_ino);
        if let Some(&fifo) = self.known.get(&key) {
            return Ok((0, Object::Fifo(FifoUse { fifo, hung_up })));
        }
        let (path, ghost) = match located {
            Located::Named(path) => (Some(path.into()), None),
            Located::Deleted(last) => (None, Some(self.ghost(node, &last)?)),
        };
        let fifo = self.files.fifos.len() as u32;
        let stream = self.stream(node, format!("files/fifo-{fifo}"))?;
        let ghost = ghost.map(|GhostUse { ghost }| ghost);
        self.files.fifos.push(Fifo { path, namespace, ghost, stream });
        self.known.insert(key, fifo);
        Ok((0, Object::Fifo(FifoUse { fifo, hung_up })))
    }
}

impl Fifo {
    /// Opens every description of FIFO `id`, which is at `path`.
    pub(super) fn make(&self, id: u32, path: &[u8], files: &Files, making: &mut Making<'_>) {
        let uses = || {
            files.descriptions.iter().enumerate().filter_map(move |(at, description)| {
                match &description.object {
                    Object::Fifo(of) if of.fifo == id => Some((at as u32, description, of.hung_up)),
                    _ => None,
                }
            })
        };
        // With a descriptor for both ends nobody has to wait for the other side to open; a reader that is to see a
        // hang-up has to be there first, so that this was a writer that has gone.
        let nonblock = libc::O_NONBLOCK as u32;
        for (at, description, _) in uses().filter(|(.., hung_up)| *hung_up) {
            making.open(path, description.flags & OPEN | nonblock, making.at(at));
        }
        let both = making.number();
        making.open(path, libc::O_RDWR as u32 | nonblock, both);
        making.capacity(both, self.stream.capacity);
        for (at, description, _) in uses().filter(|(.., hung_up)| !*hung_up) {
            making.open(path, description.flags & OPEN | nonblock, making.at(at));
        }
        if let Some(slot) = making.fifos.get_mut(id as usize) {
            *slot = both;
        }
    }
}

//! Directories, and places that were opened with O_PATH.

use super::capture::Job;
use super::located::{Located, locate};
use super::making::{Making, OPEN};
use super::seen::Seen;
use super::{Object, Trouble, refused};
use crate::image::Bytes;
use rustix::fs::FileType;
use serde::{Deserialize, Serialize};
use std::os::fd::RawFd;

/// A directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Directory {
    /// From the container's root.
    pub path: Bytes,
}

/// Something that was opened with O_PATH: its place is all that matters.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct PathOnly {
    /// From the container's root.
    pub path: Bytes,
    /// Its type and its permissions, as stat(2) has them.
    pub mode: u32,
}

impl PathOnly {
    pub(super) fn new(path: Vec<u8>, seen: &Seen) -> Self {
        PathOnly { path: path.into(), mode: seen.stat.st_mode }
    }

    pub(super) fn make(&self, flags: u32, to: RawFd, making: &mut Making<'_>) {
        making.open(&self.path, flags & OPEN, to);
    }
}

impl Directory {
    pub(super) fn make(&self, flags: u32, to: RawFd, making: &mut Making<'_>) {
        making.open(&self.path, flags & OPEN, to);
    }
}

impl Job<'_> {
    /// Neither a regular file nor a directory.
    pub(super) fn path_only(&mut self, node: usize) -> Result<(u32, Object), Trouble> {
        let seen = &self.graph.nodes[node].seen;
        let (namespace, located) = locate(self, &seen.link, &seen.stat, seen.info.mount)?;
        match located {
            Located::Named(path) => Ok((namespace, Object::Path(PathOnly::new(path, seen)))),
            Located::Deleted(last) if seen.type_() == FileType::Symlink => {
                Ok((namespace, Object::Ghost(self.ghost(node, &last)?)))
            }
            Located::Deleted(_) => Err(refused::refuse(self, node)),
        }
    }
}

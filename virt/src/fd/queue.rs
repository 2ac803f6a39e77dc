//! Descriptors of POSIX message queues (mq_overview(7)). The queues themselves are the IPC namespace's
//! ([`crate::sysv::posix`]), and are there before anything of the job is opened.

use super::Trouble;
use super::capture::Job;
use super::making::Making;
use crate::Doing;
use crate::image::Bytes;
use crate::namespace::{Kind, Namespace};
use crate::sysv::posix::Folder;
use nix::unistd::Pid;
use rustix::fs::FileType;
use serde::{Deserialize, Serialize};
use std::os::fd::RawFd;

/// `linux/magic.h`.
const MQUEUE: i64 = 0x1980_0202;
/// The longest name of a file.
const LONGEST: usize = 255;

/// A queue that is open.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Queue {
    /// Without the slash in front.
    pub name: Bytes,
}

impl Job<'_> {
    /// None when it is none.
    pub(super) fn queue(&mut self, node: usize) -> Result<Option<Queue>, Trouble> {
        let seen = &self.graph.nodes[node].seen;
        if seen.path_only() || seen.type_() != FileType::RegularFile {
            return Ok(None);
        }
        let is_queue = match self.graph.mount(seen.info.mount) {
            Some(mount) => mount.kind == b"mqueue",
            // mq_open(3) does not need the mount that the container may have.
            None => {
                rustix::fs::fstatfs(self.graph.take(node)?).doing(|| "look at a file system")?.f_type
                    == MQUEUE
            }
        };
        if !is_queue {
            return Ok(None);
        }
        let refused = |why: &str| Err(Trouble::refused(format!("POSIX message queue {}", seen.name()), why));
        if seen.stat.st_nlink == 0 {
            return refused("it has no name any more (mq_unlink)");
        }
        let name = seen.link.rsplit(|&b| b == b'/').next().unwrap_or_default();
        let init = self.graph.members.first().map_or(Pid::from_raw(0), |member| member.host);
        let Some(namespace) = Namespace::of(init, Kind::Ipc)? else {
            return refused("it is the host's: the container has no IPC namespace of its own");
        };
        let there = Folder::of(&namespace)?.and_then(|folder| folder.find(name));
        if there != Some((seen.stat.st_dev, seen.stat.st_ino)) {
            return refused("it is of another IPC namespace");
        }
        Ok(Some(Queue { name: name.into() }))
    }
}

impl Queue {
    /// Why an image can't be right.
    pub(super) fn wrong(&self) -> Option<String> {
        let impossible = self.name.is_empty() || self.name.len() > LONGEST;
        (impossible || self.name.iter().any(|byte| matches!(byte, 0 | b'/')))
            .then(|| "a message queue of an impossible name".into())
    }

    pub(super) fn make(&self, flags: u32, to: RawFd, making: &mut Making<'_>) {
        // The kernel, unlike mq_open(3), takes the name without its slash.
        let name = making.program.put_cstr(&self.name);
        let flags = flags & (libc::O_ACCMODE | libc::O_NONBLOCK) as u32 | libc::O_CLOEXEC as u32;
        let what = format!("open POSIX message queue {}", self.name);
        let args = [name.into(), flags.into(), 0.into(), 0.into()];
        let opened = making.program.call(what, libc::SYS_mq_open, &args);
        making.put_at(opened.into(), to);
    }
}

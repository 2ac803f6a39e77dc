//! Files that the kernel makes up: `/proc`, `/sys`, cgroups. They are opened again by their paths.
//!
//! The procfs of a job shows the job's ids. What is below `/proc/PID` can only be opened when that task is there again.

use super::Trouble;
use super::capture::Job;
use super::container::{DELETED, Mount, same};
use super::making::{Making, OPEN};
use crate::image::Bytes;
use crate::program::{Call, Program};
use serde::{Deserialize, Serialize};
use std::os::fd::RawFd;

/// Types of file systems that hold no data of their own. What is on a devpts is no regular file, and message queues have a
/// room of their own.
const KINDS: [&[u8]; 10] = [
    b"proc",
    b"sysfs",
    b"cgroup",
    b"cgroup2",
    b"securityfs",
    b"debugfs",
    b"tracefs",
    b"configfs",
    b"binfmt_misc",
    b"mqueue",
];

/// A file or a directory that the kernel makes up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Pseudo {
    /// From the container's root.
    pub path: Bytes,
    /// It shows this task, by its id in the job.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task: Option<i32>,
}

/// Files on `mount` hold no data of their own.
pub(super) fn is_made_up(mount: &Mount) -> bool {
    KINDS.contains(&mount.kind.as_slice())
}

impl Job<'_> {
    /// None when it is an ordinary file.
    pub(super) fn pseudo(&mut self, node: usize) -> Result<Option<Pseudo>, Trouble> {
        let seen = &self.graph.nodes[node].seen;
        let (_, container) = self.graph.home(seen.info.mount);
        let Some(mount) = container.mount(seen.info.mount) else { return Ok(None) };
        if !is_made_up(mount) {
            return Ok(None);
        }
        let inside = mount.inside(&seen.link);
        let first = inside.split(|&b| b == b'/').nth(1).unwrap_or_default();
        let task = (mount.kind == b"proc").then(|| std::str::from_utf8(first).ok()?.parse().ok()).flatten();
        // The inodes of a procfs come and go, so that only the path can be compared.
        let mut path = seen.link.as_slice();
        let mut there = container.find(path)?;
        if let Some(named) = path.strip_suffix(DELETED).filter(|_| there.is_none()) {
            // The kernel forgets names below `/proc/PID/net` at every look and calls what was opened by them deleted; the
            // files keep their inodes as long as the network namespace lives.
            let again = container.find(named)?.filter(|again| same(again, &seen.stat));
            if again.is_none() {
                let why = match task {
                    Some(task) if !self.knows(task) => format!("task {task} has ended"),
                    _ => "the kernel has removed it".into(),
                };
                return Err(Trouble::refused(seen.name(), why));
            }
            (path, there) = (named, again);
        }
        if there.is_none_or(|there| there.st_mode & libc::S_IFMT != seen.stat.st_mode & libc::S_IFMT) {
            return Err(Trouble::refused(seen.name(), "another file has its name now, or a mount hides it"));
        }
        Ok(Some(Pseudo { path: path.into(), task }))
    }
}

impl Pseudo {
    /// It can be opened before any other task is there.
    pub(super) fn is_early(&self) -> bool {
        self.task.is_none()
    }

    pub(super) fn make(&self, flags: u32, to: RawFd, making: &mut Making<'_>) {
        if self.is_early() {
            making.open(&self.path, flags & OPEN, to);
        }
    }

    /// Opens it as descriptor `to`, and goes to its position.
    pub(super) fn open_late(
        &self,
        flags: u32,
        position: i64,
        to: (RawFd, bool),
        free: RawFd,
        program: &mut Program,
    ) {
        open_late(&self.path, flags, to, free, program);
        if position != 0 {
            let what = format!("seek in {}", self.path);
            program.call(what, libc::SYS_lseek, &[to.0.into(), position.into(), libc::SEEK_SET.into()]);
        }
    }
}

/// Opens `path` as descriptor `to` of a process that has its final descriptors, and no number from `free` on.
pub(super) fn open_late(path: &Bytes, flags: u32, to: (RawFd, bool), free: RawFd, program: &mut Program) {
    let name = program.put_cstr(path);
    let flags = flags & OPEN | (libc::O_CLOEXEC | libc::O_NOCTTY) as u32;
    let what = format!("open {path}");
    let open = program.call(what, libc::SYS_openat, &[libc::AT_FDCWD.into(), name.into(), flags.into()]);
    place_late(open, to, free, program);
}

/// Puts what a call has just opened at number `to`, in the same process.
pub(super) fn place_late(open: Call, to: (RawFd, bool), free: RawFd, program: &mut Program) {
    let (to, cloexec) = to;
    // The first free number may be the wanted one, which dup3 refuses: go by one that is free for sure.
    let aside = program.call(
        "move a descriptor",
        libc::SYS_fcntl,
        &[open.into(), libc::F_DUPFD_CLOEXEC.into(), free.into()],
    );
    program.call("close a descriptor", libc::SYS_close, &[open.into()]);
    let cloexec = if cloexec { libc::O_CLOEXEC } else { 0 };
    program.call("place a descriptor", libc::SYS_dup3, &[aside.into(), to.into(), cloexec.into()]);
    program.call("close a descriptor", libc::SYS_close, &[aside.into()]);
}

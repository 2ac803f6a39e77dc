//! Marks of files, mounts and file systems (fanotify(7)).
//!
//! As with inotify they are set again at the very end. What asks for permission can't be carried: the job stands still, and
//! ckrun, which opens files of the container, would wait for its answer.

use super::capture::Job;
use super::making::Making;
use super::watched::{Inode, Target, device, hex};
use super::{Files, Holdings, Object, Trouble, is_first};
use crate::capabilities::CAP_SYS_ADMIN;
use crate::image::Bytes;
use crate::status::Status;
use crate::sys::fanotify::mark;
use crate::{Doing, Failure};
use serde::{Deserialize, Serialize};
use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

/// Events that wait for an answer, FAN_PRE_ACCESS (Linux 6.14) included: `linux/fanotify.h`.
const PERMISSION: u32 = 0x17_0000;

/// What fanotify_init(2) allows without CAP_SYS_ADMIN: FAN_CLOEXEC and FAN_NONBLOCK, and one of the FAN_REPORT_* by which files
/// are told by their ids instead of descriptors.
const FOR_ALL: u32 = libc::FAN_CLOEXEC | libc::FAN_NONBLOCK | BY_ID;
const BY_ID: u32 = 0x1e00;

/// FAN_MARK_* that fdinfo shows: evictable, as they were added to the mask; the others belong to what is ignored.
const EVICTABLE: u32 = 0x200;
const OF_IGNORED: u32 = libc::FAN_MARK_IGNORED_SURV_MODIFY | IGNORE;
const IGNORE: u32 = 0x400;

/// A queue of what happens to files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Fanotify {
    /// `FAN_*`, those of fanotify_init(2).
    pub flags: u32,
    /// `O_*`, those of the descriptors that come with events.
    pub event_flags: u32,
    /// It was made without CAP_SYS_ADMIN: the kernel tells it less.
    pub unprivileged: bool,
    /// What it is told of.
    pub marks: Vec<Mark>,
}

/// One thing that is watched.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Mark {
    /// What of that which is at the path.
    pub of: Of,
    /// `FAN_*`, events.
    pub events: u32,
    /// `FAN_*`, events that are not told.
    pub ignored: u32,
    /// `FAN_MARK_*`, how.
    pub flags: u32,
    /// From the container's root; of a deleted file, the last name.
    pub path: Bytes,
    /// In which mount namespace.
    #[serde(default, skip_serializing_if = "is_first")]
    pub namespace: u32,
    /// It is deleted, and open: which of [`Files::ghosts`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ghost: Option<u32>,
}

/// What a mark is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Of {
    /// A file or a directory.
    File,
    /// All that is reached by a mount.
    Mount,
    /// All of a file system.
    FileSystem,
}

impl Of {
    fn flag(self) -> u32 {
        match self {
            Of::File => libc::FAN_MARK_INODE,
            Of::Mount => libc::FAN_MARK_MOUNT,
            Of::FileSystem => libc::FAN_MARK_FILESYSTEM,
        }
    }
}

impl Job<'_> {
    pub(super) fn fanotify(&mut self, node: usize) -> Result<Fanotify, Trouble> {
        let refused = |why: &str| Err(Trouble::refused("fanotify", why));
        self.not_in_a_message(node, "fanotify")?;
        // First of all: whoever looks for what is marked opens directories.
        if !self.running() {
            let own = self.graph.take(node)?;
            if rustix::io::ioctl_fionread(own).doing(|| "look into a fanotify queue")? > 0 {
                let why = "there are events in it that nobody has read, and nobody could put them back";
                let remedy = "try again when they are read";
                return Err(Trouble::refused("fanotify", why).or(remedy.into()).passing());
            }
        }
        let info = self.graph.nodes[node].seen.info.clone();
        let number = |row, name| hex(row, name).and_then(|number| u32::try_from(number).ok());
        let masks =
            |row| number(row, "mask").unwrap_or_default() | number(row, "ignored_mask").unwrap_or_default();
        let mut rows = info.rows("fanotify");
        if rows.clone().any(|row| masks(row) & PERMISSION != 0) {
            return refused("who opens or reads a file waits for the job's permission");
        }
        let first = rows.next().unwrap_or_default();
        let (Some(flags), Some(event_flags)) = (number(first, "flags"), number(first, "event-flags")) else {
            return refused("this kernel does not tell its state");
        };
        let mut marks = Vec::new();
        for row in rows {
            let (of, target) = self.marked(row)?;
            let of_mark = |name| number(row, name).unwrap_or_default();
            let (events, ignored) = (of_mark("mask"), of_mark("ignored_mask"));
            let Target { path, namespace, ghost } = target;
            marks.push(Mark { of, events, ignored, flags: of_mark("mflags"), path, namespace, ghost });
        }
        // The kernel shows the newest first.
        marks.reverse();
        let unprivileged = !self.is_privileged(node)?;
        let fanotify = Fanotify { flags, event_flags, unprivileged, marks };
        if unprivileged && fanotify.takes_privilege() {
            return refused("it was made with CAP_SYS_ADMIN, and nobody who has it has that now");
        }
        Ok(fanotify)
    }

    /// What a line of fdinfo marks: `ino:4f969 sdev:800013 mflags:0 mask:3b ignored_mask:0 fhandle-bytes:8 fhandle-type:1
    /// f_handle:69f90400a35c5bc4`, `mnt_id:12 mflags:…` or `sdev:800013 mflags:…`.
    fn marked(&mut self, line: &str) -> Result<(Of, Target), Trouble> {
        let name = || "fanotify: a mark".to_owned();
        if let Some(inode) = Inode::parse(line) {
            return Ok((Of::File, self.watched_at(&inode, &name)?));
        }
        let (id, device) = (hex(line, "mnt_id"), device(line));
        let of = if id.is_some() { Of::Mount } else { Of::FileSystem };
        for (namespace, container, number, mount) in self.mounts() {
            let wanted = match of {
                Of::Mount => id == Some(number),
                _ => device == Some(mount.device),
            };
            // Beneath another mount no path leads to it.
            if wanted && container.mount_at(&mount.point)? == Some(number) {
                return Ok((of, Target { path: mount.point.as_slice().into(), namespace, ghost: None }));
            }
        }
        Err(Trouble::refused(format!("fanotify: {line}"), "it is of no mount that the job can reach"))
    }

    /// Somebody who has it is privileged on the host, as who made it may have been.
    fn is_privileged(&self, node: usize) -> Result<bool, Failure> {
        let user = |pid: &str| {
            let path = format!("/proc/{pid}/ns/user");
            std::fs::read_link(&path).doing(|| format!("read {path}"))
        };
        let own = user("self")?;
        for (member, edges) in self.graph.members.iter().zip(&self.graph.edges) {
            if !edges.iter().any(|edge| edge.node == node) {
                continue;
            }
            let path = format!("/proc/{}/status", member.host);
            let status = Status::parse(&crate::proc::read(&path).doing(|| format!("read {path}"))?);
            if status.cap_prm >> CAP_SYS_ADMIN & 1 == 1 && user(&member.host.to_string())? == own {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

impl Fanotify {
    /// The kernel would not make it for everybody.
    fn takes_privilege(&self) -> bool {
        self.flags & !FOR_ALL != 0
            || self.flags & BY_ID == 0
            || self.marks.iter().any(|mark| mark.of != Of::File)
    }

    pub(super) fn make(&self, to: RawFd, making: &mut Making<'_>) {
        let user = |making: &mut Making<'_>, id: u32| {
            let same = u64::from(u32::MAX);
            let args = [same.into(), id.into(), same.into()];
            making.program.attempt("change the effective user", libc::SYS_setresuid, &args);
        };
        // Whoever is not root has no effective capabilities; in a user namespace they do not count.
        if self.unprivileged {
            user(making, NOBODY);
        }
        let args = [self.flags.into(), self.event_flags.into()];
        let made = making.program.call("make a fanotify", libc::SYS_fanotify_init, &args);
        if self.unprivileged {
            user(making, 0);
        }
        making.put_at(made.into(), to);
    }

    /// Sets the marks. `open` gives ckrun's own descriptor of a deleted file.
    pub(super) fn watch<'f>(
        &self,
        own: &OwnedFd,
        root: &dyn Fn(u32) -> BorrowedFd<'f>,
        open: &mut dyn FnMut(u32) -> Result<Option<OwnedFd>, Failure>,
    ) -> Result<(), Failure> {
        for of_what in &self.marks {
            let what = || format!("mark {}", of_what.path);
            let file = of_what.target().open(root, open)?;
            let name = CString::new(format!("/proc/self/fd/{}", file.as_raw_fd())).unwrap_or_default();
            let how = of_what.of.flag() | of_what.flags & EVICTABLE;
            if of_what.events != 0 {
                mark(own.as_fd(), how, of_what.events, &name).doing(what)?;
            }
            if of_what.ignored != 0 {
                let kept = of_what.flags & OF_IGNORED;
                let kept = if kept & IGNORE == 0 { kept | libc::FAN_MARK_IGNORED_MASK } else { kept };
                mark(own.as_fd(), how | kept, of_what.ignored, &name).doing(what)?;
            }
        }
        Ok(())
    }

    /// Why there can't be one.
    pub(super) fn wrong(&self, files: &Files) -> Option<String> {
        if self.unprivileged && self.takes_privilege() {
            return Some("a fanotify of nobody in particular that is told of all".into());
        }
        let possible = |mark: &Mark| {
            mark.target().is_possible(files)
                && mark.flags & !(EVICTABLE | OF_IGNORED) == 0
                && (mark.events | mark.ignored) & PERMISSION == 0
        };
        (!self.marks.iter().all(possible)).then(|| "impossible marks".into())
    }
}

impl Mark {
    fn target(&self) -> Target {
        Target { path: self.path.clone(), namespace: self.namespace, ghost: self.ghost }
    }
}

/// The user that nobody is: any but root would do.
const NOBODY: u32 = 65534;

impl Files {
    /// For each fanotify that takes a privilege, the processes that have it.
    pub(crate) fn privileged(&self) -> impl Iterator<Item = Vec<i32>> {
        let taken = |object: &Object| matches!(object, Object::Fanotify(fanotify) if !fanotify.unprivileged);
        let ids = (0..).zip(&self.descriptions).filter(move |(_, description)| taken(&description.object));
        ids.map(|(id, _): (u32, _)| {
            let has = |holdings: &Holdings| {
                let of = holdings.table.and_then(|pid| self.processes.get(&pid)).unwrap_or(holdings);
                of.descriptors.iter().any(|held| held.description == id)
            };
            self.processes.iter().filter(|(_, holdings)| has(holdings)).map(|(pid, _)| *pid).collect()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::Fs;
    use serde_json::json;

    /// One that process 1 has.
    fn files(fanotify: &Fanotify) -> Files {
        let object = Object::Fanotify(fanotify.clone());
        serde_json::from_value(json!({
            "descriptions": [{ "flags": 0, "object": object }],
            "processes": { "1": { "descriptors": [{ "fd": 3, "description": 0 }], "fs": Fs::default() } },
        }))
        .unwrap()
    }

    #[test]
    fn nobody_is_told_more_than_who_made_it_could_be() {
        let (of, path) = (Of::File, Bytes::from("/file"));
        let file = Mark { of, events: 2, ignored: 0, flags: 0, path, namespace: 0, ghost: None };
        let whole = Mark { of: Of::Mount, ..file.clone() };
        let one = |flags, unprivileged, mark: &Mark| {
            let fanotify = Fanotify { flags, event_flags: 0, unprivileged, marks: vec![mark.clone()] };
            let files = files(&fanotify);
            let holders: Vec<Vec<i32>> = files.privileged().collect();
            (fanotify.wrong(&files).is_none(), holders)
        };
        assert_eq!(one(0x200, true, &file), (true, vec![]));
        assert_eq!(one(0, false, &whole), (true, vec![vec![1]]));
        // Descriptors with the events, a whole mount, no limit.
        for (flags, mark) in [(0, &file), (0x200, &whole), (0x210, &file)] {
            assert!(!one(flags, true, mark).0, "{flags:#x} {mark:?}");
        }
        let asked = Mark { ignored: libc::FAN_OPEN_PERM as u32, ..file.clone() };
        let strange = Mark { flags: libc::FAN_MARK_FLUSH, ..file };
        assert!(!one(0, false, &asked).0 && !one(0, false, &strange).0);
    }
}

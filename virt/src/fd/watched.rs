//! What inotify and fanotify watch, found by what the kernel shows of it.
//!
//! It shows which inodes are watched, by handle, and not under which names: where a file system can't open its handles, a
//! watch can't be carried.

use super::capture::Job;
use super::container::{Container, DELETED, Mount, join, same};
use super::graph::Node;
use super::seen::Seen;
use super::{Description, Files, Object, Trouble};
use crate::image::Bytes;
use crate::sys::handle;
use crate::{Doing, Failure};
use nix::errno::Errno;
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, Stat};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// The value behind `name:` in a line of fdinfo.
pub(super) fn word<'l>(line: &'l str, name: &str) -> Option<&'l str> {
    line.split_ascii_whitespace().find_map(|word| word.strip_prefix(name)?.strip_prefix(':'))
}

/// The same in hexadecimal digits.
pub(super) fn hex(line: &str, name: &str) -> Option<u64> {
    u64::from_str_radix(word(line, name)?, 16).ok()
}

/// A device as `sdev:` shows it, in the kernel's own form: 20 bits of minor.
pub(super) fn device(line: &str) -> Option<(u32, u32)> {
    let device = hex(line, "sdev")?;
    Some(((device >> 20) as u32, (device & 0xf_ffff) as u32))
}

/// An inode as fdinfo shows it: `ino:3c4a7 sdev:fe00000 fhandle-type:1 f_handle:a7c4030000000000`.
pub(super) struct Inode {
    number: u64,
    device: (u32, u32),
    kind: i32,
    handle: Vec<u8>,
}

impl Inode {
    pub fn parse(line: &str) -> Option<Inode> {
        let digits = word(line, "f_handle").unwrap_or_default();
        let byte = |at: usize| u8::from_str_radix(digits.get(at..at + 2)?, 16).ok();
        Some(Inode {
            number: hex(line, "ino")?,
            device: device(line)?,
            kind: hex(line, "fhandle-type").and_then(|kind| i32::try_from(kind).ok()).unwrap_or(0),
            handle: (0..digits.len() / 2).filter_map(|n| byte(2 * n)).collect(),
        })
    }
}

/// Where something watched is.
pub(super) struct Target {
    /// From the container's root; of a deleted file, the last name.
    pub path: Bytes,
    /// In which mount namespace.
    pub namespace: u32,
    /// It is deleted, and open: which of [`Files::ghosts`].
    pub ghost: Option<u32>,
}

enum Watched {
    /// In which mount namespace, and where there.
    Named(u32, Vec<u8>),
    /// It has no name any more, and this node has it open.
    Open(usize),
}

impl Job<'_> {
    /// Refuses a queue that is only in a message: its watches are set by a descriptor that a process has.
    pub(super) fn not_in_a_message(&self, node: usize, what: &str) -> Result<(), Trouble> {
        match self.graph.nodes[node].sent {
            Some(_) => Err(Trouble::refused(what, "it is in a message that nobody has received")),
            None => Ok(()),
        }
    }

    /// Where the inode is that `name` watches.
    pub(super) fn watched_at(&mut self, inode: &Inode, name: &dyn Fn() -> String) -> Result<Target, Trouble> {
        match self.watched(inode, name)? {
            Watched::Named(namespace, path) => Ok(Target { path: path.into(), namespace, ghost: None }),
            Watched::Open(node) => {
                let Seen { link, info, .. } = &self.graph.nodes[node].seen;
                let last = link.strip_suffix(DELETED).unwrap_or(link).to_vec();
                let namespace = self.graph.home(info.mount).0;
                let ghost = Some(self.ghost(node, &last)?.ghost);
                Ok(Target { path: last.into(), namespace, ghost })
            }
        }
    }

    /// All mounts, with the mount namespaces that they are in.
    pub(super) fn mounts(&self) -> impl Iterator<Item = (u32, &Container, u64, &Mount)> {
        let everywhere = self.graph.containers();
        everywhere
            .flat_map(|(id, there)| there.numbered().map(move |(number, mount)| (id, there, number, mount)))
    }

    fn watched(&self, inode: &Inode, name: &dyn Fn() -> String) -> Result<Watched, Trouble> {
        for (id, container, _, mount) in self.mounts().filter(|(.., mount)| mount.device == inode.device) {
            let flags = OFlags::PATH | OFlags::CLOEXEC;
            let opened = rustix::fs::openat2(
                container.root(),
                mount.point.as_slice(),
                flags,
                Mode::empty(),
                ResolveFlags::IN_ROOT,
            );
            // open_by_handle_at wants a descriptor that is not a mere place, of whatever file of the file system.
            let readable = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
            let at = match opened.and_then(|place| {
                rustix::fs::open(format!("/proc/self/fd/{}", place.as_raw_fd()), readable, Mode::empty())
            }) {
                Ok(at) => at,
                Err(_) => continue,
            };
            let Ok(file) = handle::open(at.as_fd(), inode.kind, &inode.handle) else { continue };
            let stat = rustix::fs::fstat(&file).doing(|| "look at a watched file")?;
            let link = format!("/proc/self/fd/{}", file.as_raw_fd());
            let link = std::fs::read_link(&link).doing(|| format!("read {link}"))?;
            let path = container.relative(std::os::unix::ffi::OsStringExt::into_vec(link.into_os_string()));
            if container.finds(&path, &stat)? {
                return Ok(Watched::Named(id, path));
            }
            if let Some(node) = self.open_ghost(&stat) {
                return Ok(Watched::Open(node));
            }
            // The mount may show only a part of the file system.
            let inside = join(&mount.point, path.strip_prefix(b"/").unwrap_or(&path));
            if container.finds(&inside, &stat)? {
                return Ok(Watched::Named(id, inside));
            }
            // The kernel may have forgotten the name of a file that is not a directory; whoever has it open has not.
            for Node { seen, .. } in self.graph.nodes.iter().filter(|node| same(&node.seen.stat, &stat)) {
                let (home, there) = self.graph.home(seen.info.mount);
                if there.finds(&seen.link, &stat)? {
                    return Ok(Watched::Named(home, seen.link.clone()));
                }
            }
        }
        let (major, minor) = inode.device;
        let what = format!("{} of inode {} of device {major}:{minor}", name(), inode.number);
        let why = "it has no name in the container, or its file system does not tell which";
        Err(Trouble::refused(what, why))
    }

    /// Somebody who has this deleted file open.
    fn open_ghost(&self, stat: &Stat) -> Option<usize> {
        let kind = FileType::from_raw_mode(stat.st_mode);
        let deleted = match kind {
            FileType::RegularFile => stat.st_nlink == 0,
            // How many links it has, each file system counts in its own way.
            FileType::Directory => true,
            _ => false,
        };
        let open = |node: &Node| same(&node.seen.stat, stat) && node.seen.link.ends_with(DELETED);
        self.graph.nodes.iter().position(open).filter(|_| deleted)
    }
}

impl Target {
    /// Opens it as a mere place, which nobody is told of. `open` gives ckrun's own descriptor of a deleted file.
    pub(super) fn open<'f>(
        &self,
        root: &dyn Fn(u32) -> BorrowedFd<'f>,
        open: &mut dyn FnMut(u32) -> Result<Option<OwnedFd>, Failure>,
    ) -> Result<OwnedFd, Failure> {
        let what = || format!("watch {}", self.path);
        if let Some(ghost) = self.ghost {
            return open(ghost)?.ok_or_else(|| Failure::new(what(), Errno::ENOENT));
        }
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let (root, path) = (root(self.namespace), self.path.as_path());
        rustix::fs::openat2(root, path, flags, Mode::empty(), ResolveFlags::IN_ROOT).doing(what)
    }

    /// It can be somewhere.
    pub(super) fn is_possible(&self, files: &Files) -> bool {
        let open = |ghost: u32| files.uses_of_ghost(ghost).next().is_some();
        super::check::is_path(&self.path) && self.ghost.is_none_or(open)
    }
}

impl Object {
    /// The mount namespaces of what it watches.
    pub(super) fn watched(&self) -> Vec<u32> {
        match self {
            Object::Inotify(inotify) => inotify.watches.iter().map(|watch| watch.namespace).collect(),
            Object::Fanotify(fanotify) => fanotify.marks.iter().map(|mark| mark.namespace).collect(),
            _ => Vec::new(),
        }
    }
}

impl Files {
    /// Sets all watches in the container with this root directory in each mount namespace. `take` gives ckrun's own
    /// descriptor of a description.
    pub(super) fn watch<'f>(
        &self,
        root: &dyn Fn(u32) -> BorrowedFd<'f>,
        take: &mut dyn FnMut(u32) -> Result<Option<OwnedFd>, Failure>,
    ) -> Result<(), Failure> {
        for (id, description) in (0..).zip(&self.descriptions) {
            if !matches!(description.object, Object::Inotify(_) | Object::Fanotify(_)) {
                continue;
            }
            let Some(own) = take(id)? else { continue };
            let mut open = |ghost| self.uses_of_ghost(ghost).next().map_or(Ok(None), &mut *take);
            match &description.object {
                Object::Inotify(inotify) => inotify.watch(&own, root, &mut open)?,
                Object::Fanotify(fanotify) => fanotify.watch(&own, root, &mut open)?,
                _ => {}
            }
        }
        Ok(())
    }

    /// The descriptions of a deleted file.
    fn uses_of_ghost(&self, ghost: u32) -> impl Iterator<Item = u32> {
        let of_it = move |description: &Description| matches!(&description.object, Object::Ghost(of) if of.ghost == ghost);
        (0..).zip(&self.descriptions).filter(move |(_, description)| of_it(description)).map(|(id, _)| id)
    }
}

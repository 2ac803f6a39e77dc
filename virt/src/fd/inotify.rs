//! Watches of files and directories (inotify(7)).
//!
//! The kernel shows which inodes are watched, by handle, and not under which names: where a file system can't open its
//! handles, a watch can't be carried. The watches are set again at the very end, when the restart itself opens nothing
//! any more. Their numbers are given in rising order; what lies between them is used up by watches that are removed at once.

use super::capture::Job;
use super::container::{DELETED, join, same};
use super::graph::Node;
use super::making::Making;
use super::seen::Seen;
use super::{Description, Files, Object, Trouble, is_first};
use crate::image::Bytes;
use crate::sys::handle;
use crate::{Doing, Failure};
use nix::errno::Errno;
use rustix::fs::inotify::{WatchFlags, add_watch, remove_watch};
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, Stat};
use serde::{Deserialize, Serialize};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

/// The highest number of a watch that is worth the time to get there: the removal of a watch costs some microseconds.
const HIGHEST: i32 = 1 << 16;

/// A queue of what happens to files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Inotify {
    /// By their numbers.
    pub watches: Vec<Watch>,
}

/// A watched file or directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Watch {
    /// Its number.
    pub number: i32,
    /// `IN_*`.
    pub events: u32,
    /// From the container's root; of a deleted file, the last name.
    pub path: Bytes,
    /// In which mount namespace.
    #[serde(default, skip_serializing_if = "is_first")]
    pub namespace: u32,
    /// It is deleted, and open: which of [`Files::ghosts`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ghost: Option<u32>,
}

/// Where a watched file is.
enum Watched {
    /// In which mount namespace, and where there.
    Named(u32, Vec<u8>),
    /// It has no name any more, and this node has it open.
    Open(usize),
}

/// A line of fdinfo: `inotify wd:1 ino:3c4a7 sdev:fe00000 mask:100 ignored_mask:0 fhandle-bytes:8 fhandle-type:1
/// f_handle:a7c4030000000000`.
struct Line {
    number: i32,
    events: u32,
    inode: u64,
    device: (u32, u32),
    kind: i32,
    handle: Vec<u8>,
}

fn parse(line: &str) -> Option<Line> {
    let word = |name: &str| {
        let value = |word| str::strip_prefix(word, name)?.strip_prefix(':');
        line.split_ascii_whitespace().find_map(value)
    };
    let hex = |name| u64::from_str_radix(word(name)?, 16).ok();
    let device = hex("sdev")?;
    let digits = word("f_handle").unwrap_or_default();
    let byte = |at: usize| u8::from_str_radix(digits.get(at..at + 2)?, 16).ok();
    Some(Line {
        number: i32::from_str_radix(word("wd")?, 16).ok()?,
        events: u32::try_from(hex("mask")?).ok()?,
        inode: hex("ino")?,
        // The kernel's own form of a device number: 20 bits of minor.
        device: ((device >> 20) as u32, (device & 0xf_ffff) as u32),
        kind: hex("fhandle-type").and_then(|kind| i32::try_from(kind).ok()).unwrap_or(0),
        handle: (0..digits.len() / 2).filter_map(|n| byte(2 * n)).collect(),
    })
}

impl Job<'_> {
    pub(super) fn inotify(&mut self, node: usize) -> Result<Inotify, Trouble> {
        let info = &self.graph.nodes[node].seen.info;
        if !self.running() {
            let own = self.graph.take(node)?;
            if rustix::io::ioctl_fionread(own).doing(|| "look into an inotify queue")? > 0 {
                let why = "there are events in it that nobody has read, and nobody could put them back";
                let remedy = "try again when they are read";
                return Err(Trouble::refused("inotify", why).or(remedy.into()).passing());
            }
        }
        let mut watches = Vec::new();
        for line in info.lines("inotify wd").filter_map(|rest| parse(&format!("wd:{rest}"))) {
            if line.number > HIGHEST {
                return Err(Trouble::refused(
                    "inotify",
                    format!("its watches have numbers up to {}", line.number),
                ));
            }
            let (namespace, path, ghost) = match self.watched(&line)? {
                Watched::Named(namespace, path) => (namespace, path, None),
                Watched::Open(node) => {
                    let Seen { link, info, .. } = &self.graph.nodes[node].seen;
                    let last = link.strip_suffix(DELETED).unwrap_or(link).to_vec();
                    let ghost = self.ghost(node, &last)?.ghost;
                    (self.graph.home(info.mount).0, last, Some(ghost))
                }
            };
            let Line { number, events, .. } = line;
            watches.push(Watch { number, events, path: path.into(), namespace, ghost });
        }
        watches.sort_by_key(|watch| watch.number);
        Ok(Inotify { watches })
    }

    /// Where the watched file is.
    fn watched(&self, line: &Line) -> Result<Watched, Trouble> {
        let everywhere = self.graph.containers();
        let mounts = everywhere.flat_map(|(id, there)| there.all().map(move |mount| (id, there, mount)));
        for (id, container, mount) in mounts.filter(|(.., mount)| mount.device == line.device) {
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
            let Ok(file) = handle::open(at.as_fd(), line.kind, &line.handle) else { continue };
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
        let (major, minor) = line.device;
        let what =
            format!("inotify: watch {} of inode {} of device {major}:{minor}", line.number, line.inode);
        let why = "it has no name in the container, or its file system does not tell which";
        Err(Trouble::refused(what, why))
    }
}

impl Job<'_> {
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

impl Inotify {
    pub(super) fn make(to: RawFd, making: &mut Making<'_>) {
        let made = making.program.call("make an inotify", libc::SYS_inotify_init1, &[0.into()]);
        making.put_at(made.into(), to);
    }

    /// Sets the watches. `open` gives ckrun's own descriptor of a deleted file.
    fn watch<'f>(
        &self,
        own: &OwnedFd,
        root: &dyn Fn(u32) -> BorrowedFd<'f>,
        open: &mut dyn FnMut(u32) -> Result<Option<OwnedFd>, Failure>,
    ) -> Result<(), Failure> {
        let mut next = 1;
        for watch in &self.watches {
            let root = root(watch.namespace);
            let what = || format!("watch {}", watch.path);
            let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let resolve = ResolveFlags::IN_ROOT;
            let file = match watch.ghost {
                Some(ghost) => open(ghost)?.ok_or_else(|| Failure::new(what(), Errno::ENOENT))?,
                None => rustix::fs::openat2(root, watch.path.as_path(), flags, Mode::empty(), resolve)
                    .doing(what)?,
            };
            let name = format!("/proc/self/fd/{}", file.as_raw_fd());
            while next < watch.number {
                let passing = add_watch(own, &name, WatchFlags::DELETE_SELF).doing(what)?;
                remove_watch(own, passing).doing(what)?;
                drain(own)?;
                next = passing + 1;
            }
            let number = add_watch(own, &name, WatchFlags::from_bits_retain(watch.events)).doing(what)?;
            if number != watch.number {
                return Err(Failure::new(what(), Errno::EEXIST));
            }
            next = number + 1;
        }
        Ok(())
    }

    /// Why there can't be such watches.
    pub(super) fn wrong(&self, files: &Files) -> Option<String> {
        let numbers: Vec<i32> = self.watches.iter().map(|watch| watch.number).collect();
        let rise = numbers.is_sorted_by(|a, b| a < b) && numbers.iter().all(|n| (1..=HIGHEST).contains(n));
        let open = |ghost: u32| files.uses_of_ghost(ghost).next().is_some();
        let placed = self
            .watches
            .iter()
            .all(|watch| super::check::is_path(&watch.path) && watch.ghost.is_none_or(open));
        (!rise || !placed).then(|| "impossible watches".into())
    }
}

/// Takes the reports of watches that were removed.
fn drain(own: &OwnedFd) -> Result<(), Failure> {
    let what = || "empty an inotify queue";
    while rustix::io::ioctl_fionread(own).doing(what)? > 0 {
        let mut bytes = [0; 4096];
        rustix::io::read(own, &mut bytes).doing(what)?;
    }
    Ok(())
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
            if let Object::Inotify(inotify) = &description.object
                && let Some(own) = take(id)?
            {
                let mut open = |ghost| self.uses_of_ghost(ghost).next().map_or(Ok(None), &mut *take);
                inotify.watch(&own, root, &mut open)?;
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

//! Watches of files and directories (inotify(7)).
//!
//! The watches are set again at the very end, when the restart itself opens nothing any more. Their numbers are given in
//! rising order; what lies between them is used up by watches that are removed at once.

use super::capture::Job;
use super::making::Making;
use super::watched::{Inode, Target, hex, word};
use super::{Files, Trouble, is_first};
use crate::image::Bytes;
use crate::{Doing, Failure};
use nix::errno::Errno;
use rustix::fs::inotify::{WatchFlags, add_watch, remove_watch};
use serde::{Deserialize, Serialize};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};

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

/// A line of fdinfo: `inotify wd:1 ino:3c4a7 sdev:fe00000 mask:100 ignored_mask:0 fhandle-bytes:8 fhandle-type:1
/// f_handle:a7c4030000000000`.
fn parse(line: &str) -> Option<(i32, u32, Inode)> {
    let number = i32::from_str_radix(word(line, "wd")?, 16).ok()?;
    Some((number, u32::try_from(hex(line, "mask")?).ok()?, Inode::parse(line)?))
}

impl Job<'_> {
    pub(super) fn inotify(&mut self, node: usize) -> Result<Inotify, Trouble> {
        self.not_in_a_message(node, "inotify")?;
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
        for (number, events, inode) in
            info.lines("inotify wd").filter_map(|rest| parse(&format!("wd:{rest}")))
        {
            if number > HIGHEST {
                return Err(Trouble::refused("inotify", format!("its watches have numbers up to {number}")));
            }
            let name = || format!("inotify: watch {number}");
            let Target { path, namespace, ghost } = self.watched_at(&inode, &name)?;
            watches.push(Watch { number, events, path, namespace, ghost });
        }
        watches.sort_by_key(|watch| watch.number);
        Ok(Inotify { watches })
    }
}

impl Watch {
    fn target(&self) -> Target {
        Target { path: self.path.clone(), namespace: self.namespace, ghost: self.ghost }
    }
}

impl Inotify {
    pub(super) fn make(to: RawFd, making: &mut Making<'_>) {
        let made = making.program.call("make an inotify", libc::SYS_inotify_init1, &[0.into()]);
        making.put_at(made.into(), to);
    }

    /// Sets the watches. `open` gives ckrun's own descriptor of a deleted file.
    pub(super) fn watch<'f>(
        &self,
        own: &OwnedFd,
        root: &dyn Fn(u32) -> BorrowedFd<'f>,
        open: &mut dyn FnMut(u32) -> Result<Option<OwnedFd>, Failure>,
    ) -> Result<(), Failure> {
        let mut next = 1;
        for watch in &self.watches {
            let what = || format!("watch {}", watch.path);
            let file = watch.target().open(root, open)?;
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
        let placed = self.watches.iter().all(|watch| watch.target().is_possible(files));
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

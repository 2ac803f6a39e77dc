//! Opening mounts that others hide.

use super::Space;
use super::list::{Line, Tree, below};
use super::space::{mountinfo, own_proc};
use super::yard::beneath;
use crate::tmpfs::mount_of;
use crate::{Doing, Failure};
use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno as Gone;
use rustix::mount::{MountPropagationFlags, OpenTreeFlags, UnmountFlags, mount_change, open_tree, unmount};
use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

/// Opens the roots of mounts of `space`, by their ids, as places; nothing that is mounted on them is seen there. The job
/// notices nothing.
///
/// # Errors
/// The kernel's: `EINVAL` when one is hidden, in another user namespace.
pub(crate) fn open_alone(space: &Space, wanted: &[u64]) -> Result<HashMap<u64, OwnedFd>, Failure> {
    if wanted.is_empty() {
        return Ok(HashMap::new());
    }
    let lines = space.lines();
    let proc = own_proc()?;
    space.visit(|| {
        let tree = Tree::of(&lines);
        let mut opened = HashMap::new();
        let mut hidden = HashSet::new();
        for line in wanted.iter().filter_map(|&id| tree.line(id)) {
            let bare = tree.children(line.id).is_empty();
            if !tree.visible(line) || line.unbindable && !bare {
                hidden.insert(line.id);
                continue;
            }
            let place = open(&space.root, line, line.id)?;
            opened.insert(line.id, if bare { place } else { copy(place.as_fd(), &line.point)? });
        }
        if !hidden.is_empty() {
            uncover(space, &tree, hidden, &proc, &mut opened)?;
        }
        Ok(opened)
    })
}

/// Looks for the file of `stat`, which the kernel calls `link`, on the mount `id` and not beyond. The answer is its path there, and
/// whether something is mounted over it.
///
/// # Errors
/// As [`open_alone`].
pub(crate) fn look_beneath(
    space: &Space,
    id: u64,
    link: &[u8],
    stat: &Stat,
) -> Result<Option<(Vec<u8>, bool)>, Failure> {
    let lines = space.lines();
    let Some(at) = lines.iter().find(|line| line.id == id).and_then(|line| below(link, &line.point)) else {
        return Ok(None);
    };
    let Some(root) = open_alone(space, &[id])?.remove(&id) else { return Ok(None) };
    let place = if at.is_empty() { Ok(root) } else { beneath(root, at) };
    let there = match place {
        Err(Gone::NOENT | Gone::NOTDIR | Gone::LOOP | Gone::XDEV) => return Ok(None),
        place => place.and_then(rustix::fs::fstat).doing(|| format!("look at {}", name(link)))?,
    };
    let found = (there.st_dev, there.st_ino) == (stat.st_dev, stat.st_ino);
    let over = Tree::of(&lines).children(id).iter().any(|line| line.point == link);
    Ok(found.then(|| (at.to_vec(), over)))
}

fn name(point: &[u8]) -> String {
    String::from_utf8_lossy(point).into_owned()
}

/// Opens the mount `id` at the point of `line`.
fn open(root: impl AsFd, line: &Line, id: u64) -> Result<OwnedFd, Failure> {
    let what = || format!("open the mount {}", name(&line.point));
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let place =
        rustix::fs::openat2(root, line.point.as_slice(), flags, Mode::empty(), resolve).doing(what)?;
    let (there, _) = mount_of(&place).doing(what)?;
    if there == id { Ok(place) } else { Err(Failure::new(what(), Errno::ESTALE)) }
}

/// A copy of a mount without those on it.
pub(super) fn copy(place: impl AsFd, point: &[u8]) -> Result<OwnedFd, Failure> {
    let flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    open_tree(place, c"", flags).doing(|| format!("copy the mount {}", name(point)))
}

/// Takes a copy of this thread's namespace apart, from the top, until all that is wanted was there to be opened. What has
/// been unmounted is there as long as it is open.
fn uncover(
    space: &Space,
    tree: &Tree<'_>,
    mut hidden: HashSet<u64>,
    proc: &OwnedFd,
    opened: &mut HashMap<u64, OwnedFd>,
) -> Result<(), Failure> {
    let what = || "take a copy of a mount namespace apart";
    // A copy of the namespace has this directory of the copy as its root.
    rustix::process::fchdir(&space.root).doing(what)?;
    rustix::process::chroot(".").doing(what)?;
    unshare(CloneFlags::CLONE_NEWNS).doing(what)?;
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).doing(what)?;
    let lines = Line::all(&mountinfo(proc)?);
    let copies = Tree::of(&lines);
    let mut known: HashMap<u64, u64> = HashMap::new();
    for line in &tree.in_order() {
        let found = match tree.parent(line) {
            None => copies.in_order().first().copied(),
            Some((parent, _)) => known.get(&parent.id).and_then(|copy| {
                copies.children(*copy).iter().find(|child| child.point == line.point).copied()
            }),
        };
        known.extend(found.map(|copy| (line.id, copy.id)));
    }
    for line in &tree.downwards() {
        if hidden.is_empty() {
            break;
        }
        let Some(&copy) = known.get(&line.id) else { continue };
        if hidden.remove(&line.id) {
            let root = rustix::fs::openat(CWD, "/", OFlags::PATH | OFlags::CLOEXEC, Mode::empty());
            opened.insert(line.id, open(root.doing(what)?, line, copy)?);
        }
        if tree.parent(line).is_some() {
            unmount(OsStr::from_bytes(&line.point), UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)
                .doing(|| format!("look beneath the mount {}", name(&line.point)))?;
        }
    }
    Ok(())
}

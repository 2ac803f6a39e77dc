//! The places of a sandbox by the names that the kernel has for them, and which mounts of a container are not the sandbox's.

use super::Places;
use super::list::{Line, below};
use crate::fd::Mount;
use crate::tmpfs::mount_of;
use rustix::fs::{Mode, OFlags, ResolveFlags};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Whether there is a mount at each place and nowhere else, as they were made, as far as the bare names say. That is so for
/// nearly every job, and saves finding out what the names lead to.
pub(super) fn as_they_were(mounts: &[(u64, Mount)], places: &Places) -> bool {
    let mut points: HashMap<&[u8], isize> = HashMap::new();
    for (_, mount) in mounts {
        *points.entry(&mount.point).or_default() += 1;
    }
    let read_only: HashSet<&[u8]> =
        places.read_only.iter().map(|place| place.as_os_str().as_bytes()).collect();
    let changed = |mount: &Mount| {
        let known =
            mount.point == b"/" || places.mounted.iter().any(|p| p.as_os_str().as_bytes() == mount.point);
        known && (mount.shared || mount.read_only != read_only.contains(&mount.point[..]))
    };
    if mounts.iter().any(|(_, mount)| changed(mount)) {
        return false;
    }
    for (places, needed) in [(&places.mounted, true), (&places.covered, false)] {
        for place in places {
            match points.get_mut(place.as_os_str().as_bytes()) {
                Some(more @ 1..) => *more -= 1,
                _ if needed => return false,
                _ => {}
            }
        }
    }
    let trees: Vec<_> = places.trees.iter().map(|tree| tree.as_os_str().as_bytes()).collect();
    points.iter().all(|(point, more)| *more == 0 || *point == b"/" || is_below(&trees, point))
}

/// The places of a sandbox.
pub(super) struct Sandbox {
    pub(super) mounted: BTreeMap<Vec<u8>, usize>,
    pub(super) covered: BTreeMap<Vec<u8>, usize>,
    pub(super) trees: Vec<Vec<u8>>,
    pub(super) read_only: HashSet<Vec<u8>>,
}

impl Sandbox {
    /// `root` is the container's root directory, and these lines are its mounts.
    pub(super) fn of(places: &Places, root: BorrowedFd<'_>, lines: &[Line]) -> Sandbox {
        let points = lines.iter().map(|line| (line.id, &line.point[..])).collect();
        let point = |place: &Path| point(root, place, &points);
        let count = |places: &[std::path::PathBuf]| {
            places.iter().fold(BTreeMap::new(), |mut all, place| {
                *all.entry(point(place)).or_default() += 1;
                all
            })
        };
        let mut mounted = count(&places.mounted);
        *mounted.entry(b"/".to_vec()).or_default() += 1;
        Sandbox {
            mounted,
            covered: count(&places.covered),
            trees: places.trees.iter().map(|tree| point(tree)).collect(),
            read_only: places.read_only.iter().map(|place| point(place)).collect(),
        }
    }

    /// Others come along with what is mounted above this point.
    pub(super) fn in_a_tree(&self, point: &[u8]) -> bool {
        is_below(&self.trees, point)
    }
}

/// Whether `point` is below one of `trees`.
fn is_below(trees: &[impl AsRef<[u8]>], point: &[u8]) -> bool {
    trees.iter().any(|tree| below(point, tree.as_ref()).is_some_and(|rest| !rest.is_empty()))
}

/// What the kernel calls a place where something is mounted: without symbolic links.
fn point(root: BorrowedFd<'_>, place: &Path, mounts: &HashMap<u64, &[u8]>) -> Vec<u8> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let found = rustix::fs::openat2(root, place, flags, Mode::empty(), resolve).and_then(mount_of);
    let mount = found.ok().filter(|(_, whole)| *whole).and_then(|(id, _)| mounts.get(&id));
    mount.map_or_else(|| place.as_os_str().as_bytes().to_vec(), |point| point.to_vec())
}

//! Mounts that a job has made or removed in its container. A restart makes those of the sandbox, all of them and no others.

use crate::fd::{self, Mount};
use crate::resource::Blocker;
use crate::tmpfs::mount_of;
use crate::{Doing, Failure};
use nix::unistd::Pid;
use rustix::fs::{Mode, OFlags, ResolveFlags};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Where a sandbox has mounted something, as the container names it.
#[derive(Debug, Clone, Default)]
pub struct Places {
    /// Each as often as something was mounted there.
    pub mounted: Vec<PathBuf>,
    /// The same of what may not have been necessary.
    pub covered: Vec<PathBuf>,
    /// Below these, others came along with the first, or may come at any time by propagation.
    pub trees: Vec<PathBuf>,
}

/// Names every one of the `mounts` of the container whose first process is `init` that is not of the sandbox, nor on this host too, from
/// where it was propagated. Of those of the sandbox that are no longer there it warns.
///
/// # Errors
/// The kernel's.
pub(crate) fn survey(init: Pid, mounts: &[(u64, Mount)], places: &Places) -> Result<Vec<Blocker>, Failure> {
    if as_they_were(mounts, places) {
        return Ok(Vec::new());
    }
    let mounts: HashMap<u64, &Mount> = mounts.iter().map(|(id, mount)| (*id, mount)).collect();
    let host: HashSet<_> = fd::mounts(Pid::this())?.into_iter().map(|(_, m)| (m.device, m.root)).collect();
    let path = format!("/proc/{init}/root");
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open(&path, flags, Mode::empty()).doing(|| format!("open {path}"))?;
    let point = |place: &PathBuf| point(root.as_fd(), place, &mounts);
    let trees: Vec<Vec<u8>> = places.trees.iter().map(point).collect();
    // At each point, how many there are besides those of the sandbox, and how many strangers are among them.
    let mut points: BTreeMap<Vec<u8>, (isize, isize)> = BTreeMap::new();
    for mount in mounts.values() {
        let stranger = !host.contains(&(mount.device, mount.root.clone())) && !below(&trees, &mount.point);
        let (all, strangers) = points.entry(mount.point.clone()).or_default();
        (*all, *strangers) = (*all + 1, *strangers + isize::from(stranger));
    }
    for place in &places.mounted {
        points.entry(point(place)).or_default().0 -= 1;
    }
    let missing: Vec<_> =
        points.iter().filter(|(_, (more, _))| *more < 0).map(|(point, _)| point.clone()).collect();
    for place in &places.covered {
        points.entry(point(place)).or_default().0 -= 1;
    }
    points.retain(|point, (more, strangers)| *point != b"/" && *more > 0 && *strangers > 0);
    let comm = std::fs::read_to_string(format!("/proc/{init}/comm")).unwrap_or_default();
    for point in missing {
        let name = String::from_utf8_lossy(&point);
        log::warn!("mount {name}: it was unmounted in the container, and a restart mounts it again");
    }
    let blocker = |point: Vec<u8>| Blocker {
        pid: 1,
        comm: comm.trim_end().to_owned(),
        what: format!("mount {}", String::from_utf8_lossy(&point)),
        why: "it was made in the container, and a restart makes only the mounts of config.json".into(),
        remedy: Some("unmount it, or let config.json mount it from the start".into()),
    };
    Ok(points.into_keys().map(blocker).collect())
}

/// Whether there is a mount at each place and nowhere else, as far as the bare names say. That is so for nearly every job,
/// and saves finding out what the names lead to.
fn as_they_were(mounts: &[(u64, Mount)], places: &Places) -> bool {
    let mut points: HashMap<&[u8], isize> = HashMap::new();
    for (_, mount) in mounts {
        *points.entry(&mount.point).or_default() += 1;
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
    points.iter().all(|(point, more)| *more == 0 || *point == b"/" || below(&trees, point))
}

/// Whether `point` is below one of `trees`.
fn below(trees: &[impl AsRef<[u8]>], point: &[u8]) -> bool {
    trees.iter().any(|tree| point.strip_prefix(tree.as_ref()).is_some_and(|rest| rest.starts_with(b"/")))
}

/// What the kernel calls a place where something is mounted: without symbolic links.
fn point(root: BorrowedFd<'_>, place: &Path, mounts: &HashMap<u64, &Mount>) -> Vec<u8> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let found = rustix::fs::openat2(root, place, flags, Mode::empty(), resolve).and_then(mount_of);
    let mount = found.ok().filter(|(_, whole)| *whole).and_then(|(id, _)| mounts.get(&id));
    mount.map_or_else(|| place.as_os_str().as_bytes().to_vec(), |mount| mount.point.clone())
}

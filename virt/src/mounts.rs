//! Mounts that a job has made in its container. A restart makes those of the sandbox, and no others.

use crate::fd::{self, Mount};
use crate::resource::Blocker;
use crate::tmpfs::mount_of;
use crate::{Doing, Failure};
use nix::unistd::Pid;
use rustix::fs::{Mode, OFlags, ResolveFlags};
use std::collections::{HashMap, HashSet};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Where a sandbox has mounted something, as the container names it.
#[derive(Debug, Clone, Default)]
pub struct Places {
    /// Each as often as something was mounted there.
    pub mounted: Vec<PathBuf>,
    /// Below these, others came along with the first, or may come at any time by propagation.
    pub trees: Vec<PathBuf>,
}

/// Names every mount of the container whose first process is `init` that is not of the sandbox, nor on this host too, from
/// where it was propagated.
///
/// # Errors
/// The kernel's.
pub fn survey(init: Pid, places: &Places) -> Result<Vec<Blocker>, Failure> {
    let mounts: HashMap<u64, Mount> = fd::mounts(init)?.into_iter().collect();
    let host: HashSet<_> = fd::mounts(Pid::this())?.into_iter().map(|(_, m)| (m.device, m.root)).collect();
    let path = format!("/proc/{init}/root");
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open(&path, flags, Mode::empty()).doing(|| format!("open {path}"))?;
    let point = |place: &PathBuf| point(root.as_fd(), place, &mounts);
    let mut known: HashMap<Vec<u8>, usize> = HashMap::new();
    for place in &places.mounted {
        *known.entry(point(place)).or_default() += 1;
    }
    let trees: Vec<Vec<u8>> = places.trees.iter().map(point).collect();
    let below = |point: &[u8]| {
        trees.iter().any(|tree| point.strip_prefix(&**tree).is_some_and(|rest| rest.starts_with(b"/")))
    };
    let mut strange: Vec<&Mount> = mounts.values().collect();
    strange.retain(|mount| match known.get_mut(&mount.point) {
        _ if mount.point == b"/" || host.contains(&(mount.device, mount.root.clone())) => false,
        Some(left) if *left > 0 => {
            *left -= 1;
            false
        }
        _ => !below(&mount.point),
    });
    strange.sort_by(|one, other| one.point.cmp(&other.point));
    let comm = std::fs::read_to_string(format!("/proc/{init}/comm")).unwrap_or_default();
    let blocker = |mount: &Mount| Blocker {
        pid: 1,
        comm: comm.trim_end().to_owned(),
        what: format!("mount {}", String::from_utf8_lossy(&mount.point)),
        why: "it was made in the container, and a restart makes only the mounts of config.json".into(),
        remedy: Some("unmount it, or let config.json mount it from the start".into()),
    };
    Ok(strange.into_iter().map(blocker).collect())
}

/// What the kernel calls a place where something is mounted: without symbolic links.
fn point(root: BorrowedFd<'_>, place: &Path, mounts: &HashMap<u64, Mount>) -> Vec<u8> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let found = rustix::fs::openat2(root, place, flags, Mode::empty(), resolve).and_then(mount_of);
    let mount = found.ok().filter(|(_, whole)| *whole).and_then(|(id, _)| mounts.get(&id));
    mount.map_or_else(|| place.as_os_str().as_bytes().to_vec(), |mount| mount.point.clone())
}

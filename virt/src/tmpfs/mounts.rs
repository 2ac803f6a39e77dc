//! Which mounts of a container are file systems in memory of its own.

use super::{MOST_BYTES, MOST_FILES};
use crate::fd::{self, Mount};
use crate::resource::Blocker;
use crate::{Doing, Failure};
use nix::unistd::Pid;
use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags, StatxFlags};
use std::collections::HashSet;
use std::os::fd::{BorrowedFd, OwnedFd};

/// A tmpfs of the container.
#[derive(Debug)]
pub(super) struct Own {
    /// Where, from the container's root.
    pub point: Vec<u8>,
    /// The id of the mount.
    pub id: u64,
    /// Its root directory, open for reading.
    pub dir: OwnedFd,
}

/// Mounts that others hide, by their ids, with their points.
pub(super) type Hidden = Vec<(u64, Vec<u8>)>;

/// Directory, to be read; its time of last access stays.
pub(super) const READ_DIR: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOATIME).union(OFlags::CLOEXEC);

/// Every tmpfs that the container whose first process is `init` has for itself, and the ids and points of those that other
/// mounts hide. What is on one of these `devices` is another's business.
///
/// One that this process sees as well is the host's, mounted once more. A tmpfs that is mounted twice in the container
/// is one file system. What is below `/proc` and `/sys` hides things of the kernel, or holds mounts of cgroups, and is
/// never the job's; the root file system is the bundle's.
pub(super) fn own(
    init: Pid,
    mounts: &[(u64, Mount)],
    devices: &HashSet<String>,
) -> Result<(Vec<Own>, Hidden), Failure> {
    let mut taken: HashSet<_> = fd::mounts(Pid::this())?.into_iter().map(|(_, mount)| mount.device).collect();
    let mut wanted: Vec<_> = mounts.iter().filter(|(_, mount)| candidate(mount)).cloned().collect();
    let (mut own, mut hidden): (Vec<Own>, Vec<(u64, Vec<u8>, _)>) = (Vec::new(), Vec::new());
    let elsewhere = |(major, minor): (u32, u32)| devices.contains(&format!("{major}:{minor}"));
    wanted.retain(|(_, mount)| !taken.contains(&mount.device) && !elsewhere(mount.device));
    wanted.sort_by(|(_, one), (_, other)| one.point.cmp(&other.point));
    if wanted.is_empty() {
        return Ok((own, Hidden::new()));
    }
    let path = format!("/proc/{init}/root");
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open(&path, flags, Mode::empty()).doing(|| format!("open {path}"))?;
    for (id, Mount { point, device, .. }) in wanted {
        let name = || String::from_utf8_lossy(&point).into_owned();
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        let dir = match rustix::fs::openat2(&root, &*point, READ_DIR, Mode::empty(), resolve) {
            Ok(dir) => dir,
            // Another mount hides it.
            Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR | rustix::io::Errno::LOOP) => {
                hidden.push((id, point, device));
                continue;
            }
            Err(e) => return Err(e).doing(|| format!("open {} in the container", name())),
        };
        let (there, _) = mount_of(&dir).doing(|| format!("look at {} in the container", name()))?;
        if there != id {
            hidden.push((id, point, device));
        } else if taken.insert(device) {
            own.push(Own { point, id, dir });
        }
    }
    // One that is seen elsewhere is not hidden.
    hidden.retain(|(.., device)| taken.insert(*device));
    Ok((own, hidden.into_iter().map(|(id, point, _)| (id, point)).collect()))
}

fn candidate(mount: &Mount) -> bool {
    let below = |dir: &[u8]| mount.point.strip_prefix(dir).is_some_and(|rest| rest.first() == Some(&b'/'));
    mount.kind == b"tmpfs" && mount.root == b"/" && mount.point != b"/" && !below(b"/proc") && !below(b"/sys")
}

/// The id of the mount that an open file is on, and whether it is its root directory.
pub(crate) fn mount_of(fd: impl std::os::fd::AsFd) -> rustix::io::Result<(u64, bool)> {
    let about = rustix::fs::statx(fd, c"", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID)?;
    Ok((about.stx_mnt_id, about.stx_attributes.contains(rustix::fs::StatxAttributes::MOUNT_ROOT)))
}

/// Names every tmpfs that is too large to be carried, while the job runs on. `mounts` are those of its container; to those
/// on one of these `devices`, which the job has made and may unmount at any time, nobody comes near: it would find them busy.
///
/// # Errors
/// The kernel's.
pub(crate) fn survey(
    init: Pid,
    mounts: &[(u64, Mount)],
    devices: &HashSet<String>,
) -> Result<Vec<Blocker>, Failure> {
    let mut blockers = Vec::new();
    for own in own(init, mounts, devices)?.0 {
        let (files, bytes) = usage(&own)?;
        if files > MOST_FILES || bytes > MOST_BYTES {
            blockers.push(too_large(init, &own.point));
        }
    }
    Ok(blockers)
}

/// How many files and bytes it holds. A tmpfs without limits does not count: it says 0.
fn usage(own: &Own) -> Result<(u64, u64), Failure> {
    let usage = rustix::fs::fstatvfs(&own.dir)
        .doing(|| format!("look at the file system {}", String::from_utf8_lossy(&own.point)))?;
    let used = |all: u64, free: u64| all.saturating_sub(free);
    Ok((
        used(usage.f_files, usage.f_ffree),
        used(usage.f_blocks, usage.f_bfree).saturating_mul(usage.f_frsize),
    ))
}

pub(super) fn too_large(init: Pid, point: &[u8]) -> Blocker {
    Blocker {
        pid: 1,
        comm: std::fs::read_to_string(format!("/proc/{init}/comm")).unwrap_or_default().trim_end().to_owned(),
        what: format!("tmpfs {}", String::from_utf8_lossy(point)),
        why: format!("it holds more than {MOST_FILES} files or {} GiB", MOST_BYTES >> 30),
        remedy: Some("mount a directory of the host there, or remove what is not needed".into()),
    }
}

/// Opens what is at `path` in a tmpfs; the empty path is its root directory.
pub(super) fn open(dir: BorrowedFd<'_>, path: &[u8], flags: OFlags) -> rustix::io::Result<OwnedFd> {
    let path = if path.is_empty() { b"." } else { path };
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    rustix::fs::openat2(dir, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve)
}

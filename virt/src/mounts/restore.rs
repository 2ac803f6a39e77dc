//! Making a job's changes once more, in a new sandbox. Every path is resolved inside the container's root, which is this
//! process's.

use super::list::flag;
use super::{Changes, Made, What};
use crate::image::Bytes;
use crate::tmpfs::Contents;
use crate::{Doing, Error, Failure};
use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::mount::{
    MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, mount, mount_change,
    mount_remount, move_mount, open_tree, unmount,
};
use std::collections::HashSet;
use std::ffi::CString;
use std::os::fd::OwnedFd;
use std::path::Path;

/// `MOVE_MOUNT_SET_GROUP` of `linux/mount.h` (Linux 5.15): the target becomes a peer of the source.
const SET_GROUP: MoveMountFlags = MoveMountFlags::from_bits_retain(0x100);

/// Carries `changes` out. A file system in memory gets its content from `contents` at once: others may be mounted on what
/// is in it.
///
/// # Errors
/// The kernel's, the image's; [`Error::Unsupported`] for a place that is not there.
pub fn restore(changes: &Changes, contents: &Contents) -> Result<(), Error> {
    for point in changes.unmounted.iter().rev() {
        open(point)?;
        let flags = UnmountFlags::DETACH | UnmountFlags::NOFOLLOW;
        unmount(point.as_path(), flags).doing(|| format!("unmount {point}"))?;
    }
    for made in &changes.made {
        make(made)?;
        if changes.tmpfs().any(|point| *point == made.point) {
            contents.fill(&made.point)?;
        }
    }
    // What comes in between must be written to.
    for made in changes.made.iter().filter(|made| !made.options.is_empty()) {
        let flags: MountFlags = made.options.iter().filter_map(|option| flag(option)).collect();
        remount(&made.point, flags)?;
        if let What::New { read_only: true, .. } = made.what {
            mount_remount(made.point.as_path(), MountFlags::RDONLY | flags, c"")
                .doing(|| format!("make {} read-only", made.point))?;
        }
    }
    for (point, read_only) in &changes.read_only {
        let place = open(point)?;
        let now = rustix::fs::fstatvfs(&place).doing(|| format!("look at {point}"))?.f_flag;
        let mut flags = kept(now);
        flags.set(MountFlags::RDONLY, *read_only);
        remount(point, flags)?;
    }
    let made: HashSet<&Bytes> = changes.made.iter().map(|made| &made.point).collect();
    changes.peers.iter().try_for_each(|points| share(points, &made)).map_err(Error::from)
}

/// Opens a place, not what may come to be mounted on it later. Nobody else is there yet, so that the path leads to the same
/// afterwards; /proc may be away already.
fn open(point: &Bytes) -> Result<OwnedFd, Error> {
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    rustix::fs::openat2(rustix::fs::CWD, point.as_path(), flags, Mode::empty(), resolve).map_err(|errno| {
        let why = nix::errno::Errno::from_raw(errno.raw_os_error()).desc();
        Error::Unsupported(format!("{point}: the job had mounted something there, and here: {why}"))
    })
}

/// What is below a mount of a file system in memory was not seen, and is not in the image: there it takes an empty file or
/// directory. Elsewhere the place is part of the root file system, and must be there.
fn prepare(point: &Bytes, directory: bool) -> Result<(), Failure> {
    let parent = point.as_path().parent().unwrap_or(Path::new("/"));
    let in_memory = rustix::fs::statfs(parent).is_ok_and(|fs| fs.f_type == libc::TMPFS_MAGIC);
    if !in_memory || rustix::fs::lstat(point.as_path()).is_ok() {
        return Ok(());
    }
    let made = if directory {
        rustix::fs::mkdir(point.as_path(), Mode::from_raw_mode(0o755))
    } else {
        let kind = rustix::fs::FileType::RegularFile;
        rustix::fs::mknodat(rustix::fs::CWD, point.as_path(), kind, Mode::from_raw_mode(0o644), 0)
    };
    made.doing(|| format!("make {point} to mount something there"))
}

fn make(made: &Made) -> Result<(), Error> {
    let point = &made.point;
    let directory = match &made.what {
        What::New { .. } => true,
        What::Bind { from } => from.as_path().is_dir(),
    };
    prepare(point, directory)?;
    let place = open(point)?;
    let doing = || format!("mount {point} as the job had it");
    match &made.what {
        What::New { kind, source, options, .. } => {
            let text = |bytes: &Bytes| {
                let text = CString::new(&bytes[..]);
                text.map_err(|_| Error::Damaged(format!("mounts.json: {point}: a zero byte in a text")))
            };
            let (source, options) = (text(source)?, text(options)?);
            let options = (!options.is_empty()).then_some(options.as_c_str());
            mount(source.as_c_str(), point.as_path(), kind.as_str(), MountFlags::empty(), options)
                .doing(doing)?;
        }
        What::Bind { from } => {
            let from = open(from)?;
            let flags = OpenTreeFlags::OPEN_TREE_CLONE
                | OpenTreeFlags::OPEN_TREE_CLOEXEC
                | OpenTreeFlags::AT_EMPTY_PATH;
            let tree = open_tree(&from, c"", flags).doing(doing)?;
            let both = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
            move_mount(&tree, c"", &place, c"", both).doing(doing)?;
        }
    }
    // It may have inherited peers from where it comes from or goes to.
    mount_change(point.as_path(), MountPropagationFlags::PRIVATE).doing(doing)?;
    Ok(())
}

fn remount(point: &Bytes, flags: MountFlags) -> Result<(), Error> {
    open(point)?;
    mount_remount(point.as_path(), MountFlags::BIND | flags, c"")
        .doing(|| format!("change the options of the mount {point}"))?;
    Ok(())
}

/// The options that a mount has: mount(2) takes those away that are not said again.
fn kept(now: rustix::fs::StatVfsMountFlags) -> MountFlags {
    use rustix::fs::StatVfsMountFlags as Now;
    let both = [
        (Now::NOSUID, MountFlags::NOSUID),
        (Now::NODEV, MountFlags::NODEV),
        (Now::NOEXEC, MountFlags::NOEXEC),
        (Now::NOATIME, MountFlags::NOATIME),
        (Now::NODIRATIME, MountFlags::NODIRATIME),
        (Now::RELATIME, MountFlags::RELATIME),
    ];
    both.into_iter().filter(|(had, _)| now.contains(*had)).map(|(_, flag)| flag).collect()
}

/// Makes the topmost mounts at these points peers of each other. Those of the sandbox may be so already.
fn share(points: &[Bytes], made: &HashSet<&Bytes>) -> Result<(), Failure> {
    let Some((first, others)) = points.split_first() else { return Ok(()) };
    let open = |point: &Bytes| {
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        rustix::fs::open(point.as_path(), flags, Mode::empty()).doing(|| format!("open {point}"))
    };
    let doing = |point: &Bytes| format!("share the mount {point}");
    let source = open(first)?;
    mount_change(first.as_path(), MountPropagationFlags::SHARED).doing(|| doing(first))?;
    for point in others {
        let target = open(point)?;
        let both = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
        match move_mount(&source, c"", &target, c"", SET_GROUP | both) {
            Err(Errno::INVAL) if !made.contains(point) => {
                log::debug!("mount {point}: has the peers that the sandbox has given it");
            }
            shared => shared.doing(|| doing(point))?,
        }
    }
    Ok(())
}

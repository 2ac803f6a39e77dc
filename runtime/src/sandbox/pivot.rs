//! The way into the container's root: propagation, the rootfs as a mount, and the change of `/`.

use super::root::Root;
use super::tree::{attach_fd, clone_path};
use crate::config::Ask;
use crate::error::{Error, Result};
use ckrun_virt::Doing;
use ckrun_virt::sys::{MountAttr, mount_setattr};
use libc::{MS_PRIVATE, MS_REC, MS_SHARED, MS_SLAVE, MS_UNBINDABLE};
use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};
use nix::unistd::{chdir, chroot, fchdir, pivot_root};
use oci_spec::runtime::Spec;
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::mount::{MoveMountFlags, move_mount};
use std::os::fd::AsFd;
use std::path::Path;

/// `linux.rootfsPropagation` as `MS_*` flags.
///
/// # Errors
/// A word that is none of the eight.
pub fn propagation(spec: &Spec) -> Result<Option<u64>> {
    let Some(word) = spec.lx().and_then(|l| l.rootfs_propagation().as_deref()).filter(|w| !w.is_empty())
    else {
        return Ok(None);
    };
    let (recursive, plain) = match word.strip_prefix('r') {
        Some(rest) => (MS_REC, rest),
        None => (0, word),
    };
    let kind = match plain {
        "shared" => MS_SHARED,
        "slave" => MS_SLAVE,
        "private" => MS_PRIVATE,
        "unbindable" => MS_UNBINDABLE,
        _ => {
            return Err(Error::config(
                "linux.rootfsPropagation",
                format!("{word:?} is no kind of propagation"),
            ));
        }
    };
    Ok(Some(kind | recursive))
}

/// Cuts the new mount namespace off the host's, as far as the configuration wants, and makes the rootfs a mount of its
/// own.
pub fn prepare(spec: &Spec, rootfs: &Path) -> Result<Root> {
    let wanted = propagation(spec)?;
    // An unbindable rootfs could not be bound; it becomes unbindable at the end.
    let first = match wanted {
        Some(flags) if flags & MS_UNBINDABLE == 0 => flags,
        _ => MS_SLAVE | MS_REC,
    };
    change_propagation(Path::new("/"), first)?;
    if first & MS_SHARED != 0 {
        isolate_parent(rootfs)?;
    }
    let tree = clone_path(rootfs, true).doing(|| format!("bind the rootfs {}", rootfs.display()))?;
    let place = openat(CWD, rootfs, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .doing(|| format!("open the rootfs {}", rootfs.display()))?;
    attach_fd(tree.as_fd(), place.as_fd()).doing(|| format!("mount the rootfs {}", rootfs.display()))?;
    // The descriptor of a tree stays its root when it is attached.
    Ok(Root::new(tree))
}

fn change_propagation(mount: &Path, flags: u64) -> Result<()> {
    let place = openat(CWD, mount, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
        .doing(|| format!("open {}", mount.display()))?;
    let attr = MountAttr { propagation: flags & !MS_REC, ..Default::default() };
    mount_setattr(place.as_fd(), flags & MS_REC != 0, attr)
        .doing(|| format!("change the propagation of {}", mount.display()))?;
    Ok(())
}

/// pivot_root(2) wants the mount that holds the new root not to be shared: the nearest mount point above is found by
/// asking, since only a mount's root can change its propagation.
fn isolate_parent(rootfs: &Path) -> Result<()> {
    let attr = MountAttr { propagation: MS_PRIVATE, ..Default::default() };
    for dir in rootfs.ancestors() {
        let place = openat(CWD, dir, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
            .doing(|| format!("open {}", dir.display()))?;
        match mount_setattr(place.as_fd(), false, attr) {
            Err(Errno::EINVAL) => continue,
            other => return Ok(other.doing(|| format!("make {} private", dir.display()))?),
        }
    }
    Ok(())
}

/// Makes `root` the root directory of this mount namespace and lets go of the old one.
pub fn pivot(root: &Root, spec: &Spec) -> Result<()> {
    fchdir(root.as_fd()).doing(|| "enter the container's root")?;
    pivot_root(".", ".").doing(|| "pivot_root into the container's root")?;
    // The old root now lies on top of the new one and is still the working directory. It must not take the host's
    // mounts along when it goes.
    if matches!(propagation(spec)?, Some(flags) if flags & MS_SHARED != 0) {
        change_propagation(Path::new("."), MS_SLAVE | MS_REC)?;
    }
    umount2(".", MntFlags::MNT_DETACH).doing(|| "unmount the old root")?;
    chdir("/").doing(|| "chdir to the container's root")?;
    final_propagation(spec)
}

/// Without pivot_root (`--no-pivot`: the host's root is an initramfs): the rootfs is moved over `/`. Every procfs and
/// sysfs of the host that stays reachable below it is unmounted, since it would show what the masks hide.
pub fn move_over(root: &Root, spec: &Spec) -> Result<()> {
    for mount in host_views(root)? {
        match umount2(&mount, MntFlags::MNT_DETACH) {
            Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => {}
            Err(e) => return Err(ckrun_virt::Failure::new(format!("unmount {}", mount.display()), e).into()),
        }
    }
    fchdir(root.as_fd()).doing(|| "enter the container's root")?;
    move_mount(root.as_fd(), c"", CWD, c"/", MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .doing(|| "move the container's root to /")?;
    chroot(".").doing(|| "chroot into the container's root")?;
    chdir("/").doing(|| "chdir to the container's root")?;
    final_propagation(spec)
}

/// Mount points of procfs and sysfs outside the container's root (proc_pid_mountinfo(5): fields 4 and 5, and the type
/// after the separator).
fn host_views(root: &Root) -> Result<Vec<std::path::PathBuf>> {
    let own = std::fs::read_link(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&root.as_fd())))
        .doing(|| "read the place of the container's root")?;
    let table = std::fs::read_to_string("/proc/self/mountinfo").doing(|| "read /proc/self/mountinfo")?;
    let views = table.lines().filter_map(|line| {
        let (place, kind) = line.split_once(" - ")?;
        let place = Path::new(place.split(' ').nth(4)?);
        let kind = kind.split(' ').next()?;
        (matches!(kind, "proc" | "sysfs") && !place.starts_with(&own)).then(|| place.to_owned())
    });
    Ok(views.collect())
}

fn final_propagation(spec: &Spec) -> Result<()> {
    match propagation(spec)? {
        Some(flags) => change_propagation(Path::new("/"), flags),
        None => Ok(()),
    }
}

/// Without a mount namespace of its own the container only gets another root directory.
pub fn change_root(rootfs: &Path) -> Result<()> {
    chroot(rootfs).doing(|| format!("chroot to {}", rootfs.display()))?;
    chdir("/").doing(|| "chdir to the container's root")?;
    Ok(())
}

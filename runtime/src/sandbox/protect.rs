//! What the container may not see or not write: masked paths, read-only paths, the read-only root.

use super::root::{Links, Root};
use super::tree::{attach_fd, clone_fd, clone_path, is_dir};
use crate::config::Ask;
use crate::error::{Error, Result};
use ckrun_virt::sys::{MountAttr, mount_setattr};
use ckrun_virt::{Doing, Failure};
use libc::{MOUNT_ATTR_NODEV, MOUNT_ATTR_NOEXEC, MOUNT_ATTR_NOSUID, MOUNT_ATTR_RDONLY};
use nix::errno::Errno;
use oci_spec::runtime::Spec;
use rustix::fs::{PROC_SUPER_MAGIC, fstatfs};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_string, fsmount, fsopen,
};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

/// Applies `linux.maskedPaths` and `linux.readonlyPaths`; a path that is not there needs no protection.
pub fn paths(root: &Root, spec: &Spec) -> Result<()> {
    let Some(linux) = spec.lx() else { return Ok(()) };
    let read_only = linux.readonly_paths().as_deref().unwrap_or_default();
    let masked = linux.masked_paths().as_deref().unwrap_or_default();
    if read_only.is_empty() && masked.is_empty() {
        return Ok(());
    }
    really_proc(root, spec)?;
    for path in read_only {
        make_read_only(root, Path::new(path))
            .map_err(|e| Error::config("linux.readonlyPaths", e.to_string()))?;
    }
    let mut cover = Cover::default();
    for path in masked {
        cover.mask(root, Path::new(path)).map_err(|e| Error::config("linux.maskedPaths", e.to_string()))?;
    }
    Ok(())
}

/// Masks on a /proc that is not procfs protect nothing: a hostile image could have put a directory or a volume where
/// the procfs should be, and the real one elsewhere.
fn really_proc(root: &Root, spec: &Spec) -> Result<()> {
    let wanted = spec.mount_list().iter().any(|m| m.typ().as_deref() == Some("proc"));
    if !wanted {
        return Ok(());
    }
    let proc = root.open(Path::new("/proc"), Links::Refuse)?;
    let kind = fstatfs(&proc).doing(|| "statfs /proc of the container")?;
    if kind.f_type != PROC_SUPER_MAGIC {
        return Err(Error::config(
            "mounts",
            "/proc of the container is not a procfs: its masked paths would mask nothing",
        ));
    }
    Ok(())
}

fn open(root: &Root, path: &Path) -> Result<Option<OwnedFd>, Failure> {
    match root.open(path, Links::Follow) {
        Err(e) if matches!(e.errno, Errno::ENOENT | Errno::ENOTDIR) => Ok(None),
        // Without the right to see it, a container's root has no right to write it.
        Err(e) if e.errno == Errno::EACCES => Ok(None),
        other => other.map(Some),
    }
}

fn make_read_only(root: &Root, path: &Path) -> Result<(), Failure> {
    let Some(place) = open(root, path)? else { return Ok(()) };
    let mount = clone_fd(place.as_fd(), true).doing(|| format!("bind {}", path.display()))?;
    // Not less restricted than what is there now, and no setuid program or device through this door.
    let set = MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC;
    let attr = MountAttr { set, ..Default::default() };
    mount_setattr(mount.as_fd(), false, attr).doing(|| format!("make {} read-only", path.display()))?;
    attach_fd(mount.as_fd(), place.as_fd()).doing(|| format!("mount over {}", path.display()))
}

/// What masked paths are covered with: made once, bound many times.
#[derive(Debug, Default)]
struct Cover {
    empty_dir: Option<OwnedFd>,
}

impl Cover {
    fn mask(&mut self, root: &Root, path: &Path) -> Result<(), Failure> {
        let Some(place) = open(root, path)? else { return Ok(()) };
        let cover = if is_dir(place.as_fd())? {
            self.directory()?
        } else {
            // The host's: the container's own could be anything.
            clone_path(Path::new("/dev/null"), false).doing(|| "bind /dev/null")?
        };
        attach_fd(cover.as_fd(), place.as_fd()).doing(|| format!("mount over {}", path.display()))
    }

    /// One empty read-only tmpfs serves every masked directory.
    fn directory(&mut self) -> Result<OwnedFd, Failure> {
        let first = match self.empty_dir.take() {
            Some(made) => made,
            None => {
                let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC).doing(|| "fsopen tmpfs")?;
                fsconfig_set_string(&context, "source", "tmpfs").doing(|| "name an empty tmpfs")?;
                fsconfig_create(&context).doing(|| "make an empty tmpfs")?;
                let flags = MountAttrFlags::MOUNT_ATTR_RDONLY
                    | MountAttrFlags::MOUNT_ATTR_NOSUID
                    | MountAttrFlags::MOUNT_ATTR_NODEV
                    | MountAttrFlags::MOUNT_ATTR_NOEXEC;
                fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, flags).doing(|| "mount an empty tmpfs")?
            }
        };
        if let Ok(copy) = clone_fd(first.as_fd(), false) {
            self.empty_dir = Some(first);
            return Ok(copy);
        }
        // Before Linux 6.15 only what is attached to our mount namespace can be cloned: this one is used up, and the
        // next directory gets another.
        Ok(first)
    }
}

/// Makes a mount of the container read-only: its root, or a /dev that had to be furnished first.
pub fn read_only_mount(root: &Root, path: &Path) -> Result<()> {
    let place = root.open(path, Links::Follow)?;
    let attr = MountAttr { set: MOUNT_ATTR_RDONLY, ..Default::default() };
    mount_setattr(place.as_fd(), false, attr)
        .doing(|| format!("make {} of the container read-only", path.display()))?;
    Ok(())
}

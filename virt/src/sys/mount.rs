//! mount_setattr(2): flags, propagation and id mapping of a mount or a whole tree of mounts.

use super::check;
use nix::errno::Errno;
use std::os::fd::{AsRawFd, BorrowedFd};

/// What to change; `MOUNT_ATTR_*` of `linux/mount.h`.
#[derive(Debug, Clone, Copy, Default)]
pub struct MountAttr<'a> {
    /// `MOUNT_ATTR_*` to set.
    pub set: u64,
    /// `MOUNT_ATTR_*` to clear. `MOUNT_ATTR__ATIME` must be cleared whole when any access-time mode is set.
    pub clear: u64,
    /// `MS_SHARED`, `MS_PRIVATE`, `MS_SLAVE` or `MS_UNBINDABLE`; 0 leaves the propagation alone.
    pub propagation: u64,
    /// A user namespace whose id mapping the mount takes over (`MOUNT_ATTR_IDMAP`).
    pub idmap: Option<BorrowedFd<'a>>,
}

/// Changes the mount that `mount` is the root of; with `recursive`, every mount below it too, all of them or none.
///
/// # Errors
/// `EINVAL` (the descriptor is no mount's root, or attributes that exclude each other), `EPERM` (a locked flag).
pub fn mount_setattr(mount: BorrowedFd<'_>, recursive: bool, attr: MountAttr<'_>) -> Result<(), Errno> {
    let mut raw = libc::mount_attr {
        attr_set: attr.set,
        attr_clr: attr.clear,
        propagation: attr.propagation,
        userns_fd: 0,
    };
    if let Some(userns) = attr.idmap {
        raw.attr_set |= libc::MOUNT_ATTR_IDMAP;
        raw.userns_fd = userns.as_raw_fd() as u64;
    }
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path is a NUL-terminated literal, raw lives through the call and its size is passed.
    check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const raw,
            size_of::<libc::mount_attr>(),
        )
    })?;
    Ok(())
}

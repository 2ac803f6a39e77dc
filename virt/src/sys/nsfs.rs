//! Handles of namespaces, without a `/proc` (`linux/pidfd.h`).

use nix::errno::Errno;
use rustix::process::{PidfdFlags, getpid, pidfd_open};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// `PIDFD_GET_MNT_NAMESPACE` (Linux 6.11).
const GET_MNT_NAMESPACE: libc::c_ulong = 0xff03;

/// The mount namespace of this process.
///
/// # Errors
/// `ENOTTY`, `EINVAL` before Linux 6.11.
pub fn mount_namespace() -> Result<OwnedFd, Errno> {
    let own = pidfd_open(getpid(), PidfdFlags::empty()).map_err(|e| Errno::from_raw(e.raw_os_error()))?;
    // SAFETY: the call has no further argument; its answer is a new descriptor.
    let fd = Errno::result(unsafe { libc::ioctl(own.as_raw_fd(), GET_MNT_NAMESPACE, 0) })?;
    // SAFETY: the kernel has just made it, for nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

//! pidfd_send_signal(2) with any signal number: the wrappers of nix and rustix know no real-time signals.

use super::check;
use nix::errno::Errno;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Sends signal `number` to the process that `pidfd` holds; 0 only checks.
///
/// # Errors
/// `ESRCH` (it has been reaped), `EPERM`, `EINVAL` (no such signal).
pub fn pidfd_send_signal(pidfd: BorrowedFd<'_>, number: i32) -> Result<(), Errno> {
    let no_info = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: the kernel takes a null siginfo as "like kill(2)"; the flags argument is 0.
    check(unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), number, no_info, 0) })?;
    Ok(())
}

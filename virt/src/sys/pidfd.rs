//! Calls about the process that a pidfd holds. The wrappers of nix and rustix know no real-time signals.

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

/// Takes the memory of a process that has been killed and is about to end, beside the process itself, which would give it
/// back alone (process_mrelease(2)). What the kernel has against it does not matter: the process goes on ending.
pub fn process_mrelease(pidfd: BorrowedFd<'_>) {
    // SAFETY: a descriptor and no flags; the call touches no memory of ours.
    unsafe { libc::syscall(libc::SYS_process_mrelease, pidfd.as_raw_fd(), 0) };
}

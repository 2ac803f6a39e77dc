//! Marks of fanotify (fanotify_mark(2)).

use super::check;
use nix::errno::Errno;
use std::ffi::CStr;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Adds `mask` to the mark of what is at `path`; `flags` say of what kind that is, and which of its masks.
///
/// # Errors
/// The kernel's.
pub fn mark(group: BorrowedFd<'_>, flags: u32, mask: u32, path: &CStr) -> Result<(), Errno> {
    let flags = libc::FAN_MARK_ADD | flags;
    // SAFETY: the path lives through the call, and is all the memory that it reads.
    let marked =
        unsafe { libc::fanotify_mark(group.as_raw_fd(), flags, mask.into(), libc::AT_FDCWD, path.as_ptr()) };
    check(marked.into()).map(drop)
}

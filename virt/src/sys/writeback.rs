//! sync_file_range(2): starts writing a file to the disk.

use super::check;
use nix::errno::Errno;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Hands all dirty pages of `file` to the disk without waiting for them. Nothing is safe before an fsync(2).
///
/// # Errors
/// `EIO` and `ENOSPC` for pages that could not be placed on the disk.
pub fn start_writeback(file: BorrowedFd<'_>) -> Result<(), Errno> {
    // SAFETY: takes no pointers; offset 0 with length 0 means the whole file.
    check(unsafe { libc::sync_file_range(file.as_raw_fd(), 0, 0, libc::SYNC_FILE_RANGE_WRITE) }.into())?;
    Ok(())
}

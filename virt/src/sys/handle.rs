//! Handles of files (open_by_handle_at(2)).

use super::check;
use nix::errno::Errno;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// The kernel's limit (`MAX_HANDLE_SZ`).
const MOST: usize = 128;

/// `struct file_handle`.
#[repr(C)]
struct Handle {
    length: u32,
    kind: i32,
    bytes: [u8; MOST],
}

/// Opens the file with a handle, which is in the file system that `mount` is in, as a mere place (O_PATH).
///
/// # Errors
/// `ESTALE` when there is none, `EOPNOTSUPP` when this file system has no handles, `EPERM` without CAP_DAC_READ_SEARCH.
pub fn open(mount: BorrowedFd<'_>, kind: i32, handle: &[u8]) -> Result<OwnedFd, Errno> {
    let mut raw = Handle { length: handle.len() as u32, kind, bytes: [0; MOST] };
    raw.bytes.get_mut(..handle.len()).ok_or(Errno::EINVAL)?.copy_from_slice(handle);
    let flags = libc::O_PATH | libc::O_NOFOLLOW | libc::O_CLOEXEC;
    // SAFETY: the handle lives through the call, and its length is at most that of the bytes behind it.
    let fd =
        check(unsafe { libc::syscall(libc::SYS_open_by_handle_at, mount.as_raw_fd(), &raw mut raw, flags) })?;
    // SAFETY: the kernel has just made this descriptor for us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

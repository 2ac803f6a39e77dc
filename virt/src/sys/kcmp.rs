//! kcmp(2): whether two processes share a kernel object. It also orders the objects, so that equal ones among many are
//! found by a binary search.

use super::check;
use nix::errno::Errno;
use nix::unistd::Pid;
use std::cmp::Ordering;
use std::os::fd::RawFd;

/// `linux/kcmp.h`.
const KCMP_FILE: i32 = 0;
const KCMP_VM: i32 = 1;
const KCMP_FILES: i32 = 2;
const KCMP_FS: i32 = 3;
const KCMP_SYSVSEM: i32 = 6;
const KCMP_EPOLL_TFD: i32 = 7;

/// One entry of an epoll set (`struct kcmp_epoll_slot`).
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct EpollSlot {
    /// The epoll descriptor.
    pub epoll: u32,
    /// The number under which the file was added.
    pub target: u32,
    /// Which one of several entries with this number, in the order of `/proc/PID/fdinfo`.
    pub nth: u32,
}

/// Orders the open file descriptions behind two descriptors; equal ones are the same.
///
/// # Errors
/// `EBADF`, `ESRCH`, `EPERM`; `ENOSYS` from a kernel without CONFIG_KCMP.
pub fn compare_files(a: (Pid, RawFd), b: (Pid, RawFd)) -> Result<Ordering, Errno> {
    kcmp(a.0, b.0, KCMP_FILE, a.1 as u64, b.1 as u64)
}

/// Whether two descriptors of two processes lead to one open file description.
///
/// # Errors
/// As [`compare_files`].
pub fn same_file(a: Pid, a_fd: i32, b: Pid, b_fd: i32) -> Result<bool, Errno> {
    compare_files((a, a_fd), (b, b_fd)).map(Ordering::is_eq)
}

/// Orders the memory of two tasks.
///
/// # Errors
/// `ESRCH`, `EPERM`.
pub fn compare_memory(a: Pid, b: Pid) -> Result<Ordering, Errno> {
    kcmp(a, b, KCMP_VM, 0, 0)
}

/// Orders the descriptor tables of two tasks.
///
/// # Errors
/// `ESRCH`, `EPERM`.
pub fn compare_tables(a: Pid, b: Pid) -> Result<Ordering, Errno> {
    kcmp(a, b, KCMP_FILES, 0, 0)
}

/// Orders what CLONE_FS shares: working directory, root and umask of two tasks.
///
/// # Errors
/// `ESRCH`, `EPERM`.
pub fn compare_fs(a: Pid, b: Pid) -> Result<Ordering, Errno> {
    kcmp(a, b, KCMP_FS, 0, 0)
}

/// Orders the lists of what two tasks take back at their ends (SEM_UNDO, semop(2)); who has none is equal to all who have
/// none.
///
/// # Errors
/// `ESRCH`, `EPERM`.
pub fn compare_undo(a: Pid, b: Pid) -> Result<Ordering, Errno> {
    kcmp(a, b, KCMP_SYSVSEM, 0, 0)
}

/// Orders the description behind `file` and the one that `slot` of an epoll set of process `owner` watches.
///
/// # Errors
/// `ENOENT` (no such entry), `EBADF`, `ESRCH`, `EPERM`.
pub fn compare_epoll_target(file: (Pid, RawFd), owner: Pid, slot: EpollSlot) -> Result<Ordering, Errno> {
    kcmp(file.0, owner, KCMP_EPOLL_TFD, file.1 as u64, (&raw const slot) as u64)
}

fn kcmp(a: Pid, b: Pid, kind: i32, x: u64, y: u64) -> Result<Ordering, Errno> {
    // SAFETY: of all arguments only the slot of KCMP_EPOLL_TFD is an address; it lives in the caller's frame.
    match check(unsafe { libc::syscall(libc::SYS_kcmp, a.as_raw(), b.as_raw(), kind, x, y) })? {
        0 => Ok(Ordering::Equal),
        1 => Ok(Ordering::Less),
        2 => Ok(Ordering::Greater),
        // 3 is for what has no order; the kernel has none such.
        _ => Err(Errno::EOPNOTSUPP),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::os::fd::AsRawFd;

    #[test]
    fn duplicates_are_equal_and_others_are_ordered() {
        let me = Pid::this();
        let one = File::open("/dev/null").unwrap();
        let same = one.try_clone().unwrap();
        let other = File::open("/dev/null").unwrap();
        let order = |a: &File, b: &File| compare_files((me, a.as_raw_fd()), (me, b.as_raw_fd())).unwrap();
        assert_eq!(order(&one, &same), Ordering::Equal);
        assert_ne!(order(&one, &other), Ordering::Equal);
        assert_eq!(order(&one, &other), order(&other, &one).reverse());
        assert_eq!(compare_fs(me, me), Ok(Ordering::Equal));
    }
}

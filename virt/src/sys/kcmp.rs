use super::check;
use nix::errno::Errno;
use nix::unistd::Pid;

/// kcmp(2)'s `KCMP_FILE`, which libc does not name.
const KCMP_FILE: libc::c_long = 0;

/// Whether two descriptors of two processes lead to one open file description (kcmp(2)).
///
/// # Errors
/// `ESRCH`, `EBADF`; `EPERM` without the right to trace both; `ENOSYS` on a kernel without CONFIG_KCMP.
pub fn same_file(a: Pid, a_fd: i32, b: Pid, b_fd: i32) -> Result<bool, Errno> {
    let (a, b) = (libc::c_long::from(a.as_raw()), libc::c_long::from(b.as_raw()));
    let (a_fd, b_fd) = (libc::c_long::from(a_fd), libc::c_long::from(b_fd));
    // SAFETY: kcmp takes numbers only and changes nothing.
    let order = check(unsafe { libc::syscall(libc::SYS_kcmp, a, b, KCMP_FILE, a_fd, b_fd) })?;
    Ok(order == 0)
}

//! sched_setaffinity(2) with masks of any length.

use super::check;
use nix::errno::Errno;
use nix::unistd::Pid;

/// The CPUs that thread `pid` may run on: bit N of the bytes is CPU N. As long as the kernel's own mask.
///
/// # Errors
/// `ESRCH`.
pub fn affinity(pid: Pid) -> Result<Vec<u8>, Errno> {
    // 8192 CPUs, the most that Linux can be built for.
    let mut bytes = vec![0_u8; 1024];
    // SAFETY: the length is that of the buffer.
    let length = check(unsafe {
        libc::syscall(libc::SYS_sched_getaffinity, pid.as_raw(), bytes.len(), bytes.as_mut_ptr())
    })?;
    bytes.truncate(length as usize);
    Ok(bytes)
}

/// Sets the CPUs that thread `pid` may run on.
///
/// # Errors
/// `ESRCH`, `EINVAL` (none of them is there).
pub fn set_affinity(pid: Pid, cpus: &[u8]) -> Result<(), Errno> {
    // SAFETY: the length is that of the buffer.
    check(unsafe { libc::syscall(libc::SYS_sched_setaffinity, pid.as_raw(), cpus.len(), cpus.as_ptr()) })
        .map(drop)
}

/// Lets thread `pid` run on one CPU only.
///
/// # Errors
/// As [`set_affinity`].
pub fn pin(pid: Pid, cpu: usize) -> Result<(), Errno> {
    let mut cpus = vec![0_u8; (cpu / 64 + 1) * 8];
    cpus[cpu / 8] = 1 << (cpu % 8);
    set_affinity(pid, &cpus)
}

//! sched_setattr(2) and ioprio_set(2), which libc does not wrap.

use super::check;
use nix::errno::Errno;
use nix::unistd::Pid;

/// `struct sched_attr` of `linux/sched/types.h`, version 1.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SchedAttr {
    /// Bytes of this structure that the kernel knows.
    pub size: u32,
    /// `SCHED_*`.
    pub policy: u32,
    /// `SCHED_FLAG_*`.
    pub flags: u64,
    /// For the ordinary policies.
    pub nice: i32,
    /// For the real-time policies.
    pub priority: u32,
    /// Nanoseconds: of `SCHED_DEADLINE`, or the slice of an ordinary policy.
    pub runtime: u64,
    /// Nanoseconds.
    pub deadline: u64,
    /// Nanoseconds.
    pub period: u64,
    /// The least utilisation that the kernel is to assume, of 1024.
    pub util_min: u32,
    /// The most.
    pub util_max: u32,
}

/// How thread `pid` is scheduled.
///
/// # Errors
/// `ESRCH`.
pub fn sched_getattr(pid: Pid) -> Result<SchedAttr, Errno> {
    let mut attr = SchedAttr::default();
    let size = size_of::<SchedAttr>();
    // SAFETY: the kernel writes `size` bytes at most to a structure of that size.
    check(unsafe { libc::syscall(libc::SYS_sched_getattr, pid.as_raw(), &raw mut attr, size, 0) })?;
    Ok(attr)
}

/// Sets how thread `pid` is scheduled.
///
/// # Errors
/// `EPERM` (a privilege, or a deadline together with an affinity), `EINVAL`, `EBUSY` (no bandwidth left), `ESRCH`.
pub fn sched_setattr(pid: Pid, attr: &SchedAttr) -> Result<(), Errno> {
    let attr = SchedAttr { size: size_of::<SchedAttr>() as u32, ..*attr };
    // SAFETY: the kernel reads as many bytes as `size` says, which are there.
    check(unsafe { libc::syscall(libc::SYS_sched_setattr, pid.as_raw(), &raw const attr, 0) }).map(drop)
}

/// `IOPRIO_WHO_PROCESS` of `linux/ioprio.h`: one thread, in fact.
const WHO_PROCESS: libc::c_int = 1;

/// The I/O priority of thread `pid`: class `<< 13 |` level. 0 when it has none of its own.
///
/// # Errors
/// `ESRCH`.
pub fn ioprio(pid: Pid) -> Result<u16, Errno> {
    // SAFETY: two numbers, no memory.
    let priority = check(unsafe { libc::syscall(libc::SYS_ioprio_get, WHO_PROCESS, pid.as_raw()) })?;
    u16::try_from(priority).map_err(|_| Errno::ERANGE)
}

/// Sets the I/O priority of thread `pid`.
///
/// # Errors
/// `EPERM` (the real-time class takes CAP_SYS_ADMIN or CAP_SYS_NICE), `EINVAL`, `ESRCH`.
pub fn set_ioprio(pid: Pid, priority: u16) -> Result<(), Errno> {
    let priority = libc::c_int::from(priority);
    // SAFETY: three numbers, no memory.
    check(unsafe { libc::syscall(libc::SYS_ioprio_set, WHO_PROCESS, pid.as_raw(), priority) }).map(drop)
}

//! What ptrace(2) shows of a stopped thread besides its registers: queued signals, seccomp filters, the dispatch of system
//! calls to user space.

use super::check;
use nix::errno::Errno;
use nix::unistd::Pid;
use std::ffi::c_void;

/// `linux/ptrace.h`.
const PEEKSIGINFO: libc::c_uint = 0x4209;
const SECCOMP_GET_FILTER: libc::c_uint = 0x420c;
const SECCOMP_GET_METADATA: libc::c_uint = 0x420d;
const SET_SYSCALL_USER_DISPATCH_CONFIG: libc::c_uint = 0x4210;
const GET_SYSCALL_USER_DISPATCH_CONFIG: libc::c_uint = 0x4211;
const PEEKSIGINFO_SHARED: u32 = 1;

fn ptrace(request: libc::c_uint, pid: Pid, addr: usize, data: *mut c_void) -> Result<libc::c_long, Errno> {
    // SAFETY: the callers in this file pass for each request the kind of data that ptrace(2) names for it, alive
    // through the call and as large as they say.
    check(unsafe { libc::ptrace(request, pid.as_raw(), addr, data) })
}

/// `siginfo_t` as the kernel passes it: 128 bytes.
pub type RawSiginfo = [u8; 128];

/// Reads a queue of signals from the `from`th on, in order, without taking them: the thread's own, or its process's.
/// Fewer than there is room for means that there are no more.
///
/// # Errors
/// `ESRCH` (not stopped).
pub fn queued_signals(pid: Pid, shared: bool, from: u64, room: &mut [RawSiginfo]) -> Result<usize, Errno> {
    /// `struct ptrace_peeksiginfo_args`.
    #[repr(C)]
    struct Args {
        from: u64,
        flags: u32,
        count: i32,
    }
    let count = i32::try_from(room.len()).unwrap_or(i32::MAX);
    let args = Args { from, flags: if shared { PEEKSIGINFO_SHARED } else { 0 }, count };
    let got = ptrace(PEEKSIGINFO, pid, (&raw const args).addr(), room.as_mut_ptr().cast())?;
    Ok(got as usize)
}

/// One instruction of classic BPF (`struct sock_filter`).
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Instruction {
    /// What it does.
    pub code: u16,
    /// How many instructions to skip if a comparison holds,
    pub if_true: u8,
    /// and if not.
    pub if_false: u8,
    /// The operand.
    pub k: u32,
}

impl Instruction {
    /// As the kernel reads it.
    pub fn to_bytes(self) -> [u8; 8] {
        let (code, k) = (self.code.to_ne_bytes(), self.k.to_ne_bytes());
        [code[0], code[1], self.if_true, self.if_false, k[0], k[1], k[2], k[3]]
    }
}

/// The most instructions that a filter has (`BPF_MAXINSNS`).
pub const MAX_INSTRUCTIONS: usize = 4096;

/// Reads seccomp filter number `index` of a thread; 0 is the oldest one. None when there are not so many.
///
/// # Errors
/// `EACCES` (the caller lacks CAP_SYS_ADMIN or has a filter itself), `EMEDIUMTYPE` (not classic BPF), `ESRCH` (not
/// stopped).
pub fn seccomp_filter(pid: Pid, index: usize) -> Result<Option<Vec<Instruction>>, Errno> {
    let mut code = vec![Instruction::default(); MAX_INSTRUCTIONS];
    match ptrace(SECCOMP_GET_FILTER, pid, index, code.as_mut_ptr().cast()) {
        Ok(length) => {
            code.truncate(length as usize);
            Ok(Some(code))
        }
        Err(Errno::ENOENT) => Ok(None),
        Err(errno) => Err(errno),
    }
}

/// The flags with which filter number `index` was installed, as far as the kernel tells: `SECCOMP_FILTER_FLAG_LOG`.
///
/// # Errors
/// As [`seccomp_filter`].
pub fn seccomp_flags(pid: Pid, index: usize) -> Result<u64, Errno> {
    // `struct seccomp_metadata`: the filter's number, the flags.
    let mut metadata = [index as u64, 0];
    ptrace(SECCOMP_GET_METADATA, pid, size_of_val(&metadata), metadata.as_mut_ptr().cast())?;
    Ok(metadata[1])
}

/// `struct ptrace_sud_config`: system calls made outside a range of code raise SIGSYS if a byte says so.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct UserDispatch {
    /// `PR_SYS_DISPATCH_*`; 0 for off.
    pub mode: u64,
    /// The byte's address.
    pub selector: u64,
    /// The range.
    pub offset: u64,
    /// Its length.
    pub len: u64,
}

/// The dispatch of a thread's system calls.
///
/// # Errors
/// `EIO` (a kernel before 6.4), `ESRCH` (not stopped).
pub fn user_dispatch(pid: Pid) -> Result<UserDispatch, Errno> {
    let mut config = UserDispatch::default();
    ptrace(GET_SYSCALL_USER_DISPATCH_CONFIG, pid, size_of_val(&config), (&raw mut config).cast())?;
    Ok(config)
}

/// Sets the dispatch of a thread's system calls.
///
/// # Errors
/// `EINVAL` (a range that wraps), `EFAULT` (no address of the task's), `ESRCH` (not stopped).
pub fn set_user_dispatch(pid: Pid, config: &UserDispatch) -> Result<(), Errno> {
    let data = (&raw const *config).cast_mut().cast();
    ptrace(SET_SYSCALL_USER_DISPATCH_CONFIG, pid, size_of_val(config), data).map(drop)
}

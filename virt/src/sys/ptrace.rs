//! ptrace(2) and wait4(2), with every signal number: the wrappers of nix know no real-time signals.

use super::check;
use nix::errno::Errno;
use nix::unistd::Pid;
use std::ffi::c_void;

/// `PTRACE_GETSIGMASK` and `PTRACE_SETSIGMASK` of `linux/ptrace.h`.
const GETSIGMASK: libc::c_uint = 0x420a;
const SETSIGMASK: libc::c_uint = 0x420b;
/// `PTRACE_GET_RSEQ_CONFIGURATION` (Linux 5.13).
const GET_RSEQ_CONFIGURATION: libc::c_uint = 0x420f;
/// `NT_PRSTATUS` of `linux/elf.h`: the general registers.
const NT_PRSTATUS: usize = 1;

/// The general registers of x86-64, fs and gs bases included, as `NT_PRSTATUS` lays them out.
pub type Registers = libc::user_regs_struct;

fn ptrace(request: libc::c_uint, pid: Pid, addr: usize, data: *mut c_void) -> Result<(), Errno> {
    // SAFETY: the callers in this file pass for each request the kind of data that ptrace(2) names for it, alive
    // through the call. What a request does happens to the traced task, not to this process's memory.
    check(unsafe { libc::ptrace(request, pid.as_raw(), addr, data) }).map(drop)
}

fn number(value: libc::c_int) -> *mut c_void {
    std::ptr::without_provenance_mut(value as usize)
}

/// Begins to trace thread `pid` without stopping it. `options` are `PTRACE_O_*`.
///
/// # Errors
/// `EPERM` (another tracer, or a zombie), `ESRCH`.
pub fn seize(pid: Pid, options: libc::c_int) -> Result<(), Errno> {
    ptrace(libc::PTRACE_SEIZE, pid, 0, number(options))
}

/// Changes the options of a stopped tracee.
///
/// # Errors
/// `ESRCH` (not stopped), `EPERM` (`PTRACE_O_SUSPEND_SECCOMP` needs CAP_SYS_ADMIN).
pub fn set_options(pid: Pid, options: libc::c_int) -> Result<(), Errno> {
    ptrace(libc::PTRACE_SETOPTIONS, pid, 0, number(options))
}

/// Asks a seized thread to stop; [`wait`] tells when it has.
///
/// # Errors
/// `ESRCH`.
pub fn interrupt(pid: Pid) -> Result<(), Errno> {
    ptrace(libc::PTRACE_INTERRUPT, pid, 0, number(0))
}

/// Lets a stopped thread go on, with signal `signal` if that is not 0.
///
/// # Errors
/// `ESRCH` (not stopped).
pub fn resume(pid: Pid, signal: libc::c_int) -> Result<(), Errno> {
    ptrace(libc::PTRACE_CONT, pid, 0, number(signal))
}

/// As [`resume`], to the next entry to or exit from a system call.
///
/// # Errors
/// `ESRCH` (not stopped).
pub fn resume_to_syscall(pid: Pid, signal: libc::c_int) -> Result<(), Errno> {
    ptrace(libc::PTRACE_SYSCALL, pid, 0, number(signal))
}

/// Ends the tracing of a stopped thread, which goes on.
///
/// # Errors
/// `ESRCH` (not stopped).
pub fn detach(pid: Pid) -> Result<(), Errno> {
    ptrace(libc::PTRACE_DETACH, pid, 0, number(0))
}

/// The general registers.
///
/// # Errors
/// `ESRCH` (not stopped), `EIO` (a 32-bit task, whose registers are fewer).
pub fn registers(pid: Pid) -> Result<Registers, Errno> {
    // SAFETY: a struct of integers, for which zeroes are a value.
    let mut regs: Registers = unsafe { std::mem::zeroed() };
    let mut iov = libc::iovec { iov_base: (&raw mut regs).cast(), iov_len: size_of::<Registers>() };
    ptrace(libc::PTRACE_GETREGSET, pid, NT_PRSTATUS, (&raw mut iov).cast())?;
    if iov.iov_len == size_of::<Registers>() { Ok(regs) } else { Err(Errno::EIO) }
}

/// Sets the general registers.
///
/// # Errors
/// `ESRCH` (not stopped), `EIO` (a value that the kernel doesn't allow).
pub fn set_registers(pid: Pid, regs: &Registers) -> Result<(), Errno> {
    let mut iov =
        libc::iovec { iov_base: (&raw const *regs).cast_mut().cast(), iov_len: size_of::<Registers>() };
    ptrace(libc::PTRACE_SETREGSET, pid, NT_PRSTATUS, (&raw mut iov).cast())
}

/// A register set, `NT_*` of `linux/elf.h`, of `max` bytes at most.
///
/// # Errors
/// `ESRCH` (not stopped), `ENODEV` (not on this CPU).
pub fn regset(pid: Pid, kind: usize, max: usize) -> Result<Vec<u8>, Errno> {
    let mut bytes = vec![0_u8; max];
    let mut iov = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: max };
    ptrace(libc::PTRACE_GETREGSET, pid, kind, (&raw mut iov).cast())?;
    bytes.truncate(iov.iov_len);
    Ok(bytes)
}

/// Sets a register set.
///
/// # Errors
/// `ESRCH` (not stopped), `EINVAL`, `EFAULT`, `ENODEV` (bytes that this kernel or CPU does not take).
pub fn set_regset(pid: Pid, kind: usize, bytes: &[u8]) -> Result<(), Errno> {
    let mut iov = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    ptrace(libc::PTRACE_SETREGSET, pid, kind, (&raw mut iov).cast())
}

/// The blocked signals; bit N-1 is signal N.
///
/// # Errors
/// `ESRCH` (not stopped).
pub fn signal_mask(pid: Pid) -> Result<u64, Errno> {
    let mut mask = 0_u64;
    ptrace(GETSIGMASK, pid, size_of::<u64>(), (&raw mut mask).cast())?;
    Ok(mask)
}

/// Sets the blocked signals.
///
/// # Errors
/// `ESRCH` (not stopped).
pub fn set_signal_mask(pid: Pid, mask: u64) -> Result<(), Errno> {
    ptrace(SETSIGMASK, pid, size_of::<u64>(), (&raw const mask).cast_mut().cast())
}

/// The rseq(2) registration: the address and size of its struct rseq, and its signature. None when there is none.
///
/// # Errors
/// `ESRCH` (not stopped), `EIO` or `EINVAL` (a kernel without rseq).
pub fn rseq(pid: Pid) -> Result<Option<(u64, u32, u32)>, Errno> {
    /// struct ptrace_rseq_configuration.
    #[repr(C)]
    #[derive(Default)]
    struct Configuration {
        address: u64,
        size: u32,
        signature: u32,
        flags: u32,
        pad: u32,
    }
    let mut found = Configuration::default();
    let room = size_of::<Configuration>();
    ptrace(GET_RSEQ_CONFIGURATION, pid, room, (&raw mut found).cast())?;
    Ok((found.address != 0).then_some((found.address, found.size, found.signature)))
}

/// The message of a `PTRACE_EVENT_*` stop: the new thread's id after a clone.
///
/// # Errors
/// `ESRCH` (not stopped).
pub fn event_message(pid: Pid) -> Result<u64, Errno> {
    let mut message: libc::c_ulong = 0;
    ptrace(libc::PTRACE_GETEVENTMSG, pid, 0, (&raw mut message).cast())?;
    Ok(message)
}

/// What [`wait`] has seen of a thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// It stopped because it was asked to, or with its group (job control): the signal is `SIGTRAP`, or the one that
    /// stopped the group.
    Stopped(libc::c_int),
    /// Another `PTRACE_EVENT_*`.
    Event(libc::c_int),
    /// It is about to enter, or has just left, a system call.
    Syscall,
    /// A signal is about to be delivered to it.
    Signal(libc::c_int),
    /// It has ended; the wait status.
    Ended(libc::c_int),
}

/// Waits for a change of `pid` (a thread, or -1 for any); None with `WNOHANG` in `flags` when there is none yet.
///
/// # Errors
/// `ECHILD` (neither a child nor a tracee).
pub fn wait(pid: Pid, flags: libc::c_int) -> Result<Option<(Pid, Change)>, Errno> {
    let mut status = 0;
    let seen = loop {
        // SAFETY: the status is written to a local of the right type.
        match Errno::result(unsafe { libc::waitpid(pid.as_raw(), &raw mut status, libc::__WALL | flags) }) {
            Err(Errno::EINTR) => {}
            other => break other?,
        }
    };
    if seen == 0 {
        return Ok(None);
    }
    let change = if !libc::WIFSTOPPED(status) {
        Change::Ended(status)
    } else {
        let signal = libc::WSTOPSIG(status);
        match (signal, status >> 16) {
            (signal, libc::PTRACE_EVENT_STOP) => Change::Stopped(signal),
            (_, event) if event != 0 => Change::Event(event),
            // PTRACE_O_TRACESYSGOOD sets this bit.
            (signal, _) if signal == libc::SIGTRAP | 0x80 => Change::Syscall,
            (signal, _) => Change::Signal(signal),
        }
    };
    Ok(Some((Pid::from_raw(seen), change)))
}

/// Waits until any child or tracee has ended, and tells which without taking note of it: [`wait`] does that.
///
/// # Errors
/// `ECHILD` (there is none).
pub fn next_end() -> Result<Pid, Errno> {
    let options = libc::WEXITED | libc::WNOWAIT | libc::__WALL;
    loop {
        // SAFETY: the structure is plain numbers, for which zero is a value.
        let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
        // SAFETY: the kernel writes one structure of this type.
        match Errno::result(unsafe { libc::waitid(libc::P_ALL, 0, &raw mut info, options) }) {
            Err(Errno::EINTR) => {}
            // SAFETY: waitid(2) fills in this member of the union.
            other => return other.map(|_| Pid::from_raw(unsafe { info.si_pid() })),
        }
    }
}

/// `PTRACE_O_SUSPEND_SECCOMP` of `linux/ptrace.h`: no filter looks at the thread's calls as long as it is traced.
pub const SUSPEND_SECCOMP: libc::c_int = 1 << 21;

//! Restartable sequences (rseq(2)): code that the kernel sends back to its start when the thread is disturbed in it.
//!
//! The kernel looks at the thread's instruction pointer whenever the thread goes back to user mode. While ckrun works in
//! the thread the pointer leads elsewhere, so the kernel takes the sequence for finished and forgets it. [`Rseq::abort`]
//! does beforehand what the kernel would have done.

use super::registers::hex;
use crate::program::Program;
use crate::sys::ptrace::{self, Registers};
use crate::{Doing, Failure};
use nix::errno::Errno;
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::os::unix::fs::FileExt;

/// `RSEQ_FLAG_UNREGISTER` of `linux/rseq.h`.
const UNREGISTER: u64 = 1;
/// The field `rseq_cs` of struct rseq: the address of the sequence that the thread is in.
const SEQUENCE: u64 = 8;

/// A thread's registration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Rseq {
    /// The address of its struct rseq.
    #[serde(with = "hex")]
    pub address: u64,
    /// Bytes of that struct.
    pub size: u32,
    /// The word that stands before every abort handler.
    pub signature: u32,
}

/// struct rseq_cs of `linux/rseq.h`, without the version and flags before these.
struct Sequence {
    start: u64,
    length: u64,
    abort: u64,
}

impl Rseq {
    /// The registration of a stopped thread; None when it has none.
    ///
    /// # Errors
    /// `ESRCH` when it has been killed, `EINVAL` when it belongs to a kernel without rseq.
    pub fn read(pid: Pid) -> Result<Option<Rseq>, Failure> {
        let found = ptrace::rseq(pid).doing(|| format!("read the rseq registration of thread {pid}"))?;
        Ok(found.map(|(address, size, signature)| Rseq { address, size, signature }))
    }

    /// Sends a thread that stopped inside a sequence to the sequence's abort handler, as the kernel does with every
    /// thread that was disturbed there. This must happen before anything else runs in the thread, and holds for the
    /// image as well as for the thread that goes on. The answer is whether `regs` were changed: then the thread must get
    /// them at once. That it still says to be in a sequence is of no meaning outside of one.
    pub fn abort(&self, memory: &File, regs: &mut Registers) -> bool {
        // Memory that can't be read is the program's own fault, and the kernel will deal with it.
        let Some(sequence) = self.sequence(memory) else { return false };
        let inside = regs.rip.wrapping_sub(sequence.start) < sequence.length;
        if inside {
            regs.rip = sequence.abort;
        }
        inside
    }

    fn sequence(&self, memory: &File) -> Option<Sequence> {
        let word =
            |bytes: &[u8], at: usize| Some(u64::from_ne_bytes(bytes.get(at..at + 8)?.try_into().ok()?));
        let mut address = [0; 8];
        memory.read_exact_at(&mut address, self.address.wrapping_add(SEQUENCE)).ok()?;
        let address = u64::from_ne_bytes(address);
        if address == 0 {
            return None;
        }
        let mut bytes = [0; 32];
        memory.read_exact_at(&mut bytes, address).ok()?;
        Some(Sequence { start: word(&bytes, 8)?, length: word(&bytes, 16)?, abort: word(&bytes, 24)? })
    }

    /// Adds the call that registers it for the thread that makes it.
    pub fn register(&self, program: &mut Program) {
        program.call("register rseq", libc::SYS_rseq, &self.args(0));
    }

    /// Adds the call that ends it: a child inherits its parent's, and the memory it lies in may go away.
    pub fn unregister(&self, program: &mut Program) {
        program.call("unregister rseq", libc::SYS_rseq, &self.args(UNREGISTER));
    }

    fn args(&self, flags: u64) -> [crate::program::Arg; 4] {
        [self.address.into(), self.size.into(), flags.into(), self.signature.into()]
    }

    /// What of a registration in an image no kernel would take.
    ///
    /// # Errors
    /// `EINVAL`.
    pub fn check(&self) -> Result<(), Errno> {
        // The first version of struct rseq is 32 bytes, aligned to that.
        if self.size >= 32 && self.address.is_multiple_of(32) { Ok(()) } else { Err(Errno::EINVAL) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::ptrace::Change;
    use std::fs::OpenOptions;

    std::arch::global_asm!(
        ".globl ckrun_test_rseq_start",
        "ckrun_test_rseq_start:",
        "  pause",
        "  jmp ckrun_test_rseq_start",
        ".globl ckrun_test_rseq_end",
        "ckrun_test_rseq_end:",
        // The handler stands behind the word that the C library registers (RSEQ_SIG of sys/rseq.h).
        ".long 0x53053053",
        ".globl ckrun_test_rseq_abort",
        "ckrun_test_rseq_abort:",
        "  mov edi, 7",
        "  mov eax, 60",
        "  syscall",
    );

    unsafe extern "C" {
        static ckrun_test_rseq_start: u8;
        static ckrun_test_rseq_end: u8;
        static ckrun_test_rseq_abort: u8;
        fn ckrun_test_rseq_start_call();
    }

    std::arch::global_asm!(
        ".globl ckrun_test_rseq_start_call",
        "ckrun_test_rseq_start_call:",
        "jmp ckrun_test_rseq_start"
    );

    #[test]
    fn a_thread_inside_a_sequence_goes_to_its_abort_handler() {
        // SAFETY: the child only runs the loop above, which touches no memory.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            // SAFETY: as above; it never returns.
            unsafe { ckrun_test_rseq_start_call() };
        }
        let (start, end) = (&raw const ckrun_test_rseq_start as u64, &raw const ckrun_test_rseq_end as u64);
        let inside = |regs: &Registers| regs.rip >= start && regs.rip < end;
        let pid = Pid::from_raw(pid);
        ptrace::seize(pid, libc::PTRACE_O_EXITKILL).unwrap();
        let mut regs = loop {
            ptrace::interrupt(pid).unwrap();
            assert_eq!(ptrace::wait(pid, 0).unwrap(), Some((pid, Change::Stopped(libc::SIGTRAP))));
            let regs = ptrace::registers(pid).unwrap();
            if inside(&regs) {
                break regs;
            }
            ptrace::resume(pid, 0).unwrap();
        };
        let rseq = Rseq::read(pid).unwrap().expect("the C library registers every thread (glibc 2.35)");
        assert_eq!((rseq.check(), rseq.signature), (Ok(()), 0x5305_3053));
        let memory = OpenOptions::new().read(true).write(true).open(format!("/proc/{pid}/mem")).unwrap();
        let untouched = regs;
        assert!(!rseq.abort(&memory, &mut regs));
        assert_eq!(regs, untouched);

        // On the stack of the child, where it does not run.
        let described = [0, start, end - start, &raw const ckrun_test_rseq_abort as u64];
        let bytes = described.map(u64::to_ne_bytes).concat();
        let place = (regs.rsp - 4096) & !31;
        memory.write_all_at(&bytes, place).unwrap();
        memory.write_all_at(&place.to_ne_bytes(), rseq.address + SEQUENCE).unwrap();
        assert!(rseq.abort(&memory, &mut regs));
        assert_eq!(regs.rip, &raw const ckrun_test_rseq_abort as u64);
        ptrace::set_registers(pid, &regs).unwrap();
        ptrace::resume(pid, 0).unwrap();
        assert_eq!(ptrace::wait(pid, 0).unwrap(), Some((pid, Change::Ended(7 << 8))));
    }
}

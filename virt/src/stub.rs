//! The machine code that runs inside a stopped task.
//!
//! - [`batch`] makes the calls of a [`Program`](crate::program::Program) and ends with a breakpoint.
//! - [`handler`] is what a breakpoint leads to when nobody traces the task any more, that is, when ckrun has been killed:
//!   it sends the task to the *way back*.
//! - [`way_back`] is made for one thread and one moment: it undoes what ckrun has changed and puts back every
//!   register, so that the thread goes on as if nothing had happened.
//!
//! All three are position independent and never touch the task's stack, its vector registers or its segment bases.

use crate::sys::ptrace::Registers;

std::arch::global_asm!(
    ".pushsection .rodata.ckrun_stub, \"a\", @progbits",
    ".macro ckrun_arg index, register",
    "  mov \\register, [rbx + 8 + 8 * \\index]",
    "  test r14b, 1 << \\index",
    "  jz 2f",
    "  mov \\register, [r13 + \\register]",
    "2:",
    "  test r15b, 1 << \\index",
    "  jz 3f",
    "  movsxd \\register, dword ptr [r13 + \\register]",
    "3:",
    ".endm",
    ".globl ckrun_stub_batch",
    "ckrun_stub_batch:",
    // rbx: the next record; r12: how many are left; r13: what references are relative to.
    "  test r12, r12",
    "  jz 9f",
    "  movzx r14d, byte ptr [rbx + 4]",
    "  movzx r15d, byte ptr [rbx + 5]",
    "  ckrun_arg 0, rdi",
    "  ckrun_arg 1, rsi",
    "  ckrun_arg 2, rdx",
    "  ckrun_arg 3, r10",
    "  ckrun_arg 4, r8",
    "  ckrun_arg 5, r9",
    "  mov eax, dword ptr [rbx]",
    ".globl ckrun_stub_syscall",
    "ckrun_stub_syscall:",
    "  syscall",
    "  mov [rbx + 56], rax",
    "  cmp rax, -4095",
    "  jb 8f",
    "  test byte ptr [rbx + 6], 1",
    "  jnz 9f",
    "8:",
    "  add rbx, 64",
    "  dec r12",
    "  jmp ckrun_stub_batch",
    "9:",
    "  int3",
    // Whoever comes here was let go by a tracer that has died.
    "  jmp [rip + ckrun_stub_way_back]",
    ".globl ckrun_stub_handler",
    "ckrun_stub_handler:",
    // A signal handler of three arguments: rdx is the ucontext. Its saved rip (gregs[REG_RIP]) is made the way back,
    // whose address the tracer has stored after this code; the return goes through the restorer.
    "  mov rax, [rip + ckrun_stub_way_back]",
    "  mov [rdx + 168], rax",
    "  ret",
    ".globl ckrun_stub_restorer",
    "ckrun_stub_restorer:",
    "  mov eax, 15",
    "  syscall",
    ".balign 8",
    "ckrun_stub_way_back:",
    "  .quad 0",
    ".globl ckrun_stub_end",
    "ckrun_stub_end:",
    ".purgem ckrun_arg",
    ".popsection",
);

unsafe extern "C" {
    static ckrun_stub_batch: u8;
    static ckrun_stub_syscall: u8;
    static ckrun_stub_handler: u8;
    static ckrun_stub_restorer: u8;
    static ckrun_stub_end: u8;
}

/// More bytes than any way back has.
pub(crate) const MAX_WAY_BACK: usize = 376;
/// The most bytes of an affinity that there is room for in a way back: 256 CPUs.
pub(crate) const MAX_AFFINITY: usize = 32;
/// More bytes than a visit needs for its code: a mark, the fixed part, and a way back for each of two threads.
pub(crate) const ROOM: u64 = 1024;

/// The fixed part: [`batch`] at offset 0, then [`handler`] and its restorer, then one word.
pub(crate) fn code() -> &'static [u8] {
    // SAFETY: both symbols bound one read-only object of this executable, in this order.
    unsafe {
        let start = &raw const ckrun_stub_batch;
        std::slice::from_raw_parts(start, (&raw const ckrun_stub_end).offset_from_unsigned(start))
    }
}

/// Where an instruction that makes a system call is in [`code`].
pub(crate) fn syscall() -> u64 {
    offset(&raw const ckrun_stub_syscall)
}

/// Where the handler is in [`code`].
pub(crate) fn handler() -> u64 {
    offset(&raw const ckrun_stub_handler)
}

/// Where the handler's restorer (sigaction(2)) is in [`code`].
pub(crate) fn restorer() -> u64 {
    offset(&raw const ckrun_stub_restorer)
}

/// Where, in [`code`], the handler looks for the address of the way back.
pub(crate) fn way_back_slot() -> u64 {
    offset(&raw const ckrun_stub_end) - 8
}

fn offset(symbol: *const u8) -> u64 {
    // SAFETY: a symbol inside or at the end of the object that `code` returns.
    unsafe { symbol.offset_from_unsigned(&raw const ckrun_stub_batch) as u64 }
}

/// The single calls of a way back that the tracer also makes by themselves, as offsets into it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Steps {
    /// Give SIGTRAP its former action.
    pub action: u64,
    /// Unmap the area.
    pub unmap: u64,
}

/// What the way back has to undo. Addresses are the task's.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Undo {
    /// ckrun's area and its length; the next one lies inside it.
    pub area: (u64, u64),
    /// The former action of SIGTRAP, a kernel sigaction.
    pub action: u64,
}

/// A thread as it was.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Former<'a> {
    /// Its CPUs, in [`MAX_AFFINITY`] bytes at most; none if they are to stay as they are.
    pub affinity: &'a [u8],
    /// Its blocked signals.
    pub mask: u64,
    pub regs: &'a Registers,
}

/// Code, for address `at`, that undoes what ckrun did, if there is anything but what is the thread's own, and makes the thread
/// what it was.
///
/// It looks at nothing outside itself once the area is gone; the flags are popped off the code. Only `mov` and `syscall` are
/// used after them, neither of which changes them.
pub(crate) fn way_back(at: u64, undo: Option<&Undo>, former: &Former<'_>) -> (Vec<u8>, Steps) {
    let mut code = Assembler::default();
    let mask = code.data(at, former, &former.regs.eflags.to_le_bytes());
    code.mov(RSP, mask + size_of::<u64>() as u64);
    code.bytes(&[0x9d]); // popfq
    let (mut action, mut unmap) = (0, 0);
    if let Some(undo) = undo {
        action = code.len();
        code.call(libc::SYS_rt_sigaction, &[libc::SIGTRAP as u64, undo.action, 0, 8]);
        unmap = code.len();
        code.call(libc::SYS_munmap, &[undo.area.0, undo.area.1]);
    }
    code.set_affinity(at, former);
    // From here on signals may arrive, and their frames belong onto the task's own stack.
    code.mov(RSP, former.regs.rsp);
    code.call(libc::SYS_rt_sigprocmask, &[libc::SIG_SETMASK as u64, mask, 0, 8]);
    code.return_to(former.regs);
    (code.0, Steps { action, unmap })
}

/// Code, for address `at`, that maps an area of `len` bytes, readable and writable. The tracer stops the task right after
/// the call. If it does not, it is dead: then the code unmaps the area again and makes the thread what it was.
pub(crate) fn map_or_go_back(at: u64, len: u64, former: &Former<'_>) -> Vec<u8> {
    let mut code = Assembler::default();
    let prot = (libc::PROT_READ | libc::PROT_WRITE) as u64;
    let flags = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as u64;
    let mask = code.data(at, former, &[]);
    code.call(libc::SYS_mmap, &[0, len, prot, flags, u64::MAX, 0]);
    code.bytes(&[0x48, 0x89, 0xc7]); // mov rdi, rax
    code.mov(RSI, len);
    code.mov(RAX, libc::SYS_munmap as u64);
    code.bytes(&[0x0f, 0x05]);
    code.set_affinity(at, former);
    code.call(libc::SYS_rt_sigprocmask, &[libc::SIG_SETMASK as u64, mask, 0, 8]);
    code.return_to(former.regs);
    code.0
}

/// Where an interrupted thread has to go on in user mode. The kernel restarts an interrupted call by itself when it
/// leaves a stop (`-ERESTART*`, `linux/errno.h`); on the way back this must be done by hand: by making the call again,
/// or by restart_syscall(2) for a call that goes on with its remaining time.
fn restarted(regs: &Registers) -> (u64, u64) {
    const ERESTARTSYS: i64 = -512;
    const ERESTARTNOINTR: i64 = -513;
    const ERESTARTNOHAND: i64 = -514;
    const ERESTART_RESTARTBLOCK: i64 = -516;
    if regs.orig_rax.cast_signed() < 0 {
        return (regs.rip, regs.rax);
    }
    match regs.rax.cast_signed() {
        ERESTARTSYS | ERESTARTNOINTR | ERESTARTNOHAND => (regs.rip - 2, regs.orig_rax),
        ERESTART_RESTARTBLOCK => (regs.rip - 2, libc::SYS_restart_syscall as u64),
        _ => (regs.rip, regs.rax),
    }
}

/// Register numbers of the instruction set.
const RAX: u8 = 0;
const RCX: u8 = 1;
const RDX: u8 = 2;
const RBX: u8 = 3;
const RSP: u8 = 4;
const RBP: u8 = 5;
const RSI: u8 = 6;
const RDI: u8 = 7;
/// The argument registers of a system call.
const ARGUMENTS: [u8; 6] = [RDI, RSI, RDX, 10, 8, 9];

#[derive(Default)]
struct Assembler(Vec<u8>);

impl Assembler {
    fn len(&self) -> u64 {
        self.0.len() as u64
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.0.extend(bytes);
    }

    /// `mov register, value`, by its shortest form: a 32-bit move clears the upper half.
    fn mov(&mut self, register: u8, value: u64) {
        let opcode = 0xb8 + (register & 7);
        match u32::try_from(value) {
            Ok(short) => {
                if register >= 8 {
                    self.0.push(0x41);
                }
                self.0.push(opcode);
                self.0.extend(short.to_le_bytes());
            }
            Err(_) => {
                self.0.extend([0x48 | (register >> 3), opcode]);
                self.0.extend(value.to_le_bytes());
            }
        }
    }

    /// What the code, at `at`, reads of itself, and a jump over it: CPUs, the signal mask, and `more`. The answer is the
    /// address of the mask.
    fn data(&mut self, at: u64, former: &Former<'_>, more: &[u8]) -> u64 {
        let data = [former.affinity, &former.mask.to_le_bytes(), more].concat();
        self.bytes(&[0xeb, data.len() as u8]); // jmp over it
        let start = at + self.len();
        self.bytes(&data);
        start + former.affinity.len() as u64
    }

    /// Gives the thread its CPUs again, which [`Assembler::data`] has put first.
    fn set_affinity(&mut self, at: u64, former: &Former<'_>) {
        if !former.affinity.is_empty() {
            self.call(libc::SYS_sched_setaffinity, &[0, former.affinity.len() as u64, at + 2]);
        }
    }

    fn call(&mut self, nr: libc::c_long, args: &[u64]) {
        for (register, arg) in ARGUMENTS.into_iter().zip(args) {
            self.mov(register, *arg);
        }
        self.mov(RAX, nr as u64);
        self.bytes(&[0x0f, 0x05]);
    }

    /// All registers but the flags, and a jump.
    fn return_to(&mut self, regs: &Registers) {
        let (rip, rax) = restarted(regs);
        let all = [
            (RSP, regs.rsp),
            (RAX, rax),
            (RCX, regs.rcx),
            (RDX, regs.rdx),
            (RBX, regs.rbx),
            (RBP, regs.rbp),
            (RSI, regs.rsi),
            (RDI, regs.rdi),
            (8, regs.r8),
            (9, regs.r9),
            (10, regs.r10),
            (11, regs.r11),
            (12, regs.r12),
            (13, regs.r13),
            (14, regs.r14),
            (15, regs.r15),
        ];
        for (register, value) in all {
            self.mov(register, value);
        }
        self.bytes(&[0xff, 0x25, 0, 0, 0, 0]); // jmp [rip + 0]
        self.0.extend(rip.to_le_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_room_for_the_longest_code() {
        const HIGH: u64 = u64::MAX >> 1;
        let undo = Undo { area: (HIGH, HIGH), action: HIGH };
        let regs = Registers {
            r15: HIGH,
            r14: HIGH,
            r13: HIGH,
            r12: HIGH,
            rbp: HIGH,
            rbx: HIGH,
            r11: HIGH,
            r10: HIGH,
            r9: HIGH,
            r8: HIGH,
            rax: HIGH,
            rcx: HIGH,
            rdx: HIGH,
            rsi: HIGH,
            rdi: HIGH,
            orig_rax: HIGH,
            rip: HIGH,
            cs: 0,
            eflags: HIGH,
            rsp: HIGH,
            ss: 0,
            fs_base: 0,
            gs_base: 0,
            ds: 0,
            es: 0,
            fs: 0,
            gs: 0,
        };
        let former = Former { affinity: &[255; MAX_AFFINITY], mask: HIGH, regs: &regs };
        let (longest, _) = way_back(HIGH - 1024, Some(&undo), &former);
        assert!(longest.len() <= MAX_WAY_BACK, "{} bytes", longest.len());
        assert!(map_or_go_back(HIGH - 1024, HIGH, &former).len() <= MAX_WAY_BACK);
        assert!((crate::vdso::MARK.len() + code().len() + 2 * MAX_WAY_BACK) as u64 <= ROOM);
    }
}

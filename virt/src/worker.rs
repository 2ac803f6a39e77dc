//! A stopped task that makes system calls for ckrun.

use crate::program::{Answers, Program};
use crate::sys::ptrace::{self, Registers};
use crate::tracee::Tracee;
use crate::{Doing, Failure, stub, sys};
use nix::errno::Errno;
use nix::unistd::Pid;
use rustix::process::{PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
use std::fs::{File, OpenOptions};
use std::io::IoSlice;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::FileExt;
use std::rc::Rc;
use std::sync::Arc;

/// The first page of the area is for whoever set it up.
pub(crate) const HEADER: u64 = 4096;
/// The end of the area is a stack: the kernel may have to store a signal frame with all vector state there, 11 KiB on
/// CPUs with AMX.
pub(crate) const STACK: u64 = 32 << 10;

/// What a task blocks while it works for ckrun, bit N-1 for signal N: all but the breakpoint's.
pub(crate) const ALL_BUT_TRAP: u64 = !(1 << (libc::SIGTRAP - 1));

/// A stopped task with the stub in it.
#[derive(Debug)]
pub struct Worker {
    pub(crate) tracee: Tracee,
    /// The batch code's address in the task.
    pub(crate) code: u64,
    /// Header, program, stack.
    pub(crate) area: Range<u64>,
    pub(crate) memory: Arc<File>,
    pub(crate) hatch: Option<Rc<Hatch>>,
}

/// A socket pair through which ckrun hands descriptors to tasks.
#[derive(Debug)]
pub struct Hatch {
    /// ckrun's end.
    pub here: OwnedFd,
    /// The number of the other end in every task.
    pub there: RawFd,
}

/// Opens `/proc/PID/mem` for reading and writing.
pub(crate) fn open_memory(pid: Pid) -> Result<File, Failure> {
    let path = format!("/proc/{pid}/mem");
    OpenOptions::new().read(true).write(true).open(&path).doing(|| format!("open {path}"))
}

impl Worker {
    /// Runs `program` in the task, which is stopped again afterwards.
    ///
    /// # Errors
    /// The first failed call of the program by its name; `E2BIG` when the program does not fit into the area; `ESRCH`
    /// when the task has been killed.
    pub fn run(&mut self, program: &Program) -> Result<Answers, Failure> {
        if program.is_empty() {
            return program.decode(Vec::new());
        }
        self.put(&self.load(program)?)?;
        self.tracee.run_to_trap()?;
        self.unload(program)
    }

    /// Runs `program` in the task until one of its calls sleeps; then does `look` and interrupts the call. None when that
    /// was so, else what the program has answered, which ended.
    ///
    /// # Errors
    /// As [`Worker::run`].
    pub fn doze(&mut self, program: &Program, look: &mut dyn FnMut()) -> Result<Option<Answers>, Failure> {
        self.put(&self.load(program)?)?;
        let slept = self.tracee.run_to_sleep(look)?;
        if slept { Ok(None) } else { self.unload(program).map(Some) }
    }

    /// Gives the thread registers with which it works for ckrun.
    pub(crate) fn put(&self, regs: &Registers) -> Result<(), Failure> {
        ptrace::set_registers(self.host(), regs).doing(|| format!("work in thread {}", self.host()))
    }

    /// Writes the program into the area; the answer is the registers to start it with.
    pub(crate) fn load(&self, program: &Program) -> Result<Registers, Failure> {
        let base = self.area.start + HEADER;
        self.check_room(program.size())?;
        self.write(base, &program.encode(base))?;
        Ok(self.registers(base, program))
    }

    /// Bytes that there are for programs.
    pub(crate) fn room(&self) -> u64 {
        self.area.end - STACK - self.area.start - HEADER
    }

    pub(crate) fn check_room(&self, bytes: usize) -> Result<(), Failure> {
        let what = || format!("a program of {bytes} bytes for a task");
        if bytes as u64 <= self.room() { Ok(()) } else { Err(Failure::new(what(), Errno::E2BIG)) }
    }

    /// The registers to start a program with that is at `base`.
    pub(crate) fn registers(&self, base: u64, program: &Program) -> Registers {
        let mut regs = self.tracee.regs;
        regs.rip = self.code;
        regs.rbx = base;
        regs.r12 = program.len() as u64;
        regs.r13 = base;
        regs.rsp = self.area.end - 128;
        // Not in a system call, so there is none to restart; no single steps, no reversed strings.
        regs.orig_rax = u64::MAX;
        regs.eflags = 0x202;
        regs
    }

    /// Reads what a program that has run has left.
    pub(crate) fn unload(&self, program: &Program) -> Result<Answers, Failure> {
        let mut bytes = vec![0; program.size()];
        self.read(self.area.start + HEADER, &mut bytes)?;
        program.decode(bytes)
    }

    /// Runs a few instructions that end with a breakpoint (`0xcc`), with `rbx` pointing to `data`.
    ///
    /// # Errors
    /// `ESRCH`, `EFAULT` (another signal than the breakpoint's).
    pub fn run_code(&mut self, code: &[u8], data: &[u8]) -> Result<(), Failure> {
        let at = self.code + crate::stub::code().len() as u64;
        self.write(at, code)?;
        self.write(self.area.start + HEADER, data)?;
        let mut regs = self.load(&Program::new())?;
        regs.rip = at;
        self.put(&regs)?;
        self.tracee.run_to_trap()
    }

    /// Its thread id in ckrun's pid namespace.
    pub fn host(&self) -> Pid {
        self.tracee.pid()
    }

    /// `/proc/PID/mem`: also pages that the task itself may not write can be written through it, if they are private.
    pub fn memory(&self) -> &File {
        &self.memory
    }

    /// ckrun's own mappings in the task: not to be stored, and not to be unmapped.
    pub fn stub_range(&self) -> Range<u64> {
        self.area.start.min(self.code)..self.area.end
    }

    /// Reads the task's memory.
    ///
    /// # Errors
    /// `EIO` where nothing is mapped.
    pub fn read(&self, address: u64, bytes: &mut [u8]) -> Result<(), Failure> {
        let what = || format!("read memory of process {} at {address:#x}", self.host());
        self.memory.read_exact_at(bytes, address).doing(what)
    }

    /// Writes the task's memory.
    ///
    /// # Errors
    /// `EIO` where nothing is mapped, or a shared mapping is read-only.
    pub fn write(&self, address: u64, bytes: &[u8]) -> Result<(), Failure> {
        let what = || format!("write memory of process {} at {address:#x}", self.host());
        self.memory.write_all_at(bytes, address).doing(what)
    }

    /// A duplicate of the task's descriptor `remote`.
    ///
    /// # Errors
    /// `EBADF`.
    pub fn pidfd_getfd(&self, remote: RawFd) -> Result<OwnedFd, Failure> {
        let what = || format!("take descriptor {remote} of process {}", self.host());
        let Some(pid) = rustix::process::Pid::from_raw(self.host().as_raw()) else {
            return Err(Failure::new(what(), Errno::ESRCH));
        };
        let process = pidfd_open(pid, PidfdFlags::empty()).doing(what)?;
        pidfd_getfd(process.as_fd(), remote, PidfdGetfdFlags::empty()).doing(what)
    }

    /// Hands a descriptor to the task; the answer is its number there. It is close-on-exec.
    ///
    /// # Errors
    /// `EMFILE`, and `ENOTCONN` for a task of a running job, which has no hatch.
    pub fn give(&mut self, fd: BorrowedFd<'_>) -> Result<RawFd, Failure> {
        let what = || format!("hand a descriptor to process {}", self.host());
        let hatch = self.hatch.clone().ok_or_else(|| Failure::new(what(), Errno::ENOTCONN))?;
        let rights = [nix::sys::socket::ControlMessage::ScmRights(&[fd.as_raw_fd()])];
        let flags = nix::sys::socket::MsgFlags::empty();
        nix::sys::socket::sendmsg::<()>(hatch.here.as_raw_fd(), &[IoSlice::new(&[0])], &rights, flags, None)
            .doing(what)?;
        // The layouts are those of recvmsg(2) and cmsg(3) for 64 bits.
        let mut program = Program::new();
        let (header, iov) = (program.room(size_of::<libc::msghdr>()), program.room(16));
        let (byte, control) = (program.room(1), program.room(24));
        program.link(header, std::mem::offset_of!(libc::msghdr, msg_iov), iov);
        program.fill(header, std::mem::offset_of!(libc::msghdr, msg_iovlen), &1_u64.to_ne_bytes());
        program.link(header, std::mem::offset_of!(libc::msghdr, msg_control), control);
        program.fill(header, std::mem::offset_of!(libc::msghdr, msg_controllen), &24_u64.to_ne_bytes());
        program.link(iov, 0, byte);
        program.fill(iov, 8, &1_u64.to_ne_bytes());
        program.call(
            "receive a descriptor",
            libc::SYS_recvmsg,
            &[hatch.there.into(), header.into(), libc::MSG_CMSG_CLOEXEC.into()],
        );
        let answers = self.run(&program)?;
        // struct cmsghdr is 16 bytes; the first descriptor follows.
        Ok(answers.u32(control, 16).cast_signed())
    }

    /// Makes one call by the `syscall` instruction at `instruction`, outside the stub.
    pub(crate) fn single(&self, instruction: u64, nr: libc::c_long, args: &[u64]) -> Result<i64, Failure> {
        self.put(&self.before(instruction, nr, args))?;
        let result = self.tracee.run_to_syscall()?;
        self.succeeded(nr, result)
    }

    /// Unmaps ckrun's area by an instruction in it: the task is in an event stop right after the call, before it would look
    /// for the next one.
    ///
    /// [`Worker::end_unmap`] ends this, after [`Tracee::interrupt_call`].
    pub(crate) fn start_unmap(&self) -> Result<(), Failure> {
        let (range, instruction) = (self.stub_range(), self.code + stub::syscall());
        let args = [range.start, range.end - range.start];
        self.put(&self.before(instruction, libc::SYS_munmap, &args))?;
        self.tracee.start_call()
    }

    /// Ends what [`Worker::start_unmap`] has begun.
    pub(crate) fn end_unmap(&self) -> Result<(), Failure> {
        self.tracee.end_call().and_then(|result| self.succeeded(libc::SYS_munmap, result)).map(drop)
    }

    /// The registers of a task that is about to make a call.
    fn before(&self, instruction: u64, nr: libc::c_long, args: &[u64]) -> Registers {
        let mut regs = self.tracee.regs;
        regs.rip = instruction;
        regs.rax = nr as u64;
        regs.orig_rax = u64::MAX;
        let slots = [&mut regs.rdi, &mut regs.rsi, &mut regs.rdx, &mut regs.r10, &mut regs.r8, &mut regs.r9];
        for (slot, arg) in slots.into_iter().zip(args) {
            *slot = *arg;
        }
        regs
    }

    fn succeeded(&self, nr: libc::c_long, result: i64) -> Result<i64, Failure> {
        let what = || format!("make call {nr} in process {}", self.host());
        if (-4095..0).contains(&result) {
            return Err(Failure::new(what(), Errno::from_raw(-result as i32)));
        }
        Ok(result)
    }

    /// Puts ckrun and the task onto one CPU: waking a task on another one that sleeps costs ten times as much. A task
    /// with a deadline (`SCHED_DEADLINE`), which must be free to run on all of its CPUs (`EBUSY`), stays where it is, and
    /// so does one whose cpuset forbids this one (`EINVAL`).
    pub(crate) fn pin(pid: Pid, cpu: usize) -> Result<(), Failure> {
        match sys::pin(pid, cpu) {
            Err(Errno::EBUSY | Errno::EINVAL) => Ok(()),
            pinned => pinned.doing(|| format!("pin thread {pid} to CPU {cpu}")),
        }
    }

    /// All signals but the breakpoint's wait while the task works for ckrun.
    pub(crate) fn block_signals(&self) -> Result<(), Failure> {
        ptrace::set_signal_mask(self.host(), ALL_BUT_TRAP)
            .doing(|| format!("block signals of thread {}", self.host()))
    }
}

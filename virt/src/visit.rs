//! ckrun inside a process of a running job.
//!
//! The process must come out of it unchanged, also when ckrun is killed at any point of the visit. So at every moment
//! the stopped thread's registers point to code that, let go, leads back: the code itself lies in the zeroes that fill
//! up the last page of the process's vDSO (a private page, of which a write through `/proc/PID/mem` makes a copy), the
//! breakpoint at the end of a batch has a handler that leads to the way back, and the changes that the kernel keeps (the
//! signal mask, the CPU affinity, the action of SIGTRAP, one mapping) are undone by it. Only one thread at a time is
//! inside.

use crate::program::{Answers, Program};
use crate::signals::Action;
use crate::stub::{self, MAX_WAY_BACK, Steps, Undo};
use crate::sys::ptrace;
use crate::tracee::Tracee;
use crate::vdso;
use crate::worker::{HEADER, Worker, open_memory};
use crate::{Doing, Failure, sys};
use nix::errno::Errno;
use nix::unistd::Pid;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

/// Room for a program of about 1,500 calls. It is never touched beyond what a program needs.
const AREA: u64 = 160 << 10;
/// Offsets in the header. What belongs to one thread is at its end, so that it is written together with a program.
const ACTION: u64 = 0;
const NEW_ACTION: u64 = 32;
/// The top of a stack of a few words, for the way back.
const STACK: u64 = 2048;

/// A visit to one process.
#[derive(Debug)]
pub struct Visit {
    worker: Worker,
    leader: Tracee,
    /// Where the way back lies.
    way_back: u64,
    cpu: usize,
    inside: bool,
}

impl Visit {
    /// Enters the process that `leader` leads. `cpu` is the CPU that ckrun is pinned to.
    ///
    /// # Errors
    /// The process has no vDSO of this kernel, is not allowed to map memory, or has been killed.
    pub fn enter(leader: &Tracee, cpu: usize) -> Result<Visit, Failure> {
        let pid = leader.pid();
        let memory = Arc::new(open_memory(pid)?);
        let (_, room) = vdso::foothold(pid, &memory)?;
        let fixed = stub::code().len() as u64;
        let worker = Worker { tracee: leader.clone(), code: room.start, area: 0..0, memory, hatch: None };
        let way_back = worker.code + fixed;
        let mut visit = Visit { worker, leader: leader.clone(), way_back, cpu, inside: false };

        // One call maps the area.
        let code = stub::map_or_go_back(visit.worker.code, AREA, leader.mask, &leader.regs);
        visit.check_room(&code, room.end)?;
        visit.worker.write(visit.worker.code, &code)?;
        let mut regs = leader.regs;
        regs.rip = visit.worker.code;
        regs.orig_rax = u64::MAX;
        let what = || format!("map memory in thread {pid}");
        ptrace::set_registers(pid, &regs).doing(what)?;
        visit.worker.block_signals()?;
        let address = leader.run_to_syscall();
        leader.settle()?;
        ptrace::set_signal_mask(pid, leader.mask).doing(what)?;
        ptrace::set_registers(pid, &leader.regs).doing(what)?;
        let start = match address? {
            e @ -4095..0 => {
                return Err(Failure::new("map memory in the process", Errno::from_raw(-e as i32)));
            }
            address => address.cast_unsigned(),
        };
        visit.worker.area = start..start + AREA;
        visit.inside = true;

        // The rest of the code, and the handler that leads out.
        visit.worker.write(visit.worker.code, stub::code())?;
        visit.worker.write(visit.worker.code + stub::way_back_slot(), &way_back.to_ne_bytes())?;
        let flags = (libc::SA_SIGINFO | libc::SA_NODEFER) as u64 | SA_RESTORER;
        let code = visit.worker.code;
        let action = [code + stub::handler(), flags, code + stub::restorer(), u64::MAX];
        visit.worker.write(start + NEW_ACTION, &action.map(u64::to_ne_bytes).concat())?;
        let mut program = Program::new();
        program.call(
            "set the action of SIGTRAP",
            libc::SYS_rt_sigaction,
            &[libc::SIGTRAP.into(), (start + NEW_ACTION).into(), (start + ACTION).into(), 8_u64.into()],
        );
        visit.run(leader, &program)?;
        Ok(visit)
    }

    /// Runs `program` in `thread` of this process.
    ///
    /// # Errors
    /// As [`Worker::run`].
    pub fn run(&mut self, thread: &Tracee, program: &Program) -> Result<Answers, Failure> {
        if program.is_empty() {
            return program.decode(Vec::new());
        }
        self.work(thread, program, || thread.run_to_trap().map(|()| true))?
            .ok_or_else(|| Failure::new(format!("work in thread {}", thread.pid()), Errno::EINTR))
    }

    /// Runs `program` in `thread` until one of its calls sleeps; then does `look` and interrupts the call. None when that
    /// was so, else what the program has answered, which ended.
    ///
    /// # Errors
    /// As [`Worker::run`].
    pub fn doze(
        &mut self,
        thread: &Tracee,
        program: &Program,
        look: &mut dyn FnMut(),
    ) -> Result<Option<Answers>, Failure> {
        self.work(thread, program, || thread.run_to_sleep(look).map(|slept| !slept))
    }

    /// Begins the one call of `program` in `thread` and interrupts it, see [`Worker::begin`].
    ///
    /// # Errors
    /// As [`Worker::run`].
    pub fn begin(&mut self, thread: &Tracee, program: &Program) -> Result<i64, Failure> {
        let mut result = 0;
        self.work(thread, program, || thread.begin_call().map(|r| result = r).map(|()| false))?;
        Ok(result)
    }

    fn work(
        &mut self,
        thread: &Tracee,
        program: &Program,
        run: impl FnOnce() -> Result<bool, Failure>,
    ) -> Result<Option<Answers>, Failure> {
        let pid = thread.pid();
        let what = || format!("work in thread {pid}");
        self.worker.tracee = thread.clone();
        let affinity = sys::affinity(pid).doing(what)?;
        let (before, _) = self.prepare_way_back(thread, &affinity)?;
        let regs = self.worker.load_behind(&before, program)?;
        // First the registers: from then on a thread that is let go finds its way back, and with it its mask and CPUs.
        ptrace::set_registers(pid, &regs).doing(what)?;
        self.worker.block_signals()?;
        Worker::pin(pid, self.cpu)?;
        let ended = run();
        let answers = ended.and_then(|ended| ended.then(|| self.worker.unload(program)).transpose());
        self.come_out(thread, &affinity)?;
        answers
    }

    /// What the process does about SIGTRAP, but for the time of the visit.
    ///
    /// # Errors
    /// `EIO` when the process has been killed.
    pub fn trap_action(&self) -> Result<Action, Failure> {
        let mut bytes = [0; 32];
        self.worker.read(self.worker.area.start + ACTION, &mut bytes)?;
        Ok(Action::from_bytes(&bytes))
    }

    /// Leaves the process as it was found, its leader in an event stop.
    ///
    /// # Errors
    /// `ESRCH` when it has been killed.
    pub fn leave(mut self) -> Result<(), Failure> {
        self.go()
    }

    fn go(&mut self) -> Result<(), Failure> {
        if !std::mem::take(&mut self.inside) {
            return Ok(());
        }
        let leader = self.leader.clone();
        let what = || format!("leave thread {}", leader.pid());
        let affinity = sys::affinity(leader.pid()).doing(what)?;
        let (before, steps) = self.prepare_way_back(&leader, &affinity)?;
        self.worker.tracee = leader.clone();
        let mut regs = self.worker.load_behind(&before, &Program::new())?;
        regs.rip = self.way_back + steps.action;
        ptrace::set_registers(leader.pid(), &regs).doing(what)?;
        self.worker.block_signals()?;
        Worker::pin(leader.pid(), self.cpu)?;
        leader.run_to_syscall()?;
        regs.rip = self.way_back + steps.unmap;
        ptrace::set_registers(leader.pid(), &regs).doing(what)?;
        leader.run_to_syscall()?;
        self.come_out(&leader, &affinity)?;
        self.worker.write(self.worker.code, &self.residue())
    }

    fn residue(&self) -> Vec<u8> {
        vec![0; (self.way_back - self.worker.code) as usize + MAX_WAY_BACK]
    }

    /// Takes the code of this visit out of `copy`, which has just been forked from the process. Nobody looks for it in a
    /// vDSO, which is never stored; but of a process without one it is in a page that is.
    ///
    /// # Errors
    /// `ESRCH` when the copy has been killed.
    pub fn wipe(&self, copy: Pid) -> Result<(), Failure> {
        let what = || format!("clean the copy {copy}");
        open_memory(copy)?.write_all_at(&self.residue(), self.worker.code).doing(what)
    }

    /// Back into an event stop with the thread's own registers. They come last: until then the way back is still needed.
    fn come_out(&self, thread: &Tracee, affinity: &[u8]) -> Result<(), Failure> {
        let what = || format!("reset thread {}", thread.pid());
        thread.settle()?;
        sys::set_affinity(thread.pid(), affinity).doing(what)?;
        ptrace::set_signal_mask(thread.pid(), thread.mask).doing(what)?;
        ptrace::set_registers(thread.pid(), &thread.regs).doing(what)
    }

    /// Writes the way back of `thread`. What it looks at is still to be written, right before the program.
    fn prepare_way_back(&self, thread: &Tracee, affinity: &[u8]) -> Result<(Vec<u8>, Steps), Failure> {
        let area = &self.worker.area;
        let data = [&thread.mask.to_ne_bytes(), affinity].concat();
        let mask = area.start + HEADER - data.len() as u64;
        let undo = Undo {
            area: (area.start, area.end - area.start),
            action: area.start + ACTION,
            mask,
            affinity: (mask + size_of::<u64>() as u64, affinity.len() as u64),
            stack: area.start + STACK,
        };
        let (code, steps) = stub::way_back(&undo, &thread.regs);
        self.worker.write(self.way_back, &code)?;
        Ok((data, steps))
    }

    fn check_room(&self, map: &[u8], end: u64) -> Result<(), Failure> {
        let need = map.len().max(MAX_WAY_BACK) as u64;
        if self.way_back + need <= end {
            return Ok(());
        }
        Err(Failure::new("find room in the vDSO of the process", Errno::ENOSPC))
    }

    /// The one mapping of ckrun's in the process. The code of a visit is no mapping: it lies in the padding of the vDSO,
    /// anywhere below or above.
    pub fn area(&self) -> Range<u64> {
        self.worker.area.clone()
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        if let Err(e) = self.go() {
            log::warn!("{e}");
        }
    }
}

/// Not in libc: `SA_RESTORER` of `asm/signal.h`.
const SA_RESTORER: u64 = 0x0400_0000;

/// The number of the CPU that ckrun runs on; it stays there.
///
/// # Errors
/// The kernel's.
pub fn stay_on_this_cpu() -> Result<usize, Failure> {
    let cpu = nix::sched::sched_getcpu().doing(|| "ask for the number of this CPU")?;
    Worker::pin(Pid::from_raw(0), cpu)?;
    Ok(cpu)
}

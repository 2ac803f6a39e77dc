//! ckrun inside a process of a running job.
//!
//! The process must come out of it unchanged, also when ckrun is killed at any point of the visit. So from the first moment
//! to the last one thread of the process is *on duty*: let go, it comes by itself to its *way back*, code that undoes what
//! ckrun has changed (the one mapping, the action of SIGTRAP, that thread's signal mask and CPU affinity) and puts back its
//! registers. Its signals are blocked all that time, between two programs as well.
//!
//! The code lies in the zeroes that fill up the last page of the process's vDSO (a private page, of which a write through
//! `/proc/PID/mem` makes a copy). There is room for two ways back: when another thread goes on duty, both stand at theirs
//! for a moment, and a single write takes the undoing from the one and gives it to the other. The breakpoint at the end of a
//! program has a handler that leads to the way back of the thread on duty.

mod duty;
mod lifted;
mod relay;

pub(crate) use self::lifted::{Lifted, blocker};

use self::duty::Duty;
use crate::cpu::sleep::ERESTART_RESTARTBLOCK;
use crate::program::{Answers, Program, RECORD};
use crate::signals::Action;
use crate::stub::{self, Steps, Undo};
use crate::sys::ptrace::{self, Registers};
use crate::tracee::Tracee;
use crate::vdso;
use crate::worker::{HEADER, Worker, open_memory};
use crate::{Doing, Failure, listing, proc};
use nix::errno::Errno;
use nix::unistd::Pid;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

/// Room for a program of about 1,500 calls. It is never touched beyond what a program needs.
pub(crate) const AREA: u64 = 160 << 10;
/// Offsets in the header.
const ACTION: u64 = 0;
const NEW_ACTION: u64 = 32;

/// A visit to one process.
#[derive(Debug)]
pub struct Visit {
    worker: Worker,
    duty: Duty,
    cpu: usize,
    inside: bool,
    /// A breakpoint leads to the way back. Until then the leader, on duty, stands where it would unmap the area.
    armed: bool,
}

impl Visit {
    /// Enters the process that `leader` leads. `cpu` is the CPU that ckrun is pinned to.
    ///
    /// # Errors
    /// The process has no vDSO of this kernel, is not allowed to map memory, or has been killed; `EAGAIN` when one of its
    /// threads is still on its way back from a ckrun that was killed.
    pub fn enter(leader: &Tracee, cpu: usize) -> Result<Visit, Failure> {
        let pid = leader.pid();
        let memory = Arc::new(open_memory(pid)?);
        let (_, room) = vdso::foothold(pid, &memory)?;
        if room.end - room.start < stub::ROOM {
            return Err(Failure::new("find room in the vDSO of the process", Errno::ENOSPC));
        }
        let mut first = [0; vdso::MARK.len()];
        memory.read_exact_at(&mut first, room.start).doing(|| format!("read the vDSO of process {pid}"))?;
        if first == vdso::MARK {
            nobody_in(pid, &room)?;
        }
        let code = room.start + vdso::MARK.len() as u64;
        let worker = Worker { tracee: leader.clone(), code, area: 0..0, memory, hatch: None };
        let duty = Duty::new(leader, 0)?;
        let mut visit = Visit { worker, duty, cpu, inside: false, armed: false };
        let start = match visit.map_area() {
            Err(e) if [Errno::ENOMEM, Errno::EAGAIN].contains(&e.errno) => {
                let _lifted = Lifted::memory(pid).map_err(|_| e)?;
                visit.map_area()?
            }
            mapped => mapped?,
        };
        visit.worker.area = start..start + AREA;

        // From its first program on the leader is on the way back that is written here.
        let code = visit.worker.code;
        let flags = (libc::SA_SIGINFO | libc::SA_NODEFER) as u64 | SA_RESTORER;
        let action = [code + stub::handler(), flags, code + stub::restorer(), u64::MAX];
        visit.worker.write(start + NEW_ACTION, &action.map(u64::to_ne_bytes).concat())?;
        let (ways, _) = visit.ways(None);
        let fixed = &stub::code()[..stub::way_back_slot() as usize];
        visit.worker.write(code, &[fixed, &ways].concat())?;
        visit.inside = true;
        Ok(visit)
    }

    /// Maps the area by code in the place of the second way back, which unmaps it again if the leader, now right behind the
    /// call, is let go.
    fn map_area(&self) -> Result<u64, Failure> {
        let leader = &self.duty.thread;
        let pid = leader.pid();
        let what = || format!("map memory in thread {pid}");
        let at = self.way_back(1);
        let code = stub::map_or_go_back(at, AREA, &self.duty.former());
        let before = vec![0; (at - self.room() - vdso::MARK.len() as u64) as usize];
        self.worker.write(self.room(), &[&vdso::MARK[..], &before, &code].concat())?;
        ptrace::set_registers(pid, &standing(leader, at)).doing(what)?;
        self.worker.block_signals()?;
        self.duty.pin(self.cpu)?;
        match leader.run_to_syscall()? {
            error @ -4095..0 => {
                leader.settle()?;
                self.duty.come_out()?;
                Err(Failure::new("map memory in the process", Errno::from_raw(-error as i32)))
            }
            address => Ok(address.cast_unsigned()),
        }
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
        // Not before that call.
        self.arm()?;
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
        self.put_on_duty(thread)?;
        self.load(program)?;
        match run() {
            Ok(true) => {
                self.rest()?;
                let mut bytes = vec![0; program.size()];
                self.worker.read(self.program(), &mut bytes)?;
                program.decode(bytes).map(Some)
            }
            // It is not at the breakpoint.
            other => {
                self.stand()?;
                other.map(|_| None)
            }
        }
    }

    /// Where programs are. The record before is for the call by which the visit is armed.
    fn program(&self) -> u64 {
        self.worker.area.start + HEADER + RECORD as u64
    }

    /// Puts the thread on duty at the beginning of `program`; at its first one it sets the action of SIGTRAP before.
    fn load(&mut self, program: &Program) -> Result<(), Failure> {
        let base = self.program();
        self.worker.check_room(RECORD + program.size())?;
        let mut regs = self.worker.registers(base, program);
        if self.armed {
            self.worker.write(base, &program.encode(base))?;
            return self.worker.put(&regs);
        }
        let mut arm = Program::new();
        let start = self.worker.area.start;
        arm.call(
            "set the action of SIGTRAP",
            libc::SYS_rt_sigaction,
            &[libc::SIGTRAP.into(), (start + NEW_ACTION).into(), (start + ACTION).into(), 8_u64.into()],
        );
        regs.rbx -= RECORD as u64;
        regs.r12 += 1;
        self.worker.write(regs.rbx, &[arm.encode(regs.rbx), program.encode(base)].concat())?;
        self.armed = true;
        self.worker.put(&regs)
    }

    /// Makes the breakpoint lead to the way back, if it does not yet. The leader is on duty then.
    fn arm(&mut self) -> Result<(), Failure> {
        if self.armed {
            return Ok(());
        }
        let leader = self.duty.thread.clone();
        self.work(&leader, &Program::new(), || leader.run_to_trap().map(|()| true)).map(drop)
    }

    /// Makes the thread, at the breakpoint, find its way back from there. The handler's return makes the kernel forget how a
    /// call goes on that has a record of its own (restart_syscall(2)), so that a thread in such a call must not need it.
    fn rest(&self) -> Result<(), Failure> {
        match self.duty.thread.regs.rax.cast_signed() {
            ERESTART_RESTARTBLOCK => self.stand(),
            _ => Ok(()),
        }
    }

    /// Puts `thread` on duty, and the one that was lets go of ckrun.
    fn put_on_duty(&mut self, thread: &Tracee) -> Result<(), Failure> {
        if self.duty.thread.pid() == thread.pid() {
            return Ok(());
        }
        self.arm()?;
        self.stand()?;
        self.take_over(thread)?.map_or(Ok(()), |former| former.come_out())
    }

    /// Puts `thread` on duty. The one that was stands, or is about to stop, at its way back; it is to come out yet.
    fn take_over(&mut self, thread: &Tracee) -> Result<Option<Duty>, Failure> {
        if self.duty.thread.pid() == thread.pid() {
            return Ok(None);
        }
        let next = Duty::new(thread, 1 - self.duty.slot)?;
        self.write_ways(Some(&next))?;
        let former = std::mem::replace(&mut self.duty, next);
        let next = &self.duty;
        self.worker.tracee = thread.clone();
        self.worker.put(&standing(thread, self.way_back(next.slot)))?;
        self.worker.block_signals()?;
        next.pin(self.cpu)?;
        // Both are at their ways back.
        self.write_ways(Some(&former))?;
        Ok(Some(former))
    }

    /// Makes the thread on duty stand at its way back, with no signal on its way to it: the breakpoint's would take it there
    /// by the handler.
    fn stand(&self) -> Result<(), Failure> {
        self.begin_to_stand()?;
        self.duty.thread.settled()
    }

    fn begin_to_stand(&self) -> Result<(), Failure> {
        self.worker.put(&standing(&self.duty.thread, self.way_back(self.duty.slot)))?;
        self.duty.thread.begin_to_settle()
    }

    /// What the process does about SIGTRAP, but for the time of the visit.
    ///
    /// # Errors
    /// `EIO` when the process has been killed.
    pub fn trap_action(&mut self) -> Result<Action, Failure> {
        self.arm()?;
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
        let thread = &self.duty.thread;
        let (_, steps) = self.ways(None);
        let way_back = self.way_back(self.duty.slot);
        if self.armed {
            self.worker.put(&standing(thread, way_back + steps.action))?;
            thread.run_to_syscall()?;
        }
        self.worker.put(&standing(thread, way_back + steps.unmap))?;
        thread.begin_call()?;
        self.duty.come_out()?;
        self.worker.write(self.room(), &[0; stub::ROOM as usize])
    }

    /// Where the code begins, with a mark by which the next ckrun knows it if this one is killed.
    fn room(&self) -> u64 {
        self.worker.code - vdso::MARK.len() as u64
    }

    /// Takes the code of this visit out of `copy`, which has just been forked from the process. Nobody looks for it in a
    /// vDSO, which is never stored; but of a process without one it is in a page that is.
    ///
    /// # Errors
    /// `ESRCH` when the copy has been killed.
    pub fn wipe(&self, copy: Pid) -> Result<(), Failure> {
        let what = || format!("clean the copy {copy}");
        open_memory(copy)?.write_all_at(&[0; stub::ROOM as usize], self.room()).doing(what)
    }

    /// The address of a way back. Both follow the fixed code.
    fn way_back(&self, slot: u64) -> u64 {
        self.worker.code + stub::code().len() as u64 + slot * stub::MAX_WAY_BACK as u64
    }

    /// Which way back the handler leads to, and both of them: the one that undoes everything, and that of a thread which
    /// is about to take its place, or has just left it.
    fn ways(&self, other: Option<&Duty>) -> (Vec<u8>, Steps) {
        let (area, duty) = (&self.worker.area, &self.duty);
        let undo = Undo { area: (area.start, area.end - area.start), action: area.start + ACTION };
        let at = self.way_back(duty.slot);
        let (whole, steps) = stub::way_back(at, Some(&undo), &duty.former());
        let mut bytes = at.to_ne_bytes().to_vec();
        let mut put = |slot: u64, code: &[u8]| {
            let start = size_of::<u64>() + slot as usize * stub::MAX_WAY_BACK;
            bytes.resize(bytes.len().max(start + code.len()), 0);
            bytes[start..start + code.len()].copy_from_slice(code);
        };
        put(duty.slot, &whole);
        if let Some(other) = other {
            put(other.slot, &stub::way_back(self.way_back(other.slot), None, &other.former()).0);
        }
        (bytes, steps)
    }

    /// All of it by one write, which a signal does not interrupt within a page.
    fn write_ways(&self, other: Option<&Duty>) -> Result<(), Failure> {
        self.worker.write(self.worker.code + stub::way_back_slot(), &self.ways(other).0)
    }

    /// The one mapping of ckrun's in the process. The code of a visit is no mapping: it lies in the padding of the vDSO,
    /// anywhere below or above.
    pub fn area(&self) -> Range<u64> {
        self.worker.area.clone()
    }
}

/// No thread of the process is in `room`, where a ckrun that was killed has left its code. One that runs may be.
fn nobody_in(process: Pid, room: &Range<u64>) -> Result<(), Failure> {
    for thread in listing::threads(process) {
        // The last word is the program counter (proc_pid_syscall(5)), or `running`.
        let path = format!("/proc/{process}/task/{thread}/syscall");
        let text = proc::read(&path).doing(|| format!("read {path}"))?;
        let text = String::from_utf8_lossy(&text);
        let at = text.trim_end().rsplit(" 0x").next().and_then(|word| u64::from_str_radix(word, 16).ok());
        if at.is_none_or(|at| room.contains(&at)) {
            let what = format!("wait for thread {thread} to find its way back from a ckrun that was killed");
            return Err(Failure::new(what, Errno::EAGAIN));
        }
    }
    Ok(())
}

/// The registers of a thread that is to run the code at `at`, its own ones but for what makes the kernel restart a call, the
/// direction of strings, and single steps.
fn standing(thread: &Tracee, at: u64) -> Registers {
    Registers { rip: at, orig_rax: u64::MAX, eflags: 0x202, ..thread.regs }
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

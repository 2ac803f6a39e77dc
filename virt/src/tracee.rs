//! One traced thread: stopped, looked at, driven, let go.

use crate::cpu::calls;
use crate::proc::Stat;
use crate::sys::ptrace::{self, Change, Registers};
use crate::{Doing, Failure};
use nix::errno::Errno;
use nix::unistd::Pid;
use std::time::{Duration, Instant};

/// How long a call may take to return or to fall asleep.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often to yield the CPU to a thread that is to fall asleep, and for how long to leave it then: the kernel makes that its
/// timer slack, 50 µs, at least.
const YIELDS: u32 = 4;
const NAP: Duration = Duration::from_micros(1);
/// How long to wait for a thread that is stopped by job control to be so again: it needs microseconds, once it has a CPU.
const STOPS_AGAIN: Duration = Duration::from_secs(1);

/// The one signal besides SIGKILL that can't be kept from a thread that works for ckrun. It has its effect, which is that the
/// thread stops when it is let go: until then the tracer decides whether it runs.
const STOP: libc::c_int = libc::SIGSTOP;

/// A thread that this thread of ckrun traces. It stops only when it is told to; when ckrun ends, the kernel lets it go on.
#[derive(Debug, Clone)]
pub struct Tracee {
    pid: Pid,
    /// The registers with which it was stopped, and is to go on.
    pub regs: Registers,
    /// Its blocked signals at that time.
    pub mask: u64,
    /// The signal by which its group is stopped (job control), if it is.
    pub group_stop: Option<libc::c_int>,
    /// When the timeout ends of a call that the registers make anew, see [`calls`].
    pub(crate) deadline: Option<Instant>,
}

impl Tracee {
    /// Begins to trace `pid` and asks it to stop; [`Tracee::arrive`] waits until it has. It is not stopped by a signal, so
    /// it can't tell.
    ///
    /// # Errors
    /// `ESRCH` (it has ended), `EPERM` (it has another tracer, or is a zombie).
    pub fn catch(pid: Pid, options: libc::c_int) -> Result<(), Errno> {
        ptrace::seize(pid, options | libc::PTRACE_O_TRACESYSGOOD)?;
        ptrace::interrupt(pid)
    }

    /// Waits for the stop that was asked for. None when the thread has ended instead.
    ///
    /// # Errors
    /// The kernel's.
    pub fn arrive(pid: Pid) -> Result<Option<Tracee>, Failure> {
        let Some(signal) = wait_for_stop(pid)? else { return Ok(None) };
        Tracee::stopped(pid, signal).map(Some)
    }

    /// Takes over a thread that has reported an event stop with `signal`.
    pub(crate) fn stopped(pid: Pid, signal: libc::c_int) -> Result<Tracee, Failure> {
        let mask = ptrace::signal_mask(pid).doing(|| format!("read the signal mask of thread {pid}"))?;
        Tracee::with_mask(pid, signal, mask)
    }

    /// The same of one whose blocked signals are known.
    pub(crate) fn with_mask(pid: Pid, signal: libc::c_int, mask: u64) -> Result<Tracee, Failure> {
        let regs = ptrace::registers(pid).map_err(|errno| match errno {
            // Fewer than there are: those of the 32-bit instruction set.
            Errno::EIO => Failure::new(format!("stop thread {pid} in 32-bit code"), Errno::EOPNOTSUPP),
            errno => Failure::new(format!("read the registers of thread {pid}"), errno),
        })?;
        Ok(Tracee {
            pid,
            regs,
            mask,
            group_stop: (signal != libc::SIGTRAP).then_some(signal),
            deadline: None,
        })
    }

    /// Its id in ckrun's pid namespace.
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// Brings it from wherever the tracer has stopped it into an event stop, the only kind of stop from which the kernel
    /// restarts an interrupted call. No instruction of the thread runs: the request is seen on the way to user mode.
    pub(crate) fn settle(&self) -> Result<(), Failure> {
        self.begin_to_settle()?;
        self.settled()
    }

    /// The first half of [`Tracee::settle`]: it is on its way to the stop.
    pub(crate) fn begin_to_settle(&self) -> Result<(), Failure> {
        let what = || format!("bring thread {} to a stop", self.pid);
        ptrace::interrupt(self.pid).doing(what)?;
        ptrace::resume(self.pid, 0).doing(what)
    }

    /// The second half: waits for the stop.
    pub(crate) fn settled(&self) -> Result<(), Failure> {
        let what = || format!("bring thread {} to a stop", self.pid);
        wait_for_stop(self.pid)?.map(drop).ok_or_else(|| Failure::new(what(), Errno::ESRCH))
    }

    /// Runs the thread, with the registers that it has been given, until it reports a trap.
    pub(crate) fn run_to_trap(&self) -> Result<(), Failure> {
        self.start()?;
        self.await_trap()
    }

    /// Lets the thread run with the registers that it has been given.
    pub(crate) fn start(&self) -> Result<(), Failure> {
        ptrace::resume(self.pid, 0).doing(|| format!("run calls in thread {}", self.pid))
    }

    /// Waits until the thread reports a trap.
    pub(crate) fn await_trap(&self) -> Result<(), Failure> {
        let what = || format!("run calls in thread {}", self.pid);
        loop {
            match ptrace::wait(self.pid, 0).doing(what)? {
                Some((_, Change::Signal(libc::SIGTRAP))) => return Ok(()),
                // Job control can stop a thread at any time; its report is of no interest now.
                Some((_, Change::Stopped(_))) => ptrace::resume(self.pid, 0).doing(what)?,
                Some((_, Change::Signal(STOP))) => ptrace::resume(self.pid, STOP).doing(what)?,
                Some((_, Change::Signal(signal))) if self.blocks(signal).doing(what)? => {
                    ptrace::resume(self.pid, signal).doing(what)?;
                }
                Some((_, Change::Signal(signal))) => {
                    log::debug!("thread {} got signal {signal} in the stub", self.pid);
                    return Err(Failure::new(what(), Errno::EFAULT));
                }
                _ => return Err(Failure::new(what(), Errno::ESRCH)),
            }
        }
    }

    /// Runs the thread likewise until it sleeps in a system call, does `look` and stops the thread; or until it reports
    /// a trap. The answer is whether it slept. The call is left interrupted: the registers are not the thread's own.
    pub(crate) fn run_to_sleep(&self, look: &mut dyn FnMut()) -> Result<bool, Failure> {
        let what = || format!("bring thread {} to sleep", self.pid);
        ptrace::resume(self.pid, 0).doing(what)?;
        let begun = Instant::now();
        let (mut asked, mut yields) = (false, 0);
        loop {
            match ptrace::wait(self.pid, if asked { 0 } else { libc::WNOHANG }).doing(what)? {
                None if self.asleep() => look(),
                None if begun.elapsed() < PATIENCE => {
                    // The scheduler may come back here at once, on the CPU that they share, as often as it is asked.
                    if yields < YIELDS {
                        yields += 1;
                        std::thread::yield_now();
                    } else {
                        std::thread::sleep(NAP);
                    }
                    continue;
                }
                // Neither asleep nor back: it is stopped wherever it is.
                None => {}
                Some((_, Change::Signal(libc::SIGTRAP))) => return Ok(false),
                // The call may have ended just before.
                Some((_, Change::Stopped(_))) if asked && self.to_restart().doing(what)? => return Ok(true),
                Some((_, Change::Stopped(_))) => {
                    ptrace::resume(self.pid, 0).doing(what)?;
                    continue;
                }
                Some((_, Change::Signal(STOP))) => {
                    ptrace::resume(self.pid, STOP).doing(what)?;
                    continue;
                }
                Some((_, Change::Signal(signal))) if self.blocks(signal).doing(what)? => {
                    ptrace::resume(self.pid, signal).doing(what)?;
                    continue;
                }
                _ => return Err(Failure::new(what(), Errno::ESRCH)),
            }
            ptrace::interrupt(self.pid).doing(what)?;
            asked = true;
        }
    }

    /// The signal is blocked, and reported all the same: when an exception of the processor comes that is not blocked, such
    /// as the breakpoint, the kernel takes the oldest one in the queue, whose handler the thread had not come to yet when it
    /// was stopped. Resumed with it, the thread has it in its queue again, behind the breakpoint.
    fn blocks(&self, signal: libc::c_int) -> Result<bool, Errno> {
        Ok(ptrace::signal_mask(self.pid)? >> (signal - 1) & 1 == 1)
    }

    /// It stopped in a call that goes on (`-ERESTART*`, `linux/errno.h`).
    fn to_restart(&self) -> Result<bool, Errno> {
        let regs = ptrace::registers(self.pid)?;
        Ok(regs.orig_rax.cast_signed() >= 0 && (-516..=-512).contains(&regs.rax.cast_signed()))
    }

    /// It has left its CPU inside a system call.
    fn asleep(&self) -> bool {
        let text = crate::proc::read(&format!("/proc/{}/syscall", self.pid)).unwrap_or_default();
        // The number of the call, else `running`, or -1 outside of any.
        text.first().is_some_and(u8::is_ascii_digit)
    }

    /// Makes the one system call that the code leads to at which the thread has been put, and stops right after it. The answer is its
    /// result.
    pub(crate) fn run_to_syscall(&self) -> Result<i64, Failure> {
        let what = || format!("make a call in thread {}", self.pid);
        // One stop at the entry, one at the exit.
        for _ in 0..2 {
            ptrace::resume_to_syscall(self.pid, 0).doing(what)?;
            loop {
                match ptrace::wait(self.pid, 0).doing(what)? {
                    Some((_, Change::Syscall)) => break,
                    Some((_, Change::Stopped(_))) => ptrace::resume_to_syscall(self.pid, 0).doing(what)?,
                    Some((_, Change::Signal(STOP))) => {
                        ptrace::resume_to_syscall(self.pid, STOP).doing(what)?;
                    }
                    _ => return Err(Failure::new(what(), Errno::ESRCH)),
                }
            }
        }
        Ok(ptrace::registers(self.pid).doing(what)?.rax.cast_signed())
    }

    /// Makes the system call that the code leads to at which the thread has been put, and interrupts it at
    /// once. A call that has nothing to wait for ends with its result; one that waits ends with an `-ERESTART*` and, for
    /// `-ERESTART_RESTARTBLOCK`, with a note in the kernel from which it goes on, with the remaining time, when the
    /// thread is let go.
    pub(crate) fn begin_call(&self) -> Result<i64, Failure> {
        self.start_call()?;
        self.interrupt_call()?;
        self.end_call()
    }

    /// [`Tracee::begin_call`] in three parts, each of which can be done with many threads: lets the thread come to the call.
    pub(crate) fn start_call(&self) -> Result<(), Failure> {
        ptrace::resume_to_syscall(self.pid, 0).doing(|| self.beginning())
    }

    /// Waits until it has come to the call, and lets it make the call and be interrupted.
    pub(crate) fn interrupt_call(&self) -> Result<(), Failure> {
        let what = || self.beginning();
        loop {
            let signal = match ptrace::wait(self.pid, 0).doing(what)? {
                Some((_, Change::Syscall)) => break,
                // The report of a stop that was asked for, or of job control, may still be due.
                Some((_, Change::Stopped(_))) => 0,
                Some((_, Change::Signal(STOP))) => STOP,
                _ => return Err(Failure::new(what(), Errno::ESRCH)),
            };
            ptrace::resume_to_syscall(self.pid, signal).doing(what)?;
        }
        // A request to stop makes the call return as a signal would.
        ptrace::interrupt(self.pid).doing(what)?;
        ptrace::resume(self.pid, 0).doing(what)
    }

    /// Waits until it is back from the call; the answer is the result.
    pub(crate) fn end_call(&self) -> Result<i64, Failure> {
        let what = || self.beginning();
        wait_for_stop(self.pid)?.ok_or_else(|| Failure::new(what(), Errno::ESRCH))?;
        Ok(ptrace::registers(self.pid).doing(what)?.rax.cast_signed())
    }

    fn beginning(&self) -> String {
        format!("begin a call in thread {}", self.pid)
    }

    /// Lets the thread end by `regs`, which are about to do so, or by `signal`, and waits until it has. Its parent is told.
    pub(crate) fn run_to_end(&self, regs: &Registers) -> Result<(), Failure> {
        let what = || format!("end thread {}", self.pid);
        ptrace::set_registers(self.pid, regs).doing(what)?;
        ptrace::resume(self.pid, 0).doing(what)?;
        loop {
            match ptrace::wait(self.pid, 0).doing(what)? {
                Some((_, Change::Ended(_))) => return Ok(()),
                Some((_, Change::Signal(signal))) => ptrace::resume(self.pid, signal).doing(what)?,
                _ => ptrace::resume(self.pid, 0).doing(what)?,
            }
        }
    }

    /// Lets the thread go on with the registers and the mask that it had. It must be in an event stop.
    /// Returns when a thread that is stopped by job control is so again.
    ///
    /// # Errors
    /// `ESRCH` when it has been killed.
    pub fn release(mut self) -> Result<(), Failure> {
        if let Some(deadline) = self.deadline {
            calls::set_timeout(&mut self.regs, deadline.saturating_duration_since(Instant::now()));
        }
        let what = || format!("let thread {} go on", self.pid);
        ptrace::set_registers(self.pid, &self.regs).doing(what)?;
        ptrace::set_signal_mask(self.pid, self.mask).doing(what)?;
        ptrace::detach(self.pid).doing(what)?;
        if self.group_stop.is_some() {
            await_stop_by_job_control(self.pid);
        }
        Ok(())
    }
}

/// One that is stopped by job control is woken by its release, and stops again at once: whoever is let go after it must
/// not see it run. A signal may have reached it meanwhile and let it go on, perhaps to sleep; so this does not wait for long.
fn await_stop_by_job_control(pid: Pid) {
    let began = Instant::now();
    while began.elapsed() < STOPS_AGAIN && Stat::of(pid).is_some_and(|stat| "Rt".contains(stat.state)) {
        std::thread::yield_now();
    }
}

/// Waits for an event stop; the answer is its signal, or None when the thread has ended. A signal that is about to be
/// delivered goes its way first: the kernel builds the frame, and the stop comes before the handler's first instruction.
fn wait_for_stop(pid: Pid) -> Result<Option<libc::c_int>, Failure> {
    let what = || format!("wait for thread {pid} to stop");
    loop {
        match ptrace::wait(pid, 0) {
            Ok(Some((_, Change::Stopped(signal)))) => return Ok(Some(signal)),
            Ok(Some((_, Change::Signal(signal)))) => ptrace::resume(pid, signal).doing(what)?,
            Ok(Some((_, Change::Event(_) | Change::Syscall))) => ptrace::resume(pid, 0).doing(what)?,
            Ok(Some((_, Change::Ended(_)))) | Err(Errno::ECHILD) => return Ok(None),
            Ok(None) => {}
            Err(errno) => return Err(Failure::new(what(), errno)),
        }
    }
}

//! Calls that go on with the rest of their time: nanosleep, clock_nanosleep, poll and futex with a relative timeout.
//!
//! When such a call is interrupted and no handler runs, the kernel goes on with it by restart_syscall(2): the thread's
//! registers say so (`-ERESTART_RESTARTBLOCK`), but the call and its deadline are kept in a record of the thread that
//! nobody can read or write.
//!
//! *Read*: the stopped thread is asked to go on with its call from within the stub. It falls asleep again, a timer
//! appears in the kernel's list, and the thread is interrupted a second time; the record is then as it was.
//!
//! *Write*: a new thread makes the call in the stub with the remaining time, falls asleep and is interrupted. Then it gets
//! the registers of the old one, and the kernel goes on with the call by the record that it has just made.

use super::timers::{Timer, Timers};
use crate::Failure;
use crate::program::{Answers, Program};
use crate::sys::ptrace::Registers;
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::Duration;

/// `linux/errno.h`: start the call again unless a handler runs; go on with restart_syscall unless a handler runs. After a
/// handler both read EINTR.
pub const ERESTARTNOHAND: i64 = -514;
pub const ERESTART_RESTARTBLOCK: i64 = -516;

/// Which call it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Sleeper {
    /// nanosleep(2)
    Nanosleep,
    /// clock_nanosleep(2)
    ClockNanosleep,
    /// poll(2)
    Poll,
    /// futex(2) of the kinds FUTEX_WAIT and FUTEX_WAIT_BITSET
    Futex,
}

/// A call that goes on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Sleep {
    /// The call; its arguments are in the registers.
    pub call: Sleeper,
    /// What is left of its time. None when that need not be known: the call has no timeout, or a point in time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remaining: Option<Duration>,
}

/// Makes a thread run a program of one call in the stub until it sleeps in that call, does what the second argument says
/// and stops the thread again. The answer is None then; if the call has come to an end, its answers.
pub type Doze<'a> = dyn FnMut(&Program, &mut dyn FnMut()) -> Result<Option<Answers>, Failure> + 'a;

/// How a new thread gets into an interrupted call.
#[derive(Debug)]
pub enum Plan {
    /// By its registers alone.
    Registers(Registers),
    /// By making a call first.
    Start(Start),
}

/// A call to be made in the stub, and to be interrupted there.
#[derive(Debug)]
pub struct Start {
    /// The program with the call.
    pub program: Program,
    regs: Registers,
}

impl Start {
    /// The registers to load after the call has been begun and interrupted with `result`: an `-ERESTART*`, or what the
    /// call has come to, if it did not wait. Everything that the call looks at must have been in place, memory and
    /// descriptors, and the thread must make no further call that waits.
    pub fn registers(mut self, result: i64) -> Registers {
        if result != ERESTART_RESTARTBLOCK {
            end(&mut self.regs, result);
        }
        self.regs
    }
}

impl Sleep {
    /// Reads the call that the stopped thread `host` with `regs` is in; None when it is in none of these. If the call ends
    /// while it is looked at, its result goes into `regs`. `last` is for threads that are looked at one after the other:
    /// the timers that were seen last.
    ///
    /// # Errors
    /// Those of `doze`.
    pub fn capture(
        host: Pid,
        memory: &File,
        regs: &mut Registers,
        last: &mut Option<Timers>,
        doze: &mut Doze<'_>,
    ) -> Result<Option<Sleep>, Failure> {
        if regs.orig_rax.cast_signed() < 0 || regs.rax.cast_signed() != ERESTART_RESTARTBLOCK {
            return Ok(None);
        }
        let mut known = Sleeper::by_number(regs.orig_rax);
        if let Some(call) = known {
            let written = || call.remaining_address(regs).and_then(|place| time(memory, place));
            if !call.counts(regs) {
                return Ok(Some(Sleep { call, remaining: None }));
            } else if let Some(remaining) = written() {
                return Ok(Some(Sleep { call, remaining: Some(remaining) }));
            }
        }
        let mut seen = None;
        let mut suspects: Vec<Timer> = Vec::new();
        // Other threads of the host fall asleep as well. Only the one in question does so twice with the same deadline; its
        // timer lies on its kernel stack, where each call may find it at another place. A timer that a glance has missed costs
        // one round more.
        for _ in 0..8 {
            let before = last.take().or_else(|| Timers::glance().ok());
            let mut place = String::new();
            let mut during = None;
            let mut program = Program::new();
            let call = program.attempt("go on with a call", libc::SYS_restart_syscall, &[]);
            let answers = doze(&program, &mut || {
                during = Timers::glance().ok();
                place = where_asleep(host);
            })?;
            if let Some(answers) = answers {
                end(regs, answers.of(call).unwrap_or_else(|errno| -i64::from(errno as i32)));
                return Ok(None);
            }
            known = known.or_else(|| Sleeper::by_place(&place, memory, regs));
            let (Some(before), Some(during), Some(call)) = (before, during, known) else { break };
            if !call.counts(regs) {
                break;
            }
            if let Some(remaining) = call.remaining_address(regs).and_then(|place| time(memory, place)) {
                // Written when the call was interrupted just now.
                seen = Some(remaining);
                break;
            }
            let whole = call.whole(memory, regs).unwrap_or(Duration::MAX);
            let mut new = during.new_since(&before);
            new.retain(|timer| during.until(timer) <= whole);
            let again = |timer: &Timer| suspects.iter().any(|old| old.due == timer.due);
            let agreed: Vec<Timer> = new.iter().copied().filter(again).collect();
            if let [timer] = agreed[..] {
                seen = Some(during.until(&timer));
                *last = Some(during);
                break;
            }
            suspects = if agreed.is_empty() { new } else { agreed };
        }
        let call = known.ok_or_else(|| {
            let what = format!("find out which call thread {host} is to go on with");
            Failure::new(what, nix::errno::Errno::EOPNOTSUPP)
        })?;
        // Without a timer in the list (it is hidden, or counts CPU time) the call gets more time, never less.
        let written = || call.remaining_address(regs).and_then(|place| time(memory, place));
        let remaining =
            call.counts(regs).then(|| seen.or_else(written).or_else(|| call.whole(memory, regs))).flatten();
        Ok(Some(Sleep { call, remaining }))
    }

    /// What must be done so that a new thread goes on with the call of a thread with `regs`.
    pub fn plan(&self, regs: &Registers) -> Plan {
        let mut regs = *regs;
        let Some(remaining) = self.remaining else {
            // Made anew with its old arguments it waits for the same. The answer after a handler is EINTR either way.
            regs.rax = ERESTARTNOHAND.cast_unsigned();
            regs.orig_rax = self.call.number();
            return Plan::Registers(regs);
        };
        let mut program = Program::new();
        let bytes = [remaining.as_secs(), u64::from(remaining.subsec_nanos())].map(u64::to_ne_bytes).concat();
        let time = program.put(&bytes);
        let args = match self.call {
            Sleeper::Nanosleep => vec![time.into(), regs.rsi.into()],
            Sleeper::ClockNanosleep => vec![regs.rdi.into(), regs.rsi.into(), time.into(), regs.r10.into()],
            Sleeper::Poll => vec![regs.rdi.into(), regs.rsi.into(), milliseconds(remaining).into()],
            Sleeper::Futex => vec![regs.rdi.into(), regs.rsi.into(), regs.rdx.into(), time.into()],
        };
        program.attempt("go back to sleep", self.call.number().cast_signed(), &args);
        Plan::Start(Start { program, regs })
    }
}

impl Sleeper {
    fn number(self) -> u64 {
        let number = match self {
            Sleeper::Nanosleep => libc::SYS_nanosleep,
            Sleeper::ClockNanosleep => libc::SYS_clock_nanosleep,
            Sleeper::Poll => libc::SYS_poll,
            Sleeper::Futex => libc::SYS_futex,
        };
        number.cast_unsigned()
    }

    fn by_number(number: u64) -> Option<Sleeper> {
        [Sleeper::Nanosleep, Sleeper::ClockNanosleep, Sleeper::Poll, Sleeper::Futex]
            .into_iter()
            .find(|call| call.number() == number)
    }

    /// Which call it is that restart_syscall goes on with, by the functions of the kernel that the thread sleeps in. The
    /// registers still hold the arguments.
    fn by_place(place: &str, memory: &File, regs: &Registers) -> Option<Sleeper> {
        if place.contains("poll") {
            return Some(Sleeper::Poll);
        } else if place.contains("futex") {
            return Some(Sleeper::Futex);
        }
        // The functions of nanosleep belong to the scheduler, and those are left out. So it is what remains, if the
        // arguments agree. Ids of clocks are small, or negative 32-bit numbers; addresses are neither.
        let clock = regs.rdi < 4096 || regs.rdi >> 31 == 1 || regs.rdi >> 31 == u64::MAX >> 31;
        let call = if clock { Sleeper::ClockNanosleep } else { Sleeper::Nanosleep };
        (!place.is_empty() && call.whole(memory, regs).is_some()).then_some(call)
    }

    /// It has a timeout that counts from its start.
    fn counts(self, regs: &Registers) -> bool {
        match self {
            Sleeper::Nanosleep | Sleeper::ClockNanosleep => true,
            // An int: the upper half of the register is of no meaning.
            Sleeper::Poll => regs.rdx as i32 >= 0,
            Sleeper::Futex => regs.rsi as i32 & libc::FUTEX_CMD_MASK == libc::FUTEX_WAIT && regs.r10 != 0,
        }
    }

    /// Where the kernel has written what remains, if the program has asked for that.
    fn remaining_address(self, regs: &Registers) -> Option<u64> {
        let address = match self {
            Sleeper::Nanosleep => regs.rsi,
            Sleeper::ClockNanosleep => regs.r10,
            Sleeper::Poll | Sleeper::Futex => 0,
        };
        (address != 0).then_some(address)
    }

    /// The time that was asked for.
    fn whole(self, memory: &File, regs: &Registers) -> Option<Duration> {
        match self {
            Sleeper::Nanosleep => time(memory, regs.rdi),
            Sleeper::ClockNanosleep => time(memory, regs.rdx),
            Sleeper::Poll => u64::try_from(regs.rdx as i32).ok().map(Duration::from_millis),
            Sleeper::Futex => time(memory, regs.r10),
        }
    }
}

/// A call has ended in the stub: the thread leaves it with that result.
fn end(regs: &mut Registers, result: i64) {
    regs.rax = result.cast_unsigned();
    regs.orig_rax = u64::MAX;
}

/// A timespec in the memory of a process.
fn time(memory: &File, address: u64) -> Option<Duration> {
    let mut bytes = [0; 16];
    memory.read_exact_at(&mut bytes, address).ok()?;
    let (seconds, nanos) = bytes.split_at(8);
    let seconds = i64::from_ne_bytes(seconds.try_into().ok()?);
    let nanos = i64::from_ne_bytes(nanos.try_into().ok()?);
    Some(Duration::new(seconds.try_into().ok()?, u32::try_from(nanos).ok().filter(|&n| n < 1_000_000_000)?))
}

/// The functions of the kernel that a thread sleeps in.
fn where_asleep(host: Pid) -> String {
    // The whole stack needs CONFIG_STACKTRACE; the innermost function alone does not.
    let read = |name| std::fs::read_to_string(format!("/proc/{host}/{name}")).unwrap_or_default();
    read("stack") + &read("wchan")
}

/// A timeout as poll and epoll take it: rounded up, so that the wait is not too short.
pub(super) fn milliseconds(time: Duration) -> i32 {
    i32::try_from(time.as_nanos().div_ceil(1_000_000)).unwrap_or(i32::MAX)
}

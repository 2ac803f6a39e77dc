//! Timers that send signals, of timer_create(2).
//!
//! They are per process, restored in the leader when the threads exist, as one of the last acts: from then on time runs.
//! A timer goes on with the time that it had left. The CPU time that a process has used is not carried, but what its
//! CPU-time timers had left is; nor is it carried whether a timer was set to a time of the clock or to a delay.
//!
//! They have to be listed ([`PosixTimers::list`]) before the process can be asked about them, so they don't fit
//! [`Resource`](crate::resource::Resource).

mod listed;

pub use listed::Listed;

use crate::hex::Hex;
use crate::interval_timers::Interval;
use crate::overruns::{self, CLOCKS, ask_clock, nanoseconds, read_clock};
use crate::program::{Answers, Arg, Call, Place, Program};
use crate::resource::{Blocker, Stopped};
use crate::signals::Queued;
use crate::status::Status;
use crate::{Doing, Failure};
use listed::{parse, sender};
use nix::errno::Errno;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// `PR_TIMER_CREATE_RESTORE_IDS` of `linux/prctl.h`, and what it can be asked.
const RESTORE_IDS: i32 = 77;
const RESTORE_IDS_GET: libc::c_ulong = 2;
/// The highest id that is reached one by one: so many calls fit into a program.
const MOST_SKIPPED: i32 = 2000;
/// Clocks of a thread's own CPU time, as the kernel lists them: `(~TID << 3) | CPUCLOCK_PERTHREAD_MASK |
/// CPUCLOCK_SCHED`, with 0 for the thread that made the timer.
const PER_THREAD: i32 = 4;
const OWN_THREAD_CLOCK: i32 = !0 << 3 | PER_THREAD | 2;

/// The timers of timer_create(2) of one process.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PosixTimers(Vec<PosixTimer>);

/// One of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct PosixTimer {
    /// Its number in the process.
    pub id: i32,
    /// `CLOCK_*`, or that of a process's or thread's CPU time (clock_getcpuclockid(3)).
    pub clock: i32,
    /// What it does.
    pub notify: Notify,
    /// The signal's number.
    pub signal: i32,
    /// What the signal tells.
    pub value: Hex,
    /// The thread that gets the signal, if it is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub thread: Option<i32>,
    /// Seconds and nanoseconds.
    pub time: Interval,
    /// Its signal waits, and it has gone off again and again since: nanoseconds from the first time to the checkpoint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waiting: Option<i64>,
    /// How often it had gone off again before its last signal was taken. It is recorded; a new timer starts with 0.
    pub overrun: i32,
}

/// `SIGEV_*`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Notify {
    /// Sends a signal.
    Signal = 0,
    /// Nothing: it is only looked at.
    None = 1,
    /// The C library's way to start a thread; for the kernel it sends a signal.
    Thread = 2,
}

/// `SIGEV_THREAD_ID`.
const TO_THREAD: i32 = 4;

/// Where the answers are.
#[derive(Debug)]
pub struct Asked(Vec<AskedTimer>);

#[derive(Debug)]
struct AskedTimer {
    time: Place,
    overrun: Call,
    clock: Option<Place>,
}

/// The time by the clocks of the timers, in nanoseconds.
#[derive(Debug, Clone, Default)]
pub struct Now(BTreeMap<i32, i64>);

impl PosixTimers {
    /// Lists the timers of the process that `task` leads.
    ///
    /// # Errors
    /// `EINVAL` when the kernel's list is not understood.
    pub fn list(task: &Stopped) -> Result<Vec<Listed>, Failure> {
        parse(&task.read("timers")?)
            .ok_or(Errno::EINVAL)
            .doing(|| format!("understand the timers of process {}", task.pid))
    }

    /// Adds the questions about them. They are to be asked in the process's leader.
    pub fn ask(listed: &[Listed], program: &mut Program) -> Asked {
        let ask = |timer: &Listed| AskedTimer {
            time: timer.ask(program),
            overrun: program.call("get a timer's overruns", libc::SYS_timer_getoverrun, &[timer.id.into()]),
            clock: timer.went_off.map(|_| timer.ask_clock(program)),
        };
        Asked(listed.iter().map(ask).collect())
    }

    /// Names those of a thread's CPU time of which the kernel does not tell the thread.
    pub fn blockers(task: &Stopped, listed: &[Listed]) -> Vec<Blocker> {
        // Whoever measures a thread's CPU time usually has the signal sent to that thread.
        let unknown =
            |timer: &&Listed| timer.clock == OWN_THREAD_CLOCK && timer.thread.and_then(virtual_tid).is_none();
        let refuse = |timer: &Listed| Blocker {
            pid: task.pid,
            comm: task.comm(),
            what: format!("timer {}", timer.id),
            why: "it measures the CPU time of one of several threads, and the kernel does not tell of which"
                .into(),
            remedy: None,
        };
        if task.status.threads > 1 { listed.iter().filter(unknown).map(refuse).collect() } else { Vec::new() }
    }

    /// Reads the answers. What [`PosixTimers::blockers`] names comes out as a timer of the first thread.
    ///
    /// # Errors
    /// `EINVAL` when a timer is gone.
    pub fn capture(listed: &[Listed], asked: &Asked, answers: &Answers) -> Result<Self, Failure> {
        let timers = listed.iter().zip(&asked.0).map(|(timer, asked)| {
            let thread = timer.thread.map(virtual_tid);
            let clock = match (timer.clock, thread) {
                (OWN_THREAD_CLOCK, Some(Some(tid))) => thread_clock(tid),
                (clock, _) => clock,
            };
            // A thread that has ended gets no signal any more, and can't be named to the kernel again.
            let notify = if thread == Some(None) { Notify::None } else { timer.notify };
            Ok(PosixTimer {
                id: timer.id,
                clock,
                notify,
                signal: timer.signal,
                value: Hex(timer.value),
                thread: thread.flatten(),
                time: Interval::read(answers, asked.time),
                waiting: timer
                    .went_off
                    .zip(asked.clock)
                    .map(|((start, _), clock)| read_clock(answers, clock).saturating_sub(start).max(0)),
                overrun: answers.of(asked.overrun).doing(|| "get a timer's overruns")? as i32,
            })
        });
        timers.collect::<Result<_, _>>().map(PosixTimers)
    }

    /// Asks for the time, if they have to know it to be made again; `run` runs a program in the leader of the process.
    ///
    /// # Errors
    /// The kernel's.
    pub fn now(&self, run: impl FnOnce(&Program) -> Result<Answers, Failure>) -> Result<Now, Failure> {
        if self.0.iter().all(|timer| timer.waiting.is_none()) {
            return Ok(Now::default());
        }
        let mut program = Program::new();
        let places = CLOCKS.map(|clock| (clock, ask_clock(&mut program, clock)));
        let answers = run(&program)?;
        Ok(Now(places.into_iter().map(|(clock, place)| (clock, read_clock(&answers, place))).collect()))
    }

    /// Such a signal is among what they do when they are made again. If it is `new`, it has come since the job stopped: when
    /// the timer was asked it had gone off already, or was about to.
    pub(crate) fn will_send(&self, queued: &Queued, new: bool) -> bool {
        let same = |timer: &PosixTimer| sender(queued) == Some(timer.id) && queued.signal == timer.signal;
        let again = |timer: &PosixTimer| timer.waiting.is_some() || new && timer.was_about_to_go_off();
        self.0.iter().any(|timer| same(timer) && again(timer))
    }

    /// Adds the calls that make them again, for the leader of the process, in which it is now `now`.
    pub fn restore(&self, now: &Now, program: &mut Program) {
        if self.0.is_empty() {
            return;
        }
        let direct = ids_can_be_chosen();
        let restore_ids = |program: &mut Program, on: bool| {
            if direct {
                let what = "choose the ids of POSIX timers";
                program.call(what, libc::SYS_prctl, &[RESTORE_IDS.into(), u64::from(on).into()]);
            }
        };
        restore_ids(program, true);
        let mut timers: Vec<_> = self.0.iter().collect();
        timers.sort_unstable_by_key(|timer| timer.id);
        let mut next = 0;
        for timer in timers {
            if !direct {
                skip_ids(timer.id - next, program);
                next = timer.id + 1;
            }
            let (event, id) = (program.put(&timer.event()), program.put(&timer.id.to_ne_bytes()));
            let args = [timer.clock.into(), event.into(), id.into()];
            program.call(format!("make timer {}", timer.id), libc::SYS_timer_create, &args);
        }
        restore_ids(program, false);
        for timer in self.0.iter().filter(|timer| timer.time.is_armed()) {
            if let (Some(waiting), Some(now)) = (timer.waiting, now.0.get(&timer.clock)) {
                let start = now.saturating_sub(waiting).max(1);
                overruns::set(program, timer.id, start, nanoseconds(timer.time.interval));
                continue;
            }
            let time = program.put(&timer.time.to_bytes());
            let args: [Arg; 4] = [timer.id.into(), 0.into(), time.into(), 0.into()];
            program.call(format!("set timer {}", timer.id), libc::SYS_timer_settime, &args);
        }
    }

    /// The timers.
    pub fn iter(&self) -> impl Iterator<Item = &PosixTimer> {
        self.0.iter()
    }

    /// Whether they can be had on this kernel.
    ///
    /// # Errors
    /// Why not.
    pub fn check(&self) -> Result<(), String> {
        let high = self.0.iter().map(|timer| timer.id).max().filter(|id| *id > MOST_SKIPPED);
        match high {
            Some(id) if !ids_can_be_chosen() => {
                Err(format!("before Linux 6.15 the id {id} of a POSIX timer is not to be had"))
            }
            _ => Ok(()),
        }
    }
}

/// A process's timers are numbered from 0 on. A number is left out by a timer that goes again.
fn skip_ids(count: i32, program: &mut Program) {
    if count <= 0 {
        return;
    }
    let mut event = [0; 64];
    event[12..16].copy_from_slice(&(Notify::None as i32).to_ne_bytes());
    let (event, id) = (program.put(&event), program.room(4));
    for _ in 0..count {
        let args = [libc::CLOCK_MONOTONIC.into(), event.into(), id.into()];
        program.call("make a timer for its id", libc::SYS_timer_create, &args);
        program.call("delete it again", libc::SYS_timer_delete, &[id.word(0)]);
    }
}

impl PosixTimer {
    /// It was armed when it was asked, and has not begun anew since it went off: then nearly all of its interval would be left.
    fn was_about_to_go_off(&self) -> bool {
        let [left, interval] = [self.time.left, self.time.interval].map(nanoseconds);
        self.time.is_armed() && (interval == 0 || left <= interval / 2)
    }

    /// `struct sigevent`.
    fn event(&self) -> [u8; 64] {
        let mut event = [0; 64];
        let notify = self.notify as i32 | if self.thread.is_some() { TO_THREAD } else { 0 };
        event[..8].copy_from_slice(&self.value.0.to_ne_bytes());
        event[8..12].copy_from_slice(&self.signal.to_ne_bytes());
        event[12..16].copy_from_slice(&notify.to_ne_bytes());
        event[16..20].copy_from_slice(&self.thread.unwrap_or(0).to_ne_bytes());
        event
    }
}

/// New timers can be given any id (Linux 6.15).
fn ids_can_be_chosen() -> bool {
    // SAFETY: with these arguments the call only answers a number.
    unsafe { libc::prctl(RESTORE_IDS, RESTORE_IDS_GET, 0, 0, 0) != -1 }
}

/// The clock of the CPU time of thread `tid`.
fn thread_clock(tid: i32) -> i32 {
    !tid << 3 | PER_THREAD | 2
}

/// The job's id of a thread that `/proc` shows as `host`; None when it has ended.
fn virtual_tid(host: i32) -> Option<i32> {
    let status = std::fs::read(format!("/proc/{host}/status")).ok()?;
    Status::parse(&status).ns_pid.last().copied()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn clocks_of_threads_are_numbered_as_the_kernel_does() {
        // `__task_cpu_clock(tid)` and the clock that timer_create(2) shows for CLOCK_THREAD_CPUTIME_ID.
        assert_eq!((thread_clock(0), thread_clock(15910)), (OWN_THREAD_CLOCK, -127_282));
    }

    proptest! {
        #[test]
        fn a_timer_is_read_as_it_was_written(
            (id, clock, signal, overrun) in any::<(i32, i32, i32, i32)>(),
            (value, thread, left, interval) in any::<(u64, Option<i32>, [i64; 2], [i64; 2])>(),
            waiting: Option<i64>,
        ) {
            let timer = PosixTimer {
                id, clock, signal, overrun, thread,
                notify: Notify::Signal,
                value: Hex(value),
                time: Interval { left, interval },
                waiting,
            };
            let timers = PosixTimers(vec![timer]);
            let json = serde_json::to_string(&timers).unwrap();
            prop_assert_eq!(serde_json::from_str::<PosixTimers>(&json).unwrap(), timers);
        }
    }
}

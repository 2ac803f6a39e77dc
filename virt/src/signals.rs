//! Signals: what a process does about them, on which stack, and which wait to be delivered.
//!
//! - [`Actions`] per process. Restored in the leader when all processes exist and all zombies have ended: a parent that
//!   ignores SIGCHLD would reap them. SIGTRAP's action is the exception, see [`Actions::trap`].
//! - [`AltStack`] per thread, at any time.
//! - [`Pending`] per thread and [`SharedPending`] per process (in its leader), after the actions (to ignore a signal
//!   discards it), before the limits (they bound the queue), while all signals are blocked. They are read when the timers
//!   have been: one that goes off while the job stands still has sent its signal then, or is yet to do so.
//!
//! The mask is read and set by ptrace: see [`Tracee`](crate::tracee::Tracee). That a group is stopped (job control) is the
//! matter of the tree of processes.

use crate::hex::Hex;
use crate::interval_timers::IntervalTimers;
use crate::program::{Answers, Arg, Place, Program};
use crate::resource::{Blocker, Resource, Stopped};
use crate::sys::peek::{RawSiginfo, queued_signals};
use crate::timers::PosixTimers;
use crate::{Doing, Failure};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The kernel's `_NSIG`.
const SIGNALS: i32 = 64;
/// `sizeof(sigset_t)` as the kernel wants to hear it.
pub(crate) const SET: u64 = 8;
/// `SI_TKILL` is -6; with `SI_USER` (0) and the kernel's own codes (above 0) a task may say it to itself alone.
const SI_USER: i32 = 0;
/// `asm-generic/siginfo.h`; not in libc.
const SI_KERNEL: i32 = 0x80;

/// What a process does about one signal: `struct sigaction` as the kernel has it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Action {
    /// The handler's address, 0 for the default action, 1 to ignore the signal.
    pub handler: Hex,
    /// `SA_*`.
    pub flags: Hex,
    /// Where the handler returns to.
    pub restorer: Hex,
    /// What is blocked meanwhile.
    pub mask: Hex,
}

impl Action {
    /// The bytes for rt_sigaction(2).
    pub fn to_bytes(self) -> [u8; 32] {
        let mut bytes = [0; 32];
        let words = [self.handler, self.flags, self.restorer, self.mask];
        for (chunk, word) in bytes.chunks_exact_mut(8).zip(words) {
            chunk.copy_from_slice(&word.0.to_ne_bytes());
        }
        bytes
    }

    /// Reads the bytes that rt_sigaction(2) has stored.
    pub fn from_bytes(bytes: &[u8; 32]) -> Action {
        let mut words = bytes.chunks_exact(8).map(|b| Hex(b.try_into().map_or(0, u64::from_ne_bytes)));
        let mut next = || words.next().unwrap_or_default();
        Action { handler: next(), flags: next(), restorer: next(), mask: next() }
    }

    /// Adds the call that makes it the action of `signal`.
    fn set(self, signal: i32, program: &mut Program) {
        let place = program.put(&self.to_bytes());
        let args = [signal.into(), place.into(), 0.into(), SET.into()];
        program.call("set the action of a signal", libc::SYS_rt_sigaction, &args);
    }

    fn read(answers: &Answers, place: Place) -> Action {
        let word = |k: usize| Hex(answers.u64(place, k * 8));
        Action { handler: word(0), flags: word(1), restorer: word(2), mask: word(3) }
    }
}

/// The actions of a process; a signal that isn't there has the default action.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Actions(BTreeMap<i32, Action>);

impl Actions {
    /// SIGTRAP's action. The stub needs this signal, so [`Resource::restore`] leaves it out: whoever runs the stub sets
    /// this when it has run for the last time.
    pub fn trap(&self) -> Action {
        self.of(libc::SIGTRAP)
    }

    /// Notes SIGTRAP's action, which [`Resource::capture`] can't see: at that time the action is ckrun's. See
    /// [`Visit::trap_action`](crate::visit::Visit::trap_action).
    pub fn set_trap(&mut self, action: Action) {
        self.set(libc::SIGTRAP, action);
    }

    /// The action for a signal.
    pub fn of(&self, signal: i32) -> Action {
        self.0.get(&signal).copied().unwrap_or_default()
    }

    fn set(&mut self, signal: i32, action: Action) {
        if action == Action::default() {
            self.0.remove(&signal);
        } else {
            self.0.insert(signal, action);
        }
    }

    /// Adds the calls that give every signal its default action. ckrun's own process ignores some, and whoever is made from it
    /// inherits that; a restored process only needs the others set.
    pub(crate) fn reset(program: &mut Program) {
        Actions::settable().chain([libc::SIGTRAP]).for_each(|signal| Action::default().set(signal, program));
    }

    /// All signals whose action can be set by the stub.
    fn settable() -> impl Iterator<Item = i32> {
        (1..=SIGNALS).filter(|s| ![libc::SIGKILL, libc::SIGSTOP, libc::SIGTRAP].contains(s))
    }
}

impl Resource for Actions {
    type Asked = Vec<Place>;

    fn ask(program: &mut Program) -> Vec<Place> {
        let ask = |signal: i32| {
            let place = program.room(32);
            let args = [signal.into(), 0.into(), place.into(), SET.into()];
            program.call("get the action of a signal", libc::SYS_rt_sigaction, &args);
            place
        };
        Actions::settable().map(ask).collect()
    }

    fn capture(_: &Stopped, asked: &Vec<Place>, answers: &Answers) -> Result<Self, Failure> {
        let mut actions = Actions::default();
        for (signal, &place) in Actions::settable().zip(asked) {
            actions.set(signal, Action::read(answers, place));
        }
        Ok(actions)
    }

    fn restore(&self, program: &mut Program) {
        let others = Actions::settable().filter_map(|signal| Some((signal, self.0.get(&signal)?)));
        others.for_each(|(signal, action)| action.set(signal, program));
    }
}

/// The bit of a signal in a set.
pub(crate) fn bit(signal: i32) -> u32 {
    signal.cast_unsigned().wrapping_sub(1)
}

/// The stack of a thread's handlers (sigaltstack(2)).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct AltStack {
    /// Its address.
    pub start: Hex,
    /// Its length.
    pub size: u64,
    /// `SS_DISABLE`, `SS_AUTODISARM`.
    pub flags: Hex,
}

impl Resource for AltStack {
    type Asked = Place;

    fn ask(program: &mut Program) -> Place {
        let place = program.room(24);
        program.call("get the signal stack", libc::SYS_sigaltstack, &[0.into(), place.into()]);
        place
    }

    fn capture(_: &Stopped, asked: &Place, answers: &Answers) -> Result<Self, Failure> {
        // `stack_t`. SS_ONSTACK can't be among the flags: the stub has a stack of its own.
        Ok(AltStack {
            start: Hex(answers.u64(*asked, 0)),
            flags: Hex(answers.u32(*asked, 8).into()),
            size: answers.u64(*asked, 16),
        })
    }

    fn restore(&self, program: &mut Program) {
        let place = program.put(&[self.start.0, self.flags.0, self.size].map(u64::to_ne_bytes).concat());
        program.call("set the signal stack", libc::SYS_sigaltstack, &[place.into(), 0.into()]);
    }
}

/// A signal that waits, with what it tells (`siginfo_t`). Ids in it are the job's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Queued {
    /// Its number.
    pub signal: i32,
    /// `si_errno`.
    pub errno: i32,
    /// `si_code`: who sent it.
    pub code: i32,
    /// The rest; what it means depends on the code.
    pub fields: [Hex; 4],
}

impl Queued {
    /// A timer has sent it.
    pub(crate) fn is_of_timer(&self) -> bool {
        self.code == libc::SI_TIMER || self.is_of_alarm()
    }

    /// The interval timer of real time has sent it.
    pub(crate) fn is_of_alarm(&self) -> bool {
        self.signal == libc::SIGALRM && self.code == SI_KERNEL
    }

    fn read(raw: &RawSiginfo) -> Queued {
        let word = |at: usize| raw[at..at + 4].try_into().map_or(0, i32::from_ne_bytes);
        let long = |at: usize| Hex(raw[at..at + 8].try_into().map_or(0, u64::from_ne_bytes));
        Queued { signal: word(0), errno: word(4), code: word(8), fields: [16, 24, 32, 40].map(long) }
    }

    fn to_raw(self) -> RawSiginfo {
        let mut raw = [0; 128];
        for (at, word) in [(0, self.signal), (4, self.errno), (8, self.code)] {
            raw[at..at + 4].copy_from_slice(&word.to_ne_bytes());
        }
        for (chunk, field) in raw[16..].chunks_exact_mut(8).zip(self.fields) {
            chunk.copy_from_slice(&field.0.to_ne_bytes());
        }
        raw
    }
}

/// Signals that wait for a thread.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Pending(pub Vec<Queued>);

/// Signals that wait for a process: any thread may take them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SharedPending(pub Vec<Queued>);

/// As many signals as are queued at once: a process may have a hundred thousand, and a program must fit into ckrun's area.
const PIECE: usize = 1000;

impl Pending {
    /// The same signals in pieces, in their order.
    pub fn pieces(&self) -> impl Iterator<Item = Pending> {
        self.0.chunks(PIECE).map(|piece| Pending(piece.to_vec()))
    }

    /// Forgets the signals that the process's timers will send again by themselves; `task` is as it was when it had stopped.
    pub fn leave_to(&mut self, task: &Stopped, interval: Option<&IntervalTimers>, timers: &PosixTimers) {
        leave_to(&mut self.0, task.status.sig_pnd, interval, timers);
    }
}

impl SharedPending {
    /// As [`Pending::pieces`].
    pub fn pieces(&self) -> impl Iterator<Item = SharedPending> {
        self.0.chunks(PIECE).map(|piece| SharedPending(piece.to_vec()))
    }

    /// As [`Pending::leave_to`].
    pub fn leave_to(&mut self, task: &Stopped, interval: Option<&IntervalTimers>, timers: &PosixTimers) {
        leave_to(&mut self.0, task.status.shd_pnd, interval, timers);
    }
}

/// Of a signal that has come since the thread stopped, the timer may have been asked before it went off, or after that.
fn leave_to(queue: &mut Vec<Queued>, before: u64, interval: Option<&IntervalTimers>, timers: &PosixTimers) {
    queue.retain(|queued| {
        let new = !Hex(before).has(bit(queued.signal));
        let again = interval.is_some_and(|interval| new && interval.will_send(queued));
        !again && !timers.will_send(queued, new)
    });
}

impl Resource for Pending {
    type Asked = ();

    fn ask(_: &mut Program) {}

    fn capture(task: &Stopped, (): &(), _: &Answers) -> Result<Self, Failure> {
        queue(task, false, task.status.sig_pnd).map(Pending)
    }

    fn restore(&self, program: &mut Program) {
        if self.0.is_empty() {
            return;
        }
        let process = Arg::from(program.call("get the process id", libc::SYS_getpid, &[]));
        let thread = Arg::from(program.call("get the thread id", libc::SYS_gettid, &[]));
        for queued in without_stops(&self.0) {
            let info = program.put(&queued.to_raw());
            let args = [process, thread, queued.signal.into(), info.into()];
            program.call("queue a signal for the thread", libc::SYS_rt_tgsigqueueinfo, &args);
        }
    }
}

impl Resource for SharedPending {
    type Asked = ();

    fn ask(_: &mut Program) {}

    fn capture(task: &Stopped, (): &(), _: &Answers) -> Result<Self, Failure> {
        queue(task, true, task.status.shd_pnd).map(SharedPending)
    }

    fn restore(&self, program: &mut Program) {
        if self.0.is_empty() {
            return;
        }
        // Only the leader may say to its process what otherwise the kernel says: the ids are compared.
        let process = Arg::from(program.call("get the process id", libc::SYS_getpid, &[]));
        for queued in without_stops(&self.0) {
            let info = program.put(&queued.to_raw());
            let args = [process, queued.signal.into(), info.into()];
            program.call("queue a signal for the process", libc::SYS_rt_sigqueueinfo, &args);
        }
    }
}

/// How many signals more may wait for the task's user (RLIMIT_SIGPENDING). One that was taken must find room again.
pub(crate) fn room_in_queue(task: &Stopped) -> Result<u64, Failure> {
    let status = task.read("status")?;
    let line = status.split(|&b| b == b'\n').find_map(|line| line.strip_prefix(b"SigQ:"));
    let numbers = line.and_then(|line| std::str::from_utf8(line).ok()?.trim().split_once('/'));
    let room =
        numbers.and_then(|(used, limit)| Some(limit.parse::<u64>().ok()?.saturating_sub(used.parse().ok()?)));
    Ok(room.unwrap_or(0))
}

/// A SIGSTOP waits for a thread, or for its process. It can't be blocked, so the process is as good as stopped.
pub(crate) fn stop_pending(task: &Stopped) -> bool {
    Hex(task.status.sig_pnd | task.status.shd_pnd).has(bit(libc::SIGSTOP))
}

/// To a stopped process one SIGSTOP more makes no difference, and whatever lets the process go on discards it. A SIGTRAP that
/// somebody outside has sent while the job stood still would be taken for the stub's own.
fn without_stops(queue: &[Queued]) -> impl Iterator<Item = &Queued> {
    queue.iter().filter(|queued| ![libc::SIGSTOP, libc::SIGTRAP].contains(&queued.signal))
}

/// Reads a queue in its order. `set` is what `status` said of it when the thread had stopped: more may have come since.
fn queue(task: &Stopped, shared: bool, set: u64) -> Result<Vec<Queued>, Failure> {
    let mut signals = read_queue(task.host, shared)?;
    // When a queue is full the kernel only notes that the signal is there. It is then delivered as one of nobody's.
    let told = signals.iter().fold(0, |set, queued| set | 1_u64.checked_shl(bit(queued.signal)).unwrap_or(0));
    let untold = |n| Queued { signal: n as i32 + 1, errno: 0, code: SI_USER, fields: [Hex(0); 4] };
    signals.extend(Hex(set & !told).bits().map(untold));
    Ok(signals)
}

pub(crate) fn read_queue(host: Pid, shared: bool) -> Result<Vec<Queued>, Failure> {
    let mut signals = Vec::new();
    loop {
        let mut room = [[0; 128]; 32];
        let got = queued_signals(host, shared, signals.len() as u64, &mut room)
            .doing(|| format!("read the queued signals of thread {host}"))?;
        signals.extend(room[..got.min(room.len())].iter().map(Queued::read));
        if got < room.len() {
            return Ok(signals);
        }
    }
}

/// A blocked SIGTRAP that waits can't be carried: it would be taken for the stub's own. So this is asked before the stub
/// runs for the first time.
pub fn blocker(task: &Stopped) -> Option<Blocker> {
    let shared = if task.tid == task.pid { task.status.shd_pnd } else { 0 };
    let set = Hex(task.status.sig_pnd | shared);
    set.has(bit(libc::SIGTRAP)).then(|| Blocker {
        pid: task.pid,
        comm: task.comm(),
        what: format!("thread {}: pending SIGTRAP", task.tid),
        why: "ckrun needs this signal to work in the process".to_owned(),
        remedy: None,
    })
}

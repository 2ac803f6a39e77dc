//! POSIX timers whose signal waits, and that go off again and again meanwhile.
//!
//! The kernel counts these overruns in the timer and tells the count to nobody but who takes the signal. So the task
//! takes it, and then sets the timer to have gone off for the first time when it did: its signal waits again, and the
//! kernel counts on from where it was. In a restarted job the timer is set in the same way.
//!
//! Every program leaves the job with as many signals as it had, wherever ckrun's own work ends: between the two a copy
//! of the signal waits that the task has sent to itself. Only its place among signals of the same number may change.

use crate::Failure;
use crate::interval_timers::Interval;
use crate::program::{Answers, Arg, Place, Program};
use crate::resource::Stopped;
use crate::signals::{Queued, SET, bit, read_queue, room_in_queue};
use crate::sys::peek::RawSiginfo;
use crate::timers::Listed;

/// Clocks whose time can be told and set: those that count CPU time start anew.
pub(crate) const CLOCKS: [i32; 4] =
    [libc::CLOCK_REALTIME, libc::CLOCK_MONOTONIC, libc::CLOCK_BOOTTIME, libc::CLOCK_TAI];
const NANO: i64 = 1_000_000_000;

/// A signal that waits.
struct Waiting {
    queued: Queued,
    shared: bool,
    /// The timer that has sent it, as an index, if it is one with overruns.
    timer: Option<usize>,
}

/// Notes in `timers`, the list of a process, when those went off whose signal waits for `task` or, if that leads the
/// process, for the process. `run` runs a program in the task.
///
/// # Errors
/// The kernel's.
pub fn note(
    timers: &mut [Listed],
    task: &Stopped,
    run: &mut dyn FnMut(&Program) -> Result<Answers, Failure>,
) -> Result<(), Failure> {
    if timers.is_empty() {
        return Ok(());
    }
    let mut all = queues(task)?;
    for waiting in all.iter_mut().filter(|waiting| waiting.queued.code == libc::SI_TIMER) {
        waiting.timer = timers.iter().position(|timer| timer.sends(&waiting.queued));
    }
    let candidates: Vec<usize> = all.iter().filter_map(|waiting| waiting.timer).collect();
    if candidates.is_empty() {
        return Ok(());
    }

    let mut program = Program::new();
    let places: Vec<Place> = candidates.iter().map(|&index| timers[index].ask(&mut program)).collect();
    let answers = run(&program)?;
    let repeats = |index: usize| {
        let place = candidates.iter().position(|&c| c == index).map(|k| places[k]);
        place.is_some_and(|place| nanoseconds(Interval::read(&answers, place).interval) > 0)
    };
    for waiting in &mut all {
        waiting.timer =
            waiting.timer.filter(|&index| CLOCKS.contains(&timers[index].clock) && repeats(index));
    }
    // Of one that waits for the thread and for the process the kernel hands out the former only.
    let both = |signal| {
        let with = |shared| all.iter().any(|w| w.queued.signal == signal && w.shared == shared);
        with(true) && with(false)
    };
    let sent = all.iter().filter(|w| w.timer.is_some()).map(|w| w.queued.signal);
    let signals: Vec<i32> = sent.filter(|&signal| !both(signal)).collect();
    all.retain(|waiting| signals.contains(&waiting.queued.signal));
    if all.is_empty() || room_in_queue(task)? < all.len() as u64 {
        return Ok(());
    }
    take_and_send(timers, &all, run)?;
    take_and_set(timers, &all, run)
}

/// Takes the signals in the order in which the kernel hands them out, and sends each again at once: the order stays,
/// unless a timer goes off in between.
fn take_and_send(
    timers: &mut [Listed],
    all: &[Waiting],
    run: &mut dyn FnMut(&Program) -> Result<Answers, Failure>,
) -> Result<(), Failure> {
    let mut program = Program::new();
    let sender = Sender::new(&mut program);
    let infos: Vec<Place> = all
        .iter()
        .map(|waiting| {
            let info = take(&mut program, waiting, true);
            sender.send(&mut program, waiting, info);
            info
        })
        .collect();
    let asked: Vec<_> = all
        .iter()
        .map(|waiting| {
            let timer = &timers[waiting.timer?];
            Some((timer.ask(&mut program), timer.ask_clock(&mut program)))
        })
        .collect();
    let answers = run(&program)?;
    for ((waiting, info), asked) in all.iter().zip(infos).zip(asked) {
        let (Some(index), Some((place, clock))) = (waiting.timer, asked) else { continue };
        let time = Interval::read(&answers, place);
        let (interval, left) = (nanoseconds(time.interval), nanoseconds(time.left));
        // `si_overrun`. The signal stands for the first time, and each of these for another one.
        let times = i64::from(answers.u32(info, 20)).saturating_add(1);
        let next = read_clock(&answers, clock).saturating_add(left);
        timers[index].went_off = Some((next.saturating_sub(times.saturating_mul(interval)).max(1), interval));
    }
    Ok(())
}

/// Takes them once more, and sends again what others than timers had sent. Then the timers are set, and send theirs.
fn take_and_set(
    timers: &[Listed],
    all: &[Waiting],
    run: &mut dyn FnMut(&Program) -> Result<Answers, Failure>,
) -> Result<(), Failure> {
    let set_to = |waiting: &Waiting| {
        let timer = &timers[waiting.timer?];
        timer.went_off.map(|(start, interval)| (timer.id, start, interval))
    };
    let mut program = Program::new();
    let sender = Sender::new(&mut program);
    // A timer may have gone off since. When it is set anew, the kernel passes over a signal that it had sent before; of a
    // standard signal, for which there is room once, there may then be none left to take.
    for (id, ..) in all.iter().filter_map(set_to) {
        set(&mut program, id, 0, 0);
    }
    for waiting in all {
        let info = take(&mut program, waiting, set_to(waiting).is_none());
        if set_to(waiting).is_none() {
            sender.send(&mut program, waiting, info);
        }
    }
    for (id, start, interval) in all.iter().filter_map(set_to) {
        set(&mut program, id, start, interval);
    }
    run(&program).map(drop)
}

/// Adds the call by which timer `id` goes off at `start`, in the past, and every `interval` nanoseconds from then on; 0
/// for never.
pub(crate) fn set(program: &mut Program, id: i32, start: i64, interval: i64) {
    let time = Interval { left: split(start), interval: split(interval) };
    let time = program.put(&time.to_bytes());
    let args: [Arg; 4] = [id.into(), libc::TIMER_ABSTIME.into(), time.into(), 0.into()];
    program.call(format!("set timer {id}"), libc::SYS_timer_settime, &args);
}

/// All signals that wait, the thread's own first.
fn queues(task: &Stopped) -> Result<Vec<Waiting>, Failure> {
    let queue = |shared, set| if set == 0 { Ok(Vec::new()) } else { read_queue(task.host, shared) };
    let own = queue(false, task.status.sig_pnd)?.into_iter().map(|queued| (queued, false));
    let for_all = if task.tid == task.pid { task.status.shd_pnd } else { 0 };
    let shared = queue(true, for_all)?.into_iter().map(|queued| (queued, true));
    Ok(own.chain(shared).map(|(queued, shared)| Waiting { queued, shared, timer: None }).collect())
}

fn take(program: &mut Program, waiting: &Waiting, must_be_there: bool) -> Place {
    let set = program.put(&1_u64.checked_shl(bit(waiting.queued.signal)).unwrap_or(0).to_ne_bytes());
    let (info, no_time) = (program.room(size_of::<RawSiginfo>()), program.room(16));
    let args = [set.into(), info.into(), no_time.into(), SET.into()];
    let (what, nr) = ("take a signal that waits", libc::SYS_rt_sigtimedwait);
    if must_be_there {
        program.call(what, nr, &args)
    } else {
        program.attempt(what, nr, &args)
    };
    info
}

/// Sends signals to the task itself.
struct Sender {
    process: Arg,
    thread: Arg,
}

impl Sender {
    fn new(program: &mut Program) -> Sender {
        let process = program.call("get the process id", libc::SYS_getpid, &[]).into();
        Sender { process, thread: program.call("get the thread id", libc::SYS_gettid, &[]).into() }
    }

    fn send(&self, program: &mut Program, waiting: &Waiting, info: Place) {
        let (signal, info) = (waiting.queued.signal.into(), info.into());
        if waiting.shared {
            program.attempt("send it again", libc::SYS_rt_sigqueueinfo, &[self.process, signal, info]);
        } else {
            let args = [self.process, self.thread, signal, info];
            program.attempt("send it again", libc::SYS_rt_tgsigqueueinfo, &args);
        }
    }
}

/// Adds the question what time it is by `clock`.
pub(crate) fn ask_clock(program: &mut Program, clock: i32) -> Place {
    let place = program.room(16);
    program.call("read a clock", libc::SYS_clock_gettime, &[clock.into(), place.into()]);
    place
}

pub(crate) fn read_clock(answers: &Answers, place: Place) -> i64 {
    nanoseconds([answers.u64(place, 0).cast_signed(), answers.u64(place, 8).cast_signed()])
}

pub(crate) fn nanoseconds([seconds, rest]: [i64; 2]) -> i64 {
    seconds.saturating_mul(NANO).saturating_add(rest)
}

fn split(nanoseconds: i64) -> [i64; 2] {
    [nanoseconds.div_euclid(NANO), nanoseconds.rem_euclid(NANO)]
}

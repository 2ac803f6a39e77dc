//! Calls that a stop ends for good.
//!
//! Most calls that wait go on by themselves after a stop. Some answer `EINTR` instead (signal(7) has the list), to any
//! stop, though no signal has come. The program must not see that, so its registers are made to say what those of other
//! calls say: make the call again, unless a handler runs before that; then it is `EINTR` all the same.
//!
//! A timeout would begin anew. That of epoll_wait is a register, which gets what is left of it; the rest stays as it is,
//! and such a call may wait up to twice as long.

use super::sleep::{ERESTARTNOHAND, milliseconds};
use super::timers::{Timer, Timers};
use crate::sys::ptrace::Registers;
use nix::unistd::Pid;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Calls that answer EINTR only before they have done anything. close(2), for one, is not among them.
const ENDED_BY_A_STOP: &[libc::c_long] = &[
    libc::SYS_epoll_wait,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_semop,
    libc::SYS_semtimedop,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_io_getevents,
    // On sockets with a timeout (SO_RCVTIMEO, SO_SNDTIMEO).
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_recvmmsg,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_sendto,
    libc::SYS_sendmsg,
    libc::SYS_sendmmsg,
    libc::SYS_accept,
    libc::SYS_accept4,
    libc::SYS_connect,
    // When the time that remains can't be written back.
    libc::SYS_select,
    libc::SYS_pselect6,
    libc::SYS_ppoll,
];

/// What was seen of threads before they were stopped: their timers are gone afterwards.
#[derive(Debug, Default)]
pub struct Before {
    waits: BTreeMap<Pid, Wait>,
    /// Timers that were there after a round of looks and before the stops.
    rounds: Vec<(Timers, Instant)>,
}

/// A thread in epoll_wait.
#[derive(Debug)]
struct Wait {
    timeout: Duration,
    /// How often it had waited, this time included.
    waits: u64,
    round: usize,
}

impl Before {
    /// Looks at threads that are about to be stopped, by their process's id and their own.
    pub fn look(&mut self, threads: &[(Pid, Pid)]) {
        let round = self.rounds.len();
        let wait = |&(host, tid): &(Pid, Pid)| Some((tid, Wait { round, ..Wait::of(host, tid)? }));
        let found = threads.iter().filter_map(wait);
        let seen = self.waits.len();
        self.waits.extend(found);
        if self.waits.len() > seen {
            // Where the kernel's timers are hidden, the whole timeout begins anew.
            self.rounds.extend(Timers::read().ok().map(|timers| (timers, Instant::now())));
        }
    }

    /// Threads whose timeout is to be corrected, see [`Before::remaining`].
    pub fn timed(&self) -> impl Iterator<Item = Pid> {
        self.waits.keys().copied()
    }

    /// What remains of the timeouts of [`Before::timed`]: the time that was to pass when their timers were there, less
    /// what has passed since. `now` are the timers that are there although all threads have stopped.
    pub fn remaining(&self, tid: Pid, now: &Timers) -> Option<Duration> {
        let wait = self.waits.get(&tid)?;
        // If it has done more than stop, it may have been in another call.
        if waits(tid)? != wait.waits + 1 {
            return None;
        }
        let (before, seen) = self.rounds.get(wait.round)?;
        // A timer that is still there belongs to somebody else.
        let gone = before.timers.iter().filter(|timer| !now.timers.iter().any(|t| t.same(timer)));
        let suspects: Vec<&Timer> = gone.filter(|timer| before.until(timer) <= wait.timeout).collect();
        let due = slacks(wait.timeout).into_iter().find_map(|slack| {
            let near = |timer: &&&Timer| slack.contains(&timer.slack);
            // Of several the last: no program expects its timeout before its time.
            suspects.iter().filter(near).map(|timer| before.until(timer)).max()
        })?;
        Some(due.saturating_sub(seen.elapsed()))
    }
}

impl Wait {
    fn of(host: Pid, tid: Pid) -> Option<Wait> {
        let text = crate::proc::read(&format!("/proc/{host}/task/{tid}/syscall")).ok()?;
        // The number, and the arguments in hexadecimal.
        let mut words = std::str::from_utf8(&text).ok()?.split_ascii_whitespace();
        if !waits_in_epoll(words.next()?.parse().ok()?) {
            return None;
        }
        let fourth = u64::from_str_radix(words.nth(3)?.strip_prefix("0x")?, 16).ok()?;
        Some(Wait { timeout: timeout(fourth)?, waits: waits(tid)?, round: 0 })
    }
}

/// How often a thread has left its CPU because it had to wait. A stop is one more; being preempted is not.
fn waits(tid: Pid) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{tid}/status")).ok()?;
    text.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"))?.trim().parse().ok()
}

/// By how many nanoseconds the kernel lets the timer of epoll_wait be late (select_estimate_accuracy): a thousandth of the
/// timeout, for a nice process five, 0.1 s at most, and at least the thread's timer slack.
fn slacks(timeout: Duration) -> [std::ops::RangeInclusive<u64>; 2] {
    const DEFAULT: u64 = 50_000;
    let part = |divisor: u128| {
        let most = u64::try_from(timeout.as_nanos() / divisor).unwrap_or(u64::MAX).min(100_000_000);
        // It is computed from the time that is left a moment after the call.
        most.max(DEFAULT).saturating_sub(most / 100)..=most.max(DEFAULT)
    };
    [part(1000), part(200)]
}

fn waits_in_epoll(number: libc::c_long) -> bool {
    number == libc::SYS_epoll_wait || number == libc::SYS_epoll_pwait
}

/// A timeout in milliseconds, an int; None when it has no end or is over at once.
fn timeout(register: u64) -> Option<Duration> {
    u64::try_from(register as i32).ok().filter(|&ms| ms != 0).map(Duration::from_millis)
}

/// Makes the registers of a thread that has just been stopped say that its call is to be made again, if the call has ended
/// only because of that. The answer is whether they were changed.
pub fn make_again(regs: &mut Registers) -> bool {
    let ended = regs.rax.cast_signed() == -i64::from(libc::EINTR);
    let again = ended && ENDED_BY_A_STOP.contains(&regs.orig_rax.cast_signed());
    if again {
        regs.rax = ERESTARTNOHAND.cast_unsigned();
    }
    again
}

/// Gives a call of [`Before::timed`] that is to be made again the timeout that remains. The answer is whether the registers
/// were changed.
pub fn set_timeout(regs: &mut Registers, remaining: Duration) -> bool {
    let again = regs.rax.cast_signed() == ERESTARTNOHAND && waits_in_epoll(regs.orig_rax.cast_signed());
    let shorter = timeout(regs.r10).is_some_and(|whole| remaining < whole);
    if again && shorter {
        regs.r10 = milliseconds(remaining).cast_unsigned().into();
    }
    again && shorter
}

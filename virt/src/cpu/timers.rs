//! When a sleeping thread is to wake up: `/proc/timer_list`.
//!
//! Nothing else tells it. The list shows every running timer of the kernel with its expiry, but not whose it is: a timer
//! is known by appearing when its thread falls asleep.

use crate::{Doing, Failure};
use std::time::Duration;

const PATH: &str = "/proc/timer_list";

/// A timer that is to wake up a thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timer {
    /// Its address, scrambled: it tells timers apart, no more.
    address: u64,
    /// When it is due, in nanoseconds of CLOCK_MONOTONIC of the host.
    pub due: u64,
    /// By how many nanoseconds the kernel may delay it.
    pub slack: u64,
}

/// The timers that are to wake up threads, at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Timers {
    /// The moment, in nanoseconds of CLOCK_MONOTONIC of the host.
    pub now: u64,
    /// All of them.
    pub timers: Vec<Timer>,
}

impl Timers {
    /// Those of this moment.
    ///
    /// # Errors
    /// The kernel's; inside a container the file is often hidden.
    pub fn read() -> Result<Timers, Failure> {
        let (first, mut all) = (Timers::glance()?, Timers::glance()?);
        all.timers.extend(first.new_since(&all));
        Ok(all)
    }

    /// Those of this moment, though one of them may be missing: the kernel counts its way through a list that changes
    /// meanwhile, and when a timer before it goes, one is left out. That hardly happens twice to the same.
    ///
    /// # Errors
    /// As [`Timers::read`].
    pub fn glance() -> Result<Timers, Failure> {
        let text = crate::proc::read(PATH).doing(|| format!("read {PATH}"))?;
        Ok(Timers::parse(&String::from_utf8_lossy(&text)))
    }

    fn parse(text: &str) -> Timers {
        let mut found = Timers { now: 0, timers: Vec::new() };
        // How far the clock of the timers that follow is ahead of CLOCK_MONOTONIC.
        let mut ahead = 0;
        let mut address = None;
        for line in text.lines() {
            let line = line.trim_start();
            if let Some(rest) = line.strip_prefix("# expires at ") {
                if let (Some(address), Some((due, latest))) = (address.take(), range(rest)) {
                    let timer =
                        Timer { address, due: due.saturating_sub(ahead), slack: latest.saturating_sub(due) };
                    found.timers.push(timer);
                }
            } else if line.starts_with('#') {
                address = sleeper(line);
            } else if let Some(rest) = line.strip_prefix(".offset:") {
                ahead = number(rest).unwrap_or(0);
            } else if let Some(rest) = line.strip_prefix("now at ") {
                found.now = number(rest).unwrap_or(0);
            } else if line.starts_with("clock ") {
                ahead = 0;
            }
        }
        found
    }

    /// Those that were not there `before`, with the same expiry.
    pub fn new_since(&self, before: &Timers) -> Vec<Timer> {
        let there = |timer: &Timer| before.timers.iter().any(|t| t.same(timer));
        self.timers.iter().filter(|timer| !there(timer)).copied().collect()
    }

    /// The time from this moment until `timer` is due.
    pub fn until(&self, timer: &Timer) -> Duration {
        Duration::from_nanos(timer.due.saturating_sub(self.now))
    }
}

impl Timer {
    /// It is the same timer, at least the same wait: the kernel chooses the slack anew when a wait goes on.
    pub fn same(&self, other: &Timer) -> bool {
        self.address == other.address && self.due == other.due
    }
}

/// The address in ` #3: <00000000d0c9db9e>, hrtimer_wakeup, S:01`.
fn sleeper(line: &str) -> Option<u64> {
    let (address, rest) = line.split_once('<')?.1.split_once('>')?;
    let function = rest.split(',').nth(1)?.trim();
    if function != "hrtimer_wakeup" {
        return None;
    }
    u64::from_str_radix(address, 16).ok()
}

/// The numbers in `17-18 nsecs [in 7 to 8 nsecs]`.
fn range(text: &str) -> Option<(u64, u64)> {
    let (from, to) = text.split_ascii_whitespace().next()?.split_once('-')?;
    Some((from.parse().ok()?, to.parse().ok()?))
}

/// The first number of a text.
fn number(text: &str) -> Option<u64> {
    text.split_ascii_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_sleepers_are_taken_each_by_its_own_clock() {
        let text = "Timer List Version: v0.10\nnow at 1000 nsecs\n\ncpu: 0\n clock 0:\n  .offset:     0 nsecs\n\
            active timers:\n #0: <00000000942ccb97>, tick_nohz_handler, S:01\n \
            # expires at 1500-1500 nsecs [in 500 to 500 nsecs]\n \
            #1: <0000000073935dec>, hrtimer_wakeup, S:01\n # expires at 1700-1760 nsecs [in 700 to 760 nsecs]\n \
            clock 1:\n  .offset:     5000 nsecs\nactive timers:\n #0: <00000000000000aa>, hrtimer_wakeup, S:01\n \
            # expires at 6900-6900 nsecs [in 1 to 2 nsecs]\n";
        let timers = Timers::parse(text);
        assert_eq!(timers.now, 1000);
        let expected = [
            Timer { address: 0x7393_5dec, due: 1700, slack: 60 },
            Timer { address: 0xaa, due: 1900, slack: 0 },
        ];
        assert_eq!(timers.timers, expected);
        assert_eq!(timers.until(&expected[1]), Duration::from_nanos(900));
        let earlier = Timers { now: 0, timers: vec![expected[0]] };
        assert_eq!(timers.new_since(&earlier), [expected[1]]);
    }
}

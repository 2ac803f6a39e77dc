//! Timers of timerfd_create(2).
//!
//! A relative timer goes on with the time that was left. An absolute one keeps its date: CLOCK_MONOTONIC and
//! CLOCK_BOOTTIME as the job sees them go on where they were (see [`crate::clocks`]), CLOCK_REALTIME is the host's.

use super::Trouble;
use super::capture::Job;
use super::making::Making;
use crate::Doing;
use crate::clocks::Clocks;
use crate::program::Program;
use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};
use std::os::fd::RawFd;

/// `_IOW('T', 0, u64)` of `linux/timerfd.h`.
const TFD_IOC_SET_TICKS: u64 = 0x4008_5400;
const ABSOLUTE: u32 = libc::TFD_TIMER_ABSTIME as u32;
const CANCEL_ON_SET: u32 = libc::TFD_TIMER_CANCEL_ON_SET as u32;
const NANO: i64 = 1_000_000_000;

/// A timer. Times are seconds and nanoseconds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Timerfd {
    /// `CLOCK_*`.
    pub clock: i32,
    /// `TFD_TIMER_*`.
    pub flags: u32,
    /// How often it has expired since the last read.
    pub ticks: u64,
    /// When it expires next: a date for an absolute timer, else from now on; both zero when it does not.
    pub value: (i64, i64),
    /// How often it expires after that; both zero for a timer that expires once.
    pub interval: (i64, i64),
}

impl Job<'_> {
    pub(super) fn timerfd(&mut self, node: usize) -> Result<Timerfd, Trouble> {
        // A periodic timer that has expired rests until it is looked at. This counts what has passed, as a read would.
        if !self.running() {
            let fd = self.graph.take(node)?;
            rustix::time::timerfd_gettime(fd).doing(|| "read a timerfd")?;
        }
        let (host, fd) = self.graph.place(node);
        let info = super::seen::Info::read(host, fd)?;
        let pair = |name: &str| {
            let (seconds, nanos) =
                info.field(name)?.strip_prefix('(')?.strip_suffix(')')?.split_once(", ")?;
            Some((seconds.parse().ok()?, nanos.parse().ok()?))
        };
        let flags = info.field("settime flags").and_then(|octal| u32::from_str_radix(octal, 8).ok());
        let (Some(flags), Some(left), Some(interval)) = (flags, pair("it_value"), pair("it_interval")) else {
            return Err(Trouble::refused("timerfd", "this kernel does not tell its state"));
        };
        let clock: i32 = info.number("clockid");
        let armed = left != (0, 0);
        let value = if armed && flags & ABSOLUTE != 0 { self.date(clock, left)? } else { left };
        Ok(Timerfd { clock, flags, ticks: info.number("ticks"), value, interval })
    }

    /// When it will be that `left` has passed, on the job's clock.
    fn date(&self, clock: i32, left: (i64, i64)) -> Result<(i64, i64), Trouble> {
        let now = match clock {
            libc::CLOCK_MONOTONIC => self.clocks()?.monotonic,
            libc::CLOCK_BOOTTIME | libc::CLOCK_BOOTTIME_ALARM => self.clocks()?.boottime,
            _ => {
                let now = clock_gettime(ClockId::CLOCK_REALTIME).doing(|| "read the clock")?;
                now.tv_sec().saturating_mul(NANO).saturating_add(now.tv_nsec())
            }
        };
        let date = now.saturating_add(left.0.saturating_mul(NANO)).saturating_add(left.1);
        Ok((date.div_euclid(NANO), date.rem_euclid(NANO)))
    }

    fn clocks(&self) -> Result<Clocks, Trouble> {
        let init = self.graph.members.first().map_or(nix::unistd::Pid::this(), |init| init.host);
        Ok(Clocks::of(init)?)
    }
}

impl Timerfd {
    pub(super) fn make(&self, to: RawFd, making: &mut Making<'_>) {
        let flags = libc::TFD_CLOEXEC;
        let args = [self.clock.into(), flags.into()];
        let made = making.program.call("make a timerfd", libc::SYS_timerfd_create, &args);
        making.put_at(made.into(), to);
    }

    /// It has expired already and was not read, so that it does not matter if the next time comes a little early: it is
    /// set now, before an epoll that watches it is put into its state.
    pub(super) fn is_due(&self) -> bool {
        self.ticks > 0
    }

    /// Sets it going.
    pub(super) fn start(&self, fd: RawFd, program: &mut Program) {
        let flags = self.flags & (ABSOLUTE | CANCEL_ON_SET);
        let times = [self.interval.0, self.interval.1, self.value.0, self.value.1];
        if self.value != (0, 0) {
            let spec = program.put(&times.map(i64::to_ne_bytes).concat());
            let args = [fd.into(), flags.into(), spec.into(), 0.into()];
            program.call("set a timerfd", libc::SYS_timerfd_settime, &args);
        }
        if self.ticks > 0 {
            let ticks = program.put(&self.ticks.to_ne_bytes());
            let args = [fd.into(), TFD_IOC_SET_TICKS.into(), ticks.into()];
            program.call("count a timerfd's expirations", libc::SYS_ioctl, &args);
        }
    }
}

//! The clocks that a job sees: CLOCK_MONOTONIC and CLOCK_BOOTTIME, which go on where they were when it is restarted.
//!
//! They count from the boot of a host. On the same boot they have gone on by themselves. On any other a time namespace
//! (time_namespaces(7)) gives them the offsets with which they continue from the moment of the checkpoint: a deadline of
//! the job is then as far away as it was.

use crate::{Doing, Failure};
use nix::errno::Errno;
use nix::time::{ClockId, clock_gettime};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

/// What is known of a job's clocks at its checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Clocks {
    /// `/proc/sys/kernel/random/boot_id`: the boot from which the host's clocks count.
    pub boot_id: String,
    /// Nanoseconds, as the job saw them.
    pub monotonic: i64,
    /// The same of CLOCK_BOOTTIME.
    pub boottime: i64,
    /// By how much the job's clocks were ahead of the host's.
    pub offsets: Offsets,
}

/// How far the clocks of a time namespace are ahead of the host's, in nanoseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Offsets {
    /// CLOCK_MONOTONIC.
    pub monotonic: i64,
    /// CLOCK_BOOTTIME.
    pub boottime: i64,
}

/// The host's own clocks, now.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Host {
    boot_id: String,
    monotonic: i64,
    boottime: i64,
}

impl Clocks {
    /// The file of an image that they are in.
    pub const FILE: &str = "clocks.json";

    /// Those of a job, by its first process. Threads of one process are in the same time namespace, and a process's
    /// children are in its own, unless it asked otherwise.
    ///
    /// # Errors
    /// The kernel's.
    pub fn of(init: Pid) -> Result<Clocks, Failure> {
        Ok(Clocks::at(Host::now()?, Offsets::of(&init.to_string())?))
    }

    fn at(host: Host, offsets: Offsets) -> Clocks {
        Clocks {
            boot_id: host.boot_id,
            monotonic: host.monotonic.saturating_add(offsets.monotonic),
            boottime: host.boottime.saturating_add(offsets.boottime),
            offsets,
        }
    }

    /// The offsets with which they go on here and now; None when they do so without a time namespace of the job's own.
    ///
    /// # Errors
    /// The kernel's.
    pub fn go_on_here(&self) -> Result<Option<Offsets>, Failure> {
        let wanted = self.offsets_on(&Host::now()?);
        Ok((wanted != Offsets::of("self")?).then_some(wanted))
    }

    fn offsets_on(&self, host: &Host) -> Offsets {
        if host.boot_id == self.boot_id {
            return self.offsets;
        }
        Offsets {
            monotonic: self.monotonic.saturating_sub(host.monotonic),
            boottime: self.boottime.saturating_sub(host.boottime),
        }
    }
}

impl Host {
    fn now() -> Result<Host, Failure> {
        let path = "/proc/sys/kernel/random/boot_id";
        let boot_id = std::fs::read_to_string(path).doing(|| format!("read {path}"))?;
        // ckrun itself may be in a time namespace.
        let own = Offsets::of("self")?;
        Ok(Host {
            boot_id: boot_id.trim_end().into(),
            monotonic: nanoseconds(ClockId::CLOCK_MONOTONIC)?.saturating_sub(own.monotonic),
            boottime: nanoseconds(ClockId::CLOCK_BOOTTIME)?.saturating_sub(own.boottime),
        })
    }
}

fn nanoseconds(clock: ClockId) -> Result<i64, Failure> {
    let time = clock_gettime(clock).doing(|| "read a clock")?;
    Ok(time.tv_sec().saturating_mul(NANO).saturating_add(time.tv_nsec()))
}

const NANO: i64 = 1_000_000_000;

impl Offsets {
    /// Those of a process's time namespace, strictly speaking of its future children's. A kernel without time namespaces
    /// has none.
    fn of(process: &str) -> Result<Offsets, Failure> {
        let path = format!("/proc/{process}/timens_offsets");
        match std::fs::read_to_string(&path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound && process == "self" => Ok(Offsets::default()),
            text => Offsets::parse(&text.doing(|| format!("read {path}"))?)
                .ok_or_else(|| Failure::new(format!("understand {path}"), Errno::EBADMSG)),
        }
    }

    /// Lines of a clock's name, seconds and nanoseconds.
    fn parse(text: &str) -> Option<Offsets> {
        let mut offsets = Offsets::default();
        for line in text.lines() {
            let mut words = line.split_whitespace();
            let clock = words.next()?;
            let seconds: i64 = words.next()?.parse().ok()?;
            let offset = seconds.checked_mul(NANO)?.checked_add(words.next()?.parse().ok()?)?;
            match clock {
                "monotonic" => offsets.monotonic = offset,
                "boottime" => offsets.boottime = offset,
                _ => {}
            }
        }
        Some(offsets)
    }

    /// The clocks' names, seconds and nanoseconds, as `/proc/PID/timens_offsets` takes them: the latter never negative.
    pub fn split(&self) -> [(&'static str, i64, u32); 2] {
        let split = |name, all: i64| {
            (name, all.div_euclid(NANO), u32::try_from(all.rem_euclid(NANO)).unwrap_or_default())
        };
        [split("monotonic", self.monotonic), split("boottime", self.boottime)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(boot_id: &str, monotonic: i64) -> Host {
        Host { boot_id: boot_id.into(), monotonic, boottime: monotonic + 5 }
    }

    #[test]
    fn on_the_same_boot_they_go_on_by_themselves() {
        let none = Offsets::default();
        assert_eq!(Clocks::at(host("a", 1000), none).offsets_on(&host("a", 9000)), none);
        // A job that was given offsets once keeps them.
        let given = Offsets { monotonic: -7, boottime: 70 };
        assert_eq!(Clocks::at(host("a", 1000), given).offsets_on(&host("a", 9000)), given);
    }

    #[test]
    fn on_another_boot_they_continue_from_the_checkpoint() {
        let given = Offsets { monotonic: 100, boottime: 200 };
        let clocks = Clocks::at(host("a", 1000), given);
        for now in [50, 5_000_000] {
            let there = host("b", now);
            let offsets = clocks.offsets_on(&there);
            assert_eq!(there.monotonic + offsets.monotonic, 1100);
            assert_eq!(there.boottime + offsets.boottime, 1205);
        }
    }

    #[test]
    fn this_process_needs_no_time_namespace_here() {
        assert_eq!(Clocks::of(Pid::this()).unwrap().go_on_here().unwrap(), None);
    }

    #[test]
    fn offsets_are_read_and_written_as_the_kernel_does() {
        let text = "monotonic           -3 999999999\nboottime            10         5\n";
        let offsets = Offsets::parse(text).unwrap();
        assert_eq!(offsets, Offsets { monotonic: -2_000_000_001, boottime: 10_000_000_005 });
        assert_eq!(offsets.split(), [("monotonic", -3, 999_999_999), ("boottime", 10, 5)]);
        assert_eq!(Offsets::parse("monotonic x 0\n"), None);
    }
}

//! Counters of eventfd(2).

use super::Trouble;
use super::capture::Job;
use super::making::Making;
use crate::{Doing, Failure};
use serde::{Deserialize, Serialize};
use std::os::fd::{OwnedFd, RawFd};

/// The highest count.
const MOST: u64 = u64::MAX - 1;

/// A counter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Eventfd {
    /// What the next read gets.
    pub count: u64,
    /// A read takes one instead of all (EFD_SEMAPHORE).
    pub semaphore: bool,
}

impl Job<'_> {
    pub(super) fn eventfd(&mut self, node: usize) -> Result<Eventfd, Trouble> {
        let seen = &self.graph.nodes[node].seen;
        let count = seen.info.field("eventfd-count").and_then(|hex| u64::from_str_radix(hex, 16).ok());
        let strange = || Trouble::refused("eventfd", "this kernel does not tell its state");
        let count = count.ok_or_else(strange)?;
        let semaphore = match seen.info.field("eventfd-semaphore") {
            Some(semaphore) => semaphore != "0",
            None if self.running() => false,
            None => try_out(&self.graph.take(node)?, count)?,
        };
        Ok(Eventfd { count, semaphore })
    }
}

/// Before Linux 6.5 only a read tells whether it takes one or all. Afterwards the counter is as it was; only a ckrun that is
/// killed in between leaves it changed.
fn try_out(own: &OwnedFd, count: u64) -> Result<bool, Failure> {
    let what = || "look whether an eventfd is a semaphore";
    let (mut got, more) = ([0; 8], 2_u64.min(MOST - count));
    let read = |got: &mut [u8; 8]| rustix::io::read(own, got).doing(what);
    let write = |number: u64| match number {
        0 => Ok(()),
        _ => rustix::io::write(own, &number.to_ne_bytes()).map(drop).doing(what),
    };
    // With two or more in it, nobody waits, and the answers differ.
    write(more)?;
    read(&mut got)?;
    if u64::from_ne_bytes(got) > 1 {
        write(count)?;
        return Ok(false);
    }
    match more {
        0 => write(1)?,
        _ => (1..more).try_for_each(|_| read(&mut got).map(drop))?,
    }
    Ok(true)
}

impl Eventfd {
    /// The count comes later: a counter of 0 can be written to, which epoll needs.
    pub(super) fn make(&self, to: RawFd, making: &mut Making<'_>) {
        let flags = libc::EFD_CLOEXEC | if self.semaphore { libc::EFD_SEMAPHORE } else { 0 };
        let made = making.program.call("make an eventfd", libc::SYS_eventfd2, &[0.into(), flags.into()]);
        making.put_at(made.into(), to);
    }

    pub(super) fn settle(&self, to: RawFd, making: &mut Making<'_>) {
        if self.count > 0 {
            let count = making.program.put(&self.count.to_ne_bytes());
            making.program.call(
                "set an eventfd",
                libc::SYS_write,
                &[to.into(), count.into(), count.len.into()],
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{EventfdFlags, eventfd};
    use rustix::io::{read, write};

    #[test]
    fn trying_out_changes_nothing() {
        for (flags, semaphore) in [(EventfdFlags::empty(), false), (EventfdFlags::SEMAPHORE, true)] {
            for count in [0, 1, 2, 7, MOST - 1, MOST] {
                let own = eventfd(0, flags | EventfdFlags::NONBLOCK).unwrap();
                if count > 0 {
                    write(&own, &count.to_ne_bytes()).unwrap();
                }
                assert_eq!(try_out(&own, count).unwrap(), semaphore, "{count}");
                let info = std::fs::read_to_string(format!(
                    "/proc/self/fdinfo/{}",
                    std::os::fd::AsRawFd::as_raw_fd(&own)
                ));
                let info = info.unwrap();
                let line = info.lines().find_map(|line| line.strip_prefix("eventfd-count:")).unwrap();
                assert_eq!(u64::from_str_radix(line.trim(), 16).unwrap(), count);
                let _ = read(&own, &mut [0; 8]);
            }
        }
    }
}

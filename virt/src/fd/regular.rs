//! Regular files. The container has them at a restart: only their place is carried, and what they looked like.

use super::making::{Making, OPEN};
use crate::image::Bytes;
use rustix::fs::Stat;
use serde::{Deserialize, Serialize};
use std::os::fd::RawFd;

/// A regular file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Regular {
    /// From the container's root.
    pub path: Bytes,
    /// What it looked like.
    pub stamp: Stamp,
}

/// By what a file is taken to be unchanged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Stamp {
    /// Bytes.
    pub size: u64,
    /// When it was changed last: seconds and nanoseconds since 1970.
    pub modified: (i64, u32),
}

impl Stamp {
    /// What stat(2) says.
    pub fn of(stat: &Stat) -> Stamp {
        Stamp {
            size: stat.st_size.cast_unsigned(),
            modified: (stat.st_mtime, u32::try_from(stat.st_mtime_nsec).unwrap_or(0)),
        }
    }

    /// What is different now.
    pub fn differs(&self, now: &Stamp) -> Option<String> {
        if self.size != now.size {
            return Some(format!("its size is {} now and was {}", now.size, self.size));
        }
        (!same_time(self.modified, now.modified)).then(|| {
            let (seconds, nanos) = now.modified;
            format!(
                "it was modified at {seconds}.{nanos:09}, before at {}.{:09}",
                self.modified.0, self.modified.1
            )
        })
    }
}

/// A file that was copied (tar, rsync, a registry's layers) may have lost the finer digits of its time.
fn same_time(a: (i64, u32), b: (i64, u32)) -> bool {
    let coarse =
        |nanos: u32| [1_000_000_000, 1_000_000, 1_000].into_iter().find(|&unit| nanos.is_multiple_of(unit));
    let unit = coarse(a.1).unwrap_or(1).max(coarse(b.1).unwrap_or(1));
    a.0 == b.0 && a.1 / unit == b.1 / unit
}

impl Regular {
    pub(super) fn new(path: Vec<u8>, stat: &Stat) -> Self {
        Regular { path: path.into(), stamp: Stamp::of(stat) }
    }

    pub(super) fn make(&self, flags: u32, to: RawFd, making: &mut Making<'_>) {
        making.open(&self.path, flags & OPEN, to);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_with_coarser_times_is_the_same() {
        let stamp = |size, seconds, nanos| Stamp { size, modified: (seconds, nanos) };
        let old = stamp(5, 100, 123_456_789);
        for same in [old, stamp(5, 100, 0), stamp(5, 100, 123_456_000), stamp(5, 100, 123_000_000)] {
            assert_eq!(old.differs(&same), None);
            assert_eq!(same.differs(&old), None);
        }
        for other in [
            stamp(6, 100, 123_456_789),
            stamp(5, 101, 0),
            stamp(5, 100, 123_456_788),
            stamp(5, 100, 124_000_000),
        ] {
            assert!(old.differs(&other).is_some());
        }
    }
}

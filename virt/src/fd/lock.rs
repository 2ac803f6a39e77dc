//! Locks and leases on files: flock(2), the two kinds of fcntl(2), F_SETLEASE.
//!
//! `/proc/PID/fdinfo` shows those that were set through a description: `1: POSIX  ADVISORY  WRITE 42 08:01:1234 0 EOF`.
//! A POSIX lock belongs to the process, the others to the description.

use super::Trouble;
use super::making::Making;
use crate::program::Program;
use serde::{Deserialize, Serialize};
use std::os::fd::RawFd;

/// A lock on a range of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Lock {
    /// The descriptor through which a process has set it; of an open file description's lock -1.
    #[serde(default = "none", skip_serializing_if = "is_none")]
    pub fd: RawFd,
    /// Nobody else may have a lock of any kind there.
    pub exclusive: bool,
    /// The first byte.
    pub start: u64,
    /// The last byte; without one, it reaches to the end of the file, wherever that will be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end: Option<u64>,
}

fn none() -> RawFd {
    -1
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde asks for a reference")]
fn is_none(fd: &RawFd) -> bool {
    *fd < 0
}

/// The locks that belong to a description.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Locks {
    /// Whether it has a lock of flock(2), and an exclusive one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flock: Option<bool>,
    /// The process that has set it, by its id in the job: `/proc` tells. It may have closed its descriptors since.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flocker: Option<i32>,
    /// Its locks of F_OFD_SETLK.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ranges: Vec<Lock>,
    /// Its lease, and whether it is one for writing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease: Option<bool>,
}

/// One line, taken apart.
struct Line<'a> {
    kind: &'a str,
    state: &'a str,
    access: &'a str,
    owner: i32,
    start: u64,
    end: Option<u64>,
}

impl<'a> Line<'a> {
    fn parse(line: &'a str) -> Option<Line<'a>> {
        let mut words = line.split_ascii_whitespace().skip(1);
        let (kind, state, access) = (words.next()?, words.next()?, words.next()?);
        let owner = words.next()?.parse().ok()?;
        // Device and inode are one word.
        let start = words.nth(1)?.parse().ok()?;
        let end = words.next()?.parse().ok();
        Some(Line { kind, state, access, owner, start, end })
    }

    fn lock(&self) -> Lock {
        Lock { fd: -1, exclusive: self.access == "WRITE", start: self.start, end: self.end }
    }
}

impl Lock {
    /// A process's own lock, from a line of fdinfo.
    pub(super) fn parse_posix(line: &str) -> Option<Lock> {
        Line::parse(line).filter(|line| line.kind == "POSIX").map(|line| line.lock())
    }

    /// `struct flock`.
    fn encode(&self) -> [u8; size_of::<libc::flock>()] {
        let mut bytes = [0; size_of::<libc::flock>()];
        let kind = if self.exclusive { libc::F_WRLCK } else { libc::F_RDLCK } as i16;
        let len = self.end.map_or(0, |end| end.saturating_sub(self.start).saturating_add(1));
        let mut store = |at: usize, value: &[u8]| bytes[at..][..value.len()].copy_from_slice(value);
        store(std::mem::offset_of!(libc::flock, l_type), &kind.to_ne_bytes());
        store(std::mem::offset_of!(libc::flock, l_whence), &(libc::SEEK_SET as i16).to_ne_bytes());
        store(std::mem::offset_of!(libc::flock, l_start), &self.start.to_ne_bytes());
        store(std::mem::offset_of!(libc::flock, l_len), &len.to_ne_bytes());
        bytes
    }

    /// Sets a process's own lock again. It must not close any descriptor to the file afterwards.
    pub(super) fn set(&self, program: &mut Program) {
        let lock = program.put(&self.encode());
        program.call(
            format!("lock the file of descriptor {}", self.fd),
            libc::SYS_fcntl,
            &[self.fd.into(), libc::F_SETLK.into(), lock.into()],
        );
    }
}

impl Locks {
    /// What the lines of a description's fdinfo tell, with ids as there. `name` is for people.
    pub(super) fn parse<'a>(
        name: impl FnOnce() -> String,
        lines: impl Iterator<Item = &'a str>,
    ) -> Result<Locks, Trouble> {
        let refused = |why| Trouble::refused(name(), why);
        let mut locks = Locks::default();
        for line in lines.filter_map(Line::parse) {
            match (line.kind, line.state) {
                ("FLOCK", _) => {
                    (locks.flock, locks.flocker) = (Some(line.access == "WRITE"), Some(line.owner));
                }
                ("OFDLCK", _) => locks.ranges.push(line.lock()),
                ("POSIX", _) => {}
                ("LEASE", "ACTIVE") => locks.lease = Some(line.access == "WRITE"),
                ("LEASE", _) => {
                    return Err(refused("a lease that somebody else's open is breaking").passing());
                }
                ("DELEG" | "LAYOUT", _) => return Err(refused("a delegation of an NFS server")),
                _ => return Err(refused("a lock of an unknown kind")),
            }
        }
        Ok(locks)
    }

    /// There are none.
    pub fn is_empty(&self) -> bool {
        *self == Locks::default()
    }

    /// Sets those that nobody is noted for, through descriptor `fd`.
    pub(super) fn set(&self, fd: RawFd, name: &str, making: &mut Making<'_>) {
        for range in &self.ranges {
            let lock = making.program.put(&range.encode());
            making.program.call(
                format!("lock {name}"),
                libc::SYS_fcntl,
                &[fd.into(), libc::F_OFD_SETLK.into(), lock.into()],
            );
        }
    }

    /// Sets those for which the kernel notes the process that does it: it shows the one of a lock, and tells the one of a
    /// lease.
    pub(super) fn set_own(&self, fd: RawFd, program: &mut Program) {
        if let Some(exclusive) = self.flock {
            let how = libc::LOCK_NB | if exclusive { libc::LOCK_EX } else { libc::LOCK_SH };
            let what = format!("flock the file of descriptor {fd}");
            program.call(what, libc::SYS_flock, &[fd.into(), how.into()]);
        }
        if let Some(write) = self.lease {
            let kind = if write { libc::F_WRLCK } else { libc::F_RDLCK };
            program.call(
                format!("take a lease on the file of descriptor {fd}"),
                libc::SYS_fcntl,
                &[fd.into(), libc::F_SETLEASE.into(), kind.into()],
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fd::Refusal;

    #[test]
    fn lines_of_all_kinds() {
        let lines = [
            "1: FLOCK  ADVISORY  WRITE 7 08:01:12 0 EOF",
            "2: OFDLCK ADVISORY  READ -1 08:01:12 10 19",
            "3: POSIX  ADVISORY  WRITE 7 08:01:12 5 EOF",
            "4: LEASE  ACTIVE    READ 7 08:01:12 0 EOF",
        ];
        let locks = Locks::parse(String::new, lines.into_iter()).unwrap();
        assert_eq!((locks.flock, locks.flocker, locks.lease), (Some(true), Some(7), Some(false)));
        assert_eq!(locks.ranges, [Lock { fd: -1, exclusive: false, start: 10, end: Some(19) }]);
        assert_eq!(
            lines.into_iter().filter_map(Lock::parse_posix).collect::<Vec<_>>(),
            [Lock { fd: -1, exclusive: true, start: 5, end: None }]
        );
        let breaking = ["1: LEASE  BREAKING  READ 7 08:01:12 0 EOF"];
        assert!(matches!(
            Locks::parse(String::new, breaking.into_iter()),
            Err(Trouble::Refused(Refusal { passing: true, .. }))
        ));
    }
}

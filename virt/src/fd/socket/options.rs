//! The options that sockets of all families have (socket(7)).
//!
//! Only what differs from a new socket of the same kind is kept; so an option that a kernel does not have is no matter.
//! ckrun reads and sets them by a descriptor of its own, before ([`Options::early`]) and after ([`Options::late`]) the
//! socket has its addresses and its content.

use super::Class;
use crate::fd::Trouble;
use crate::sys::sockopt;
use crate::{Doing, Failure};
use nix::errno::Errno;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd};

/// `asm-generic/socket.h`; not in libc.
const SO_BUF_LOCK: i32 = 72;
const SO_RCVMARK: i32 = 75;
const SO_PASSPIDFD: i32 = 76;
const SO_PASSRIGHTS: i32 = 83;
const SO_RCVPRIORITY: i32 = 82;
const SO_TXREHASH: i32 = 74;
/// Of SO_BUF_LOCK (`linux/socket.h`): the size was set by the program.
const SEND_LOCK: i32 = 1;
const RECEIVE_LOCK: i32 = 2;

/// Options that are a number; the names are those of socket(7), less `SO_`. The first ones have to be there before the
/// socket has an address. SO_INCOMING_CPU is not among them: it tells where the last packet came to.
const NUMBERS: [(&str, i32); 33] = [
    ("debug", libc::SO_DEBUG),
    ("reuseaddr", libc::SO_REUSEADDR),
    ("reuseport", libc::SO_REUSEPORT),
    ("mark", libc::SO_MARK),
    ("priority", libc::SO_PRIORITY),
    ("broadcast", libc::SO_BROADCAST),
    ("dontroute", libc::SO_DONTROUTE),
    ("txrehash", SO_TXREHASH),
    ("no-check", libc::SO_NO_CHECK),
    ("keepalive", libc::SO_KEEPALIVE),
    ("oobinline", libc::SO_OOBINLINE),
    ("passcred", libc::SO_PASSCRED),
    ("passsec", libc::SO_PASSSEC),
    ("passpidfd", SO_PASSPIDFD),
    ("passrights", SO_PASSRIGHTS),
    ("rcvlowat", libc::SO_RCVLOWAT),
    ("peek-off", libc::SO_PEEK_OFF),
    ("timestamp", libc::SO_TIMESTAMP),
    ("timestampns", libc::SO_TIMESTAMPNS),
    ("timestamp-new", SO_TIMESTAMP_NEW),
    ("timestampns-new", SO_TIMESTAMPNS_NEW),
    ("timestamping", libc::SO_TIMESTAMPING),
    ("timestamping-new", SO_TIMESTAMPING_NEW),
    ("rxq-ovfl", libc::SO_RXQ_OVFL),
    ("rcvmark", SO_RCVMARK),
    ("rcvpriority", SO_RCVPRIORITY),
    ("wifi-status", libc::SO_WIFI_STATUS),
    ("select-err-queue", libc::SO_SELECT_ERR_QUEUE),
    ("busy-poll", libc::SO_BUSY_POLL),
    ("prefer-busy-poll", SO_PREFER_BUSY_POLL),
    ("busy-poll-budget", SO_BUSY_POLL_BUDGET),
    ("zerocopy", libc::SO_ZEROCOPY),
    ("max-pacing-rate", libc::SO_MAX_PACING_RATE),
];
const EARLY: usize = 9;
const SO_TIMESTAMP_NEW: i32 = 63;
const SO_TIMESTAMPNS_NEW: i32 = 64;
const SO_TIMESTAMPING_NEW: i32 = 65;
const SO_PREFER_BUSY_POLL: i32 = 69;
const SO_BUSY_POLL_BUDGET: i32 = 70;

/// What differs from a new socket of the same kind.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case", deny_unknown_fields)]
pub struct Options {
    /// SO_SNDBUF as it is read, which is twice what was asked for; if the program has set it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sndbuf: Option<i32>,
    /// SO_RCVBUF in the same way.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rcvbuf: Option<i32>,
    /// Options that are a number, by their names in socket(7).
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub numbers: BTreeMap<String, i32>,
    /// SO_LINGER: seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub linger: Option<i32>,
    /// SO_RCVTIMEO: microseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rcvtimeo: Option<u64>,
    /// SO_SNDTIMEO: microseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sndtimeo: Option<u64>,
    /// SO_BINDTODEVICE.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// SO_ATTACH_FILTER: its instructions (`struct sock_filter`), a word each.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub filter: Vec<u64>,
    /// SO_LOCK_FILTER.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub filter_locked: bool,
}

impl Options {
    /// Nothing differs.
    pub fn is_default(&self) -> bool {
        *self == Options::default()
    }

    /// Reads those of a socket.
    pub(crate) fn capture(fd: BorrowedFd<'_>, class: &Class) -> Result<Options, Trouble> {
        let new = class.socket()?;
        let mut numbers = BTreeMap::new();
        for (name, number) in NUMBERS {
            let value = read(fd, number);
            if value != read(new.as_fd(), number) {
                numbers.extend(value.map(|value| (name.to_owned(), value)));
            }
        }
        let lock = read(fd, SO_BUF_LOCK).unwrap_or(0);
        let size = |bit, name| read(fd, name).filter(|_| lock & bit != 0);
        let filter = match sockopt::filter(fd) {
            Err(Errno::EACCES) => {
                return Err(Trouble::refused(class.to_string(), "a BPF program is attached to it"));
            }
            // No such option.
            Err(Errno::ENOPROTOOPT | Errno::EOPNOTSUPP) => Vec::new(),
            filter => filter.doing(|| "read the filter of a socket")?,
        };
        Ok(Options {
            sndbuf: size(SEND_LOCK, libc::SO_SNDBUF),
            rcvbuf: size(RECEIVE_LOCK, libc::SO_RCVBUF),
            numbers,
            linger: linger(fd),
            rcvtimeo: time(fd, libc::SO_RCVTIMEO),
            sndtimeo: time(fd, libc::SO_SNDTIMEO),
            device: device(fd),
            filter,
            filter_locked: read(fd, libc::SO_LOCK_FILTER).is_some_and(|locked| locked != 0),
        })
    }

    /// Why an image can't be right.
    pub(crate) fn wrong(&self) -> Option<String> {
        let unknown = self.numbers.keys().find(|name| NUMBERS.iter().all(|(known, _)| known != *name));
        unknown.map(|name| format!("an unknown option {name}"))
    }

    /// Sets what a socket has to have before it has an address.
    pub(crate) fn early(&self, fd: BorrowedFd<'_>) -> Result<(), Failure> {
        self.set_numbers(fd, &NUMBERS[..EARLY])?;
        if let Some(device) = &self.device {
            sockopt::set(fd, libc::SOL_SOCKET, libc::SO_BINDTODEVICE, device.as_bytes())
                .doing(|| format!("bind a socket to the device {device}"))?;
        }
        Ok(())
    }

    /// Sets the rest, when the socket has its content.
    pub(crate) fn late(&self, fd: BorrowedFd<'_>) -> Result<(), Failure> {
        self.set_numbers(fd, &NUMBERS[EARLY..])?;
        self.buffers(fd)?;
        if let Some(seconds) = self.linger {
            let bytes = [1, seconds].map(i32::to_ne_bytes).concat();
            set(fd, libc::SO_LINGER, "linger", &bytes)?;
        }
        let times =
            [(libc::SO_RCVTIMEO, "rcvtimeo", self.rcvtimeo), (libc::SO_SNDTIMEO, "sndtimeo", self.sndtimeo)];
        for (number, name, micros) in times {
            if let Some(micros) = micros {
                let value = [micros / 1_000_000, micros % 1_000_000].map(u64::to_ne_bytes).concat();
                set(fd, number, name, &value)?;
            }
        }
        if !self.filter.is_empty() {
            sockopt::attach_filter(fd, &self.filter).doing(|| "attach a filter to a socket")?;
        }
        if self.filter_locked {
            set(fd, libc::SO_LOCK_FILTER, "lock-filter", &1_i32.to_ne_bytes())?;
        }
        Ok(())
    }

    /// Sets the sizes of the buffers, if the program did. The kernel doubles what it is told.
    pub(crate) fn buffers(&self, fd: BorrowedFd<'_>) -> Result<(), Failure> {
        let sizes =
            [(libc::SO_SNDBUFFORCE, "sndbuf", self.sndbuf), (libc::SO_RCVBUFFORCE, "rcvbuf", self.rcvbuf)];
        for (number, name, size) in sizes {
            if let Some(size) = size {
                set(fd, number, name, &(size / 2).to_ne_bytes())?;
            }
        }
        Ok(())
    }

    fn set_numbers(&self, fd: BorrowedFd<'_>, which: &[(&str, i32)]) -> Result<(), Failure> {
        for &(name, number) in which {
            if let Some(value) = self.numbers.get(name) {
                set(fd, number, name, &value.to_ne_bytes())?;
            }
        }
        Ok(())
    }
}

fn set(fd: BorrowedFd<'_>, number: i32, name: &str, bytes: &[u8]) -> Result<(), Failure> {
    sockopt::set(fd, libc::SOL_SOCKET, number, bytes).doing(|| format!("set the option {name} of a socket"))
}

/// None where there is no such option.
fn read(fd: BorrowedFd<'_>, number: i32) -> Option<i32> {
    sockopt::number(fd, libc::SOL_SOCKET, number).ok()
}

fn linger(fd: BorrowedFd<'_>) -> Option<i32> {
    let mut bytes = [0; 8];
    sockopt::get(fd, libc::SOL_SOCKET, libc::SO_LINGER, &mut bytes).ok()?;
    let [on, seconds] =
        [[0, 1, 2, 3], [4, 5, 6, 7]].map(|at| i32::from_ne_bytes(at.map(|i: usize| bytes[i])));
    (on != 0).then_some(seconds)
}

/// `struct timeval`; zero is for ever.
fn time(fd: BorrowedFd<'_>, number: i32) -> Option<u64> {
    let mut bytes = [0; 16];
    sockopt::get(fd, libc::SOL_SOCKET, number, &mut bytes).ok()?;
    let (seconds, micros) = bytes.split_first_chunk::<8>()?;
    let micros = u64::from_ne_bytes(*micros.first_chunk()?);
    let all = u64::from_ne_bytes(*seconds).saturating_mul(1_000_000).saturating_add(micros);
    (all != 0).then_some(all)
}

fn device(fd: BorrowedFd<'_>) -> Option<String> {
    let mut bytes = [0; libc::IFNAMSIZ];
    let length = sockopt::get(fd, libc::SOL_SOCKET, libc::SO_BINDTODEVICE, &mut bytes).ok()?;
    let name = bytes.get(..length)?.split(|&b| b == 0).next()?;
    (!name.is_empty()).then(|| String::from_utf8_lossy(name).into_owned())
}

//! Resource limits (getrlimit(2)).
//!
//! Per process. Restored in the leader when everything is there that they limit (descriptors, memory, pending signals),
//! and before the credentials: raising a hard limit takes CAP_SYS_RESOURCE. Only that of a user's processes comes to force
//! after them: who becomes a user who has too many could not execute a program any more.
//!
//! The CPU time that a process has used is not carried: `cpu` counts anew.

use crate::program::{Answers, Place, Program};
use crate::resource::{Resource, Stopped};
use crate::{Doing, Failure};
use nix::errno::Errno;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::collections::BTreeMap;
use std::sync::OnceLock;

/// All limits of a process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Limits(BTreeMap<Kind, Limit>);

/// What is limited: the kernel's numbers of `asm-generic/resource.h`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs, reason = "named like RLIMIT_*, which getrlimit(2) explains")]
pub enum Kind {
    Cpu = 0,
    Fsize = 1,
    Data = 2,
    Stack = 3,
    Core = 4,
    Rss = 5,
    Nproc = 6,
    Nofile = 7,
    Memlock = 8,
    As = 9,
    Locks = 10,
    Sigpending = 11,
    Msgqueue = 12,
    Nice = 13,
    Rtprio = 14,
    Rttime = 15,
}

use Kind::*;
const KINDS: [Kind; 16] = [
    Cpu, Fsize, Data, Stack, Core, Rss, Nproc, Nofile, Memlock, As, Locks, Sigpending, Msgqueue, Nice,
    Rtprio, Rttime,
];

/// One limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limit {
    /// What is enforced.
    pub soft: Amount,
    /// What the soft limit may be raised to.
    pub hard: Amount,
}

/// In the unit of its kind. `RLIM_INFINITY` reads `"unlimited"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Amount(pub u64);

impl Serialize for Amount {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.0 == libc::RLIM_INFINITY {
            serializer.serialize_str("unlimited")
        } else {
            serializer.serialize_u64(self.0)
        }
    }
}

impl<'de> Deserialize<'de> for Amount {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Written {
            Number(u64),
            Word(String),
        }
        match Written::deserialize(deserializer)? {
            Written::Number(amount) => Ok(Amount(amount)),
            Written::Word(word) if word == "unlimited" => Ok(Amount(libc::RLIM_INFINITY)),
            Written::Word(word) => {
                Err(D::Error::custom(format!("{word:?} is neither a number nor unlimited")))
            }
        }
    }
}

impl Limits {
    /// One of them; None when the image does not name it.
    pub fn get(&self, kind: Kind) -> Option<Limit> {
        self.0.get(&kind).copied()
    }

    /// The limits, by name, whose hard limit is higher than ckrun's own: to raise one takes CAP_SYS_RESOURCE.
    ///
    /// # Errors
    /// The kernel's.
    pub fn too_high(&self) -> Result<Vec<String>, Failure> {
        let mut names = Vec::new();
        for (&kind, limit) in &self.0 {
            let own = own_hard_limit(kind)?;
            if limit.hard.0 > own {
                names.push(format!("{} ({} > {})", name(kind), limit.hard, Amount(own)));
            }
        }
        Ok(names)
    }
}

/// What ckrun itself has; it does not change that.
fn own_hard_limit(kind: Kind) -> Result<u64, Failure> {
    static KNOWN: [OnceLock<u64>; KINDS.len()] = [const { OnceLock::new() }; KINDS.len()];
    if let Some(known) = KNOWN[kind as usize].get() {
        return Ok(*known);
    }
    let mut own = [0_u64; 2];
    let (new, old) = (std::ptr::null::<u64>(), own.as_mut_ptr());
    // SAFETY: the kernel stores a `struct rlimit64`, two 64-bit numbers, in `own`, and reads nothing.
    let got = unsafe { libc::syscall(libc::SYS_prlimit64, 0, kind as u32, new, old) };
    Errno::result(got).doing(|| format!("get the limit {}", name(kind)))?;
    Ok(*KNOWN[kind as usize].get_or_init(|| own[1]))
}

impl Resource for Limits {
    type Asked = Vec<Place>;

    fn ask(program: &mut Program) -> Vec<Place> {
        let ask = |kind: &Kind| {
            let place = program.room(16);
            let args = [0.into(), (*kind as u32).into(), 0.into(), place.into()];
            program.call(format!("get the limit {}", name(*kind)), libc::SYS_prlimit64, &args);
            place
        };
        KINDS.iter().map(ask).collect()
    }

    fn capture(_: &Stopped, asked: &Vec<Place>, answers: &Answers) -> Result<Self, Failure> {
        let limit = |place: &Place| Limit {
            soft: Amount(answers.u64(*place, 0)),
            hard: Amount(answers.u64(*place, 8)),
        };
        Ok(Limits(KINDS.into_iter().zip(asked.iter().map(limit)).collect()))
    }

    fn restore(&self, program: &mut Program) {
        for (&kind, limit) in &self.0 {
            if kind == Nproc {
                // The kernel would say if this failed: it has been asked before.
                let most = limit.hard.0.max(own_hard_limit(kind).unwrap_or(0));
                Limit { soft: Amount(most), hard: Amount(most) }.set(kind, program);
            } else {
                limit.set(kind, program);
            }
        }
    }
}

impl Limits {
    /// Adds the call that sets the limit that had to wait until the process has its credentials.
    pub fn restore_last(&self, program: &mut Program) {
        if let Some(limit) = self.get(Nproc) {
            limit.set(Nproc, program);
        }
    }
}

impl Limit {
    fn set(self, kind: Kind, program: &mut Program) {
        let place = program.put(&[self.soft.0, self.hard.0].map(u64::to_ne_bytes).concat());
        let what = format!(
            "set the limit {} to {} (hard {}; to raise a hard limit takes CAP_SYS_RESOURCE)",
            name(kind),
            self.soft,
            self.hard
        );
        let args = [0.into(), (kind as u32).into(), place.into(), 0.into()];
        program.call(what, libc::SYS_prlimit64, &args);
    }
}

fn name(kind: Kind) -> String {
    format!("{kind:?}").to_lowercase()
}

impl std::fmt::Display for Amount {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.0 == libc::RLIM_INFINITY { f.write_str("unlimited") } else { write!(f, "{}", self.0) }
    }
}

//! Who runs when and where: scheduling policy, nice, CPU affinity, I/O priority.
//!
//! Per thread, and all from outside. Captured when the thread has the affinity that it had before ckrun pinned it.
//! Restored as the last act before a thread goes: a real-time thread or one with other CPUs would be in ckrun's way, a
//! `SCHED_DEADLINE` thread must have its affinity before its policy, and a flag says that children start afresh.
//!
//! Not carried: the sharing of an I/O context (`CLONE_IO`), autogroups.

use crate::outside::Outside;
use crate::resource::{Blocker, Stopped};
use crate::sys::{self, SchedAttr};
use crate::{Doing, Failure};
use nix::errno::Errno;
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use std::sync::LazyLock;

/// `linux/sched.h`.
const RESET_ON_FORK: u64 = 0x01;
const RECLAIM: u64 = 0x02;
const DL_OVERRUN: u64 = 0x04;
const UTIL_CLAMP: u64 = 0x20 | 0x40;
/// The clamp of a task that has none.
const NO_CLAMP: [u32; 2] = [0, 1024];
/// More CPUs than Linux can be built for, so that an image can't ask for a mask of any size.
const MAX_CPUS: u32 = 8192;

/// How a thread is scheduled.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Sched {
    /// The policy and what it takes.
    pub policy: Policy,
    /// Children start with the ordinary policy.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub reset_on_fork: bool,
    /// Utilisation, least and most, of 1024; absent for none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clamp: Option<[u32; 2]>,
    /// Where it may run.
    pub cpus: Cpus,
    /// Class `<< 13 |` level (ioprio_set(2)); 0 for none.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub io_priority: u16,
}

/// A scheduling policy (sched(7)).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Policy {
    /// `SCHED_OTHER`.
    Other(Fair),
    /// `SCHED_BATCH`.
    Batch(Fair),
    /// `SCHED_IDLE`.
    Idle(Fair),
    /// `SCHED_EXT`: whatever a BPF scheduler makes of it.
    Ext(Fair),
    /// `SCHED_FIFO` with its priority.
    Fifo(u32),
    /// `SCHED_RR` with its priority.
    RoundRobin(u32),
    /// `SCHED_DEADLINE`.
    Deadline {
        /// Nanoseconds of work.
        runtime: u64,
        /// Nanoseconds from the start of the period to the end of the work.
        deadline: u64,
        /// Nanoseconds.
        period: u64,
        /// `SCHED_FLAG_RECLAIM` and `SCHED_FLAG_DL_OVERRUN`.
        flags: u64,
    },
}

/// What the ordinary policies take.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Fair {
    /// -20 to 19.
    pub nice: i32,
    /// Nanoseconds that it asks to run in one go, if they are not what the kernel gives everybody.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slice: Option<u64>,
}

impl Outside for Sched {
    fn capture(task: &Stopped) -> Result<Self, Failure> {
        let what = |what: &str| format!("get the {what} of task {}", task.tid);
        let attr = sys::sched_getattr(task.host).doing(|| what("scheduling"))?;
        let policy = Policy::of(&attr).ok_or(Errno::EINVAL).doing(|| what("scheduling policy"))?;
        let clamp = [attr.util_min, attr.util_max];
        Ok(Sched {
            policy,
            reset_on_fork: attr.flags & RESET_ON_FORK != 0,
            // A kernel without clamps answers with zeroes.
            clamp: (clamp != NO_CLAMP && clamp != [0, 0]).then_some(clamp),
            cpus: Cpus::of(&sys::affinity(task.host).doing(|| what("CPU affinity"))?),
            io_priority: sys::ioprio(task.host).doing(|| what("I/O priority"))?,
        })
    }

    fn restore(&self, host: Pid) -> Result<(), Failure> {
        self.restore_over(None, host)
    }

    /// The affinity is set in any case: ckrun has pinned all tasks.
    fn restore_over(&self, born: Option<&Self>, host: Pid) -> Result<(), Failure> {
        sys::set_affinity(host, &self.cpus.mask()).doing(|| {
            format!("let thread {host} run on CPUs {}, of which this host has to have one", self.cpus)
        })?;
        // The children of one that resets are not born as it is.
        if born.is_none_or(|born| born.reset_on_fork || born.attr() != self.attr()) {
            sys::sched_setattr(host, &self.attr())
                .doing(|| format!("set the scheduling of thread {host} to {:?}", self.policy))?;
        }
        if self.io_priority != 0 {
            sys::set_ioprio(host, self.io_priority)
                .doing(|| format!("set the I/O priority of thread {host} to {:#x}", self.io_priority))?;
        }
        Ok(())
    }
}

impl Sched {
    fn attr(&self) -> SchedAttr {
        let mut attr = SchedAttr::default();
        let mut fair = |policy, fair: Fair| {
            attr.nice = fair.nice;
            attr.runtime = fair.slice.unwrap_or(0);
            policy
        };
        let policy = match self.policy {
            Policy::Other(f) => fair(libc::SCHED_OTHER, f),
            Policy::Batch(f) => fair(libc::SCHED_BATCH, f),
            Policy::Idle(f) => fair(libc::SCHED_IDLE, f),
            Policy::Ext(f) => fair(SCHED_EXT, f),
            Policy::Fifo(priority) => {
                attr.priority = priority;
                libc::SCHED_FIFO
            }
            Policy::RoundRobin(priority) => {
                attr.priority = priority;
                libc::SCHED_RR
            }
            Policy::Deadline { runtime, deadline, period, flags } => {
                attr = SchedAttr { runtime, deadline, period, flags, ..attr };
                SCHED_DEADLINE
            }
        };
        attr.policy = policy.cast_unsigned();
        if self.reset_on_fork {
            attr.flags |= RESET_ON_FORK;
        }
        if let Some([least, most]) = self.clamp {
            attr.flags |= UTIL_CLAMP;
            (attr.util_min, attr.util_max) = (least, most);
        }
        attr
    }
}

/// `linux/sched.h`; not in libc for all targets.
const SCHED_DEADLINE: i32 = 6;
const SCHED_EXT: i32 = 7;

impl Policy {
    fn of(attr: &SchedAttr) -> Option<Policy> {
        let slice = (attr.runtime != 0 && Some(attr.runtime) != *COMMON_SLICE).then_some(attr.runtime);
        let fair = Fair { nice: attr.nice, slice };
        Some(match attr.policy.cast_signed() {
            libc::SCHED_OTHER => Policy::Other(fair),
            libc::SCHED_BATCH => Policy::Batch(fair),
            libc::SCHED_IDLE => Policy::Idle(fair),
            SCHED_EXT => Policy::Ext(fair),
            libc::SCHED_FIFO => Policy::Fifo(attr.priority),
            libc::SCHED_RR => Policy::RoundRobin(attr.priority),
            SCHED_DEADLINE => Policy::Deadline {
                runtime: attr.runtime,
                deadline: attr.deadline,
                period: attr.period,
                flags: attr.flags & (RECLAIM | DL_OVERRUN),
            },
            _ => return None,
        })
    }
}

/// The slice of a thread that asks for none, by the example of ckrun itself: to write it back would fix it for good.
static COMMON_SLICE: LazyLock<Option<u64>> = LazyLock::new(|| {
    let own = sys::sched_getattr(Pid::from_raw(0)).ok()?;
    matches!(own.policy.cast_signed(), libc::SCHED_OTHER | libc::SCHED_BATCH).then_some(own.runtime)
});

/// A set of CPUs, which reads `0-3,8`, or `all`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Cpus {
    /// All that there are, however many the next host has.
    All,
    /// First and last of each run, ascending.
    Some(Vec<(u32, u32)>),
}

impl Cpus {
    /// Reads a mask: bit N is CPU N.
    fn of(mask: &[u8]) -> Cpus {
        let runs = runs(mask);
        if ONLINE.as_ref() == Some(&runs) { Cpus::All } else { Cpus::Some(runs) }
    }

    /// The kernel cuts off what it does not have.
    fn mask(&self) -> Vec<u8> {
        let Cpus::Some(runs) = self else { return vec![0xff; MAX_CPUS as usize / 8] };
        let mut mask = vec![0; MAX_CPUS as usize / 8];
        for cpu in runs.iter().flat_map(|&(first, last)| first..=last) {
            if let Some(byte) = mask.get_mut(cpu as usize / 8) {
                *byte |= 1 << (cpu % 8);
            }
        }
        mask
    }
}

fn runs(mask: &[u8]) -> Vec<(u32, u32)> {
    let mut runs: Vec<(u32, u32)> = Vec::new();
    let set = (0..)
        .zip(mask)
        .flat_map(|(k, byte)| (0..8).filter(move |n| byte >> n & 1 == 1).map(move |n| k * 8 + n));
    for cpu in set {
        match runs.last_mut() {
            Some((_, last)) if *last + 1 == cpu => *last = cpu,
            _ => runs.push((cpu, cpu)),
        }
    }
    runs
}

/// The CPUs of this host. None when it doesn't say: then there is no "all".
static ONLINE: LazyLock<Option<Vec<(u32, u32)>>> = LazyLock::new(|| {
    let text = std::fs::read_to_string("/sys/devices/system/cpu/online").ok()?;
    parse(text.trim())
});

fn parse(list: &str) -> Option<Vec<(u32, u32)>> {
    let mut runs: Vec<(u32, u32)> = Vec::new();
    for run in list.split(',') {
        let (first, last) = run.split_once('-').unwrap_or((run, run));
        let run = (first.parse().ok()?, last.parse().ok()?);
        let ascends = runs.last().is_none_or(|&(_, last)| last < run.0);
        if !ascends || run.1 < run.0 || run.1 >= MAX_CPUS {
            return None;
        }
        runs.push(run);
    }
    Some(runs)
}

impl std::fmt::Display for Cpus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Cpus::Some(runs) = self else { return f.write_str("all") };
        for (k, (first, last)) in runs.iter().enumerate() {
            let comma = if k == 0 { "" } else { "," };
            if first == last { write!(f, "{comma}{first}")? } else { write!(f, "{comma}{first}-{last}")? }
        }
        Ok(())
    }
}

impl From<Cpus> for String {
    fn from(cpus: Cpus) -> String {
        cpus.to_string()
    }
}

impl TryFrom<String> for Cpus {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        if text == "all" {
            return Ok(Cpus::All);
        }
        parse(&text).map(Cpus::Some).ok_or_else(|| format!("{text:?} is not a list of CPUs like 0-3,8"))
    }
}

fn is_zero(number: &u16) -> bool {
    *number == 0
}

/// Core scheduling keeps a thread off a core that runs others (prctl(2), `PR_SCHED_CORE`). The kernel shows only that a
/// thread has such a cookie and not who else has it.
///
/// # Errors
/// The kernel's, except that it has no core scheduling.
pub fn blocker(task: &Stopped) -> Result<Option<Blocker>, Failure> {
    static MISSING: std::sync::atomic::AtomicBool = std::sync::atomic::AtomicBool::new(false);
    use std::sync::atomic::Ordering::Relaxed;
    if MISSING.load(Relaxed) {
        return Ok(None);
    }
    let mut cookie = 0_u64;
    // SAFETY: PR_SCHED_CORE_GET stores an unsigned long at the address given.
    let ret = unsafe {
        libc::prctl(libc::PR_SCHED_CORE, libc::PR_SCHED_CORE_GET, task.host.as_raw(), 0, &raw mut cookie)
    };
    match Errno::result(ret) {
        Ok(_) if cookie == 0 => Ok(None),
        Ok(_) => Ok(Some(Blocker {
            pid: task.pid,
            comm: task.comm(),
            what: format!("thread {}: core scheduling", task.tid),
            why: "the kernel does not tell which threads share a core".to_owned(),
            remedy: None,
        })),
        // A kernel without it, or CPUs whose cores run one thread.
        Err(Errno::EINVAL | Errno::ENODEV) => {
            MISSING.store(true, Relaxed);
            Ok(None)
        }
        Err(errno) => Err(errno).doing(|| format!("ask for core scheduling of task {}", task.tid)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn cpus_are_read_as_they_were_written(mask in prop::collection::vec(any::<u8>(), 1..128)) {
            let cpus = Cpus::of(&mask);
            let mut same = mask.clone();
            if mask.iter().any(|&byte| byte != 0) && cpus != Cpus::All {
                prop_assert_eq!(&Cpus::try_from(cpus.to_string()).unwrap(), &cpus);
                same.resize(cpus.mask().len(), 0);
                prop_assert_eq!(cpus.mask(), same);
            }
        }

        #[test]
        fn nothing_makes_the_reader_panic(list in "[0-9,-]{0,40}", any: String) {
            let _ = (Cpus::try_from(list), Cpus::try_from(any));
        }

        #[test]
        fn scheduling_is_set_as_it_was_read(
            policy in prop::sample::select(vec![0_u32, 1, 2, 3, 5, 7]),
            (nice, priority, runtime) in any::<(i32, u32, u64)>(),
            reset: bool,
        ) {
            let mut attr = SchedAttr { policy, flags: u64::from(reset) * RESET_ON_FORK, ..SchedAttr::default() };
            if matches!(policy, 1 | 2) { attr.priority = priority } else { (attr.nice, attr.runtime) = (nice, runtime) }
            let sched = Sched {
                policy: Policy::of(&attr).unwrap(),
                reset_on_fork: reset,
                clamp: None,
                cpus: Cpus::All,
                io_priority: 0,
            };
            let json = serde_json::to_string(&sched).unwrap();
            let read: Sched = serde_json::from_str(&json).unwrap();
            let common = Some(attr.runtime) == *COMMON_SLICE;
            prop_assert_eq!(read.attr(), SchedAttr { runtime: if common { 0 } else { attr.runtime }, ..attr });
        }
    }

    #[test]
    fn an_unknown_policy_is_not_taken_for_another() {
        assert_eq!(Policy::of(&SchedAttr { policy: 4, ..SchedAttr::default() }), None);
        assert_eq!(Policy::of(&SchedAttr { policy: 99, ..SchedAttr::default() }), None);
    }
}

//! Switches that a thread or a process has set for itself by prctl(2) and its like.
//!
//! [`ThreadSwitches`] per thread: restored in each thread when the memory is complete (`personality` can make every
//! later mapping executable) and before its filter and its credentials. [`ProcessSwitches`] per process (its memory, or
//! its leader): restored in the leader when the tree is complete (a subreaper would adopt orphans, MDWE forbids
//! mappings).
//!
//! Not carried, because the kernel does not tell: `PR_SET_PTRACER`. Not carried, because it is not state of the job: the
//! login id of the audit subsystem, which is that of whoever restarts the job.

use crate::hex::Hex;
use crate::image::Bytes;
use crate::program::{Answers, Arg, Call, Place, Program};
use crate::resource::{Resource, Stopped};
use crate::{Doing, Failure};
use nix::errno::Errno;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// `asm/prctl.h`.
const ARCH_GET_CPUID: i32 = 0x1011;
const ARCH_SET_CPUID: i32 = 0x1012;
/// `linux/prctl.h`; libc does not have them for every target.
const PR_SET_IO_FLUSHER: i32 = 57;
const PR_GET_IO_FLUSHER: i32 = 58;
const PR_SET_MDWE: i32 = 65;
const PR_GET_MDWE: i32 = 66;
const PR_SET_MEMORY_MERGE: i32 = 67;
const PR_GET_MEMORY_MERGE: i32 = 68;
const PR_THP_DISABLE_EXCEPT_ADVISED: u32 = 2;
const PR_SPEC_PRCTL: i64 = 1;
/// `PR_MCE_KILL_DEFAULT` is what every task starts with.
const MCE_KILL_DEFAULT: u32 = 2;
/// `linux/membarrier.h`.
const MEMBARRIER_CMD_GET_REGISTRATIONS: u32 = 1 << 9;
/// Flags of `/proc/TID/stat`: `PF_MEMALLOC_NOIO | PF_LOCAL_THROTTLE` of `linux/sched.h` are an IO flusher's.
const PF_IO_FLUSHER: u32 = 0x0008_0000 | 0x0010_0000;
const CAP_SYS_RESOURCE: u32 = 24;

/// What a thread has set for itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct ThreadSwitches {
    /// The command name, of 15 bytes at most.
    pub name: Bytes,
    /// How late a timer may be, in nanoseconds.
    pub timer_slack: u64,
    /// personality(2).
    pub personality: Hex,
    /// rdtsc raises SIGSEGV.
    #[serde(default, skip_serializing_if = "is_default")]
    pub no_tsc: bool,
    /// cpuid raises SIGSEGV.
    #[serde(default, skip_serializing_if = "is_default")]
    pub no_cpuid: bool,
    /// What a memory error does: 0 late, 1 early, 2 the system's default.
    pub machine_check: u32,
    /// `PR_SET_IO_FLUSHER`.
    #[serde(default, skip_serializing_if = "is_default")]
    pub io_flusher: bool,
    /// What is not as the kernel starts a task with.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub speculation: BTreeMap<Misfeature, Speculation>,
}

/// A misfeature of CPUs that tasks may switch (`PR_SET_SPECULATION_CTRL`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[allow(missing_docs, reason = "named like PR_SPEC_*")]
pub enum Misfeature {
    StoreBypass = 0,
    IndirectBranch = 1,
    L1dFlush = 2,
}

/// How it is switched: the kernel's bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[allow(missing_docs, reason = "named like PR_SPEC_*")]
pub enum Speculation {
    Enable = 2,
    Disable = 4,
    ForceDisable = 8,
    DisableNoexec = 16,
}

use Misfeature::{IndirectBranch, L1dFlush, StoreBypass};
const MISFEATURES: [Misfeature; 3] = [StoreBypass, IndirectBranch, L1dFlush];

/// Where a thread's answers are.
#[derive(Debug)]
pub struct AskedThread {
    name: Place,
    timer_slack: Call,
    personality: Call,
    tsc: Place,
    cpuid: Call,
    machine_check: Call,
    io_flusher: Call,
    speculation: [Call; 3],
}

impl Resource for ThreadSwitches {
    type Asked = AskedThread;

    fn ask(program: &mut Program) -> AskedThread {
        let name = program.room(16);
        prctl(program, "get the name", &[libc::PR_GET_NAME.into(), name.into()]);
        let tsc = program.room(4);
        AskedThread {
            name,
            timer_slack: prctl(program, "get the timer slack", &[libc::PR_GET_TIMERSLACK.into()]),
            personality: program.call("get the personality", libc::SYS_personality, &[u32::MAX.into()]),
            tsc: {
                attempt(program, "ask for the time-stamp counter", &[libc::PR_GET_TSC.into(), tsc.into()]);
                tsc
            },
            cpuid: program.attempt("ask for cpuid", libc::SYS_arch_prctl, &[ARCH_GET_CPUID.into()]),
            machine_check: prctl(program, "get the machine check policy", &[libc::PR_MCE_KILL_GET.into()]),
            io_flusher: attempt(program, "ask whether it is an IO flusher", &[PR_GET_IO_FLUSHER.into()]),
            speculation: MISFEATURES.map(|feature| {
                let args = [libc::PR_GET_SPECULATION_CTRL.into(), (feature as u32).into()];
                attempt(program, "get the speculation control", &args)
            }),
        }
    }

    fn capture(task: &Stopped, asked: &AskedThread, answers: &Answers) -> Result<Self, Failure> {
        let name = answers.get(asked.name);
        let end = name.iter().position(|&b| b == 0).unwrap_or(name.len());
        let answer = |call, what: &'static str| answers.of(call).doing(|| what);
        let states = MISFEATURES.into_iter().zip(asked.speculation);
        Ok(ThreadSwitches {
            name: name[..end].into(),
            timer_slack: answer(asked.timer_slack, "get the timer slack")?.cast_unsigned(),
            personality: Hex(answer(asked.personality, "get the personality")?.cast_unsigned()),
            no_tsc: answers.u32(asked.tsc, 0) == libc::PR_TSC_SIGSEGV.cast_unsigned(),
            no_cpuid: answers.of(asked.cpuid) == Ok(0),
            machine_check: answer(asked.machine_check, "get the machine check policy")? as u32,
            io_flusher: io_flusher(task, answers.of(asked.io_flusher))?,
            speculation: states
                .filter_map(|(feature, call)| Some((feature, changed(feature, answers.of(call).ok()?)?)))
                .collect(),
        })
    }

    fn restore(&self, program: &mut Program) {
        self.restore_over(None, program);
    }
}

impl ThreadSwitches {
    /// Gives the task its name.
    pub(crate) fn restore_name(&self, program: &mut Program) {
        let mut name = self.name.to_vec();
        name.truncate(15);
        let name = program.put_cstr(&name);
        prctl(program, "set the name", &[libc::PR_SET_NAME.into(), name.into()]);
    }

    /// As [`Resource::restore`], for a task that is known to have been born with `born`: these three are inherited.
    pub(crate) fn restore_over(&self, born: Option<&Self>, program: &mut Program) {
        if born.is_none_or(|born| born.name != self.name) {
            self.restore_name(program);
        }
        if born.is_none_or(|born| born.timer_slack != self.timer_slack) {
            prctl(program, "set the timer slack", &[libc::PR_SET_TIMERSLACK.into(), self.timer_slack.into()]);
        }
        if born.is_none_or(|born| born.personality != self.personality) {
            program.call("set the personality", libc::SYS_personality, &[self.personality.0.into()]);
        }
        if self.no_tsc {
            let args = [libc::PR_SET_TSC.into(), libc::PR_TSC_SIGSEGV.into()];
            prctl(program, "forbid the time-stamp counter", &args);
        }
        if self.no_cpuid {
            program.call("forbid cpuid", libc::SYS_arch_prctl, &[ARCH_SET_CPUID.into(), 0.into()]);
        }
        if self.machine_check != MCE_KILL_DEFAULT {
            let args = [
                libc::PR_MCE_KILL.into(),
                libc::PR_MCE_KILL_SET.into(),
                self.machine_check.into(),
                0.into(),
                0.into(),
            ];
            prctl(program, "set the machine check policy", &args);
        }
        if self.io_flusher {
            prctl(program, "become an IO flusher", &[PR_SET_IO_FLUSHER.into(), 1.into()]);
        }
        for (&feature, &state) in self.speculation.iter().filter(|(feature, _)| matters_here(**feature)) {
            let args = [libc::PR_SET_SPECULATION_CTRL.into(), (feature as u32).into(), (state as u32).into()];
            prctl(program, "set the speculation control", &args);
        }
    }
}

/// Asking takes CAP_SYS_RESOURCE, as setting does. A task that can never have had it is none.
fn io_flusher(task: &Stopped, answer: Result<i64, Errno>) -> Result<bool, Failure> {
    match answer {
        Ok(answer) => Ok(answer == 1),
        Err(Errno::EPERM) if Hex(task.status.cap_bnd).has(CAP_SYS_RESOURCE) => {
            let flags = task_flags(&task.read("stat")?).ok_or(Errno::EINVAL);
            Ok(flags.doing(|| format!("understand stat of task {}", task.tid))? & PF_IO_FLUSHER
                == PF_IO_FLUSHER)
        }
        Err(_) => Ok(false),
    }
}

/// Field 9 of proc_pid_stat(5). The name in field 2 may hold anything.
fn task_flags(stat: &[u8]) -> Option<u32> {
    let end = stat.iter().rposition(|&b| b == b')')?;
    std::str::from_utf8(stat.get(end + 2..)?).ok()?.split(' ').nth(6)?.parse().ok()
}

/// The state of a misfeature that can be switched, if it is not the one that the kernel starts a task with.
fn changed(feature: Misfeature, bits: i64) -> Option<Speculation> {
    use Speculation::{Disable, DisableNoexec, Enable, ForceDisable};
    let start = if feature == L1dFlush { Disable } else { Enable };
    let state = [Enable, Disable, ForceDisable, DisableNoexec].into_iter().find(|s| bits & *s as i64 != 0)?;
    (bits & PR_SPEC_PRCTL != 0 && state != start).then_some(state)
}

/// This CPU has the misfeature, and the kernel lets tasks switch it. Where it does not, it has seen to it already.
fn matters_here(feature: Misfeature) -> bool {
    // SAFETY: PR_GET_SPECULATION_CTRL takes a number and touches no memory.
    let bits = unsafe { libc::prctl(libc::PR_GET_SPECULATION_CTRL, feature as libc::c_ulong, 0, 0, 0) };
    bits > 0 && i64::from(bits) & PR_SPEC_PRCTL != 0
}

/// What a process has set for itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct ProcessSwitches {
    /// Orphans among its descendants become its children.
    pub subreaper: bool,
    /// `PR_SET_THP_DISABLE`: bit 0 no transparent huge pages, bit 1 except where they are advised.
    pub thp_disable: u32,
    /// `PR_SET_MDWE`: no mapping becomes executable that was not from the start.
    #[serde(default, skip_serializing_if = "is_default")]
    pub mdwe: u32,
    /// Equal pages are merged (KSM).
    #[serde(default, skip_serializing_if = "is_default")]
    pub merge: bool,
    /// The commands of membarrier(2) by which it has registered.
    #[serde(default, skip_serializing_if = "is_default")]
    pub membarrier: Hex,
}

/// Where a process's answers are.
#[derive(Debug)]
pub struct AskedProcess {
    subreaper: Place,
    thp_disable: Call,
    mdwe: Call,
    merge: Call,
    membarrier: Call,
}

impl Resource for ProcessSwitches {
    type Asked = AskedProcess;

    fn ask(program: &mut Program) -> AskedProcess {
        let subreaper = program.room(4);
        let args = [libc::PR_GET_CHILD_SUBREAPER.into(), subreaper.into()];
        prctl(program, "ask whether it is a subreaper", &args);
        let registered = [MEMBARRIER_CMD_GET_REGISTRATIONS.into(), 0.into(), 0.into()];
        AskedProcess {
            subreaper,
            thp_disable: prctl(program, "ask for huge pages", &[libc::PR_GET_THP_DISABLE.into()]),
            mdwe: attempt(program, "ask for MDWE", &[PR_GET_MDWE.into()]),
            merge: attempt(program, "ask for page merging", &[PR_GET_MEMORY_MERGE.into()]),
            membarrier: program.attempt("ask for memory barriers", libc::SYS_membarrier, &registered),
        }
    }

    fn capture(_: &Stopped, asked: &AskedProcess, answers: &Answers) -> Result<Self, Failure> {
        // What this kernel does not have can't be set either.
        let answer = |call| answers.of(call).unwrap_or(0).cast_unsigned();
        Ok(ProcessSwitches {
            subreaper: answers.u32(asked.subreaper, 0) != 0,
            thp_disable: answer(asked.thp_disable) as u32,
            mdwe: answer(asked.mdwe) as u32,
            merge: answer(asked.merge) == 1,
            membarrier: Hex(answer(asked.membarrier)),
        })
    }

    fn restore(&self, program: &mut Program) {
        if self.subreaper {
            prctl(program, "become a subreaper", &[libc::PR_SET_CHILD_SUBREAPER.into(), 1.into()]);
        }
        // Inherited by fork, so it is always set.
        let exception = self.thp_disable & PR_THP_DISABLE_EXCEPT_ADVISED;
        let args = [libc::PR_SET_THP_DISABLE.into(), (self.thp_disable & 1).into(), exception.into()];
        prctl(program, "switch huge pages", &args);
        if self.merge {
            prctl(program, "have equal pages merged", &[PR_SET_MEMORY_MERGE.into(), 1.into()]);
        }
        for command in self.membarrier.bits() {
            let args = [(1_u64 << command).into(), 0.into(), 0.into()];
            program.call("register for memory barriers", libc::SYS_membarrier, &args);
        }
        if self.mdwe != 0 {
            prctl(program, "forbid new executable mappings (MDWE)", &[PR_SET_MDWE.into(), self.mdwe.into()]);
        }
    }
}

/// Adds a call whose arguments that are not given are 0, as prctl(2) wants them.
fn prctl(program: &mut Program, what: &'static str, args: &[Arg]) -> Call {
    program.call(what, libc::SYS_prctl, args)
}

fn attempt(program: &mut Program, what: &'static str, args: &[Arg]) -> Call {
    program.attempt(what, libc::SYS_prctl, args)
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_flags_are_found_behind_any_name() {
        let stat = b"42 (a) S 1 (2 3 4)) S 1 1 1 0 -1 1572864 7 8";
        assert_eq!(task_flags(stat), Some(PF_IO_FLUSHER));
        assert_eq!((task_flags(b""), task_flags(b"1 (x)"), task_flags(b"1 (x) S 1")), (None, None, None));
        let own = task_flags(&std::fs::read("/proc/thread-self/stat").unwrap()).unwrap();
        assert_eq!(own & PF_IO_FLUSHER, 0);
    }

    #[test]
    fn what_the_kernel_starts_with_is_nothing_special() {
        use Speculation::{Disable, Enable, ForceDisable};
        assert_eq!(changed(StoreBypass, 1 | Enable as i64), None);
        assert_eq!(changed(L1dFlush, 1 | Disable as i64), None);
        assert_eq!(changed(L1dFlush, 1 | Enable as i64), Some(Enable));
        assert_eq!(changed(IndirectBranch, 1 | ForceDisable as i64), Some(ForceDisable));
        // Not to be switched by tasks, or not affected.
        assert_eq!((changed(StoreBypass, ForceDisable as i64), changed(StoreBypass, 0)), (None, None));
    }

    proptest! {
        #[test]
        fn nothing_makes_the_reader_panic(bytes: Vec<u8>) {
            let _ = task_flags(&bytes);
        }
    }
}

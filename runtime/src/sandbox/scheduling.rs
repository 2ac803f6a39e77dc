//! When and where the job runs: its scheduler, I/O priority, CPUs, memory nodes and execution domain.

use crate::error::{Error, Result};
use ckrun_virt::Failure;
use nix::errno::Errno;
use oci_spec::runtime::{
    ExecCPUAffinity, IOPriorityClass, LinuxIOPriority, LinuxMemoryPolicy, LinuxPersonality,
    LinuxPersonalityDomain, LinuxSchedulerFlag, LinuxSchedulerPolicy as Policy, MemoryPolicyFlagType,
    MemoryPolicyModeType as Mode, Process, Scheduler, Spec,
};

/// Numbers of CPUs and memory nodes above this are taken for a mistake; the kernel's own limit is 8192 CPUs.
const LARGEST: usize = 65535;

/// Applies `process.scheduler` and `process.ioPriority`.
///
/// # Errors
/// Names the field and what the kernel or the scheduling class has against it.
pub fn schedule(process: &Process) -> Result<()> {
    if let Some(scheduler) = process.scheduler() {
        set_scheduler(scheduler)?;
    }
    if let Some(priority) = process.io_priority() {
        set_io_priority(priority)?;
    }
    Ok(())
}

/// Applies `linux.personality` and `linux.memoryPolicy`.
///
/// # Errors
/// Names the field.
pub fn domain_and_memory(spec: &Spec) -> Result<()> {
    let Some(linux) = spec.linux() else { return Ok(()) };
    if let Some(personality) = linux.personality() {
        set_personality(personality)?;
    }
    if let Some(policy) = linux.memory_policy() {
        set_memory_policy(policy)?;
    }
    Ok(())
}

/// Restricts this thread to `process.execCPUAffinity.initial`, for the time before it joins the container's cgroup.
///
/// # Errors
/// Names the field: no list of CPUs, or none of them may be used.
pub fn initial_cpus(affinity: &ExecCPUAffinity) -> Result<()> {
    run_on("process.execCPUAffinity.initial", affinity.initial().as_deref())
}

/// Restricts this thread to `process.execCPUAffinity.final`, once it is in the container's cgroup.
///
/// # Errors
/// As [`initial_cpus`].
pub fn final_cpus(affinity: &ExecCPUAffinity) -> Result<()> {
    run_on("process.execCPUAffinity.final", affinity.cpu_affinity_final().as_deref())
}

fn set_scheduler(wanted: &Scheduler) -> Result<()> {
    const FIELD: &str = "process.scheduler";
    let policy = *wanted.policy();
    let refuse = |part: &str, why: String| Err(Error::config(format!("{FIELD}.{part}"), why));
    let fair = matches!(policy, Policy::SchedOther | Policy::SchedBatch);
    let nice = wanted.nice().unwrap_or(0);
    let priority = wanted.priority().unwrap_or(0);
    if !(-20..=19).contains(&nice) || (nice != 0 && !fair) {
        return refuse("nice", format!("{nice}: must be -20 to 19, and 0 for {policy}"));
    }
    if priority != 0 && !matches!(policy, Policy::SchedFifo | Policy::SchedRr) {
        return refuse("priority", format!("{priority}: {policy} has no priorities"));
    }
    let deadline = [wanted.runtime(), wanted.deadline(), wanted.period()].map(|t| t.unwrap_or(0));
    if deadline != [0; 3] && policy != Policy::SchedDeadline {
        return refuse("policy", format!("{policy} knows no runtime, deadline and period"));
    }
    let Ok(sched_priority) = u32::try_from(priority) else {
        return refuse("priority", format!("{priority} is negative"));
    };
    let [sched_runtime, sched_deadline, sched_period] = deadline;
    let attr = libc::sched_attr {
        size: size_of::<libc::sched_attr>() as u32,
        sched_policy: number_of(policy),
        sched_flags: wanted.flags().iter().flatten().fold(0, |all, flag| all | flag_bit(*flag)),
        sched_nice: nice,
        sched_priority,
        sched_runtime,
        sched_deadline,
        sched_period,
    };
    // SAFETY: attr says its own size and lives through the call; 0 is the calling thread, the last argument is reserved.
    let set = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attr, 0) };
    Errno::result(set).map_err(|errno| {
        let why = Failure::new(format!("set {policy}"), errno);
        Error::config(FIELD, match errno {
            Errno::EPERM => format!("{why}: this needs CAP_SYS_NICE or RLIMIT_RTPRIO and RLIMIT_NICE; a deadline also needs all CPUs"),
            Errno::EBUSY => format!("{why}: the deadline can't be met beside those granted already"),
            _ => why.to_string(),
        })
    })?;
    Ok(())
}

fn number_of(policy: Policy) -> u32 {
    // SCHED_ISO has a number but was never implemented; the kernel refuses it.
    const SCHED_ISO: libc::c_int = 4;
    let number = match policy {
        Policy::SchedOther => libc::SCHED_OTHER,
        Policy::SchedFifo => libc::SCHED_FIFO,
        Policy::SchedRr => libc::SCHED_RR,
        Policy::SchedBatch => libc::SCHED_BATCH,
        Policy::SchedIso => SCHED_ISO,
        Policy::SchedIdle => libc::SCHED_IDLE,
        Policy::SchedDeadline => libc::SCHED_DEADLINE,
    };
    number as u32
}

fn flag_bit(flag: LinuxSchedulerFlag) -> u64 {
    let bit = match flag {
        LinuxSchedulerFlag::SchedResetOnFork => libc::SCHED_FLAG_RESET_ON_FORK,
        LinuxSchedulerFlag::SchedFlagReclaim => libc::SCHED_FLAG_RECLAIM,
        LinuxSchedulerFlag::SchedFlagDLOverrun => libc::SCHED_FLAG_DL_OVERRUN,
        LinuxSchedulerFlag::SchedFlagKeepPolicy => libc::SCHED_FLAG_KEEP_POLICY,
        LinuxSchedulerFlag::SchedFlagKeepParams => libc::SCHED_FLAG_KEEP_PARAMS,
        LinuxSchedulerFlag::SchedFlagUtilClampMin => libc::SCHED_FLAG_UTIL_CLAMP_MIN,
        LinuxSchedulerFlag::SchedFlagUtilClampMax => libc::SCHED_FLAG_UTIL_CLAMP_MAX,
    };
    bit as u64
}

fn set_io_priority(wanted: &LinuxIOPriority) -> Result<()> {
    // linux/ioprio.h
    const IOPRIO_WHO_PROCESS: libc::c_int = 1;
    const IOPRIO_CLASS_SHIFT: libc::c_int = 13;
    let class = match wanted.class() {
        IOPriorityClass::IoprioClassRt => 1,
        IOPriorityClass::IoprioClassBe => 2,
        IOPriorityClass::IoprioClassIdle => 3,
    };
    let level = match wanted.priority() {
        level @ 0..=7 => level as libc::c_int,
        level => return Err(Error::config("process.ioPriority.priority", format!("{level} is not 0 to 7"))),
    };
    // SAFETY: three numbers; 0 is the calling thread.
    let set = unsafe {
        libc::syscall(libc::SYS_ioprio_set, IOPRIO_WHO_PROCESS, 0, class << IOPRIO_CLASS_SHIFT | level)
    };
    Errno::result(set).map_err(|errno| {
        let why = Failure::new(format!("set {}, {level}", wanted.class()), errno);
        Error::config("process.ioPriority", why.to_string())
    })?;
    Ok(())
}

fn set_personality(wanted: &LinuxPersonality) -> Result<()> {
    if let Some(flags) = wanted.flags().as_ref().filter(|flags| !flags.is_empty()) {
        return Err(Error::config(
            "linux.personality.flags",
            format!("{flags:?}: the runtime-spec defines none"),
        ));
    }
    // linux/personality.h
    const PER_LINUX: libc::c_ulong = 0;
    const PER_LINUX32: libc::c_ulong = 8;
    let domain = match wanted.domain() {
        LinuxPersonalityDomain::PerLinux => PER_LINUX,
        LinuxPersonalityDomain::PerLinux32 => PER_LINUX32,
    };
    // SAFETY: a number; the domain is the thread's own.
    Errno::result(unsafe { libc::personality(domain) }).map_err(|errno| {
        let why = Failure::new(format!("set {}", wanted.domain()), errno);
        Error::config("linux.personality.domain", why.to_string())
    })?;
    Ok(())
}

fn set_memory_policy(wanted: &LinuxMemoryPolicy) -> Result<()> {
    let mode = wanted.mode();
    let nodes = list("linux.memoryPolicy.nodes", wanted.nodes().as_deref().unwrap_or_default())?;
    let none = nodes.iter().all(|word| *word == 0);
    match mode {
        Mode::MpolDefault | Mode::MpolLocal if !none => {
            return Err(Error::config("linux.memoryPolicy.nodes", format!("{mode} takes no nodes")));
        }
        Mode::MpolBind | Mode::MpolInterleave | Mode::MpolWeightedInterleave | Mode::MpolPreferredMany
            if none =>
        {
            return Err(Error::config("linux.memoryPolicy.nodes", format!("{mode} needs at least one node")));
        }
        _ => {}
    }
    // linux/mempolicy.h
    const MPOL_PREFERRED_MANY: libc::c_int = 5;
    const MPOL_WEIGHTED_INTERLEAVE: libc::c_int = 6;
    let number = match mode {
        Mode::MpolDefault => libc::MPOL_DEFAULT,
        Mode::MpolBind => libc::MPOL_BIND,
        Mode::MpolInterleave => libc::MPOL_INTERLEAVE,
        Mode::MpolWeightedInterleave => MPOL_WEIGHTED_INTERLEAVE,
        Mode::MpolPreferred => libc::MPOL_PREFERRED,
        Mode::MpolPreferredMany => MPOL_PREFERRED_MANY,
        Mode::MpolLocal => libc::MPOL_LOCAL,
    };
    let flags = wanted.flags().iter().flatten().fold(0, |all, flag| {
        all | match flag {
            MemoryPolicyFlagType::MpolFNumaBalancing => libc::MPOL_F_NUMA_BALANCING,
            MemoryPolicyFlagType::MpolFRelativeNodes => libc::MPOL_F_RELATIVE_NODES,
            MemoryPolicyFlagType::MpolFStaticNodes => libc::MPOL_F_STATIC_NODES,
        }
    });
    // The kernel takes one bit less than it is told (get_nodes in mm/mempolicy.c).
    let (mask, bits) =
        if none { (std::ptr::null(), 0) } else { (nodes.as_ptr(), nodes.len() * u64::BITS as usize + 1) };
    // SAFETY: the mask, if there is one, holds the number of bits told, less the one that the kernel does not read.
    let set = unsafe { libc::syscall(libc::SYS_set_mempolicy, number | flags, mask, bits) };
    Errno::result(set).map_err(|errno| {
        let why = Failure::new(format!("set {mode}"), errno);
        Error::config(
            "linux.memoryPolicy",
            match errno {
                Errno::EINVAL => format!(
                    "{why}: a node does not exist here or may not be used, or the flags don't fit the mode"
                ),
                _ => why.to_string(),
            },
        )
    })?;
    Ok(())
}

fn run_on(field: &str, cpus: Option<&str>) -> Result<()> {
    let Some(cpus) = cpus.filter(|cpus| !cpus.is_empty()) else { return Ok(()) };
    let mask = list(field, cpus)?;
    log::debug!("{field}: affinity: 0x{:x}", mask.first().copied().unwrap_or(0));
    // SAFETY: the mask and its size in bytes; 0 is the calling thread.
    let set =
        unsafe { libc::syscall(libc::SYS_sched_setaffinity, 0, size_of_val(mask.as_slice()), mask.as_ptr()) };
    Errno::result(set).map_err(|errno| {
        let why = Failure::new(format!("run on CPUs {cpus}"), errno);
        Error::config(
            field,
            match errno {
                Errno::EINVAL => format!("{why}: none of them is there and allowed by the cgroup"),
                _ => why.to_string(),
            },
        )
    })?;
    Ok(())
}

/// Reads `0-3,7` as a bit mask.
fn list(field: &str, text: &str) -> Result<Vec<u64>> {
    let mut mask = Vec::new();
    for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let number = |text: &str| text.parse().ok().filter(|number: &usize| *number <= LARGEST);
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (Some(first), Some(last)) = (number(first), number(last)) else {
            return Err(Error::config(field, format!("{part:?} is neither a number nor a range like 0-3")));
        };
        if first > last {
            return Err(Error::config(field, format!("{part:?} ends before it begins")));
        }
        for bit in first..=last {
            if bit / 64 >= mask.len() {
                mask.resize(bit / 64 + 1, 0u64);
            }
            mask[bit / 64] |= 1 << (bit % 64);
        }
    }
    Ok(mask)
}

#[cfg(test)]
mod tests;

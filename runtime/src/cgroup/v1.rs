//! Limits as cgroup v1 has them.

use super::io;
use super::limits::{Knobs, set};
use super::refuse;
use crate::error::Result;
use ckrun_virt::Doing;
use oci_spec::runtime::{LinuxBlockIo, LinuxCpu, LinuxMemory, LinuxNetwork, LinuxThrottleDevice};
use std::path::Path;

/// Gives a new cpuset its parent's cpus and memory nodes: on v1 it starts with none, and no process can join it.
/// Parents that somebody made and left empty are filled from above, too; they can't have processes.
pub(super) fn inherit_cpuset(mount: &Path, directory: &Path) -> Result<()> {
    for file in ["cpuset.cpus", "cpuset.mems"] {
        inherit(mount, directory, file)?;
    }
    Ok(())
}

/// Makes sure that the parent has a value, copies it, and returns it.
fn inherit(mount: &Path, directory: &Path, file: &str) -> Result<String> {
    let read = |dir: &Path| io::read(dir, file).doing(|| format!("read {}/{file}", dir.display()));
    let Some(parent) = directory.parent().filter(|_| directory != mount) else { return Ok(read(directory)?) };
    let mut value = read(parent)?;
    if value.trim_end().is_empty() {
        value = inherit(mount, parent, file)?;
    }
    io::write(directory, file, value.trim_end()).doing(|| format!("write {}/{file}", directory.display()))?;
    Ok(value)
}

pub(super) fn cpu(knobs: &Knobs<'_>, cpu: &LinuxCpu) -> Result<()> {
    // The kernel takes no shares for an idle group, so a group leaves idleness before and enters it after.
    let idle = cpu.idle();
    let shares = set(cpu.shares());
    if let Some(shares) = shares
        && !(2..=262_144).contains(&shares)
    {
        return Err(refuse("cpu.shares", format!("{shares} is not in the kernel's range from 2 to 262144")));
    }
    if idle == Some(0) && knobs.has("cpu.idle") {
        knobs.set("cpu.idle", "cpu.idle", 0)?;
    }
    if let Some(shares) = shares {
        knobs.set("cpu.shares", "cpu.shares", shares)?;
    }
    if let Some(idle) = set(idle) {
        knobs.set("cpu.idle", "cpu.idle", idle)?;
    }
    let text = |value: Option<u64>| set(value).map(|v| v.to_string());
    let signed = |value: Option<i64>| set(value).map(|v| v.to_string());
    let constrained = [
        ("cpu.realtimePeriod", "cpu.rt_period_us", text(cpu.realtime_period())),
        ("cpu.realtimeRuntime", "cpu.rt_runtime_us", signed(cpu.realtime_runtime())),
        ("cpu.period", "cpu.cfs_period_us", text(cpu.period())),
        ("cpu.quota", "cpu.cfs_quota_us", signed(cpu.quota())),
        ("cpu.burst", "cpu.cfs_burst_us", burst(cpu, knobs, "cpu.cfs_burst_us")),
    ];
    knobs.settle(constrained.into_iter().filter_map(|(f, file, v)| Some((f, file, v?))).collect())
}

/// A burst of 0 means "none", which matters only where one was set before.
pub(super) fn burst(cpu: &LinuxCpu, knobs: &Knobs<'_>, file: &str) -> Option<String> {
    cpu.burst().filter(|burst| *burst != 0 || knobs.has(file)).map(|burst| burst.to_string())
}

pub(super) fn memory(knobs: &Knobs<'_>, memory: &LinuxMemory) -> Result<()> {
    const LIMIT: &str = "memory.limit_in_bytes";
    const SWAP: &str = "memory.memsw.limit_in_bytes";
    warn_of_kernel_limit(memory);
    let (limit, mut swap) = (set(memory.limit()), set(memory.swap()));
    if memory.check_before_update() == Some(true) {
        check_usage(knobs, limit, "memory.limit", "memory.usage_in_bytes")?;
        check_usage(knobs, swap, "memory.swap", "memory.memsw.usage_in_bytes")?;
    }
    // Without swap accounting there is nothing to lift.
    let accounts_swap = (limit == Some(-1) || swap == Some(-1)) && knobs.has(SWAP);
    if limit == Some(-1) && swap.is_none() && accounts_swap {
        swap = Some(-1);
    }
    swap = swap.filter(|swap| *swap != -1 || accounts_swap);
    let values = [("memory.limit", LIMIT, limit), ("memory.swap", SWAP, swap)];
    let writes = values.into_iter().filter_map(|(f, file, v)| Some((f, file, v?.to_string()))).collect();
    // Memory and swap together can't be less than memory: raising starts with swap, lowering with memory.
    knobs.settle(writes)?;
    if let Some(reservation) = set(memory.reservation()) {
        knobs.set("memory.reservation", "memory.soft_limit_in_bytes", reservation)?;
    }
    if let Some(limit) = set(memory.kernel_tcp()) {
        knobs.set("memory.kernelTCP", "memory.kmem.tcp.limit_in_bytes", limit)?;
    }
    if memory.disable_oom_killer() == Some(true) {
        knobs.set("memory.disableOOMKiller", "memory.oom_control", 1)?;
    }
    // -1, which arrives as the largest number, is another way to say nothing.
    if let Some(swappiness) = memory.swappiness().filter(|s| *s != u64::MAX) {
        knobs.set("memory.swappiness", "memory.swappiness", swappiness)?;
    }
    Ok(())
}

/// A limit of the kernel's own memory alone can't be set since Linux 5.16: it counts as memory.
pub(super) fn warn_of_kernel_limit(memory: &LinuxMemory) {
    #[allow(deprecated, reason = "clients still send it")]
    if memory.kernel().is_some_and(|limit| limit > 0) {
        log::warn!(
            "linux.resources.memory.kernel is ignored: kernel memory counts to linux.resources.memory.limit"
        );
    }
}

/// `checkBeforeUpdate`: refuses a limit below what is in use, which would start the OOM killer.
pub(super) fn check_usage(knobs: &Knobs<'_>, limit: Option<i64>, field: &str, file: &str) -> Result<()> {
    let Some(limit) = limit.and_then(|limit| u64::try_from(limit).ok()) else { return Ok(()) };
    match knobs.get(file).map(|text| text.trim_end().parse::<u64>()) {
        Ok(Ok(usage)) if usage > limit => Err(refuse(
            field,
            format!("{limit} is less than the {usage} bytes in use, and checkBeforeUpdate is set"),
        )),
        _ => Ok(()),
    }
}

pub(super) fn block_io(knobs: &Knobs<'_>, io: &LinuxBlockIo) -> Result<()> {
    let no_scheduler =
        |file: &str| format!("this kernel has no {file} (no proportional-weight I/O scheduler)");
    // Two generations of schedulers: CFQ's files, and BFQ's.
    let weight_file = |field: &str, files: [&'static str; 2]| {
        let found = files.into_iter().find(|file| knobs.has(file));
        found.ok_or_else(|| refuse(field, no_scheduler(files[0])))
    };
    if let Some(weight) = set(io.weight()) {
        let field = "blockIO.weight";
        knobs.set(field, weight_file(field, ["blkio.weight", "blkio.bfq.weight"])?, weight)?;
    }
    if let Some(weight) = set(io.leaf_weight()) {
        let field = "blockIO.leafWeight";
        knobs.set(field, weight_file(field, ["blkio.leaf_weight"; 2])?, weight)?;
    }
    for device in io.weight_device().iter().flatten() {
        let line = |weight: u16| format!("{}:{} {weight}", device.major(), device.minor());
        if let Some(weight) = set(device.weight()) {
            let field = "blockIO.weightDevice";
            let file = weight_file(field, ["blkio.weight_device", "blkio.bfq.weight_device"])?;
            knobs.set(field, file, line(weight))?;
        }
        if let Some(weight) = set(device.leaf_weight()) {
            let field = "blockIO.weightDevice";
            knobs.set(field, weight_file(field, ["blkio.leaf_weight_device"; 2])?, line(weight))?;
        }
    }
    for Throttle { field, v1_file, devices, .. } in throttles(io) {
        for device in devices {
            let line = format!("{}:{} {}", device.major(), device.minor(), device.rate());
            knobs.set(field, v1_file, line)?;
        }
    }
    Ok(())
}

/// One of the four kinds of throttle.
pub(super) struct Throttle<'a> {
    pub(super) field: &'static str,
    pub(super) v1_file: &'static str,
    /// The key in cgroup2's `io.max`.
    pub(super) v2_key: &'static str,
    pub(super) devices: &'a [LinuxThrottleDevice],
}

pub(super) fn throttles(io: &LinuxBlockIo) -> [Throttle<'_>; 4] {
    [
        Throttle {
            field: "blockIO.throttleReadBpsDevice",
            v1_file: "blkio.throttle.read_bps_device",
            v2_key: "rbps",
            devices: io.throttle_read_bps_device().as_deref().unwrap_or_default(),
        },
        Throttle {
            field: "blockIO.throttleWriteBpsDevice",
            v1_file: "blkio.throttle.write_bps_device",
            v2_key: "wbps",
            devices: io.throttle_write_bps_device().as_deref().unwrap_or_default(),
        },
        Throttle {
            field: "blockIO.throttleReadIOPSDevice",
            v1_file: "blkio.throttle.read_iops_device",
            v2_key: "riops",
            devices: io.throttle_read_iops_device().as_deref().unwrap_or_default(),
        },
        Throttle {
            field: "blockIO.throttleWriteIOPSDevice",
            v1_file: "blkio.throttle.write_iops_device",
            v2_key: "wiops",
            devices: io.throttle_write_iops_device().as_deref().unwrap_or_default(),
        },
    ]
}

/// The class and the priorities of network traffic, which only v1 has.
pub(super) fn network(class: &Knobs<'_>, priority: &Knobs<'_>, network: &LinuxNetwork) -> Result<()> {
    let available = |knobs: &Knobs<'_>, field: &str| match knobs.dir {
        Some(_) => Ok(()),
        None => Err(refuse(
            field,
            format!("needs the {} controller of cgroup v1, which is not mounted here", knobs.missing),
        )),
    };
    if let Some(id) = set(network.class_id()) {
        available(class, "network.classID")?;
        class.set("network.classID", "net_cls.classid", id)?;
    }
    for entry in network.priorities().iter().flatten() {
        available(priority, "network.priorities")?;
        let line = format!("{} {}", entry.name(), entry.priority());
        priority.set("network.priorities", "net_prio.ifpriomap", line)?;
    }
    Ok(())
}

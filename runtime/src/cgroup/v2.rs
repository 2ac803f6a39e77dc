//! Limits as cgroup2 has them, and what it takes to have controllers there at all.

use super::io;
use super::limits::{Knobs, or_max, set};
use super::v1::{Throttle, burst, check_usage, throttles, warn_of_kernel_limit};
use super::{Dir, refuse};
use crate::error::Result;
use ckrun_virt::{Doing, Failure};
use oci_spec::runtime::{LinuxBlockIo, LinuxCpu, LinuxMemory};
use rustix::fs::{AtFlags, CWD, Uid, chownat};
use std::collections::HashMap;
use std::path::{Path, PathBuf};

const AVAILABLE: &str = "cgroup.controllers";
const FOR_CHILDREN: &str = "cgroup.subtree_control";

/// Enables every controller for `directory` that the cgroups above it have. One that can't be enabled is left out: it
/// is an error only when a limit needs it.
pub(super) fn enable_all(mount: &Path, directory: &Path) {
    let Some(parent) = directory.parent() else { return };
    let all = io::read(mount, AVAILABLE).unwrap_or_default();
    let enabled = io::read(parent, FOR_CHILDREN).unwrap_or_default();
    let has = |list: &str, name: &str| list.split_whitespace().any(|c| c == name);
    let missing: Vec<&str> = all.split_whitespace().filter(|name| !has(&enabled, name)).collect();
    if missing.is_empty() {
        return;
    }
    for ancestor in ancestors(mount, directory) {
        let line: Vec<String> = missing.iter().map(|name| format!("+{name}")).collect();
        // The kernel enables all or nothing: one controller that is not delegated, or busy, refuses the line.
        if io::write(&ancestor, FOR_CHILDREN, &line.join(" ")).is_err() {
            for one in &line {
                let _ = io::write(&ancestor, FOR_CHILDREN, one);
            }
        }
    }
}

/// Enables one controller for `directory`, from the first cgroup on the way down whose child does not have it: those
/// above may belong to somebody else. On failure says where.
pub(super) fn enable(mount: &Path, directory: &Path, controller: &str) -> Result<(), Failure> {
    let way = ancestors(mount, directory);
    let children = way.iter().skip(1).map(PathBuf::as_path).chain([directory]);
    for (parent, _) in way.iter().zip(children).filter(|(_, child)| !enabled(child, controller)) {
        io::write(parent, FOR_CHILDREN, &format!("+{controller}"))
            .doing(|| format!("enable it in {}/{FOR_CHILDREN}", parent.display()))?;
    }
    Ok(())
}

/// The reason for which the files of a controller are missing in `directory`.
pub(super) fn why_not_enabled(mount: &Path, directory: &Path, controller: &str) -> String {
    if !enabled(mount, controller) {
        return format!(
            "neither a v1 hierarchy nor cgroup2 at {} has the {controller} controller",
            mount.display()
        );
    }
    match enable(mount, directory, controller) {
        Ok(()) => format!("the {controller} controller does not come up in {}", directory.display()),
        // A cgroup with processes of its own can't give controllers to its children.
        Err(failure) => format!("needs the {controller} controller: {failure}"),
    }
}

/// Whether `directory` has the files of a controller; the core's, `cgroup.*`, are everywhere.
pub(super) fn enabled(directory: &Path, controller: &str) -> bool {
    controller == "cgroup"
        || io::read(directory, AVAILABLE).is_ok_and(|list| list.split_whitespace().any(|c| c == controller))
}

/// The cgroups from the mount point down to the parent of `directory`, in this order.
fn ancestors(mount: &Path, directory: &Path) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> =
        directory.ancestors().skip(1).take_while(|a| a.starts_with(mount)).map(Path::to_owned).collect();
    found.reverse();
    found
}

/// Hands the directory and the files that are meant for a delegate to `uid`.
pub(super) fn delegate(directory: &Path, uid: u32) -> Result<()> {
    let kernel = Path::new("/sys/kernel/cgroup");
    let list = io::read(kernel, "delegate")
        .unwrap_or_else(|_| "cgroup.procs\ncgroup.subtree_control\ncgroup.threads\n".to_owned());
    let owner = Some(Uid::from_raw(uid));
    chownat(CWD, directory, owner, None, AtFlags::SYMLINK_NOFOLLOW)
        .doing(|| format!("give {} to uid {uid}", directory.display()))?;
    for file in list.lines() {
        match chownat(CWD, directory.join(file), owner, None, AtFlags::SYMLINK_NOFOLLOW) {
            // Files of controllers that are not enabled.
            Err(rustix::io::Errno::NOENT) => {}
            result => result.doing(|| format!("give {}/{file} to uid {uid}", directory.display()))?,
        }
    }
    Ok(())
}

pub(super) fn cpu(knobs: &Knobs<'_>, cpu: &LinuxCpu) -> Result<()> {
    let idle = cpu.idle();
    let shares = set(cpu.shares());
    // The kernel takes no weight for an idle group.
    if idle == Some(0) && knobs.has("cpu.idle") {
        knobs.set("cpu.idle", "cpu.idle", 0)?;
    }
    if let Some(shares) = shares {
        knobs.set("cpu.shares", "cpu.weight", weight_of_shares(shares))?;
    }
    if let Some(idle) = set(idle) {
        knobs.set("cpu.idle", "cpu.idle", idle)?;
    }
    if set(cpu.realtime_runtime()).is_some() || set(cpu.realtime_period()).is_some() {
        return Err(refuse("cpu.realtimeRuntime", "cgroup2 has no limit of real-time scheduling"));
    }
    let bandwidth = match (set(cpu.quota()), set(cpu.period())) {
        (None, None) => None,
        // Without a second word the kernel keeps the period.
        (Some(quota), None) => Some(("cpu.quota", or_max(quota))),
        (Some(quota), Some(period)) => Some(("cpu.quota", format!("{} {period}", or_max(quota)))),
        (None, Some(period)) => {
            let quota = knobs.get("cpu.max").unwrap_or_default();
            let quota = quota.split(' ').next().filter(|q| !q.is_empty()).unwrap_or("max");
            Some(("cpu.period", format!("{quota} {period}")))
        }
    };
    let mut writes = Vec::new();
    writes.extend(bandwidth.map(|(field, value)| (field, "cpu.max", value)));
    writes.extend(burst(cpu, knobs, "cpu.max.burst").map(|value| ("cpu.burst", "cpu.max.burst", value)));
    knobs.settle(writes)
}

/// v1's shares (2 to 262144, usually 1024) as cgroup2's weight (1 to 10000, usually 100). The curve is the one that runc
/// and crun agreed on, a quadratic one on logarithmic scales: through both ends and through the two usual values.
pub(super) fn weight_of_shares(shares: u64) -> u64 {
    let shares = shares.clamp(2, 262_144);
    let log = (shares as f64).log2();
    let exponent = (log * log + 125.0 * log) / 612.0 - 7.0 / 34.0;
    (10f64.powf(exponent).ceil() as u64).clamp(1, 10_000)
}

pub(super) fn memory(knobs: &Knobs<'_>, memory: &LinuxMemory) -> Result<()> {
    warn_of_kernel_limit(memory);
    let limit = set(memory.limit());
    if memory.check_before_update() == Some(true) {
        check_usage(knobs, limit, "memory.limit", "memory.current")?;
    }
    if let Some(swap) = swap_alone(knobs, limit, set(memory.swap()))? {
        match knobs.set("memory.swap", "memory.swap.max", &swap) {
            // Without swap accounting there is nothing to lift, and no swap is what there is.
            Err(_)
                if (swap == "max" || swap == "0") && knobs.dir.is_some() && !knobs.has("memory.swap.max") => {
            }
            result => result?,
        }
    }
    if let Some(limit) = limit {
        knobs.set("memory.limit", "memory.max", or_max(limit))?;
    }
    if let Some(reservation) = set(memory.reservation()) {
        knobs.set("memory.reservation", "memory.low", or_max(reservation))?;
    }
    let lost = "cgroup2 has no such limit";
    if memory.kernel_tcp().is_some_and(|limit| limit > 0) {
        return Err(refuse("memory.kernelTCP", lost));
    }
    if memory.disable_oom_killer() == Some(true) {
        return Err(refuse("memory.disableOOMKiller", "cgroup2 can't disable the OOM killer"));
    }
    if memory.swappiness().is_some_and(|s| s != u64::MAX) {
        return Err(refuse("memory.swappiness", "cgroup2 has no swappiness of its own"));
    }
    Ok(())
}

/// `swap` of the configuration is memory and swap together, as on v1; cgroup2 limits swap alone.
fn swap_alone(knobs: &Knobs<'_>, limit: Option<i64>, swap: Option<i64>) -> Result<Option<String>> {
    let field = "memory.swap";
    // An update may change only the sum.
    let current = || knobs.get("memory.max").ok()?.trim_end().parse::<i64>().ok();
    Ok(match (swap, limit) {
        // Unlimited memory lifts the limit of the sum on v1, which counts memory first.
        (None, Some(-1)) => Some("max".to_owned()),
        (None, _) => None,
        (Some(swap), _) if swap < 0 => Some("max".to_owned()),
        (Some(swap), Some(-1)) => Some(swap.to_string()),
        (Some(swap), limit) => {
            let Some(limit) = limit.or_else(current) else {
                return Err(refuse(field, "needs memory.limit: it is the sum of memory and swap"));
            };
            if swap < limit {
                return Err(refuse(field, format!("{swap} is less than memory.limit, which it includes")));
            }
            Some((swap - limit).to_string())
        }
    })
}

pub(super) fn block_io(knobs: &Knobs<'_>, io: &LinuxBlockIo) -> Result<()> {
    const BFQ: &str = "io.bfq.weight";
    // Which files there are shows only once the controller is enabled.
    if let (Some(mount), Some(dir)) = (knobs.mount, knobs.dir)
        && !enabled(dir, knobs.controller)
        && *io != LinuxBlockIo::default()
    {
        let _ = enable(mount, dir, knobs.controller);
    }
    let bfq = knobs.has(BFQ);
    let weigh = |field: &str, device: &str, weight: u16| {
        if bfq {
            return knobs.set(field, BFQ, format!("{device}{weight}"));
        }
        if weight < 10 {
            return Err(refuse(field, format!("{weight} is not in the range from 10 to 1000")));
        }
        // From 10..1000 to 1..10000.
        let converted = 1 + (u64::from(weight) - 10) * 9999 / 990;
        knobs.set(field, "io.weight", format!("{device}{converted}"))
    };
    if let Some(weight) = set(io.weight()) {
        weigh("blockIO.weight", "", weight)?;
    }
    let no_leaf = "cgroup2 has no weight for the processes beside child cgroups";
    if set(io.leaf_weight()).is_some() {
        return Err(refuse("blockIO.leafWeight", no_leaf));
    }
    for device in io.weight_device().iter().flatten() {
        if set(device.leaf_weight()).is_some() {
            return Err(refuse("blockIO.weightDevice", no_leaf));
        }
        if let Some(weight) = set(device.weight()) {
            let name = format!("{}:{} ", device.major(), device.minor());
            weigh("blockIO.weightDevice", &name, weight)?;
        }
    }
    for Throttle { field, v2_key, devices, .. } in throttles(io) {
        for device in devices {
            // v1 lifts a throttle with 0.
            let rate = set(Some(device.rate())).map_or("max".to_owned(), |rate| rate.to_string());
            let line = format!("{}:{} {v2_key}={rate}", device.major(), device.minor());
            knobs.set(field, "io.max", line)?;
        }
    }
    Ok(())
}

/// `linux.resources.unified`: files of cgroup2 and what to write to them, word for word.
pub(super) fn unified(dir: Option<&Dir>, values: &HashMap<String, String>) -> Result<()> {
    for (file, value) in values {
        let field = format!("unified[{file}]");
        let controller = file.split_once('.').map(|(controller, _)| controller);
        let Some(controller) = controller.filter(|c| !c.is_empty() && !file.contains('/')) else {
            return Err(refuse(&field, "is not the name of a file like memory.high"));
        };
        let Some(dir) = dir else {
            return Err(refuse(&field, "the container has no cgroup2"));
        };
        let (path, mount) = (Some(dir.path.as_path()), Some(dir.hierarchy.mount.as_path()));
        let knobs = Knobs { controller, v1: false, dir: path, mount, missing: controller };
        // Some files take a line per device, and one line per write.
        for line in value.lines() {
            knobs.set(&field, file, line)?;
        }
        if value.is_empty() {
            knobs.set(&field, file, "")?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_keep_their_ends_and_their_usual_value() {
        for (shares, weight) in [(0, 1), (1, 1), (2, 1), (1024, 100), (262_144, 10_000), (1 << 40, 10_000)] {
            assert_eq!(weight_of_shares(shares), weight, "{shares}");
        }
        assert!((1..100).contains(&weight_of_shares(512)));
    }

    #[test]
    fn the_way_down_starts_at_the_mount() {
        let way = ancestors(Path::new("/m"), Path::new("/m/a/b"));
        assert_eq!(way, [Path::new("/m"), Path::new("/m/a")]);
        assert_eq!(ancestors(Path::new("/m"), Path::new("/m/a")), [Path::new("/m")]);
    }
}

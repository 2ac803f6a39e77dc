//! Which files of a cgroup are settings, and how they are written.
//!
//! A file that can be read and written is a setting, of whichever controller, unless it counts something or acts when it
//! is written. What a new cgroup has anyway is left out of an image, so that what is in one must be there after a restart.

use super::{read, write};
use crate::{Doing, Failure};
use nix::errno::Errno;
use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// They count, act, or are told by others.
const NO_SETTINGS: [&str; 20] = [
    "cgroup.procs",
    "cgroup.threads",
    "tasks",
    "cgroup.type",
    "cgroup.subtree_control",
    "cgroup.freeze",
    "freezer.state",
    "cgroup.kill",
    "cgroup.event_control",
    "release_agent",
    "cpu.weight.nice",
    "cpuacct.usage",
    "memory.peak",
    "memory.swap.peak",
    "memory.reclaim",
    "memory.force_empty",
    "memory.pressure_level",
    "blkio.reset_stats",
    "devices.allow",
    "devices.deny",
];
const NO_SETTINGS_BY_END: [&str; 3] = [".pressure", ".failcnt", ".max_usage_in_bytes"];

/// What new cgroups have; besides `max` and nothing.
const NEW: [(&str, &str); 34] = [
    ("blkio.bfq.weight", "100"),
    ("blkio.prio.class", "no-change"),
    ("cgroup.clone_children", "0"),
    ("cgroup.pressure", "1"),
    ("cpu.cfs_burst_us", "0"),
    ("cpu.cfs_period_us", "100000"),
    ("cpu.cfs_quota_us", "-1"),
    ("cpu.idle", "0"),
    ("cpu.max", "max 100000"),
    ("cpu.max.burst", "0"),
    ("cpu.rt_period_us", "1000000"),
    ("cpu.rt_runtime_us", "0"),
    ("cpu.shares", "1024"),
    ("cpu.uclamp.min", "0.00"),
    ("cpu.weight", "100"),
    ("cpuset.cpu_exclusive", "0"),
    ("cpuset.cpus.partition", "member"),
    ("cpuset.mem_exclusive", "0"),
    ("cpuset.mem_hardwall", "0"),
    ("cpuset.memory_migrate", "0"),
    ("cpuset.memory_spread_page", "0"),
    ("cpuset.memory_spread_slab", "0"),
    ("cpuset.sched_load_balance", "1"),
    ("cpuset.sched_relax_domain_level", "-1"),
    ("io.bfq.weight", "default 100"),
    ("io.prio.class", "no-change"),
    ("io.weight", "default 100"),
    ("memory.low", "0"),
    ("memory.min", "0"),
    ("memory.move_charge_at_immigrate", "0"),
    ("memory.oom.group", "0"),
    ("memory.use_hierarchy", "1"),
    ("memory.zswap.writeback", "1"),
    ("notify_on_release", "0"),
];

/// v1's `unlimited` is the greatest number of pages, and its huge ones are rounded down.
const UNLIMITED: u64 = 1 << 62;

/// v1's list of the devices that may be used: it is changed by two other files.
const DEVICES: &str = "devices.list";

/// What v1 needs in a cpuset before anybody can be in it.
pub(super) const BEFORE_TASKS: [&str; 2] = ["cpuset.cpus", "cpuset.mems"];

/// Whether it is a name that a file of a cgroup can have.
pub(super) fn is_file(name: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    !name.is_empty() && name.len() <= 128 && !name.starts_with('.') && name.bytes().all(plain)
}

/// Whether it is the name of a setting.
pub(super) fn is_setting(name: &str) -> bool {
    is_file(name) && !NO_SETTINGS.contains(&name) && !NO_SETTINGS_BY_END.iter().any(|end| name.ends_with(end))
}

/// What is set in the cgroup `dir`, below `parent`, otherwise than in any new one.
pub(super) fn differing(dir: &Path, parent: Option<&Path>) -> Result<BTreeMap<String, String>, Failure> {
    let mut found = BTreeMap::new();
    let entries = std::fs::read_dir(dir).doing(|| format!("read {}", dir.display()))?;
    for entry in entries {
        let entry = entry.doing(|| format!("read {}", dir.display()))?;
        let Some(name) = entry.file_name().to_str().filter(|name| is_setting(name)).map(str::to_owned) else {
            continue;
        };
        let about = entry.metadata().doing(|| format!("stat {}/{name}", dir.display()))?;
        let settable = about.mode() & 0o600 == 0o600 || name == DEVICES;
        if !about.is_file() || !settable {
            continue;
        }
        let value = match value(dir, &name) {
            // Not for a cgroup of this type, or its controller is off by now.
            Err(Errno::EOPNOTSUPP | Errno::ENODEV | Errno::ENOENT) => continue,
            value => value.doing(|| format!("read {}/{name}", dir.display()))?,
        };
        let inherited =
            name == DEVICES && parent.is_some_and(|parent| read(parent, DEVICES).as_ref() == Ok(&value));
        if !inherited && !is_new(&name, &value) {
            found.insert(name, value);
        }
    }
    if found.get("cpu.idle").is_some_and(|idle| idle == "1") {
        // The weight of an idle one is told, and can't be set.
        found.retain(|name, _| name != "cpu.shares" && name != "cpu.weight");
    }
    Ok(found)
}

/// The value of a setting, as it can be written.
fn value(dir: &Path, file: &str) -> Result<String, Errno> {
    let text = read(dir, file)?;
    Ok(match file {
        // Other lines of it count.
        "memory.oom_control" => {
            text.lines().find_map(|line| line.strip_prefix("oom_kill_disable ")).unwrap_or("0").to_owned()
        }
        // All devices of the network are in it.
        "net_prio.ifpriomap" => {
            let set = |line: &&str| !line.ends_with(" 0");
            text.lines().filter(set).collect::<Vec<_>>().join("\n")
        }
        _ => text,
    })
}

fn is_new(file: &str, value: &str) -> bool {
    // On v1 a cpuset without CPUs is one in which nobody can be.
    let nothing = (value.is_empty() && !BEFORE_TASKS.contains(&file)) || value == "max";
    let unlimited = value.parse::<u64>().is_ok_and(|number| number >= UNLIMITED);
    let free = |line: &str| line.contains('=') && line.split(' ').skip(1).all(|word| word.ends_with("=max"));
    let free = !value.is_empty() && value.lines().all(free);
    let resources = file == "misc.max" && value.lines().all(|line| line.ends_with(" max"));
    let oom = file == "memory.oom_control" && value == "0";
    nothing || unlimited || free || resources || oom || NEW.contains(&(file, value))
}

/// Writes settings that are not so already. Some depend on each other (a quota on its period, a limit of swap on that of
/// memory), so those that were refused are tried again as long as any other one succeeds.
///
/// # Errors
/// The kernel's, with the file.
pub(super) fn set(dir: &Path, wanted: &BTreeMap<String, String>) -> Result<(), Failure> {
    let mut left: Vec<_> = wanted.iter().collect();
    loop {
        let before = left.len();
        let mut failed = None;
        left.retain(|(file, value)| match put(dir, file, value) {
            Ok(()) => false,
            Err(errno) => {
                failed.get_or_insert(Failure::new(
                    format!("set {file} of {} to {value:?}", dir.display()),
                    errno,
                ));
                true
            }
        });
        match failed {
            None => return Ok(()),
            Some(failure) if left.len() == before => return Err(failure),
            Some(_) => {}
        }
    }
}

fn put(dir: &Path, file: &str, value: &str) -> Result<(), Errno> {
    let now = self::value(dir, file)?;
    if now == value {
        return Ok(());
    }
    if file == DEVICES {
        write(dir, "devices.deny", "a")?;
        return value.lines().try_for_each(|line| write(dir, "devices.allow", line));
    }
    if value.is_empty() {
        return write(dir, file, "\n");
    }
    // One entry of a list is taken in one write.
    value
        .lines()
        .filter(|line| !now.lines().any(|old| old == *line))
        .try_for_each(|line| write(dir, file, line))
}

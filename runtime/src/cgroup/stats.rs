//! What a container has used, in the form that `runc events --stats` made known.

use super::io::{self, keyed};
use super::layout::Version;
use super::{Cgroups, Dir};
use crate::error::Result;
use ckrun_virt::Doing;
use serde::{Serialize, Serializer};
use std::collections::BTreeMap;
use std::path::Path;

/// The `data` of a `stats` event. Times are in nanoseconds, sizes in bytes; a limit of `u64::MAX` is none.
#[derive(Debug, Default, Clone, PartialEq, Serialize)]
pub struct Stats {
    pub cpu: Cpu,
    pub cpuset: Cpuset,
    pub memory: Memory,
    pub pids: Pids,
    pub blkio: Blkio,
    /// By page size: `2MB`.
    pub hugetlb: BTreeMap<String, Hugetlb>,
    pub intel_rdt: BTreeMap<String, String>,
    /// Always null: the container's network is its creator's business.
    pub network_interfaces: Option<()>,
}

/// Processor time.
#[derive(Debug, Default, Clone, PartialEq, Serialize)]
pub struct Cpu {
    #[serde(skip_serializing_if = "is_default")]
    pub usage: CpuUsage,
    #[serde(skip_serializing_if = "is_default")]
    pub throttling: Throttling,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub psi: Option<Psi>,
}

#[derive(Debug, Default, Clone, PartialEq, Serialize)]
pub struct CpuUsage {
    #[serde(skip_serializing_if = "is_default")]
    pub total: u64,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub percpu: Vec<u64>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub percpu_kernel: Vec<u64>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub percpu_user: Vec<u64>,
    pub kernel: u64,
    pub user: u64,
}

/// How often and how long the quota held the container back.
#[derive(Debug, Default, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Throttling {
    #[serde(skip_serializing_if = "is_default")]
    pub periods: u64,
    #[serde(skip_serializing_if = "is_default")]
    pub throttled_periods: u64,
    #[serde(skip_serializing_if = "is_default")]
    pub throttled_time: u64,
}

/// Where the container may run (v1 only, as in runc).
#[derive(Debug, Default, Clone, PartialEq, Serialize)]
pub struct Cpuset {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub cpus: Vec<u16>,
    pub cpu_exclusive: u64,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub mems: Vec<u16>,
    pub mem_hardwall: u64,
    pub mem_exclusive: u64,
    pub memory_migrate: u64,
    pub memory_spread_page: u64,
    pub memory_spread_slab: u64,
    pub memory_pressure: u64,
    pub sched_load_balance: u64,
    pub sched_relax_domain_level: i64,
}

#[derive(Debug, Default, Clone, PartialEq, Serialize)]
pub struct Memory {
    #[serde(skip_serializing_if = "is_default")]
    pub cache: u64,
    #[serde(skip_serializing_if = "is_default")]
    pub usage: MemoryEntry,
    /// Memory and swap together.
    #[serde(skip_serializing_if = "is_default")]
    pub swap: MemoryEntry,
    #[serde(skip_serializing_if = "is_default")]
    pub kernel: MemoryEntry,
    #[serde(rename = "kernelTCP", skip_serializing_if = "is_default")]
    pub kernel_tcp: MemoryEntry,
    /// `memory.stat`.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub raw: BTreeMap<String, u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub psi: Option<Psi>,
}

#[derive(Debug, Default, Clone, PartialEq, Serialize)]
pub struct MemoryEntry {
    pub limit: u64,
    #[serde(skip_serializing_if = "is_default")]
    pub usage: u64,
    #[serde(skip_serializing_if = "is_default")]
    pub max: u64,
    pub failcnt: u64,
}

/// A limit of 0 is none, here.
#[derive(Debug, Default, Clone, PartialEq, Serialize)]
pub struct Pids {
    #[serde(skip_serializing_if = "is_default")]
    pub current: u64,
    #[serde(skip_serializing_if = "is_default")]
    pub limit: u64,
}

/// Bytes and operations per device.
#[derive(Debug, Default, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Blkio {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub io_service_bytes_recursive: Vec<BlkioEntry>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub io_serviced_recursive: Vec<BlkioEntry>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub psi: Option<Psi>,
}

#[derive(Debug, Default, Clone, PartialEq, Serialize)]
pub struct BlkioEntry {
    #[serde(skip_serializing_if = "is_default")]
    pub major: u64,
    #[serde(skip_serializing_if = "is_default")]
    pub minor: u64,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub op: String,
    #[serde(skip_serializing_if = "is_default")]
    pub value: u64,
}

#[derive(Debug, Default, Clone, PartialEq, Serialize)]
pub struct Hugetlb {
    #[serde(skip_serializing_if = "is_default")]
    pub usage: u64,
    #[serde(skip_serializing_if = "is_default")]
    pub max: u64,
    pub failcnt: u64,
}

/// Pressure stall information: how much of the time somebody, or everybody, waited.
#[derive(Debug, Default, Clone, PartialEq, Serialize)]
pub struct Psi {
    #[serde(skip_serializing_if = "is_default")]
    pub some: PsiData,
    #[serde(skip_serializing_if = "is_default")]
    pub full: PsiData,
}

/// Shares in percent, and the sum in microseconds.
#[derive(Debug, Default, Clone, PartialEq, Serialize)]
pub struct PsiData {
    #[serde(serialize_with = "percent")]
    pub avg10: f64,
    #[serde(serialize_with = "percent")]
    pub avg60: f64,
    #[serde(serialize_with = "percent")]
    pub avg300: f64,
    pub total: u64,
}

/// Go writes a whole number without `.0`.
fn percent<S: Serializer>(value: &f64, serializer: S) -> std::result::Result<S::Ok, S::Error> {
    if value.fract() == 0.0 {
        serializer.serialize_u64(*value as u64)
    } else {
        serializer.serialize_f64(*value)
    }
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

impl Cgroups {
    /// What the container has used so far. A controller that isn't there leaves its part empty.
    ///
    /// # Errors
    /// `ENOENT`: the cgroup is gone, as it is after the container.
    pub fn stats(&self) -> Result<Stats> {
        let mut stats = Stats::default();
        // Where both generations know something, v1 comes last and has the word: its controller does the accounting.
        for Dir { hierarchy, path, .. } in &self.dirs {
            io::read(path, "cgroup.procs").doing(|| format!("read cgroup {}", path.display())).map(drop)?;
            match hierarchy.version {
                Version::V2 => v2(path, &mut stats),
                Version::V1 => hierarchy.controllers.split(',').for_each(|c| v1(path, c, &mut stats)),
            }
        }
        Ok(stats)
    }
}

/// What one v1 controller knows.
fn v1(dir: &Path, controller: &str, stats: &mut Stats) {
    let number = |file: &str| io::number(dir, file).unwrap_or_default();
    let text = |file: &str| io::read(dir, file).unwrap_or_default();
    match controller {
        "cpuacct" => stats.cpu.usage = v1_cpu(dir),
        "cpu" => stats.cpu.throttling = throttling(&text("cpu.stat"), "throttled_time", 1),
        "cpuset" => {
            stats.cpuset = Cpuset {
                cpus: ranges(&text("cpuset.cpus")),
                cpu_exclusive: number("cpuset.cpu_exclusive"),
                mems: ranges(&text("cpuset.mems")),
                mem_hardwall: number("cpuset.mem_hardwall"),
                mem_exclusive: number("cpuset.mem_exclusive"),
                memory_migrate: number("cpuset.memory_migrate"),
                memory_spread_page: number("cpuset.memory_spread_page"),
                memory_spread_slab: number("cpuset.memory_spread_slab"),
                memory_pressure: number("cpuset.memory_pressure"),
                sched_load_balance: number("cpuset.sched_load_balance"),
                sched_relax_domain_level: text("cpuset.sched_relax_domain_level")
                    .trim_end()
                    .parse()
                    .unwrap_or_default(),
            }
        }
        "memory" => {
            let entry = |kind: &str| MemoryEntry {
                limit: number(&format!("memory.{kind}limit_in_bytes")),
                usage: number(&format!("memory.{kind}usage_in_bytes")),
                max: number(&format!("memory.{kind}max_usage_in_bytes")),
                failcnt: number(&format!("memory.{kind}failcnt")),
            };
            stats.memory.usage = entry("");
            stats.memory.swap = entry("memsw.");
            stats.memory.kernel = entry("kmem.");
            stats.memory.kernel_tcp = entry("kmem.tcp.");
            stats.memory.raw = flat(&text("memory.stat"));
            stats.memory.cache = stats.memory.raw.get("cache").copied().unwrap_or_default();
        }
        "pids" => stats.pids = pids(dir),
        "blkio" => {
            // The throttling layer sees every request; BFQ counts only its own, but then that is what its weights act
            // on.
            let recursive = |what: &str| {
                let bfq = v1_blkio(&text(&format!("blkio.bfq.{what}_recursive")));
                let all = || v1_blkio(&text(&format!("blkio.throttle.{what}_recursive")));
                if bfq.is_empty() { all() } else { bfq }
            };
            stats.blkio.io_service_bytes_recursive = recursive("io_service_bytes");
            stats.blkio.io_serviced_recursive = recursive("io_serviced");
        }
        "hugetlb" => {
            stats.hugetlb = huge_page_sizes("limit_in_bytes", dir, |size| Hugetlb {
                usage: number(&format!("hugetlb.{size}.usage_in_bytes")),
                max: number(&format!("hugetlb.{size}.max_usage_in_bytes")),
                failcnt: number(&format!("hugetlb.{size}.failcnt")),
            });
        }
        _ => {}
    }
}

/// What cgroup2 knows.
fn v2(dir: &Path, stats: &mut Stats) {
    let number = |file: &str| io::number(dir, file).unwrap_or_default();
    let text = |file: &str| io::read(dir, file).unwrap_or_default();
    let cpu = text("cpu.stat");
    let microseconds = |key| keyed(&cpu, key).unwrap_or_default() * 1000;
    stats.cpu = Cpu {
        usage: CpuUsage {
            total: microseconds("usage_usec"),
            kernel: microseconds("system_usec"),
            user: microseconds("user_usec"),
            ..CpuUsage::default()
        },
        throttling: throttling(&cpu, "throttled_usec", 1000),
        psi: psi(&text("cpu.pressure")),
    };
    stats.pids = pids(dir);
    let entry = |kind: &str| {
        let (current, max) = (format!("memory.{kind}current"), format!("memory.{kind}max"));
        io::number(dir, &current).map_or_else(
            |_| MemoryEntry::default(),
            |usage| MemoryEntry {
                usage,
                limit: number(&max),
                max: number(&format!("memory.{kind}peak")),
                failcnt: 0,
            },
        )
    };
    let (memory, swap) = (entry(""), entry("swap."));
    stats.memory.swap = MemoryEntry {
        usage: memory.usage + swap.usage,
        limit: memory.limit.saturating_add(swap.limit),
        ..MemoryEntry::default()
    };
    stats.memory.usage = memory;
    stats.memory.raw = flat(&text("memory.stat"));
    stats.memory.cache = stats.memory.raw.get("file").copied().unwrap_or_default();
    stats.memory.psi = psi(&text("memory.pressure"));
    stats.blkio = v2_io(&text("io.stat"));
    stats.blkio.psi = psi(&text("io.pressure"));
    stats.hugetlb = huge_page_sizes("max", dir, |size| Hugetlb {
        usage: number(&format!("hugetlb.{size}.current")),
        max: 0,
        failcnt: keyed(&text(&format!("hugetlb.{size}.events")), "max").unwrap_or_default(),
    });
}

fn v1_cpu(dir: &Path) -> CpuUsage {
    let text = |file: &str| io::read(dir, file).unwrap_or_default();
    let stat = text("cpuacct.stat");
    let per_second = rustix::param::clock_ticks_per_second().max(1);
    let ticks = |key| keyed(&stat, key).unwrap_or_default() * (1_000_000_000 / per_second);
    // A header, then a line per cpu: its number, user time, system time.
    let all = text("cpuacct.usage_all");
    let column = |n| {
        let cell = move |line: &str| line.split(' ').nth(n)?.trim_end().parse().ok();
        all.lines().skip(1).filter_map(cell).collect()
    };
    CpuUsage {
        total: io::number(dir, "cpuacct.usage").unwrap_or_default(),
        percpu: text("cpuacct.usage_percpu").split_whitespace().filter_map(|n| n.parse().ok()).collect(),
        percpu_user: column(1),
        percpu_kernel: column(2),
        kernel: ticks("system"),
        user: ticks("user"),
    }
}

fn throttling(stat: &str, time: &str, nanoseconds: u64) -> Throttling {
    let value = |key| keyed(stat, key).unwrap_or_default();
    Throttling {
        periods: value("nr_periods"),
        throttled_periods: value("nr_throttled"),
        throttled_time: value(time) * nanoseconds,
    }
}

fn pids(dir: &Path) -> Pids {
    let number = |file| io::number(dir, file).unwrap_or_default();
    let limit = number("pids.max");
    Pids { current: number("pids.current"), limit: if limit == u64::MAX { 0 } else { limit } }
}

/// A file of `key value` lines.
fn flat(text: &str) -> BTreeMap<String, u64> {
    let entry = |line: &str| {
        let (key, value) = line.split_once(' ')?;
        Some((key.to_owned(), value.trim_end().parse().ok()?))
    };
    text.lines().filter_map(entry).collect()
}

/// `8:0 Read 4096`; the sum over all devices has no number and is left out.
fn v1_blkio(text: &str) -> Vec<BlkioEntry> {
    let entry = |line: &str| {
        let mut words = line.split_whitespace();
        let (major, minor) = words.next()?.split_once(':')?;
        let (op, value) = (words.next()?.to_owned(), words.next()?.parse().ok()?);
        Some(BlkioEntry { major: major.parse().ok()?, minor: minor.parse().ok()?, op, value })
    };
    text.lines().filter_map(entry).collect()
}

/// `8:0 rbytes=4096 wbytes=0 rios=1 wios=0 ...`
fn v2_io(text: &str) -> Blkio {
    let mut blkio = Blkio::default();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let Some((major, minor)) = words.next().and_then(|w| w.split_once(':')) else { continue };
        let (Ok(major), Ok(minor)) = (major.parse(), minor.parse()) else { continue };
        for (key, value) in words.filter_map(|w| w.split_once('=')) {
            let (list, op) = match key {
                "rbytes" => (&mut blkio.io_service_bytes_recursive, "Read"),
                "wbytes" => (&mut blkio.io_service_bytes_recursive, "Write"),
                "rios" => (&mut blkio.io_serviced_recursive, "Read"),
                "wios" => (&mut blkio.io_serviced_recursive, "Write"),
                _ => continue,
            };
            let Ok(value) = value.parse() else { continue };
            list.push(BlkioEntry { major, minor, op: op.to_owned(), value });
        }
    }
    blkio
}

/// `some avg10=0.00 avg60=0.00 avg300=0.00 total=0`, and the same for `full`. None if the kernel does not measure it.
fn psi(text: &str) -> Option<Psi> {
    let line = |kind: &str| {
        let words = text.lines().find_map(|line| line.strip_prefix(kind))?;
        let value = |key: &str| words.split_whitespace().find_map(|w| w.strip_prefix(key));
        let average = |key| value(key).and_then(|v| v.parse().ok()).unwrap_or_default();
        Some(PsiData {
            avg10: average("avg10="),
            avg60: average("avg60="),
            avg300: average("avg300="),
            total: value("total=").and_then(|v| v.parse().ok()).unwrap_or_default(),
        })
    };
    line("some ").map(|some| Psi { some, full: line("full ").unwrap_or_default() })
}

/// The page sizes that the controller's files are named after.
fn huge_page_sizes(limit: &str, dir: &Path, read: impl Fn(&str) -> Hugetlb) -> BTreeMap<String, Hugetlb> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let size = |entry: std::fs::DirEntry| {
        let name = entry.file_name().into_string().ok()?;
        let size = name.strip_prefix("hugetlb.")?.strip_suffix(limit)?.strip_suffix('.')?;
        (!size.contains('.')).then(|| (size.to_owned(), read(size)))
    };
    entries.filter_map(size).collect()
}

/// `0-2,5` as numbers.
fn ranges(text: &str) -> Vec<u16> {
    let range = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some(first.parse::<u16>().ok()?..=last.parse().ok()?)
    };
    text.trim_end().split(',').filter_map(range).flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_formats_are_understood() {
        assert_eq!(ranges("0-2,5\n"), [0, 1, 2, 5]);
        assert!(ranges("\n").is_empty());
        let entry = |op: &str, value| BlkioEntry { major: 8, minor: 16, op: op.into(), value };
        assert_eq!(v1_blkio("8:16 Read 7\n8:16 Sync 9\nTotal 16\n"), [entry("Read", 7), entry("Sync", 9)]);
        let io = v2_io("8:16 rbytes=7 wbytes=9 rios=1 wios=2 dbytes=0 dios=0\n");
        assert_eq!(io.io_service_bytes_recursive, [entry("Read", 7), entry("Write", 9)]);
        assert_eq!(io.io_serviced_recursive, [entry("Read", 1), entry("Write", 2)]);
        let psi = psi("some avg10=1.50 avg60=0.00 avg300=0.00 total=42\n").unwrap();
        assert_eq!(
            serde_json::to_string(&psi).unwrap(),
            r#"{"some":{"avg10":1.5,"avg60":0,"avg300":0,"total":42}}"#
        );
    }

    #[test]
    fn what_is_zero_is_left_out_where_runc_leaves_it_out() {
        let stats = Stats { pids: Pids { current: 3, limit: 0 }, ..Stats::default() };
        let json = serde_json::to_value(&stats).unwrap();
        assert_eq!(json["pids"], serde_json::json!({"current": 3}));
        assert_eq!(json["cpu"], serde_json::json!({}));
        assert_eq!(json["memory"], serde_json::json!({}));
        assert_eq!(json["hugetlb"], serde_json::json!({}));
        assert!(json["network_interfaces"].is_null());
    }
}

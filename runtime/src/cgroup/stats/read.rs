//! Where the figures come from: the files of v1's controllers, and cgroup2's.

use super::super::io::{self, keyed};
use super::{
    Blkio, BlkioEntry, Cpu, CpuUsage, Cpuset, Hugetlb, MemoryEntry, Pids, Psi, PsiData, Stats, Throttling,
};
use std::collections::BTreeMap;
use std::path::Path;

/// What one v1 controller knows.
pub(super) fn v1(dir: &Path, controller: &str, stats: &mut Stats) {
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
pub(super) fn v2(dir: &Path, stats: &mut Stats) {
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
}

//! What a container has used, in the form that `runc events --stats` made known.

mod read;

use super::io;
use super::layout::Version;
use super::{Cgroups, Dir};
use crate::error::Result;
use ckrun_virt::Doing;
use serde::{Serialize, Serializer};
use std::collections::BTreeMap;

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
                Version::V2 => read::v2(path, &mut stats),
                Version::V1 => hierarchy.controllers.split(',').for_each(|c| read::v1(path, c, &mut stats)),
            }
        }
        Ok(stats)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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

//! `linux.resources`, carried out.
//!
//! Every controller is handled where it is: in its v1 hierarchy if that is mounted, else in cgroup2. What is asked for
//! and can't be had is an error that names the field; a zero, which several clients send for "not set", asks for
//! nothing.

use super::io::{self, Io};
use super::{Cgroups, refuse, v1, v2};
use crate::error::{Error, Result};
use nix::errno::Errno;
use oci_spec::runtime::{LinuxHugepageLimit, LinuxPids, LinuxRdma, LinuxResources};
use std::collections::HashMap;
use std::fmt::Display;
use std::path::Path;

impl Cgroups {
    /// Applies `linux.resources`, all but the devices (see [`Cgroups::apply_devices`]): the whole at creation, or
    /// what `ckrun update` changes. With systemd it comes after [`Cgroups::join`], else before or after.
    ///
    /// # Errors
    /// [`Error::Config`] names the field that can't be carried out, and why.
    pub fn apply(&self, resources: &LinuxResources) -> Result<()> {
        if let Some(unit) = &self.unit {
            unit.set(resources, self.is_pure_v2())?;
        }
        if let Some(cpu) = resources.cpu() {
            let (cpus, bandwidth) = (self.knobs("cpuset", "cpuset"), self.knobs("cpu", "cpu"));
            cpuset(&cpus, cpu)?;
            if bandwidth.v1 { v1::cpu(&bandwidth, cpu)? } else { v2::cpu(&bandwidth, cpu)? }
        }
        if let Some(memory) = resources.memory() {
            let knobs = self.knobs("memory", "memory");
            if knobs.v1 { v1::memory(&knobs, memory)? } else { v2::memory(&knobs, memory)? }
        }
        if let Some(limit) = resources.pids() {
            pids(&self.knobs("pids", "pids"), limit)?;
        }
        if let Some(block_io) = resources.block_io() {
            let knobs = self.knobs("blkio", "io");
            if knobs.v1 { v1::block_io(&knobs, block_io)? } else { v2::block_io(&knobs, block_io)? }
        }
        for limit in resources.hugepage_limits().iter().flatten() {
            hugepages(&self.knobs("hugetlb", "hugetlb"), limit)?;
        }
        if let Some(network) = resources.network() {
            v1::network(&self.knobs("net_cls", ""), &self.knobs("net_prio", ""), network)?;
        }
        if let Some(limits) = resources.rdma() {
            rdma(&self.knobs("rdma", "rdma"), limits)?;
        }
        if let Some(unified) = resources.unified() {
            v2::unified(self.v2(), unified)?;
        }
        Ok(())
    }

    /// The files of a controller, by its names on v1 and v2.
    fn knobs(&self, v1: &'static str, v2: &'static str) -> Knobs<'_> {
        let old = self.v1(v1);
        let dir = old.or_else(|| self.v2().filter(|_| !v2.is_empty()));
        Knobs {
            controller: if old.is_some() { v1 } else { v2 },
            v1: old.is_some() || self.v2().is_none() || v2.is_empty(),
            dir: dir.map(|d| d.path.as_path()),
            mount: dir.map(|d| d.hierarchy.mount.as_path()),
            missing: v1,
        }
    }
}

/// The files of one controller in the container's cgroup.
#[derive(Debug)]
pub(super) struct Knobs<'a> {
    pub(super) controller: &'a str,
    /// Whether the files are v1's.
    pub(super) v1: bool,
    pub(super) dir: Option<&'a Path>,
    pub(super) mount: Option<&'a Path>,
    /// What to call the controller when there is none.
    pub(super) missing: &'a str,
}

impl Knobs<'_> {
    /// Writes `value` to `file`, which `field` (below `linux.resources`) asks for.
    pub(super) fn set(&self, field: &str, file: &str, value: impl Display) -> Result<()> {
        let value = value.to_string();
        self.try_set(file, &value).map_err(|errno| self.explain(field, file, &value, errno))
    }

    /// Writes values that constrain each other, so that the right order depends on the values before: what the kernel
    /// calls invalid is tried again after the others, as long as that gets further.
    pub(super) fn settle(&self, mut writes: Vec<(&str, &str, String)>) -> Result<()> {
        loop {
            let before = writes.len();
            let mut refused = Vec::new();
            for (field, file, value) in writes {
                match self.try_set(file, &value) {
                    Ok(()) => {}
                    Err(Errno::EINVAL) => refused.push((field, file, value)),
                    Err(errno) => return Err(self.explain(field, file, &value, errno)),
                }
            }
            match refused.first() {
                None => return Ok(()),
                Some((field, file, value)) if refused.len() == before => {
                    return Err(self.explain(field, file, value, Errno::EINVAL));
                }
                Some(_) => writes = refused,
            }
        }
    }

    /// Writes and, on cgroup2, enables the controller if its files aren't there yet.
    pub(super) fn try_set(&self, file: &str, value: &str) -> Io<()> {
        let dir = self.dir.ok_or(Errno::ENODEV)?;
        match (io::write(dir, file, value), self.mount) {
            (Err(Errno::ENOENT), Some(mount)) if !self.v1 => {
                // Why it can't be enabled is found out when the file is missing still.
                let _ = v2::enable(mount, dir, self.controller);
                io::write(dir, file, value)
            }
            (result, _) => result,
        }
    }

    pub(super) fn get(&self, file: &str) -> Io<String> {
        io::read(self.dir.ok_or(Errno::ENODEV)?, file)
    }

    pub(super) fn has(&self, file: &str) -> bool {
        self.dir.is_some_and(|dir| io::exists(&dir.join(file)))
    }

    fn explain(&self, field: &str, file: &str, value: &str, errno: Errno) -> Error {
        let why = match (errno, self.dir) {
            (Errno::ENODEV, None) => {
                format!("the container has no cgroup with the {} controller", self.missing)
            }
            (Errno::ENOENT, Some(dir)) if !self.v1 && !v2::enabled(dir, self.controller) => {
                v2::why_not_enabled(self.mount.unwrap_or(dir), dir, self.controller)
            }
            (Errno::ENOENT, Some(dir)) => format!("this kernel has no {}", dir.join(file).display()),
            (Errno::EBUSY, Some(dir)) if self.v1 && file.starts_with("memory.") => {
                let used = io::read(dir, "memory.usage_in_bytes").unwrap_or_default();
                format!("{value} is less than the {} bytes in use that can't be reclaimed", used.trim_end())
            }
            (errno, dir) => {
                let path = dir.map(|dir| dir.join(file)).unwrap_or_default();
                let reason = ckrun_virt::error::text(errno);
                format!("write {:?} to {}: {reason}", value.trim_end(), path.display())
            }
        };
        refuse(field, why)
    }
}

/// A value that clients send as 0 when they mean "not set".
pub(super) fn set<T: Default + PartialEq>(value: Option<T>) -> Option<T> {
    value.filter(|v| *v != T::default())
}

/// `max` for the negative values that mean "unlimited".
pub(super) fn or_max(value: i64) -> String {
    if value < 0 { "max".to_owned() } else { value.to_string() }
}

fn cpuset(knobs: &Knobs<'_>, cpu: &oci_spec::runtime::LinuxCpu) -> Result<()> {
    let lists = [("cpu.cpus", "cpuset.cpus", cpu.cpus()), ("cpu.mems", "cpuset.mems", cpu.mems())];
    for (field, file, list) in lists {
        if let Some(list) = list.as_deref().filter(|list| !list.is_empty()) {
            knobs.set(field, file, list)?;
        }
    }
    Ok(())
}

/// 0 is "unlimited", as crun takes it and as podman before 5.5 sends it. (runc since 1.4 takes it for a limit.)
fn pids(knobs: &Knobs<'_>, pids: &LinuxPids) -> Result<()> {
    let limit = pids.limit();
    if limit <= 0 && knobs.dir.is_none() {
        return Ok(());
    }
    knobs.set("pids.limit", "pids.max", if limit <= 0 { "max".into() } else { limit.to_string() })
}

fn hugepages(knobs: &Knobs<'_>, limit: &LinuxHugepageLimit) -> Result<()> {
    let size = limit.page_size();
    let field = format!("hugepageLimits[{size}]");
    if size.is_empty() || size.contains('/') {
        return Err(refuse(&field, "is not a page size like 2MB"));
    }
    let (suffix, value) =
        if knobs.v1 { ("limit_in_bytes", limit.limit().to_string()) } else { ("max", or_max(limit.limit())) };
    knobs.set(&field, &format!("hugetlb.{size}.{suffix}"), &value)?;
    // Reservations (Linux 5.7) are limited alike: what is reserved and not yet touched counts, too.
    let reserved = format!("hugetlb.{size}.rsvd.{suffix}");
    if knobs.has(&reserved) { knobs.set(&field, &reserved, value) } else { Ok(()) }
}

fn rdma(knobs: &Knobs<'_>, limits: &HashMap<String, LinuxRdma>) -> Result<()> {
    for (device, limit) in limits {
        let mut line = device.clone();
        for (key, value) in [("hca_handle", limit.hca_handles()), ("hca_object", limit.hca_objects())] {
            if let Some(value) = value {
                line += &format!(" {key}={value}");
            }
        }
        knobs.set(&format!("rdma[{device}]"), "rdma.max", line)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;

//! `ckrun update`: change a running container's limits.

use super::{Context, lock, require};
use crate::config::{parse_json, read_json};
use crate::error::{Error, Result};
use crate::status::Status;
use oci_spec::runtime::LinuxResources;
use serde_json::{Value, json};
use std::io::Read;
use std::path::{Path, PathBuf};

/// Change the limits of a container
///
/// Only what is given changes. Sizes are bytes, or numbers with k, m, g, t (powers of 1024); -1 is no limit.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  ckrun update --memory 512m --pids-limit 100 web\n  \
    echo '{\"cpu\":{\"quota\":50000}}' | ckrun update --resources - web")]
pub struct Args {
    /// File with the linux.resources object of the runtime-spec, - for standard input
    #[arg(short, long, value_name = "FILE")]
    resources: Option<PathBuf>,
    /// Weight of block I/O, 10 to 1000
    #[arg(long, value_name = "WEIGHT")]
    blkio_weight: Option<u16>,
    /// Microseconds in which --cpu-quota is measured
    #[arg(long, value_name = "US")]
    cpu_period: Option<u64>,
    /// Microseconds of processor time in each period
    #[arg(long, value_name = "US", allow_hyphen_values = true)]
    cpu_quota: Option<i64>,
    /// Microseconds saved up from earlier periods
    #[arg(long, value_name = "US")]
    cpu_burst: Option<u64>,
    /// Relative weight of processor time
    #[arg(short = 'c', long, value_name = "SHARES", visible_alias = "cpu-share")]
    cpu_shares: Option<u64>,
    /// Microseconds in which --cpu-rt-runtime is measured
    #[arg(long, value_name = "US")]
    cpu_rt_period: Option<u64>,
    /// Microseconds of real-time scheduling in each period
    #[arg(long, value_name = "US", allow_hyphen_values = true)]
    cpu_rt_runtime: Option<i64>,
    /// Processors, as 0-3,7
    #[arg(long, value_name = "LIST")]
    cpuset_cpus: Option<String>,
    /// Memory nodes, as 0-1
    #[arg(long, value_name = "LIST")]
    cpuset_mems: Option<String>,
    /// 1: only idle time
    #[arg(long, value_name = "0|1", allow_hyphen_values = true)]
    cpu_idle: Option<i64>,
    /// Memory
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true)]
    memory: Option<String>,
    /// Memory below which it is not reclaimed first
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true)]
    memory_reservation: Option<String>,
    /// Memory and swap together
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true)]
    memory_swap: Option<String>,
    /// Number of processes and threads
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    pids_limit: Option<i64>,
    /// The container's name
    #[arg(value_name = "ID")]
    id: String,
}

/// Carries it out.
pub fn run(args: &Args, context: &Context) -> Result<()> {
    let (_entry, state, status) = lock(context, &args.id)?;
    require("update", &args.id, status, &[Status::Created, Status::Running, Status::Paused])?;
    let resources: LinuxResources = match &args.resources {
        Some(path) if path == Path::new("-") => {
            let mut text = Vec::new();
            std::io::stdin().read_to_end(&mut text).map_err(|e| Error::file("stdin", &e))?;
            parse_json(Path::new("stdin"), &text)?
        }
        Some(path) => read_json(path)?,
        None => parse_json(Path::new("options"), from_options(args)?.to_string().as_bytes())?,
    };
    state.cgroups.apply(&resources)?;
    match resources.devices() {
        Some(rules) => state.cgroups.apply_devices(rules),
        None => Ok(()),
    }
}

/// The options as the object that --resources would hold.
fn from_options(args: &Args) -> Result<Value> {
    let size = |option: &str, word: &Option<String>| word.as_deref().map(|w| bytes(option, w)).transpose();
    let mut all = json!({
        "cpu": {
            "period": args.cpu_period, "quota": args.cpu_quota, "burst": args.cpu_burst, "shares": args.cpu_shares,
            "realtimePeriod": args.cpu_rt_period, "realtimeRuntime": args.cpu_rt_runtime,
            "cpus": args.cpuset_cpus, "mems": args.cpuset_mems, "idle": args.cpu_idle,
        },
        "memory": {
            "limit": size("--memory", &args.memory)?,
            "reservation": size("--memory-reservation", &args.memory_reservation)?,
            "swap": size("--memory-swap", &args.memory_swap)?,
        },
        "blockIO": { "weight": args.blkio_weight },
    });
    if let Some(limit) = args.pids_limit {
        all["pids"] = json!({ "limit": limit });
    }
    Ok(all)
}

fn bytes(option: &str, word: &str) -> Result<i64> {
    let bad = || Error::Usage(format!("{option} {word}: is not a size"));
    let lower = word.trim().to_ascii_lowercase();
    let digits = lower.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match &lower[digits.len()..] {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        _ => return Err(bad()),
    };
    let number: i64 = digits.parse().map_err(|_| bad())?;
    number.checked_mul(1 << shift).ok_or_else(bad)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        assert_eq!(bytes("--memory", "512m").unwrap(), 512 << 20);
        assert_eq!(bytes("--memory", "1GiB").unwrap(), 1 << 30);
        assert_eq!(bytes("--memory", "-1").unwrap(), -1);
        for bad in ["", "m", "5x", "99999999999t"] {
            assert!(bytes("--memory", bad).is_err(), "{bad}");
        }
    }
}

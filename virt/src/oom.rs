//! How likely the kernel is to choose a process when memory runs out, and what a core dump of it holds.
//!
//! Both per process (all processes that share its memory), and from outside, at any time after the process has its
//! memory.

use crate::outside::Outside;
use crate::resource::Stopped;
use crate::{Doing, Failure};
use nix::errno::Errno;
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

/// `/proc/PID/oom_score_adj`, -1000 to 1000.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct OomScoreAdj(i16);

impl Outside for OomScoreAdj {
    /// It is a matter of the host's memory, not of the job's state, and to lower it takes CAP_SYS_RESOURCE.
    const NEEDED: bool = false;

    fn capture(task: &Stopped) -> Result<Self, Failure> {
        parse(&task.read("oom_score_adj")?, |text| text.parse().ok(), "oom_score_adj").map(OomScoreAdj)
    }

    fn restore(&self, host: Pid) -> Result<(), Failure> {
        let path = format!("/proc/{host}/oom_score_adj");
        let now = crate::proc::read(&path).doing(|| format!("read {path}"))?;
        let wanted = self.0.to_string();
        if now.trim_ascii_end() == wanted.as_bytes() {
            return Ok(());
        }
        std::fs::write(&path, &wanted).doing(|| format!("write {wanted} to {path}"))
    }
}

/// `/proc/PID/coredump_filter`: bit N means mappings of kind N of core(5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct CoredumpFilter(u32);

impl Outside for CoredumpFilter {
    fn capture(task: &Stopped) -> Result<Self, Failure> {
        let hex = |text: &str| u32::from_str_radix(text, 16).ok();
        parse(&task.read("coredump_filter")?, hex, "coredump_filter").map(CoredumpFilter)
    }

    fn restore(&self, host: Pid) -> Result<(), Failure> {
        let path = format!("/proc/{host}/coredump_filter");
        let wanted = format!("{:#x}", self.0);
        std::fs::write(&path, &wanted).doing(|| format!("write {wanted} to {path}"))
    }
}

fn parse<T>(bytes: &[u8], parse: impl FnOnce(&str) -> Option<T>, name: &str) -> Result<T, Failure> {
    let text = std::str::from_utf8(bytes.trim_ascii()).unwrap_or_default();
    parse(text).ok_or(Errno::EINVAL).doing(|| format!("understand {name}"))
}

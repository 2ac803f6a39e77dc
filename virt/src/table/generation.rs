//! Where a job has lived, and when.

use super::Time;
use crate::{Doing, Failure};
use serde::{Deserialize, Serialize};

/// One stretch of a job's life: from a start or a restart to the checkpoint that ended it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Generation {
    /// How often the job had been restarted: 0 for the first.
    pub number: u32,
    /// The host's name (uname(2)).
    pub host: String,
    /// The kernel's `/proc/sys/kernel/random/boot_id`: host and pid are reused after a reboot, this is not.
    pub boot: String,
    /// The start or the restart.
    pub since: Time,
    /// When the job was last seen there; None for the generation that lives.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Time>,
}

impl Generation {
    /// A generation that lives on this host since `since`.
    ///
    /// # Errors
    /// The kernel does not say which boot this is (`/proc` is not mounted).
    pub fn here(number: u32, since: Time) -> Result<Generation, Failure> {
        const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
        let boot = std::fs::read_to_string(BOOT_ID).doing(|| format!("read {BOOT_ID}"))?;
        let host = nix::sys::utsname::uname().doing(|| "ask for the host's name")?;
        Ok(Generation {
            number,
            host: host.nodename().to_string_lossy().into_owned(),
            boot: boot.trim_end().to_owned(),
            since,
            until: None,
        })
    }
}

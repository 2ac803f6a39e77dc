//! Devices: those that every container has, and that are the same everywhere (null, zero, full, random, urandom), and
//! those for which somebody answers.

use super::capture::Job;
use super::given::is_terminal;
use super::located::{Located, locate};
use super::making::{Making, OPEN};
use super::{Object, Trouble};
use crate::image::Bytes;
use serde::{Deserialize, Serialize};
use std::os::fd::RawFd;

/// Minor numbers of the memory devices (major 1) that have no state, and their usual places.
const STATELESS: [(u32, &str); 5] =
    [(3, "/dev/null"), (5, "/dev/zero"), (7, "/dev/full"), (8, "/dev/random"), (9, "/dev/urandom")];

/// A device without state, or with one that is its owner's business.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Device {
    /// From the container's root.
    pub path: Bytes,
    /// Its number, as stat(2) has it.
    pub device: u64,
    /// Somebody answers for what is at this path: it may be another device at a restart.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub owned: bool,
}

impl Job<'_> {
    pub(super) fn device(&mut self, node: usize) -> Result<(u32, Object), Trouble> {
        let seen = &self.graph.nodes[node].seen;
        let device = seen.stat.st_rdev;
        let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
        let usual = STATELESS.iter().find(|(stateless, _)| (major, minor) == (1, *stateless));
        let place = locate(self, &seen.link, &seen.stat, seen.info.mount);
        if let Ok((namespace, Located::Named(path))) = &place
            && self.owned.covers(path)
        {
            let path = path.clone().into();
            return Ok((*namespace, Object::Device(Device { path, device, owned: true })));
        }
        let Some((_, usual)) = usual else {
            let what = format!("{} (device {major}:{minor})", seen.name());
            let why = if is_terminal(device) {
                "terminals can't be checkpointed yet, except as the first process's standard streams"
            } else {
                "nobody answers for the state of this device"
            };
            let refused = Trouble::refused(what, why);
            let name = seen.name();
            // Those in the container's own devpts are not the host's to be put elsewhere.
            if name.starts_with("/dev/pts/") {
                return Err(refused);
            }
            return Err(refused
                .or(format!("start the job with --map {name}=DEVICE, which makes it yours to answer for")));
        };
        let (namespace, path) = match place {
            Ok((namespace, Located::Named(path))) => (namespace, path),
            Err(Trouble::Call(failure)) => return Err(failure.into()),
            // Opened on the host before the container was there. It is the same device.
            _ => match self.graph.container.find(usual.as_bytes())? {
                Some(there) if there.st_rdev == device => (0, usual.as_bytes().to_vec()),
                _ => return Err(Trouble::refused(seen.name(), format!("the container has no {usual}"))),
            },
        };
        Ok((namespace, Object::Device(Device { path: path.into(), device, owned: false })))
    }
}

impl Device {
    pub(super) fn make(&self, flags: u32, to: RawFd, making: &mut Making<'_>) {
        making.open(&self.path, flags & OPEN, to);
    }
}

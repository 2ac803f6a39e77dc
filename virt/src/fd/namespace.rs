//! Handles of namespaces (`/proc/PID/ns`): of those that the job's processes are in. A restart opens the new ones.

use super::Trouble;
use super::capture::Job;
use super::making::Making;
use crate::Doing;
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use std::os::fd::RawFd;

/// The kinds, as the kernel names them.
const KINDS: [&str; 8] = ["mnt", "net", "pid", "user", "uts", "ipc", "cgroup", "time"];

/// A handle of a namespace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Namespace {
    /// What it is of.
    pub of: String,
    /// Which one of the mount namespaces; of all other kinds there is one.
    #[serde(default, skip_serializing_if = "super::is_first")]
    pub number: u32,
}

/// What `name`, as in `net:[4026531840]`, says that the namespace is of; None for anything else.
pub(super) fn kind(name: &[u8]) -> Option<&'static str> {
    let of = |kind: &&str| name.strip_prefix(kind.as_bytes()).is_some_and(|rest| rest.starts_with(b":["));
    KINDS.into_iter().find(|kind| of(kind))
}

impl Job<'_> {
    pub(super) fn namespace(&mut self, node: usize, kind: &str) -> Result<Namespace, Trouble> {
        let seen = &self.graph.nodes[node].seen;
        let inode = seen.stat.st_ino;
        let number = if kind == "mnt" {
            let mut all = self.graph.containers();
            all.find(|(_, container)| container.space().inode() == inode).map(|(number, _)| number)
        } else {
            let init = self.graph.members.first().map_or(Pid::this(), |member| member.host);
            let path = format!("/proc/{init}/ns/{kind}");
            let own = rustix::fs::stat(&path).doing(|| format!("look at {path}"))?;
            (own.st_ino == inode).then_some(0)
        };
        match number {
            Some(number) => Ok(Namespace { of: kind.to_owned(), number }),
            None => Err(Trouble::refused(seen.name(), "a namespace that no process of the job is in")),
        }
    }
}

impl Namespace {
    pub(super) fn make(&self, flags: u32, to: RawFd, making: &mut Making<'_>) {
        match making.namespaces.get(self.number as usize) {
            Some(there) if self.of == "mnt" => making.reopen(there.handle, flags, to),
            _ => making.open_outside(format!("/proc/{}/ns/{}", making.worker.host(), self.of), flags, to),
        }
    }

    /// Why there can't be such a one.
    pub(super) fn wrong(&self) -> Option<String> {
        let known = KINDS.contains(&self.of.as_str()) && (self.number == 0 || self.of == "mnt");
        (!known).then(|| "a handle of an impossible namespace".into())
    }
}

//! How a process gets into its cgroups.
//!
//! In cgroup2 it is born, by clone3's `CLONE_INTO_CGROUP`. Into v1 hierarchies it goes by itself: to move another process
//! the kernel holds up every fork, exec and exit, and waits for an RCU grace period before it does, which takes 10 ms and
//! more on a machine with little to do. A thread that writes 0 to `tasks` moves nobody but itself, and waits for nothing.

use super::{Cgroups, io, layout, open_directory};
use crate::error::Result;
use ckrun_virt::Doing;
use nix::unistd::Pid;
use rustix::fs::OFlags;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

/// The `tasks` of a container's v1 cgroups, open for writing: the kernel looks at the rights of who has opened them.
#[derive(Debug, Default)]
pub struct Doors(Vec<(PathBuf, OwnedFd)>);

impl Cgroups {
    /// Opens what a new process enters by itself. Nothing as long as systemd's scope isn't there: systemd starts that with
    /// a process that it moves there.
    ///
    /// # Errors
    /// A cgroup is gone, `EACCES`.
    pub fn doors(&self) -> Result<Doors> {
        if self.unit_to_start()?.is_some() {
            return Ok(Doors::default());
        }
        let doors = self.dirs.iter().filter(|dir| !dir.is_v2()).map(|dir| {
            let tasks = io::open(&dir.path, "tasks", OFlags::WRONLY)
                .doing(|| format!("open {}/tasks", dir.path.display()))?;
            Ok((dir.path.clone(), tasks))
        });
        doors.collect::<Result<_>>().map(Doors)
    }

    /// An open cgroup2 directory for clone3's `CLONE_INTO_CGROUP`. None on pure v1, and as long as systemd's scope
    /// isn't there.
    pub fn clone_target(&self) -> Option<OwnedFd> {
        match self.unit_to_start() {
            Ok(None) => open_directory(&self.v2()?.path),
            _ => None,
        }
    }

    /// Like [`Cgroups::clone_target`], but the cgroup2 in which `init` itself is, if that is below the container's.
    /// A container that divides its cgroup further (systemd in it does) leaves no place for a process in the cgroup
    /// itself: there the clone fails with `EBUSY`, and `ckrun exec` puts its process beside the init.
    pub fn clone_target_beside(&self, init: Pid) -> Option<OwnedFd> {
        let dir = self.v2()?;
        let members = io::read(Path::new(&format!("/proc/{init}")), "cgroup").ok()?;
        let name = layout::memberships(&members).find_map(|(c, name)| c.is_empty().then_some(name))?;
        let path = dir.hierarchy.directory(name)?;
        path.starts_with(&dir.path).then(|| open_directory(&path))?
    }

    /// Moves `pid` to where it is not yet and does not go by itself: into cgroup2, unless it was `born_in_v2`. With systemd
    /// the first process starts the scope, and is moved into all of them.
    ///
    /// # Errors
    /// `ESRCH` (it has ended), `EACCES` (rootless: the way up from ckrun's own cgroup is not delegated), systemd's
    /// answer.
    pub fn join(&self, pid: Pid, born_in_v2: bool) -> Result<()> {
        match self.unit_to_start()? {
            Some(unit) => unit.start(pid, self),
            None => self.v2().filter(|_| !born_in_v2).map_or(Ok(()), |dir| dir.join(pid)),
        }
    }
}

impl Doors {
    /// Takes the calling process, which has one thread, in, and closes the doors behind it.
    ///
    /// # Errors
    /// `ENOSPC` (an empty cpuset), `EACCES` (rootless: the way up from ckrun's own cgroup is not delegated).
    pub fn enter(&mut self) -> Result<()> {
        for (path, tasks) in std::mem::take(&mut self.0) {
            io::put(&tasks, "0").doing(|| format!("enter cgroup {}", path.display()))?;
        }
        Ok(())
    }
}

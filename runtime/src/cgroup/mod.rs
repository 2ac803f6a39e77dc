//! The cgroups of a container: limits, accounting, freezing and killing, on cgroup v1, v2 and both at once.
//!
//! Their life: [`Cgroups::plan`] decides where they will be, the caller saves that, [`Cgroups::create`] makes them,
//! [`Cgroups::apply`] and [`Cgroups::apply_devices`] limit it, a process goes in ([`Cgroups::doors`], [`Cgroups::join`]),
//! and [`Cgroups::remove`] takes away what `create` made.
//!
//! One rule stands above all others: what this container did not make is not its own. A cgroup that was there before is
//! used if it is empty, but none of its processes is ever killed and it is never removed; and ckrun's own cgroup and
//! everything above it, the root first of all, are refused as a place.
//!
//! - [`layout`]: which hierarchies there are; [`place`]: where in them a container's cgroup is;
//! - [`enter`]: how a process gets into them;
//! - [`limits`]: `linux.resources`, with [`v1`] and [`v2`] for what differs; [`devices`] and [`bpf`]: device rules;
//! - [`freezer`], [`kill`], [`stats`], [`view`]: what the names say;
//! - [`systemd`]: the same with systemd as the one that makes the cgroups, told by [`dbus`] in [`properties`];
//! - [`io`]: reads and writes of cgroup files.

mod bpf;
mod dbus;
mod devices;
mod enter;
mod freezer;
mod io;
mod kill;
mod layout;
mod limits;
mod place;
mod properties;
mod stats;
mod systemd;
mod v1;
mod v2;
mod view;
mod within;

pub use devices::default_device_rules;
pub use enter::Doors;
pub use stats::Stats;
pub use view::{View, ViewMount};

use crate::error::{Error, Result};
use ckrun_virt::cgroups::Home;
use ckrun_virt::{Doing, Failure};
use layout::{Hierarchy, Version};
use nix::errno::Errno;
use nix::unistd::Pid;
use rustix::fs::{Mode, OFlags};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

/// Where a container's cgroups are asked to be.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// The container's id, which names the cgroup if nothing else does.
    pub id: &'a str,
    /// `linux.cgroupsPath`. Absolute: from the root of each hierarchy's mount. Relative: below ckrun's own cgroup, on
    /// cgroup2 beside it. With `systemd`: `slice:prefix:name`.
    pub path: Option<&'a Path>,
    /// Let systemd make the cgroups (`--systemd-cgroup`).
    pub systemd: bool,
    /// ckrun isn't the host's root: it does without the cgroups that it may not make.
    pub rootless: bool,
    /// The configuration's annotations: `org.systemd.property.NAME` are properties of systemd's unit.
    pub annotations: Option<&'a HashMap<String, String>>,
}

/// The cgroups of one container, one directory per hierarchy. The default has none: a container without cgroups.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Cgroups {
    /// cgroup2 first.
    dirs: Vec<Dir>,
    #[serde(default)]
    rootless: bool,
    /// The unit, when systemd makes the cgroups.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    unit: Option<systemd::Unit>,
}

/// The container's cgroup in one hierarchy.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Dir {
    hierarchy: Hierarchy,
    /// Absolute, below the hierarchy's mount point.
    path: PathBuf,
    /// It was there before the container and is not the container's to kill or remove.
    existed: bool,
}

impl Dir {
    fn is_v2(&self) -> bool {
        self.hierarchy.version == Version::V2
    }
}

impl Cgroups {
    /// Decides where the cgroups will be and makes nothing, so that the decision can be saved first: whenever ckrun is
    /// killed later, [`Cgroups::remove`] of the saved decision removes what had been made by then, and only that.
    ///
    /// # Errors
    /// `linux.cgroupsPath` is empty, holds `..`, is ckrun's own cgroup or above it, or a cgroup in use; systemd can't
    /// be asked.
    pub fn plan(request: &Request<'_>) -> Result<Cgroups> {
        let hierarchies = layout::detect()?;
        let (asked, unit) = if request.systemd {
            let (asked, unit) = systemd::Unit::plan(request)?;
            (asked, Some(unit))
        } else {
            (place::Asked::of(request)?, None)
        };
        let mut dirs = Vec::with_capacity(hierarchies.len());
        for hierarchy in hierarchies {
            let path = asked.directory(&hierarchy)?;
            let existed = io::exists(&path);
            if existed {
                place::must_be_free(&hierarchy, &path)?;
            }
            dirs.push(Dir { hierarchy, path, existed });
        }
        Ok(Cgroups { dirs, rootless: request.rootless, unit })
    }

    /// Makes the directories, with parents, and writes what must be in them before a process can join. With systemd it
    /// does nothing: a scope can't be without a process, so [`Cgroups::join`] makes it.
    ///
    /// A rootless container does without the cgroups that ckrun may not make. What is known now is more than the plan,
    /// so it should be saved again, and after an error [`Cgroups::remove`] takes back what was made.
    ///
    /// # Errors
    /// `EEXIST` when another container took the place since the plan; `EACCES`, `EROFS`, `ENOSPC` (too many cgroups).
    pub fn create(&mut self) -> Result<()> {
        if self.unit.is_some() {
            return Ok(());
        }
        let pure_v2 = self.is_pure_v2();
        let mut forbidden = Vec::new();
        for (index, dir) in self.dirs.iter_mut().enumerate() {
            match dir.create() {
                Ok(()) => {}
                Err(Errno::EACCES | Errno::EPERM | Errno::EROFS) if self.rootless => {
                    forbidden.push(index);
                    continue;
                }
                Err(errno) => {
                    return Err(Failure::new(format!("make cgroup {}", dir.path.display()), errno).into());
                }
            }
            if dir.hierarchy.has("cpuset") {
                v1::inherit_cpuset(&dir.hierarchy.mount, &dir.path)?;
            } else if pure_v2 {
                // Nothing is limited yet, but without a controller there is no accounting either. In a hybrid layout
                // the few controllers of cgroup2 are enabled when a limit asks for them.
                v2::enable_all(&dir.hierarchy.mount, &dir.path);
            }
        }
        for index in forbidden.into_iter().rev() {
            self.dirs.remove(index);
        }
        Ok(())
    }

    /// Hands the cgroup2 directory to `uid` of the host, the root of a container that has a user namespace, its own
    /// cgroup namespace and a writable cgroup mount: it may then divide its cgroup, but not lift its limits.
    ///
    /// # Errors
    /// The kernel's.
    pub fn delegate(&self, uid: u32) -> Result<()> {
        self.v2().map_or(Ok(()), |dir| v2::delegate(&dir.path, uid))
    }

    /// Whether there is no cgroup at all: none are mounted, or a rootless ckrun could make none.
    pub fn is_empty(&self) -> bool {
        self.dirs.is_empty()
    }

    /// The directories by controller (`memory`; `cpu,cpuacct`; `name=systemd`; empty for cgroup2), for those who
    /// look at the container from outside.
    pub fn directories(&self) -> impl Iterator<Item = (&str, &Path)> {
        self.dirs.iter().map(|dir| (dir.hierarchy.controllers.as_str(), dir.path.as_path()))
    }

    /// The same, for those who put others below them.
    pub fn homes(&self) -> Vec<Home> {
        let home = |(controllers, path): (&str, &Path)| Home {
            controllers: controllers.to_owned(),
            directory: path.to_owned(),
        };
        self.directories().map(home).collect()
    }

    /// Whether one of them was there before the container.
    pub fn existed(&self) -> bool {
        self.dirs.iter().any(|dir| dir.existed)
    }

    /// systemd's unit, while it has no process: it starts with the first, whom others join.
    fn unit_to_start(&self) -> Result<Option<&systemd::Unit>> {
        Ok(match &self.unit {
            Some(unit) if self.pids()?.is_empty() => Some(unit),
            _ => None,
        })
    }

    fn v2(&self) -> Option<&Dir> {
        self.dirs.iter().find(|dir| dir.is_v2())
    }

    fn v1(&self, controller: &str) -> Option<&Dir> {
        self.dirs.iter().find(|dir| dir.hierarchy.has(controller))
    }

    fn is_pure_v2(&self) -> bool {
        self.dirs.iter().all(Dir::is_v2)
    }

    /// The directory whose processes are the container's: it joins all hierarchies alike, and cgroup2 keeps the best
    /// account.
    fn tree(&self) -> Option<&Dir> {
        self.v2().or_else(|| self.v1("freezer")).or_else(|| self.v1("pids")).or_else(|| self.dirs.first())
    }
}

impl Dir {
    /// Makes the directory and says in `existed` whose it is.
    fn create(&mut self) -> io::Io<()> {
        match make(&self.path) {
            Ok(()) => self.existed = false,
            Err(Errno::EEXIST) if self.existed => {}
            Err(errno) => {
                // Another container's, if it is there now.
                self.existed |= errno == Errno::EEXIST;
                return Err(errno);
            }
        }
        Ok(())
    }

    fn join(&self, pid: Pid) -> Result<()> {
        Ok(io::write(&self.path, "cgroup.procs", &pid.to_string())
            .doing(|| format!("move process {pid} to cgroup {}", self.path.display()))?)
    }
}

/// Makes a directory and the missing ones above it. The leaf must not exist.
fn make(path: &Path) -> io::Io<()> {
    let mkdir = || rustix::fs::mkdir(path, Mode::from_raw_mode(0o755)).map_err(io::errno);
    match (mkdir(), path.parent()) {
        (Err(Errno::ENOENT), Some(parent)) => match make(parent) {
            Ok(()) | Err(Errno::EEXIST) => mkdir(),
            failed => failed,
        },
        (result, _) => result,
    }
}

fn open_directory(path: &Path) -> Option<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty()).ok()
}

/// An error about a field below `linux.resources`.
fn refuse(field: &str, why: impl Into<String>) -> Error {
    Error::config(format!("linux.resources.{field}"), why)
}

#[cfg(test)]
mod tests;

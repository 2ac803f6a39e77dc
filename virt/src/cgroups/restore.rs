//! Making a job's cgroups again, and putting its threads there.
//!
//! The directories come first, since mounts and open files may be of them, and of the settings only what must be there
//! before anybody can be in one. Each process enters when it is born, before it has memory, so that this is charged to where
//! it was. All other settings come when everybody is in place: a cgroup2 whose controllers are handed on takes no
//! process, and a limit is not to be hit by what a restart does.

use super::capture::freeze;
use super::settings::{self, BEFORE_TASKS};
use super::{Cgroups, Group, Hierarchy, Home, write};
use crate::{Doing, Error, Failure};
use nix::unistd::Pid;
use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, chown};
use std::path::Path;

impl Cgroups {
    /// Makes the directories below these cgroups, for the job of which `init` is to become the first process.
    ///
    /// # Errors
    /// [`Error::Unsupported`] where a hierarchy is not there; the kernel's.
    pub fn build(&self, homes: &[Home], init: Pid) -> Result<(), Error> {
        let mut ids = None;
        for (home, hierarchy) in self.at(homes)? {
            for group in hierarchy.groups.iter().skip(1) {
                let ids = match &ids {
                    Some(ids) => ids,
                    None => ids.insert(Outside::of(init)?),
                };
                group.build(home, ids)?;
            }
        }
        Ok(())
    }

    /// The hierarchies, and where they are here.
    fn at<'a>(&'a self, homes: &'a [Home]) -> Result<Vec<(&'a Home, &'a Hierarchy)>, Error> {
        let names = |list: &'a str| list.split(',').collect::<BTreeSet<_>>();
        let home = |hierarchy: &'a Hierarchy| {
            let wanted = names(&hierarchy.controllers);
            homes
                .iter()
                .find(|home| names(&home.controllers) == wanted)
                .map(|home| (home, hierarchy))
                .ok_or_else(|| {
                    let name =
                        if hierarchy.controllers.is_empty() { "cgroup2" } else { &hierarchy.controllers };
                    let why = "the job has cgroups below its own there, and the container has none";
                    Error::Unsupported(format!(
                        "{FILE}: hierarchy {name}: {why} (--manage-cgroups-mode ignore leaves them out)",
                        FILE = super::FILE
                    ))
                })
        };
        self.hierarchies.iter().map(home).collect()
    }
}

impl Group {
    fn build(&self, home: &Home, ids: &Outside) -> Result<(), Failure> {
        let dir = home.place(&self.path);
        let what = || format!("make {}", home.name(&self.path));
        match std::fs::DirBuilder::new().mode(self.mode).create(&dir) {
            // The container's own was there before, and this too.
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {}
            made => made.doing(what)?,
        }
        // What ckrun's umask has taken away.
        if dir.metadata().doing(what)?.mode() & 0o7777 != self.mode {
            std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(self.mode)).doing(what)?;
        }
        if self.threaded {
            write(&dir, "cgroup.type", "threaded").doing(|| format!("{}, for threads", what()))?;
        }
        let first = |(file, _): &(&String, &String)| BEFORE_TASKS.contains(&file.as_str());
        let first = self.settings.iter().filter(first).map(|(file, value)| (file.clone(), value.clone()));
        // On cgroup2 there is no such file before the controller is handed on, and it can wait.
        if !home.is_v2() {
            settings::set(&dir, &first.collect())?;
        }
        self.own(&dir, ids).doing(|| format!("give {} to its owner", home.name(&self.path)))
    }

    /// Gives the directory and the files to those who had them.
    fn own(&self, dir: &Path, ids: &Outside) -> std::io::Result<()> {
        let owner = |name: &str| self.owners.get(name).copied().unwrap_or((0, 0));
        if ids.same && self.owners.is_empty() {
            return Ok(());
        }
        let (user, group) = ids.outside(owner(""));
        chown(dir, user, group)?;
        for entry in std::fs::read_dir(dir)? {
            let entry = entry?;
            let name = entry.file_name();
            if let Some(name) = name.to_str().filter(|_| entry.file_type().is_ok_and(|kind| kind.is_file())) {
                let (user, group) = ids.outside(owner(name));
                chown(entry.path(), user, group)?;
            }
        }
        Ok(())
    }
}

/// The ids of the job's user namespace, from within.
struct Outside {
    users: Vec<(u32, u32, u32)>,
    groups: Vec<(u32, u32, u32)>,
    /// Users are the host's.
    same: bool,
}

impl Outside {
    fn of(init: Pid) -> Result<Outside, Failure> {
        let read = |name: &str| -> Result<Vec<(u32, u32, u32)>, Failure> {
            let text = crate::proc::read(&format!("/proc/{init}/{name}"));
            let text = text.doing(|| format!("read the first process's {name}"))?;
            let line = |line: &str| {
                let mut fields = line.split_ascii_whitespace().map(|field| field.parse().ok());
                Some((fields.next()??, fields.next()??, fields.next()??))
            };
            Ok(String::from_utf8_lossy(&text).lines().filter_map(line).collect())
        };
        let (users, groups) = (read("uid_map")?, read("gid_map")?);
        let same = users == [(0, 0, u32::MAX)];
        Ok(Outside { users, groups, same })
    }

    fn outside(&self, (user, group): (u32, u32)) -> (Option<u32>, Option<u32>) {
        let find = |map: &[(u32, u32, u32)], id: u32| {
            map.iter().find_map(|&(inside, outside, count)| {
                let distance = id.checked_sub(inside).filter(|distance| *distance < count)?;
                outside.checked_add(distance)
            })
        };
        (find(&self.users, user), find(&self.groups, group))
    }
}

/// Where the threads of a job in the making are, and are to be.
#[derive(Debug, Default)]
pub(crate) struct Places<'a> {
    hierarchies: Vec<(&'a Home, &'a Hierarchy)>,
    /// The number of the cgroup in each of the hierarchies, by thread; those that are not listed are in the container's own.
    wanted: BTreeMap<i32, Vec<usize>>,
    /// The same of processes that have been made.
    at: BTreeMap<i32, Vec<usize>>,
}

impl<'a> Places<'a> {
    /// Those of `cgroups`, below these; with none of these everybody stays where it is.
    ///
    /// # Errors
    /// As [`Cgroups::build`].
    pub(crate) fn of(cgroups: &'a Cgroups, homes: &'a [Home]) -> Result<Places<'a>, Error> {
        let mut places = Places::default();
        if homes.is_empty() {
            return Ok(places);
        }
        places.hierarchies = cgroups.at(homes)?;
        let count = places.hierarchies.len();
        for (number, (_, hierarchy)) in places.hierarchies.iter().enumerate() {
            for (group, tid) in hierarchy
                .groups
                .iter()
                .enumerate()
                .flat_map(|(at, group)| group.tasks.iter().map(move |tid| (at, *tid)))
            {
                places.wanted.entry(tid).or_insert_with(|| vec![0; count])[number] = group;
            }
        }
        Ok(places)
    }

    /// Moves the process `pid`, which has just been made by `maker`, and is `host` for ckrun. One that is to end is
    /// listed nowhere, and stays where it was made.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) fn enter(
        &mut self,
        pid: i32,
        maker: Option<i32>,
        ends: bool,
        host: Pid,
    ) -> Result<(), Failure> {
        if self.hierarchies.is_empty() {
            return Ok(());
        }
        let own = vec![0; self.hierarchies.len()];
        let now = maker.and_then(|maker| self.at.get(&maker)).unwrap_or(&own).clone();
        let to = if ends { now.clone() } else { self.wanted.get(&pid).unwrap_or(&own).clone() };
        self.go(&now, &to, "cgroup.procs", host)?;
        self.at.insert(pid, to);
        Ok(())
    }

    /// Moves the thread `tid`, which has just been made in the process `pid`.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) fn enter_thread(&self, tid: i32, pid: i32, host: Pid) -> Result<(), Failure> {
        let own = vec![0; self.hierarchies.len()];
        let (now, to) = (self.at.get(&pid).unwrap_or(&own), self.wanted.get(&tid).unwrap_or(&own));
        self.go(now, to, "cgroup.threads", host)
    }

    fn go(&self, from: &[usize], to: &[usize], file: &str, host: Pid) -> Result<(), Failure> {
        for ((home, hierarchy), (from, to)) in self.hierarchies.iter().zip(from.iter().zip(to)) {
            let Some(group) = hierarchy.groups.get(*to).filter(|_| from != to) else { continue };
            let file = if file == "cgroup.threads" && !home.is_v2() { "tasks" } else { file };
            write(&home.place(&group.path), file, &host.to_string())
                .doing(|| format!("move it to {}", home.name(&group.path)))?;
        }
        Ok(())
    }

    /// Sets what is not set yet, when all threads are where they belong; with `own` also in the container's own cgroups.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) fn settle(&self, own: bool) -> Result<(), Failure> {
        for (home, hierarchy) in &self.hierarchies {
            for group in &hierarchy.groups {
                let dir = home.place(&group.path);
                if own || !group.path.is_empty() {
                    settings::set(&dir, &group.settings)?;
                }
                for controller in &group.subtree {
                    let what = || format!("hand on {controller} in {}", home.name(&group.path));
                    write(&dir, "cgroup.subtree_control", &format!("+{controller}")).doing(what)?;
                }
            }
        }
        Ok(())
    }

    /// Freezes what was frozen. Its threads are still held: they freeze when they are let go.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) fn freeze(&self) -> Result<(), Failure> {
        for (home, hierarchy) in &self.hierarchies {
            for group in hierarchy.groups.iter().filter(|group| group.frozen) {
                let dir = home.place(&group.path);
                freeze(&dir, home.is_v2(), true).doing(|| format!("freeze {}", home.name(&group.path)))?;
            }
        }
        Ok(())
    }
}

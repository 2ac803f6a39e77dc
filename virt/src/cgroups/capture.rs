//! What a job has made of its cgroups.

use super::{Cgroups, DEEPEST, Group, Hierarchy, Home, MOST, read, settings, write};
use crate::creds::translate;
use crate::image::Bytes;
use crate::resource::Blocker;
use crate::sys::bpf;
use crate::{Doing, Error, Failure};
use nix::errno::Errno;
use nix::unistd::Pid;
use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// What `cgroup.type` says of a cgroup that holds threads.
const THREADED: &str = "threaded";

/// What a job has in these cgroups. With `whole`, what is set in the container's own ones, too. `tids` are the job's threads,
/// by their ids in ckrun's pid namespace, and `thawed` what has been thawed to read them.
///
/// # Errors
/// The kernel's.
pub(crate) fn capture(
    init: Pid,
    homes: &[Home],
    whole: bool,
    tids: &BTreeMap<i32, i32>,
    thawed: &Thawed,
) -> Result<Cgroups, Error> {
    let mut cgroups = Cgroups::default();
    let mut ids = None;
    for home in homes {
        let paths = below(home)?;
        if paths.is_empty() && !whole {
            continue;
        }
        let ids = match &ids {
            Some(ids) => ids,
            None => ids.insert(Ids::of(init)?),
        };
        let all = std::iter::once(Bytes::default()).chain(paths);
        let mut groups =
            all.map(|path| group(home, path, whole, tids, ids)).collect::<Result<Vec<_>, _>>()?;
        for group in &mut groups {
            group.frozen = thawed.has(&home.place(&group.path));
        }
        cgroups.hierarchies.push(Hierarchy { controllers: home.controllers.clone(), whole, groups });
    }
    Ok(cgroups)
}

fn group(
    home: &Home,
    path: Bytes,
    whole: bool,
    tids: &BTreeMap<i32, i32>,
    ids: &Ids,
) -> Result<Group, Failure> {
    let dir = home.place(&path);
    let own = path.is_empty();
    let about = dir.metadata().doing(|| format!("stat {}", dir.display()))?;
    let mut group = Group { path, mode: about.mode() & 0o7777, ..Group::default() };
    if home.is_v2() {
        let subtree = read(&dir, "cgroup.subtree_control").doing(|| doing(&dir, "cgroup.subtree_control"))?;
        group.subtree = subtree.split_ascii_whitespace().map(str::to_owned).collect();
    }
    if !own || whole {
        group.settings = settings::differing(&dir, dir.parent().filter(|_| !own))?;
    }
    if own {
        return Ok(group);
    }
    if home.is_v2() {
        group.threaded = read(&dir, "cgroup.type").doing(|| doing(&dir, "cgroup.type"))? == THREADED;
    }
    group.owners = owners(&dir, &about, ids)?;
    group.tasks = tasks(home, &dir)?.iter().filter_map(|tid| tids.get(tid).copied()).collect();
    group.tasks.sort_unstable();
    Ok(group)
}

fn doing(dir: &Path, file: &str) -> String {
    format!("read {}/{file}", dir.display())
}

/// The threads in a cgroup, as ckrun sees their ids. Ended ones are in none.
fn tasks(home: &Home, dir: &Path) -> Result<Vec<i32>, Failure> {
    let file = if home.is_v2() { "cgroup.threads" } else { "tasks" };
    let text = match read(dir, file) {
        // Of no valid type: nobody can be in it.
        Err(Errno::EOPNOTSUPP) => return Ok(Vec::new()),
        text => text.doing(|| doing(dir, file))?,
    };
    Ok(text.lines().filter_map(|line| line.parse().ok()).collect())
}

/// Whether this very cgroup, and not one above it, has been frozen.
fn is_frozen(home: &Home, dir: &Path) -> bool {
    let file = if home.is_v2() { "cgroup.freeze" } else { "freezer.self_freezing" };
    read(dir, file).is_ok_and(|state| state == "1")
}

/// The owners of a cgroup's directory and files that are not root.
fn owners(dir: &Path, about: &std::fs::Metadata, ids: &Ids) -> Result<BTreeMap<String, (u32, u32)>, Failure> {
    let what = || format!("read {}", dir.display());
    let mut found = BTreeMap::new();
    let mut note = |name: String, about: &std::fs::Metadata| {
        let owner = (ids.user(about.uid()), ids.group(about.gid()));
        if owner != (0, 0) {
            found.insert(name, owner);
        }
    };
    note(String::new(), about);
    for entry in std::fs::read_dir(dir).doing(what)? {
        let entry = entry.doing(what)?;
        let about = entry.metadata().doing(what)?;
        if let Some(name) =
            entry.file_name().to_str().filter(|name| about.is_file() && settings::is_file(name))
        {
            note(name.to_owned(), &about);
        }
    }
    Ok(found)
}

/// The ids of the job's user namespace.
struct Ids {
    users: Vec<u8>,
    groups: Vec<u8>,
}

impl Ids {
    fn of(init: Pid) -> Result<Ids, Failure> {
        let read = |name| crate::proc::read(&format!("/proc/{init}/{name}"));
        Ok(Ids {
            users: read("uid_map").doing(|| "read the first process's uid_map")?,
            groups: read("gid_map").doing(|| "read the first process's gid_map")?,
        })
    }

    /// An owner without a number inside has not been set by the job.
    fn user(&self, outside: u32) -> u32 {
        translate(&self.users, outside).unwrap_or(0)
    }

    fn group(&self, outside: u32) -> u32 {
        translate(&self.groups, outside).unwrap_or(0)
    }
}

/// The paths of the cgroups below a container's own, each before what is below it.
fn below(home: &Home) -> Result<Vec<Bytes>, Failure> {
    let mut found: Vec<Bytes> = children(&home.directory)?.into_iter().map(Bytes::from).collect();
    let mut next = 0;
    while let Some(parent) = found.get(next).cloned() {
        for name in children(&home.place(&parent))? {
            found.push([&parent[..], b"/", &name].concat().into());
        }
        next += 1;
        if found.len() > MOST {
            break;
        }
    }
    Ok(found)
}

fn children(dir: &Path) -> Result<Vec<Vec<u8>>, Failure> {
    let what = || format!("read {}", dir.display());
    let gone = |e: &std::io::Error| e.kind() == std::io::ErrorKind::NotFound;
    // Two links are its own: where there is nothing, nothing has to be read.
    match dir.metadata() {
        Ok(about) if about.nlink() <= 2 => return Ok(Vec::new()),
        Err(e) if gone(&e) => return Ok(Vec::new()),
        about => about.map(drop).doing(what)?,
    }
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).doing(what)? {
        let entry = entry.doing(what)?;
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found.push(entry.file_name().as_bytes().to_vec());
        }
    }
    found.sort_unstable();
    Ok(found)
}

/// What of a job's cgroups can't be carried.
///
/// # Errors
/// The kernel's.
pub(crate) fn survey(processes: &[Pid], homes: &[Home]) -> Result<Vec<Blocker>, Error> {
    let mut found = strange(processes, homes);
    for home in homes {
        let paths = below(home)?;
        if paths.len() >= MOST || paths.iter().any(|path| path.split(|&b| b == b'/').count() > DEEPEST) {
            found
                .push((home.name(&Bytes::default()), format!("more than {MOST} below it, or too deep ones")));
            continue;
        }
        for path in paths.iter().filter(|_| home.is_v2()) {
            if bpf::attached(&home.place(path)) {
                found.push((home.name(path), "BPF programs are attached to it".into()));
            }
        }
    }
    let init = processes.first().copied().unwrap_or(Pid::from_raw(0));
    let comm = crate::proc::read(&format!("/proc/{init}/comm")).unwrap_or_default();
    let comm = String::from_utf8_lossy(comm.trim_ascii_end()).into_owned();
    let blocker = |(what, why)| Blocker { pid: 1, comm: comm.clone(), what, why, remedy: None };
    Ok(found.into_iter().map(blocker).collect())
}

/// Hierarchies that the job has mounted itself and is in, but not the container.
fn strange(processes: &[Pid], homes: &[Home]) -> Vec<(String, String)> {
    const CONTROLLERS: [&str; 14] = [
        "blkio",
        "cpu",
        "cpuacct",
        "cpuset",
        "devices",
        "freezer",
        "hugetlb",
        "memory",
        "misc",
        "net_cls",
        "net_prio",
        "perf_event",
        "pids",
        "rdma",
    ];
    let text = |pid: &Pid, file: &str| {
        let bytes = crate::proc::read(&format!("/proc/{pid}/{file}")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    };
    let known: BTreeSet<&str> = homes.iter().flat_map(|home| home.controllers.split(',')).collect();
    let Some(init) = processes.first().filter(|_| !homes.is_empty()) else { return Vec::new() };
    let mounts = text(init, "mountinfo");
    let v1 = mounts.lines().filter_map(|line| line.split_once(" - cgroup ")?.1.rsplit(' ').next());
    let names = v1.flat_map(|options| options.split(','));
    let foreign: BTreeSet<&str> = names
        .filter(|name| (name.starts_with("name=") || CONTROLLERS.contains(name)) && !known.contains(name))
        .collect();
    if foreign.is_empty() {
        return Vec::new();
    }
    let mut found = BTreeSet::new();
    for line in processes
        .iter()
        .map(|pid| text(pid, "cgroup"))
        .flat_map(|text| text.lines().map(str::to_owned).collect::<Vec<_>>())
    {
        let Some((controllers, path)) = line.split_once(':').and_then(|(_, rest)| rest.split_once(':'))
        else {
            continue;
        };
        if path != "/" && controllers.split(',').any(|name| foreign.contains(name)) {
            found.insert((
                format!("cgroup {path} of {controllers}"),
                "the container is not in this hierarchy".into(),
            ));
        }
    }
    found.into_iter().collect()
}

/// Cgroups that the job had frozen. A frozen task runs nothing for ckrun, and on v1 does not even stop, so they are thawed
/// when everybody has been seized, and frozen again while they are still held.
#[derive(Debug, Default)]
pub(crate) struct Thawed(Vec<(PathBuf, bool)>);

impl Thawed {
    /// Thaws what is frozen below these cgroups.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) fn below(homes: &[Home]) -> Result<Thawed, Failure> {
        let mut thawed = Thawed::default();
        let freezer =
            |home: &&Home| home.is_v2() || home.controllers.split(',').any(|name| name == "freezer");
        for home in homes.iter().filter(freezer) {
            for path in below(home)? {
                let dir = home.place(&path);
                if is_frozen(home, &dir) {
                    freeze(&dir, home.is_v2(), false).doing(|| format!("thaw {}", dir.display()))?;
                    thawed.0.push((dir, home.is_v2()));
                }
            }
        }
        Ok(thawed)
    }

    /// Freezes them again.
    pub(crate) fn again(&mut self) {
        for (dir, v2) in self.0.drain(..) {
            match freeze(&dir, v2, true) {
                // They are removed with the container.
                Ok(()) | Err(Errno::ENOENT | Errno::ENODEV) => {}
                Err(errno) => {
                    log::warn!("{}", Failure::new(format!("freeze {} again", dir.display()), errno))
                }
            }
        }
    }

    /// Whether nothing was frozen.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn has(&self, dir: &Path) -> bool {
        self.0.iter().any(|(thawed, _)| thawed == dir)
    }
}

impl Drop for Thawed {
    fn drop(&mut self) {
        self.again();
    }
}

/// Freezes or thaws one cgroup.
pub(super) fn freeze(dir: &Path, v2: bool, on: bool) -> Result<(), Errno> {
    match (v2, on) {
        (true, on) => write(dir, "cgroup.freeze", if on { "1" } else { "0" }),
        (false, true) => write(dir, "freezer.state", "FROZEN"),
        (false, false) => write(dir, "freezer.state", "THAWED"),
    }
}

//! Finding out what a job has changed about the mounts of its container.

use super::list::{KINDS, Line};
use super::{Changes, Made, Places, What};
use crate::fd::{self, Mount};
use crate::resource::Blocker;
use crate::tmpfs::mount_of;
use crate::{Doing, Failure};
use nix::unistd::Pid;
use rustix::fs::{Mode, OFlags, ResolveFlags};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// What a job has changed, and what of that can't be made again.
#[derive(Debug, Default)]
pub(crate) struct Found {
    /// What is to be made again.
    pub changes: Changes,
    /// The rest.
    pub blockers: Vec<Blocker>,
}

/// Compares the `mounts` of the container whose first process is `init` with those of its sandbox.
///
/// # Errors
/// The kernel's.
pub(crate) fn survey(init: Pid, mounts: &[(u64, Mount)], places: &Places) -> Result<Found, Failure> {
    if as_they_were(mounts, places) {
        return Ok(Found::default());
    }
    let lines = Line::all(init)?;
    let path = format!("/proc/{init}/root");
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open(&path, flags, Mode::empty()).doing(|| format!("open {path}"))?;
    let points = lines.iter().map(|line| (line.id, &line.point[..])).collect();
    let comm = std::fs::read_to_string(format!("/proc/{init}/comm")).unwrap_or_default();
    let host = fd::mounts(Pid::this())?.into_iter();
    let mut look = Look {
        lines: &lines,
        sandbox: Sandbox::of(places, |place| point(root.as_fd(), place, &points)),
        host: host.map(|(_, m)| (format!("{}:{}", m.device.0, m.device.1), m.root)).collect(),
        comm: comm.trim_end(),
        found: Found::default(),
    };
    look.compare();
    Ok(look.found)
}

/// Whether there is a mount at each place and nowhere else, as they were made, as far as the bare names say. That is so for
/// nearly every job, and saves finding out what the names lead to.
fn as_they_were(mounts: &[(u64, Mount)], places: &Places) -> bool {
    let mut points: HashMap<&[u8], isize> = HashMap::new();
    for (_, mount) in mounts {
        *points.entry(&mount.point).or_default() += 1;
    }
    let read_only: HashSet<&[u8]> =
        places.read_only.iter().map(|place| place.as_os_str().as_bytes()).collect();
    let changed = |mount: &Mount| {
        let known =
            mount.point == b"/" || places.mounted.iter().any(|p| p.as_os_str().as_bytes() == mount.point);
        known && (mount.shared || mount.read_only != read_only.contains(&mount.point[..]))
    };
    if mounts.iter().any(|(_, mount)| changed(mount)) {
        return false;
    }
    for (places, needed) in [(&places.mounted, true), (&places.covered, false)] {
        for place in places {
            match points.get_mut(place.as_os_str().as_bytes()) {
                Some(more @ 1..) => *more -= 1,
                _ if needed => return false,
                _ => {}
            }
        }
    }
    let trees: Vec<_> = places.trees.iter().map(|tree| tree.as_os_str().as_bytes()).collect();
    points.iter().all(|(point, more)| *more == 0 || *point == b"/" || below(&trees, point))
}

/// The places of a sandbox by the names that the kernel has for them.
struct Sandbox {
    mounted: BTreeMap<Vec<u8>, usize>,
    covered: BTreeMap<Vec<u8>, usize>,
    trees: Vec<Vec<u8>>,
    read_only: HashSet<Vec<u8>>,
}

impl Sandbox {
    fn of(places: &Places, point: impl Fn(&Path) -> Vec<u8>) -> Sandbox {
        let count = |places: &[std::path::PathBuf]| {
            places.iter().fold(BTreeMap::new(), |mut all, place| {
                *all.entry(point(place)).or_default() += 1;
                all
            })
        };
        let mut mounted = count(&places.mounted);
        *mounted.entry(b"/".to_vec()).or_default() += 1;
        Sandbox {
            mounted,
            covered: count(&places.covered),
            trees: places.trees.iter().map(|tree| point(tree)).collect(),
            read_only: places.read_only.iter().map(|place| point(place)).collect(),
        }
    }
}

struct Look<'a> {
    lines: &'a [Line],
    sandbox: Sandbox,
    /// What this process sees as well.
    host: HashSet<(String, Vec<u8>)>,
    comm: &'a str,
    found: Found,
}

impl Look<'_> {
    fn compare(&mut self) {
        let mut seen: BTreeMap<&[u8], usize> = BTreeMap::new();
        let mut made: HashSet<u64> = HashSet::new();
        let lines = self.lines;
        for line in lines {
            // What is mounted over another one at the same point comes later in the list.
            let before = seen.entry(&line.point).or_default();
            *before += 1;
            let of = |places: &BTreeMap<Vec<u8>, usize>| places.get(&line.point).copied().unwrap_or(0);
            let (mounted, covered) = (of(&self.sandbox.mounted), of(&self.sandbox.covered));
            if *before <= mounted {
                self.watch_read_only(line, *before == mounted);
            } else if *before > mounted + covered && !self.came_along(line) {
                made.insert(line.id);
                match self.made(line, &made) {
                    Ok(what) => {
                        let (point, options) = (line.point.clone().into(), line.flags());
                        self.found.changes.made.push(Made { point, what, options });
                    }
                    Err(why) => self.refuse(line, why),
                }
            }
        }
        for (point, count) in &self.sandbox.mounted {
            for _ in seen.get(&point[..]).copied().unwrap_or(0)..*count {
                self.found.changes.unmounted.push(point.clone().into());
            }
        }
        self.peers(&made);
    }

    fn watch_read_only(&mut self, line: &Line, top: bool) {
        let was = self.sandbox.read_only.contains(&line.point);
        if top && line.read_only() != was {
            self.found.changes.read_only.insert(line.point.clone().into(), !was);
        }
    }

    /// It is of the host, and came with a mount of the sandbox or by propagation.
    fn came_along(&self, line: &Line) -> bool {
        let parent = self.lines.iter().find(|other| other.id == line.parent);
        let receives = parent.is_some_and(|parent| parent.master.is_some() || parent.shared.is_some());
        below(&self.sandbox.trees, &line.point)
            || receives && self.host.contains(&(line.device.clone(), line.root.clone()))
    }

    /// How it can be made again; if not, why.
    fn made(&self, line: &Line, made: &HashSet<u64>) -> Result<What, &'static str> {
        if line.root.ends_with(b"//deleted") {
            return Err("what is mounted has been deleted");
        }
        if self.hides_a_tmpfs(line) {
            return Err("it hides a file system in memory, whose content can't be read");
        }
        // Only a mount that is there before this one can be its source, and only one that nothing hides.
        let before = self.lines.iter().take_while(|other| other.id != line.id);
        let known =
            |other: &&Line| other.device == line.device && (line.kind != "proc" || !made.contains(&other.id));
        let through = |other: &Line| line.through(other).filter(|_| !self.hidden(other));
        if let Some(from) = before.clone().filter(known).find_map(through) {
            return Ok(What::Bind { from: from.into() });
        }
        if before.clone().any(|other| other.device == line.device) && line.root != b"/" {
            return Err("what is mounted can't be reached in the container");
        }
        if line.root != b"/" {
            return Err("what is mounted is outside of the container");
        }
        if !KINDS.contains(&line.kind.as_str()) {
            return Err("it was made in the container, and its file system can't be made again");
        }
        let (source, options) = (line.source.clone().into(), line.data().into());
        Ok(What::New { kind: line.kind.clone(), source, options, read_only: line.wholly_read_only() })
    }

    /// Another mount is over it.
    fn hidden(&self, line: &Line) -> bool {
        let over =
            |other: &&Line| other.id != line.id && other.parent == line.id && other.point == line.point;
        self.lines.iter().any(|other| over(&other))
    }

    fn hides_a_tmpfs(&self, line: &Line) -> bool {
        // Ids are used again; what is hidden comes earlier in the list.
        let mut before = self.lines.iter().take_while(|other| other.id != line.id);
        before.any(|other| {
            let there = other.point == line.point || below(&[&line.point], &other.point);
            let own = other.kind == "tmpfs" && other.root == b"/";
            there && own && !self.sandbox.covered.contains_key(&other.point)
        })
    }

    fn peers(&mut self, made: &HashSet<u64>) {
        let mut groups: BTreeMap<u32, Vec<&Line>> = BTreeMap::new();
        for line in self.lines {
            if let Some(group) = line.shared {
                groups.entry(group).or_default().push(line);
            }
        }
        for lines in groups.into_values() {
            let points = lines.iter().map(|line| line.point.clone().into()).collect();
            self.found.changes.peers.push(points);
        }
        let slaves = self.lines.iter().filter(|line| made.contains(&line.id) && line.master.is_some());
        let slaves: Vec<&Line> = slaves.collect();
        for line in slaves {
            self.refuse(line, "it receives mounts from another one");
        }
    }

    fn refuse(&mut self, line: &Line, why: &str) {
        self.found.blockers.push(Blocker {
            pid: 1,
            comm: self.comm.to_owned(),
            what: format!("mount {}", String::from_utf8_lossy(&line.point)),
            why: why.into(),
            remedy: Some("unmount it, or let config.json mount it from the start".into()),
        });
    }
}

/// Whether `point` is below one of `trees`.
fn below(trees: &[impl AsRef<[u8]>], point: &[u8]) -> bool {
    trees.iter().any(|tree| point.strip_prefix(tree.as_ref()).is_some_and(|rest| rest.starts_with(b"/")))
}

/// What the kernel calls a place where something is mounted: without symbolic links.
fn point(root: BorrowedFd<'_>, place: &Path, mounts: &HashMap<u64, &[u8]>) -> Vec<u8> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let found = rustix::fs::openat2(root, place, flags, Mode::empty(), resolve).and_then(mount_of);
    let mount = found.ok().filter(|(_, whole)| *whole).and_then(|(id, _)| mounts.get(&id));
    mount.map_or_else(|| place.as_os_str().as_bytes().to_vec(), |point| point.to_vec())
}

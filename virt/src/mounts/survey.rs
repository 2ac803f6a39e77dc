//! Finding out what a job has changed about the mounts of its container.

use super::list::{BINFMT_MISC, Line, Tree, below};
use super::sandbox::{Sandbox, as_they_were};
use super::source::{Content, Sources};
use super::{Changes, Group, MOST_NAMESPACES, Made, Nook, On, Places, Space};
use crate::fd::{self, Mount};
use crate::resource::Blocker;
use crate::{Doing, Failure};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::os::fd::AsFd;
use std::sync::Arc;

/// What a job has changed, and what of that can't be made again.
#[derive(Debug, Default)]
pub(crate) struct Found {
    /// What is to be made again.
    pub changes: Changes,
    /// What of that has content.
    pub contents: Vec<Content>,
    /// The devices of the file systems that the job has made, as `mountinfo` names them.
    pub devices: HashSet<String>,
    /// The rest.
    pub blockers: Vec<Blocker>,
    /// The namespaces, if they were looked at.
    pub spaces: Vec<Arc<Space>>,
}

/// A directory that a mount hides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Hidden {
    /// The mount namespace.
    pub space: u32,
    /// The mount that it is on.
    pub mount: u64,
    /// Its path there.
    pub at: Vec<u8>,
}

impl Found {
    /// The job has mounted something over this point of its first namespace, or over a directory on the way there.
    pub(crate) fn hides(&self, point: &[u8]) -> bool {
        self.over().any(|over| below(point, over).is_some())
    }

    /// The job has mounted something below this point.
    pub(crate) fn covers(&self, point: &[u8]) -> bool {
        self.over().any(|over| below(over, point).is_some())
    }

    /// The points of what the job has mounted in its first namespace.
    fn over(&self) -> impl Iterator<Item = &[u8]> {
        self.changes.made.iter().filter(|made| made.namespace == 0).map(|made| &made.point[..])
    }
}

/// Something of [`Changes`] with content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Part {
    /// One of [`Changes::file_systems`].
    FileSystem(u32),
    /// One of [`Changes::deleted`].
    Deleted(u32),
}

/// Compares the mounts of the job's namespaces with those of its sandbox. `mounts` are those of its first process, `init`, and these
/// `hidden` directories are needed.
///
/// # Errors
/// The kernel's.
pub(crate) fn survey(
    init: Pid,
    spaces: &[Arc<Space>],
    mounts: &[(u64, Mount)],
    places: Option<&Places>,
    hidden: &[Hidden],
) -> Result<Found, Failure> {
    if let Some(places) = places
        && moved(init, places)?
    {
        let blocker =
            blocker(init, "mount /".into(), "the job's first process has made it its root (pivot_root)");
        let blockers = vec![Blocker { remedy: None, ..blocker }];
        return Ok(Found { blockers, spaces: spaces.to_vec(), ..Found::default() });
    }
    let alone = spaces.len() < 2 && hidden.is_empty();
    if alone && places.is_none_or(|places| as_they_were(mounts, places)) {
        return Ok(Found { spaces: spaces.to_vec(), ..Found::default() });
    }
    let Some(first) = spaces.first() else { return Ok(Found::default()) };
    if spaces.len() + hidden.len() > MOST_NAMESPACES as usize {
        let why = "they are more than a restart can have in hand, with the directories that mounts hide";
        let blocker = blocker(init, format!("{} mount namespaces of its own", spaces.len() - 1), why);
        let blockers = vec![Blocker { remedy: None, ..blocker }];
        return Ok(Found { blockers, spaces: spaces.to_vec(), ..Found::default() });
    }
    let Some(places) = places else {
        let why = "hooks in config.json may have mounted something in the sandbox, and only they know what";
        let blocker = blocker(init, "mount namespaces of its own".into(), why);
        let blockers = vec![Blocker { remedy: None, ..blocker }];
        return Ok(Found { blockers, spaces: spaces.to_vec(), ..Found::default() });
    };
    let lines: Vec<Vec<Line>> = spaces.iter().map(|space| space.lines()).collect();
    let trees: Vec<Tree<'_>> = lines.iter().map(|lines| Tree::of(lines)).collect();
    let host = fd::mounts(Pid::this())?.into_iter();
    let mut look = Look {
        init,
        foreign: foreign(init)?,
        trees: &trees,
        lines: &lines,
        sandbox: Sandbox::of(places, first.root.as_fd(), lines.first().map_or(&[], Vec::as_slice)),
        host: host.map(|(_, m)| (format!("{}:{}", m.device.0, m.device.1), m.root)).collect(),
        found: Found::default(),
    };
    look.compare(hidden);
    if look.foreign {
        look.refuse_foreign();
    }
    let found = look.found;
    Ok(Found { spaces: spaces.to_vec(), ..found })
}

/// The root of the first process is another directory than the sandbox's, as far as can be told: the host's mounts that
/// ckrun sees may not be those that the sandbox was made of.
fn moved(init: Pid, places: &Places) -> Result<bool, Failure> {
    let was = places.root.as_ref().and_then(|root| rustix::fs::stat(root).ok());
    let Some(was) = was else { return Ok(false) };
    let path = format!("/proc/{init}/root");
    let is = rustix::fs::stat(&path).doing(|| format!("look at {path}"))?;
    if (is.st_dev, is.st_ino) == (was.st_dev, was.st_ino) {
        return Ok(false);
    }
    let device = (rustix::fs::major(is.st_dev), rustix::fs::minor(is.st_dev));
    Ok(is.st_dev == was.st_dev || fd::mounts(Pid::this())?.iter().any(|(_, mount)| mount.device == device))
}

/// The process is in another user namespace than ckrun.
fn foreign(process: Pid) -> Result<bool, Failure> {
    let inode =
        |path: String| rustix::fs::stat(&path).map(|stat| stat.st_ino).doing(|| format!("look at {path}"));
    Ok(inode("/proc/self/ns/user".into())? != inode(format!("/proc/{process}/ns/user"))?)
}

fn blocker(init: Pid, what: String, why: &str) -> Blocker {
    Blocker {
        pid: 1,
        comm: std::fs::read_to_string(format!("/proc/{init}/comm")).unwrap_or_default().trim_end().into(),
        what,
        why: why.into(),
        remedy: Some("unmount it, or let config.json mount it from the start".into()),
    }
}

struct Look<'a> {
    init: Pid,
    /// It is in another user namespace than ckrun.
    foreign: bool,
    /// The mounts of each namespace.
    lines: &'a [Vec<Line>],
    trees: &'a [Tree<'a>],
    sandbox: Sandbox,
    /// What this process sees as well.
    host: HashSet<(String, Vec<u8>)>,
    found: Found,
}

impl<'a> Look<'a> {
    fn compare(&mut self, hidden: &[Hidden]) {
        let (trees, first) = (self.trees, &self.lines[0]);
        let (kept, made): (Vec<&Line>, Vec<&Line>) = self.sandbox_and_job(first);
        let mut all: Vec<(usize, &Line)> =
            (0..).zip(self.lines).flat_map(|(space, lines)| lines.iter().map(move |l| (space, l))).collect();
        // What nothing hides is easily looked at.
        all.sort_by_key(|(space, line)| !trees[*space].visible(line));
        let mut sources = Sources::new(kept.clone(), all, self.foreign);

        let mut known: HashMap<u64, On> =
            kept.iter().map(|line| (line.id, On::Place(line.point.clone().into()))).collect();
        let made: HashSet<u64> = made.iter().map(|line| line.id).collect();
        for (space, tree) in trees.iter().enumerate() {
            for line in tree.in_order() {
                if space == 0 && !made.contains(&line.id) {
                    continue;
                }
                let (on, at) = match tree.parent(line) {
                    None => (On::Nothing, Vec::new()),
                    Some((parent, at)) => match known.get(&parent.id) {
                        Some(on) => (on.clone(), at),
                        // That has been refused already.
                        None => continue,
                    },
                };
                let mapped = |line: &Line| line.has("idmapped");
                if mapped(line) && !kept.iter().any(|kept| mapped(kept) && kept.device == line.device) {
                    self.refuse(space, line, "it maps the ids of its users");
                    continue;
                }
                match sources.of(line, &mut self.found) {
                    Err(why) => self.refuse(space, line, why),
                    Ok((of, part)) => {
                        known.insert(line.id, On::Made(self.found.changes.made.len() as u32));
                        self.found.changes.made.push(Made {
                            namespace: space as u32,
                            point: line.point.clone().into(),
                            on,
                            at: at.into(),
                            of,
                            part: part.into(),
                            options: line.flags(),
                            unbindable: line.unbindable,
                            group: Group { shared: line.shared, master: line.master },
                        });
                    }
                }
            }
        }
        for nook in hidden {
            match known.get(&nook.mount) {
                Some(on) => {
                    self.found.changes.nooks.push(Nook { on: on.clone(), at: nook.at.clone().into() });
                }
                None => {
                    let what = format!("directory {}", String::from_utf8_lossy(&nook.at));
                    let why = "a mount hides it, and it is on one that can't be made again";
                    self.found.blockers.push(blocker(self.init, what, why));
                }
            }
        }
        self.groups(&kept);
        // The sandbox's root is a directory of the host, wherever the bundle is.
        if let Some(root) = kept.iter().find(|line| line.point == b"/")
            && root.kind == "tmpfs"
            && !self.host.iter().any(|(device, _)| *device == root.device)
        {
            self.refuse(0, root, "the job's first process has made it its root (pivot_root)");
        }
    }

    /// Tells the mounts of the sandbox from those of the job, and notes what is different about the former.
    fn sandbox_and_job(&mut self, lines: &'a [Line]) -> (Vec<&'a Line>, Vec<&'a Line>) {
        let mut seen: BTreeMap<&[u8], usize> = BTreeMap::new();
        let (mut kept, mut made) = (Vec::new(), Vec::new());
        for line in lines {
            // What is mounted over another one at the same point comes later in the list.
            let before = seen.entry(&line.point).or_default();
            *before += 1;
            let of = |places: &BTreeMap<Vec<u8>, usize>| places.get(&line.point).copied().unwrap_or(0);
            let (mounted, covered) = (of(&self.sandbox.mounted), of(&self.sandbox.covered));
            if *before == mounted && line.read_only() != self.sandbox.read_only.contains(&line.point) {
                self.found.changes.read_only.insert(line.point.clone().into(), line.read_only());
            }
            let own = *before > mounted + covered && !self.came_along(line);
            if own { made.push(line) } else { kept.push(line) }
        }
        for (point, count) in &self.sandbox.mounted {
            for _ in seen.get(&point[..]).copied().unwrap_or(0)..*count {
                self.found.changes.unmounted.push(point.clone().into());
            }
        }
        (kept, made)
    }

    /// It is of the host, and came with a mount of the sandbox or by propagation.
    fn came_along(&self, line: &Line) -> bool {
        let parent = self.trees[0].parent(line);
        let receives = parent.is_some_and(|(parent, _)| parent.master.is_some() || parent.shared.is_some());
        self.sandbox.in_a_tree(&line.point)
            || receives && self.host.contains(&(line.device.clone(), line.root.clone()))
    }

    /// Of the sandbox's mounts, those with peers, and those that receive from the same as one of the job's do. What else
    /// a mount receives from is outside.
    fn groups(&mut self, kept: &[&Line]) {
        let inside: HashSet<u32> = self.lines.iter().flatten().filter_map(|line| line.shared).collect();
        let masters: HashSet<u32> =
            self.found.changes.made.iter().filter_map(|made| made.group.master).collect();
        let known: HashSet<u32> =
            kept.iter().filter_map(|line| line.master).chain(inside.iter().copied()).collect();
        for line in kept {
            let group = Group { shared: line.shared, master: line.master };
            if group.shared.is_some() || group.master.is_some_and(|master| masters.contains(&master)) {
                self.found.changes.groups.insert(line.point.clone().into(), group);
            }
        }
        for made in &mut self.found.changes.made {
            made.group.master = made.group.master.filter(|master| known.contains(master));
        }
    }

    /// In another user namespace the kernel's registry of binary formats is another one, whose content is not carried. Beneath other mounts can be looked only by taking those away in a copy of the namespace. But what a copy has from
    /// another user namespace can't be unmounted (mount_namespaces(7)).
    fn refuse_foreign(&mut self) {
        let carried: Vec<(usize, u64)> = self.found.contents.iter().map(|content| content.mount).collect();
        let (trees, lines) = (self.trees, self.lines);
        for (space, line) in (0..).zip(lines).flat_map(|(space, lines)| lines.iter().map(move |l| (space, l)))
        {
            let sandbox =
                || space == 0 && line.kind == "tmpfs" && line.whole() && self.found.hides(&line.point);
            if (carried.contains(&(space, line.id)) || sandbox()) && !trees[space].visible(line) {
                let why = "another mount hides it, and in a user namespace nobody can look beneath";
                self.refuse(space, line, why);
            }
            if line.kind == BINFMT_MISC && self.found.devices.contains(&line.device) {
                self.refuse(space, line, "what is registered there can't be carried");
            }
        }
    }

    fn refuse(&mut self, space: usize, line: &Line, why: &str) {
        let mut what = format!("mount {}", String::from_utf8_lossy(&line.point));
        if space > 0 {
            what += &format!(" in mount namespace {space} of the job's own");
        }
        self.found.blockers.push(blocker(self.init, what, why));
    }
}

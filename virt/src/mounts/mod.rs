//! What a job has changed about the mounts of its container: mounts that it made or took away, those that it made read-only
//! or writable, and whole mount namespaces that processes of it have for themselves. A restart has the mounts of the sandbox;
//! these changes are then made to them once more.
//!
//! What was changed is the difference between the mounts that are there and the [`Places`] of the sandbox ([`survey`]); in
//! a namespace of the job's own everything is. `mounts.json` lists it ([`Changes`]), and the first process of the new
//! sandbox carries it out in its root ([`restore`]), while nothing else is there yet. Every mount is then a copy of a
//! part of a file system that is mounted as a whole in a namespace of ckrun's ([`yard`]), so that nothing can hide it; it is
//! put at a directory of the mount that it was on, not at a path. Nothing is propagated meanwhile: only in the end do mounts
//! get their peers ([`groups`]).

mod groups;
mod list;
mod open;
mod restore;
mod sandbox;
mod source;
mod space;
mod survey;
#[cfg(test)]
mod tests;
mod yard;

pub(crate) use open::{look_beneath, open_alone};
pub use restore::restore;
pub(crate) use space::Space;
pub(crate) use survey::{Found, Hidden, Part, survey};

use crate::image::Bytes;
use crate::program::Program;
use crate::{Doing, Failure};
use nix::unistd::Pid;
use rustix::fs::{Mode, OFlags};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::os::fd::{OwnedFd, RawFd};
use std::path::PathBuf;

/// The file of the image.
pub const FILE: &str = "mounts.json";

/// The most changes that an image may list: as many mounts as a namespace may have (`fs.mount-max`).
const MOST: usize = 100_000;
/// The most namespaces, and hidden directories: a restart has two descriptors for each.
const MOST_NAMESPACES: u32 = 256;

/// Where a sandbox has mounted something, as the container names it.
#[derive(Debug, Clone, Default)]
pub struct Places {
    /// What the sandbox's root directory is for ckrun, if that is known.
    pub root: Option<PathBuf>,
    /// Each as often as something was mounted there.
    pub mounted: Vec<PathBuf>,
    /// The same of what may not have been necessary.
    pub covered: Vec<PathBuf>,
    /// Below these, others came along with the first, or may come at any time by propagation.
    pub trees: Vec<PathBuf>,
    /// Of those that are mounted, and of the root, the ones that are read-only.
    pub read_only: Vec<PathBuf>,
}

/// What a job has changed. The lists name each other's members by their places.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Changes {
    /// Places of the sandbox where nothing is mounted any more, as often as that is so.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unmounted: Vec<Bytes>,
    /// Places of the sandbox that are read-only now (true) or writable, and were not.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub read_only: BTreeMap<Bytes, bool>,
    /// Places of the sandbox whose mounts have peers.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub groups: BTreeMap<Bytes, Group>,
    /// File systems that the job has made.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub file_systems: Vec<FileSystem>,
    /// Files and directories that are mounted and were deleted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub deleted: Vec<Deleted>,
    /// What the job has mounted, and everything in its own namespaces, each after what it is mounted on, and before what
    /// hides the place where it is mounted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub made: Vec<Made>,
    /// Directories that mounts hide, and that somebody has open, is in, or has something in. Their numbers come after those of
    /// the namespaces.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub nooks: Vec<Nook>,
}

/// A directory on a mount that another mount hides.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Nook {
    /// The mount.
    pub on: On,
    /// From the root of that; empty for the root itself.
    #[serde(default, skip_serializing_if = "is_empty")]
    pub at: Bytes,
}

/// A file system that the job has made: of a type that is made of nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct FileSystem {
    /// Its type.
    pub kind: String,
    /// What mount(8) calls the device.
    pub source: Bytes,
    /// Its options.
    pub options: Bytes,
    /// All of it is read-only, through whatever mount.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub read_only: bool,
}

/// Something that is mounted and was deleted: with what is in it, like a file system.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Deleted {
    /// Where it was.
    pub of: Source,
    /// The last name that it had there.
    pub name: Bytes,
}

/// A mount that the job has made, or a mount of a namespace that it has made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Made {
    /// In which namespace; 0 is that of the first process, and the sandbox's.
    #[serde(default, skip_serializing_if = "is_first")]
    pub namespace: u32,
    /// Where, for people.
    pub point: Bytes,
    /// The mount that it is on.
    pub on: On,
    /// From the root of that; empty for the root itself.
    #[serde(default, skip_serializing_if = "is_empty")]
    pub at: Bytes,
    /// What is mounted is a part of this.
    pub of: Source,
    /// Which part; empty for all of it.
    #[serde(default, skip_serializing_if = "is_empty")]
    pub part: Bytes,
    /// Its options (`MOUNT_ATTR_*`, as mount(8) calls them).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub options: Vec<String>,
    /// No copies can be made of it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unbindable: bool,
    /// Its peers.
    #[serde(default, skip_serializing_if = "Group::is_none")]
    pub group: Group,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde asks for a reference")]
fn is_first(namespace: &u32) -> bool {
    *namespace == 0
}

fn is_empty(path: &Bytes) -> bool {
    path.is_empty()
}

/// What a mount is on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum On {
    /// Nothing: it is the root of its namespace.
    Nothing,
    /// What the sandbox has mounted at this place.
    Place(Bytes),
    /// Which one of [`Changes::made`].
    Made(u32),
}

/// What can be mounted, as a whole.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Source {
    /// What the sandbox has mounted at this place.
    Place(Bytes),
    /// Which one of [`Changes::file_systems`].
    FileSystem(u32),
    /// Which one of [`Changes::deleted`].
    Deleted(u32),
}

/// The groups of peers of a mount, by numbers that mean nothing else (mount_namespaces(7)).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Group {
    /// Those that receive from it, and it from them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shared: Option<u32>,
    /// Those that it receives from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub master: Option<u32>,
}

impl Group {
    fn is_none(&self) -> bool {
        *self == Group::default()
    }
}

/// The mount namespaces of a job in a new sandbox, the sandbox's own first; none when that is the only one.
pub type Namespaces = Vec<Namespace<OwnedFd>>;

/// A mount namespace, by descriptors.
#[derive(Debug, Clone, Copy, Default)]
pub struct Namespace<F> {
    /// The namespace, for setns(2).
    pub handle: F,
    /// Its root directory.
    pub root: F,
}

/// The numbers that the process which is to become the first one of a restored job has for its namespaces, if there are
/// `count`; the hatch comes before.
pub(crate) fn numbers(count: u32) -> Vec<Namespace<RawFd>> {
    let first = crate::restore::HATCH + 1;
    let pair = |n: u32| {
        let handle = first.saturating_add_unsigned(2 * n);
        Namespace { handle, root: handle + 1 }
    };
    (0..count).map(pair).collect()
}

/// The root directories of the container in all its mount namespaces, for ckrun: those that `take` gives it of process
/// `init`, or that of the process if there is but one.
pub(crate) fn roots(
    init: Pid,
    namespaces: &[Namespace<RawFd>],
    take: &mut dyn FnMut(RawFd) -> Result<OwnedFd, Failure>,
) -> Result<Vec<OwnedFd>, Failure> {
    if !namespaces.is_empty() {
        return namespaces.iter().map(|namespace| take(namespace.root)).collect();
    }
    let path = format!("/proc/{init}/root");
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(vec![rustix::fs::open(&path, flags, Mode::empty()).doing(|| format!("open {path}"))?])
}

/// Makes a directory the root and the working directory, so that all paths are those of its mount namespace. That takes less than
/// to enter the namespace: a process with several threads can do it.
pub(crate) fn go(root: RawFd, program: &mut Program) {
    let dot = program.put_cstr(b".");
    program.call("go to the root of a mount namespace", libc::SYS_fchdir, &[root.into()]);
    program.call("take it as the root", libc::SYS_chroot, &[dot.into()]);
}

impl Changes {
    /// There are none.
    pub fn is_empty(&self) -> bool {
        *self == Changes::default()
    }

    /// How many mount namespaces the job has.
    pub fn spaces(&self) -> u32 {
        self.made.iter().map(|made| made.namespace).max().unwrap_or(0).saturating_add(1)
    }

    /// How many namespaces and nooks a restart makes descriptors for: none when there is only the sandbox's.
    pub fn namespaces(&self) -> u32 {
        let all = self.spaces().saturating_add(self.nooks.len() as u32);
        if all == 1 { 0 } else { all }
    }

    /// Checks what an image says.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(crate) fn check(&self) -> Result<(), String> {
        let lists = [self.made.len(), self.unmounted.len(), self.file_systems.len(), self.deleted.len()];
        if lists.iter().sum::<usize>() > MOST || self.namespaces() > MOST_NAMESPACES {
            return Err(format!(
                "it lists more than {MOST} changes, or more than {MOST_NAMESPACES} namespaces"
            ));
        }
        let sources = self.made.iter().map(|made| &made.of).chain(self.deleted.iter().map(|gone| &gone.of));
        let places = sources.clone().filter_map(|of| match of {
            Source::Place(place) => Some(place),
            _ => None,
        });
        let on = self.made.iter().map(|made| &made.on).chain(self.nooks.iter().map(|nook| &nook.on));
        let on = on.filter_map(|on| match on {
            On::Place(place) => Some(place),
            _ => None,
        });
        let points = self.unmounted.iter().chain(self.read_only.keys()).chain(self.groups.keys());
        if let Some(point) = points.chain(places).chain(on).find(|point| !point.as_path().is_absolute()) {
            return Err(format!("{point} is not an absolute path"));
        }
        let unknown = |of: &Source| match of {
            Source::Place(_) => false,
            Source::FileSystem(id) => *id as usize >= self.file_systems.len(),
            Source::Deleted(id) => *id as usize >= self.deleted.len(),
        };
        if sources.clone().any(unknown) {
            return Err("it names a file system that it does not list".into());
        }
        if let Some(fs) = self.file_systems.iter().find(|fs| !list::KINDS.contains(&fs.kind.as_str())) {
            return Err(format!("a {} is not mounted by a job", fs.kind));
        }
        if let Some(gone) = self.deleted.iter().find(|gone| {
            matches!(gone.of, Source::Deleted(_)) || !(gone.name.is_empty() || is_below(&gone.name))
        }) {
            return Err(format!("{} can't have been deleted", gone.name));
        }
        let mut roots = 0;
        for (id, made) in (0..).zip(&self.made) {
            let bad = |why: &str| Err(format!("{}: {why}", made.point));
            let on = match made.on {
                On::Nothing => {
                    roots += 1;
                    made.namespace == roots
                }
                On::Place(_) => made.namespace == 0,
                On::Made(on) => {
                    on < id && self.made.get(on as usize).is_some_and(|on| on.namespace == made.namespace)
                }
            };
            if !on {
                return bad("it is mounted on nothing");
            }
            if [&made.at, &made.part].iter().any(|path| !path.is_empty() && !is_below(path)) {
                return bad("an impossible path");
            }
            if let Some(option) = made.options.iter().find(|option| list::attribute(option).is_none()) {
                return bad(&format!("there is no option {option:?}"));
            }
        }
        let nowhere = |nook: &&Nook| match nook.on {
            On::Nothing => true,
            On::Place(_) => false,
            On::Made(on) => on as usize >= self.made.len(),
        };
        let impossible = |nook: &&Nook| nowhere(nook) || !nook.at.is_empty() && !is_below(&nook.at);
        match self.nooks.iter().find(impossible) {
            Some(nook) => Err(format!("a hidden directory {} is nowhere", nook.at)),
            None => Ok(()),
        }
    }
}

/// Plain components that lead nowhere but down.
fn is_below(path: &[u8]) -> bool {
    !path.contains(&0) && path.split(|&b| b == b'/').all(|name| !matches!(name, b"" | b"." | b".."))
}

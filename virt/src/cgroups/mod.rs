//! Cgroups that a job has made below its container's own: which there are in every hierarchy, their settings, and which of
//! the job's threads are in them.
//!
//! The container's own cgroups are made by whoever makes the sandbox ([`Home`]). Whatever an image says is below them: its
//! names are single components, and every component is checked.

mod capture;
mod restore;
mod settings;
#[cfg(test)]
mod tests;

pub(crate) use capture::{Thawed, capture, survey};
pub(crate) use restore::Places;

use crate::Error;
use crate::image::{Bytes, Image};
use nix::errno::Errno;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// The file of an image that holds them.
pub const FILE: &str = "cgroups.json";

/// More cgroups in one hierarchy are not carried, nor deeper ones.
const MOST: usize = 4096;
const DEEPEST: usize = 64;

/// The most that the kernel takes in one write to a cgroup's file.
const LONGEST: usize = 4096;

/// The container's own cgroup in one hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Home {
    /// `memory`; `cpu,cpuacct`; `name=systemd`; empty for cgroup2.
    pub controllers: String,
    /// Its directory, as ckrun sees it.
    pub directory: PathBuf,
}

impl Home {
    fn is_v2(&self) -> bool {
        self.controllers.is_empty()
    }

    /// The directory of a cgroup at or below it.
    fn place(&self, path: &Bytes) -> PathBuf {
        if path.is_empty() { self.directory.clone() } else { self.directory.join(path.as_path()) }
    }

    /// How a person knows a cgroup at or below it.
    fn name(&self, path: &Bytes) -> String {
        let hierarchy = if self.is_v2() { "cgroup2" } else { &self.controllers };
        format!("cgroup /{path} of {hierarchy}")
    }
}

/// All that a job has in cgroups, besides being in the container's own ones.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Cgroups {
    hierarchies: Vec<Hierarchy>,
}

/// The cgroups of one hierarchy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct Hierarchy {
    /// See [`Home::controllers`].
    controllers: String,
    /// What is set in the container's own one is told, too.
    #[serde(default, skip_serializing_if = "is_false")]
    whole: bool,
    /// The container's own first, and each before what is below it.
    groups: Vec<Group>,
}

/// One cgroup.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct Group {
    /// From the container's own, which has an empty one.
    path: Bytes,
    /// A cgroup2 for single threads (`cgroup.type`).
    #[serde(default, skip_serializing_if = "is_false")]
    threaded: bool,
    /// Controllers that the cgroups below it have (`cgroup.subtree_control`).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    subtree: Vec<String>,
    /// What is set otherwise than in any new cgroup, by the names of the files.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    settings: BTreeMap<String, String>,
    /// The job has frozen it.
    #[serde(default, skip_serializing_if = "is_false")]
    frozen: bool,
    /// Permissions of the directory.
    mode: u32,
    /// User and group of the directory (an empty name) and its files, as the container knows them, but for those of root.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    owners: BTreeMap<String, (u32, u32)>,
    /// The job's threads in it. For the container's own it is left open: all others.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    tasks: Vec<i32>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "so serde calls it")]
fn is_false(value: &bool) -> bool {
    !*value
}

impl Cgroups {
    /// Those of an image.
    ///
    /// # Errors
    /// The image's.
    pub fn read(image: &Image) -> Result<Cgroups, Error> {
        if !image.has(FILE) {
            return Ok(Cgroups::default());
        }
        let cgroups: Cgroups = image.json(FILE)?;
        cgroups.check().map_err(|why| Error::Damaged(format!("{FILE}: {why}")))?;
        Ok(cgroups)
    }

    /// Whether there is nothing to tell.
    pub fn is_empty(&self) -> bool {
        self.hierarchies.is_empty()
    }

    /// Whether it is told what is set in the container's own ones.
    pub fn is_whole(&self) -> bool {
        !self.is_empty() && self.hierarchies.iter().all(|hierarchy| hierarchy.whole)
    }

    fn check(&self) -> Result<(), String> {
        let mut known = BTreeSet::new();
        for hierarchy in &self.hierarchies {
            let named = &hierarchy.controllers;
            if !known.insert(named) {
                return Err(format!("the hierarchy {named:?} twice"));
            }
            hierarchy.check().map_err(|why| format!("hierarchy {named:?}: {why}"))?;
        }
        Ok(())
    }
}

impl Hierarchy {
    fn check(&self) -> Result<(), String> {
        if self.groups.len() > MOST {
            return Err(format!("more than {MOST} cgroups"));
        }
        let mut above: BTreeSet<&Path> = BTreeSet::new();
        let mut tasks = BTreeSet::new();
        for group in &self.groups {
            let path = group.path.as_path();
            let wrong = |why: &str| Err(format!("cgroup {}: {why}", group.path));
            let whole = group.path.is_empty() || group.path.split(|&b| b == b'/').all(is_name);
            if !whole || group.path.split(|&b| b == b'/').count() > DEEPEST {
                return wrong("an impossible name");
            }
            let grounded = path.parent().map_or(above.is_empty(), |parent| above.contains(parent));
            if !grounded || !above.insert(path) {
                return wrong("it is there twice, or what is above it is not there");
            }
            if group.mode > 0o7777 {
                return wrong("impossible permissions");
            }
            let control = |name: &String| {
                !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
            };
            if !group.subtree.iter().all(control) {
                return wrong("an impossible controller");
            }
            let fits = |value: &str| value.len() <= LONGEST && !value.contains('\0');
            if !group.settings.iter().all(|(file, value)| settings::is_setting(file) && fits(value)) {
                return wrong("an impossible setting");
            }
            if !group.owners.keys().all(|file| file.is_empty() || settings::is_file(file)) {
                return wrong("an impossible file");
            }
            if !group.tasks.iter().all(|&tid| tid > 0 && tasks.insert(tid)) {
                return wrong("a thread that is elsewhere, too");
            }
        }
        Ok(())
    }
}

/// The kernel allows neither in the name of a cgroup.
fn is_name(name: &[u8]) -> bool {
    let odd = |b: &u8| matches!(b, 0 | b'\n');
    !name.is_empty() && name.len() <= 255 && name != b"." && name != b".." && !name.iter().any(odd)
}

/// Reads a file of a cgroup, without the last line end.
fn read(dir: &Path, file: &str) -> Result<String, Errno> {
    let path = dir.join(file);
    let bytes = crate::proc::read(&path.to_string_lossy()).map_err(errno)?;
    let mut text = String::from_utf8(bytes).map_err(|_| Errno::EILSEQ)?;
    text.truncate(text.trim_end().len());
    Ok(text)
}

/// Writes one value to a file of a cgroup.
fn write(dir: &Path, file: &str, value: &str) -> Result<(), Errno> {
    use std::io::Write;
    // Nothing is made: the kernel makes these files.
    let mut file = std::fs::OpenOptions::new().write(true).open(dir.join(file)).map_err(errno)?;
    file.write_all(value.as_bytes()).map_err(errno)
}

fn errno(e: std::io::Error) -> Errno {
    e.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}

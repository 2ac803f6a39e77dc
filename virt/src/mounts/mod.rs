//! What a job has changed about the mounts of its container: mounts that it made or took away, and those that it made
//! read-only or writable. A restart has the mounts of the sandbox; these changes are then made to them once more.
//!
//! What was changed is the difference between the mounts that are there and the [`Places`] of the sandbox ([`survey`]).
//! `mounts.json` lists it ([`Changes`]), and the first process of the new sandbox carries it out in its root ([`restore`]),
//! while nothing else is there yet. Nothing is propagated meanwhile: only in the end do mounts get their peers.

mod list;
mod restore;
mod survey;

pub use restore::restore;
pub(crate) use survey::survey;

use crate::image::Bytes;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// The file of the image.
pub const FILE: &str = "mounts.json";

/// The most changes that an image may list: as many mounts as a namespace may have (`fs.mount-max`).
const MOST: usize = 100_000;

/// Where a sandbox has mounted something, as the container names it.
#[derive(Debug, Clone, Default)]
pub struct Places {
    /// Each as often as something was mounted there.
    pub mounted: Vec<PathBuf>,
    /// The same of what may not have been necessary.
    pub covered: Vec<PathBuf>,
    /// Below these, others came along with the first, or may come at any time by propagation.
    pub trees: Vec<PathBuf>,
    /// Of those that are mounted, and of the root, the ones that are read-only.
    pub read_only: Vec<PathBuf>,
}

/// What a job has changed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Changes {
    /// Places of the sandbox where nothing is mounted any more, as often as that is so.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unmounted: Vec<Bytes>,
    /// Places of the sandbox that are read-only now (true) or writable, and were not.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub read_only: BTreeMap<Bytes, bool>,
    /// What the job has mounted, each after what it is mounted on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub made: Vec<Made>,
    /// Mounts that receive from each other, by their points. Of those of the sandbox, too.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub peers: Vec<Vec<Bytes>>,
}

/// A mount that the job has made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Made {
    /// Where.
    pub point: Bytes,
    /// What.
    pub what: What,
    /// Its options (`MOUNT_ATTR_*` but for the times of access, as mount(8) calls them).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub options: Vec<String>,
}

/// What is mounted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum What {
    /// A file system of its own.
    New {
        /// Its type: one of those that are made of nothing.
        kind: String,
        /// What mount(8) calls the device.
        source: Bytes,
        /// Options of the file system.
        options: Bytes,
        /// All of it is read-only, through whatever mount.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        read_only: bool,
    },
    /// A file or directory that is elsewhere in the container as well.
    Bind {
        /// Its path there, at the time of the mount.
        from: Bytes,
    },
}

impl Changes {
    /// There are none.
    pub fn is_empty(&self) -> bool {
        *self == Changes::default()
    }

    /// The points of the tmpfs mounts among them: they are new and empty.
    pub(crate) fn tmpfs(&self) -> impl Iterator<Item = &Bytes> {
        let tmpfs = |made: &&Made| matches!(&made.what, What::New { kind, .. } if kind == "tmpfs");
        self.made.iter().filter(tmpfs).map(|made| &made.point)
    }

    /// Checks what an image says.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(crate) fn check(&self) -> Result<(), String> {
        if self.made.len() + self.unmounted.len() + self.peers.len() > MOST {
            return Err(format!("it lists more than {MOST} changes"));
        }
        let points = self.made.iter().map(|made| &made.point).chain(&self.unmounted);
        let points = points.chain(self.read_only.keys()).chain(self.peers.iter().flatten());
        let sources = self.made.iter().filter_map(|made| match &made.what {
            What::Bind { from } => Some(from),
            What::New { .. } => None,
        });
        if let Some(point) = points.chain(sources).find(|point| !point.as_path().is_absolute()) {
            return Err(format!("{point} is not an absolute path"));
        }
        for made in &self.made {
            if let What::New { kind, .. } = &made.what
                && !list::KINDS.contains(&kind.as_str())
            {
                return Err(format!("{}: a {kind} is not mounted by a job", made.point));
            }
            if let Some(option) = made.options.iter().find(|option| list::flag(option).is_none()) {
                return Err(format!("{}: there is no option {option:?}", made.point));
            }
        }
        Ok(())
    }
}

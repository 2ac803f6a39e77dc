//! File systems in memory: what is in the container's tmpfs mounts travels with the image.
//!
//! The sandbox of a restart makes these mounts anew, and empty. Captured is every tmpfs that is the container's alone
//! ([`mounts`]), with all that it holds ([`capture`]): `tmpfs.json` lists the files, and for each mount one file of the
//! image has all their bytes, one after the other, in the order of the list ([`content`]). The first process of the new
//! sandbox puts everything back ([`restore`]) as soon as it is in its root. ckrun opens what it needs beforehand
//! ([`Contents`]): in a user namespace it may not read the image itself.
//!
//! What the sandbox has put into a new mount gives way to a file of the same name, and stays otherwise. Devices are its
//! business alone, and sockets that of who binds them.

mod attributes;
mod capture;
mod content;
mod mounts;
mod restore;
#[cfg(test)]
mod tests;

pub use attributes::Attributes;
pub(crate) use capture::capture;
pub(crate) use mounts::mount_of;
pub(crate) use mounts::survey;
pub use restore::restore;

use crate::Error;
use crate::image::{Bytes, Image, Stored};
use crate::mounts::Part;
use serde::{Deserialize, Serialize};
use std::collections::{HashMap, HashSet};

/// The file of the image.
pub const FILE: &str = "tmpfs.json";

/// The most files that one mount may hold.
const MOST_FILES: u64 = 1 << 18;
/// The most bytes that they may have: 16 GiB.
const MOST_BYTES: u64 = 16 << 30;

/// One mount.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Tmpfs {
    /// Where, from the container's root.
    pub point: Bytes,
    /// The job has made it: of its mounts it is this one. Else the sandbox does, at this point.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub part: Option<Part>,
    /// The file of the image with the bytes of all files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content: Option<String>,
    /// First its root directory; every directory comes before what is in it. What has been deleted may be a file, alone.
    pub entries: Vec<Entry>,
}

/// A name in a tmpfs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Entry {
    /// From the root of the tmpfs; empty for that.
    pub path: Bytes,
    /// Whose it is, and the like.
    pub attributes: Attributes,
    /// What it is.
    pub what: What,
}

/// What has a name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum What {
    /// A directory.
    Directory,
    /// A regular file.
    File {
        /// Bytes.
        size: u64,
        /// Offset and length of each range whose bytes are in the image; all others are zero.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        data: Vec<(u64, u64)>,
    },
    /// A symbolic link, and where it leads.
    Symlink(Bytes),
    /// A pipe with a name.
    Fifo,
    /// A device. It is never made: the sandbox makes those that the container may have.
    Device {
        /// It is a block device.
        block: bool,
        /// The major number.
        major: u32,
        /// The minor number.
        minor: u32,
    },
    /// One more name for what an earlier entry names.
    Link(Bytes),
}

/// The tmpfs mounts of an image, read and checked, with everything open that is still to be read.
#[derive(Debug, Default)]
pub struct Contents {
    mounts: Vec<(Tmpfs, Option<Stored>)>,
}

impl Contents {
    /// Reads what an image says about them.
    ///
    /// # Errors
    /// Those of the image; [`Error::Damaged`].
    pub fn open(image: &Image) -> Result<Contents, Error> {
        let mounts: Vec<Tmpfs> = image.json(FILE)?;
        let mut all = HashSet::new();
        let open = |tmpfs: Tmpfs| {
            let bad = |why| Error::Damaged(format!("{FILE}: {}: {why}", tmpfs.point));
            if !all.insert((tmpfs.part, tmpfs.part.is_none().then(|| tmpfs.point.clone()))) {
                return Err(bad("it comes twice".to_owned()));
            }
            let bytes = tmpfs.check().map_err(bad)?;
            let stored = tmpfs.content.as_ref().map(|name| image.stored(name)).transpose()?;
            if stored.as_ref().map_or(0, Stored::size) != bytes {
                return Err(bad(format!("its files have {bytes} bytes, and there are others")));
            }
            Ok((tmpfs, stored))
        };
        Ok(Contents { mounts: mounts.into_iter().map(open).collect::<Result<_, _>>()? })
    }
}

impl Tmpfs {
    /// Nothing leads out of the mount, and everything that is named is there. The answer is how many bytes the files have.
    fn check(&self) -> Result<u64, String> {
        if self.part.is_none() && !self.point.strip_prefix(b"/").is_some_and(is_path) {
            return Err("no place for a mount".into());
        }
        match self.entries.split_first() {
            Some((root, _)) if root.path.is_empty() && root.what == What::Directory => {}
            Some((Entry { path, what: What::File { .. }, .. }, []))
                if path.is_empty() && matches!(self.part, Some(Part::Deleted(_))) => {}
            _ => return Err("its root directory does not come first".into()),
        }
        let mut known: HashMap<&[u8], &What> = HashMap::with_capacity(self.entries.len());
        let mut bytes: u64 = 0;
        for entry in &self.entries {
            let bad = |why: &str| Err(format!("{}: {why}", entry.path));
            if !known.is_empty() {
                if !is_path(&entry.path) {
                    return bad("an impossible path");
                }
                if known.get(split(&entry.path).0) != Some(&&What::Directory) {
                    return bad("no directory comes before it");
                }
            }
            match &entry.what {
                What::File { size, data } => match content::check(*size, data) {
                    Some(more) => bytes = bytes.saturating_add(more),
                    None => return bad("impossible ranges of data"),
                },
                What::Link(to) => match known.get(to.as_bytes()) {
                    Some(What::File { .. } | What::Symlink(_) | What::Fifo) => {}
                    _ => return bad("a link to nothing"),
                },
                What::Symlink(to) if to.is_empty() || to.contains(&0) => return bad("it leads to nothing"),
                _ => {}
            }
            entry.attributes.check().map_err(|why| format!("{}: {why}", entry.path))?;
            if known.insert(&entry.path, &entry.what).is_some() {
                return bad("it comes twice");
            }
        }
        Ok(bytes)
    }
}

/// Plain components that lead nowhere but down.
fn is_path(path: &[u8]) -> bool {
    path.len() < 4096
        && !path.contains(&0)
        && path.split(|&b| b == b'/').all(|name| !matches!(name, b"" | b"." | b"..") && name.len() <= 255)
}

/// The directory that a path is in, and the name there.
pub(crate) fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|&b| b == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (b"", path),
    }
}

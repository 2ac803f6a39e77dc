//! Where in the container a file is that a process has open or is in.

use super::container::DELETED;
use super::graph::Graph;
use super::{Trouble, container};
use rustix::fs::{FileType, Stat};

/// A file's place in the container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Located {
    /// It is there under this path.
    Named(Vec<u8>),
    /// It has no name any more; this was the last one.
    Deleted(Vec<u8>),
}

/// Finds the file that `/proc` calls `link`, and that is on the mount `mount`, in the namespace of that.
pub(crate) fn locate(graph: &Graph, link: &[u8], stat: &Stat, mount: u64) -> Result<Located, Trouble> {
    let name = || String::from_utf8_lossy(link).into_owned();
    let (_, container) = graph.home(mount);
    if container.mount(mount).is_none() {
        return Err(Trouble::refused(name(), "it is on no mount of the container"));
    }
    // A file may be called so: first the name is taken at its word.
    if container.finds(link, stat)? {
        return Ok(Located::Named(link.to_owned()));
    }
    let Some(last) = link.strip_suffix(DELETED) else {
        return Err(Trouble::refused(name(), "another file has its name now, or a mount hides it"));
    };
    // What is mounted somewhere is still found there.
    if container.finds(last, stat)? {
        return Ok(Located::Named(last.to_owned()));
    }
    if stat.st_nlink == 0 || FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
        return Ok(Located::Deleted(last.to_owned()));
    }
    match container.other_name(last, stat)? {
        Some(path) => Ok(Located::Named(path)),
        None => Err(Trouble::refused(
            name(),
            format!(
                "this name was deleted, and its other one (inode {}) is not in {}",
                stat.st_ino,
                String::from_utf8_lossy(container::parent(last))
            ),
        )),
    }
}

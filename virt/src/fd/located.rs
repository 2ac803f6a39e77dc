//! Where in the container a file is that a process has open or is in.

use super::capture::Job;
use super::container::DELETED;
use super::{Trouble, container};
use crate::Failure;
use crate::mounts::{Hidden, look_beneath};
use nix::errno::Errno;
use rustix::fs::{FileType, Stat};

/// A file's place in the container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Located {
    /// It is there under this path.
    Named(Vec<u8>),
    /// It has no name any more; this was the last one.
    Deleted(Vec<u8>),
}

/// Finds the file that `/proc` calls `link`, and that is on the mount `mount`: in which mount namespace, and where there. A
/// directory that a mount hides counts as a namespace, of which it is the root.
pub(crate) fn locate(
    job: &mut Job<'_>,
    link: &[u8],
    stat: &Stat,
    mount: u64,
) -> Result<(u32, Located), Trouble> {
    let name = || String::from_utf8_lossy(link).into_owned();
    let (number, container) = job.graph.home(mount);
    if container.mount(mount).is_none() {
        return Err(on_no_mount(link));
    }
    // A file may be called so: first the name is taken at its word.
    if container.finds(link, stat)? {
        return Ok((number, Located::Named(link.to_owned())));
    }
    let Some(last) = link.strip_suffix(DELETED) else {
        return job.hidden(link, stat, mount);
    };
    // What is mounted somewhere is still found there.
    if container.finds(last, stat)? {
        return Ok((number, Located::Named(last.to_owned())));
    }
    if stat.st_nlink == 0 || FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
        return Ok((number, Located::Deleted(last.to_owned())));
    }
    match container.other_name(last, stat)? {
        Some(path) => Ok((number, Located::Named(path))),
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

/// What it is, where the name tells.
fn on_no_mount(link: &[u8]) -> Trouble {
    let name = String::from_utf8_lossy(link);
    match link.strip_suffix(DELETED) {
        // Nobody needs it for long: what is mapped can be had without it.
        Some(last) if last.starts_with(b"/SYSV") => {
            Trouble::refused(name, "a System V segment, open by way of /proc/PID/map_files").passing()
        }
        Some(b"/secretmem") => Trouble::refused("memfd_secret", "nobody but the process itself can read it"),
        _ => Trouble::refused(name, "it is on no mount of the container"),
    }
}

impl Job<'_> {
    /// Something that is not found under its name: on its mount it may be there all the same, beneath others.
    fn hidden(&mut self, link: &[u8], stat: &Stat, mount: u64) -> Result<(u32, Located), Trouble> {
        let refused = |why: &str| Err(Trouble::refused(String::from_utf8_lossy(link), why));
        let (number, container) = self.graph.home(mount);
        if !self.owned.mounts {
            return refused("another file has its name now, or a mount hides it");
        }
        let (at, over) = match look_beneath(container.space(), mount, link, stat) {
            Ok(Some(found)) => found,
            Ok(None) => return refused("another file has its name now"),
            Err(Failure { errno: Errno::EINVAL, .. }) => {
                return refused("a mount hides it, and in a user namespace nobody can look beneath");
            }
            Err(failure) => return Err(failure.into()),
        };
        let (at, name) = if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
            (at, Vec::new())
        } else if over {
            return refused("another file is mounted over it");
        } else {
            let (directory, name) = crate::tmpfs::split(&at);
            (directory.to_vec(), name.to_vec())
        };
        let nook = Hidden { space: number, mount, at };
        let known = self.nooks.iter().position(|known| *known == nook);
        let known = known.unwrap_or_else(|| {
            self.nooks.push(nook);
            self.nooks.len() - 1
        });
        let number = self.graph.containers().count() + known;
        Ok((number as u32, Located::Named(container::join(b"/", &name))))
    }
}

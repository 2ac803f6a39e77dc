//! Folders by descriptor: made and locked, emptied, removed. Names are looked up in a folder that is open, and symlinks
//! are never followed.

use super::{Error, Result, name};
use crate::Doing;
use rustix::fs::{AtFlags, Dir, FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;

const FOLDER: Mode = Mode::RWXU;
const FILE: Mode = Mode::RUSR.union(Mode::WUSR);

/// Makes or takes over the folder `name` and locks it. True: it is a dead writer's, with its content.
pub(super) fn lock(home: BorrowedFd<'_>, name: &OsStr, path: &Path) -> Result<(OwnedFd, bool)> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    loop {
        let stale = match rustix::fs::mkdirat(home, name, FOLDER) {
            Ok(()) => false,
            Err(Errno::EXIST) => true,
            Err(e) => return Err(e).doing(|| format!("mkdir {}", path.display()))?,
        };
        let work = match rustix::fs::openat(home, name, flags, Mode::empty()) {
            Ok(work) => work,
            // Its writer has just finished or given up.
            Err(Errno::NOENT) => continue,
            Err(Errno::NOTDIR | Errno::LOOP) => {
                return Err(Error::Foreign { path: path.to_owned(), why: "not a directory" });
            }
            Err(e) => return Err(e).doing(|| format!("open {}", path.display()))?,
        };
        match rustix::fs::flock(&work, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => return Err(Error::Busy { path: path.to_owned() }),
            Err(e) => return Err(e).doing(|| format!("flock {}", path.display()))?,
        }
        // Between the open and the lock it may have been removed, or renamed by a commit.
        let locked = rustix::fs::fstat(&work).doing(|| format!("stat {}", path.display()))?;
        match rustix::fs::statat(home, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(named) if (named.st_dev, named.st_ino) == (locked.st_dev, locked.st_ino) => {}
            Ok(_) | Err(Errno::NOENT) => continue,
            Err(e) => return Err(e).doing(|| format!("stat {}", path.display()))?,
        }
        // In a directory like /tmp somebody else could have made it, to read a job's memory from.
        if locked.st_uid != rustix::process::geteuid().as_raw() {
            return Err(Error::Foreign { path: path.to_owned(), why: "it belongs to another user" });
        }
        if locked.st_mode & 0o7777 != FOLDER.as_raw_mode() {
            rustix::fs::fchmod(&work, FOLDER).doing(|| format!("chmod {}", path.display()))?;
        }
        return Ok((work, stale));
    }
}

/// Whether `folder` has anything of this name.
pub(super) fn exists(folder: BorrowedFd<'_>, name: &str) -> bool {
    rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW).is_ok()
}

/// Removes everything in `folder`, the manifest first: what is half removed must not be taken for half moved.
pub(super) fn empty(folder: BorrowedFd<'_>) -> rustix::io::Result<()> {
    remove(folder, name::MANIFEST)?;
    for entry in Dir::read_from(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        if name != c"." && name != c".." {
            remove(folder, name)?;
        }
    }
    Ok(())
}

/// Removes a file, or a folder with everything in it; never follows a symlink. Nothing there is fine.
pub(super) fn remove(folder: BorrowedFd<'_>, name: impl rustix::path::Arg + Copy) -> rustix::io::Result<()> {
    match rustix::fs::unlinkat(folder, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::ISDIR) => {}
        Err(e) => return Err(e),
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let inner = rustix::fs::openat(folder, name, flags, Mode::empty())?;
    for entry in Dir::read_from(&inner)? {
        let entry = entry?;
        let name = entry.file_name();
        if name != c"." && name != c".." {
            remove(inner.as_fd(), name)?;
        }
    }
    rustix::fs::unlinkat(folder, name, AtFlags::REMOVEDIR)
}

/// Makes a new file in the work folder; `path` is for messages.
pub(super) fn create(folder: BorrowedFd<'_>, name: &str, access: OFlags, path: &Path) -> Result<File> {
    let flags = access | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match rustix::fs::openat(folder, name, flags, FILE) {
        Ok(file) => Ok(file.into()),
        Err(Errno::EXIST) => Err(Error::Exists { path: path.to_owned() }),
        Err(e) => Err(Error::write(path, nix::errno::Errno::from_raw(e.raw_os_error()))),
    }
}

/// Writes all of `bytes` to the beginning of a new file.
pub(super) fn fill(file: &File, bytes: &[u8], path: &Path) -> Result<()> {
    file.write_all_at(bytes, 0).map_err(|e| Error::write(path, super::error::errno(&e)))
}

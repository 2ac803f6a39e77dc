//! The folder that a writer works in, and the step from it to the final name.
//!
//! Two cases, and in both of them a reader finds either no `manifest.json` or everything:
//!
//! - **DIR is not there.** The work is done in `DIR.partial` beside it, which is then renamed: one atomic step.
//! - **DIR is there**, because an engine made it, holds it open, or mounted something on it, and perhaps with files of its
//!   own in it. The work is done in `DIR/.partial`, and the entries are renamed into DIR one by one, `manifest.json`
//!   last. A writer that dies among these renames leaves the manifest in `.partial`, and by it the next writer knows
//!   which entries of DIR are the remains and which belong to somebody else.
//!
//! A work folder is locked (flock) by the writer in it. The kernel drops the lock when the writer dies, so a folder that
//! can be locked is stale.

use super::{Error, Manifest, Result, name};
use crate::{Doing, Failure};
use rustix::fs::{AtFlags, Dir, FlockOperation, Mode, OFlags, RenameFlags};
use rustix::io::Errno;
use std::ffi::{CStr, OsString};
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

const FOLDER: Mode = Mode::RWXU;
const FILE: Mode = Mode::RUSR.union(Mode::WUSR);
const INSIDE: &str = ".partial";

#[derive(Debug)]
pub(super) struct Partial {
    /// The directory that the work folder is in: DIR, or the one above it.
    home: OwnedFd,
    /// The name of the work folder there.
    name: OsString,
    /// The work folder, locked.
    work: OwnedFd,
    /// DIR as the caller named it.
    dir: PathBuf,
    /// The last component of DIR, when the work folder is to get this name. None: DIR is `home`.
    becomes: Option<OsString>,
    /// What was renamed into DIR and is to be removed again if it fails.
    moved: Vec<String>,
    done: bool,
}

impl Partial {
    /// Claims the place for an image at `dir`, clearing away what a dead writer left there.
    pub(super) fn claim(dir: &Path) -> Result<Self> {
        let open = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let at = |path: &Path| rustix::fs::open(path, open, Mode::empty());
        let (home, name, becomes) = match at(dir) {
            Ok(home) => (home, OsString::from(INSIDE), None),
            Err(Errno::NOTDIR) => return Err(Error::Exists { path: dir.to_owned() }),
            Err(Errno::NOENT) => {
                let Some(last) = dir.file_name() else {
                    return Err(
                        Failure::new(format!("open {}", dir.display()), nix::errno::Errno::ENOENT).into()
                    );
                };
                let above = match dir.parent() {
                    Some(above) if !above.as_os_str().is_empty() => above,
                    _ => Path::new("."),
                };
                std::fs::DirBuilder::new()
                    .recursive(true)
                    .create(above)
                    .doing(|| format!("mkdir {}", above.display()))?;
                let home = at(above).doing(|| format!("open {}", above.display()))?;
                let mut name = last.to_owned();
                name.push(INSIDE);
                (home, name, Some(last.to_owned()))
            }
            Err(e) => return Err(e).doing(|| format!("open {}", dir.display()))?,
        };
        let path = match becomes {
            Some(_) => dir.with_file_name(&name),
            None => dir.join(&name),
        };
        let (work, stale) = lock(home.as_fd(), &name, &path)?;
        let dir = dir.to_owned();
        // From here on a failure removes the folder again.
        let partial = Partial { home, name, work, dir, becomes, moved: Vec::new(), done: false };
        if stale {
            partial.clear_stale().doing(|| format!("clear {}", path.display()))?;
        }
        // Looked at under the lock: another writer may just have finished.
        if partial.becomes.is_none() && exists(partial.home.as_fd(), name::MANIFEST) {
            return Err(Error::Exists { path: partial.dir.join(name::MANIFEST) });
        }
        Ok(partial)
    }

    /// The work folder.
    pub(super) fn work(&self) -> BorrowedFd<'_> {
        self.work.as_fd()
    }

    /// The final path of a file, for messages.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// DIR.
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Where the work folder can be reached by its path.
    pub(super) fn work_path(&self) -> PathBuf {
        match self.becomes {
            Some(_) => self.dir.with_file_name(&self.name),
            None => self.dir.join(&self.name),
        }
    }

    /// Refuses a file whose place in DIR is taken by somebody else's, as early as it can be known.
    pub(super) fn refuse_taken(&self, name: &str) -> Result<()> {
        let top = name::top(name);
        if self.becomes.is_none() && exists(self.home.as_fd(), top) {
            return Err(Error::Exists { path: self.dir.join(top) });
        }
        Ok(())
    }

    /// The last step. `entries` are the first components of all files but the manifest, which must be in the work
    /// folder too.
    pub(super) fn commit(&mut self, entries: impl IntoIterator<Item = String>) -> Result<()> {
        match self.becomes.clone() {
            Some(last) => self.rename(&last)?,
            None => self.move_in(entries)?,
        }
        self.done = true;
        Ok(())
    }

    fn rename(&mut self, last: &OsString) -> Result<()> {
        // rename(2) puts a directory only where there is nothing or an empty directory: it never replaces an image.
        match rustix::fs::renameat(&self.home, &self.name, &self.home, last) {
            Ok(()) => {}
            Err(Errno::NOTEMPTY | Errno::EXIST | Errno::NOTDIR | Errno::BUSY) => {
                return Err(Error::Exists { path: self.dir.clone() });
            }
            Err(e) => {
                return Err(e)
                    .doing(|| format!("rename {} to {}", self.work_path().display(), self.dir.display()))?;
            }
        }
        if let Err(e) = rustix::fs::fsync(&self.home) {
            // The name may or may not be on the disk. The caller hears of a failure, so there must be no image.
            let _ = rustix::fs::renameat(&self.home, last, &self.home, &self.name);
            return Err(e).doing(|| format!("fsync the directory of {}", self.dir.display()))?;
        }
        Ok(())
    }

    fn move_in(&mut self, entries: impl IntoIterator<Item = String>) -> Result<()> {
        for entry in entries {
            self.move_one(&entry)?;
        }
        let sync = |partial: &Self| {
            rustix::fs::fsync(&partial.home).doing(|| format!("fsync {}", partial.dir.display()))
        };
        // The disk must not see the manifest before the rest.
        sync(self)?;
        self.move_one(name::MANIFEST)?;
        sync(self)?;
        // The image is complete; an empty folder that can't be removed is the next writer's to clear.
        let _ = rustix::fs::unlinkat(&self.home, &self.name, AtFlags::REMOVEDIR);
        Ok(())
    }

    fn move_one(&mut self, entry: &str) -> Result<()> {
        match rustix::fs::renameat_with(&self.work, entry, &self.home, entry, RenameFlags::NOREPLACE) {
            Ok(()) => {}
            Err(Errno::EXIST) => return Err(Error::Exists { path: self.dir.join(entry) }),
            // A file system that knows no flags (NFS): the look and the rename are two steps there.
            Err(Errno::INVAL) => {
                self.refuse_taken(entry)?;
                rustix::fs::renameat(&self.work, entry, &self.home, entry)
                    .doing(|| format!("rename {entry} into {}", self.dir.display()))?;
            }
            Err(e) => return Err(e).doing(|| format!("rename {entry} into {}", self.dir.display()))?,
        }
        self.moved.push(entry.to_owned());
        Ok(())
    }

    /// Takes back what a writer did that died here.
    fn clear_stale(&self) -> rustix::io::Result<()> {
        if self.becomes.is_none() {
            // A complete manifest in the work folder: it may have died while it renamed. What the manifest names and
            // the folder has no longer was moved by it, as a rename never replaced anything.
            for entry in stale_entries(self.work.as_fd()) {
                if !exists(self.work.as_fd(), &entry) {
                    remove(self.home.as_fd(), &entry)?;
                }
            }
        }
        empty(self.work.as_fd())
    }
}

impl Drop for Partial {
    /// Without a commit nothing is left.
    fn drop(&mut self) {
        if self.done {
            return;
        }
        // The manifest first: without it the rest is no image, whatever happens next.
        for entry in self.moved.iter().rev() {
            let _ = remove(self.home.as_fd(), entry);
        }
        let _ = empty(self.work.as_fd());
        let _ = rustix::fs::unlinkat(&self.home, &self.name, AtFlags::REMOVEDIR);
    }
}

/// Makes or takes over the folder `name` and locks it. True: it is a dead writer's, with its content.
fn lock(home: BorrowedFd<'_>, name: &OsString, path: &Path) -> Result<(OwnedFd, bool)> {
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

fn exists(folder: BorrowedFd<'_>, name: &str) -> bool {
    rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW).is_ok()
}

/// The first components of the files that a stale manifest names; none when there is no complete one.
fn stale_entries(work: BorrowedFd<'_>) -> Vec<String> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let Ok(file) = rustix::fs::openat(work, name::MANIFEST, flags, Mode::empty()) else { return Vec::new() };
    let mut bytes = Vec::new();
    if File::from(file).take(super::MAX_MANIFEST).read_to_end(&mut bytes).is_err() {
        return Vec::new();
    }
    match Manifest::parse(Path::new(name::MANIFEST), &bytes) {
        Ok((manifest, _)) => {
            let mut tops: Vec<_> = manifest.files.keys().map(|file| name::top(file).to_owned()).collect();
            tops.dedup();
            tops
        }
        Err(_) => Vec::new(),
    }
}

/// Removes everything in `folder`, the manifest first: what is half removed must not be taken for half moved.
fn empty(folder: BorrowedFd<'_>) -> rustix::io::Result<()> {
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
fn remove(folder: BorrowedFd<'_>, name: impl rustix::path::Arg + Copy) -> rustix::io::Result<()> {
    match rustix::fs::unlinkat(folder, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::ISDIR) => {}
        Err(e) => return Err(e),
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let inner = rustix::fs::openat(folder, name, flags, Mode::empty())?;
    for entry in Dir::read_from(&inner)? {
        let entry = entry?;
        let name: &CStr = entry.file_name();
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

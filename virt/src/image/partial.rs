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
//! Where an image is to be replaced, the entries of the old one are first renamed into `.partial/.old`. For the time of a
//! few renames there is no image; a failure puts the old one back, and so does the next writer after a death.
//!
//! A work folder is locked (flock) by the writer in it. The kernel drops the lock when the writer dies, so a folder that
//! can be locked is stale.

use super::folder::{empty, exists, lock, remove};
use super::{Error, Manifest, Result, name};
use crate::{Doing, Failure};
use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags, RenameFlags};
use rustix::io::Errno;
use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

/// The work folder in DIR, and what is added to DIR's name for the one beside it.
const WORK: &str = ".partial";
/// In the work folder: the image that is being replaced. No file of an image can have this name.
const OLD: &str = ".old";

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
    /// The entries of the image in DIR that is to be replaced.
    old: BTreeSet<String>,
    /// The renames into DIR have begun.
    moving: bool,
    done: bool,
}

impl Partial {
    /// Claims the place for an image at `dir`, clearing away what a dead writer left there. With `replace` there may be
    /// an image, which stays until the commit.
    pub(super) fn claim(dir: &Path, replace: bool) -> Result<Self> {
        let open = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let at = |path: &Path| rustix::fs::open(path, open, Mode::empty());
        let (home, name, becomes) = match at(dir) {
            Ok(home) => (home, OsString::from(WORK), None),
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
                name.push(WORK);
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
        let mut partial =
            Partial { home, name, work, dir, becomes, old: BTreeSet::new(), moving: false, done: false };
        if stale {
            partial.clear_stale().doing(|| format!("clear {}", path.display()))?;
        }
        // Looked at under the lock: another writer may just have finished.
        if partial.becomes.is_none() && exists(partial.home.as_fd(), name::MANIFEST) {
            let manifest = partial.dir.join(name::MANIFEST);
            if !replace {
                return Err(Error::Exists { path: manifest });
            }
            partial.old = entries(partial.home.as_fd(), &manifest)?;
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
        if self.becomes.is_none() && !self.old.contains(top) && exists(self.home.as_fd(), top) {
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

    fn rename(&self, last: &OsStr) -> Result<()> {
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
        self.moving = true;
        if !self.old.is_empty() {
            rustix::fs::mkdirat(&self.work, OLD, Mode::RWXU)
                .doing(|| format!("mkdir {}", self.work_path().join(OLD).display()))?;
            let old = self.old_image().doing(|| format!("open {}", self.work_path().join(OLD).display()))?;
            for entry in std::iter::once(name::MANIFEST).chain(self.old.iter().map(String::as_str)) {
                self.rename_new(self.home.as_fd(), old.as_fd(), entry)?;
            }
        }
        for entry in entries {
            self.rename_new(self.work.as_fd(), self.home.as_fd(), &entry)?;
        }
        let sync = || rustix::fs::fsync(&self.home).doing(|| format!("fsync {}", self.dir.display()));
        // The disk must not see the manifest before the rest.
        sync()?;
        self.rename_new(self.work.as_fd(), self.home.as_fd(), name::MANIFEST)?;
        if let Err(e) = sync() {
            // As with a rename: whoever hears of a failure must find no image.
            rustix::fs::renameat(&self.home, name::MANIFEST, &self.work, name::MANIFEST)
                .doing(|| format!("take back {}", self.dir.join(name::MANIFEST).display()))?;
            return Err(e.into());
        }
        // The image is complete; what can't be removed is the next writer's to clear.
        let _ = empty(self.work.as_fd());
        let _ = rustix::fs::unlinkat(&self.home, &self.name, AtFlags::REMOVEDIR);
        Ok(())
    }

    /// Renames `entry` from one folder into another that does not have it.
    fn rename_new(&self, from: BorrowedFd<'_>, to: BorrowedFd<'_>, entry: &str) -> Result<()> {
        let taken = || Error::Exists { path: self.dir.join(entry) };
        let doing = || format!("rename {entry} in {}", self.dir.display());
        match rustix::fs::renameat_with(from, entry, to, entry, RenameFlags::NOREPLACE) {
            Ok(()) => Ok(()),
            Err(Errno::EXIST) => Err(taken()),
            // A file system that knows no flags (NFS): the look and the rename are two steps there.
            Err(Errno::INVAL) if exists(to, entry) => Err(taken()),
            Err(Errno::INVAL) => Ok(rustix::fs::renameat(from, entry, to, entry).doing(doing)?),
            Err(e) => Err(e).doing(doing)?,
        }
    }

    fn old_image(&self) -> rustix::io::Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        rustix::fs::openat(&self.work, OLD, flags, Mode::empty())
    }

    /// Takes back what this writer, or a dead one before it, did to DIR.
    fn take_back(&self) -> rustix::io::Result<()> {
        if exists(self.home.as_fd(), name::MANIFEST) {
            // Either nothing was renamed yet, or everything.
            return Ok(());
        }
        // What the new manifest names and the work folder has no longer was renamed from it: no rename replaced anything.
        let manifest = Path::new(name::MANIFEST);
        for entry in entries(self.work.as_fd(), manifest).unwrap_or_default() {
            if !exists(self.work.as_fd(), &entry) {
                remove(self.home.as_fd(), &entry)?;
            }
        }
        let Ok(old) = self.old_image() else { return Ok(()) };
        for entry in entries(old.as_fd(), manifest)
            .unwrap_or_default()
            .iter()
            .map(String::as_str)
            .chain([name::MANIFEST])
        {
            match rustix::fs::renameat(&old, entry, &self.home, entry) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    /// Takes back what a writer did that died here.
    fn clear_stale(&self) -> rustix::io::Result<()> {
        if self.becomes.is_none() {
            self.take_back()?;
        }
        empty(self.work.as_fd())
    }
}

impl Drop for Partial {
    /// Without a commit everything is as it was.
    fn drop(&mut self) {
        // If it can't be taken back the folder stays, and the next writer tries again.
        if !self.done && (!self.moving || self.take_back().is_ok()) {
            let _ = empty(self.work.as_fd());
            let _ = rustix::fs::unlinkat(&self.home, &self.name, AtFlags::REMOVEDIR);
        }
        // Said aloud, because a child that was forked meanwhile has the descriptor too, and would go on holding the lock.
        let _ = rustix::fs::flock(&self.work, FlockOperation::Unlock);
    }
}

/// The first components of the files that the manifest in `folder` names.
fn entries(folder: BorrowedFd<'_>, path: &Path) -> Result<BTreeSet<String>> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = rustix::fs::openat(folder, name::MANIFEST, flags, Mode::empty())
        .doing(|| format!("open {}", path.display()))?;
    let mut bytes = Vec::new();
    // One byte more than allowed is enough for the digest at the end to be wrong.
    File::from(file)
        .take(super::MAX_MANIFEST + 1)
        .read_to_end(&mut bytes)
        .doing(|| format!("read {}", path.display()))?;
    let (manifest, _) = Manifest::parse(path, &bytes)?;
    Ok(manifest.files.keys().map(|file| name::top(file).to_owned()).collect())
}

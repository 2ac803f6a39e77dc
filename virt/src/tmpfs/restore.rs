//! Putting back what was in the tmpfs mounts of a job: done by the first process of a new sandbox, when its root is
//! changed and nothing else is there yet. What the image says is nobody's word: every path is resolved inside its mount.

use super::mounts::{mount_of, open};
use super::{Contents, Entry, Tmpfs, What, content, split};
use crate::fd::join;
use crate::image::{Stored, StoredReader};
use crate::mounts::Part;
use crate::{Doing, Error};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;
use std::collections::HashSet;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

/// Fills the tmpfs mounts below this process's root directory. `made` are the paths at which the sandbox has mounted a
/// new tmpfs: no other file system is written to. Of what was in a mount that is not among them, everything must be
/// there already. Those that the job has made are mounted and filled afterwards.
///
/// # Errors
/// The kernel's, the image's; [`Error::Unsupported`] when a mount is missing.
pub fn restore<'p>(contents: &Contents, made: impl IntoIterator<Item = &'p Path>) -> Result<(), Error> {
    let own = || contents.mounts.iter().filter(|(tmpfs, _)| tmpfs.part.is_none());
    if own().next().is_none() {
        return Ok(());
    }
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open("/", flags, Mode::empty()).doing(|| "open the container's root")?;
    // These are the configuration's paths, in which there may be symbolic links.
    let made = made.into_iter().filter_map(|path| {
        let dir = rustix::fs::openat2(&root, path, flags, Mode::empty(), ResolveFlags::IN_ROOT).ok()?;
        mount_of(dir).ok().map(|(id, _)| id)
    });
    let made: HashSet<u64> = made.collect();
    for (tmpfs, stored) in own() {
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        let point = rustix::fs::openat2(&root, tmpfs.point.as_path(), flags, Mode::empty(), resolve).ok();
        match point {
            Some(point) if writable(&point, &made).doing(|| format!("look at {}", tmpfs.point))? => {
                Mount { tmpfs, point, parent: None }.fill(stored.as_ref())?;
            }
            point => compare(tmpfs, point)?,
        }
    }
    Ok(())
}

impl Contents {
    /// Fills something that the job had made, and that is new and empty; `root` is its root directory, or it is a file that
    /// is open for writing.
    ///
    /// # Errors
    /// The kernel's, the image's.
    pub(crate) fn fill(&self, part: Part, root: OwnedFd) -> Result<(), Error> {
        let Some((tmpfs, stored)) = self.of(part) else { return Ok(()) };
        match tmpfs.entries.first() {
            Some(Entry { what: What::File { size, data }, attributes, .. }) => {
                let name = || shown(tmpfs, b"");
                let file = File::from(root);
                if let Some(stored) = stored {
                    let mut content = stored.reader();
                    content::copy(Some(&file), data, &mut content, &name)?;
                    content.finish()?;
                }
                file.set_len(*size).doing(|| format!("make {} {size} bytes long", name()))?;
                Ok(attributes.give(file, &name)?)
            }
            _ => Mount { tmpfs, point: root, parent: None }.fill(stored.as_ref()),
        }
    }

    /// It is a directory.
    pub(crate) fn is_directory(&self, part: Part) -> bool {
        let root = self.of(part).and_then(|(tmpfs, _)| tmpfs.entries.first());
        root.is_none_or(|root| root.what == What::Directory)
    }

    fn of(&self, part: Part) -> Option<&(Tmpfs, Option<Stored>)> {
        self.mounts.iter().find(|(tmpfs, _)| tmpfs.part == Some(part))
    }
}

/// It is the root directory of one of our mounts, and can be written to.
fn writable(point: &OwnedFd, made: &HashSet<u64>) -> rustix::io::Result<bool> {
    let (id, whole) = mount_of(point)?;
    if !whole || !made.contains(&id) {
        return Ok(false);
    }
    let read_only = rustix::fs::fstatvfs(point)?.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY);
    Ok(!read_only && rustix::fs::fstatfs(point)?.f_type == libc::TMPFS_MAGIC)
}

/// A mount that is being filled.
struct Mount<'a> {
    tmpfs: &'a Tmpfs,
    point: OwnedFd,
    /// The directory that the last entry was in. The next one mostly is in the same.
    parent: Option<(&'a [u8], OwnedFd)>,
}

impl<'a> Mount<'a> {
    fn fill(mut self, stored: Option<&Stored>) -> Result<(), Error> {
        let mut content = stored.map(Stored::reader);
        for entry in self.tmpfs.entries.iter().skip(1) {
            self.make(entry, content.as_mut())?;
        }
        content.map_or(Ok(()), StoredReader::finish)?;
        // To make something in a directory changes its times.
        for entry in self.tmpfs.entries.iter().filter(|entry| entry.what == What::Directory) {
            let name = || shown(self.tmpfs, &entry.path);
            match open(self.point.as_fd(), &entry.path, OFlags::RDONLY | OFlags::DIRECTORY) {
                Err(Errno::XDEV) => hidden(&name)?,
                dir => entry.attributes.give(dir.doing(|| format!("open {}", name()))?, &name)?,
            }
        }
        Ok(())
    }

    fn make(&mut self, entry: &'a Entry, content: Option<&mut StoredReader<'_>>) -> Result<(), Error> {
        let name = || shown(self.tmpfs, &entry.path);
        let (parent, last) = split(&entry.path);
        if self.parent.as_ref().is_none_or(|(path, _)| *path != parent) {
            let dir = open(self.point.as_fd(), parent, OFlags::PATH | OFlags::DIRECTORY);
            self.parent = Some((parent, dir.doing(|| format!("open the directory of {}", name()))?));
        }
        let Some((_, dir)) = &self.parent else { return Ok(()) };
        let dir = dir.as_fd();
        let made = match &entry.what {
            What::Directory => match rustix::fs::mkdirat(dir, last, Mode::RWXU) {
                Err(Errno::EXIST) if is_dir(dir, last) => return Ok(()),
                made => return Ok(made.doing(|| format!("make the directory {}", name()))?),
            },
            What::File { size, data } => {
                let flags =
                    OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let file = place(dir, last, || rustix::fs::openat(dir, last, flags, Mode::RUSR | Mode::WUSR))
                    .doing(|| format!("make {}", name()))?
                    .map(File::from);
                if let Some(content) = content {
                    content::copy(file.as_ref(), data, content, &name)?;
                }
                let Some(file) = file else { return hidden(&name) };
                file.set_len(*size).doing(|| format!("make {} {size} bytes long", name()))?;
                return Ok(entry.attributes.give(file, &name)?);
            }
            What::Symlink(to) => place(dir, last, || rustix::fs::symlinkat(to.as_bytes(), dir, last)),
            What::Fifo => place(dir, last, || {
                rustix::fs::mknodat(dir, last, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)
            }),
            What::Device { .. } => {
                if there(dir, last).is_none_or(|stat| !is_device(&entry.what, &stat)) {
                    log::warn!("{}: this device is not made: the container is not given it", name());
                }
                return Ok(());
            }
            What::Link(to) => {
                let (from, first) = split(to);
                let from = open(self.point.as_fd(), from, OFlags::PATH | OFlags::DIRECTORY)
                    .doing(|| format!("open the directory of {}", shown(self.tmpfs, to)))?;
                let made = place(dir, last, || rustix::fs::linkat(&from, first, dir, last, AtFlags::empty()));
                made.doing(|| format!("make {} a link to {}", name(), shown(self.tmpfs, to)))?;
                return Ok(());
            }
        };
        match made.doing(|| format!("make {}", name()))? {
            Some(()) => {
                let symlink = matches!(entry.what, What::Symlink(_));
                Ok(entry.attributes.give_at(dir, last, symlink, &name)?)
            }
            None => hidden(&name),
        }
    }
}

/// Makes something in the place of whatever has its name; None when that is a mount.
fn place<T>(
    dir: BorrowedFd<'_>,
    name: &[u8],
    make: impl Fn() -> rustix::io::Result<T>,
) -> rustix::io::Result<Option<T>> {
    match make() {
        Err(Errno::EXIST) => match rustix::fs::unlinkat(dir, name, AtFlags::empty()) {
            Err(Errno::BUSY) => Ok(None),
            gone => gone.and_then(|()| make()).map(Some),
        },
        made => made.map(Some),
    }
}

/// The sandbox has mounted something of this name, and that stays.
fn hidden(name: &dyn Fn() -> String) -> Result<(), Error> {
    log::debug!("tmpfs: {}: hidden by another mount", name());
    Ok(())
}

fn there(dir: BorrowedFd<'_>, name: &[u8]) -> Option<Stat> {
    rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW).ok()
}

fn is_dir(dir: BorrowedFd<'_>, name: &[u8]) -> bool {
    there(dir, name).is_some_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory)
}

fn is_device(what: &What, stat: &Stat) -> bool {
    let What::Device { block, major, minor } = what else { return false };
    let kind = if *block { FileType::BlockDevice } else { FileType::CharacterDevice };
    FileType::from_raw_mode(stat.st_mode) == kind && stat.st_rdev == rustix::fs::makedev(*major, *minor)
}

/// A path as the container sees it, for messages.
fn shown(tmpfs: &Tmpfs, path: &[u8]) -> String {
    String::from_utf8_lossy(&join(&tmpfs.point, path)).into_owned()
}

/// What nobody may write to must be as it was, as far as that can be seen: a read-only `/dev`, say.
fn compare(tmpfs: &Tmpfs, point: Option<OwnedFd>) -> Result<(), Error> {
    let as_it_was = |entry: &&Entry| {
        let point = point.as_ref().map(AsFd::as_fd);
        matches!(entry.what, What::Device { .. }) || point.is_some_and(|point| is_as_it_was(point, entry))
    };
    let mut different = tmpfs.entries.iter().skip(1).filter(|entry| !as_it_was(entry));
    let Some(first) = different.next() else { return Ok(()) };
    let more = match different.count() {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    Err(Error::Unsupported(format!(
        "{} is not a new, writable tmpfs here, as it was when the job was checkpointed, and lacks {}{more}: \
         mount one there in config.json",
        tmpfs.point,
        shown(tmpfs, &first.path),
    )))
}

fn is_as_it_was(point: BorrowedFd<'_>, entry: &Entry) -> bool {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let Ok(fd) = rustix::fs::openat2(point, entry.path.as_path(), flags, Mode::empty(), resolve) else {
        return false;
    };
    let Ok(stat) = rustix::fs::fstat(&fd) else { return false };
    let kind = FileType::from_raw_mode(stat.st_mode);
    match &entry.what {
        What::Directory => kind == FileType::Directory,
        What::Fifo => kind == FileType::Fifo,
        What::Device { .. } => is_device(&entry.what, &stat),
        What::Link(_) => true,
        What::Symlink(to) => rustix::fs::readlinkat(&fd, c"", Vec::new())
            .is_ok_and(|target| target.to_bytes() == to.as_bytes()),
        What::File { size, .. } => {
            let modified = (stat.st_mtime, u32::try_from(stat.st_mtime_nsec).unwrap_or(0));
            let same = stat.st_size.cast_unsigned() == *size && modified == entry.attributes.times[1];
            kind == FileType::RegularFile && same
        }
    }
}

//! Reading what is in the tmpfs mounts of a stopped job.

use super::attributes::{Attributes, Ids};
use super::content::Pack;
use super::mounts::{self, Own, READ_DIR, open};
use super::{Entry, FILE, MOST_BYTES, MOST_FILES, Tmpfs, What};
use crate::fd;
use crate::fd::join;
use crate::image::Writer;
use crate::mounts::{Found, Part, open_alone};
use crate::{Doing, Error, Failure};
use nix::errno::Errno;
use nix::unistd::Pid;
use rustix::fs::{AtFlags, FileType, Mode, OFlags, RawDir, Statx, StatxFlags};
use std::collections::HashMap;
use std::ffi::CStr;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// Writes what is in the tmpfs mounts, among those that are `mounted` in the container whose first process is `init`, to the
/// image, and what is in those that the job has made, in whatever namespace, also where others hide them. Nothing in them may
/// run.
///
/// # Errors
/// [`Error::Blocked`] when there is too much, the kernel's, the image's.
pub(crate) fn capture(
    init: Pid,
    mounted: &[(u64, fd::Mount)],
    found: &Found,
    image: &mut Writer,
) -> Result<(), Error> {
    let mut all = Vec::new();
    let ids = Ids::of(init)?;
    for (own, part) in list(init, mounted, found)? {
        let too_large = || Error::Blocked(vec![mounts::too_large(init, &own.point)]);
        let mut walk = Walk { own: &own, ids: &ids, entries: Vec::new(), names: HashMap::new() };
        if !walk.all()? {
            return Err(too_large());
        }
        let mut entries = walk.entries;
        let name = format!("files/tmpfs-{}", all.len());
        let filled = |entry: &Entry| matches!(entry.what, What::File { size: 1.., .. });
        let mut pack = entries.iter().any(filled).then(|| image.file(&name)).transpose()?.map(Pack::new);
        for entry in &mut entries {
            read(&own, entry, &ids, pack.as_mut())?;
            if pack.as_ref().is_some_and(|pack| pack.bytes > MOST_BYTES) {
                return Err(too_large());
            }
        }
        let content = pack.map(Pack::finish).transpose()?.map(|()| name);
        all.push(Tmpfs { point: own.point.into(), part, content, entries });
    }
    image.json(FILE, &all)?;
    Ok(())
}

/// Everything that has content of its own.
fn list(init: Pid, mounted: &[(u64, fd::Mount)], found: &Found) -> Result<Vec<(Own, Option<Part>)>, Failure> {
    let (own, hidden) = mounts::own(init, mounted, &found.devices)?;
    let (covered, bare): (Vec<Own>, Vec<Own>) = own.into_iter().partition(|own| found.covers(&own.point));
    let mut all: Vec<_> = bare.into_iter().map(|own| (own, None)).collect();
    let covered = covered.into_iter().map(|own| (own.id, own.point));
    // What the sandbox itself has hidden, it hides again.
    let hidden = hidden.into_iter().filter(|(_, point)| found.hides(point));
    let mut wanted: Vec<_> = covered.chain(hidden).map(|(id, point)| (0, id, point, None)).collect();
    wanted.extend(found.contents.iter().map(|content| {
        let (space, id) = content.mount;
        (space, id, content.point.to_vec(), Some(content.part))
    }));
    for (number, space) in found.spaces.iter().enumerate() {
        let here = |(there, ..): &&(usize, u64, Vec<u8>, Option<Part>)| *there == number;
        let ids: Vec<u64> = wanted.iter().filter(here).map(|(_, id, ..)| *id).collect();
        let mut places = open_alone(space, &ids)?;
        for (_, id, point, part) in wanted.iter().filter(here) {
            let what = || format!("open {} in the container", String::from_utf8_lossy(point));
            let place = places.remove(id).ok_or_else(|| Failure::new(what(), Errno::ENOENT))?;
            let (id, _) = mounts::mount_of(&place).doing(what)?;
            let directory = rustix::fs::openat(&place, c".", READ_DIR, Mode::empty());
            let dir = match directory {
                Err(rustix::io::Errno::NOTDIR) => place,
                directory => directory.doing(what)?,
            };
            all.push((Own { point: point.clone(), id, dir }, *part));
        }
    }
    Ok(all)
}

/// Reads a file: its content, if it has any, and its extended attributes.
fn read(own: &Own, entry: &mut Entry, ids: &Ids, pack: Option<&mut Pack<'_>>) -> Result<(), Error> {
    let What::File { size, data } = &mut entry.what else { return Ok(()) };
    let name = || shown(own, &entry.path);
    let flags = OFlags::RDONLY | OFlags::NOATIME | OFlags::NONBLOCK | OFlags::NOCTTY;
    let opened = if entry.path.is_empty() {
        // What is there by itself was found as a place.
        rustix::fs::open(
            format!("/proc/self/fd/{}", own.dir.as_raw_fd()),
            flags | OFlags::CLOEXEC,
            Mode::empty(),
        )
    } else {
        open(own.dir.as_fd(), &entry.path, flags)
    };
    let file: File = opened.doing(|| format!("open {}", name()))?.into();
    entry.attributes.read_extended(&file, ids).doing(|| format!("read the attributes of {}", name()))?;
    if let Some(pack) = pack {
        *data = pack.add(&file, *size, &name)?;
    }
    Ok(())
}

/// A path as the container sees it, for messages.
fn shown(own: &Own, path: &[u8]) -> String {
    String::from_utf8_lossy(&join(&own.point, path)).into_owned()
}

/// The names in a tmpfs, as far as they are known.
struct Walk<'a> {
    own: &'a Own,
    ids: &'a Ids,
    entries: Vec<Entry>,
    /// Of files with several names, which entry has the first one; by their inodes.
    names: HashMap<u64, usize>,
}

impl Walk<'_> {
    /// Finds everything. The list is also the list of the directories still to be read. False: there is too much.
    fn all(&mut self) -> Result<bool, Failure> {
        let dir = self.own.dir.as_fd();
        let about = statx(dir, c"", AtFlags::EMPTY_PATH).doing(|| self.look(b""))?;
        let attributes = Attributes::of(&about, self.ids);
        let what = match FileType::from_raw_mode(about.stx_mode.into()) {
            FileType::Directory => What::Directory,
            _ => What::File { size: about.stx_size, data: Vec::new() },
        };
        self.entries.push(Entry { path: b"".as_slice().into(), attributes, what });
        let mut next = 0;
        while let Some(entry) = self.entries.get(next) {
            if entry.what == What::Directory {
                let path = entry.path.clone();
                let read = || format!("read the directory {}", shown(self.own, &path));
                let dir = open(dir, &path, READ_DIR).doing(read)?;
                if let Some(entry) = self.entries.get_mut(next) {
                    entry
                        .attributes
                        .read_extended(&dir, self.ids)
                        .doing(|| format!("read the attributes of {}", shown(self.own, &path)))?;
                }
                self.directory(&dir, &path)?;
            }
            next += 1;
            if self.entries.len() as u64 > MOST_FILES {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn directory(&mut self, dir: &OwnedFd, path: &[u8]) -> Result<(), Failure> {
        let mut buffer = Vec::with_capacity(8192);
        let mut list = RawDir::new(dir, buffer.spare_capacity_mut());
        while let Some(listed) = list.next() {
            // What is in a deleted directory is nothing, and is not read.
            if path.is_empty() && matches!(listed, Err(rustix::io::Errno::NOENT)) {
                break;
            }
            let listed = listed.doing(|| format!("read the directory {}", shown(self.own, path)))?;
            let name = listed.file_name();
            if !matches!(name.to_bytes(), b"." | b"..") {
                let path =
                    if path.is_empty() { name.to_bytes().to_vec() } else { join(path, name.to_bytes()) };
                self.entry(dir, name, path)?;
            }
        }
        Ok(())
    }

    fn entry(&mut self, dir: &OwnedFd, name: &CStr, path: Vec<u8>) -> Result<(), Failure> {
        let about = statx(dir.as_fd(), name, AtFlags::SYMLINK_NOFOLLOW).doing(|| self.look(&path))?;
        if about.stx_mnt_id != self.own.id {
            // The place of another mount, for which the sandbox will make what it needs.
            return Ok(());
        }
        let what = match FileType::from_raw_mode(about.stx_mode.into()) {
            FileType::Directory => What::Directory,
            FileType::RegularFile => What::File { size: about.stx_size, data: Vec::new() },
            FileType::Fifo => What::Fifo,
            FileType::Symlink => {
                let to = rustix::fs::readlinkat(dir, name, Vec::new()).doing(|| self.look(&path))?;
                What::Symlink(to.into_bytes().into())
            }
            kind @ (FileType::BlockDevice | FileType::CharacterDevice) => What::Device {
                block: kind == FileType::BlockDevice,
                major: about.stx_rdev_major,
                minor: about.stx_rdev_minor,
            },
            kind => {
                log::debug!("tmpfs: {}: a {kind:?}, which is not carried", shown(self.own, &path));
                return Ok(());
            }
        };
        let attributes = Attributes::of(&about, self.ids);
        let what = self.first_name(&about, what);
        self.entries.push(Entry { path: path.into(), attributes, what });
        Ok(())
    }

    /// A file with several names is carried once.
    fn first_name(&mut self, about: &Statx, what: What) -> What {
        if about.stx_nlink < 2 || matches!(what, What::Directory | What::Device { .. }) {
            return what;
        }
        let here = self.entries.len();
        let first = *self.names.entry(about.stx_ino).or_insert(here);
        self.entries.get(first).map_or(what, |first| What::Link(first.path.clone()))
    }

    fn look(&self, path: &[u8]) -> String {
        format!("look at {}", shown(self.own, path))
    }
}

fn statx(dir: BorrowedFd<'_>, name: &CStr, flags: AtFlags) -> rustix::io::Result<Statx> {
    let flags = flags | AtFlags::NO_AUTOMOUNT;
    rustix::fs::statx(dir, name, flags, StatxFlags::BASIC_STATS | StatxFlags::MNT_ID)
}

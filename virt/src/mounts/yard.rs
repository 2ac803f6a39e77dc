//! A mount namespace of ckrun's own, in which everything that is to be mounted is there as a whole: what the sandbox has
//! mounted, without what is on it; the file systems of the job, new and filled; what was deleted. Nobody sees it, and it
//! goes when nobody needs it any more.

use super::list::{ATTRIBUTES, attributes};
use super::open::copy;
use super::{Changes, Made, Part, Source};
use crate::image::Bytes;
use crate::sys::{MountAttr, mount_namespace, mount_setattr};
use crate::tmpfs::Contents;
use crate::{Doing, Error, Failure};
use nix::sched::{CloneFlags, setns, unshare};
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MountPropagationFlags, MoveMountFlags,
    fsconfig_create, fsmount, fsopen, mount, mount_change, mount_remount, move_mount,
};
use std::collections::HashMap;
use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

const PLACE: OFlags = OFlags::PATH.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// A namespace, and where this process is in it.
#[derive(Debug)]
pub(super) struct Here {
    pub(super) handle: OwnedFd,
    pub(super) root: OwnedFd,
    directory: OwnedFd,
}

impl Here {
    pub(super) fn now() -> Result<Here, Failure> {
        let open = |name: &str| {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            rustix::fs::open(name, flags, Mode::empty()).doing(|| format!("open {name}"))
        };
        let handle = mount_namespace().doing(|| "find the own mount namespace (Linux 6.11)")?;
        Ok(Here { handle, root: open("/")?, directory: open(".")? })
    }

    pub(super) fn enter(&self) -> Result<(), Failure> {
        let what = || "go to a mount namespace";
        setns(&self.handle, CloneFlags::CLONE_NEWNS).doing(what)?;
        rustix::process::fchdir(&self.root).doing(what)?;
        rustix::process::chroot(".").doing(what)?;
        rustix::process::fchdir(&self.directory).doing(what)
    }
}

/// The namespace, and what is there.
#[derive(Debug)]
pub(super) struct Yard<'a> {
    changes: &'a Changes,
    contents: &'a Contents,
    pub(super) here: Here,
    /// The root directory of a tmpfs with a place for each whole.
    ground: OwnedFd,
    wholes: HashMap<Source, OwnedFd>,
    /// What is to be deleted in the end: in which directory, the name, and whether it is a directory itself.
    doomed: Vec<(OwnedFd, Vec<u8>, bool)>,
    next: u32,
}

impl<'a> Yard<'a> {
    /// Makes it, and goes there.
    pub(super) fn lay(changes: &'a Changes, contents: &'a Contents) -> Result<Yard<'a>, Failure> {
        let what = || "make a mount namespace to build others from";
        unshare(CloneFlags::CLONE_NEWNS).doing(what)?;
        mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).doing(what)?;
        let here = Here::now()?;
        let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC).doing(what)?;
        fsconfig_create(context.as_fd()).doing(what)?;
        let ground = fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty());
        let ground = ground.doing(what)?;
        put(&ground, &here.root).doing(what)?;
        Ok(Yard { changes, contents, here, ground, wholes: HashMap::new(), doomed: Vec::new(), next: 0 })
    }

    /// Makes the mount that is wanted, with its options, but puts it nowhere yet.
    pub(super) fn part(&mut self, made: &Made) -> Result<OwnedFd, Error> {
        let whole = self.whole(&made.of, &made.point)?;
        let tree = if made.part.is_empty() {
            copy(whole, &made.point)?
        } else {
            let part = beneath(whole, &made.part).map_err(|errno| missing(&made.point, errno))?;
            copy(part, &made.point)?
        };
        let attr = MountAttr { set: attributes(&made.options), clear: ATTRIBUTES, ..MountAttr::default() };
        mount_setattr(tree.as_fd(), false, attr)
            .doing(|| format!("set the options of the mount {}", made.point))?;
        Ok(tree)
    }

    /// A private copy of the whole, which is somewhere here.
    pub(super) fn another(&mut self, of: &Source, point: &Bytes) -> Result<OwnedFd, Error> {
        let tree = copy(self.whole(of, point)?, point)?;
        self.keep(&tree)?;
        Ok(tree)
    }

    /// Puts a mount somewhere, so that it is there as long as this is, and copies can be made of it.
    pub(super) fn keep(&mut self, tree: &OwnedFd) -> Result<(), Failure> {
        let what = || "put a mount aside";
        let stat = rustix::fs::fstat(tree).doing(what)?;
        let name = self.name(FileType::from_raw_mode(stat.st_mode) == FileType::Directory)?;
        put(tree, &open(&self.ground, &name).doing(what)?).doing(what)
    }

    /// Deletes what was deleted, and makes the file systems read-only that were so. Nothing can be mounted afterwards of
    /// what has been deleted: the kernel wants to be able to mount something on it.
    pub(super) fn close(&self) -> Result<(), Failure> {
        for (directory, name, is_directory) in &self.doomed {
            let flags = if *is_directory { AtFlags::REMOVEDIR } else { AtFlags::empty() };
            rustix::fs::unlinkat(directory, &name[..], flags)
                .doing(|| format!("delete {} again", String::from_utf8_lossy(name)))?;
        }
        rustix::process::fchdir(&self.ground).doing(|| "go aside")?;
        for (id, fs) in (0..).zip(&self.changes.file_systems).filter(|(_, fs)| fs.read_only) {
            if self.wholes.contains_key(&Source::FileSystem(id)) {
                mount_remount(file_system(id).as_str(), MountFlags::RDONLY, c"")
                    .doing(|| format!("make a {} read-only", fs.kind))?;
            }
        }
        Ok(())
    }

    fn name(&mut self, directory: bool) -> Result<String, Failure> {
        self.next += 1;
        let name = self.next.to_string();
        self.make(&name, directory)?;
        Ok(name)
    }

    fn make(&self, name: &str, directory: bool) -> Result<(), Failure> {
        make(&self.ground, name.as_bytes(), directory).doing(|| "make a place for a mount")
    }

    /// What is at `of`; `point` is where it is wanted.
    fn whole(&mut self, of: &Source, point: &Bytes) -> Result<BorrowedFd<'_>, Error> {
        if !self.wholes.contains_key(of) {
            let whole = match of {
                Source::Place(place) => {
                    let place = open(&self.here.root, place).map_err(|errno| missing(point, errno))?;
                    let whole = copy(place, point)?;
                    self.keep(&whole)?;
                    whole
                }
                Source::FileSystem(id) => self.file_system(*id, point)?,
                Source::Deleted(id) => self.deleted(*id, point)?,
            };
            self.wholes.insert(of.clone(), whole);
        }
        let whole = self.wholes.get(of).map(AsFd::as_fd);
        whole.ok_or_else(|| Failure::new("find what is to be mounted", nix::errno::Errno::ENOENT).into())
    }

    fn file_system(&mut self, id: u32, point: &Bytes) -> Result<OwnedFd, Error> {
        let doing = || format!("mount {point} as the job had it");
        let Some(fs) = self.changes.file_systems.get(id as usize) else {
            return Err(Error::Damaged(format!("{}: {point}: of no file system", super::FILE)));
        };
        let text = |bytes: &Bytes| {
            let text = CString::new(&bytes[..]);
            text.map_err(|_| Error::Damaged(format!("{}: {point}: a zero byte in a text", super::FILE)))
        };
        let (source, options) = (text(&fs.source)?, text(&fs.options)?);
        let options = (!options.is_empty()).then_some(options.as_c_str());
        let name = file_system(id);
        self.make(&name, true)?;
        rustix::process::fchdir(&self.ground).doing(doing)?;
        mount(source.as_c_str(), name.as_str(), fs.kind.as_str(), MountFlags::empty(), options)
            .doing(doing)?;
        let root = open(&self.ground, &name).doing(doing)?;
        let filled = rustix::fs::openat(&root, ".", PLACE, Mode::empty()).doing(doing)?;
        self.contents.fill(Part::FileSystem(id), filled)?;
        Ok(root)
    }

    /// It has a name until the end: its last one if that is free, else one of its own.
    fn deleted(&mut self, id: u32, point: &Bytes) -> Result<OwnedFd, Error> {
        let doing = || format!("make what is mounted at {point}, and was deleted");
        let Some(gone) = self.changes.deleted.get(id as usize) else {
            return Err(Error::Damaged(format!("{}: {point}: of nothing", super::FILE)));
        };
        let (parent, last) = crate::tmpfs::split(&gone.name);
        let whole = self.whole(&gone.of, point)?;
        let top = || {
            let top = copy(whole, point)?;
            let attr = MountAttr { clear: libc::MOUNT_ATTR_RDONLY, ..MountAttr::default() };
            mount_setattr(top.as_fd(), false, attr).doing(doing).map(|()| top)
        };
        let top = top()?;
        let parent = if parent.is_empty() { Ok(None) } else { beneath(&top, parent).map(Some) };
        let (directory, mut name) = match parent {
            Ok(Some(parent)) => (parent, last.to_vec()),
            Ok(None) => (top, last.to_vec()),
            Err(_) => (top, format!(".ckrun-{id}").into_bytes()),
        };
        let part = Part::Deleted(id);
        let is_directory = self.contents.is_directory(part);
        let mut made = make(&directory, &name, is_directory);
        if made == Err(Errno::EXIST) {
            name = format!(".ckrun-{id}").into_bytes();
            made = make(&directory, &name, is_directory);
        }
        made.doing(doing)?;
        let flags = if is_directory { PLACE } else { OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC };
        let root = rustix::fs::openat(&directory, &name[..], flags, Mode::empty()).doing(doing)?;
        self.contents.fill(part, root)?;
        let place = rustix::fs::openat(&directory, &name[..], PLACE, Mode::empty()).doing(doing)?;
        let tree = copy(place, point)?;
        self.keep(&tree)?;
        self.doomed.push((directory, name, is_directory));
        Ok(tree)
    }
}

fn file_system(id: u32) -> String {
    format!("fs-{id}")
}

fn make(directory: impl AsFd, name: &[u8], is_directory: bool) -> rustix::io::Result<()> {
    if is_directory {
        rustix::fs::mkdirat(directory, name, Mode::RWXU)
    } else {
        rustix::fs::mknodat(directory, name, FileType::RegularFile, Mode::RUSR | Mode::WUSR, 0)
    }
}

/// Opens a place by a path below the root directory `root`.
pub(super) fn open(root: impl AsFd, point: impl AsRef<[u8]>) -> rustix::io::Result<OwnedFd> {
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    rustix::fs::openat2(root, point.as_ref(), PLACE, Mode::empty(), resolve)
}

/// Opens a place on a mount.
pub(super) fn beneath(mount: impl AsFd, path: &[u8]) -> rustix::io::Result<OwnedFd> {
    let resolve = ResolveFlags::BENEATH
        | ResolveFlags::NO_SYMLINKS
        | ResolveFlags::NO_MAGICLINKS
        | ResolveFlags::NO_XDEV;
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    rustix::fs::openat2(mount, path, flags, Mode::empty(), resolve)
}

/// Puts a mount at a place.
pub(super) fn put(tree: impl AsFd, place: impl AsFd) -> rustix::io::Result<()> {
    let both = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(tree, c"", place, c"", both)
}

/// What is to be mounted, or where, is not there.
pub(super) fn missing(point: &Bytes, errno: Errno) -> Error {
    let why = nix::errno::Errno::from_raw(errno.raw_os_error()).desc();
    Error::Unsupported(format!("{point}: the job had mounted something there, and here: {why}"))
}

/// Opened by this process for itself.
pub(super) fn own(path: &str) -> Result<OwnedFd, Failure> {
    rustix::fs::openat(CWD, path, PLACE, Mode::empty()).doing(|| format!("open {path}"))
}

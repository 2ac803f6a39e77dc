//! Files without a name that somebody still has open, or is in.
//!
//! They are carried whole. At a restart each is made again in the directory where it was, under its last name if that is
//! free, opened as often as it was open, and deleted again. All that is one program: the name is there for microseconds.

use super::capture::Job;
use super::captured::{Content, Source};
use super::check::is_path;
use super::container;
use super::making::{Making, OPEN};
use super::{Description, Files, Object, Trouble, is_first};
use super::{pseudo, remains};
use crate::image::{Bytes, Image};
use crate::{Doing, Error, Failure};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat, Timespec, Timestamps};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::fs::File;
use std::os::fd::{BorrowedFd, OwnedFd, RawFd};

/// The flag of a description whose file was made without a name: O_TMPFILE without O_DIRECTORY, which belongs to it.
const TMPFILE: u32 = libc::O_TMPFILE as u32 & !(libc::O_DIRECTORY as u32);

/// How a symbolic link is opened itself.
const LINK: u32 = (libc::O_PATH | libc::O_NOFOLLOW) as u32;

/// A file without a name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Ghost {
    /// The last name that it had, from the container's root.
    pub path: Bytes,
    /// In which mount namespace.
    #[serde(default, skip_serializing_if = "is_first")]
    pub namespace: u32,
    /// Type and permissions, as stat(2) has them: a regular file, a directory, a FIFO or a symbolic link.
    pub mode: u32,
    /// Its owner and group, as the container knows them.
    pub owner: (u32, u32),
    /// When it was read and changed last.
    pub times: [(i64, u32); 2],
    /// The file of the image with its content.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content: Option<String>,
    /// The object of the job's memory that it is. Then the memory's restore makes and fills it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shared: Option<u32>,
    /// Where a symbolic link leads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<Bytes>,
    /// It is a file of `/proc` that shows this task, by its id in the job, which has ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task: Option<i32>,
}

/// A description of a file without a name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct GhostUse {
    /// Which one of [`Files::ghosts`].
    pub ghost: u32,
}

/// Which ghost has a device and an inode.
#[derive(Debug, Default)]
pub(super) struct Ghosts(HashMap<(u64, u64), u32>);

impl Job<'_> {
    /// The ghost behind `node`.
    pub(super) fn ghost(&mut self, node: usize, last: &[u8]) -> Result<GhostUse, Trouble> {
        let stat = self.graph.nodes[node].seen.stat;
        let (host, fd) = self.graph.place(node);
        self.ghost_at(&format!("/proc/{host}/fd/{fd}"), &stat, self.graph.nodes[node].seen.info.mount, last)
    }

    /// The ghost that a link of `/proc` leads to.
    pub(crate) fn ghost_at(
        &mut self,
        link: &str,
        stat: &Stat,
        mount: u64,
        last: &[u8],
    ) -> Result<GhostUse, Trouble> {
        let key = (stat.st_dev, stat.st_ino);
        if let Some(&ghost) = self.ghosts.0.get(&key) {
            return Ok(GhostUse { ghost });
        }
        let kind = FileType::from_raw_mode(stat.st_mode);
        let on = self.graph.mount(mount);
        let task = on.and_then(|on| remains::task(on, last));
        let known = [FileType::RegularFile, FileType::Directory, FileType::Fifo, FileType::Symlink];
        if !known.contains(&kind) || (kind == FileType::Symlink && task.is_some()) {
            let name = String::from_utf8_lossy(last).into_owned();
            return Err(Trouble::refused(name, format!("a deleted file of the kind {kind:?}")));
        }
        if task.is_none() && on.is_some_and(pseudo::is_made_up) {
            let name = String::from_utf8_lossy(last).into_owned();
            return Err(Trouble::refused(name, "the kernel has removed it"));
        }
        let ghost = self.files.ghosts.len() as u32;
        let shared = (self.carried)(stat.st_dev, stat.st_ino);
        let filled = kind == FileType::RegularFile && stat.st_size > 0 && shared.is_none() && task.is_none();
        let content = filled.then(|| format!("files/ghost-{ghost}"));
        if let Some(name) = content.clone().filter(|_| !self.running()) {
            let flags = OFlags::RDONLY | OFlags::CLOEXEC;
            let fd = rustix::fs::open(link, flags, Mode::empty()).doing(|| format!("open {link}"))?;
            self.contents.push(Content { name, source: Source::File(fd) });
        }
        let target = (kind == FileType::Symlink).then(|| target_of(link)).transpose()?;
        let time = |seconds, nanos: u64| (seconds, u32::try_from(nanos).unwrap_or(0));
        self.files.ghosts.push(Ghost {
            path: last.into(),
            namespace: self.graph.home(mount).0,
            mode: stat.st_mode,
            owner: self.graph.container.owner(stat.st_uid, stat.st_gid)?,
            times: [time(stat.st_atime, stat.st_atime_nsec), time(stat.st_mtime, stat.st_mtime_nsec)],
            content,
            shared,
            target,
            task,
        });
        self.ghosts.0.insert(key, ghost);
        Ok(GhostUse { ghost })
    }
}

/// Where the symbolic link leads that is open as `link`, a link of `/proc`.
fn target_of(link: &str) -> Result<Bytes, Failure> {
    let what = || format!("read the symbolic link {link}");
    let open = rustix::fs::open(link, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).doing(what)?;
    Ok(rustix::fs::readlinkat(&open, "", Vec::new()).doing(what)?.into_bytes().into())
}

impl Ghost {
    fn kind(&self) -> FileType {
        FileType::from_raw_mode(self.mode)
    }

    /// There can be such a file.
    pub(super) fn is_possible(&self) -> bool {
        let leads = self.target.as_ref().is_some_and(|target| !target.is_empty() && !target.contains(&0));
        let kind = match self.kind() {
            FileType::RegularFile | FileType::Directory => self.target.is_none(),
            FileType::Fifo => self.target.is_none() && self.task.is_none(),
            FileType::Symlink => leads && self.task.is_none(),
            _ => false,
        };
        kind && is_path(&self.path) && self.task.is_none_or(|task| task > 0)
    }

    /// Where it can be made for a moment: its last name, or one that nobody uses in the nearest directory that is there.
    fn birthplace(&self, id: u32, root: BorrowedFd<'_>) -> Result<Vec<u8>, Failure> {
        let mut directory = container::parent(&self.path);
        let is_directory = |path: &[u8]| {
            Ok(container::find(root, path)?.is_some_and(|s| s.st_mode & libc::S_IFMT == libc::S_IFDIR))
        };
        if is_directory(directory)? && container::find(root, &self.path)?.is_none() {
            return Ok(self.path.to_vec());
        }
        while directory != b"/" && !is_directory(directory)? {
            directory = container::parent(directory);
        }
        for attempt in 0_u32.. {
            let path = container::join(directory, format!(".ckrun-{id}-{attempt}").as_bytes());
            if container::find(root, &path)?.is_none() {
                return Ok(path);
            }
        }
        Ok(self.path.to_vec())
    }

    /// Makes it and every description of it.
    pub(super) fn make(&self, id: u32, files: &Files, making: &mut Making<'_>) -> Result<(), Failure> {
        let uses = files.descriptions.iter().enumerate().filter(
            |(_, description)| matches!(description.object, Object::Ghost(GhostUse { ghost }) if ghost == id),
        );
        if let Some(shared) = self.shared {
            let own = making.shared(shared);
            making.ghosts.push(own);
            for (at, description) in uses {
                // O_DIRECTORY is part of O_TMPFILE; here it would ask for a directory.
                let part = if description.flags & TMPFILE == 0 { 0 } else { libc::O_DIRECTORY as u32 };
                making.reopen(own, description.flags & !part, making.at(at as u32));
            }
            return Ok(());
        }
        let own = making.number();
        making.ghosts.push(own);
        making.go(self.namespace);
        if let Some(task) = self.task {
            return self.make_remains(task, own, uses, making);
        }
        let path = self.birthplace(id, making.root(self.namespace))?;
        let name = making.program.put_cstr(&path);
        let what = format!("make the deleted file {} again", self.path);
        let owner_only = 0o700;
        match self.kind() {
            FileType::Directory => {
                let args = [libc::AT_FDCWD.into(), name.into(), owner_only.into()];
                making.program.call(what, libc::SYS_mkdirat, &args);
                making.open(&path, (libc::O_RDONLY | libc::O_DIRECTORY) as u32, own);
            }
            FileType::Fifo => {
                let mode = libc::S_IFIFO | owner_only;
                let args = [libc::AT_FDCWD.into(), name.into(), mode.into(), 0.into()];
                making.program.call(what, libc::SYS_mknodat, &args);
                making.open(&path, (libc::O_RDWR | libc::O_NONBLOCK) as u32, own);
                let fifo = files.fifos.iter().enumerate().find(|(_, fifo)| fifo.ghost == Some(id));
                if let Some((fifo_id, fifo)) = fifo {
                    fifo.make(fifo_id as u32, &path, files, making);
                }
            }
            FileType::Symlink => {
                let target = making.program.put_cstr(self.target.as_deref().unwrap_or_default());
                let args = [target.into(), libc::AT_FDCWD.into(), name.into()];
                making.program.call(what, libc::SYS_symlinkat, &args);
                making.open(&path, LINK, own);
            }
            // It never had a name (O_TMPFILE), and linkat(2) may still give it one.
            _ if uses.clone().any(|(_, description)| description.flags & TMPFILE != 0) => {
                return self.make_nameless(&path, own, uses, making);
            }
            _ => {
                let flags = libc::O_RDWR | libc::O_CREAT | libc::O_EXCL | libc::O_CLOEXEC | libc::O_NOFOLLOW;
                let args = [libc::AT_FDCWD.into(), name.into(), flags.into(), owner_only.into()];
                let made = making.program.call(what, libc::SYS_openat, &args);
                making.put_at(made.into(), own);
            }
        }
        let link = if self.kind() == FileType::Symlink { LINK } else { 0 };
        making.give_to(own, self.owner);
        for (at, description) in uses {
            making.open(&path, description.flags & OPEN | link, making.at(at as u32));
        }
        let flags = if self.kind() == FileType::Directory { libc::AT_REMOVEDIR } else { 0 };
        let what = format!("delete {} again", self.path);
        making.program.call(what, libc::SYS_unlinkat, &[libc::AT_FDCWD.into(), name.into(), flags.into()]);
        Ok(())
    }

    /// Makes it as open(2) does for O_TMPFILE.
    fn make_nameless<'a>(
        &self,
        path: &[u8],
        own: RawFd,
        uses: impl Iterator<Item = (usize, &'a Description)> + Clone,
        making: &mut Making<'_>,
    ) -> Result<(), Failure> {
        let Some((first, description)) =
            uses.clone().find(|(_, description)| description.flags & TMPFILE != 0)
        else {
            return Ok(());
        };
        // What F_SETFL can set comes later: it would be in the way of the content.
        let kept = description.flags & (libc::O_ACCMODE | libc::O_SYNC) as u32;
        let flags = kept | (libc::O_TMPFILE | libc::O_CLOEXEC) as u32;
        let directory = making.program.put_cstr(container::parent(path));
        let what = format!("make the nameless file {} again", self.path);
        let args = [libc::AT_FDCWD.into(), directory.into(), flags.into(), 0o600.into()];
        let made = making.program.call(what, libc::SYS_openat, &args);
        making.put_at(made.into(), own);
        making.give_to(own, self.owner);
        for (at, description) in uses {
            let to = making.at(at as u32);
            if at == first { making.copy(own, to) } else { making.reopen(own, description.flags, to) }
        }
        Ok(())
    }

    /// Gives it its content and its looks: `fd` is the descriptor by which it was made.
    pub(super) fn fill(&self, fd: OwnedFd, image: &Image) -> Result<(), Error> {
        if self.shared.is_some() || self.task.is_some() {
            return Ok(());
        }
        let what = || format!("fill the deleted file {}", self.path);
        let file = File::from(fd);
        let [last_access, last_modification] =
            self.times.map(|(tv_sec, nanos)| Timespec { tv_sec, tv_nsec: nanos.into() });
        let times = Timestamps { last_access, last_modification };
        if self.kind() == FileType::Symlink {
            // Its permissions are nobody's choice.
            return Ok(rustix::fs::utimensat(&file, "", &times, AtFlags::EMPTY_PATH).doing(what)?);
        }
        if let Some(name) = &self.content {
            image.copy(name, &file)?;
        }
        rustix::fs::fchmod(&file, Mode::from_raw_mode(self.mode & 0o7777)).doing(what)?;
        rustix::fs::futimens(&file, &times).doing(what)?;
        Ok(())
    }
}

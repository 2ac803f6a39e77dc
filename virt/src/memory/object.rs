//! What mappings show besides private memory: files, and memory that processes share. The job has one list of them; a
//! mapping, an executable or a descriptor names an object by its place in it.

use super::{build_id, segment};
use crate::fd::{DELETED, mount_id, other_name};
use crate::image::Bytes;
use crate::mounts::Space;
use crate::namespace::{self, Namespace};
use crate::{Doing, Failure};
use nix::errno::Errno;
use nix::unistd::Pid;
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, Stat};
use serde::{Deserialize, Serialize};
use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

/// A file or a piece of shared memory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Object {
    /// The device that it was on, as stat(2) tells it.
    pub device: u64,
    /// Its inode there.
    pub inode: u64,
    /// Bytes.
    pub size: u64,
    /// Type and permissions, as stat(2) tells them.
    pub mode: u32,
    /// The owner in the container's eyes can't be told from outside; this is the host's.
    pub owner: (u32, u32),
    /// What it is.
    pub kind: Kind,
}

/// Where an object comes from at a restart.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Kind {
    /// A file of the container. It is not carried: the container has it at a restart.
    File {
        /// From the container's root.
        path: Bytes,
        /// When it was changed last: seconds and nanoseconds.
        modified: (i64, u32),
        /// The linker's name for what is in it, where it is a program or a library that has one: hexadecimal digits.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        build: Option<String>,
        /// In which mount namespace; 0 is that of the first process.
        #[serde(default, skip_serializing_if = "crate::fd::is_first")]
        namespace: u32,
    },
    /// A file without a name any more. Its content is carried.
    Deleted {
        /// Its last name.
        path: Bytes,
    },
    /// Memory of `mmap(MAP_SHARED | MAP_ANONYMOUS)`. Its content is carried.
    Shared {
        /// Bytes of a page when it is of huge pages, else 0.
        huge: u64,
    },
    /// Memory of memfd_create(2). Its content is carried.
    Memfd {
        /// Its name.
        name: Bytes,
        /// `F_SEAL_*`.
        seals: u32,
        /// Bytes of a page when it is of huge pages, else 0.
        huge: u64,
    },
    /// A System V shared memory segment. Its content is carried.
    Segment {
        /// Its id in the job's IPC namespace.
        id: i32,
        /// Its key.
        key: i32,
        /// User and group that made it.
        creator: (u32, u32),
        /// It is kept from being swapped (SHM_LOCK).
        locked: bool,
        /// It goes with its last attachment (IPC_RMID).
        doomed: bool,
        /// Bytes of a page when it is of huge pages, else 0.
        #[serde(default, skip_serializing_if = "is_zero")]
        huge: u64,
    },
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde asks for a reference")]
fn is_zero(bytes: &u64) -> bool {
    *bytes == 0
}

impl Object {
    /// The image holds its content.
    pub fn carried(&self) -> bool {
        !matches!(self.kind, Kind::File { .. })
    }
}

/// Why something can't be carried, and what can be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Obstacle {
    /// The thing: `mapping 7f00-7f01 of /dev/mem`.
    pub what: String,
    /// The reason.
    pub why: String,
    /// What to do about it.
    pub remedy: Option<String>,
}

impl Obstacle {
    pub(super) fn new(what: impl Into<String>, why: impl Into<String>) -> Self {
        Obstacle { what: what.into(), why: why.into(), remedy: None }
    }
}

/// How the kernel names the file of a mapping.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Name {
    pub device: (u32, u32),
    pub inode: u64,
    pub path: Vec<u8>,
}

/// The objects of a job, as they are found in its processes.
#[derive(Debug)]
pub struct Census {
    objects: Vec<Object>,
    /// `/proc/PID/…` by which an object can be opened as long as that process is stopped.
    links: Vec<String>,
    known: HashMap<Name, Result<u32, Obstacle>>,
    /// The mount namespaces of the job, that of the first process first, and the ids of their mounts.
    spaces: Vec<(HashSet<u64>, Arc<Space>)>,
    /// The job's IPC namespace, if it has one of its own.
    ipc: Option<Namespace>,
    /// The device of the kernel's own tmpfs, which memfds and shared memory are on.
    memory: u64,
    /// The most bytes of one deleted file that are carried.
    limit: u64,
}

impl Census {
    /// An empty list for the process `pid`, where a deleted file may have at most `limit` bytes.
    ///
    /// # Errors
    /// `ESRCH`.
    pub fn of(pid: Pid, limit: u64) -> Result<Self, Failure> {
        Self::new(pid, &Space::all(&[pid])?, limit)
    }

    /// An empty list. `spaces` are the mount namespaces of the job, whose first process is `init`; `limit` is the most bytes
    /// that a deleted file may have.
    ///
    /// # Errors
    /// `ESRCH`.
    pub(crate) fn new(init: Pid, spaces: &[Arc<Space>], limit: u64) -> Result<Self, Failure> {
        let ids = |space: &Space| space.lines().iter().map(|line| line.id).collect();
        let spaces = spaces.iter().map(|space| (ids(space), Arc::clone(space))).collect();
        let probe = rustix::fs::memfd_create(c"ckrun", rustix::fs::MemfdFlags::CLOEXEC);
        let stat = probe.and_then(rustix::fs::fstat).doing(|| "look at a memfd")?;
        Ok(Census {
            objects: Vec::new(),
            links: Vec::new(),
            known: HashMap::new(),
            spaces,
            ipc: Namespace::of(init, namespace::Kind::Ipc)?,
            memory: stat.st_dev,
            limit,
        })
    }

    /// The list, in the order of the ids.
    pub fn objects(&self) -> &[Object] {
        &self.objects
    }

    /// The object that a descriptor with this device and inode is of, if it has been found in a mapping.
    pub fn find(&self, device: u64, inode: u64) -> Option<u32> {
        let same =
            |o: &Object| (o.device, o.inode) == (device, inode) && !matches!(o.kind, Kind::Segment { .. });
        self.objects.iter().position(same).map(|at| at as u32)
    }

    /// Opens object `id` for reading. The process that it was found in must be there still.
    ///
    /// # Errors
    /// The kernel's.
    pub fn open(&self, id: u32) -> Result<File, Failure> {
        if let Some(Object { kind: Kind::Segment { id, .. }, .. }) = self.objects.get(id as usize) {
            let namespace =
                self.ipc().ok_or_else(|| Failure::new("find the IPC namespace", Errno::ENOENT))?;
            return segment::open(namespace, *id);
        }
        let link = self.links.get(id as usize).map(String::as_str).unwrap_or_default();
        File::open(link).doing(|| format!("open {link}"))
    }

    /// Reads the build ids of the files, as long as the processes that they were found in are there. Who watches the files is
    /// told: a job that does so must have been looked at before.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) fn name_builds(&mut self) -> Result<(), Failure> {
        for (object, link) in self.objects.iter_mut().zip(&self.links) {
            if let Kind::File { build, .. } = &mut object.kind {
                // Of a file of FUSE, whose server is told of each close(2), this also takes what was written to mappings of
                // it to the server (the kernel's fuse_flush), before its plugin saves.
                *build = build_id::of(&File::open(link).doing(|| format!("open {link}"))?);
            }
        }
        Ok(())
    }

    /// The object behind `link`, a link of `/proc/PID` to an open or mapped file that the kernel calls `name`.
    pub(super) fn enter(&mut self, name: Name, link: &str) -> Result<Result<u32, Obstacle>, Failure> {
        if let Some(known) = self.known.get(&name) {
            return Ok(known.clone());
        }
        let stat = rustix::fs::stat(link).doing(|| format!("look at {link}"))?;
        let found = match self.kind(&name.path, &stat, link)? {
            Ok(Kind::Segment { id, huge, .. }) => {
                let namespace =
                    self.ipc().ok_or_else(|| Failure::new("find the IPC namespace", Errno::ENOENT))?;
                let object = segment::look(namespace, id, huge)?;
                Ok(self.push(object, String::new()))
            }
            // Who mapped a file under another name that it had has the same memory.
            Ok(kind @ Kind::Deleted { .. }) => {
                let known = self.find(stat.st_dev, stat.st_ino);
                Ok(known.unwrap_or_else(|| self.add(kind, &stat, link)))
            }
            Ok(kind) => Ok(self.add(kind, &stat, link)),
            Err(obstacle) => Err(obstacle),
        };
        self.known.insert(name, found.clone());
        Ok(found)
    }

    /// The executable of process `host`.
    pub(super) fn executable(&mut self, host: Pid) -> Result<Result<u32, Obstacle>, Failure> {
        let link = format!("/proc/{host}/exe");
        let path = std::fs::read_link(&link).doing(|| format!("read {link}"))?;
        let stat = rustix::fs::stat(&link).doing(|| format!("look at {link}"))?;
        let device = (rustix::fs::major(stat.st_dev), rustix::fs::minor(stat.st_dev));
        let path = path.as_os_str().as_bytes().to_owned();
        self.enter(Name { device, inode: stat.st_ino, path }, &link)
    }

    fn add(&mut self, kind: Kind, stat: &Stat, link: &str) -> u32 {
        let object = Object {
            device: stat.st_dev,
            inode: stat.st_ino,
            size: stat.st_size.cast_unsigned(),
            mode: stat.st_mode,
            owner: (stat.st_uid, stat.st_gid),
            kind,
        };
        self.push(object, link.to_owned())
    }

    pub(super) fn push(&mut self, object: Object, link: String) -> u32 {
        self.objects.push(object);
        self.links.push(link);
        (self.objects.len() - 1) as u32
    }

    /// The job's IPC namespace, if it has one of its own.
    pub(crate) fn ipc(&self) -> Option<&Namespace> {
        self.ipc.as_ref()
    }

    /// The kind of a System V segment, whose inode's number is its id.
    fn segment(&self, stat: &Stat, link: &str) -> Result<Result<Kind, &'static str>, Failure> {
        let own = match self.ipc() {
            Some(namespace) => segment::is_in(link, namespace)?,
            None => false,
        };
        if !own {
            return Ok(Err(
                "a System V shared memory segment, in an IPC namespace that is not the job's own",
            ));
        }
        let (id, huge) = (stat.st_ino as i32, huge_page_of(link)?);
        Ok(Ok(Kind::Segment { id, key: 0, creator: (0, 0), locked: false, doomed: false, huge }))
    }

    fn kind(&self, path: &[u8], stat: &Stat, link: &str) -> Result<Result<Kind, Obstacle>, Failure> {
        let refuse = |why: &str| Ok(Err(Obstacle::new(String::from_utf8_lossy(path), why)));
        // Only what is on no mounted file system can have these names: a file of the container that pretends to loses
        // nothing, since the content of both is carried.
        let gone = path.strip_suffix(DELETED).filter(|_| rustix::fs::major(stat.st_dev) == 0);
        match gone {
            Some(b"/secretmem") => return refuse("memory of memfd_secret, which nobody else can read"),
            Some(b"/[aio]") => {
                return refuse("the ring of an asynchronous I/O context, not mapped as a ring");
            }
            _ => {}
        }
        if let Some(gone) = gone.filter(|_| stat.st_nlink == 0) {
            if let Some(name) = gone.strip_prefix(b"/memfd:") {
                return Ok(Ok(Kind::Memfd {
                    name: name.into(),
                    seals: seals_of(link)?,
                    huge: huge_page_of(link)?,
                }));
            }
            if matches!(gone, b"/dev/zero" | b"/anon_hugepage") {
                return Ok(Ok(Kind::Shared { huge: huge_page_of(link)? }));
            }
            if gone.starts_with(b"/SYSV") {
                let found = self.segment(stat, link)?;
                return Ok(found.map_err(|why| Obstacle::new(String::from_utf8_lossy(path), why)));
            }
            if stat.st_dev == self.memory {
                return refuse("memory of a kernel driver");
            }
        }
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => {}
            // A private mapping of it is anonymous memory.
            FileType::CharacterDevice if stat.st_rdev == rustix::fs::makedev(1, 5) => {}
            FileType::CharacterDevice | FileType::BlockDevice => return refuse("a mapping of a device"),
            _ => return refuse("not a file that can be opened again"),
        }
        let (namespace, root) = self.home(link)?;
        let gone = path.strip_suffix(DELETED);
        let named = if same_at(root, path, stat)? {
            Some(path.to_vec())
        } else {
            // sem_open(3) writes a new semaphore under a passing name, and gives it its own by link(2).
            let linked = gone.filter(|last| stat.st_nlink > 0 && last.starts_with(b"/"));
            linked.map_or(Ok(None), |last| other_name(root, last, stat))?
        };
        if let Some(path) = named {
            let modified = (stat.st_mtime, stat.st_mtime_nsec as u32);
            return Ok(Ok(Kind::File { path: path.as_slice().into(), modified, build: None, namespace }));
        }
        if stat.st_nlink > 0 {
            let now = std::fs::read_link(link);
            let unlinked = rustix::fs::stat(link).is_ok_and(|now| now.st_nlink == 0);
            if unlinked || now.map_or(true, |now| now.as_os_str().as_bytes() != path) {
                // A running job has just deleted or unmapped it, or mapped another one there: who looks again sees that.
                return Err(Failure::new(
                    format!("look at {}", String::from_utf8_lossy(path)),
                    Errno::ENOENT,
                ));
            }
            return refuse("the file that is mapped is not found under its name in the container");
        }
        if stat.st_size.cast_unsigned() > self.limit {
            let mut obstacle = Obstacle::new(
                String::from_utf8_lossy(path),
                format!(
                    "a deleted file of {} bytes, more than the {} that are carried",
                    stat.st_size, self.limit
                ),
            );
            obstacle.remedy = Some("end the process that has it mapped, or keep the file".into());
            return Ok(Err(obstacle));
        }
        Ok(Ok(Kind::Deleted { path: gone.unwrap_or(path).into() }))
    }

    /// The mount namespace that has what `link` leads to, and its root; the first one if there is none.
    fn home(&self, link: &str) -> Result<(u32, BorrowedFd<'_>), Failure> {
        let mount = if self.spaces.len() < 2 { 0 } else { mount_id(link)? };
        let home = (0..).zip(&self.spaces).find(|(_, (mounts, _))| mounts.contains(&mount));
        let first = self.spaces.first().map(|(_, space)| (0, space.root.as_fd()));
        let home = home.map(|(number, (_, space))| (number, space.root.as_fd())).or(first);
        home.ok_or_else(|| Failure::new("find the container's root", Errno::ESRCH))
    }
}

/// The file is what the container with this root directory finds at `path`.
fn same_at(root: BorrowedFd<'_>, path: &[u8], stat: &Stat) -> Result<bool, Failure> {
    if !path.starts_with(b"/") {
        return Ok(false);
    }
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let opened = rustix::fs::openat2(root, path, flags, Mode::empty(), ResolveFlags::IN_ROOT);
    let what = || format!("look at {} in the container", String::from_utf8_lossy(path));
    match opened.and_then(|fd| rustix::fs::fstat(fd.as_fd())) {
        Ok(there) => Ok((there.st_dev, there.st_ino) == (stat.st_dev, stat.st_ino)),
        Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR | rustix::io::Errno::NAMETOOLONG) => {
            Ok(false)
        }
        Err(errno) => Err(errno).doing(what),
    }
}

/// Bytes of a page of a file on a hugetlbfs, 0 for other files.
pub(super) fn huge_page_of(link: &str) -> Result<u64, Failure> {
    const HUGETLBFS: i64 = 0x9584_58f6;
    let fs = rustix::fs::statfs(link).doing(|| format!("look at the file system of {link}"))?;
    Ok(if fs.f_type == HUGETLBFS { fs.f_bsize.cast_unsigned() } else { 0 })
}

fn seals_of(link: &str) -> Result<u32, Failure> {
    let file = File::open(link).doing(|| format!("open {link}"))?;
    match rustix::fs::fcntl_get_seals(&file) {
        Ok(seals) => Ok(seals.bits()),
        // A memfd of before MFD_ALLOW_SEALING existed.
        Err(rustix::io::Errno::INVAL) => Ok(0),
        Err(errno) => {
            Err(Failure::new(format!("read the seals of {link}"), Errno::from_raw(errno.raw_os_error())))
        }
    }
}

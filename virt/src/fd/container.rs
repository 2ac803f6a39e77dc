//! The file systems of the container, as they are seen from outside.

use crate::creds::translate;
use crate::mounts::Space;
use crate::tmpfs::mount_of;
use crate::{Doing, Failure};
use nix::unistd::Pid;
use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags, Stat, Statx, StatxFlags};
use rustix::io::Errno;
use std::cell::OnceCell;
use std::collections::HashMap;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::sync::Arc;

/// What a deleted file's link in `/proc` ends with.
pub(crate) const DELETED: &[u8] = b" (deleted)";

/// The root directory and the mounts of a job's first process, or of another mount namespace of the job.
#[derive(Debug)]
pub(crate) struct Container {
    space: Arc<Space>,
    /// By their ids, which are unique on the host as long as a mount is there.
    mounts: HashMap<u64, Mount>,
    /// The root directory itself.
    stat: Stat,
    mount: u64,
    /// What `/proc` calls the root directory, unless it is `/`: what the paths of all files begin with.
    prefix: Vec<u8>,
    init: Pid,
    /// `uid_map` and `gid_map` of the first process, when somebody has asked for them.
    ids: OnceCell<[Vec<u8>; 2]>,
}

/// One line of `/proc/PID/mountinfo`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mount {
    /// The device number of its file system: major and minor.
    pub device: (u32, u32),
    /// The directory of its file system that is mounted.
    pub root: Vec<u8>,
    /// Where.
    pub point: Vec<u8>,
    /// The type of the file system.
    pub kind: Vec<u8>,
    /// It can't be written through this mount.
    pub read_only: bool,
    /// It has peers, to which what is mounted on it is propagated.
    pub shared: bool,
}

impl Container {
    /// The container whose first process is `init`.
    #[cfg(test)]
    pub fn of(init: Pid) -> Result<Self, Failure> {
        let missing = || Failure::new("look at a container", nix::errno::Errno::ESRCH);
        Space::all(&[init])?.into_iter().next().ok_or_else(missing).and_then(|space| Self::first(space, init))
    }

    /// In the mount namespace of the job's first process, `init`.
    pub fn first(space: Arc<Space>, init: Pid) -> Result<Self, Failure> {
        let link = format!("/proc/{init}/root");
        let prefix = std::fs::read_link(&link).doing(|| format!("read {link}"))?.into_os_string().into_vec();
        Self::seen(space, if prefix == b"/" { Vec::new() } else { prefix }, init)
    }

    /// In another one.
    pub fn other(space: Arc<Space>, init: Pid) -> Result<Self, Failure> {
        Self::seen(space, Vec::new(), init)
    }

    fn seen(space: Arc<Space>, prefix: Vec<u8>, init: Pid) -> Result<Self, Failure> {
        let what = || "look at the root directory of the container";
        let stat = rustix::fs::fstat(&space.root).doing(what)?;
        let (mount, _) = mount_of(&space.root).doing(what)?;
        let mounts = parse_mounts(&space.text).into_iter().collect();
        Ok(Container { space, mounts, stat, mount, prefix, init, ids: OnceCell::new() })
    }

    /// The user and the group that the container knows by these ids of ckrun's user namespace. The highest number, which
    /// chown(2) takes for no change, stands for what it does not know.
    pub fn owner(&self, user: u32, group: u32) -> Result<(u32, u32), Failure> {
        let [users, groups] = match self.ids.get() {
            Some(maps) => maps,
            None => {
                let read = |name: &str| {
                    let path = format!("/proc/{}/{name}", self.init);
                    crate::proc::read(&path).doing(|| format!("read {path}"))
                };
                let maps = [read("uid_map")?, read("gid_map")?];
                self.ids.get_or_init(|| maps)
            }
        };
        let inside = |map: &[u8], id: u32| translate(map, id).unwrap_or(u32::MAX);
        Ok((inside(users, user), inside(groups, group)))
    }

    /// The mount of this id; None when it is none of the container's.
    pub fn mount(&self, id: u64) -> Option<&Mount> {
        self.mounts.get(&id)
    }

    /// All mounts.
    pub fn all(&self) -> impl Iterator<Item = &Mount> {
        self.mounts.values()
    }

    /// All mounts, by their ids.
    pub fn numbered(&self) -> impl Iterator<Item = (u64, &Mount)> {
        self.mounts.iter().map(|(id, mount)| (*id, mount))
    }

    /// The id of the mount that `path` leads to.
    pub fn mount_at(&self, path: &[u8]) -> Result<Option<u64>, Failure> {
        let what = || format!("look at {} in the container", String::from_utf8_lossy(path));
        let there = open(self.root(), path, OFlags::PATH)?;
        there.map(|there| mount_of(&there).doing(what)).transpose().map(|found| Some(found?.0))
    }

    /// The mounts of a type of file system.
    pub fn mounted<'a>(&'a self, kind: &'a [u8]) -> impl Iterator<Item = &'a Mount> {
        self.mounts.values().filter(move |mount| mount.kind == kind)
    }

    /// The container's root directory.
    pub fn root(&self) -> BorrowedFd<'_> {
        self.space.root.as_fd()
    }

    /// The mount namespace.
    pub fn space(&self) -> &Space {
        &self.space
    }

    /// A path as `/proc` shows it, from the container's root.
    pub fn relative(&self, path: Vec<u8>) -> Vec<u8> {
        match path.strip_prefix(self.prefix.as_slice()) {
            Some(b"") if !self.prefix.is_empty() => b"/".to_vec(),
            Some(rest) if !self.prefix.is_empty() && rest.starts_with(b"/") => rest.to_vec(),
            _ => path,
        }
    }

    /// The directory that `link`, a link of `/proc`, leads to is the container's root. So it is for most, and one call tells.
    pub fn is_root(&self, link: &str) -> Result<bool, Failure> {
        let about = about(link, StatxFlags::INO | StatxFlags::MNT_ID)?;
        let device = rustix::fs::makedev(about.stx_dev_major, about.stx_dev_minor);
        let known = (self.mount, self.stat.st_dev, self.stat.st_ino);
        Ok((about.stx_mnt_id, device, about.stx_ino) == known)
    }

    /// The root is that of a mount, as runtimes leave it. It is not if the first process has called chroot(2) since.
    pub fn is_whole(&self) -> bool {
        self.mounts.values().any(|mount| mount.point == b"/")
    }

    /// What the container finds at `path`, which may be a symbolic link itself; None when there is nothing.
    pub fn find(&self, path: &[u8]) -> Result<Option<Stat>, Failure> {
        find(self.root(), path)
    }

    /// The file that `stat` is of is what the container finds at `path`.
    pub fn finds(&self, path: &[u8], stat: &Stat) -> Result<bool, Failure> {
        Ok(self.find(path)?.is_some_and(|there| same(&there, stat)))
    }

    /// Another name for the file `stat` in the directory that `path` is in.
    pub fn other_name(&self, path: &[u8], stat: &Stat) -> Result<Option<Vec<u8>>, Failure> {
        other_name(self.root(), path, stat)
    }
}

/// The mounts that process `pid` sees, by their ids, in the order in which the kernel lists them.
pub(crate) fn mounts(pid: Pid) -> Result<Vec<(u64, Mount)>, Failure> {
    let path = format!("/proc/{pid}/mountinfo");
    let text = crate::proc::read(&path).doing(|| format!("read {path}"))?;
    Ok(parse_mounts(&text))
}

/// The same of the mount namespace `space`.
pub(crate) fn mounted(space: &Space) -> Vec<(u64, Mount)> {
    parse_mounts(&space.text)
}

fn parse_mounts(text: &[u8]) -> Vec<(u64, Mount)> {
    text.split(|&b| b == b'\n').filter_map(parse_mount).collect()
}

/// Two answers of stat(2) are of one file.
pub(crate) fn same(a: &Stat, b: &Stat) -> bool {
    (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino)
}

/// What is at `path` below the root directory `root`: with stat(2)'s answer, not following a last symbolic link.
pub(crate) fn find(root: BorrowedFd<'_>, path: &[u8]) -> Result<Option<Stat>, Failure> {
    look(root, path, OFlags::NOFOLLOW)
}

/// Another name for the file `stat` in the directory below `root` that `path` is in.
pub(crate) fn other_name(root: BorrowedFd<'_>, path: &[u8], stat: &Stat) -> Result<Option<Vec<u8>>, Failure> {
    let directory = parent(path);
    let Some(fd) = open(root, directory, OFlags::RDONLY | OFlags::DIRECTORY)? else { return Ok(None) };
    let what = || format!("read the directory {}", String::from_utf8_lossy(directory));
    for entry in rustix::fs::Dir::read_from(&fd).doing(what)? {
        let entry = entry.doing(what)?;
        let name = entry.file_name();
        if rustix::fs::statat(&fd, name, AtFlags::SYMLINK_NOFOLLOW).is_ok_and(|there| same(&there, stat)) {
            return Ok(Some(join(directory, name.to_bytes())));
        }
    }
    Ok(None)
}

/// [`find`] as a program finds it that opens `path`.
pub(crate) fn find_followed(root: BorrowedFd<'_>, path: &[u8]) -> Result<Option<Stat>, Failure> {
    look(root, path, OFlags::empty())
}

/// Opens the regular file at `path` below the root directory `root` for reading.
pub(crate) fn open_followed(root: BorrowedFd<'_>, path: &[u8]) -> Result<Option<File>, Failure> {
    Ok(open(root, path, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY)?.map(File::from))
}

fn look(root: BorrowedFd<'_>, path: &[u8], flags: OFlags) -> Result<Option<Stat>, Failure> {
    let Some(fd) = open(root, path, OFlags::PATH | flags)? else { return Ok(None) };
    let what = || format!("look at {} in the container", String::from_utf8_lossy(path));
    rustix::fs::fstat(&fd).doing(what).map(Some)
}

fn open(root: BorrowedFd<'_>, path: &[u8], flags: OFlags) -> Result<Option<OwnedFd>, Failure> {
    if !path.starts_with(b"/") {
        return Ok(None);
    }
    match rustix::fs::openat2(root, path, flags | OFlags::CLOEXEC, Mode::empty(), ResolveFlags::IN_ROOT) {
        Ok(fd) => Ok(Some(fd)),
        Err(Errno::NOENT | Errno::NOTDIR | Errno::NAMETOOLONG | Errno::LOOP | Errno::SRCH) => Ok(None),
        Err(errno) => {
            Err(errno).doing(|| format!("look at {} in the container", String::from_utf8_lossy(path)))
        }
    }
}

/// The id of the mount that `path`, usually a link of `/proc/PID`, leads to.
pub(crate) fn mount_id(path: &str) -> Result<u64, Failure> {
    about(path, StatxFlags::MNT_ID).map(|about| about.stx_mnt_id)
}

fn about(path: &str, wanted: StatxFlags) -> Result<Statx, Failure> {
    let flags = AtFlags::NO_AUTOMOUNT;
    rustix::fs::statx(rustix::fs::CWD, path, flags, wanted).doing(|| format!("look at {path}"))
}

/// The directory that `path` is in.
pub(crate) fn parent(path: &[u8]) -> &[u8] {
    match path.iter().rposition(|&b| b == b'/') {
        None | Some(0) => b"/",
        Some(slash) => &path[..slash],
    }
}

/// A path in a directory.
pub(crate) fn join(directory: &[u8], name: &[u8]) -> Vec<u8> {
    let directory = directory.strip_suffix(b"/").unwrap_or(directory);
    [directory, b"/", name].concat()
}

impl Mount {
    /// `path`, which is on this mount, as its file system knows it: `/7/status` of a procfs for `/proc/7/status`.
    pub fn inside(&self, path: &[u8]) -> Vec<u8> {
        let rest = path.strip_prefix(self.point.as_slice()).unwrap_or(path);
        let rest = rest.strip_prefix(b"/").unwrap_or(rest);
        if rest.is_empty() { self.root.clone() } else { join(&self.root, rest) }
    }
}

/// `36 35 98:0 /root /point rw,noatime master:1 - ext3 /dev/root rw` (proc_pid_mountinfo(5)).
fn parse_mount(line: &[u8]) -> Option<(u64, Mount)> {
    let mut words = line.split(|&b| b == b' ');
    let id = std::str::from_utf8(words.next()?).ok()?.parse().ok()?;
    let (major, minor) = std::str::from_utf8(words.nth(1)?).ok()?.split_once(':')?;
    let device = (major.parse().ok()?, minor.parse().ok()?);
    let root = unescape(words.next()?);
    let point = unescape(words.next()?);
    let read_only = words.next()?.split(|&b| b == b',').any(|option| option == b"ro");
    let tags = words.by_ref().take_while(|&word| word != b"-");
    let shared = tags.fold(false, |shared, tag| shared | tag.starts_with(b"shared:"));
    let kind = words.next()?.to_owned();
    Some((id, Mount { device, root, point, kind, read_only, shared }))
}

/// Spaces and the like stand as three octal digits.
pub(crate) fn unescape(word: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(word.len());
    let mut rest = word;
    while let Some((&first, tail)) = rest.split_first() {
        let octal = (first == b'\\').then(|| tail.get(..3)).flatten();
        let code = octal.and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        bytes.push(code.unwrap_or(first));
        rest = if code.is_some() { &tail[3..] } else { tail };
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_is_read_with_its_odd_names() {
        let line = br"36 35 98:0 /sys /mnt/a\040b\134 rw,noatime master:1 shared:2 - proc proc rw";
        let (id, mount) = parse_mount(line).unwrap();
        let expected = Mount {
            device: (98, 0),
            root: b"/sys".into(),
            point: br"/mnt/a b\".into(),
            kind: b"proc".into(),
            read_only: false,
            shared: true,
        };
        assert_eq!((id, &mount), (36, &expected));
        assert_eq!(mount.inside(br"/mnt/a b\/kernel/x"), b"/sys/kernel/x");
        assert_eq!(mount.inside(br"/mnt/a b\"), b"/sys");
    }

    #[test]
    fn parents_and_names() {
        assert_eq!((parent(b"/a"), parent(b"/a/b"), parent(b"x")), (&b"/"[..], &b"/a"[..], &b"/"[..]));
        assert_eq!((join(b"/", b"a"), join(b"/a", b"b")), (b"/a".to_vec(), b"/a/b".to_vec()));
    }

    #[test]
    fn this_process_is_in_a_container_of_its_own() {
        let here = Container::of(Pid::this()).unwrap();
        let id = mount_id("/proc/self/cwd").unwrap();
        assert!(here.mount(id).is_some());
        let file = tempfile::NamedTempFile::new().unwrap();
        let stat = rustix::fs::fstat(file.as_file()).unwrap();
        let path = std::os::unix::ffi::OsStrExt::as_bytes(file.path().as_os_str()).to_vec();
        assert!(here.finds(&path, &stat).unwrap());
        let link = file.path().with_extension("link");
        std::fs::hard_link(file.path(), &link).unwrap();
        std::fs::remove_file(file.path()).unwrap();
        assert!(!here.finds(&path, &stat).unwrap());
        let other = here.other_name(&path, &stat).unwrap().unwrap();
        assert_eq!(other, std::os::unix::ffi::OsStrExt::as_bytes(link.as_os_str()));
        std::fs::remove_file(link).unwrap();
    }
}

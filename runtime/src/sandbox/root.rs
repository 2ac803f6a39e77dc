//! Paths inside the container's root file system.
//!
//! The file system may be hostile: any component of a path may be a symlink to `/`, to `..` or to a magic link, and may
//! change while it is looked at. So no path below the root is ever given to a system call that would resolve it on the
//! host: openat2(2) resolves it with the root as `/` (RESOLVE_IN_ROOT), and what follows works on the descriptor.

use ckrun_virt::{Doing, Failure};
use nix::errno::Errno;
use rustix::fs::{Mode, OFlags, ResolveFlags, mkdirat, openat, openat2, readlinkat};
use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

/// How many symlinks a path may lead through; the kernel's own limit (path_resolution(7)).
const MAX_LINKS: u32 = 40;

/// The root directory of a container.
#[derive(Debug)]
pub struct Root {
    fd: OwnedFd,
}

/// Whether the last component, and those before it, may be symlinks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Links {
    /// Followed, inside the root.
    Follow,
    /// An error (`ELOOP`).
    Refuse,
}

impl Root {
    /// Takes the directory that will be `/`.
    pub fn new(fd: OwnedFd) -> Self {
        Root { fd }
    }

    /// Opens an existing path as a place (O_PATH).
    pub fn open(&self, path: &Path, links: Links) -> Result<OwnedFd, Failure> {
        self.open_as(path, OFlags::PATH, links)
    }

    /// Opens an existing path with flags of open(2).
    pub fn open_as(&self, path: &Path, flags: OFlags, links: Links) -> Result<OwnedFd, Failure> {
        let mut resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        if links == Links::Refuse {
            resolve |= ResolveFlags::NO_SYMLINKS;
        }
        let path = if path.as_os_str().is_empty() { Path::new("/") } else { path };
        loop {
            // EAGAIN: a rename or mount raced with a `..` of the path, so the kernel could not vouch for it.
            match openat2(&self.fd, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve) {
                Err(rustix::io::Errno::AGAIN) => continue,
                other => return other.doing(|| format!("open {} in the container's root", path.display())),
            }
        }
    }

    /// Opens the directory `path`, making what is missing of it with mode 0755. A symlink that leads nowhere gets what
    /// it leads to, inside the root.
    ///
    /// # Errors
    /// `ENOTDIR` (something else is in the way), `ELOOP`, `EROFS`, …
    pub fn make_dir(&self, path: &Path, links: Links) -> Result<OwnedFd, Failure> {
        self.make_dir_within(path, links, MAX_LINKS)
    }

    fn make_dir_within(&self, path: &Path, links: Links, budget: u32) -> Result<OwnedFd, Failure> {
        match self.open_as(path, OFlags::PATH | OFlags::DIRECTORY, links) {
            Err(e) if e.errno == Errno::ENOENT => {}
            other => return other,
        }
        let mut made = PathBuf::from("/");
        let mut dir = self.open(&made, links)?;
        for name in names(path) {
            made.push(name);
            dir = match self.open_as(&made, OFlags::PATH | OFlags::DIRECTORY, links) {
                Err(e) if e.errno == Errno::ENOENT => match make_one(&dir, name, &made) {
                    Err(e) if e.errno == Errno::EEXIST && links == Links::Follow => {
                        self.make_dir_within(&dangling(&dir, name, &made, budget)?, links, budget - 1)?
                    }
                    other => other?,
                },
                other => other?,
            };
        }
        Ok(dir)
    }

    /// Opens the file `path`, making it, empty and with mode 0644, and its directories when missing. What exists is
    /// left as it is, whatever it is.
    pub fn make_file(&self, path: &Path) -> Result<OwnedFd, Failure> {
        self.make_file_within(path, MAX_LINKS)
    }

    fn make_file_within(&self, path: &Path, budget: u32) -> Result<OwnedFd, Failure> {
        match self.open(path, Links::Follow) {
            Err(e) if e.errno == Errno::ENOENT => {}
            other => return other,
        }
        let (dir, name) = self.parent(path)?;
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::RDONLY;
        match openat(&dir, name, flags, Mode::from_raw_mode(0o644)).doing(|| creating(path)) {
            // An /etc/resolv.conf that links to a file of /run which only a running system would have.
            Err(e) if e.errno == Errno::EEXIST => {
                self.make_file_within(&dangling(&dir, name, path, budget)?, budget - 1)
            }
            made => made.and_then(|_| self.open(path, Links::Follow)),
        }
    }

    /// The directory of `path`, made when missing, and the name in it.
    pub fn parent<'p>(&self, path: &'p Path) -> Result<(OwnedFd, &'p OsStr), Failure> {
        let name = path.file_name().ok_or_else(|| Failure::new(creating(path), Errno::EINVAL))?;
        Ok((self.make_dir(path.parent().unwrap_or(Path::new("/")), Links::Follow)?, name))
    }
}

impl AsFd for Root {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Where the symlink `name` in `dir` leads, as a path of the container; `whole` is its own path.
fn dangling(dir: &OwnedFd, name: &OsStr, whole: &Path, budget: u32) -> Result<PathBuf, Failure> {
    if budget == 0 {
        return Err(Failure::new(creating(whole), Errno::ELOOP));
    }
    let target = readlinkat(dir, name, Vec::new()).doing(|| creating(whole))?;
    // An absolute target replaces the whole path; openat2 takes its `/` for the root.
    Ok(whole.parent().unwrap_or(Path::new("/")).join(OsStr::from_bytes(target.as_bytes())))
}

fn creating(path: &Path) -> String {
    format!("create {} in the container's root", path.display())
}

fn make_one(dir: &OwnedFd, name: &OsStr, whole: &Path) -> Result<OwnedFd, Failure> {
    mkdirat(dir, name, Mode::from_raw_mode(0o755)).doing(|| creating(whole))?;
    // Just made by us; if somebody put a symlink in its place meanwhile, this refuses it.
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(dir, name, flags, Mode::empty()).doing(|| creating(whole))
}

/// The components of a path; `.` and the leading `/` add nothing, and `..` removes what is before it, as it does at
/// the top of a chroot.
fn names(path: &Path) -> Vec<&OsStr> {
    let mut names = Vec::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => names.push(name),
            Component::ParentDir => drop(names.pop()),
            _ => {}
        }
    }
    names
}

/// `path` with the root as its base: `/a/../b` becomes `/b`.
pub fn clean(path: &Path) -> PathBuf {
    let mut clean = PathBuf::from("/");
    clean.extend(names(path));
    clean
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn root() -> (tempfile::TempDir, Root) {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::new(std::fs::File::open(dir.path()).unwrap().into());
        (dir, root)
    }

    #[test]
    fn absolute_and_parent_symlinks_stay_inside() {
        let (dir, root) = root();
        symlink("/", dir.path().join("up")).unwrap();
        symlink("../../../..", dir.path().join("out")).unwrap();
        root.make_dir(Path::new("/up/one"), Links::Follow).unwrap();
        root.make_dir(Path::new("/out/two/three"), Links::Follow).unwrap();
        assert!(dir.path().join("one").is_dir());
        assert!(dir.path().join("two/three").is_dir());
    }

    #[test]
    fn a_magic_link_leads_nowhere() {
        let (dir, root) = root();
        symlink("/proc/self/root/etc", dir.path().join("magic")).unwrap();
        let e = root.open(Path::new("/magic/passwd"), Links::Follow).unwrap_err();
        assert_eq!(e.errno, Errno::ENOENT);
    }

    #[test]
    fn links_can_be_refused() {
        let (dir, root) = root();
        std::fs::create_dir(dir.path().join("real")).unwrap();
        symlink("real", dir.path().join("proc")).unwrap();
        assert_eq!(root.open(Path::new("/proc"), Links::Refuse).unwrap_err().errno, Errno::ELOOP);
        assert!(root.open(Path::new("/proc"), Links::Follow).is_ok());
    }

    #[test]
    fn a_dangling_link_gets_its_target_inside_the_root() {
        let (dir, root) = root();
        symlink("/run/resolv.conf", dir.path().join("file")).unwrap();
        symlink("../../run/data", dir.path().join("dir")).unwrap();
        root.make_file(Path::new("/file")).unwrap();
        root.make_dir(Path::new("/dir/deep"), Links::Follow).unwrap();
        assert!(dir.path().join("run/resolv.conf").is_file());
        assert!(dir.path().join("run/data/deep").is_dir());
    }

    #[test]
    fn links_in_a_circle_end() {
        let (dir, root) = root();
        symlink("b", dir.path().join("a")).unwrap();
        symlink("a", dir.path().join("b")).unwrap();
        assert_eq!(root.make_file(Path::new("/a")).unwrap_err().errno, Errno::ELOOP);
        assert_eq!(root.make_dir(Path::new("/a/c"), Links::Follow).unwrap_err().errno, Errno::ELOOP);
    }

    #[test]
    fn files_and_their_directories_are_made_once() {
        let (dir, root) = root();
        root.make_file(Path::new("/etc/deep/hosts")).unwrap();
        std::fs::write(dir.path().join("etc/deep/hosts"), "kept").unwrap();
        root.make_file(Path::new("/etc/deep/hosts")).unwrap();
        assert_eq!(std::fs::read(dir.path().join("etc/deep/hosts")).unwrap(), b"kept");
    }
}

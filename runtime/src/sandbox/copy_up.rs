//! tmpcopyup: a new tmpfs starts with what the directory below it held.

use ckrun_virt::{Doing, Failure};
use rustix::fs::{
    AtFlags, Dir, FileType, Mode, OFlags, Timespec, Timestamps, chmodat, chownat, mkdirat, mknodat, openat,
    readlinkat, statat, symlinkat, utimensat,
};
use std::ffi::CStr;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Copies the content of directory `from` into directory `to`, which may be detached from every mount namespace: by
/// descriptors only. Owner, mode and times are kept; sockets are left out.
pub fn copy(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Result<(), Failure> {
    let from = open_dir(from, c".")?;
    copy_entries(&from, &open_dir(to, c".")?)?;
    copy_attributes(from.as_fd(), to, c".", true)
}

fn open_dir(at: BorrowedFd<'_>, name: &CStr) -> Result<OwnedFd, Failure> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(at, name, flags, Mode::empty()).doing(|| format!("open directory {name:?}"))
}

fn copy_entries(from: &OwnedFd, to: &OwnedFd) -> Result<(), Failure> {
    for entry in Dir::read_from(from).doing(|| "read a directory")? {
        let entry = entry.doing(|| "read a directory")?;
        let name = entry.file_name();
        if name != c"." && name != c".." {
            copy_one(from.as_fd(), to.as_fd(), name)?;
        }
    }
    Ok(())
}

fn copy_one(from: BorrowedFd<'_>, to: BorrowedFd<'_>, name: &CStr) -> Result<(), Failure> {
    let stat = statat(from, name, AtFlags::SYMLINK_NOFOLLOW).doing(|| format!("stat {name:?}"))?;
    let mode = Mode::from_raw_mode(stat.st_mode & 0o7777);
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => {
            mkdirat(to, name, Mode::RWXU).doing(|| format!("mkdir {name:?}"))?;
            copy_entries(&open_dir(from, name)?, &open_dir(to, name)?)?;
        }
        FileType::RegularFile => {
            let reading = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let source = openat(from, name, reading, Mode::empty()).doing(|| format!("open {name:?}"))?;
            let writing = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
            let target = openat(to, name, writing, mode).doing(|| format!("create {name:?}"))?;
            // std::io::copy uses copy_file_range or sendfile where the file systems can.
            std::io::copy(&mut File::from(source), &mut File::from(target))
                .doing(|| format!("copy {name:?}"))?;
        }
        FileType::Symlink => {
            let target = readlinkat(from, name, Vec::new()).doing(|| format!("readlink {name:?}"))?;
            symlinkat(&*target, to, name).doing(|| format!("symlink {name:?}"))?;
        }
        FileType::Socket => return Ok(()),
        kind => mknodat(to, name, kind, mode, stat.st_rdev).doing(|| format!("mknod {name:?}"))?,
    }
    copy_attributes(from, to, name, FileType::from_raw_mode(stat.st_mode) != FileType::Symlink)
}

fn copy_attributes(
    from: BorrowedFd<'_>,
    to: BorrowedFd<'_>,
    name: &CStr,
    has_mode: bool,
) -> Result<(), Failure> {
    let stat = statat(from, name, AtFlags::SYMLINK_NOFOLLOW).doing(|| format!("stat {name:?}"))?;
    let owner = rustix::fs::Uid::from_raw(stat.st_uid);
    let group = rustix::fs::Gid::from_raw(stat.st_gid);
    chownat(to, name, Some(owner), Some(group), AtFlags::SYMLINK_NOFOLLOW)
        .doing(|| format!("chown {name:?}"))?;
    if has_mode {
        // After chown, which clears the set-user-id bits.
        let mode = Mode::from_raw_mode(stat.st_mode & 0o7777);
        chmodat(to, name, mode, AtFlags::empty()).doing(|| format!("chmod {name:?}"))?;
    }
    let times = Timestamps {
        last_access: Timespec { tv_sec: stat.st_atime, tv_nsec: stat.st_atime_nsec as _ },
        last_modification: Timespec { tv_sec: stat.st_mtime, tv_nsec: stat.st_mtime_nsec as _ },
    };
    utimensat(to, name, &times, AtFlags::SYMLINK_NOFOLLOW).doing(|| format!("set the times of {name:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    #[test]
    fn a_tree_arrives_with_its_owners_modes_and_links() {
        let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        std::fs::create_dir(a.path().join("d")).unwrap();
        std::fs::write(a.path().join("d/f"), "text").unwrap();
        std::fs::set_permissions(a.path().join("d/f"), PermissionsExt::from_mode(0o4751)).unwrap();
        std::os::unix::fs::chown(a.path().join("d"), Some(7), Some(8)).unwrap();
        symlink("d/f", a.path().join("l")).unwrap();
        let (from, to) = (File::open(a.path()).unwrap(), File::open(b.path()).unwrap());
        copy(from.as_fd(), to.as_fd()).unwrap();
        assert_eq!(std::fs::read(b.path().join("l")).unwrap(), b"text");
        let (dir, file) = (b.path().join("d").metadata().unwrap(), b.path().join("d/f").metadata().unwrap());
        assert_eq!((dir.uid(), dir.gid()), (7, 8));
        assert_eq!(file.mode() & 0o7777, 0o4751);
        assert_eq!(file.mtime_nsec(), a.path().join("d/f").metadata().unwrap().mtime_nsec());
    }
}

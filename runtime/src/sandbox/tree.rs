//! Trees of mounts by descriptor: made detached, attached whole (open_tree(2), move_mount(2)).

use ckrun_virt::{Doing, Failure};
use rustix::fs::{CWD, FileType, fstat};
use rustix::mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;

/// Whether the root of a tree is a directory.
pub fn is_dir(tree: BorrowedFd<'_>) -> Result<bool, Failure> {
    let stat = fstat(tree).doing(|| "stat the source of a mount")?;
    Ok(FileType::from_raw_mode(stat.st_mode) == FileType::Directory)
}

/// Attaches a detached tree to the place that `target` is.
pub fn attach_fd(tree: BorrowedFd<'_>, target: BorrowedFd<'_>) -> rustix::io::Result<()> {
    let both_empty = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(tree, c"", target, c"", both_empty)
}

/// A detached copy of the mount at `path` of the host; with `recursive`, of all that is mounted below too.
pub fn clone_path(path: &Path, recursive: bool) -> rustix::io::Result<OwnedFd> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    flags.set(OpenTreeFlags::AT_RECURSIVE, recursive);
    open_tree(CWD, path, flags)
}

/// A detached copy of the mount at the place that `fd` is.
pub fn clone_fd(fd: BorrowedFd<'_>, recursive: bool) -> rustix::io::Result<OwnedFd> {
    let mut flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    flags.set(OpenTreeFlags::AT_RECURSIVE, recursive);
    open_tree(fd, c"", flags)
}

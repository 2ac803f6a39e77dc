//! Small reads and writes of cgroup files.
//!
//! A cgroup file takes one value per write(2) and gives all it has from offset 0, so each access is an open, one
//! write (or reads up to the end) and a close: nothing of the standard library's size guessing.

use nix::errno::Errno;
use rustix::fs::{CWD, Mode, OFlags, openat};
use std::os::fd::OwnedFd;
use std::path::Path;

/// The result of an access whose caller knows better what it was for.
pub(super) type Io<T> = std::result::Result<T, Errno>;

/// Opens `dir/file`; nothing is ever created, because the kernel makes these files.
pub(super) fn open(dir: &Path, file: &str, flags: OFlags) -> Io<OwnedFd> {
    openat(CWD, dir.join(file), flags | OFlags::CLOEXEC, Mode::empty()).map_err(errno)
}

/// Writes one value.
pub(super) fn write(dir: &Path, file: &str, value: &str) -> Io<()> {
    put(&open(dir, file, OFlags::WRONLY)?, value)
}

/// Writes one value to an open cgroup file. The kernel takes it whole or not at all.
pub(super) fn put(file: &OwnedFd, value: &str) -> Io<()> {
    rustix::io::retry_on_intr(|| rustix::io::write(file, value.as_bytes())).map_err(errno)?;
    Ok(())
}

/// Reads a whole file. Bytes that are no UTF-8 (nothing in a cgroup file is) make it `EILSEQ`.
pub(super) fn read(dir: &Path, file: &str) -> Io<String> {
    drain(&open(dir, file, OFlags::RDONLY)?)
}

/// Reads an open file from its position to the end.
pub(super) fn drain(file: &OwnedFd) -> Io<String> {
    let mut text = Vec::new();
    let mut buffer = [0u8; 4096];
    loop {
        match rustix::io::retry_on_intr(|| rustix::io::read(file, &mut buffer)).map_err(errno)? {
            0 => return String::from_utf8(text).map_err(|_| Errno::EILSEQ),
            n => text.extend_from_slice(&buffer[..n]),
        }
    }
}

/// Reads a file that holds one number; `max` is `u64::MAX`.
pub(super) fn number(dir: &Path, file: &str) -> Io<u64> {
    match read(dir, file)?.trim_end() {
        "max" => Ok(u64::MAX),
        text => text.parse().map_err(|_| Errno::EINVAL),
    }
}

/// The value of `key` in a file of `key value` lines.
pub(super) fn keyed(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim_end().parse().ok())
}

/// Whether there is such a file or directory.
pub(super) fn exists(path: &Path) -> bool {
    rustix::fs::access(path, rustix::fs::Access::EXISTS).is_ok()
}

/// One errno for two crates.
pub(super) fn errno(e: rustix::io::Errno) -> Errno {
    Errno::from_raw(e.raw_os_error())
}

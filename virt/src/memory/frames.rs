//! Mapped rings of packet sockets (packet_mmap): the kernel's pages, which the socket has and the process sees.
//!
//! The socket of a restart gets rings of the same sizes, and they are mapped again. Where in a ring the kernel writes
//! next, it keeps to itself: a ring is carried as long as nothing has been in it.

use super::object::Obstacle;
use super::smaps::Entry;
use super::vma::{Prot, Span};
use crate::program::Program;
use crate::worker::Worker;
use crate::{Doing, Failure};
use nix::errno::Errno;
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::os::fd::RawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;

/// The rings of one socket, which are mapped as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Frames {
    /// Where.
    pub range: Span,
    /// How.
    pub prot: Prot,
    /// What is written is the kernel's to see.
    pub shared: bool,
    /// The inode number that the socket had.
    pub socket: u64,
}

/// The mapping is of a socket.
pub(super) fn is_socket(entry: &Entry<'_>) -> bool {
    entry.path.starts_with(b"socket:[") && entry.device.0 == 0
}

impl Frames {
    /// The rings that process `host` has mapped.
    pub(super) fn at(host: Pid, entry: &Entry<'_>) -> Result<Result<Frames, Obstacle>, Failure> {
        let name = String::from_utf8_lossy(entry.path);
        let refuse = |why| Ok(Err(Obstacle::new(format!("mapping {} of {name}", entry.range), why)));
        if !is_open(host, entry.path)? {
            return refuse("a mapped socket that the process has closed");
        }
        if !entry.prot.allows(Prot::READ) {
            return refuse("rings of a packet socket that nobody may read");
        }
        match is_empty(host, entry.range) {
            Ok(true) => {}
            Ok(false) => {
                return refuse(
                    "frames have been in the rings of a packet socket, and where the next one comes is not told",
                );
            }
            // The kernel puts pages there only with data: see TCP_ZEROCOPY_RECEIVE in linux/tcp.h.
            Err(e) if e.errno == Errno::EIO => {
                return refuse("a mapped socket that has no rings: TCP shows there what it has received");
            }
            Err(e) => return Err(e),
        }
        Ok(Ok(Frames { range: entry.range, prot: entry.prot, shared: entry.shared, socket: entry.inode }))
    }
}

/// The process has a descriptor of this name.
fn is_open(host: Pid, name: &[u8]) -> Result<bool, Failure> {
    let path = format!("/proc/{host}/fd");
    let entries = std::fs::read_dir(&path).doing(|| format!("read {path}"))?;
    let is = |entry: std::fs::DirEntry| {
        std::fs::read_link(entry.path()).is_ok_and(|link| link.as_os_str().as_bytes() == name)
    };
    Ok(entries.flatten().any(is))
}

fn is_empty(host: Pid, range: Span) -> Result<bool, Failure> {
    let what = || format!("read the frames at {range}");
    let memory = File::open(format!("/proc/{host}/mem")).doing(what)?;
    let mut page = vec![0; 1 << 16];
    let mut at = range.start;
    while at < range.end {
        let length = page.len().min((range.end - at) as usize);
        memory.read_exact_at(&mut page[..length], at).doing(what)?;
        if page[..length].iter().any(|&byte| byte != 0) {
            return Ok(false);
        }
        at += length as u64;
    }
    Ok(true)
}

/// Maps the rings of a process; `socket` finds the descriptor of the socket that had an inode number.
///
/// # Errors
/// The kernel's: `EINVAL` when the rings have another size.
pub(crate) fn map(
    worker: &mut Worker,
    frames: &[Frames],
    socket: &dyn Fn(u64) -> Option<RawFd>,
) -> Result<(), Failure> {
    let mut program = Program::new();
    for one in frames {
        let what = format!("map the rings of a packet socket at {}", one.range);
        let Some(fd) = socket(one.socket) else { return Err(Failure::new(what, Errno::EBADF)) };
        let kind = if one.shared { libc::MAP_SHARED } else { libc::MAP_PRIVATE };
        let flags = kind | libc::MAP_FIXED_NOREPLACE;
        let (at, length) = (one.range.start.into(), one.range.len().into());
        let args = [at, length, one.prot.bits().into(), flags.into(), fd.into(), 0.into()];
        program.call(what, libc::SYS_mmap, &args);
    }
    worker.run(&program).map(drop)
}

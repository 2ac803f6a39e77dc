//! The vDSO of a process: the kernel's code page in user space (vdso(7)).

use crate::{Doing, Failure};
use nix::errno::Errno;
use nix::unistd::Pid;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;

/// Where the vDSO of a process is, and what in it is of use to a tracer.
#[derive(Debug, Clone)]
pub struct Vdso {
    /// Its address range.
    pub range: Range<u64>,
    /// Zeroes after its end, up to the end of the page: executable, and read by nobody.
    pub padding: Range<u64>,
    /// The address of a `syscall` instruction.
    pub syscall: u64,
}

/// Finds the vDSO of `pid`, whose memory is open as `memory`.
///
/// # Errors
/// `ENOEXEC` when the process has none.
pub fn find(pid: Pid, memory: &File) -> Result<Vdso, Failure> {
    let path = format!("/proc/{pid}/maps");
    let maps = std::fs::read_to_string(&path).doing(|| format!("read {path}"))?;
    let none = || Failure::new(format!("find the vDSO of process {pid}"), Errno::ENOEXEC);
    let range = maps.lines().find(|l| l.ends_with("[vdso]")).and_then(range_of).ok_or_else(none)?;
    let mut bytes = vec![0; (range.end - range.start) as usize];
    memory.read_exact_at(&mut bytes, range.start).doing(|| format!("read the vDSO of process {pid}"))?;
    let used = bytes.iter().rposition(|&b| b != 0).map_or(0, |last| last + 1).next_multiple_of(64);
    let syscall = bytes.windows(2).position(|pair| pair == [0x0f, 0x05]).ok_or_else(none)?;
    Ok(Vdso { padding: range.start + used as u64..range.end, syscall: range.start + syscall as u64, range })
}

fn range_of(line: &str) -> Option<Range<u64>> {
    let (start, end) = line.split_once(' ')?.0.split_once('-')?;
    Some(u64::from_str_radix(start, 16).ok()?..u64::from_str_radix(end, 16).ok()?)
}

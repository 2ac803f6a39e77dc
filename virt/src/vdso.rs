//! The vDSO of a process: the kernel's code page in user space (vdso(7)); and what a tracer uses in place of it in a process
//! that has unmapped it.

use crate::stub;
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
    /// Its data, which lie in front of it.
    pub data: Range<u64>,
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
    let none = || Failure::new(format!("find the vDSO of process {pid}"), Errno::ENOEXEC);
    let maps = maps(pid)?;
    let range = maps.lines().find(|l| l.ends_with("[vdso]")).and_then(range_of).ok_or_else(none)?;
    // One or more mappings, of which the last ends where the code begins.
    let data =
        maps.lines().filter(|l| l.contains(" [vvar")).filter_map(range_of).map(|data| data.start).min();
    let data = data.unwrap_or(range.start)..range.start;
    let mut bytes = vec![0; (range.end - range.start) as usize];
    memory.read_exact_at(&mut bytes, range.start).doing(|| format!("read the vDSO of process {pid}"))?;
    let syscall = syscall_in(&bytes).ok_or_else(none)?;
    Ok(Vdso { padding: padding_of(&bytes, &range), syscall: range.start + syscall, data, range })
}

/// A `syscall` instruction and room for code in `pid`: in its vDSO, or, if it has unmapped that, in the code of its
/// programs, which ends like the vDSO with zeroes up to the end of a page. They belong to private mappings of files, so
/// that a write makes a copy.
///
/// # Errors
/// `ENOEXEC` when there is neither.
pub fn foothold(pid: Pid, memory: &File) -> Result<(u64, Range<u64>), Failure> {
    let found = find(pid, memory);
    if let Err(Failure { errno: Errno::ENOEXEC, .. }) = found {
        return substitute(pid, memory);
    }
    found.map(|vdso| (vdso.syscall, vdso.padding))
}

fn substitute(pid: Pid, memory: &File) -> Result<(u64, Range<u64>), Failure> {
    let (mut syscall, mut room) = (None, None);
    let maps = maps(pid)?;
    for line in maps.lines().filter(|line| line.contains(" r-xp ") && line.contains(" /")) {
        let Some(range) = range_of(line) else { continue };
        let mut bytes = vec![0; PIECE];
        // The last page, and the rest in pieces: a program can be large, and its first system call is not far.
        let last = range.end.saturating_sub(PAGE).max(range.start)..range.end;
        let tail = &mut bytes[..(last.end - last.start).min(PAGE) as usize];
        if room.is_none() && memory.read_exact_at(tail, last.start).is_ok() {
            let padding = padding_of(tail, &last);
            room = (padding.end.saturating_sub(padding.start) >= stub::ROOM).then_some(padding);
        }
        let mut at = range.start;
        while syscall.is_none() && at < range.end {
            let piece = &mut bytes[..(range.end - at).min(PIECE as u64) as usize];
            if memory.read_exact_at(piece, at).is_err() {
                break;
            }
            syscall = syscall_in(piece).map(|offset| at + offset);
            at += piece.len() as u64;
        }
        if let (Some(syscall), Some(room)) = (syscall, room.clone()) {
            return Ok((syscall, room));
        }
    }
    Err(Failure::new(format!("find room for code in process {pid}, which has no vDSO"), Errno::ENOEXEC))
}

const PAGE: u64 = 4096;
/// So many bytes of a program are searched at a time.
const PIECE: usize = 1 << 20;

fn maps(pid: Pid) -> Result<String, Failure> {
    let path = format!("/proc/{pid}/maps");
    let bytes = crate::proc::read(&path).doing(|| format!("read {path}"))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The offset of a `syscall` instruction.
fn syscall_in(code: &[u8]) -> Option<u64> {
    code.windows(2).position(|pair| pair == [0x0f, 0x05]).map(|offset| offset as u64)
}

/// What the code of a tracer begins with, at a multiple of 64 bytes. It is never run.
pub(crate) const MARK: [u8; 16] = *b"ckrun was here!\n";

/// The zeroes at the end of `bytes`, which are at `range`; what a tracer that was killed has left there is free as well.
fn padding_of(bytes: &[u8], range: &Range<u64>) -> Range<u64> {
    let left = bytes.chunks(64).position(|chunk| chunk.starts_with(&MARK)).map(|chunk| chunk * 64);
    let zeroes = || bytes.iter().rposition(|&b| b != 0).map_or(0, |last| last + 1).next_multiple_of(64);
    range.start + left.unwrap_or_else(zeroes) as u64..range.end
}

fn range_of(line: &str) -> Option<Range<u64>> {
    let (start, end) = line.split_once(' ')?.0.split_once('-')?;
    Some(u64::from_str_radix(start, 16).ok()?..u64::from_str_radix(end, 16).ok()?)
}

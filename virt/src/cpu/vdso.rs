//! Whether the vDSO of a checkpoint and that of the host that restores it are the same.
//!
//! Programs keep addresses into the vDSO: the C library looks up its functions once. So a restored process needs at the
//! old address either the same code, or at least the same entries.

use super::registers::hex;
use crate::{Doing, Failure};
use nix::errno::Errno;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use xxhash_rust::xxh3::xxh3_64;

/// More than any kernel's vDSO has.
const MOST: u64 = 1 << 20;

/// What identifies a vDSO.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Identity {
    /// The kernel it came from: release and version, as uname(2) gives them.
    pub kernel: String,
    /// Bytes, a multiple of the page size.
    pub size: u64,
    /// XXH3 of its bytes without the zeroes at its end. The kernel adapts a few instructions to the CPU when it boots,
    /// so that one kernel may have different bytes on different machines.
    #[serde(with = "hex")]
    pub bytes: u64,
    /// XXH3 of the names and addresses of its functions.
    #[serde(with = "hex")]
    pub entries: u64,
}

/// How well two vDSOs agree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Agreement {
    /// Not a byte differs.
    Same,
    /// Size and functions are the same, the code is not: good for every thread that isn't inside it.
    Entries,
    /// A program would jump to a wrong place, unless a [bridge](crate::memory::Bridge) is there.
    None,
}

impl Identity {
    /// Of the vDSO at `range` of the process whose memory is open as `memory`; that process runs on this kernel.
    ///
    /// # Errors
    /// `EIO` where nothing is mapped, `ENOEXEC` when it is no vDSO.
    pub fn of(memory: &File, range: &Range<u64>) -> Result<Identity, Failure> {
        let what = || format!("read the vDSO at {:#x}", range.start);
        let size = range.end.saturating_sub(range.start);
        if size > MOST {
            return Err(Failure::new(what(), Errno::ENOEXEC));
        }
        let mut bytes = vec![0; size as usize];
        memory.read_exact_at(&mut bytes, range.start).doing(what)?;
        let end = bytes.iter().rposition(|&b| b != 0).map_or(0, |last| last + 1);
        let functions = functions(&bytes).ok_or_else(|| Failure::new(what(), Errno::ENOEXEC))?;
        let entry = |(name, at): (Vec<u8>, u64)| [&name[..], b"\0", &at.to_le_bytes()].concat();
        let mut entries: Vec<Vec<u8>> = functions.into_iter().map(entry).collect();
        entries.sort();
        let uname = rustix::system::uname();
        let word = |word: &std::ffi::CStr| word.to_string_lossy().into_owned();
        Ok(Identity {
            kernel: format!("{} {}", word(uname.release()), word(uname.version())),
            size,
            bytes: xxh3_64(&bytes[..end]),
            entries: xxh3_64(&entries.concat()),
        })
    }

    /// How well this vDSO agrees with `other`.
    pub fn agreement(&self, other: &Identity) -> Agreement {
        match (self.size == other.size && self.entries == other.entries, self.bytes == other.bytes) {
            (true, true) => Agreement::Same,
            (true, false) => Agreement::Entries,
            (false, _) => Agreement::None,
        }
    }
}

/// Name and address of each function of an ELF image in memory.
pub fn functions(elf: &[u8]) -> Option<Vec<(Vec<u8>, u64)>> {
    const DYNSYM: u32 = 11;
    const SYMBOL: usize = 24;
    if elf.get(..5)? != b"\x7fELF\x02" {
        return None;
    }
    let u16_at = |at: usize| Some(u16::from_le_bytes(elf.get(at..at.checked_add(2)?)?.try_into().ok()?));
    let u32_at = |at: usize| Some(u32::from_le_bytes(elf.get(at..at.checked_add(4)?)?.try_into().ok()?));
    let u64_at = |at: usize| {
        let bytes = elf.get(at..at.checked_add(8)?)?.try_into().ok()?;
        usize::try_from(u64::from_le_bytes(bytes)).ok()
    };
    // The kernel's vDSO keeps its section headers, unlike an image that was loaded by segments.
    let headers = u64_at(40)?;
    let count = usize::from(u16_at(60)?);
    let header = |n: usize| headers.checked_add(64 * n);
    let symbols = (0..count).find_map(|n| header(n).filter(|&at| u32_at(at + 4) == Some(DYNSYM)))?;
    let (offset, size, link) = (u64_at(symbols + 24)?, u64_at(symbols + 32)?, u32_at(symbols + 40)?);
    let strings = u64_at(header(link as usize)? + 24)?;
    let table = elf.get(offset..offset.checked_add(size)?)?;
    table
        .chunks_exact(SYMBOL)
        // The address is 0 for what is only referred to.
        .filter(|symbol| symbol[8..16] != [0; 8])
        .map(|symbol| {
            let name = u32::from_le_bytes(symbol[..4].try_into().ok()?) as usize;
            let name = elf.get(strings.checked_add(name)?..)?.split(|&b| b == 0).next()?;
            Some((name.to_vec(), u64::from_le_bytes(symbol[8..16].try_into().ok()?)))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::process::{Command, Stdio};

    fn own() -> Identity {
        let memory = File::open("/proc/self/mem").unwrap();
        let vdso = crate::vdso::find(nix::unistd::Pid::this(), &memory).unwrap();
        Identity::of(&memory, &vdso.range).unwrap()
    }

    #[test]
    fn a_process_of_this_host_has_the_vdso_of_this_host() {
        let (input, output) = (Stdio::piped(), Stdio::piped());
        let mut child = Command::new("cat").stdin(input).stdout(output).spawn().unwrap();
        // Only a program that answers has a vDSO for sure: the kernel maps it late in an exec.
        child.stdin.as_mut().unwrap().write_all(b"!").unwrap();
        child.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
        let memory = File::open(format!("/proc/{}/mem", child.id())).unwrap();
        let vdso = crate::vdso::find(nix::unistd::Pid::from_raw(child.id().cast_signed()), &memory);
        let found = vdso.and_then(|vdso| Identity::of(&memory, &vdso.range));
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(found.unwrap().agreement(&own()), Agreement::Same);
    }

    #[test]
    fn the_functions_that_every_program_looks_for_are_found() {
        let memory = File::open("/proc/self/mem").unwrap();
        let range = crate::vdso::find(nix::unistd::Pid::this(), &memory).unwrap().range;
        let mut bytes = vec![0; (range.end - range.start) as usize];
        memory.read_exact_at(&mut bytes, range.start).unwrap();
        let found = functions(&bytes).unwrap();
        assert!(found.iter().any(|(name, _)| name == b"__vdso_clock_gettime"));
        // Cut anywhere, it is an error or fewer functions, not a crash.
        for end in (0..bytes.len()).step_by(97) {
            functions(&bytes[..end]);
        }
    }

    #[test]
    fn the_same_functions_may_have_other_code() {
        let here = own();
        let other = Identity { kernel: "5.0.0 #1".to_owned(), bytes: !here.bytes, ..here.clone() };
        assert_eq!(other.agreement(&here), Agreement::Entries);
        let far = Identity { entries: !here.entries, ..other };
        assert_eq!(far.agreement(&here), Agreement::None);
    }
}

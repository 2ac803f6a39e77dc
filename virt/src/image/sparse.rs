//! Contents with holes. A hole is neither read nor written, so a sparse file of a terabyte travels as fast as its data.

use super::{Digest, Result, error};
use crate::{Doing, Failure};
use nix::errno::Errno;
use rustix::fs::SeekFrom;
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use xxhash_rust::xxh3::{Xxh3, xxh3_128};

/// What is looked at for being zero.
const BLOCK: usize = 4096;
/// What is read at once.
const CHUNK: usize = 64 * BLOCK;

/// The size of a file's content and its [`Digest::Blocks`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Content {
    pub size: u64,
    pub digest: Digest,
}

/// Why a copy ended: each side has its own words.
pub(super) enum Side {
    Read(Errno),
    Write(Errno),
}

impl Side {
    pub(super) fn errno(self) -> Errno {
        match self {
            Side::Read(errno) | Side::Write(errno) => errno,
        }
    }
}

/// Digests the content of `from`, and copies it to the beginning of `to`, which must be an empty file, keeping holes
/// and making one of every aligned block of zeroes. The offset of `from` moves: it must not be shared with a job.
pub(super) fn copy(from: &File, to: Option<&File>) -> Result<Content, Side> {
    let read = |e: std::io::Error| Side::Read(error::errno(&e));
    let write = |e: std::io::Error| Side::Write(error::errno(&e));
    let size = from.metadata().map_err(read)?.len();
    if let Some(to) = to {
        to.set_len(size).map_err(write)?;
    }
    let mut sum = Xxh3::new();
    let mut buffer = vec![0; CHUNK.min(size.next_multiple_of(BLOCK as u64) as usize)];
    let mut at = 0;
    while let Some(data) = seek(from, at, size).map_err(Side::Read)? {
        at = data.start;
        while at < data.end {
            let len = (data.end - at).min(buffer.len() as u64) as usize;
            let chunk = &mut buffer[..len];
            from.read_exact_at(chunk, at).map_err(read)?;
            // Blocks side by side that are not zero are written at once.
            let mut begun = None;
            for (n, block) in chunk.chunks(BLOCK).enumerate() {
                let here = n * BLOCK;
                if is_zero(block) {
                    if let (Some(to), Some(from)) = (to, begun.take()) {
                        to.write_all_at(&chunk[from..here], at + from as u64).map_err(write)?;
                    }
                } else {
                    sum.update(&(at + here as u64).to_le_bytes());
                    sum.update(block);
                    begun.get_or_insert(here);
                }
            }
            if let (Some(to), Some(from)) = (to, begun) {
                to.write_all_at(&chunk[from..], at + from as u64).map_err(write)?;
            }
            at += len as u64;
        }
    }
    sum.update(&size.to_le_bytes());
    Ok(Content { size, digest: Digest::Blocks(sum.digest128()) })
}

/// The next data at or after `at`, widened to whole blocks; None when only a hole is left.
pub(crate) fn seek(file: &File, at: u64, size: u64) -> Result<Option<std::ops::Range<u64>>, Errno> {
    if at >= size {
        return Ok(None);
    }
    let raw = |e: rustix::io::Errno| Errno::from_raw(e.raw_os_error());
    let start = match rustix::fs::seek(file, SeekFrom::Data(at)) {
        Ok(start) => start,
        Err(rustix::io::Errno::NXIO) => return Ok(None),
        // A file system that knows nothing of holes has none.
        Err(rustix::io::Errno::INVAL) => return Ok(Some(at..size)),
        Err(e) => return Err(raw(e)),
    };
    if start >= size {
        return Ok(None);
    }
    let end = rustix::fs::seek(file, SeekFrom::Hole(start)).map_err(raw)?;
    let block = BLOCK as u64;
    // Holes may be smaller than a block here; what was widened into one reads as zeroes.
    Ok(Some(start / block * block..end.next_multiple_of(block).min(size)))
}

/// Nothing but zeroes.
pub(crate) fn is_zero(block: &[u8]) -> bool {
    let (words, rest) = block.as_chunks::<32>();
    words.iter().all(|word| *word == [0; 32]) && rest.iter().all(|&b| b == 0)
}

/// Opens the same file anew, for reading, with an offset of its own. Works for a file without a name too.
pub(super) fn reopen(file: impl AsFd, what: &Path) -> Result<File, Failure> {
    use std::os::fd::AsRawFd;
    File::open(format!("/proc/self/fd/{}", file.as_fd().as_raw_fd()))
        .doing(|| format!("open {}", what.display()))
}

/// The digest of `file`, which has `size` bytes, in the way that `like` is one.
pub(super) fn digest(file: &File, size: u64, like: Digest) -> Result<Digest, Errno> {
    match like {
        Digest::Blocks(_) => copy(file, None).map(|content| content.digest).map_err(Side::errno),
        Digest::Plain(_) => {
            let mut buffer = vec![0; (CHUNK as u64).min(size) as usize];
            let mut sum = Xxh3::new();
            let mut at = 0;
            while at < size {
                let len = (size - at).min(buffer.len() as u64) as usize;
                file.read_exact_at(&mut buffer[..len], at).map_err(|e| error::errno(&e))?;
                if at == 0 && len as u64 == size {
                    return Ok(Digest::Plain(xxh3_128(&buffer[..len])));
                }
                sum.update(&buffer[..len]);
                at += len as u64;
            }
            Ok(Digest::Plain(sum.digest128()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    fn file() -> File {
        tempfile::tempfile().unwrap()
    }

    fn copied(from: &File, to: Option<&File>) -> Content {
        copy(from, to).map_err(Side::errno).unwrap()
    }

    #[test]
    fn a_terabyte_of_hole_costs_nothing_and_stays_a_hole() {
        let (from, to) = (file(), file());
        from.set_len(1 << 40).unwrap();
        from.write_all_at(b"first", 0).unwrap();
        from.write_all_at(b"middle", (1 << 39) + 77).unwrap();
        from.write_all_at(b"last", (1 << 40) - 4).unwrap();
        let content = copied(&from, Some(&to));
        assert_eq!(content.size, 1 << 40);
        assert_eq!(copied(&to, None), content);
        assert!(to.metadata().unwrap().blocks() * 512 < 1 << 20);
        let mut word = [0; 6];
        to.read_exact_at(&mut word, (1 << 39) + 77).unwrap();
        assert_eq!(&word, b"middle");
    }

    #[test]
    fn zeroes_in_place_of_a_hole_have_the_same_digest() {
        for size in [0, 1, 4095, 4096, 4097, 300_000, 1 << 20] {
            let (holes, zeroes) = (file(), file());
            holes.set_len(size).unwrap();
            zeroes.write_all_at(&vec![0; size as usize], 0).unwrap();
            if size > 5000 {
                for file in [&holes, &zeroes] {
                    file.write_all_at(b"x", size / 2).unwrap();
                }
            }
            assert_eq!(copied(&holes, None), copied(&zeroes, None), "{size}");
        }
    }

    #[test]
    fn moved_data_and_another_length_have_another_digest() {
        let at = |offset, size| {
            let file = file();
            file.write_all_at(&[7; 4096], offset).unwrap();
            file.set_len(size).unwrap();
            copied(&file, None).digest
        };
        let all = [at(0, 1 << 20), at(4096, 1 << 20), at(1, 1 << 20), at(0, (1 << 20) + 1), at(0, 4096)];
        for (n, one) in all.iter().enumerate() {
            assert!(all[..n].iter().all(|other| other != one), "{n}");
        }
    }

    #[test]
    fn the_plain_digest_is_that_of_the_bytes_at_any_size() {
        for size in [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK + 5] {
            let bytes: Vec<u8> = (0..size).map(|n| n as u8).collect();
            let file = file();
            file.write_all_at(&bytes, 0).unwrap();
            assert_eq!(digest(&file, size as u64, Digest::Plain(0)), Ok(Digest::of(&bytes)), "{size}");
        }
    }
}

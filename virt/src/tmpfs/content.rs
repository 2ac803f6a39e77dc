//! The bytes of files: those of all files of a mount one after the other, without long stretches of zeroes.

use crate::error::Doing;
use crate::image::{FileWriter, StoredReader, is_zero, next_data};
use crate::{Error, Failure};
use nix::errno::Errno;
use std::fs::File;
use std::os::unix::fs::FileExt;

const BLOCK: usize = 4096;
/// What is read and written at once.
const CHUNK: usize = 64 * BLOCK;
/// Zeroes that are so many are left out; to name more places would cost more than they do.
const GAP: usize = 16 * BLOCK;

/// Offsets and lengths.
pub(super) type Ranges = Vec<(u64, u64)>;

/// Contents on their way into the image.
#[derive(Debug)]
pub(super) struct Pack<'w> {
    out: FileWriter<'w>,
    /// Small files wait until there are enough of them.
    waiting: Vec<u8>,
    chunk: Vec<u8>,
    pub bytes: u64,
}

impl<'w> Pack<'w> {
    pub fn new(out: FileWriter<'w>) -> Self {
        Pack { out, waiting: Vec::new(), chunk: vec![0; CHUNK], bytes: 0 }
    }

    /// Appends the content of a file that has `size` bytes. The answer is what of it was not left out.
    pub fn add(&mut self, file: &File, size: u64, name: &dyn Fn() -> String) -> Result<Ranges, Error> {
        let mut kept = Ranges::new();
        let mut at = 0;
        let mut chunk = std::mem::take(&mut self.chunk);
        while let Some(data) = extent(file, at, size).doing(|| format!("look for data in {}", name()))? {
            at = data.start;
            while at < data.end {
                let len = (data.end - at).min(CHUNK as u64) as usize;
                let bytes = &mut chunk[..len];
                file.read_exact_at(bytes, at).doing(|| format!("read {}", name()))?;
                self.keep(bytes, at, &mut kept)?;
                at += len as u64;
            }
        }
        self.chunk = chunk;
        Ok(kept)
    }

    fn keep(&mut self, bytes: &[u8], at: u64, kept: &mut Ranges) -> Result<(), Error> {
        each_run(bytes, |offset, run, zero| {
            if zero && run.len() >= GAP {
                return Ok(());
            }
            let (start, len) = (at + offset as u64, run.len() as u64);
            match kept.last_mut() {
                Some((first, length)) if *first + *length == start => *length += len,
                _ => kept.push((start, len)),
            }
            self.bytes += len;
            self.waiting.extend_from_slice(run);
            if self.waiting.len() >= CHUNK {
                self.flush()?;
            }
            Ok(())
        })
    }

    fn flush(&mut self) -> Result<(), Error> {
        self.out.append(&self.waiting)?;
        self.waiting.clear();
        Ok(())
    }

    pub fn finish(mut self) -> Result<(), Error> {
        self.flush()?;
        self.out.finish();
        Ok(())
    }
}

/// Where there is data at or after `at`. A small file is read without asking.
fn extent(file: &File, at: u64, size: u64) -> Result<Option<std::ops::Range<u64>>, Errno> {
    if size <= CHUNK as u64 { Ok((at < size).then_some(at..size)) } else { next_data(file, at, size) }
}

/// The parts of `bytes` that are, or are not, blocks of zeroes, with their offsets.
fn each_run<E>(bytes: &[u8], mut with: impl FnMut(usize, &[u8], bool) -> Result<(), E>) -> Result<(), E> {
    let mut begun: Option<(usize, bool)> = None;
    for (n, block) in bytes.chunks(BLOCK).enumerate() {
        let (here, zero) = (n * BLOCK, is_zero(block));
        match begun {
            Some((_, same)) if same == zero => continue,
            Some((from, other)) => with(from, &bytes[from..here], other)?,
            None => {}
        }
        begun = Some((here, zero));
    }
    begun.map_or(Ok(()), |(from, zero)| with(from, &bytes[from..], zero))
}

/// What is to be read for a file; None when its ranges are in disorder or beyond its end.
pub(super) fn check(size: u64, data: &[(u64, u64)]) -> Option<u64> {
    let (mut end, mut bytes) = (0, 0_u64);
    for &(start, len) in data {
        if start < end || len == 0 {
            return None;
        }
        end = start.checked_add(len)?;
        bytes += len;
    }
    (end <= size && size <= i64::MAX.cast_unsigned()).then_some(bytes)
}

/// Puts back what [`Pack::add`] has taken, into a new file; without one it is only read. What is zero stays a hole.
pub(super) fn copy(
    file: Option<&File>,
    data: &[(u64, u64)],
    from: &mut StoredReader<'_>,
    name: &dyn Fn() -> String,
) -> Result<(), Error> {
    each_chunk(data, from, |at, bytes| {
        let Some(file) = file else { return Ok(()) };
        each_run(
            bytes,
            |offset, run, zero| {
                if zero { Ok(()) } else { file.write_all_at(run, at + offset as u64) }
            },
        )
        .doing(|| format!("write {}", name()))
    })
}

fn each_chunk(
    data: &[(u64, u64)],
    from: &mut StoredReader<'_>,
    mut with: impl FnMut(u64, &[u8]) -> Result<(), Failure>,
) -> Result<(), Error> {
    let most = data.iter().map(|&(_, len)| len).max().unwrap_or(0).min(CHUNK as u64);
    let mut chunk = vec![0; most as usize];
    for &(start, len) in data {
        let mut done = 0;
        while done < len {
            let bytes = &mut chunk[..(len - done).min(CHUNK as u64) as usize];
            from.read(bytes)?;
            with(start + done, bytes)?;
            done += bytes.len() as u64;
        }
    }
    Ok(())
}

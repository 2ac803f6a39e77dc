//! Pages on their way from a process or a shared object into the image: read in batches, digested and written while
//! they are in the cache. Pages of zeroes are dropped where their absence means zeroes.

use super::vma::PAGE;
use crate::image::{MAX_RUN_PAGES, PageRun, PagesWriter};
use crate::{Doing, Error, Failure};
use nix::errno::Errno;
use nix::sys::uio::{RemoteIoVec, process_vm_readv};
use nix::unistd::Pid;
use std::fs::File;
use std::io::{IoSlice, IoSliceMut};
use std::os::unix::fs::FileExt;
use xxhash_rust::xxh3::{Xxh3Default, xxh3_64};

/// What is read at once: large enough for the call not to matter, small enough for the second-level cache.
pub(super) const CHUNK: u64 = 256 << 10;
/// Ranges of one call; the kernel takes 1024.
const PIECES: usize = 512;

/// Where pages come from.
#[derive(Debug, Clone, Copy)]
pub(super) enum Source<'a> {
    /// A stopped process and its `/proc/PID/mem`.
    Task(Pid, &'a File),
    /// A shared object.
    Object(&'a File),
}

/// Adjacent pages to be stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Piece {
    pub start: u64,
    pub end: u64,
    /// Counts mappings: a run does not go from one into the next.
    pub part: u32,
    /// Pages of zeroes are stored as well.
    pub zeroes: bool,
    /// process_vm_readv(2) is to be used: the process may read the pages itself, and no other process has them. That
    /// call pins what it reads, and the kernel makes a copy of a page that fork(2) has left shared before it pins it.
    /// What is read through `/proc/PID/mem` is left as it is.
    pub pin: bool,
    /// The image has these pages already, there: file and offset. Only their digest is wanted.
    pub stored: Option<(u16, u64)>,
}

impl Piece {
    pub fn len(&self) -> u64 {
        self.end - self.start
    }
}

/// One thread's share of the copying.
pub(super) struct Copier<'a> {
    source: Source<'a>,
    sink: &'a mut PagesWriter,
    buffer: Vec<u8>,
    pieces: Vec<Piece>,
    filled: u64,
    ranges: Vec<Range>,
    runs: Vec<PageRun>,
    open: Option<OpenRun>,
    /// Bytes of zeroes that were dropped.
    pub dropped: u64,
    /// Bytes that were written.
    pub written: u64,
}

/// A part of the buffer that is to be in the image.
struct Range {
    address: u64,
    start: usize,
    end: usize,
    part: u32,
    /// See [`Piece::stored`].
    stored: Option<(u16, u64)>,
}

/// The run that is being made.
struct OpenRun {
    run: PageRun,
    part: u32,
    sum: Xxh3Default,
}

impl<'a> Copier<'a> {
    pub fn new(source: Source<'a>, sink: &'a mut PagesWriter) -> Self {
        Copier {
            source,
            sink,
            buffer: Vec::new(),
            pieces: Vec::new(),
            filled: 0,
            ranges: Vec::new(),
            runs: Vec::new(),
            open: None,
            dropped: 0,
            written: 0,
        }
    }

    /// Stores a piece, sooner or later.
    pub fn add(&mut self, mut piece: Piece) -> Result<(), Error> {
        while piece.start < piece.end {
            let take = piece.len().min(CHUNK - self.filled);
            self.pieces.push(Piece { end: piece.start + take, ..piece });
            self.filled += take;
            piece.start += take;
            piece.stored = piece.stored.map(|(file, offset)| (file, offset + take));
            if self.filled == CHUNK || self.pieces.len() == PIECES {
                self.flush()?;
            }
        }
        Ok(())
    }

    /// Stores what is left and gives the runs, not in order.
    pub fn finish(mut self) -> Result<(Vec<PageRun>, u64, u64), Error> {
        self.flush()?;
        self.close();
        Ok((self.runs, self.written, self.dropped))
    }

    fn flush(&mut self) -> Result<(), Error> {
        if self.filled == 0 {
            return Ok(());
        }
        if self.buffer.is_empty() {
            self.buffer = vec![0; CHUNK as usize];
        }
        self.read()?;
        let pieces = std::mem::take(&mut self.pieces);
        let buffer = std::mem::take(&mut self.buffer);
        let done = self.store(&pieces, &buffer[..self.filled as usize]);
        (self.pieces, self.buffer, self.filled) = (pieces, buffer, 0);
        self.pieces.clear();
        done
    }

    /// Fills the buffer with the pieces, one behind the other.
    fn read(&mut self) -> Result<(), Failure> {
        let mut buffer = &mut self.buffer[..self.filled as usize];
        match self.source {
            Source::Object(file) => {
                for piece in &self.pieces {
                    let (here, rest) = std::mem::take(&mut buffer).split_at_mut(piece.len() as usize);
                    buffer = rest;
                    read_object(file, here, piece.start)?;
                }
            }
            Source::Task(pid, memory) => {
                for group in self.pieces.chunk_by(|a, b| a.pin == b.pin) {
                    let len: u64 = group.iter().map(Piece::len).sum();
                    let (mut here, rest) = std::mem::take(&mut buffer).split_at_mut(len as usize);
                    buffer = rest;
                    if group[0].pin {
                        read_task(pid, here, group)?;
                        continue;
                    }
                    for piece in group {
                        let (now, later) = here.split_at_mut(piece.len() as usize);
                        here = later;
                        memory.read_exact_at(now, piece.start).doing(|| reading(pid, piece.start))?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Writes the pages that are worth it, wherever they are from, in one call, and takes them into runs.
    fn store(&mut self, pieces: &[Piece], buffer: &[u8]) -> Result<(), Error> {
        let mut ranges = std::mem::take(&mut self.ranges);
        self.choose(pieces, buffer, &mut ranges);
        let mut fresh: Vec<IoSlice<'_>> = Vec::with_capacity(ranges.len());
        let mut behind = 0;
        for &Range { start, end, .. } in ranges.iter().filter(|range| range.stored.is_none()) {
            match fresh.last_mut() {
                // What is side by side in the buffer is one for the call.
                Some(last) if behind == start => *last = IoSlice::new(&buffer[start - last.len()..end]),
                _ => fresh.push(IoSlice::new(&buffer[start..end])),
            }
            behind = end;
        }
        let mut offset = if fresh.is_empty() { 0 } else { self.sink.write_parts(&mut fresh)? };
        let mut rest = ranges.drain(..).peekable();
        while let Some(Range { address, start, end, part, stored }) = rest.next() {
            let len = (end - start) as u64;
            let (file, place) = stored.unwrap_or((self.sink.number(), offset));
            if stored.is_none() {
                offset += len;
                self.written += len;
            }
            let ends = rest.peek().is_some_and(|next| (next.address, next.part) != (address + len, part));
            self.note(address, file, place, part, &buffer[start..end], ends);
        }
        drop(rest);
        self.ranges = ranges;
        Ok(())
    }

    /// Finds what of these pieces, which are in the buffer, is to be in the image.
    fn choose(&mut self, pieces: &[Piece], buffer: &[u8], ranges: &mut Vec<Range>) {
        let mut at = 0;
        for &piece in pieces {
            let (begin, end) = (at, at + piece.len() as usize);
            at = end;
            let range = |start: usize, end: usize| Range {
                address: piece.start + (start - begin) as u64,
                start,
                end,
                part: piece.part,
                stored: piece.stored,
            };
            if piece.zeroes || piece.stored.is_some() {
                ranges.push(range(begin, end));
                continue;
            }
            let mut first = begin;
            for here in (begin..end).step_by(PAGE as usize) {
                let behind = here + PAGE as usize;
                if is_zero(&buffer[here..behind]) {
                    if first < here {
                        ranges.push(range(first, here));
                    }
                    first = behind;
                    self.dropped += PAGE;
                }
            }
            if first < end {
                ranges.push(range(first, end));
            }
        }
    }

    /// Takes pages at a known place of the image into runs. `ends` says that the run does not go on behind them.
    fn note(
        &mut self,
        mut address: u64,
        file: u16,
        mut offset: u64,
        part: u32,
        mut bytes: &[u8],
        ends: bool,
    ) {
        while !bytes.is_empty() {
            let fits = self.open.as_ref().is_some_and(|open| {
                open.part == part
                    && open.run.file == file
                    && open.run.vaddr + open.run.len() == address
                    && open.run.offset + open.run.len() == offset
                    && open.run.pages < MAX_RUN_PAGES
            });
            if !fits {
                self.close();
                // Most runs of a sparse process are a page; a digest in one piece takes half the time.
                if ends && bytes.len() as u64 <= u64::from(MAX_RUN_PAGES) * PAGE {
                    let pages = (bytes.len() as u64 / PAGE) as u32;
                    let digest = xxh3_64(bytes);
                    self.runs.push(PageRun { vaddr: address, pages, file, flags: 0, offset, digest });
                    return;
                }
            }
            let open = self.open.get_or_insert_with(|| OpenRun {
                run: PageRun { vaddr: address, pages: 0, file, flags: 0, offset, digest: 0 },
                part,
                sum: Xxh3Default::new(),
            });
            let most = u64::from(MAX_RUN_PAGES - open.run.pages) * PAGE;
            let (now, later) = bytes.split_at(bytes.len().min(most as usize));
            open.sum.update(now);
            open.run.pages += (now.len() as u64 / PAGE) as u32;
            address += now.len() as u64;
            offset += now.len() as u64;
            bytes = later;
        }
    }

    fn close(&mut self) {
        if let Some(OpenRun { mut run, sum, .. }) = self.open.take() {
            run.digest = sum.digest();
            self.runs.push(run);
        }
    }
}

fn reading(pid: Pid, address: u64) -> String {
    format!("read the memory of process {pid} at {address:#x}")
}

/// Reads adjacent pages of a shared object; what lies behind its end is zero.
fn read_object(file: &File, mut buffer: &mut [u8], mut offset: u64) -> Result<(), Failure> {
    while !buffer.is_empty() {
        match file.read_at(buffer, offset).doing(|| format!("read a shared object at {offset:#x}"))? {
            0 => {
                buffer.fill(0);
                break;
            }
            n => {
                buffer = &mut buffer[n..];
                offset += n as u64;
            }
        }
    }
    Ok(())
}

/// Reads pages that the process may read itself.
fn read_task(pid: Pid, buffer: &mut [u8], pieces: &[Piece]) -> Result<(), Failure> {
    let remote: Vec<_> = pieces
        .iter()
        .map(|piece| RemoteIoVec { base: piece.start as usize, len: piece.len() as usize })
        .collect();
    let wanted = buffer.len();
    let read = process_vm_readv(pid, &mut [IoSliceMut::new(buffer)], &remote)
        .doing(|| reading(pid, pieces[0].start))?;
    if read == wanted {
        return Ok(());
    }
    // It ended at a page that can't be read: find which.
    let mut left = read as u64;
    let mut address = pieces[0].start;
    for piece in pieces {
        address = piece.start + left.min(piece.len());
        left = left.saturating_sub(piece.len());
        if address < piece.end {
            break;
        }
    }
    Err(Failure::new(reading(pid, address), Errno::EFAULT))
}

/// All bytes are zero. Most pages show in the first bytes that they are not.
fn is_zero(page: &[u8]) -> bool {
    let (blocks, rest) = page.as_chunks::<128>();
    blocks.iter().all(|block| block.iter().fold(0, |all, byte| all | byte) == 0)
        && rest.iter().all(|&byte| byte == 0)
}

//! The pages of a process, and those of a shared object, into the image.

use super::copy::{Copier, Piece, Source};
use super::layout::Layout;
use super::relative::{Relative, Sharing};
use super::vma::{PAGE, Prot, Span, Vma};
use crate::image::{PageRun, PagesWriter};
use crate::sys::pagemap::{self, Query, Region, page_is};
use crate::{Doing, Error, Failure};
use nix::errno::Errno;
use nix::unistd::Pid;
use rustix::fs::SeekFrom;
use std::fs::File;
use std::os::fd::AsFd;
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::thread::{Scope, ScopedJoinHandle};

/// A second thread is worth its start from here on.
const MUCH: u64 = 8 << 20;
/// What a thread gets at a time.
const BATCH: u64 = 1 << 20;
const BATCH_PIECES: usize = 1024;
/// Batches that may wait for a thread. The rest is copied by the caller, so that nobody waits.
const WAITING: usize = 2;

/// Mapped bytes that are passed rather than skipped by another call.
const WORTH_A_SCAN: u64 = 1 << 20;

/// What was stored.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Dumped {
    /// By ascending address.
    pub runs: Vec<PageRun>,
    /// Guard pages, for [`Layout::guards`].
    pub guards: Vec<Span>,
    /// Bytes written to the image.
    pub written: u64,
    /// Bytes of zeroes that were found and not written.
    pub dropped: u64,
    /// Bytes that the image had already, from a relative.
    pub shared: u64,
}

/// Stores the private pages of process `source`, which is stopped, as far as they belong to mappings that `wanted` picks.
/// The process may be a clone of the one that `layout` was read from. `memory` is its `/proc/PID/mem`. `sinks` are one or
/// more files of the image: with several, a large process is copied by as many threads. Pages that are also those of one of
/// `relatives`, processes stored before, are not stored again. None says that no other process has any of the pages.
///
/// # Errors
/// The kernel's; those of the image, a full disk above all.
pub fn dump(
    source: Pid,
    memory: &File,
    layout: &Layout,
    wanted: impl Fn(&Vma) -> bool,
    relatives: Option<&[Relative<'_>]>,
    sinks: &mut [PagesWriter],
) -> Result<Dumped, Error> {
    let path = format!("/proc/{source}/pagemap");
    let pagemap = File::open(&path).doing(|| format!("open {path}"))?;
    let mut sharing = relatives.map(|relatives| Sharing::new(source, &pagemap, relatives));
    let mut guards: Vec<Span> = Vec::new();
    let mut ready: Vec<PageRun> = Vec::new();
    let mut dumped = copy(Source::Task(source, memory), sinks, |give| {
        private_pages(&pagemap, layout, &wanted, |vma, part, region| {
            if region.categories & page_is::GUARD != 0 {
                guards.push(Span::new(region.start, region.end));
                return Ok(());
            }
            if !vma.stored() {
                return Ok(());
            }
            let piece = Piece {
                start: region.start,
                end: region.end,
                part,
                zeroes: !vma.zero_based(),
                pin: vma.prot.allows(Prot::READ),
                stored: None,
            };
            match &mut sharing {
                Some(sharing) => sharing.split(piece, &mut ready, give),
                None => give(piece),
            }
        })
    })?;
    dumped.shared = sharing.map_or(0, |sharing| sharing.bytes);
    dumped.guards = guards;
    dumped.runs.append(&mut ready);
    // Each thread's runs ascend; a stable sort finds that and only merges them.
    dumped.runs.sort_by_key(|run| run.vaddr);
    Ok(dumped)
}

/// Stores the content of a shared object; the addresses of the runs are offsets in it.
///
/// # Errors
/// As [`dump`].
pub fn dump_object(file: &File, sinks: &mut [PagesWriter]) -> Result<Dumped, Error> {
    let size = file.metadata().doing(|| "look at a shared object")?.len();
    let mut dumped = copy(Source::Object(file), sinks, |give| {
        let mut at = 0;
        while let Some((start, end)) = data(file, at, size)? {
            give(Piece { start, end, part: 0, zeroes: false, pin: false, stored: None })?;
            at = end;
        }
        Ok(())
    })?;
    dumped.runs.sort_by_key(|run| run.vaddr);
    Ok(dumped)
}

/// The next pages with data in a file of `size` bytes.
fn data(file: &File, at: u64, size: u64) -> Result<Option<(u64, u64)>, Failure> {
    let end = size.next_multiple_of(PAGE);
    if at >= end {
        return Ok(None);
    }
    let start = match rustix::fs::seek(file, SeekFrom::Data(at)) {
        Ok(start) => start,
        Err(rustix::io::Errno::NXIO) => return Ok(None),
        // A file system that knows nothing of holes has none.
        Err(rustix::io::Errno::INVAL) => return Ok(Some((at, end))),
        Err(errno) => return Err(errno).doing(|| "find data in a shared object"),
    };
    let hole = rustix::fs::seek(file, SeekFrom::Hole(start)).doing(|| "find a hole in a shared object")?;
    Ok(Some((start / PAGE * PAGE, hole.next_multiple_of(PAGE).min(end))))
}

/// Calls `found` for the pages of the process's own, and for guard pages: with the mapping, its number, and the part of
/// the region that lies in it.
fn private_pages(
    pagemap: &File,
    layout: &Layout,
    wanted: impl Fn(&Vma) -> bool,
    mut found: impl FnMut(&Vma, u32, Region) -> Result<(), Error>,
) -> Result<(), Error> {
    let query = Query {
        without: page_is::FILE | page_is::PFNZERO,
        any: page_is::PRESENT | page_is::SWAPPED,
        told: page_is::GUARD,
    };
    // Both the mappings and the regions ascend.
    let mut vmas = layout.vmas.iter().zip(0_u32..).peekable();
    let mut each = |region: Region| {
        let mut at = region.start;
        while let Some((vma, _)) = vmas.peek()
            && at < region.end
        {
            if vma.range.end <= at {
                vmas.next();
                continue;
            }
            let Some(&(vma, part)) = vmas.peek() else { break };
            let within = Span::new(at, region.end).overlap(vma.range);
            if within.is_empty() {
                break;
            }
            if wanted(vma) {
                found(vma, part, Region { start: within.start, end: within.end, ..region })?;
            }
            at = within.end;
        }
        Ok(())
    };
    let parts = clusters(layout, &wanted);
    let mut scan = |query| {
        parts.iter().try_for_each(|part| {
            pagemap::scan(pagemap.as_fd(), part.start, part.end, query, Scanning::wrap(&mut each))
        })
    };
    let mut scanned = scan(query);
    if let Err(Scanning::Kernel(Errno::EINVAL)) = scanned {
        // Linux 6.15 began to tell of guard pages; 6.13 and 6.14 have them, and their content can't be read.
        scanned = scan(Query { told: 0, ..query });
    }
    if let Err(Scanning::Kernel(Errno::ENOTTY)) = scanned {
        let query = Query { without: page_is::FILE, ..query };
        let mut walk =
            |range: Span| pagemap::walk(pagemap, range.start, range.end, query, Scanning::wrap(&mut each));
        scanned = layout.vmas.iter().filter(|vma| wanted(vma)).try_for_each(|vma| walk(vma.range));
    }
    match scanned {
        Ok(()) => Ok(()),
        Err(Scanning::Found(error)) => Err(error),
        Err(Scanning::Kernel(errno)) => Err(Failure::new("scan the pages of a process", errno).into()),
    }
}

/// Ranges that hold all wanted mappings: a scan takes its time for every page that it passes, and some for itself.
fn clusters(layout: &Layout, wanted: impl Fn(&Vma) -> bool) -> Vec<Span> {
    let mut clusters: Vec<Span> = Vec::new();
    let mut passed = 0;
    for vma in &layout.vmas {
        match clusters.last_mut() {
            _ if !wanted(vma) => passed += vma.range.len(),
            Some(last) if passed < WORTH_A_SCAN => (last.end, passed) = (vma.range.end, 0),
            _ => {
                clusters.push(vma.range);
                passed = 0;
            }
        }
    }
    clusters
}

/// Tells the scan's own failure from that of the one who takes its results.
enum Scanning {
    Kernel(Errno),
    Found(Error),
}

impl From<Errno> for Scanning {
    fn from(errno: Errno) -> Self {
        Scanning::Kernel(errno)
    }
}

impl Scanning {
    fn wrap(mut each: impl FnMut(Region) -> Result<(), Error>) -> impl FnMut(Region) -> Result<(), Scanning> {
        move |region| each(region).map_err(Scanning::Found)
    }
}

/// Copies the pieces that `feed` gives, by as many threads as there are sinks if they are many.
fn copy<'a>(
    source: Source<'a>,
    sinks: &'a mut [PagesWriter],
    feed: impl FnOnce(&mut dyn FnMut(Piece) -> Result<(), Error>) -> Result<(), Error>,
) -> Result<Dumped, Error> {
    let Some((own, others)) = sinks.split_first_mut() else {
        return Err(Failure::new("store pages without a file for them", Errno::EINVAL).into());
    };
    std::thread::scope(|scope| {
        let mut copier = Copier::new(source, own);
        let mut team = Team { scope, source, others: Some(others), members: Vec::new() };
        let (mut batch, mut size, mut total) = (Vec::new(), 0, 0_u64);
        feed(&mut |mut piece: Piece| {
            while piece.start < piece.end {
                let now = Piece { end: piece.end.min(piece.start + (BATCH - size)), ..piece };
                piece.stored = piece.stored.map(|(file, offset)| (file, offset + now.len()));
                piece.start = now.end;
                size += now.len();
                total += now.len();
                batch.push(now);
                if size >= BATCH || batch.len() >= BATCH_PIECES {
                    size = 0;
                    let full = std::mem::take(&mut batch);
                    let left = if total < MUCH { Some(full) } else { team.offer(full) };
                    left.into_iter().flatten().try_for_each(|piece| copier.add(piece))?;
                }
            }
            Ok(())
        })?;
        batch.into_iter().try_for_each(|piece| copier.add(piece))?;
        let mut dumped = Dumped::default();
        for done in std::iter::once(copier.finish()).chain(team.finish()) {
            let (mut runs, written, dropped) = done?;
            if dumped.runs.is_empty() {
                dumped.runs = runs;
            } else {
                dumped.runs.append(&mut runs);
            }
            dumped.written += written;
            dumped.dropped += dropped;
        }
        Ok(dumped)
    })
}

type Copied = Result<(Vec<PageRun>, u64, u64), Error>;

/// The threads that help.
struct Team<'scope, 'env, 'a> {
    scope: &'scope Scope<'scope, 'env>,
    source: Source<'a>,
    /// The files of threads that are not started yet.
    others: Option<&'a mut [PagesWriter]>,
    members: Vec<(SyncSender<Vec<Piece>>, ScopedJoinHandle<'scope, Copied>)>,
}

impl<'scope, 'a: 'scope> Team<'scope, '_, 'a> {
    /// Hands a batch to a thread that has time; gives it back when none has.
    fn offer(&mut self, mut batch: Vec<Piece>) -> Option<Vec<Piece>> {
        for sink in self.others.take().into_iter().flatten() {
            let (sender, batches) = sync_channel::<Vec<Piece>>(WAITING);
            let source = self.source;
            let help = move || {
                leave_the_callers_cpu();
                let mut copier = Copier::new(source, sink);
                for piece in batches.into_iter().flatten() {
                    copier.add(piece)?;
                }
                copier.finish()
            };
            self.members.push((sender, self.scope.spawn(help)));
        }
        for (sender, _) in &self.members {
            match sender.try_send(batch) {
                Ok(()) => return None,
                // One that has failed takes no more; its error comes at the end.
                Err(TrySendError::Full(back) | TrySendError::Disconnected(back)) => batch = back,
            }
        }
        Some(batch)
    }

    fn finish(self) -> impl Iterator<Item = Copied> + use<'scope, 'a> {
        self.members.into_iter().map(|(sender, member)| {
            drop(sender);
            member.join().unwrap_or_else(|_| Err(Failure::new("copy pages in a thread", Errno::EIO).into()))
        })
    }
}

/// ckrun is pinned to one CPU while it drives a task, and a thread inherits that. The others are for the thread: on that one
/// it would be in the way.
pub(crate) fn leave_the_callers_cpu() {
    let own = crate::sys::affinity(Pid::from_raw(0)).unwrap_or_default();
    if own.iter().map(|cpus| cpus.count_ones()).sum::<u32>() != 1 {
        return;
    }
    let mut others = [0xff; 128];
    others.iter_mut().zip(own).for_each(|(others, own)| *others = !own);
    // The kernel takes those of them that the thread may have. If it takes none, the work is only slower.
    if let Err(errno) = crate::sys::set_affinity(Pid::from_raw(0), &others) {
        log::debug!("a thread keeps its CPU: {errno}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::vma::{Backing, Flags};

    #[test]
    fn what_is_large_and_unwanted_is_not_scanned() {
        let mut layout = Layout::default();
        let mut at = PAGE;
        // Wanted or not, with gaps between them that cost nothing.
        for (len, shared) in [
            (PAGE, false),
            (WORTH_A_SCAN - PAGE, true),
            (PAGE, false),
            (PAGE, true),
            (WORTH_A_SCAN - PAGE, true),
            (PAGE, false),
            (8 * WORTH_A_SCAN, true),
        ] {
            let backing = Backing::Object { id: 0, offset: 0, shared };
            let range = Span::new(at, at + len);
            let (prot, flags) = (Prot::READ, Flags::default());
            layout.vmas.push(Vma { range, prot, backing, flags, name: None, policy: None });
            at += len + (1 << 30);
        }
        let wanted: Vec<Span> = layout.vmas.iter().filter(|vma| vma.private()).map(|vma| vma.range).collect();
        let expected = [Span::new(wanted[0].start, wanted[1].end), wanted[2]];
        assert_eq!(clusters(&layout, Vma::private), expected);
    }
}

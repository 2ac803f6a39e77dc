//! Pages from the image into a process: read, checked against their digests and put in place while they are in the
//! cache, by two threads if there are many.

use super::build::initial;
use super::copy::CHUNK;
use super::dump::leave_the_callers_cpu;
use super::layout::Layout;
use super::plan::Plan;
use super::vma::{Backing, Flags, PAGE, Prot, Span};
use crate::image::{Image, PageRun};
use crate::program::Program;
use crate::sys::uffd::{USER_MODE_ONLY, Uffd};
use crate::worker::Worker;
use crate::{Doing, Error, Failure};
use nix::errno::Errno;
use nix::sys::uio::{RemoteIoVec, process_vm_writev};
use nix::unistd::Pid;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A second thread is worth its start from here on.
const MUCH: u64 = 8 << 20;
/// userfaultfd is worth its setting up for a mapping with so many bytes to be filled.
const LARGE: u64 = 256 << 10;
/// Ranges of one call of process_vm_writev; the kernel takes 1024.
const PIECES: usize = 512;
const THREADS: usize = 2;

/// The files of pages of an image.
#[derive(Debug, Default)]
pub struct PageFiles(BTreeMap<u16, File>);

impl PageFiles {
    /// Opens those that `runs` name.
    ///
    /// # Errors
    /// Those of the image.
    pub fn open<'a>(image: &Image, runs: impl IntoIterator<Item = &'a PageRun>) -> Result<Self, Error> {
        let mut files = BTreeMap::new();
        for run in runs {
            if let std::collections::btree_map::Entry::Vacant(place) = files.entry(run.file) {
                place.insert(image.pages(run.file)?);
            }
        }
        Ok(PageFiles(files))
    }

    /// Files under their numbers.
    pub fn new(files: impl IntoIterator<Item = (u16, File)>) -> Self {
        PageFiles(files.into_iter().collect())
    }

    /// Reads the bytes of runs, one behind the other, and checks each.
    pub(super) fn read(&self, runs: &[PageRun], mut buffer: &mut [u8]) -> Result<(), Error> {
        let adjacent = |a: &PageRun, b: &PageRun| a.file == b.file && a.offset + a.len() == b.offset;
        for group in runs.chunk_by(adjacent) {
            let (here, rest) = std::mem::take(&mut buffer).split_at_mut(bytes(group) as usize);
            buffer = rest;
            let Some(file) = self.0.get(&group[0].file) else {
                return Err(Error::Damaged(format!("pages-{}.img is not there", group[0].file)));
            };
            let what = || format!("read pages-{}.img at {:#x}", group[0].file, group[0].offset);
            file.read_exact_at(here, group[0].offset).doing(what)?;
            let mut here = &here[..];
            for run in group {
                let (of_run, rest) = here.split_at(run.len() as usize);
                here = rest;
                run.verify(of_run)?;
            }
        }
        Ok(())
    }
}

fn bytes(runs: &[PageRun]) -> u64 {
    runs.iter().map(PageRun::len).sum()
}

/// How pages get to their places.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// UFFDIO_COPY: no page may be there, and the mapping must be registered. Any protection will do.
    Place,
    /// process_vm_writev(2): the process itself must be allowed to write.
    Write,
    /// `/proc/PID/mem`: anything private, page by page.
    Force,
}

/// Puts the pages of `plan` into the memory that [`super::build`] has mapped for `layout`.
///
/// # Errors
/// [`Error::Image`] naming the file and the place where a digest is wrong; [`Error::Damaged`] when a page belongs to no
/// mapping; `ENOMEM` at a limit of the job.
pub fn fill(worker: &mut Worker, layout: &Layout, plan: &Plan<'_>, pages: &PageFiles) -> Result<(), Error> {
    let mut ways = Vec::with_capacity(plan.runs.len());
    let mut large = Vec::new();
    let mut next = 0;
    while let Some(run) = plan.runs.get(next) {
        let vma = layout
            .at(run.vaddr)
            .filter(|vma| vma.stored() && vma.range.holds(Span::new(run.vaddr, run.vaddr + run.len())));
        let Some(vma) = vma else {
            return Err(Error::Damaged(format!("pages for {:#x}, where no private mapping is", run.vaddr)));
        };
        // The runs of one mapping come one after the other, but for those that were kept.
        let count = plan.runs[next..]
            .partition_point(|run| vma.range.holds(Span::new(run.vaddr, run.vaddr + run.len())));
        let of_it = &plan.runs[next..next + count.max(1)];
        let anonymous = vma.backing == Backing::Anonymous && !vma.flags.has(Flags::HUGETLB);
        let fresh = plan.missing(vma.range).eq([vma.range]);
        let way = if anonymous && fresh && bytes(of_it) >= LARGE {
            large.push(vma.range);
            Way::Place
        } else if fresh && initial(vma).allows(Prot::WRITE) || vma.prot.allows(Prot::WRITE) {
            Way::Write
        } else {
            Way::Force
        };
        ways.extend(of_it.iter().map(|_| way));
        next += of_it.len();
    }
    place(worker, &plan.runs, ways, &large, pages)
}

/// Puts the content of a shared object into a mapping of it at `base`, which the task may write.
///
/// # Errors
/// As [`fill`].
pub(super) fn fill_object(
    worker: &mut Worker,
    base: Span,
    registrable: bool,
    runs: &[PageRun],
    pages: &PageFiles,
) -> Result<(), Error> {
    let shifted = runs.iter().map(|run| PageRun { vaddr: base.start.wrapping_add(run.vaddr), ..*run });
    let shifted: Vec<PageRun> = shifted.collect();
    let fits = |run: &PageRun| base.holds(Span::new(run.vaddr, run.vaddr.saturating_add(run.len())));
    if let Some(run) = shifted.iter().find(|run| !fits(run)) {
        let at = run.vaddr.wrapping_sub(base.start);
        return Err(Error::Damaged(format!("pages at {at:#x} of a shared object, behind its end")));
    }
    let (way, large) =
        if registrable && bytes(runs) >= LARGE { (Way::Place, vec![base]) } else { (Way::Write, Vec::new()) };
    let ways = vec![way; shifted.len()];
    place(worker, &shifted, ways, &large, pages)
}

fn place(
    worker: &mut Worker,
    runs: &[PageRun],
    mut ways: Vec<Way>,
    large: &[Span],
    pages: &PageFiles,
) -> Result<(), Error> {
    let fd = if large.is_empty() { None } else { userfaultfd(worker)? };
    let uffd = match &fd {
        Some(fd) => Some(register(fd, large)?),
        None => {
            // A kernel without it: the other two ways lead everywhere.
            ways.iter_mut().filter(|way| **way == Way::Place).for_each(|way| *way = Way::Force);
            None
        }
    };
    let job = Job {
        pid: worker.host(),
        memory: worker.memory(),
        uffd: uffd.as_ref().map(|registered| &registered.uffd),
        pages,
    };
    // What is handled in one go: adjacent in the list, of one way, a buffer full.
    let mut batches: Vec<(Way, &[PageRun])> = Vec::new();
    let mut start = 0;
    while start < runs.len() {
        let (way, mut size, mut end) = (ways[start], 0, start);
        while end < runs.len()
            && ways[end] == way
            && end - start < PIECES
            && (end == start || size + runs[end].len() <= CHUNK)
        {
            size += runs[end].len();
            end += 1;
        }
        batches.push((way, &runs[start..end]));
        start = end;
    }
    if bytes(runs) < MUCH {
        let mut buffer = Vec::new();
        return batches.iter().try_for_each(|(way, runs)| job.put(*way, runs, &mut buffer));
    }
    let next = AtomicUsize::new(0);
    let share = || {
        let mut buffer = Vec::new();
        while let Some((way, runs)) = batches.get(next.fetch_add(1, Ordering::Relaxed)) {
            if let Err(error) = job.put(*way, runs, &mut buffer) {
                // The others need not go on.
                next.store(batches.len(), Ordering::Relaxed);
                return Err(error);
            }
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let help = || {
            leave_the_callers_cpu();
            share()
        };
        let helpers: Vec<_> = (1..THREADS).map(|_| scope.spawn(help)).collect();
        let own = share();
        let lost = || Err(Failure::new("fill memory in a thread", Errno::EIO).into());
        helpers.into_iter().map(|helper| helper.join().unwrap_or_else(|_| lost())).fold(own, Result::and)
    })
}

/// What all threads use.
struct Job<'a> {
    pid: Pid,
    memory: &'a File,
    uffd: Option<&'a Uffd<'a>>,
    pages: &'a PageFiles,
}

impl Job<'_> {
    fn put(&self, way: Way, runs: &[PageRun], buffer: &mut Vec<u8>) -> Result<(), Error> {
        let size = bytes(runs) as usize;
        if buffer.len() < size {
            buffer.resize(size, 0);
        }
        let buffer = &mut buffer[..size];
        self.pages.read(runs, buffer)?;
        let what = || format!("fill the memory of process {} at {:#x}", self.pid, runs[0].vaddr);
        if way == Way::Write {
            let remote: Vec<_> = runs
                .iter()
                .map(|run| RemoteIoVec { base: run.vaddr as usize, len: run.len() as usize })
                .collect();
            let written = process_vm_writev(self.pid, &[IoSlice::new(buffer)], &remote).doing(what)?;
            return if written == size { Ok(()) } else { Err(Failure::new(what(), Errno::EFAULT).into()) };
        }
        let mut rest = &buffer[..];
        for run in runs {
            let (bytes, later) = rest.split_at(run.len() as usize);
            rest = later;
            match (way, self.uffd) {
                (Way::Place, Some(uffd)) => self.place(uffd, run.vaddr, bytes).doing(what)?,
                _ => self.memory.write_all_at(bytes, run.vaddr).doing(what)?,
            }
        }
        Ok(())
    }

    /// A page can be there after all: whoever reads /proc/PID/cmdline or environ at this moment, as ps does, has the
    /// kernel make the pages in which it looks for that.
    fn place(&self, uffd: &Uffd<'_>, at: u64, bytes: &[u8]) -> io::Result<()> {
        match uffd.copy(at, bytes) {
            Err(Errno::EEXIST) => {}
            other => return Ok(other?),
        }
        for (page, at) in bytes.chunks(PAGE as usize).zip((at..).step_by(PAGE as usize)) {
            match uffd.copy(at, page) {
                Err(Errno::EEXIST) => self.memory.write_all_at(page, at)?,
                other => other?,
            }
        }
        Ok(())
    }
}

/// A userfaultfd of the task's memory, held by ckrun alone; None where there is none to be had.
fn userfaultfd(worker: &mut Worker) -> Result<Option<OwnedFd>, Failure> {
    let mut program = Program::new();
    let flags = libc::O_CLOEXEC | libc::O_NONBLOCK | USER_MODE_ONLY;
    let made = program.attempt("make a userfaultfd", libc::SYS_userfaultfd, &[flags.into()]);
    let Ok(remote) = worker.run(&program)?.of(made) else { return Ok(None) };
    let fd = worker.pidfd_getfd(remote as RawFd)?;
    let mut program = Program::new();
    program.call("close the userfaultfd", libc::SYS_close, &[remote.into()]);
    worker.run(&program)?;
    Ok(Some(fd))
}

fn register<'a>(fd: &'a OwnedFd, large: &'a [Span]) -> Result<Registered<'a>, Failure> {
    let uffd = Uffd::open(fd.as_fd()).doing(|| "open a userfaultfd")?;
    for range in large {
        uffd.register(range.start, range.end).doing(|| format!("register {range} to be filled"))?;
    }
    Ok(Registered { uffd, ranges: large })
}

/// Ranges whose missing pages are ckrun's matter until this is dropped.
struct Registered<'a> {
    uffd: Uffd<'a>,
    ranges: &'a [Span],
}

impl Drop for Registered<'_> {
    fn drop(&mut self) {
        for range in self.ranges {
            if let Err(errno) = self.uffd.unregister(range.start, range.end) {
                log::debug!("unregister {range}: {errno}");
            }
        }
    }
}

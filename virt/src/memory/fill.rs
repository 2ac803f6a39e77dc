//! How pages of the image get into a process.

use super::build::initial;
use super::copy::CHUNK;
use super::filler::{Filler, PageFiles};
use super::layout::Layout;
use super::plan::Plan;
use super::vma::{Backing, Flags, PAGE, Prot, Span};
use crate::image::PageRun;
use crate::program::{Answers, Call, Program};
use crate::sys::uffd::{USER_MODE_ONLY, Uffd};
use crate::worker::Worker;
use crate::{Doing, Error, Failure};
use nix::errno::Errno;
use nix::sys::uio::{RemoteIoVec, process_vm_writev};
use nix::unistd::Pid;
use std::fs::File;
use std::io::{self, IoSlice};
use std::os::fd::RawFd;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Weak};

/// userfaultfd is worth its setting up for a mapping with so many bytes to be filled.
const LARGE: u64 = 256 << 10;
/// Ranges of one call of process_vm_writev; the kernel takes 1024.
const PIECES: usize = 512;

/// The bytes of runs.
pub(super) fn bytes(runs: &[PageRun]) -> u64 {
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
/// As [`prepare`] and [`Filler::finish`].
pub fn fill(worker: &mut Worker, layout: &Layout, plan: &Plan<'_>, pages: &PageFiles) -> Result<(), Error> {
    Filler::once(pages, prepare(worker, layout, plan)?)
}

/// Chooses the way for each page of `plan`; a [`Filler`] does the rest.
///
/// # Errors
/// As [`Ways::choose`]; the kernel's.
pub fn prepare(worker: &mut Worker, layout: &Layout, plan: &Plan<'_>) -> Result<Load, Error> {
    let ways = Ways::choose(layout, plan)?;
    let mut program = Program::new();
    let asked = ways.ask(&mut program);
    let answers = worker.run(&program)?;
    Ok(ways.load(worker, plan, asked, &answers)?)
}

/// How the pages of a plan get to their places.
#[derive(Debug)]
pub struct Ways {
    /// Of each run.
    ways: Vec<Way>,
    /// The mappings that userfaultfd serves.
    large: Vec<Span>,
}

impl Ways {
    /// Chooses for each page.
    ///
    /// # Errors
    /// [`Error::Damaged`] when a page belongs to no mapping.
    pub fn choose(layout: &Layout, plan: &Plan<'_>) -> Result<Ways, Error> {
        let mut ways = Vec::with_capacity(plan.runs.len());
        let mut large = Vec::new();
        let mut next = 0;
        while let Some(run) = plan.runs.get(next) {
            let vma = layout
                .at(run.vaddr)
                .filter(|vma| vma.stored() && vma.range.holds(Span::new(run.vaddr, run.vaddr + run.len())));
            let Some(vma) = vma else {
                let what = format!("pages for {:#x}, where no private mapping is", run.vaddr);
                return Err(Error::Damaged(what));
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
        Ok(Ways { ways, large })
    }

    /// Adds what the task has to do for them. Its own descriptor of its userfaultfd goes the way of all that it does not
    /// keep.
    pub fn ask(&self, program: &mut Program) -> Option<Call> {
        (!self.large.is_empty()).then(|| ask_userfaultfd(program))
    }

    /// What is to be put in place when the task has answered.
    ///
    /// # Errors
    /// The kernel's.
    pub fn load(
        self,
        worker: &Worker,
        plan: &Plan<'_>,
        asked: Option<Call>,
        answers: &Answers,
    ) -> Result<Load, Failure> {
        let uffd = asked.map_or(Ok(None), |asked| userfaultfd(worker, asked, answers))?;
        Load::new(worker, &plan.runs, self, uffd)
    }
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
    let ways = Ways { ways: vec![way; shifted.len()], large };
    let mut program = Program::new();
    let asked = ways.ask(&mut program);
    let answers = worker.run(&program)?;
    let uffd = asked.map_or(Ok(None), |asked| userfaultfd(worker, asked, &answers))?;
    Filler::once(pages, Load::new(worker, &shifted, ways, uffd)?)
}

/// Pages on their way into a process, in batches that are handled in one go: adjacent in the list, of one way, a buffer full.
#[derive(Debug)]
pub struct Load {
    target: Arc<Target>,
    batches: Vec<(Way, Vec<PageRun>)>,
    under_way: Arc<()>,
}

/// Pages that are under way into a process.
#[derive(Debug)]
pub struct Underway(Weak<()>);

impl Underway {
    /// All of them are in place, or were given up.
    pub(super) fn ended(&self) -> bool {
        self.0.strong_count() == 0
    }
}

impl Load {
    fn new(worker: &Worker, runs: &[PageRun], ways: Ways, uffd: Option<Uffd>) -> Result<Self, Failure> {
        let Ways { mut ways, large } = ways;
        if uffd.is_none() {
            // A kernel without it: the other two ways lead everywhere.
            ways.iter_mut().filter(|way| **way == Way::Place).for_each(|way| *way = Way::Force);
        }
        let mut target =
            Target { pid: worker.host(), memory: worker.memory.clone(), uffd, registered: Vec::new() };
        if let Some(uffd) = &target.uffd {
            for range in large {
                uffd.register(range.start, range.end).doing(|| format!("register {range} to be filled"))?;
                target.registered.push(range);
            }
        }
        let mut batches = Vec::new();
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
            batches.push((way, runs[start..end].to_vec()));
            start = end;
        }
        Ok(Load { target: Arc::new(target), batches, under_way: Arc::new(()) })
    }

    /// Tells whether all of it is in place.
    pub fn watch(&self) -> Underway {
        Underway(Arc::downgrade(&self.under_way))
    }

    /// The batches, each by itself.
    pub(super) fn split(self) -> impl Iterator<Item = Batch> {
        let Load { target, batches, under_way } = self;
        let of =
            move |(way, runs)| Batch { target: target.clone(), way, runs, _under_way: under_way.clone() };
        batches.into_iter().map(of)
    }
}

/// Some pages for a process.
#[derive(Debug)]
pub(super) struct Batch {
    target: Arc<Target>,
    way: Way,
    runs: Vec<PageRun>,
    /// Dropped behind the target, which ends its registrations.
    _under_way: Arc<()>,
}

impl Batch {
    /// How many bytes they are.
    pub fn size(&self) -> u64 {
        bytes(&self.runs)
    }

    /// Puts them in place.
    pub fn put(self, pages: &PageFiles, buffer: &mut Vec<u8>) -> Result<(), Error> {
        self.target.put(self.way, &self.runs, pages, buffer)
    }
}

/// A process that is filled.
#[derive(Debug)]
struct Target {
    pid: Pid,
    memory: Arc<File>,
    uffd: Option<Uffd>,
    /// Ranges whose missing pages are ckrun's matter until this is dropped.
    registered: Vec<Span>,
}

impl Drop for Target {
    fn drop(&mut self) {
        // There may be copies of the descriptor elsewhere.
        for range in &self.registered {
            if let Some(Err(errno)) = self.uffd.as_ref().map(|uffd| uffd.unregister(range.start, range.end)) {
                log::debug!("unregister {range}: {errno}");
            }
        }
    }
}

impl Target {
    fn put(&self, way: Way, runs: &[PageRun], pages: &PageFiles, buffer: &mut Vec<u8>) -> Result<(), Error> {
        let mut rest = pages.read(runs, buffer)?;
        let what = || format!("fill the memory of process {} at {:#x}", self.pid, runs[0].vaddr);
        if way == Way::Write {
            let remote: Vec<_> = runs
                .iter()
                .map(|run| RemoteIoVec { base: run.vaddr as usize, len: run.len() as usize })
                .collect();
            let written = process_vm_writev(self.pid, &[IoSlice::new(rest)], &remote).doing(what)?;
            return if written == rest.len() {
                Ok(())
            } else {
                Err(Failure::new(what(), Errno::EFAULT).into())
            };
        }
        for run in runs {
            let (bytes, later) = rest.split_at(run.len() as usize);
            rest = later;
            match (way, &self.uffd) {
                (Way::Place, Some(uffd)) => self.place(uffd, run.vaddr, bytes).doing(what)?,
                _ => self.memory.write_all_at(bytes, run.vaddr).doing(what)?,
            }
        }
        Ok(())
    }

    /// A page can be there after all: whoever reads /proc/PID/cmdline or environ at this moment, as ps does, has the
    /// kernel make the pages in which it looks for that.
    fn place(&self, uffd: &Uffd, at: u64, bytes: &[u8]) -> io::Result<()> {
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

/// Adds the making of a userfaultfd.
fn ask_userfaultfd(program: &mut Program) -> Call {
    let flags = libc::O_CLOEXEC | libc::O_NONBLOCK | USER_MODE_ONLY;
    program.attempt("make a userfaultfd", libc::SYS_userfaultfd, &[flags.into()])
}

/// The userfaultfd of the task's memory; None where there is none to be had.
fn userfaultfd(worker: &Worker, asked: Call, answers: &Answers) -> Result<Option<Uffd>, Failure> {
    let Ok(remote) = answers.of(asked) else { return Ok(None) };
    let fd = worker.pidfd_getfd(remote as RawFd)?;
    Uffd::open(fd).doing(|| "open a userfaultfd").map(Some)
}

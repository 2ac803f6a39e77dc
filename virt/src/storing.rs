//! The memory of a job on its way into the image.
//!
//! A thread of its own stores what has been looked at while the rest of the job is still being read: one has to do with
//! the bandwidth of the memory, the other with system calls.

use crate::events::Events;
use crate::image::{Owner, PageRun, PagesWriter, Writer};
use crate::memory::{self, Census, Dumped, Layout, Relative, Span, Vma, leave_the_callers_cpu};
use crate::worker::open_memory;
use crate::{Doing, Error, Failure};
use nix::errno::Errno;
use nix::unistd::Pid;
use std::collections::BTreeMap;
use std::fs::File;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

/// Files that pages are written to: writers of one file wait for each other. As many threads copy a large process.
const COPIERS: usize = 2;
/// How often somebody is told how far it is.
const TELL: Duration = Duration::from_millis(100);

/// The memory of one process, to be stored.
#[derive(Debug)]
pub struct Load {
    /// Its id in the job.
    pub pid: i32,
    /// Its parent's id in the job, 0 for the first process.
    pub parent: i32,
    /// The process itself, as ckrun sees its id.
    pub host: Pid,
    /// A copy of it, which is to be read in its stead.
    pub copy: Option<Pid>,
    /// Its mappings.
    pub layout: Layout,
}

/// What has been stored so far.
#[derive(Debug)]
pub struct Storing {
    sinks: Vec<PagesWriter>,
    alone: bool,
    /// Whose memory was read for each process that is complete.
    sources: BTreeMap<i32, Pid>,
    sections: BTreeMap<Owner, Vec<PageRun>>,
    guards: BTreeMap<i32, Vec<Span>>,
    /// Bytes written.
    pub written: u64,
    /// Bytes of zeroes that were found and not written.
    pub dropped: u64,
}

impl Storing {
    /// Begins the files. `alone` says that there is but one process, and no copy of it: nobody else has its pages.
    ///
    /// # Errors
    /// Those of the image.
    pub fn begin(image: &mut Writer, alone: bool) -> Result<Self, Error> {
        Ok(Storing {
            alone,
            sinks: (0..COPIERS).map(|number| image.pages(number)).collect::<Result<_, _>>()?,
            sources: BTreeMap::new(),
            sections: BTreeMap::new(),
            guards: BTreeMap::new(),
            written: 0,
            dropped: 0,
        })
    }

    /// Does `work` and meanwhile, in another thread, stores what that gives, parents before their children. `events` are
    /// told how far it is once the work is done. Of a job that is `small` everything is stored afterwards: that takes less
    /// than a thread.
    ///
    /// # Errors
    /// The work's; the kernel's, the image's.
    pub fn beside<T>(
        mut self,
        events: &mut dyn Events,
        small: bool,
        work: impl FnOnce(&mut dyn Events, &mut dyn FnMut(Load)) -> Result<T, Error>,
    ) -> Result<(T, Storing), Error> {
        if small {
            let mut loads = Vec::new();
            let done = work(events, &mut |load| loads.push(load))?;
            loads.iter().try_for_each(|load| self.process(load))?;
            return Ok((done, self));
        }
        let files = self.sinks.iter().map(|sink| sink.file().try_clone()).collect::<Result<Vec<_>, _>>();
        let files = files.doing(|| "duplicate a descriptor")?;
        let (sender, loads) = channel::<Load>();
        // Dropped with the thread's end, which can be waited for with a time limit.
        let (ending, ended) = channel::<()>();
        let given_up = &AtomicBool::new(false);
        std::thread::scope(|scope| {
            let thread = scope.spawn(move || -> Result<Storing, Error> {
                let _ending = ending;
                leave_the_callers_cpu();
                for load in loads {
                    if given_up.load(Ordering::Relaxed) {
                        break;
                    }
                    self.process(&load)?;
                }
                Ok(self)
            });
            let done = work(events, &mut |load| {
                // If the thread has failed, it says so at the end.
                let _ = sender.send(load);
            });
            drop(sender);
            given_up.store(done.is_err(), Ordering::Relaxed);
            watch(&ended, &files, events);
            let stored = thread
                .join()
                .unwrap_or_else(|_| Err(Failure::new("store memory in a thread", Errno::EIO).into()));
            Ok((done?, stored?))
        })
    }

    /// Memory that several processes may show.
    ///
    /// # Errors
    /// The kernel's, the image's.
    pub fn shared(&mut self, census: &Census) -> Result<(), Error> {
        for (id, object) in (0..).zip(census.objects()) {
            if object.carried() {
                let dumped = memory::dump_object(&census.open(id)?, &mut self.sinks)?;
                self.add(Owner::Shared(id), dumped);
            }
        }
        Ok(())
    }

    /// The private memory that the copy of a process lacks, from the process itself, which must still be stopped.
    ///
    /// # Errors
    /// The kernel's, the image's.
    pub fn lost_by_copy(&mut self, load: &Load) -> Result<(), Error> {
        let lost = |vma: &Vma| vma.stored() && !vma.survives_clone();
        if load.copy.is_some() && load.layout.vmas.iter().any(lost) {
            self.dump(load, load.host, lost, Some(&[]))?;
        }
        Ok(())
    }

    /// The private memory of a process, or what its copy has of that. Its parent comes first, if it comes at all.
    fn process(&mut self, load: &Load) -> Result<(), Error> {
        let source = load.copy.unwrap_or(load.host);
        let wanted = |vma: &Vma| load.copy.is_none() || vma.survives_clone();
        let parents = self.sections.remove(&Owner::Process(load.parent));
        let relatives = match (self.sources.get(&load.parent), &parents) {
            (Some(&parent), Some(runs)) => vec![Relative::new(parent, runs)?],
            _ => Vec::new(),
        };
        let dumped = self.dump(load, source, wanted, (!self.alone).then_some(&relatives[..]));
        drop(relatives);
        self.sections.extend(parents.map(|runs| (Owner::Process(load.parent), runs)));
        self.sources.insert(load.pid, source);
        dumped
    }

    fn dump(
        &mut self,
        load: &Load,
        source: Pid,
        wanted: impl Fn(&Vma) -> bool,
        relatives: Option<&[Relative<'_>]>,
    ) -> Result<(), Error> {
        let memory = open_memory(source)?;
        let mut dumped = memory::dump(source, &memory, &load.layout, wanted, relatives, &mut self.sinks)?;
        self.guards.entry(load.pid).or_default().append(&mut dumped.guards);
        self.add(Owner::Process(load.pid), dumped);
        Ok(())
    }

    fn add(&mut self, owner: Owner, dumped: Dumped) {
        self.written += dumped.written;
        self.dropped += dumped.dropped;
        let runs = self.sections.entry(owner).or_default();
        if runs.is_empty() {
            *runs = dumped.runs;
            return;
        }
        runs.extend(dumped.runs);
        runs.sort_by_key(|run| run.vaddr);
    }

    /// Everything is stored: where it is, by owner. The layouts get the guard pages that were found.
    pub fn found(self, layouts: &mut BTreeMap<i32, Layout>) -> Vec<(Owner, Vec<PageRun>)> {
        for (pid, mut guards) in self.guards {
            if let Some(layout) = layouts.get_mut(&pid) {
                layout.guards.append(&mut guards);
            }
        }
        self.sections.into_iter().collect()
    }
}

/// Waits for the end of a thread that writes to `files`, and tells how far it is.
fn watch(ended: &Receiver<()>, files: &[File], events: &mut dyn Events) {
    while ended.recv_timeout(TELL) == Err(RecvTimeoutError::Timeout) {
        let sizes = files.iter().filter_map(|file| Some(file.metadata().ok()?.len()));
        events.progress(sizes.sum(), 0);
    }
}

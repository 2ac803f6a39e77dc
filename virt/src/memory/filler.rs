//! Pages from the image into processes: read, checked against their digests and put in place while they are in the cache.
//!
//! If there are many, a second thread does it on another CPU, while ckrun goes on to make processes on its own.

use super::dump::leave_the_callers_cpu;
use super::fill::{Batch, Load, Underway, bytes};
use crate::image::{Image, PageRun};
use crate::{Doing, Error, Failure};
use nix::errno::Errno;
use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

/// A second thread is worth its start when so much waits to be put in place.
const MUCH: u64 = 4 << 20;

/// The files of pages of an image.
#[derive(Debug, Clone, Default)]
pub struct PageFiles(Arc<BTreeMap<u16, File>>);

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
        Ok(PageFiles(Arc::new(files)))
    }

    /// Files under their numbers.
    pub fn new(files: impl IntoIterator<Item = (u16, File)>) -> Self {
        PageFiles(Arc::new(files.into_iter().collect()))
    }

    /// The bytes of runs, one behind the other, read into `buffer` and checked.
    pub(super) fn read<'b>(&self, runs: &[PageRun], buffer: &'b mut Vec<u8>) -> Result<&'b [u8], Error> {
        let size = bytes(runs) as usize;
        if buffer.len() < size {
            buffer.resize(size, 0);
        }
        let adjacent = |a: &PageRun, b: &PageRun| a.file == b.file && a.offset + a.len() == b.offset;
        let mut rest = &mut buffer[..size];
        for group in runs.chunk_by(adjacent) {
            let (here, later) = std::mem::take(&mut rest).split_at_mut(bytes(group) as usize);
            rest = later;
            let Some(file) = self.0.get(&group[0].file) else {
                return Err(Error::Damaged(format!("pages-{}.img is not there", group[0].file)));
            };
            let what = || format!("read pages-{}.img at {:#x}", group[0].file, group[0].offset);
            file.read_exact_at(here, group[0].offset).doing(what)?;
            let mut here = &here[..];
            for run in group {
                let (of_run, later) = here.split_at(run.len() as usize);
                here = later;
                run.verify(of_run)?;
            }
        }
        Ok(&buffer[..size])
    }
}

/// Puts pages in place, sooner or later.
#[derive(Debug)]
pub struct Filler {
    shared: Arc<Shared>,
    helper: Option<JoinHandle<()>>,
    waiting: u64,
}

#[derive(Debug)]
struct Shared {
    pages: PageFiles,
    queue: Mutex<Queue>,
    /// Something has come into the queue, or nothing will come any more.
    more: Condvar,
}

#[derive(Debug, Default)]
struct Queue {
    batches: VecDeque<Batch>,
    failed: Option<Error>,
    complete: bool,
}

impl Filler {
    /// One for pages in these files.
    pub fn new(pages: &PageFiles) -> Self {
        let shared = Shared { pages: pages.clone(), queue: Mutex::default(), more: Condvar::new() };
        Filler { shared: Arc::new(shared), helper: None, waiting: 0 }
    }

    /// Puts only these pages in place.
    ///
    /// # Errors
    /// As [`Filler::finish`].
    pub fn once(pages: &PageFiles, load: Load) -> Result<(), Error> {
        let mut filler = Filler::new(pages);
        filler.add(load);
        filler.finish()
    }

    /// Takes pages over. Nobody may look at them before [`Filler::finish`], not even the kernel for the process: it would find
    /// none.
    pub fn add(&mut self, load: Load) {
        let mut queue = self.shared.lock();
        for batch in load.split() {
            self.waiting += batch.size();
            queue.batches.push_back(batch);
        }
        drop(queue);
        if self.helper.is_some() {
            self.shared.more.notify_one();
        } else if self.waiting >= MUCH {
            let shared = self.shared.clone();
            let help = move || {
                leave_the_callers_cpu();
                shared.work();
            };
            // Without it the work is only slower.
            self.helper = std::thread::Builder::new().name("filler".into()).spawn(help).ok();
        }
    }

    /// Waits until the pages of one load are in place, and does its share of those that come before them. Whether that has
    /// succeeded is told by [`Filler::finish`].
    ///
    /// # Errors
    /// As [`Filler::finish`].
    pub fn await_load(&mut self, load: &Underway) -> Result<(), Error> {
        let mut buffer = Vec::new();
        while !load.ended() {
            let first = self.shared.lock().batches.pop_front();
            match first {
                Some(batch) => self.shared.put(batch, &mut buffer),
                // The other thread has the last one.
                None => return self.finish(),
            }
        }
        let failed = self.shared.lock().failed.is_some();
        if failed { self.finish() } else { Ok(()) }
    }

    /// Waits until everything is in place, and does its share of that. ckrun has one thread again.
    ///
    /// # Errors
    /// [`Error::Image`] naming the file and the place where a digest is wrong; `ENOMEM` at a limit of the job.
    pub fn finish(&mut self) -> Result<(), Error> {
        self.shared.lock().complete = true;
        self.shared.more.notify_one();
        self.shared.work();
        let helped = self.helper.take().map_or(Ok(()), JoinHandle::join);
        let mut queue = self.shared.lock();
        queue.complete = false;
        self.waiting = 0;
        let lost = || Failure::new("fill memory in a thread", Errno::EIO);
        queue.failed.take().map_or(Ok(()), Err).and(helped.map_err(|_| lost().into()))
    }
}

impl Drop for Filler {
    fn drop(&mut self) {
        self.shared.lock().batches.clear();
        if let Err(e) = self.finish() {
            log::debug!("{e}");
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        // A thread that panics ends ckrun.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self) {
        let mut buffer = Vec::new();
        while let Some(batch) = self.next() {
            self.put(batch, &mut buffer);
        }
    }

    fn put(&self, batch: Batch, buffer: &mut Vec<u8>) {
        if let Err(error) = batch.put(&self.pages, buffer) {
            let mut queue = self.lock();
            // The others need not be put.
            queue.batches.clear();
            queue.failed.get_or_insert(error);
        }
    }

    fn next(&self) -> Option<Batch> {
        let more = |queue: &mut Queue| queue.batches.is_empty() && !queue.complete;
        let queue = self.more.wait_while(self.lock(), more);
        queue.unwrap_or_else(PoisonError::into_inner).batches.pop_front()
    }
}

//! Pages that fork(2) has left shared by two processes are stored once, and are left shared. They are found by the
//! frames of memory that hold them: the same frame at the same address of a process that was stored before.

use super::copy::Piece;
use super::vma::PAGE;
use crate::image::PageRun;
use crate::sys::pagemap::Entry;
use crate::{Doing, Error, Failure};
use nix::unistd::Pid;
use std::fs::File;
use std::os::unix::fs::FileExt;

/// Pages that are looked at in one go.
const WINDOW: u64 = 4096;

/// A stopped process whose pages are in the image already: the parent, or an elder brother.
#[derive(Debug)]
pub struct Relative<'a> {
    pid: Pid,
    pagemap: File,
    runs: &'a [PageRun],
}

impl<'a> Relative<'a> {
    /// Process `pid`, or the clone of it that `runs` were read from.
    ///
    /// # Errors
    /// `ESRCH`.
    pub fn new(pid: Pid, runs: &'a [PageRun]) -> Result<Self, Failure> {
        let path = format!("/proc/{pid}/pagemap");
        Ok(Relative { pid, pagemap: File::open(&path).doing(|| format!("open {path}"))?, runs })
    }
}

/// Finds pages of one process in its relatives.
#[derive(Debug)]
pub(super) struct Sharing<'a> {
    pid: Pid,
    pagemap: &'a File,
    relatives: &'a [Relative<'a>],
    /// Bytes found.
    pub bytes: u64,
}

impl<'a> Sharing<'a> {
    pub fn new(pid: Pid, pagemap: &'a File, relatives: &'a [Relative<'a>]) -> Self {
        Sharing { pid, pagemap, relatives, bytes: 0 }
    }

    /// Cuts `piece` into what must be stored and what is in the image already. Whole runs that are there go straight to
    /// `ready`; all else goes to `give`.
    pub fn split(
        &mut self,
        piece: Piece,
        ready: &mut Vec<PageRun>,
        give: &mut dyn FnMut(Piece) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let mut start = piece.start;
        while start < piece.end {
            let end = piece.end.min((start / PAGE / WINDOW + 1) * WINDOW * PAGE);
            self.window(Piece { start, end, ..piece }, ready, give)?;
            start = end;
        }
        Ok(())
    }

    fn window(
        &mut self,
        piece: Piece,
        ready: &mut Vec<PageRun>,
        give: &mut dyn FnMut(Piece) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let own = entries(self.pid, self.pagemap, &piece)?;
        let mut places: Vec<Option<&PageRun>> = vec![None; own.len()];
        if own.iter().any(|entry| !entry.exclusive()) {
            for relative in self.relatives {
                self.find(relative, &piece, &own, &mut places)?;
            }
        }
        let page = |n: usize| piece.start + n as u64 * PAGE;
        let mut n = 0;
        while n < places.len() {
            let Some(run) = places[n] else {
                let alone = own[n].exclusive();
                let alike = |n: &usize| places[*n].is_none() && own[*n].exclusive() == alone;
                let end = n + (n..places.len()).take_while(alike).count();
                give(Piece { start: page(n), end: page(end), pin: piece.pin && alone, ..piece })?;
                n = end;
                continue;
            };
            let same = |other: &Option<&PageRun>| other.is_some_and(|other| std::ptr::eq(other, run));
            let end = n + places[n..].iter().take_while(|place| same(place)).count();
            self.bytes += page(end) - page(n);
            if page(n) == run.vaddr && page(end) == run.vaddr + run.len() {
                ready.push(*run);
            } else {
                // A part of a run has a digest of its own.
                let stored = Some((run.file, run.offset + (page(n) - run.vaddr)));
                give(Piece { start: page(n), end: page(end), stored, pin: false, ..piece })?;
            }
            n = end;
        }
        Ok(())
    }

    /// Notes in `places` the runs of `relative` that hold the pages of `piece`, whose frames are `own`.
    fn find<'b>(
        &self,
        relative: &'b Relative<'a>,
        piece: &Piece,
        own: &[Entry],
        places: &mut [Option<&'b PageRun>],
    ) -> Result<(), Error> {
        let first = relative.runs.partition_point(|run| run.vaddr + run.len() <= piece.start);
        let runs = relative.runs[first..].iter().take_while(|run| run.vaddr < piece.end);
        let mut theirs = None;
        for run in runs {
            let theirs = match &theirs {
                Some(theirs) => theirs,
                None => theirs.insert(self.both(relative, piece, own)?),
            };
            let from = run.vaddr.max(piece.start);
            let to = (run.vaddr + run.len()).min(piece.end);
            for n in ((from - piece.start) / PAGE)..((to - piece.start) / PAGE) {
                let n = n as usize;
                if theirs[n] && places[n].is_none() {
                    places[n] = Some(run);
                }
            }
        }
        Ok(())
    }

    /// Which pages both have. The kernel may move a page to another frame at any moment and give the old frame away, so
    /// only a frame counts that is the same before and after it was seen in the other process.
    fn both(&self, relative: &Relative<'_>, piece: &Piece, own: &[Entry]) -> Result<Vec<bool>, Failure> {
        let theirs = entries(relative.pid, &relative.pagemap, piece)?;
        let again = entries(self.pid, self.pagemap, piece)?;
        let same = |((before, their), after): ((&Entry, &Entry), &Entry)| {
            before.frame().is_some() && before.frame() == their.frame() && before.frame() == after.frame()
        };
        Ok(own.iter().zip(&theirs).zip(&again).map(same).collect())
    }
}

/// The pagemap entries of the pages of `piece`.
fn entries(pid: Pid, pagemap: &File, piece: &Piece) -> Result<Vec<Entry>, Failure> {
    let mut bytes = vec![0; (piece.len() / PAGE * 8) as usize];
    pagemap
        .read_exact_at(&mut bytes, piece.start / PAGE * 8)
        .doing(|| format!("read the page map of process {pid} at {:#x}", piece.start))?;
    let (words, _) = bytes.as_chunks::<8>();
    Ok(words.iter().map(|word| Entry(u64::from_ne_bytes(*word))).collect())
}

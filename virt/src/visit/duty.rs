//! The thread on duty: what it was, and how it becomes that again.

use crate::stub::{self, Former};
use crate::sys::ptrace;
use crate::tracee::Tracee;
use crate::worker::Worker;
use crate::{Doing, Failure, sys};

/// A thread that undoes everything when it is let go.
#[derive(Debug)]
pub(super) struct Duty {
    pub thread: Tracee,
    /// Its CPUs, without the zeroes at the end; none if there are more than a way back could give it again: then it is not
    /// pinned.
    affinity: Vec<u8>,
    /// Which of the two ways back is its.
    pub slot: u64,
}

impl Duty {
    pub fn new(thread: &Tracee, slot: u64) -> Result<Duty, Failure> {
        let pid = thread.pid();
        let mut affinity = sys::affinity(pid).doing(|| format!("ask for the CPUs of thread {pid}"))?;
        // To the kernel a mask that is too short ends with zeroes.
        affinity.truncate(affinity.iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1));
        if affinity.len() > stub::MAX_AFFINITY {
            affinity.clear();
        }
        Ok(Duty { thread: thread.clone(), affinity, slot })
    }

    pub fn former(&self) -> Former<'_> {
        Former { affinity: &self.affinity, mask: self.thread.mask, regs: &self.thread.regs }
    }

    pub fn pin(&self, cpu: usize) -> Result<(), Failure> {
        if self.affinity.is_empty() { Ok(()) } else { Worker::pin(self.thread.pid(), cpu) }
    }

    /// Gives the thread, in an event stop, all that is its own again. The registers come last: until then it goes on by itself
    /// at its way back, where its stack is its own, so that its signals may come.
    pub fn come_out(&self) -> Result<(), Failure> {
        let Tracee { mask, regs, .. } = &self.thread;
        let pid = self.thread.pid();
        let what = || format!("reset thread {pid}");
        if !self.affinity.is_empty() {
            sys::set_affinity(pid, &self.affinity).doing(|| format!("give thread {pid} its CPUs again"))?;
        }
        ptrace::set_signal_mask(pid, *mask).doing(what)?;
        ptrace::set_registers(pid, regs).doing(what)
    }
}

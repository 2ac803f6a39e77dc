//! Calls that were received and are not answered yet, in memory that outlives the one who answers.
//!
//! The kernel gives a call away once: if its receiver is killed while somebody else keeps the listener open, the call waits
//! for ever. So each thread that receives has a slot in memory that the keeper shares with every supervisor that it starts
//! ([`crate::supervisor::keeper`]). The kernel writes the call there itself (`SECCOMP_IOCTL_NOTIF_RECV` hands it out again if it
//! can't): a call is either still to be received, or in a slot, with the step that it has come to.

use ckrun_virt::Failure;
use nix::errno::Errno;
use std::cell::UnsafeCell;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicI64, AtomicU32, AtomicUsize, Ordering};

/// The most calls at a time; one more waits.
const SLOTS: usize = 1024;

/// Bytes of a slot's room: the longest argument of a claimed ioctl.
pub const ROOM: usize = 1 << 16;

/// How far a call has come. Only what can't be done twice has steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Nothing has been done for it.
    Received,
    /// It is being carried out, and nobody can say how much of it has been.
    Doing,
    /// It has been carried out; its result is in the slot.
    Done,
}

/// A page of its own, so that the kernel writes the call as a whole or not at all.
#[repr(C, align(4096))]
#[derive(Debug)]
struct Slot {
    call: UnsafeCell<libc::seccomp_notif>,
    /// Whether a thread has it.
    taken: AtomicU32,
    step: AtomicU32,
    result: AtomicI64,
    room: UnsafeCell<[u8; ROOM]>,
}

// SAFETY: the cells are used only by the thread that has set `taken`; everything else is atomic.
unsafe impl Sync for Slot {}

#[repr(C)]
#[derive(Debug)]
struct Slots {
    /// How many were ever in use: to look at the others would only take memory for them.
    used: AtomicUsize,
    all: [Slot; SLOTS],
}

/// All slots. They stay as long as one of the processes that share them.
#[derive(Debug, Clone, Copy)]
pub struct Pending(&'static Slots);

/// A slot of one thread's own.
#[derive(Debug)]
pub struct Held(&'static Slot);

impl Pending {
    /// Makes them, in memory that is shared with all processes that are forked from now on. What is not used takes none.
    ///
    /// # Errors
    /// The kernel's.
    pub fn new() -> Result<Pending, Failure> {
        let size = size_of::<Slots>();
        let (access, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_ANONYMOUS);
        // SAFETY: a new mapping, where the kernel likes.
        let place = unsafe { libc::mmap(std::ptr::null_mut(), size, access, flags, -1, 0) };
        if place == libc::MAP_FAILED {
            return Err(Failure::new("make memory for the calls that are answered", Errno::last()));
        }
        // SAFETY: the mapping has this size, is aligned to pages, is never unmapped, and zeroes are a slot that nobody has.
        Ok(Pending(unsafe { &*place.cast() }))
    }

    /// A free slot; None if all are in use.
    pub fn claim(self) -> Option<Held> {
        let free = |(_, slot): &(usize, &Slot)| {
            slot.taken.compare_exchange(0, 1, Ordering::AcqRel, Ordering::Relaxed).is_ok()
        };
        let (at, slot) = self.0.all.iter().enumerate().find(free)?;
        self.0.used.fetch_max(at + 1, Ordering::AcqRel);
        Some(Held(slot))
    }

    /// Takes the slots over from a process that has ended: those that have a call.
    pub fn inherit(self) -> Vec<Held> {
        let used = &self.0.all[..self.0.used.load(Ordering::Acquire)];
        used.iter().for_each(|slot| slot.taken.store(1, Ordering::Release));
        // The others are free again when they are dropped.
        used.iter().map(Held).filter(|held| held.call().is_some()).collect()
    }
}

impl Held {
    /// Waits for the next call. `ENOENT` when its task was killed meanwhile.
    pub fn receive(&mut self, listener: BorrowedFd<'_>) -> Result<(), Errno> {
        self.clear();
        // SAFETY: the kernel writes one `struct seccomp_notif` to the slot, which is this thread's, and which is zero as the
        // kernel insists.
        let done =
            unsafe { libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_RECV, self.0.call.get()) };
        Errno::result(done).map(drop)
    }

    /// The call that it has.
    pub fn call(&self) -> Option<libc::seccomp_notif> {
        // SAFETY: this thread has the slot, and any bytes are such a structure.
        let call = unsafe { self.0.call.get().read_volatile() };
        // In ckrun's pid namespace there is no task 0.
        (call.pid != 0).then_some(call)
    }

    /// How far it has come.
    pub fn step(&self) -> Step {
        match self.0.step.load(Ordering::Acquire) {
            0 => Step::Received,
            1 => Step::Doing,
            _ => Step::Done,
        }
    }

    /// What follows can't be done twice.
    pub fn begin(&mut self) {
        self.0.step.store(1, Ordering::Release);
    }

    /// It has been done, with this result.
    pub fn done(&mut self, result: Result<i32, Errno>) {
        let result = result.map_or_else(|errno| -i64::from(errno as i32), i64::from);
        self.0.result.store(result, Ordering::Release);
        self.0.step.store(2, Ordering::Release);
    }

    /// The result.
    pub fn result(&self) -> Result<i64, Errno> {
        match self.0.result.load(Ordering::Acquire) {
            result if result < 0 => Err(Errno::from_raw(-result as i32)),
            result => Ok(result),
        }
    }

    /// Bytes that go with the call.
    pub fn room(&mut self) -> &mut [u8; ROOM] {
        // SAFETY: this thread has the slot, and lends it out once.
        unsafe { &mut *self.0.room.get() }
    }

    /// The call has been answered.
    pub fn clear(&mut self) {
        // SAFETY: an all-zero value is a valid one of this structure of integers; the slot is this thread's.
        unsafe { self.0.call.get().write_volatile(std::mem::zeroed()) };
        self.0.step.store(0, Ordering::Release);
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.0.taken.store(0, Ordering::Release);
    }
}

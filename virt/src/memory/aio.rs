//! Contexts of asynchronous I/O (io_setup(2)). Each has a ring of answers, which the kernel maps into the process; its address
//! is the context's name.
//!
//! A new context of the same size is moved to the old address. Where in the ring the kernel writes next, it keeps to itself,
//! so requests that do nothing are made until it is there. The answers that nobody has taken are put back. The most
//! requests that a context was made for is not known; the new one has as many as its ring has room for.

use super::disks;
use super::layout::Layout;
use super::object::Obstacle;
use super::smaps::Entry;
use super::vma::{PAGE, Prot, Span};
use crate::hex::Hex;
use crate::program::{Answers, Call, Program};
use crate::worker::Worker;
use crate::{Doing, Failure};
use nix::errno::Errno;
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::os::unix::fs::FileExt;

/// Bytes of the ring's head, `struct aio_ring`, and of an answer, `struct io_event`.
const HEADER: u64 = 32;
const EVENT: u64 = 32;
/// Where the head has the number of slots, the next answer to be read, and the next to be written.
const SLOTS: u64 = 4;
const HEAD: u64 = 8;
const MAGIC: u32 = 0xa10a_10a1;
/// `IOCB_CMD_PREAD`.
const PREAD: u16 = 0;
/// Requests made at a time: fewer than the smallest ring has room for.
const AT_ONCE: u32 = 32;

/// A context.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Ring {
    /// Where its ring is mapped.
    pub range: Span,
    /// Where the oldest answer is that nobody has taken.
    pub head: u32,
    /// Where the next answer comes.
    pub tail: u32,
    /// The answers in between.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unread: Vec<[Hex; 4]>,
}

/// The mapping is called like a ring.
pub(super) fn is_ring(entry: &Entry<'_>) -> bool {
    entry.path == b"/[aio] (deleted)" && entry.shared && entry.device.0 == 0
}

impl Ring {
    /// The ring of a mapping, of which nothing is known yet.
    pub(super) fn at(entry: &Entry<'_>) -> Result<Ring, Obstacle> {
        if entry.prot != Prot::READ.and(Prot::WRITE) {
            let what = format!("mapping {} of /[aio]", entry.range);
            return Err(Obstacle::new(
                what,
                "the ring of an asynchronous I/O context, with a changed protection",
            ));
        }
        Ok(Ring { range: entry.range, head: 0, tail: 0, unread: Vec::new() })
    }

    fn slots(&self) -> u32 {
        u32::try_from((self.range.len() - HEADER) / EVENT).unwrap_or(0)
    }

    /// How many answers wait.
    fn waiting(&self) -> u32 {
        (self.tail + self.slots() - self.head) % self.slots()
    }

    fn slot(&self, number: u32) -> u64 {
        self.range.start + HEADER + EVENT * u64::from(number % self.slots())
    }

    /// Why there can't be such a ring.
    pub(super) fn wrong(&self) -> Option<&'static str> {
        let slots = self.slots();
        let fits = (1..1 << 24).contains(&slots) && self.head < slots && self.tail < slots;
        (!fits || self.waiting() as usize != self.unread.len())
            .then_some("an impossible ring of asynchronous I/O")
    }

    /// Reads what is in it.
    fn read(&mut self, memory: &File) -> Result<bool, Failure> {
        let what = || format!("read the ring at {}", self.range);
        let mut head = [0; HEADER as usize];
        memory.read_exact_at(&mut head, self.range.start).doing(what)?;
        let word =
            |at: usize| head.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_ne_bytes);
        let slots = self.slots();
        if word(16) != MAGIC || word(4) != slots || slots == 0 {
            return Ok(false);
        }
        (self.head, self.tail) = (word(8) % slots, word(12) % slots);
        let mut unread = Vec::new();
        for number in 0..self.waiting() {
            let mut event = [0; EVENT as usize];
            memory.read_exact_at(&mut event, self.slot(self.head + number)).doing(what)?;
            let word = |n: usize| event[8 * n..8 * n + 8].try_into().map_or(0, u64::from_ne_bytes);
            unread.push([0, 1, 2, 3].map(|n| Hex(word(n))));
        }
        self.unread = unread;
        Ok(true)
    }
}

/// Asks for each ring whether it is that of a context: a child inherits the mapping, and no context.
pub(crate) fn ask(layout: &Layout, program: &mut Program) -> Vec<Call> {
    let ask = |ring: &Ring| {
        let now = program.room(size_of::<libc::timespec>());
        let args = [ring.range.start.into(), 0.into(), 0.into(), 0.into(), now.into()];
        program.attempt("look at an asynchronous I/O context", libc::SYS_io_getevents, &args)
    };
    layout.rings.iter().map(ask).collect()
}

/// Reads the rings. What can't be carried is named.
pub(crate) fn take(
    layout: &mut Layout,
    asked: &[Call],
    answers: &Answers,
    memory: &File,
    host: Pid,
) -> Result<Vec<Obstacle>, Failure> {
    let mut obstacles = Vec::new();
    if layout.rings.is_empty() {
        return Ok(obstacles);
    }
    let settled = disks::settle(host);
    for (ring, call) in layout.rings.iter_mut().zip(asked) {
        let range = ring.range;
        let mut refuse = |why| obstacles.push(Obstacle::new(format!("mapping {range} of /[aio]"), why));
        if answers.of(*call).is_err() {
            refuse("the ring of an asynchronous I/O context of another process (io_setup, fork)");
        } else if !settled {
            refuse("its requests may be on their way: the disks of its files are too busy to tell");
        } else if !ring.read(memory)? {
            refuse("it does not look like the ring of an asynchronous I/O context");
        }
    }
    Ok(obstacles)
}

/// Makes all contexts of a process whose other memory is there.
pub(crate) fn make(worker: &mut Worker, rings: &[Ring]) -> Result<(), Failure> {
    if rings.is_empty() {
        return Ok(());
    }
    let mut program = Program::new();
    for ring in rings {
        // No new ring may come to be where another is to go.
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
        let args =
            [ring.range.start.into(), ring.range.len().into(), 0.into(), flags.into(), (-1).into(), 0.into()];
        program.call(format!("keep {} free", ring.range), libc::SYS_mmap, &args);
    }
    let empty = program.put_cstr(b"ckrun");
    let nothing = program.call("make an empty file", libc::SYS_memfd_create, &[empty.into(), 0.into()]);
    let nothing = worker.run(&program)?.of(nothing).doing(|| "make an empty file")?;
    for ring in rings {
        ring.make(worker, nothing)?;
    }
    let mut program = Program::new();
    program.call("close a descriptor", libc::SYS_close, &[nothing.into()]);
    worker.run(&program).map(drop)
}

impl Ring {
    fn make(&self, worker: &mut Worker, nothing: i64) -> Result<(), Failure> {
        let what = || format!("make the asynchronous I/O context at {}", self.range);
        let mut program = Program::new();
        let context = program.room(8);
        // The kernel makes room for twice as many, and two more, and fills up the last page (`aio_setup_ring`).
        let requests = self.slots().saturating_sub(2) / 2;
        program.call(what(), libc::SYS_io_setup, &[requests.into(), context.into()]);
        let context = worker.run(&program)?.u64(context, 0);
        let mut slots = [0; 4];
        worker.read(context + SLOTS, &mut slots)?;
        if u32::from_ne_bytes(slots) != self.slots() {
            // It has more for more CPUs, and this host has more.
            return Err(Failure::new(what(), Errno::EOVERFLOW));
        }
        let mut tail = 0;
        while tail < self.head {
            let count = AT_ONCE.min(self.head - tail);
            ask_nothing(worker, context, nothing, count)?;
            tail += count;
            worker.write(context + HEAD, &tail.to_ne_bytes())?;
        }
        let mut waiting = self.waiting();
        while waiting > 0 {
            let count = AT_ONCE.min(waiting);
            ask_nothing(worker, context, nothing, count)?;
            waiting -= count;
        }
        let mut program = Program::new();
        let (start, len) = (self.range.start, self.range.len());
        let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
        let args = [context.into(), len.into(), len.into(), flags.into(), start.into()];
        program.call(what(), libc::SYS_mremap, &args);
        worker.run(&program)?;
        for (number, event) in (self.head..).zip(&self.unread) {
            worker.write(self.slot(number), &event.map(|word| word.0.to_ne_bytes()).concat())?;
        }
        worker.write(start + HEAD, &self.head.to_ne_bytes())
    }
}

/// Makes requests to read nothing from an empty file, which are done at once.
fn ask_nothing(worker: &mut Worker, context: u64, nothing: i64, count: u32) -> Result<(), Failure> {
    // struct iocb, linux/aio_abi.h: data, key, flags, opcode, priority, descriptor, and zeroes.
    let mut request = [0; 64];
    request[16..18].copy_from_slice(&PREAD.to_ne_bytes());
    request[20..24].copy_from_slice(&(nothing as u32).to_ne_bytes());
    let mut program = Program::new();
    let request = program.put(&request);
    let list = program.room(8 * count as usize);
    for number in 0..count as usize {
        program.link(list, 8 * number, request);
    }
    let what = "move the end of a ring of asynchronous I/O";
    let done = program.call(what, libc::SYS_io_submit, &[context.into(), count.into(), list.into()]);
    match worker.run(&program)?.of(done) {
        Ok(done) if done == i64::from(count) => Ok(()),
        Ok(_) => Err(Failure::new(what, Errno::EAGAIN)),
        Err(errno) => Err(Failure::new(what, errno)),
    }
}

const _: () = assert!(PAGE / EVENT - 1 > 2 * AT_ONCE as u64, "the smallest ring");

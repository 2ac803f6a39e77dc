//! Sets of watched descriptions (epoll(7)).
//!
//! An entry is a description and the number by which it was added, and lives as long as the description: the number may
//! have been closed since, or lead elsewhere. So kcmp(2) is asked which description it is, and at a restart an entry is
//! added through a number that is lent to its description for a moment. All that happens in the job's first process,
//! before any process has its descriptors: it makes no difference to the entry who added it, unless it is a signalfd's
//! (`Files::watch_signals`).

use super::capture::Job;
use super::making::Making;
use super::stream::ready;
use super::{Description, Files, Object, Trouble};
use crate::program::Program;
use crate::sys::kcmp::{EpollSlot, compare_epoll_target};
use crate::{Doing, Failure};
use nix::errno::Errno;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::{Deserialize, Serialize};
use std::cmp::Ordering;
use std::collections::{HashMap, HashSet};
use std::os::fd::{AsFd, OwnedFd, RawFd};

/// The events that the kernel reports whether they are wanted or not. An entry that has reported, with EPOLLONESHOT, and
/// was not set again, has not even these.
const ALWAYS: u32 = (libc::EPOLLERR | libc::EPOLLHUP) as u32;
/// How many entries are looked at, or set, at once.
const MANY: usize = 64;
/// `sizeof(struct pollfd)`.
const POLLFD: usize = 8;

/// A set of watched descriptions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Epoll {
    /// Its entries.
    pub entries: Vec<Entry>,
    /// None of its entries has anything to report: what is ready was reported before (EPOLLET). Not known if unset.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub quiet: bool,
}

/// A watched description.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Entry {
    /// The number by which it was added.
    pub fd: RawFd,
    /// Which one.
    pub description: u32,
    /// `EPOLL*`.
    pub events: u32,
    /// What is reported with them.
    pub data: u64,
    /// Which of the events there are, though the epoll has nothing to report: they have been reported (EPOLLET).
    #[serde(default, skip_serializing_if = "is_none")]
    pub reported: u32,
}

fn is_none(events: &u32) -> bool {
    *events == 0
}

impl Entry {
    /// Its events are reported when they come, and not as long as they last.
    fn is_of_edges(&self) -> bool {
        self.events & libc::EPOLLET as u32 != 0 && !self.is_disabled()
    }

    /// `struct pollfd`: the question which of its events there are. epoll and poll give them the same bits.
    fn question(&self, fd: RawFd) -> [u8; POLLFD] {
        let mut bytes = [0; POLLFD];
        bytes[..4].copy_from_slice(&fd.to_ne_bytes());
        bytes[4..6].copy_from_slice(&(self.events as u16).to_ne_bytes());
        bytes
    }

    /// It has reported, and waits to be set again.
    fn is_disabled(&self) -> bool {
        self.events & ALWAYS == 0
    }

    /// Adds it to the epoll `own` once more, in the name of the process that does it.
    pub(super) fn add_again(&self, own: RawFd, program: &mut Program) {
        let event = program.put(&self.encode());
        for operation in [libc::EPOLL_CTL_DEL, libc::EPOLL_CTL_ADD] {
            let args = [own.into(), operation.into(), self.fd.into(), event.into()];
            program.call(format!("watch signalfd {} by an epoll", self.fd), libc::SYS_epoll_ctl, &args);
        }
    }

    /// `struct epoll_event`, which has no padding.
    fn encode(&self) -> [u8; 12] {
        let mut bytes = [0; 12];
        bytes[..4].copy_from_slice(&self.events.to_ne_bytes());
        bytes[4..].copy_from_slice(&self.data.to_ne_bytes());
        bytes
    }
}

/// A line of fdinfo: `tfd: 5 events: 19 data: 5 pos:0 ino:2b sdev:9`.
struct Line {
    fd: RawFd,
    events: u32,
    data: u64,
    inode: u64,
}

fn parse(rest: &str) -> Option<Line> {
    let mut words = rest.split_ascii_whitespace();
    let fd = words.next()?.parse().ok()?;
    let events = u32::from_str_radix(words.nth(1)?, 16).ok()?;
    let data = u64::from_str_radix(words.nth(1)?, 16).ok()?;
    let inode = words.find_map(|word| u64::from_str_radix(word.strip_prefix("ino:")?, 16).ok())?;
    Some(Line { fd, events, data, inode })
}

impl Job<'_> {
    pub(super) fn epoll(&mut self, node: usize) -> Result<Epoll, Trouble> {
        let seen = &self.graph.nodes[node].seen;
        let mut nth = HashMap::new();
        let mut entries = Vec::new();
        let mut targets = Vec::new();
        for line in seen.info.lines("tfd").filter_map(parse) {
            let count = nth.entry(line.fd).or_insert(0_u32);
            let slot =
                EpollSlot { epoll: self.graph.nodes[node].fd as u32, target: line.fd as u32, nth: *count };
            *count += 1;
            let Some(target) = self.target(node, &line, slot)? else {
                if self.running() {
                    continue;
                }
                let why = format!("it watches what no descriptor leads to any more (added as {})", line.fd);
                return Err(Trouble::refused("epoll", why));
            };
            targets.push(target);
            entries.push(Entry {
                fd: line.fd,
                description: self.description(target, line.fd),
                events: line.events,
                data: line.data,
                reported: 0,
            });
        }
        self.watched.insert(node, targets);
        Ok(Epoll { entries, quiet: false })
    }

    /// Finds out which epolls have nothing to report. To ask one makes it ask its entries; what a signalfd answers
    /// depends on who asks: ckrun has no signals, and the epoll would forget that the job has.
    pub(super) fn quiet_epolls(&mut self) -> Result<(), Failure> {
        for &node in self.watched.keys() {
            let mut seen = HashSet::from([node]);
            let mut next = vec![node];
            let mut askable = true;
            while let Some(at) = next.pop() {
                askable &= self.graph.nodes[at].seen.anonymous() != Some(b"signalfd");
                let targets = self.watched.get(&at).into_iter().flatten();
                next.extend(targets.copied().filter(|&target| seen.insert(target)));
            }
            let id = self.description(node, -1) as usize;
            if let Some(Description { object: Object::Epoll(epoll), .. }) =
                self.files.descriptions.get_mut(id)
            {
                epoll.quiet = askable && is_quiet(&self.graph.take(node)?)?;
                let entries = epoll.entries.iter_mut().zip(&self.watched[&node]);
                for (entry, &target) in entries.filter(|(entry, _)| epoll.quiet && entry.is_of_edges()) {
                    let wanted = PollFlags::from_bits_retain(entry.events as u16);
                    entry.reported = ready(self.graph.take(target)?.as_fd(), wanted).bits().into();
                }
            }
        }
        Ok(())
    }

    /// The description that an entry watches.
    fn target(&self, node: usize, line: &Line, slot: EpollSlot) -> Result<Option<usize>, Trouble> {
        let (owner, _) = self.graph.place(node);
        let is = |candidate: usize| match compare_epoll_target(self.graph.place(candidate), owner, slot) {
            Ok(order) => Ok(order == Ordering::Equal),
            Err(Errno::ENOENT | Errno::EBADF | Errno::ESRCH) => Ok(false),
            Err(errno) => Err(errno).doing(|| format!("find what an epoll watches as {}", line.fd)),
        };
        let likely = self.graph.find(self.graph.nodes[node].member, line.fd);
        let likely = likely.filter(|&likely| self.graph.nodes[likely].seen.info.inode == line.inode);
        for candidate in likely.into_iter().chain(self.graph.all(|seen| seen.info.inode == line.inode)) {
            if is(candidate)? {
                return Ok(Some(candidate));
            }
        }
        Ok(None)
    }
}

fn is_quiet(fd: &OwnedFd) -> Result<bool, Failure> {
    let mut fds = [PollFd::new(fd, PollFlags::IN)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    let ready = poll(&mut fds, Some(&now)).doing(|| "ask an epoll whether it is ready")?;
    Ok(ready == 0)
}

impl Epoll {
    pub(super) fn make(&self, to: RawFd, making: &mut Making<'_>) {
        let flags = libc::EPOLL_CLOEXEC;
        let made = making.program.call("make an epoll", libc::SYS_epoll_create1, &[flags.into()]);
        making.put_at(made.into(), to);
    }

    /// Adds the entries that have reported and wait to be set again, while the set is empty otherwise and nothing has its
    /// content yet. Only a report disables an entry, so each is given something to report.
    pub(super) fn add_disabled(&self, own: RawFd, making: &mut Making<'_>) {
        let disabled: Vec<&Entry> = self.entries.iter().filter(|entry| entry.is_disabled()).collect();
        if disabled.is_empty() {
            return;
        }
        let undo: Vec<_> = disabled.iter().map(|entry| rouse(entry, making)).collect();
        for entry in &disabled {
            let any = (libc::EPOLLIN | libc::EPOLLOUT | libc::EPOLLONESHOT) as u32;
            self.add(&Entry { events: entry.events | any, ..**entry }, own, making);
        }
        let room = making.program.room(12 * disabled.len());
        let args = [own.into(), room.into(), disabled.len().into(), 0.into(), 0.into()];
        making.program.call("take an epoll's reports", libc::SYS_epoll_pwait, &args);
        for (entry, undo) in disabled.iter().zip(undo) {
            if undo.is_some() {
                let bytes = making.program.room(8);
                let from = making.at(entry.description);
                let args = [from.into(), bytes.into(), bytes.len.into()];
                making.program.attempt("take back what was to be reported", libc::SYS_read, &args);
            }
        }
    }

    /// Adds all other entries whose descriptions are there.
    pub(super) fn add_rest(&self, own: RawFd, making: &mut Making<'_>) {
        for entry in &self.entries {
            if !entry.is_disabled() && !making.is_late(entry.description) {
                self.add(entry, own, making);
            }
        }
    }

    fn add(&self, entry: &Entry, own: RawFd, making: &mut Making<'_>) {
        let from = making.at(entry.description);
        // A stream that was watched may be one now that can't be: a file instead of a terminal, say. It is always ready.
        let way = if making.is_given(entry.description) { Way::Try } else { Way::Add };
        watch(entry, own, from, making.is_taken(entry.fd), making.free(), way, &mut making.program);
    }

    /// Takes the reports of what has been reported before.
    pub(super) fn settle(&self, own: RawFd, making: &mut Making<'_>) {
        if self.quiet && !self.entries.is_empty() {
            let room = making.program.room(12 * self.entries.len());
            let args = [own.into(), room.into(), self.entries.len().into(), 0.into(), 0.into()];
            making.program.call("take an epoll's reports", libc::SYS_epoll_pwait, &args);
        }
    }
}

impl Files {
    /// Looks once more at what quiet epolls watch, now that everything is there. What is ready now, and was not when it was
    /// captured, has not been reported; if [`Epoll::settle`] has taken it for reported, nobody would ever hear of it.
    /// (A pipe that was full of small pieces may have room; a socket that was full has been filled since.) A socket without
    /// room also has to be asked, or it would not tell when it has some.
    pub(super) fn look_again(&self, making: &mut Making<'_>) -> Result<(), Failure> {
        let mut watched = Vec::new();
        for (id, description) in (0..).zip(&self.descriptions) {
            let Object::Epoll(epoll) = &description.object else { continue };
            let there = |entry: &&Entry| {
                entry.is_of_edges()
                    && !making.is_late(entry.description)
                    && !making.is_given(entry.description)
            };
            let entries = epoll.entries.iter().filter(|_| epoll.quiet).filter(there);
            watched.extend(entries.map(|entry| (making.at(id), entry)));
        }
        for watched in watched.chunks(MANY) {
            let questions =
                watched.iter().flat_map(|(_, entry)| entry.question(making.at(entry.description)));
            let mut program = Program::new();
            let place = program.put(&questions.collect::<Vec<u8>>());
            let args = [place.into(), watched.len().into(), 0.into()];
            program.call("look at what epolls watch", libc::SYS_poll, &args);
            let answers = making.worker.run(&program)?;
            for (n, (own, entry)) in watched.iter().enumerate() {
                // The upper half of the second word.
                let there = answers.u32(place, n * POLLFD + 4) >> 16;
                if there & !entry.reported != 0 {
                    let (from, taken) = (making.at(entry.description), making.is_taken(entry.fd));
                    watch(entry, *own, from, taken, making.free(), Way::Again, &mut making.program);
                }
            }
            making.run()?;
        }
        Ok(())
    }
}

/// How an entry is set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// It is new.
    Add,
    /// It is new, unless its description can't be watched.
    Try,
    /// It is there, and is to report what is ready.
    Again,
}

/// Sets an entry of the epoll `own`: `from` lends its description to number `entry.fd`. If that is `taken`, what is
/// there waits at number `free` or above.
pub(super) fn watch(
    entry: &Entry,
    own: RawFd,
    from: RawFd,
    taken: Option<bool>,
    free: RawFd,
    way: Way,
    program: &mut Program,
) {
    let lent = entry.fd;
    let what = format!("watch descriptor {lent} by an epoll");
    let event = program.put(&entry.encode());
    let aside = taken.map(|_| {
        let args = [lent.into(), libc::F_DUPFD_CLOEXEC.into(), free.into()];
        program.call("put a descriptor aside", libc::SYS_fcntl, &args)
    });
    let cloexec = libc::O_CLOEXEC;
    if from != lent {
        program.call("lend a number", libc::SYS_dup3, &[from.into(), lent.into(), cloexec.into()]);
    }
    let operation = if way == Way::Again { libc::EPOLL_CTL_MOD } else { libc::EPOLL_CTL_ADD };
    let args = [own.into(), operation.into(), lent.into(), event.into()];
    if way == Way::Try {
        program.attempt(what, libc::SYS_epoll_ctl, &args);
    } else {
        program.call(what, libc::SYS_epoll_ctl, &args);
    }
    match (aside, taken) {
        (Some(aside), Some(cloexec)) => {
            let flags = if cloexec { libc::O_CLOEXEC } else { 0 };
            program.call("put a descriptor back", libc::SYS_dup3, &[aside.into(), lent.into(), flags.into()]);
            program.call("close a descriptor", libc::SYS_close, &[aside.into()]);
        }
        _ => {
            program.call("take a number back", libc::SYS_close, &[lent.into()]);
        }
    }
}

/// Gives an entry's description something to report. The answer says that a byte is to be read again.
fn rouse(entry: &Entry, making: &mut Making<'_>) -> Option<()> {
    let description = making.files.description(entry.description)?;
    match &description.object {
        // A pipe's writing end is ready as long as there is nothing in it; so is an eventfd.
        Object::Pipe(of) if description.flags & libc::O_ACCMODE as u32 == 0 => {
            let writer = making.pipes.get(of.pipe as usize)?[1];
            let byte = making.program.put(b"!");
            making.program.call("write a byte", libc::SYS_write, &[writer.into(), byte.into(), 1.into()]);
            Some(())
        }
        Object::Fifo(of) if description.flags & libc::O_ACCMODE as u32 == 0 => {
            let writer = *making.fifos.get(of.fifo as usize)?;
            let byte = making.program.put(b"!");
            making.program.call("write a byte", libc::SYS_write, &[writer.into(), byte.into(), 1.into()]);
            Some(())
        }
        Object::Timerfd(_) => {
            let timer = making.at(entry.description);
            let spec = making.program.put(&[0, 0, 0, 1_i64].map(i64::to_ne_bytes).concat());
            let absolute = libc::TFD_TIMER_ABSTIME;
            let args = [timer.into(), absolute.into(), spec.into(), 0.into()];
            making.program.call("let a timerfd expire", libc::SYS_timerfd_settime, &args);
            Some(())
        }
        _ => None,
    }
}

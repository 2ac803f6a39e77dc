//! Making every description in the first process of a restarted job.
//!
//! Descriptions are put at numbers that no process of the job has for anything, side by side from one number on: every
//! call can name them from the start, and all processes inherit them. What the kernel lets nobody open twice, and what is
//! to be filled, ckrun does from outside, between two programs.

use super::seen::descriptors;
use super::stream::reopen;
use super::{Files, Object};
use crate::image::Image;
use crate::program::{Arg, Program};
use crate::restore::Options;
use crate::worker::{HEADER, Hatch, STACK, Worker};
use crate::{Doing, Error, Failure};
use nix::errno::Errno;
use nix::unistd::Pid;
use rustix::fs::{Mode, OFlags};
use std::collections::{BTreeMap, HashMap};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::rc::Rc;

/// The flags of a description that open(2) sets. Left out are those that would change the file.
pub(super) const OPEN: u32 = (libc::O_ACCMODE
    | libc::O_APPEND
    | libc::O_NONBLOCK
    | libc::O_SYNC
    | libc::O_DIRECT
    | libc::O_DIRECTORY
    | libc::O_NOFOLLOW
    | libc::O_NOATIME
    | libc::O_PATH) as u32
    | LARGE;
/// O_LARGEFILE, which libc says is 0 for programs of 64 bits.
const LARGE: u32 = 0o100_000;
/// The flags that F_SETFL changes, O_ASYNC aside.
const SETTABLE: u32 = (libc::O_APPEND | libc::O_NONBLOCK | libc::O_DIRECT | libc::O_NOATIME) as u32;

/// Where everything is in the first process, and in all that inherit from it.
#[derive(Debug, Clone, Default)]
pub struct Made {
    /// The first number that no process of the job uses.
    base: RawFd,
    /// Descriptors that are not to be closed yet: those of ckrun.
    keep: Vec<RawFd>,
    ghosts: Vec<RawFd>,
    /// Of those who have a description, the one who does for it what only one has to do.
    holders: HashMap<u32, (i32, RawFd)>,
}

impl Made {
    /// The number of a description until the processes have their own.
    pub fn at(&self, description: u32) -> RawFd {
        self.base.saturating_add_unsigned(description)
    }

    /// The number of a deleted file or directory until the processes have their own.
    pub(crate) fn ghost(&self, ghost: u32) -> Option<RawFd> {
        self.ghosts.get(ghost as usize).copied()
    }

    /// A process that has the description, and its number there.
    pub(super) fn holder(&self, description: u32) -> Option<(i32, RawFd)> {
        self.holders.get(&description).copied()
    }

    /// From this number on, no process of the job has anything of its own.
    pub fn free(&self) -> RawFd {
        self.base
    }

    /// Lets [`Files::place`] leave another descriptor alone, which every process has inherited from the first one.
    pub fn keep(&mut self, fd: RawFd) {
        self.keep.push(fd);
    }

    /// Numbers that [`Files::place`] does not close. Whoever takes ckrun out of the processes closes them.
    pub fn kept(&self) -> &[RawFd] {
        &self.keep
    }
}

/// The first process while its descriptions are made.
pub(super) struct Making<'a> {
    pub program: Program,
    pub files: &'a Files,
    /// Both ends of each pipe.
    pub pipes: Vec<[RawFd; 2]>,
    /// A descriptor for both ends of each FIFO.
    pub fifos: Vec<RawFd>,
    pub ghosts: Vec<RawFd>,
    pub memfds: Vec<RawFd>,
    worker: &'a mut Worker,
    root: OwnedFd,
    shared: &'a dyn Fn(u32) -> Option<RawFd>,
    /// What the process had before, and whether it is close-on-exec.
    taken: BTreeMap<RawFd, bool>,
    base: RawFd,
    next: RawFd,
    again: Vec<(RawFd, u32, RawFd)>,
}

impl Making<'_> {
    /// The number of a description.
    pub fn at(&self, description: u32) -> RawFd {
        self.base.saturating_add_unsigned(description)
    }

    /// A number for something else.
    pub fn number(&mut self) -> RawFd {
        self.next += 1;
        self.next - 1
    }

    /// From this number on nothing is in use.
    pub fn free(&self) -> RawFd {
        self.next
    }

    /// Something that was there before has this number; the answer is whether it is close-on-exec. The standard streams
    /// are not needed any more once they have been taken over.
    pub fn is_taken(&self, fd: RawFd) -> Option<bool> {
        self.taken.get(&fd).copied().filter(|_| fd > 2)
    }

    /// The description is made when all tasks are there.
    pub fn is_late(&self, description: u32) -> bool {
        self.files.is_late(description)
    }

    /// The description is a standard stream from outside.
    pub fn is_given(&self, description: u32) -> bool {
        self.files.description(description).is_some_and(|d| matches!(d.object, Object::Given(_)))
    }

    /// The root directory of the container.
    pub fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// The descriptor of an object of the job's memory; -1, which fails by name, when there is none.
    pub fn shared(&self, object: u32) -> RawFd {
        (self.shared)(object).unwrap_or(-1)
    }

    /// Opens `path` as descriptor `to`.
    pub fn open(&mut self, path: &[u8], flags: u32, to: RawFd) {
        let name = self.program.put_cstr(path);
        let mut flags = flags | (libc::O_CLOEXEC | libc::O_NOCTTY) as u32;
        if flags & libc::O_PATH as u32 != 0 {
            flags &= (libc::O_PATH | libc::O_DIRECTORY | libc::O_NOFOLLOW | libc::O_CLOEXEC) as u32;
        }
        let what = format!("open {}", String::from_utf8_lossy(path));
        let args = [libc::AT_FDCWD.into(), name.into(), flags.into(), 0.into()];
        let opened = self.program.call(what, libc::SYS_openat, &args);
        self.put_at(opened.into(), to);
    }

    /// Moves a new descriptor to a number.
    pub fn put_at(&mut self, from: Arg, to: RawFd) {
        let flags = libc::O_CLOEXEC;
        self.program.call("move a descriptor", libc::SYS_dup3, &[from, to.into(), flags.into()]);
        self.program.call("close a descriptor", libc::SYS_close, &[from]);
    }

    /// Gives a description another number.
    pub fn copy(&mut self, from: RawFd, to: RawFd) {
        let flags = libc::O_CLOEXEC;
        self.program.call("copy a descriptor", libc::SYS_dup3, &[from.into(), to.into(), flags.into()]);
    }

    /// Gives a new file to a user and a group.
    pub fn give_to(&mut self, fd: RawFd, owner: (u32, u32)) {
        if owner != (0, 0) {
            let args = [fd.into(), owner.0.into(), owner.1.into()];
            self.program.call("give a file to its owner", libc::SYS_fchown, &args);
        }
    }

    /// Sets the size of a pipe.
    pub fn capacity(&mut self, end: RawFd, capacity: u32) {
        let what = format!("give a pipe room for {capacity} bytes");
        self.program.call(what, libc::SYS_fcntl, &[end.into(), libc::F_SETPIPE_SZ.into(), capacity.into()]);
    }

    /// Wants another description of what `from` is of, as descriptor `to`. ckrun opens it: that takes a procfs, which the
    /// container may not have.
    pub fn reopen(&mut self, from: RawFd, flags: u32, to: RawFd) {
        self.again.push((from, flags & OPEN, to));
    }

    /// Runs what has been gathered.
    fn run(&mut self) -> Result<(), Failure> {
        let program = std::mem::take(&mut self.program);
        self.worker.run(&program).map(drop)
    }

    /// Runs what has been gathered when there is little room for more.
    fn run_if_large(&mut self) -> Result<(), Failure> {
        let room = self.worker.area.end - STACK - HEADER - self.worker.area.start;
        // One object takes a few hundred bytes and its path; an epoll's entries take more.
        if self.program.size() as u64 > room / 4 { self.run() } else { Ok(()) }
    }

    fn open_again(&mut self) -> Result<(), Failure> {
        for (from, flags, to) in std::mem::take(&mut self.again) {
            let own = self.worker.pidfd_getfd(from)?;
            // The name in /proc is a link.
            let opened = reopen(&own, flags & !(libc::O_NOFOLLOW as u32))?;
            let given = self.worker.give(opened.as_fd())?;
            self.put_at(given.into(), to);
        }
        self.run()
    }
}

impl Files {
    /// Makes all descriptions in `first`, the job's first process, which is in the container already and has the
    /// standard streams that it is to have as descriptors 0 to 2. `shared` finds, by their numbers, objects of the job's
    /// memory that the first process has as descriptors; `options` say what to do with files that have changed.
    ///
    /// # Errors
    /// The first call that the kernel refuses, by the path or the kind of the object.
    pub fn make(
        &self,
        first: &mut Worker,
        image: &Image,
        shared: &dyn Fn(u32) -> Option<RawFd>,
        options: &Options,
    ) -> Result<Made, Error> {
        let mut making = self.prepare(first, shared)?;
        self.truncate(making.root(), options)?;
        for (id, pipe) in (0..).zip(&self.pipes) {
            pipe.make(id, self, &mut making);
            making.run_if_large()?;
        }
        for (id, memfd) in (0..).zip(&self.memfds) {
            memfd.make(id, self, &mut making);
            making.run_if_large()?;
        }
        for (id, fifo) in (0..).zip(&self.fifos) {
            // One without a name is made with its ghost.
            if let Some(path) = &fifo.path {
                fifo.make(id, path, self, &mut making);
            }
            making.run_if_large()?;
        }
        for (id, ghost) in (0..).zip(&self.ghosts) {
            ghost.make(id, self, &mut making)?;
            making.run_if_large()?;
        }
        for (id, description) in (0..).zip(&self.descriptions) {
            let (to, flags) = (making.at(id), description.flags);
            match &description.object {
                Object::Given(given) => given.make(to, &mut making),
                Object::Regular(regular) => regular.make(flags, to, &mut making),
                Object::Directory(directory) => directory.make(flags, to, &mut making),
                Object::Path(path) => path.make(flags, to, &mut making),
                Object::Device(device) => device.make(flags, to, &mut making),
                Object::Pseudo(pseudo) => pseudo.make(flags, to, &mut making),
                Object::Eventfd(eventfd) => eventfd.make(to, &mut making),
                Object::Signalfd(signalfd) => signalfd.make(to, &mut making),
                Object::Timerfd(timerfd) => timerfd.make(to, &mut making),
                Object::Epoll(epoll) => epoll.make(to, &mut making),
                // Made with what they are of.
                Object::Pipe(_) | Object::Fifo(_) | Object::Ghost(_) | Object::Memfd(_) => {}
            }
            making.run_if_large()?;
        }
        making.run()?;
        making.open_again()?;
        for (id, description) in (0..).zip(&self.descriptions) {
            if let Object::Epoll(epoll) = &description.object {
                epoll.add_disabled(making.at(id), &mut making);
            }
        }
        making.run()?;
        self.fill(&making, image)?;
        self.settle(&mut making)?;
        let mut holders = HashMap::new();
        for (&pid, holdings) in &self.processes {
            for held in &holdings.descriptors {
                holders.entry(held.description).or_insert((pid, held.fd));
            }
        }
        let keep = making.worker.hatch.iter().map(|hatch| hatch.there).collect();
        Ok(Made { base: making.base, keep, ghosts: making.ghosts, holders })
    }

    /// Chooses the numbers, and makes room for them.
    fn prepare<'a>(
        &'a self,
        first: &'a mut Worker,
        shared: &'a dyn Fn(u32) -> Option<RawFd>,
    ) -> Result<Making<'a>, Failure> {
        let host = first.host();
        let path = format!("/proc/{host}/root");
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(&path, flags, Mode::empty()).doing(|| format!("open {path}"))?;
        let mut taken = BTreeMap::new();
        for fd in descriptors(host)? {
            taken.insert(fd, super::seen::Info::read(host, fd)?.cloexec);
        }
        let used = self.processes.values().flat_map(|holdings| &holdings.descriptors).map(|held| held.fd);
        let lent = self.descriptions.iter().flat_map(|description| match &description.object {
            Object::Epoll(epoll) => epoll.entries.as_slice(),
            _ => &[],
        });
        let highest = used.chain(lent.map(|entry| entry.fd)).chain(taken.keys().copied()).max().unwrap_or(0);
        // Two numbers for each pipe, one for everything else, one for ckrun, and some for the moment.
        let lists = 2 * self.pipes.len() + self.fifos.len() + self.ghosts.len() + self.memfds.len();
        let need = self.descriptions.len() + lists + 8;
        let base = highest + 1;
        let end = RawFd::try_from(need).ok().and_then(|need| base.checked_add(need));
        allow(host, end.ok_or_else(|| Failure::new("number the job's files", Errno::EMFILE))?)?;
        let mut making = Making {
            program: Program::new(),
            files: self,
            pipes: Vec::new(),
            fifos: vec![-1; self.fifos.len()],
            ghosts: Vec::new(),
            memfds: Vec::new(),
            root,
            shared,
            taken,
            base,
            next: base + RawFd::try_from(self.descriptions.len()).unwrap_or(0),
            again: Vec::new(),
            worker: first,
        };
        making.move_hatch()?;
        Ok(making)
    }

    /// What is in pipes and files is put there from outside.
    fn fill(&self, making: &Making<'_>, image: &Image) -> Result<(), Error> {
        let take = |fd: RawFd| making.worker.pidfd_getfd(fd);
        for (pipe, [_, writer]) in self.pipes.iter().zip(&making.pipes) {
            if pipe.stream.content.is_some() {
                pipe.stream.fill(take(*writer)?, image)?;
            }
        }
        for (fifo, both) in self.fifos.iter().zip(&making.fifos) {
            if fifo.stream.content.is_some() {
                fifo.stream.fill(take(*both)?, image)?;
            }
        }
        for (memfd, own) in self.memfds.iter().zip(&making.memfds).filter(|(memfd, _)| memfd.shared.is_none())
        {
            memfd.fill(take(*own)?, image)?;
        }
        for (ghost, own) in self.ghosts.iter().zip(&making.ghosts).filter(|(ghost, _)| ghost.shared.is_none())
        {
            ghost.fill(take(*own)?, image)?;
        }
        Ok(())
    }

    /// Flags, positions, counts, locks, and last the epolls, which look at all of it.
    fn settle(&self, making: &mut Making<'_>) -> Result<(), Failure> {
        for (id, description) in (0..).zip(&self.descriptions) {
            let fd = making.at(id);
            if making.is_late(id) || description.flags & libc::O_PATH as u32 != 0 {
                continue;
            }
            let name = description.object.name(self);
            let set = |making: &mut Making<'_>, flags: u32| {
                let what = format!("set the flags of {name}");
                making.program.call(what, libc::SYS_fcntl, &[fd.into(), libc::F_SETFL.into(), flags.into()]);
            };
            match &description.object {
                // It belongs to others too: only what a program may hang without.
                Object::Given(_) if description.flags & libc::O_NONBLOCK as u32 != 0 => {
                    let own = making.worker.pidfd_getfd(fd)?;
                    let flags =
                        rustix::fs::fcntl_getfl(&own).doing(|| format!("read the flags of {name}"))?;
                    set(making, (flags | OFlags::NONBLOCK).bits());
                    continue;
                }
                Object::Given(_) => continue,
                // open(2) has set them.
                Object::Regular(_) | Object::Directory(_) | Object::Device(_) | Object::Pseudo(_) => {}
                _ => set(making, description.flags & SETTABLE),
            }
            if description.position != 0 {
                let args = [fd.into(), description.position.into(), libc::SEEK_SET.into()];
                making.program.call(format!("seek in {name}"), libc::SYS_lseek, &args);
            }
            match &description.object {
                Object::Eventfd(eventfd) => eventfd.settle(fd, making),
                Object::Timerfd(timerfd) if timerfd.is_due() => timerfd.start(fd, &mut making.program),
                _ => {}
            }
            description.locks.set(fd, &name, making);
            making.run_if_large()?;
        }
        let epolls = || {
            (0..).zip(&self.descriptions).filter_map(|(id, description)| match &description.object {
                Object::Epoll(epoll) => Some((id, epoll)),
                _ => None,
            })
        };
        for (id, epoll) in epolls() {
            epoll.add_rest(making.at(id), making);
            making.run_if_large()?;
        }
        for (id, epoll) in epolls() {
            epoll.settle(making.at(id), making);
            making.run_if_large()?;
        }
        making.run()
    }

    /// The description can be made only when all tasks are there.
    pub(super) fn is_late(&self, id: u32) -> bool {
        self.description(id)
            .is_some_and(|d| matches!(&d.object, Object::Pseudo(pseudo) if !pseudo.is_early()))
    }
}

impl Making<'_> {
    /// The descriptor by which ckrun hands over others may have a number that a process of the job needs.
    fn move_hatch(&mut self) -> Result<(), Failure> {
        let Some(hatch) = self.worker.hatch.take() else { return Ok(()) };
        let to = self.number();
        let from = hatch.there;
        self.copy(from, to);
        self.program.call("close a descriptor", libc::SYS_close, &[from.into()]);
        self.run()?;
        self.taken.remove(&from);
        let here = match Rc::try_unwrap(hatch) {
            Ok(hatch) => hatch.here,
            Err(shared) => shared.here.try_clone().doing(|| "copy a descriptor")?,
        };
        self.worker.hatch = Some(Rc::new(Hatch { here, there: to }));
        Ok(())
    }
}

/// Lets the process have `count` descriptors. Each process of the job gets its own limit later.
fn allow(process: Pid, count: RawFd) -> Result<(), Failure> {
    let what = || format!("allow process {process} {count} descriptors");
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the kernel stores the old limit; there is no new one.
    let got =
        unsafe { libc::prlimit(process.as_raw(), libc::RLIMIT_NOFILE, std::ptr::null(), &raw mut limit) };
    Errno::result(got).doing(what)?;
    limit.rlim_max = limit.rlim_max.max(u64::try_from(count).unwrap_or(u64::MAX));
    limit.rlim_cur = limit.rlim_max;
    // SAFETY: the kernel reads the new limit; the old one is not wanted.
    let set = unsafe {
        libc::prlimit(process.as_raw(), libc::RLIMIT_NOFILE, &raw const limit, std::ptr::null_mut())
    };
    Errno::result(set).doing(what)?;
    Ok(())
}

impl Object {
    /// For people.
    pub(super) fn name(&self, files: &Files) -> String {
        let path = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        match self {
            Object::Given(given) => format!("standard stream {}", given.number),
            Object::Regular(regular) => path(&regular.path),
            Object::Directory(directory) => path(&directory.path),
            Object::Path(place) => path(&place.path),
            Object::Device(device) => path(&device.path),
            Object::Pseudo(pseudo) => path(&pseudo.path),
            Object::Ghost(of) => {
                files.ghosts.get(of.ghost as usize).map_or_else(String::new, |ghost| path(&ghost.path))
            }
            Object::Fifo(of) => {
                let named = files.fifos.get(of.fifo as usize).and_then(|fifo| fifo.path.as_ref());
                named.map_or_else(|| "fifo".into(), |name| path(name))
            }
            Object::Memfd(of) => files
                .memfds
                .get(of.memfd as usize)
                .map_or_else(String::new, |memfd| format!("memfd {}", path(&memfd.name))),
            Object::Pipe(_) => "pipe".into(),
            Object::Eventfd(_) => "eventfd".into(),
            Object::Signalfd(_) => "signalfd".into(),
            Object::Timerfd(_) => "timerfd".into(),
            Object::Epoll(_) => "epoll".into(),
        }
    }
}

//! What has to wait until all tasks of the job are there, and have their descriptors and their memory.

use super::make::Made;
use super::pseudo::open_late;
use super::{Description, Files, Object, epoll, owner};
use crate::fs::Place;
use crate::mounts;
use crate::program::{Call, Program};
use crate::worker::Worker;
use crate::{Error, Failure};
use nix::errno::Errno;
use std::collections::BTreeMap;
use std::os::fd::{AsFd, RawFd};

impl Files {
    /// The last part for process `pid`: timers, signals, leases, POSIX locks, files of `/proc` that show tasks, the
    /// directories and the umask. It still has all privileges, and no limit on descriptors that is lower than
    /// [`Made::free`] plus a few.
    pub fn finish(&self, made: &Made, pid: i32, program: &mut Program) {
        let Some(holdings) = self.processes.get(&pid) else { return };
        let mut way_back = None;
        for held in &holdings.descriptors {
            // One of those who have it does it for all.
            if made.holder(held.description) != Some((pid, held.fd)) {
                continue;
            }
            let Some(description) = self.description(held.description) else { continue };
            if self.is_late(held.description) {
                let (flags, to) = (description.flags, (held.fd, held.cloexec));
                let elsewhere = made.namespace(description.namespace);
                let elsewhere = elsewhere.filter(|_| description.namespace != holdings.fs.namespace);
                if let Some(there) = elsewhere {
                    if way_back.is_none() && matches!(holdings.fs.cwd, Place::Deleted(_)) {
                        way_back = Some(keep_directory(made, program));
                    }
                    mounts::go(there.root, program);
                }
                match &description.object {
                    Object::Pseudo(pseudo) => {
                        pseudo.open_late(flags, description.position, to, made.free(), program);
                    }
                    Object::Pidfd(pidfd) => pidfd.open_late(flags, to, made.free(), program),
                    Object::Terminal(of) => open_late(&of.path, flags, to, made.free(), program),
                    _ => {}
                }
                if let Some(own) = made.namespace(holdings.fs.namespace).filter(|_| elsewhere.is_some()) {
                    mounts::go(own.root, program);
                }
                self.share_late(pid, held.description, held.fd, program);
            }
            finish_one(description, held.fd, program);
        }
        if self.processes.keys().next() == Some(&pid) {
            for &id in made.on_their_way() {
                if let Some(description) = self.description(id) {
                    finish_one(description, made.at(id), program);
                }
            }
        }
        if let Some(kept) = way_back {
            program.call("go back to a deleted directory", libc::SYS_fchdir, &[kept.into()]);
            program.call("close a descriptor", libc::SYS_close, &[kept.into()]);
        }
        self.watch_signals(pid, program);
        for lock in &holdings.locks {
            lock.set(program);
        }
        // Whoever shares them still needs the container's root.
        if holdings.directories.is_none() && !self.lends_directories(pid) {
            holdings.fs.finish(made, program);
        }
    }

    /// The directories and the umask that process `pid` shares with others, when all of them have been through
    /// [`Files::finish`]. Usually there is nothing to do.
    pub fn finish_directories(&self, made: &Made, pid: i32, program: &mut Program) {
        if let Some(holdings) = self.processes.get(&pid)
            && holdings.directories.is_none()
            && self.lends_directories(pid)
        {
            holdings.fs.finish(made, program);
        }
    }

    /// A signalfd tells an epoll of the signals of the process that has added it (the kernel's `signalfd_poll` waits for
    /// `current`), so whoever has both adds it anew. If several do, they have inherited it from the eldest.
    fn watch_signals(&self, pid: i32, program: &mut Program) {
        let has = |pid: &i32, id: u32, fd: Option<RawFd>| {
            let held = self.processes.get(pid).into_iter().flat_map(|holdings| &holdings.descriptors);
            held.filter(|held| held.description == id && fd.is_none_or(|fd| held.fd == fd))
                .map(|h| h.fd)
                .next()
        };
        for (id, description) in (0..).zip(&self.descriptions) {
            let Object::Epoll(epoll) = &description.object else { continue };
            let Some(own) = has(&pid, id, None) else { continue };
            let of_signals = |of: u32| {
                matches!(self.description(of), Some(Description { object: Object::Signalfd(_), .. }))
            };
            for entry in epoll.entries.iter().filter(|entry| of_signals(entry.description)) {
                let both = |pid: &&i32| {
                    has(pid, id, None).is_some() && has(pid, entry.description, Some(entry.fd)).is_some()
                };
                if self.processes.keys().find(both) == Some(&pid) {
                    entry.add_again(own, program);
                }
            }
        }
    }

    /// Other numbers of the same process for a description that came late.
    fn share_late(&self, pid: i32, id: u32, first: RawFd, program: &mut Program) {
        let others = self.processes.get(&pid).into_iter().flat_map(|holdings| &holdings.descriptors);
        for held in others.filter(|held| held.description == id && held.fd != first) {
            let flags = if held.cloexec { libc::O_CLOEXEC } else { 0 };
            let args = [first.into(), held.fd.into(), flags.into()];
            program.call(format!("place descriptor {}", held.fd), libc::SYS_dup3, &args);
        }
    }

    /// Hands descriptions that one process has opened in [`Files::finish`] to the others that have them, and to the epolls
    /// that watch them. Usually there are none.
    ///
    /// # Errors
    /// What the kernel refuses; `ESRCH` when a process is missing.
    pub fn hand_over(&self, made: &Made, workers: &mut BTreeMap<i32, Worker>) -> Result<(), Error> {
        for (id, _) in (0..).zip(&self.descriptions).filter(|(id, _)| self.is_late(*id)) {
            let Some((opener, fd)) = made.holder(id) else { continue };
            let opened = find(workers, opener)?.pidfd_getfd(fd)?;
            for (&pid, holdings) in self.processes.iter().filter(|(pid, _)| **pid != opener) {
                let mut wanted = holdings.descriptors.iter().filter(|held| held.description == id).peekable();
                if wanted.peek().is_none() {
                    continue;
                }
                let worker = find(workers, pid)?;
                let aside = receive(worker, made, opened.as_fd())?;
                let mut program = Program::new();
                for held in wanted {
                    let flags = if held.cloexec { libc::O_CLOEXEC } else { 0 };
                    let args = [aside.into(), held.fd.into(), flags.into()];
                    program.call(format!("place descriptor {}", held.fd), libc::SYS_dup3, &args);
                }
                program.call("close a descriptor", libc::SYS_close, &[aside.into()]);
                worker.run(&program)?;
            }
            for (epoll, entry) in self.watchers(id) {
                let Some((pid, own)) = made.holder(epoll) else { continue };
                let worker = find(workers, pid)?;
                let aside = receive(worker, made, opened.as_fd())?;
                let held = self.processes.get(&pid).into_iter().flat_map(|holdings| &holdings.descriptors);
                let taken = held.clone().find(|held| held.fd == entry.fd).map(|held| held.cloexec);
                let mut program = Program::new();
                epoll::watch(&entry, own, aside, taken, made.free(), epoll::Way::Add, &mut program);
                program.call("close a descriptor", libc::SYS_close, &[aside.into()]);
                worker.run(&program)?;
            }
        }
        self.watch(&|namespace| made.root(namespace), &mut |id| {
            let Some((holder, fd)) = made.holder(id) else { return Ok(None) };
            find(workers, holder)?.pidfd_getfd(fd).map(Some)
        })?;
        Ok(())
    }

    /// The epolls that watch a description, and their entries for it.
    fn watchers(&self, id: u32) -> Vec<(u32, epoll::Entry)> {
        let epolls =
            (0..).zip(&self.descriptions).filter_map(|(at, description)| match &description.object {
                Object::Epoll(epoll) => Some((at, epoll)),
                _ => None,
            });
        let entries = epolls.flat_map(|(at, epoll)| epoll.entries.iter().map(move |entry| (at, *entry)));
        entries.filter(|(_, entry)| entry.description == id).collect()
    }
}

/// A descriptor of the working directory, to which no path leads, at a number that the process does not use.
fn keep_directory(made: &Made, program: &mut Program) -> Call {
    let name = program.put_cstr(b".");
    let flags = libc::O_PATH | libc::O_DIRECTORY | libc::O_CLOEXEC;
    let open = [libc::AT_FDCWD.into(), name.into(), flags.into()];
    let open = program.call("open a deleted directory", libc::SYS_openat, &open);
    // What comes late is opened at the first free number, and moved by way of the one that nobody uses.
    let aside = [open.into(), libc::F_DUPFD_CLOEXEC.into(), (made.free() + 1).into()];
    let aside = program.call("move a descriptor", libc::SYS_fcntl, &aside);
    program.call("close a descriptor", libc::SYS_close, &[open.into()]);
    aside
}

fn find(workers: &mut BTreeMap<i32, Worker>, pid: i32) -> Result<&mut Worker, Failure> {
    workers.get_mut(&pid).ok_or_else(|| Failure::new(format!("find process {pid} of the job"), Errno::ESRCH))
}

/// Hands a descriptor to a process that has its own already; the answer is a number that it does not use.
fn receive(worker: &mut Worker, made: &Made, fd: std::os::fd::BorrowedFd<'_>) -> Result<RawFd, Failure> {
    let given = worker.give(fd)?;
    let mut program = Program::new();
    let args = [given.into(), libc::F_DUPFD_CLOEXEC.into(), made.free().into()];
    let aside = program.call("move a descriptor", libc::SYS_fcntl, &args);
    program.call("close a descriptor", libc::SYS_close, &[given.into()]);
    let answers = worker.run(&program)?;
    let number = answers.of(aside).map_err(|errno| Failure::new("move a descriptor", errno))?;
    RawFd::try_from(number).map_err(|_| Failure::new("move a descriptor", Errno::EBADF))
}

impl Description {
    /// [`finish_one`] has something to do for it.
    pub(super) fn has_to_wait(&self) -> bool {
        let runs = matches!(&self.object, Object::Timerfd(timerfd) if !timerfd.is_due());
        let tells = self.signal.is_some() || self.owner.is_some() || self.flags & libc::O_ASYNC as u32 != 0;
        runs || tells || self.locks.flock.is_some() || self.locks.lease.is_some()
    }
}

fn finish_one(description: &Description, fd: RawFd, program: &mut Program) {
    if let Object::Timerfd(timerfd) = &description.object
        && !timerfd.is_due()
    {
        timerfd.start(fd, program);
    }
    if let Some(signal) = description.signal {
        owner::set_signal(signal, fd, program);
    }
    if let Some(owner) = &description.owner {
        owner.set(fd, program);
    }
    description.locks.set_own(fd, program);
    let own = !matches!(description.object, Object::Given(_));
    if own && description.flags & libc::O_ASYNC as u32 != 0 {
        let flags = description.flags & (libc::O_ASYNC | libc::O_APPEND | libc::O_NONBLOCK) as u32
            | description.flags & (libc::O_DIRECT | libc::O_NOATIME) as u32;
        let what = format!("ask for signals of descriptor {fd}");
        program.call(what, libc::SYS_fcntl, &[fd.into(), libc::F_SETFL.into(), flags.into()]);
    }
}

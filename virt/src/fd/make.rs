//! Making every description in the first process of a restarted job.
//!
//! Descriptions are put at numbers that no process of the job has for anything, side by side from one number on: every
//! call can name them from the start, and all processes inherit them. What the kernel lets nobody open twice, and what is
//! to be filled, ckrun does from outside, between two programs.

use super::making::{self, Making, SETTABLE};
use super::told::Told;
use super::{Files, Object, Renewed, inotify, socket};
use crate::image::Image;
use crate::mounts::Namespace;
use crate::network::wall::Rubble;
use crate::restore::Options;
use crate::worker::Worker;
use crate::{Doing, Error, Failure};
use nix::unistd::Pid;
use rustix::fs::OFlags;
use std::collections::HashMap;
use std::os::fd::{BorrowedFd, OwnedFd, RawFd};
use std::rc::Rc;

/// Where everything is in the first process, and in all that inherit from it.
#[derive(Debug, Clone, Default)]
pub struct Made {
    /// The first number that no process of the job uses.
    base: RawFd,
    /// Descriptors that are not to be closed yet: those of ckrun.
    keep: Vec<RawFd>,
    ghosts: Vec<Option<RawFd>>,
    /// The slave of each terminal.
    slaves: Vec<RawFd>,
    /// The container's root directory in each mount namespace, for ckrun.
    roots: Vec<Rc<OwnedFd>>,
    /// The namespaces, by the numbers that every process has for them.
    namespaces: Vec<Namespace<RawFd>>,
    /// Descriptions that nobody has, for they are on their way to somebody, and that something is to be done for when all tasks
    /// are there.
    on_their_way: Vec<u32>,
    /// Of those who have a description, the one who does for it what only one has to do; best the one who has locked it.
    holders: HashMap<u32, (i32, RawFd)>,
    /// What leads out of the job.
    late: socket::inet::Late,
    /// Sockets about which the job is told by signals.
    told: Vec<Rc<Told>>,
}

impl Made {
    /// The number of a description until the processes have their own.
    pub fn at(&self, description: u32) -> RawFd {
        self.base.saturating_add_unsigned(description)
    }

    /// The number of a deleted file or directory until the processes have their own; None for what is left of a task.
    pub(crate) fn ghost(&self, ghost: u32) -> Option<RawFd> {
        self.ghosts.get(ghost as usize).copied().flatten()
    }

    /// The container's root directory in a mount namespace, which may be that of no process any more.
    pub(super) fn root(&self, namespace: u32) -> BorrowedFd<'_> {
        making::root(&self.roots, namespace)
    }

    /// A mount namespace, by numbers that every process has.
    pub(crate) fn namespace(&self, namespace: u32) -> Option<Namespace<RawFd>> {
        self.namespaces.get(namespace as usize).copied()
    }

    /// The number of a terminal's slave until the processes have their own; -1 when there is none.
    pub(super) fn slave(&self, terminal: usize) -> RawFd {
        self.slaves.get(terminal).copied().unwrap_or(-1)
    }

    /// A process that has the description, and its number there.
    pub(super) fn holder(&self, description: u32) -> Option<(i32, RawFd)> {
        self.holders.get(&description).copied()
    }

    /// Descriptions that the first process is to look after.
    pub(super) fn on_their_way(&self) -> &[u32] {
        &self.on_their_way
    }

    /// The connections that were made anew.
    pub fn renewed(&self) -> &[Renewed] {
        &self.late.renewed
    }

    /// Lets what is to be told by signals be told, and everything that leads out of the job come to life; `init` is the job's first process. Nothing may fail after
    /// that. The answer is to be dropped when there is time for it.
    ///
    /// # Errors
    /// The kernel's.
    pub fn wake(&self, init: Pid) -> Result<Option<Rubble>, Failure> {
        self.told.iter().try_for_each(|told| told.settle())?;
        self.late.wake(init)
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

impl Files {
    /// Makes all descriptions in `first`, the job's first process, which is in the container already and has the
    /// standard streams that it is to have as descriptors 0 to 2. `shared` finds, by their numbers, objects of the job's
    /// memory that the first process has as descriptors, which also has those of its mount `namespaces`; `options` say
    /// what to do with files that have changed.
    ///
    /// # Errors
    /// The first call that the kernel refuses, by the path or the kind of the object.
    pub fn make(
        &self,
        first: &mut Worker,
        image: &Image,
        shared: &dyn Fn(u32) -> Option<RawFd>,
        namespaces: &[Namespace<RawFd>],
        options: &Options,
    ) -> Result<Made, Error> {
        let mut making = Making::begin(self, first, shared, namespaces)?;
        self.truncate(&|namespace| making.root(namespace), options)?;
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
                making.go(fifo.namespace);
                fifo.make(id, path, self, &mut making);
            }
            making.run_if_large()?;
        }
        for (id, ghost) in (0..).zip(&self.ghosts) {
            ghost.make(id, self, &mut making)?;
            making.run_if_large()?;
        }
        making.go(0);
        self.make_terminals(&mut making)?;
        for (id, description) in (0..).zip(&self.descriptions) {
            let (to, flags) = (making.at(id), description.flags);
            making.go(description.namespace);
            match &description.object {
                Object::Given(given) => given.make(to, &mut making),
                Object::Regular(regular) => regular.make(flags, to, &mut making),
                Object::Directory(directory) => directory.make(flags, to, &mut making),
                Object::Path(path) => path.make(flags, to, &mut making),
                Object::Device(device) => device.make(flags, to, &mut making),
                Object::Pseudo(pseudo) => pseudo.make(flags, to, &mut making),
                Object::Inotify(_) => inotify::Inotify::make(to, &mut making),
                Object::Fanotify(fanotify) => fanotify.make(to, &mut making),
                Object::Queue(queue) => queue.make(flags, to, &mut making),
                Object::Tun(tun) => tun.make(flags, to, &mut making),
                Object::Namespace(namespace) => namespace.make(flags, to, &mut making),
                Object::BpfMap(map) => map.make(flags, to, image, &mut making)?,
                Object::Eventfd(eventfd) => eventfd.make(to, &mut making),
                Object::Signalfd(signalfd) => signalfd.make(to, &mut making),
                Object::Timerfd(timerfd) => timerfd.make(to, &mut making),
                Object::Epoll(epoll) => epoll.make(to, &mut making),
                // Made with what they are of, or with each other.
                Object::Socket(_)
                | Object::Pipe(_)
                | Object::Fifo(_)
                | Object::Ghost(_)
                | Object::Memfd(_)
                | Object::Terminal(_)
                | Object::Pidfd(_) => {}
            }
            making.run_if_large()?;
        }
        making.go(0);
        making.run()?;
        making.open_again()?;
        self.make_dead_pidfds(&mut making)?;
        let sockets = socket::make(self, &mut making)?;
        for (id, description) in (0..).zip(&self.descriptions) {
            if let Object::Epoll(epoll) = &description.object {
                epoll.add_disabled(making.at(id), &mut making);
            }
        }
        making.run()?;
        self.fill(&making, image)?;
        let filled = sockets.fill(self, &mut making, image, options)?;
        self.settle_terminals(&making)?;
        self.settle(&mut making)?;
        let late = filled.send(making.worker.host())?;
        self.look_again(&mut making)?;
        let told = self.told(&making)?.into_iter().map(Rc::new).collect();
        let mut holders = HashMap::new();
        for (&pid, holdings) in &self.processes {
            for held in &holdings.descriptors {
                let flocker = self.description(held.description).and_then(|d| d.locks.flocker);
                let opener = self.description(held.description).and_then(|d| d.object.opener());
                let holder = holders.entry(held.description).or_insert((pid, held.fd));
                if [flocker, opener].contains(&Some(pid)) && holder.0 != pid {
                    *holder = (pid, held.fd);
                }
            }
        }
        self.enter_remains(&mut making)?;
        let namespaces = std::mem::take(&mut making.namespaces);
        let on_their_way: Vec<u32> = (0..)
            .zip(&self.descriptions)
            .filter(|(id, description)| !holders.contains_key(id) && description.has_to_wait())
            .map(|(id, _)| id)
            .collect();
        let hatch = making.worker.hatch.iter().map(|hatch| hatch.there);
        let keep = hatch.chain(namespaces.iter().flat_map(|namespace| [namespace.handle, namespace.root]));
        let keep = keep.chain(on_their_way.iter().map(|&id| making.at(id))).collect();
        let slaves = making.terminals.iter().map(|numbers| numbers.slave).collect();
        let roots = making.roots();
        let of_tasks = self.ghosts.iter().map(|ghost| ghost.task.is_some());
        let ghosts =
            making.ghosts.iter().zip(of_tasks).map(|(fd, of_task)| (!of_task).then_some(*fd)).collect();
        Ok(Made {
            base: making.base,
            keep,
            ghosts,
            slaves,
            roots,
            namespaces,
            on_their_way,
            holders,
            late,
            told,
        })
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
                Object::Regular(_)
                | Object::Directory(_)
                | Object::Device(_)
                | Object::Terminal(_)
                | Object::Pidfd(_)
                | Object::Namespace(_)
                | Object::Pseudo(_) => {}
                _ => set(making, description.flags & SETTABLE),
            }
            if description.position != 0 && !self.is_of_the_past(&description.object) {
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

    /// A file of `/proc` that shows a task that has ended: its position has been set while there was one.
    fn is_of_the_past(&self, object: &Object) -> bool {
        let Object::Ghost(of) = object else { return false };
        self.ghosts.get(of.ghost as usize).is_some_and(|ghost| ghost.task.is_some())
    }

    /// The description can be made only when all tasks are there.
    pub(super) fn is_late(&self, id: u32) -> bool {
        self.description(id).is_some_and(|description| match &description.object {
            Object::Pseudo(pseudo) => !pseudo.is_early(),
            Object::Pidfd(pidfd) => pidfd.task.is_some(),
            object => object.opener().is_some(),
        })
    }
}

impl Object {
    /// A process that alone can open it.
    fn opener(&self) -> Option<i32> {
        match self {
            Object::Terminal(of) => of.opener,
            _ => None,
        }
    }

    /// For people.
    pub(super) fn name(&self, files: &Files) -> String {
        let path = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        match self {
            Object::Given(given) => format!("standard stream {}", given.number),
            Object::Regular(regular) => path(&regular.path),
            Object::Directory(directory) => path(&directory.path),
            Object::Path(place) => path(&place.path),
            Object::Device(device) => path(&device.path),
            Object::Terminal(of) => path(&of.path),
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
            Object::Inotify(_) => "inotify".into(),
            Object::Fanotify(_) => "fanotify".into(),
            Object::Tun(tun) => path(&tun.path),
            Object::Queue(queue) => format!("POSIX message queue {}", queue.name),
            Object::Namespace(namespace) => format!("{} namespace", namespace.of),
            Object::Pidfd(_) => "pidfd".into(),
            Object::BpfMap(map) => format!("BPF map {}", map.name),
            Object::Eventfd(_) => "eventfd".into(),
            Object::Signalfd(_) => "signalfd".into(),
            Object::Timerfd(_) => "timerfd".into(),
            Object::Epoll(_) => "epoll".into(),
            Object::Socket(socket) => socket.to_string(),
        }
    }
}

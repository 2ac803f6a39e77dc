//! What can be known before anything is made: an image that is not consistent, files that are not as they were.

use super::container;
use super::regular::{Regular, Stamp};
use super::socket::readable;
use super::{Description, Files, Object};
use crate::fs::Place;
use crate::restore::{Changed, Options, Problem};
use crate::{Doing, Error, Failure};
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};
use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// No kernel lets a process have a descriptor of a higher number (`sysctl_nr_open_max`).
const HIGHEST: RawFd = 1 << 30;

impl Files {
    /// Everything that is named is there, and nothing is named twice that can be only once.
    pub(super) fn consistent(&self) -> Result<(), Error> {
        let damaged = |why: String| Err(Error::Damaged(format!("{}: {why}", super::FILE)));
        for (id, description) in self.descriptions.iter().enumerate() {
            if let Some(why) = self.wrong(description) {
                return damaged(format!("description {id}: {why}"));
            }
        }
        let mut ghosts = BTreeSet::new();
        for fifo in &self.fifos {
            let kind =
                fifo.ghost.map(|id| self.ghosts.get(id as usize).map(|ghost| ghost.mode & libc::S_IFMT));
            match (&fifo.path, kind) {
                (Some(path), None) if is_path(path) => {}
                (None, Some(Some(libc::S_IFIFO))) if fifo.ghost.is_some_and(|id| ghosts.insert(id)) => {}
                _ => return damaged("a FIFO is nowhere".into()),
            }
        }
        for ghost in &self.ghosts {
            if !ghost.is_possible() {
                return damaged("a deleted file of an impossible kind".into());
            }
        }
        if let Some(why) = self.wrong_terminals() {
            return damaged(why);
        }
        if self.memfds.iter().any(|memfd| memfd.name.contains(&0)) {
            return damaged("a name with a NUL in it".into());
        }
        if let Some(why) = self.wrong_sharing() {
            return damaged(why);
        }
        for (pid, holdings) in &self.processes {
            let mut numbers = BTreeSet::new();
            for held in &holdings.descriptors {
                let valid = (0..HIGHEST).contains(&held.fd) && self.description(held.description).is_some();
                if !valid || !numbers.insert(held.fd) {
                    return damaged(format!("process {pid}: descriptor {} is impossible", held.fd));
                }
            }
            if let Some(lock) = holdings.locks.iter().find(|lock| !numbers.contains(&lock.fd)) {
                return damaged(format!(
                    "process {pid}: a lock by descriptor {}, which it does not have",
                    lock.fd
                ));
            }
            let fs = &holdings.fs;
            let placed = match &fs.cwd {
                Place::Path(path) => is_path(path),
                Place::Deleted(ghost) => self.ghosts.get(*ghost as usize).is_some(),
            };
            if !placed || fs.root.as_ref().is_some_and(|root| !is_path(root)) {
                return damaged(format!("process {pid}: its directory is nowhere"));
            }
        }
        Ok(())
    }

    /// The mount namespaces that are named.
    pub fn namespaces(&self) -> impl Iterator<Item = u32> {
        let descriptions = self.descriptions.iter().flat_map(|description| {
            let file = match &description.object {
                Object::Socket(socket) => socket.file().map(|(there, _)| there),
                Object::Namespace(namespace) => Some(namespace.number),
                _ => None,
            };
            [description.namespace].into_iter().chain(file).chain(description.object.watched())
        });
        let ghosts = self.ghosts.iter().map(|ghost| ghost.namespace);
        let fifos = self.fifos.iter().map(|fifo| fifo.namespace);
        let processes = self.processes.values().map(|held| &held.fs);
        let processes = processes.flat_map(|fs| [fs.namespace, fs.elsewhere.unwrap_or(0)]);
        descriptions.chain(ghosts).chain(fifos).chain(processes)
    }

    fn wrong(&self, description: &Description) -> Option<String> {
        let listed =
            |what: &str, id: u32, len: usize| (id as usize >= len).then(|| format!("{what} {id} of {len}"));
        let placed = |path: &[u8]| (!is_path(path)).then(|| "an impossible path".into());
        match &description.object {
            Object::Given(given) => (given.number > 2).then(|| "a standard stream of no number".into()),
            Object::Regular(regular) => placed(&regular.path),
            Object::Directory(directory) => placed(&directory.path),
            Object::Path(place) => placed(&place.path),
            Object::Device(device) => placed(&device.path),
            Object::Pseudo(pseudo) => placed(&pseudo.path),
            Object::Ghost(of) => listed("ghost", of.ghost, self.ghosts.len()),
            Object::Fifo(of) => listed("fifo", of.fifo, self.fifos.len()),
            Object::Pipe(of) => listed("pipe", of.pipe, self.pipes.len()),
            Object::Memfd(of) => listed("memfd", of.memfd, self.memfds.len()),
            Object::Terminal(of) => {
                listed("terminal", of.terminal, self.terminals.len()).or_else(|| placed(&of.path))
            }
            Object::Epoll(epoll) => epoll.entries.iter().find_map(|entry| {
                let number = (!(0..HIGHEST).contains(&entry.fd)).then(|| "an impossible number".into());
                number.or_else(|| listed("description", entry.description, self.descriptions.len()))
            }),
            Object::Socket(socket) => socket.wrong(self),
            Object::Inotify(inotify) => inotify.wrong(self),
            Object::Fanotify(fanotify) => fanotify.wrong(self),
            Object::Queue(queue) => queue.wrong(),
            Object::Tun(tun) => tun.wrong(),
            Object::BpfMap(map) => map.wrong(),
            Object::Namespace(namespace) => namespace.wrong(),
            Object::Pidfd(pidfd) => (pidfd.task.is_some() == pidfd.dead.is_some())
                .then(|| "a pidfd of nobody, or of somebody who has gone".into()),
            Object::Eventfd(_) | Object::Signalfd(_) | Object::Timerfd(_) => None,
        }
    }

    /// What of the job's files is not there, or not as it was, in the container with these root directories, one for each
    /// mount namespace, where all is mounted.
    ///
    /// # Errors
    /// System errors.
    pub fn check(&self, roots: &[OwnedFd], options: &Options) -> Result<Vec<Problem>, Failure> {
        let mut problems = BTreeSet::new();
        let root = |namespace: u32| {
            let root = roots.get(namespace as usize).or(roots.first());
            root.map_or(rustix::fs::CWD, AsFd::as_fd)
        };
        type Seen = Result<Option<Stamp>, Failure>;
        let mut expect = |namespace: u32, path: &[u8], kind: u32, device: Option<u64>| -> Seen {
            let root = root(namespace);
            if options.promises(Path::new(OsStr::from_bytes(path))) {
                return Ok(None);
            }
            let Some(there) = container::find(root, path)? else {
                problems.insert((name(path), "it is not in the container".to_owned()));
                return Ok(None);
            };
            if there.st_mode & libc::S_IFMT != kind & libc::S_IFMT {
                let (is, was) = (FileType::from_raw_mode(there.st_mode), FileType::from_raw_mode(kind));
                problems.insert((name(path), format!("it is now of the kind {is:?} and was {was:?}")));
                return Ok(None);
            }
            if device.is_some_and(|device| device != there.st_rdev) {
                problems.insert((name(path), "it is another device now".into()));
                return Ok(None);
            }
            Ok(Some(Stamp::of(&there)))
        };
        let mut changed = Vec::new();
        let mut away = BTreeSet::new();
        for description in &self.descriptions {
            let there = description.namespace;
            match &description.object {
                Object::Regular(regular) => {
                    if let Some(now) = expect(there, &regular.path, libc::S_IFREG, None)? {
                        changed.extend(regular.changed(description.flags, &now, options));
                    }
                }
                Object::Directory(directory) => {
                    expect(there, &directory.path, libc::S_IFDIR, None).map(drop)?
                }
                Object::Path(place) => expect(there, &place.path, place.mode, None).map(drop)?,
                Object::Device(device) => {
                    let number = (!device.owned).then_some(device.device);
                    expect(there, &device.path, libc::S_IFCHR, number).map(drop)?;
                }
                Object::Tun(tun) => expect(there, &tun.path, libc::S_IFCHR, None).map(drop)?,
                Object::Socket(socket) => {
                    if let Some(to) = socket.leads_to() {
                        away.insert(to);
                        if !to.starts_with(&[0]) && options.unix {
                            expect(0, to, libc::S_IFSOCK, None)?;
                        }
                    }
                    if let Some((there, path)) = socket.file() {
                        expect(there, container::parent(path), libc::S_IFDIR, None)?;
                        // A socket makes its file itself, and takes the place of its own old one, but of no other file.
                        if container::find(root(there), path)?.is_some() {
                            expect(there, path, libc::S_IFSOCK, None)?;
                        }
                    }
                }
                _ => {}
            }
        }
        for (there, path) in self.fifos.iter().filter_map(|fifo| Some((fifo.namespace, fifo.path.as_ref()?)))
        {
            expect(there, path, libc::S_IFIFO, None)?;
        }
        for fs in self.processes.values().map(|holdings| &holdings.fs) {
            // The directories of tasks in /proc are still to come.
            let cwd = match &fs.cwd {
                Place::Path(path) if !path.starts_with(b"/proc/") => Some(path),
                _ => None,
            };
            if let Some(path) = cwd {
                expect(fs.elsewhere.unwrap_or(fs.namespace), path, libc::S_IFDIR, None)?;
            }
            if let Some(path) = &fs.root {
                expect(fs.namespace, path, libc::S_IFDIR, None)?;
            }
        }
        problems.extend(changed);
        for to in away.into_iter().filter(|_| !options.unix) {
            let why = "the job was connected to it, and it is outside: --ext-unix-sk connects again";
            problems.insert((format!("unix socket {}", readable(to)), why.into()));
        }
        Ok(problems.into_iter().map(|(what, why)| Problem { what, why }).collect())
    }

    /// Cuts off what was appended to files since the checkpoint, where that was asked for.
    pub(super) fn truncate<'f>(
        &self,
        root: &dyn Fn(u32) -> BorrowedFd<'f>,
        options: &Options,
    ) -> Result<(), Failure> {
        for description in &self.descriptions {
            let Object::Regular(regular) = &description.object else { continue };
            if !writes(description.flags) || options.policy(regular.path.as_path()) != Changed::Truncate {
                continue;
            }
            let what = || format!("cut {} to {} bytes", regular.path, regular.stamp.size);
            let flags = OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
            let (root, resolve) = (root(description.namespace), ResolveFlags::IN_ROOT);
            let file = rustix::fs::openat2(root, regular.path.as_path(), flags, Mode::empty(), resolve)
                .doing(what)?;
            if rustix::fs::fstat(&file).doing(what)?.st_size.cast_unsigned() > regular.stamp.size {
                rustix::fs::ftruncate(&file, regular.stamp.size).doing(what)?;
            }
        }
        Ok(())
    }
}

impl Regular {
    /// Why the file can't be taken as it is. What was open for reading only is the container's business, as it is for a
    /// program that opens it a moment later.
    fn changed(&self, flags: u32, now: &Stamp, options: &Options) -> Option<(String, String)> {
        let why = match options.policy(self.path.as_path()) {
            _ if !writes(flags) => None,
            Changed::Strict => {
                self.stamp.differs(now).map(|why| format!("it has changed since the checkpoint: {why}"))
            }
            Changed::Truncate => (now.size < self.stamp.size).then(|| {
                format!(
                    "it is shorter than at the checkpoint: {} bytes, it had {}",
                    now.size, self.stamp.size
                )
            }),
            Changed::Ignore => None,
        };
        why.map(|why| (name(&self.path), why))
    }
}

fn writes(flags: u32) -> bool {
    flags & libc::O_PATH as u32 == 0 && flags & libc::O_ACCMODE as u32 != libc::O_RDONLY as u32
}

/// From the root, and of one piece for the kernel.
pub(super) fn is_path(path: &[u8]) -> bool {
    path.starts_with(b"/") && !path.contains(&0)
}

fn name(path: &[u8]) -> String {
    String::from_utf8_lossy(path).into_owned()
}

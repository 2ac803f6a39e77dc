//! The first process of a restarted job, while its descriptions are made in it.

use super::seen::{Info, descriptors};
use super::stream::reopen;
use super::terminal::Numbers;
use super::{Files, Object};
use crate::mounts::{self, Namespace};
use crate::program::{Arg, Program};
use crate::worker::{HEADER, Hatch, STACK, Worker};
use crate::{Doing, Failure};
use nix::errno::Errno;
use nix::unistd::Pid;
use rustix::fs::{Mode, OFlags};
use std::collections::BTreeMap;
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
pub(super) const SETTABLE: u32 =
    (libc::O_APPEND | libc::O_NONBLOCK | libc::O_DIRECT | libc::O_NOATIME) as u32;

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
    pub terminals: Vec<Numbers>,
    pub worker: &'a mut Worker,
    /// The container's root directory in each mount namespace, for ckrun.
    roots: Vec<Rc<OwnedFd>>,
    /// The namespaces, by the numbers that the process has for them; none if there is only the one.
    pub namespaces: Vec<Namespace<RawFd>>,
    /// In the root of which one it is.
    here: u32,
    shared: &'a dyn Fn(u32) -> Option<RawFd>,
    /// What the process had before, and whether it is close-on-exec.
    taken: BTreeMap<RawFd, bool>,
    pub base: RawFd,
    next: RawFd,
    again: Vec<(RawFd, u32, RawFd)>,
    outside: Vec<(String, u32, RawFd)>,
}

impl<'a> Making<'a> {
    /// Chooses the numbers, and makes room for them.
    pub fn begin(
        files: &'a Files,
        first: &'a mut Worker,
        shared: &'a dyn Fn(u32) -> Option<RawFd>,
        namespaces: &[Namespace<RawFd>],
    ) -> Result<Making<'a>, Failure> {
        let host = first.host();
        let roots = mounts::roots(host, namespaces, &mut |fd| first.pidfd_getfd(fd))?;
        let mut taken = BTreeMap::new();
        for fd in descriptors(host)? {
            taken.insert(fd, Info::read(host, fd)?.cloexec);
        }
        let used = files.processes.values().flat_map(|holdings| &holdings.descriptors).map(|held| held.fd);
        let lent = files.descriptions.iter().flat_map(|description| match &description.object {
            Object::Epoll(epoll) => epoll.entries.as_slice(),
            _ => &[],
        });
        let highest = used.chain(lent.map(|entry| entry.fd)).chain(taken.keys().copied()).max().unwrap_or(0);
        // Two numbers for each pipe and each namespace, two more for each socket, one for everything else, one for ckrun, and some for the
        // moment.
        let sockets = files.descriptions.iter().filter(|d| matches!(d.object, Object::Socket(_))).count();
        let lists =
            2 * files.pipes.len() + files.fifos.len() + files.ghosts.len() + files.memfds.len() + 2 * sockets;
        let lists = lists + 2 * namespaces.len();
        let need = files.descriptions.len() + lists + files.terminal_numbers() + 16;
        let base = highest + 1;
        let end = RawFd::try_from(need).ok().and_then(|need| base.checked_add(need));
        allow(host, end.ok_or_else(|| Failure::new("number the job's files", Errno::EMFILE))?)?;
        let mut making = Making {
            program: Program::new(),
            files,
            pipes: Vec::new(),
            fifos: vec![-1; files.fifos.len()],
            ghosts: Vec::new(),
            memfds: Vec::new(),
            terminals: Vec::new(),
            roots: roots.into_iter().map(Rc::new).collect(),
            namespaces: Vec::new(),
            here: 0,
            shared,
            taken,
            base,
            next: base + RawFd::try_from(files.descriptions.len()).unwrap_or(0),
            again: Vec::new(),
            outside: Vec::new(),
            worker: first,
        };
        making.move_hatch()?;
        making.move_namespaces(namespaces)?;
        Ok(making)
    }
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

    /// The root directory of the container in a mount namespace.
    pub fn root(&self, namespace: u32) -> BorrowedFd<'_> {
        root(&self.roots, namespace)
    }

    /// The root directories of the container, for later.
    pub fn roots(&self) -> Vec<Rc<OwnedFd>> {
        self.roots.clone()
    }

    /// From here on, paths lead to what is in this mount namespace.
    pub fn go(&mut self, namespace: u32) {
        if let Some(there) = self.namespaces.get(namespace as usize).filter(|_| self.here != namespace) {
            mounts::go(there.root, &mut self.program);
            self.here = namespace;
        }
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

    /// Gives a new file to a user and a group. It may be open with O_PATH only.
    pub fn give_to(&mut self, fd: RawFd, owner: (u32, u32)) {
        if owner != (0, 0) {
            let itself = self.program.put_cstr(b"");
            let args = [fd.into(), itself.into(), owner.0.into(), owner.1.into(), libc::AT_EMPTY_PATH.into()];
            self.program.call("give a file to its owner", libc::SYS_fchownat, &args);
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

    /// Wants what is at a path of ckrun's as descriptor `to`.
    pub fn open_outside(&mut self, path: String, flags: u32, to: RawFd) {
        self.outside.push((path, flags & OPEN, to));
    }

    /// Hands over a descriptor of ckrun's, to become descriptor `to`. It comes at the lowest free number. Of those below
    /// [`Making::base`] few may be free: what came before must have gone to its place, or this one takes another's.
    pub fn receive(&mut self, own: BorrowedFd<'_>, to: RawFd) -> Result<(), Failure> {
        if !self.program.is_empty() {
            self.run()?;
        }
        let given = self.worker.give(own)?;
        self.put_at(given.into(), to);
        Ok(())
    }

    /// Runs what has been gathered.
    pub fn run(&mut self) -> Result<(), Failure> {
        let program = std::mem::take(&mut self.program);
        self.worker.run(&program).map(drop)
    }

    /// Runs what has been gathered when there is little room for more.
    pub fn run_if_large(&mut self) -> Result<(), Failure> {
        let room = self.worker.area.end - STACK - HEADER - self.worker.area.start;
        // One object takes a few hundred bytes and its path; an epoll's entries take more.
        if self.program.size() as u64 > room / 4 { self.run() } else { Ok(()) }
    }

    pub fn open_again(&mut self) -> Result<(), Failure> {
        for (from, flags, to) in std::mem::take(&mut self.again) {
            let own = self.worker.pidfd_getfd(from)?;
            // The name in /proc is a link.
            let opened = reopen(&own, flags & !(libc::O_NOFOLLOW as u32))?;
            self.receive(opened.as_fd(), to)?;
        }
        for (path, flags, to) in std::mem::take(&mut self.outside) {
            let flags = OFlags::from_bits_retain(flags) | OFlags::CLOEXEC;
            let opened = rustix::fs::open(&path, flags, Mode::empty()).doing(|| format!("open {path}"))?;
            self.receive(opened.as_fd(), to)?;
        }
        self.run()
    }
}

impl Making<'_> {
    /// The same holds for those of the mount namespaces.
    fn move_namespaces(&mut self, namespaces: &[Namespace<RawFd>]) -> Result<(), Failure> {
        for namespace in namespaces {
            let to = Namespace { handle: self.number(), root: self.number() };
            for (from, to) in [(namespace.handle, to.handle), (namespace.root, to.root)] {
                self.copy(from, to);
                self.program.call("close a descriptor", libc::SYS_close, &[from.into()]);
                self.taken.remove(&from);
            }
            self.namespaces.push(to);
        }
        self.run()
    }

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

/// The root directory of the container in a mount namespace, which has been checked to be there.
pub(super) fn root(roots: &[impl AsRef<OwnedFd>], namespace: u32) -> BorrowedFd<'_> {
    let root = roots.get(namespace as usize).or(roots.first());
    root.map_or(rustix::fs::CWD, |root| root.as_ref().as_fd())
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

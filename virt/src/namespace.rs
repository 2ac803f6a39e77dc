//! Namespaces of the job that ckrun enters for a moment, on its own thread, to read or make what is in them.
//!
//! A process may have left the namespaces that its parent is in. Only one of a kind is carried: the first process's.

use crate::proc::{Stat, is_gone};
use crate::resource::Blocker;
use crate::{Doing, Failure};
use nix::sched::{CloneFlags, setns};
use nix::unistd::Pid;
use rustix::fs::{Mode, OFlags};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// What a namespace is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// System V IPC and POSIX message queues.
    Ipc,
    /// Host and domain name.
    Uts,
    /// Network devices, addresses, and names of sockets that are no files.
    Net,
    /// Processes. Who enters it stays where it is; its children are there.
    Pid,
}

impl Kind {
    fn link(self) -> &'static str {
        match self {
            Kind::Ipc => "ipc",
            Kind::Uts => "uts",
            Kind::Net => "net",
            Kind::Pid => "pid",
        }
    }

    fn flag(self) -> CloneFlags {
        match self {
            Kind::Ipc => CloneFlags::CLONE_NEWIPC,
            Kind::Uts => CloneFlags::CLONE_NEWUTS,
            Kind::Net => CloneFlags::CLONE_NEWNET,
            Kind::Pid => CloneFlags::CLONE_NEWPID,
        }
    }
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Kind::Ipc => "IPC namespace",
            Kind::Uts => "UTS namespace",
            Kind::Net => "network namespace",
            Kind::Pid => "pid namespace",
        })
    }
}

/// A namespace that is not ckrun's own.
#[derive(Debug)]
pub struct Namespace {
    fd: OwnedFd,
    /// Where this thread was when this was made, and goes back to.
    home: OwnedFd,
    kind: Kind,
}

impl Namespace {
    /// That of process `pid`; None if it is ckrun's own.
    ///
    /// # Errors
    /// `ESRCH`, `ENOENT` when the process has ended.
    pub fn of(pid: Pid, kind: Kind) -> Result<Option<Namespace>, Failure> {
        Self::open(open(&format!("/proc/{pid}"), kind)?, kind)
    }

    /// The one that `fd` is of; None if it is ckrun's own.
    ///
    /// # Errors
    /// `ENOENT` without a procfs.
    pub fn open(fd: OwnedFd, kind: Kind) -> Result<Option<Namespace>, Failure> {
        let home = open("/proc/thread-self", kind)?;
        Ok(if same(fd.as_fd(), home.as_fd())? { None } else { Some(Namespace { fd, home, kind }) })
    }

    /// The process whose directory is `process` (`/proc/42`) is in it.
    ///
    /// # Errors
    /// As [`Namespace::of`].
    pub fn has(&self, process: &str) -> Result<bool, Failure> {
        same(self.fd.as_fd(), open(process, self.kind)?.as_fd())
    }

    /// Takes this thread there until the answer is dropped. `/proc/sys` and `/proc/sysvipc` show what is there meanwhile.
    ///
    /// # Errors
    /// `EPERM` without CAP_SYS_ADMIN.
    pub fn enter(&self) -> Result<Abroad<'_>, Failure> {
        setns(&self.fd, self.kind.flag()).doing(|| format!("enter the {} of the job", self.kind))?;
        Ok(Abroad(self))
    }
}

/// This thread in another namespace, until it is dropped.
#[derive(Debug)]
#[must_use]
pub struct Abroad<'a>(&'a Namespace);

impl Drop for Abroad<'_> {
    fn drop(&mut self) {
        // It was there, and has the privilege that brought it away.
        if let Err(errno) = setns(&self.0.home, self.0.kind.flag()) {
            log::error!("come back from the {} of the job: {errno}", self.0.kind);
        }
    }
}

fn open(process: &str, kind: Kind) -> Result<OwnedFd, Failure> {
    let path = format!("{process}/ns/{}", kind.link());
    rustix::fs::open(&path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).doing(|| format!("open {path}"))
}

fn same(one: BorrowedFd<'_>, other: BorrowedFd<'_>) -> Result<bool, Failure> {
    let inode = |fd| rustix::fs::fstat(fd).map(|stat| stat.st_ino).doing(|| "look at a namespace");
    Ok(inode(one)? == inode(other)?)
}

/// Every kind that a process has: the first process's own as `/proc/PID/ns` names it, the same as everybody shows it, and what
/// it is. Mount namespaces are another room's.
///
/// A process's children may get another pid or time namespace than its own. Who gives its children the first process's is
/// there itself: new ones are below (pid), or for the children first (time), and no process goes back alone.
const ALL: [(&str, &str, &str); 7] = [
    ("user", "user", "user namespace"),
    ("net", "net", "network namespace"),
    ("ipc", "ipc", "IPC namespace"),
    ("uts", "uts", "UTS namespace"),
    ("cgroup", "cgroup", "cgroup namespace"),
    ("pid", "pid_for_children", "pid namespace, or that of its children"),
    ("time", "time_for_children", "time namespace, or that of its children"),
];

/// The namespaces that all processes of a job are in.
#[derive(Debug)]
pub struct Common(Links);

/// What the links lead to; None where there is none: the kernel lacks the kind, or nobody is in the namespace yet.
type Links = [Option<Vec<u8>>; ALL.len()];

impl Common {
    /// Those of the job's first process.
    ///
    /// # Errors
    /// As [`Namespace::of`].
    pub fn of(init: Pid) -> Result<Common, Failure> {
        links(init, ALL.map(|(first, ..)| first)).map(Common)
    }

    /// The namespaces that process `host` has of its own. One that has ended has none. `pid` and `comm` are for people.
    ///
    /// # Errors
    /// The kernel's.
    pub fn left_by(
        &self,
        host: Pid,
        pid: i32,
        comm: impl Fn() -> String,
    ) -> Result<Option<Blocker>, Failure> {
        let theirs = match links(host, ALL.map(|(_, everybody, _)| everybody)) {
            Err(failure) if is_gone(&failure, host) => return Ok(None),
            answer => answer?,
        };
        let differs = ALL.iter().zip(self.0.iter().zip(&theirs)).find(|(_, (a, b))| a != b);
        // The links of one that ends go one by one.
        let Some(((.., kind), _)) = differs.filter(|_| Stat::of(host).is_some_and(|stat| !stat.ended()))
        else {
            return Ok(None);
        };
        Ok(Some(Blocker {
            pid,
            comm: comm(),
            what: (*kind).to_owned(),
            why: "it is not that of the first process, and only that is carried".into(),
            remedy: None,
        }))
    }
}

fn links(pid: Pid, names: [&str; ALL.len()]) -> Result<Links, Failure> {
    let path = format!("/proc/{pid}/ns");
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let dir = rustix::fs::open(&path, flags, Mode::empty()).doing(|| format!("open {path}"))?;
    let mut links = Links::default();
    for (link, name) in links.iter_mut().zip(names) {
        *link = match rustix::fs::readlinkat(&dir, name, Vec::new()) {
            Ok(to) => Some(to.into_bytes()),
            Err(rustix::io::Errno::NOENT) => None,
            Err(errno) => return Err(errno).doing(|| format!("read {path}/{name}")),
        };
    }
    Ok(links)
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::signal::{Signal, kill};
    use nix::sys::wait::waitpid;
    use nix::unistd::pause;
    use std::io::{Read, Write};

    /// A process that has called unshare(2), or its child, which is born there.
    struct Elsewhere {
        made: Pid,
        there: Pid,
    }

    impl Elsewhere {
        fn new(flags: libc::c_int, born: bool) -> Elsewhere {
            let (mut here, mut there) = std::io::pipe().unwrap();
            let fork = || {
                // SAFETY: the child makes nothing but system calls.
                unsafe { libc::fork() }
            };
            let made = fork();
            if made == 0 {
                // SAFETY: plain numbers; the process ends with its parent, and by a signal.
                unsafe {
                    libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                    if libc::unshare(flags) != 0 {
                        libc::_exit(1);
                    }
                    let child = if born { fork() } else { libc::getpid() };
                    if child == 0 {
                        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                    } else {
                        there.write_all(&child.to_ne_bytes()).unwrap();
                    }
                    loop {
                        pause();
                    }
                }
            }
            drop(there);
            let mut id = [0; 4];
            here.read_exact(&mut id).unwrap();
            Elsewhere { made: Pid::from_raw(made), there: Pid::from_raw(i32::from_ne_bytes(id)) }
        }
    }

    impl Drop for Elsewhere {
        fn drop(&mut self) {
            kill(self.there, Signal::SIGKILL).unwrap();
            let _ = kill(self.made, Signal::SIGKILL);
            waitpid(self.made, None).unwrap();
        }
    }

    #[test]
    fn who_is_in_another_namespace_is_found() {
        let common = Common::of(Pid::this()).unwrap();
        let found = |flags, born| {
            let elsewhere = Elsewhere::new(flags, born);
            let blocker = common.left_by(elsewhere.there, 7, || "x".into()).unwrap();
            blocker.map(|blocker| blocker.what)
        };
        assert_eq!(found(0, false), None);
        assert_eq!(found(0, true), None);
        let flags = [
            libc::CLONE_NEWUSER,
            libc::CLONE_NEWNET,
            libc::CLONE_NEWIPC,
            libc::CLONE_NEWUTS,
            libc::CLONE_NEWCGROUP,
            libc::CLONE_NEWPID,
            libc::CLONE_NEWTIME,
        ];
        for (flags, (.., kind)) in flags.into_iter().zip(ALL) {
            assert_eq!(found(flags, false).as_deref(), Some(kind));
            assert_eq!(found(flags, true).as_deref(), Some(kind));
        }
    }
}

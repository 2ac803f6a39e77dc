//! The mount namespaces of a running or stopped job, seen from inside: what is mounted in one, only who is there can say
//! of all of it, and only who is there can make copies of it.

use super::list::Line;
use crate::proc::is_gone;
use crate::{Doing, Failure};
use nix::sched::{CloneFlags, setns, unshare};
use nix::unistd::Pid;
use rustix::fs::{CWD, Mode, OFlags};
use std::collections::HashSet;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::panic::resume_unwind;
use std::sync::Arc;

const DIRECTORY: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

/// A mount namespace of a job.
#[derive(Debug)]
pub(crate) struct Space {
    /// Its root directory; in the first one that of the job's first process.
    pub(crate) root: OwnedFd,
    /// `mountinfo`, as who is in that root directory sees it.
    pub(crate) text: Vec<u8>,
    handle: OwnedFd,
    inode: u64,
}

impl Space {
    /// Those of `processes`; the first one is the job's first process. One that ends meanwhile has none.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) fn all(processes: &[Pid]) -> Result<Vec<Arc<Space>>, Failure> {
        let Some(&init) = processes.first() else { return Ok(Vec::new()) };
        let (handle, own) = open(init)?;
        let path = format!("/proc/{init}/root");
        let root = rustix::fs::open(&path, DIRECTORY, Mode::empty()).doing(|| format!("open {path}"))?;
        let path = format!("/proc/{init}/mountinfo");
        let text = crate::proc::read(&path).doing(|| format!("read {path}"))?;
        let mut known = HashSet::from([own]);
        let mut all = vec![Arc::new(Space { root, text, handle, inode: own })];
        for &process in &processes[1..] {
            let new = inode(process).map(|inode| known.insert(inode));
            let (handle, inode) =
                match new.and_then(|new| if new { open(process).map(Some) } else { Ok(None) }) {
                    Ok(Some(opened)) => opened,
                    Ok(None) => continue,
                    Err(failure) if is_gone(&failure, process) => continue,
                    Err(failure) => return Err(failure),
                };
            let (root, text) = visit(&handle, look)?;
            all.push(Arc::new(Space { root, text, handle, inode }));
        }
        Ok(all)
    }

    /// Its place in a list is that of the namespace that `process` is in.
    pub(crate) fn of(all: &[Arc<Space>], process: Pid) -> Result<Option<usize>, Failure> {
        // Most jobs have but one, and other namespaces are looked for in each process.
        if all.len() < 2 {
            return Ok(Some(0));
        }
        let inode = inode(process)?;
        Ok(all.iter().position(|space| space.inode == inode))
    }

    /// Its number, as the kernel shows it.
    pub(crate) fn inode(&self) -> u64 {
        self.inode
    }

    pub(crate) fn lines(&self) -> Vec<Line> {
        Line::all(&self.text)
    }

    /// Does something on a thread that is there, in its root directory.
    pub(super) fn visit<T: Send>(
        &self,
        work: impl FnOnce() -> Result<T, Failure> + Send,
    ) -> Result<T, Failure> {
        visit(&self.handle, |_| work())
    }
}

fn path(process: Pid) -> String {
    format!("/proc/{process}/ns/mnt")
}

fn inode(process: Pid) -> Result<u64, Failure> {
    let path = path(process);
    rustix::fs::stat(&path).map(|stat| stat.st_ino).doing(|| format!("look at {path}"))
}

fn open(process: Pid) -> Result<(OwnedFd, u64), Failure> {
    let path = path(process);
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let handle = rustix::fs::open(&path, flags, Mode::empty()).doing(|| format!("open {path}"))?;
    let stat = rustix::fs::fstat(&handle).doing(|| format!("look at {path}"))?;
    Ok((handle, stat.st_ino))
}

/// A thread goes alone to another mount namespace, where it finds itself in the root directory (setns(2)). What it is given is
/// ckrun's `/proc`.
fn visit<T: Send>(
    handle: &OwnedFd,
    work: impl FnOnce(OwnedFd) -> Result<T, Failure> + Send,
) -> Result<T, Failure> {
    let there = || {
        let proc = rustix::fs::open("/proc", DIRECTORY, Mode::empty()).doing(|| "open /proc")?;
        unshare(CloneFlags::CLONE_FS).doing(|| "leave the directories of the other threads")?;
        setns(handle, CloneFlags::CLONE_NEWNS).doing(|| "enter a mount namespace of the job")?;
        work(proc)
    };
    std::thread::scope(|scope| scope.spawn(there).join()).unwrap_or_else(|panic| resume_unwind(panic))
}

fn look(proc: OwnedFd) -> Result<(OwnedFd, Vec<u8>), Failure> {
    let root = rustix::fs::open("/", DIRECTORY, Mode::empty()).doing(|| "open the root of a namespace")?;
    Ok((root, mountinfo(&proc)?))
}

/// What this thread sees, by way of ckrun's `/proc`.
pub(super) fn mountinfo(proc: impl AsFd) -> Result<Vec<u8>, Failure> {
    let what = || "read what is mounted in a namespace";
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let file = rustix::fs::openat(proc, "thread-self/mountinfo", flags, Mode::empty()).doing(what)?;
    let mut text = Vec::new();
    std::fs::File::from(file).read_to_end(&mut text).doing(what)?;
    Ok(text)
}

/// ckrun's `/proc`, for who is about to go where another one is.
pub(super) fn own_proc() -> Result<OwnedFd, Failure> {
    rustix::fs::openat(CWD, "/proc", DIRECTORY, Mode::empty()).doing(|| "open /proc")
}

//! Which namespaces the container gets new, which it joins, and the process that is born into them.

use super::channel;
use crate::config::Ask;
use crate::error::{Error, Result};
use ckrun_virt::clocks::Offsets;
use ckrun_virt::sys::{Clone3, Cloned};
use ckrun_virt::{Doing, Failure, Process};
use nix::errno::Errno;
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::wait::waitpid;
use oci_spec::runtime::{LinuxNamespaceType as Kind, Spec};
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// `linux/magic.h`.
const NSFS_MAGIC: rustix::fs::FsWord = 0x6e73_6673;

/// The `CLONE_NEW*` flag of a kind of namespace.
pub fn flag(kind: Kind) -> CloneFlags {
    match kind {
        Kind::Mount => CloneFlags::CLONE_NEWNS,
        Kind::Cgroup => CloneFlags::CLONE_NEWCGROUP,
        Kind::Uts => CloneFlags::CLONE_NEWUTS,
        Kind::Ipc => CloneFlags::CLONE_NEWIPC,
        Kind::User => CloneFlags::CLONE_NEWUSER,
        Kind::Pid => CloneFlags::CLONE_NEWPID,
        Kind::Network => CloneFlags::CLONE_NEWNET,
        Kind::Time => CloneFlags::from_bits_retain(libc::CLONE_NEWTIME),
    }
}

/// The name of a kind in config.json; oci-spec's own text is that of /proc/PID/ns.
fn name(kind: Kind) -> &'static str {
    match kind {
        Kind::Mount => "mount",
        Kind::Cgroup => "cgroup",
        Kind::Uts => "uts",
        Kind::Ipc => "ipc",
        Kind::User => "user",
        Kind::Pid => "pid",
        Kind::Network => "network",
        Kind::Time => "time",
    }
}

/// The namespaces of one container.
#[derive(Debug)]
pub struct Namespaces {
    /// Those made new.
    new: CloneFlags,
    /// Those joined by path: opened before anything is made, so that a wrong path costs nothing.
    join: Vec<(CloneFlags, OwnedFd)>,
    /// By how much the clocks of a new time namespace are ahead: name, seconds, nanoseconds.
    clocks: Vec<(String, i64, u32)>,
}

impl Namespaces {
    /// Reads them from config.json and opens the paths.
    ///
    /// # Errors
    /// A kind given twice, a path that is missing or is no namespace of its kind.
    pub fn of(spec: &Spec) -> Result<Namespaces> {
        let offsets = spec.lx().and_then(|l| l.time_offsets().as_ref()).into_iter().flatten();
        let clocks = offsets.map(|(clock, offset)| {
            (clock.clone(), offset.secs().unwrap_or(0), offset.nanosecs().unwrap_or(0))
        });
        let mut all = Namespaces { new: CloneFlags::empty(), join: Vec::new(), clocks: clocks.collect() };
        let mut seen = CloneFlags::empty();
        for ns in spec.namespaces() {
            let flag = flag(ns.typ());
            if seen.contains(flag) {
                return Err(Error::config("linux.namespaces", format!("{} is given twice", name(ns.typ()))));
            }
            seen |= flag;
            match ns.path() {
                None => all.new |= flag,
                Some(path) => {
                    let fd = File::open(path).map_err(|e| Error::file(path, &e))?;
                    let kind = rustix::fs::fstatfs(&fd).doing(|| format!("statfs {}", path.display()))?;
                    if kind.f_type != NSFS_MAGIC {
                        let why = format!("{} is not a namespace", path.display());
                        return Err(Error::config("linux.namespaces", why));
                    }
                    all.join.push((flag, fd.into()));
                }
            }
        }
        Ok(all)
    }

    /// Gives the container the clocks that a restored job had, whatever the configuration says of them: it spoke of the
    /// job's first start.
    ///
    /// # Errors
    /// The configuration joins a time namespace, which has clocks of its own.
    pub fn continue_clocks(&mut self, offsets: Offsets) -> Result<()> {
        if self.joins(time()) {
            let why = "the time namespace to be joined has clocks of its own, in which the job's can't go on";
            return Err(Error::config("linux.namespaces", why));
        }
        self.new |= time();
        self.clocks = offsets.split().map(|(clock, s, ns)| (clock.to_owned(), s, ns)).into();
        Ok(())
    }

    /// Whether one of these kinds is made new.
    pub fn makes(&self, kind: Kind) -> bool {
        self.new.contains(flag(kind))
    }

    /// Whether the container has one of its own or somebody else's, rather than the host's.
    pub fn has(&self, kind: Kind) -> bool {
        self.makes(kind) || self.joins(flag(kind))
    }

    fn joins(&self, flag: CloneFlags) -> bool {
        self.join.iter().any(|(f, _)| *f == flag)
    }

    /// Makes the container's first process and runs `child` in it.
    ///
    /// One clone3 does it, unless a pid or user namespace is joined: those must be entered before the clone, by a
    /// process that then has no way back. A short-lived helper enters them, makes the child as our child, not its
    /// own (CLONE_PARENT), and is gone.
    ///
    /// Time namespaces (their offsets must be written first) and cgroup namespaces (the process must have been moved
    /// first) are made later, by the child.
    pub fn spawn(&self, cgroup: Option<BorrowedFd<'_>>, child: impl FnOnce() -> i32) -> Result<Process> {
        let later = flag(Kind::Time) | flag(Kind::Cgroup);
        let clone = Clone3 { flags: (self.new - later).bits() as u64, cgroup };
        if self.joins(flag(Kind::User)) || self.joins(flag(Kind::Pid)) {
            self.spawn_through_helper(clone, child)
        } else {
            spawn(&clone, child)
        }
    }

    fn spawn_through_helper(&self, mut clone: Clone3<'_>, child: impl FnOnce() -> i32) -> Result<Process> {
        clone.flags |= libc::CLONE_PARENT as u64;
        let (ours, theirs) = channel::pair()?;
        let ours_in_helper = ours.as_fd().as_raw_fd();
        let helper = spawn(&Clone3::default(), || {
            // Else the helper's own copy would keep the line open.
            let _ = nix::unistd::close(ours_in_helper);
            let made = self.enter(&[Kind::User, Kind::Pid]).and_then(|()| spawn(&clone, child));
            let answer = match made {
                Ok(process) => theirs.send(&channel::Note::Pid(process.pid())),
                Err(e) => theirs.send(&channel::Note::Failed(e.to_string())),
            };
            i32::from(answer.is_err())
        })?;
        let answer = ours.receive();
        waitpid(helper.pid(), None).doing(|| "wait for the namespace helper")?;
        match answer? {
            Some(channel::Note::Pid(pid)) => {
                // It is our child and we have not waited for it, so the id can't have been reused.
                Process::open_now(pid)
                    .ok_or_else(|| Failure::new(format!("open process {pid}"), Errno::ESRCH).into())
            }
            Some(channel::Note::Failed(text)) => Err(Error::Init(text)),
            _ => Err(Error::InitEnded { during: "the joining of namespaces", how: "without a word".into() }),
        }
    }

    /// Enters, in the child, those joined namespaces that were not entered before the clone. The mount namespace comes
    /// last, because it moves the root directory.
    pub fn enter_rest(&self) -> Result<()> {
        self.enter(&[Kind::Ipc, Kind::Uts, Kind::Network, Kind::Time, Kind::Cgroup, Kind::Mount])
    }

    fn enter(&self, order: &[Kind]) -> Result<()> {
        for kind in order {
            if let Some((flag, fd)) = self.join.iter().find(|(f, _)| *f == flag(*kind)) {
                setns(fd.as_fd(), *flag)
                    .doing(|| format!("join the {} namespace of linux.namespaces", name(*kind)))?;
            }
        }
        Ok(())
    }

    /// Makes the time namespace, sets its clocks and enters it.
    pub fn make_time(&self) -> Result<()> {
        if !self.makes(Kind::Time) {
            return Ok(());
        }
        unshare(time()).doing(|| "unshare the time namespace")?;
        for (clock, seconds, nanoseconds) in &self.clocks {
            std::fs::write("/proc/self/timens_offsets", format!("{clock} {seconds} {nanoseconds}\n"))
                .doing(|| "write /proc/self/timens_offsets")
                .map_err(|e| Error::config(format!("linux.timeOffsets.{clock}"), e.to_string()))?;
        }
        // The offsets can be written only as long as nobody is inside; from now on they stand.
        let children =
            File::open("/proc/self/ns/time_for_children").doing(|| "open the new time namespace")?;
        setns(children, time()).doing(|| "enter the new time namespace")?;
        Ok(())
    }
}

fn time() -> CloneFlags {
    flag(Kind::Time)
}

/// Clones, runs `child` in the new process and ends that with its answer as exit status.
pub fn spawn(clone: &Clone3<'_>, child: impl FnOnce() -> i32) -> Result<Process> {
    // SAFETY: ckrun has one thread.
    match unsafe { clone.call() }.doing(|| "clone3 the container's process")? {
        Cloned::Parent(pid, fd) => Ok(Process::from_clone(pid, fd)),
        Cloned::Child => {
            let status = child();
            // SAFETY: _exit never returns; nothing of the parent's (buffers, destructors) may run twice.
            unsafe { libc::_exit(status) }
        }
    }
}

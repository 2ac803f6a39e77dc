//! Listing, signalling and removing what is in a cgroup.
//!
//! A pid read from `cgroup.procs` may belong to somebody else a moment later, so no signal is sent by pid: a process is
//! opened first and signalled only if the cgroup lists it again afterwards.

use super::io::{self, Io};
use super::{Cgroups, Dir, freezer};
use crate::error::{Error, Result};
use ckrun_virt::{Doing, Failure, Process};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::Pid;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long processes may take to die of SIGKILL: one in an uninterruptible read from a slow disk needs a while.
const PATIENCE: Duration = Duration::from_secs(10);

/// How many processes are held open at a time; well below the usual limit of 1024 descriptors.
const BATCH: usize = 256;

impl Cgroups {
    /// All processes in the container's cgroup and below, as ids of ckrun's pid namespace.
    ///
    /// # Errors
    /// The kernel's. A cgroup that is gone has no processes.
    pub fn pids(&self) -> Result<Vec<Pid>> {
        self.tree().map_or(Ok(Vec::new()), |dir| pids_below(&dir.path))
    }

    /// Signals every process in the container's cgroup and below. The processes are held still meanwhile, so that none
    /// forks a child that gets no signal, and SIGKILL is repeated until nobody is left; frozen ones are thawed to die.
    ///
    /// # Errors
    /// The cgroup is not the container's own, because it was there before, or there is none; a process survived.
    pub fn kill_all(&self, signal: i32) -> Result<()> {
        let Some(dir) = self.tree().filter(|dir| !dir.existed) else {
            let why = "the container has no cgroup of its own, by which its processes would be known";
            return Err(Error::config("linux.cgroupsPath", why));
        };
        if signal == libc::SIGKILL {
            return self.empty(dir, Instant::now() + PATIENCE);
        }
        // Without a freezer the signal still reaches everybody who was there at the start.
        let froze = !self.frozen()? && self.freeze().is_ok();
        let sent = pass(&dir.path, signal, &mut drop);
        if froze {
            self.thaw()?;
        }
        sent
    }

    /// Kills what is left in the cgroups that `create` made and removes them, with what is below them; it leaves alone
    /// the directories above, and everything that existed before. Removing what is gone already is fine.
    ///
    /// # Errors
    /// A process did not die within ten seconds, or something that isn't ckrun's to kill holds a cgroup. The other
    /// cgroups are removed nevertheless.
    pub fn remove(&self) -> Result<()> {
        let mut failed = self.unit.as_ref().map_or(Ok(()), |unit| unit.stop(self));
        let deadline = Instant::now() + PATIENCE;
        for dir in self.dirs.iter().filter(|dir| !dir.existed) {
            if let Err(error) = self.clear(dir, deadline) {
                log::warn!("{error}");
                failed = failed.and(Err(error));
            }
        }
        failed
    }

    fn clear(&self, dir: &Dir, deadline: Instant) -> Result<()> {
        let mut pause = Duration::ZERO;
        loop {
            // The usual case, a container that has ended, costs one rmdir.
            match remove_tree(&dir.path) {
                Err(Errno::EBUSY) if Instant::now() < deadline => {}
                result => return Ok(result.doing(|| format!("remove cgroup {}", dir.path.display()))?),
            }
            // A process may still hold its cgroup between the moment that its end is reported and the end of its
            // last context switch, for which there is no event.
            std::thread::sleep(pause);
            pause = (pause * 2).clamp(Duration::from_micros(500), Duration::from_millis(50));
            self.empty(dir, deadline)?;
        }
    }

    /// Kills until nobody is in `dir` or below.
    fn empty(&self, dir: &Dir, deadline: Instant) -> Result<()> {
        let mut found = pids_below(&dir.path)?;
        let mut rounds = 0;
        while !found.is_empty() {
            if found.contains(&Pid::this()) {
                return Err(alive(dir, "ckrun itself is in it"));
            }
            // `cgroup.kill` (Linux 5.14) reaches processes that are being forked, too.
            if dir.is_v2() && io::write(&dir.path, "cgroup.kill", "1").is_ok() {
                self.thaw_to_die();
                let empty = freezer::await_event(&dir.path, "populated", 0, deadline)
                    .doing(|| format!("wait for the processes in {}", dir.path.display()))?;
                return if empty { Ok(()) } else { Err(alive(dir, "they don't die of SIGKILL")) };
            }
            // Who forked just now is reached in the next round, which holds everybody still.
            let froze = rounds > 0 && self.freezer().is_some_and(|dir| !dir.existed) && self.freeze().is_ok();
            let mut dying = Vec::new();
            pass(&dir.path, libc::SIGKILL, &mut |batch| dying = batch)?;
            if froze {
                self.thaw()?;
            }
            self.thaw_to_die();
            await_all(&dying, deadline);
            if Instant::now() > deadline {
                return Err(alive(dir, "they don't die of SIGKILL"));
            }
            found = pids_below(&dir.path)?;
            if !found.is_empty() && found.iter().all(|pid| pid.as_raw() == 0) {
                // So the kernel lists a process outside of the reader's pid namespace.
                return Err(alive(dir, "they belong to another pid namespace"));
            }
            rounds += 1;
        }
        Ok(())
    }
}

fn alive(dir: &Dir, why: &str) -> Error {
    let what = format!("kill the processes in cgroup {} ({why})", dir.path.display());
    Failure::new(what, Errno::EBUSY).into()
}

/// Sends `signal` once to every process in `directory` and below, and hands what was reached to `then`, in batches.
fn pass(directory: &Path, signal: i32, then: &mut dyn FnMut(Vec<Process>)) -> Result<()> {
    let own = Pid::this();
    for member in tree(directory)? {
        let listed = listed(&member)?;
        for batch in listed.chunks(BATCH) {
            let mut open: Vec<Process> =
                batch.iter().filter(|pid| **pid != own).filter_map(|pid| Process::open_now(*pid)).collect();
            if open.is_empty() {
                continue;
            }
            // What is open keeps its id until it is closed, so an id that is listed now is that very process.
            let still = self::listed(&member)?;
            open.retain(|process| still.contains(&process.pid()));
            for process in &open {
                match process.signal_number(signal) {
                    Err(failure) if failure.errno == Errno::ESRCH => {}
                    result => result?,
                }
            }
            then(open);
        }
    }
    Ok(())
}

/// Waits until all of `processes` have ended: a pidfd becomes readable then.
fn await_all(processes: &[Process], deadline: Instant) {
    let mut waiting: Vec<PollFd<'_>> =
        processes.iter().map(|p| PollFd::new(p.as_fd(), PollFlags::POLLIN)).collect();
    while !waiting.is_empty() {
        match poll(&mut waiting, timeout(deadline)) {
            Ok(0) => return,
            Ok(_) => waiting.retain(|fd| !fd.any().unwrap_or(true)),
            Err(Errno::EINTR) => {}
            Err(_) => return,
        }
    }
}

/// The time left until `deadline`, for poll(2).
pub(super) fn timeout(deadline: Instant) -> PollTimeout {
    let left = deadline.saturating_duration_since(Instant::now());
    PollTimeout::try_from(left.as_millis() + 1).unwrap_or(PollTimeout::MAX)
}

/// The processes in `directory` and below.
pub(super) fn pids_below(directory: &Path) -> Result<Vec<Pid>> {
    let mut pids = Vec::new();
    for member in tree(directory)? {
        pids.append(&mut listed(&member)?);
    }
    Ok(pids)
}

/// The processes in one cgroup.
fn listed(directory: &Path) -> Result<Vec<Pid>> {
    let text = match io::read(directory, "cgroup.procs") {
        // A threaded cgroup's processes are listed in the domain above it.
        Err(Errno::ENOENT | Errno::ENODEV | Errno::EOPNOTSUPP) => return Ok(Vec::new()),
        result => result.doing(|| format!("read {}/cgroup.procs", directory.display()))?,
    };
    Ok(text.lines().filter_map(|line| line.parse().ok().map(Pid::from_raw)).collect())
}

/// `directory` and every cgroup below it, the deepest last.
pub(super) fn tree(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut found = vec![directory.to_owned()];
    let mut next = 0;
    while let Some(parent) = found.get(next).cloned() {
        let children = children(&parent).doing(|| format!("read cgroup {}", parent.display()))?;
        found.extend(children);
        next += 1;
    }
    Ok(found)
}

fn children(directory: &Path) -> Io<Vec<PathBuf>> {
    let gone = |e: &std::io::Error| e.kind() == std::io::ErrorKind::NotFound;
    let errno = |e: std::io::Error| e.raw_os_error().map_or(Errno::EIO, Errno::from_raw);
    let entries = match std::fs::read_dir(directory) {
        Err(e) if gone(&e) => return Ok(Vec::new()),
        entries => entries.map_err(errno)?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.map_err(errno)?;
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found.push(entry.path());
        }
    }
    Ok(found)
}

/// Removes a cgroup and those below it, all of which must be empty.
fn remove_tree(directory: &Path) -> Io<()> {
    let rmdir = |path: &Path| match rustix::fs::rmdir(path).map_err(io::errno) {
        // A child in it may be the reason, as well as a process.
        Err(Errno::EBUSY | Errno::ENOTEMPTY) => Err(Errno::EBUSY),
        // Where nothing may be removed the kernel says that first, even of what isn't there.
        Err(errno) if io::exists(path) => Err(errno),
        _ => Ok(()),
    };
    match rmdir(directory) {
        Err(Errno::EBUSY) => {}
        result => return result,
    }
    for child in children(directory)? {
        remove_tree(&child)?;
    }
    rmdir(directory)
}

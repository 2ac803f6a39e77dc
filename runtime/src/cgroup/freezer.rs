//! Freezing: v1's `freezer.state` and cgroup2's `cgroup.freeze`.
//!
//! Where there are both (hybrid), cgroup2's is used: it reports when it is done, and a process that it froze can still
//! be killed and traced, while v1 leaves it in a sleep that nothing ends but a thaw.

use super::io::{self, Io};
use super::kill::{timeout, tree};
use super::{Cgroups, Dir};
use crate::error::{Error, Result};
use ckrun_virt::Doing;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, poll};
use rustix::fs::{OFlags, SeekFrom};
use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, Instant};

/// How long a freeze may take: processes in an uninterruptible sleep freeze when they wake up.
const PATIENCE: Duration = Duration::from_secs(10);

const STATE: &str = "freezer.state";

impl Cgroups {
    /// Freezes every process of the container and waits until all stand still.
    ///
    /// # Errors
    /// There is no freezer; some process doesn't freeze (then all are thawed again).
    pub fn freeze(&self) -> Result<()> {
        let dir = self.freezer().ok_or_else(|| {
            Error::config(
                "linux.cgroupsPath",
                "the container has no cgroup with a freezer, so it can't be paused",
            )
        })?;
        let deadline = Instant::now() + PATIENCE;
        let frozen = if dir.is_v2() {
            io::write(&dir.path, "cgroup.freeze", "1")
                .and_then(|()| await_event(&dir.path, "frozen", 1, deadline))
        } else {
            freeze_v1(&dir.path, deadline)
        };
        if let Ok(true) = frozen {
            return Ok(());
        }
        // Half frozen is worse than not frozen.
        let _ = self.thaw();
        frozen
            .and(Err(Errno::ETIMEDOUT))
            .doing(|| format!("freeze cgroup {}", dir.path.display()))
            .map_err(Error::from)
    }

    /// Thaws the container, whichever freezer froze it. Thawing what isn't frozen, or is gone, is fine.
    ///
    /// # Errors
    /// The kernel's.
    pub fn thaw(&self) -> Result<()> {
        let files = [(self.v2(), "cgroup.freeze", "0"), (self.v1("freezer"), STATE, "THAWED")];
        for (dir, file, value) in files {
            let Some(dir) = dir else { continue };
            match io::write(&dir.path, file, value) {
                Err(Errno::ENOENT | Errno::ENODEV) => {}
                result => result.doing(|| format!("thaw cgroup {}", dir.path.display()))?,
            }
        }
        Ok(())
    }

    /// Whether the container is frozen, by either freezer, whoever did it. One that is freezing counts as frozen.
    ///
    /// # Errors
    /// The kernel's. A cgroup that is gone is not frozen.
    pub fn frozen(&self) -> Result<bool> {
        let gone = |result: Io<bool>| match result {
            Err(Errno::ENOENT | Errno::ENODEV) => Ok(false),
            result => result,
        };
        let v2 = |dir: &Dir| Ok(io::read(&dir.path, "cgroup.freeze")?.trim_end() == "1");
        let v1 = |dir: &Dir| Ok(io::read(&dir.path, STATE)?.trim_end() != "THAWED");
        Ok(self.v2().map_or(Ok(false), |dir| gone(v2(dir))).doing(|| "read cgroup.freeze")?
            || self.v1("freezer").map_or(Ok(false), |dir| gone(v1(dir))).doing(|| "read freezer.state")?)
    }

    /// Thaws v1's freezer in the container's own cgroup and below it, where the container may have frozen parts of itself:
    /// a process frozen there does not even die of SIGKILL.
    pub fn thaw_to_die(&self) {
        let Some(dir) = self.v1("freezer").filter(|dir| !dir.existed) else { return };
        for cgroup in tree(&dir.path).unwrap_or_default() {
            // What can't be thawed shows when its processes are waited for.
            let _ = io::write(&cgroup, STATE, "THAWED");
        }
    }

    pub(super) fn freezer(&self) -> Option<&Dir> {
        self.v2().or_else(|| self.v1("freezer"))
    }
}

/// Freezes on v1. The kernel freezes each process once, so one that is forked or moved in at the wrong moment stays out
/// and the state stays FREEZING until it is written again; a thaw in between lets a process on that others wait for.
fn freeze_v1(directory: &Path, deadline: Instant) -> Io<bool> {
    for attempt in 1.. {
        io::write(directory, STATE, "FROZEN")?;
        if io::read(directory, STATE)?.trim_end() == "FROZEN" {
            return Ok(true);
        }
        if Instant::now() > deadline {
            break;
        }
        // v1 has no event for it. Mostly the first look or the second finds it frozen.
        match attempt {
            n if n % 50 == 0 => {
                io::write(directory, STATE, "THAWED")?;
                std::thread::sleep(Duration::from_millis(10));
            }
            n if n > 5 => std::thread::sleep(Duration::from_micros(100)),
            _ => std::thread::yield_now(),
        }
    }
    Ok(false)
}

/// Waits until `key` in `cgroup.events` has `value`: the kernel reports each change of the file as POLLPRI. Returns
/// false at the deadline. A cgroup that is gone counts as empty.
pub(super) fn await_event(directory: &Path, key: &str, value: u64, deadline: Instant) -> Io<bool> {
    let events = match io::open(directory, "cgroup.events", OFlags::RDONLY) {
        Err(Errno::ENOENT) if key == "populated" => return Ok(true),
        result => result?,
    };
    loop {
        // Reading is what poll measures changes from, so a change between the two is not lost.
        match io::drain(&events) {
            Ok(text) if io::keyed(&text, key) == Some(value) => return Ok(true),
            Err(Errno::ENODEV) if key == "populated" => return Ok(true),
            result => drop(result?),
        }
        let mut change = [PollFd::new(events.as_fd(), PollFlags::POLLPRI)];
        match poll(&mut change, timeout(deadline)) {
            Ok(0) => return Ok(false),
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
        }
        rustix::fs::seek(&events, SeekFrom::Start(0)).map_err(io::errno)?;
    }
}

//! Whether the terminals of a job can be had in a restarted container.

use super::super::check::is_path;
use super::super::seen::Info;
use super::super::{Files, Object, container};
use super::state::{Slave, State};
use super::{End, Master, is_slave};
use crate::restore::Problem;
use crate::{Doing, Failure};
use nix::unistd::Pid;
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, Stat};
use std::collections::BTreeSet;
use std::os::fd::{BorrowedFd, RawFd};

/// The kernel's own limit (`NR_UNIX98_PTY_MAX`) is far higher, its default (`kernel.pty.max`) is this.
pub(in super::super) const HIGHEST: u32 = 4096;

impl Files {
    /// Why no terminals can be so.
    pub(in super::super) fn wrong_terminals(&self) -> Option<String> {
        let mut indices = BTreeSet::new();
        let mut leaders = BTreeSet::new();
        let mut points = BTreeSet::new();
        for (at, terminal) in self.terminals.iter().enumerate() {
            let number = terminal.index.to_string();
            let ends = || self.ends_of(at);
            let masters = ends().filter(|(_, of, _)| of.end == End::Master).count();
            let open = terminal.state.as_ref().map(|state| state.slave);
            let possible = is_path(&terminal.path)
                && terminal.path.ends_with(number.as_bytes())
                && terminal.index < HIGHEST
                && indices.insert(terminal.index)
                && masters == usize::from(terminal.master == Master::Job)
                && (terminal.master == Master::Nobody) == open.is_none()
                && (open != Some(Slave::Unopened) || ends().count() == masters)
                && terminal.session.as_ref().is_none_or(|session| {
                    leaders.insert(session.leader)
                        && self.processes.contains_key(&session.leader)
                        && session.without.iter().all(|pid| self.processes.contains_key(pid))
                        && open.is_some_and(|open| open != Slave::Unopened)
                });
            points.insert(container::parent(&terminal.path).to_vec());
            if !possible || points.len() > 1 {
                return Some(format!("terminal {at} is impossible"));
            }
            if let Some(why) = terminal.state.as_ref().and_then(State::wrong) {
                return Some(format!("terminal {at}: {why}"));
            }
        }
        None
    }

    /// What is amiss with the terminals in the container with the root directory `root`, in which `init` waits to become
    /// the job's first process.
    ///
    /// # Errors
    /// System errors.
    pub fn check_terminals(&self, root: BorrowedFd<'_>, init: Pid) -> Result<Vec<Problem>, Failure> {
        let mut problems = Vec::new();
        let mut problem = |what: String, why: String| problems.push(Problem { what, why });
        for given in self.descriptions.iter().filter_map(|description| match &description.object {
            Object::Given(given) if given.terminal => Some(given),
            _ => None,
        }) {
            if !stream(init, given.number.into())?.is_some_and(|stat| is_terminal(&stat)) {
                let what = format!("standard stream {}", given.number);
                problem(what, format!("it was a terminal ({}), and is none here", given.was));
            }
        }
        let Some(first) = self.terminals.first() else { return Ok(problems) };
        let point = container::parent(&first.path);
        let name = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let Some(present) = present(root, point)? else {
            problem(name(point), "there is no devpts for the job's terminals".into());
            return Ok(problems);
        };
        for terminal in &self.terminals {
            let path = name(&terminal.path);
            match terminal.master {
                Master::Outside if console(init)?.is_none() => {
                    let why =
                        "it was the container's terminal, and this one has none: process.terminal is not set";
                    problem(path, why.into());
                }
                Master::Job | Master::Nobody if present.contains(&terminal.index) => {
                    problem(path, "the container has another terminal of this number already".into());
                }
                _ => {}
            }
        }
        Ok(problems)
    }
}

/// The container's terminal: the standard input of its first process, if that is one of its devpts.
pub(super) fn console(init: Pid) -> Result<Option<Stat>, Failure> {
    let here: Vec<_> = container::mounts(init)?.into_iter().map(|(id, mount)| (id, mount.kind)).collect();
    let info = match Info::read(init, 0) {
        Err(failure) if failure.errno == nix::errno::Errno::ENOENT => return Ok(None),
        info => info?,
    };
    let devpts = here.iter().any(|(id, kind)| *id == info.mount && kind == b"devpts");
    Ok(stream(init, 0)?.filter(|stat| devpts && is_slave(rustix::fs::major(stat.st_rdev))))
}

fn stream(init: Pid, fd: RawFd) -> Result<Option<Stat>, Failure> {
    let path = format!("/proc/{init}/fd/{fd}");
    match rustix::fs::stat(&path) {
        Err(rustix::io::Errno::NOENT) => Ok(None),
        stat => stat.map(Some).doing(|| format!("look at {path}")),
    }
}

fn is_terminal(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice
        && super::super::given::is_terminal(stat.st_rdev)
}

/// The indices that are in use in the devpts at `point`; None when there is none.
pub(super) fn present(root: BorrowedFd<'_>, point: &[u8]) -> Result<Option<BTreeSet<u32>>, Failure> {
    let what = || format!("read {}", String::from_utf8_lossy(point));
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let opened = rustix::fs::openat2(root, point, flags, Mode::empty(), ResolveFlags::IN_ROOT);
    let directory = match opened {
        Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => return Ok(None),
        opened => opened.doing(what)?,
    };
    /// `linux/magic.h`.
    const DEVPTS: i64 = 0x1cd1;
    if rustix::fs::fstatfs(&directory).doing(what)?.f_type != DEVPTS {
        return Ok(None);
    }
    let mut present = BTreeSet::new();
    for entry in rustix::fs::Dir::new(directory).doing(what)? {
        let entry = entry.doing(what)?;
        present.extend(entry.file_name().to_str().ok().and_then(|name| name.parse::<u32>().ok()));
    }
    Ok(Some(present))
}

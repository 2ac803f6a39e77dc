//! Files of `/proc/PID` that are open, or that a process is in, while the task has ended.
//!
//! The kernel still has the directory for those who have it, and it is empty. It can be had again only as it was had
//! first: a process with this number is made, what is wanted of it is opened, and it ends.

use super::capture::Job;
use super::container::{DELETED, Mount, join, same};
use super::ghost::{Ghost, GhostUse};
use super::making::{Making, OPEN};
use super::seen::Seen;
use super::{Description, Files, Trouble};
use crate::fs::Place;
use crate::{Failure, endings, nursery};
use rustix::fs::FileType;
use std::os::fd::RawFd;

/// The task that has ended, if `path`, which is on `mount`, was its directory in a procfs or a file that every task has
/// there.
pub(super) fn task(mount: &Mount, path: &[u8]) -> Option<i32> {
    if mount.kind != b"proc" {
        return None;
    }
    let inside = mount.inside(path);
    let words: Vec<&[u8]> = inside.split(|&b| b == b'/').skip(1).collect();
    let first = *words.first()?;
    let of_all = match words.get(1..)? {
        [] | [_] => true,
        // The first thread has the number of its process.
        [b"task", thread] | [b"task", thread, _] => *thread == first,
        [b"attr", _] => true,
        _ => false,
    };
    let task: i32 = std::str::from_utf8(first).ok()?.parse().ok()?;
    (of_all && task > 0).then_some(task)
}

impl Job<'_> {
    /// None when it is no such file.
    pub(super) fn remains(&mut self, node: usize) -> Result<Option<GhostUse>, Trouble> {
        let last = self.last_name(node)?.map(<[u8]>::to_vec);
        last.map(|last| self.ghost(node, &last)).transpose()
    }

    /// What `/proc` calls such a file. Only the directory itself is marked as gone: the kernel takes it out of its cache
    /// with all that is in it, but that alone loses its name.
    fn last_name(&self, node: usize) -> Result<Option<&[u8]>, Failure> {
        let Seen { link, info, stat, .. } = &self.graph.nodes[node].seen;
        let (_, container) = self.graph.home(info.mount);
        let marked = link.strip_suffix(DELETED);
        let last = marked.unwrap_or(link);
        let Some(mount) = container.mount(info.mount) else { return Ok(None) };
        let Some(task) = task(mount, last) else { return Ok(None) };
        let there = container.find(link)?;
        let gone = match (marked, there) {
            (Some(_), there) => there.is_none(),
            (None, None) => container.find(&join(&mount.point, task.to_string().as_bytes()))?.is_none(),
            // A process of ckrun's may have the number for a moment. As long as a file is open, and its task is there, it
            // is this one that a path leads to.
            (None, Some(there)) => !same(&there, stat) && !self.knows(task),
        };
        Ok(gone.then_some(last))
    }
}

impl Job<'_> {
    /// Nobody may be in the directory of another task that has ended, or go to a mount namespace: that leads out of the
    /// directory for good.
    pub(crate) fn only_remains(&self, ghost: u32) -> Result<(), Trouble> {
        let Some(Ghost { path, task: Some(_), .. }) = self.files.ghosts.get(ghost as usize) else {
            return Ok(());
        };
        if self.graph.containers().nth(1).is_some() {
            let why = "the task has ended, and the job has mount namespaces of its own";
            return Err(Trouble::refused(path.to_string(), why));
        }
        match self.files.inside_remains().find(|other| *other != ghost) {
            None => Ok(()),
            Some(_) => {
                let why = "another process is in the directory of another task that has ended, and only one can be made again";
                Err(Trouble::refused(path.to_string(), why))
            }
        }
    }
}

impl Files {
    /// The directories of ended tasks that processes are in.
    fn inside_remains(&self) -> impl Iterator<Item = u32> {
        self.processes.values().filter_map(|holdings| match holdings.fs.cwd {
            Place::Deleted(ghost) => self.ghosts.get(ghost as usize)?.task.map(|_| ghost),
            Place::Path(_) => None,
        })
    }

    /// Lets the first process go to the directory of an ended task in which somebody is to be: a process can go there only
    /// as long as there is the task, and later it may be another's number. All others are born there; who is to be
    /// elsewhere goes elsewhere.
    pub(super) fn enter_remains(&self, making: &mut Making<'_>) -> Result<(), Failure> {
        let ghost = self.inside_remains().next().and_then(|ghost| self.ghosts.get(ghost as usize));
        let Some(Ghost { path, task: Some(task), .. }) = ghost else { return Ok(()) };
        let passing = nursery::beget_agent(making.worker, *task)?;
        making.go(0);
        let name = making.program.put_cstr(path);
        making.program.call(format!("go to {path}"), libc::SYS_chdir, &[name.into()]);
        let gone = making.run();
        endings::end(passing, 0)?;
        endings::reap(making.worker, *task)?;
        gone
    }
}

impl Ghost {
    /// Makes it as descriptor `own`, and every description of it. The job's other processes are not there yet, so that
    /// all numbers but one are free.
    pub(super) fn make_remains<'a>(
        &self,
        task: i32,
        own: RawFd,
        uses: impl Iterator<Item = (usize, &'a Description)>,
        making: &mut Making<'_>,
    ) -> Result<(), Failure> {
        making.run()?;
        let passing = nursery::beget_agent(making.worker, task)?;
        let directory = FileType::from_raw_mode(self.mode) == FileType::Directory;
        let flags = if directory { libc::O_RDONLY | libc::O_DIRECTORY } else { libc::O_PATH };
        making.open(&self.path, flags as u32, own);
        for (at, description) in uses {
            let to = making.at(at as u32);
            making.open(&self.path, description.flags & OPEN, to);
            if description.position != 0 {
                // Whoever reads on will find the end, from wherever.
                let args = [to.into(), description.position.into(), libc::SEEK_SET.into()];
                making.program.attempt("seek in a file of a task", libc::SYS_lseek, &args);
            }
        }
        let made = making.run();
        endings::end(passing, 0)?;
        endings::reap(making.worker, task)?;
        made
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_every_task_has_can_be_had_again() {
        let mount = Mount {
            device: (0, 1),
            root: b"/".into(),
            point: b"/proc".into(),
            kind: b"proc".into(),
            read_only: false,
            shared: false,
        };
        let found = |path: &str| task(&mount, path.as_bytes());
        for path in ["/proc/4", "/proc/4/mountinfo", "/proc/4/task/4/stat", "/proc/4/attr/current"] {
            assert_eq!(found(path), Some(4), "{path}");
        }
        for path in ["/proc", "/proc/x", "/proc/0", "/proc/4/task/5", "/proc/4/fdinfo/3", "/proc/4/net/dev/x"]
        {
            assert_eq!(found(path), None, "{path}");
        }
        assert_eq!(task(&Mount { kind: b"sysfs".into(), ..mount }, b"/proc/4"), None);
    }
}

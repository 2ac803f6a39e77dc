//! Which processes and threads a job has, as `/proc` lists them.

use crate::proc::Stat;
use crate::resource::Stopped;
use crate::status::Status;
use crate::{Doing, Failure, halves};
use nix::unistd::Pid;
use std::os::unix::fs::MetadataExt;

/// A process and its threads, the leader first, as ckrun sees their ids.
#[derive(Debug, Clone)]
pub struct Listed {
    /// Its id.
    pub host: Pid,
    /// Those of its threads.
    pub threads: Vec<Pid>,
}

/// A process of a running job as it was at a moment.
#[derive(Debug)]
pub struct Sight {
    /// What was seen of its leader, even if that has ended.
    pub leader: Stopped,
    /// When and how it started and ended, if it has.
    pub stat: Stat,
    /// All its threads, the leader first.
    pub threads: Vec<Pid>,
}

/// `init` and all that descend from it, parents first.
pub fn list(init: Pid) -> Vec<Listed> {
    let mut found = vec![init];
    let mut all = Vec::new();
    while let Some(&host) = found.get(all.len()) {
        let threads = threads(host);
        for tid in &threads {
            // A child belongs to the thread that made it.
            let children =
                crate::proc::read(&format!("/proc/{host}/task/{tid}/children")).unwrap_or_default();
            let ids = children.split(u8::is_ascii_whitespace).filter_map(|id| std::str::from_utf8(id).ok());
            found.extend(ids.filter_map(|id| Some(Pid::from_raw(id.parse().ok()?))));
        }
        all.push(Listed { host, threads });
    }
    all
}

/// The processes of [`list`].
pub fn descendants(init: Pid) -> Vec<Pid> {
    list(init).iter().map(|process| process.host).collect()
}

/// The threads of a process, its leader first.
pub fn threads(pid: Pid) -> Vec<Pid> {
    let path = format!("/proc/{pid}/task");
    // Each thread counts as a link of the directory (proc_task_getattr), as `.` and its name do; most processes have one.
    if std::fs::metadata(&path).is_ok_and(|directory| directory.nlink() == 3) {
        return vec![pid];
    }
    let Ok(entries) = std::fs::read_dir(path) else { return Vec::new() };
    let ids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let mut tids: Vec<Pid> = ids.map(Pid::from_raw).collect();
    tids.sort_by_key(|&tid| (tid != pid, tid));
    tids
}

/// Looks at processes; those that are gone are left out.
pub fn see(listed: &[Listed]) -> Vec<Sight> {
    halves::map(listed, Sight::of).into_iter().flatten().collect()
}

impl Sight {
    fn of(listed: &Listed) -> Option<Sight> {
        let leader = look(listed.host, listed.host, 0).ok()?;
        let (leader, stat) = (Stopped { pid: leader.tid, ..leader }, Stat::of(listed.host)?);
        Some(Sight { leader, stat, threads: listed.threads.clone() })
    }

    /// Its leader, unless that has ended.
    pub fn running(&self) -> Option<&Stopped> {
        (!self.leader.status.ended()).then_some(&self.leader)
    }

    /// A look at the threads besides the leader that have not ended.
    pub fn others(&self) -> impl Iterator<Item = Stopped> {
        let (host, pid) = (self.leader.host, self.leader.pid);
        let others = self.threads.iter().filter(move |&&tid| tid != host);
        others.filter_map(move |&tid| look(host, tid, pid).ok()).filter(|thread| !thread.status.ended())
    }
}

/// What `/proc` says of thread `tid` of process `host`, which is `pid` for the job, at this moment unless it is stopped.
///
/// # Errors
/// `ENOENT`, `ESRCH` when it is gone.
pub(crate) fn look(host: Pid, tid: Pid, pid: i32) -> Result<Stopped, Failure> {
    // Not /proc/TID, which is there as well: the kernel would make a directory for each thread.
    let path = format!("/proc/{host}/task/{tid}/status");
    let status = Status::parse(&crate::proc::read(&path).doing(|| format!("read {path}"))?);
    Ok(Stopped { host: tid, tid: status.ns_pid.last().copied().unwrap_or(0), pid, status })
}

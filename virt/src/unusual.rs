//! Processes of a shape that can't be made again: without a first thread, or with the memory of another process.

use crate::listing;
use crate::proc::Stat;
use crate::resource::{Blocker, Stopped};
use crate::sys::kcmp::compare_memory;
use crate::{Doing, Failure};
use nix::errno::Errno;
use nix::unistd::Pid;
use std::cmp::Ordering;

/// Names the processes, by their leaders, that can't be made again.
///
/// # Errors
/// The kernel's.
pub fn blockers<'a>(processes: impl Iterator<Item = &'a Stopped>) -> Result<Vec<Blocker>, Failure> {
    let mut blockers = Vec::new();
    let mut known: Vec<&Stopped> = Vec::new();
    for process in processes {
        let Stopped { host, pid, .. } = process;
        let mut refuse = |what: &str, why: &str| {
            blockers.push(Blocker {
                pid: *pid,
                comm: process.comm(),
                what: what.to_owned(),
                why: why.to_owned(),
                remedy: None,
            });
        };
        if process.status.ended() {
            if listing::threads(*host).len() > 1 {
                refuse("its first thread has ended", "the kernel makes no process without one");
            }
            continue;
        }
        // In the order of kcmp(2), so that few have to be compared.
        match search(&known, *host) {
            Ok(Ok(_)) if !has_memory(*host) => {}
            Ok(Ok(_)) if Stat::of(*host).is_none_or(|stat| waits_in_vfork(stat.parent)) => {}
            Ok(Ok(twin)) => {
                let why = format!("it is that of process {} (vfork or CLONE_VM)", known[twin].pid);
                refuse("memory", &why);
            }
            Ok(Err(place)) => known.insert(place, process),
            // It has ended.
            Err(Errno::ESRCH) => {}
            other => drop(other.doing(|| format!("compare the memory of process {pid}"))?),
        }
    }
    Ok(blockers)
}

/// Processes that are about to end have no memory any more, all of them the same none.
fn has_memory(host: Pid) -> bool {
    std::fs::read_link(format!("/proc/{host}/exe")).is_ok()
}

/// The process waits in vfork(2), or a clone(2) of this kind, until its child has let go of its memory. That happens soon;
/// and until then it can't be stopped, so that no image shows it.
fn waits_in_vfork(parent: Pid) -> bool {
    listing::threads(parent).into_iter().any(|thread| {
        // The number of the call that it is blocked in, and more (proc_pid_syscall(5)).
        let text = std::fs::read_to_string(format!("/proc/{thread}/syscall")).unwrap_or_default();
        let number = text.split(' ').next().and_then(|word| word.parse().ok());
        number.is_some_and(|nr: libc::c_long| {
            [libc::SYS_vfork, libc::SYS_clone, libc::SYS_clone3].contains(&nr)
        })
    })
}

/// The place of a process in the order of their memories: where an equal one is, or where it is to be put.
fn search(known: &[&Stopped], host: Pid) -> Result<Result<usize, usize>, Errno> {
    let (mut low, mut high) = (0, known.len());
    while low < high {
        let middle = low.midpoint(high);
        match compare_memory(known[middle].host, host) {
            Ok(Ordering::Equal) => return Ok(Ok(middle)),
            Ok(Ordering::Less) => low = middle + 1,
            Ok(Ordering::Greater) => high = middle,
            // The other one has ended since; then this one is not to be found.
            Err(Errno::ESRCH) => return Ok(Err(middle)),
            Err(errno) => return Err(errno),
        }
    }
    Ok(Err(low))
}

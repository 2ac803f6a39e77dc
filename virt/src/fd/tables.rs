//! Tables of descriptors, and directories, that tasks share in ways that no restart makes.

use super::Refusal;
use super::capture::blocker;
use super::graph::Graph;
use crate::resource::Blocker;
use crate::sys::kcmp;
use crate::{Doing, Failure};
use nix::unistd::Pid;
use std::cmp::Ordering;

/// Names them.
pub(super) fn survey(graph: &Graph, blockers: &mut Vec<Blocker>) -> Result<(), Failure> {
    type Compare = fn(Pid, Pid) -> Result<Ordering, nix::errno::Errno>;
    let kinds: [(Compare, &str, &str); 2] = [
        (kcmp::compare_tables, "table of descriptors", "CLONE_FILES"),
        (kcmp::compare_fs, "working directory and umask", "CLONE_FS"),
    ];
    for (compare, what, flag) in kinds {
        let compare = |a: Pid, b: Pid| match compare(a, b) {
            Err(nix::errno::Errno::ESRCH) => Ok(None),
            order => order.map(Some).doing(|| format!("compare the {what} of processes {a} and {b}")),
        };
        let mut sorted: Vec<usize> = Vec::new();
        for (at, member) in graph.members.iter().enumerate() {
            for &thread in member.threads.iter().filter(|&&thread| thread != member.host) {
                if compare(member.host, thread)?.is_some_and(|order| order != Ordering::Equal) {
                    let why = format!("a thread has one of its own (it has called unshare({flag}))");
                    blockers.push(blocker(member, Refusal { what: what.into(), why, remedy: None }));
                    break;
                }
            }
            let (mut low, mut high) = (0, sorted.len());
            while low < high {
                let middle = low.midpoint(high);
                let other = &graph.members[sorted[middle]];
                match compare(other.host, member.host)? {
                    Some(Ordering::Equal) => {
                        let why = format!("shared with process {} ({}), by {flag}", other.pid, other.comm);
                        blockers.push(blocker(member, Refusal { what: what.into(), why, remedy: None }));
                        break;
                    }
                    Some(Ordering::Greater) => high = middle,
                    Some(Ordering::Less) | None => low = middle + 1,
                }
            }
            sorted.insert(low, at);
        }
    }
    Ok(())
}

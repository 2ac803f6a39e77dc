//! Tables of descriptors, and directories, that processes share by CLONE_FILES and CLONE_FS.
//!
//! clone(2) is the only way to share one: a process has it from its maker. So of those who share a table one is the
//! owner, whose table the image holds, and each of the others is made by its parent, which has the table already. All of
//! them keep what there is of it from their birth on, and what a restart changes about it, it changes once.

use super::graph::{Graph, Member};
use super::refused::Refused;
use super::{Files, Holdings, Refusal};
use crate::sys::kcmp;
use crate::{Doing, Failure};
use nix::errno::Errno;
use nix::unistd::Pid;
use std::cmp::Ordering;

type Compare = fn(Pid, Pid) -> Result<Ordering, Errno>;
/// Whose a process's table is, or its directories, when they are not its own.
type Lender = fn(&Holdings) -> Option<i32>;

/// Whose table, and whose directories, a process has that has none of its own, by the job's ids.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Sharing {
    pub table: Option<i32>,
    pub directories: Option<i32>,
}

/// What each member shares. What no restart could share again is named.
pub(super) fn survey(graph: &Graph, refused: &mut Refused) -> Result<Vec<Sharing>, Failure> {
    let mut sharing = vec![Sharing::default(); graph.members.len()];
    let tables = Kind { compare: kcmp::compare_tables, what: "table of descriptors", flag: "CLONE_FILES" };
    for (member, owner) in tables.owners(&graph.members, refused)? {
        sharing[member].table = Some(owner);
    }
    let directories =
        Kind { compare: kcmp::compare_fs, what: "working directory and umask", flag: "CLONE_FS" };
    for (member, owner) in directories.owners(&graph.members, refused)? {
        // setns(2) and unshare(2) take nobody there who shares directories.
        if graph.namespace(member).0 > 0 {
            let why =
                format!("shared with process {owner}, by CLONE_FS, in a mount namespace of the job's own");
            refused.add(&graph.members[member], directories.refusal(why));
        }
        sharing[member].directories = Some(owner);
    }
    Ok(sharing)
}

struct Kind {
    compare: Compare,
    what: &'static str,
    flag: &'static str,
}

impl Kind {
    fn refusal(&self, why: String) -> Refusal {
        Refusal { what: self.what.into(), why, remedy: None, passing: false }
    }

    /// Members that share something, and its owner.
    fn owners(&self, members: &[Member], refused: &mut Refused) -> Result<Vec<(usize, i32)>, Failure> {
        let mut refuse = |member: &Member, why| refused.add(member, self.refusal(why));
        // In the order of kcmp(2), so that few have to be compared.
        let mut groups: Vec<Vec<usize>> = Vec::new();
        for (at, member) in members.iter().enumerate() {
            for &thread in member.threads.iter().filter(|&&thread| thread != member.host) {
                if self.compare(member.host, thread)?.is_some_and(|order| order != Ordering::Equal) {
                    refuse(
                        member,
                        format!("a thread has one of its own (it has called unshare({}))", self.flag),
                    );
                    break;
                }
            }
            let (mut low, mut high) = (0, groups.len());
            let mut found = None;
            while low < high {
                let middle = low.midpoint(high);
                match self.compare(members[groups[middle][0]].host, member.host)? {
                    Some(Ordering::Equal) => {
                        found = Some(middle);
                        break;
                    }
                    Some(Ordering::Greater) => high = middle,
                    Some(Ordering::Less) | None => low = middle + 1,
                }
            }
            match found {
                Some(group) => groups[group].push(at),
                None => groups.insert(low, vec![at]),
            }
        }
        let mut owners = Vec::new();
        for group in groups.iter().filter(|group| group.len() > 1) {
            // Its parent has it, and makes it.
            let by_birth = |member: &Member| {
                let parent = group.iter().map(|&at| &members[at]).find(|other| other.host == member.parent);
                parent.is_some_and(|parent| [parent.session, member.pid].contains(&member.session))
            };
            let (born, strangers): (Vec<usize>, Vec<usize>) =
                group.iter().partition(|&&at| by_birth(&members[at]));
            let Some((&owner, strangers)) = strangers.split_first() else { continue };
            let owner = &members[owner];
            for &at in strangers {
                let why = format!(
                    "shared with process {} ({}), by {}, and neither is the other's parent",
                    owner.pid, owner.comm, self.flag
                );
                refuse(&members[at], why);
            }
            owners.extend(born.into_iter().map(|at| (at, owner.pid)));
        }
        Ok(owners)
    }

    /// None when one of them has ended.
    fn compare(&self, a: Pid, b: Pid) -> Result<Option<Ordering>, Failure> {
        match (self.compare)(a, b) {
            Err(Errno::ESRCH) => Ok(None),
            order => order.map(Some).doing(|| format!("compare the {} of processes {a} and {b}", self.what)),
        }
    }
}

impl Files {
    /// The flags by which `maker` makes process `pid`, so that it shares what it shared.
    ///
    /// # Errors
    /// `maker` does not have that: a sentence.
    pub fn shared_from_birth(&self, pid: i32, maker: i32) -> Result<u64, String> {
        let owner =
            |pid: i32, of: Lender| self.processes.get(&pid).map(|holdings| of(holdings).unwrap_or(pid));
        let kinds: [(Lender, libc::c_int); 2] = [
            (|holdings| holdings.table, libc::CLONE_FILES),
            (|holdings| holdings.directories, libc::CLONE_FS),
        ];
        let mut flags = 0;
        for (of, flag) in kinds {
            let Some(wanted) = self.processes.get(&pid).and_then(of) else { continue };
            if owner(maker, of) != Some(wanted) {
                return Err(format!(
                    "process {pid} has what is process {wanted}'s, and is made by {maker}, which has not"
                ));
            }
            flags |= flag as u64;
        }
        Ok(flags)
    }

    /// Somebody else has the directories of process `pid` too.
    pub(super) fn lends_directories(&self, pid: i32) -> bool {
        self.processes.values().any(|holdings| holdings.directories == Some(pid))
    }

    /// Why the sharing in an image is impossible.
    pub(super) fn wrong_sharing(&self) -> Option<String> {
        let own = |owner: i32, of: Lender| {
            self.processes.get(&owner).is_some_and(|holdings| of(holdings).is_none())
        };
        self.processes.iter().find_map(|(pid, holdings)| {
            let table = holdings.table.is_none_or(|owner| {
                let empty = holdings.descriptors.is_empty() && holdings.locks.is_empty();
                empty && own(owner, |holdings| holdings.table)
            });
            let directories = holdings.directories.is_none_or(|owner| {
                holdings.fs.namespace == 0 && own(owner, |holdings| holdings.directories)
            });
            (!table || !directories).then(|| format!("process {pid}: it shares what nobody has"))
        })
    }
}

//! How processes are related, and in which order they must be made so that they are related in the same way again.
//!
//! The kernel has no call that puts a process into an existing session: it is born into its maker's. So the maker of a
//! process is not always its parent. Where the leader of a session or group is gone, a helper of that number stands in
//! for it and ends when it has done its work.

use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// One process of a job; all ids are the job's own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Member {
    /// Its id.
    pub pid: i32,
    /// Its parent's, 0 for the first process.
    pub parent: i32,
    /// Its process group.
    pub group: i32,
    /// Its session.
    pub session: i32,
    /// The signal that tells its parent of its end.
    pub exit_signal: i32,
    /// Its threads' ids, the leader's first.
    pub threads: Vec<i32>,
    /// What it is doing.
    pub state: Life,
    /// Its command name, for people.
    pub comm: String,
}

/// What a process is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub enum Life {
    /// It runs, or waits for something.
    Running,
    /// Job control has stopped it.
    Stopped {
        /// By this signal.
        signal: i32,
        /// Its parent has been told, and has asked.
        reported: bool,
    },
    /// It has ended and waits to be reaped.
    Zombie {
        /// The wait status.
        status: i32,
    },
}

/// A step of the making.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// `maker` makes `pid`: as its child, or, if `sibling`, as a child of its own parent.
    Make {
        /// Who is made.
        pid: i32,
        /// Who makes it.
        maker: i32,
        /// `CLONE_PARENT`.
        sibling: bool,
        /// The exit signal.
        signal: i32,
        /// It is not part of the job.
        helper: bool,
    },
    /// `pid` begins a session.
    Lead(i32),
    /// `pid` joins group `group`, or begins it if that is its own id.
    Join {
        /// Who.
        pid: i32,
        /// Which.
        group: i32,
    },
    /// Helper `pid` ends, and `parent` reaps it.
    Dismiss {
        /// Who.
        pid: i32,
        /// Its parent.
        parent: i32,
    },
}

/// The steps that make `members` (the first one exists already and leads its own session) or why it can't be done.
///
/// # Errors
/// A sentence about the first process that does not fit.
pub fn plan(members: &[Member]) -> Result<Vec<Step>, String> {
    let Some(first) = members.first() else { return Err("there is no process".into()) };
    let by_id: BTreeMap<i32, &Member> = members.iter().map(|m| (m.pid, m)).collect();
    if by_id.len() != members.len() {
        return Err("two processes have one id".into());
    }
    let mut plan = Plan {
        taken: members
            .iter()
            .flat_map(|m| m.threads.iter().copied().chain([m.pid, m.group, m.session]))
            .collect(),
        by_id,
        births: BTreeMap::from([(first.pid, first.session)]),
        steps: Vec::new(),
        stand_ins: BTreeMap::new(),
    };
    if first.session != first.pid {
        return Err(format!(
            "process {} is in session {}, which is outside the job",
            first.pid, first.session
        ));
    }
    plan.children_of(first)?;
    if let Some(lost) = members.iter().find(|m| !plan.births.contains_key(&m.pid)) {
        return Err(format!("process {} has no parent in the job", lost.pid));
    }
    plan.groups(members);
    for (leader, parent) in std::mem::take(&mut plan.stand_ins) {
        plan.steps.push(Step::Dismiss { pid: leader, parent });
    }
    Ok(plan.steps)
}

/// All members, the deepest in the tree first: children before their parents, siblings in their order. Parents come before
/// their children in `members`.
pub fn children_first(members: &[Member]) -> Vec<&Member> {
    let mut depths = BTreeMap::new();
    let mut all: Vec<(usize, &Member)> = Vec::with_capacity(members.len());
    for member in members {
        let depth = depths.get(&member.parent).map_or(0, |depth| depth + 1);
        depths.insert(member.pid, depth);
        all.push((depth, member));
    }
    // Stable.
    all.sort_by_key(|(depth, _)| std::cmp::Reverse(*depth));
    all.into_iter().map(|(_, member)| member).collect()
}

struct Plan<'a> {
    taken: BTreeSet<i32>,
    by_id: BTreeMap<i32, &'a Member>,
    /// Who is made so far, and the session that they were born in.
    births: BTreeMap<i32, i32>,
    steps: Vec<Step>,
    /// Helpers that lead a session whose leader has gone, and their parents.
    stand_ins: BTreeMap<i32, i32>,
}

impl<'a> Plan<'a> {
    /// Makes the children of `parent`, which has just been made (and leads its session already if it does).
    fn children_of(&mut self, parent: &Member) -> Result<(), String> {
        let mut children: Vec<&Member> =
            self.by_id.values().copied().filter(|m| m.parent == parent.pid && m.pid != parent.pid).collect();
        // Leaders first: orphans of their sessions may be among the others.
        children.sort_by_key(|m| (m.session != m.pid, m.session != parent.session, m.pid));
        for child in children {
            if !self.births.contains_key(&child.pid) {
                self.make(child, parent)?;
            }
        }
        Ok(())
    }

    fn make(&mut self, child: &Member, parent: &Member) -> Result<(), String> {
        let leads = child.session == child.pid;
        if leads || child.session == parent.session {
            self.born(child, parent.pid, false, parent.session);
        } else if let Some(leader) = self.by_id.get(&child.session).copied() {
            self.adopted(child, leader)?;
        } else {
            self.stand_in(child, parent);
        }
        if leads {
            for early in self.lead(child, parent.session) {
                self.children_of(early)?;
            }
        }
        self.children_of(child)
    }

    /// `leader`, born in session `old`, begins its own; the answer is the processes that are made before, by it or by one
    /// of them: they are still in the old session, or were when they made others that are.
    fn lead(&mut self, leader: &Member, old: i32) -> Vec<&'a Member> {
        let mut early = self.early(leader, old);
        for one in early.clone() {
            self.born(one, leader.pid, false, old);
            if one.session != old {
                early.extend(self.lead(one, old));
            }
        }
        self.steps.push(Step::Lead(leader.pid));
        early
    }

    /// The children of `leader` that must be born in session `old`, in which it was itself.
    fn early(&self, leader: &Member, old: i32) -> Vec<&'a Member> {
        let unborn = self.by_id.values().copied().filter(|m| !self.births.contains_key(&m.pid));
        unborn
            .filter(|m| m.parent == leader.pid)
            .filter(|m| m.session == old || (m.session == m.pid && !self.early(m, old).is_empty()))
            .collect()
    }

    /// An orphan of a session whose leader lives elsewhere in the tree: a helper inside that session makes it and ends,
    /// so that the kernel gives it to the parent that it had given it to before.
    fn adopted(&mut self, child: &Member, leader: &Member) -> Result<(), String> {
        if !self.births.contains_key(&leader.pid) {
            let parent = self.by_id.get(&leader.parent).copied();
            let Some(parent) =
                parent.filter(|p| self.births.contains_key(&p.pid) && leader.pid != child.parent)
            else {
                return Err(format!(
                    "process {} is in the session of {}, which comes later",
                    child.pid, leader.pid
                ));
            };
            self.make(leader, parent)?;
        }
        if self.births.contains_key(&child.pid) {
            return Ok(());
        }
        let helper = self.free_id();
        self.steps.push(Step::Make {
            pid: helper,
            maker: leader.pid,
            sibling: false,
            signal: 0,
            helper: true,
        });
        self.born(child, helper, false, leader.session);
        self.steps.push(Step::Dismiss { pid: helper, parent: leader.pid });
        Ok(())
    }

    /// A process of a session whose leader has gone: a helper of the leader's number begins the session and makes it.
    fn stand_in(&mut self, child: &Member, parent: &Member) {
        let leader = child.session;
        if self.stand_ins.insert(leader, parent.pid).is_none() {
            let signal = libc::SIGCHLD;
            self.steps.push(Step::Make {
                pid: leader,
                maker: parent.pid,
                sibling: false,
                signal,
                helper: true,
            });
            self.steps.push(Step::Lead(leader));
        }
        self.born(child, leader, true, leader);
    }

    fn born(&mut self, child: &Member, maker: i32, sibling: bool, session: i32) {
        self.births.insert(child.pid, session);
        self.steps.push(Step::Make {
            pid: child.pid,
            maker,
            sibling,
            signal: child.exit_signal,
            helper: false,
        });
    }

    fn groups(&mut self, members: &[Member]) {
        let groups: BTreeSet<i32> = members.iter().map(|m| m.group).filter(|&group| group != 0).collect();
        for group in groups {
            let inside = || members.iter().filter(move |m| m.group == group);
            // A session's leader leads its group from the start.
            let joining = || inside().filter(|m| m.session != m.pid && m.pid != group);
            match self.by_id.get(&group) {
                Some(leader) if leader.session == group => {}
                Some(_) => self.steps.push(Step::Join { pid: group, group }),
                None if self.stand_ins.contains_key(&group) => {}
                None => {
                    let Some(maker) = inside().next().map(|m| m.pid) else { continue };
                    self.steps.push(Step::Make {
                        pid: group,
                        maker,
                        sibling: false,
                        signal: 0,
                        helper: true,
                    });
                    self.steps.push(Step::Join { pid: group, group });
                    self.steps.extend(joining().map(|m| Step::Join { pid: m.pid, group }));
                    self.steps.push(Step::Dismiss { pid: group, parent: maker });
                    continue;
                }
            }
            self.steps.extend(joining().map(|m| Step::Join { pid: m.pid, group }));
        }
    }

    fn free_id(&mut self) -> i32 {
        // Ids are handed out upwards, so a low one that is not in use is free by now.
        let id = (2..).find(|id| !self.taken.contains(id)).unwrap_or(i32::MAX);
        self.taken.insert(id);
        id
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(pid: i32, parent: i32, group: i32, session: i32) -> Member {
        let (threads, comm) = (vec![pid], String::new());
        Member {
            pid,
            parent,
            group,
            session,
            exit_signal: libc::SIGCHLD,
            threads,
            state: Life::Running,
            comm,
        }
    }

    #[test]
    fn children_come_before_their_parents_and_siblings_in_their_order() {
        let members = [(1, 0), (2, 1), (5, 2), (6, 2), (3, 1), (4, 3), (7, 6)];
        let members = members.map(|(pid, parent)| member(pid, parent, 1, 1));
        let order: Vec<i32> = children_first(&members).iter().map(|member| member.pid).collect();
        assert_eq!(order, [7, 5, 6, 4, 2, 3, 1]);
    }

    /// Carries the steps out by the kernel's rules and says what comes of them: (pid, parent, group, session).
    fn act(first: &Member, steps: &[Step]) -> Vec<(i32, i32, i32, i32)> {
        let mut world = BTreeMap::from([(first.pid, (0, first.pid, first.pid))]);
        for step in steps {
            match *step {
                Step::Make { pid, maker, sibling, .. } => {
                    let (parent, group, session) = world[&maker];
                    let old = world.insert(pid, (if sibling { parent } else { maker }, group, session));
                    assert_eq!(old, None, "{pid} is made twice");
                }
                Step::Lead(pid) => {
                    let one = world.get_mut(&pid).unwrap();
                    *one = (one.0, pid, pid);
                }
                Step::Join { pid, group } => {
                    let session = world[&pid].2;
                    assert!(
                        pid == group || world.values().any(|m| m.1 == group && m.2 == session),
                        "no group {group}"
                    );
                    assert_ne!(pid, session, "a session's leader can't join a group");
                    world.get_mut(&pid).unwrap().1 = group;
                }
                Step::Dismiss { pid, parent } => {
                    assert_eq!(world.remove(&pid).unwrap().0, parent);
                    for orphan in world.values_mut().filter(|m| m.0 == pid) {
                        orphan.0 = first.pid;
                    }
                }
            }
        }
        world.into_iter().map(|(pid, (parent, group, session))| (pid, parent, group, session)).collect()
    }

    fn comes_back(members: &[Member]) {
        let steps = plan(members).unwrap();
        let mut want: Vec<_> = members.iter().map(|m| (m.pid, m.parent, m.group, m.session)).collect();
        want.sort_unstable();
        assert_eq!(act(&members[0], &steps), want, "{steps:?}");
    }

    #[test]
    fn a_shell_with_jobs() {
        comes_back(&[
            member(1, 0, 1, 1),
            member(7, 1, 7, 1),
            member(8, 7, 7, 1),
            member(9, 1, 9, 1),
            member(20, 8, 20, 20),
            member(21, 20, 21, 20),
        ]);
    }

    #[test]
    fn a_child_made_before_its_parent_began_a_session() {
        comes_back(&[
            member(1, 0, 1, 1),
            member(5, 1, 5, 5),
            member(6, 5, 1, 1),
            member(7, 6, 1, 1),
            member(8, 5, 5, 5),
        ]);
    }

    #[test]
    fn a_grandchild_made_before_two_others_began_sessions() {
        comes_back(&[
            member(1, 0, 1, 1),
            member(3, 1, 3, 3),
            member(10, 3, 10, 10),
            member(11, 10, 11, 11),
            member(18, 11, 3, 3),
            member(19, 18, 19, 3),
            member(12, 11, 11, 11),
            member(13, 10, 13, 13),
            member(5, 3, 3, 3),
        ]);
    }

    #[test]
    fn daemons_whose_session_leader_has_gone() {
        comes_back(&[
            member(1, 0, 1, 1),
            member(12, 1, 11, 11),
            member(13, 12, 11, 11),
            member(14, 1, 14, 11),
        ]);
    }

    #[test]
    fn an_orphan_of_a_living_leader() {
        comes_back(&[
            member(1, 0, 1, 1),
            member(3, 1, 3, 1),
            member(4, 3, 4, 4),
            member(9, 1, 4, 4),
            member(5, 1, 5, 5),
            member(2, 1, 5, 5),
        ]);
    }

    #[test]
    fn a_group_whose_leader_has_gone() {
        comes_back(&[member(1, 0, 1, 1), member(6, 1, 5, 1), member(7, 6, 5, 1)]);
    }

    #[test]
    fn a_session_outside_the_job_is_refused() {
        assert!(plan(&[member(1, 0, 1, 9)]).unwrap_err().contains("session 9"));
        assert!(plan(&[member(1, 0, 1, 1), member(3, 9, 1, 1)]).unwrap_err().contains("no parent"));
    }
}

//! Process → descriptor → open file description, as a job has them now.
//!
//! Two descriptors that lead to one description share its position and flags; only kcmp(2) can tell. So descriptions are
//! first told apart by what `/proc` shows of them, and within each group kept in the order of kcmp(2): a new descriptor
//! is looked up with few calls, however many there are.

use super::container::{Container, Mount};
use super::lock::Lock;
use super::seen::{Info, Seen, descriptors};
use crate::mounts::Space;
use crate::proc::{self, Stat};
use crate::sys::kcmp;
use crate::{Doing, Failure};
use nix::errno::Errno;
use nix::unistd::Pid;
use rustix::process::{PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
use std::cell::RefCell;
use std::cmp::Ordering;
use std::collections::HashMap;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;

/// A process that is looked at.
#[derive(Debug, Clone)]
pub(crate) struct Member {
    /// Its id in ckrun's pid namespace.
    pub host: Pid,
    /// Its id in the job.
    pub pid: i32,
    pub comm: String,
    /// Its parent's id in ckrun's pid namespace.
    pub parent: Pid,
    /// The ids of its threads, itself included, in ckrun's pid namespace.
    pub threads: Vec<Pid>,
    pub umask: u32,
    pub stat: Stat,
    /// Its session, by the job's ids; 0 when that is none of the job's.
    pub session: i32,
}

/// One descriptor of a process.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Edge {
    pub fd: RawFd,
    pub node: usize,
    pub cloexec: bool,
}

/// An open file description, by the first descriptor found that leads to it.
#[derive(Debug)]
pub(crate) struct Node {
    pub seen: Seen,
    /// Who has it; if it is only in a message, who has the socket in which the message waits.
    pub member: usize,
    /// Its number there; of one in a message, ckrun's own.
    pub fd: RawFd,
    /// ckrun's own descriptor to one that is only in a message to a socket of this number.
    pub sent: Option<(RawFd, OwnedFd)>,
}

/// The descriptors of a job.
#[derive(Debug)]
pub(crate) struct Graph {
    pub members: Vec<Member>,
    /// The descriptors of each member, by their numbers.
    pub edges: Vec<Vec<Edge>>,
    /// The POSIX locks of each member.
    pub locks: Vec<Vec<Lock>>,
    pub nodes: Vec<Node>,
    pub container: Container,
    /// The container in other mount namespaces of the job.
    others: Vec<Container>,
    /// Which one each member is in; 0 is that of the first process.
    namespaces: Vec<u32>,
    running: bool,
    handle: RefCell<Option<(usize, OwnedFd)>>,
    /// The descriptions, by what `/proc` shows of them.
    known: HashMap<Key, Vec<usize>>,
}

/// What all descriptors to one description have in common.
pub(crate) type Key = (u64, u64, i64, u32);

impl Graph {
    /// Looks at all descriptors of `members`, the first of which is the job's first process, in its `spaces`. In a job that runs,
    /// descriptors and processes come and go: what has gone is passed over.
    pub fn of(members: Vec<Member>, spaces: &[Arc<Space>], running: bool) -> Result<Graph, Failure> {
        let init = members.first().ok_or_else(|| Failure::new("look at the job's files", Errno::ESRCH))?;
        let init = init.host;
        let hosts: Vec<Pid> = members.iter().map(|member| member.host).collect();
        let namespace = |host: &Pid| Ok(Space::of(spaces, *host)?.unwrap_or(0) as u32);
        let namespaces = hosts.iter().map(|host| match namespace(host) {
            Err(failure) if running && proc::is_gone(&failure, *host) => Ok(0),
            known => known,
        });
        let namespaces = namespaces.collect::<Result<_, Failure>>()?;
        let mut spaces = spaces.iter().cloned();
        let first = spaces.next().ok_or_else(|| Failure::new("look at the container", Errno::ESRCH))?;
        let mut graph = Graph {
            container: Container::first(first, init)?,
            others: spaces.map(|space| Container::other(space, init)).collect::<Result<_, _>>()?,
            namespaces,
            edges: Vec::with_capacity(members.len()),
            locks: Vec::with_capacity(members.len()),
            members,
            nodes: Vec::new(),
            running,
            handle: RefCell::new(None),
            known: HashMap::new(),
        };
        for member in 0..graph.members.len() {
            let numbers = match descriptors(graph.members[member].host) {
                Err(failure) if running && graph.is_gone(&failure, member) => Vec::new(),
                numbers => numbers?,
            };
            graph.edges.push(Vec::with_capacity(numbers.len()));
            graph.locks.push(Vec::new());
            for fd in numbers {
                match graph.enter(member, fd) {
                    Err(failure) if running && graph.is_gone(&failure, member) => {}
                    entered => entered?,
                }
            }
        }
        Ok(graph)
    }

    fn enter(&mut self, member: usize, fd: RawFd) -> Result<(), Failure> {
        let host = self.members[member].host;
        let info = Info::read(host, fd)?;
        for lock in info.lines("lock").filter_map(Lock::parse_posix) {
            // Every descriptor to the description that it was set through shows it; to set it twice does no harm.
            self.locks[member].push(Lock { fd, ..lock });
        }
        let cloexec = info.cloexec;
        let node = match self.search(info.key(), (host, fd))? {
            Ok(node) => node,
            Err(at) => self.insert(info, at, (member, fd), None)?,
        };
        self.edges[member].push(Edge { fd, node, cloexec });
        Ok(())
    }

    /// Takes in a description that was in a message to the socket `carrier`.
    pub fn adopt(&mut self, fd: OwnedFd, carrier: usize) -> Result<usize, Failure> {
        let (host, number) = (Pid::this(), fd.as_raw_fd());
        let info = Info::read(host, number)?;
        match self.search(info.key(), (host, number))? {
            Ok(node) => Ok(node),
            Err(at) => {
                let carrier = &self.nodes[carrier];
                let to = carrier.sent.as_ref().map_or(carrier.fd, |(to, _)| *to);
                self.insert(info, at, (carrier.member, number), Some((to, fd)))
            }
        }
    }

    fn insert(
        &mut self,
        info: Info,
        at: usize,
        (member, fd): (usize, RawFd),
        sent: Option<(RawFd, OwnedFd)>,
    ) -> Result<usize, Failure> {
        let host = if sent.is_some() { Pid::this() } else { self.members[member].host };
        let key = info.key();
        let mut seen = Seen::look(host, fd, info)?;
        if seen.has_path() {
            let (_, container) = self.home(seen.info.mount);
            seen.link = container.relative(std::mem::take(&mut seen.link));
        }
        let node = self.nodes.len();
        self.nodes.push(Node { seen, member, fd, sent });
        self.known.entry(key).or_default().insert(at, node);
        Ok(node)
    }

    /// The mount namespace that has this mount, and the container there; those of the first process if there is none.
    pub fn home(&self, mount: u64) -> (u32, &Container) {
        self.containers().find(|(_, there)| there.mount(mount).is_some()).unwrap_or((0, &self.container))
    }

    /// The mount of this id, in whatever namespace of the job.
    pub fn mount(&self, mount: u64) -> Option<&Mount> {
        self.home(mount).1.mount(mount)
    }

    /// The container in all mount namespaces of the job, with their numbers.
    pub fn containers(&self) -> impl Iterator<Item = (u32, &Container)> {
        std::iter::once((0, &self.container)).chain((1..).zip(&self.others))
    }

    /// The mount namespace that a member is in, and the container there.
    pub fn namespace(&self, member: usize) -> (u32, &Container) {
        let number = self.namespaces.get(member).copied().unwrap_or(0);
        self.containers().find(|(other, _)| *other == number).unwrap_or((0, &self.container))
    }

    /// The node that a descriptor leads to, or its place among those that look alike.
    fn search(&self, key: Key, wanted: (Pid, RawFd)) -> Result<Result<usize, usize>, Failure> {
        let group = self.known.get(&key).map_or(&[][..], Vec::as_slice);
        let (mut low, mut high) = (0, group.len());
        while low < high {
            let middle = low.midpoint(high);
            match self.compare(group[middle], wanted)? {
                Ordering::Equal => return Ok(Ok(group[middle])),
                Ordering::Less => low = middle + 1,
                Ordering::Greater => high = middle,
            }
        }
        Ok(Err(low))
    }

    fn compare(&self, node: usize, wanted: (Pid, RawFd)) -> Result<Ordering, Failure> {
        let (host, fd) = self.place(node);
        kcmp::compare_files((host, fd), wanted)
            .doing(|| format!("compare descriptors {fd} of process {host} and {} of {}", wanted.1, wanted.0))
    }

    /// A process and a number that lead to a description.
    pub fn place(&self, node: usize) -> (Pid, RawFd) {
        let node = &self.nodes[node];
        (if node.sent.is_some() { Pid::this() } else { self.members[node.member].host }, node.fd)
    }

    /// ckrun's own descriptor to a description. `EBADF` when it has gone.
    pub fn take(&self, node: usize) -> Result<OwnedFd, Failure> {
        let member = self.nodes[node].member;
        let (host, fd) = self.place(node);
        let what = || format!("take descriptor {fd} of process {host}");
        if let Some((_, own)) = &self.nodes[node].sent {
            return own.try_clone().doing(what);
        }
        let mut handle = self.handle.borrow_mut();
        let process = match handle.take() {
            Some((of, process)) if of == member => process,
            _ => {
                let pid = rustix::process::Pid::from_raw(host.as_raw())
                    .ok_or_else(|| Failure::new(what(), Errno::ESRCH))?;
                pidfd_open(pid, PidfdFlags::empty()).doing(what)?
            }
        };
        let taken = pidfd_getfd(&process, fd, PidfdGetfdFlags::empty()).doing(what);
        *handle = Some((member, process));
        let taken = taken?;
        // In a job that runs, the number may have become another file's since it was seen.
        if self.running {
            let (seen, now) = (&self.nodes[node].seen.stat, rustix::fs::fstat(&taken).doing(what)?);
            if (seen.st_dev, seen.st_ino) != (now.st_dev, now.st_ino) {
                return Err(Failure::new(what(), Errno::EBADF));
            }
        }
        Ok(taken)
    }

    /// Something of a member has failed because the process, or its descriptor, has gone since it was listed.
    pub fn is_gone(&self, failure: &Failure, member: usize) -> bool {
        failure.errno == Errno::EBADF || proc::is_gone(failure, self.members[member].host)
    }

    /// The description that descriptor `fd` of a member leads to.
    pub fn find(&self, member: usize, fd: RawFd) -> Option<usize> {
        let edges = self.edges.get(member)?;
        edges.iter().find(|edge| edge.fd == fd).map(|edge| edge.node)
    }

    /// All descriptions, by their numbers, that `wanted` holds for.
    pub fn all(&self, wanted: impl Fn(&Seen) -> bool) -> impl Iterator<Item = usize> {
        self.nodes.iter().enumerate().filter(move |(_, node)| wanted(&node.seen)).map(|(at, _)| at)
    }
}

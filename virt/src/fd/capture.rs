//! From a stopped job to [`Files`], and from a running one to what is in the way.

use super::captured::{Captured, Content};
use super::ghost::Ghosts;
use super::given::Standard;
use super::graph::{Graph, Member};
use super::refused::{OTHER_END, Refused};
use super::socket::World;
use super::socket::inet::{Connections, Links, Read};
use super::stream::Ends;
use super::tables::Sharing;
use super::terminal::Terminals;
use super::*;
use crate::listing::{self, Sight};
use crate::mounts::{Hidden, Space};
use crate::owned::Owned;
use crate::proc::Stat;
use crate::resource::Stopped;
use crate::seize::Frozen;
use crate::status::Status;
use nix::unistd::Pid;
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

/// What the rooms of the kinds share while they capture.
pub(crate) struct Job<'a> {
    pub(super) graph: &'a Graph,
    pub(super) owned: &'a Owned,
    /// Files whose content the image has already, because they are mapped: by device and inode.
    pub(super) carried: &'a dyn Fn(u64, u64) -> Option<u32>,
    pub(super) files: Files,
    pub(super) contents: Vec<Content>,
    pub(super) ghosts: Ghosts,
    /// Which pipe, FIFO or memfd of the lists has this device and inode.
    pub(super) known: HashMap<(u64, u64), u32>,
    pub(super) standard: Standard,
    pub(super) ends: Ends,
    pub(super) terminals: Terminals,
    /// Which one of the list has this index.
    pub(super) known_terminals: HashMap<u32, u32>,
    pub(super) unix: World,
    /// What each epoll watches.
    pub(super) watched: HashMap<usize, Vec<usize>>,
    /// Ids of processes, threads and groups: ckrun's to the job's.
    ids: HashMap<i32, i32>,
    /// Where its TCP connections lead.
    pub(super) links: Links,
    /// Those that it has.
    pub(super) connections: Connections,
    /// What they are, until their descriptions have it.
    pub(super) read: Read,
    /// The multicast groups that anybody has joined in its network namespace, with the indices of the links.
    pub(super) groups: Option<Vec<(u32, IpAddr)>>,
    /// Directories that mounts hide, and that are needed all the same.
    pub(super) nooks: Vec<Hidden>,
    /// The number of each node's description.
    numbers: Vec<u32>,
    running: bool,
}

impl<'a> Job<'a> {
    /// All that is known of its descriptors.
    pub(crate) fn graph(&self) -> &'a Graph {
        self.graph
    }

    /// The file systems that the job's first process has.
    pub(crate) fn container(&self) -> &'a Container {
        &self.graph.container
    }

    /// The job's id for one of ckrun's pid namespace.
    pub(super) fn virtual_id(&self, host: i32) -> Option<i32> {
        self.ids.get(&host).copied()
    }

    /// Something of the job has this id: a process, a thread, a group, a session. The threads of a running job are not
    /// listed.
    pub(super) fn knows(&self, id: i32) -> bool {
        self.ids.values().any(|&known| known == id)
    }

    /// The description that descriptor number `fd` of somebody names.
    pub(super) fn description(&self, node: usize, fd: RawFd) -> u32 {
        self.standard.description(node, fd).unwrap_or_else(|| self.numbers[node])
    }

    /// Contents are not wanted: the job runs.
    pub(super) fn running(&self) -> bool {
        self.running
    }
}

/// Reads what the processes of a stopped job have open, in its `spaces`, and what they have in common. `carried` finds, by device and
/// inode, deleted files and memfds whose content is stored with the memory that shows them; somebody answers for what is
/// `owned`.
///
/// # Errors
/// [`Error::Blocked`], [`Error::Passing`], system errors.
pub(crate) fn capture(
    frozen: &Frozen,
    spaces: &[Arc<Space>],
    owned: &Owned,
    carried: &dyn Fn(u64, u64) -> Option<u32>,
) -> Result<Captured, Error> {
    let mut members = Vec::new();
    let mut ids = HashMap::new();
    for process in &frozen.processes {
        collect_ids(&process.stopped.status, &mut ids);
        if process.leader().is_some() {
            let threads = process.threads.iter().map(|thread| thread.stopped.host).collect();
            members.push(member(&process.stopped, process.stat, threads));
        }
        for thread in &process.threads {
            collect_ids(&thread.stopped.status, &mut ids);
        }
    }
    read(members, ids, spaces, owned, carried, |graph| cloexec::ask(graph, frozen))
}

/// The same of processes that are known to stand still.
#[cfg(test)]
pub(super) fn capture_still(pids: &[Pid]) -> Result<Captured, Error> {
    let listed: Vec<_> =
        pids.iter().map(|&host| listing::Listed { host, threads: listing::threads(host) }).collect();
    let (members, ids) = members(&listing::see(&listed));
    read(members, ids, &Space::all(pids)?, &Owned::default(), &|_, _| None, |_| Ok(()))
}

fn read(
    members: Vec<Member>,
    ids: HashMap<i32, i32>,
    spaces: &[Arc<Space>],
    owned: &Owned,
    carried: &dyn Fn(u64, u64) -> Option<u32>,
    ask: impl FnOnce(&mut Graph) -> Result<(), Failure>,
) -> Result<Captured, Error> {
    let mut graph = Graph::of(members, spaces, false)?;
    ask(&mut graph)?;
    let (captured, refused) = look(graph, ids, owned, carried, false)?;
    refused.none().map(|()| captured)
}

/// What of the descriptors and directories of the running processes `seen` can't be carried; the first one is the job's
/// first process. Somebody answers for what is `owned`.
///
/// # Errors
/// System errors; not that a process or a descriptor has gone meanwhile.
pub(crate) fn survey(seen: &[Sight], spaces: &[Arc<Space>], owned: &Owned) -> Result<Refused, Failure> {
    let look = |seen: &[Sight], spaces: &[Arc<Space>]| {
        let (members, ids) = members(seen);
        let graph = Graph::of(members, spaces, true)?;
        look(graph, ids, owned, &|_, _| None, true).map(|(_, refused)| refused)
    };
    let mut refused = look(seen, spaces)?;
    // The other end of a pipe may be in a process that was made after the list: a shell does nothing else. Whatever is in
    // the way for good is there at another look.
    let mut before = None;
    for _ in 0..2 {
        if refused.is_empty() {
            break;
        }
        let Some(init) = seen.first() else { break };
        let now = listing::list(init.leader.host);
        let hosts: Vec<Pid> = now.iter().map(|process| process.host).collect();
        refused.retain(&look(&listing::see(&now), &Space::all(&hosts)?)?);
        // It may also go from one process to the next all the time.
        if before.is_some_and(|before| before != hosts) {
            refused.let_pass(OTHER_END);
        }
        before = Some(hosts);
    }
    Ok(refused)
}

fn members(seen: &[Sight]) -> (Vec<Member>, HashMap<i32, i32>) {
    let mut members = Vec::new();
    let mut ids = HashMap::new();
    for sight in seen {
        collect_ids(&sight.leader.status, &mut ids);
        if let Some(leader) = sight.running() {
            members.push(member(leader, sight.stat, sight.threads.clone()));
        }
    }
    (members, ids)
}

fn member(stopped: &Stopped, stat: Stat, threads: Vec<Pid>) -> Member {
    Member {
        host: stopped.host,
        pid: stopped.pid,
        comm: stopped.comm(),
        parent: Pid::from_raw(stopped.status.ppid),
        threads,
        umask: stopped.status.umask,
        stat,
        session: stopped.status.ns_sid.last().copied().unwrap_or(0),
    }
}

/// Every namespace from ckrun's to the job's has a number for the same thing.
fn collect_ids(status: &Status, ids: &mut HashMap<i32, i32>) {
    for numbers in [&status.ns_tgid, &status.ns_pid, &status.ns_pgid, &status.ns_sid] {
        if let (Some(&outer), Some(&inner)) = (numbers.first(), numbers.last()) {
            ids.insert(outer, inner);
        }
    }
}

fn look(
    mut graph: Graph,
    mut ids: HashMap<i32, i32>,
    owned: &Owned,
    carried: &dyn Fn(u64, u64) -> Option<u32>,
    running: bool,
) -> Result<(Captured, Refused), Failure> {
    let unix = World::of(&mut graph, running)?;
    if !running {
        unix.reveal(&graph, &mut ids)?;
    }
    let graph = &graph;
    let ends = Ends::of(graph)?;
    let terminals = Terminals::of(graph, &ids, running)?;
    let standard = Standard::of(graph, &ends, &terminals, &unix);
    let links = Links::of(graph)?;
    let mut connections = Connections::default();
    if owned.wall && !running {
        connections.wall_off(graph, links.outside(owned));
    }
    let mut job = Job {
        graph,
        owned,
        carried,
        files: Files::default(),
        contents: Vec::new(),
        ghosts: Ghosts::default(),
        known: HashMap::new(),
        watched: HashMap::new(),
        numbers: Vec::with_capacity(graph.nodes.len()),
        standard,
        ends,
        terminals,
        known_terminals: HashMap::new(),
        unix,
        ids,
        links,
        connections,
        read: Read::new(),
        groups: None,
        nooks: Vec::new(),
        running,
    };
    if !running {
        job.read_connections()?;
    }
    let mut refused = Refused::default();
    let mut next = job.standard.len();
    for node in 0..graph.nodes.len() {
        job.numbers.push(next);
        next += u32::from(!job.standard.replaces(node));
    }
    for (number, node) in job.standard.given() {
        let description = job.standard_description(number, node);
        job.files.descriptions.push(description);
    }
    for (at, node) in graph.nodes.iter().enumerate() {
        if job.standard.replaces(at) {
            continue;
        }
        match job.node(at) {
            Ok(description) => job.files.descriptions.push(description),
            Err(Trouble::Refused(refusal)) => {
                let what = match &node.sent {
                    None => format!("fd {}: {}", node.fd, refusal.what),
                    Some((to, _)) => format!("fd {to}: a message with {}", refusal.what),
                };
                refused.add(&graph.members[node.member], Refusal { what, ..refusal });
            }
            Err(Trouble::Call(failure)) if running && graph.is_gone(&failure, node.member) => {}
            Err(Trouble::Call(failure)) => return Err(failure),
        }
    }
    for (member, trouble) in job.controlling_terminals() {
        match trouble {
            Trouble::Refused(refusal) => refused.add(&graph.members[member], refusal),
            Trouble::Call(failure) if running && graph.is_gone(&failure, member) => {}
            Trouble::Call(failure) => return Err(failure),
        }
    }
    let sharing = tables::survey(graph, &mut refused)?;
    if !running && refused.is_empty() {
        job.quiet_epolls()?;
    }
    for (at, member) in graph.members.iter().enumerate() {
        match Fs::capture(&mut job, at, member) {
            Ok(fs) => {
                let holdings = job.holdings(at, fs, sharing[at]);
                job.files.processes.insert(member.pid, holdings);
            }
            Err(Trouble::Refused(refusal)) => refused.add(member, refusal),
            Err(Trouble::Call(failure)) if running && graph.is_gone(&failure, at) => {}
            Err(Trouble::Call(failure)) => return Err(failure),
        }
    }
    let Job { files, contents, connections, nooks, .. } = job;
    Ok((Captured { files, contents, connections, nooks }, refused))
}

impl Job<'_> {
    fn holdings(&self, member: usize, fs: Fs, sharing: Sharing) -> Holdings {
        let Sharing { table, directories } = sharing;
        if table.is_some() {
            return Holdings { fs, table, directories, ..Holdings::default() };
        }
        let descriptor = |edge: &super::graph::Edge| Descriptor {
            fd: edge.fd,
            description: self.description(edge.node, edge.fd),
            cloexec: edge.cloexec,
        };
        Holdings {
            descriptors: self.graph.edges[member].iter().map(descriptor).collect(),
            locks: self.graph.locks[member].clone(),
            fs,
            table,
            directories,
        }
    }

    fn node(&mut self, node: usize) -> Result<Description, Trouble> {
        let (namespace, object) = self.object(node)?;
        let seen = &self.graph.nodes[node].seen;
        let mut locks = Locks::parse(|| seen.name(), seen.info.lines("lock"))?;
        locks.flocker = locks.flocker.and_then(|host| self.virtual_id(host));
        let (owner, signal) = if seen.path_only() { (None, None) } else { self.owner(node)? };
        if owner.is_some() && matches!(object, Object::Directory(_)) {
            return Err(owner::watched_directory(self.graph.nodes[node].seen.name()));
        }
        let position = if object.has_position() { seen.info.position } else { 0 };
        Ok(Description { flags: seen.info.flags, position, owner, signal, locks, namespace, object })
    }

    /// What it is of, and the mount namespace in which its path is to be looked for.
    fn object(&mut self, node: usize) -> Result<(u32, Object), Trouble> {
        let seen = &self.graph.nodes[node].seen;
        if !seen.has_path() {
            return self.nameless(node).map(|object| (0, object));
        }
        let home = self.graph.home(seen.info.mount).0;
        if self.is_memfd(node) {
            return self.memfd(node).map(|memfd| (0, Object::Memfd(memfd)));
        }
        match seen.type_() {
            rustix::fs::FileType::RegularFile | rustix::fs::FileType::Directory => self.file(node),
            rustix::fs::FileType::Fifo => self.fifo(node),
            _ if seen.path_only() => self.path_only(node),
            rustix::fs::FileType::CharacterDevice => match self.terminal(node)? {
                Some(terminal) => Ok((home, Object::Terminal(terminal))),
                None => match self.tun(node)? {
                    Some((namespace, tun)) => Ok((namespace, Object::Tun(tun))),
                    None => self.device(node),
                },
            },
            _ => Err(refused::refuse(self, node)),
        }
    }

    fn nameless(&mut self, node: usize) -> Result<Object, Trouble> {
        let seen = &self.graph.nodes[node].seen;
        match seen.anonymous() {
            Some(b"bpf-map") => self.bpf_map(node).map(Object::BpfMap),
            Some(b"eventfd") => self.eventfd(node).map(Object::Eventfd),
            Some(b"eventpoll") => self.epoll(node).map(Object::Epoll),
            Some(b"inotify") => self.inotify(node).map(Object::Inotify),
            Some(b"fanotify") => self.fanotify(node).map(Object::Fanotify),
            Some(b"pidfd") => self.pidfd(node).map(Object::Pidfd),
            Some(b"signalfd") => self.signalfd(node).map(Object::Signalfd),
            Some(b"timerfd") => self.timerfd(node).map(Object::Timerfd),
            Some(name) if let Some(kind) = namespace::kind(name) => {
                self.namespace(node, kind).map(Object::Namespace)
            }
            Some(name) if name.starts_with(b"pipe:") => self.pipe(node).map(Object::Pipe),
            Some(_) if seen.type_() == rustix::fs::FileType::Socket => {
                self.socket(node).map(|socket| Object::Socket(Box::new(socket)))
            }
            _ => Err(refused::refuse(self, node)),
        }
    }

    /// A regular file or a directory: where it is makes the difference.
    fn file(&mut self, node: usize) -> Result<(u32, Object), Trouble> {
        if let Some(queue) = self.queue(node)? {
            return Ok((0, Object::Queue(queue)));
        }
        let seen = &self.graph.nodes[node].seen;
        let home = self.graph.home(seen.info.mount).0;
        if let Some(ghost) = self.remains(node)? {
            return Ok((home, Object::Ghost(ghost)));
        }
        if let Some(pseudo) = self.pseudo(node)? {
            return Ok((home, Object::Pseudo(pseudo)));
        }
        let (namespace, located) = locate(self, &seen.link, &seen.stat, seen.info.mount)?;
        let object = match located {
            Located::Deleted(last) => Object::Ghost(self.ghost(node, &last)?),
            Located::Named(path) if seen.path_only() => Object::Path(path::PathOnly::new(path, seen)),
            Located::Named(path) if seen.type_() == rustix::fs::FileType::Directory => {
                Object::Directory(path::Directory { path: path.into() })
            }
            Located::Named(path) => Object::Regular(regular::Regular::new(path, &seen.stat)),
        };
        Ok((namespace, object))
    }
}

impl Object {
    /// Its description has an offset that lseek(2) sets.
    fn has_position(&self) -> bool {
        matches!(
            self,
            Object::Regular(_)
                | Object::Directory(_)
                | Object::Pseudo(_)
                | Object::Ghost(_)
                | Object::Memfd(_)
        )
    }
}

//! The unix sockets of a job, and what the kernel tells of them.

use super::peek::{Peeked, has_failed, name, peek};
use super::reveal;
use crate::fd::graph::Graph;
use crate::fd::socket::{Class, diag};
use crate::sys::Undo;
use crate::{Doing, Failure};
use nix::errno::Errno;
use rustix::fs::FileType;
use std::collections::{HashMap, HashSet};
use std::os::fd::{AsFd, OwnedFd};

/// `linux/unix_diag.h`.
const UDIAG_SHOW_NAME: u32 = 1;
const UDIAG_SHOW_PEER: u32 = 4;
const UDIAG_SHOW_ICONS: u32 = 8;
const UDIAG_SHOW_RQLEN: u32 = 16;
const UNIX_DIAG_NAME: u16 = 0;
const UNIX_DIAG_PEER: u16 = 2;
const UNIX_DIAG_ICONS: u16 = 3;
const UNIX_DIAG_RQLEN: u16 = 4;
const UNIX_DIAG_SHUTDOWN: u16 = 6;
/// `struct unix_diag_msg`.
const ANSWER: usize = 16;
/// `net/tcp_states.h`.
pub(super) const LISTEN: u8 = 10;

/// What the kernel tells of one socket.
#[derive(Debug, Clone, Default)]
pub(super) struct Listed {
    pub state: u8,
    pub inode: u64,
    pub name: Option<Vec<u8>>,
    /// The inode of the socket that it is connected to; 0 if that is in nobody's hands: gone, or not accepted yet.
    pub peer: Option<u64>,
    /// Of a listening socket: the inodes of those that wait to be accepted; 0 for one that is gone.
    pub waiting: Vec<u64>,
    /// Bytes that wait, the first message's of a datagram socket; of a listening socket, how many connections.
    pub received: u32,
    /// Of a listening socket: how many connections may wait.
    pub backlog: u32,
    pub shutdown: u8,
}

/// All unix sockets of the job, and what else is in their network namespaces.
#[derive(Debug, Default)]
pub(in crate::fd) struct World {
    /// Those of the job: the class of each, and the inode of its network namespace.
    sockets: HashMap<usize, (Class, u64)>,
    nodes: HashMap<u64, usize>,
    listed: HashMap<u64, Listed>,
    /// At whom those wait who have connected and are not accepted yet; all by their inodes.
    waiting: HashMap<u64, u64>,
    /// Those with an error to be reported.
    failed: HashSet<usize>,
    queues: HashMap<usize, Vec<(Peeked, Vec<usize>)>>,
}

impl World {
    /// Looks at the sockets of a job. Descriptions that are only in messages become nodes of the graph; in a job that runs
    /// the messages are left alone.
    pub fn of(graph: &mut Graph, running: bool) -> Result<World, Failure> {
        let mut world = World::default();
        let mut namespaces: HashMap<u64, OwnedFd> = HashMap::new();
        let mut undo = Undo::default();
        let mut next = 0;
        // Messages may bring sockets with messages in them.
        while next < graph.nodes.len() {
            let node = next;
            next += 1;
            let seen = &graph.nodes[node].seen;
            if seen.type_() != FileType::Socket || seen.has_path() {
                continue;
            }
            let inode = seen.stat.st_ino;
            let socket = match graph.take(node) {
                Err(failure) if running && graph.is_gone(&failure, graph.nodes[node].member) => continue,
                socket => socket?,
            };
            let class = Class::of(socket.as_fd())?;
            if class.domain != libc::AF_UNIX {
                continue;
            }
            let namespace = diag::namespace_of(&socket)?;
            let id = rustix::fs::fstat(&namespace).doing(|| "look at a network namespace")?.st_ino;
            namespaces.entry(id).or_insert(namespace);
            world.sockets.insert(node, (class, id));
            world.nodes.insert(inode, node);
            if !running && !world.sockets.is_empty() {
                world.peek(graph, node, &socket, class.kind, &mut undo)?;
            }
        }
        for namespace in namespaces.into_values() {
            world.list(namespace)?;
        }
        Ok(world)
    }

    fn peek(
        &mut self,
        graph: &mut Graph,
        node: usize,
        socket: &OwnedFd,
        kind: i32,
        undo: &mut Undo,
    ) -> Result<(), Failure> {
        // What waits at a listening socket are connections.
        let listens = crate::sys::sockopt::number(socket, libc::SOL_SOCKET, libc::SO_ACCEPTCONN)
            .is_ok_and(|on| on != 0);
        if listens {
            return Ok(());
        }
        if has_failed(socket) {
            self.failed.insert(node);
        }
        let messages = peek(socket, kind, undo).or_else(unconnected)?;
        let mut queue = Vec::with_capacity(messages.len());
        for mut message in messages {
            let rights = std::mem::take(&mut message.rights);
            let nodes: Result<Vec<usize>, Failure> =
                rights.into_iter().map(|fd| graph.adopt(fd, node)).collect();
            queue.push((message, nodes?));
        }
        self.queues.insert(node, queue);
        Ok(())
    }

    fn list(&mut self, namespace: OwnedFd) -> Result<(), Failure> {
        let show = UDIAG_SHOW_NAME | UDIAG_SHOW_PEER | UDIAG_SHOW_ICONS | UDIAG_SHOW_RQLEN;
        // struct unix_diag_req: family, protocol, padding; states, inode, what to show, cookie.
        let mut request = vec![libc::AF_UNIX as u8, 0, 0, 0];
        for word in [u32::MAX, 0, show, u32::MAX, u32::MAX] {
            request.extend(word.to_ne_bytes());
        }
        for answer in diag::dump(namespace, &request)? {
            let Some(listed) = Listed::parse(&answer) else { continue };
            self.waiting.extend(listed.waiting.iter().map(|&client| (client, listed.inode)));
            self.listed.insert(listed.inode, listed);
        }
        Ok(())
    }

    /// Adds to `ids`, which has the job's id for each of ckrun's, those of processes that have ended and are remembered.
    pub fn reveal(&self, graph: &Graph, ids: &mut HashMap<i32, i32>) -> Result<(), Failure> {
        let Some(init) = graph.members.first() else { return Ok(()) };
        let (mut sockets, mut outer) = (Vec::new(), Vec::new());
        for (&node, (class, _)) in &self.sockets {
            let socket = graph.take(node)?;
            let senders = self.queues.get(&node).into_iter().flatten();
            let senders = senders.map(|(message, _)| message.by.map_or(0, |by| by.0));
            let known: Vec<i32> = [reveal::peer(&socket)?.0].into_iter().chain(senders).collect();
            if known.iter().any(|&id| id != 0 && !ids.contains_key(&id)) {
                sockets.push((socket, class.kind));
                outer.extend(known);
            }
        }
        if sockets.is_empty() {
            return Ok(());
        }
        for (outer, inner) in outer.into_iter().zip(reveal::ids(init.host, &sockets)?) {
            if outer != 0 && inner != 0 {
                ids.entry(outer).or_insert(inner);
            }
        }
        Ok(())
    }

    /// The class of a socket and the inode of its network namespace; None if it is of another family.
    pub fn socket(&self, node: usize) -> Option<&(Class, u64)> {
        self.sockets.get(&node)
    }

    pub(super) fn node(&self, inode: u64) -> Option<usize> {
        self.nodes.get(&inode).copied()
    }

    pub(super) fn listed(&self, inode: u64) -> Option<&Listed> {
        self.listed.get(&inode)
    }

    /// Socket `inode` is connected, and its other end not accepted yet: at a listening socket of the job, or at another one.
    pub(super) fn waits(&self, inode: u64) -> Option<bool> {
        self.waiting.get(&inode).map(|listener| self.nodes.contains_key(listener))
    }

    /// Socket `inode` is connected to one that is not accepted yet, and not at a socket of the job: perhaps in another
    /// network namespace, of which nothing is known here. An end that has gone has shut down both directions of a stream.
    pub(super) fn waits_outside(&self, inode: u64) -> bool {
        let Some(listed) = self.listed(inode) else { return false };
        let stream = self.node(inode).and_then(|node| self.socket(node));
        let stream = stream.is_some_and(|(class, _)| class.kind != libc::SOCK_DGRAM);
        stream && listed.peer == Some(0) && listed.shutdown & 3 != 3 && self.waits(inode) != Some(true)
    }

    /// What waits in a socket: messages, and the nodes that travel with each. It can be had once.
    pub(super) fn queue(&mut self, node: usize) -> Vec<(Peeked, Vec<usize>)> {
        self.queues.remove(&node).unwrap_or_default()
    }

    /// The socket had an error to be reported.
    pub(super) fn has_failed(&self, node: usize) -> bool {
        self.failed.contains(&node)
    }

    /// Something waits in a socket of the job.
    pub fn has_messages(&self) -> bool {
        self.nodes.keys().any(|inode| self.listed(*inode).is_some_and(|listed| listed.received > 0))
    }

    /// The other end of a unix socket is outside of the job.
    pub fn leads_out(&self, graph: &Graph, node: usize) -> bool {
        let inode = graph.nodes[node].seen.stat.st_ino;
        let Some(listed) = self.listed(inode) else { return false };
        match listed.peer {
            Some(0) => self.waits_outside(inode),
            Some(peer) => self.node(peer).is_none(),
            None => false,
        }
    }
}

/// Nothing can have been sent to a stream that is not connected, and to look at it fails.
pub(super) fn unconnected(failure: Failure) -> Result<Vec<Peeked>, Failure> {
    if matches!(failure.errno, Errno::EINVAL | Errno::ENOTCONN) { Ok(Vec::new()) } else { Err(failure) }
}

impl Listed {
    fn parse(answer: &[u8]) -> Option<Listed> {
        let word = |bytes: &[u8]| bytes.first_chunk().map(|word| u32::from_ne_bytes(*word));
        let mut listed =
            Listed { state: *answer.get(2)?, inode: word(answer.get(4..)?)?.into(), ..Listed::default() };
        for (kind, value) in diag::attributes(answer.get(ANSWER..)?) {
            match kind {
                UNIX_DIAG_NAME => listed.name = name(value),
                UNIX_DIAG_PEER => listed.peer = word(value).map(u64::from),
                UNIX_DIAG_ICONS => listed.waiting = value.chunks(4).filter_map(word).map(u64::from).collect(),
                UNIX_DIAG_RQLEN => {
                    listed.received = word(value)?;
                    listed.backlog = word(value.get(4..)?)?;
                }
                UNIX_DIAG_SHUTDOWN => listed.shutdown = *value.first()?,
                _ => {}
            }
        }
        Some(listed)
    }
}

//! Where a job's TCP connections lead: to another socket of the job, to somebody who answers for the other end, or out.

use super::address::{self, canonical};
use super::connection::State;
use super::diag::{self, Entry};
use crate::fd::Trouble;
use crate::fd::graph::Graph;
use crate::fd::seen::Seen;
use crate::fd::socket::diag::namespace_of;
use crate::owned::{Outgoing, Owned};
use crate::sys::sockopt;
use crate::{Doing, Failure};
use rustix::fs::FileType;
use serde::{Deserialize, Serialize};
use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};

/// Where a connection leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Link {
    /// To another socket of the job.
    Inside,
    /// To one that the job has closed.
    Gone,
    /// To a socket of the job that waits to be accepted.
    Waiting,
    /// To somebody who is made known again at a restart.
    Owned,
    /// Out of the job, and it is kept.
    Outside,
}

/// The TCP sockets of a job, by their ends.
#[derive(Debug, Default)]
pub struct Links {
    ends: HashSet<(SocketAddr, SocketAddr)>,
    /// All of the namespace, also those that nobody has a descriptor of, by their ends.
    others: HashMap<(SocketAddr, SocketAddr), Entry>,
    /// What UDP sockets have shut down, by their inode numbers.
    shut: HashMap<u64, u8>,
}

impl Links {
    /// Those of a job.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) fn of(graph: &Graph) -> Result<Links, Failure> {
        let mut links = Links::default();
        let mut net = None;
        for node in graph.all(is_socket) {
            let fd = match graph.take(node) {
                Err(failure) if graph.is_gone(&failure, graph.nodes[node].member) => continue,
                fd => fd?,
            };
            if is(fd.as_fd(), libc::IPPROTO_UDP) && links.shut.is_empty() {
                let shut = diag::shut(namespace_of(&fd)?.as_fd())?;
                links.shut = shut.into_iter().map(|(inode, shut)| (inode.into(), shut)).collect();
            }
            if !is(fd.as_fd(), libc::IPPROTO_TCP) {
                continue;
            }
            if let (Some(local), Some(peer)) = (address::local(fd.as_fd())?, address::peer(fd.as_fd())?) {
                links.ends.insert((canonical(local), canonical(peer)));
            }
            if net.is_none() {
                net = Some(namespace_of(&fd)?);
            }
        }
        if let Some(net) = net {
            let named = |entry: Entry| ((canonical(entry.local), canonical(entry.peer)), entry);
            links.others = diag::list(net.as_fd())?.into_iter().map(named).collect();
        }
        Ok(links)
    }

    /// What the UDP socket of this inode number has shut down, as shutdown(2) has it.
    pub(crate) fn shutdown(&self, inode: u64) -> Option<u8> {
        self.shut.get(&inode).map(|shut| shut.saturating_sub(1).min(2))
    }

    /// Whom the socket of this inode number is connected to, or connecting.
    pub(crate) fn peer_of(&self, inode: u64) -> Option<SocketAddr> {
        self.others.values().find(|entry| u64::from(entry.inode) == inode).map(|entry| entry.peer)
    }

    /// Where a connection leads; None when that is out, and the connection is to be closed. `name` is for people.
    pub(crate) fn lead(
        &self,
        name: &str,
        local: SocketAddr,
        peer: SocketAddr,
        owned: &Owned,
    ) -> Result<Option<Link>, Trouble> {
        if owned.answers_for(peer) {
            return Ok(Some(Link::Owned));
        }
        let (local, peer) = (canonical(local), canonical(peer));
        if self.ends.contains(&(peer, local)) {
            return Ok(Some(Link::Inside));
        }
        let here = peer.ip() == local.ip() || peer.ip().is_loopback();
        match self.others.get(&(peer, local)) {
            Some(other) if other.inode == 0 && waits(other.state) => return Ok(Some(Link::Waiting)),
            Some(other) if other.inode == 0 => {
                if left(other) > 0 {
                    let why = format!(
                        "the job has closed its other end, whose last {} bytes are still on their way",
                        left(other)
                    );
                    return Err(Trouble::refused(name, why).passing());
                }
                return Ok(Some(Link::Gone));
            }
            None if here => return Ok(Some(Link::Gone)),
            _ => {}
        }
        match owned.outward.tcp {
            Outgoing::Keep => Ok(Some(Link::Outside)),
            Outgoing::Close => Ok(None),
            Outgoing::Refuse => {
                let remedy = "--tcp-established keeps it, --tcp-close closes it, and `--map tcp:NAME:PORT=ADDRESS:PORT` \
                    at the start of the job makes it one to somebody who can be elsewhere";
                Err(Trouble::refused(name, "the other end is outside of the job").or(remedy.into()))
            }
        }
    }

    /// The connections that lead out of the job and are kept.
    pub(crate) fn outside(&self, owned: &Owned) -> Vec<(SocketAddr, SocketAddr)> {
        let kept = |(local, peer): &&(SocketAddr, SocketAddr)| {
            matches!(self.lead("", *local, *peer, owned), Ok(Some(Link::Outside)))
        };
        self.ends.iter().filter(kept).copied().collect()
    }

    /// What waits to be accepted at a listening socket, and could not be carried.
    pub(crate) fn at_listener(&self, name: &str, local: SocketAddr, owned: &Owned) -> Result<(), Trouble> {
        let local = canonical(local);
        let mine = |entry: &&Entry| {
            let (own, bound) = (canonical(entry.local), local.ip());
            let same = bound.is_unspecified() || bound == own.ip();
            entry.inode == 0 && waits(entry.state) && own.port() == local.port() && same
        };
        for entry in self.others.values().filter(mine) {
            let peer = canonical(entry.peer);
            if !self.ends.contains(&(peer, canonical(entry.local))) {
                if owned.outward.tcp == Outgoing::Close || entry.state == State::SynReceived {
                    continue;
                }
                let why = format!("a connection from {peer}, outside of the job, waits to be accepted");
                let remedy = "try again when the job has accepted it, or drop it with --tcp-close";
                return Err(Trouble::refused(name, why).or(remedy.into()).passing());
            }
            let unread = entry.unread.saturating_sub(u32::from(entry.state == State::CloseWait));
            if unread > 0 && entry.state != State::SynReceived {
                let why = format!(
                    "a connection from {peer} waits to be accepted, with {unread} bytes that nobody can read before"
                );
                let remedy = "try again when the job has accepted it";
                return Err(Trouble::refused(name, why).or(remedy.into()).passing());
            }
        }
        Ok(())
    }
}

/// It is in the queue of a socket that listens, or about to be.
fn waits(state: State) -> bool {
    matches!(state, State::Established | State::CloseWait | State::SynReceived)
}

/// Bytes that a closed socket has still to deliver.
fn left(entry: &Entry) -> u32 {
    match entry.state {
        State::FinWait1 | State::LastAck | State::Closing => entry.unacknowledged.saturating_sub(1),
        _ => 0,
    }
}

/// A socket, of whatever kind.
pub(super) fn is_socket(seen: &Seen) -> bool {
    seen.type_() == FileType::Socket && !seen.has_path()
}

/// The socket is one of this protocol of the internet.
pub(super) fn is(fd: BorrowedFd<'_>, protocol: i32) -> bool {
    let number = |name| sockopt::number(fd, libc::SOL_SOCKET, name).unwrap_or(-1);
    matches!(number(libc::SO_DOMAIN), libc::AF_INET | libc::AF_INET6) && number(libc::SO_PROTOCOL) == protocol
}

/// A namespace by its identity.
pub(crate) fn same_namespace(fd: BorrowedFd<'_>, init: nix::unistd::Pid) -> Result<bool, Failure> {
    let path = format!("/proc/{init}/ns/net");
    let theirs = rustix::fs::stat(&path).doing(|| format!("look at {path}"))?;
    let own = rustix::fs::fstat(namespace_of(fd)?).doing(|| "look at a network namespace")?;
    Ok(own.st_ino == theirs.st_ino)
}

//! Sockets of the internet protocols, by IPv4 and IPv6.
//!
//! They are made in the job's first process, so that they belong to its network namespace and its cgroups, and are given
//! everything else from outside, by ckrun's own descriptors: addresses, options, and, for TCP, whole connections
//! ([`repair`]). What leads out of the job comes to life only when the job does ([`Late`]): until then a restart that fails
//! leaves no trace of it in the network.

mod address;
mod agree;
mod begun;
mod connection;
mod datagram;
mod diag;
mod end;
mod forge;
mod groups;
mod leaving;
mod links;
mod make;
mod options;
mod owned;
mod reading;
mod repair;
mod strings;
mod tcp;

pub use groups::Membership;
pub use leaving::Connections;
pub use links::Links;
pub(super) use links::same_namespace;
pub(crate) use make::{Filled, Late, fill};
pub use owned::Renewed;
pub(crate) use tcp::Read;
pub(super) use tcp::ready;

use super::Class;
use crate::Failure;
use crate::fd::Trouble;
use crate::fd::capture::Job;
use crate::image::Bytes;
use crate::sys::sockopt;
use connection::Connection;
use links::Link;
use nix::unistd::Pid;
use options::Numbers;
use serde::{Deserialize, Serialize};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use strings::Strings;

/// A socket of an internet protocol.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Inet {
    /// The user and the group that it belongs to, as the container knows them.
    pub owner: (u32, u32),
    /// The address that it is bound to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub local: Option<SocketAddr>,
    /// That is no address of the network namespace: the job had leave to take it (IP_FREEBIND), maybe only for a moment.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub foreign: bool,
    /// Options of its protocols that are numbers.
    pub numbers: Numbers,
    /// Options of its protocols that are more than that.
    #[serde(default, skip_serializing_if = "Strings::is_empty")]
    pub strings: Strings,
    /// The name of TCP's way to avoid congestion.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub congestion: Option<String>,
    /// The sizes of the send and the receive buffer, as they are read.
    pub buffers: (i32, i32),
    /// The directions that the job has shut down: 0 what it would receive, 1 what it would send, 2 both.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shutdown: Option<u8>,
    /// The multicast groups that it listens to.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<Membership>,
    /// The address by which it sends to groups of IPv4 (IP_MULTICAST_IF).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sends_by: Option<Ipv4Addr>,
    /// What it does.
    pub phase: Phase,
}

/// What an internet socket does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Phase {
    /// Nothing, as yet.
    Idle,
    /// It waits for connections.
    Listening {
        /// How many may wait for it.
        backlog: i32,
    },
    /// It waits for the answer of somebody.
    Connecting {
        /// Whose.
        peer: SocketAddr,
    },
    /// It has a connection.
    Connected {
        /// Which.
        connection: Connection,
        /// Where that leads.
        link: Link,
        /// As whom the job knows the peer, if somebody answers for that.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        name: Option<Bytes>,
        /// The file of the image with what the job has not read.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        received: Option<String>,
        /// The file of the image with what the peer has not acknowledged.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        to_send: Option<String>,
    },
    /// It had a connection.
    Closed {
        /// To whom.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        peer: Option<SocketAddr>,
        /// The file of the image with what the job has not read.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        received: Option<String>,
        /// The job has not yet been told that the peer broke it off.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        error: bool,
    },
    /// It sends and receives datagrams.
    Datagrams {
        /// To and from whom alone.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        peer: Option<SocketAddr>,
        /// The file of the image with those that the job has not read, one behind the other.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        content: Option<String>,
        /// From whom each is, and its size.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        received: Vec<(SocketAddr, u32)>,
        /// The bits of the types of messages that a raw socket does not get (ICMP_FILTER, ICMP6_FILTER).
        #[serde(default, skip_serializing_if = "Option::is_none")]
        filter: Option<Vec<u32>>,
    },
}

impl Job<'_> {
    /// The internet socket behind `node`, of which `fd` is ckrun's own descriptor.
    pub(super) fn inet(&mut self, node: usize, fd: &OwnedFd, class: &Class) -> Result<Inet, Trouble> {
        let local = address::local(fd.as_fd())?;
        let name = format!("{class}{}", local.map(|local| format!(" {local}")).unwrap_or_default());
        let init = self.graph.members.first().map(|member| member.host);
        if let Some(init) = init
            && !links::same_namespace(fd.as_fd(), init)?
        {
            return Err(Trouble::refused(name, "it is in another network namespace than the job"));
        }
        let stat = &self.graph.nodes[node].seen.stat;
        let owner = self.container().owner(stat.st_uid, stat.st_gid)?;
        let phase = match (class.kind, class.protocol) {
            (libc::SOCK_STREAM, libc::IPPROTO_TCP) => self.tcp(node, fd, &name)?,
            (libc::SOCK_DGRAM, libc::IPPROTO_UDP | libc::IPPROTO_UDPLITE)
            | (libc::SOCK_DGRAM, libc::IPPROTO_ICMP | libc::IPPROTO_ICMPV6)
            | (libc::SOCK_RAW, _) => self.datagrams(node, fd, class, &name)?,
            (_, IPPROTO_MPTCP) => {
                return Err(Trouble::refused(name, "the kernel does not tell the state of multipath TCP"));
            }
            _ => return Err(Trouble::refused(name, "a protocol whose state the kernel does not tell")),
        };
        let number = |name| sockopt::number(fd, libc::SOL_SOCKET, name).unwrap_or(0);
        let half = |job: &Self, phase: &Phase| match phase {
            Phase::Connected { connection, .. } => tcp::half(fd.as_fd(), connection.state),
            Phase::Datagrams { .. } => job.links.shutdown(job.graph.nodes[node].seen.stat.st_ino),
            _ => None,
        };
        let mut numbers = options::read(fd.as_fd(), class.protocol);
        if matches!(phase, Phase::Connected { .. } | Phase::Closed { .. }) {
            tcp::forget_what_only_new_sockets_take(&mut numbers);
        }
        let mut congestion = [0; 16];
        let len = match class.protocol {
            libc::IPPROTO_TCP => {
                sockopt::get(fd, libc::IPPROTO_TCP, libc::TCP_CONGESTION, &mut congestion).unwrap_or(0)
            }
            _ => 0,
        };
        let congestion = congestion.get(..len).unwrap_or_default().split(|&byte| byte == 0).next();
        let congestion = congestion.filter(|name| !name.is_empty());
        // Without a port only a raw socket, which has none, can be bound.
        let local = local.filter(|local| local.port() != 0 || class.kind == libc::SOCK_RAW);
        let foreign = match (local, init) {
            (Some(local), Some(init)) if !self.running() => address::is_foreign(local, init)?,
            _ => false,
        };
        let datagrams = class.kind != libc::SOCK_STREAM;
        let groups = match init {
            Some(init) if datagrams && !self.running() => self.groups_of(fd.as_fd(), init)?,
            _ => Vec::new(),
        };
        Ok(Inet {
            owner,
            local,
            foreign,
            numbers,
            strings: if self.running() { Strings::new() } else { strings::read(fd.as_fd()) },
            congestion: congestion.map(|name| String::from_utf8_lossy(name).into_owned()),
            buffers: (number(libc::SO_SNDBUF), number(libc::SO_RCVBUF)),
            shutdown: half(self, &phase),
            groups,
            sends_by: groups::sends_by(fd.as_fd()).filter(|_| datagrams),
            phase,
        })
    }

    /// The groups that a socket has joined.
    fn groups_of(&mut self, fd: BorrowedFd<'_>, init: Pid) -> Result<Vec<Membership>, Failure> {
        let known = match self.groups.take() {
            Some(known) => known,
            None => groups::known(init)?,
        };
        let joined = groups::joined(fd, &known);
        self.groups = Some(known);
        joined
    }
}

/// A class whose new sockets have the same options, and that anybody may make anywhere: who may make one for ICMP is for each
/// network namespace to say (`net.ipv4.ping_group_range`).
pub(super) fn like(class: &Class) -> Class {
    let ping = class.kind == libc::SOCK_DGRAM
        && matches!(
            (class.domain, class.protocol),
            (libc::AF_INET | libc::AF_INET6, libc::IPPROTO_ICMP | libc::IPPROTO_ICMPV6)
        );
    if ping { Class { protocol: libc::IPPROTO_UDP, ..*class } } else { *class }
}

/// `linux/in.h`; not in libc.
const IPPROTO_MPTCP: i32 = 262;

impl Inet {
    /// Why an image can't be right.
    pub(super) fn wrong(&self) -> Option<String> {
        if let Some(name) = options::unknown(&self.numbers) {
            return Some(format!("an unknown option {name}"));
        }
        if let Some(name) = strings::unknown(&self.strings) {
            return Some(format!("an unknown option {name}"));
        }
        if let Some(why) = groups::wrong(&self.groups) {
            return Some(why);
        }
        match &self.phase {
            Phase::Connected { connection, .. } if !connection.state.is_connected() => {
                Some("a connection that is none".into())
            }
            _ => None,
        }
    }
}

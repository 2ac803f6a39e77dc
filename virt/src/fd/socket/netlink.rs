//! Netlink sockets (netlink(7)): their ports, groups and options.
//!
//! What the kernel has answered and nobody has read can't be said again in its name, so a socket with unread messages is
//! refused. So are protocols by which the kernel serves one socket in particular, the one that asked for it: it does not
//! tell for whom it does.

use super::diag;
use super::inet::same_namespace;
use super::{Class, Family, Socket, sockets};
use crate::fd::capture::Job;
use crate::fd::making::Making;
use crate::fd::{Files, Trouble};
use crate::sys::sockopt;
use crate::{Doing, Failure};
use nix::errno::Errno;
use rustix::event::PollFlags;
use rustix::net::SocketAddrAny;
use rustix::net::netlink::SocketAddrNetlink;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// `linux/netlink.h`: protocols in which the kernel keeps nothing for a socket but what it tells: routes, messages of
/// programs among themselves, lists of sockets, IPsec, lookups of routes, events of devices, families by name, ciphers. The audit
/// system has one socket that it serves, but that is of the first pid namespace (audit_netlink_ok() in kernel/audit.c).
const CARRIED: [i32; 9] = [0, 2, 4, 6, NETLINK_AUDIT, 10, NETLINK_KOBJECT_UEVENT, NETLINK_GENERIC, 21];
const NETLINK_AUDIT: i32 = 9;
const NETLINK_KOBJECT_UEVENT: i32 = 15;
const NETLINK_GENERIC: i32 = 16;
/// The one group of NETLINK_GENERIC whose number is the same on all hosts (`GENL_ID_CTRL`).
const NEW_FAMILIES: u32 = 16;
/// NETLINK_ADD_MEMBERSHIP and NETLINK_LIST_MEMBERSHIPS.
const ADD_MEMBERSHIP: i32 = 1;
const LIST_MEMBERSHIPS: i32 = 9;
/// The most groups of a protocol that are looked at, and that an image may name.
const GROUPS: u32 = 1 << 15;
/// The kernel's state of a socket that connect(2) was called for; a new one has that of all closed sockets.
const CONNECTED: u8 = 1;
/// Options that are a number, by their names in netlink(7) less `NETLINK_`. All are off in a new socket.
const NUMBERS: [(&str, i32); 7] = [
    ("pktinfo", 3),
    ("broadcast-error", 4),
    ("no-enobufs", 5),
    ("listen-all-nsid", 8),
    ("cap-ack", 10),
    ("ext-ack", 11),
    ("get-strict-chk", 12),
];

/// What only a netlink socket has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Netlink {
    /// The user and the group that it belongs to, as the container knows them.
    pub owner: (u32, u32),
    /// Its port (`nl_pid`), if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u32>,
    /// The groups that it listens to.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<u32>,
    /// The port (0 the kernel's) and the group (0 none) that it is connected to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer: Option<(u32, u32)>,
    /// Options that are not off.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub numbers: BTreeMap<String, i32>,
}

impl Job<'_> {
    /// The netlink socket behind `node`, of which `fd` is ckrun's own descriptor.
    pub(super) fn netlink(&mut self, node: usize, fd: &OwnedFd, class: &Class) -> Result<Netlink, Trouble> {
        let what = || "look at a netlink socket";
        let port = ends(&rustix::net::getsockname(fd).doing(what)?).0;
        let name = format!("{class}{}", if port == 0 { String::new() } else { format!(" port {port}") });
        let refused = |why: &str| Err(Trouble::refused(name.as_str(), why));
        if let Some(init) = self.graph.members.first().map(|member| member.host)
            && !same_namespace(fd.as_fd(), init)?
        {
            return refused("it is in another network namespace than the job");
        }
        if !CARRIED.contains(&class.protocol) {
            return refused("the kernel may serve it in particular, and does not tell");
        }
        let groups = groups(fd.as_fd()).doing(what)?;
        if class.protocol == NETLINK_GENERIC && groups.iter().any(|group| *group != NEW_FAMILIES) {
            return refused("it listens to a group whose number each host chooses");
        }
        let ready = super::inet::ready(fd.as_fd())?;
        if ready.contains(PollFlags::IN) {
            let again = "try again when it has read them".to_owned();
            return refused("there are messages that the job has not read")
                .map_err(|refused| refused.or(again).passing());
        }
        if ready.contains(PollFlags::ERR) {
            return refused("messages were lost, and the job has not been told of that yet");
        }
        let seen = &self.graph.nodes[node].seen;
        let owner = self.container().owner(seen.stat.st_uid, seen.stat.st_gid)?;
        let peer = match rustix::net::getpeername(fd).doing(what)? {
            Some(peer) => ends(&peer),
            None => (0, 0),
        };
        let connected = connected(fd, seen.stat.st_ino)?.unwrap_or(peer != (0, 0));
        let number = |option| sockopt::number(fd, libc::SOL_NETLINK, option).unwrap_or(0);
        let numbers = NUMBERS.iter().map(|&(name, option)| (name.to_owned(), number(option)));
        Ok(Netlink {
            owner,
            port: (port != 0).then_some(port),
            groups,
            // The kernel says the group as a bit.
            peer: connected.then(|| (peer.0, if peer.1 == 0 { 0 } else { peer.1.trailing_zeros() + 1 })),
            numbers: numbers.filter(|(_, value)| *value != 0).collect(),
        })
    }
}

/// The port and the groups of an address.
fn ends(address: &SocketAddrAny) -> (u32, u32) {
    SocketAddrNetlink::try_from(address.clone()).map_or((0, 0), |address| (address.pid(), address.groups()))
}

fn groups(fd: BorrowedFd<'_>) -> Result<Vec<u32>, Errno> {
    let mut bits = vec![0; GROUPS as usize / 8];
    // The answer's length is that of all there are, which may be more than fits.
    let len = sockopt::get(fd, libc::SOL_NETLINK, LIST_MEMBERSHIPS, &mut bits)?;
    bits.truncate(len);
    let set = |number: &u32| bits.get(*number as usize / 8).is_some_and(|byte| byte >> (number % 8) & 1 == 1);
    Ok((0..GROUPS).filter(set).map(|number| number + 1).collect())
}

/// Whether connect(2) was called for the socket of this inode number, which only sock_diag(7) tells when it was the kernel
/// that it was connected to. None if this kernel does not tell (CONFIG_NETLINK_DIAG).
fn connected(fd: &OwnedFd, inode: u64) -> Result<Option<bool>, Failure> {
    // struct netlink_diag_req: all protocols, no inode, nothing to be shown besides, no cookie.
    let mut request = vec![libc::AF_NETLINK as u8, u8::MAX, 0, 0];
    request.resize(20, 0);
    let all = match diag::dump(diag::namespace_of(fd)?, &request) {
        Err(failure) if failure.errno == Errno::ENOENT => return Ok(None),
        all => all?,
    };
    // struct netlink_diag_msg: family, type, protocol, state; three ports; the inode.
    let is = |answer: &&Vec<u8>| {
        let number = answer.get(16..20).and_then(|bytes| bytes.first_chunk());
        number.is_some_and(|number| u64::from(u32::from_ne_bytes(*number)) == inode)
    };
    Ok(all.iter().find(is).and_then(|answer| answer.get(3)).map(|state| *state == CONNECTED))
}

impl Netlink {
    /// Why an image can't be right.
    pub(super) fn wrong(&self) -> Option<String> {
        if let Some(name) = self.numbers.keys().find(|name| NUMBERS.iter().all(|known| known.0 != *name)) {
            return Some(format!("an unknown option {name} of a netlink socket"));
        }
        let groups = self.groups.iter().any(|group| !(1..=GROUPS).contains(group));
        (groups || self.peer.is_some_and(|(_, group)| group > 32)).then(|| "an impossible group".into())
    }

    fn put(&self, fd: BorrowedFd<'_>, socket: &Socket) -> Result<(), Failure> {
        socket.options.early(fd)?;
        if let Some(port) = self.port {
            rustix::net::bind(fd, &SocketAddrNetlink::new(port, 0))
                .doing(|| format!("bind a {socket} to port {port}"))?;
        }
        if let Some((port, group)) = self.peer {
            let group = if group == 0 { 0 } else { 1 << (group - 1) };
            rustix::net::connect(fd, &SocketAddrNetlink::new(port, group))
                .doing(|| format!("connect a {socket} to port {port}"))?;
        }
        for (name, option) in NUMBERS {
            if let Some(value) = self.numbers.get(name) {
                sockopt::set_number(fd, libc::SOL_NETLINK, option, *value)
                    .doing(|| format!("set the option {name} of a {socket}"))?;
            }
        }
        // The filter first: no message is to come in that it would have dropped.
        socket.options.late(fd)?;
        for group in &self.groups {
            sockopt::set_number(fd, libc::SOL_NETLINK, ADD_MEMBERSHIP, group.cast_signed())
                .doing(|| format!("let a {socket} listen to group {group}"))?;
        }
        Ok(())
    }
}

/// Gives all of them their addresses, options and groups.
pub(super) fn fill(files: &Files, making: &mut Making<'_>) -> Result<(), Failure> {
    for (id, socket) in sockets(files) {
        let Family::Netlink(netlink) = &socket.of else { continue };
        let fd = making.worker.pidfd_getfd(making.at(id))?;
        making.give_to(making.at(id), netlink.owner);
        netlink.put(fd.as_fd(), socket)?;
    }
    making.run()
}

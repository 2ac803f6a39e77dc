//! Packet sockets (packet(7)): which frames of which device they see, and how.
//!
//! Devices are known by their names: a restart may be where they have other numbers. Frames that nobody has read can't
//! come again, so a socket with unread ones is refused.

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
use rustix::net::netdevice::{index_to_name, name_to_index};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// `linux/if_packet.h`.
const ADD_MEMBERSHIP: i32 = 1;
const RECEIVE_RING: i32 = 5;
const SEND_RING: i32 = 13;
const FANOUT: i32 = 18;
/// PACKET_FANOUT_CBPF and PACKET_FANOUT_EBPF: a program chooses.
const BY_PROGRAM: [u8; 2] = [6, 7];
/// PACKET_FANOUT_FLAG_UNIQUEID, which is an order and no state, where PACKET_FANOUT has it.
const UNIQUE: u32 = 0x2000 << 16;
/// TPACKET_V3.
const THIRD: i32 = 2;
/// Options that are a number, by their names in packet(7) less `PACKET_`, in an order in which they can be set: before there
/// are rings. All are 0 in a new socket.
const NUMBERS: [(&str, i32); 11] = [
    ("version", 10),
    ("reserve", 12),
    ("vnet-hdr-sz", 24),
    ("loss", 14),
    ("tx-has-off", 19),
    ("copy-thresh", 7),
    ("auxdata", 8),
    ("origdev", 9),
    ("timestamp", 17),
    ("qdisc-bypass", 20),
    ("ignore-outgoing", 23),
];
/// `linux/packet_diag.h`.
const SHOW_MEMBERSHIPS: u32 = 2;
const SHOW_RINGS: u32 = 4;
const MEMBERSHIPS: u16 = 1;
const RINGS: [u16; 2] = [2, 3];
/// `struct packet_diag_msg`.
const MESSAGE: usize = 16;
/// The longest address of a device (MAX_ADDR_LEN).
const LONGEST: usize = 32;
/// By an image's word: the most memberships, and the largest ring, in bytes.
const MOST: u32 = 1 << 16;
const LARGEST: u64 = 1 << 30;

/// What only a packet socket has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Packet {
    /// The user and the group that it belongs to, as the container knows them.
    pub owner: (u32, u32),
    /// Which frames it sees (`linux/if_ether.h`); 0 none.
    pub protocol: u16,
    /// The device that it is bound to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// Options that are not 0.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub numbers: BTreeMap<String, i32>,
    /// What it has asked devices to receive (PACKET_ADD_MEMBERSHIP).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub memberships: Vec<Membership>,
    /// The rings in which it receives and from which it sends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub receive_ring: Option<Ring>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub send_ring: Option<Ring>,
    /// The group that shares the frames: its number, and above that the way and the flags (PACKET_FANOUT).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fanout: Option<u32>,
    /// Its inode number on the host that it was on, by which mappings of its rings name it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inode: Option<u64>,
}

/// `struct packet_mreq_max`, and how often it was asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Membership {
    /// Of which device.
    pub device: String,
    /// `PACKET_MR_*`: a group, everything, all groups, an address.
    pub kind: u16,
    /// Whose frames.
    pub address: Vec<u8>,
    /// How often.
    pub count: u32,
}

/// `struct tpacket_req3`, of which only the third version has the last three.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Ring {
    /// Bytes of a block, and how many there are.
    pub blocks: (u32, u32),
    /// Bytes of a frame, and how many there are.
    pub frames: (u32, u32),
    /// After how many milliseconds a block is done that is not full.
    pub timeout: u32,
    /// Bytes in each block that are the program's.
    pub private: u32,
    /// What else is wanted.
    pub features: u32,
}

impl Job<'_> {
    /// The packet socket behind `node`, of which `fd` is ckrun's own descriptor.
    pub(super) fn packet(&mut self, node: usize, fd: &OwnedFd, class: &Class) -> Result<Packet, Trouble> {
        let (protocol, index) = address(fd.as_fd())?;
        let refused = |why: &str| Err(Trouble::refused(class.to_string(), why));
        if let Some(init) = self.graph.members.first().map(|member| member.host)
            && !same_namespace(fd.as_fd(), init)?
        {
            return refused("it is in another network namespace than the job");
        }
        if index < 0 {
            return refused("its device has gone");
        }
        if super::inet::ready(fd.as_fd())?.contains(PollFlags::IN) {
            let again = "try again when it has read them".to_owned();
            return refused("frames have come that nobody has read, and they can't come again")
                .map_err(|refused| refused.or(again).passing());
        }
        let number = |option| sockopt::number(fd, libc::SOL_PACKET, option).unwrap_or(0);
        let fanout = number(FANOUT).cast_unsigned() & !UNIQUE;
        let group = fanout != 0;
        if group && BY_PROGRAM.contains(&((fanout >> 16) as u8)) {
            return refused(
                "a program shares its frames out (PACKET_FANOUT_DATA), and the kernel does not tell it",
            );
        }
        let seen = &self.graph.nodes[node].seen;
        let owner = self.container().owner(seen.stat.st_uid, seen.stat.st_gid)?;
        let Some(attributes) = told(fd, seen.stat.st_ino)? else {
            return refused("this kernel does not tell its memberships and rings (CONFIG_PACKET_DIAG)");
        };
        let mut packet = Packet {
            owner,
            protocol,
            device: (index > 0).then(|| device(fd, index.cast_unsigned())).transpose()?,
            numbers: NUMBERS
                .iter()
                .map(|&(name, option)| (name.to_owned(), number(option)))
                .filter(|(_, value)| *value != 0)
                .collect(),
            memberships: Vec::new(),
            receive_ring: None,
            send_ring: None,
            fanout: group.then_some(fanout),
            inode: None,
        };
        for (kind, value) in diag::attributes(&attributes) {
            match kind {
                MEMBERSHIPS => packet.memberships = memberships(fd, value)?,
                _ if kind == RINGS[0] => packet.receive_ring = Some(Ring::parse(value)),
                _ if kind == RINGS[1] => packet.send_ring = Some(Ring::parse(value)),
                _ => {}
            }
        }
        let rings = packet.receive_ring.is_some() || packet.send_ring.is_some();
        packet.inode = rings.then_some(seen.stat.st_ino);
        Ok(packet)
    }
}

impl Files {
    /// The description of the packet socket with rings that had this inode number.
    pub(crate) fn packet_socket(&self, inode: u64) -> Option<u32> {
        let is =
            |socket: &Socket| matches!(&socket.of, Family::Packet(packet) if packet.inode == Some(inode));
        sockets(self).find(|(_, socket)| is(socket)).map(|(id, _)| id)
    }
}

/// The protocol and the number of the device that a socket is bound to.
fn address(fd: BorrowedFd<'_>) -> Result<(u16, i32), Failure> {
    let mut all = libc::sockaddr_ll {
        sll_family: 0,
        sll_protocol: 0,
        sll_ifindex: 0,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    let mut length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes to the address; both live through the call.
    let got = unsafe { libc::getsockname(fd.as_raw_fd(), (&raw mut all).cast(), &raw mut length) };
    Errno::result(got).doing(|| "ask for the address of a packet socket")?;
    Ok((u16::from_be(all.sll_protocol), all.sll_ifindex))
}

fn device(fd: &OwnedFd, index: u32) -> Result<String, Failure> {
    index_to_name(fd, index).doing(|| format!("find the name of network device {index}"))
}

/// The attributes that the kernel tells of the packet socket of this inode number.
fn told(fd: &OwnedFd, inode: u64) -> Result<Option<Vec<u8>>, Failure> {
    // struct packet_diag_req: no inode, what is to be shown, no cookie.
    let mut request = vec![libc::AF_PACKET as u8, 0, 0, 0, 0, 0, 0, 0];
    request.extend((SHOW_MEMBERSHIPS | SHOW_RINGS).to_ne_bytes());
    request.resize(20, 0);
    let all = match diag::dump(diag::namespace_of(fd)?, &request) {
        Err(failure) if failure.errno == Errno::ENOENT => return Ok(None),
        all => all?,
    };
    // struct packet_diag_msg: family, type, protocol; the inode; a cookie.
    let is = |answer: &&Vec<u8>| u64::from(word(answer, 1)) == inode;
    Ok(all.iter().find(is).and_then(|answer| answer.get(MESSAGE..)).map(<[u8]>::to_vec))
}

fn word(bytes: &[u8], at: usize) -> u32 {
    bytes.as_chunks::<4>().0.get(at).map_or(0, |word| u32::from_ne_bytes(*word))
}

/// A list of `struct packet_diag_mclist`: the device, how often, the kind, the length of the address, the address.
fn memberships(fd: &OwnedFd, bytes: &[u8]) -> Result<Vec<Membership>, Failure> {
    let one = |bytes: &[u8; 12 + LONGEST]| {
        let (kind, len) = ([bytes[8], bytes[9]], usize::from(u16::from_ne_bytes([bytes[10], bytes[11]])));
        Ok(Membership {
            device: device(fd, word(bytes, 0))?,
            kind: u16::from_ne_bytes(kind),
            address: bytes.get(12..12 + len).unwrap_or_default().to_vec(),
            count: word(bytes, 1),
        })
    };
    bytes.as_chunks().0.iter().map(one).collect()
}

impl Ring {
    /// `struct packet_diag_ring`, whose order is not that of the request.
    fn parse(bytes: &[u8]) -> Ring {
        let [size, count, frame, frames, timeout, private, features] =
            [0, 1, 2, 3, 4, 5, 6].map(|at| word(bytes, at));
        Ring { blocks: (size, count), frames: (frame, frames), timeout, private, features }
    }

    fn set(&self, fd: BorrowedFd<'_>, version: i32, option: i32) -> Result<(), Errno> {
        let (blocks, frames) = (self.blocks, self.frames);
        let mut request = vec![blocks.0, blocks.1, frames.0, frames.1];
        if version == THIRD {
            request.extend([self.timeout, self.private, self.features]);
        }
        let bytes: Vec<u8> = request.into_iter().flat_map(u32::to_ne_bytes).collect();
        sockopt::set(fd, libc::SOL_PACKET, option, &bytes)
    }
}

impl Membership {
    fn ask(&self, fd: BorrowedFd<'_>, socket: &Socket) -> Result<(), Failure> {
        let what = || format!("let {} receive for a {socket}", self.device);
        let index = name_to_index(fd, &self.device).doing(what)?;
        let mut bytes = index.to_ne_bytes().to_vec();
        bytes.extend(self.kind.to_ne_bytes());
        bytes.extend(u16::try_from(self.address.len()).unwrap_or(u16::MAX).to_ne_bytes());
        bytes.extend(&self.address);
        bytes.resize(8 + LONGEST, 0);
        for _ in 0..self.count {
            sockopt::set(fd, libc::SOL_PACKET, ADD_MEMBERSHIP, &bytes).doing(what)?;
        }
        Ok(())
    }
}

impl Packet {
    /// Why an image can't be right.
    pub(super) fn wrong(&self) -> Option<String> {
        if let Some(name) = self.numbers.keys().find(|name| NUMBERS.iter().all(|known| known.0 != *name)) {
            return Some(format!("an unknown option {name} of a packet socket"));
        }
        let large = |ring: &Ring| u64::from(ring.blocks.0) * u64::from(ring.blocks.1) > LARGEST;
        let impossible = |one: &Membership| one.address.len() > LONGEST || one.count > MOST;
        (self.receive_ring.iter().chain(&self.send_ring).any(large)
            || self.memberships.len() > MOST as usize
            || self.memberships.iter().any(impossible))
        .then(|| "a packet socket that is too large".into())
    }

    fn put(&self, fd: BorrowedFd<'_>, socket: &Socket) -> Result<(), Failure> {
        socket.options.early(fd)?;
        // Before it sees anything: what the filter drops is not to come in.
        socket.options.late(fd)?;
        for (name, option) in NUMBERS {
            if let Some(value) = self.numbers.get(name) {
                sockopt::set_number(fd, libc::SOL_PACKET, option, *value)
                    .doing(|| format!("set the option {name} of a {socket}"))?;
            }
        }
        let version = self.numbers.get("version").copied().unwrap_or(0);
        for (ring, option) in [(&self.receive_ring, RECEIVE_RING), (&self.send_ring, SEND_RING)] {
            if let Some(ring) = ring {
                ring.set(fd, version, option).doing(|| format!("make a ring of a {socket}"))?;
            }
        }
        self.bind(fd, socket)?;
        if let Some(fanout) = self.fanout {
            sockopt::set_number(fd, libc::SOL_PACKET, FANOUT, fanout.cast_signed())
                .doing(|| format!("let a {socket} share its frames"))?;
        }
        self.memberships.iter().try_for_each(|one| one.ask(fd, socket))
    }

    fn bind(&self, fd: BorrowedFd<'_>, socket: &Socket) -> Result<(), Failure> {
        let index = match &self.device {
            Some(name) => {
                name_to_index(fd, name).doing(|| format!("bind a {socket} to network device {name}"))?
            }
            None if self.protocol == 0 => return Ok(()),
            None => 0,
        };
        let address = libc::sockaddr_ll {
            sll_family: libc::AF_PACKET as u16,
            sll_protocol: self.protocol.to_be(),
            sll_ifindex: index.cast_signed(),
            sll_hatype: 0,
            sll_pkttype: 0,
            sll_halen: 0,
            sll_addr: [0; 8],
        };
        let length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
        // SAFETY: the address lives through the call, and its length is given.
        let bound = unsafe { libc::bind(fd.as_raw_fd(), (&raw const address).cast(), length) };
        Errno::result(bound).map(drop).doing(|| format!("bind a {socket}"))
    }
}

/// Gives all of them their devices, options and rings.
pub(super) fn fill(files: &Files, making: &mut Making<'_>) -> Result<(), Failure> {
    for (id, socket) in sockets(files) {
        let Family::Packet(packet) = &socket.of else { continue };
        let fd = making.worker.pidfd_getfd(making.at(id))?;
        making.give_to(making.at(id), packet.owner);
        packet.put(fd.as_fd(), socket)?;
    }
    making.run()
}

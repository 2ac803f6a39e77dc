//! Netlink (netlink(7)): questions to the kernel, and orders, about what is in a network namespace.
//!
//! A socket belongs to the namespace in which it was made, wherever its owner goes. Messages are taken apart only as far
//! as somebody needs them ([`attributes`], [`record`]): what a newer kernel tells besides is no reason to fail.

pub mod attributes;
pub mod record;

pub use attributes::{Attributes, attributes};

use crate::Failure;
use nix::errno::Errno;
use nix::sys::socket::sockopt::{RcvBufForce, SndBufForce};
use nix::sys::socket::{MsgFlags, NetlinkAddr, bind, getsockname, recv, sendto, setsockopt};
use rustix::net::{AddressFamily, Protocol, SocketFlags, SocketType, socket_with};
use std::os::fd::{AsRawFd, OwnedFd};

/// `struct nlmsghdr`.
pub const HEADER: usize = 16;
/// The kernel fills at most this much at once (`netlink_dump`).
const ROOM: usize = 32 << 10;
/// How often a list is asked for again that changed while the kernel wrote it.
const RETRIES: u32 = 16;
/// Room for one batch, and for the answers to it, in bytes.
const BATCH: usize = 16 << 20;

const REQUEST: u16 = libc::NLM_F_REQUEST as u16;
const ACK: u16 = libc::NLM_F_ACK as u16;
const DUMP: u16 = libc::NLM_F_DUMP as u16;
/// `linux/netlink.h`; the list is not of one moment.
const DUMP_INTR: u16 = 0x10;
/// `linux/netlink.h`: the answer repeats the header only, and has attributes.
const CAPPED: u16 = 0x100;
const ACK_TLVS: u16 = 0x200;
/// `NLMSGERR_ATTR_MSG`: what the kernel says in words.
const ATTR_MSG: u16 = 1;

/// Parts of the kernel that answer.
pub mod protocols {
    use rustix::net::{Protocol, netlink};

    /// Links, addresses, routes (rtnetlink(7)); its number is 0.
    pub const ROUTE: Option<Protocol> = None;
    /// Sockets (sock_diag(7)).
    pub const SOCK_DIAG: Option<Protocol> = Some(netlink::SOCK_DIAG);
    /// Packet filters.
    pub const NETFILTER: Option<Protocol> = Some(netlink::NETFILTER);
    /// IPsec.
    pub const XFRM: Option<Protocol> = Some(netlink::XFRM);
}

/// A message that was received.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// `RTM_NEWLINK` and the like.
    pub kind: u16,
    /// What is behind the header.
    pub payload: Vec<u8>,
}

/// A socket to one network namespace.
#[derive(Debug)]
pub struct Netlink {
    socket: OwnedFd,
    sequence: u32,
    buffer: Vec<u8>,
    wordy: bool,
}

impl Netlink {
    /// To the namespace that this thread is in; `protocol` says which part of the kernel answers.
    ///
    /// # Errors
    /// `EPROTONOSUPPORT` from a kernel that lacks it.
    pub fn open(protocol: Option<Protocol>) -> Result<Netlink, Errno> {
        let (family, flags) = (AddressFamily::NETLINK, SocketFlags::CLOEXEC);
        let socket = socket_with(family, SocketType::RAW, flags, protocol)
            .map_err(|errno| Errno::from_raw(errno.raw_os_error()))?;
        Ok(Netlink { socket, sequence: 0, buffer: vec![0; ROOM], wordy: false })
    }

    /// The number by which the kernel knows this socket among those of its namespace and protocol.
    ///
    /// # Errors
    /// The kernel's.
    pub fn port(&self) -> Result<u32, Errno> {
        let (own, anyone) = (self.socket.as_raw_fd(), NetlinkAddr::new(0, 0));
        let address: NetlinkAddr = getsockname(own)?;
        if address.pid() != 0 {
            return Ok(address.pid());
        }
        // It gets one when it first needs it.
        bind(own, &anyone)?;
        getsockname::<NetlinkAddr>(own).map(|address| address.pid())
    }

    /// Asks for a list.
    ///
    /// # Errors
    /// The kernel's; `EBUSY` when the list does not stop changing.
    pub fn dump(&mut self, kind: u16, payload: &[u8]) -> Result<Vec<Message>, Errno> {
        for _ in 0..RETRIES {
            self.sequence += 1;
            self.send(&message(kind, REQUEST | DUMP, self.sequence, payload))?;
            let (mut found, mut whole, mut done) = (Vec::new(), true, false);
            while !done {
                done = self.receive(&mut found, &mut whole)?;
            }
            if whole {
                return Ok(found);
            }
        }
        Err(Errno::EBUSY)
    }

    /// Asks for one thing. The kernel's answer is the first message.
    ///
    /// # Errors
    /// The kernel's.
    pub fn ask(&mut self, kind: u16, payload: &[u8]) -> Result<Message, Errno> {
        self.sequence += 1;
        self.send(&message(kind, REQUEST, self.sequence, payload))?;
        let mut found = Vec::new();
        self.receive(&mut found, &mut true)?;
        found.into_iter().next().ok_or(Errno::EBADMSG)
    }

    /// Orders something; `flags` are `NLM_F_CREATE` and the like. `what` is for people.
    ///
    /// # Errors
    /// The kernel's, with its own words where it has any.
    pub fn order<S: Into<String>>(
        &mut self,
        kind: u16,
        flags: i32,
        payload: &[u8],
        what: impl FnOnce() -> S,
    ) -> Result<(), Failure> {
        self.sequence += 1;
        let order = message(kind, REQUEST | ACK | flags as u16, self.sequence, payload);
        self.batch(&order, 1).map_err(|(_, errno, words)| Failure::new(said(what(), &words), errno))
    }

    /// Sends several messages at once, and waits until the kernel has acknowledged `count` of them. The error says which one
    /// failed, by its sequence number.
    ///
    /// # Errors
    /// The first one that the kernel reports, and its words.
    pub fn batch(&mut self, messages: &[u8], count: usize) -> Result<(), (u32, Errno, String)> {
        let plain = |errno| (0, errno, String::new());
        if !self.wordy {
            self.speak();
        }
        self.send(messages).map_err(plain)?;
        let done = self.acknowledged(count);
        if done.is_err() {
            self.forget();
        }
        done
    }

    fn acknowledged(&mut self, count: usize) -> Result<(), (u32, Errno, String)> {
        for _ in 0..count {
            let length = self.fill().map_err(|errno| (0, errno, String::new()))?;
            let mut rest = self.buffer.get(..length).unwrap_or_default();
            while let Some((header, payload, tail)) = split(rest) {
                if i32::from(header.kind) == libc::NLMSG_ERROR
                    && let Some(errno) = failed(payload)
                {
                    return Err((header.sequence, errno, words(&header, payload)));
                }
                rest = tail;
            }
        }
        Ok(())
    }

    /// Drops what else the kernel has answered, all of which is there when an order has been sent: it is not to be taken for
    /// an answer to the next one.
    fn forget(&mut self) {
        while recv(self.socket.as_raw_fd(), &mut self.buffer, MsgFlags::MSG_DONTWAIT).is_ok() {}
    }

    /// Wants the kernel's reasons in words, and room for many answers. It works without either.
    fn speak(&mut self) {
        let on: libc::c_int = 1;
        let size = size_of_val(&on) as libc::socklen_t;
        for option in [libc::NETLINK_EXT_ACK, libc::NETLINK_CAP_ACK] {
            // SAFETY: the kernel reads an int, which lives through the call.
            let set = unsafe {
                let value = (&raw const on).cast();
                libc::setsockopt(self.socket.as_raw_fd(), libc::SOL_NETLINK, option, value, size)
            };
            if set != 0 {
                log::debug!("netlink: option {option}: {}", Errno::last());
            }
        }
        let room = setsockopt(&self.socket, RcvBufForce, &BATCH)
            .and_then(|()| setsockopt(&self.socket, SndBufForce, &BATCH));
        if let Err(errno) = room {
            log::debug!("netlink: room for a batch: {errno}");
        }
        self.wordy = true;
    }

    fn send(&mut self, messages: &[u8]) -> Result<(), Errno> {
        let kernel = NetlinkAddr::new(0, 0);
        loop {
            match sendto(self.socket.as_raw_fd(), messages, &kernel, MsgFlags::empty()) {
                Err(Errno::EINTR) => {}
                sent => return sent.map(drop),
            }
        }
    }

    fn fill(&mut self) -> Result<usize, Errno> {
        loop {
            match recv(self.socket.as_raw_fd(), &mut self.buffer, MsgFlags::empty()) {
                Err(Errno::EINTR) => {}
                received => return received,
            }
        }
    }

    /// Takes what comes next; the answer is whether that was the end.
    fn receive(&mut self, found: &mut Vec<Message>, whole: &mut bool) -> Result<bool, Errno> {
        let length = self.fill()?;
        let mut rest = self.buffer.get(..length).unwrap_or_default();
        let mut done = false;
        while let Some((header, payload, tail)) = split(rest) {
            rest = tail;
            if header.sequence != self.sequence {
                continue;
            }
            *whole &= header.flags & DUMP_INTR == 0;
            match i32::from(header.kind) {
                libc::NLMSG_DONE | libc::NLMSG_ERROR => match failed(payload) {
                    Some(errno) => return Err(errno),
                    None => done = true,
                },
                _ => found.push(Message { kind: header.kind, payload: payload.to_vec() }),
            }
        }
        Ok(done)
    }
}

/// A message with its header.
pub fn message(kind: u16, flags: u16, sequence: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity((HEADER + payload.len()).next_multiple_of(4));
    bytes.extend(u32::try_from(HEADER + payload.len()).unwrap_or(u32::MAX).to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    bytes.extend(sequence.to_ne_bytes());
    bytes.extend([0; 4]);
    bytes.extend(payload);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

struct Header {
    kind: u16,
    flags: u16,
    sequence: u32,
}

/// The first message, and the rest.
fn split(bytes: &[u8]) -> Option<(Header, &[u8], &[u8])> {
    let length = u32::from_ne_bytes(*bytes.first_chunk()?) as usize;
    let kind = u16::from_ne_bytes(*bytes.get(4..)?.first_chunk()?);
    let flags = u16::from_ne_bytes(*bytes.get(6..)?.first_chunk()?);
    let sequence = u32::from_ne_bytes(*bytes.get(8..)?.first_chunk()?);
    let payload = bytes.get(HEADER..length)?;
    let rest = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    Some((Header { kind, flags, sequence }, payload, rest))
}

/// The error that an answer is about, if it is about one.
fn failed(payload: &[u8]) -> Option<Errno> {
    let code = payload.first_chunk().map_or(-libc::EBADMSG, |code| i32::from_ne_bytes(*code));
    (code < 0).then(|| Errno::from_raw(-code))
}

/// What the kernel says besides, behind the error and the header of what failed.
fn words(header: &Header, payload: &[u8]) -> String {
    let told = header.flags & (CAPPED | ACK_TLVS) == CAPPED | ACK_TLVS;
    let rest = payload.get(4 + HEADER..).filter(|_| told).unwrap_or_default();
    let text = attributes(rest).find(|(kind, _)| *kind == ATTR_MSG).map_or(&[][..], |(_, text)| text);
    String::from_utf8_lossy(text).trim_end_matches(['\0', '.']).to_owned()
}

/// What was being done, with what the kernel says about it.
pub fn said(what: impl Into<String>, words: &str) -> String {
    let what = what.into();
    if words.is_empty() { what } else { format!("{what}: the kernel says {words:?}") }
}

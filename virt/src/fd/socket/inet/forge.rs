//! Packets in a peer's name, for sockets of the own network namespace.
//!
//! What a peer has said once it does not say again: that it has ended its stream, that it has acknowledged ours, that
//! there is no connection any more; and a datagram comes once. A raw socket says it again, with the peer's address as
//! source and a local one as destination. The kernel takes such a packet through the loopback interface, by the route
//! that it left by: nothing asks whether its source is to be expected there.

use crate::{Doing, Failure};
use rustix::net::{AddressFamily, Protocol, SendFlags, SocketFlags, SocketType, socket_with};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::num::NonZeroU32;
use std::os::fd::OwnedFd;

const TCP: u8 = libc::IPPROTO_TCP as u8;
const UDP: u8 = libc::IPPROTO_UDP as u8;
/// `struct tcphdr`: bits of the byte with the flags.
pub const END: u8 = 0x01;
pub const RESET: u8 = 0x04;
pub const ACKNOWLEDGE: u8 = 0x10;
/// A window that lets the other side go on.
const WINDOW: u16 = 0x7fff;

/// Raw sockets in the network namespace that this thread was in when they were needed first.
#[derive(Debug, Default)]
pub struct Forger {
    four: Option<OwnedFd>,
    six: Option<OwnedFd>,
}

/// A segment without data.
#[derive(Debug, Clone, Copy)]
pub struct Segment {
    pub from: SocketAddr,
    pub to: SocketAddr,
    pub sequence: u32,
    pub acknowledges: u32,
    pub flags: u8,
}

impl Forger {
    /// Those that `four` and `six` ask for.
    ///
    /// # Errors
    /// `EPERM` without CAP_NET_RAW.
    pub fn open(four: bool, six: bool) -> Result<Forger, Failure> {
        let open = |wanted: bool, family: AddressFamily| {
            let raw = Protocol::from_raw(NonZeroU32::new(libc::IPPROTO_RAW.cast_unsigned())?);
            let flags = SocketFlags::CLOEXEC;
            wanted
                .then(|| socket_with(family, SocketType::RAW, flags, Some(raw)).doing(|| "open a raw socket"))
        };
        Ok(Forger {
            four: open(four, AddressFamily::INET).transpose()?,
            six: open(six, AddressFamily::INET6).transpose()?,
        })
    }

    /// Delivers a segment.
    ///
    /// # Errors
    /// The kernel's: there is no such local address.
    pub fn segment(&self, segment: &Segment) -> Result<(), Failure> {
        let mut packet = Vec::with_capacity(20);
        packet.extend(segment.from.port().to_be_bytes());
        packet.extend(segment.to.port().to_be_bytes());
        packet.extend(segment.sequence.to_be_bytes());
        packet.extend(segment.acknowledges.to_be_bytes());
        // Five words of header.
        packet.extend([5 << 4, segment.flags]);
        packet.extend(WINDOW.to_be_bytes());
        packet.extend([0; 4]);
        self.deliver(segment.from, segment.to, TCP, packet, 16)
    }

    /// Delivers a datagram.
    ///
    /// # Errors
    /// As [`Forger::segment`].
    pub fn datagram(&self, from: SocketAddr, to: SocketAddr, bytes: &[u8]) -> Result<(), Failure> {
        let mut packet = Vec::with_capacity(8 + bytes.len());
        packet.extend(from.port().to_be_bytes());
        packet.extend(to.port().to_be_bytes());
        packet.extend(u16::try_from(8 + bytes.len()).unwrap_or(u16::MAX).to_be_bytes());
        packet.extend([0; 2]);
        packet.extend(bytes);
        self.deliver(from, to, UDP, packet, 6)
    }

    fn deliver(
        &self,
        from: SocketAddr,
        to: SocketAddr,
        protocol: u8,
        mut payload: Vec<u8>,
        checksum: usize,
    ) -> Result<(), Failure> {
        let what = || format!("deliver a packet from {from} to {to}");
        let none = || Failure::new(what(), nix::errno::Errno::EAFNOSUPPORT);
        let (socket, packet, target) = match (from.ip().to_canonical(), to.ip().to_canonical()) {
            (IpAddr::V4(source), IpAddr::V4(target)) => {
                sum(&mut payload, &pseudo4(source, target, protocol), protocol, checksum);
                let packet = [header4(source, target, protocol, payload.len()), payload].concat();
                (self.four.as_ref().ok_or_else(none)?, packet, SocketAddr::new(target.into(), 0))
            }
            (IpAddr::V6(source), IpAddr::V6(target)) => {
                sum(&mut payload, &pseudo6(source, target, protocol), protocol, checksum);
                let packet = [header6(source, target, protocol, payload.len()), payload].concat();
                let mut to = to;
                to.set_port(0);
                (self.six.as_ref().ok_or_else(none)?, packet, to)
            }
            _ => return Err(none()),
        };
        rustix::net::sendto(socket, &packet, SendFlags::empty(), &target).doing(what)?;
        Ok(())
    }
}

/// The kernel adds the length, the identification and the checksum.
fn header4(source: Ipv4Addr, target: Ipv4Addr, protocol: u8, len: usize) -> Vec<u8> {
    let total = u16::try_from(20 + len).unwrap_or(u16::MAX).to_be_bytes();
    let fixed = [0x45, 0, total[0], total[1], 0, 0, 0, 0, 64, protocol, 0, 0];
    [&fixed[..], &source.octets(), &target.octets()].concat()
}

fn header6(source: Ipv6Addr, target: Ipv6Addr, protocol: u8, len: usize) -> Vec<u8> {
    let len = u16::try_from(len).unwrap_or(u16::MAX).to_be_bytes();
    let fixed = [0x60, 0, 0, 0, len[0], len[1], protocol, 64];
    [&fixed[..], &source.octets(), &target.octets()].concat()
}

fn pseudo4(source: Ipv4Addr, target: Ipv4Addr, protocol: u8) -> Vec<u8> {
    [&source.octets()[..], &target.octets(), &[0, protocol]].concat()
}

fn pseudo6(source: Ipv6Addr, target: Ipv6Addr, protocol: u8) -> Vec<u8> {
    [&source.octets()[..], &target.octets(), &[0, protocol]].concat()
}

/// Puts the checksum (RFC 1071) of a payload, with its length and the other fields that count, at its place.
fn sum(payload: &mut [u8], pseudo: &[u8], protocol: u8, at: usize) {
    let len = u32::try_from(payload.len()).unwrap_or(u32::MAX).to_be_bytes();
    let words = |bytes: &[u8]| -> u64 {
        let pair = |pair: &[u8]| u64::from(pair[0]) << 8 | u64::from(pair.get(1).copied().unwrap_or(0));
        bytes.chunks(2).map(pair).sum()
    };
    let mut total = words(pseudo) + words(&len) + words(payload);
    while total > 0xffff {
        total = (total & 0xffff) + (total >> 16);
    }
    let mut answer = !(total as u16);
    if answer == 0 && protocol == UDP {
        // Zero would say that there is none.
        answer = 0xffff;
    }
    if let Some(field) = payload.get_mut(at..at + 2) {
        field.copy_from_slice(&answer.to_be_bytes());
    }
}

//! Groups of hosts (multicast) that a socket listens to, and the senders that it does or does not want to hear.
//!
//! The kernel tells nobody what a socket has joined, but answers whether it has joined a group that is named. Those that
//! anybody in the network namespace has joined are listed (`/proc/net/igmp`, `igmp6`).

use crate::sys::{check, sockopt};
use crate::{Doing, Failure};
use nix::errno::Errno;
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, BorrowedFd};

/// `linux/in.h`: of both families.
const JOIN: i32 = 42;
const FILTER: i32 = 48;
/// Values of `gf_fmode`: all senders but those that are listed, or none but those.
const ALL_BUT: u32 = 0;
const ONLY: u32 = 1;
/// `struct group_filter`: the link, the group, the mode, the number of senders, and those; addresses are sockaddr_storage.
const GROUP: usize = 8;
const MODE: usize = GROUP + ADDRESS;
const COUNT: usize = MODE + 4;
const SENDERS: usize = COUNT + 4;
const ADDRESS: usize = 128;
/// Room for as many senders as one socket may name for a group by default (`net.ipv4.igmp_max_msf` is 10, of IPv6 64).
const USUAL: usize = 64;
/// The most groups, and the most senders for one, by an image's word.
const MOST: usize = 65536;

/// A group that a socket has joined.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Membership {
    /// Its address.
    pub group: IpAddr,
    /// The link at which.
    pub link: String,
    /// Only those who are listed are heard. Else all others are.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub only: bool,
    /// Senders.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub senders: Vec<IpAddr>,
}

/// Why a list of an image can't be right.
pub(super) fn wrong(list: &[Membership]) -> Option<String> {
    let bad = |one: &Membership| {
        let mixed = one.senders.iter().any(|sender| sender.is_ipv4() != one.group.is_ipv4());
        let name = one.link.is_empty() || one.link.len() >= libc::IFNAMSIZ || one.link.contains('\0');
        !one.group.is_multicast() || mixed || name || one.senders.len() > MOST
    };
    (list.len() > MOST || list.iter().any(bad)).then(|| "an impossible multicast group".into())
}

/// The groups that anybody has joined in the network namespace of process `init`, with the indices of the links.
///
/// # Errors
/// The kernel's.
pub(super) fn known(init: Pid) -> Result<Vec<(u32, IpAddr)>, Failure> {
    let read = |name: &str| {
        let path = format!("/proc/{init}/net/{name}");
        match std::fs::read_to_string(&path) {
            // A kernel without the protocol, or without groups.
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(String::new()),
            text => text.doing(|| format!("read {path}")),
        }
    };
    let mut found = four(&read("igmp")?);
    found.extend(read("igmp6")?.lines().filter_map(six));
    Ok(found)
}

/// A line for each link, with its index (`2 eth0 : 2 V3`), and behind it an indented one for each group (`010000E0 1 0:00000000 0`).
fn four(text: &str) -> Vec<(u32, IpAddr)> {
    let mut link = None;
    let mut found = Vec::new();
    for line in text.lines().skip(1) {
        let word = line.split_ascii_whitespace().next().unwrap_or_default();
        if line.starts_with(['\t', ' ']) {
            let group = u32::from_str_radix(word, 16).ok().map(|word| Ipv4Addr::from(word.to_ne_bytes()));
            found.extend(link.zip(group.map(IpAddr::from)));
        } else {
            link = word.parse().ok();
        }
    }
    found
}

/// `2    eth0            ff0200000000000000000000000000fb     1 0000000C 0`.
fn six(line: &str) -> Option<(u32, IpAddr)> {
    let mut words = line.split_ascii_whitespace();
    let link = words.next()?.parse().ok()?;
    let group = u128::from_str_radix(words.nth(1)?, 16).ok()?;
    Some((link, Ipv6Addr::from(group).into()))
}

/// Those of `known` that a socket has joined.
///
/// # Errors
/// The kernel's.
pub(super) fn joined(fd: BorrowedFd<'_>, known: &[(u32, IpAddr)]) -> Result<Vec<Membership>, Failure> {
    let mut found = Vec::new();
    for &(link, group) in known {
        let what = || format!("ask whether a socket has joined {group}");
        let mut room = USUAL;
        let answer = loop {
            let mut bytes = vec![0; SENDERS + room * ADDRESS];
            bytes[..4].copy_from_slice(&link.to_ne_bytes());
            put(&mut bytes[GROUP..], group);
            bytes[COUNT..SENDERS].copy_from_slice(&(room as u32).to_ne_bytes());
            match sockopt::get(fd, level(group), FILTER, &mut bytes) {
                // It has not; or it is a socket of the other family.
                Err(Errno::EADDRNOTAVAIL | Errno::ENOPROTOOPT | Errno::EOPNOTSUPP | Errno::EPROTO) => {
                    break None;
                }
                got => got.doing(what)?,
            };
            let count = word(&bytes, COUNT) as usize;
            if count <= room || count > MOST {
                break Some((bytes, count));
            }
            room = count;
        };
        let Some((bytes, count)) = answer else { continue };
        let senders = bytes[SENDERS..].chunks_exact(ADDRESS).take(count).filter_map(address).collect();
        let link = link_name(fd, link).doing(what)?;
        found.push(Membership { group, link, only: word(&bytes, MODE) == ONLY, senders });
    }
    Ok(found)
}

impl Membership {
    /// Joins.
    ///
    /// # Errors
    /// The kernel's: `ENODEV` when there is no such link, `ENOBUFS` when the network namespace allows fewer groups.
    pub(super) fn join(&self, fd: BorrowedFd<'_>) -> Result<(), Failure> {
        let Membership { group, link, only, senders } = self;
        let what = || format!("join {group} at {link}");
        let mut bytes = vec![0; SENDERS + senders.len() * ADDRESS];
        bytes[..4].copy_from_slice(&link_index(fd, link).doing(what)?.to_ne_bytes());
        put(&mut bytes[GROUP..], *group);
        sockopt::set(fd, level(*group), JOIN, &bytes[..MODE]).doing(what)?;
        if !only && senders.is_empty() {
            return Ok(());
        }
        let mode = if *only { ONLY } else { ALL_BUT };
        bytes[MODE..COUNT].copy_from_slice(&mode.to_ne_bytes());
        bytes[COUNT..SENDERS].copy_from_slice(&(senders.len() as u32).to_ne_bytes());
        for (place, sender) in bytes[SENDERS..].chunks_exact_mut(ADDRESS).zip(senders) {
            put(place, *sender);
        }
        sockopt::set(fd, level(*group), FILTER, &bytes).doing(|| format!("{}: choose whom to hear", what()))
    }
}

/// The address by which the job has chosen the link for what it sends to groups, if it has done it by an address: an index the
/// kernel does not tell.
pub(super) fn sends_by(fd: BorrowedFd<'_>) -> Option<Ipv4Addr> {
    let mut bytes = [0; 4];
    sockopt::get(fd, libc::IPPROTO_IP, libc::IP_MULTICAST_IF, &mut bytes).ok()?;
    Some(Ipv4Addr::from(bytes)).filter(|address| !address.is_unspecified())
}

/// Chooses it.
///
/// # Errors
/// The kernel's: `EADDRNOTAVAIL`.
pub(super) fn send_by(fd: BorrowedFd<'_>, address: Ipv4Addr) -> Result<(), Failure> {
    sockopt::set(fd, libc::IPPROTO_IP, libc::IP_MULTICAST_IF, &address.octets())
        .doing(|| format!("choose {address} as the address for what a socket sends to groups"))
}

fn level(group: IpAddr) -> i32 {
    if group.is_ipv4() { libc::IPPROTO_IP } else { libc::IPPROTO_IPV6 }
}

fn word(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..).and_then(|bytes| bytes.first_chunk()).map_or(0, |word| u32::from_ne_bytes(*word))
}

/// An address as `struct sockaddr_in` or `sockaddr_in6` has it.
fn put(place: &mut [u8], ip: IpAddr) {
    let (family, at, bytes) = match ip {
        IpAddr::V4(ip) => (libc::AF_INET, 4, ip.octets().to_vec()),
        IpAddr::V6(ip) => (libc::AF_INET6, 8, ip.octets().to_vec()),
    };
    place[..2].copy_from_slice(&(family as u16).to_ne_bytes());
    place[at..at + bytes.len()].copy_from_slice(&bytes);
}

fn address(place: &[u8]) -> Option<IpAddr> {
    match i32::from(u16::from_ne_bytes(*place.first_chunk()?)) {
        libc::AF_INET => Some(Ipv4Addr::from(*place.get(4..)?.first_chunk::<4>()?).into()),
        libc::AF_INET6 => Some(Ipv6Addr::from(*place.get(8..)?.first_chunk::<16>()?).into()),
        _ => None,
    }
}

/// A link's name in the network namespace of the socket.
fn link_name(fd: BorrowedFd<'_>, index: u32) -> Result<String, Errno> {
    // SAFETY: all zeroes is a request without a name.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_ifru.ifru_ifindex = index.cast_signed();
    // SAFETY: the kernel reads and writes one ifreq.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::SIOCGIFNAME as _, &raw mut request) }.into())?;
    let name = request.ifr_name.map(libc::c_char::cast_unsigned);
    let name = name.split(|&byte| byte == 0).next().unwrap_or_default();
    Ok(String::from_utf8_lossy(name).into_owned())
}

fn link_index(fd: BorrowedFd<'_>, name: &str) -> Result<u32, Errno> {
    // SAFETY: as above.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (place, byte) in request.ifr_name.iter_mut().take(libc::IFNAMSIZ - 1).zip(name.bytes()) {
        *place = byte.cast_signed();
    }
    // SAFETY: as above.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::SIOCGIFINDEX as _, &raw mut request) }.into())?;
    // SAFETY: the kernel has stored an index.
    Ok(unsafe { request.ifr_ifru.ifru_ifindex }.cast_unsigned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_the_kernel_are_understood() {
        let text = "Idx\tDevice    : Count Querier\tGroup    Users Timer\tReporter\n1\tlo        :     1      V3\n\
            \t\t\t\t010000E0     1 0:00000000\t\t0\n12\teth0      :     2      V3\n\t\t\t\tFB0000E0     1 0:00000000\t\t0\n";
        let found = four(text);
        assert_eq!(found, [(1, "224.0.0.1".parse().unwrap()), (12, "224.0.0.251".parse().unwrap())]);
        let line = "2    eth0            ff0200000000000000000000000000fb     1 0000000C 0";
        assert_eq!(six(line), Some((2, "ff02::fb".parse().unwrap())));
        assert_eq!((four(""), six("")), (vec![], None));
    }

    #[test]
    fn what_no_kernel_tells_is_refused() {
        let good = Membership {
            group: "239.1.2.3".parse().unwrap(),
            link: "eth0".into(),
            only: true,
            senders: vec!["10.0.0.1".parse().unwrap()],
        };
        assert_eq!(wrong(std::slice::from_ref(&good)), None);
        for bad in [
            Membership { group: "10.0.0.1".parse().unwrap(), ..good.clone() },
            Membership { link: String::new(), ..good.clone() },
            Membership { link: "a-name-that-is-too-long".into(), ..good.clone() },
            Membership { senders: vec!["::1".parse().unwrap()], ..good.clone() },
        ] {
            assert!(wrong(&[bad]).is_some());
        }
    }
}

//! Sockets that send and receive datagrams: UDP, UDP-Lite, ICMP, raw.
//!
//! Datagrams that have come and were not read are read without being taken away, and sent again in the names of those
//! who have sent them, when the socket is there again.

use super::forge::Forger;
use super::tcp::ready;
use super::{Inet, Phase, address};
use crate::fd::Trouble;
use crate::fd::capture::Job;
use crate::fd::socket::Class;
use crate::sys::{Undo, sockopt};
use crate::{Doing, Error, Failure};
use nix::errno::Errno;
use rustix::event::PollFlags;
use rustix::net::RecvFlags;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// The longest datagram.
const LONGEST: usize = 1 << 16;
/// The most datagrams of one socket: none of them is shorter for the kernel than 256 bytes.
const MOST: usize = 1 << 22;
/// `linux/in.h` and `linux/icmpv6.h`: `SOL_RAW`, `ICMP_FILTER`, `SOL_ICMPV6`, `ICMPV6_FILTER`.
const FILTER_4: (i32, i32, usize) = (255, 1, 4);
const FILTER_6: (i32, i32, usize) = (58, 1, 32);

type Received = (Vec<u8>, Vec<(SocketAddr, u32)>);

impl Job<'_> {
    pub(super) fn datagrams(
        &mut self,
        node: usize,
        fd: &OwnedFd,
        class: &Class,
        name: &str,
    ) -> Result<Phase, Trouble> {
        let peer = address::peer(fd.as_fd())?;
        let name = match peer {
            Some(peer) => format!("{name} connected to {peer}"),
            None => name.to_owned(),
        };
        let number = |level, option| sockopt::number(fd, level, option).unwrap_or(0);
        let udp = class.kind == libc::SOCK_DGRAM
            && matches!(class.protocol, libc::IPPROTO_UDP | libc::IPPROTO_UDPLITE);
        // UDP_CORK
        if udp && number(libc::IPPROTO_UDP, 1) != 0 {
            let why = "it is corked: nobody can read the datagram that it is putting together";
            return Err(Trouble::refused(name, why));
        }
        let filter = filter_of(class).and_then(|(level, option, len)| {
            let mut bytes = vec![0; len];
            sockopt::get(fd, level, option, &mut bytes).ok()?;
            let words: Vec<u32> = bytes.as_chunks().0.iter().map(|word| u32::from_ne_bytes(*word)).collect();
            words.iter().any(|word| *word != 0).then_some(words)
        });
        if self.running() || !ready(fd.as_fd())?.contains(PollFlags::IN) {
            return Ok(Phase::Datagrams { peer, content: None, received: Vec::new(), filter });
        }
        let (content, received) = if class.protocol == libc::IPPROTO_UDP && udp {
            queue(fd.as_fd()).doing(|| format!("read what waits in a {name}"))?
        } else if !waits(fd) {
            Received::default()
        } else {
            let why = "packets have come that nobody has read, and they can't be sent again";
            return Err(Trouble::refused(name, why));
        };
        let local = address::local(fd.as_fd())?;
        let wild = local.is_none_or(|local| local.ip().is_unspecified());
        let told = ["ip-pktinfo", "ip-recvorigdstaddr", "ipv6-recvpktinfo", "ipv6-recvorigdstaddr"];
        let numbers = super::options::read(fd.as_fd(), class.protocol);
        if wild
            && !received.is_empty()
            && told.iter().any(|name| numbers.get(*name).is_some_and(|on| *on != 0))
        {
            let why = "datagrams have come that nobody has read, and it asks at which address they came";
            return Err(Trouble::refused(name, why));
        }
        let content = self.keep(node, "received", content);
        Ok(Phase::Datagrams { peer, content, received, filter })
    }
}

/// Something has come: one that was shut down says so too.
fn waits(fd: &OwnedFd) -> bool {
    rustix::net::recv(fd, &mut [0_u8; 1][..], RecvFlags::PEEK | RecvFlags::DONTWAIT).is_ok()
}

/// All that waits, one behind the other.
fn queue(fd: BorrowedFd<'_>) -> Result<Received, Errno> {
    let level = libc::SOL_SOCKET;
    let mut undo = Undo::default();
    undo.note(fd, level, libc::SO_PEEK_OFF)?;
    sockopt::set_number(fd, level, libc::SO_PEEK_OFF, -1)?;
    let head = peek(fd, &mut vec![0; LONGEST]);
    sockopt::set_number(fd, level, libc::SO_PEEK_OFF, 0)?;
    let read = peek_all(fd);
    undo.put_back();
    let (bytes, mut list) = read?;
    // By an offset, an empty one is not found again by whoever has seen it.
    if let Some((0, from)) = head?
        && list.first().is_none_or(|first| first.1 != 0)
    {
        list.insert(0, (from, 0));
    }
    Ok((bytes, list))
}

fn peek_all(fd: BorrowedFd<'_>) -> Result<Received, Errno> {
    let mut all = Received::default();
    let mut buffer = vec![0; LONGEST];
    // The offset moves on with what is read.
    while let Some((bytes, from)) = peek(fd, &mut buffer)? {
        all.0.extend(buffer.get(..bytes).unwrap_or_default());
        all.1.push((from, bytes as u32));
        if all.1.len() > MOST {
            return Err(Errno::E2BIG);
        }
    }
    Ok(all)
}

/// The next one, and from whom it is.
fn peek(fd: BorrowedFd<'_>, buffer: &mut [u8]) -> Result<Option<(usize, SocketAddr)>, Errno> {
    match rustix::net::recvfrom(fd, buffer, RecvFlags::PEEK | RecvFlags::DONTWAIT) {
        Ok((bytes, _, Some(from))) => {
            let from = SocketAddr::try_from(from).map_err(|_| Errno::EAFNOSUPPORT)?;
            Ok(Some((bytes, from)))
        }
        Ok((_, _, None)) => Err(Errno::EDESTADDRREQ),
        Err(rustix::io::Errno::AGAIN) => Ok(None),
        Err(errno) => Err(Errno::from_raw(errno.raw_os_error())),
    }
}

/// Lets all of it come again.
pub(super) fn refill(
    inet: &Inet,
    content: &[u8],
    received: &[(SocketAddr, u32)],
    forger: &Forger,
) -> Result<(), Error> {
    let Some(local) = inet.local else { return Ok(()) };
    let mut rest = content;
    for &(from, len) in received {
        let Some((bytes, tail)) = rest.split_at_checked(len as usize) else {
            return Err(Error::Damaged("files.json: datagrams that are longer than their file".into()));
        };
        rest = tail;
        let mut to = address::reachable(local);
        if from.ip().to_canonical().is_ipv4() && !to.ip().to_canonical().is_ipv4() {
            // A socket for both families.
            to = SocketAddr::new(std::net::Ipv4Addr::LOCALHOST.into(), to.port());
        }
        forger.datagram(from, to, bytes)?;
    }
    Ok(())
}

fn filter_of(class: &Class) -> Option<(i32, i32, usize)> {
    match (class.domain, class.protocol) {
        (libc::AF_INET, libc::IPPROTO_ICMP) => Some(FILTER_4),
        (libc::AF_INET6, libc::IPPROTO_ICMPV6) => Some(FILTER_6),
        _ => None,
    }
}

/// Sets the filter of a raw socket.
pub(super) fn filter(fd: BorrowedFd<'_>, class: &Class, phase: &Phase) -> Result<(), Failure> {
    let Phase::Datagrams { filter: Some(filter), .. } = phase else { return Ok(()) };
    let bytes: Vec<u8> = filter.iter().flat_map(|word| word.to_ne_bytes()).collect();
    match filter_of(class) {
        Some((level, option, len)) if bytes.len() == len => {
            sockopt::set(fd, level, option, &bytes).doing(|| format!("set the filter of a {class}"))
        }
        _ => Ok(()),
    }
}

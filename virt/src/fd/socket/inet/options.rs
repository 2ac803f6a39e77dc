//! Options of the internet protocols that are numbers: all of them by name, as the job's socket has them. A new socket is
//! given those that differ from its own, so what a host's settings say where nobody has said anything else is the same
//! after a restart on the same host.

use crate::sys::sockopt;
use crate::{Doing, Failure};
use libc::{IPPROTO_IP, IPPROTO_IPV6, IPPROTO_TCP, IPPROTO_UDP};
use nix::errno::Errno;
use std::collections::BTreeMap;
use std::os::fd::BorrowedFd;

/// Options by name.
pub type Numbers = BTreeMap<String, i32>;

/// When an option is set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// On a new socket.
    First,
    /// On one that is connected or listens, if it is to.
    Last,
}

type Known = (&'static str, i32, i32, When);

use When::{First, Last};

/// `linux/in.h`, `linux/in6.h`, `linux/tcp.h`, `linux/udp.h`. Those that libc has no name for have their number here.
const KNOWN: &[Known] = &[
    ("ip-tos", IPPROTO_IP, libc::IP_TOS, First),
    ("ip-ttl", IPPROTO_IP, libc::IP_TTL, First),
    ("ip-hdrincl", IPPROTO_IP, libc::IP_HDRINCL, First),
    ("ip-recvopts", IPPROTO_IP, libc::IP_RECVOPTS, First),
    ("ip-retopts", IPPROTO_IP, libc::IP_RETOPTS, First),
    ("ip-pktinfo", IPPROTO_IP, libc::IP_PKTINFO, First),
    ("ip-mtu-discover", IPPROTO_IP, libc::IP_MTU_DISCOVER, First),
    ("ip-recverr", IPPROTO_IP, libc::IP_RECVERR, First),
    ("ip-recvttl", IPPROTO_IP, libc::IP_RECVTTL, First),
    ("ip-recvtos", IPPROTO_IP, libc::IP_RECVTOS, First),
    ("ip-freebind", IPPROTO_IP, libc::IP_FREEBIND, First),
    ("ip-passsec", IPPROTO_IP, libc::IP_PASSSEC, First),
    ("ip-transparent", IPPROTO_IP, libc::IP_TRANSPARENT, First),
    ("ip-recvorigdstaddr", IPPROTO_IP, 20, First),
    ("ip-minttl", IPPROTO_IP, libc::IP_MINTTL, First),
    ("ip-nodefrag", IPPROTO_IP, libc::IP_NODEFRAG, First),
    ("ip-checksum", IPPROTO_IP, 23, First),
    ("ip-bind-address-no-port", IPPROTO_IP, libc::IP_BIND_ADDRESS_NO_PORT, First),
    ("ip-recvfragsize", IPPROTO_IP, 25, First),
    ("ip-recverr-rfc4884", IPPROTO_IP, 26, First),
    ("ip-multicast-ttl", IPPROTO_IP, libc::IP_MULTICAST_TTL, First),
    ("ip-multicast-loop", IPPROTO_IP, libc::IP_MULTICAST_LOOP, First),
    ("ip-multicast-all", IPPROTO_IP, libc::IP_MULTICAST_ALL, First),
    ("ip-unicast-if", IPPROTO_IP, libc::IP_UNICAST_IF, First),
    ("ip-local-port-range", IPPROTO_IP, 51, First),
    ("ipv6-v6only", IPPROTO_IPV6, libc::IPV6_V6ONLY, First),
    ("ipv6-checksum", IPPROTO_IPV6, libc::IPV6_CHECKSUM, First),
    ("ipv6-unicast-hops", IPPROTO_IPV6, libc::IPV6_UNICAST_HOPS, First),
    ("ipv6-multicast-if", IPPROTO_IPV6, libc::IPV6_MULTICAST_IF, First),
    ("ipv6-multicast-hops", IPPROTO_IPV6, libc::IPV6_MULTICAST_HOPS, First),
    ("ipv6-multicast-loop", IPPROTO_IPV6, libc::IPV6_MULTICAST_LOOP, First),
    ("ipv6-multicast-all", IPPROTO_IPV6, 29, First),
    ("ipv6-mtu-discover", IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, First),
    ("ipv6-recverr", IPPROTO_IPV6, libc::IPV6_RECVERR, First),
    ("ipv6-recverr-rfc4884", IPPROTO_IPV6, 31, First),
    ("ipv6-flowinfo-send", IPPROTO_IPV6, 33, First),
    ("ipv6-recvpktinfo", IPPROTO_IPV6, libc::IPV6_RECVPKTINFO, First),
    ("ipv6-recvhoplimit", IPPROTO_IPV6, libc::IPV6_RECVHOPLIMIT, First),
    ("ipv6-recvhopopts", IPPROTO_IPV6, libc::IPV6_RECVHOPOPTS, First),
    ("ipv6-recvrthdr", IPPROTO_IPV6, libc::IPV6_RECVRTHDR, First),
    ("ipv6-recvdstopts", IPPROTO_IPV6, libc::IPV6_RECVDSTOPTS, First),
    ("ipv6-recvpathmtu", IPPROTO_IPV6, libc::IPV6_RECVPATHMTU, First),
    ("ipv6-dontfrag", IPPROTO_IPV6, libc::IPV6_DONTFRAG, First),
    ("ipv6-recvtclass", IPPROTO_IPV6, libc::IPV6_RECVTCLASS, First),
    ("ipv6-tclass", IPPROTO_IPV6, libc::IPV6_TCLASS, First),
    ("ipv6-autoflowlabel", IPPROTO_IPV6, 70, First),
    ("ipv6-addr-preferences", IPPROTO_IPV6, libc::IPV6_ADDR_PREFERENCES, First),
    ("ipv6-minhopcount", IPPROTO_IPV6, libc::IPV6_MINHOPCOUNT, First),
    ("ipv6-recvorigdstaddr", IPPROTO_IPV6, 74, First),
    ("ipv6-transparent", IPPROTO_IPV6, libc::IPV6_TRANSPARENT, First),
    ("ipv6-unicast-if", IPPROTO_IPV6, libc::IPV6_UNICAST_IF, First),
    ("ipv6-recvfragsize", IPPROTO_IPV6, 77, First),
    ("ipv6-freebind", IPPROTO_IPV6, 78, First),
    ("tcp-nodelay", IPPROTO_TCP, libc::TCP_NODELAY, Last),
    ("tcp-cork", IPPROTO_TCP, libc::TCP_CORK, Last),
    ("tcp-keepidle", IPPROTO_TCP, libc::TCP_KEEPIDLE, First),
    ("tcp-keepintvl", IPPROTO_TCP, libc::TCP_KEEPINTVL, First),
    ("tcp-keepcnt", IPPROTO_TCP, libc::TCP_KEEPCNT, First),
    ("tcp-maxseg", IPPROTO_TCP, libc::TCP_MAXSEG, First),
    ("tcp-syncnt", IPPROTO_TCP, libc::TCP_SYNCNT, First),
    ("tcp-linger2", IPPROTO_TCP, libc::TCP_LINGER2, First),
    ("tcp-defer-accept", IPPROTO_TCP, libc::TCP_DEFER_ACCEPT, First),
    ("tcp-quickack", IPPROTO_TCP, libc::TCP_QUICKACK, Last),
    ("tcp-thin-linear-timeouts", IPPROTO_TCP, libc::TCP_THIN_LINEAR_TIMEOUTS, First),
    ("tcp-user-timeout", IPPROTO_TCP, libc::TCP_USER_TIMEOUT, First),
    ("tcp-fastopen", IPPROTO_TCP, libc::TCP_FASTOPEN, First),
    ("tcp-notsent-lowat", IPPROTO_TCP, libc::TCP_NOTSENT_LOWAT, First),
    ("tcp-save-syn", IPPROTO_TCP, libc::TCP_SAVE_SYN, First),
    ("tcp-fastopen-connect", IPPROTO_TCP, libc::TCP_FASTOPEN_CONNECT, First),
    ("tcp-fastopen-no-cookie", IPPROTO_TCP, libc::TCP_FASTOPEN_NO_COOKIE, First),
    ("tcp-inq", IPPROTO_TCP, libc::TCP_INQ, Last),
    ("tcp-tx-delay", IPPROTO_TCP, 37, Last),
    ("tcp-window-clamp", IPPROTO_TCP, libc::TCP_WINDOW_CLAMP, First),
    ("tcp-rto-max-ms", IPPROTO_TCP, 44, First),
    ("tcp-rto-min-us", IPPROTO_TCP, 45, First),
    ("tcp-delack-max-us", IPPROTO_TCP, 46, First),
    ("udp-cork", IPPROTO_UDP, 1, Last),
    ("udp-encap", IPPROTO_UDP, 100, First),
    ("udp-no-check6-tx", IPPROTO_UDP, 101, First),
    ("udp-no-check6-rx", IPPROTO_UDP, 102, First),
    ("udp-segment", IPPROTO_UDP, 103, First),
    ("udp-gro", IPPROTO_UDP, 104, First),
    ("udplite-send-cscov", libc::IPPROTO_UDPLITE, 10, First),
    ("udplite-recv-cscov", libc::IPPROTO_UDPLITE, 11, First),
];

/// Of those that older kernels do not have, what a new socket has.
const USUAL: [(&str, i32); 3] =
    [("tcp-rto-max-ms", 120_000), ("tcp-rto-min-us", 200_000), ("tcp-delack-max-us", 200_000)];

/// Reads all options that a socket of this protocol has; some are there for some families and types only.
pub fn read(fd: BorrowedFd<'_>, protocol: i32) -> Numbers {
    let mut numbers = Numbers::new();
    for (name, level, option, _) in known(protocol) {
        // A connection has things to say that a socket is told only before it is one.
        if let Ok(value) = sockopt::number(fd, *level, *option)
            && !USUAL.contains(&(*name, value))
        {
            numbers.insert((*name).to_owned(), value);
        }
    }
    numbers
}

/// Sets the options that a socket has not yet as they are to be.
///
/// # Errors
/// The kernel's, by the option's name.
pub fn set(fd: BorrowedFd<'_>, protocol: i32, numbers: &Numbers, when: When) -> Result<(), Failure> {
    for (name, level, option, _) in known(protocol).filter(|known| known.3 == when) {
        let Some(&wanted) = numbers.get(*name) else { continue };
        match sockopt::number(fd, *level, *option) {
            Ok(is) if is == wanted => {}
            // An older kernel, which does not have it, and does as if it were off.
            Err(Errno::ENOPROTOOPT) if wanted == 0 => {}
            _ => sockopt::set_number(fd, *level, *option, wanted)
                .doing(|| format!("set the option {name} of a socket to {wanted}"))?,
        }
    }
    Ok(())
}

fn known(protocol: i32) -> impl Iterator<Item = &'static Known> {
    // A connection that was accepted has some of what only datagrams can be given.
    let fits = move |name: &str| protocol != IPPROTO_TCP || !name.contains("-multicast-");
    let of = move |level: i32| matches!(level, IPPROTO_IP | IPPROTO_IPV6) || level == protocol;
    KNOWN.iter().filter(move |known| of(known.1) && fits(known.0))
}

/// The option that no image may name because there is none.
pub fn unknown(numbers: &Numbers) -> Option<&str> {
    numbers.keys().find(|name| !KNOWN.iter().any(|known| known.0 == name.as_str())).map(String::as_str)
}

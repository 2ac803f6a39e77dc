//! Addresses of internet sockets.

use crate::namespace::{Kind, Namespace};
use crate::sys::sockopt;
use crate::{Doing, Failure};
use nix::errno::Errno;
use nix::unistd::Pid;
use rustix::net::{AddressFamily, SocketAddrAny, SocketFlags, SocketType, socket_with};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::BorrowedFd;

/// The address that a socket is bound to; None when it has no port.
///
/// # Errors
/// The kernel's.
pub fn local(fd: BorrowedFd<'_>) -> Result<Option<SocketAddr>, Failure> {
    let address = rustix::net::getsockname(fd).doing(|| "ask for a socket's address")?;
    Ok(plain(&address))
}

/// The address that a socket is connected to.
///
/// # Errors
/// The kernel's.
pub fn peer(fd: BorrowedFd<'_>) -> Result<Option<SocketAddr>, Failure> {
    match rustix::net::getpeername(fd) {
        Err(rustix::io::Errno::NOTCONN) => Ok(None),
        Err(errno) => Err(Errno::from_raw(errno.raw_os_error())).doing(|| "ask for a socket's peer"),
        Ok(address) => Ok(address.as_ref().and_then(plain)),
    }
}

/// The address that a socket was connected to before the connection ended (SO_PEERNAME).
pub fn former_peer(fd: BorrowedFd<'_>) -> Option<SocketAddr> {
    // struct sockaddr_in, struct sockaddr_in6: family, port, then the address, of IPv6 behind the flow.
    let mut bytes = [0; 28];
    // The kernel refuses to tell less than it is asked for.
    let ask = |bytes: &mut [u8]| sockopt::get(fd, libc::SOL_SOCKET, libc::SO_PEERNAME, bytes).ok();
    let len = ask(&mut bytes).or_else(|| ask(bytes.get_mut(..16)?))?;
    let family = i32::from(u16::from_ne_bytes([bytes[0], bytes[1]]));
    let port = u16::from_be_bytes([bytes[2], bytes[3]]);
    let ip: IpAddr = match family {
        libc::AF_INET => Ipv4Addr::new(bytes[4], bytes[5], bytes[6], bytes[7]).into(),
        libc::AF_INET6 if len == bytes.len() => Ipv6Addr::from(*bytes.get(8..)?.first_chunk::<16>()?).into(),
        _ => return None,
    };
    Some(SocketAddr::new(ip, port))
}

/// The network namespace of process `init` does not have the address: nobody could bind to it without leave.
///
/// # Errors
/// The kernel's.
pub fn is_foreign(address: SocketAddr, init: Pid) -> Result<bool, Failure> {
    if address.ip().is_unspecified() || address.ip().is_loopback() {
        return Ok(false);
    }
    let what = || format!("ask whether {} is an address of the job", address.ip());
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let net = Namespace::of(init, Kind::Net)?;
    let abroad = net.as_ref().map(Namespace::enter).transpose()?;
    let asker = socket_with(family, SocketType::DGRAM, SocketFlags::CLOEXEC, None).doing(what)?;
    drop(abroad);
    let mut any_port = address;
    any_port.set_port(0);
    Ok(rustix::net::bind(&asker, &any_port) == Err(rustix::io::Errno::ADDRNOTAVAIL))
}

fn plain(address: &SocketAddrAny) -> Option<SocketAddr> {
    SocketAddr::try_from(address.clone()).ok()
}

/// An IPv4 address in IPv6 clothes as what it is, and without what only routing needs.
pub fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// Somewhere that a packet for a socket bound to this address can be sent to.
pub fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    match address {
        SocketAddr::V6(mut six) => match ip {
            IpAddr::V6(ip) => {
                six.set_ip(ip);
                six.into()
            }
            ip => SocketAddr::new(ip, six.port()),
        },
        SocketAddr::V4(four) => SocketAddr::new(ip, four.port()),
    }
}

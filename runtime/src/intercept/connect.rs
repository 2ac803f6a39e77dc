//! connect(2) to an address that is elsewhere on this host.

use super::call::{Answer, Call, errno};
use super::listen::lock;
use super::names::Name;
use super::notes::Note;
use super::pending::Step;
use super::{Claims, Route};
use nix::errno::Errno;
use rustix::net::sockopt;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketType};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;

/// The size of `struct sockaddr_storage` (sockaddr(3type)).
const LARGEST: usize = 128;

/// Connects the task's socket to where the address is. The socket stays in its own network namespace; the path of a Unix
/// socket is one of the host.
pub fn answer(call: &mut Call<'_>, claims: &Claims) -> Answer {
    let [number, address, length, ..] = call.args;
    let Ok(bytes) = call.read(address, (length as usize).min(LARGEST)) else { return Answer::GoOn };
    let Some(name) = Name::read(&bytes) else { return Answer::GoOn };
    let route = lock(&claims.routes).iter().find(|route| route.to == name).cloned();
    let Some(route) = route else { return Answer::GoOn };
    let socket = match call.descriptor(number) {
        Ok(socket) => socket,
        Err(Errno::EPERM) => return Answer::Failed(Errno::EPERM),
        // It is no socket, or the task is gone: the kernel knows the right error.
        Err(_) => return Answer::GoOn,
    };
    if matches!(name, Name::Inet(_)) && sockopt::socket_type(&socket) != Ok(SocketType::STREAM) {
        return Answer::GoOn;
    }
    log::debug!("connect: {} is {} here", route.to, route.real);
    // Of a socket that does not wait (`EINPROGRESS`) the connection is made all the same.
    // Somebody else had begun, and was killed.
    let again = call.slot.step() == Step::Doing;
    if rustix::net::getpeername(&socket).is_err() {
        call.slot.begin();
        if let Some(given) = given(claims, &name, &socket) {
            // Of this connection the plugin was the maker.
            return call.replace(number, &given).map_or_else(Answer::Failed, |()| Answer::Done(0));
        }
    }
    let done = match connect(&socket, &route.real) {
        Err(Errno::EISCONN) if again => Ok(()),
        Err(Errno::EALREADY) if again => Err(Errno::EINPROGRESS),
        done => done,
    };
    if matches!(done, Ok(()) | Err(Errno::EINPROGRESS))
        && ambiguous(claims, &route)
        && let Ok(cookie) = sockopt::socket_cookie(&socket)
    {
        lock(&claims.used).insert(cookie, name.clone());
        claims.notes.add(&Note::Peer { cookie, name });
    }
    done.map_or_else(Answer::Failed, |()| Answer::Done(0))
}

/// A connection that a plugin has made already, for a socket of the same kind; once.
fn given(claims: &Claims, name: &Name, socket: &OwnedFd) -> Option<OwnedFd> {
    let mut all = lock(&claims.given);
    let kind = |socket: &OwnedFd| (sockopt::socket_domain(socket), sockopt::socket_type(socket));
    if kind(all.get(name)?) != kind(socket) {
        return None;
    }
    all.remove(name)
}

/// Other names lead to the same place.
fn ambiguous(claims: &Claims, route: &Route) -> bool {
    lock(&claims.routes).iter().any(|other| other.real == route.real && other.to != route.to)
}

fn connect(socket: &OwnedFd, real: &Name) -> Result<(), Errno> {
    let done = match real {
        Name::Inet(address) => {
            let v6 = sockopt::socket_domain(socket) == Ok(AddressFamily::INET6);
            let ip = match address.ip() {
                IpAddr::V4(ip) if v6 => ip.to_ipv6_mapped().into(),
                ip => ip,
            };
            rustix::net::connect(socket, &SocketAddr::new(ip, address.port()))
        }
        Name::Path(path) => {
            SocketAddrUnix::new(&path[..]).and_then(|path| rustix::net::connect(socket, &path))
        }
        Name::Abstract(name) => {
            SocketAddrUnix::new_abstract_name(name).and_then(|name| rustix::net::connect(socket, &name))
        }
    };
    done.map_err(errno)
}

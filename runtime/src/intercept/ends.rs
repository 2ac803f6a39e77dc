//! The names of the ends of a connection that leads elsewhere than its job thinks: getpeername(2), and, when a restart has made it
//! anew, perhaps from another address, getsockname(2).

use super::Claims;
use super::call::{Answer, Call, errno};
use super::listen::lock;
use super::names::Name;
use nix::errno::Errno;
use rustix::net::sockopt;
use std::os::fd::OwnedFd;

/// Says the address of the peer that the task knows.
pub fn peer(call: &mut Call<'_>, claims: &Claims) -> Answer {
    // For all errors the kernel has the right number.
    let Ok(socket) = call.descriptor(call.args[0]) else { return Answer::GoOn };
    known(&socket, claims).map_or(Answer::GoOn, |name| answer(call, &socket, &name))
}

/// Says its own address that the task knows.
pub fn local(call: &mut Call<'_>, claims: &Claims) -> Answer {
    if lock(&claims.locals).is_empty() {
        return Answer::GoOn;
    }
    let Ok(socket) = call.descriptor(call.args[0]) else { return Answer::GoOn };
    let Ok(cookie) = sockopt::socket_cookie(&socket) else { return Answer::GoOn };
    let name = lock(&claims.locals).get(&cookie).cloned();
    name.map_or(Answer::GoOn, |name| answer(call, &socket, &name))
}

fn answer(call: &Call<'_>, socket: &OwnedFd, name: &Name) -> Answer {
    let [_, address, length, ..] = call.args;
    let Ok(family) = sockopt::socket_domain(socket) else { return Answer::GoOn };
    let Some(bytes) = name.write(family.as_raw().into()) else { return Answer::GoOn };
    match say(call, address, length, &bytes) {
        Ok(()) => Answer::Done(0),
        Err(e) => e.into(),
    }
}

fn known(socket: &OwnedFd, claims: &Claims) -> Option<Name> {
    let peer = rustix::net::getpeername(socket).map_err(errno).ok()??;
    // SAFETY: `peer` is a socket address of `addr_len` initialised bytes, which are read while it lives.
    let bytes = unsafe { std::slice::from_raw_parts(peer.as_ptr().cast::<u8>(), peer.addr_len() as usize) };
    let real = Name::read(bytes)?;
    let routes = lock(&claims.routes);
    let mut found = routes.iter().filter(|route| route.real == real);
    let first = found.next()?;
    if found.next().is_none() {
        return Some(first.to.clone());
    }
    let used =
        sockopt::socket_cookie(socket).ok().and_then(|cookie| lock(&claims.used).get(&cookie).cloned());
    used.or_else(|| Some(first.to.clone()))
}

/// As the kernel does: as many bytes as there is room for, and the length that there would be.
fn say(call: &Call<'_>, address: u64, length: u64, bytes: &[u8]) -> Result<(), Errno> {
    let room: [u8; 4] = call.read(length, 4)?.try_into().map_err(|_| Errno::EFAULT)?;
    let room = usize::try_from(i32::from_ne_bytes(room)).map_err(|_| Errno::EINVAL)?;
    call.write(address, &bytes[..bytes.len().min(room)])?;
    call.write(length, &(bytes.len() as u32).to_ne_bytes())
}

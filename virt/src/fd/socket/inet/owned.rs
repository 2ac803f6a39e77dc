//! Connections to somebody who answers for the other end, and who may be somebody else, elsewhere, after a restart.
//!
//! Such a connection is made anew, to whom the restart says; the job keeps the descriptor and its options. What the old
//! peer had sent and the job had not read is delivered first: the new connection is taken up (repair mode), moved back in
//! its numbers by as many bytes, and put down again with those bytes in its queue, in front of everything that comes from
//! the new peer. What the job had sent and nobody had acknowledged is sent first.

use super::begun::Begun;
use super::connection::Connection;
use super::options::{self, When};
use super::repair::{self, Queues};
use super::{Phase, address, reading};
use crate::fd::making::Making;
use crate::image::Bytes;
use crate::namespace::{Kind, Namespace};
use crate::restore::{Options, Peer};
use crate::sys::sockopt;
use crate::{Doing, Error, Failure};
use nix::errno::Errno;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::Shutdown;
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// How long somebody may take to answer, in seconds.
const PATIENCE: i64 = 10;
/// A filter that lets nothing of any packet through: BPF_RET | BPF_K, 0.
pub(super) const NOTHING: [u64; 1] = [6];

/// A connection that was made anew, and what the job knows it by.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Renewed {
    /// The socket's cookie (SO_COOKIE): nothing else of a socket is the same for all who have a descriptor of it.
    pub cookie: u64,
    /// The name of whom it is connected to.
    pub name: Bytes,
    /// The address of its own end, on the host where the job made the connection.
    pub local: SocketAddr,
}

/// Connects to whom the restart says.
pub(super) fn connect(
    begun: &Begun<'_>,
    old: &Connection,
    queues: &Queues,
    making: &mut Making<'_>,
    wanted: &Options,
) -> Result<Renewed, Error> {
    let Phase::Connected { name: Some(name), .. } = &begun.inet.phase else {
        return Err(Error::Damaged("files.json: an owned connection without a name".into()));
    };
    let what = || format!("connect to {name}");
    let given;
    let fd = match wanted.sockets.get(name) {
        Some(Peer::Tcp(peer)) => {
            dial(begun.fd(), *peer).doing(|| format!("connect to {name}, which is {peer} now"))?;
            begun.fd()
        }
        Some(Peer::Given(socket)) => {
            let there = making.worker.give(socket.as_fd())?;
            let to = making.at(begun.id);
            making.put_at(there.into(), to);
            making.run()?;
            given = making.worker.pidfd_getfd(to)?;
            given.as_fd()
        }
        Some(Peer::Unix(_)) => return Err(Failure::new(what(), Errno::EAFNOSUPPORT).into()),
        None => return Err(Failure::new(what(), Errno::EDESTADDRREQ).into()),
    };
    if !queues.receive.is_empty() {
        prepend(begun, fd, &queues.receive, making)?;
    }
    options::set(fd, libc::IPPROTO_TCP, &begun.inet.numbers, When::Last)?;
    repair::make_room(fd, &Queues { receive: Vec::new(), send: queues.send.clone() }).doing(what)?;
    repair::fill(fd, &queues.send).doing(what)?;
    if old.state.sent_end() {
        rustix::net::shutdown(fd, Shutdown::Write).doing(what)?;
    }
    let cookie = rustix::net::sockopt::socket_cookie(fd).doing(what)?;
    Ok(Renewed { cookie, name: name.clone(), local: old.local })
}

/// Connects a socket that does not block, and waits for the answer.
pub(super) fn dial(fd: BorrowedFd<'_>, peer: SocketAddr) -> Result<(), Errno> {
    let number = |errno: rustix::io::Errno| Errno::from_raw(errno.raw_os_error());
    match rustix::net::connect(fd, &peer) {
        Err(rustix::io::Errno::INPROGRESS) => {}
        connected => return connected.map_err(number),
    }
    let mut fds = [PollFd::from_borrowed_fd(fd, PollFlags::OUT)];
    let limit = Timespec { tv_sec: PATIENCE, tv_nsec: 0 };
    loop {
        match poll(&mut fds, Some(&limit)) {
            Ok(0) => return Err(Errno::ETIMEDOUT),
            Ok(_) => break,
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(number(errno)),
        }
    }
    match sockopt::number(fd, libc::SOL_SOCKET, libc::SO_ERROR)? {
        0 => Ok(()),
        errno => Err(Errno::from_raw(errno)),
    }
}

/// Puts bytes in front of everything that a connection receives.
fn prepend(begun: &Begun<'_>, fd: BorrowedFd<'_>, bytes: &[u8], making: &Making<'_>) -> Result<(), Failure> {
    let what = || begun.what("put back what was not read from");
    let ends = (address::local(fd)?, address::peer(fd)?);
    let (Some(local), Some(peer)) = ends else { return Err(Failure::new(what(), Errno::ENOTCONN)) };
    let _guard = guard(begun, local, making)?;
    // From here on nothing comes in: what was acknowledged between the look and the end would be lost.
    sockopt::attach_filter(fd, &NOTHING).doing(what)?;
    repair::enter(fd).doing(what)?;
    let Some((mut connection, mut queues)) = reading::read_entered((fd, local, peer))? else {
        return Err(Failure::new(what(), Errno::ECONNRESET));
    };
    let len = u32::try_from(bytes.len()).map_err(|_| Failure::new(what(), Errno::E2BIG))?;
    connection.receive = connection.receive.wrapping_sub(len);
    connection.unread += len;
    queues.receive.splice(..0, bytes.iter().copied());
    // In this mode without a packet.
    repair::disconnect(fd).doing(what)?;
    repair::make_room(fd, &queues).doing(what)?;
    rustix::net::bind(fd, &local).doing(what)?;
    connection.establish(fd, &queues)?;
    sockopt::set_number(fd, libc::SOL_SOCKET, libc::SO_DETACH_FILTER, 0).doing(what)?;
    repair::leave(fd).doing(what)?;
    sockopt::set_number(fd, libc::SOL_SOCKET, libc::SO_REUSEADDR, begun.reuse()).doing(what)?;
    repair::fill(fd, connection.unsent(&queues)).doing(what)
}

/// Somebody at the local address who hears everything and says nothing: the moment in which there is no connection would
/// else be answered with its end. The peer sends again what it gets no answer to.
fn guard(begun: &Begun<'_>, local: SocketAddr, making: &Making<'_>) -> Result<OwnedFd, Failure> {
    let what = || begun.what("guard the address of");
    let net = Namespace::of(making.worker.host(), Kind::Net)?;
    let abroad = net.as_ref().map(Namespace::enter).transpose()?;
    let guard = begun.socket.class.socket()?;
    drop(abroad);
    sockopt::attach_filter(&guard, &NOTHING).doing(what)?;
    repair::enter(guard.as_fd()).doing(what)?;
    rustix::net::bind(&guard, &local).doing(what)?;
    rustix::net::listen(&guard, 1).doing(what)?;
    Ok(guard)
}

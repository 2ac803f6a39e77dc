//! TCP sockets of a job that stands still, as they are.

use super::connection::State;
use super::links::{self, Link, is_socket};
use super::options::Numbers;
use super::reading::{self, Found};
use super::repair::{self, Info, Queues};
use super::{Phase, address, agree};
use crate::fd::Trouble;
use crate::fd::capture::Job;
use crate::fd::captured::{Content, Source};
use crate::sys::sockopt;
use crate::{Doing, Failure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::RecvFlags;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Of `struct tcp_info`: where the length of the queue of a socket that listens stands (`tcpi_sacked`).
const BACKLOG: usize = 28;

/// Connections that have been read, by the descriptions that they belong to.
pub(crate) type Read = HashMap<usize, Result<Found, Failure>>;

impl Job<'_> {
    /// Reads all TCP connections at once.
    ///
    /// # Errors
    /// The kernel's.
    pub(in crate::fd) fn read_connections(&mut self) -> Result<(), Failure> {
        let mut all = Vec::new();
        for node in self.graph.all(is_socket) {
            let fd = self.graph.take(node)?;
            if !links::is(fd.as_fd(), libc::IPPROTO_TCP) || upper(fd.as_fd()).is_some() {
                continue;
            }
            let (Some(local), Some(peer)) = (address::local(fd.as_fd())?, address::peer(fd.as_fd())?) else {
                continue;
            };
            match self.links.lead("", local, peer, self.owned) {
                // What has arrived there must not be sent to the next one as well.
                Ok(Some(Link::Owned)) => reading::await_acknowledgement(fd.as_fd())
                    .doing(|| format!("ask {peer} what it has got"))?,
                Ok(Some(_)) => {}
                _ => continue,
            }
            all.push((node, fd, local, peer));
        }
        let wanted: Vec<_> = all.iter().map(|(_, fd, local, peer)| (fd.as_fd(), *local, *peer)).collect();
        self.read = all.iter().map(|(node, ..)| *node).zip(agree::read(&wanted)).collect();
        Ok(())
    }

    pub(super) fn tcp(&mut self, node: usize, fd: &OwnedFd, name: &str) -> Result<Phase, Trouble> {
        let what = || format!("look at a {name}");
        let info = Info::of(fd.as_fd()).doing(what)?;
        let local = address::local(fd.as_fd())?;
        let ready = ready(fd.as_fd())?;
        if ready.contains(PollFlags::PRI) && info.state.is_connected() {
            return Err(Trouble::refused(name, "there are urgent data in it"));
        }
        if let Some(protocol) = upper(fd.as_fd()) {
            let why = format!("the kernel does not tell the state of what is above it ({protocol})");
            return Err(Trouble::refused(name, why));
        }
        match (info.state, local) {
            (State::Listen, Some(local)) => {
                self.links.at_listener(name, local, self.owned)?;
                let mut bytes = [0; BACKLOG + 4];
                sockopt::get(fd, libc::IPPROTO_TCP, libc::TCP_INFO, &mut bytes).doing(what)?;
                let backlog = bytes.last_chunk().map_or(0, |last| i32::from_ne_bytes(*last));
                Ok(Phase::Listening { backlog })
            }
            (State::SynSent, _) => {
                // getpeername(2) does not tell it.
                let inode = self.graph.nodes[node].seen.stat.st_ino;
                let peer = self.links.peer_of(inode);
                let unknown = || Trouble::refused(name, "nobody tells whom it is connecting to").passing();
                let peer = peer.ok_or_else(unknown)?;
                Ok(Phase::Connecting { peer })
            }
            (state, Some(local)) if state.is_connected() => {
                let peer = address::peer(fd.as_fd())?;
                let peer = peer.ok_or_else(|| Trouble::refused(name, "its peer is not to be found"))?;
                self.connected(node, fd, (local, peer), name)
            }
            // Who reads from one that never had a connection is not told of an end.
            (State::Close, _) if ready.contains(PollFlags::RDHUP) => {
                let received = self.keep(node, "received", unread(fd.as_fd()).doing(what)?);
                let peer = address::former_peer(fd.as_fd());
                Ok(Phase::Closed { peer, received, error: ready.contains(PollFlags::ERR) })
            }
            _ => Ok(Phase::Idle),
        }
    }

    fn connected(
        &mut self,
        node: usize,
        fd: &OwnedFd,
        (local, peer): (SocketAddr, SocketAddr),
        name: &str,
    ) -> Result<Phase, Trouble> {
        let name = format!("{name} connected to {peer}");
        let Some(link) = self.links.lead(&name, local, peer, self.owned)? else {
            let received = if self.running() { Vec::new() } else { unread(fd.as_fd()).doing(|| "read")? };
            let received = self.keep(node, "received", received);
            return Ok(Phase::Closed { peer: None, received, error: false });
        };
        if self.running() {
            // To read more would be in the job's way.
            return Ok(Phase::Idle);
        }
        let found = self.read.remove(&node).unwrap_or(Ok(None));
        let Some((mut connection, queues)) = found? else {
            return Err(Trouble::refused(name, "it changes its state all the time").passing());
        };
        if link == Link::Waiting && !queues.receive.is_empty() {
            let why = "its other end waits to be accepted, and has sent something";
            return Err(Trouble::refused(name, why).passing());
        }
        let Queues { receive, send } = queues;
        let received = self.keep(node, "received", receive);
        let to_send = self.keep(node, "sent", send);
        self.connections.push(fd.try_clone().doing(|| "copy a descriptor")?, &connection, link);
        let name = self.owned.virtual_name(peer).filter(|_| link == Link::Owned).cloned();
        if let (Some(_), Ok(cookie)) = (&name, rustix::net::sockopt::socket_cookie(fd)) {
            connection.local = self.owned.locals.get(&cookie).copied().unwrap_or(connection.local);
        }
        Ok(Phase::Connected { connection, link, name, received, to_send })
    }

    /// Puts bytes into a file of the image; the answer is its name.
    pub(super) fn keep(&mut self, node: usize, what: &str, bytes: Vec<u8>) -> Option<String> {
        if bytes.is_empty() || self.running() {
            return None;
        }
        let name = format!("files/socket-{}-{what}", self.description(node, -1));
        self.contents.push(Content { name: name.clone(), source: Source::Bytes(bytes) });
        Some(name)
    }
}

/// What can be read; it stays.
fn unread(fd: BorrowedFd<'_>) -> Result<Vec<u8>, nix::errno::Errno> {
    let bytes = repair::unread(fd)?;
    let mut buffer = vec![0; bytes as usize];
    if bytes > 0 {
        let got = rustix::net::recv(fd, &mut buffer[..], RecvFlags::PEEK | RecvFlags::DONTWAIT);
        let (got, _) = got.map_err(|errno| nix::errno::Errno::from_raw(errno.raw_os_error()))?;
        buffer.truncate(got);
    }
    Ok(buffer)
}

/// What a socket has, without waiting for it.
///
/// # Errors
/// The kernel's.
pub(in crate::fd::socket) fn ready(fd: BorrowedFd<'_>) -> Result<PollFlags, Failure> {
    let all = PollFlags::IN | PollFlags::PRI | PollFlags::RDHUP;
    let mut fds = [PollFd::from_borrowed_fd(fd, all)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut fds, Some(&now)).doing(|| "ask whether a socket is ready")?;
    Ok(fds[0].revents())
}

/// The directions that were shut down without being told to the peer: that the job does not want to receive.
pub(super) fn half(fd: BorrowedFd<'_>, state: State) -> Option<u8> {
    let shut = ready(fd).is_ok_and(|ready| ready.contains(PollFlags::RDHUP));
    (shut && !state.received_end()).then_some(0)
}

/// A protocol that uses the connection for its own (TCP_ULP): TLS.
fn upper(fd: BorrowedFd<'_>) -> Option<String> {
    let mut name = [0; 16];
    let len = sockopt::get(fd, libc::IPPROTO_TCP, libc::TCP_ULP, &mut name).ok()?;
    let name = name.get(..len)?.split(|&byte| byte == 0).next()?;
    (!name.is_empty()).then(|| String::from_utf8_lossy(name).into_owned())
}

/// What a connection has no use for any more, and would be in the way of one that is made anew.
pub(super) fn forget_what_only_new_sockets_take(numbers: &mut Numbers) {
    for name in ["tcp-fastopen-connect", "tcp-maxseg", "tcp-window-clamp"] {
        numbers.remove(name);
    }
}

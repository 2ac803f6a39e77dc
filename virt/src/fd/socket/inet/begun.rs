//! One internet socket of a restarted job on its way to what it was.

use super::connection::{Connection, Negotiated, State, Window};
use super::forge::Forger;
use super::links::Link;
use super::options::{self, When};
use super::repair::{self, Info, Queues};
use super::{Inet, Phase, address, groups, owned, reading, strings};
use crate::fd::socket::Socket;
use crate::namespace::{Kind, Namespace};
use crate::sys::sockopt;
use crate::{Doing, Failure};
use nix::errno::Errno;
use nix::unistd::Pid;
use rustix::net::Shutdown;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// `linux/socket.h`; not in libc: which sizes of buffers were chosen by the program.
const SO_BUF_LOCK: i32 = 72;
/// The port of somebody who is not there: nothing listens at it, and nothing is sent to it.
const NOBODY: u16 = 1;

/// A socket that is being made.
pub(super) struct Begun<'a> {
    pub fd: OwnedFd,
    pub socket: &'a Socket,
    pub inet: &'a Inet,
    /// The number of its description.
    pub id: u32,
}

impl Begun<'_> {
    pub fn what(&self, doing: &str) -> String {
        let local = self.inet.local.map(|local| format!(" {local}")).unwrap_or_default();
        format!("{doing} a {}{local}", self.socket)
    }

    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    fn set(&self, name: i32, value: i32) -> Result<(), Failure> {
        sockopt::set_number(self.fd(), libc::SOL_SOCKET, name, value).doing(|| self.what("prepare"))
    }

    /// What a socket must have before it has an address.
    pub fn first(&self) -> Result<(), Failure> {
        self.socket.options.early(self.fd())?;
        options::set(self.fd(), self.socket.class.protocol, &self.inet.numbers, When::First)?;
        strings::set(self.fd(), &self.inet.strings)?;
        if let Some(name) = &self.inet.congestion {
            sockopt::set(self.fd(), libc::IPPROTO_TCP, libc::TCP_CONGESTION, name.as_bytes())
                .doing(|| format!("choose the congestion control {name}"))?;
        }
        if self.inet.numbers.contains_key("ip-tos") {
            // The kernel has derived one from the other.
            self.set(libc::SO_PRIORITY, self.socket.options.numbers.get("priority").copied().unwrap_or(0))?;
        }
        super::datagram::filter(self.fd(), &self.socket.class, &self.inet.phase)
    }

    /// Takes leave to bind to an address that is none of the network namespace's, if the job had it, or gives it back
    /// where the job did. It is for both families (the kernel's `inet_can_nonlocal_bind`).
    fn leave_to_bind(&self, wanted: bool) -> Result<(), Failure> {
        let kept = ["ip-freebind", "ipv6-freebind", "ip-transparent", "ipv6-transparent"]
            .iter()
            .any(|name| self.inet.numbers.get(*name).is_some_and(|on| *on != 0));
        if !self.inet.foreign || kept {
            return Ok(());
        }
        sockopt::set_number(self.fd(), libc::IPPROTO_IP, libc::IP_FREEBIND, i32::from(wanted))
            .doing(|| self.what("set the option ip-freebind of"))
    }

    /// Binds and listens.
    pub fn place(&self) -> Result<(), Failure> {
        self.leave_to_bind(true)?;
        let Some(local) = self.inet.local else { return Ok(()) };
        match &self.inet.phase {
            Phase::Connected { link: Link::Owned, .. } => Ok(()),
            Phase::Connected { link: Link::Waiting, .. } => self.bind_by_force(local),
            Phase::Connected { .. } => Ok(()),
            Phase::Closed { .. } | Phase::Connecting { .. } => self.bind_by_force(local),
            Phase::Idle => self.bind(local),
            Phase::Datagrams { peer, .. } => {
                if self.socket.class.kind == libc::SOCK_RAW {
                    if !local.ip().is_unspecified() {
                        self.bind(SocketAddr::new(local.ip(), 0))?;
                    }
                } else if local.port() != 0 {
                    self.bind(local)?;
                }
                match peer {
                    Some(peer) => rustix::net::connect(self.fd(), peer).doing(|| self.what("connect")),
                    None => Ok(()),
                }
            }
            Phase::Listening { backlog } => {
                self.bind(local)?;
                rustix::net::listen(self.fd(), *backlog).doing(|| self.what("listen at"))
            }
        }
    }

    /// SO_REUSEADDR, as the job had it.
    pub fn reuse(&self) -> i32 {
        self.socket.options.numbers.get("reuseaddr").copied().unwrap_or(0)
    }

    /// Takes it out of the repair mode, which has its own idea of SO_REUSEADDR.
    pub fn leave(&self) -> Result<(), Failure> {
        repair::leave(self.fd()).doing(|| self.what("let go"))?;
        self.set(libc::SO_REUSEADDR, self.reuse())
    }

    /// Binds as the job did. An address at which only old connections are that wait for their end is taken as if the job
    /// had said SO_REUSEADDR.
    fn bind(&self, local: SocketAddr) -> Result<(), Failure> {
        match rustix::net::bind(self.fd(), &local) {
            Err(rustix::io::Errno::ADDRINUSE) if self.reuse() == 0 => {
                self.set(libc::SO_REUSEADDR, 1)?;
                let bound = rustix::net::bind(self.fd(), &local).doing(|| self.what("bind"));
                self.set(libc::SO_REUSEADDR, 0)?;
                bound
            }
            bound => bound.doing(|| self.what("bind")),
        }
    }

    /// Binds to an address that others may have, as the kernel has bound sockets that it made for connections.
    fn bind_by_force(&self, local: SocketAddr) -> Result<(), Failure> {
        let what = || self.what("bind");
        repair::enter(self.fd()).doing(what)?;
        rustix::net::bind(self.fd(), &local).doing(what)?;
        self.leave()
    }

    /// Makes the connection, in the repair mode. It stays in that.
    pub fn connect(&self, connection: &Connection, queues: &Queues) -> Result<(), Failure> {
        let what = || self.what("connect");
        repair::make_room(self.fd(), queues).doing(what)?;
        if self.leads_out() {
            // What comes in now would come before the contents, and nobody would have it if the restart fails.
            sockopt::attach_filter(self.fd(), &owned::NOTHING).doing(what)?;
        }
        repair::enter(self.fd()).doing(what)?;
        rustix::net::bind(self.fd(), &connection.local).doing(what)?;
        connection.establish(self.fd(), queues)?;
        // With more room it would offer a larger window when it goes on, and take what the job's would not have taken.
        if !queues.receive.is_empty() && self.inet.buffers.1 > 0 {
            self.set(libc::SO_RCVBUFFORCE, self.inet.buffers.1 / 2)?;
        }
        Ok(())
    }

    fn leads_out(&self) -> bool {
        matches!(self.inet.phase, Phase::Connected { link: Link::Outside, .. })
    }

    /// Nothing is to come in before the job is there. A socket with a filter of the job's has that sooner.
    pub fn is_barred(&self) -> bool {
        let options = &self.socket.options;
        self.leads_out() && options.filter.is_empty() && !options.filter_locked
    }

    /// Makes the other end as well and closes it: what is left of it is the kernel's, as it was before.
    pub fn part(&self, connection: &Connection, init: Pid) -> Result<(), Failure> {
        if !connection.state.received_end() {
            return Ok(());
        }
        let what = || self.what("make the other end of");
        let net = Namespace::of(init, Kind::Net)?;
        let abroad = net.as_ref().map(Namespace::enter).transpose()?;
        let other = self.socket.class.socket()?;
        drop(abroad);
        repair::enter(other.as_fd()).doing(what)?;
        rustix::net::bind(&other, &connection.peer).doing(what)?;
        let mirrored = Connection {
            state: State::Established,
            local: connection.peer,
            peer: connection.local,
            send: connection.receive.wrapping_add(connection.unread),
            unacknowledged: 0,
            unsent: 0,
            receive: connection.send.wrapping_add(connection.unacknowledged),
            unread: 0,
            negotiated: connection.negotiated,
            window: Window {
                updated_by: connection.send,
                peer: connection.window.own,
                peer_most: connection.window.own,
                own: connection.window.peer,
                advertised_at: connection.send,
            },
        };
        mirrored.establish(other.as_fd(), &Queues::default())?;
        repair::leave(other.as_fd()).doing(what)
    }

    /// Connects anew to a socket of the job that listens: it has not accepted the old connection yet.
    pub fn connect_again(&self, connection: &Connection, queues: &Queues) -> Result<(), Failure> {
        let what = || self.what("connect");
        repair::make_room(self.fd(), queues).doing(what)?;
        owned::dial(self.fd(), connection.peer).doing(what)?;
        options::set(self.fd(), libc::IPPROTO_TCP, &self.inet.numbers, When::Last)?;
        repair::fill(self.fd(), &queues.send).doing(what)?;
        if connection.state.sent_end() {
            rustix::net::shutdown(self.fd(), Shutdown::Write).doing(what)?;
            reading::await_acknowledgement(self.fd()).doing(what)?;
        }
        Ok(())
    }

    pub fn begin_to_connect(&self, peer: SocketAddr) -> Result<(), Failure> {
        match rustix::net::connect(self.fd(), &peer) {
            Err(rustix::io::Errno::INPROGRESS) => Ok(()),
            connected => connected.doing(|| format!("{} to {peer}", self.what("connect"))),
        }
    }

    /// Makes it the end of a connection that was: what had come can be read, and then there is an end.
    pub fn close(
        &self,
        peer: Option<SocketAddr>,
        unread: Vec<u8>,
        error: bool,
        forger: &Forger,
    ) -> Result<(), Failure> {
        let what = || self.what("close");
        let Some(bound) = self.inet.local else { return Ok(()) };
        let local = address::reachable(bound);
        let unread_len = u32::try_from(unread.len()).unwrap_or(u32::MAX);
        let queues = Queues { receive: unread, send: Vec::new() };
        repair::make_room(self.fd(), &queues).doing(what)?;
        repair::enter(self.fd()).doing(what)?;
        let mut nobody = local;
        nobody.set_port(if local.port() == NOBODY { NOBODY + 1 } else { NOBODY });
        let mut connection = Connection {
            state: State::Established,
            local,
            peer: peer.unwrap_or(nobody),
            send: 1,
            unacknowledged: 0,
            unsent: 0,
            receive: 1,
            unread: unread_len,
            negotiated: Negotiated { mss: 536, scales: None, sack: false, clock: None },
            window: Window {
                updated_by: unread_len,
                peer: 1 << 15,
                peer_most: 1 << 15,
                own: 1 << 15,
                advertised_at: 1_u32.wrapping_add(unread_len),
            },
        };
        match connection.establish(self.fd(), &queues) {
            // The network remembers the old connection still (TIME_WAIT).
            Err(Failure { errno: Errno::EADDRNOTAVAIL, .. }) => {
                connection.peer = nobody;
                connection.establish(self.fd(), &queues)?;
            }
            established => established?,
        }
        self.leave()?;
        connection.reset(forger)?;
        let state = Info::of(self.fd()).doing(what)?.state;
        if state != State::Close {
            return Err(Failure::new(format!("{}: it is {state:?}", what()), Errno::EISCONN));
        }
        if !error {
            sockopt::number(self.fd(), libc::SOL_SOCKET, libc::SO_ERROR).doing(what)?;
        }
        Ok(())
    }

    /// What had to wait until all contents are there.
    pub fn last(&self) -> Result<(), Failure> {
        self.leave_to_bind(false)?;
        let connected = matches!(self.inet.phase, Phase::Connected { .. } | Phase::Closed { .. });
        if !connected {
            options::set(self.fd(), self.socket.class.protocol, &self.inet.numbers, When::Last)?;
        }
        self.inet.groups.iter().try_for_each(|group| group.join(self.fd()))?;
        self.inet.sends_by.map_or(Ok(()), |address| groups::send_by(self.fd(), address))?;
        let (send, receive) = self.inet.buffers;
        let locks = [self.socket.options.sndbuf, self.socket.options.rcvbuf];
        for (name, size, lock) in
            [(libc::SO_SNDBUFFORCE, send, locks[0]), (libc::SO_RCVBUFFORCE, receive, locks[1])]
        {
            if connected && lock.is_none() && size > 0 {
                self.set(name, size / 2)?;
            }
        }
        if connected {
            // The kernel goes on choosing the sizes that it chose.
            let bits = i32::from(locks[0].is_some()) | i32::from(locks[1].is_some()) << 1;
            self.set(SO_BUF_LOCK, bits)?;
        }
        if let (Phase::Datagrams { .. }, Some(how)) = (&self.inet.phase, self.inet.shutdown) {
            let how = [Shutdown::Read, Shutdown::Write, Shutdown::Both][usize::from(how.min(2))];
            match rustix::net::shutdown(self.fd(), how) {
                // The kernel does it, and says that there is nobody.
                Err(rustix::io::Errno::NOTCONN) => {}
                done => done.doing(|| self.what("shut down"))?,
            }
        }
        if self.leads_out() && !self.is_barred() {
            unbar(self.fd()).doing(|| self.what("open"))?;
        }
        self.socket.options.late(self.fd())
    }
}

/// Lets packets in again.
pub(super) fn unbar(fd: BorrowedFd<'_>) -> Result<(), Errno> {
    sockopt::set_number(fd, libc::SOL_SOCKET, libc::SO_DETACH_FILTER, 0)
}

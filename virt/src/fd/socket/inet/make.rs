//! Internet sockets of a restarted job.

use super::begun::{Begun, unbar};
use super::connection::State;
use super::forge::Forger;
use super::links::Link;
use super::options::{self, When};
use super::repair::{self, Queues};
use super::{Inet, Phase, Renewed, owned};
use crate::fd::Files;
use crate::fd::making::Making;
use crate::fd::socket::{Family, Socket, sockets};
use crate::image::Image;
use crate::namespace::{Kind, Namespace};
use crate::network::wall::{self, Rubble};
use crate::restore::Options;
use crate::sys::sockopt;
use crate::{Doing, Error, Failure};
use rustix::net::Shutdown;
use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;

/// The most bytes of a queue by an image's word: a buffer has no more (`SO_RCVBUFFORCE`).
const MOST: u64 = 1 << 31;

/// Connections out of the job.
#[derive(Debug, Clone, Default)]
pub(crate) struct Late {
    /// Those that come to life with it.
    sleepers: Vec<Rc<Sleeper>>,
    /// Those that were made anew.
    pub renewed: Vec<Renewed>,
}

#[derive(Debug)]
struct Sleeper {
    fd: OwnedFd,
    inet: Inet,
    queues: Queues,
    /// SO_REUSEADDR.
    reuse: i32,
    /// Nothing comes in.
    barred: bool,
}

impl Late {
    /// Takes them out of the repair mode, asks their peers to go on, and sends what was unsent. The answer is to be dropped
    /// when there is time for that.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) fn wake(&self, init: nix::unistd::Pid) -> Result<Option<Rubble>, Failure> {
        if self.sleepers.is_empty() {
            return Ok(None);
        }
        let ends: Vec<_> = self.sleepers.iter().filter_map(|late| late.ends()).collect();
        // Whoever comes in now finds a socket; and the answers to what is asked below are to come in.
        let rubble = wall::lower(init, &ends)?;
        let forger = forger(init, self.sleepers.iter().map(|late| &late.inet))?;
        for late in &self.sleepers {
            let what = || format!("let {:?} go on", late.inet.local);
            if late.barred {
                unbar(late.fd.as_fd()).doing(what)?;
            }
            repair::leave_and_probe(late.fd.as_fd()).doing(what)?;
            sockopt::set_number(&late.fd, libc::SOL_SOCKET, libc::SO_REUSEADDR, late.reuse).doing(what)?;
            go_on(late.fd.as_fd(), &late.inet, &late.queues, &forger)?;
        }
        Ok(rubble)
    }
}

impl Sleeper {
    fn ends(&self) -> Option<wall::Ends> {
        let Phase::Connected { connection, .. } = &self.inet.phase else { return None };
        Some((connection.local, connection.peer))
    }
}

/// All of them as they were, but for what was on its way.
pub(crate) struct Filled<'a> {
    late: Late,
    /// Ends within the job that have something to send.
    senders: Vec<(Begun<'a>, Queues)>,
}

impl Filled<'_> {
    /// Sends what was on its way within the job, when those are there who watch for it: it has not been reported yet. The answer
    /// is what is to come with the job's release.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) fn send(self, init: nix::unistd::Pid) -> Result<Late, Failure> {
        if !self.senders.is_empty() {
            let forger = forger(init, self.senders.iter().map(|(one, _)| one.inet))?;
            for (one, queues) in &self.senders {
                go_on(one.fd(), one.inet, queues, &forger)?;
                one.last()?;
            }
        }
        Ok(self.late)
    }
}

/// Gives all of them their addresses, options, connections and contents.
pub(crate) fn fill<'a>(
    files: &'a Files,
    making: &mut Making<'_>,
    image: &Image,
    wanted: &Options,
) -> Result<Filled<'a>, Error> {
    let mut begun = Vec::new();
    for (id, socket, inet) in inets(files) {
        let fd = making.worker.pidfd_getfd(making.at(id))?;
        making.give_to(making.at(id), inet.owner);
        begun.push(Begun { fd, socket, inet, id });
    }
    if begun.is_empty() {
        return Ok(Filled { late: Late::default(), senders: Vec::new() });
    }
    making.run()?;
    for one in &begun {
        one.first()?;
    }
    // Who listens or is only bound keeps the rules; who is connected has its address from a time when others did.
    for one in &begun {
        one.place()?;
    }
    let init = making.worker.host();
    let forger = forger(init, begun.iter().map(|one| one.inet))?;
    // What has been closed by both sides is in nobody's way; before, the rest of a connection could be in its.
    for one in &begun {
        if let Phase::Closed { peer, received, error } = &one.inet.phase {
            one.close(*peer, bytes(image, received)?, *error, &forger)?;
        }
    }
    let mut inside = Vec::new();
    let mut late = Late::default();
    for one in &begun {
        let Phase::Connected { connection, link, received, to_send, .. } = &one.inet.phase else { continue };
        let queues = Queues { receive: bytes(image, received)?, send: bytes(image, to_send)? };
        match link {
            Link::Inside | Link::Gone | Link::Outside => one.connect(connection, &queues)?,
            Link::Waiting | Link::Owned => {}
        }
        if *link == Link::Outside {
            let fd = one.fd.try_clone().doing(|| "copy a descriptor")?;
            let inet = one.inet.clone();
            let (reuse, barred) = (one.reuse(), one.is_barred());
            late.sleepers.push(Rc::new(Sleeper { fd, inet, queues, reuse, barred }));
        } else {
            inside.push((one, link, connection, queues));
        }
    }
    // The ends of a connection come to life together: alone, one would be told that there is no other.
    let made = |link: &Link| matches!(link, Link::Inside | Link::Gone);
    for (one, ..) in inside.iter().filter(|(_, link, ..)| made(link)) {
        one.leave()?;
    }
    for (one, _, connection, _) in inside.iter().filter(|(_, link, ..)| **link == Link::Gone) {
        one.part(connection, init)?;
    }
    let mut to_send = BTreeMap::new();
    for (one, link, connection, queues) in &mut inside {
        if **link == Link::Inside && !connection.unsent(queues).is_empty() {
            to_send.insert(one.id, std::mem::take(queues));
        } else if made(link) {
            go_on(one.fd(), one.inet, queues, &forger)?;
        }
    }
    for (one, link, connection, queues) in &inside {
        match link {
            Link::Waiting => one.connect_again(connection, queues)?,
            Link::Owned => {
                late.renewed.push(owned::connect(one, connection, queues, making, wanted)?);
            }
            _ => {}
        }
    }
    let mut senders = Vec::new();
    for one in begun {
        if let Some(queues) = to_send.remove(&one.id) {
            senders.push((one, queues));
            continue;
        }
        match &one.inet.phase {
            Phase::Connecting { peer } => one.begin_to_connect(*peer)?,
            Phase::Datagrams { content, received, .. } => {
                let content = bytes(image, content)?;
                super::datagram::refill(one.inet, &content, received, &forger)?;
            }
            _ => {}
        }
        one.last()?;
    }
    Ok(Filled { late, senders })
}

fn inets(files: &Files) -> impl Iterator<Item = (u32, &Socket, &Inet)> {
    sockets(files).filter_map(|(id, socket)| match &socket.of {
        Family::Inet(inet) => Some((id, socket, inet)),
        _ => None,
    })
}

fn bytes(image: &Image, name: &Option<String>) -> Result<Vec<u8>, Error> {
    Ok(match name {
        Some(name) => image.bytes(name, MOST)?,
        None => Vec::new(),
    })
}

/// For those who need something to be said in another's name.
fn forger<'a>(init: nix::unistd::Pid, sockets: impl Iterator<Item = &'a Inet>) -> Result<Forger, Failure> {
    let (mut four, mut six) = (false, false);
    for inet in sockets {
        let needed = match &inet.phase {
            Phase::Connected { connection, .. } => connection.state != State::Established,
            Phase::Closed { .. } => true,
            Phase::Datagrams { received, .. } => !received.is_empty(),
            _ => false,
        };
        // One that is bound to all addresses takes packets of either kind.
        let ip = inet.local.map(|local| local.ip().to_canonical());
        four |= needed && ip.is_none_or(|ip| ip.is_ipv4() || ip.is_unspecified());
        six |= needed && ip.is_some_and(|ip| ip.is_ipv6());
    }
    let net = Namespace::of(init, Kind::Net)?;
    let _abroad = net.as_ref().map(Namespace::enter).transpose()?;
    Forger::open(four, six)
}

/// A connection comes to life: what it has to be told in this mode is told, what was unsent is sent, and what had ended
/// ends.
fn go_on(fd: BorrowedFd<'_>, inet: &Inet, queues: &Queues, forger: &Forger) -> Result<(), Failure> {
    let Phase::Connected { connection, .. } = &inet.phase else { return Ok(()) };
    let what = || format!("let the {} go on", connection.name());
    options::set(fd, libc::IPPROTO_TCP, &inet.numbers, When::Last)?;
    repair::fill(fd, connection.unsent(queues)).doing(what)?;
    connection.end(fd, forger)?;
    if inet.shutdown.is_some() {
        rustix::net::shutdown(fd, Shutdown::Read).doing(what)?;
    }
    Ok(())
}

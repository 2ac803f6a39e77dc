//! Sockets.
//!
//! A socket is one open file description: nobody can open it a second time. What family it is of decides which file of this
//! folder captures and restores it; what all have in common is in [`options`] and [`diag`].
//!
//! All of them are made in the job's first process at the numbers of their descriptions ([`make`]), filled by ckrun from
//! outside when every description of the job is there ([`fill`]), which may travel in their messages, and last get what
//! would have been in the way.

mod class;
pub(crate) mod diag;
pub(crate) mod inet;
mod netlink;
pub(crate) mod options;
mod packet;
mod unix;

use super::Files;
use super::Object;
use super::Trouble;
use super::capture::Job;
use super::making::Making;
use crate::Error;
use crate::image::{Bytes, Image};
use crate::restore;
pub(crate) use class::Class;
use options::Options;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::os::fd::AsFd;
pub(super) use unix::{readable, world::World};

/// A socket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Socket {
    /// What socket(2) was asked for.
    pub class: Class,
    /// Options of all families.
    #[serde(default, skip_serializing_if = "Options::is_default")]
    pub options: Options,
    /// What only sockets of its family have.
    pub of: Family,
}

/// What only sockets of one family have.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "family", rename_all = "kebab-case")]
pub enum Family {
    /// The internet's.
    Inet(inet::Inet),
    /// AF_NETLINK.
    Netlink(netlink::Netlink),
    /// AF_PACKET.
    Packet(packet::Packet),
    /// AF_UNIX.
    Unix(unix::Unix),
}

impl fmt::Display for Socket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.class.fmt(f)
    }
}

impl Job<'_> {
    /// The socket behind `node`.
    pub(super) fn socket(&mut self, node: usize) -> Result<Socket, Trouble> {
        let fd = self.graph.take(node)?;
        let class = Class::of(fd.as_fd())?;
        let options = |job: &Self| {
            if job.running() {
                Ok(Options::default())
            } else {
                Options::capture(fd.as_fd(), &inet::like(&class))
            }
        };
        let of = match class.domain {
            libc::AF_UNIX => Family::Unix(self.unix(node, &fd, &class)?),
            libc::AF_INET | libc::AF_INET6 => Family::Inet(self.inet(node, &fd, &class)?),
            libc::AF_NETLINK => Family::Netlink(self.netlink(node, &fd, &class)?),
            libc::AF_PACKET if matches!(class.kind, libc::SOCK_RAW | libc::SOCK_DGRAM) => {
                Family::Packet(self.packet(node, &fd, &class)?)
            }
            _ => return Err(class.refuse(fd)),
        };
        Ok(Socket { options: options(self)?, class, of })
    }
}

impl Socket {
    /// To which path, if any, of the container it is to be connected again.
    pub(super) fn leads_to(&self) -> Option<&Bytes> {
        let Family::Unix(unix) = &self.of else { return None };
        unix.leads_to()
    }

    /// Where the file of its name is to be, if it has one: in which mount namespace, and its path.
    pub(super) fn file(&self) -> Option<(u32, &Bytes)> {
        let Family::Unix(unix) = &self.of else { return None };
        unix.file.as_ref().map(|file| (file.namespace, &file.path))
    }
}

#[cfg(test)]
impl Socket {
    /// Leaves out ids that are others each time.
    pub(super) fn forget_numbers(&mut self) {
        if let Family::Unix(unix) = &mut self.of
            && let unix::State::Listening { waiting, .. } = &mut unix.state
        {
            waiting.iter_mut().for_each(|(_, by)| by.pid = 0);
        }
    }
}

impl Socket {
    /// Why an image can't be right.
    pub(super) fn wrong(&self, files: &Files) -> Option<String> {
        self.options.wrong().or_else(|| match &self.of {
            Family::Inet(inet) => inet.wrong(),
            Family::Netlink(netlink) => netlink.wrong(),
            Family::Packet(packet) => packet.wrong(),
            Family::Unix(unix) => unix.wrong(&self.class, files),
        })
    }
}

/// What is to be done when all descriptions are there.
#[derive(Debug)]
pub(super) struct Unmade {
    unix: Option<unix::Unmade>,
}

/// All sockets, by the numbers of their descriptions.
fn sockets(files: &Files) -> impl Iterator<Item = (u32, &Socket)> {
    (0..).zip(&files.descriptions).filter_map(|(id, description)| match &description.object {
        Object::Socket(socket) => Some((id, &**socket)),
        _ => None,
    })
}

/// Makes all sockets in the first process, where all other descriptions are that do not have to wait for the other
/// processes.
pub(super) fn make(files: &Files, making: &mut Making<'_>) -> Result<Unmade, Error> {
    for (id, socket) in sockets(files).filter(|(_, socket)| !matches!(socket.of, Family::Unix(_))) {
        let class = &socket.class;
        let kind = class.kind | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
        let args = [class.domain.into(), kind.into(), class.protocol.into()];
        let made = making.program.call(format!("make a {class}"), libc::SYS_socket, &args);
        let to = making.at(id);
        making.put_at(made.into(), to);
        making.run_if_large()?;
    }
    Ok(Unmade { unix: unix::Unmade::make(files, making)? })
}

impl Unmade {
    /// Puts into all sockets what waits in them, and then sets what would have been in the way.
    /// The answer is what has to wait until the job is let go.
    pub(super) fn fill<'a>(
        self,
        files: &'a Files,
        making: &mut Making<'_>,
        image: &Image,
        wanted: &restore::Options,
    ) -> Result<inet::Filled<'a>, Error> {
        if let Some(unix) = self.unix {
            unix.fill(files, making, image, wanted)?;
        }
        for (id, socket) in sockets(files) {
            if matches!(socket.of, Family::Unix(_)) && !socket.options.is_default() {
                let own = making.worker.pidfd_getfd(making.at(id))?;
                socket.options.early(own.as_fd())?;
                socket.options.late(own.as_fd())?;
            }
        }
        netlink::fill(files, making)?;
        packet::fill(files, making)?;
        inet::fill(files, making, image, wanted)
    }
}

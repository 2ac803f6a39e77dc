//! Sockets about which the job is told by signals (O_ASYNC).
//!
//! Whom they go to is known only when there is somebody. What was on its way within a connection of the job has come by then,
//! and nobody has been told.

use super::making::Making;
use super::socket::inet::Phase;
use super::socket::{Family, Socket};
use super::stream::ready;
use super::{Files, Object};
use crate::sys::sockopt;
use crate::{Doing, Failure};
use nix::errno::Errno;
use rustix::event::PollFlags;
use std::os::fd::{AsFd, OwnedFd};

/// A socket whose readiness is told.
#[derive(Debug)]
pub(super) struct Told {
    fd: OwnedFd,
    /// Of a connection within the job: what the job has been told of, as the number of bytes that it has not read, and
    /// whether the peer has said its last word.
    known: Option<(u64, bool)>,
}

impl Files {
    /// All such sockets.
    pub(super) fn told(&self, making: &Making<'_>) -> Result<Vec<Told>, Failure> {
        let told = (0..).zip(&self.descriptions).filter(|(_, one)| one.flags & libc::O_ASYNC as u32 != 0);
        let told = told.filter_map(|(id, one)| match &one.object {
            Object::Socket(socket) => Some((id, socket)),
            _ => None,
        });
        told.map(|(id, socket)| {
            Ok(Told { fd: making.worker.pidfd_getfd(making.at(id))?, known: known(socket) })
        })
        .collect()
    }
}

fn known(socket: &Socket) -> Option<(u64, bool)> {
    let Family::Inet(inet) = &socket.of else { return None };
    let Phase::Connected { connection, .. } = &inet.phase else { return None };
    Some((connection.unread.into(), connection.state.received_end() || inet.shutdown.is_some()))
}

impl Told {
    /// Lets the kernel tell what has come since, and that there is room again as soon as that is so. All signals that the job
    /// had waiting wait again, and nothing of it runs yet.
    ///
    /// # Errors
    /// The kernel's.
    pub fn settle(&self) -> Result<(), Failure> {
        let what = || "tell of a socket that is ready";
        let now = ready(self.fd.as_fd(), PollFlags::OUT | PollFlags::RDHUP);
        if let Some((unread, ended)) = self.known
            && (now.contains(PollFlags::RDHUP) != ended || waiting(&self.fd).doing(what)? > unread)
        {
            // To set its least number of bytes makes TCP tell whether there are as many (the kernel's `tcp_set_rcvlowat`).
            let least = sockopt::number(&self.fd, libc::SOL_SOCKET, libc::SO_RCVLOWAT).doing(what)?;
            sockopt::set_number(&self.fd, libc::SOL_SOCKET, libc::SO_RCVLOWAT, least).doing(what)?;
        }
        Ok(())
    }
}

/// How many bytes wait to be read.
fn waiting(fd: &OwnedFd) -> Result<u64, Errno> {
    rustix::io::ioctl_fionread(fd).map_err(|errno| Errno::from_raw(errno.raw_os_error()))
}

//! How the TCP connections of a job end when the job is killed.
//!
//! A socket that is closed tells its peer, which would be the end of a connection that is to go on elsewhere. In repair
//! mode it says nothing. That can't be undone for a job that goes on, so it is done when the job is doomed. From before they
//! are read until they are there again, nobody must answer their peers either ([`wall`](crate::network::wall)).

use super::connection::Connection;
use super::links::Link;
use super::repair;
use crate::fd::graph::Graph;
use crate::network::wall::{self, Wall};
use crate::sys::sockopt;
use crate::{Doing, Failure};
use nix::errno::Errno;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};

/// The connections of a job, by descriptors of ckrun's.
#[derive(Debug, Default)]
pub struct Connections {
    all: Vec<(OwnedFd, String, Link)>,
    wall: Option<Wall>,
}

impl Connections {
    pub(crate) fn push(&mut self, fd: OwnedFd, connection: &Connection, link: Link) {
        self.all.push((fd, connection.name(), link));
    }

    /// From now on the peers of these connections get no answer, as far as this kernel can do that.
    pub(crate) fn wall_off(&mut self, graph: &Graph, outside: Vec<(SocketAddr, SocketAddr)>) {
        let Some(init) = graph.members.first().filter(|_| !outside.is_empty()) else { return };
        match Wall::raise(init.host, outside) {
            Ok(wall) => self.wall = Some(wall),
            Err(failure) => unprotected(&failure),
        }
    }

    /// Lets none of them say anything when the job is killed, which nothing must prevent any more; but those whose other
    /// ends somebody answers for are broken off: who answers has another one from now on.
    ///
    /// # Errors
    /// The kernel's. The job can go on then.
    pub fn silence(&mut self) -> Result<(), Failure> {
        if let Some(wall) = &mut self.wall {
            wall.stay().unwrap_or_else(|failure| unprotected(&failure));
        }
        let mut hushed = Vec::new();
        let done = self.all.iter().try_for_each(|(fd, name, link)| {
            let done = match link {
                // What was not sent is in the image, and must not be sent to the old one as well.
                Link::Owned => {
                    let linger = [1_i32, 0].map(i32::to_ne_bytes).concat();
                    sockopt::set(fd, libc::SOL_SOCKET, libc::SO_LINGER, &linger)
                }
                Link::Inside | Link::Gone | Link::Waiting | Link::Outside => {
                    hush(fd).map(|reuse| hushed.push((fd, reuse)))
                }
            };
            done.doing(|| format!("silence the {name}"))
        });
        if done.is_err() {
            for (fd, reuse) in hushed {
                unhush(fd, reuse).unwrap_or_else(|errno| log::error!("let a connection go on: {errno}"));
            }
            if let Some(Err(failure)) = self.wall.as_mut().map(Wall::leave) {
                log::error!("{failure}");
            }
        }
        done
    }
}

/// The answer is its SO_REUSEADDR, which the repair mode changes.
fn hush(fd: &OwnedFd) -> Result<i32, Errno> {
    let reuse = sockopt::number(fd, libc::SOL_SOCKET, libc::SO_REUSEADDR)?;
    repair::enter(fd.as_fd()).map(|()| reuse)
}

fn unhush(fd: &OwnedFd, reuse: i32) -> Result<(), Errno> {
    repair::leave(fd.as_fd())?;
    sockopt::set_number(fd, libc::SOL_SOCKET, libc::SO_REUSEADDR, reuse)
}

fn unprotected(failure: &Failure) {
    let why = if wall::is_unknown(failure) { "this kernel has no nftables" } else { "it failed" };
    log::warn!(
        "nothing keeps this host from breaking off the job's connections to the outside while the job is away: {why}: {failure}"
    );
}

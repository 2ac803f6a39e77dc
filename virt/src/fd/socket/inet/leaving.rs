//! How the TCP connections of a job end when the job is killed.
//!
//! A socket that is closed tells its peer, which would be the end of a connection that is to go on elsewhere. In repair
//! mode it says nothing. That can't be undone for a job that goes on, so it is done when the job is doomed.

use super::connection::Connection;
use super::links::Link;
use super::repair;
use crate::sys::sockopt;
use crate::{Doing, Failure};
use std::os::fd::{AsFd, OwnedFd};

/// The connections of a job, by descriptors of ckrun's.
#[derive(Debug, Default)]
pub struct Connections(Vec<(OwnedFd, String, Link)>);

impl Connections {
    pub(crate) fn push(&mut self, fd: OwnedFd, connection: &Connection, link: Link) {
        self.0.push((fd, connection.name(), link));
    }

    /// Lets none of them say anything when the job is killed, which nothing must prevent any more; but those whose other
    /// ends somebody answers for are broken off: who answers has another one from now on.
    ///
    /// # Errors
    /// The kernel's.
    pub fn silence(&self) -> Result<(), Failure> {
        for (fd, name, link) in &self.0 {
            let done = match link {
                // What was not sent is in the image, and must not be sent to the old one as well.
                Link::Owned => {
                    let linger = [1_i32, 0].map(i32::to_ne_bytes).concat();
                    sockopt::set(fd, libc::SOL_SOCKET, libc::SO_LINGER, &linger)
                }
                Link::Inside | Link::Gone | Link::Waiting | Link::Outside => repair::enter(fd.as_fd()),
            };
            done.doing(|| format!("silence the {name}"))?;
        }
        Ok(())
    }
}

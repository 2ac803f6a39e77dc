//! The ends of a connection's streams: how a connection that was made as an established one gets into its state.
//!
//! What the job has ended it ends again, and what the peer has said is said once more in its name; where the peer is in
//! the job too it may have done so itself meanwhile, and nothing is said twice.

use super::connection::{Connection, State};
use super::forge::{ACKNOWLEDGE, END, Forger, RESET, Segment};
use super::repair::Info;
use crate::{Doing, Failure};
use rustix::net::Shutdown;
use std::os::fd::BorrowedFd;

impl Connection {
    /// Ends what was ended. The socket has left the repair mode, and what was unsent is in its queue.
    ///
    /// # Errors
    /// The kernel's.
    pub fn end(&self, fd: BorrowedFd<'_>, forger: &Forger) -> Result<(), Failure> {
        let what = || format!("end the {}", self.name());
        let state = || Info::of(fd).map(|info| info.state).doing(what);
        let wanted = self.state;
        // Who ended first made the states differ.
        if wanted == State::LastAck && state()? == State::Established {
            self.peer_ends(fd, forger)?;
        }
        if wanted.sent_end() && matches!(state()?, State::Established | State::CloseWait) {
            rustix::net::shutdown(fd, Shutdown::Write).doing(what)?;
        }
        if wanted == State::FinWait2 && state()? == State::FinWait1 {
            self.say(forger, ACKNOWLEDGE, 0, 1)?;
        }
        if wanted.received_end() && matches!(state()?, State::Established | State::FinWait1) {
            self.peer_ends(fd, forger)?;
        }
        Ok(())
    }

    fn peer_ends(&self, _fd: BorrowedFd<'_>, forger: &Forger) -> Result<(), Failure> {
        self.say(forger, END | ACKNOWLEDGE, 0, 0)
    }

    /// Says that there is no connection any more. Nothing is answered to that.
    ///
    /// # Errors
    /// The kernel's.
    pub fn reset(&self, forger: &Forger) -> Result<(), Failure> {
        self.say(forger, RESET, 0, 0)
    }

    /// Sends a segment in the peer's name, `ahead` behind all that it has sent, that acknowledges what it had acknowledged,
    /// and `more`, which may be only the end of what the job sent.
    fn say(&self, forger: &Forger, flags: u8, ahead: u32, more: u32) -> Result<(), Failure> {
        forger.segment(&Segment {
            from: self.peer,
            to: self.local,
            sequence: self.receive.wrapping_add(self.unread).wrapping_add(ahead),
            acknowledges: self.send.wrapping_add(more),
            flags,
        })
    }
}

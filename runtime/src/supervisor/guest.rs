//! A verb that is connected, and may stop at any moment: nobody waits for it longer than a while.

use super::launch;
use crate::plugin::failed::seconds;
use ckrun_plugin::message::{Id as MessageId, Message};
use ckrun_plugin::wire::{Broken, Incoming, Wire};
use ckrun_plugin::{Code, Fault};
use ckrun_virt::Process;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde_json::Value;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

/// How long the verb that holds a job may take for what only it can do.
const HOLDER: Duration = Duration::from_secs(10);

/// A verb that is connected.
#[derive(Debug)]
pub struct Guest {
    /// What is said.
    pub wire: Wire,
    /// Who it is.
    pub process: Process,
}

impl Guest {
    /// Takes a connection; None when its other end is somebody who has no business here, or has gone.
    pub fn new(socket: OwnedFd) -> Option<Guest> {
        let process = launch::peer(&socket)?;
        Some(Guest { wire: Wire::new(socket), process })
    }

    /// Says something, as far as that goes without waiting: a verb that is stopped holds nobody up.
    pub fn say(&mut self, message: &Message, fds: Vec<OwnedFd>) {
        // One that has gone is found out by the next look.
        let _ = self.wire.queue(message, fds).and_then(|()| self.wire.flush(false));
    }

    /// What is to be waited for.
    pub fn wanted(&self) -> PollFlags {
        let more = if self.wire.unsent() > 0 { PollFlags::POLLOUT } else { PollFlags::empty() };
        PollFlags::POLLIN | more
    }

    /// The answer to a request, waited for.
    ///
    /// # Errors
    /// Why there is none.
    pub fn ask(&mut self, message: &Message, id: &MessageId) -> Result<Value, Fault> {
        let lost = |why: String| Fault::new(Code::Internal, format!("the ckrun that holds the job: {why}"));
        let broken = |broken: Broken| lost(format!("it {broken}"));
        let until = Instant::now() + HOLDER;
        self.wire.queue(message, Vec::new()).map_err(broken)?;
        loop {
            self.wire.flush(false).map_err(broken)?;
            // It asks for nothing before it has its answer; but one may come to what was given up.
            while let Some(Incoming { message, .. }) = self.wire.take().map_err(broken)? {
                if let Message::Answer { id: of, outcome, .. } = message
                    && of == *id
                {
                    return outcome;
                }
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(lost(format!("it has not answered within {} s", seconds(HOLDER))));
            }
            let left = PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX);
            let _ = poll(&mut [PollFd::new(self.as_fd(), self.wanted())], left);
            self.wire.fill(false).map_err(broken)?;
        }
    }
}

/// Readable when a verb has asked for something, or has gone.
impl AsFd for Guest {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.wire.as_fd()
    }
}

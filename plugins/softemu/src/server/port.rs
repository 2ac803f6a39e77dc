//! The server's end of a link, as the rest of the server sees it.

use crate::control::Drain;
use crate::link::Name;
use rustix::event::PollFlags;
use std::fmt;
use std::os::fd::BorrowedFd;

/// How far a port reads ahead of the design, in bytes.
pub const AHEAD: usize = 1 << 16;

/// What came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Received {
    /// So many bytes; there may be more.
    More,
    /// All that there is for now.
    Everything,
    /// Another job has taken the place of the one before: what was for that one is void.
    Another,
}

/// The server's end of a link. Nothing here blocks. An error is a sentence, and the end of the link.
pub trait Port: fmt::Debug {
    /// What a testbench opens.
    fn name(&self) -> &Name;

    /// What to poll for, if anything: `reading` when the design takes requests, `writing` when there are replies.
    fn interest(&self, reading: bool, writing: bool) -> Option<(BorrowedFd<'_>, PollFlags)>;

    /// The poll has reported something; what that was will be looked at later.
    fn acknowledge(&mut self) {}

    /// Appends what has come.
    fn receive(&mut self, into: &mut Vec<u8>) -> Result<Received, String>;

    /// Sends as much as there is room for, and says how much.
    fn send(&mut self, bytes: &[u8]) -> Result<usize, String>;

    /// Takes everything off the wire, for a save: requests are appended; replies that the job has not read go to the
    /// front.
    fn gather(&mut self, requests: &mut Vec<u8>, replies: &mut Vec<u8>) -> Result<(), String>;

    /// Adds what the kernel holds.
    fn drain(&self, status: &mut Drain);

    /// The ring's bytes, if it is one.
    fn image(&self) -> Vec<u8> {
        Vec::new()
    }

    /// Whether a ring of these bytes could be adopted here.
    fn fits(&self, image: &[u8]) -> bool {
        image.is_empty()
    }

    /// Becomes the ring of these bytes.
    fn adopt(&mut self, _image: &[u8]) {}
}

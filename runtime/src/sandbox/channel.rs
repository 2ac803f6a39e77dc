//! The words that ckrun and the init it made exchange while the sandbox is built.
//!
//! A pair of SOCK_SEQPACKET sockets: a message is whole or absent, and the end of either side is seen by the other at
//! once. A message is one byte that says what it is, then its text.

use crate::error::{Error, Result};
use ckrun_virt::{Doing, Failure};
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, recv, send, socketpair};
use nix::unistd::Pid;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// Longer error texts are cut; a SOCK_SEQPACKET message must fit in one send.
const MAX_MESSAGE: usize = 16 << 10;

/// One message.
#[derive(Debug, PartialEq, Eq)]
pub enum Note {
    /// Parent: the id mapping of your user namespace is written.
    Mapped,
    /// Parent: the cgroups are ready, and you are in those that a process can't enter by itself.
    Enter,
    /// Init: all mounts stand, the old root is still there. The answer is `Continue`.
    Mounted,
    /// Parent: go on. To `Ready`: the state is written, and ckrun is about to leave.
    Continue,
    /// Init: everything is done but the start of the job. The answer is `Continue`; to a parked init there is none.
    Ready,
    /// Init: the seccomp listener is open under this number; it is held until `Continue`.
    Listener(i32),
    /// Init: the listener of the filter over the system calls that ckrun's supervisor answers, likewise.
    Asks(i32),
    /// The namespace helper: the id of the process it made.
    Pid(Pid),
    /// Init: it went wrong and this is why; nothing follows.
    Failed(String),
}

impl Note {
    fn encode(&self) -> Vec<u8> {
        let (tag, text) = match self {
            Note::Mapped => (b'm', String::new()),
            Note::Enter => (b'e', String::new()),
            Note::Mounted => (b'M', String::new()),
            Note::Continue => (b'c', String::new()),
            Note::Ready => (b'r', String::new()),
            Note::Listener(fd) => (b'l', fd.to_string()),
            Note::Asks(fd) => (b'a', fd.to_string()),
            Note::Pid(pid) => (b'p', pid.to_string()),
            Note::Failed(why) => (b'f', why.clone()),
        };
        let mut bytes = vec![tag];
        bytes.extend(text.as_bytes().iter().take(MAX_MESSAGE - 1));
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<Note> {
        let (tag, text) = bytes.split_first()?;
        let text = String::from_utf8_lossy(text);
        Some(match tag {
            b'm' => Note::Mapped,
            b'e' => Note::Enter,
            b'M' => Note::Mounted,
            b'c' => Note::Continue,
            b'r' => Note::Ready,
            b'l' => Note::Listener(text.parse().ok()?),
            b'a' => Note::Asks(text.parse().ok()?),
            b'p' => Note::Pid(Pid::from_raw(text.parse().ok()?)),
            b'f' => Note::Failed(text.into_owned()),
            _ => return None,
        })
    }
}

/// One end.
#[derive(Debug)]
pub struct Channel(OwnedFd);

/// Makes both ends; neither survives an exec.
pub fn pair() -> Result<(Channel, Channel)> {
    let (a, b) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
        .doing(|| "make a socket pair")?;
    Ok((Channel(a), Channel(b)))
}

impl Channel {
    /// Says `note`. The other end's absence is an error, never a SIGPIPE.
    pub fn send(&self, note: &Note) -> Result<()> {
        let bytes = note.encode();
        send(self.0.as_raw_fd(), &bytes, MsgFlags::MSG_NOSIGNAL)
            .doing(|| "write to the other side of the sandbox")?;
        Ok(())
    }

    /// Waits for the next note; None when the other end is gone.
    pub fn receive(&self) -> Result<Option<Note>> {
        let mut bytes = vec![0; MAX_MESSAGE];
        let length = loop {
            match recv(self.0.as_raw_fd(), &mut bytes, MsgFlags::empty()) {
                // The other end has gone without reading all of ours; what it said before is still to come.
                Err(Errno::EINTR | Errno::ECONNRESET) => continue,
                other => break other.doing(|| "read from the other side of the sandbox")?,
            }
        };
        if length == 0 {
            return Ok(None);
        }
        let note = Note::decode(&bytes[..length]);
        note.map(Some)
            .ok_or_else(|| Failure::new("read from the other side of the sandbox", Errno::EBADMSG).into())
    }

    /// Why the other end has given up, if it has said so: a better reason than that it does not listen any more.
    pub fn last_words(&self) -> Option<Error> {
        let mut bytes = vec![0; MAX_MESSAGE];
        let length = recv(self.0.as_raw_fd(), &mut bytes, MsgFlags::MSG_DONTWAIT).ok()?;
        match Note::decode(&bytes[..length])? {
            Note::Failed(why) => Some(Error::Init(why)),
            _ => self.last_words(),
        }
    }

    /// Waits for exactly `note`, in the init: anything else means that the parent has given up.
    pub fn expect(&self, note: &Note) -> Result<()> {
        match self.receive()? {
            Some(said) if said == *note => Ok(()),
            _ => Err(Error::Init("ckrun gave up while the sandbox was being built".into())),
        }
    }
}

impl From<OwnedFd> for Channel {
    /// Takes a connected SOCK_SEQPACKET socket as one end.
    fn from(fd: OwnedFd) -> Self {
        Channel(fd)
    }
}

impl From<Channel> for OwnedFd {
    /// Gives the socket away, for what comes after the notes.
    fn from(channel: Channel) -> OwnedFd {
        channel.0
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_note_arrives_as_it_was_sent() {
        let (a, b) = pair().unwrap();
        for note in [
            Note::Mapped,
            Note::Enter,
            Note::Mounted,
            Note::Continue,
            Note::Ready,
            Note::Listener(7),
            Note::Pid(Pid::from_raw(42)),
            Note::Failed("mount proc: permission denied".into()),
        ] {
            a.send(&note).unwrap();
            assert_eq!(b.receive().unwrap(), Some(note));
        }
        drop(a);
        assert_eq!(b.receive().unwrap(), None);
    }

    #[test]
    fn a_text_of_any_length_arrives() {
        let (a, b) = pair().unwrap();
        a.send(&Note::Failed("x".repeat(1 << 20))).unwrap();
        assert_eq!(b.receive().unwrap(), Some(Note::Failed("x".repeat(MAX_MESSAGE - 1))));
    }
}

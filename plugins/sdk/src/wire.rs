//! The socket: lines in, lines out, descriptors beside them.
//!
//! unix(7): descriptors that were sent with some bytes arrive with the first of them, and a read that has brought
//! descriptors ends with the bytes of that send. Bytes of earlier sends may come in front of them in the same read. So
//! the line that descriptors belong to is one that begins in the read that brought them; which one, it says itself by
//! `fds`.

use crate::message::Message;
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use std::collections::VecDeque;
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// The most bytes of a line, its end included.
pub const LINE: usize = 1_048_576;

/// The most descriptors that come with a line.
pub const DESCRIPTORS: usize = 16;

/// Bytes that are read at once.
const CHUNK: usize = 65_536;

/// How a peer broke the framing, or that it has gone. Reads after "it": the peer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Broken {
    /// The end of the file.
    #[error("closed the socket")]
    Ended,
    /// A line without an end.
    #[error("closed the socket in the middle of a line")]
    Torn,
    /// See [`LINE`].
    #[error("sent a line of more than {LINE} bytes")]
    TooLong,
    /// Not JSON, or not UTF-8; the parser's reason.
    #[error("sent a line that is no JSON: {0}")]
    Json(String),
    /// JSON, but not a message.
    #[error("sent a line that {0}")]
    Shape(&'static str),
    /// Descriptors that no line has announced.
    #[error("sent descriptors that it had not announced by \"fds\": {0}")]
    Unannounced(usize),
    /// Other descriptors than announced.
    #[error("announced {announced} descriptors by \"fds\" and sent {came}")]
    Miscounted {
        /// By the member `fds`.
        announced: usize,
        /// How many there were.
        came: usize,
    },
    /// See [`DESCRIPTORS`].
    #[error("sent more than {DESCRIPTORS} descriptors with a line")]
    TooMany,
    /// The socket failed otherwise.
    #[error("the socket failed: {0}")]
    Call(Errno),
}

/// What [`Wire::fill`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Filled {
    /// Bytes have come; there may be whole lines now.
    Bytes,
    /// Nothing at the moment.
    Nothing,
}

/// A message that has come, with its descriptors.
#[derive(Debug)]
pub struct Incoming {
    /// What it says.
    pub message: Message,
    /// As many as it announces.
    pub fds: Vec<OwnedFd>,
}

/// Descriptors that came with the bytes `from..to` of the buffer.
#[derive(Debug)]
struct Batch {
    fds: Vec<OwnedFd>,
    from: usize,
    to: usize,
}

/// A line that is to be sent, or what is left of it.
#[derive(Debug)]
struct Parcel {
    bytes: Vec<u8>,
    sent: usize,
    fds: Vec<OwnedFd>,
}

/// One end of the pair of stream sockets. It holds at most a line and a chunk of what has come and has not been taken,
/// and at most two sends' descriptors.
#[derive(Debug)]
pub struct Wire {
    socket: OwnedFd,
    buffer: Vec<u8>,
    /// Up to here, lines have been taken.
    taken: usize,
    /// Up to here, there is no end of a line.
    scanned: usize,
    batches: VecDeque<Batch>,
    outgoing: VecDeque<Parcel>,
    /// Bytes of those.
    unsent: usize,
}

impl AsFd for Wire {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Wire {
    /// Speaks over a connected Unix stream socket.
    pub fn new(socket: OwnedFd) -> Wire {
        Wire {
            socket,
            buffer: Vec::new(),
            taken: 0,
            scanned: 0,
            batches: VecDeque::new(),
            outgoing: VecDeque::new(),
            unsent: 0,
        }
    }

    /// The next message, waited for.
    ///
    /// # Errors
    /// [`Broken`].
    pub fn receive(&mut self) -> Result<Incoming, Broken> {
        loop {
            if let Some(incoming) = self.take()? {
                return Ok(incoming);
            }
            self.fill(true)?;
        }
    }

    /// The next message of those that have come already.
    ///
    /// # Errors
    /// [`Broken`]: the peer can't be understood any more.
    pub fn take(&mut self) -> Result<Option<Incoming>, Broken> {
        let Some(length) = self.buffer[self.scanned..].iter().position(|b| *b == b'\n') else {
            self.scanned = self.buffer.len();
            return if self.scanned - self.taken >= LINE { Err(Broken::TooLong) } else { Ok(None) };
        };
        let (start, end) = (self.taken, self.scanned + length + 1);
        if end - start > LINE {
            return Err(Broken::TooLong);
        }
        let message = Message::parse(&self.buffer[start..end])?;
        (self.taken, self.scanned) = (end, end);
        let announced = message.fds();
        let mut fds = Vec::new();
        if announced > 0 {
            // The first: earlier ones have been claimed, or have ended in an error.
            if self.batches.front().is_some_and(|batch| batch.from <= start && start < batch.to) {
                fds = self.batches.pop_front().map(|batch| batch.fds).unwrap_or_default();
            }
            if fds.len() != announced {
                return Err(Broken::Miscounted { announced, came: fds.len() });
            }
        }
        // The lines that these descriptors could have belonged to are over.
        match self.batches.front() {
            Some(batch) if batch.to <= end => Err(Broken::Unannounced(batch.fds.len())),
            _ => Ok(Some(Incoming { message, fds })),
        }
    }

    /// Reads once. To be called when [`Wire::take`] has nothing.
    ///
    /// # Errors
    /// [`Broken::Ended`], [`Broken::Torn`], [`Broken::TooMany`], [`Broken::Unannounced`], [`Broken::Call`].
    pub fn fill(&mut self, wait: bool) -> Result<Filled, Broken> {
        self.forget_taken();
        let from = self.buffer.len();
        self.buffer.resize(from + CHUNK, 0);
        let (count, fds, truncated) = match self.read(from, wait) {
            Ok(read) => read,
            Err(Errno::AGAIN) => {
                self.buffer.truncate(from);
                return Ok(Filled::Nothing);
            }
            // A peer that closed its end with unread bytes in it.
            Err(Errno::CONNRESET) => (0, Vec::new(), false),
            Err(e) => return Err(Broken::Call(e)),
        };
        let to = from + count;
        self.buffer.truncate(to);
        if truncated || fds.len() > DESCRIPTORS {
            return Err(Broken::TooMany);
        }
        if count == 0 {
            return Err(if from == 0 { Broken::Ended } else { Broken::Torn });
        }
        if !fds.is_empty() {
            let begins = from == 0 || self.buffer[from..to - 1].contains(&b'\n');
            if !begins {
                return Err(Broken::Unannounced(fds.len()));
            }
            self.batches.push_back(Batch { fds, from, to });
        }
        Ok(Filled::Bytes)
    }

    /// One recvmsg(2): the number of bytes, the descriptors, and whether there were more than could be taken. What the
    /// kernel could not put into the control buffer it has closed.
    fn read(&mut self, from: usize, wait: bool) -> Result<(usize, Vec<OwnedFd>, bool), Errno> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::CMSG_CLOEXEC | if wait { RecvFlags::empty() } else { RecvFlags::DONTWAIT };
        let read = rustix::io::retry_on_intr(|| {
            recvmsg(&self.socket, &mut [IoSliceMut::new(&mut self.buffer[from..])], &mut control, flags)
        })?;
        let mut fds = Vec::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                fds.extend(rights);
            }
        }
        Ok((read.bytes, fds, read.flags.contains(ReturnFlags::CTRUNC)))
    }

    fn forget_taken(&mut self) {
        let gone = std::mem::take(&mut self.taken);
        self.buffer.drain(..gone);
        self.scanned -= gone;
        for batch in &mut self.batches {
            batch.from = batch.from.saturating_sub(gone);
            batch.to = batch.to.saturating_sub(gone);
        }
    }

    /// Puts a message and its descriptors in line to be sent; [`Wire::flush`] sends.
    ///
    /// # Errors
    /// [`Broken::TooLong`], [`Broken::TooMany`]: it would break the framing; nothing is sent then.
    pub fn queue(&mut self, message: &Message, fds: Vec<OwnedFd>) -> Result<(), Broken> {
        debug_assert_eq!(message.fds(), fds.len());
        let bytes = message.line();
        if bytes.len() > LINE {
            return Err(Broken::TooLong);
        }
        if fds.len() > DESCRIPTORS {
            return Err(Broken::TooMany);
        }
        self.unsent += bytes.len();
        self.outgoing.push_back(Parcel { bytes, sent: 0, fds });
        Ok(())
    }

    /// Bytes that [`Wire::flush`] has not sent yet.
    pub fn unsent(&self) -> usize {
        self.unsent
    }

    /// Sends what is in line; without `wait`, as much as goes without blocking. The answer says whether all has gone.
    ///
    /// # Errors
    /// [`Broken::Ended`] when the peer has closed its end, [`Broken::Call`].
    pub fn flush(&mut self, wait: bool) -> Result<bool, Broken> {
        let flags = SendFlags::NOSIGNAL | if wait { SendFlags::empty() } else { SendFlags::DONTWAIT };
        while let Some(parcel) = self.outgoing.front_mut() {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            let rights: Vec<BorrowedFd<'_>> = parcel.fds.iter().map(AsFd::as_fd).collect();
            if !rights.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&rights)) {
                return Err(Broken::TooMany);
            }
            let sent = rustix::io::retry_on_intr(|| {
                sendmsg(&self.socket, &[IoSlice::new(&parcel.bytes[parcel.sent..])], &mut control, flags)
            });
            match sent {
                Ok(count) => {
                    parcel.sent += count;
                    self.unsent -= count;
                    // They went with the first byte.
                    parcel.fds.clear();
                    if parcel.sent == parcel.bytes.len() {
                        self.outgoing.pop_front();
                    }
                }
                Err(Errno::AGAIN) => return Ok(false),
                Err(Errno::PIPE | Errno::CONNRESET) => return Err(Broken::Ended),
                Err(e) => return Err(Broken::Call(e)),
            }
        }
        Ok(true)
    }
}

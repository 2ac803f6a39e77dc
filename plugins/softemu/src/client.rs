//! The testbench's side of a link: numbered requests, and their replies in order.

use crate::error::{Error, Result};
use crate::link::{Link, Name};
use crate::transaction::{Reply, Request};

/// A link with transactions on it. It may have any number outstanding.
#[derive(Debug)]
pub struct Client {
    link: Link,
    unsent: Vec<u8>,
    received: Vec<u8>,
    next: u32,
    expected: u32,
}

impl Client {
    /// Opens the link.
    pub fn open(name: &Name) -> Result<Client> {
        Ok(Client { link: Link::open(name)?, unsent: Vec::new(), received: Vec::new(), next: 0, expected: 0 })
    }

    /// Issues a request without waiting, and returns its sequence number.
    pub fn issue(&mut self, request: &Request) -> Result<u32> {
        let sequence = self.next;
        request.encode(sequence, &mut self.unsent);
        self.next = self.next.wrapping_add(1);
        self.flush()?;
        Ok(sequence)
    }

    /// Waits for the reply to the oldest outstanding request.
    pub fn reply(&mut self) -> Result<Reply> {
        loop {
            self.flush()?;
            let decoded = Reply::decode(&self.received).map_err(|why| self.broken(why.to_string()))?;
            if let Some((reply, length)) = decoded {
                self.received.drain(..length);
                if reply.sequence != self.expected {
                    return Err(
                        self.broken(format!("reply {} came instead of {}", reply.sequence, self.expected))
                    );
                }
                self.expected = self.expected.wrapping_add(1);
                return Ok(reply);
            }
            if self.link.receive(&mut self.received)? == 0 {
                self.link.wait(!self.unsent.is_empty())?;
            }
        }
    }

    /// Issues a request and waits for its reply; nothing else may be outstanding.
    pub fn transact(&mut self, request: &Request) -> Result<Reply> {
        self.issue(request)?;
        self.reply()
    }

    /// Reads what has come; [`Client::reply`] finds it later. A ring keeps what it has.
    pub fn read_ahead(&mut self) -> Result<()> {
        if self.link.name().kind != crate::link::Kind::Ring {
            while self.link.receive(&mut self.received)? > 0 {}
        }
        Ok(())
    }

    /// Goes on with another link, as if it had always been that: what a move does to a job from outside. What the old
    /// one has delivered is read first.
    pub fn replace(&mut self, name: &Name) -> Result<()> {
        self.read_ahead()?;
        self.link = Link::open(name)?;
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        if !self.unsent.is_empty() {
            let count = self.link.send(&self.unsent)?;
            self.unsent.drain(..count);
        }
        Ok(())
    }

    fn broken(&self, why: String) -> Error {
        Error::Protocol { link: self.link.name().to_string(), why }
    }
}

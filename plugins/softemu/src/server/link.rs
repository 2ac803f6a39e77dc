//! A link of a slot: its port, what has come and was not served, what was answered and not sent.

use super::port::{Port, Received};
use crate::control::Drain;
use crate::link::Kind;
use crate::state::LinkState;
use crate::transaction::{Reply, Request, Status};

/// Replies that may wait for a job that does not read, in bytes, before no more requests of it are served.
const UNSENT: usize = 1 << 20;

/// A link of a slot.
#[derive(Debug)]
pub struct Link {
    pub kind: Kind,
    pub port: Box<dyn Port>,
    /// Whether there may be something to receive.
    pub ready: bool,
    requests: Vec<u8>,
    replies: Vec<u8>,
    next: Option<u32>,
    broken: Option<String>,
    /// Whether nothing more is sent: it has been saved, and might be sent twice.
    withheld: bool,
}

impl Link {
    pub fn new(kind: Kind, port: Box<dyn Port>) -> Link {
        Link {
            kind,
            port,
            ready: true,
            requests: Vec::new(),
            replies: Vec::new(),
            next: None,
            broken: None,
            withheld: false,
        }
    }

    /// Whether it is any use to poll it for requests.
    pub fn is_reading(&self) -> bool {
        self.broken.is_none() && self.replies.len() < UNSENT
    }

    /// Whether there are replies to send.
    pub fn is_writing(&self) -> bool {
        self.broken.is_none() && !self.withheld && !self.replies.is_empty()
    }

    /// The next request, if one has come whole.
    pub fn next(&mut self) -> Option<(u32, Request)> {
        while self.is_reading() {
            match Request::decode(&self.requests) {
                Ok(Some((sequence, request, length))) => {
                    self.requests.drain(..length);
                    if self.next.is_some_and(|next| next != sequence) {
                        self.out_of_sequence(sequence);
                        return None;
                    }
                    self.next = Some(sequence.wrapping_add(1));
                    return Some((sequence, request));
                }
                Ok(None) if self.ready => self.receive(),
                Ok(None) => return None,
                Err(why) => self.breaks(&why.to_string()),
            }
        }
        None
    }

    /// The next commands of a JTAG adapter, so many at most.
    pub fn commands(&mut self, most: usize) -> Vec<u8> {
        while self.is_reading() && self.requests.is_empty() && self.ready {
            self.receive();
        }
        let count = if self.is_reading() { most.min(self.requests.len()) } else { 0 };
        if count > 0 {
            // It has been used.
            self.next = Some(0);
        }
        self.requests.drain(..count).collect()
    }

    /// The job has said something that makes no sense.
    pub fn breaks(&mut self, why: &str) {
        self.broken = Some(format!("the job does not keep to the protocol: {why}"));
    }

    /// Takes bytes to be sent.
    pub fn says(&mut self, bytes: &[u8]) {
        self.replies.extend_from_slice(bytes);
    }

    fn receive(&mut self) {
        match self.port.receive(&mut self.requests) {
            Ok(Received::More) => {}
            Ok(Received::Everything) => self.ready = false,
            Ok(Received::Another) => {
                self.requests.clear();
                self.replies.clear();
                self.next = None;
            }
            Err(why) => self.broken = Some(why),
        }
    }

    fn out_of_sequence(&mut self, sequence: u32) {
        let expected = self.next.unwrap_or(0);
        let status = Status::OutOfSequence;
        self.answer(&Reply { sequence, status, interrupt: false, cycle: 0, words: vec![expected] });
        self.send();
        self.broken = Some(format!("request {sequence} came instead of {expected}"));
    }

    /// Takes a reply to be sent.
    pub fn answer(&mut self, reply: &Reply) {
        reply.encode(&mut self.replies);
    }

    /// Sends what there is room for.
    pub fn send(&mut self) {
        if !self.is_writing() {
            return;
        }
        match self.port.send(&self.replies) {
            Ok(count) => drop(self.replies.drain(..count)),
            Err(why) => self.broken = Some(why),
        }
    }

    /// What is on it.
    pub fn drain(&self) -> Drain {
        let mut status = Drain {
            link: self.kind,
            connected: false,
            unserved: self.requests.len() as u64,
            unwritten: self.replies.len() as u64,
            undelivered: None,
            unacknowledged: None,
            broken: self.broken.clone(),
        };
        if self.broken.is_none() {
            self.port.drain(&mut status);
        }
        status
    }

    /// Its state, with everything that was on the wire. That is now in our buffers, and stays there until the slot is
    /// thawed.
    pub fn save(&mut self) -> Result<LinkState, String> {
        if self.broken.is_none() {
            self.port.gather(&mut self.requests, &mut self.replies)?;
        }
        self.withheld = true;
        Ok(LinkState {
            kind: self.kind,
            next: self.next,
            requests: self.requests.clone(),
            replies: self.replies.clone(),
            ring: self.port.image(),
        })
    }

    /// Goes on after a freeze.
    pub fn thaw(&mut self) {
        self.withheld = false;
        self.ready = true;
    }

    /// Goes on where another link was saved, which must fit.
    pub fn load(&mut self, state: LinkState) {
        self.requests = state.requests;
        self.replies = state.replies;
        self.next = state.next;
        self.port.adopt(&state.ring);
    }
}

//! A connection to the control socket: lines in, lines out.

use crate::control::Request;
use crate::error::{Error, Refusal};
use rustix::io::{Errno, read, retry_on_intr, write};
use serde_json::{Value, json};
use std::os::unix::net::UnixStream;

/// The longest line, in bytes.
const LINE: usize = 1 << 16;

/// A connection to the control socket.
#[derive(Debug)]
pub struct Conversation {
    pub stream: UnixStream,
    /// The slot that must stand still before there is an answer. Until then no further request is read.
    pub waits_for: Option<usize>,
    input: Vec<u8>,
    output: Vec<u8>,
    over: bool,
}

impl Conversation {
    pub fn new(stream: UnixStream) -> Conversation {
        Conversation { stream, waits_for: None, input: Vec::new(), output: Vec::new(), over: false }
    }

    /// Reads what has come.
    pub fn receive(&mut self) {
        let mut buffer = [0; 4096];
        match retry_on_intr(|| read(&self.stream, &mut buffer)) {
            Ok(0) => self.over = true,
            Ok(count) => self.input.extend_from_slice(&buffer[..count]),
            Err(Errno::AGAIN) => {}
            Err(_) => self.over = true,
        }
    }

    /// The next request; an error if it is none.
    pub fn next(&mut self) -> Option<Result<Request, Error>> {
        if self.waits_for.is_some() {
            return None;
        }
        let refused = |message| Error::Refused { kind: Refusal::Request, message };
        let Some(end) = self.input.iter().position(|byte| *byte == b'\n') else {
            if self.input.len() > LINE {
                self.input.clear();
                self.over = true;
                return Some(Err(refused(format!("a line of more than {LINE} bytes"))));
            }
            return None;
        };
        let line: Vec<u8> = self.input.drain(..=end).collect();
        Some(serde_json::from_slice(&line).map_err(|e| refused(format!("not a request: {e}"))))
    }

    /// Answers a request.
    pub fn answer(&mut self, answer: Result<Value, Error>) {
        let line = match answer {
            Ok(value) => json!({ "ok": value }),
            Err(error) => json!({ "error": { "kind": kind(&error), "message": error.to_string() } }),
        };
        self.output.extend(line.to_string().into_bytes());
        self.output.push(b'\n');
        self.send();
    }

    /// Sends what there is room for.
    pub fn send(&mut self) {
        if self.output.is_empty() {
            return;
        }
        match retry_on_intr(|| write(&self.stream, &self.output)) {
            Ok(count) => drop(self.output.drain(..count)),
            Err(Errno::AGAIN) => {}
            Err(_) => {
                self.output.clear();
                self.over = true;
            }
        }
    }

    /// Whether answers wait for room.
    pub fn is_writing(&self) -> bool {
        !self.output.is_empty()
    }

    /// Whether the other side has left.
    pub fn is_over(&self) -> bool {
        self.over && self.output.is_empty()
    }
}

fn kind(error: &Error) -> Refusal {
    match error {
        Error::Refused { kind, .. } => *kind,
        Error::State { .. } => Refusal::Mismatch,
        Error::Argument { .. } => Refusal::Unknown,
        _ => Refusal::System,
    }
}

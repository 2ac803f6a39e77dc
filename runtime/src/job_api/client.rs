//! One connection of a job.

use super::Wish;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

/// The longest line, in bytes with its end.
const LINE: usize = 4096;

/// A connection. Nothing here waits.
#[derive(Debug)]
pub(super) struct Client {
    /// None when it has ended or broken the protocol.
    stream: Option<UnixStream>,
    /// Tells connections apart.
    pub(super) number: u64,
    received: Vec<u8>,
    /// It wants to be called.
    pub(super) wants_calls: bool,
    /// It has been told `before`, and not yet `after`.
    pub(super) called: bool,
    /// It owes no answer to that.
    pub(super) answered: bool,
    /// Why it forbids checkpoints.
    pub(super) forbids: Option<String>,
}

/// What is not a matter of the connection alone.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Line {
    Wish(Wish),
    Ready,
    Veto(String),
}

impl Client {
    /// Says hello; None if nobody is there any more.
    pub(super) fn new(stream: UnixStream, number: u64, hello: &str) -> Option<Client> {
        stream.set_nonblocking(true).ok()?;
        let mut client = Client {
            stream: Some(stream),
            number,
            received: Vec::new(),
            wants_calls: false,
            called: false,
            answered: true,
            forbids: None,
        };
        client.say(hello);
        client.is_there().then_some(client)
    }

    pub(super) fn is_there(&self) -> bool {
        self.stream.is_some()
    }

    /// One who does not read what it is told is cut off: its next connection is told everything.
    pub(super) fn say(&mut self, line: &str) {
        let mut line: String = line.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        while line.len() >= LINE {
            line.pop();
        }
        line.push('\n');
        if let Some(stream) = &mut self.stream
            && stream.write_all(line.as_bytes()).is_err()
        {
            self.end();
        }
    }

    /// The next line that concerns others; everything else is answered here.
    pub(super) fn hear(&mut self) -> Option<Line> {
        loop {
            let line = self.line()?;
            let (word, rest) = line.split_once(' ').unwrap_or((&line, ""));
            match word {
                "callbacks" => {
                    self.wants_calls = true;
                    self.say("ok");
                }
                "forbid" => {
                    self.forbids = Some(rest.to_owned());
                    self.say("ok");
                }
                "allow" => {
                    self.forbids = None;
                    self.say("ok");
                }
                "checkpoint" => match wish(rest) {
                    Ok(wish) => return Some(Line::Wish(wish)),
                    Err(why) => self.say(&format!("error {why}")),
                },
                "ready" => return Some(Line::Ready),
                "veto" => return Some(Line::Veto(rest.to_owned())),
                other => self.say(&format!("error {other:?} is no request")),
            }
        }
    }

    fn line(&mut self) -> Option<String> {
        loop {
            if let Some(end) = self.received.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.received.drain(..=end).collect();
                return Some(String::from_utf8_lossy(&line[..end]).into_owned());
            }
            if self.received.len() >= LINE {
                self.end();
                return None;
            }
            let mut bytes = [0; LINE];
            match self.stream.as_mut()?.read(&mut bytes) {
                Ok(read) if read > 0 => self.received.extend(&bytes[..read]),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock => return None,
                _ => {
                    self.end();
                    return None;
                }
            }
        }
    }

    /// To be polled for reading.
    pub(super) fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.stream.as_ref().map(AsFd::as_fd)
    }

    fn end(&mut self) {
        (self.stream, self.forbids, self.answered) = (None, None, true);
        self.received.clear();
    }
}

fn wish(words: &str) -> Result<Wish, String> {
    let mut words = words.split(' ').filter(|word| !word.is_empty());
    let name = words.next().ok_or("a checkpoint needs a name")?;
    if name.contains('/') || name.len() > 200 || matches!(name, "." | "..") {
        return Err(format!("{name:?}: a checkpoint's name has no slash and up to 200 bytes"));
    }
    let leave_running = words.any(|word| word == "leave-running");
    Ok(Wish { name: name.to_owned(), leave_running })
}

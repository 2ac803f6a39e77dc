//! A client of QMP, QEMU's protocol for those who manage it: one JSON object a line.

use ckrun_plugin::{Code, Fault};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::io::{BufRead, BufReader, ErrorKind, IoSlice, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

/// A connection. QEMU serves one at a time; others wait.
#[derive(Debug)]
pub struct Qmp {
    stream: BufReader<UnixStream>,
    until: Instant,
    events: VecDeque<Value>,
    /// Major and minor number of QEMU's version.
    pub version: String,
}

impl Qmp {
    /// Connects, and negotiates. Whatever is asked must be answered by then.
    ///
    /// # Errors
    /// [`Code::Lost`] if QEMU has gone or goes; [`Code::Internal`] if it does not answer.
    pub fn connect(path: &Path, until: Instant) -> Result<Qmp, Fault> {
        let gone = |e| Fault::lost(format!("qemu does not listen at {}: {e}", path.display()));
        Qmp::greet(UnixStream::connect(path).map_err(gone)?, until)
    }

    fn greet(stream: UnixStream, until: Instant) -> Result<Qmp, Fault> {
        let mut qmp =
            Qmp { stream: BufReader::new(stream), until, events: VecDeque::new(), version: String::new() };
        let greeting = qmp.receive("its greeting")?;
        let version = &greeting["QMP"]["version"]["qemu"];
        qmp.version = format!("{}.{}", version["major"], version["minor"]);
        qmp.ask("qmp_capabilities", json!({}))?;
        Ok(qmp)
    }

    /// The socket.
    pub fn socket(&self) -> BorrowedFd<'_> {
        self.stream.get_ref().as_fd()
    }

    /// A command and what it returns.
    ///
    /// # Errors
    /// As [`Qmp::connect`]; [`Code::Internal`] also if QEMU refuses it.
    pub fn ask(&mut self, command: &str, arguments: Value) -> Result<Value, Fault> {
        self.send(command, arguments, None)?;
        self.answer(command)
    }

    /// Gives QEMU a descriptor, by a name.
    ///
    /// # Errors
    /// As [`Qmp::ask`].
    pub fn give(&mut self, name: &str, fd: BorrowedFd<'_>) -> Result<(), Fault> {
        self.send("getfd", json!({ "fdname": name }), Some(fd))?;
        self.answer("getfd").map(drop)
    }

    /// Waits until a migration, out or in, has been completed.
    ///
    /// # Errors
    /// As [`Qmp::ask`]; [`Code::Internal`] if it fails.
    pub fn migrated(&mut self) -> Result<(), Fault> {
        let what = "the end of the migration";
        loop {
            let event = match self.events.pop_front() {
                Some(event) => event,
                None => self.receive(what)?,
            };
            if event["event"] != "MIGRATION" {
                continue;
            }
            match event["data"]["status"].as_str() {
                Some("completed") => return Ok(()),
                Some("failed" | "cancelled") => {
                    let query = self.ask("query-migrate", json!({}))?;
                    let why = query["error-desc"].as_str().unwrap_or("the migration failed").to_owned();
                    return Err(Fault::new(Code::Internal, format!("qemu: {why}")));
                }
                _ => {}
            }
        }
    }

    fn send(&mut self, command: &str, arguments: Value, fd: Option<BorrowedFd<'_>>) -> Result<(), Fault> {
        let line = format!("{}\n", json!({"execute": command, "arguments": arguments}));
        let fds: Vec<BorrowedFd<'_>> = fd.into_iter().collect();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut with = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            with.push(SendAncillaryMessage::ScmRights(&fds));
        }
        let stream = self.stream.get_mut();
        let words = [IoSlice::new(line.as_bytes())];
        let sent = sendmsg(stream.as_fd(), &words, &mut with, SendFlags::NOSIGNAL)
            .map_err(std::io::Error::from)
            .and_then(|sent| stream.write_all(&line.as_bytes()[sent..]));
        sent.map_err(|e| Fault::lost(format!("qemu has gone: {command}: {e}")))
    }

    fn answer(&mut self, command: &str) -> Result<Value, Fault> {
        loop {
            let mut message = self.receive(command)?;
            if let Some(error) = message.get("error") {
                let why = error["desc"].as_str().unwrap_or("no reason");
                return Err(Fault::new(Code::Internal, format!("qemu refuses {command}: {why}")));
            }
            if message.get("return").is_some() {
                return Ok(message["return"].take());
            }
            self.events.push_back(message);
        }
    }

    fn receive(&mut self, what: &str) -> Result<Value, Fault> {
        let left = self.until.saturating_duration_since(Instant::now());
        // No time at all would mean for ever.
        self.stream.get_ref().set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
        let mut line = String::new();
        match self.stream.read_line(&mut line) {
            Ok(0) => Err(Fault::lost(format!("qemu has gone, before {what} came"))),
            Ok(_) => Ok(serde_json::from_str(&line)?),
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                Err(Fault::new(Code::Internal, format!("qemu does not answer: {what}")))
            }
            Err(e) => Err(Fault::lost(format!("qemu has gone, before {what} came: {e}"))),
        }
    }
}

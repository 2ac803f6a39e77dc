//! As much of D-Bus as it takes to talk to systemd: method calls, and one signal.
//!
//! The libraries at hand don't fit a container runtime: they bring an asynchronous stack, link a C library, or wait for
//! ever for a bus that has hung up.

mod wire;

pub(super) use wire::{Body, Message, Property, Value};

use super::io::Io;
use nix::errno::Errno;
use std::collections::VecDeque;
use std::ffi::OsString;
use std::io::{Read, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::time::Duration;
use wire::{ENDIAN, ERROR, SIGNAL, encode};

/// How long an answer, or a job of systemd, may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// The largest message that is taken; systemd's are far smaller.
const MAX_MESSAGE: usize = 1 << 20;

/// Why a call failed.
#[derive(Debug)]
pub(super) enum CallError {
    /// The connection broke, or the answer did not come in time.
    Connection(Errno),
    /// The other side said no: the error's name and its text.
    Refused { name: String, text: String },
}

impl std::fmt::Display for CallError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            CallError::Connection(errno) => f.write_str(&ckrun_virt::error::text(*errno)),
            CallError::Refused { name, text } => write!(f, "{text} ({name})"),
        }
    }
}

impl From<Errno> for CallError {
    fn from(errno: Errno) -> Self {
        CallError::Connection(errno)
    }
}

/// Where a method is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Target {
    pub(super) destination: &'static str,
    pub(super) path: &'static str,
    pub(super) interface: &'static str,
}

const BUS: Target = Target {
    destination: "org.freedesktop.DBus",
    path: "/org/freedesktop/DBus",
    interface: "org.freedesktop.DBus",
};

/// A connection to a bus.
#[derive(Debug)]
pub(super) struct Bus {
    stream: UnixStream,
    serial: u32,
    /// Signals that came while an answer was waited for.
    signals: VecDeque<Message>,
}

impl Bus {
    /// Connects to one of the `unix:` addresses in `addresses` (`unix:path=/run/dbus/system_bus_socket`).
    pub(super) fn connect(addresses: &str) -> Result<Self, CallError> {
        let mut stream = Err(Errno::EADDRNOTAVAIL);
        for address in addresses.split(';') {
            stream = stream.or_else(|_| connect(address));
        }
        let mut bus = Bus { stream: stream?, serial: 0, signals: VecDeque::new() };
        bus.stream.set_read_timeout(Some(PATIENCE)).map_err(errno)?;
        bus.stream.set_write_timeout(Some(PATIENCE)).map_err(errno)?;
        bus.authenticate()?;
        bus.call(BUS, "Hello", "", Body::default())?;
        Ok(bus)
    }

    /// The EXTERNAL mechanism: the bus takes the peer's uid from the socket. No uid is claimed, because in a user
    /// namespace ckrun does not know which one the bus sees. The words after the first need not wait for answers.
    fn authenticate(&mut self) -> Io<()> {
        self.stream.write_all(b"\0AUTH EXTERNAL\r\nDATA\r\nBEGIN\r\n").map_err(errno)?;
        for expected in ["DATA", "OK "] {
            let line = self.line()?;
            if !line.starts_with(expected.as_bytes()) {
                return Err(Errno::EACCES);
            }
        }
        Ok(())
    }

    /// A line of the authentication; byte by byte, because messages follow it.
    fn line(&mut self) -> Io<Vec<u8>> {
        let mut line = Vec::new();
        while !line.ends_with(b"\r\n") {
            let mut byte = [0];
            self.stream.read_exact(&mut byte).map_err(errno)?;
            line.push(byte[0]);
            if line.len() > 4096 {
                return Err(Errno::EMSGSIZE);
            }
        }
        Ok(line)
    }

    /// Asks the bus for the signals that match `rule`.
    pub(super) fn add_match(&mut self, rule: &str) -> Result<(), CallError> {
        self.call(BUS, "AddMatch", "s", Body::default().str(rule)).map(drop)
    }

    /// Calls a method and waits for the answer.
    pub(super) fn call(
        &mut self,
        target: Target,
        method: &str,
        signature: &str,
        body: Body,
    ) -> Result<Message, CallError> {
        self.serial += 1;
        let message = encode(self.serial, target, method, signature, &body);
        self.stream.write_all(&message).map_err(errno)?;
        loop {
            let message = self.receive()?;
            match message.kind {
                SIGNAL => self.signals.push_back(message),
                ERROR if message.answers == self.serial => {
                    let text = message.arguments().str().unwrap_or_default();
                    return Err(CallError::Refused { name: message.error, text });
                }
                _ if message.answers == self.serial => return Ok(message),
                _ => {}
            }
        }
    }

    /// The next signal.
    pub(super) fn signal(&mut self) -> Result<Message, CallError> {
        loop {
            if let Some(signal) = self.signals.pop_front() {
                return Ok(signal);
            }
            let message = self.receive()?;
            if message.kind == SIGNAL {
                self.signals.push_back(message);
            }
        }
    }

    fn receive(&mut self) -> Io<Message> {
        // The fixed part of the header ends with the length of the array of header fields.
        let mut start = [0; 16];
        self.stream.read_exact(&mut start).map_err(errno)?;
        let word =
            |at: usize| u32::from_ne_bytes([start[at], start[at + 1], start[at + 2], start[at + 3]]) as usize;
        let (body, fields) = (word(4), word(12).next_multiple_of(8));
        if start[0] != ENDIAN || body + fields > MAX_MESSAGE {
            return Err(Errno::EBADMSG);
        }
        let mut rest = vec![0; fields + body];
        self.stream.read_exact(&mut rest).map_err(errno)?;
        let body = rest.split_off(fields);
        rest.truncate(word(12));
        Message::decode(start[1], &rest, body).ok_or(Errno::EBADMSG)
    }
}

fn connect(address: &str) -> Io<UnixStream> {
    let pairs = address.strip_prefix("unix:").ok_or(Errno::EAFNOSUPPORT)?;
    let key = |name: &str| pairs.split(',').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='));
    if let Some(name) = key("abstract") {
        let address = SocketAddr::from_abstract_name(unescape(name)).map_err(errno)?;
        return UnixStream::connect_addr(&address).map_err(errno);
    }
    let file = key("path").ok_or(Errno::EAFNOSUPPORT)?;
    let address = SocketAddr::from_pathname(OsString::from_vec(unescape(file))).map_err(errno)?;
    UnixStream::connect_addr(&address).map_err(errno)
}

/// Undoes an address's `%20`.
fn unescape(text: &str) -> Vec<u8> {
    let (first, rest) = text.split_once('%').unwrap_or((text, ""));
    let mut plain = first.as_bytes().to_vec();
    for part in rest.split('%').filter(|part| !part.is_empty()) {
        match part.get(..2).and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(byte) => {
                plain.push(byte);
                plain.extend_from_slice(&part.as_bytes()[2..]);
            }
            None => plain.extend_from_slice(part.as_bytes()),
        }
    }
    plain
}

fn errno(e: std::io::Error) -> Errno {
    match e.kind() {
        std::io::ErrorKind::UnexpectedEof => Errno::ECONNRESET,
        std::io::ErrorKind::WouldBlock => Errno::ETIMEDOUT,
        _ => e.raw_os_error().map_or(Errno::EIO, Errno::from_raw),
    }
}

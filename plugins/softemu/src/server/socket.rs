//! The server's end of a TCP connection or of a Unix socket.

use super::port::{AHEAD, Port, Received};
use crate::control::Drain;
use crate::error::{Doing, Result};
use crate::link::{Kind, Name};
use rustix::event::PollFlags;
use rustix::io::{Errno, ioctl_fionread, read, retry_on_intr, write};
use std::fs;
use std::io;
use std::net::TcpListener;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::Path;

/// A socket that a job connects to: once, or again and again.
#[derive(Debug)]
pub struct Socket {
    name: Name,
    listener: Option<Listener>,
    peer: Option<OwnedFd>,
    reconnect: bool,
    met: bool,
}

#[derive(Debug)]
enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Socket {
    /// Listens on a port of the kernel's choice.
    pub fn tcp(kind: Kind, host: &str, reconnect: bool) -> Result<Socket> {
        let doing = || format!("listen on {host}");
        let listener = TcpListener::bind((host, 0)).doing(doing)?;
        listener.set_nonblocking(true).doing(doing)?;
        let address = listener.local_addr().doing(doing)?.to_string();
        let name = Name { kind, address };
        Ok(Socket { name, listener: Some(Listener::Tcp(listener)), peer: None, reconnect, met: false })
    }

    /// Listens at a path.
    pub fn unix(path: &Path, reconnect: bool) -> Result<Socket> {
        let doing = || format!("listen on {}", path.display());
        let _ = fs::remove_file(path);
        let listener = UnixListener::bind(path).doing(doing)?;
        listener.set_nonblocking(true).doing(doing)?;
        let name = Name { kind: Kind::Unix, address: path.display().to_string() };
        Ok(Socket { name, listener: Some(Listener::Unix(listener)), peer: None, reconnect, met: false })
    }

    /// Takes a connection, if one is waiting.
    fn accept(&mut self) -> io::Result<Received> {
        let accepted = match &self.listener {
            None => return Err(io::Error::other("the job has closed it")),
            Some(Listener::Tcp(listener)) => listener.accept().and_then(|(stream, _)| {
                stream.set_nodelay(true)?;
                stream.set_nonblocking(true)?;
                Ok(stream.into())
            }),
            Some(Listener::Unix(listener)) => listener.accept().and_then(|(stream, _)| {
                stream.set_nonblocking(true)?;
                Ok(stream.into())
            }),
        };
        match accepted {
            Ok(fd) => self.peer = Some(fd),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(Received::Everything),
            Err(e) => return Err(e),
        }
        if !self.reconnect {
            self.listener = None;
        }
        Ok(if std::mem::replace(&mut self.met, true) { Received::Another } else { Received::More })
    }

    /// The job has closed its end.
    fn lost(&mut self, why: &str) -> std::result::Result<Received, String> {
        self.peer = None;
        if self.reconnect { Ok(Received::Everything) } else { Err(format!("the job has closed it: {why}")) }
    }
}

impl Port for Socket {
    fn name(&self) -> &Name {
        &self.name
    }

    fn interest(&self, reading: bool, writing: bool) -> Option<(BorrowedFd<'_>, PollFlags)> {
        let mut flags = PollFlags::empty();
        flags.set(PollFlags::IN, reading);
        flags.set(PollFlags::OUT, writing && self.peer.is_some());
        let fd = match (&self.peer, &self.listener) {
            (Some(peer), _) => peer.as_fd(),
            (None, Some(Listener::Tcp(listener))) => listener.as_fd(),
            (None, Some(Listener::Unix(listener))) => listener.as_fd(),
            (None, None) => return None,
        };
        (!flags.is_empty()).then_some((fd, flags))
    }

    fn receive(&mut self, into: &mut Vec<u8>) -> std::result::Result<Received, String> {
        let Some(peer) = &self.peer else { return self.accept().map_err(|e| e.to_string()) };
        let mut buffer = [0; AHEAD / 4];
        match retry_on_intr(|| read(peer, &mut buffer)) {
            Ok(0) => self.lost("end of file"),
            Ok(count) => {
                into.extend_from_slice(&buffer[..count]);
                Ok(if count == buffer.len() { Received::More } else { Received::Everything })
            }
            Err(Errno::AGAIN) => Ok(Received::Everything),
            Err(errno) => self.lost(&errno.to_string()),
        }
    }

    fn send(&mut self, bytes: &[u8]) -> std::result::Result<usize, String> {
        let Some(peer) = &self.peer else { return Ok(0) };
        match retry_on_intr(|| write(peer, bytes)) {
            Ok(count) => Ok(count),
            Err(Errno::AGAIN) => Ok(0),
            Err(errno) => self.lost(&errno.to_string()).map(|_| 0),
        }
    }

    fn gather(&mut self, requests: &mut Vec<u8>, _: &mut Vec<u8>) -> std::result::Result<(), String> {
        if self.peer.is_none() && self.listener.is_some() {
            self.receive(requests)?;
        }
        while self.peer.is_some() {
            let before = requests.len();
            // The end of a job is seen before a freeze or here, as it happens: it is saved in both cases, with all that it has
            // sent.
            if self.receive(requests).is_err() || requests.len() == before {
                break;
            }
        }
        Ok(())
    }

    fn drain(&self, status: &mut Drain) {
        let Some(peer) = &self.peer else { return };
        status.connected = true;
        status.unserved += ioctl_fionread(peer).unwrap_or(0);
        match self.name.kind {
            Kind::Unix => status.undelivered = outgoing(peer).ok(),
            _ => status.unacknowledged = outgoing(peer).ok(),
        }
    }
}

/// SIOCOUTQ. Of a Unix socket, bytes that the other end has not read; the kernel counts whole buffers with their
/// overhead, so it is 0 or too much. Of TCP, bytes that the other end's kernel has not acknowledged.
fn outgoing(fd: &OwnedFd) -> io::Result<u64> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: the kernel writes one int to the address, which is that of a living int.
    if unsafe { libc::ioctl(fd.as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(u64::try_from(bytes).unwrap_or(0))
}

impl Drop for Socket {
    fn drop(&mut self) {
        if self.name.kind == Kind::Unix {
            let _ = fs::remove_file(&self.name.address);
        }
    }
}

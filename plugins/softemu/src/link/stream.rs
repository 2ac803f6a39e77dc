//! Links that are descriptors: sockets and ptys.

use super::{Kind, Name};
use crate::error::{Doing, Result};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{Mode, OFlags, fcntl_getfl, fcntl_setfl, open};
use rustix::io::{Errno, read, retry_on_intr, write};
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

/// An open descriptor that does not block.
#[derive(Debug)]
pub struct Stream {
    fd: OwnedFd,
}

impl Stream {
    pub fn open(name: &Name) -> Result<Stream> {
        let doing = || format!("open the link {name}");
        let address = &name.address;
        let fd: OwnedFd = match name.kind {
            Kind::Tcp | Kind::Jtag => {
                let stream = TcpStream::connect(address).doing(doing)?;
                stream.set_nodelay(true).doing(doing)?;
                stream.into()
            }
            Kind::Unix => UnixStream::connect(address).doing(doing)?.into(),
            // O_NOCTTY: a testbench that leads a session must not get the emulator as its controlling terminal.
            Kind::Pty | Kind::Ring => {
                open(address, OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC, Mode::empty()).doing(doing)?
            }
        };
        let flags = fcntl_getfl(&fd).doing(doing)?;
        fcntl_setfl(&fd, flags | OFlags::NONBLOCK).doing(doing)?;
        Ok(Stream { fd })
    }

    pub fn send(&mut self, bytes: &[u8]) -> std::result::Result<usize, String> {
        match retry_on_intr(|| write(&self.fd, bytes)) {
            Ok(count) => Ok(count),
            Err(Errno::AGAIN) => Ok(0),
            Err(errno) => Err(words(errno)),
        }
    }

    pub fn receive(&mut self, into: &mut Vec<u8>) -> std::result::Result<usize, String> {
        let mut buffer = [0; 16384];
        match retry_on_intr(|| read(&self.fd, &mut buffer)) {
            Ok(0) => Err("end of file".into()),
            Ok(count) => {
                into.extend_from_slice(&buffer[..count]);
                Ok(count)
            }
            Err(Errno::AGAIN) => Ok(0),
            Err(errno) => Err(words(errno)),
        }
    }

    pub fn wait(&mut self, sending: bool) -> std::result::Result<(), String> {
        let mut interest = PollFlags::IN;
        interest.set(PollFlags::OUT, sending);
        match poll(&mut [PollFd::new(&self.fd, interest)], None) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(errno) => Err(words(errno)),
        }
    }
}

fn words(errno: Errno) -> String {
    nix::errno::Errno::from_raw(errno.raw_os_error()).desc().to_lowercase()
}

//! A unix socket between guest and job. QEMU listens, and has one connection at a time.

use crate::machine::Machine;
use ckrun_plugin::{Address, Code, Fault, Real};
use rustix::io::ioctl_fionread;
use rustix::ioctl::{Getter, ioctl};
use rustix::net::{RecvFlags, SocketAddrUnix, getpeername, getsockname, recv};
use std::io::{Error, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

/// How often a save is repeated because the machine has still taken something from the line.
const TRIES: u32 = 20;

/// `SIOCOUTQ`, which has the number of `TIOCOUTQ`.
const OUTQ: rustix::ioctl::Opcode = 0x5411;

/// Where QEMU listens. In its own words a comma in a value is written as two.
pub fn path(directory: &Path, comma: &str) -> PathBuf {
    directory.join("link").to_string_lossy().replace(',', comma).into()
}

/// The line.
#[derive(Debug)]
pub struct Socket {
    path: PathBuf,
}

impl Socket {
    /// One at which QEMU listens.
    pub fn at(path: PathBuf) -> Socket {
        Socket { path }
    }

    /// Where the job connects to.
    pub fn address(&self) -> Real {
        Address::Unix(self.path.display().to_string()).into()
    }

    /// QEMU's end of the connection; None if there is none.
    ///
    /// # Errors
    /// [`Code::Lost`].
    pub fn near(&self, machine: &Machine) -> Result<Option<OwnedFd>, Fault> {
        let here = SocketAddrUnix::new(&self.path).map_err(Error::from)?;
        let sockets = machine.descriptors(|link, _| link.to_string_lossy().starts_with("socket:"))?;
        let ours = |fd: &OwnedFd| {
            // Who listens has no peer.
            let named = getsockname(fd).ok().and_then(|any| SocketAddrUnix::try_from(any).ok());
            named.as_ref() == Some(&here) && getpeername(fd).is_ok_and(|peer| peer.is_some())
        };
        Ok(sockets.into_iter().find(ours))
    }

    /// Connects in the job's place, and sends what the guest has not read yet.
    ///
    /// # Errors
    /// [`Code::Lost`].
    pub fn connect(&self, requests: &[u8]) -> Result<OwnedFd, Fault> {
        let lost = |e| Fault::lost(format!("the link {}: {e}", self.path.display()));
        let mut stream = UnixStream::connect(&self.path).map_err(lost)?;
        stream.write_all(requests).map_err(lost)?;
        Ok(stream.into())
    }
}

/// Whether the job has read all that was sent to it.
///
/// # Errors
/// The kernel's.
pub fn read_all(near: &OwnedFd) -> Result<bool, Fault> {
    // SAFETY: this ioctl writes an int, and reads nothing.
    let unread = unsafe { ioctl(near, Getter::<OUTQ, i32>::new()) };
    unread.map(|unread| unread == 0).map_err(failed)
}

/// Saves the machine when it takes nothing more from the line; the answer of `save`, and what the guest has not read. That
/// stays there.
///
/// # Errors
/// [`Code::Veto`] if the job has not read everything; the kernel's, and those of `save`.
pub fn save(
    near: Option<&OwnedFd>,
    mut save: impl FnMut() -> Result<u64, Fault>,
) -> Result<(u64, Vec<u8>), Fault> {
    let Some(near) = near else { return Ok((save()?, Vec::new())) };
    if !read_all(near)? {
        return Err(Fault::veto("the job has not read all that the guest has sent"));
    }
    // Also while it stands still, QEMU fills the UART from the socket. The job adds nothing.
    for _ in 0..TRIES {
        let before = ioctl_fionread(near).map_err(failed)?;
        let saved = save()?;
        if ioctl_fionread(near).map_err(failed)? == before {
            let mut requests = vec![0; usize::try_from(before).unwrap_or(0)];
            let mut seen = 0;
            if !requests.is_empty() {
                seen =
                    recv(near, &mut requests[..], RecvFlags::PEEK | RecvFlags::DONTWAIT).map_err(failed)?.0;
            }
            requests.truncate(seen);
            return if seen as u64 == before {
                Ok((saved, requests))
            } else {
                Err(Fault::new(Code::Internal, format!("the link shows {seen} of {before} bytes")))
            };
        }
    }
    Err(Fault::veto("the guest goes on to take what the job has sent"))
}

fn failed(errno: rustix::io::Errno) -> Fault {
    Fault::new(Code::Internal, format!("the link: {}", Error::from(errno)))
}

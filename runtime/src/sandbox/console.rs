//! The container's terminal: a pseudoterminal of the container's own devpts. The client gets the master, the job the
//! slave, which is also the container's /dev/console.

use super::root::{Links, Root};
use super::tree::{attach_fd, clone_fd};
use crate::error::Result;
use ckrun_virt::{Doing, Failure};
use nix::errno::Errno;
use nix::pty::Winsize;
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, UnixAddr, connect,
    recvmsg, sendmsg, socket,
};
use oci_spec::runtime::Process;
use rustix::fs::OFlags;
use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::Path;

/// What clients expect as the text that comes with the descriptor.
const NAME: &[u8] = b"/dev/ptmx";

/// Connects to the socket on which a client waits for the master (`--console-socket`).
pub fn connect_socket(path: &Path) -> Result<OwnedFd> {
    let fd = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)
        .doing(|| "make a socket for the console")?;
    let address = UnixAddr::new(path).doing(|| format!("--console-socket {}", path.display()))?;
    connect(fd.as_raw_fd(), &address).doing(|| format!("connect to --console-socket {}", path.display()))?;
    Ok(fd)
}

/// A new pseudoterminal of the container.
#[derive(Debug)]
pub struct Console {
    master: OwnedFd,
    slave: OwnedFd,
}

impl Console {
    /// Opens one at the container's devpts, with the size that the configuration asks for or else that of the caller's
    /// terminal.
    ///
    /// # Errors
    /// `ENOENT` when the configuration mounts no devpts at /dev/pts.
    pub fn open(root: &Root, process: &Process) -> Result<Console> {
        let flags = OFlags::RDWR | OFlags::NOCTTY;
        let master = root
            .open_as(Path::new("/dev/pts/ptmx"), flags, Links::Follow)
            .map_err(|e| Failure::new("process.terminal: open /dev/pts/ptmx of the container", e.errno))?;
        Self::of_master(master, process)
    }

    fn of_master(master: OwnedFd, process: &Process) -> Result<Console> {
        let unlock: libc::c_int = 0;
        // SAFETY: TIOCSPTLCK reads one int, which lives through the call.
        let answer = unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCSPTLCK, &raw const unlock) };
        ioctl(answer, "unlock the terminal")?;
        // By the master itself, not by a path that an image could have put something else at.
        // Not with O_CLOEXEC: this call leaves it in the flags of the description, and /proc then says of all descriptors
        // of it that an exec closes them.
        // SAFETY: TIOCGPTPEER takes open flags as a plain number and returns a new descriptor.
        let slave =
            unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCGPTPEER, libc::O_RDWR | libc::O_NOCTTY) };
        let slave = ioctl(slave, "open the terminal's slave")?;
        // SAFETY: the kernel has just made this descriptor for us alone.
        let slave = unsafe { OwnedFd::from_raw_fd(slave) };
        rustix::io::fcntl_setfd(&slave, rustix::io::FdFlags::CLOEXEC)
            .doing(|| "open the terminal's slave")?;
        let clip = |n: u64| u16::try_from(n).unwrap_or(u16::MAX);
        let configured = process.console_size().as_ref().map(|size| Winsize {
            ws_row: clip(size.height()),
            ws_col: clip(size.width()),
            ws_xpixel: 0,
            ws_ypixel: 0,
        });
        // The standard input is still the caller's. The job must not see another size first: it may ask only once.
        if let Some(size) = configured.or_else(|| size_of(std::io::stdin().as_fd())) {
            set_size(master.as_fd(), size)?;
        }
        Ok(Console { master, slave })
    }

    /// Shows the slave as the container's /dev/console.
    pub fn bind(&self, root: &Root) -> Result<()> {
        let tree = clone_fd(self.slave.as_fd(), false).doing(|| "bind the terminal")?;
        let target = root.make_file(Path::new("/dev/console"))?;
        attach_fd(tree.as_fd(), target.as_fd()).doing(|| "mount the terminal at /dev/console")?;
        Ok(())
    }

    /// Gives the master away.
    pub fn send_master(&self, to: BorrowedFd<'_>) -> Result<()> {
        let fds = [self.master.as_raw_fd()];
        let rights = [ControlMessage::ScmRights(&fds)];
        sendmsg::<()>(to.as_raw_fd(), &[IoSlice::new(NAME)], &rights, MsgFlags::MSG_NOSIGNAL, None)
            .doing(|| "send the terminal to the console socket")?;
        Ok(())
    }

    /// Makes the slave the controlling terminal and the standard streams. The caller leads a session without one.
    pub fn take(self) -> Result<()> {
        // SAFETY: TIOCSCTTY takes a plain number.
        let answer = unsafe { libc::ioctl(self.slave.as_raw_fd(), libc::TIOCSCTTY, 0) };
        ioctl(answer, "set the controlling terminal")?;
        for number in 0..3 {
            // SAFETY: the standard streams belong to nobody in this process; dup2 replaces them at once.
            let answer = unsafe { libc::dup2(self.slave.as_raw_fd(), number) };
            ioctl(answer, "make the terminal a standard stream")?;
        }
        Ok(())
    }
}

fn ioctl(answer: libc::c_int, what: &str) -> Result<libc::c_int> {
    Ok(Errno::result(answer).doing(|| what)?)
}

/// Sets the window size.
pub fn set_size(terminal: BorrowedFd<'_>, size: Winsize) -> Result<()> {
    // SAFETY: TIOCSWINSZ reads one winsize, which lives through the call.
    let answer = unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) };
    ioctl(answer, "set the terminal's size").map(drop)
}

/// The window size of a terminal; None when it is none.
pub fn size_of(terminal: BorrowedFd<'_>) -> Option<Winsize> {
    let mut size = Winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCGWINSZ writes one winsize, which lives through the call.
    let answer = unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCGWINSZ, &raw mut size) };
    (answer == 0).then_some(size)
}

/// Receives a master that [`Console::send_master`] sent; None when the other side has gone without.
pub fn receive_master(from: BorrowedFd<'_>) -> Result<Option<OwnedFd>> {
    let mut text = [0; 64];
    let mut space = nix::cmsg_space!([std::os::fd::RawFd; 1]);
    let mut slices = [IoSliceMut::new(&mut text)];
    let message = recvmsg::<()>(from.as_raw_fd(), &mut slices, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC)
        .doing(|| "receive the terminal")?;
    for control in message.cmsgs().doing(|| "receive the terminal")? {
        if let ControlMessageOwned::ScmRights(fds) = control {
            // SAFETY: the kernel has just installed these descriptors for us alone.
            return Ok(fds.first().map(|fd| unsafe { OwnedFd::from_raw_fd(*fd) }));
        }
    }
    Ok(None)
}

//! Pseudoterminals, and descriptors that come over sockets.

use crate::pipes::{Lines, any_ready};
use nix::pty::{Winsize, openpty};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, unlockpt};
use std::fs::File;
use std::io::IoSliceMut;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixListener;
use std::path::Path;

/// A new terminal: the test's side and ckrun's.
pub fn terminal(rows: u16, columns: u16) -> (OwnedFd, OwnedFd) {
    let pair = openpty(Some(&size(rows, columns)), None).expect("openpty");
    // Else every child of a test process would keep it open.
    for fd in [&pair.master, &pair.slave] {
        rustix::io::fcntl_setfd(fd, rustix::io::FdFlags::CLOEXEC).expect("F_SETFD");
    }
    (pair.master, pair.slave)
}

/// A new terminal of the devpts with this `ptmx`.
pub fn terminal_of(ptmx: &Path) -> (OwnedFd, OwnedFd) {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let master = File::options().read(true).write(true).custom_flags(libc::O_NOCTTY).open(ptmx);
    let master = OwnedFd::from(master.unwrap_or_else(|e| panic!("{}: {e}", ptmx.display())));
    unlockpt(&master).expect("unlock a terminal");
    let slave = ioctl_tiocgptpeer(&master, flags).expect("open a terminal");
    (master, slave)
}

fn size(rows: u16, columns: u16) -> Winsize {
    Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 }
}

/// Changes the size of a terminal.
pub fn resize(terminal: impl AsFd, rows: u16, columns: u16) {
    let size = size(rows, columns);
    // SAFETY: TIOCSWINSZ reads one winsize, which lives through the call.
    let answer = unsafe { libc::ioctl(terminal.as_fd().as_raw_fd(), libc::TIOCSWINSZ, &raw const size) };
    assert_eq!(answer, 0, "TIOCSWINSZ: {}", std::io::Error::last_os_error());
}

/// Another handle on the same terminal, for reading.
pub fn listen_to(terminal: &OwnedFd) -> Lines {
    Lines::new(terminal.try_clone().expect("dup"))
}

/// Waits for somebody to connect and send descriptors; those, and the text that came with them.
pub fn receive_fds(at: &UnixListener) -> (Vec<OwnedFd>, Vec<u8>) {
    any_ready(&[at.as_fd()]);
    let (stream, _) = at.accept().expect("accept");
    let mut text = vec![0; 64 << 10];
    let mut space = nix::cmsg_space!([RawFd; 8]);
    let mut fds = Vec::new();
    any_ready(&[stream.as_fd()]);
    let length = {
        let mut slices = [IoSliceMut::new(&mut text)];
        let message =
            recvmsg::<()>(stream.as_raw_fd(), &mut slices, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC)
                .expect("recvmsg");
        for control in message.cmsgs().expect("control messages") {
            if let ControlMessageOwned::ScmRights(received) = control {
                // SAFETY: the kernel has just installed these descriptors for us alone.
                fds.extend(received.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
            }
        }
        message.bytes
    };
    text.truncate(length);
    (fds, text)
}

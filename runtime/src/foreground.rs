//! ckrun in the foreground of a job: it passes signals on, carries the terminal's bytes, and waits for the end.

use crate::error::Result;
use crate::sandbox::console;
use ckrun_virt::{Doing, Failure, Process};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{read, write};
use std::io::{IsTerminal, stdin, stdout};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// The state before there is a job to wait for.
#[derive(Debug)]
pub struct Foreground {
    signals: SignalFd,
    terminal: Option<OwnedFd>,
}

impl Foreground {
    /// Holds back all signals from now on, so that none is lost between the start of the job and [`Foreground::wait`].
    pub fn prepare() -> Result<Foreground> {
        let mut caught = SigSet::all();
        // What a bug of ours raises must not wait.
        for own in [Signal::SIGSEGV, Signal::SIGBUS, Signal::SIGILL, Signal::SIGFPE, Signal::SIGABRT] {
            caught.remove(own);
        }
        caught.thread_block().doing(|| "block signals")?;
        let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
        let signals = SignalFd::with_flags(&caught, flags).doing(|| "make a signalfd")?;
        Ok(Foreground { signals, terminal: None })
    }

    /// Gives the end of a socket to which the job's terminal is to be sent.
    pub fn offer_terminal(&mut self) -> Result<OwnedFd> {
        let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::Stream, None, SockFlag::SOCK_CLOEXEC)
            .doing(|| "make a socket pair for the terminal")?;
        self.terminal = Some(ours);
        Ok(theirs)
    }

    /// Serves the job until `process`, our child, ends. The answer is its exit status, 128 + N for signal N.
    pub fn wait(self, process: &Process) -> Result<i32> {
        let relay = match &self.terminal {
            Some(socket) => console::receive_master(socket.as_fd())?.map(Relay::start).transpose()?,
            None => None,
        };
        self.serve(process, relay)?;
        loop {
            match waitpid(process.pid(), None) {
                Err(Errno::EINTR) => {}
                Ok(WaitStatus::Exited(_, code)) => return Ok(code),
                Ok(WaitStatus::Signaled(_, signal, _)) => return Ok(128 + signal as i32),
                Ok(_) => {}
                Err(e) => return Err(Failure::new("wait for the job", e).into()),
            }
        }
    }

    fn serve(&self, process: &Process, mut relay: Option<Relay>) -> Result<()> {
        loop {
            let mut fds = vec![
                PollFd::new(process.as_fd(), PollFlags::POLLIN),
                PollFd::new(self.signals.as_fd(), PollFlags::POLLIN),
            ];
            relay.iter().for_each(|r| r.wants(&mut fds));
            match poll(&mut fds, PollTimeout::NONE) {
                Err(Errno::EINTR) => continue,
                other => other.doing(|| "wait for the job")?,
            };
            let ready: Vec<bool> = fds.iter().map(|fd| fd.any().unwrap_or(false)).collect();
            if ready[1] {
                self.pass_signals_on(process, relay.as_ref())?;
            }
            if let Some(relay) = &mut relay {
                relay.carry()?;
            }
            if ready[0] {
                // The job's last words may still be in the terminal.
                return relay.map_or(Ok(()), Relay::drain);
            }
        }
    }

    fn pass_signals_on(&self, process: &Process, relay: Option<&Relay>) -> Result<()> {
        while let Ok(Some(info)) = self.signals.read_signal() {
            match info.ssi_signo.cast_signed() {
                // Ours: a hook has ended, and what Go programs use among themselves.
                libc::SIGCHLD | libc::SIGURG | libc::SIGPIPE => {}
                libc::SIGWINCH if relay.is_some() => relay.map_or(Ok(()), Relay::resize)?,
                // A job that has just ended needs no signal, and one of a user whom we may not signal must still be
                // waited for.
                number => match process.signal_number(number) {
                    Err(e) if e.errno != Errno::ESRCH => log::warn!("{e}"),
                    _ => {}
                },
            }
        }
        Ok(())
    }
}

/// Carries bytes between the caller's terminal and the job's.
#[derive(Debug)]
struct Relay {
    master: OwnedFd,
    saved: Option<Termios>,
    to_job: Vec<u8>,
    to_user: Vec<u8>,
    input_open: bool,
    master_open: bool,
}

impl Relay {
    fn start(master: OwnedFd) -> Result<Relay> {
        fcntl(&master, FcntlArg::F_SETFL(OFlag::O_NONBLOCK | OFlag::O_RDWR))
            .doing(|| "set up the terminal")?;
        let saved = if stdin().is_terminal() {
            let saved = tcgetattr(stdin()).doing(|| "read the terminal's settings")?;
            let mut raw = saved.clone();
            cfmakeraw(&mut raw);
            tcsetattr(stdin(), SetArg::TCSANOW, &raw).doing(|| "set the terminal to raw")?;
            Some(saved)
        } else {
            None
        };
        let relay = Relay {
            master,
            saved,
            to_job: Vec::new(),
            to_user: Vec::new(),
            input_open: true,
            master_open: true,
        };
        if stdin().is_terminal() {
            relay.resize()?;
        }
        Ok(relay)
    }

    fn resize(&self) -> Result<()> {
        match console::size_of(stdin().as_fd()) {
            Some(size) => console::set_size(self.master.as_fd(), size),
            None => Ok(()),
        }
    }

    /// A side is read only when what it said before has been passed on: so neither can flood us.
    fn wants<'a>(&'a self, fds: &mut Vec<PollFd<'a>>) {
        // SAFETY: descriptor 0 is open for ckrun's whole life; nothing here closes it.
        let input = unsafe { BorrowedFd::borrow_raw(0) };
        // SAFETY: as above, for descriptor 1.
        let output = unsafe { BorrowedFd::borrow_raw(1) };
        if self.input_open && self.to_job.is_empty() {
            fds.push(PollFd::new(input, PollFlags::POLLIN));
        }
        let mut master = PollFlags::empty();
        master.set(PollFlags::POLLIN, self.to_user.is_empty());
        master.set(PollFlags::POLLOUT, !self.to_job.is_empty());
        if self.master_open && !master.is_empty() {
            fds.push(PollFd::new(self.master.as_fd(), master));
        }
        if !self.to_user.is_empty() {
            fds.push(PollFd::new(output, PollFlags::POLLOUT));
        }
    }

    fn carry(&mut self) -> Result<()> {
        let (input, output) = (stdin(), stdout());
        if self.input_open && self.to_job.is_empty() && readable(input.as_fd()) {
            self.input_open = fill(&input, &mut self.to_job)?;
            if !self.input_open && self.saved.is_none() {
                // The end of a pipe is what ^D is on a terminal.
                self.to_job.push(4);
            }
        }
        if self.master_open && self.to_user.is_empty() {
            // EIO: nobody holds the slave any more, or nobody has opened it yet.
            self.master_open = fill(&self.master, &mut self.to_user)?;
        }
        flush(&self.master, &mut self.to_job)?;
        flush(&output, &mut self.to_user)
    }

    fn drain(mut self) -> Result<()> {
        self.input_open = false;
        while self.master_open || !self.to_user.is_empty() {
            if self.to_user.is_empty() && !readable(self.master.as_fd()) {
                break;
            }
            self.carry()?;
        }
        Ok(())
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        if let Some(saved) = &self.saved {
            let _ = tcsetattr(stdin(), SetArg::TCSANOW, saved);
        }
    }
}

fn readable(fd: BorrowedFd<'_>) -> bool {
    let mut fds = [PollFd::new(fd, PollFlags::POLLIN)];
    matches!(poll(&mut fds, PollTimeout::ZERO), Ok(1..))
}

/// Reads once; false at the end.
fn fill(from: impl AsFd, buffer: &mut Vec<u8>) -> Result<bool> {
    let mut bytes = [0; 16 << 10];
    match read(from, &mut bytes) {
        Ok(0) | Err(Errno::EIO) => Ok(false),
        Ok(length) => {
            buffer.extend_from_slice(&bytes[..length]);
            Ok(true)
        }
        Err(Errno::EAGAIN | Errno::EINTR) => Ok(true),
        Err(e) => Err(Failure::new("read a terminal", e).into()),
    }
}

fn flush(to: impl AsFd, buffer: &mut Vec<u8>) -> Result<()> {
    if buffer.is_empty() {
        return Ok(());
    }
    match write(to, buffer) {
        Ok(length) => drop(buffer.drain(..length)),
        Err(Errno::EAGAIN | Errno::EINTR) => {}
        // The other side has gone; what is left has no reader.
        Err(Errno::EIO | Errno::EPIPE) => buffer.clear(),
        Err(e) => return Err(Failure::new("write to a terminal", e).into()),
    }
    Ok(())
}

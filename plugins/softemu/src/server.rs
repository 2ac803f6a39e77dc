//! The server: slots of the design, and a control socket. One thread does everything, in one poll loop.
//!
//! In the server's directory are `control`, and for each slot that has such links `slotN.socket`, `slotN.pty` (a
//! symbolic link to the pty) and `slotN.ring` (one to the ring). They end with the claim.

mod bitbang;
mod conversation;
mod link;
mod port;
mod pty;
mod ring;
mod slot;
mod socket;
mod verbs;

use crate::design::{Design, Parameters};
use crate::error::{Doing, Error, Result};
use crate::hardware::Hardware;
use conversation::Conversation;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FlockOperation, flock};
use slot::Slot;
use std::fs::{self, File};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use verbs::Outcome;

/// What a server is made of.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// Directory for the control socket and the links; made if absent
    #[arg(long, value_name = "DIR")]
    pub directory: PathBuf,
    /// How many slots
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub slots: usize,
    /// Address for TCP links; the kernel chooses the ports
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1")]
    pub listen: String,
    /// Directory for rings
    #[arg(long, value_name = "DIR", default_value = "/dev/shm")]
    pub memory: PathBuf,
    #[command(flatten)]
    #[allow(missing_docs, reason = "a doc comment would become the help text of the command")]
    pub parameters: Parameters,
}

/// A running server.
#[derive(Debug)]
pub struct Server<H = Design> {
    options: Options,
    slots: Vec<Slot<H>>,
    listener: UnixListener,
    signals: SignalFd,
    conversations: Vec<Conversation>,
    // Held until the end.
    _lock: File,
}

/// Who a poll was for.
#[derive(Debug, Clone, Copy)]
enum Who {
    Signals,
    Listener,
    Conversation(usize),
    Link(usize, usize),
}

impl<H: Hardware> Server<H> {
    /// Opens the control socket. Links are made with the claims.
    pub fn start(mut options: Options) -> Result<Server<H>> {
        options.parameters = options.parameters.checked()?;
        let directory = std::path::absolute(&options.directory).doing(|| "resolve the directory")?;
        options.directory = directory.clone();
        fs::create_dir_all(&directory).doing(|| format!("make {}", directory.display()))?;
        let lock = lock(&directory)?;
        clear(&directory)?;
        let mut mask = SigSet::empty();
        mask.add(Signal::SIGTERM);
        mask.add(Signal::SIGINT);
        mask.thread_block().map_err(std::io::Error::from).doing(|| "block signals")?;
        let signals = SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
            .map_err(std::io::Error::from)
            .doing(|| "make a signalfd")?;
        let path = directory.join("control");
        let listener = UnixListener::bind(&path).doing(|| format!("listen on {}", path.display()))?;
        listener.set_nonblocking(true).doing(|| format!("listen on {}", path.display()))?;
        let slots = (0..options.slots).map(|number| Slot::new(number, options.parameters));
        let slots = slots.collect::<Result<_>>()?;
        Ok(Server { options, slots, listener, signals, conversations: Vec::new(), _lock: lock })
    }

    /// Serves until SIGTERM or SIGINT.
    pub fn run(&mut self) -> Result<()> {
        loop {
            let mut busy = false;
            for slot in &mut self.slots {
                busy |= slot.turn();
            }
            self.answer_those_who_wait();
            self.conversations.retain(|conversation| !conversation.is_over());
            for who in self.wait(busy)? {
                match who {
                    Who::Signals => {
                        self.slots.clear();
                        let _ = fs::remove_file(self.options.directory.join("control"));
                        return Ok(());
                    }
                    Who::Listener => self.accept()?,
                    Who::Conversation(n) => self.converse(n),
                    // A conversation before it may have released the slot.
                    Who::Link(slot, link) => {
                        if let Some(link) = self.slots[slot].links.get_mut(link) {
                            link.port.acknowledge();
                            link.ready = true;
                        }
                    }
                }
            }
        }
    }

    /// Waits until something happens, or only looks, if `busy`.
    fn wait(&self, busy: bool) -> Result<Vec<Who>> {
        let mut who = vec![Who::Signals, Who::Listener];
        let mut fds =
            vec![PollFd::new(&self.signals, PollFlags::IN), PollFd::new(&self.listener, PollFlags::IN)];
        for (n, conversation) in self.conversations.iter().enumerate() {
            let mut flags = PollFlags::empty();
            flags.set(PollFlags::IN, conversation.waits_for.is_none());
            flags.set(PollFlags::OUT, conversation.is_writing());
            // With no flags the kernel would still report a hang-up, again and again.
            if !flags.is_empty() {
                who.push(Who::Conversation(n));
                fds.push(PollFd::new(&conversation.stream, flags));
            }
        }
        for (s, slot) in self.slots.iter().enumerate() {
            for (l, link) in slot.links.iter().enumerate() {
                let reading = !slot.frozen && !slot.is_busy() && link.is_reading();
                if let Some((fd, flags)) = link.port.interest(reading, link.is_writing()) {
                    who.push(Who::Link(s, l));
                    fds.push(PollFd::from_borrowed_fd(fd, flags));
                }
            }
        }
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        match poll(&mut fds, busy.then_some(&now)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno).doing(|| "poll"),
        }
        Ok(who.into_iter().zip(&fds).filter(|(_, fd)| !fd.revents().is_empty()).map(|(who, _)| who).collect())
    }

    fn accept(&mut self) -> Result<()> {
        match self.listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(true).doing(|| "accept a control connection")?;
                self.conversations.push(Conversation::new(stream));
                Ok(())
            }
            // Whoever wanted to connect has gone again.
            Err(_) => Ok(()),
        }
    }

    /// Reads and serves the requests of a conversation.
    fn converse(&mut self, n: usize) {
        self.conversations[n].send();
        self.conversations[n].receive();
        while let Some(request) = self.conversations[n].next() {
            match request.and_then(|request| self.serve(request)) {
                Ok(Outcome::Now(value)) => self.conversations[n].answer(Ok(value)),
                Ok(Outcome::WhenStill(slot)) => self.conversations[n].waits_for = Some(slot),
                Err(error) => self.conversations[n].answer(Err(error)),
            }
            self.answer_those_who_wait();
        }
    }

    /// Answers those whose slots stand still now.
    fn answer_those_who_wait(&mut self) {
        for n in 0..self.conversations.len() {
            if let Some(slot) = self.conversations[n].waits_for
                && let Some(value) = self.still(slot)
            {
                self.conversations[n].waits_for = None;
                self.conversations[n].answer(Ok(value));
            }
        }
    }
}

/// Makes sure that the directory is this server's alone. The kernel lets go of the lock when the server dies.
fn lock(directory: &Path) -> Result<File> {
    let path = directory.join("lock");
    let file = File::create(&path).doing(|| format!("make {}", path.display()))?;
    flock(&file, FlockOperation::NonBlockingLockExclusive).map_err(|_| Error::Argument {
        what: format!("directory {}", directory.display()),
        why: "another server uses it".into(),
    })?;
    Ok(file)
}

/// Removes what a server that was killed has left: its sockets, its links, and the rings that they lead to.
fn clear(directory: &Path) -> Result<()> {
    let doing = || format!("clear {}", directory.display());
    for entry in fs::read_dir(directory).doing(doing)? {
        let path = entry.doing(doing)?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name.starts_with("slot")
            && name.ends_with(".ring")
            && let Ok(ring) = fs::read_link(&path)
        {
            let _ = fs::remove_file(ring);
        }
        if name == "control" || name.starts_with("slot") {
            fs::remove_file(&path).doing(doing)?;
        }
    }
    Ok(())
}

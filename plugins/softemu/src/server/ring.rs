//! The server's end of a ring. A futex can't be polled for together with descriptors: a thread sleeps on the doorbell
//! and passes each ring on to an eventfd. It does nothing else.

use super::port::{AHEAD, Port, Received};
use crate::control::Drain;
use crate::error::{Doing, Result};
use crate::link::{Kind, Name, ring::Ring};
use rustix::event::{EventfdFlags, PollFlags, eventfd};
use rustix::io::{read, write};
use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

/// Bytes in each queue.
const SIZE: u32 = 1 << 16;

/// A ring and its doorbell.
#[derive(Debug)]
pub struct RingPort {
    name: Name,
    shown: PathBuf,
    shared: Arc<Shared>,
    sleeper: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    ring: Ring,
    rung: OwnedFd,
    stop: AtomicBool,
}

impl RingPort {
    /// Makes one at `path`, with a symbolic link to it at `shown`.
    pub fn open(path: &Path, shown: &Path) -> Result<RingPort> {
        let ring = Ring::create(path, SIZE)?;
        let rung = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC).doing(|| "make an eventfd")?;
        let shared = Arc::new(Shared { ring, rung, stop: AtomicBool::new(false) });
        let theirs = shared.clone();
        // Read here: a job may ring before the thread runs.
        let seen = shared.ring.bell();
        let sleeper = std::thread::Builder::new()
            .name("doorbell".into())
            .spawn(move || listen(&theirs, seen))
            .doing(|| "start a thread")?;
        let name = Name { kind: Kind::Ring, address: path.display().to_string() };
        let port = RingPort { name, shown: shown.to_owned(), shared, sleeper: Some(sleeper) };
        let _ = fs::remove_file(shown);
        symlink(path, shown).doing(|| format!("link {} to {}", shown.display(), path.display()))?;
        Ok(port)
    }
}

/// The thread's whole life.
fn listen(shared: &Shared, mut seen: u32) {
    while !shared.stop.load(Ordering::SeqCst) {
        shared.ring.wait_for_job(seen);
        let now = shared.ring.bell();
        if now != seen {
            let _ = write(&shared.rung, &1u64.to_ne_bytes());
        }
        seen = now;
    }
}

impl Port for RingPort {
    fn name(&self) -> &Name {
        &self.name
    }

    fn interest(&self, reading: bool, writing: bool) -> Option<(BorrowedFd<'_>, PollFlags)> {
        // The job rings both when it has sent and when it has made room.
        (reading || writing).then_some((self.shared.rung.as_fd(), PollFlags::IN))
    }

    fn acknowledge(&mut self) {
        let _ = read(&self.shared.rung, &mut [0u8; 8]);
    }

    fn receive(&mut self, into: &mut Vec<u8>) -> std::result::Result<Received, String> {
        let count = self.shared.ring.server().receive(into, AHEAD)?;
        Ok(if count == AHEAD { Received::More } else { Received::Everything })
    }

    fn send(&mut self, bytes: &[u8]) -> std::result::Result<usize, String> {
        self.shared.ring.server().send(bytes)
    }

    /// Nothing: the ring's image has it all, where the job expects it.
    fn gather(&mut self, _: &mut Vec<u8>, _: &mut Vec<u8>) -> std::result::Result<(), String> {
        Ok(())
    }

    fn drain(&self, status: &mut Drain) {
        let side = self.shared.ring.server();
        status.connected = true;
        status.unserved += u64::from(side.incoming().unwrap_or(0));
        status.undelivered = side.outgoing().ok().map(u64::from);
    }

    fn image(&self) -> Vec<u8> {
        self.shared.ring.image()
    }

    fn fits(&self, image: &[u8]) -> bool {
        self.shared.ring.fits(image)
    }

    fn adopt(&mut self, image: &[u8]) {
        self.shared.ring.adopt(image);
    }
}

impl Drop for RingPort {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.shared.ring.wake_server();
        if let Some(sleeper) = self.sleeper.take() {
            let _ = sleeper.join();
        }
        self.shared.ring.close();
        let _ = fs::remove_file(&self.name.address);
        let _ = fs::remove_file(&self.shown);
    }
}

//! What a guest says about itself, in a file that it rewrites: see guests/guest.h.

use crate::pipes::{PATIENCE, any_ready, pidfd};
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Instant;

/// The status file of a guest.
#[derive(Debug)]
pub struct Status {
    path: PathBuf,
    events: OwnedFd,
}

impl Status {
    /// The file exists.
    pub fn at(path: &Path) -> Status {
        let events = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC).expect("inotify_init1");
        inotify::add_watch(&events, path, WatchFlags::MODIFY).expect("watch a status file");
        Status { path: path.to_owned(), events }
    }

    /// How often the guest has found itself well.
    pub fn count(&self) -> u64 {
        // Empty while a shell writes it anew.
        let text = fs::read_to_string(&self.path).expect("read a status file");
        match text.trim_end().split_once(' ') {
            None => 0,
            Some(("OK", count)) => count.parse().unwrap_or_else(|e| panic!("{text:?}: {e}")),
            Some(_) => panic!("{}", text.trim_end()),
        }
    }

    /// Waits until the guest, whose first process is `init`, has found itself well `more` times from now on.
    pub fn rises(&self, more: u64, init: i32) {
        let end = pidfd(init);
        let mut last = self.count();
        let (target, mut deadline) = (last + more, Instant::now() + PATIENCE);
        while self.count() < target {
            if self.count() > last {
                (last, deadline) = (self.count(), Instant::now() + PATIENCE);
            }
            assert!(Instant::now() < deadline, "the guest stands still at {last}");
            let ready = any_ready(&[self.events.as_fd(), end.as_fd()]);
            assert!(!ready[1] || self.count() >= target, "the guest has ended at {}", self.count());
            // What happened is read from the file.
            while rustix::io::read(&self.events, &mut [0; 4096]).is_ok() {}
        }
    }
}

//! A child that makes one call and exits with the negative of its result.

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid};
use nix::unistd::Pid;

/// It is killed when the test gives up on it.
pub struct Child(pub Pid);

impl Child {
    /// Waits until it sleeps in its call.
    #[track_caller]
    pub fn asleep(&self) {
        assert!(self.falls_asleep(), "the call has ended");
    }

    /// Waits until it sleeps in its call; false when that has ended before.
    pub fn falls_asleep(&self) -> bool {
        let read = |name| std::fs::read_to_string(format!("/proc/{}/{name}", self.0)).unwrap();
        // Also a thread that has just been let go shows its call for a moment, but as a traced one.
        while !(read("stat").contains(") S ") && read("syscall").starts_with(|c: char| c.is_ascii_digit())) {
            // The end itself is left to who waits for it.
            let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
            if waitid(Id::Pid(self.0), flags).unwrap() != WaitStatus::StillAlive {
                return false;
            }
            std::thread::yield_now();
        }
        true
    }

    /// What it has exited with.
    pub fn result(self) -> i32 {
        let WaitStatus::Exited(_, code) = waitpid(self.0, None).unwrap() else { panic!("it did not exit") };
        std::mem::forget(self);
        code
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        kill(self.0, Signal::SIGKILL).unwrap();
        waitpid(self.0, Some(WaitPidFlag::__WALL)).unwrap();
    }
}

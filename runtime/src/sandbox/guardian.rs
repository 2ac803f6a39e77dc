//! A process that clears up when ckrun is killed.
//!
//! ckrun clears up after every failure itself, but nobody can after `kill -9` of oneself. `run` and `create` leave a
//! container in that case, which `ckrun delete` removes; a restart that has not come to its end leaves nothing, so that
//! it can be tried again under the same name. So a copy of ckrun, made before there is anything to clear up, waits for
//! ckrun's end on a pipe. It is out of reach of the signals that end ckrun: those of the terminal, of its process group, and
//! of a parent-death signal.
//!
//! It holds the container's lock together with ckrun: nobody else comes near the container before it is done.

use super::namespaces::spawn;
use crate::error::Result;
use crate::state::InitProcess;
use ckrun_virt::sys::Clone3;
use ckrun_virt::{Doing, Process};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::signal::{SigSet, SigmaskHow, sigprocmask};
use nix::sys::wait::waitpid;
use nix::unistd::{pipe2, setsid};
use rustix::fs::{Mode, OFlags, open};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, RawFd};

/// ckrun's hold on its guardian. When it is dropped the guardian is dismissed and has gone.
#[derive(Debug)]
pub struct Guardian {
    line: File,
    process: Process,
}

/// The last word to a guardian; any other is the id of an init and when that started.
const DONE: [u8; WORD] = [0; WORD];
const WORD: usize = 16;

impl Guardian {
    /// Makes one. After a sudden end of ckrun it calls `clear`, which is told of the init if ckrun had told it. It keeps
    /// `lock` open and no other descriptor of ckrun's: nobody is to wait for the end of a stream because of it.
    ///
    /// # Errors
    /// The kernel's.
    pub fn post(lock: Option<BorrowedFd<'_>>, clear: impl FnOnce(Option<InitProcess>)) -> Result<Guardian> {
        let (told, line) = pipe2(OFlag::O_CLOEXEC).doing(|| "make a pipe for the guardian")?;
        let lock = lock.map(|fd| fd.as_raw_fd());
        let process = spawn(&Clone3::default(), move || {
            let told = told.into_raw_fd();
            if detach(told, lock.unwrap_or(told)).is_err() {
                return 1;
            }
            // SAFETY: the read end of the pipe, which nobody else owns here any more.
            let told = unsafe { File::from_raw_fd(told) };
            if let Some(init) = sudden_end(told) {
                clear(init);
            }
            0
        })?;
        Ok(Guardian { line: line.into(), process })
    }

    /// From now on the container has an init, which must not outlive ckrun either.
    ///
    /// # Errors
    /// `EPIPE`: the guardian has been killed.
    pub fn tell(&self, init: InitProcess) -> Result<()> {
        let mut word = [0; WORD];
        word[..4].copy_from_slice(&init.pid.to_ne_bytes());
        word[8..].copy_from_slice(&init.started.to_ne_bytes());
        Ok((&self.line).write_all(&word).doing(|| "talk to the guardian")?)
    }

    /// There is nothing to be cleared up any more.
    pub fn dismiss(&self) {
        // One that has been killed needs no dismissal.
        let _ = (&self.line).write_all(&DONE);
    }
}

impl Drop for Guardian {
    fn drop(&mut self) {
        self.dismiss();
        // Else its end would be reported to whoever becomes its parent when we end.
        while waitpid(self.process.pid(), None) == Err(Errno::EINTR) {}
    }
}

/// Cuts this process off from everything that ckrun has to do with, but for two descriptors.
fn detach(told: RawFd, lock: RawFd) -> Result<()> {
    setsid().doing(|| "start a session")?;
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), None).doing(|| "block signals")?;
    log::set_max_level(log::LevelFilter::Off);
    let null = open(c"/dev/null", OFlags::RDWR, Mode::empty()).doing(|| "open /dev/null")?.into_raw_fd();
    for stream in 0..3 {
        // SAFETY: plain numbers; the standard streams have no owner.
        Errno::result(unsafe { libc::dup2(null, stream) }).doing(|| "let go of the standard streams")?;
    }
    let mut keep = [told, lock];
    keep.sort_unstable();
    let mut from = 3;
    for end in keep.into_iter().chain([RawFd::MAX]) {
        if from < end {
            // SAFETY: what is closed belongs to values that are copies of ckrun's, and this process ends without dropping
            // them.
            let closed = unsafe { libc::close_range(from.cast_unsigned(), (end - 1).cast_unsigned(), 0) };
            Errno::result(closed).doing(|| "close descriptors")?;
        }
        from = end.saturating_add(1);
    }
    Ok(())
}

/// Waits for ckrun's last word or its end. None after the word; otherwise what it said of an init.
fn sudden_end(mut told: File) -> Option<Option<InitProcess>> {
    let mut init = None;
    let mut word = [0; WORD];
    // A write of so few bytes is whole or absent (pipe(7)).
    while told.read_exact(&mut word).is_ok() {
        if word == DONE {
            return None;
        }
        let (mut pid, mut started) = ([0; 4], [0; 8]);
        pid.copy_from_slice(&word[..4]);
        started.copy_from_slice(&word[8..]);
        init = Some(InitProcess { pid: i32::from_ne_bytes(pid), started: u64::from_ne_bytes(started) });
    }
    Some(init)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sandbox::testing::in_child;
    use nix::fcntl::{Flock, FlockArg};
    use std::os::fd::AsFd;
    use std::path::Path;

    /// Stands in for ckrun: posts a guardian that writes what it knows to `said`, does `deed`, and ends without a word, if
    /// `deed` does not drop the guardian. It holds `lock` until then.
    fn ckrun(said: &Path, lock: Option<&Path>, deed: impl FnOnce(Guardian) -> Option<Guardian>) {
        in_child(|| {
            let held = lock.map(locked);
            let guardian = Guardian::post(held.as_ref().map(|held| held.as_fd()), |init| {
                let open = std::fs::read_dir("/proc/self/fd").unwrap().count() - 1;
                std::fs::write(said, format!("{init:?} {open}")).unwrap();
            });
            // No destructor, as after a kill -9: neither a dismissal nor an unlocking.
            std::mem::forget(deed(guardian.unwrap()));
            std::mem::forget(held);
        });
    }

    /// Waits until nobody holds the lock.
    fn locked(path: &Path) -> Flock<File> {
        Flock::lock(File::open(path).unwrap(), FlockArg::LockExclusive).unwrap()
    }

    #[test]
    fn after_a_sudden_end_it_clears_up_and_only_then_lets_go_of_the_lock() {
        let dir = tempfile::tempdir().unwrap();
        let said = dir.path().join("said");
        for told in [None, Some(InitProcess { pid: 42, started: 7 })] {
            ckrun(&said, Some(dir.path()), |guardian| {
                told.iter().for_each(|init| guardian.tell(*init).unwrap());
                Some(guardian)
            });
            let _again = locked(dir.path());
            // The streams and the lock are open, the pipe has been closed.
            assert_eq!(std::fs::read_to_string(&said).unwrap(), format!("{told:?} 4"));
        }
    }

    #[test]
    fn a_dismissed_one_does_nothing_and_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let said = dir.path().join("said");
        ckrun(&said, None, |guardian| {
            let pid = guardian.process.pid();
            drop(guardian);
            assert_eq!(waitpid(pid, None), Err(Errno::ECHILD));
            None
        });
        assert!(!said.exists());
    }
}

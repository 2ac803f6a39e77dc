//! A process that clears up when ckrun is killed.
//!
//! ckrun clears up after every failure itself, but nobody can after `kill -9` of oneself. `run` and `create` leave a
//! container in that case, which `ckrun delete` removes; a restart that has not come to its end leaves nothing, so that
//! it can be tried again under the same name. So a process, made before there is anything to clear up, waits for ckrun's
//! end on a pipe and then becomes a ckrun that clears up (`ckrun clear-away`). It is out of reach of the signals that end
//! ckrun: those of the terminal, of its process group, and of a parent-death signal.
//!
//! It holds the container's lock together with ckrun: nobody else comes near the container before it is done.
//!
//! It shares ckrun's memory (CLONE_VM): no page table is copied, and no page of ckrun's has to be copied when ckrun writes
//! to it later, so that its making and its dismissal cost a fraction of a fork's. Therefore it does nothing but a few
//! system calls until its exec. Only the kernel's out-of-memory killer ends both together.

use crate::error::Result;
use crate::state::InitProcess;
use ckrun_virt::{Doing, Failure, Process};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use nix::sys::wait::waitpid;
use nix::unistd::{Pid, pipe2};
use std::ffi::{CStr, CString, OsStr};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;

/// ckrun's hold on its guardian. When it is dropped the guardian is dismissed and has gone.
#[derive(Debug)]
pub struct Guardian {
    line: File,
    process: Process,
    /// What the guardian reads and runs on: kept until it has gone.
    _orders: Box<Orders>,
}

/// The length of what is said of an init: its id, and when it started.
const WORD: usize = 16;

/// What a guardian needs; nobody changes it while there is one, except for the guardian its stack.
#[derive(Debug)]
struct Orders {
    stack: [u128; 1024],
    line: RawFd,
    lock: RawFd,
    /// Ranges of descriptors to close, from the first to the last; empty when the last is smaller.
    close: [(u32, u32); 3],
    /// A null-terminated array of the words below.
    argv: Vec<*const libc::c_char>,
    _words: Vec<CString>,
}

/// What a guardian clears away.
#[derive(Debug, Clone, Copy)]
pub enum Charge<'a> {
    /// The container `id` of the store in this directory.
    Container(&'a OsStr, &'a str),
    /// What there is of an image that was to be in this directory, if it is not complete.
    Image(&'a OsStr),
    /// An image in this directory that nobody wants after ckrun's end, complete or not.
    Passing(&'a OsStr),
}

impl Guardian {
    /// Makes one. It keeps `lock` open and no other descriptor of ckrun's: nobody is to wait for the end of a stream
    /// because of it.
    ///
    /// # Errors
    /// The kernel's.
    pub fn post(lock: Option<BorrowedFd<'_>>, charge: Charge<'_>) -> Result<Guardian> {
        let (told, line) = pipe2(OFlag::O_CLOEXEC).doing(|| "make a pipe for the guardian")?;
        let mut orders = Box::new(Orders::new(told.as_raw_fd(), lock, charge)?);
        // Blocked signals stay so in the child, and no signal can come before.
        let mut mask = SigSet::empty();
        sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), Some(&mut mask))
            .doing(|| "block signals")?;
        let made = spawn(&mut orders);
        sigprocmask(SigmaskHow::SIG_SETMASK, Some(&mask), None).doing(|| "unblock signals")?;
        Ok(Guardian { line: line.into(), process: made?, _orders: orders })
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
}

impl Drop for Guardian {
    fn drop(&mut self) {
        // There is nothing to be cleared up any more. One that has been killed needs no dismissal.
        let _ = self.process.signal(Signal::SIGKILL);
        // It uses our memory; and its end must not be reported to whoever becomes its parent when we end.
        while waitpid(self.process.pid(), None) == Err(Errno::EINTR) {}
    }
}

/// What ckrun had told of an init before its sudden end, by the one that the guardian became.
pub fn last_words(mut line: File) -> Option<InitProcess> {
    let mut word = [0; WORD];
    // A write of so few bytes is whole or absent (pipe(7)).
    line.read_exact(&mut word).ok()?;
    let (mut pid, mut started) = ([0; 4], [0; 8]);
    pid.copy_from_slice(&word[..4]);
    started.copy_from_slice(&word[8..]);
    Some(InitProcess { pid: i32::from_ne_bytes(pid), started: u64::from_ne_bytes(started) })
}

impl Orders {
    fn new(line: RawFd, lock: Option<BorrowedFd<'_>>, charge: Charge<'_>) -> Result<Orders> {
        let (number, ckrun) = (line.to_string(), Pid::this().to_string());
        let option = |name: &'static str| OsStr::new(name);
        let mut words = vec![option("ckrun")];
        match charge {
            Charge::Container(store, id) => {
                words.extend([
                    option("--root"),
                    store,
                    option("clear-away"),
                    option("--container"),
                    OsStr::new(id),
                ]);
            }
            Charge::Image(dir) => words.extend([option("clear-away"), option("--image"), dir]),
            Charge::Passing(dir) => words.extend([option("clear-away"), option("--passing"), dir]),
        }
        words.extend([option("--line"), OsStr::new(&number), option("--after"), OsStr::new(&ckrun)]);
        let words: Vec<CString> = words
            .into_iter()
            .map(|word| CString::new(word.as_bytes()))
            .collect::<Result<_, _>>()
            .map_err(|_| Failure::new("name what a guardian is to clear away", Errno::EINVAL))?;
        let argv = words.iter().map(|word| word.as_ptr()).chain([std::ptr::null()]).collect();
        let lock = lock.map_or(line, |fd| fd.as_raw_fd());
        let (first, second) = (line.min(lock).cast_unsigned(), line.max(lock).cast_unsigned());
        // Neither is a standard stream: those are open.
        let close = [(0, first - 1), (first + 1, second - 1), (second + 1, u32::MAX)];
        Ok(Orders { stack: [0; 1024], line, lock, close, argv, _words: words })
    }
}

fn spawn(orders: &mut Orders) -> Result<Process> {
    let top = orders.stack.as_mut_ptr_range().end.cast();
    let mut pidfd: libc::c_int = -1;
    let flags = libc::CLONE_VM | libc::CLONE_PIDFD | libc::SIGCHLD;
    // SAFETY: the child runs `watch` on a stack of its own that lives as long as `orders`, which its caller keeps until the
    // child has gone. The kernel writes the descriptor to `pidfd` before the call returns.
    let pid = unsafe { libc::clone(watch, top, flags, (&raw mut *orders).cast(), &raw mut pidfd) };
    let pid = Errno::result(pid).doing(|| "clone a guardian")?;
    // SAFETY: a new descriptor, which nobody else owns.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    Ok(Process::from_clone(Pid::from_raw(pid), pidfd))
}

/// The guardian, up to its exec. While ckrun lives it writes to nothing but its stack: of the C library it calls only
/// wrappers of system calls, and none that fails, since errno is ckrun's.
extern "C" fn watch(orders: *mut libc::c_void) -> libc::c_int {
    const OWN: &CStr = c"/proc/self/exe";
    // SAFETY: `spawn` passed a pointer to an Orders that outlives this process, and nobody changes it meanwhile.
    let orders = unsafe { &*orders.cast::<Orders>() };
    // SAFETY: the descriptors are this process's own copies, and nobody in it owns one; pointers are to what lives through
    // the calls. The last two calls come when ckrun is no more.
    unsafe {
        libc::setsid();
        for (first, last) in orders.close {
            if first <= last {
                libc::close_range(first, last, 0);
            }
        }
        libc::fcntl(orders.line, libc::F_SETFD, 0);
        libc::fcntl(orders.lock, libc::F_SETFD, 0);
        let mut line = libc::pollfd { fd: orders.line, events: 0, revents: 0 };
        while line.revents & libc::POLLHUP == 0 {
            // Not poll(3), which is a point of cancellation and may touch ckrun's thread-local memory.
            let (forever, mask) = (std::ptr::null::<libc::timespec>(), std::ptr::null::<libc::sigset_t>());
            libc::syscall(libc::SYS_ppoll, &raw mut line, 1, forever, mask, 0);
        }
        libc::execve(OWN.as_ptr(), orders.argv.as_ptr(), [std::ptr::null()].as_ptr());
        libc::_exit(127)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sandbox::testing::in_child;

    #[test]
    fn a_dismissed_one_is_gone() {
        in_child(|| {
            let guardian = Guardian::post(None, Charge::Image(OsStr::new("/nowhere"))).unwrap();
            guardian.tell(InitProcess { pid: 42, started: 7 }).unwrap();
            let pid = guardian.process.pid();
            drop(guardian);
            assert_eq!(waitpid(pid, None), Err(Errno::ECHILD));
        });
    }

    #[test]
    fn the_last_words_survive_the_one_who_said_them() {
        let (told, line) = pipe2(OFlag::O_CLOEXEC).unwrap();
        let mut word = [0; WORD];
        word[0] = 42;
        word[8] = 7;
        File::from(line).write_all(&word).unwrap();
        assert_eq!(last_words(told.into()), Some(InitProcess { pid: 42, started: 7 }));
        let (told, line) = pipe2(OFlag::O_CLOEXEC).unwrap();
        drop(line);
        assert_eq!(last_words(told.into()), None);
    }

    #[test]
    fn it_becomes_a_ckrun_that_clears_up() {
        let container = Charge::Container(OsStr::new("/r"), "web");
        let us = Pid::this();
        for (charge, expected) in [
            (container, format!("ckrun --root /r clear-away --container web --line 7 --after {us}")),
            (Charge::Image(OsStr::new("/i")), format!("ckrun clear-away --image /i --line 7 --after {us}")),
        ] {
            let orders = Orders::new(7, None, charge).unwrap();
            let words: Vec<_> = orders._words.iter().map(|word| word.to_str().unwrap()).collect();
            assert_eq!(words.join(" "), expected);
            assert_eq!(orders.argv.len(), words.len() + 1);
            assert_eq!(orders.close, [(0, 6), (8, 6), (8, u32::MAX)]);
        }
    }
}

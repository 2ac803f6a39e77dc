//! Options of sockets and limits of processes that are changed for a moment, and put back also if ckrun is killed in it.
//!
//! For that a process waits for ckrun's end, which has ckrun's memory and descriptors. It is later than the job, which the
//! kernel lets go at the same time, by some microseconds: what would harm the job even then is done [`apart`](super::apart).

use super::{check, sockopt};
use nix::errno::Errno;
use nix::sys::signal::{SigSet, SigmaskHow, Signal, kill, sigprocmask};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;
use rustix::process::{PidfdFlags, pidfd_open};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// So many can be changed at once.
const ROOM: usize = 16;
/// What a note is about.
const OPTION: u64 = 0;
const LIMIT: u64 = 1;

/// What was changed, and has to be put back.
#[derive(Debug)]
pub struct Undo {
    notes: Box<Notes>,
    watch: Option<Watch>,
    watched: bool,
}

/// A descriptor, a level, a name and a value each; or a process, which limit, and the soft and the hard one.
#[derive(Debug, Default)]
struct Notes {
    count: AtomicUsize,
    list: [[AtomicU64; 5]; ROOM],
}

/// The process, and what it uses until it has gone.
#[derive(Debug)]
struct Watch {
    process: Pid,
    _ckrun: OwnedFd,
    _orders: Box<Orders>,
}

#[derive(Debug)]
struct Orders {
    stack: [u128; 512],
    ckrun: RawFd,
    notes: *const Notes,
}

impl Default for Undo {
    /// Nothing, as yet.
    fn default() -> Undo {
        Undo { notes: Box::default(), watch: None, watched: true }
    }
}

impl Undo {
    /// Nothing, as yet, of a process that nobody kills.
    pub fn unwatched() -> Undo {
        Undo { notes: Box::default(), watch: None, watched: false }
    }

    /// From now on the option is to be as it is now. The answer is how that is. The descriptor stays open until
    /// [`Undo::put_back`].
    ///
    /// # Errors
    /// Those of getsockopt(2), pidfd_open(2) and clone(2); `ENOSPC` when there are too many.
    pub fn note(&mut self, fd: BorrowedFd<'_>, level: i32, name: i32) -> Result<i32, Errno> {
        let value = sockopt::number(fd, level, name)?;
        let numbers = [fd.as_raw_fd(), level, name, value].map(|number| i64::from(number).cast_unsigned());
        self.write([OPTION, numbers[0], numbers[1], numbers[2], numbers[3]])?;
        Ok(value)
    }

    /// From now on the limit `kind` of a process that ckrun holds is to be as it is now. The answer is how that is.
    ///
    /// # Errors
    /// Those of prlimit(2), pidfd_open(2) and clone(2); `ENOSPC` when there are too many.
    pub fn note_limit(&mut self, process: Pid, kind: u32) -> Result<libc::rlimit, Errno> {
        let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: the kernel stores the limit; there is no new one.
        let got = unsafe { libc::prlimit(process.as_raw(), kind, std::ptr::null(), &raw mut limit) };
        check(got.into())?;
        let process = i64::from(process.as_raw()).cast_unsigned();
        self.write([LIMIT, process, kind.into(), limit.rlim_cur, limit.rlim_max])?;
        Ok(limit)
    }

    fn write(&mut self, note: [u64; 5]) -> Result<(), Errno> {
        if self.watched && self.watch.is_none() {
            self.watch = Some(Watch::begin(&self.notes)?);
        }
        let count = self.notes.count.load(Ordering::Relaxed);
        let place = self.notes.list.get(count).ok_or(Errno::ENOSPC)?;
        for (place, number) in place.iter().zip(note) {
            place.store(number, Ordering::Relaxed);
        }
        self.notes.count.store(count + 1, Ordering::Release);
        Ok(())
    }

    /// Puts everything back.
    pub fn put_back(&mut self) {
        if let Err(errno) = self.notes.put_back() {
            log::error!("put back an option of a socket, or a limit: {errno}");
        }
        self.notes.count.store(0, Ordering::Release);
    }
}

impl Notes {
    /// The last one first.
    fn put_back(&self) -> Result<(), Errno> {
        let count = self.count.load(Ordering::Acquire);
        let mut done = Ok(());
        for note in self.list.iter().take(count).rev() {
            let [what, whose, one, two, three] =
                [0, 1, 2, 3, 4].map(|at: usize| note[at].load(Ordering::Relaxed));
            let whose = whose as i32;
            let set = if what == LIMIT {
                let limit = libc::rlimit { rlim_cur: two, rlim_max: three };
                // SAFETY: the kernel reads the limit.
                unsafe { libc::prlimit(whose, one as u32, &raw const limit, std::ptr::null_mut()) }
            } else {
                let value = three as i32;
                let size = size_of_val(&value) as libc::socklen_t;
                // SAFETY: the kernel reads an int; the descriptor is still open, as `note` demands.
                unsafe { libc::setsockopt(whose, one as i32, two as i32, (&raw const value).cast(), size) }
            };
            done = done.and(check(set.into()).map(drop));
        }
        done
    }
}

impl Watch {
    fn begin(notes: &Notes) -> Result<Watch, Errno> {
        let own = rustix::process::getpid();
        let ckrun =
            pidfd_open(own, PidfdFlags::empty()).map_err(|errno| Errno::from_raw(errno.raw_os_error()))?;
        let mut orders = Box::new(Orders { stack: [0; 512], ckrun: ckrun.as_raw_fd(), notes });
        // It inherits the mask, and nothing that ends ckrun is to end it.
        let mut mask = SigSet::empty();
        sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), Some(&mut mask))?;
        let top = orders.stack.as_mut_ptr_range().end.cast();
        let flags = libc::CLONE_VM | libc::CLONE_FILES;
        // SAFETY: the child runs on a stack of its own; that, the notes and the descriptor are kept until it has gone
        // (the notes are boxed, and dropped after the watch), or, if ckrun is killed, as long as the child has the memory.
        let process = unsafe { libc::clone(watch, top, flags, (&raw mut *orders).cast()) };
        let process = Errno::result(process);
        sigprocmask(SigmaskHow::SIG_SETMASK, Some(&mask), None)?;
        Ok(Watch { process: Pid::from_raw(process?), _ckrun: ckrun, _orders: orders })
    }
}

impl Drop for Undo {
    fn drop(&mut self) {
        self.put_back();
        if let Some(watch) = self.watch.take() {
            // Our own child, which nobody else waits for: it has no exit signal.
            let _ = kill(watch.process, Signal::SIGKILL);
            while waitpid(watch.process, Some(WaitPidFlag::__WALL)) == Err(Errno::EINTR) {}
        }
    }
}

/// As long as ckrun lives it makes no call that fails, for errno is ckrun's.
extern "C" fn watch(orders: *mut libc::c_void) -> libc::c_int {
    // SAFETY: `begin` passed a pointer to an Orders that outlives this process, and nobody changes it.
    let (ckrun, notes) = unsafe { ((*orders.cast::<Orders>()).ckrun, (*orders.cast::<Orders>()).notes) };
    let mut end = libc::pollfd { fd: ckrun, events: libc::POLLIN, revents: 0 };
    // SAFETY: pointers are to what lives through the calls. Not poll(3), which is a point of cancellation.
    unsafe {
        libc::setsid();
        while end.revents & libc::POLLIN == 0 {
            let (forever, mask) = (std::ptr::null::<libc::timespec>(), std::ptr::null::<libc::sigset_t>());
            libc::syscall(libc::SYS_ppoll, &raw mut end, 1, forever, mask, 0);
        }
    }
    // SAFETY: ckrun is no more, and its memory is as it was.
    let done = unsafe { &*notes }.put_back();
    i32::from(done.is_err())
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::unistd::{ForkResult, fork, pipe, read, write};
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixDatagram;
    use std::time::{Duration, Instant};

    const LEVEL: i32 = libc::SOL_SOCKET;

    fn change(undo: &mut Undo, socket: &UnixDatagram) {
        for (name, old, new) in [(libc::SO_PASSCRED, 0, 1), (libc::SO_PEEK_OFF, -1, 7)] {
            assert_eq!(undo.note(socket.as_fd(), LEVEL, name), Ok(old));
            sockopt::set_number(socket, LEVEL, name, new).unwrap();
        }
    }

    fn options(socket: &UnixDatagram) -> [i32; 2] {
        [libc::SO_PASSCRED, libc::SO_PEEK_OFF].map(|name| sockopt::number(socket, LEVEL, name).unwrap())
    }

    #[test]
    fn all_is_put_back_and_nobody_is_left() {
        let socket = UnixDatagram::unbound().unwrap();
        let mut undo = Undo::default();
        for _ in 0..20 {
            change(&mut undo, &socket);
            assert_eq!(options(&socket), [1, 7]);
            undo.put_back();
            assert_eq!(options(&socket), [0, -1]);
        }
        let process = undo.watch.as_ref().unwrap().process;
        drop(undo);
        assert_eq!(waitpid(process, Some(WaitPidFlag::__WALL)), Err(Errno::ECHILD));
    }

    #[test]
    fn limits_are_put_back_also_after_a_kill() {
        const KIND: u32 = libc::RLIMIT_CORE;
        let mut limited = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let process = Pid::from_raw(limited.id().cast_signed());
        let soft = |new: Option<u64>| {
            let mut old = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
            let get = |new, old| {
                // SAFETY: the kernel reads the one and stores the other.
                Errno::result(unsafe { libc::prlimit(process.as_raw(), KIND, new, old) }).unwrap()
            };
            get(std::ptr::null(), &raw mut old);
            if let Some(new) = new {
                get(&libc::rlimit { rlim_cur: new, ..old }, std::ptr::null_mut());
            }
            old.rlim_cur
        };
        soft(Some(7));
        let mut undo = Undo::default();
        assert_eq!(undo.note_limit(process, KIND).unwrap().rlim_cur, 7);
        soft(Some(3));
        drop(undo);
        assert_eq!(soft(None), 7);
        let (begun, begin) = pipe().unwrap();
        // SAFETY: the child allocates a little, and no other thread of this test holds the allocator's lock for long.
        match unsafe { fork() }.unwrap() {
            ForkResult::Child => {
                let mut undo = Undo::default();
                let _ = undo.note_limit(process, KIND);
                soft(Some(3));
                let _ = write(&begin, b"x");
                loop {
                    nix::unistd::pause();
                }
            }
            ForkResult::Parent { child } => {
                assert_eq!(read(&begun, &mut [0]), Ok(1));
                assert_eq!(soft(None), 3);
                kill(child, Signal::SIGKILL).unwrap();
                waitpid(child, None).unwrap();
                let deadline = Instant::now() + Duration::from_secs(10);
                while soft(None) != 7 {
                    assert!(Instant::now() < deadline);
                    std::thread::yield_now();
                }
            }
        }
        limited.kill().unwrap();
        limited.wait().unwrap();
    }

    #[test]
    fn a_kill_does_not_keep_it_from_being_put_back() {
        let socket = UnixDatagram::unbound().unwrap();
        let (begun, begin) = pipe().unwrap();
        // SAFETY: the child allocates a little, and no other thread of this test holds the allocator's lock for long.
        match unsafe { fork() }.unwrap() {
            ForkResult::Child => {
                let mut undo = Undo::default();
                change(&mut undo, &socket);
                let _ = write(&begin, b"x");
                loop {
                    nix::unistd::pause();
                }
            }
            ForkResult::Parent { child } => {
                assert_eq!(read(&begun, &mut [0]), Ok(1));
                assert_eq!(options(&socket), [1, 7]);
                kill(child, Signal::SIGKILL).unwrap();
                waitpid(child, None).unwrap();
                let deadline = Instant::now() + Duration::from_secs(10);
                while options(&socket) != [0, -1] {
                    assert!(Instant::now() < deadline);
                    std::thread::yield_now();
                }
            }
        }
    }
}

//! The listener: threads that receive calls and answer them.
//!
//! There is always one that waits for the next call; so a connect(2) that takes its time keeps no other call waiting.

use super::Claims;
use super::call::{Answer, Call};
use super::pending::{Held, Pending};
use super::{connect, device, ends};
use ckrun_virt::{Doing, Failure};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// `SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP` of `linux/seccomp.h` (Linux 6.6): who sends and who answers take turns on one CPU.
const SYNC_WAKE_UP: libc::c_ulong = 1;

#[derive(Debug)]
struct Shared {
    listener: OwnedFd,
    claims: Arc<Claims>,
    pending: Pending,
    /// Threads that wait for a call.
    idle: AtomicUsize,
    /// Who has it receives.
    receiving: Mutex<()>,
}

/// Answers, from now on and in threads of its own, the calls that come to `listener`, until no task has the filter any
/// more; first of all those that somebody else has received and not answered.
///
/// # Errors
/// No thread can be started.
pub fn serve(listener: OwnedFd, claims: Arc<Claims>, pending: Pending) -> Result<(), Failure> {
    // SAFETY: takes no pointer. An older kernel refuses, and is a little slower.
    unsafe { libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_SET_FLAGS, SYNC_WAKE_UP) };
    let idle = AtomicUsize::new(0);
    let shared = Arc::new(Shared { listener, claims, pending, idle, receiving: Mutex::new(()) });
    let doing = || "start a thread that answers system calls";
    let left = pending.inherit();
    left.into_iter().try_for_each(|held| start(&shared, held)).doing(doing)?;
    spawn(&shared).doing(doing)
}

fn spawn(shared: &Arc<Shared>) -> std::io::Result<()> {
    let held = shared.pending.claim();
    held.map_or_else(|| Err(Errno::ENOBUFS.into()), |held| start(shared, held))
}

fn start(shared: &Arc<Shared>, held: Held) -> std::io::Result<()> {
    shared.idle.fetch_add(1, Ordering::Relaxed);
    let own = Arc::clone(shared);
    let started = std::thread::Builder::new().name("calls".into()).spawn(move || work(&own, held));
    if started.is_err() {
        shared.idle.fetch_sub(1, Ordering::Relaxed);
    }
    started.map(drop)
}

fn work(shared: &Arc<Shared>, mut held: Held) {
    loop {
        let received = match held.call() {
            Some(_) => Ok(()),
            None => {
                let _turn = lock(&shared.receiving);
                receive(shared, &mut held)
            }
        };
        match received {
            Ok(()) => {
                // If none can be started, the next call waits for this one.
                if shared.idle.fetch_sub(1, Ordering::Relaxed) == 1
                    && let Err(e) = spawn(shared)
                {
                    log::warn!("no thread can be started to answer system calls: {e}");
                }
                if let Some(mut call) = Call::of(shared.listener.as_fd(), &mut held) {
                    let answer = decide(&mut call, &shared.claims);
                    call.answer(answer);
                }
                shared.idle.fetch_add(1, Ordering::Relaxed);
            }
            // Killed while it waited, or a signal of ours.
            Err(Errno::EINTR) => {}
            Err(Errno::ENOENT) if !over(shared) => {}
            Err(_) => return,
        }
    }
}

/// Receiving waits for ever when the last task with the filter has ended (before Linux 6.11); poll(2) says so.
fn receive(shared: &Shared, held: &mut Held) -> Result<(), Errno> {
    let mut polled = [PollFd::new(shared.listener.as_fd(), PollFlags::POLLIN)];
    poll(&mut polled, PollTimeout::NONE)?;
    match polled[0].revents() {
        Some(events) if events.contains(PollFlags::POLLIN) => held.receive(shared.listener.as_fd()),
        _ => Err(Errno::EPIPE),
    }
}

fn over(shared: &Shared) -> bool {
    let mut polled = [PollFd::new(shared.listener.as_fd(), PollFlags::empty())];
    let asked = poll(&mut polled, PollTimeout::ZERO);
    asked.is_err() || polled[0].revents().is_some_and(|events| events.contains(PollFlags::POLLHUP))
}

fn decide(call: &mut Call<'_>, claims: &Claims) -> Answer {
    match call.number {
        libc::SYS_connect => connect::answer(call, claims),
        libc::SYS_getpeername => ends::peer(call, claims),
        libc::SYS_getsockname => ends::local(call, claims),
        libc::SYS_ioctl => device::answer(call, claims),
        _ => Answer::GoOn,
    }
}

/// Locks what no thread leaves half changed.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

//! The listener: threads that receive calls and answer them.
//!
//! There is always one that waits for the next call; so a connect(2) that takes its time keeps no other call waiting.

use super::Claims;
use super::call::{Answer, Call};
use super::{connect, device, peer};
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
    /// Threads that wait for a call.
    idle: AtomicUsize,
    /// Who has it receives.
    receiving: Mutex<()>,
}

/// Answers, from now on and in threads of its own, the calls that come to `listener`, until no task has the filter any
/// more.
///
/// # Errors
/// No thread can be started.
pub fn serve(listener: OwnedFd, claims: Arc<Claims>) -> Result<(), Failure> {
    // SAFETY: takes no pointer. An older kernel refuses, and is a little slower.
    unsafe { libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_SET_FLAGS, SYNC_WAKE_UP) };
    let shared = Shared { listener, claims, idle: AtomicUsize::new(0), receiving: Mutex::new(()) };
    spawn(&Arc::new(shared)).doing(|| "start a thread that answers system calls")
}

fn spawn(shared: &Arc<Shared>) -> std::io::Result<()> {
    shared.idle.fetch_add(1, Ordering::Relaxed);
    let own = Arc::clone(shared);
    let started = std::thread::Builder::new().name("calls".into()).spawn(move || work(&own));
    if started.is_err() {
        shared.idle.fetch_sub(1, Ordering::Relaxed);
    }
    started.map(drop)
}

fn work(shared: &Arc<Shared>) {
    loop {
        let received = {
            let _turn = lock(&shared.receiving);
            receive(shared)
        };
        match received {
            Ok(call) => {
                // If none can be started, the next call waits for this one.
                if shared.idle.fetch_sub(1, Ordering::Relaxed) == 1
                    && let Err(e) = spawn(shared)
                {
                    log::warn!("no thread can be started to answer system calls: {e}");
                }
                let answer = decide(&call, &shared.claims);
                call.answer(answer);
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
fn receive(shared: &Shared) -> Result<Call<'_>, Errno> {
    let mut polled = [PollFd::new(shared.listener.as_fd(), PollFlags::POLLIN)];
    poll(&mut polled, PollTimeout::NONE)?;
    match polled[0].revents() {
        Some(events) if events.contains(PollFlags::POLLIN) => Call::receive(shared.listener.as_fd()),
        _ => Err(Errno::EPIPE),
    }
}

fn over(shared: &Shared) -> bool {
    let mut polled = [PollFd::new(shared.listener.as_fd(), PollFlags::empty())];
    let asked = poll(&mut polled, PollTimeout::ZERO);
    asked.is_err() || polled[0].revents().is_some_and(|events| events.contains(PollFlags::POLLHUP))
}

fn decide(call: &Call<'_>, claims: &Claims) -> Answer {
    match call.number {
        libc::SYS_connect => connect::answer(call, claims),
        libc::SYS_getpeername => peer::answer(call, claims),
        libc::SYS_ioctl => device::answer(call, claims),
        _ => Answer::GoOn,
    }
}

/// Locks what no thread leaves half changed.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

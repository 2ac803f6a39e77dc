//! A call that a stop ends for good is made again, and nobody sees it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod child;

use child::Child;
use ckrun_virt::seize::Frozen;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

impl Child {
    fn new(nr: libc::c_long, args: [u64; 4]) -> Child {
        // SAFETY: the child goes on with a copy of everything, and makes two system calls.
        match unsafe { libc::fork() } {
            // SAFETY: what the arguments point to is there in its copy of the memory.
            0 => unsafe {
                let result = libc::syscall(nr, args[0], args[1], args[2], args[3], 0, 8);
                libc::_exit(if result < 0 { *libc::__errno_location() } else { 0 })
            },
            pid => Child(Pid::from_raw(pid)),
        }
    }

    fn stop(&self) -> Frozen {
        Frozen::stop(self.0, ckrun_virt::listing::list(self.0), || Ok(())).unwrap()
    }
}

fn epoll() -> (nix::sys::epoll::Epoll, u64) {
    (nix::sys::epoll::Epoll::new(nix::sys::epoll::EpollCreateFlags::empty()).unwrap(), {
        Box::leak(Box::new([0_u64; 8])).as_mut_ptr() as u64
    })
}

#[test]
fn no_stop_is_seen_and_the_timeout_is_kept() {
    let (epoll, events) = epoll();
    let before = Instant::now();
    let child = Child::new(libc::SYS_epoll_wait, [epoll.0.as_raw_fd() as u64, events, 1, 2000]);
    for _ in 0..5 {
        child.asleep();
        child.stop().release();
    }
    assert_eq!(child.result(), 0);
    assert!(before.elapsed() >= Duration::from_millis(2000));
}

#[test]
fn what_remains_of_a_timeout_is_known() {
    let (epoll, events) = epoll();
    for nr in [libc::SYS_epoll_wait, libc::SYS_epoll_pwait] {
        let whole = Duration::from_millis(77_777);
        let before = Instant::now();
        let child = Child::new(nr, [epoll.0.as_raw_fd() as u64, events, 1, 77_777]);
        child.asleep();
        let asleep = Instant::now();
        // The time that is to be missing afterwards.
        while asleep.elapsed() < Duration::from_millis(50) {
            std::thread::yield_now();
        }
        let mut last = whole - Duration::from_millis(49);
        for _ in 0..3 {
            let frozen = child.stop();
            let since_before = before.elapsed();
            let regs = frozen.threads().next().unwrap().tracee.regs;
            assert_eq!((regs.rax.cast_signed(), regs.orig_rax.cast_signed()), (-514, nr));
            let rest = Duration::from_millis(regs.r10);
            assert!(rest >= whole - since_before, "{rest:?} {since_before:?}");
            assert!(rest <= last, "{rest:?} {last:?}");
            last = rest;
            frozen.release();
            child.asleep();
        }
    }
}

#[test]
fn calls_without_a_timeout_wait_on() {
    let (epoll, events) = epoll();
    // SAFETY: a new set of one semaphore, which is 0.
    let set = unsafe { libc::semget(libc::IPC_PRIVATE, 1, 0o600) };
    let take = Box::leak(Box::new(libc::sembuf { sem_num: 0, sem_op: -1, sem_flg: 0 }));
    let signals = Box::leak(Box::new(1_u64 << 9));
    for (nr, args) in [
        (libc::SYS_epoll_wait, [epoll.0.as_raw_fd() as u64, events, 1, u64::MAX]),
        (libc::SYS_semop, [set as u64, std::ptr::from_mut(take) as u64, 1, 0]),
        (libc::SYS_rt_sigtimedwait, [std::ptr::from_mut(signals) as u64, 0, 0, 8]),
    ] {
        let child = Child::new(nr, args);
        for _ in 0..3 {
            child.asleep();
            child.stop().release();
        }
        child.asleep();
        assert_eq!(waitpid(child.0, Some(WaitPidFlag::WNOHANG)).unwrap(), WaitStatus::StillAlive);
    }
    // SAFETY: it is our own.
    assert_eq!(unsafe { libc::semctl(set, 0, libc::IPC_RMID) }, 0);
}

#[test]
fn a_stop_by_job_control_is_seen_as_without_us() {
    let (epoll, events) = epoll();
    let child = Child::new(libc::SYS_epoll_wait, [epoll.0.as_raw_fd() as u64, events, 1, u64::MAX]);
    child.asleep();
    kill(child.0, Signal::SIGSTOP).unwrap();
    waitpid(child.0, Some(WaitPidFlag::WUNTRACED)).unwrap();
    child.stop().release();
    kill(child.0, Signal::SIGCONT).unwrap();
    assert_eq!(child.result(), libc::EINTR);
}

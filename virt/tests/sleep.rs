//! A call that waits goes on with the rest of its time: after a checkpoint, and in another process.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod child;

use child::Child;
use ckrun_virt::cpu::sleep::{Plan, Sleep, Sleeper};
use ckrun_virt::tracee::Tracee;
use ckrun_virt::visit::{Visit, stay_on_this_cpu};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;
use std::time::{Duration, Instant};

// Makes one call and exits with the negative of its result.
std::arch::global_asm!(
    ".globl ckrun_test_one_call",
    "ckrun_test_one_call:",
    "  mov rax, rdi",
    "  mov rdi, rsi",
    "  mov rsi, rdx",
    "  mov rdx, rcx",
    "  mov r10, r8",
    "  xor r8d, r8d",
    // For FUTEX_WAIT_BITSET: any waker will do.
    "  mov r9d, -1",
    "  syscall",
    "  mov edi, eax",
    "  neg edi",
    "  mov eax, 231",
    "  syscall",
);

unsafe extern "C" {
    fn ckrun_test_one_call(nr: i64, a: u64, b: u64, c: u64, d: u64) -> !;
}

/// All that a child looks at was there when it was forked, at the same addresses.
impl Child {
    fn new(nr: i64, args: [u64; 4]) -> Child {
        // SAFETY: the child makes two system calls and touches no memory of its own.
        match unsafe { libc::fork() } {
            // SAFETY: the arguments are addresses of objects that outlive the call in the parent's copy.
            0 => unsafe { ckrun_test_one_call(nr, args[0], args[1], args[2], args[3]) },
            pid => Child(Pid::from_raw(pid)),
        }
    }

    fn stop(&self) -> Tracee {
        Tracee::catch(self.0, 0).unwrap();
        Tracee::arrive(self.0).unwrap().unwrap()
    }
}

fn capture(tracee: &mut Tracee, cpu: usize) -> Option<Sleep> {
    let mut visit = Visit::enter(tracee, cpu).unwrap();
    let memory = std::fs::File::open(format!("/proc/{}/mem", tracee.pid())).unwrap();
    let mut regs = tracee.regs;
    let thread = tracee.clone();
    let sleep = Sleep::capture(thread.pid(), &memory, &mut regs, &mut None, &mut |program, look| {
        visit.doze(&thread, program, look)
    })
    .unwrap();
    visit.leave().unwrap();
    tracee.regs = regs;
    sleep
}

/// Every call of this kind, with the timeout `time`: its name, number and arguments. They point to objects that stay.
fn calls(time: Duration, with_rest: bool) -> Vec<(Sleeper, i64, [u64; 4])> {
    let spec = [time.as_secs(), u64::from(time.subsec_nanos())];
    let spec = Box::leak(Box::new(spec)).as_ptr() as u64;
    let rest = if with_rest { Box::leak(Box::new([0_u64; 2])).as_mut_ptr() as u64 } else { 0 };
    let word = std::ptr::from_mut(Box::leak(Box::new(5_u32))) as u64;
    let wait = (libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG) as u64;
    vec![
        (Sleeper::Nanosleep, libc::SYS_nanosleep, [spec, rest, 0, 0]),
        (Sleeper::ClockNanosleep, libc::SYS_clock_nanosleep, [libc::CLOCK_BOOTTIME as u64, 0, spec, rest]),
        (Sleeper::ClockNanosleep, libc::SYS_clock_nanosleep, [libc::CLOCK_REALTIME as u64, 0, spec, rest]),
        (Sleeper::Poll, libc::SYS_poll, [0, 0, time.as_millis() as u64, 0]),
        (Sleeper::Futex, libc::SYS_futex, [word, wait, 5, spec]),
    ]
}

#[test]
fn the_rest_of_the_time_is_found_however_often_the_call_was_interrupted() {
    let cpu = stay_on_this_cpu().unwrap();
    let whole = Duration::from_secs(1000);
    for with_rest in [false, true] {
        for (call, nr, args) in calls(whole, with_rest) {
            let before = Instant::now();
            let child = Child::new(nr, args);
            child.asleep();
            let asleep = Instant::now();
            for _ in 0..3 {
                let mut tracee = child.stop();
                let since_asleep = asleep.elapsed();
                let sleep = capture(&mut tracee, cpu).unwrap();
                let (rest, since_before) = (sleep.remaining.unwrap(), before.elapsed());
                assert_eq!(sleep.call, call);
                // poll and nanosleep let the kernel wake them up a little late, by up to a tenth of a second.
                assert!(rest <= whole - since_asleep + Duration::from_millis(100), "{call:?}: {rest:?}");
                assert!(rest >= whole - since_before, "{call:?}: {rest:?} {since_before:?}");
                tracee.release().unwrap();
                // From now on it is restart_syscall that it sleeps in. A job control stop does the same.
                child.asleep();
                kill(child.0, Signal::SIGSTOP).unwrap();
                waitpid(child.0, Some(WaitPidFlag::WUNTRACED)).unwrap();
                kill(child.0, Signal::SIGCONT).unwrap();
                child.asleep();
            }
        }
    }
}

/// A call that was stopped before its time was up, and how long that is.
struct Caught {
    call: Sleeper,
    time: Duration,
    before: Instant,
    child: Child,
    tracee: Tracee,
}

/// Each of the calls, with a timeout that is as short as `time`, or as short as it can be on a machine that is busy.
fn caught(time: Duration) -> impl Iterator<Item = Caught> {
    let caught = move |index: usize, time| {
        let (call, nr, args) = calls(time, false)[index];
        let before = Instant::now();
        let child = Child::new(nr, args);
        let stopped = child.falls_asleep() && Tracee::catch(child.0, 0).is_ok();
        let tracee = if stopped { Tracee::arrive(child.0).unwrap() } else { None }?;
        (before.elapsed() < time).then_some(Caught { call, time, before, child, tracee })
    };
    (0..calls(time, false).len()).map(move |index| {
        let mut times = std::iter::successors(Some(time), |time| Some(*time * 2));
        times.find_map(|time| caught(index, time)).unwrap()
    })
}

#[test]
fn the_call_ends_in_time_in_the_old_process_and_in_a_new_one() {
    let cpu = stay_on_this_cpu().unwrap();
    for Caught { call, time: whole, before, child: old, mut tracee } in caught(Duration::from_millis(600)) {
        let new = Child::new(libc::SYS_pause, [0; 4]);
        new.asleep();
        let Some(sleep) = capture(&mut tracee, cpu) else {
            // Its time was up meanwhile.
            assert!(before.elapsed() >= whole, "{call:?}");
            continue;
        };
        let regs = tracee.regs;
        tracee.release().unwrap();

        let mut tracee = new.stop();
        let mut visit = Visit::enter(&tracee, cpu).unwrap();
        let Plan::Start(start) = sleep.plan(&regs) else { panic!("{call:?} has a timeout") };
        let result = visit.begin(&tracee, &start.program).unwrap();
        visit.leave().unwrap();
        assert_eq!(result, -516, "{call:?}");
        let bases = (tracee.regs.fs_base, tracee.regs.gs_base);
        tracee.regs = start.registers(result);
        (tracee.regs.fs_base, tracee.regs.gs_base) = bases;
        tracee.release().unwrap();

        let expected = if call == Sleeper::Futex { libc::ETIMEDOUT } else { 0 };
        assert_eq!(old.result(), expected, "{call:?}");
        assert!(before.elapsed() >= whole, "{call:?} ended early");
        assert_eq!(new.result(), expected, "{call:?}");
        assert!(before.elapsed() >= sleep.remaining.unwrap(), "{call:?} ended early");
    }
}

#[test]
fn a_call_without_a_relative_timeout_is_made_again() {
    let cpu = stay_on_this_cpu().unwrap();
    let far = Box::leak(Box::new([1_u64 << 40, 0])).as_ptr() as u64;
    let word = std::ptr::from_mut(Box::leak(Box::new(5_u32))) as u64;
    let wait = (libc::FUTEX_WAIT_BITSET | libc::FUTEX_PRIVATE_FLAG) as u64;
    for (nr, args) in [(libc::SYS_poll, [0, 0, 0xffff_ffff_u64, 0]), (libc::SYS_futex, [word, wait, 5, far])]
    {
        let child = Child::new(nr, args);
        child.asleep();
        for _ in 0..2 {
            let mut tracee = child.stop();
            let sleep = capture(&mut tracee, cpu).unwrap();
            assert_eq!(sleep.remaining, None);
            let Plan::Registers(regs) = sleep.plan(&tracee.regs) else { panic!("nothing to start") };
            assert_eq!((regs.rax.cast_signed(), regs.orig_rax.cast_signed()), (-514, nr));
            tracee.release().unwrap();
            child.asleep();
        }
    }
}

#[test]
fn a_call_that_ends_while_it_is_looked_at_ends_for_good() {
    let cpu = stay_on_this_cpu().unwrap();
    for Caught { call, time, child, mut tracee, .. } in caught(Duration::from_millis(60)) {
        // Nobody counts the time of a stopped thread but the kernel.
        std::thread::sleep(time + Duration::from_millis(20));
        assert_eq!(capture(&mut tracee, cpu), None);
        tracee.release().unwrap();
        assert_eq!(child.result(), if call == Sleeper::Futex { libc::ETIMEDOUT } else { 0 }, "{call:?}");
    }
}

#[test]
fn a_call_may_end_at_any_moment() {
    let cpu = stay_on_this_cpu().unwrap();
    for n in 0..8 {
        'calls: for (call, nr, args) in calls(Duration::from_millis(3 + n % 7), false) {
            let child = Child::new(nr, args);
            // A zombie can't be traced.
            while Tracee::catch(child.0, 0).is_ok() {
                let Some(mut tracee) = Tracee::arrive(child.0).unwrap() else {
                    // It has ended before it could stop, and nothing more is known of it.
                    std::mem::forget(child);
                    continue 'calls;
                };
                capture(&mut tracee, cpu);
                tracee.release().unwrap();
            }
            assert_eq!(child.result(), if call == Sleeper::Futex { libc::ETIMEDOUT } else { 0 }, "{call:?}");
        }
    }
}

#[test]
fn the_timers_of_others_are_not_taken_for_its_own() {
    let cpu = stay_on_this_cpu().unwrap();
    let whole = Duration::from_secs(1000);
    let over = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        for noise in 1..=4 {
            let over = &over;
            scope.spawn(move || {
                while !over.load(std::sync::atomic::Ordering::Relaxed) {
                    std::thread::sleep(Duration::from_micros(700 * noise));
                }
            });
        }
        // What is left is written over what was asked for, as sleep(1) does it: the kernel adds its slack each time, so
        // that the timer is due later than what was written says.
        let spec = Box::leak(Box::new([whole.as_secs(), 0])).as_mut_ptr() as u64;
        let same = (Sleeper::Nanosleep, libc::SYS_nanosleep, [spec, spec, 0, 0]);
        let looks = || {
            for (call, nr, args) in calls(whole, false).into_iter().chain([same]) {
                let before = Instant::now();
                let child = Child::new(nr, args);
                child.asleep();
                for _ in 0..20 {
                    let mut tracee = child.stop();
                    let rest = capture(&mut tracee, cpu).unwrap().remaining.unwrap();
                    assert!(rest >= whole - before.elapsed(), "{call:?}: {rest:?}");
                    tracee.release().unwrap();
                    child.asleep();
                }
            }
        };
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(looks));
        over.store(true, std::sync::atomic::Ordering::Relaxed);
        done.unwrap();
    });
}

use crate::job::{Job, Newborn, at, call, capture, job, stopped, through_json, visit};
use ckrun_virt::interval_timers::IntervalTimers;
use ckrun_virt::nursery::beget_threads;
use ckrun_virt::overruns;
use ckrun_virt::program::Program;
use ckrun_virt::resource::{Resource, Stopped};
use ckrun_virt::signals::{Pending, SharedPending};
use ckrun_virt::timers::{Listed, Notify, Now, PosixTimers};
use libc::*;

fn block_all() {
    call(SYS_rt_sigprocmask, &[SIG_SETMASK as u64, at(&u64::MAX), 0, 8]);
}

#[test]
fn interval_timers_go_on_with_what_they_had_left() {
    let first = job(|| {
        block_all();
        call(SYS_setitimer, &[ITIMER_REAL as u64, at(&[7_i64, 500, 1000, 0]), 0]);
        call(SYS_setitimer, &[ITIMER_PROF as u64, at(&[0_i64, 0, 2000, 250_000]), 0]);
    });
    let state: IntervalTimers = through_json(&capture(&first));
    assert_eq!((state.real.interval, state.profiling.interval), ([7, 500], [0, 0]));
    assert!((900..=1000).contains(&state.real.left[0]) && (1900..=2000).contains(&state.profiling.left[0]));
    assert_eq!(state.r#virtual.left, [0, 0]);
    let mut newborn = Newborn::new();
    newborn.restore(&state);
    let again: IntervalTimers = newborn.capture();
    assert_eq!((again.real.interval, again.r#virtual), (state.real.interval, state.r#virtual));
    let (before, after) = (state.real.left, again.real.left);
    assert!(after <= before && after[0] + 100 > before[0], "{before:?} {after:?}");
    let (before, after) = (state.profiling.left, again.profiling.left);
    assert!(after[0] + 100 > before[0] && after[0] <= before[0], "{before:?} {after:?}");
}

fn posix(task: &Stopped, run: impl FnOnce(&Program) -> ckrun_virt::program::Answers) -> PosixTimers {
    let listed: Vec<Listed> = PosixTimers::list(task).unwrap();
    let mut program = Program::new();
    let asked = PosixTimers::ask(&listed, &mut program);
    let answers = run(&program);
    PosixTimers::capture(&listed, &asked, &answers).unwrap()
}

fn restore(timers: &PosixTimers, newborn: &mut Newborn) {
    let now = timers.now(|program| newborn.worker.run(program)).unwrap();
    let mut program = Program::new();
    timers.restore(&now, &mut program);
    newborn.worker.run(&program).unwrap();
}

fn of_job(job: &Job) -> PosixTimers {
    visit(job, |visit, tracees| posix(&stopped(job.pid), |p| visit.run(&tracees[0], p).unwrap()))
}

/// `struct sigevent`, and the new timer's id.
fn create(clock: i32, notify: i32, signal: i32, value: u64, thread: i64) -> i32 {
    let event = [value, signal as u64 | (notify as u64) << 32, thread as u64, 0, 0, 0, 0, 0];
    let id = -1_i32;
    let place = std::cell::Cell::new(id);
    call(SYS_timer_create, &[clock as u64, at(&event), place.as_ptr().expose_provenance() as u64]);
    place.get()
}

fn arm(id: i32, time: [i64; 4]) {
    call(SYS_timer_settime, &[id as u64, 0, at(&time), 0]);
}

#[test]
fn timers_with_their_ids() {
    let first = job(|| {
        block_all();
        let ids: Vec<i32> =
            (0..6).map(|k| create(CLOCK_MONOTONIC, 0, SIGRTMIN() + k, 0xffff_0000 + k as u64, 0)).collect();
        arm(ids[1], [5, 1, 600, 0]);
        arm(ids[3], [0, 0, 700, 0]);
        for id in [0, 2] {
            call(SYS_timer_delete, &[ids[id] as u64]);
        }
        create(CLOCK_REALTIME, SIGEV_NONE, 0, 0, 0);
        arm(create(CLOCK_PROCESS_CPUTIME_ID, 0, SIGUSR1, 1, 0), [0, 0, 3, 0]);
        arm(create(CLOCK_THREAD_CPUTIME_ID, SIGEV_THREAD_ID, SIGUSR2, 2, 1), [0, 0, 4, 0]);
        create(CLOCK_BOOTTIME, SIGEV_THREAD, 33, 0x7fff_1234_5678, 0);
        arm(create(!1_i32 << 3 | 2, 0, SIGUSR1, 1, 0), [0, 0, 3, 0]);
    });
    let state = through_json(&of_job(&first));
    let of = |id: i32| state.iter().find(|timer| timer.id == id).unwrap();
    let mut ids: Vec<i32> = state.iter().map(|timer| timer.id).collect();
    ids.sort_unstable();
    assert_eq!(ids, [1, 3, 4, 5, 6, 7, 8, 9, 10]);
    assert_eq!((of(1).time.interval, of(1).value.0, of(1).signal), ([5, 1], 0xffff_0001, SIGRTMIN() + 1));
    assert!((590..=600).contains(&of(1).time.left[0]));
    assert_eq!((of(4).time.left, of(6).notify, of(9).notify), ([0, 0], Notify::None, Notify::Thread));
    assert_eq!((of(8).thread, of(8).signal), (Some(1), SIGUSR2));

    let mut newborn = Newborn::new();
    restore(&state, &mut newborn);
    let task = stopped(newborn.job.pid);
    let again = posix(&task, |program| newborn.worker.run(program).unwrap());
    assert_eq!(again.iter().count(), state.iter().count());
    for timer in again.iter() {
        let mut before = of(timer.id).clone();
        assert!(timer.time.left <= before.time.left, "{timer:?} {before:?}");
        assert!(timer.time.left[0] + 120 > before.time.left[0], "{timer:?} {before:?}");
        before.time.left = timer.time.left;
        assert_eq!(*timer, before);
    }
}

/// Its signal waits and it is not armed: the kernel arms it when the signal is taken.
#[test]
fn an_interval_timer_whose_signal_waits() {
    let first = job(|| {
        block_all();
        call(SYS_setitimer, &[ITIMER_REAL as u64, at(&[0_i64, 5000, 0, 1]), 0]);
        std::thread::sleep(std::time::Duration::from_millis(20));
    });
    let state: IntervalTimers = capture(&first);
    assert_eq!((state.real.left, state.real.interval), ([0, 0], [0, 5000]));
    let mut newborn = Newborn::new();
    newborn.restore(&capture::<SharedPending>(&first));
    newborn.restore(&state);
    assert_eq!(newborn.capture::<IntervalTimers>(), state);
    assert_eq!(newborn.capture::<SharedPending>().0.len(), 1);
    // Once it is taken, the timer goes on.
    for _ in 0..3 {
        let mut program = Program::new();
        let set = program.put(&(1_u64 << (SIGALRM - 1)).to_ne_bytes());
        let args = [set.into(), 0.into(), 0.into(), 8.into()];
        let call = program.call("wait for the signal", SYS_rt_sigtimedwait, &args);
        assert_eq!(newborn.worker.run(&program).unwrap().of(call), Ok(SIGALRM.into()));
    }
}

/// Takes a signal that must be there: who sent it, its overruns and its value.
fn take(run: impl FnOnce(&Program) -> ckrun_virt::program::Answers, signal: i32) -> (i32, u32, u64) {
    let mut program = Program::new();
    let (info, no_time) = (program.room(128), program.room(16));
    let set = program.put(&(1_u64 << (signal - 1)).to_ne_bytes());
    let args = [set.into(), info.into(), no_time.into(), 8.into()];
    program.call("take the signal", SYS_rt_sigtimedwait, &args);
    let answers = run(&program);
    (answers.u32(info, 8).cast_signed(), answers.u32(info, 20), answers.u64(info, 24))
}

/// `siginfo_t` of a queued signal with a value.
fn queue(signal: i32, value: u64) {
    let mut info = [0_u64; 16];
    (info[0], info[1], info[3]) = (signal as u64, SI_QUEUE as u32 as u64, value);
    call(SYS_rt_sigqueueinfo, &[1, signal as u64, at(&info)]);
}

/// A timer whose signal waits goes on counting, in the job and in another process.
#[test]
fn overruns_are_counted_on() {
    const PERIOD: u64 = 1_000_000;
    for clock in [CLOCK_MONOTONIC, CLOCK_REALTIME, CLOCK_BOOTTIME] {
        let began = std::time::Instant::now();
        let first = job(|| {
            block_all();
            queue(50, 1);
            arm(create(clock, 0, 50, 7, 0), [0, PERIOD as i64, 0, PERIOD as i64]);
            arm(create(clock, SIGEV_THREAD_ID, SIGALRM, 8, 1), [0, PERIOD as i64, 0, PERIOD as i64]);
            arm(create(clock, 0, 51, 9, 0), [0, 0, 0, 1]);
            std::thread::sleep(std::time::Duration::from_millis(30));
            queue(50, 2);
        });
        let task = stopped(first.pid);
        let (state, mut own, mut shared) = visit(&first, |visit, tracees| {
            let mut run = |program: &Program| visit.run(&tracees[0], program);
            let mut listed = PosixTimers::list(&task).unwrap();
            overruns::note(&mut listed, &task, &mut run).unwrap();
            let mut program = Program::new();
            let asked = PosixTimers::ask(&listed, &mut program);
            let answers = run(&program).unwrap();
            let timers = PosixTimers::capture(&listed, &asked, &answers).unwrap();
            let nothing = Program::new();
            let answers = run(&nothing).unwrap();
            let own = Pending::capture(&task, &(), &answers).unwrap();
            (timers, own, SharedPending::capture(&task, &(), &answers).unwrap())
        });
        let waiting: Vec<_> = state.iter().map(|timer| (timer.id, timer.waiting.is_some())).collect();
        assert_eq!(waiting, [(2, false), (1, true), (0, true)]);
        assert_eq!((own.0.len(), shared.0.len()), (1, 4));
        own.leave_to(&task, None, &state);
        shared.leave_to(&task, None, &state);
        let brief: Vec<_> = shared.0.iter().map(|queued| (queued.signal, queued.code)).collect();
        assert_eq!((own.0.len(), brief), (0, vec![(51, SI_TIMER), (50, SI_QUEUE), (50, SI_QUEUE)]));

        let mut newborn = Newborn::new();
        newborn.restore(&shared);
        restore(&through_json(&state), &mut newborn);
        std::thread::sleep(std::time::Duration::from_millis(5));
        let mut new = |signal| take(|program| newborn.worker.run(program).unwrap(), signal);
        assert_eq!((new(50), new(50)), ((SI_QUEUE, 0, 1), (SI_QUEUE, 0, 2)));
        let (posted, alarm) = (new(50), new(SIGALRM));
        assert_eq!((posted.0, posted.2, alarm.2, new(51).2), (SI_TIMER, 7, 8, 9));
        // In the job they still wait, ...
        visit(&first, |visit, tracees| {
            let mut old = |signal| take(|program| visit.run(&tracees[0], program).unwrap(), signal);
            let mut all = [old(50), old(50), old(50)];
            all.sort_unstable_by_key(|&(_, _, value)| value);
            assert_eq!(all[..2], [(SI_QUEUE, 0, 1), (SI_QUEUE, 0, 2)]);
            let (old_posted, old_alarm) = (all[2], old(SIGALRM));
            assert_eq!((old_posted.2, old_alarm.2, old(51).2), (7, 8, 9));
            // ... and have counted as often as the time allows.
            let most = began.elapsed().as_nanos() as u64 / u128::from(PERIOD) as u64;
            for (_, overruns, _) in [posted, alarm, old_posted, old_alarm] {
                assert!((29..=most).contains(&overruns.into()), "{overruns} of {most}");
            }
            // By less than a period, if the machine is quick.
            assert!(old_posted.1 >= posted.1, "the job has lived longer");
        });
    }
}

#[test]
fn no_signal_is_taken_that_could_not_be_put_back() {
    let first = job(|| {
        block_all();
        arm(create(CLOCK_MONOTONIC, 0, 50, 7, 0), [0, 1_000_000, 0, 1]);
        std::thread::sleep(std::time::Duration::from_millis(5));
        call(SYS_setresuid, &[64998, 64998, 64998]);
        call(SYS_prlimit64, &[0, RLIMIT_SIGPENDING.into(), at(&[0_u64, 0]), 0]);
    });
    let task = stopped(first.pid);
    visit(&first, |visit, tracees| {
        let mut listed = PosixTimers::list(&task).unwrap();
        let before = stopped(first.pid).status.shd_pnd;
        overruns::note(&mut listed, &task, &mut |program| visit.run(&tracees[0], program)).unwrap();
        assert_eq!(stopped(first.pid).status.shd_pnd, before);
        let overruns = take(|program| visit.run(&tracees[0], program).unwrap(), 50).1;
        assert!(overruns > 0, "{overruns}");
    });
}

/// A timer fires in the restored process, with its own number and value.
#[test]
fn a_restored_timer_fires() {
    let first = job(|| {
        block_all();
        arm(create(CLOCK_MONOTONIC, 0, SIGRTMIN(), 0, 0), [0, 0, 1000, 0]);
        arm(create(CLOCK_MONOTONIC, 0, SIGRTMIN(), 77, 0), [0, 1_000_000, 0, 1]);
    });
    let state = of_job(&first);
    let mut newborn = Newborn::new();
    let mut program = Program::new();
    state.restore(&Now::default(), &mut program);
    let info = program.room(128);
    let set = program.put(&(1_u64 << (SIGRTMIN() - 1)).to_ne_bytes());
    let args = [set.into(), info.into(), 0.into(), 8.into()];
    program.call("wait for the signal", SYS_rt_sigtimedwait, &args);
    let answers = newborn.worker.run(&program).unwrap();
    // si_code, si_timerid and si_value.
    assert_eq!(
        (answers.u32(info, 8).cast_signed(), answers.u32(info, 16), answers.u64(info, 24)),
        (-2, 1, 77)
    );
}

/// Where a thread is named, its id is the job's; where the kernel does not name it, ckrun does not guess.
#[test]
fn timers_of_threads() {
    let with_thread = |to_thread: bool| {
        job(|| {
            block_all();
            let (tell, told) = std::sync::mpsc::channel();
            std::thread::spawn(move || {
                let tid = call(SYS_gettid, &[]);
                let notify = if to_thread { SIGEV_THREAD_ID } else { 0 };
                create(CLOCK_THREAD_CPUTIME_ID, notify, SIGPROF, 0, if to_thread { tid } else { 0 });
                tell.send(()).unwrap();
                loop {
                    std::thread::park();
                }
            });
            told.recv().unwrap();
        })
    };
    let state = of_job(&with_thread(true));
    let timer = state.iter().next().unwrap();
    assert_eq!((timer.thread, timer.clock), (Some(2), !2_i32 << 3 | 6));
    let mut newborn = Newborn::new();
    let threads = beget_threads(&mut newborn.worker, &[2]).unwrap();
    restore(&state, &mut newborn);
    let task = stopped(newborn.job.pid);
    assert_eq!(posix(&task, |program| newborn.worker.run(program).unwrap()), state);
    assert_eq!(PosixTimers::blockers(&task, &PosixTimers::list(&task).unwrap()), []);
    drop(threads);

    let job = with_thread(false);
    let task = stopped(job.pid);
    let blockers = PosixTimers::blockers(&task, &PosixTimers::list(&task).unwrap());
    assert_eq!(blockers.len(), 1, "{blockers:?}");
    assert!(
        blockers[0].what == "timer 0" && blockers[0].why.contains("one of several threads"),
        "{blockers:?}"
    );
}

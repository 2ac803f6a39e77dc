use crate::job::{Newborn, at, call, capture, carried, job, stopped, through_json, visit};
use ckrun_virt::signals::{Action, Actions, AltStack, Pending, Queued, SharedPending, blocker};
use libc::*;

const SA_RESTORER: u64 = 0x0400_0000;

fn action(signal: i32, words: [u64; 4]) {
    call(SYS_rt_sigaction, &[signal as u64, at(&words), 0, 8]);
}

fn block_all() {
    call(SYS_rt_sigprocmask, &[SIG_SETMASK as u64, at(&u64::MAX), 0, 8]);
}

fn bit(signal: i32) -> u64 {
    1 << (signal - 1)
}

#[test]
fn actions_with_their_flags_and_masks() {
    // Action and flags of SIGCHLD without a handler matter too.
    let handler = [
        0x7000_1234_5678,
        SA_RESTORER | (SA_SIGINFO | SA_ONSTACK) as u64,
        0x7000_1111,
        bit(SIGINT) | bit(64),
    ];
    let actions: Actions = carried(|| {
        action(SIGUSR1, handler);
        action(64, handler);
        action(SIGHUP, [1, 0, 0, 0]);
        action(SIGPIPE, [0, 0, 0, 0]);
        action(SIGCHLD, [0, SA_NOCLDWAIT as u64, 0, 0]);
    });
    let read = |signal| {
        let Action { handler, flags, restorer, mask } = actions.of(signal);
        [handler.0, flags.0, restorer.0, mask.0]
    };
    assert_eq!((read(SIGUSR1), read(64)), (handler, handler));
    assert_eq!((read(SIGHUP), read(SIGPIPE)), ([1, 0, 0, 0], [0; 4]));
    assert_eq!(read(SIGCHLD), [0, SA_NOCLDWAIT as u64, 0, 0]);
    assert_eq!(actions.of(SIGKILL), Action::default());
}

#[test]
fn the_action_of_sigtrap_is_known_and_left_to_the_end() {
    let own = [0x7000_1234_5678, SA_RESTORER, 0x7000_1111, bit(SIGINT)];
    for words in [own, [1, 0, 0, 0]] {
        let job = job(|| action(SIGTRAP, words));
        let mut actions: Actions = capture(&job);
        assert_eq!(actions.trap(), Action::default());
        actions.set_trap(visit(&job, |visit, _| visit.trap_action().unwrap()));
        let actions = through_json(&actions);
        let Action { handler, flags, restorer, mask } = actions.trap();
        assert_eq!([handler.0, flags.0, restorer.0, mask.0], words);
        let mut newborn = Newborn::new();
        newborn.restore(&actions);
        // Had it been set, the stub's breakpoint would have been its end.
        newborn.restore(&actions);
        assert_eq!(newborn.capture::<Actions>().trap(), Action::default());
        // And the job's own is as it was.
        assert_eq!(visit(&job, |visit, _| visit.trap_action().unwrap()), actions.trap());
    }
}

#[test]
fn alternate_stacks() {
    let none: AltStack = carried(|| {
        call(SYS_sigaltstack, &[at(&[0_u64, SS_DISABLE as u64, 0]), 0]);
    });
    assert_eq!(none.flags.0, SS_DISABLE as u64);
    let autodisarm = 1 << 31;
    let stack: AltStack = carried(|| {
        call(SYS_sigaltstack, &[at(&[0x5000_0000, autodisarm, 0x10_0000]), 0]);
    });
    assert_eq!((stack.start.0, stack.size, stack.flags.0), (0x5000_0000, 0x10_0000, autodisarm));
}

/// `siginfo_t` of a queued signal with a value.
fn queue_info(signal: i32, code: i32, value: u64) -> [u64; 16] {
    let mut info = [0; 16];
    info[0] = signal as u64;
    info[1] = code as u32 as u64;
    info[2] = 77 | 1000 << 32;
    info[3] = value;
    info
}

#[test]
fn signals_that_wait_keep_their_order_and_what_they_tell() {
    const TIMER: i32 = -2;
    const KERNEL: i32 = 0x80;
    let set = || {
        block_all();
        for value in [3, 1, 2] {
            call(SYS_rt_sigqueueinfo, &[1, 40, at(&queue_info(40, SI_QUEUE, value))]);
        }
        call(SYS_rt_sigqueueinfo, &[1, SIGALRM as u64, at(&queue_info(SIGALRM, KERNEL, 0))]);
        call(SYS_rt_sigqueueinfo, &[1, 50, at(&queue_info(50, TIMER, 9))]);
        call(SYS_rt_tgsigqueueinfo, &[1, 1, 41, at(&queue_info(41, SI_QUEUE, 5))]);
        call(SYS_tgkill, &[1, 1, SIGTERM as u64]);
    };
    let first = job(set);
    let (own, shared): (Pending, SharedPending) = (capture(&first), capture(&first));
    let brief =
        |queue: &[Queued]| queue.iter().map(|q| (q.signal, q.code, q.fields[1].0)).collect::<Vec<_>>();
    assert_eq!(
        brief(&shared.0),
        [(40, SI_QUEUE, 3), (40, SI_QUEUE, 1), (40, SI_QUEUE, 2), (SIGALRM, KERNEL, 0), (50, TIMER, 9)]
    );
    assert_eq!(brief(&own.0), [(41, SI_QUEUE, 5), (SIGTERM, SI_TKILL, 0)]);

    let mut newborn = Newborn::new();
    newborn.restore(&through_json(&own));
    newborn.restore(&through_json(&shared));
    assert_eq!(newborn.capture::<Pending>(), own);
    assert_eq!(newborn.capture::<SharedPending>(), shared);
    let status = stopped(newborn.job.pid).status;
    assert_eq!((status.sig_pnd, status.shd_pnd), (bit(41) | bit(SIGTERM), bit(40) | bit(50) | bit(SIGALRM)));
}

#[test]
fn a_long_queue() {
    let first = job(|| {
        block_all();
        for value in 0..100 {
            call(SYS_rt_sigqueueinfo, &[1, 40, at(&queue_info(40, SI_QUEUE, value))]);
        }
    });
    let shared: SharedPending = capture(&first);
    assert!(shared.0.iter().map(|queued| queued.fields[1].0).eq(0..100));
}

/// When the queue is full, of a standard signal only its number is kept.
#[test]
fn a_signal_that_found_no_room_in_the_queue() {
    let state: Pending = carried(|| {
        block_all();
        call(SYS_setresuid, &[64999, 64999, 64999]);
        call(SYS_prlimit64, &[0, RLIMIT_SIGPENDING.into(), at(&[0_u64, 0]), 0]);
        // Only a signal with a negative code is bound by the limit.
        call(SYS_rt_tgsigqueueinfo, &[1, 1, SIGUSR2 as u64, at(&queue_info(SIGUSR2, SI_TKILL, 0))]);
    });
    assert_eq!((state.0.len(), state.0[0].signal), (1, SIGUSR2));
}

#[test]
fn a_pending_sigtrap_is_refused_by_name() {
    let first = job(|| {
        block_all();
        call(SYS_kill, &[1, SIGTRAP as u64]);
    });
    let blocker = blocker(&stopped(first.pid)).unwrap().to_string();
    assert!(blocker.contains("thread 1: pending SIGTRAP: "), "{blocker}");
    assert_eq!(super::signals::blocker(&stopped(job(|| {}).pid)), None);
}

#[test]
fn hostile_signals_are_refused_by_the_reader_or_the_kernel() {
    use ckrun_virt::program::Program;
    use ckrun_virt::resource::Resource;
    for json in [
        r#"[{"signal": 1, "errno": 0, "code": 0}]"#,
        r#"[{"signal": 1, "errno": 0, "code": 0, "fields": ["0x0", "0x0", "0x0"]}]"#,
        r#"[{"signal": 1, "errno": 0, "code": 0, "fields": ["0x0", "0x0", "0x0", "0x0", "0x0"]}]"#,
        r#"[{"signal": 1, "errno": 0, "code": 0, "fields": [0, 0, 0, 0]}]"#,
    ] {
        assert!(serde_json::from_str::<Pending>(json).is_err(), "{json}");
    }
    assert!(serde_json::from_str::<Actions>(r#"{"1": {"handler": "0x1"}}"#).is_err());
    for signal in [-1, 65, i32::MAX] {
        let queued = Queued { signal, errno: 0, code: 0, fields: Default::default() };
        let mut program = Program::new();
        Pending(vec![queued]).restore(&mut program);
        let error = Newborn::new().worker.run(&program).unwrap_err().to_string();
        assert_eq!(error, "queue a signal for the thread: invalid argument");
    }
    // A number that is no signal is not looked at.
    let strange = format!(
        r#"{{"-5": {0}, "99": {0}}}"#,
        r#"{"handler":"0x1","flags":"0x0","restorer":"0x0","mask":"0x0"}"#
    );
    Newborn::new().restore(&serde_json::from_str::<Actions>(&strange).unwrap());
}

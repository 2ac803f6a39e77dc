use crate::job::{Newborn, call, capture, carried, job};
use crate::job::{stopped, through_json, visit};
use ckrun_virt::dispatch::UserDispatch;
use ckrun_virt::outside::Outside;
use ckrun_virt::switches::{Misfeature, ProcessSwitches, Speculation, ThreadSwitches};
use libc::*;

fn prctl(args: [u64; 3]) {
    call(SYS_prctl, &[args[0], args[1], args[2]]);
}

#[test]
fn a_thread_that_has_switched_nothing() {
    let switches: ThreadSwitches = carried(|| {});
    assert!(!switches.no_tsc && !switches.no_cpuid && !switches.io_flusher);
    assert!(switches.speculation.is_empty(), "{switches:?}");
    assert_eq!((switches.machine_check, switches.personality.0), (2, 0));
}

#[test]
fn what_a_thread_has_switched() {
    let name = b"a \xff (name) \n\0";
    let switches: ThreadSwitches = carried(|| {
        prctl([PR_SET_NAME as u64, name.as_ptr().expose_provenance() as u64, 0]);
        prctl([PR_SET_TIMERSLACK as u64, 123_456, 0]);
        call(SYS_personality, &[(ADDR_NO_RANDOMIZE | UNAME26) as u64]);
        prctl([PR_SET_TSC as u64, PR_TSC_SIGSEGV as u64, 0]);
        prctl([PR_MCE_KILL as u64, PR_MCE_KILL_SET as u64, PR_MCE_KILL_EARLY as u64]);
    });
    assert_eq!(&switches.name[..], &name[..name.len() - 1]);
    assert_eq!((switches.timer_slack, switches.machine_check), (123_456, 1));
    assert_eq!(switches.personality.0, (ADDR_NO_RANDOMIZE | UNAME26) as u64);
    assert!(switches.no_tsc);
}

#[test]
fn cpuid_and_speculation_where_they_can_be_switched() {
    let mut faulting = false;
    // SAFETY: two numbers.
    if unsafe { syscall(SYS_arch_prctl, 0x1012, 1) } == 0 {
        faulting = true;
    }
    let state: ThreadSwitches = carried(|| {
        if faulting {
            call(SYS_arch_prctl, &[0x1012, 0]);
        }
        // SAFETY: numbers.
        unsafe { libc::prctl(PR_SET_SPECULATION_CTRL, 0, 4, 0, 0) };
    });
    assert_eq!(state.no_cpuid, faulting);
    // SAFETY: numbers.
    let switchable = unsafe { libc::prctl(PR_GET_SPECULATION_CTRL, 0, 0, 0, 0) } & 1 == 1;
    let expected = switchable.then_some(Speculation::Disable);
    assert_eq!(state.speculation.get(&Misfeature::StoreBypass).copied(), expected);
}

#[test]
fn what_a_process_has_switched() {
    let plain: ProcessSwitches = carried(|| {});
    assert!(!plain.subreaper && !plain.merge && plain.mdwe == 0 && plain.membarrier.0 == 0);
    let switches: ProcessSwitches = carried(|| {
        prctl([PR_SET_CHILD_SUBREAPER as u64, 1, 0]);
        prctl([PR_SET_THP_DISABLE as u64, 1, 0]);
        prctl([65, 1, 0]); // PR_SET_MDWE: PR_MDWE_REFUSE_EXEC_GAIN
        for command in [1 << 2, 1 << 4, 1 << 6] {
            call(SYS_membarrier, &[command, 0, 0]);
        }
    });
    assert!(switches.subreaper);
    assert_eq!((switches.thp_disable, switches.mdwe, switches.membarrier.0), (1, 1, 0b101_0100));
}

#[test]
fn an_image_without_a_switch_or_with_an_unknown_one_is_refused() {
    let switches: ProcessSwitches = capture(&job(|| {}));
    let mut json = serde_json::to_value(&switches).unwrap();
    json["turbo"] = true.into();
    assert!(serde_json::from_value::<ProcessSwitches>(json).is_err());
    assert!(serde_json::from_str::<ProcessSwitches>("{}").is_err());
    let long: ThreadSwitches = serde_json::from_str(
        r#"{"name": "much longer than a name can be", "timer-slack": 1, "personality": "0x0", "machine-check": 2}"#,
    )
    .unwrap();
    let mut newborn = Newborn::new();
    newborn.restore(&long);
    assert_eq!(&newborn.capture::<ThreadSwitches>().name[..], b"much longer tha");
}

/// A byte that says whether calls are dispatched: 0 for no.
static SELECTOR: std::sync::atomic::AtomicU8 = std::sync::atomic::AtomicU8::new(0);

#[test]
fn system_calls_that_are_dispatched_to_user_space() {
    let selector = SELECTOR.as_ptr().expose_provenance() as u64;
    let set = || {
        const PR_SET_SYSCALL_USER_DISPATCH: u64 = 59;
        call(SYS_prctl, &[PR_SET_SYSCALL_USER_DISPATCH, 1, 0x1000, 0x2000, selector]);
    };
    let job = job(set);
    let found = visit(&job, |_, _| {
        let found = UserDispatch::suspend(job.pid).unwrap();
        assert!(UserDispatch::capture(&stopped(job.pid)).unwrap().is_off());
        found.restore(job.pid).unwrap();
        assert_eq!(UserDispatch::capture(&stopped(job.pid)).unwrap(), found);
        found
    });
    assert_eq!((found.mode, found.offset.0, found.len.0, found.selector.0), (1, 0x1000, 0x2000, selector));
    let newborn = Newborn::new();
    through_json(&found).restore(newborn.job.pid).unwrap();
    assert_eq!(UserDispatch::capture(&stopped(newborn.job.pid)).unwrap(), found);
}

//! Limits, scheduling, memory policy, out-of-memory score, what happens at the end.

use crate::job::{Newborn, at, call, capture, carried, carried_outside, job, stopped, through_json, visit};
use ckrun_virt::exit::AtExit;
use ckrun_virt::limits::{Amount, Kind, Limit, Limits};
use ckrun_virt::mempolicy::MemPolicy;
use ckrun_virt::oom::{CoredumpFilter, OomScoreAdj};
use ckrun_virt::outside::Outside;
use ckrun_virt::program::Program;
use ckrun_virt::resource::Resource;
use ckrun_virt::sched::{Cpus, Policy, Sched};
use libc::*;

fn limit(which: u32, soft: u64, hard: u64) {
    call(SYS_prlimit64, &[0, which.into(), at(&[soft, hard]), 0]);
}

#[test]
fn limits_are_carried() {
    let limits: Limits = carried(|| {
        limit(RLIMIT_NOFILE, 77, 99);
        limit(RLIMIT_CPU, 1000, RLIM_INFINITY);
        limit(RLIMIT_CORE, 0, 0);
    });
    assert_eq!(limits.get(Kind::Nofile), Some(Limit { soft: Amount(77), hard: Amount(99) }));
    let cpu = Limit { soft: Amount(1000), hard: Amount(RLIM_INFINITY) };
    assert_eq!(limits.get(Kind::Cpu), Some(cpu));
    assert_eq!(serde_json::to_string(&cpu).unwrap(), r#"{"soft":1000,"hard":"unlimited"}"#);
    assert!(serde_json::from_str::<Limits>(r#"{"cpu": {"soft": "much", "hard": 1}}"#).is_err());
    assert!(serde_json::from_str::<Limits>(r#"{"cheese": {"soft": 1, "hard": 1}}"#).is_err());
}

#[test]
fn a_hard_limit_that_can_not_be_raised_is_named() {
    let limits: Limits = capture(&job(|| limit(RLIMIT_NOFILE, 77, 99)));
    let mut newborn = Newborn::new();
    newborn.restore(&limits);
    newborn.call(SYS_setresuid, &[1000, 1000, 1000]).unwrap();
    let higher = serde_json::from_str::<Limits>(r#"{"nofile": {"soft": 77, "hard": 100}}"#).unwrap();
    let mut program = Program::new();
    higher.restore(&mut program);
    let error = newborn.worker.run(&program).unwrap_err().to_string();
    assert_eq!(
        error,
        "set the limit nofile to 77 (hard 100; to raise a hard limit takes CAP_SYS_RESOURCE): \
         operation not permitted"
    );
}

#[test]
fn limits_above_those_of_this_process_are_known_before() {
    let limits: Limits = capture(&job(|| {}));
    assert_eq!(limits.too_high().unwrap(), [""; 0]);
    let (_, hard) = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE).unwrap();
    let higher = format!(r#"{{"nofile": {{"soft": 1, "hard": {}}}}}"#, hard + 1);
    let higher: Limits = serde_json::from_str(&higher).unwrap();
    assert_eq!(higher.too_high().unwrap(), [format!("nofile ({} > {hard})", hard + 1)]);
}

#[test]
fn what_the_kernel_does_at_the_end_of_a_thread() {
    let at_exit: AtExit = carried(|| {
        call(SYS_set_tid_address, &[0x1234_5678]);
        call(SYS_set_robust_list, &[0x8765_4320, 24]);
    });
    assert_eq!((at_exit.clear_tid.0, at_exit.robust_list.0), (0x1234_5678, 0x8765_4320));
}

#[test]
fn memory_policies() {
    const MPOL_PREFERRED: u64 = 1;
    const MPOL_F_STATIC_NODES: u64 = 1 << 15;
    let default: MemPolicy = carried(|| {});
    assert_eq!(serde_json::to_string(&default).unwrap(), r#"{"mode":0}"#);
    let policy: MemPolicy = carried(|| {
        call(SYS_set_mempolicy, &[MPOL_PREFERRED | MPOL_F_STATIC_NODES, at(&1_u64), 64]);
    });
    assert_eq!(policy.mode.cast_unsigned(), (MPOL_PREFERRED | MPOL_F_STATIC_NODES) as u32);
    assert_eq!(policy.nodes[0].0, 1);
    let elsewhere: MemPolicy =
        serde_json::from_str(r#"{"mode": 2, "nodes": ["0x0", "0x8000000000000000"]}"#).unwrap();
    let mut program = Program::new();
    elsewhere.restore(&mut program);
    let error = Newborn::new().worker.run(&program).unwrap_err().to_string();
    assert!(error.starts_with("set the memory policy (are its nodes on this host?): "), "{error}");
}

#[test]
fn nice_batch_and_io_priority() {
    const IDLE_CLASS: u64 = 3 << 13;
    let sched: Sched = carried_outside(|| {
        call(SYS_setpriority, &[PRIO_PROCESS as u64, 0, 7]);
        call(SYS_sched_setscheduler, &[0, SCHED_BATCH as u64, at(&0_i32)]);
        call(SYS_ioprio_set, &[1, 0, IDLE_CLASS]);
    });
    assert!(matches!(sched.policy, Policy::Batch(fair) if fair.nice == 7 && fair.slice.is_none()));
    assert_eq!(u64::from(sched.io_priority), IDLE_CLASS);
    assert!(!sched.reset_on_fork);
}

#[test]
fn an_ordinary_thread_has_nothing_special() {
    let sched: Sched = carried_outside(|| {});
    let json = serde_json::to_value(&sched).unwrap();
    assert_eq!(json["policy"], serde_json::json!({ "other": { "nice": sched_nice(&sched) } }));
    assert_eq!(json.as_object().unwrap().len(), 2, "{json}");
}

fn sched_nice(sched: &Sched) -> i32 {
    let Policy::Other(fair) = sched.policy else { panic!("{sched:?}") };
    fair.nice
}

#[test]
fn a_slice_of_its_own() {
    let wanted: u64 = 5_000_000;
    let sched: Sched = carried_outside(|| {
        // struct sched_attr: size and policy, flags, nice and priority, runtime, deadline, period.
        call(SYS_sched_setattr, &[0, at(&[48_u64, 0, 0, wanted, 0, 0]), 0]);
    });
    // Before Linux 6.12 the kernel does not take it.
    let Policy::Other(fair) = sched.policy else { panic!("{sched:?}") };
    assert!(fair.slice.is_none_or(|slice| slice == wanted), "{sched:?}");
}

#[test]
fn real_time_policies_and_reset_on_fork() {
    let sched: Sched = carried_outside(|| {
        call(SYS_sched_setscheduler, &[0, (SCHED_RR | SCHED_RESET_ON_FORK) as u64, at(&3_i32)]);
    });
    assert_eq!((sched.policy, sched.reset_on_fork), (Policy::RoundRobin(3), true));
    let sched: Sched = carried_outside(|| {
        call(SYS_sched_setscheduler, &[0, SCHED_FIFO as u64, at(&1_i32)]);
    });
    assert_eq!(sched.policy, Policy::Fifo(1));
}

#[test]
fn a_deadline() {
    let sched: Sched = carried_outside(|| {
        call(SYS_sched_setattr, &[0, at(&[6_u64 << 32 | 48, 0, 0, 1_000_000, 10_000_000, 20_000_000]), 0]);
    });
    let wanted = Policy::Deadline { runtime: 1_000_000, deadline: 10_000_000, period: 20_000_000, flags: 0 };
    assert_eq!(sched.policy, wanted);
}

#[test]
fn cpus_are_carried_and_all_are_all() {
    let sched: Sched = carried_outside(|| {});
    assert_eq!(sched.cpus, Cpus::All);
    let last = std::thread::available_parallelism().unwrap().get() - 1;
    let sched: Sched = carried_outside(|| {
        call(SYS_sched_setaffinity, &[0, 8, at(&(1_u64 << last))]);
    });
    if last > 0 {
        assert_eq!(sched.cpus.to_string(), last.to_string());
    }
}

/// A visit pins the thread until it is over.
#[test]
fn a_visit_does_not_change_the_affinity() {
    let job = job(|| {});
    visit(&job, |visit, tracees| {
        let mut program = Program::new();
        program.call("getpid", SYS_getpid, &[]);
        visit.run(&tracees[0], &program).unwrap();
    });
    assert_eq!(Sched::capture(&stopped(job.pid)).unwrap().cpus, Cpus::All);
}

#[test]
fn cpus_that_are_not_there_are_an_error_that_names_them() {
    let job = job(|| {});
    let mut sched = Sched::capture(&stopped(job.pid)).unwrap();
    sched.cpus = "8000-8190".to_owned().try_into().unwrap();
    let error = sched.restore(job.pid).unwrap_err().to_string();
    assert!(error.contains("run on CPUs 8000-8190, of which this host has to have one"), "{error}");
    for list in ["", "1-", "-1", "3-1", "1,1", "0-8192", "0-3,2", "4294967296", "a", "0 - 3", "ALL"] {
        assert!(Cpus::try_from(list.to_owned()).is_err(), "{list:?}");
    }
}

#[test]
fn oom_score_and_core_dump_filter() {
    let score: OomScoreAdj = carried_outside(|| std::fs::write("/proc/self/oom_score_adj", "321").unwrap());
    assert_eq!(serde_json::to_string(&score).unwrap(), "321");
    let filter: CoredumpFilter =
        carried_outside(|| std::fs::write("/proc/self/coredump_filter", "0x17f").unwrap());
    assert_eq!(serde_json::to_string(&filter).unwrap(), (0x17f).to_string());
    through_json(&filter);
    assert!(serde_json::from_str::<OomScoreAdj>("40000").is_err());
}

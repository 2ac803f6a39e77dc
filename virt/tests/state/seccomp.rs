use crate::job::{Newborn, at, call, job, stopped, through_json, visit};
use ckrun_virt::nursery::beget_threads;
use ckrun_virt::program::Program;
use ckrun_virt::seccomp::Filters;
use libc::*;
use nix::errno::Errno;
use nix::unistd::Pid;

/// Returns the constant, whatever the call is.
fn constant(k: u32) -> Vec<sock_filter> {
    vec![sock_filter { code: 6, jt: 0, jf: 0, k }]
}

/// Call `nr` fails with `errno`.
fn deny(nr: i64, errno: i32) -> Vec<sock_filter> {
    vec![
        sock_filter { code: 0x20, jt: 0, jf: 0, k: 0 },
        sock_filter { code: 0x15, jt: 0, jf: 1, k: nr as u32 },
        sock_filter { code: 6, jt: 0, jf: 0, k: SECCOMP_RET_ERRNO | errno as u32 },
        sock_filter { code: 6, jt: 0, jf: 0, k: SECCOMP_RET_ALLOW },
    ]
}

fn install(code: &[sock_filter], flags: u64) {
    let program = sock_fprog { len: code.len() as u16, filter: code.as_ptr().cast_mut() };
    call(SYS_seccomp, &[1, flags, at(&program)]);
}

fn read(pid: Pid) -> Filters {
    let mut filters = Filters::default();
    filters.capture(&stopped(pid)).unwrap();
    filters
}

#[test]
fn filters_in_their_order_and_in_force_again() {
    // The second is logged. The first needs no_new_privs no more than the second: root installs them.
    let (first, second) = (deny(SYS_getppid, EXDEV), deny(SYS_getpgid, ENOTTY));
    let job = job(|| {
        install(&first, 0);
        install(&second, SECCOMP_FILTER_FLAG_LOG);
    });
    let filters = through_json(&visit(&job, |_, _| read(job.pid)));
    filters.check().unwrap();
    assert_eq!(filters.threads[&1], [0, 1]);
    assert_eq!((filters.filters[0].log, filters.filters[1].log), (false, true));
    assert_eq!(filters.filters[0].code[1], (0x15, 0, 1, SYS_getppid as u32));
    assert!(filters.blocker(&stopped(job.pid)).is_none());

    let mut newborn = Newborn::new();
    let mut program = Program::new();
    filters.restore(1, false, &mut program);
    newborn.worker.run(&program).unwrap();
    assert_eq!(read(newborn.job.pid), filters);
    // Suspended, ...
    newborn.call(SYS_getppid, &[]).unwrap();
    // ... and not.
    let options = PTRACE_O_EXITKILL | PTRACE_O_TRACESYSGOOD;
    ckrun_virt::sys::ptrace::set_options(newborn.job.pid, options).unwrap();
    assert_eq!(newborn.call(SYS_getppid, &[]), Err(Errno::EXDEV));
    assert_eq!(newborn.call(SYS_getpgid, &[]), Err(Errno::ENOTTY));
    assert!(!stopped(newborn.job.pid).status.no_new_privs);
}

/// One installation for all threads: only then are the kernel's filters shared.
#[test]
fn threads_with_the_same_filters_share_them() {
    let filter = constant(SECCOMP_RET_ALLOW);
    let job = job(|| {
        install(&filter, 0);
        install(&filter, 0);
    });
    let mut filters = visit(&job, |_, _| read(job.pid));
    assert_eq!((filters.filters.len(), &filters.threads[&1][..]), (1, &[0, 0][..]));
    filters.threads.insert(2, vec![0, 0]);
    filters.threads.insert(3, vec![0]);
    assert!(
        filters.same(&[1, 2]) && !filters.same(&[1, 2, 3]) && !filters.same(&[1, 4]) && !filters.same(&[4])
    );

    let mut newborn = Newborn::new();
    let threads = beget_threads(&mut newborn.worker, &[2]).unwrap();
    let mut program = Program::new();
    filters.restore(1, true, &mut program);
    newborn.worker.run(&program).unwrap();
    for host in [newborn.job.pid, threads[0].host()] {
        assert_eq!(stopped(host).status.seccomp_filters, 2);
    }
    assert_eq!(read(threads[0].host()).filters, filters.filters);
}

#[test]
fn what_can_not_be_carried_is_named() {
    let notify = constant(SECCOMP_RET_USER_NOTIF);
    let returns_a =
        vec![sock_filter { code: 0x20, jt: 0, jf: 0, k: 0 }, sock_filter { code: 0x16, jt: 0, jf: 0, k: 0 }];
    for code in [notify, returns_a] {
        // Read only, as it would be in force for the job's own calls.
        let json: Vec<_> = code.iter().map(|i| (i.code, i.jt, i.jf, i.k)).collect();
        let filters: Filters = serde_json::from_value(serde_json::json!({
            "filters": [{ "log": false, "code": json }], "threads": { "1": [0] }
        }))
        .unwrap();
        let job = job(|| {});
        let blocker = filters.blocker(&stopped(job.pid)).unwrap().to_string();
        assert!(blocker.contains("thread 1: seccomp filter with a listener"), "{blocker}");
    }
}

#[test]
fn strict_mode() {
    let task = job(|| {});
    let mut strict = stopped(task.pid);
    strict.status.seccomp = 1;
    let mut filters = Filters::default();
    filters.capture(&strict).unwrap();
    assert!(filters.strict.contains(&1) && filters.blocker(&strict).is_none());
    let filters = through_json(&filters);
    let mut newborn = Newborn::new();
    let mut program = Program::new();
    filters.restore(1, false, &mut program);
    newborn.worker.run(&program).unwrap();
    let task = stopped(newborn.job.pid);
    assert_eq!(task.status.seccomp, 1);
    // Read back from a task that is in it, and suspended for the tracer.
    let mut again = Filters::default();
    again.capture(&task).unwrap();
    assert_eq!(again, filters);
    newborn.call(SYS_getppid, &[]).unwrap();
}

#[test]
fn a_filter_with_a_listener_is_found_in_a_process() {
    // Call number 999 does not exist, so nobody waits for an answer.
    let mut code = deny(999, 0);
    code[2].k = SECCOMP_RET_USER_NOTIF;
    let job = job(|| install(&code, SECCOMP_FILTER_FLAG_NEW_LISTENER));
    let blocker = visit(&job, |_, _| read(job.pid).blocker(&stopped(job.pid)));
    assert!(blocker.unwrap().what.ends_with("seccomp filter with a listener"));
}

#[test]
fn a_hostile_table_is_refused() {
    for json in [
        r#"{"filters": [], "threads": {"1": [0]}}"#,
        r#"{"filters": [{"log": false, "code": []}], "threads": {}}"#,
    ] {
        assert!(serde_json::from_str::<Filters>(json).unwrap().check().is_err(), "{json}");
    }
    let long =
        serde_json::json!({ "filters": [{ "log": false, "code": vec![(6, 0, 0, 0); 4097] }], "threads": {} });
    let error = serde_json::from_value::<Filters>(long).unwrap().check().unwrap_err().to_string();
    assert_eq!(error, "image: seccomp: filter 0 does not have 1 to 4096 instructions");
    assert!(
        serde_json::from_str::<Filters>(
            r#"{"filters": [{"log": false, "code": [[6, 0, 256, 0]]}], "threads": {}}"#
        )
        .is_err()
    );
    // The kernel refuses what is no filter.
    let wild: Filters = serde_json::from_str(
        r#"{"filters": [{"log": false, "code": [[5, 0, 0, 9]]}], "threads": {"1": [0]}}"#,
    )
    .unwrap();
    let mut program = Program::new();
    wild.restore(1, false, &mut program);
    let error = Newborn::new().worker.run(&program).unwrap_err().to_string();
    assert_eq!(error, "install a seccomp filter: invalid argument");
}

use crate::job::{Job, at, call, job, stopped, visit};
use ckrun_virt::landlock::{Witnesses, blocker};
use ckrun_virt::program::Program;
use ckrun_virt::tracee::Tracee;
use ckrun_virt::visit::Visit;
use libc::*;

/// What a domain may handle: accesses of the file system, of the network, scopes.
const HANDLED: [[u64; 3]; 3] = [[1, 0, 0], [0, 1, 0], [0, 0, 1]];

fn confine(handled: &[u64; 3]) {
    let ruleset = call(SYS_landlock_create_ruleset, &[at(handled), 24, 0]);
    call(SYS_prctl, &[PR_SET_NO_NEW_PRIVS as u64, 1]);
    call(SYS_landlock_restrict_self, &[ruleset.cast_unsigned(), 0]);
}

/// The kernel of this host must have Landlock for these tests to say anything.
fn confined(job: &Job) -> bool {
    confined_threads(job)[0]
}

fn confined_threads(job: &Job) -> Vec<bool> {
    let mut witnesses = Witnesses::default();
    let mut judge = |visit: &mut Visit, tracee: &Tracee| {
        let task = stopped(tracee.pid());
        let witness = witnesses.of(&task).unwrap().expect("a kernel with Landlock (lsm=landlock)");
        let mut program = Program::new();
        let call = witness.ask(&mut program);
        let blocker = blocker(&task, visit.run(tracee, &program).unwrap().of(call));
        assert!(blocker.iter().all(|b| b.why.starts_with("it is confined")), "{blocker:?}");
        blocker.is_some()
    };
    visit(job, |visit, tracees| tracees.iter().map(|tracee| judge(visit, tracee)).collect())
}

/// Ids and domains are a thread's own.
#[test]
fn threads_that_differ() {
    let job = job(|| {
        for handled in [None, Some(&HANDLED[2])] {
            let (tell, told) = std::sync::mpsc::channel();
            std::thread::spawn(move || {
                drop_to(1000, false);
                if let Some(handled) = handled {
                    confine(handled);
                }
                tell.send(()).unwrap();
                loop {
                    std::thread::park();
                }
            });
            told.recv().unwrap();
        }
    });
    assert_eq!(confined_threads(&job), [false, false, true]);
}

fn drop_to(uid: u64, caps: bool) {
    if uid != 0 {
        call(SYS_setresgid, &[uid, uid, uid]);
        call(SYS_setresuid, &[uid, uid, uid]);
    }
    if !caps {
        call(SYS_capset, &[at(&[0x2008_0522_u32, 0]), at(&[0_u32; 6])]);
    }
}

#[test]
fn whoever_is_confined_is_found_and_nobody_else() {
    for (uid, caps) in [(0, true), (0, false), (1000, false)] {
        assert!(!confined(&job(|| drop_to(uid, caps))), "uid {uid}, capabilities {caps}");
        for handled in &HANDLED {
            let job = job(|| {
                drop_to(uid, caps);
                confine(handled);
            });
            assert!(confined(&job), "uid {uid}, capabilities {caps}, {handled:?}");
        }
    }
}

#[test]
fn ids_that_differ_and_a_user_namespace() {
    let ids = || {
        call(SYS_setresgid, &[10, 20, 30]);
        call(SYS_setresuid, &[1000, 2000, 3000]);
    };
    assert!(!confined(&job(ids)));
    assert!(confined(&job(|| {
        ids();
        confine(&HANDLED[0]);
    })));
    let alone = || {
        call(SYS_setresuid, &[1000, 1000, 1000]);
        call(SYS_unshare, &[(CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWNET) as u64]);
    };
    assert!(!confined(&job(alone)));
    assert!(confined(&job(|| {
        alone();
        confine(&HANDLED[1]);
    })));
}

#[test]
fn the_witness_is_made_once_and_goes() {
    let (one, two) = (job(|| {}), job(|| drop_to(1000, false)));
    let mut witnesses = Witnesses::default();
    let first = format!("{:?}", witnesses.of(&stopped(one.pid)).unwrap());
    assert_eq!(first, format!("{:?}", witnesses.of(&stopped(one.pid)).unwrap()));
    assert_ne!(first, format!("{:?}", witnesses.of(&stopped(two.pid)).unwrap()));
    let children = || {
        let path = "/proc/thread-self/children";
        std::fs::read_to_string(path).unwrap().split_ascii_whitespace().count()
    };
    assert_eq!(children(), 4);
    drop(witnesses);
    assert_eq!(children(), 2);
}

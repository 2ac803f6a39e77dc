use super::*;
use crate::image::Bytes;
use crate::uts::Names;
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, fork, pipe};
use std::collections::BTreeMap;
use std::io::{Read, Write};

/// A child with namespaces of its own, which has done something and sleeps.
struct Sandbox(Pid);

impl Sandbox {
    fn new(setup: impl FnOnce()) -> Sandbox {
        let (read, write) = pipe().unwrap();
        // SAFETY: the child calls nothing that needs another thread, and never returns.
        match unsafe { fork() }.unwrap() {
            ForkResult::Child => {
                let setup = std::panic::AssertUnwindSafe(|| {
                    unshare(CloneFlags::CLONE_NEWIPC | CloneFlags::CLONE_NEWUTS).unwrap();
                    setup();
                });
                let well = std::panic::catch_unwind(setup).is_ok();
                std::fs::File::from(write).write_all(&[well.into()]).unwrap();
                loop {
                    nix::unistd::pause();
                }
            }
            ForkResult::Parent { child } => {
                let made = Sandbox(child);
                let mut well = [0];
                std::fs::File::from(read).read_exact(&mut well).unwrap();
                assert_eq!(well, [1], "the child's setup has failed");
                made
            }
        }
    }

    fn ipc(&self) -> Namespace {
        Namespace::of(self.0, Kind::Ipc).unwrap().unwrap()
    }

    fn capture(&self) -> SystemV {
        let ids = HashMap::from([(self.0.as_raw(), 7)]);
        SystemV::capture(&self.ipc(), &ids).unwrap()
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        let _ = kill(self.0, Signal::SIGKILL);
        let _ = waitpid(self.0, None);
    }
}

fn own_namespaces() -> [std::path::PathBuf; 2] {
    ["ipc", "uts"].map(|kind| std::fs::read_link(format!("/proc/thread-self/ns/{kind}")).unwrap())
}

fn ok(answer: libc::c_int) -> libc::c_int {
    assert_ne!(answer, -1, "{}", Errno::last());
    answer
}

fn send(queue: i32, kind: i64, text: &[u8]) {
    let bytes = [&kind.to_ne_bytes()[..], text].concat();
    // SAFETY: a type and as many bytes as are told.
    ok(unsafe { libc::msgsnd(queue, bytes.as_ptr().cast(), text.len(), libc::IPC_NOWAIT) });
}

/// Sets and queues of all sorts, with ids that are not the first ones.
fn populate() {
    // SAFETY: calls with numbers, and with structures and arrays of the size that they read.
    unsafe {
        let gone = ok(libc::semget(libc::IPC_PRIVATE, 1, 0o600));
        let set = ok(libc::semget(0x5eed, 3, libc::IPC_CREAT | 0o640));
        ok(libc::semctl(gone, 0, libc::IPC_RMID));
        let values = [4_u16, 0, 32767];
        ok(libc::semctl(set, 0, libc::SETALL, values.as_ptr()));
        let mut down = libc::sembuf { sem_num: 0, sem_op: -1, sem_flg: 0 };
        ok(libc::semop(set, &raw mut down, 1));
        ok(libc::semget(libc::IPC_PRIVATE, 1, 0));

        let gone = ok(libc::msgget(libc::IPC_PRIVATE, 0o600));
        ok(libc::msgctl(gone, libc::IPC_RMID, std::ptr::null_mut()));
        let queue = ok(libc::msgget(0x6eed, libc::IPC_CREAT | 0o622));
        send(queue, 5, b"first");
        send(queue, 1 << 40, b"\xff\0second");
        send(queue, 5, b"");
        // Less room than what waits.
        let (_, mut settings) = msg_stat(queue);
        settings.msg_qbytes = 4;
        (settings.msg_perm.uid, settings.msg_perm.gid) = (1000, 1001);
        ok(libc::msgctl(queue, libc::IPC_SET, &raw mut settings));
        ok(libc::msgget(libc::IPC_PRIVATE, 0));
    }
}

fn msg_stat(id: i32) -> (i32, libc::msqid_ds) {
    // SAFETY: a plain C structure of numbers, which IPC_STAT fills.
    unsafe {
        let mut queue: libc::msqid_ds = std::mem::zeroed();
        (ok(libc::msgctl(id, libc::IPC_STAT, &raw mut queue)), queue)
    }
}

#[test]
fn what_is_captured_can_be_made_again() {
    let here = own_namespaces();
    let old = Sandbox::new(populate);
    let state = old.capture();
    assert_eq!(state.semaphores.len(), 2);
    let set = state.semaphores.iter().find(|set| set.access.key == 0x5eed).unwrap();
    assert_eq!((set.access.mode, set.operated), (0o640, true));
    assert_eq!(set.values, [3, 0, 32767]);
    assert_eq!(set.last, BTreeMap::from([(0, 7), (1, 7), (2, 7)]));
    assert!(state.semaphores.iter().any(|set| set.access.key == 0 && !set.operated));
    let queue = state.queues.iter().find(|queue| queue.access.key == 0x6eed).unwrap();
    assert_eq!((queue.room, queue.access.owner, queue.access.mode), (4, (1000, 1001), 0o622));
    let message = |kind, text: &[u8]| Message { kind, text: text.into() };
    let all = [message(5, b"first"), message(1 << 40, b"\xff\0second"), message(5, b"")];
    assert_eq!(queue.messages, all);
    // Nothing has been taken away.
    assert_eq!(old.capture(), state);

    let json = serde_json::to_string(&state).unwrap();
    let read: SystemV = serde_json::from_str(&json).unwrap();
    let new = Sandbox::new(|| {});
    read.make(new.0).unwrap();
    let made = new.capture();
    // Only the processes are others.
    let mut expected = state.clone();
    expected.semaphores.iter_mut().for_each(|set| set.last.clear());
    assert_eq!(made, expected);
    // A second time the ids are taken, and nothing is left behind by the attempt.
    let error = read.make(new.0).unwrap_err().to_string();
    assert!(error.contains("make semaphore set"), "{error}");
    let left = new.capture();
    assert_eq!((left.semaphores, left.queues), (expected.semaphores, expected.queues));
    assert_eq!(own_namespaces(), here);
}

#[test]
fn a_taken_id_is_an_error() {
    let set = |key| Set {
        id: 5,
        access: Access { key, owner: (0, 0), creator: (0, 0), mode: 0o600 },
        operated: false,
        values: vec![1],
        last: BTreeMap::new(),
    };
    let state = SystemV { semaphores: vec![set(0), set(0)], ..SystemV::default() };
    let sandbox = Sandbox::new(|| {});
    let error = state.make(sandbox.0).unwrap_err().to_string();
    assert_eq!(error, "make semaphore set 5: its id is taken: file exists");
    assert_eq!(sandbox.capture().semaphores, [set(0)]);
}

#[test]
fn the_creator_is_the_same() {
    let (user, group) = (4711, 4712);
    let access = |key| Access { key, owner: (1, 2), creator: (user, group), mode: 0o600 };
    let queue = Queue { id: 3, access: access(9), room: 100, messages: Vec::new() };
    let set = Set { id: 8, access: access(8), operated: true, values: vec![2; 5], last: BTreeMap::new() };
    let state = SystemV { semaphores: vec![set], queues: vec![queue], ..SystemV::default() };
    let sandbox = Sandbox::new(|| {});
    // In a process of its own: for a moment the change of the user is one of the whole process, not of a thread.
    let _maker = Sandbox::new(|| {
        let own = || {
            let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
            let kept = |line: &&str| ["Uid", "Gid", "Cap"].iter().any(|name| line.starts_with(name));
            let lines: Vec<String> = status.lines().filter(kept).map(str::to_owned).collect();
            let mut signal = 0;
            // SAFETY: the first call writes one int, the others take numbers only.
            let numbers = unsafe {
                libc::prctl(libc::PR_GET_PDEATHSIG, &raw mut signal);
                [signal, libc::prctl(libc::PR_GET_DUMPABLE), libc::prctl(libc::PR_GET_SECUREBITS)]
            };
            (lines, numbers)
        };
        // SAFETY: numbers only.
        unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
        let before = own();
        assert_eq!(before.1, [libc::SIGKILL, 1, 0]);
        state.make(sandbox.0).unwrap();
        assert_eq!(own(), before);
    });
    let made = sandbox.capture();
    assert_eq!((made.semaphores, made.queues), (state.semaphores, state.queues));
}

#[test]
fn limits_are_the_namespaces() {
    let here = own_namespaces();
    let write = |name: &str, value: &str| std::fs::write(format!("/proc/sys/{name}"), value).unwrap();
    let old = Sandbox::new(|| {
        write("kernel/sem", "40000 1024000000 1000000000 12345");
        // SAFETY: numbers only. It has room for more than will be allowed.
        ok(unsafe { libc::msgget(7, libc::IPC_CREAT | 0o600) });
        write("kernel/msgmnb", "100");
        write("kernel/shm_rmid_forced", "1");
        write("fs/mqueue/msg_max", "123");
        // SAFETY: numbers only. More than a new namespace allows.
        ok(unsafe { libc::semget(8, 33000, libc::IPC_CREAT | 0o600) });
        write("kernel/sem_next_id", "77");
    });
    let state = old.capture();
    for (name, value) in
        [("kernel/sem", "40000\t1024000000\t1000000000\t12345"), ("fs/mqueue/msg_max", "123")]
    {
        assert_eq!(state.limits[name], value);
    }
    let new = Sandbox::new(|| {});
    state.make(new.0).unwrap();
    assert_eq!(new.capture(), state);
    assert_eq!(own_namespaces(), here);
}

#[test]
fn the_hosts_namespaces_are_left_alone() {
    assert!(Namespace::of(Pid::this(), Kind::Ipc).unwrap().is_none());
    assert_eq!(Names::capture(Pid::this()).unwrap(), None);
    let before = std::fs::read("/proc/sys/kernel/hostname").unwrap();
    let names = Names { host: "other".into(), domain: Bytes::default() };
    names.restore(Pid::this()).unwrap();
    assert_eq!(std::fs::read("/proc/sys/kernel/hostname").unwrap(), before);
    let queue = Queue {
        id: 1 << 20,
        access: Access { key: 0, owner: (0, 0), creator: (0, 0), mode: 0o600 },
        room: 1,
        messages: Vec::new(),
    };
    let state = SystemV { queues: vec![queue], ..SystemV::default() };
    assert!(matches!(state.make(Pid::this()), Err(Error::Unsupported(_))));
    SystemV::default().make(Pid::this()).unwrap();
}

#[test]
fn host_and_domain_name_are_the_namespaces() {
    let here = own_namespaces();
    let old = Sandbox::new(|| {
        // SAFETY: the kernel reads as many bytes as are told.
        unsafe {
            ok(libc::sethostname(c"a-host".as_ptr(), 6));
            ok(libc::setdomainname(c"a.domain".as_ptr(), 8));
        }
    });
    let names = Names::capture(old.0).unwrap().unwrap();
    assert_eq!(names, Names { host: "a-host".into(), domain: "a.domain".into() });
    let new = Sandbox::new(|| {});
    names.restore(new.0).unwrap();
    assert_eq!(Names::capture(new.0).unwrap().unwrap(), names);
    assert_eq!(own_namespaces(), here);
}

#[test]
fn a_process_with_a_namespace_of_its_own_is_named() {
    use crate::namespace::Common;
    let sandbox = Sandbox::new(|| {});
    let common = Common::of(Pid::this()).unwrap();
    assert_eq!(common.left_by(Pid::this(), 1, String::new).unwrap(), None);
    let blocker = common.left_by(sandbox.0, 5, || "stray".into()).unwrap().unwrap();
    assert!(blocker.to_string().starts_with("process 5 (stray): IPC namespace: "), "{blocker}");
}

/// A POSIX queue with messages, and one more about which somebody is to be told.
fn populate_posix() {
    // SAFETY: calls with names that end with a NUL, structures that are read, and as many bytes as are told.
    unsafe {
        let mut attributes: libc::mq_attr = std::mem::zeroed();
        (attributes.mq_maxmsg, attributes.mq_msgsize) = (4, 64);
        let flags = libc::O_CREAT | libc::O_RDWR;
        for name in [c"/plain", c"/watched"] {
            let queue = ok(libc::mq_open(name.as_ptr(), flags, 0o600, &raw mut attributes));
            ok(libc::fchown(queue, 7, 8));
            for (text, priority) in [(c"low", 1), (c"high", 9), (c"low too", 1)] {
                ok(libc::mq_send(queue, text.as_ptr(), text.count_bytes(), priority));
            }
            if name == c"/watched" {
                let mut event: libc::sigevent = std::mem::zeroed();
                event.sigev_notify = libc::SIGEV_SIGNAL;
                event.sigev_signo = libc::SIGUSR1;
                ok(libc::mq_notify(queue, &raw const event));
            }
        }
    }
}

#[test]
fn messages_of_posix_are_put_back_in_their_order() {
    let old = Sandbox::new(populate_posix);
    let state = old.capture();
    assert_eq!(old.capture(), state);
    let [plain, watched] = &state.posix[..] else { panic!("{:?}", state.posix) };
    let messages: Vec<_> = plain.messages.iter().map(|m| (m.priority, m.text.to_string())).collect();
    assert_eq!(messages, [(9, "high".into()), (1, "low".into()), (1, "low too".into())]);
    assert_eq!((plain.most, plain.size, plain.owner, plain.mode), (4, 64, (7, 8), 0o600));
    // What was taken out of this one nobody could put back unnoticed: a SIGUSR1 would have ended the process.
    assert!(watched.watched && watched.messages.is_empty());
    assert_eq!(posix::survey(old.0).unwrap().len(), 1);
    let events = std::fs::read_to_string(format!("/proc/{}/status", old.0)).unwrap();
    assert!(events.contains("State:\tS"), "{events}");

    let new = Sandbox::new(|| {});
    let wanted = SystemV { posix: vec![plain.clone()], ..SystemV::default() };
    wanted.make(new.0).unwrap();
    assert_eq!(new.capture().posix, wanted.posix);
    let error = wanted.make(new.0).unwrap_err().to_string();
    assert!(error.contains("make POSIX message queue plain"), "{error}");
}

/// What a process is to take back can't be asked, but whether there may be anything can.
#[test]
fn who_is_to_take_something_back_is_found() {
    let operate = |flags: libc::c_int| {
        let mut post = libc::sembuf { sem_num: 0, sem_op: 1, sem_flg: flags as i16 };
        // SAFETY: numbers, and one operation.
        unsafe {
            let set = ok(libc::semget(libc::IPC_PRIVATE, 1, 0o600));
            ok(libc::semop(set, &raw mut post, 1));
        }
    };
    std::thread::spawn(|| {}).join().unwrap();
    assert!(!has_undo(Sandbox::new(|| operate(0)).0));
    assert!(has_undo(Sandbox::new(|| operate(libc::SEM_UNDO)).0));
}

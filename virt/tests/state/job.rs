//! Jobs of one process, visits to them, and processes that take their state over.

use ckrun_virt::listing::threads;
use ckrun_virt::nursery::{AREA, take_over};
use ckrun_virt::outside::Outside;
use ckrun_virt::program::{Answers, Program};
use ckrun_virt::resource::{Resource, Stopped};
use ckrun_virt::status::Status;
use ckrun_virt::sys::ptrace::{self, Change};
use ckrun_virt::sys::{Clone3, Cloned};
use ckrun_virt::tracee::Tracee;
use ckrun_virt::visit::{Visit, stay_on_this_cpu};
use ckrun_virt::worker::Worker;
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use nix::unistd::Pid;
use std::fmt::Debug;
use std::io::Read;
use std::os::fd::{AsRawFd, OwnedFd};

/// A process that the test has made; it is killed in the end.
pub struct Job {
    pub pid: Pid,
    _fd: OwnedFd,
}

impl Drop for Job {
    fn drop(&mut self) {
        let tids = threads(self.pid);
        let _ = kill(self.pid, Signal::SIGKILL);
        // A leader is not reported before all its threads that are traced have been.
        for tid in tids.into_iter().rev() {
            while let Ok(Some((_, change))) = ptrace::wait(tid, 0) {
                if matches!(change, Change::Ended(_)) {
                    break;
                }
            }
        }
    }
}

/// The first process of a pid namespace, which has done `set` and waits since. `set` should do no more than calls.
pub fn job(set: impl FnOnce()) -> Job {
    let (mut ready, tell) = std::io::pipe().unwrap();
    let clone = Clone3 { flags: libc::CLONE_NEWPID as u64, cgroup: None };
    // SAFETY: the other threads of the test hold no lock that the child needs.
    match unsafe { clone.call() }.unwrap() {
        Cloned::Child => {
            let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(set));
            // SAFETY: writes one byte that is there; waits for ever.
            unsafe {
                if done.is_err() {
                    libc::_exit(1);
                }
                libc::write(tell.as_raw_fd(), b"x".as_ptr().cast(), 1);
                loop {
                    libc::pause();
                }
            }
        }
        Cloned::Parent(pid, fd) => {
            drop(tell);
            let job = Job { pid, _fd: fd };
            ready.read_exact(&mut [0]).expect("the job could not set its state");
            job
        }
    }
}

pub fn stopped(host: Pid) -> Stopped {
    let status = Status::parse(&std::fs::read(format!("/proc/{host}/status")).unwrap());
    let last = |ids: &[i32]| *ids.last().unwrap();
    Stopped { host, tid: last(&status.ns_pid), pid: last(&status.ns_tgid), status }
}

/// Stops all threads of the job and visits it; the answer is what `look` has seen.
pub fn visit<T>(job: &Job, look: impl FnOnce(&mut Visit, &[Tracee]) -> T) -> T {
    let cpu = stay_on_this_cpu().unwrap();
    let tracees: Vec<Tracee> = threads(job.pid)
        .into_iter()
        .map(|tid| {
            Tracee::catch(tid, libc::PTRACE_O_SUSPEND_SECCOMP).unwrap();
            Tracee::arrive(tid).unwrap().unwrap()
        })
        .collect();
    let mut visit = Visit::enter(&tracees[0], cpu).unwrap();
    let seen = look(&mut visit, &tracees);
    visit.leave().unwrap();
    for tracee in tracees {
        tracee.release().unwrap();
    }
    seen
}

/// Captures one kind of state of the job's leader.
pub fn capture<T: Resource>(job: &Job) -> T {
    // What is known without asking is known before the visit, which has an action of SIGTRAP of its own.
    let task = stopped(job.pid);
    visit(job, |visit, tracees| asked(&task, |program| visit.run(&tracees[0], program).unwrap()))
}

fn asked<T: Resource>(task: &Stopped, run: impl FnOnce(&Program) -> Answers) -> T {
    let mut program = Program::new();
    let asked = T::ask(&mut program);
    let answers = run(&program);
    T::capture(task, &asked, &answers).unwrap()
}

/// A process that is to be restored. It is killed in the end.
pub struct Newborn {
    pub worker: Worker,
    pub job: Job,
}

impl Newborn {
    pub fn new() -> Newborn {
        let (here, there) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).unwrap();
        let number = there.as_raw_fd();
        let job = job(|| {});
        let worker = take_over(job.pid, here, number, 0x10000..0x10000 + AREA).unwrap();
        let options = libc::PTRACE_O_EXITKILL | libc::PTRACE_O_TRACESYSGOOD | libc::PTRACE_O_SUSPEND_SECCOMP;
        ptrace::set_options(job.pid, options).unwrap();
        Newborn { worker, job }
    }

    pub fn restore<T: Resource>(&mut self, state: &T) {
        let mut program = Program::new();
        state.restore(&mut program);
        self.worker.run(&program).unwrap();
    }

    pub fn capture<T: Resource>(&mut self) -> T {
        let task = stopped(self.worker.host());
        asked(&task, |program| self.worker.run(program).unwrap())
    }

    /// Makes one call.
    pub fn call(&mut self, nr: libc::c_long, args: &[u64]) -> Result<i64, nix::errno::Errno> {
        let mut program = Program::new();
        let args: Vec<_> = args.iter().map(|&arg| arg.into()).collect();
        let call = program.attempt("a call", nr, &args);
        self.worker.run(&program).unwrap().of(call)
    }
}

/// Writes it to JSON and reads it again.
pub fn through_json<T: serde::Serialize + serde::de::DeserializeOwned + PartialEq + Debug>(value: &T) -> T {
    let json = serde_json::to_string(value).unwrap();
    let read: T = serde_json::from_str(&json).unwrap_or_else(|e| panic!("{e}: {json}"));
    assert_eq!(read, *value, "{json}");
    read
}

/// A job does `set`; another process gets the state that it then has, and must have the same. The answer is that state.
pub fn carried<T: Resource + PartialEq + Debug>(set: impl FnOnce()) -> T {
    let state: T = capture(&job(set));
    let mut newborn = Newborn::new();
    newborn.restore(&through_json(&state));
    assert_eq!(newborn.capture::<T>(), state);
    state
}

/// The same for what is set from outside.
pub fn carried_outside<T: Outside + PartialEq + Debug>(set: impl FnOnce()) -> T {
    let first = job(set);
    let state = T::capture(&stopped(first.pid)).unwrap();
    let second = job(|| {});
    through_json(&state).restore(second.pid).unwrap();
    assert_eq!(T::capture(&stopped(second.pid)).unwrap(), state);
    state
}

/// Makes a call, which must succeed.
#[track_caller]
pub fn call(nr: libc::c_long, args: &[u64]) -> i64 {
    let arg = |k: usize| args.get(k).copied().unwrap_or(0);
    // SAFETY: the tests pass numbers and the addresses of what lives through the call.
    let ret = unsafe { libc::syscall(nr, arg(0), arg(1), arg(2), arg(3), arg(4), arg(5)) };
    nix::errno::Errno::result(ret).unwrap()
}

/// The address of a value, for a call.
pub fn at<T>(value: &T) -> u64 {
    std::ptr::from_ref(value).expose_provenance() as u64
}

//! Real processes for the tests of this room.

use crate::image::{PagesWriter, Writer};
use crate::memory::{Census, Dumped, Layout, MmState, PageFiles, dump};
use crate::nursery::{Birth, beget, take_over};
use crate::proc::Stat;
use crate::program::{Answers, Program};
use crate::resource::Stopped;
use crate::status::Status;
use crate::tracee::Tracee;
use crate::visit::{Visit, stay_on_this_cpu};
use crate::worker::Worker;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, Pid, fork, pipe};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

/// A child of the test, traced and stopped. It dies with this.
#[derive(Debug)]
pub struct Task {
    pub pid: Pid,
    /// What its setup told.
    pub told: Vec<u64>,
    pub memory: File,
    pub tracee: Option<Tracee>,
}

impl Task {
    /// Forks; the child runs `setup` and then sleeps until it is killed.
    pub fn new(setup: impl FnOnce() -> Vec<u64>) -> Task {
        let (read, write) = pipe().unwrap();
        // SAFETY: the child calls nothing that needs another thread, and never returns.
        match unsafe { fork() }.unwrap() {
            ForkResult::Child => {
                drop(read);
                let told = std::panic::catch_unwind(std::panic::AssertUnwindSafe(setup)).unwrap_or_default();
                let words = std::iter::once(told.len() as u64).chain(told);
                let bytes: Vec<u8> = words.flat_map(|word| word.to_ne_bytes()).collect();
                File::from(write).write_all(&bytes).unwrap();
                loop {
                    nix::unistd::pause();
                }
            }
            ForkResult::Parent { child } => {
                drop(write);
                // Not up to its end: children of other tests have inherited the other side.
                let (mut count, mut read) = ([0; 8], File::from(read));
                read.read_exact(&mut count).unwrap();
                let mut bytes = vec![0; 8 * u64::from_ne_bytes(count) as usize];
                assert!(!bytes.is_empty(), "the child's setup has failed");
                read.read_exact(&mut bytes).unwrap();
                let words = bytes.as_chunks::<8>().0.iter().map(|word| u64::from_ne_bytes(*word)).collect();
                Task::catch(child, words)
            }
        }
    }

    /// Traces and stops a process that is a child of the test, or of one.
    pub fn catch(pid: Pid, told: Vec<u64>) -> Task {
        Tracee::catch(pid, libc::PTRACE_O_EXITKILL).unwrap();
        let tracee = Tracee::arrive(pid).unwrap();
        let memory = File::options().read(true).write(true).open(format!("/proc/{pid}/mem")).unwrap();
        Task { pid, told, memory, tracee }
    }

    pub fn census(&self) -> Census {
        Census::of(self.pid, 1 << 20).unwrap()
    }

    pub fn layout(&self, census: &mut Census) -> Layout {
        let (layout, obstacles) = Layout::read(self.pid, census, &[]).unwrap();
        assert_eq!(obstacles, []);
        layout
    }

    /// The kernel's notes on its memory, and the policies of its mappings, asked for as in a checkpoint.
    pub fn state(&self, census: &mut Census, layout: &mut Layout) -> MmState {
        let leader = self.tracee.as_ref().unwrap();
        let mut program = Program::new();
        let asked = MmState::ask(&mut program);
        stay_on_this_cpu().unwrap();
        let mut visit = Visit::enter(leader, nix::sched::sched_getcpu().unwrap()).unwrap();
        let answers = visit.run(leader, &program).unwrap();
        policies(layout, |program| visit.run(leader, program).unwrap());
        visit.leave().unwrap();
        let status = Status::parse(&std::fs::read(format!("/proc/{}/status", self.pid)).unwrap());
        let id = self.pid.as_raw();
        let stopped = Stopped { host: self.pid, tid: id, pid: id, status };
        let stat = Stat::of(self.pid).unwrap();
        MmState::capture(&stopped, &stat, asked, &answers, census).unwrap().unwrap()
    }

    pub fn bytes(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory.read_exact_at(&mut bytes, at).unwrap();
        bytes
    }

    pub fn dump(&self, layout: &Layout, sinks: &mut [PagesWriter]) -> Dumped {
        dump(self.pid, &self.memory, layout, |_| true, Some(&[]), sinks).unwrap()
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        let _ = kill(self.pid, Signal::SIGKILL);
        let _ = waitpid(self.pid, None);
    }
}

/// Asks for the policies of all mappings.
pub fn policies(layout: &mut Layout, mut run: impl FnMut(&Program) -> Answers) {
    let mut next = 0;
    while next < layout.vmas.len() {
        let mut program = Program::new();
        let asked = layout.ask_policies(next, &mut program);
        let (with, behind) = layout.take_policies(&asked, &run(&program));
        for vma in with {
            let mut program = Program::new();
            let asked = layout.ask_nodes(vma, &mut program);
            layout.take_nodes(vma, &asked, &run(&program)).unwrap();
        }
        next = behind;
    }
}

/// Maps memory in this process; `at` 0 leaves the place to the kernel.
pub fn map(at: u64, len: u64, prot: i32, flags: i32, fd: i32, offset: i64) -> u64 {
    // SAFETY: with MAP_FIXED_NOREPLACE or at a place of the kernel's choice nothing is replaced; tests that use
    // MAP_FIXED do so on their own mappings.
    let got = unsafe { libc::mmap(at as *mut libc::c_void, len as usize, prot, flags, fd, offset) };
    assert_ne!(got, libc::MAP_FAILED, "{}", nix::errno::Errno::last());
    got as u64
}

/// Private anonymous memory, readable and writable.
pub fn anonymous(len: u64) -> u64 {
    map(0, len, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0)
}

pub fn protect(at: u64, len: u64, prot: i32) {
    // SAFETY: memory that the test has mapped.
    assert_eq!(unsafe { libc::mprotect(at as *mut libc::c_void, len as usize, prot) }, 0);
}

/// madvise(2); the answer is whether the kernel knows it.
pub fn advise(at: u64, len: u64, advice: i32) -> bool {
    // SAFETY: memory that the test has mapped.
    unsafe { libc::madvise(at as *mut libc::c_void, len as usize, advice) == 0 }
}

pub fn poke(at: u64, bytes: &[u8]) {
    // SAFETY: memory that the test has mapped writable.
    unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), at as *mut u8, bytes.len()) };
}

/// Files for pages, of an image that is never committed.
pub fn sinks(count: u16) -> ((Writer, tempfile::TempDir), Vec<PagesWriter>) {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = Writer::create(&dir.path().join("image")).unwrap();
    let sinks = (0..count).map(|n| writer.pages(n.into()).unwrap()).collect();
    ((writer, dir), sinks)
}

/// The files of `sinks`, to be read.
pub fn page_files(sinks: &[PagesWriter]) -> PageFiles {
    PageFiles::new(sinks.iter().map(|sink| (sink.number(), sink.file().try_clone().unwrap())))
}

/// Where no test's process has anything.
const AREA: std::ops::Range<u64> = 0x1000_0000_0000..0x1000_0000_0000 + crate::nursery::AREA;
/// The descriptor of the hatch in a new task.
const HATCH: i32 = 150;

/// A task as the first process of a restored job is one. It dies with the test's thread.
pub fn newborn() -> Worker {
    newborn_after(|| {})
}

/// The same, after it has done something.
pub fn newborn_after(setup: impl FnOnce()) -> Worker {
    let (here, there) = nix::sys::socket::socketpair(
        nix::sys::socket::AddressFamily::Unix,
        nix::sys::socket::SockType::SeqPacket,
        None,
        nix::sys::socket::SockFlag::SOCK_CLOEXEC,
    )
    .unwrap();
    // SAFETY: the child calls only what is safe there, and never returns.
    let pid = match unsafe { fork() }.unwrap() {
        ForkResult::Child => {
            setup();
            // SAFETY: system calls on a descriptor.
            unsafe { libc::dup2(there.as_raw_fd(), HATCH) };
            loop {
                nix::unistd::pause();
            }
        }
        ForkResult::Parent { child } => child,
    };
    // The hatch must be there before the child stops.
    let path = format!("/proc/{pid}/fd/{HATCH}");
    while std::fs::read_link(&path).is_err() {
        std::thread::yield_now();
    }
    take_over(pid, here, HATCH, AREA).unwrap()
}

/// A child of `parent`, with its memory and descriptors.
pub fn child_of(parent: &mut Worker) -> Worker {
    let birth = Birth { pid: free_pid(), signal: libc::SIGCHLD, sibling: false, shared: 0 };
    beget(parent, &[birth]).unwrap().pop().unwrap()
}

/// An id that no process has: far from those that the kernel is going to give.
pub fn free_pid() -> i32 {
    let candidates = (1..).map(|n| 32_000 - n * 7 - (std::process::id().cast_signed() % 1000));
    candidates.into_iter().find(|pid| !std::path::Path::new(&format!("/proc/{pid}")).exists()).unwrap()
}

//! Where the tasks of a restored job are made.
//!
//! The first one is the container's init, taken over from the runtime. Each of the others is made by the stub in its
//! maker, with the id that it is to have (clone3 with set_tid), and is traced from birth (CLONE_PTRACE), so that it
//! stops before its first instruction. ckrun's death kills them all (PTRACE_O_EXITKILL).

use crate::cpu::rseq::Rseq;
use crate::program::{Arg, Call, Program};
use crate::signals::Actions;
use crate::stub;
use crate::sys::ptrace::{self, Change};
use crate::tracee::Tracee;
use crate::visit::stay_on_this_cpu;
use crate::worker::{ALL_BUT_TRAP, Hatch, STACK, Worker, open_memory};
use crate::{Doing, Failure, vdso};
use nix::errno::Errno;
use nix::unistd::Pid;
use std::collections::BTreeMap;
use std::ops::Range;
use std::os::fd::{OwnedFd, RawFd};
use std::rc::Rc;
use std::sync::Arc;

/// The size of ckrun's area in each task, a page of code included.
pub const AREA: u64 = 1 << 20;
const PAGE: u64 = 4096;

/// `CLONE_*` of a thread, as pthread_create(3) has them but for the ids, which are set later.
const THREAD: u64 = (libc::CLONE_VM
    | libc::CLONE_FS
    | libc::CLONE_FILES
    | libc::CLONE_SIGHAND
    | libc::CLONE_THREAD
    | libc::CLONE_SYSVSEM) as u64;

/// A process to be made.
#[derive(Debug, Clone, Copy)]
pub struct Birth {
    /// Its id in the job.
    pub pid: i32,
    /// The signal that tells its parent of its end.
    pub signal: i32,
    /// It becomes its maker's sibling.
    pub sibling: bool,
    /// What it shares with its maker: CLONE_FILES, CLONE_FS.
    pub shared: u64,
}

/// Turns `init`, which waits for what comes through `hatch`, into a worker: all that it keeps is its descriptors.
///
/// The area is put at `area`, which must be free in it and in every process that is to come.
///
/// # Errors
/// The kernel's; `init` is to be killed then.
pub fn take_over(init: Pid, hatch: OwnedFd, there: RawFd, area: Range<u64>) -> Result<Worker, Failure> {
    let what = || format!("take over process {init}");
    stay_on_this_cpu()?;
    // Those who are made have the options of their makers.
    Tracee::catch(init, libc::PTRACE_O_EXITKILL | ptrace::SUSPEND_SECCOMP).doing(what)?;
    let tracee = Tracee::arrive(init)?.ok_or_else(|| Failure::new(what(), Errno::ESRCH))?;
    let cpu = nix::sched::sched_getcpu().doing(what)?;
    Worker::pin(init, cpu)?;
    let memory = Arc::new(open_memory(init)?);
    let syscall = vdso::find(init, &memory)?.syscall;
    let hatch = Some(Rc::new(Hatch { here: hatch, there }));
    let code = area.start;
    let mut worker = Worker { tracee, code, area: area.start + PAGE..area.end, memory, hatch };
    worker.block_signals()?;
    let prot = (libc::PROT_READ | libc::PROT_WRITE) as u64;
    let flags = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE) as u64;
    worker.single(syscall, libc::SYS_mmap, &[area.start, area.end - area.start, prot, flags, u64::MAX, 0])?;
    worker.write(code, stub::code())?;
    worker.single(syscall, libc::SYS_mprotect, &[code, PAGE, (libc::PROT_READ | libc::PROT_EXEC) as u64])?;
    worker.tracee.settle()?;
    forget_ckrun(&mut worker)?;
    Ok(worker)
}

/// What the C library of ckrun has registered with the kernel for this thread lies in memory that is about to go. And what
/// ckrun does about signals is no business of those who are made from it.
fn forget_ckrun(worker: &mut Worker) -> Result<(), Failure> {
    let mut program = Program::new();
    if let Some(rseq) = Rseq::read(worker.host())? {
        rseq.unregister(&mut program);
    }
    let list_head = 24_u64; // sizeof(struct robust_list_head), linux/futex.h
    program.call("forget the robust list", libc::SYS_set_robust_list, &[0.into(), list_head.into()]);
    program.call("forget the thread's id", libc::SYS_set_tid_address, &[0.into()]);
    Actions::reset(&mut program);
    worker.run(&program).map(drop)
}

/// Makes processes; each has a copy of `maker`'s memory, and of its descriptors unless they share them.
///
/// # Errors
/// `EEXIST` when an id is in use, `EAGAIN` at a limit on processes.
pub fn beget(maker: &mut Worker, births: &[Birth]) -> Result<Vec<Worker>, Failure> {
    let parent = libc::CLONE_PARENT as u64;
    let wanted: Vec<_> = births
        .iter()
        .map(|b| {
            let (relation, signal) = if b.sibling { (parent, 0) } else { (0, b.signal as u64) };
            (b.pid, relation | b.shared, signal)
        })
        .collect();
    make(maker, &wanted)?
        .into_iter()
        .map(|tracee| {
            let memory = Arc::new(open_memory(tracee.pid())?);
            Ok(Worker {
                code: maker.code,
                area: maker.area.clone(),
                hatch: maker.hatch.clone(),
                memory,
                tracee,
            })
        })
        .collect()
}

/// Makes a process that shares the descriptors and the directories of `maker`, and has a copy of its memory. Nobody is told
/// of its end.
///
/// # Errors
/// As [`beget`].
pub fn beget_agent(maker: &mut Worker, pid: i32) -> Result<Worker, Failure> {
    let shared = (libc::CLONE_FILES | libc::CLONE_FS) as u64;
    let mut made = make(maker, &[(pid, shared, 0)])?;
    let tracee = made.pop().ok_or_else(|| Failure::new("make an agent", Errno::ECHILD))?;
    let memory = Arc::new(open_memory(tracee.pid())?);
    Ok(Worker { code: maker.code, area: maker.area.clone(), hatch: maker.hatch.clone(), memory, tracee })
}

/// Makes the other threads of the process that `leader` is.
///
/// # Errors
/// As [`beget`].
pub fn beget_threads(leader: &mut Worker, tids: &[i32]) -> Result<Vec<Worker>, Failure> {
    let mut workers = Vec::with_capacity(tids.len());
    // Each newborn is told apart by a stack of its own, and those must lie inside the area's stack.
    for tids in tids.chunks(256) {
        let wanted: Vec<_> = tids.iter().map(|tid| (*tid, THREAD, 0)).collect();
        workers.extend(make(leader, &wanted)?.into_iter().map(|tracee| Worker {
            code: leader.code,
            area: leader.area.clone(),
            hatch: leader.hatch.clone(),
            memory: leader.memory.clone(),
            tracee,
        }));
    }
    Ok(workers)
}

/// Makes one task for each (id, flags, exit signal).
fn make(maker: &mut Worker, wanted: &[(i32, u64, u64)]) -> Result<Vec<Tracee>, Failure> {
    if wanted.is_empty() {
        return Ok(Vec::new());
    }
    let mut program = Program::new();
    let stacks = maker.area.end - STACK;
    let stack = |index: usize| (stacks + 16 * (index as u64 + 1), 16_u64);
    for (index, &(id, flags, signal)) in wanted.iter().enumerate() {
        clone(&mut program, id, flags | libc::CLONE_PTRACE as u64, signal, stack(index));
    }
    maker.run(&program)?;
    let mut by_stack = BTreeMap::new();
    for _ in wanted {
        let what = || "wait for a new task";
        // Not what other threads of ckrun have made or trace.
        match ptrace::wait(Pid::from_raw(-1), libc::__WNOTHREAD).doing(what)? {
            Some((pid, Change::Stopped(signal))) => {
                // A task is born with the mask of its maker, which works for ckrun.
                let mut tracee = Tracee::with_mask(pid, signal, ALL_BUT_TRAP)?;
                // It will have registers and a mask of its own; these only serve to run the stub.
                let rsp = std::mem::replace(&mut tracee.regs.rsp, maker.area.end - 128);
                by_stack.insert(rsp, tracee);
            }
            _ => return Err(Failure::new(what(), Errno::ECHILD)),
        }
    }
    let sorted = (0..wanted.len()).map(|index| {
        let (start, size) = stack(index);
        by_stack.remove(&(start + size)).ok_or_else(|| Failure::new("tell the new tasks apart", Errno::ESRCH))
    });
    sorted.collect()
}

/// Adds a clone3(2) to a program.
fn clone(program: &mut Program, id: i32, flags: u64, signal: u64, stack: (u64, u64)) -> Call {
    // struct clone_args, linux/sched.h: flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls,
    // set_tid, set_tid_size, cgroup.
    let ids = program.put(&id.to_ne_bytes());
    let words = [flags, 0, 0, 0, signal, stack.0, stack.1, 0, 0, 1, 0];
    let args = program.put(&words.map(u64::to_ne_bytes).concat());
    program.link(args, 64, ids);
    program.call(format!("make task {id}"), libc::SYS_clone3, &[Arg::from(args), Arg::from(args.len)])
}

//! A job that stands still, for those who look at it or change it at such a moment: its threads, their memory and their
//! registers, by the ids that the job knows.

use crate::cpu::registers::General;
use crate::making::Making;
use crate::seize::Frozen;
use crate::sys::ptrace::{self, Registers};
use crate::tracee::Tracee;
use crate::worker::open_memory;
use crate::{Doing, Failure};
use nix::errno::Errno;
use nix::unistd::Pid;
use std::fs::File;
use std::os::unix::fs::FileExt;

/// A thread.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Task {
    /// Its process, as the job sees it.
    pub pid: i32,
    /// Itself, as the job sees it.
    pub tid: i32,
    /// Its name, which is its own choice.
    pub comm: String,
}

/// A stopped job. What is changed is what it goes on with.
pub trait Still {
    /// All threads.
    fn tasks(&self) -> Vec<Task>;

    /// Reads memory of a process.
    ///
    /// # Errors
    /// `ESRCH` for a process that there is not, `EIO` where nothing is mapped.
    fn read(&self, pid: i32, address: u64, bytes: &mut [u8]) -> Result<(), Failure>;

    /// Writes memory of a process, also where it may not write itself.
    ///
    /// # Errors
    /// As [`Still::read`]; `EIO` in a shared mapping that is read-only.
    fn write(&mut self, pid: i32, address: u64, bytes: &[u8]) -> Result<(), Failure>;

    /// The registers with which a thread is to go on.
    ///
    /// # Errors
    /// `ESRCH`.
    fn registers(&self, tid: i32) -> Result<General, Failure>;

    /// Lets a thread go on with other registers.
    ///
    /// # Errors
    /// `ESRCH`; `EIO` for registers that no thread can have, which are refused as a whole.
    fn set_registers(&mut self, tid: i32, registers: &General) -> Result<(), Failure>;
}

fn nobody(kind: &str, id: i32) -> Failure {
    Failure::new(format!("find {kind} {id} of the job"), Errno::ESRCH)
}

fn read(memory: &File, pid: i32, address: u64, bytes: &mut [u8]) -> Result<(), Failure> {
    memory.read_exact_at(bytes, address).doing(|| format!("read memory of process {pid} at {address:#x}"))
}

fn write(memory: &File, pid: i32, address: u64, bytes: &[u8]) -> Result<(), Failure> {
    memory.write_all_at(bytes, address).doing(|| format!("write memory of process {pid} at {address:#x}"))
}

/// Gives a thread registers with which it is to go on.
fn change(tracee: &mut Tracee, registers: &General) -> Result<(), Failure> {
    let bad = |why| Failure::new(format!("set the registers of thread {}: {why}", tracee.pid()), Errno::EIO);
    let mut new: Registers = registers.checked().map_err(bad)?;
    // Who moves a thread elsewhere does not mean the call in which it was stopped: the kernel would make it again by going
    // back two bytes from wherever it is (arch_do_signal_or_restart).
    if new.rip != tracee.regs.rip && new.orig_rax == tracee.regs.orig_rax {
        new.orig_rax = u64::MAX;
    }
    let doing = || format!("set the registers of thread {}", tracee.pid());
    if let Err(errno) = ptrace::set_registers(tracee.pid(), &new) {
        // Those before a bad one have been set already.
        ptrace::set_registers(tracee.pid(), &tracee.regs).doing(doing)?;
        return Err(Failure::new(doing(), errno));
    }
    tracee.regs = new;
    tracee.deadline = None;
    Ok(())
}

impl Frozen {
    fn leader(&self, pid: i32) -> Result<Pid, Failure> {
        let process = self.processes.iter().find(|process| process.pid == pid);
        let leader = process.and_then(|process| process.leader());
        leader.map(|leader| leader.tracee.pid()).ok_or_else(|| nobody("process", pid))
    }
}

impl Still for Frozen {
    fn tasks(&self) -> Vec<Task> {
        let of = |thread: &crate::seize::Thread| Task {
            pid: thread.stopped.pid,
            tid: thread.stopped.tid,
            comm: thread.stopped.comm(),
        };
        self.threads().map(of).collect()
    }

    fn read(&self, pid: i32, address: u64, bytes: &mut [u8]) -> Result<(), Failure> {
        read(&open_memory(self.leader(pid)?)?, pid, address, bytes)
    }

    fn write(&mut self, pid: i32, address: u64, bytes: &[u8]) -> Result<(), Failure> {
        write(&open_memory(self.leader(pid)?)?, pid, address, bytes)
    }

    fn registers(&self, tid: i32) -> Result<General, Failure> {
        let thread = self.threads().find(|thread| thread.stopped.tid == tid);
        thread.map(|thread| General::from(&thread.tracee.regs)).ok_or_else(|| nobody("thread", tid))
    }

    fn set_registers(&mut self, tid: i32, registers: &General) -> Result<(), Failure> {
        let mut threads = self.processes.iter_mut().flat_map(|process| &mut process.threads);
        let thread = threads.find(|thread| thread.stopped.tid == tid);
        change(&mut thread.ok_or_else(|| nobody("thread", tid))?.tracee, registers)
    }
}

impl Still for Making<'_> {
    fn tasks(&self) -> Vec<Task> {
        let members = self.members().iter();
        let of = |member: &crate::tree::Member| {
            let (pid, comm) = (member.pid, member.comm.clone());
            member
                .threads
                .iter()
                .map(move |tid| Task { pid, tid: *tid, comm: comm.clone() })
                .collect::<Vec<_>>()
        };
        members.flat_map(of).collect()
    }

    fn read(&self, pid: i32, address: u64, bytes: &mut [u8]) -> Result<(), Failure> {
        let worker = self.worker(pid).ok_or_else(|| nobody("process", pid))?;
        read(worker.memory(), pid, address, bytes)
    }

    fn write(&mut self, pid: i32, address: u64, bytes: &[u8]) -> Result<(), Failure> {
        let worker = self.worker(pid).ok_or_else(|| nobody("process", pid))?;
        write(worker.memory(), pid, address, bytes)
    }

    fn registers(&self, tid: i32) -> Result<General, Failure> {
        let worker = self.worker(tid).ok_or_else(|| nobody("thread", tid))?;
        Ok(General::from(&worker.tracee.regs))
    }

    fn set_registers(&mut self, tid: i32, registers: &General) -> Result<(), Failure> {
        let worker = self.worker_mut(tid).ok_or_else(|| nobody("thread", tid))?;
        change(&mut worker.tracee, registers)
    }
}

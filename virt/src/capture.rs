//! The state of a stopped job, read process by process.

use crate::cpu::registers::{self, General};
use crate::cpu::rseq::Rseq;
use crate::cpu::sleep::Sleep;
use crate::cpu::state::CpuState;
use crate::cpu::timers::Timers;
use crate::job::Job;
use crate::landlock::{self, Witnesses};
use crate::login::LoginUid;
use crate::memory::{self, Census, Layout, MmState, Span};
use crate::mounts::Space;
use crate::outside::Outside;
use crate::overruns;
use crate::program::{Answers, Call, Program};
use crate::resource::{Blocker, Stopped};
use crate::rooms::{AskedThread, ProcessRooms, ThreadRooms};
use crate::sched;
use crate::seize::{Frozen, Process, Thread};
use crate::signals;
use crate::snapshot::Snapshot;
use crate::storing::Load;
use crate::sys::ptrace;
use crate::sysv::{self, SystemV, posix};
use crate::timers::PosixTimers;
use crate::tracee::Tracee;
use crate::tree::{Life, Member};
use crate::uts::Names;
use crate::visit::Visit;
use crate::worker::open_memory;
use crate::{Doing, Error, Failure, namespace, unusual};
use nix::unistd::Pid;
use std::fs::File;
use std::sync::Arc;

/// What has been read so far.
#[derive(Debug)]
pub struct Capture {
    /// The job's state.
    pub job: Job,
    /// Files and shared memory that mappings show.
    pub census: Census,
    /// What can't be carried.
    pub blockers: Vec<Blocker>,
    /// Processes that tell whether a task is confined.
    witnesses: Witnesses,
    /// The first process.
    init: Pid,
    /// The namespaces that all processes must be in.
    namespaces: namespace::Common,
    /// The CPU that ckrun stays on.
    cpu: usize,
}

/// The questions to a thread, and the one whether it is confined.
type Asked = (AskedThread, Option<Call>);

impl Capture {
    /// Begins to read a job that has these mount namespaces, and whose first process is `init`; `limit` is the most bytes that
    /// a deleted file may have.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) fn begin(init: Pid, spaces: &[Arc<Space>], limit: u64, cpu: usize) -> Result<Self, Error> {
        Ok(Capture {
            job: Job::default(),
            census: Census::new(init, spaces, limit)?,
            blockers: Vec::new(),
            witnesses: Witnesses::default(),
            init,
            namespaces: namespace::Common::of(init)?,
            cpu,
        })
    }

    /// Reads every process, and gives away what is to be read of its memory, parents first. With `copies` that is to be
    /// read from copies, so that the job itself can go on.
    ///
    /// # Errors
    /// The kernel's; the job is to be released then.
    pub fn processes(
        &mut self,
        frozen: &mut Frozen,
        mut copies: Option<&mut Vec<Snapshot>>,
        give: &mut dyn FnMut(Load),
    ) -> Result<(), Error> {
        self.blockers.extend(unusual::blockers(frozen.processes.iter().map(|process| &process.stopped))?);
        // Two visits to one memory would be in each other's way.
        if !self.blockers.is_empty() {
            return Ok(());
        }
        for process in &mut frozen.processes {
            self.job.members.push(member(process));
            if process.threads.is_empty() {
                continue;
            }
            if let Err(failure) = self.process(process, copies.as_deref_mut(), give) {
                return Err(process.blame(failure));
            }
        }
        self.census.enter_segments()?;
        if let Some(namespace) = self.census.ipc() {
            let id = |process: &Process| (process.stopped.host.as_raw(), process.pid);
            self.job.sysv = SystemV::capture(namespace, &frozen.processes.iter().map(id).collect())?;
            if !self.job.sysv.semaphores.is_empty() {
                let running = frozen.processes.iter().filter(|process| !process.threads.is_empty());
                sysv::warn_of_undo(running.map(|process| {
                    let Stopped { host, .. } = process.stopped;
                    (host, process.pid, process.stopped.comm())
                }));
            }
            let watched = self.job.sysv.posix.iter().filter(|queue| queue.watched);
            self.blockers.extend(watched.map(|queue| posix::blocker(&queue.name.to_string(), self.init)));
        }
        self.job.names = Names::capture(self.init)?;
        Ok(())
    }

    fn process(
        &mut self,
        process: &mut Process,
        copies: Option<&mut Vec<Snapshot>>,
        give: &mut dyn FnMut(Load),
    ) -> Result<(), Failure> {
        let seen = self.look_into(process, copies, give);
        // Also in one that can't be carried.
        let resumed = process.threads.iter().try_for_each(|thread| self.resume_dispatch(thread));
        seen.and(resumed)
    }

    fn look_into(
        &mut self,
        process: &mut Process,
        copies: Option<&mut Vec<Snapshot>>,
        give: &mut dyn FnMut(Load),
    ) -> Result<(), Failure> {
        let found = self.blockers.len();
        self.blockers.extend(process.threads.iter().filter_map(|thread| signals::blocker(&thread.stopped)));
        if self.blockers.len() > found {
            return Ok(());
        }
        let memory = open_memory(process.stopped.host)?;
        let known = self.blockers.len();
        for thread in &mut process.threads {
            self.thread_from_outside(thread, &memory)?;
        }
        // A visit to this one would not leave it as it was: a SIGTRAP that waits would be taken for the visit's own.
        if self.blockers.len() > known {
            return Ok(());
        }
        let Some((leader, others)) = process.threads.split_first() else { return Ok(()) };
        let task = &leader.stopped;
        self.job.outside_processes.capture(task)?;
        self.job.logins.extend(LoginUid::of(task).map(|login| (task.pid, login)));
        // Nor is there a witness for one in other namespaces.
        if let Some(elsewhere) = self.namespaces.left_by(task.host, task.pid, || task.comm())? {
            self.blockers.push(elsewhere);
            return Ok(());
        }

        let mut visit = Visit::enter(&leader.tracee, self.cpu)?;
        // Only the area: the code lies in the vdso, which the process has anyway.
        let hidden = visit.area();
        let (mut layout, mut obstacles) =
            Layout::read(task.host, &mut self.census, &[Span::new(hidden.start, hidden.end)])?;
        let mut program = Program::new();
        let mut timers = PosixTimers::list(task)?;
        for thread in &process.threads {
            overruns::note(&mut timers, &thread.stopped, &mut |program| visit.run(&thread.tracee, program))?;
        }
        let asked_process = ProcessRooms::ask(&mut program);
        let asked_timers = PosixTimers::ask(&timers, &mut program);
        let asked_thread = self.ask_thread(task, &mut program)?;
        let asked_memory = MmState::ask(&mut program);
        let asked_policies = layout.ask_policies(0, &mut program);
        let asked_rings = memory::aio::ask(&layout, &mut program);
        let answers = visit.run(&leader.tracee, &program)?;
        obstacles.extend(memory::aio::take(&mut layout, &asked_rings, &answers, &memory, task.host)?);
        let first = layout.take_policies(&asked_policies, &answers);
        policies(&mut visit, &leader.tracee, &mut layout, first)?;
        self.job.processes.capture(task, &asked_process, &answers)?;
        if let Some(actions) = self.job.processes.actions.get_mut(&task.pid) {
            actions.set_trap(visit.trap_action()?);
        }
        self.take_thread(task, &asked_thread, &answers)?;
        self.blockers.extend(PosixTimers::blockers(task, &timers));
        let timers = PosixTimers::capture(&timers, &asked_timers, &answers)?;
        let mut asked = Vec::with_capacity(others.len());
        let mut programs = Vec::with_capacity(others.len());
        for thread in others {
            let mut program = Program::new();
            asked.push(self.ask_thread(&thread.stopped, &mut program)?);
            programs.push((&thread.tracee, program));
        }
        let told = visit.run_each(&programs)?;
        for ((thread, asked), told) in others.iter().zip(&asked).zip(&told) {
            self.take_thread(&thread.stopped, asked, told)?;
        }
        let interval = self.job.processes.timers.get(&task.pid);
        if let Some(shared) = self.job.processes.pending.get_mut(&task.pid) {
            shared.leave_to(task, interval, &timers);
        }
        for Thread { stopped, .. } in &process.threads {
            if let Some(own) = self.job.threads.pending.get_mut(&stopped.tid) {
                own.leave_to(stopped, interval, &timers);
            }
        }
        self.job.timers.insert(task.pid, timers);
        let mut timers = None;
        for thread in &mut process.threads {
            self.sleep(&mut visit, thread, &memory, &mut timers)?;
        }
        let Some(leader) = process.leader() else { return Ok(()) };
        let task = &leader.stopped;

        match MmState::capture(task, &process.stat, asked_memory, &answers, &mut self.census)? {
            Ok(state) => {
                self.job.memory.insert(task.pid, state);
            }
            Err(obstacle) => obstacles.push(obstacle),
        }
        self.blockers.extend(memory::blockers(task.pid, &task.comm(), obstacles));
        self.job.layouts.insert(task.pid, layout.clone());
        let mut copied = None;
        if let Some(copies) = copies {
            let copy = Snapshot::take(&mut visit, &leader.tracee)?;
            copied = Some(copy.pid());
            if layout.vdso().is_none() {
                visit.wipe(copy.pid())?;
            }
            copies.push(copy);
        }
        visit.leave()?;
        give(Load { pid: process.pid, parent: process.parent, host: task.host, copy: copied, layout });
        Ok(())
    }

    fn ask_thread(&mut self, task: &Stopped, program: &mut Program) -> Result<Asked, Failure> {
        let confined = self.witnesses.of(task)?.map(|witness| witness.ask(program));
        Ok((ThreadRooms::ask(program), confined))
    }

    fn take_thread(&mut self, task: &Stopped, asked: &Asked, answers: &Answers) -> Result<(), Failure> {
        self.blockers.extend(asked.1.and_then(|call| landlock::blocker(task, answers.of(call))));
        self.job.threads.capture(task, &asked.0, answers)
    }

    /// What the kernel shows of a thread, and what must be put aside before anything runs in it.
    fn thread_from_outside(&mut self, thread: &mut Thread, memory: &File) -> Result<(), Failure> {
        let (host, task) = (thread.stopped.host, &thread.stopped);
        self.blockers.extend(registers::blocker(task, &thread.tracee.regs));
        self.blockers.extend(sched::blocker(task)?);
        let rseq = Rseq::read(host)?;
        if let Some(rseq) = &rseq
            && rseq.abort(memory, &mut thread.tracee.regs)
        {
            ptrace::set_registers(host, &thread.tracee.regs)
                .doing(|| format!("end a restartable sequence of thread {}", task.tid))?;
        }
        self.job.cpu.insert(task.tid, CpuState::capture(&thread.tracee, rseq)?);
        self.job.outside_threads.capture(task)?;
        self.job.filters.capture(task)?;
        self.blockers.extend(self.job.filters.blocker(task));
        if task.status.seccomp != 0 {
            let options = libc::PTRACE_O_TRACESYSGOOD | ptrace::SUSPEND_SECCOMP;
            ptrace::set_options(host, options)
                .doing(|| format!("suspend the filters of thread {}", task.tid))?;
        }
        if self.job.outside_threads.dispatch.get(&task.tid).is_some_and(|dispatch| !dispatch.is_off()) {
            crate::dispatch::UserDispatch::suspend(host)?;
        }
        Ok(())
    }

    /// What a thread's call still has to wait. The call may end meanwhile, and write to the process's memory.
    fn sleep(
        &mut self,
        visit: &mut Visit,
        thread: &mut Thread,
        memory: &File,
        timers: &mut Option<Timers>,
    ) -> Result<(), Failure> {
        let tracee = &mut thread.tracee;
        let visited = tracee.clone();
        let mut doze = |program: &Program, look: &mut dyn FnMut()| visit.doze(&visited, program, look);
        let sleep = Sleep::capture(visited.pid(), memory, &mut tracee.regs, timers, &mut doze)?;
        if let Some(cpu) = self.job.cpu.get_mut(&thread.stopped.tid) {
            cpu.registers = General::from(&tracee.regs);
            cpu.sleep = sleep;
        }
        Ok(())
    }

    fn resume_dispatch(&self, thread: &Thread) -> Result<(), Failure> {
        match self.job.outside_threads.dispatch.get(&thread.stopped.tid) {
            Some(dispatch) if !dispatch.is_off() => dispatch.restore(thread.stopped.host),
            _ => Ok(()),
        }
    }
}

/// Reads the NUMA policies of the mappings that `known` says have one, and of the rest of them.
fn policies(
    visit: &mut Visit,
    leader: &Tracee,
    layout: &mut Layout,
    known: (Vec<usize>, usize),
) -> Result<(), Failure> {
    let (mut with, mut next) = known;
    while next < layout.vmas.len() {
        let mut program = Program::new();
        let asked = layout.ask_policies(next, &mut program);
        let answers = visit.run(leader, &program)?;
        let (more, behind) = layout.take_policies(&asked, &answers);
        with.extend(more);
        next = behind;
    }
    for with in with.chunks(100) {
        let mut program = Program::new();
        let asked: Vec<_> = with.iter().map(|&vma| (vma, layout.ask_nodes(vma, &mut program))).collect();
        let answers = visit.run(leader, &program)?;
        asked.iter().try_for_each(|(vma, asked)| layout.take_nodes(*vma, asked, &answers))?;
    }
    Ok(())
}

fn member(process: &Process) -> Member {
    let status = &process.stopped.status;
    let innermost = |ids: &[i32]| ids.last().copied().unwrap_or(0);
    let stop = process.leader().and_then(|leader| leader.tracee.group_stop);
    let state = match stop {
        _ if process.stat.ended() => Life::Zombie { status: process.stat.exit_code },
        Some(signal) => Life::Stopped { signal, reported: process.stat.exit_code == 0 },
        None if process.threads.iter().any(|thread| signals::stop_pending(&thread.stopped)) => {
            Life::Stopped { signal: libc::SIGSTOP, reported: false }
        }
        None => Life::Running,
    };
    Member {
        pid: process.pid,
        parent: process.parent,
        group: innermost(&status.ns_pgid),
        session: innermost(&status.ns_sid),
        exit_signal: process.stat.exit_signal,
        threads: process.threads.iter().map(|thread| thread.stopped.tid).collect(),
        state,
        comm: process.stopped.comm(),
    }
}

//! Stopping a whole job, and letting it go on.
//!
//! Every thread is seized with ptrace and interrupted. Nothing but ptrace holds them: when ckrun dies, by whatever signal,
//! the kernel detaches them all and they go on. A freezer would leave the job frozen.

use crate::cpu::calls::{self, Before};
use crate::cpu::timers::Timers;
use crate::listing::{self, Listed, list, look};
use crate::proc::{self, Stat};
use crate::resource::Stopped;
use crate::status::Status;
use crate::sys::{self, ptrace};
use crate::tracee::Tracee;
use crate::{Doing, Error, Failure, halves};
use nix::errno::Errno;
use nix::unistd::{Pid, gettid};
use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

/// How long ckrun tries to bring all threads to a stop.
const PATIENCE: Duration = Duration::from_secs(10);
/// A parent waits in vfork(2) until its child has let go of its memory, and can't be stopped before. After this time the
/// children of those who have not stopped are let go for a moment.
const VFORK: Duration = Duration::from_millis(20);

/// A stopped job, parents before their children.
#[derive(Debug)]
pub struct Frozen {
    /// Its processes.
    pub processes: Vec<Process>,
    since: Instant,
}

/// A stopped process, or one that has ended and was not reaped yet.
#[derive(Debug)]
pub struct Process {
    /// What is known of its leader.
    pub stopped: Stopped,
    /// Its id in the job.
    pub pid: i32,
    /// Its parent's id in the job, 0 for the first process.
    pub parent: i32,
    /// When and how it started and ended, if it has.
    pub stat: Stat,
    /// Its threads, the leader first; none if it has ended.
    pub threads: Vec<Thread>,
}

/// A stopped thread.
#[derive(Debug)]
pub struct Thread {
    /// What ptrace holds.
    pub tracee: Tracee,
    /// What is known of it.
    pub stopped: Stopped,
}

impl Process {
    /// The leader, unless the process has ended.
    pub fn leader(&self) -> Option<&Thread> {
        self.threads.first()
    }

    /// Adds who it was to a failure.
    pub fn blame(&self, failure: Failure) -> Error {
        Error::Process { pid: self.pid, comm: self.stopped.comm(), failure }
    }
}

impl Frozen {
    /// Stops every thread of the processes that descend from `init`, itself included. `listed` are those that were there a
    /// moment ago.
    ///
    /// `seized` is called once, when all have been asked to stop and nobody has been waited for: a cgroup that is frozen
    /// must be thawed then, for a frozen task runs nothing, and on cgroup v1 does not even reach its stop.
    ///
    /// # Errors
    /// `EBUSY` when a thread does not stop (it hangs in the kernel), `EPERM` when somebody else traces it, `ESRCH` when
    /// the job has ended.
    pub fn stop(
        init: Pid,
        mut listed: Vec<Listed>,
        seized: impl FnOnce() -> Result<(), Error>,
    ) -> Result<Frozen, Error> {
        let since = Instant::now();
        let mut held = Held::default();
        let mut seized = Some(seized);
        // A thread that was not stopped yet may have made others, so it is over when a look finds nothing new.
        let mut of_now = false;
        loop {
            let all = listed.iter().flat_map(|p| p.threads.iter().map(|&tid| (p.host, tid)));
            let new = |(_, tid): &(Pid, Pid)| !held.stopped.contains_key(tid) && !held.ended.contains(tid);
            let seen: Vec<(Pid, Pid)> = all.filter(new).collect();
            held.before.look(&seen);
            let mut fresh = Vec::new();
            for (_, tid) in seen {
                if held.catch(tid)? {
                    fresh.push(tid);
                }
            }
            if fresh.is_empty() && of_now {
                break;
            }
            seized.take().map_or(Ok(()), |seized| seized())?;
            held.arrive(fresh, since + PATIENCE)?;
            (listed, of_now) = (list(init), true);
        }
        held.set_timeouts()?;
        let processes = held.sort(listed)?;
        Ok(Frozen { processes, since })
    }

    /// How long it has been stopped.
    pub fn frozen_for(&self) -> Duration {
        self.since.elapsed()
    }

    /// All threads of all processes.
    pub fn threads(&self) -> impl Iterator<Item = &Thread> {
        self.processes.iter().flat_map(|process| &process.threads)
    }

    /// The processes that have not ended, as ckrun sees their ids, the first one first.
    pub fn running(&self) -> Vec<Pid> {
        let running = self.processes.iter().filter(|process| !process.threads.is_empty());
        running.map(|process| process.stopped.host).collect()
    }

    /// Lets the job go on.
    pub fn release(mut self) {
        self.let_go();
    }

    /// From now on ckrun's death is that of the job's first process, and with it of all.
    ///
    /// # Errors
    /// The kernel's.
    pub fn doom(&self) -> Result<(), Failure> {
        let Some(leader) = self.processes.first().and_then(Process::leader) else { return Ok(()) };
        let pid = leader.tracee.pid();
        let options = libc::PTRACE_O_TRACESYSGOOD | libc::PTRACE_O_EXITKILL;
        ptrace::set_options(pid, options).doing(|| format!("bind process {pid} to ckrun"))
    }

    /// Kills the job, and waits until all of it has ended.
    ///
    /// # Errors
    /// The kernel's.
    pub fn kill(mut self) -> Result<(), Failure> {
        let processes = std::mem::take(&mut self.processes);
        let running = processes.iter().filter(|process| process.leader().is_some());
        let (large, small): (Vec<_>, Vec<_>) = running.partition(|process| process.stopped.status.is_large());
        // The small ones give their memory back themselves, several at a time. A large one is faster with help, which must be
        // at hand when it is killed: the kernel helps nobody who has begun to do it.
        for process in small.into_iter().chain(large) {
            let host = process.stopped.host;
            let held = if process.stopped.status.is_large() { crate::Process::open_now(host) } else { None };
            // SAFETY: a signal to a process that we have stopped: its id can't be another's as long as we have not waited
            // for it.
            Errno::result(unsafe { libc::kill(host.as_raw(), libc::SIGKILL) })
                .doing(|| format!("kill process {host}"))?;
            if let Some(process) = held {
                sys::process_mrelease(process.as_fd());
            }
        }
        // Everybody's end waits for us, and the end of the first process for that of all others: which of its threads does
        // the waiting is the kernel's choice. So they are seen to in the order in which they end.
        let mut left: BTreeSet<Pid> =
            processes.iter().flat_map(|p| &p.threads).map(|t| t.tracee.pid()).collect();
        while !left.is_empty() {
            let ended = ptrace::next_end().doing(|| "wait for the end of the job")?;
            if left.contains(&ended) {
                if !still_there(ended) {
                    left.remove(&ended);
                }
            } else {
                // A child of ckrun's that is none of the job: it would be told of again and again.
                left.retain(|tid| still_there(*tid));
            }
        }
        Ok(())
    }

    fn let_go(&mut self) {
        // Children first: nobody is to see a child that is still traced.
        for thread in self.processes.drain(..).rev().flat_map(|process| process.threads) {
            // It may have been killed; then there is nobody to release.
            if let Err(e) = thread.tracee.release() {
                log::debug!("{e}");
            }
        }
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        self.let_go();
    }
}

/// Whether this very thread traces `tid`.
fn is_ours(tid: Pid) -> bool {
    proc::read(&format!("/proc/{tid}/status"))
        .is_ok_and(|text| Status::parse(&text).tracer == gettid().as_raw())
}

/// Whether a thread of ours has yet to end; its end is seen to.
fn still_there(tid: Pid) -> bool {
    !matches!(ptrace::wait(tid, libc::WNOHANG), Ok(Some((_, ptrace::Change::Ended(_)))) | Err(_))
}

/// Stops a single thread; None when it has ended.
///
/// # Errors
/// `EBUSY` when it does not stop within `patience`.
pub fn stop_one(tid: Pid, patience: Duration) -> Result<Option<Tracee>, Failure> {
    match Tracee::catch(tid, 0) {
        Ok(()) => {}
        Err(Errno::ESRCH) => return Ok(None),
        Err(Errno::EPERM) if Stat::of(tid).is_none_or(|stat| stat.ended()) => return Ok(None),
        Err(errno) => return Err(Failure::new(format!("trace thread {tid}"), errno)),
    }
    let mut held = Held::default();
    held.arrive(vec![tid], Instant::now() + patience)?;
    Ok(held.stopped.remove(&tid))
}

/// Threads on their way into [`Frozen`].
#[derive(Default)]
struct Held {
    stopped: BTreeMap<Pid, Tracee>,
    ended: BTreeSet<Pid>,
    before: Before,
}

impl Held {
    /// Asks a thread to stop; false when it has ended.
    fn catch(&mut self, tid: Pid) -> Result<bool, Error> {
        match Tracee::catch(tid, 0) {
            Ok(()) => Ok(true),
            Err(Errno::ESRCH) => Ok(false),
            // ptrace can't tell a zombie from a thread that it may not trace.
            Err(Errno::EPERM) if Stat::of(tid).is_none_or(|stat| stat.ended()) => {
                // The end of one that is ours already is told to its parent when we have seen it.
                let _ = ptrace::wait(tid, libc::WNOHANG);
                self.ended.insert(tid);
                Ok(false)
            }
            // Begotten with CLONE_PTRACE by one that was asked to stop: the kernel asks the child, too (ptrace_init_task()).
            Err(Errno::EPERM) if is_ours(tid) => Ok(true),
            Err(errno) => {
                let tracer = if errno == Errno::EPERM { " (is it being debugged?)" } else { "" };
                Err(Failure::new(format!("trace thread {tid}{tracer}"), errno).into())
            }
        }
    }

    /// Waits until all of `pending` have stopped.
    fn arrive(&mut self, mut pending: Vec<Pid>, deadline: Instant) -> Result<(), Failure> {
        let mut last = Instant::now();
        let mut nap = Duration::from_micros(5);
        while !pending.is_empty() {
            let before = pending.len();
            let mut waiting = Vec::new();
            for tid in pending {
                if !self.look_at(tid)? {
                    waiting.push(tid);
                }
            }
            pending = waiting;
            if pending.len() < before {
                (last, nap) = (Instant::now(), Duration::from_micros(5));
                continue;
            }
            let Some(first) = pending.first() else { break };
            if Instant::now() > deadline {
                let comm = proc::read(&format!("/proc/{first}/comm")).unwrap_or_default();
                let comm = String::from_utf8_lossy(comm.trim_ascii_end());
                let what = format!("stop thread {first} ({comm}), which stays in the kernel");
                return Err(Failure::new(what, Errno::EBUSY));
            }
            if last.elapsed() > VFORK {
                self.let_children_go(&pending);
                last = Instant::now();
            }
            // Doubling from a few microseconds: ptrace has no event to wait for that tells of one thread among many
            // without taking the reports of the others.
            std::thread::sleep(nap);
            nap = (nap * 2).min(Duration::from_millis(2));
        }
        Ok(())
    }

    /// Takes the stop of `tid` if it has come; true also when it has ended.
    fn look_at(&mut self, tid: Pid) -> Result<bool, Failure> {
        let what = || format!("stop thread {tid}");
        match ptrace::wait(tid, libc::WNOHANG) {
            Ok(None) => Ok(false),
            Ok(Some((_, ptrace::Change::Stopped(signal)))) => {
                let mut tracee = Tracee::stopped(tid, signal)?;
                // A stop by job control is one that the program may notice.
                if tracee.group_stop.is_none() && calls::make_again(&mut tracee.regs) {
                    // At once, so that it holds also if ckrun dies.
                    ptrace::set_registers(tid, &tracee.regs).doing(what)?;
                }
                self.stopped.insert(tid, tracee);
                Ok(true)
            }
            Ok(Some((_, ptrace::Change::Signal(signal)))) => {
                ptrace::resume(tid, signal).doing(what).map(|()| false)
            }
            Ok(Some((_, ptrace::Change::Ended(_)))) | Err(Errno::ECHILD) => Ok(true),
            Ok(Some(_)) => ptrace::resume(tid, 0).doing(what).map(|()| false),
            Err(errno) => Err(Failure::new(what(), errno)),
        }
    }

    /// Shortens the timeouts of calls that are to be made again.
    fn set_timeouts(&mut self) -> Result<(), Failure> {
        let mut now = None;
        for tid in self.before.timed() {
            let Some(tracee) = self.stopped.get_mut(&tid) else { continue };
            // Where the kernel's timers are hidden, the whole timeout begins anew.
            let Some(now) = now.get_or_insert_with(|| Timers::read().ok()) else { break };
            let Some(remaining) = self.before.remaining(tid, now) else { continue };
            tracee.deadline = Some(Instant::now() + remaining);
            if calls::set_timeout(&mut tracee.regs, remaining) {
                ptrace::set_registers(tid, &tracee.regs)
                    .doing(|| format!("shorten the wait of thread {tid}"))?;
            }
        }
        Ok(())
    }

    fn let_children_go(&mut self, parents: &[Pid]) {
        let parents: BTreeSet<Pid> = parents.iter().copied().collect();
        let children: Vec<Pid> = self
            .stopped
            .keys()
            .copied()
            .filter(|tid| Stat::of(*tid).is_some_and(|stat| parents.contains(&stat.parent)))
            .collect();
        let listed = children.into_iter().filter_map(|child| self.stopped.remove(&child));
        // Those that are ours from birth, see `catch`, were perhaps never listed.
        let descendants = parents.iter().flat_map(|parent| listing::descendants(*parent));
        let born = descendants.filter(|child| !parents.contains(child) && is_ours(*child));
        let born = born.filter_map(|child| match ptrace::wait(child, libc::WNOHANG) {
            Ok(Some((_, ptrace::Change::Stopped(signal)))) => Tracee::stopped(child, signal).ok(),
            _ => None,
        });
        for tracee in listed.collect::<Vec<_>>().into_iter().chain(born) {
            log::debug!("thread {} may hold up its parent: it goes on for a moment", tracee.pid());
            let _ = tracee.release();
        }
    }

    /// Puts the threads into their processes, and those into the order of the tree.
    fn sort(mut self, listed: Vec<Listed>) -> Result<Vec<Process>, Error> {
        let mut processes: Vec<Process> = Vec::new();
        let mut ids: BTreeMap<Pid, i32> = BTreeMap::new();
        let tasks =
            |process: &Listed| process.threads.iter().map(|&tid| (process.host, tid)).collect::<Vec<_>>();
        let tasks: Vec<(Pid, Pid)> = listed.iter().flat_map(tasks).collect();
        let mut looks = halves::map(&tasks, |&(host, tid)| look(host, tid, 0)).into_iter();
        for Listed { host, threads } in listed {
            let looks: Vec<_> = looks.by_ref().take(threads.len()).collect();
            let Some(stat) = Stat::of(host) else { continue };
            let mut looks = threads.iter().zip(looks);
            let Some((_, leader)) = looks.next() else { continue };
            let stopped = leader?;
            let pid = stopped.tid;
            let stopped = Stopped { pid, ..stopped };
            let parent = ids.get(&stat.parent).copied().unwrap_or(0);
            ids.insert(host, pid);
            let leader = self.stopped.remove(&host);
            let leader = leader.map(|tracee| Thread { tracee, stopped: stopped.clone() });
            let mut process = Process { stopped, pid, parent, stat, threads: leader.into_iter().collect() };
            for (tid, look) in looks {
                if let Some(tracee) = self.stopped.remove(tid) {
                    process.threads.push(Thread { tracee, stopped: Stopped { pid, ..look? } });
                }
            }
            processes.push(process);
        }
        if processes.first().is_none_or(|first| first.threads.is_empty()) {
            return Err(Failure::new("stop the job: it has ended", Errno::ESRCH).into());
        }
        Ok(processes)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        for tracee in std::mem::take(&mut self.stopped).into_values() {
            let _ = tracee.release();
        }
    }
}

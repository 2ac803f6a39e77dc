//! The making of a restored job, step by step; [`crate::restore`] tells in which order.

mod births;
mod born;
mod pages;
mod registers;
mod state;

use crate::cgroups::Places;
use crate::crew::{self, CREW};
use crate::fd::{Made, Renewed};
use crate::image::{Image, Index, Owner};
use crate::job::Job;
use crate::listing::look;
use crate::login::LoginUid;
use crate::memory::{self, Bridge, Filler, Handles, PageFiles};
use crate::mounts::{self, Namespace};
use crate::network::wall::Rubble;
use crate::nursery::{self, AREA};
use crate::proc::Stat;
use crate::program::Program;
use crate::restore::{HATCH, NetworkIs, Options};
use crate::tree::Member;
use crate::worker::Worker;
use crate::{Error, Failure, fault};
use born::Born;
use nix::errno::Errno;
use nix::unistd::Pid;
use pages::Unfilled;
use state::restore;
use std::collections::BTreeMap;
use std::ops::Range;
use std::os::fd::{OwnedFd, RawFd};

/// A job in the making.
#[derive(Debug)]
pub struct Making<'a> {
    job: &'a Job,
    image: &'a Image,
    bridge: Option<Bridge>,
    index: Index,
    pages: PageFiles,
    filler: Filler,
    /// Processes whose pages are on their way.
    unfilled: BTreeMap<i32, Unfilled>,
    /// The job's mount namespaces, by numbers of the first process.
    namespaces: Vec<Namespace<RawFd>>,
    /// Shared memory and deleted files, open in the first process and inherited by all.
    handles: Handles,
    /// Where the descriptions are until the processes have their own numbers.
    made: Made,
    /// The leaders of processes, and helpers, by their ids in the job.
    leaders: BTreeMap<i32, Worker>,
    /// Zombies, by their ids in the job: their ids in ckrun's pid namespace.
    ended: BTreeMap<i32, Pid>,
    /// All other threads.
    threads: BTreeMap<i32, Worker>,
    /// What every task is born with.
    born: Born,
    /// As who ckrun's user logged in.
    login: Option<LoginUid>,
    /// Which cgroups they are in.
    cgroups: Places<'a>,
    /// Bytes of memory that have been read from the image.
    pub bytes: u64,
}

impl<'a> Making<'a> {
    /// Takes over `init`, which has these mount `namespaces`.
    ///
    /// # Errors
    /// The kernel's; there is no room for ckrun in the job's memory.
    pub fn begin(
        job: &'a Job,
        image: &'a Image,
        bridge: Option<Bridge>,
        init: Pid,
        hatch: OwnedFd,
        namespaces: Vec<Namespace<RawFd>>,
        mut cgroups: Places<'a>,
    ) -> Result<Self, Error> {
        let Some(first) = job.members.first() else {
            return Err(Error::Damaged("tasks.json: there is no process".into()));
        };
        let index = image.index()?;
        let pages = PageFiles::open(image, index.runs())?;
        let mut worker = nursery::take_over(init, hatch, HATCH, free_area(job)?)?;
        cgroups.enter(first.pid, None, false, worker.host())?;
        let task = look(init, init, first.pid)?;
        let born = Born::prepare(&mut worker, task, job)?;
        Ok(Making {
            job,
            image,
            bridge,
            made: Made::default(),
            filler: Filler::new(&pages),
            unfilled: BTreeMap::new(),
            pages,
            index,
            namespaces,
            handles: Handles::new(),
            leaders: BTreeMap::from([(first.pid, worker)]),
            ended: BTreeMap::new(),
            threads: BTreeMap::new(),
            born,
            login: LoginUid::own(),
            cgroups,
            bytes: 0,
        })
    }

    /// Makes the open files of all processes, and the memory that they share, in the first one.
    ///
    /// # Errors
    /// The kernel's, the image's.
    pub fn files(&mut self, options: &Options) -> Result<(), Error> {
        let job = self.job;
        let Some(worker) = self.leaders.values_mut().next() else { return Ok(()) };
        let index = &self.index;
        let runs = |id| index.of(Owner::Shared(id));
        let used = job.files.processes.values().flat_map(|holdings| &holdings.descriptors);
        let own = self.namespaces.last().map_or(HATCH, |last| last.root);
        let free = used.map(|held| held.fd).max().unwrap_or(own).max(own) + 1;
        let handles = &mut self.handles;
        if !self.namespaces.is_empty() {
            let take = &mut |fd| worker.pidfd_getfd(fd);
            let roots = mounts::roots(worker.host(), &self.namespaces, take)?;
            memory::open_elsewhere(worker, &job.objects, job.layouts.values(), &roots, free, handles)?;
        }
        memory::make_objects(worker, &job.objects, job.layouts.values(), runs, &self.pages, free, handles)?;
        job.sysv.make(worker.host())?;
        if let Some(names) = &job.names {
            names.restore(worker.host())?;
        }
        fault::point("restore:network")?;
        match &job.network {
            Some(network) if options.network == NetworkIs::Made => network.restore(worker.host())?,
            Some(_) if options.network == NetworkIs::Anothers => {
                log::warn!("the job's links are left out: the network namespace was not made for it");
            }
            _ => {}
        }
        let shared = |id| handles.get(&id).map(|handle| handle.write);
        self.made = job.files.make(worker, self.image, &shared, &self.namespaces, options)?;
        if let Some(network) = job.network.as_ref().filter(|_| options.network == NetworkIs::Made) {
            network.finish(worker.host())?;
        }
        if let Some(first) = job.members.first() {
            let has_terminal = Stat::of(worker.host()).is_some_and(|stat| stat.terminal != 0);
            let mut program = Program::new();
            job.files.begin_first_session(&self.made, first.pid, has_terminal, &mut program);
            worker.run(&program)?;
        }
        Ok(())
    }

    /// Gives every process its files, and makes its threads.
    ///
    /// # Errors
    /// The kernel's.
    pub fn threads(&mut self) -> Result<(), Error> {
        let job = self.job;
        // The descriptors of shared memory are still there, and nobody maps it any more.
        let handles = self.handles.clone();
        if let Some(first) = job.members.first() {
            self.leader(first.pid, |worker| memory::seal_objects(worker, &job.objects, &handles))?;
        }
        for (pid, program) in job.files.settle_sessions(&self.made) {
            self.leader(pid, |worker| worker.run(&program).map(drop))?;
        }
        self.together(|made, member, program| job.files.enter(made, member.pid, program))?;
        self.together(|made, member, program| {
            restore(job.processes.permission.get(&member.pid), program);
            job.files.place(made, member.pid, program);
        })?;
        for member in running(job) {
            let others = member.threads.get(1..).unwrap_or_default();
            let made = self.leader(member.pid, |worker| nursery::beget_threads(worker, others))?;
            for (tid, worker) in others.iter().copied().zip(made) {
                self.cgroups.enter_thread(tid, member.pid, worker.host())?;
                self.threads.insert(tid, worker);
            }
            for &tid in &member.threads {
                self.expand(tid)?;
            }
            self.login(member)?;
        }
        // What of the files needs all tasks to be there.
        for member in running(job) {
            let mut program = Program::new();
            job.files.finish(&self.made, member.pid, &mut program);
            job.sysv.finish(member.pid, &mut program);
            self.leader(member.pid, |worker| worker.run(&program).map(drop))?;
        }
        for member in running(job) {
            let mut program = Program::new();
            job.files.finish_directories(&self.made, member.pid, &mut program);
            self.leader(member.pid, |worker| worker.run(&program).map(drop))?;
        }
        job.files.hand_over(&self.made, &mut self.leaders)?;
        Ok(())
    }

    /// Lets the leaders of all processes run the programs that `add` makes, in no particular order.
    fn together(&mut self, add: impl Fn(&Made, &Member, &mut Program)) -> Result<(), Error> {
        let members: Vec<_> = running(self.job).collect();
        for members in members.chunks(CREW) {
            let program = |member: &&&Member| {
                let mut program = Program::new();
                add(&self.made, member, &mut program);
                Some((member.pid, self.leaders.get(&member.pid)?, program)).filter(|(.., p)| !p.is_empty())
            };
            let tasks: Vec<_> = members.iter().filter_map(|member| program(&member)).collect();
            crew::run(&tasks).map_err(|(pid, failure)| blame(self.job, pid, failure))?;
        }
        Ok(())
    }

    /// Sets what is set in the job's cgroups.
    ///
    /// # Errors
    /// The kernel's.
    pub fn cgroups(&self, own: bool) -> Result<(), Error> {
        Ok(self.cgroups.settle(own)?)
    }

    /// The connections that were made anew.
    pub fn renewed(&self) -> &[Renewed] {
        self.made.renewed()
    }

    /// Lets what leads out of the job come to life. The answer is to be dropped when there is time for that.
    ///
    /// # Errors
    /// The kernel's.
    pub fn wake(&self, init: Pid) -> Result<Option<Rubble>, Error> {
        Ok(self.made.wake(init)?)
    }

    /// Lets all of them go. Up to here ckrun's death is theirs.
    ///
    /// # Errors
    /// The kernel's.
    pub fn release(self) -> Result<(), Error> {
        // Children first: nobody is to see a child that is still traced.
        let Making { job, mut leaders, threads, cgroups, .. } = self;
        cgroups.freeze()?;
        let leaders =
            job.members.iter().rev().filter_map(|member| leaders.remove(&member.pid)).collect::<Vec<_>>();
        for worker in threads.into_values().chain(leaders) {
            match worker.tracee.release() {
                // Those who go first may end the others, as they did before.
                Err(e) if e.errno == Errno::ESRCH => log::debug!("{e}"),
                other => other?,
            }
        }
        Ok(())
    }

    /// All processes: their ids in ckrun's pid namespace, with the ids of their other threads in the job's and in ckrun's.
    pub fn processes(&self) -> impl Iterator<Item = (&Member, Pid, Vec<(i32, Pid)>)> {
        self.job.members.iter().filter_map(|member| {
            let live = || self.leaders.get(&member.pid).map(Worker::host);
            let leader = live().or_else(|| self.ended.get(&member.pid).copied())?;
            let host = |tid: &i32| Some((*tid, self.threads.get(tid)?.host()));
            Some((member, leader, member.threads.iter().filter_map(host).collect()))
        })
    }

    /// The processes of the job.
    pub fn members(&self) -> &[Member] {
        &self.job.members
    }

    /// A thread that has been made.
    pub fn worker(&self, tid: i32) -> Option<&Worker> {
        self.threads.get(&tid).or_else(|| self.leaders.get(&tid))
    }

    /// The same, to be changed.
    pub fn worker_mut(&mut self, tid: i32) -> Option<&mut Worker> {
        match self.threads.get_mut(&tid) {
            Some(worker) => Some(worker),
            None => self.leaders.get_mut(&tid),
        }
    }

    fn host(&mut self, pid: i32) -> Result<Pid, Error> {
        self.leader(pid, |worker| Ok(worker.host()))
    }

    fn call(&mut self, pid: i32, what: &'static str, nr: libc::c_long, args: &[i32]) -> Result<(), Error> {
        let mut program = Program::new();
        let args: Vec<_> = args.iter().map(|&arg| arg.into()).collect();
        program.call(what, nr, &args);
        self.leader(pid, |worker| worker.run(&program).map(drop))
    }

    /// Does something with a thread, leader or not.
    fn task<T>(
        &mut self,
        tid: i32,
        work: impl FnOnce(&mut Worker) -> Result<T, Failure>,
    ) -> Result<T, Error> {
        match self.threads.get_mut(&tid) {
            Some(worker) => work(worker).map_err(|failure| blame(self.job, tid, failure)),
            None => self.leader(tid, work),
        }
    }

    fn leader<T>(
        &mut self,
        pid: i32,
        work: impl FnOnce(&mut Worker) -> Result<T, Failure>,
    ) -> Result<T, Error> {
        let missing = || Failure::new("find it", Errno::ESRCH);
        let done = self.leaders.get_mut(&pid).ok_or_else(missing).and_then(work);
        done.map_err(|failure| blame(self.job, pid, failure))
    }
}

fn running(job: &Job) -> impl Iterator<Item = &Member> {
    job.members.iter().filter(|member| !member.threads.is_empty())
}

fn blame(job: &Job, tid: i32, failure: Failure) -> Error {
    let member = job.members.iter().find(|m| m.pid == tid || m.threads.contains(&tid));
    let (pid, comm) = member.map_or((tid, String::new()), |m| (m.pid, m.comm.clone()));
    Error::Process { pid, comm, failure }
}

/// A place for ckrun's area that is free in every process.
fn free_area(job: &Job) -> Result<Range<u64>, Error> {
    // Below everything that the kernel chooses by itself; the least address is vm.mmap_min_addr.
    const LEAST: u64 = 0x1_0000;
    const END: u64 = 0x7fff_ff00_0000;
    let ranges = |layout: &'_ memory::Layout| {
        let rings = layout.rings.iter().map(|ring| ring.range);
        let rings = rings.chain(layout.frames.iter().map(|frames| frames.range));
        let rings = rings.map(|range| (range.start, range.end));
        layout.vmas.iter().map(|vma| (vma.range.start, vma.range.end)).chain(rings).collect::<Vec<_>>()
    };
    let mut taken: Vec<(u64, u64)> = job.layouts.values().flat_map(ranges).collect();
    taken.sort_unstable();
    let mut at = LEAST;
    for (start, end) in taken {
        // A mapping that grows down needs its gap.
        if start.saturating_sub(at) >= AREA + (1 << 20) {
            break;
        }
        at = at.max(end);
    }
    if at + AREA > END {
        return Err(Error::Unsupported("there is no free place in the job's memory to work from".into()));
    }
    Ok(at..at + AREA)
}

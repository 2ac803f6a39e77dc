//! The state of a job, apart from the bytes of its memory and files: what the JSON files of an image hold.

use crate::Error;
use crate::cgroups::{self, Cgroups};
use crate::cpu::state::CpuState;
use crate::fd::Files;
use crate::image::{Image, Writer};
use crate::login::LoginUid;
use crate::memory::{Layout, MmState, Object};
use crate::network::{self, Network};
use crate::rooms::{OutsideProcess, OutsideThread, ProcessRooms, ThreadRooms};
use crate::seccomp::Filters;
use crate::sysv::SystemV;
use crate::timers::PosixTimers;
use crate::tree::Member;
use crate::uts::Names;
use std::collections::BTreeMap;

/// Everything is found by the job's own ids.
#[derive(Debug, Default)]
pub struct Job {
    /// The processes, parents before their children.
    pub members: Vec<Member>,
    /// Kinds of state of processes.
    pub processes: ProcessRooms,
    /// Those that ckrun sees from outside.
    pub outside_processes: OutsideProcess,
    /// As who the processes' users logged in.
    pub logins: BTreeMap<i32, LoginUid>,
    /// POSIX timers of processes.
    pub timers: BTreeMap<i32, PosixTimers>,
    /// Kinds of state of threads.
    pub threads: ThreadRooms,
    /// Those that ckrun sees from outside.
    pub outside_threads: OutsideThread,
    /// Registers of threads.
    pub cpu: BTreeMap<i32, CpuState>,
    /// Seccomp filters.
    pub filters: Filters,
    /// What the kernel notes of processes' memory.
    pub memory: BTreeMap<i32, MmState>,
    /// Mappings of processes.
    pub layouts: BTreeMap<i32, Layout>,
    /// Files and shared memory that mappings show.
    pub objects: Vec<Object>,
    /// Descriptors and what is behind them. The capture writes them, with the contents that go with them.
    pub files: Files,
    /// Semaphores and message queues.
    pub sysv: SystemV,
    /// Host and domain name, if they are the job's own.
    pub names: Option<Names>,
    /// What is in its network namespace, if that is its own and not as a sandbox makes it.
    pub network: Option<Network>,
    /// Cgroups below the container's own.
    pub cgroups: Cgroups,
}

impl Job {
    /// Writes all of it.
    ///
    /// # Errors
    /// Those of the image.
    pub fn write(&self, image: &mut Writer) -> Result<(), Error> {
        image.json("tasks.json", &self.members)?;
        self.processes.write(image)?;
        self.outside_processes.write(image)?;
        if !self.logins.is_empty() {
            image.json(LoginUid::FILE, &self.logins)?;
        }
        image.json("posix-timers.json", &self.timers)?;
        self.threads.write(image)?;
        self.outside_threads.write(image)?;
        image.json("cpu.json", &self.cpu)?;
        image.json("seccomp.json", &self.filters)?;
        image.json("address-spaces.json", &self.memory)?;
        image.json("mappings.json", &self.layouts)?;
        image.json("objects.json", &self.objects)?;
        if !self.sysv.is_empty() {
            image.json(SystemV::FILE, &self.sysv)?;
        }
        if let Some(names) = &self.names {
            image.json(Names::FILE, names)?;
        }
        if let Some(network) = &self.network {
            image.json(network::FILE, network)?;
        }
        if !self.cgroups.is_empty() {
            image.json(cgroups::FILE, &self.cgroups)?;
        }
        Ok(())
    }

    /// Reads all of it.
    ///
    /// # Errors
    /// Those of the image; [`Error::Damaged`] when its parts don't fit together.
    pub fn read(image: &Image) -> Result<Job, Error> {
        let job = Job {
            members: image.json("tasks.json")?,
            processes: ProcessRooms::read(image)?,
            outside_processes: OutsideProcess::read(image)?,
            logins: if image.has(LoginUid::FILE) { image.json(LoginUid::FILE)? } else { BTreeMap::new() },
            timers: image.json("posix-timers.json")?,
            threads: ThreadRooms::read(image)?,
            outside_threads: OutsideThread::read(image)?,
            cpu: image.json("cpu.json")?,
            filters: image.json("seccomp.json")?,
            memory: image.json("address-spaces.json")?,
            layouts: image.json("mappings.json")?,
            objects: image.json("objects.json")?,
            files: Files::read(image)?,
            sysv: if image.has(SystemV::FILE) { image.json(SystemV::FILE)? } else { SystemV::default() },
            names: if image.has(Names::FILE) { Some(image.json(Names::FILE)?) } else { None },
            network: if image.has(network::FILE) { Some(image.json(network::FILE)?) } else { None },
            cgroups: Cgroups::read(image)?,
        };
        job.check()?;
        Ok(job)
    }

    fn check(&self) -> Result<(), Error> {
        self.filters.check()?;
        if let Some(network) = &self.network {
            network.check().map_err(|why| Error::Damaged(format!("{}: {why}", network::FILE)))?;
        }
        for (tid, creds) in &self.threads.creds {
            creds.check().map_err(|why| Error::Damaged(format!("credentials.json: thread {tid}: {why}")))?;
        }
        for (pid, layout) in &self.layouts {
            layout
                .check(&self.objects)
                .map_err(|why| Error::Damaged(format!("mappings.json: process {pid}: {why}")))?;
        }
        for (pid, state) in &self.memory {
            let bad = |why| Error::Damaged(format!("address-spaces.json: process {pid}: {why}"));
            state.check(self.objects.len()).map_err(bad)?;
        }
        for member in &self.members {
            let bad = |why: &str| Error::Damaged(format!("tasks.json: process {}: {why}", member.pid));
            let ended = matches!(member.state, crate::tree::Life::Zombie { .. });
            if ended != member.threads.is_empty() {
                return Err(bad("threads, though it has ended, or none, though it has not"));
            }
            if !ended && member.threads.first() != Some(&member.pid) {
                return Err(bad("its first thread is not its leader"));
            }
            let mapped = self.layouts.contains_key(&member.pid) && self.memory.contains_key(&member.pid);
            if !ended && !mapped {
                return Err(bad("it has no memory"));
            }
            if let Some(tid) = member.threads.iter().find(|tid| !self.cpu.contains_key(tid)) {
                return Err(bad(&format!("thread {tid} has no registers")));
            }
        }
        Ok(())
    }
}

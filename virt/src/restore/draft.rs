//! A job as an image tells of it, before there is one: what is in its way here.

use super::{Options, fault};
use crate::capabilities::{CAP_SYS_ADMIN, CAP_SYS_RESOURCE};
use crate::clocks::Clocks;
use crate::cpu::layout::Layout;
use crate::cpu::vdso::Agreement;
use crate::image::{Host, Image};
use crate::job::Job;
use crate::memory::Bridge;
use crate::mounts::Namespace;
use crate::restore::NetworkIs;
use crate::status::Status;
use crate::table::{Id, Row, Table};
use crate::{Doing, Error, Failure, memory, mounts, tmpfs};
use nix::unistd::Pid;
use rustix::process::{PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
use serde::Serialize;
use std::fmt;
use std::os::fd::{AsFd, OwnedFd, RawFd};

/// Something that makes a restart impossible here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// Which thing.
    pub what: String,
    /// Why it can't be had.
    pub why: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.what, self.why)
    }
}

/// What an image says of its job, read once and for all steps of a restart.
#[derive(Debug)]
pub struct Draft<'a> {
    pub(super) image: &'a Image,
    pub(super) job: Job,
    pub(super) table: Table,
    /// The numbers that the process which is to become the first one has for the mount namespaces of the job.
    pub(super) namespaces: Vec<Namespace<RawFd>>,
    /// What leads from the job's vDSO to this host's, if that is needed, or why nothing does.
    pub(super) bridge: Result<Option<Bridge>, String>,
}

impl<'a> Draft<'a> {
    /// Reads it.
    ///
    /// # Errors
    /// The image can't be read, or is damaged.
    pub fn read(image: &'a Image) -> Result<Self, Error> {
        let mut job = Job::read(image)?;
        let changes: mounts::Changes = image.json(mounts::FILE)?;
        changes.check().map_err(|why| Error::Damaged(format!("{}: {why}", mounts::FILE)))?;
        let bridge = match Bridge::over(image, &mut job.layouts) {
            Err(Error::Unsupported(why)) => Err(why),
            other => Ok(other?),
        };
        let namespaces = mounts::numbers(changes.namespaces());
        Ok(Draft { image, job, table: image.json("table.json")?, namespaces, bridge })
    }

    /// Checks everything that can be known before the first process exists.
    ///
    /// # Errors
    /// The image can't be read, or is damaged.
    pub fn check(&self, options: &Options) -> Result<Vec<Problem>, Error> {
        fault::point("restore:check")?;
        let Draft { image, job, .. } = self;
        image.json::<Clocks>(Clocks::FILE)?;
        tmpfs::Contents::open(image)?;
        let may = |pid: &i32| {
            let creds = job.threads.creds.get(pid);
            creds.is_some_and(|creds| creds.capabilities.permitted.0 >> CAP_SYS_ADMIN & 1 == 1)
        };
        if job.files.privileged().any(|holders| !holders.iter().any(may)) {
            return Err(Error::Damaged("files.json: a fanotify without a process that may have it".into()));
        }
        let here = Host::here()?;
        let hosts = image.manifest().host.problems(&here, &options.unused);
        let inside = in_the_vdso(job, image, &here);
        let bridge = self.bridge.as_ref().err().and_then(|why| why.split_once(": "));
        let bridge = bridge.map(|(what, why)| (what.into(), why.into()));
        let lacking = job.cpu.iter().filter_map(|(tid, cpu)| {
            let missing = cpu.extended.missing(Layout::host());
            (!missing.is_empty())
                .then(|| (format!("thread {tid}"), format!("this CPU lacks {}", missing.join(", "))))
        });
        let timers = job
            .timers
            .iter()
            .filter_map(|(pid, timers)| Some((format!("process {pid}"), timers.check().err()?)));
        let all = hosts
            .into_iter()
            .chain(bridge)
            .chain(inside)
            .chain(lacking)
            .chain(timers)
            .chain(limits(job)?)
            .chain(homeless(&self.table, options));
        Ok(all.map(|(what, why)| Problem { what, why }).collect())
    }

    /// Checks what can be known when the sandbox stands, in which `init` waits, and nothing of the job is there yet. A restart
    /// begins with the same.
    ///
    /// # Errors
    /// The image can't be read, or is damaged.
    pub fn look_around(&self, init: Pid, options: &Options) -> Result<Vec<Problem>, Error> {
        let job = &self.job;
        let roots = mounts::roots(init, &self.namespaces, &mut |fd| take(init, fd))?;
        if let Some(more) = job.files.namespaces().chain(memory::namespaces(&job.objects)).max()
            && more as usize >= roots.len()
        {
            return Err(Error::Damaged(format!("{}: there is no mount namespace {more}", mounts::FILE)));
        }
        let Some(root) = roots.first() else { return Ok(Vec::new()) };
        let mut problems = job.files.check(&roots, options)?;
        problems.extend(job.files.check_terminals(root.as_fd(), init)?);
        // In a network namespace that is made for the job its devices are still to come.
        if options.network != NetworkIs::Made {
            problems.extend(job.files.check_devices(init)?);
        }
        problems.extend(memory::check_files(&job.objects, &roots, options)?);
        problems.extend(unable(job, init)?);
        problems.extend(job.sysv.homeless(init)?);
        Ok(problems)
    }
}

/// Threads inside code that is another one here.
fn in_the_vdso(job: &Job, image: &Image, here: &Host) -> Vec<(String, String)> {
    let there = &image.manifest().host.vdso;
    if there.agreement(&here.vdso) == Agreement::Same {
        return Vec::new();
    }
    let within = |pid: &i32, tid: &i32| {
        let (layout, cpu) = (job.layouts.get(pid)?, job.cpu.get(tid)?);
        let code = layout.vdso_parts()?.1;
        (code.start..code.end).contains(&cpu.registers.rip).then(|| {
            let kernels = format!("of {}, this host has {}", there.kernel, here.vdso.kernel);
            (format!("thread {tid}"), format!("it is inside the vDSO {kernels}"))
        })
    };
    let threads = job.members.iter().flat_map(|member| member.threads.iter().map(|tid| (&member.pid, tid)));
    threads.filter_map(|(pid, tid)| within(pid, tid)).collect()
}

/// The owned devices and sockets of a job that are nowhere here.
fn homeless(table: &Table, options: &Options) -> Vec<(String, String)> {
    let missing = |row: Row<'_>| match (row.id, row.real) {
        (Id::Socket(id), Id::Socket(real))
            if !options.sockets.contains_key(&id) && !options.promised_sockets.contains(&id) =>
        {
            let kind = if id.starts_with(b"/") { "unix" } else { "tcp" };
            let why = format!(
                "it was {real} at the checkpoint, and is nothing here: say --map {kind}:{id}=ADDRESS"
            );
            Some((id.to_string(), why))
        }
        (Id::Device(id), Id::Device(real))
            if options.devices.to_real(id.as_path()).is_none() && !options.promises(id.as_path()) =>
        {
            let was = format!("it was {real} at the checkpoint, and is nothing here: say");
            let why = match table.vendors().get(&id) {
                Some(name) => format!("{was} --device {name}, or --map {id}=DEVICE"),
                None => format!("{was} --map {id}=DEVICE"),
            };
            Some((id.to_string(), why))
        }
        _ => None,
    };
    table.rows().into_iter().filter_map(missing).collect()
}

/// A duplicate of a descriptor of `init`, which is not stopped yet.
fn take(init: Pid, fd: RawFd) -> Result<OwnedFd, Failure> {
    let what = || format!("take descriptor {fd} of process {init}");
    let pid = rustix::process::Pid::from_raw(init.as_raw());
    let pid = pid.ok_or_else(|| Failure::new(what(), nix::errno::Errno::ESRCH))?;
    let process = pidfd_open(pid, PidfdFlags::empty()).doing(what)?;
    pidfd_getfd(process, fd, PidfdGetfdFlags::empty()).doing(what)
}

/// The capabilities of all tasks come from the first one.
fn unable(job: &Job, init: Pid) -> Result<Vec<Problem>, Error> {
    let path = format!("/proc/{init}/status");
    let status = Status::parse(&crate::proc::read(&path).doing(|| format!("read {path}"))?);
    let lacking = job.threads.creds.iter().filter_map(|(tid, creds)| {
        let missing = creds.missing(status.cap_bnd);
        (!missing.is_empty()).then(|| Problem {
            what: format!("thread {tid}"),
            why: format!("it has {}, and root lacks that here", missing.join(", ")),
        })
    });
    Ok(lacking.collect())
}

/// Hard limits that ckrun would have to raise, and can't.
fn limits(job: &Job) -> Result<Vec<(String, String)>, Error> {
    let path = "/proc/thread-self/status";
    let own = Status::parse(&crate::proc::read(path).doing(|| format!("read {path}"))?);
    let mut problems = Vec::new();
    if own.cap_eff >> CAP_SYS_RESOURCE & 1 == 1 {
        return Ok(problems);
    }
    for (pid, limits) in &job.processes.limits {
        let names = limits.too_high()?;
        if !names.is_empty() {
            let why = format!("without CAP_SYS_RESOURCE no hard limit is raised: {}", names.join(", "));
            problems.push((format!("process {pid}"), why));
        }
    }
    Ok(problems)
}

//! A restart: the story of how an image becomes a running job.
//!
//! The runtime has built a sandbox, as for a new job, and its first process waits in it. ckrun takes that over and makes
//! the tree from it. Every task is traced, and dies with ckrun, until all of them are let go together.

use crate::clocks::Clocks;
use crate::cpu::layout::Layout;
use crate::cpu::vdso::Agreement;
use crate::events::Events;
use crate::image::{Bytes, Host, Image};
use crate::job::Job;
use crate::making::Making;
use crate::memory::Bridge;
use crate::mounts::Namespace;
use crate::status::Status;
use crate::table::rules::Rules;
use crate::table::{Generation, Id, Row, Table, Time, live};
use crate::{Doing, Error, Failure, fault, memory, mounts, tmpfs};
use nix::unistd::Pid;
use rustix::net::{SocketAddrAny, SocketAddrUnix};
use rustix::process::{PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The number of the one descriptor, besides the standard streams, that a process has which is to become the first one
/// of a restored job: a SOCK_SEQPACKET socket, whose other end ckrun has.
pub const HATCH: RawFd = 3;

/// What to do with a file that is not as it was at the checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Changed {
    /// Refuse.
    #[default]
    Strict,
    /// Cut what was appended.
    Truncate,
    /// Take it as it is.
    Ignore,
}

/// The network namespace of a job that is restored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum NetworkIs {
    /// Its owner's, who has made it: nothing in it is changed.
    #[default]
    Anothers,
    /// Made by the sandbox. Everything in it is to be as it was.
    Made,
    /// Made by the sandbox, and to be left as that has made it.
    LeftAsMade,
}

/// The other end of a connection, on this host.
#[derive(Debug, Clone)]
pub enum Peer {
    /// It is to be found at this address, from within the job's network namespace.
    Tcp(SocketAddr),
    /// It is to be found at this path of the host, or, after an `@`, by this abstract name.
    Unix(Bytes),
    /// Somebody has connected this socket to it already.
    Given(Arc<OwnedFd>),
}

impl Peer {
    /// Its address, as the table has it.
    pub fn name(&self) -> Bytes {
        match self {
            Peer::Tcp(address) => address.to_string().into(),
            Peer::Unix(name) => name.clone(),
            Peer::Given(socket) => match rustix::net::getpeername(socket) {
                Ok(Some(address)) => match SocketAddr::try_from(address.clone()) {
                    Ok(address) => address.to_string().into(),
                    Err(_) => path(address).unwrap_or_else(|| "socket".into()),
                },
                _ => "socket".into(),
            },
        }
    }
}

fn path(address: SocketAddrAny) -> Option<Bytes> {
    Some(SocketAddrUnix::try_from(address).ok()?.path()?.to_bytes().into())
}

/// What is wanted.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// For all files that are not named.
    pub changed: Changed,
    /// For single files, by their path in the container.
    pub changed_files: Vec<(PathBuf, Changed)>,
    /// What the sockets are here for which somebody answers, by the job's names for them.
    pub sockets: BTreeMap<Bytes, Peer>,
    /// Unix sockets that were connected to somebody outside are connected again, to the same path of the container.
    pub unix: bool,
    /// What the devices are here for which somebody answers: by their paths in the container, those on this host.
    pub devices: Rules,
    /// Paths in the container for which somebody will say before the restart what is there.
    pub promised: Vec<PathBuf>,
    /// Names of sockets for which the same holds.
    pub promised_sockets: BTreeSet<Bytes>,
    /// What is to be in the job's network namespace.
    pub network: NetworkIs,
    /// CPU features that the job does not use, though it could have: by their names, or `all`.
    pub unused: Vec<String>,
    /// What else the job's names stand for here, said by those who answer for it: handles.
    pub bound: Vec<(Id, Id)>,
}

impl Options {
    /// What is wanted for the file at `path`.
    pub fn policy(&self, path: &Path) -> Changed {
        if self.devices.to_real(path).is_some() || self.promises(path) {
            // What is there is another one's business.
            return Changed::Ignore;
        }
        let named = self.changed_files.iter().find(|(file, _)| file == path);
        named.map_or(self.changed, |(_, policy)| *policy)
    }

    /// Whether somebody will say what is at `path`.
    pub fn promises(&self, path: &Path) -> bool {
        self.promised.iter().any(|promised| path.starts_with(promised))
    }
}

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

/// What was done.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// How long all of it took.
    pub total: Duration,
    /// Processes of the job.
    pub processes: usize,
    /// Threads of the job.
    pub threads: usize,
    /// Size of the memory that was read.
    pub bytes: u64,
    /// What the job's ids stand for now; to be kept with the job's state.
    #[serde(skip)]
    pub table: Table,
}

/// Checks everything that can be known before the first process exists.
///
/// # Errors
/// The image can't be read, or is damaged.
pub fn check(image: &Image, options: &Options) -> Result<Vec<Problem>, Error> {
    fault::point("restore:check")?;
    let mut job = Job::read(image)?;
    let table: Table = image.json("table.json")?;
    image.json::<Clocks>(Clocks::FILE)?;
    tmpfs::Contents::open(image)?;
    let here = Host::here()?;
    let hosts = image.manifest().host.problems(&here, &options.unused);
    let inside = in_the_vdso(&job, image, &here);
    let bridge = match Bridge::over(image, &mut job.layouts) {
        Err(Error::Unsupported(why)) => Some(why),
        other => other.map(|_| None)?,
    };
    let bridge =
        bridge.as_deref().and_then(|why| why.split_once(": ")).map(|(what, why)| (what.into(), why.into()));
    let lacking = job.cpu.iter().filter_map(|(tid, cpu)| {
        let missing = cpu.extended.missing(Layout::host());
        (!missing.is_empty())
            .then(|| (format!("thread {tid}"), format!("this CPU lacks {}", missing.join(", "))))
    });
    let timers =
        job.timers.iter().filter_map(|(pid, timers)| Some((format!("process {pid}"), timers.check().err()?)));
    let all = hosts
        .into_iter()
        .chain(bridge)
        .chain(inside)
        .chain(lacking)
        .chain(timers)
        .chain(limits(&job)?)
        .chain(homeless(&table, options));
    Ok(all.map(|(what, why)| Problem { what, why }).collect())
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
            let why = format!("it was {real} at the checkpoint, and is nothing here: say --map {id}=DEVICE");
            Some((id.to_string(), why))
        }
        _ => None,
    };
    table.rows().into_iter().filter_map(missing).collect()
}

/// Binds the devices and sockets that the job had, and those that it has from now on.
fn bind(table: &mut Table, options: &Options, now: Time) -> Result<(), Error> {
    let had = table.awaited().into_iter().filter_map(|id| match id {
        Id::Device(path) => Some((options.devices.to_real(path.as_path())?, path)),
        _ => None,
    });
    let new = options.devices.iter().map(|rule| (rule.to.clone(), rule.from.clone().into()));
    let all: BTreeMap<Bytes, PathBuf> = had.chain(new).map(|(real, path)| (path, real)).collect();
    for (path, real) in all {
        let bound = table.bind(&Id::Device(path), &Id::Device(real.into()), now);
        bound.map_err(|e| Error::Damaged(format!("table.json: {e}")))?;
    }
    for (name, peer) in &options.sockets {
        let bound = table.bind(&Id::Socket(name.clone()), &Id::Socket(peer.name()), now);
        bound.map_err(|e| Error::Damaged(format!("table.json: {e}")))?;
    }
    for (id, real) in &options.bound {
        table.bind(id, real, now).map_err(|e| Error::Damaged(format!("table.json: {e}")))?;
    }
    Ok(())
}

/// Checks what can be known when the sandbox stands, in which `init` waits, and nothing of the job is there yet. A restart
/// begins with the same.
///
/// # Errors
/// The image can't be read, or is damaged; the kernel's.
pub fn look_around(image: &Image, init: Pid, options: &Options) -> Result<Vec<Problem>, Error> {
    misfits(&Job::read(image)?, &namespaces(image)?, init, options)
}

/// The numbers that the process which is to become the first one has for the mount namespaces of the job.
fn namespaces(image: &Image) -> Result<Vec<Namespace<RawFd>>, Error> {
    let changes: mounts::Changes = image.json(mounts::FILE)?;
    changes.check().map_err(|why| Error::Damaged(format!("{}: {why}", mounts::FILE)))?;
    Ok(mounts::numbers(changes.namespaces()))
}

fn misfits(
    job: &Job,
    namespaces: &[Namespace<RawFd>],
    init: Pid,
    options: &Options,
) -> Result<Vec<Problem>, Error> {
    let roots = mounts::roots(init, namespaces, &mut |fd| take(init, fd))?;
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
    let status = Status::parse(&std::fs::read(&path).doing(|| format!("read {path}"))?);
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
    let own = Status::parse(&std::fs::read(path).doing(|| format!("read {path}"))?);
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

/// `linux/capability.h`.
const CAP_SYS_RESOURCE: u32 = 24;

/// What the process that is to become the job's first one needs of the image inside the sandbox. It can't open the
/// image itself: it may be in a user namespace, for whose root the files are another user's.
#[derive(Debug, Default)]
pub struct Baggage {
    tmpfs: tmpfs::Contents,
    mounts: mounts::Changes,
}

impl Baggage {
    /// Reads and opens it, before there is a sandbox.
    ///
    /// # Errors
    /// Those of the image.
    pub fn open(image: &Image) -> Result<Baggage, Error> {
        fault::point("restore:tmpfs")?;
        let mounts: mounts::Changes = image.json(mounts::FILE)?;
        mounts.check().map_err(|why| Error::Damaged(format!("{}: {why}", mounts::FILE)))?;
        Ok(Baggage { tmpfs: tmpfs::Contents::open(image)?, mounts })
    }
}

/// What a process that is to become the job's first one does inside the sandbox: contents of file systems, and what the
/// job had changed about its mounts. `made` are the paths at which the sandbox has mounted a new tmpfs. The answer is the
/// mount namespaces of the job, for which it is to have the numbers from [`HATCH`] on.
///
/// # Errors
/// The kernel's, the image's.
pub fn inside<'p>(
    baggage: &Baggage,
    made: impl IntoIterator<Item = &'p Path>,
) -> Result<mounts::Namespaces, Error> {
    tmpfs::restore(&baggage.tmpfs, made)?;
    mounts::restore(&baggage.mounts, &baggage.tmpfs)
}

/// Makes `init`, which waits at the other end of `hatch`, the job of `image`, and lets the job go.
///
/// # Errors
/// What [`look_around`] finds, the kernel's, the image's. What has been made dies with ckrun, or with `init`.
pub fn restore(
    image: &Image,
    init: Pid,
    hatch: OwnedFd,
    options: &Options,
    events: &mut dyn Events,
) -> Result<Report, Error> {
    let began = Instant::now();
    let mut job = Job::read(image)?;
    let bridge = Bridge::over(image, &mut job.layouts)?;
    let mut table: Table = image.json("table.json")?;

    let namespaces = namespaces(image)?;
    let problems = misfits(&job, &namespaces, init, options)?;
    if !problems.is_empty() {
        let list: Vec<String> = problems.iter().map(ToString::to_string).collect();
        return Err(Error::Unsupported(list.join("; ")));
    }
    fault::point("restore:seize")?;
    let mut making = Making::begin(&job, image, bridge, init, hatch, namespaces)?;
    fault::point("restore:files")?;
    making.files(options)?;
    fault::point("restore:tree")?;
    making.tree(events)?;
    fault::point("restore:threads")?;
    making.threads()?;
    fault::point("restore:state")?;
    making.state()?;

    let now = Time::now();
    let number = table.generation().saturating_add(1);
    table.rebind(Generation::here(number, now)?).map_err(|e| Error::Damaged(format!("table.json: {e}")))?;
    bind(&mut table, options, now)?;
    let mut seen = live::look(&making.processes(), live::depth(init)?)?;
    job.files.show(&mut seen);
    table.observe(&seen, now).map_err(|e| Error::Damaged(format!("table.json: {e}")))?;
    if let Some(id) = table.awaited().first() {
        return Err(Error::Damaged(format!("table.json: nobody in tasks.json has the id {id}")));
    }
    events.restart()?;

    fault::point("restore:registers")?;
    making.registers()?;
    events.running(&table, &mut making)?;
    fault::point("restore:release")?;
    let rubble = making.wake(init)?;
    let bytes = making.bytes;
    making.release()?;
    drop(rubble);
    Ok(Report { total: began.elapsed(), processes: job.members.len(), threads: job.cpu.len(), bytes, table })
}

//! A checkpoint: the story of how a running job becomes an image.
//!
//! Until the image is complete nothing of the job is given up. Whatever fails before, and if it is ckrun that is killed,
//! the job goes on, and there is no image.

use crate::capture::Capture;
use crate::clocks::Clocks;
use crate::events::Events;
use crate::image::{Manifest, Writer};
use crate::memory::{self, Census};
use crate::namespace::Common;
use crate::proc::Stat;
use crate::resource::Blocker;
use crate::seize::{Frozen, descendants};
use crate::snapshot::Snapshot;
use crate::status::Status;
use crate::storing::{Load, Storing};
use crate::table::{Generation, Seen, Table, Time};
use crate::visit::stay_on_this_cpu;
use crate::{Error, fault, fd, tmpfs, unusual};
use nix::errno::Errno;
use nix::unistd::Pid;
use serde::Serialize;
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// What is wanted.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// The directory that becomes the image.
    pub image: PathBuf,
    /// The job goes on afterwards.
    pub leave_running: bool,
    /// It was found frozen, and is to be so again when it goes on.
    pub frozen: bool,
    /// What is known of the job's ids since its first start; None for a job of which nothing was kept.
    pub table: Option<Table>,
    /// All processes of the job, as ckrun sees their ids, if the caller knows them (by their cgroup): with it those are
    /// found that the first process has not begotten.
    pub members: Vec<Pid>,
}

impl Options {
    /// The job goes on while its image is still being written, from a copy. One that was frozen has no hurry; and a copy
    /// is reaped by its parent, for which that must run.
    fn goes_on(&self) -> bool {
        self.leave_running && !self.frozen
    }
}

/// What was done.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// How long the job stood still.
    pub frozen: Duration,
    /// How long all of it took.
    pub total: Duration,
    /// Processes in the image.
    pub processes: usize,
    /// Threads in the image.
    pub threads: usize,
    /// Size of the image, in bytes.
    pub bytes: u64,
    /// Bytes of memory in it.
    pub memory: u64,
    /// Bytes of memory that were all zeroes, and are not in it.
    pub zeroes: u64,
}

/// The most bytes of a deleted file that an image carries: 1 GiB.
const DELETED: u64 = 1 << 30;
/// How often, and after what time, to look again at processes that share their memory.
const LOOKS: u32 = 5;
const VFORK: Duration = Duration::from_millis(2);

/// Names everything that stands in the way of a checkpoint, while the job runs on.
///
/// # Errors
/// The kernel's.
pub fn survey(init: Pid, members: &[Pid]) -> Result<Vec<Blocker>, Error> {
    let mut blockers = tmpfs::survey(init)?;
    blockers.extend(strangers(init, members));
    let mut census = Census::new(init, DELETED)?;
    let namespaces = Common::of(init)?;
    let processes = descendants(init);
    blockers.extend(fd::survey(&processes)?);
    blockers.extend(unusual_shapes(&processes)?);
    for host in processes {
        if Stat::of(host).is_none_or(|stat| stat.ended()) {
            continue;
        }
        let Ok(text) = std::fs::read(format!("/proc/{host}/status")) else { continue };
        let pid = Status::parse(&text).ns_pid.last().copied().unwrap_or(0);
        let comm = std::fs::read_to_string(format!("/proc/{host}/comm")).unwrap_or_default();
        blockers.extend(namespaces.left_by(host, pid, || comm.trim_end().to_owned())?);
        match memory::survey(host, pid, comm.trim_end(), &mut census) {
            Ok(found) => blockers.extend(found),
            // One that has ended meanwhile, or is about to, is in nobody's way.
            Err(e) if matches!(e.errno, Errno::ENOENT | Errno::ESRCH) => {}
            Err(_) if Stat::of(host).is_none_or(|stat| stat.ended()) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(blockers)
}

/// Processes that were brought in from outside: their parent would not be there at a restart.
fn strangers(init: Pid, members: &[Pid]) -> Vec<Blocker> {
    let known: BTreeSet<Pid> = members.iter().copied().collect();
    let stranger = |&host: &Pid| {
        let stat =
            Stat::of(host).filter(|stat| !stat.ended() && host != init && !known.contains(&stat.parent))?;
        let status = Status::parse(&std::fs::read(format!("/proc/{host}/status")).ok()?);
        // A child that was made since the list was read has a parent in the job all the same.
        if Status::parse(&std::fs::read(format!("/proc/{}/status", stat.parent)).ok()?).ns_pid.len()
            >= status.ns_pid.len()
        {
            return None;
        }
        let comm = std::fs::read_to_string(format!("/proc/{host}/comm")).unwrap_or_default();
        Some(Blocker {
            pid: status.ns_tgid.last().copied().unwrap_or(0),
            comm: comm.trim_end().to_owned(),
            what: "its parent".into(),
            why: "it is outside the container, as that of whatever `ckrun exec` starts".into(),
            remedy: Some("wait for its end, or end it".into()),
        })
    };
    members.iter().filter_map(stranger).collect()
}

/// A process that has just been made by vfork(2) has its parent's memory only until it executes another program.
fn unusual_shapes(processes: &[Pid]) -> Result<Vec<Blocker>, Error> {
    let named = |&host: &Pid| {
        let status = Status::parse(&std::fs::read(format!("/proc/{host}/status")).ok()?);
        let comm = std::fs::read_to_string(format!("/proc/{host}/comm")).unwrap_or_default();
        Some((host, status.ns_tgid.last().copied().unwrap_or(0), comm.trim_end().to_owned()))
    };
    let look = || unusual::blockers(&processes.iter().filter_map(named).collect::<Vec<_>>());
    let mut found = look()?;
    for _ in 0..LOOKS {
        if found.is_empty() {
            break;
        }
        std::thread::sleep(VFORK);
        let still = look()?;
        found.retain(|blocker| still.contains(blocker));
    }
    Ok(found)
}

/// Writes the job whose first process is `init` to an image, and ends it unless it is to go on. `extra` are files that
/// the image is to have besides.
///
/// # Errors
/// What stands in the way ([`Error::Blocked`]), the kernel's, the image's; the job runs then.
pub fn checkpoint(
    init: Pid,
    options: &Options,
    extra: &[(&str, Vec<u8>)],
    events: &mut dyn Events,
) -> Result<Report, Error> {
    let began = Instant::now();
    fault::point("checkpoint:look")?;
    refuse(survey(init, &options.members)?)?;
    let mut image = Writer::create(&options.image)?;
    for (name, bytes) in extra {
        image.bytes(name, bytes)?;
    }
    let manifest = Manifest::new(options.table.as_ref().map_or(0, Table::generation))?;
    events.presuspend()?;

    fault::point("checkpoint:seize")?;
    let cpu = stay_on_this_cpu()?;
    let clocks = Clocks::of(init)?;
    let frozen = Frozen::stop(init, || events.seized())?;
    let mut steps = Steps { init, options, clocks, cpu, copies: Vec::new() };
    let mut written = steps.write(frozen, &mut image, events);
    if let Err((frozen, _)) = &mut written
        && let Some(frozen) = frozen.take()
    {
        events.resume()?;
        frozen.release();
    }
    for copy in steps.copies {
        if let Err(e) = copy.discard(cpu) {
            log::warn!("{e}");
        }
    }
    let (frozen, stood, mut report) = written.map_err(|(_, e)| e)?;
    fault::point("checkpoint:commit")?;
    let committed = match image.commit(manifest) {
        Ok(committed) => committed,
        Err(e) => {
            if frozen.is_some() {
                events.resume()?;
            }
            return Err(e.into());
        }
    };
    report.bytes = committed.manifest.size();

    fault::point("checkpoint:committed")?;
    events.committed(&options.image)?;
    report.frozen = stood;
    if let Some(frozen) = frozen {
        report.frozen = frozen.frozen_for();
        if options.leave_running {
            events.resume()?;
            frozen.release();
        } else {
            fault::point("checkpoint:kill")?;
            frozen.kill()?;
            events.exit();
        }
    }
    report.total = began.elapsed();
    Ok(report)
}

/// The stopped job, unless it goes on already; how long it stood still then; and what was done.
type Written = (Option<Frozen>, Duration, Report);

/// What the steps between the stop and the commit have in common.
struct Steps<'a> {
    init: Pid,
    options: &'a Options,
    clocks: Clocks,
    cpu: usize,
    /// Copies of the processes, to be read in their stead.
    copies: Vec<Snapshot>,
}

impl Steps<'_> {
    /// Everything between the stop and the commit. After an error the job comes back if it does not go on already.
    fn write(
        &mut self,
        mut frozen: Frozen,
        image: &mut Writer,
        events: &mut dyn Events,
    ) -> Result<Written, (Option<Frozen>, Error)> {
        let (capture, storing, loads) = match self.capture(&mut frozen, image, events) {
            Ok(captured) => captured,
            Err(e) => return Err((Some(frozen), e)),
        };
        let mut report = Report {
            frozen: Duration::ZERO,
            total: Duration::ZERO,
            processes: frozen.processes.len(),
            threads: frozen.threads().count(),
            bytes: 0,
            memory: 0,
            zeroes: 0,
        };
        if !self.options.goes_on() {
            return match finish(capture, storing, image, &mut report) {
                Ok(()) => Ok((Some(frozen), Duration::ZERO, report)),
                Err(e) => Err((Some(frozen), e)),
            };
        }
        if let Err(e) = fault::point("checkpoint:resume").map_err(Error::from).and_then(|()| events.resume())
        {
            return Err((Some(frozen), e));
        }
        let stood = frozen.frozen_for();
        frozen.release();
        storing
            .beside(events, |_, give| {
                loads.into_iter().for_each(give);
                Ok(())
            })
            .and_then(|((), storing)| finish(capture, storing, image, &mut report))
            .map(|()| (None, stood, report))
            .map_err(|e| (None, e))
    }

    /// All that must be read while the job stands still. What is left to be stored of its memory comes back.
    fn capture(
        &mut self,
        frozen: &mut Frozen,
        image: &mut Writer,
        events: &mut dyn Events,
    ) -> Result<(Capture, Storing, Vec<Load>), Error> {
        fault::point("checkpoint:capture")?;
        let mut storing = Storing::begin(image, frozen.processes.len() == 1 && !self.options.goes_on())?;
        let mut loads = Vec::new();
        let capture = if self.options.goes_on() {
            let capture = self.state(frozen, image, events, &mut |load| loads.push(load))?;
            loads.iter().try_for_each(|load| storing.lost_by_copy(load))?;
            capture
        } else {
            let state =
                |events: &mut dyn Events, give: &mut dyn FnMut(Load)| self.state(frozen, image, events, give);
            let (capture, stored) = storing.beside(events, state)?;
            storing = stored;
            capture
        };
        fault::point("checkpoint:memory")?;
        storing.shared(&capture.census)?;
        Ok((capture, storing, loads))
    }

    /// All but the memory.
    fn state(
        &mut self,
        frozen: &mut Frozen,
        image: &mut Writer,
        events: &mut dyn Events,
        give: &mut dyn FnMut(Load),
    ) -> Result<Capture, Error> {
        let mut capture = Capture::begin(self.init, DELETED, self.cpu)?;
        capture.processes(frozen, self.options.goes_on().then_some(&mut self.copies), give)?;
        refuse(std::mem::take(&mut capture.blockers))?;
        let files = fd::capture(frozen, &|device, inode| capture.census.find(device, inode))?;
        files.write(image)?;
        let mut table = self.options.table.clone().map_or_else(first_table, Ok)?;
        let mut seen = Seen::stopped(frozen);
        files.files.show(&mut seen);
        table.observe(&seen, Time::now()).map_err(|e| Error::Damaged(e.to_string()))?;
        image.json("table.json", &table)?;
        image.json(Clocks::FILE, &self.clocks)?;
        events.precheckpoint(&self.options.image)?;

        fault::point("checkpoint:tmpfs")?;
        tmpfs::capture(self.init, image)?;
        Ok(capture)
    }
}

/// Writes what is known when all memory is stored.
fn finish(
    mut capture: Capture,
    storing: Storing,
    image: &mut Writer,
    report: &mut Report,
) -> Result<(), Error> {
    fault::point("checkpoint:write")?;
    (report.memory, report.zeroes) = (storing.written, storing.dropped);
    image.index(&storing.found(&mut capture.job.layouts))?;
    capture.job.objects = capture.census.objects().to_vec();
    capture.job.write(image)
}

fn refuse(blockers: Vec<Blocker>) -> Result<(), Error> {
    if blockers.is_empty() { Ok(()) } else { Err(Error::Blocked(blockers)) }
}

fn first_table() -> Result<Table, Error> {
    Ok(Table::new(Generation::here(0, Time::now())?))
}

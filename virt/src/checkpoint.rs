//! A checkpoint: the story of how a running job becomes an image.
//!
//! Until the image is complete nothing of the job is given up. Whatever fails before, and if it is ckrun that is killed,
//! the job goes on, and there is no image.

use crate::capture::Capture;
use crate::cgroups::{self, Home, Thawed};
use crate::clocks::Clocks;
use crate::events::Events;
use crate::image::{Bytes, Manifest, Writer};
use crate::listing::list;
use crate::mounts::Places;
use crate::network::Given;
use crate::owned::{Outward, Owned};
use crate::resource::Blocker;
use crate::seize::{Frozen, Process};
use crate::snapshot::Snapshot;
use crate::still::Still;
use crate::storing::{Load, Storing};
use crate::survey::survey;
use crate::table::{Generation, Seen, Table, Time};
use crate::visit::stay_on_this_cpu;
use crate::{Error, arrivals, fault, fd, memory, mounts, network, tmpfs};
use nix::unistd::Pid;
use serde::Serialize;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// What is wanted.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// The directory that becomes the image.
    pub image: PathBuf,
    /// An image that is there already is replaced, when the new one is complete.
    pub replace: bool,
    /// The job goes on afterwards.
    pub leave_running: bool,
    /// It was found frozen, and is to be so again when it goes on.
    pub frozen: bool,
    /// What is known of the job's ids since its first start; None for a job of which nothing was kept.
    pub table: Option<Table>,
    /// All processes of the job, as ckrun sees their ids, if the caller knows them (by their cgroup): with it those are
    /// found that the first process has not begotten.
    pub members: Vec<Pid>,
    /// The caller has installed a seccomp filter with a listener.
    pub listener: bool,
    /// The instructions of a filter that the caller has installed before the job was there, and installs again in the
    /// sandbox of a restart: code, skip if true, skip if false, operand.
    pub asks: Option<Vec<(u16, u8, u8, u32)>>,
    /// Where the sandbox has mounted something, if the caller knows that.
    pub places: Option<Places>,
    /// It stands still until the image is complete, even if it goes on afterwards: others save what belongs to it.
    pub stand: bool,
    /// What to do with connections to somebody outside for whom nobody answers.
    pub outward: Outward,
    /// The name of a unix socket outside of the job, connections to which it finds closed after a restart.
    pub closing: Option<Bytes>,
    /// The addresses by which the job knows its own ends of connections that were made anew ([`crate::fd::Renewed`]), by
    /// the cookies of their sockets.
    pub locals: BTreeMap<u64, SocketAddr>,
    /// What is in the job's network namespace goes with it, but for what the sandbox of a restart brings there; None if that
    /// is not the job's, or is to be left out.
    pub network: Option<Given>,
    /// The container's own cgroups, for what is below them; none if that is to be left out.
    pub cgroups: Vec<Home>,
    /// What is set in the container's own cgroups goes with the job, too.
    pub own_cgroups: bool,
}

impl Options {
    /// The paths for which somebody else answers.
    pub(crate) fn owned(&self) -> Owned {
        let mut owned = self.table.as_ref().map(Owned::of).unwrap_or_default();
        owned.locals.clone_from(&self.locals);
        owned.outward = self.outward;
        owned.closing.clone_from(&self.closing);
        owned.network = self.network.is_some();
        owned.mounts = self.places.is_some();
        owned.wall = self.network.is_none() && !self.leave_running;
        owned
    }

    /// The job goes on while its image is still being written, from a copy. One that was frozen has no hurry; and a copy
    /// is reaped by its parent, for which that must run.
    fn goes_on(&self) -> bool {
        self.leave_running && !self.frozen && !self.stand
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
pub(crate) const DELETED: u64 = 1 << 30;

/// A thread for the memory is not worth its start for so few processes with so few pages (16 MiB).
const FEW: usize = 4;
const LITTLE: u64 = 4096;

/// How often to let a job go on that has something that no image can hold, but not for long, and for how long at first
/// and at most: what was sent to a server that has not accepted the connection yet can't be read.
const TRIES: u32 = 20;
const MOMENT: Duration = Duration::from_millis(1);
const LONG_MOMENT: Duration = Duration::from_millis(32);

/// Writes the job whose first process is `init` to an image, and ends it unless it is to go on. `extra` are files that
/// the image is to have besides.
///
/// # Errors
/// What stands in the way ([`Error::Blocked`], and if it does so again and again [`Error::Passing`]), the kernel's, the
/// image's; the job runs then.
pub fn checkpoint(
    init: Pid,
    options: &Options,
    extra: &[(&str, Vec<u8>)],
    events: &mut dyn Events,
) -> Result<Report, Error> {
    let mut moment = MOMENT;
    for _ in 1..TRIES {
        match attempt(init, options, extra, events) {
            // One that was found frozen does not go on.
            Err(e) if e.passes() && !options.frozen => {
                log::debug!("not now: {e}");
                std::thread::sleep(moment);
                moment = LONG_MOMENT.min(2 * moment);
            }
            answer => return answer,
        }
    }
    attempt(init, options, extra, events)
}

fn attempt(
    init: Pid,
    options: &Options,
    extra: &[(&str, Vec<u8>)],
    events: &mut dyn Events,
) -> Result<Report, Error> {
    let began = Instant::now();
    fault::point("checkpoint:look")?;
    let listed = list(init);
    survey(init, &listed, options, true)?.none()?;
    let begin = if options.replace { Writer::replace } else { Writer::create };
    let mut image = begin(&options.image)?;
    for (name, bytes) in extra {
        image.bytes(name, bytes)?;
    }
    let manifest = Manifest::new(options.table.as_ref().map_or(0, Table::generation))?;
    events.presuspend()?;

    fault::point("checkpoint:seize")?;
    let cpu = stay_on_this_cpu()?;
    let clocks = Clocks::of(init)?;
    let mut thawed = Thawed::default();
    let frozen = Frozen::stop(init, listed, || {
        events.seized()?;
        thawed = Thawed::below(&options.cgroups)?;
        Ok(())
    })?;
    let connections = fd::Connections::default();
    let mut steps = Steps { init, options, clocks, cpu, copies: Vec::new(), connections, thawed };
    let mut written = steps.write(frozen, &mut image, events);
    if let Err((frozen, _)) = &mut written
        && let Some(mut frozen) = frozen.take()
    {
        steps.resume(&mut frozen, events)?;
        frozen.release();
    }
    for copy in std::mem::take(&mut steps.copies) {
        if let Err(e) = copy.discard(cpu) {
            log::warn!("{e}");
        }
    }
    let (mut frozen, stood, mut report) = written.map_err(|(_, e)| e)?;
    fault::point("checkpoint:commit")?;
    let committed = match image.commit(manifest) {
        Ok(committed) => committed,
        Err(e) => {
            if let Some(frozen) = &mut frozen {
                steps.resume(frozen, events)?;
            }
            return Err(e.into());
        }
    };
    report.bytes = committed.manifest.size();

    fault::point("checkpoint:committed")?;
    let still = frozen.as_mut().map(|frozen| frozen as &mut dyn Still);
    if let Err(e) = events.committed(&options.image, still) {
        if let Some(mut frozen) = frozen {
            steps.resume(&mut frozen, events)?;
            frozen.release();
        }
        return Err(e);
    }
    report.frozen = stood;
    if let Some(mut frozen) = frozen {
        report.frozen = frozen.frozen_for();
        if options.leave_running {
            steps.resume(&mut frozen, events)?;
            frozen.release();
        } else {
            fault::point("checkpoint:kill")?;
            frozen.doom()?;
            steps.connections.silence()?;
            events.doomed();
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
    /// The job's TCP connections.
    connections: fd::Connections,
    /// What the job itself had frozen.
    thawed: Thawed,
}

impl Steps<'_> {
    /// As [`Options::goes_on`]; nor is a part of it frozen, of which the copies would be frozen, too.
    fn goes_on(&self) -> bool {
        self.options.goes_on() && self.thawed.is_empty()
    }

    /// Before the job is let go as it was.
    fn resume(&mut self, frozen: &mut Frozen, events: &mut dyn Events) -> Result<(), Error> {
        events.resume(frozen)?;
        self.thawed.again();
        Ok(())
    }

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
        if !self.goes_on() {
            return match finish(capture, storing, image, &mut report) {
                Ok(()) => Ok((Some(frozen), Duration::ZERO, report)),
                Err(e) => Err((Some(frozen), e)),
            };
        }
        let resumed =
            fault::point("checkpoint:resume").map_err(Error::from).and_then(|()| events.resume(&mut frozen));
        if let Err(e) = resumed {
            return Err((Some(frozen), e));
        }
        let (stood, small) = (frozen.frozen_for(), small(&frozen));
        frozen.release();
        storing
            .beside(events, small, |_, give| {
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
        let mut storing = Storing::begin(image, frozen.processes.len() == 1 && !self.goes_on())?;
        let mut loads = Vec::new();
        let capture = if self.goes_on() {
            let capture = self.state(frozen, image, events, &mut |load| loads.push(load))?;
            loads.iter().try_for_each(|load| storing.lost_by_copy(load))?;
            capture
        } else {
            let small = small(frozen);
            let state =
                |events: &mut dyn Events, give: &mut dyn FnMut(Load)| self.state(frozen, image, events, give);
            let (capture, stored) = storing.beside(events, small, state)?;
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
        let spaces = mounts::Space::all(&frozen.running())?;
        let mut capture = Capture::begin(self.init, &spaces, DELETED, self.cpu)?;
        capture.job.filters.foreign.clone_from(&self.options.asks);
        capture.processes(frozen, self.goes_on().then_some(&mut self.copies), give)?;
        refuse(std::mem::take(&mut capture.blockers))?;
        let files = fd::capture(frozen, &spaces, &self.options.owned(), &|device, inode| {
            capture.census.find(device, inode)
        })?;
        files.write(image)?;
        capture.census.name_builds()?;
        let mut table = self.options.table.clone().map_or_else(first_table, Ok)?;
        let mut seen = Seen::stopped(frozen);
        files.files.show(&mut seen);
        self.connections = files.connections;
        table.observe(&seen, Time::now()).map_err(|e| Error::Damaged(e.to_string()))?;
        image.json("table.json", &table)?;
        image.json(Clocks::FILE, &self.clocks)?;
        image.bytes(memory::bridge::FILE, &memory::bridge::code()?)?;
        events.precheckpoint(image, frozen)?;

        fault::point("checkpoint:tmpfs")?;
        let mounted = spaces.first().map_or_else(Vec::new, |space| fd::mounted(space));
        let places = self.options.places.as_ref();
        let mut changed = mounts::survey(self.init, &spaces, &mounted, places, &files.nooks)?;
        refuse(std::mem::take(&mut changed.blockers))?;
        tmpfs::capture(self.init, &mounted, &changed, image)?;
        image.json(mounts::FILE, &changed.changes)?;
        fault::point("checkpoint:network")?;
        if let Some(given) = &self.options.network {
            let hosts: Vec<Pid> = frozen.processes.iter().map(|process| process.stopped.host).collect();
            let (network, blockers) = network::capture(self.init, &hosts, &mounted, given)?;
            refuse(blockers)?;
            capture.job.network = network;
        }
        let residents = frozen.running();
        refuse(cgroups::survey(&residents, &self.options.cgroups)?)?;
        let tids =
            frozen.threads().map(|thread| (thread.stopped.host.as_raw(), thread.stopped.tid)).collect();
        let whole = self.options.own_cgroups;
        capture.job.cgroups = cgroups::capture(self.init, &self.options.cgroups, whole, &tids, &self.thawed)?;
        arrivals::note(frozen, &mut capture.job)?;
        Ok(capture)
    }
}

/// Few processes, and little memory.
fn small(frozen: &Frozen) -> bool {
    // The second number of statm is that of resident pages (proc_pid_statm(5)).
    let resident = |process: &Process| -> Option<u64> {
        let text = crate::proc::read(&format!("/proc/{}/statm", process.stopped.host)).ok()?;
        std::str::from_utf8(&text).ok()?.split(' ').nth(1)?.parse().ok()
    };
    frozen.processes.len() <= FEW
        && frozen.processes.iter().map(|process| resident(process).unwrap_or(0)).sum::<u64>() < LITTLE
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

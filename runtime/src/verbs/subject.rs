//! A job that is about to be written to an image: what `checkpoint` and `migrate` have in common.

use super::carry::{CgroupsMode, absolute, own_pids, to_virt};
use super::{Context, lock, party, require};
use crate::cgroup::Cgroups;
use crate::config::Ask;
use crate::criu::inventory;
use crate::error::{Error, Result};
use crate::plugin::Failed;
use crate::progress::Progress;
use crate::sandbox::guardian::{Charge, Guardian};
use crate::sandbox::{destroy, netdev, places, seccomp};
use crate::state::{Entry, State};
use crate::status::Status;
use crate::supervisor::{Client, Record};
use ckrun_plugin::After;
use ckrun_virt::checkpoint::{Options, Report, checkpoint};
use ckrun_virt::events::Events;
use ckrun_virt::image::Writer;
use ckrun_virt::listing::list;
use ckrun_virt::mounts::Places;
use ckrun_virt::owned::Outward;
use ckrun_virt::resource::Blocker;
use ckrun_virt::still::Still;
use ckrun_virt::survey::survey;
use ckrun_virt::table::Table;
use ckrun_virt::{Process, fault};
use std::path::Path;

/// Somebody for whom the image is made.
pub trait Taker {
    /// The image is to stay when ckrun comes to a sudden end after it has been completed.
    fn keeps(&self) -> bool {
        true
    }

    /// The image is complete, and the job stands still. If this fails the job goes on.
    fn committed(&mut self, _image: &Path) -> Result<()> {
        Ok(())
    }

    /// The job is about to be killed, whatever happens.
    fn doomed(&mut self) {}
}

impl Taker for () {}

/// A job, and where its image is to be. Nobody else changes its container.
#[derive(Debug)]
pub struct Subject {
    entry: Entry,
    /// What is known of its container.
    pub state: State,
    init: Process,
    options: Options,
    /// What is known of its plugins.
    record: Option<Record>,
}

impl Subject {
    /// Finds container `id`, whose job runs or is paused.
    ///
    /// # Errors
    /// There is none, its job has ended, or it is of a kind that can't be written to an image.
    pub fn find(
        context: &Context,
        verb: &'static str,
        id: &str,
        image: &Path,
        leave_running: bool,
        outward: Outward,
    ) -> Result<Subject> {
        let (entry, state, status) = lock(context, id)?;
        require(verb, id, status, &[Status::Running, Status::Paused])?;
        let spec = entry.spec()?;
        own_pids(&spec)?;
        let table = Table::read(entry.dir())?;
        // What config.json says of filters holds for a job that was started by it.
        let restored = table.as_ref().is_some_and(|table| table.generation() > 0);
        let notifies = || spec.lx().and_then(|l| l.seccomp().as_ref()).is_some_and(seccomp::notifies);
        let gone = || Error::WrongState { verb, id: id.to_owned(), status: Status::Stopped };
        let init = state.process().ok_or_else(gone)?;
        let image = absolute(image)?;
        let record = party::record(&entry, &state)?;
        let mut table = table.map_or_else(|| super::ids::first(&state), Ok)?;
        record.as_ref().map_or(Ok(()), |record| record.show(&mut table))?;
        let options = Options {
            replace: inventory::is_of(&image, id),
            image,
            leave_running,
            frozen: status == Status::Paused,
            members: state.cgroups.pids()?,
            listener: !restored && notifies(),
            asks: record.as_ref().and_then(Record::filter).map(|filter| filter.code()),
            places: places::of(&spec).map(|places| Places { root: Some(state.rootfs.clone()), ..places }),
            outward,
            closing: record
                .as_ref()
                .and_then(|record| record.job_api.as_ref())
                .map(|socket| socket.name.as_str().into()),
            locals: record.as_ref().map(Record::ends).unwrap_or_default(),
            network: netdev::given(&spec),
            cgroups: state.cgroups.homes(),
            own_cgroups: false,
            table: Some(table),
            stand: record.as_ref().is_some_and(|record| !record.plugins.is_empty()),
        };
        Ok(Subject { entry, state, init, options, record })
    }

    /// Leaves out what is in the job's network namespace.
    pub fn without_network(mut self) -> Subject {
        self.options.network = None;
        self
    }

    /// Takes as much of the job's cgroups along as is wanted.
    pub fn with_cgroups(mut self, mode: CgroupsMode) -> Subject {
        self.options.own_cgroups = mode.whole();
        if mode == CgroupsMode::Ignore {
            self.options.cgroups.clear();
        }
        self
    }

    /// What stands in the way.
    ///
    /// # Errors
    /// The kernel's.
    pub fn survey(&self) -> Result<Vec<Blocker>> {
        let init = self.init.pid();
        let refused = survey(init, &list(init), &self.options, false)?;
        Ok([refused.lasting, refused.passing].concat())
    }

    /// Writes the image, and ends the job unless it is to go on.
    ///
    /// # Errors
    /// What stands in the way; the kernel's, the image's. The job goes on then as it was.
    pub fn take(self, taker: &mut dyn Taker) -> Result<Report> {
        let Subject { entry, state, init, options, record } = self;
        let extra = [("config.json", entry.config()?), (inventory::FILE, inventory::of(&state.id)?)];
        let plugins = match record {
            Some(record) => Some(Plugins::of(record, party::reach(&entry, &state)?)),
            None => None,
        };
        // After a sudden end of ckrun no half image stays. The job needs nobody's help: the kernel lets traced tasks go.
        let image = options.image.as_os_str();
        let charge = if taker.keeps() { Charge::Image(image) } else { Charge::Passing(image) };
        let guardian = Guardian::post(entry.held(), charge)?;
        if let Some(init) = state.init {
            guardian.tell(init)?;
        }
        let frozen = options.frozen.then_some(&state.cgroups);
        let mut watcher =
            Watcher { progress: Progress::new("checkpoint"), frozen, taker, plugins, failed: None };
        let written = checkpoint(init.pid(), &options, &extra, &mut watcher);
        let written = watcher.end(written);
        drop(watcher);
        drop(guardian);
        if let Some(cgroups) = frozen
            && (written.is_err() || options.leave_running)
            && !cgroups.frozen()?
        {
            cgroups.freeze()?;
        }
        let report = written?;
        if !options.leave_running {
            fault::point("checkpoint:destroy")?;
            // The image is good and the job has ended: what can't be cleared away is no reason to call this a failure.
            if let Err(e) = destroy::forget(entry, &state) {
                log::warn!("{e}");
            }
        }
        Ok(report)
    }
}

/// What a checkpoint has to do at the moments of its story.
struct Watcher<'a> {
    progress: Progress,
    /// The cgroups of a job that was found frozen.
    frozen: Option<&'a Cgroups>,
    taker: &'a mut dyn Taker,
    plugins: Option<Plugins>,
    /// Why the story was ended, if that was here.
    failed: Option<Error>,
}

/// The plugins of the job.
struct Plugins {
    record: Record,
    client: Client,
    /// They have been told that the job is about to be stopped, and not yet that it goes on or is gone.
    told: bool,
    committed: bool,
}

impl Plugins {
    fn of(record: Record, client: Client) -> Plugins {
        Plugins { record, client, told: false, committed: false }
    }

    fn presuspend(&mut self) -> Result<()> {
        self.told = true;
        self.client.presuspend()
    }

    fn precheckpoint(&mut self, image: &mut Writer, job: &mut dyn Still) -> Result<()> {
        let folders = party::make_folders(image, &self.record.plugins)?;
        let saved = self.client.precheckpoint(folders, job)?;
        party::adopt(image, &saved)
    }

    fn committed(&mut self, image: &Path, job: Option<&mut dyn Still>) -> Result<()> {
        let failed = self.client.committed(image, job)?;
        self.committed = true;
        tell(failed);
        Ok(())
    }

    /// The job goes on: nothing that happens now can stop it.
    fn resume(&mut self, job: Option<&mut dyn Still>) {
        if std::mem::take(&mut self.told) {
            let after = if self.committed { After::Checkpoint } else { After::Failure };
            warn(self.client.resume(after, job));
        }
    }

    fn exit(&mut self) {
        self.told = false;
        warn(self.client.end());
    }
}

fn tell(failed: Vec<Failed>) {
    failed.iter().for_each(|failed| log::warn!("{failed}"));
}

fn warn(told: Result<Vec<Failed>>) {
    match told {
        Ok(failed) => tell(failed),
        Err(e) => log::warn!("{e}"),
    }
}

impl Watcher<'_> {
    /// Does something with the plugins, and keeps the reason for which it ends the story.
    fn with_plugins(
        &mut self,
        work: impl FnOnce(&mut Plugins) -> Result<()>,
    ) -> Result<(), ckrun_virt::Error> {
        let Some(plugins) = &mut self.plugins else { return Ok(()) };
        work(plugins).map_err(|e| {
            let text = e.to_string();
            self.failed = Some(e);
            ckrun_virt::Error::Unsupported(text)
        })
    }

    /// The story has come to its end. Plugins that have not heard how do so now.
    fn end(&mut self, written: Result<Report, ckrun_virt::Error>) -> Result<Report> {
        if written.is_err()
            && let Some(plugins) = &mut self.plugins
        {
            plugins.resume(None);
        }
        written.map_err(|e| self.failed.take().unwrap_or(e.into()))
    }
}

impl Events for Watcher<'_> {
    fn presuspend(&mut self) -> Result<(), ckrun_virt::Error> {
        self.with_plugins(Plugins::presuspend)
    }

    fn seized(&mut self) -> Result<(), ckrun_virt::Error> {
        self.frozen.map_or(Ok(()), |cgroups| cgroups.thaw().map_err(to_virt))
    }

    fn precheckpoint(&mut self, image: &mut Writer, job: &mut dyn Still) -> Result<(), ckrun_virt::Error> {
        self.with_plugins(|plugins| plugins.precheckpoint(image, job))
    }

    fn resume(&mut self, job: &mut dyn Still) -> Result<(), ckrun_virt::Error> {
        if let Some(plugins) = &mut self.plugins {
            plugins.resume(Some(job));
        }
        self.frozen.map_or(Ok(()), |cgroups| cgroups.freeze().map_err(to_virt))
    }

    fn committed(&mut self, image: &Path, job: Option<&mut dyn Still>) -> Result<(), ckrun_virt::Error> {
        self.with_plugins(|plugins| plugins.committed(image, job))?;
        self.taker.committed(image).map_err(to_virt)
    }

    fn doomed(&mut self) {
        if let Some(plugins) = &mut self.plugins
            && let Err(e) = plugins.client.doomed()
        {
            log::warn!("{e}");
        }
        self.taker.doomed();
    }

    fn exit(&mut self) {
        if let Some(plugins) = &mut self.plugins {
            plugins.exit();
        }
    }

    fn progress(&mut self, done: u64, total: u64) {
        self.progress.update(done, total);
    }
}

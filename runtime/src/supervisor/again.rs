//! What was killed is started again: the supervisor itself, by its keeper or by the next verb, and a plugin alone.

use super::keeper::{Kept, Thing};
use super::launch;
use super::record::{Record, Stage};
use super::story::{Story, out_of_turn, tell};
use crate::error::{Error, Result};
use crate::plugin::peer::Peer;
use crate::plugin::{Company, Failed};
use crate::state::InitProcess;
use ckrun_plugin::Job;
use std::collections::BTreeMap;

impl Story {
    /// Goes on in the place of a supervisor that was killed; the keeper has held what it had.
    ///
    /// # Errors
    /// There is nothing to go on with.
    pub fn take_over(&mut self, kept: &mut Kept) -> Result<()> {
        let home = &self.desk.home;
        let record = Record::read(home)?.ok_or_else(|| out_of_turn("a job without plugins"))?;
        let stage = if record.stage == Stage::Doomed { Stage::Doomed } else { Stage::Lives };
        let init = record.init.ok_or_else(|| out_of_turn("a job without a process"))?;
        self.desk.record = record;
        // It may have ended meanwhile.
        let ended = self.made(init).is_err();
        // The job waits for this, and it needs no plugin.
        if let Some(listener) = kept.calls.take() {
            self.desk.listen(listener)?;
        }
        if let Some(socket) = kept.job.take() {
            self.desk.keep_job_api(socket);
        }
        // For a job that has ended nobody is to try for ever.
        if !ended {
            self.desk.shelf.put(Thing::Feet, None)?;
        }
        let failed = self.go_on()?;
        self.stage = stage;
        let news = "the supervisor of the job's plugins was killed, and another one has taken over";
        let news = std::iter::once(news.to_owned()).chain(failed.iter().map(ToString::to_string));
        self.desk.record.news = news.collect();
        tell(failed);
        if ended {
            self.ended();
        }
        self.sync();
        self.desk.save();
        Ok(())
    }

    /// The same for a verb that has found nobody: the keeper was killed too.
    pub(super) fn recover(&mut self, job: Job, init: InitProcess) -> Result<Vec<Failed>> {
        let keeper = self.desk.record.keeper;
        let record = Record::read(&self.desk.home)?.ok_or_else(|| out_of_turn("a job without plugins"))?;
        if record.over.is_some() {
            let why = "the plugins have let go of this job: it was not made to the end, or has ended";
            return Err(Error::Usage(why.into()));
        }
        let generation = record.job.generation;
        self.desk.record = Record { job: Job { generation, ..job }, keeper, ..record };
        self.made(init)?;
        if self.desk.record.filter().is_some() {
            log::warn!(
                "system calls that the killed one answered fail with ENOSYS until the job is restarted"
            );
        }
        self.go_on()
    }

    /// New processes for all plugins.
    fn go_on(&mut self) -> Result<Vec<Failed>> {
        let desk = &mut self.desk;
        desk.record.event = Some(ckrun_plugin::Event::Recover);
        desk.record.killed += 1;
        launch::sweep_plugins(&desk.record)?;
        let manifests = desk.record.plugins.iter().map(|plugin| plugin.manifest.clone()).collect();
        self.company = Some(Company::orphaned(desk.record.job.clone(), manifests));
        (self.stage, self.done, self.tied) = (Stage::Lives, true, true);
        let failed = self.mend();
        // That all were killed with it goes without saying.
        self.desk.record.news.clear();
        self.desk.record.event = None;
        Ok(failed)
    }

    /// A new process for each plugin that has none any more.
    pub(super) fn mend(&mut self) -> Vec<Failed> {
        let gone = |peer: &Peer| Some((peer.name().to_owned(), peer.gone()?.to_owned()));
        let gone: Vec<_> = self.company.iter().flat_map(|all| all.peers()).filter_map(gone).collect();
        let plugins = self.desk.record.plugins.iter();
        let in_force: BTreeMap<String, Vec<_>> =
            plugins.map(|plugin| (plugin.name().to_owned(), plugin.bindings.clone())).collect();
        let Ok((company, desk)) = self.company() else { return Vec::new() };
        let in_force = |name: &str| in_force.get(name).cloned().unwrap_or_default();
        let mut logs: BTreeMap<_, _> =
            gone.iter().map(|(name, _)| (name.clone(), desk.logs.open(name))).collect();
        let log = |name: &str| {
            let log = logs.remove(name).ok_or_else(|| out_of_turn("two plugins of one name"))?;
            Ok(log?)
        };
        let (bound, failed) = company.mend(in_force, log, desk);
        let failed = self.rebind(bound, failed);
        let well = |name: &str| failed.iter().all(|failed| failed.plugin != name);
        let again = gone.iter().filter(|(name, _)| well(name));
        let news = again.map(|(name, why)| format!("plugin {name} had gone: {why}; it was started again"));
        self.desk.record.news.extend(news);
        failed
    }
}

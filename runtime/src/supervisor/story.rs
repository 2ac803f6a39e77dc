//! What the supervisor does for a verb: the stories of the plugins of a job.

use super::desk::Desk;
use super::keeper::Thing;
use super::record::{Plugin, Record, Stage};
use super::request::{self, Failures, Mended, Plugins, Request};
use super::{PLUGINS, names};
use crate::error::{Error, Result};
use crate::plugin::{Company, Failed, Manifest, Why};
use crate::state::InitProcess;
use ckrun_plugin::{After, Event, Job, Reason};
use ckrun_virt::{Doing, Process};
use nix::unistd::Pid;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

/// How long the end of a killed process may take.
const DYING: Duration = Duration::from_secs(10);

/// The plugins of a job, and all that is needed for them.
#[derive(Debug)]
pub struct Story {
    /// The plugins, once they are started.
    pub company: Option<Company>,
    /// The rest.
    pub desk: Desk,
    pub(super) stage: Stage,
    /// The verb that made the job has succeeded.
    pub(super) done: bool,
    /// The plugins have been told of a job in earnest.
    pub(super) tied: bool,
}

/// What a request is answered with: an object and descriptors.
pub(super) type Answered = Result<(Value, Vec<OwnedFd>)>;

impl Story {
    /// Nothing has been told yet.
    pub fn new(desk: Desk) -> Story {
        Story { company: None, desk, stage: Stage::Making, done: false, tied: false }
    }

    /// The plugins have been told that the job is gone.
    pub fn is_over(&self) -> bool {
        self.stage == Stage::Over
    }

    /// Whether the end of the job is the supervisor's to see: no verb is about to say what it means.
    pub fn awaits_end(&self) -> bool {
        match self.stage {
            Stage::Lives => self.done || self.desk.owner.is_none(),
            Stage::Doomed => self.desk.owner.is_none(),
            _ => false,
        }
    }

    /// Does what a verb asks for.
    ///
    /// # Errors
    /// What it is answered.
    pub fn answer(&mut self, request: Request, fds: Vec<OwnedFd>) -> Answered {
        self.desk.record.event = event(&request);
        self.desk.save();
        let answered = self.carry_out(request, fds);
        self.desk.record.event = None;
        self.sync();
        self.desk.save();
        answered
    }

    fn carry_out(&mut self, request: Request, fds: Vec<OwnedFd>) -> Answered {
        let nothing = |()| (json!({}), Vec::new());
        let failures = |failed| Ok((json!(Failures::of(failed)), Vec::new()));
        match request {
            Request::Begin { job } => self.begin(job, fds).map(nothing),
            Request::Recover { job, init } => failures(self.recover(job, init)?),
            Request::Mend {} => {
                let failures = Failures::of(self.mend());
                let news = std::mem::take(&mut self.desk.record.news);
                Ok((json!(Mended { news, failures }), Vec::new()))
            }
            Request::Init {} => {
                self.tied = true;
                let (company, desk) = self.company()?;
                let attached = company.init(desk);
                self.attach(attached.map_err(Error::from))
            }
            Request::Check { folders } => {
                let kept = self.kept(folders, fds)?;
                let (company, desk) = self.company()?;
                failures(company.check(kept, desk)?)
            }
            Request::Restart { folders } => {
                let kept = self.kept(folders, fds)?;
                self.tied = true;
                let (company, desk) = self.company()?;
                let attached = company.restart(kept, desk);
                self.attach(attached)
            }
            Request::JobApi { images } => self.desk.open_job_api(images).map(nothing),
            Request::Routes { routes } => {
                self.desk.record.routes = routes;
                Ok(nothing(()))
            }
            Request::Renewed { connections } => {
                self.desk.renew(connections);
                Ok(nothing(()))
            }
            Request::Made { init } => {
                self.made(init)?;
                for listener in fds {
                    self.desk.shelf.put(Thing::Calls, Some(listener.as_fd()))?;
                    self.desk.listen(listener)?;
                }
                self.desk.part_with_sockets();
                Ok(nothing(()))
            }
            Request::Running { after } => {
                let (company, desk) = self.company()?;
                failures(company.running(after, desk))
            }
            Request::Stay {} => {
                self.stage = Stage::Lives;
                Ok(nothing(()))
            }
            Request::Done {} => {
                self.done = true;
                Ok(nothing(()))
            }
            Request::Presuspend {} => {
                if self.stage != Stage::Lives {
                    return Err(out_of_turn("presuspend"));
                }
                self.stage = Stage::Checkpoint { committed: false };
                self.desk.before()?;
                let (company, desk) = self.company()?;
                Ok(nothing(company.presuspend(desk)?))
            }
            Request::Precheckpoint { folders } => self.precheckpoint(folders, fds),
            Request::Committed { image } => {
                self.stage = Stage::Checkpoint { committed: true };
                let (company, desk) = self.company()?;
                failures(company.committed(&image, desk))
            }
            Request::Resume { after } => failures(self.resume(after)),
            Request::Doomed {} => {
                self.stage = Stage::Doomed;
                Ok(nothing(()))
            }
            Request::End {} => failures(self.end()?),
            Request::Socket { name } => {
                let fd = self.desk.sockets.get(&name).map(|fd| fd.try_clone());
                let fd = fd.transpose().doing(|| "duplicate a plugin's socket")?;
                Ok((json!({}), fd.into_iter().collect()))
            }
        }
    }

    /// The plugins have been told that there is no job.
    pub(super) fn over(&mut self, reason: Reason) {
        self.stage = Stage::Over;
        self.desk.record.over = Some(reason);
    }

    pub(super) fn company(&mut self) -> Result<(&mut Company, &mut Desk)> {
        match &mut self.company {
            Some(company) => Ok((company, &mut self.desk)),
            None => Err(out_of_turn("plugins that were not started")),
        }
    }

    fn begin(&mut self, job: Job, fds: Vec<OwnedFd>) -> Result<()> {
        let sheet = fds.into_iter().next().ok_or_else(|| out_of_turn("plugins that nobody has named"))?;
        let mut plugins: Plugins = request::read_sheet(sheet)?;
        plugins.iter_mut().for_each(Plugin::named);
        if plugins.len() > PLUGINS {
            return Err(Error::Usage(format!("a job has at most {PLUGINS} plugins, not {}", plugins.len())));
        }
        let (event, keeper) = (Some(Event::Hello), self.desk.record.keeper);
        self.desk.record = Record { event, keeper, ..Record::new(job, plugins) };
        self.desk.save();
        self.start()
    }

    /// Starts the plugins of the record.
    fn start(&mut self) -> Result<()> {
        let desk = &mut self.desk;
        let manifests: Vec<Manifest> =
            desk.record.plugins.iter().map(|plugin| plugin.manifest.clone()).collect();
        let mut logs = BTreeMap::new();
        for manifest in &manifests {
            logs.insert(manifest.name.clone(), desk.logs.open(&manifest.name)?);
        }
        let log = |name: &str| logs.remove(name).ok_or_else(|| out_of_turn("two plugins of one name"));
        let started = Company::start(desk.record.job.clone(), manifests, log, desk);
        match started {
            Ok(company) => {
                self.company = Some(company);
                Ok(())
            }
            Err(e) => {
                self.over(Reason::Failed);
                Err(e)
            }
        }
    }

    pub(super) fn made(&mut self, init: InitProcess) -> Result<()> {
        let process = Process::open(Pid::from_raw(init.pid), init.started);
        self.desk.record.init = Some(init);
        let ended = || Error::InitEnded { during: "its making", how: "early".into() };
        self.desk.job = Some(process.ok_or_else(ended)?);
        Ok(())
    }

    /// The job goes on after a checkpoint, or after one that has failed.
    fn resume(&mut self, after: After) -> Vec<Failed> {
        let Stage::Checkpoint { committed } = self.stage else { return Vec::new() };
        self.stage = Stage::Lives;
        let Ok((company, desk)) = self.company() else { return Vec::new() };
        let (bound, failed) = match after {
            After::Checkpoint if committed => company.resume(After::Checkpoint, desk),
            _ => company.roll_back(desk),
        };
        let after = if committed { after } else { After::Failure };
        let mut failed = self.rebind(bound, failed);
        if let Ok((company, desk)) = self.company() {
            failed.extend(company.running(after, desk));
        }
        self.desk.after();
        // Why one can't be told any more has been said.
        failed.retain(|failed| !matches!(failed.why, Why::Gone(_)));
        failed
    }

    /// A verb says that the job is gone.
    fn end(&mut self) -> Result<Vec<Failed>> {
        if let (Stage::Lives | Stage::Checkpoint { .. }, Some(job)) = (self.stage, &self.desk.job)
            && !job.wait(Duration::from_millis(100))?
        {
            return Err(Error::Usage("the job has not ended".into()));
        }
        Ok(self.exit(if self.done { Reason::Ended } else { Reason::Failed }))
    }

    /// The verb whose story was under way has gone.
    pub fn orphaned(&mut self, process: &Process) {
        if let Stage::Checkpoint { .. } = self.stage {
            // The kernel closes the files of a process, and only then lets go of those that it traced.
            let _ = process.wait(DYING);
        }
        let failed = match self.stage {
            Stage::Making => self.exit(Reason::Failed),
            Stage::Checkpoint { committed } => {
                self.resume(if committed { After::Checkpoint } else { After::Failure })
            }
            Stage::Doomed => {
                let _ = self.desk.job.as_ref().map(|job| job.wait(DYING));
                self.exit(Reason::Checkpointed)
            }
            Stage::Lives => {
                // Killed before it could say so; the job does not know.
                let lives =
                    self.desk.job.as_ref().is_some_and(|job| matches!(job.wait(Duration::ZERO), Ok(false)));
                self.done |= lives;
                Vec::new()
            }
            Stage::Over => Vec::new(),
        };
        tell(failed);
        self.sync();
    }

    /// The job has ended.
    pub fn ended(&mut self) {
        let reason = if self.done { Reason::Ended } else { Reason::Failed };
        tell(self.exit(reason));
        self.sync();
    }

    fn exit(&mut self, reason: Reason) -> Vec<Failed> {
        let reason = if self.stage == Stage::Doomed { Reason::Checkpointed } else { reason };
        // That they have been told is written down when they have: one who takes over in the middle tells them again.
        self.desk.record.event = Some(Event::Exit);
        self.desk.save();
        let tied = self.tied;
        let tell = |(company, desk): (&mut Company, &mut Desk)| match tied {
            true => company.exit(reason, desk),
            false => company.part(),
        };
        let failed = self.company().map(tell).unwrap_or_default();
        self.over(reason);
        self.desk.record.event = None;
        self.sync();
        failed
    }

    /// Looks after plugins between events.
    pub fn attend(&mut self) {
        if let Some(company) = &mut self.company {
            company.attend(&mut self.desk);
        }
        self.sync();
    }

    /// Takes over how the plugins are.
    pub(super) fn sync(&mut self) {
        self.desk.record.stage = self.stage;
        let peers = self.company.iter().flat_map(|company| company.peers());
        for peer in peers {
            let Some(plugin) = self.desk.record.plugin(peer.name()) else { continue };
            if peer.gone().is_none() {
                plugin.version.clone_from(&peer.welcome.version);
                plugin.exit = Some(peer.limit(Event::Exit).as_secs_f64());
            }
            plugin.gone = peer.gone().map(str::to_owned);
            plugin.last = peer.last().map(|(event, took)| (event, took.as_secs_f64()));
        }
    }

    /// Removes what nobody else will: the verb that made the job was killed before there was anything of a container.
    pub fn leave(mut self) {
        self.desk.save();
        let home = &self.desk.home;
        let _ = std::fs::remove_file(home.join(names::SOCKET));
        if self.desk.record.over != Some(Reason::Failed) || home.join("state.json").exists() {
            return;
        }
        let Ok(dir) = std::fs::File::open(home) else { return };
        // Whoever holds it clears it away himself.
        let lock = nix::fcntl::Flock::lock(dir, nix::fcntl::FlockArg::LockExclusiveNonblock);
        if lock.is_ok() && !home.join("state.json").exists() {
            let _ = std::fs::remove_dir_all(home);
        }
    }
}

pub(super) fn tell(failed: Vec<Failed>) {
    for failed in failed {
        log::warn!("{failed}");
    }
}

/// Only a ckrun of another version asks like that.
pub(super) fn out_of_turn(what: &str) -> Error {
    Error::Usage(format!("supervisor: {what}: out of turn"))
}

/// The event that a request is about.
fn event(request: &Request) -> Option<Event> {
    match request {
        Request::Begin { .. } => Some(Event::Hello),
        Request::Recover { .. } | Request::Mend {} => Some(Event::Recover),
        Request::Init {} => Some(Event::Init),
        Request::Check { .. } => Some(Event::Check),
        Request::Restart { .. } => Some(Event::Restart),
        Request::Running { .. } => Some(Event::Running),
        Request::Presuspend {} => Some(Event::Presuspend),
        Request::Precheckpoint { .. } => Some(Event::Precheckpoint),
        Request::Committed { .. } => Some(Event::Committed),
        Request::Resume { .. } => Some(Event::Resume),
        Request::End {} => Some(Event::Exit),
        Request::Made { .. }
        | Request::JobApi { .. }
        | Request::Routes { .. }
        | Request::Renewed { .. }
        | Request::Stay {}
        | Request::Done {}
        | Request::Doomed {}
        | Request::Socket { .. } => None,
    }
}

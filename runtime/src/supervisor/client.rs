//! The verb's end of the talk with the supervisor.

use super::record::{Plugin, Saved};
use super::request::{self, Failures, Mended, Request, Tie, Tied};
use super::still;
use crate::error::{Error, Result};
use crate::intercept::Route;
use crate::plugin::Failed;
use crate::plugin::company::Folder;
use crate::state::InitProcess;
use ckrun_plugin::call::Call;
use ckrun_plugin::message::{Id, Message};
use ckrun_plugin::wire::{Broken, Incoming, Wire};
use ckrun_plugin::{After, Fault, Job};
use ckrun_virt::fd::Renewed;
use ckrun_virt::still::Still;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

/// A verb's hold on the supervisor of a job. When it is dropped in the middle of a story, the supervisor ends that.
#[derive(Debug)]
pub struct Client {
    wire: Wire,
    asked: u64,
}

impl Client {
    /// Speaks over this socket.
    pub fn new(socket: OwnedFd) -> Client {
        Client { wire: Wire::new(socket), asked: 0 }
    }

    /// Starts the plugins of a new or a restored job, and says hello.
    ///
    /// # Errors
    /// [`Error::Plugin`]; [`Error::Supervisor`]. The same holds for all that follow.
    pub fn begin(&mut self, job: Job, plugins: &[Plugin]) -> Result<()> {
        let sheet = request::sheet(&plugins)?;
        self.ask(&Request::Begin { job }, vec![sheet], None).map(drop)
    }

    /// Starts the plugins of a job whose supervisor was killed.
    pub fn recover(&mut self, job: Job, init: InitProcess) -> Result<Vec<Failed>> {
        self.failures(&Request::Recover { job, init }, Vec::new(), None)
    }

    /// Starts those plugins anew whose processes have ended, and says so. One that can't take over is of no use; the job goes
    /// on without it.
    pub fn mend(&mut self) -> Result<()> {
        let Mended { news, failures } = self.answer(&Request::Mend {}, Vec::new(), None)?;
        news.iter().for_each(|news| log::warn!("{news}"));
        failures.failed().iter().for_each(|failed| log::warn!("{failed}"));
        Ok(())
    }

    /// `init`: to what the plugins tie the job.
    pub fn init(&mut self) -> Result<Vec<Tie>> {
        self.answer::<Tied>(&Request::Init {}, Vec::new(), None).map(|tied| tied.ties)
    }

    /// `check`: what stands in the way of a restart.
    pub fn check(&mut self, folders: Vec<Folder>) -> Result<Vec<Failed>> {
        let (folders, fds) = split(folders);
        self.failures(&Request::Check { folders }, fds, None)
    }

    /// `restart`: to what the plugins tie the job here.
    pub fn restart(&mut self, folders: Vec<Folder>) -> Result<Vec<Tie>> {
        let (folders, fds) = split(folders);
        self.answer::<Tied>(&Request::Restart { folders }, fds, None).map(|tied| tied.ties)
    }

    /// The job may ask for checkpoints, which go to `images`.
    pub fn job_api(&mut self, images: PathBuf) -> Result<()> {
        self.ask(&Request::JobApi { images }, Vec::new(), None).map(drop)
    }

    /// Where what the job connects to is.
    pub fn routes(&mut self, routes: Vec<Route>) -> Result<()> {
        self.ask(&Request::Routes { routes }, Vec::new(), None).map(drop)
    }

    /// Connections of the job have been made anew.
    ///
    /// # Errors
    /// As of [`Client::begin`].
    pub fn renewed(&mut self, connections: Vec<Renewed>) -> Result<()> {
        self.ask(&Request::Renewed { connections }, Vec::new(), None).map(drop)
    }

    /// The sandbox stands. `listener` is that of the filter over what the supervisor answers.
    pub fn made(&mut self, init: InitProcess, listener: Option<OwnedFd>) -> Result<()> {
        self.ask(&Request::Made { init }, listener.into_iter().collect(), None).map(drop)
    }

    /// `running`, for a job that is about to run for the first time on this host.
    ///
    /// # Errors
    /// As [`Client::begin`]: that of the first plugin that failed.
    pub fn running(&mut self, after: After, job: Option<&mut dyn Still>) -> Result<()> {
        let failed = self.failures(&Request::Running { after }, Vec::new(), job)?;
        failed.into_iter().next().map_or(Ok(()), |failed| Err(failed.into()))
    }

    /// From now on the job needs no verb.
    pub fn stay(&mut self) -> Result<()> {
        self.ask(&Request::Stay {}, Vec::new(), None).map(drop)
    }

    /// The verb has succeeded.
    pub fn done(&mut self) -> Result<()> {
        self.ask(&Request::Done {}, Vec::new(), None).map(drop)
    }

    /// `presuspend`.
    pub fn presuspend(&mut self) -> Result<()> {
        self.ask(&Request::Presuspend {}, Vec::new(), None).map(drop)
    }

    /// `precheckpoint`: what the image is to have of the plugins.
    pub fn precheckpoint(&mut self, folders: Vec<Folder>, job: &mut dyn Still) -> Result<Vec<Saved>> {
        let (folders, fds) = split(folders);
        let (_, fds) = self.ask(&Request::Precheckpoint { folders }, fds, Some(job))?;
        let sheet = fds.into_iter().next().ok_or_else(|| lost(&Broken::Shape("lacks a descriptor")))?;
        request::read_sheet(sheet)
    }

    /// `committed`: the failures, which change nothing.
    pub fn committed(&mut self, image: &Path, job: Option<&mut dyn Still>) -> Result<Vec<Failed>> {
        self.failures(&Request::Committed { image: image.into() }, Vec::new(), job)
    }

    /// `resume` and `running`: the failures.
    pub fn resume(&mut self, after: After, job: Option<&mut dyn Still>) -> Result<Vec<Failed>> {
        self.failures(&Request::Resume { after }, Vec::new(), job)
    }

    /// The job is about to be killed, since its image has taken its place.
    pub fn doomed(&mut self) -> Result<()> {
        self.ask(&Request::Doomed {}, Vec::new(), None).map(drop)
    }

    /// `exit`: the job is gone, and so is the supervisor in a moment. The answer is the failures.
    pub fn end(&mut self) -> Result<Vec<Failed>> {
        self.failures(&Request::End {}, Vec::new(), None)
    }

    /// The connected socket that a plugin gave at `restart` for what the job calls `name`; None for one that has an
    /// address to connect to.
    pub fn socket(&mut self, name: &str) -> Result<Option<OwnedFd>> {
        let (_, fds) = self.ask(&Request::Socket { name: name.into() }, Vec::new(), None)?;
        Ok(fds.into_iter().next())
    }

    fn failures(
        &mut self,
        request: &Request,
        fds: Vec<OwnedFd>,
        job: Option<&mut dyn Still>,
    ) -> Result<Vec<Failed>> {
        self.answer::<Failures>(request, fds, job).map(Failures::failed)
    }

    fn answer<T: DeserializeOwned>(
        &mut self,
        request: &Request,
        fds: Vec<OwnedFd>,
        job: Option<&mut dyn Still>,
    ) -> Result<T> {
        let (value, _) = self.ask(request, fds, job)?;
        serde_json::from_value(value).map_err(|e| lost(&Broken::Json(e.to_string())))
    }

    /// Asks, and answers what the plugins ask of the job meanwhile.
    fn ask(
        &mut self,
        request: &Request,
        fds: Vec<OwnedFd>,
        mut job: Option<&mut dyn Still>,
    ) -> Result<(Value, Vec<OwnedFd>)> {
        self.asked += 1;
        let asked = Id::Number(self.asked);
        let (method, params) = request.words();
        let message = Message::Request { id: asked.clone(), method, params, fds: fds.len() };
        self.send(&message, fds)?;
        loop {
            let Incoming { message, fds } = self.wire.receive().map_err(|broken| lost(&broken))?;
            match message {
                Message::Answer { id, outcome, .. } if id == asked => {
                    return outcome.map(|value| (value, fds)).map_err(request::error);
                }
                Message::Request { id, method, params, .. } => {
                    let still: Option<&mut dyn Still> = match &mut job {
                        Some(job) => Some(&mut **job),
                        None => None,
                    };
                    let outcome = Call::parse(&method, params).and_then(|call| still::answer(still, call));
                    let outcome: Result<Value, Fault> = outcome.map(|answer| json!(answer));
                    self.send(&Message::Answer { id, outcome, fds: 0 }, Vec::new())?;
                }
                _ => {}
            }
        }
    }

    fn send(&mut self, message: &Message, fds: Vec<OwnedFd>) -> Result<()> {
        let sent = self.wire.queue(message, fds).and_then(|()| self.wire.flush(true));
        sent.map(drop).map_err(|broken| lost(&broken))
    }
}

fn split(folders: Vec<Folder>) -> (Vec<std::path::PathBuf>, Vec<OwnedFd>) {
    folders.into_iter().map(|folder| (folder.path, folder.fd)).unzip()
}

fn lost(broken: &Broken) -> Error {
    Error::Supervisor { why: format!("it {broken}") }
}

impl AsFd for Client {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.wire.as_fd()
    }
}

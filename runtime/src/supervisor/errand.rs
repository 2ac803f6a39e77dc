//! Checkpoints that the job asks for: each is a ckrun of its own, which comes back to the supervisor as every other does.

use super::desk::Desk;
use super::keeper::Thing;
use super::names;
use super::record::JobSocket;
use crate::error::{Error, Result};
use crate::job_api::{JobApi, LIMIT, Wish};
use ckrun_virt::{Doing, Process};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::unistd::Pid;
use std::fs::File;
use std::io::{Read, Seek};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

/// What a job asks for, and what is being done about it.
#[derive(Debug)]
pub(super) struct Errands {
    job: JobApi,
    /// The container's directory.
    home: PathBuf,
    /// Where the images go.
    images: PathBuf,
    errand: Option<Errand>,
}

/// A ckrun that writes an image.
#[derive(Debug)]
struct Errand {
    child: Child,
    process: Process,
    complaints: File,
}

impl Desk {
    /// Makes the socket for the job.
    ///
    /// # Errors
    /// The kernel's.
    pub(super) fn open_job_api(&mut self, images: PathBuf) -> Result<()> {
        let Self { home, record, .. } = self;
        let (job, name) = JobApi::bind(home, names::JOB_API, &record.job.id, record.job.generation)?;
        self.shelf.put(Thing::Job, Some(job.listener()))?;
        record.job_api = Some(JobSocket { name, images: images.clone() });
        self.errands = Some(Errands { job, home: home.clone(), images, errand: None });
        Ok(())
    }

    /// The socket of a supervisor that was killed. Its connections have ended.
    pub(super) fn keep_job_api(&mut self, listener: OwnedFd) {
        let Self { home, record, .. } = self;
        let Some(JobSocket { images, .. }) = &record.job_api else { return };
        let job = JobApi::over(listener, &record.job.id, record.job.generation);
        self.errands = Some(Errands { job, home: home.clone(), images: images.clone(), errand: None });
    }

    /// A checkpoint is about to be taken.
    ///
    /// # Errors
    /// The job does not agree.
    pub(super) fn before(&mut self) -> Result<()> {
        match self.errands.as_mut().map(|errands| errands.job.before(LIMIT)) {
            Some(Err(why)) => Err(Error::Usage(why)),
            _ => Ok(()),
        }
    }

    /// The job goes on here.
    pub(super) fn after(&mut self) {
        if let Some(errands) = &mut self.errands {
            errands.job.after();
        }
    }
}

impl Errands {
    pub(super) fn polled(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.job.polled().chain(self.errand.iter().map(|errand| errand.process.as_fd()))
    }

    /// Does what there is to do, without waiting.
    pub(super) fn attend(&mut self) {
        if let Some(wish) = self.job.attend() {
            let begun = self.begin(&wish);
            self.job.begun(begun.as_ref().map(drop).map_err(ToString::to_string));
            self.errand = begun.ok();
        }
        let over = |errand: &mut Errand| matches!(errand.child.try_wait(), Ok(Some(_)) | Err(_));
        if self.errand.as_mut().is_some_and(over)
            && let Some(errand) = self.errand.take()
        {
            self.job.ended(errand.outcome());
        }
    }

    fn begin(&self, wish: &Wish) -> Result<Errand> {
        let (Some(store), Some(id)) = (self.home.parent(), self.home.file_name()) else {
            return Err(Error::Usage("the container has no directory".into()));
        };
        let doing = || "start a checkpoint";
        let complaints = File::from(memfd_create(c"complaints", MFdFlags::MFD_CLOEXEC).doing(doing)?);
        let mut command = Command::new("/proc/self/exe");
        command.arg0("ckrun").arg("--root").arg(store).arg("checkpoint");
        command.arg("--image-path").arg(self.images.join(&wish.name));
        if wish.leave_running {
            command.arg("--leave-running");
        }
        command.arg(id).stdin(Stdio::null()).stdout(Stdio::null());
        let child = command.stderr(complaints.try_clone().doing(doing)?).spawn().doing(doing)?;
        // It is our child and has not been waited for, so the id is still its own.
        let process = Process::open_now(Pid::from_raw(child.id().cast_signed()));
        let process = process.ok_or_else(|| Error::Usage("a checkpoint ended at once".into()))?;
        Ok(Errand { child, process, complaints })
    }
}

impl Errand {
    /// How it ended; if badly, its last complaint.
    fn outcome(mut self) -> Result<(), String> {
        if self.child.wait().is_ok_and(|status| status.success()) {
            return Ok(());
        }
        let mut said = String::new();
        let read = self.complaints.rewind().and_then(|()| self.complaints.read_to_string(&mut said));
        let line = read.ok().and_then(|_| said.lines().last()).unwrap_or("ckrun was killed");
        Err(line.strip_prefix("error: ").unwrap_or(line).to_owned())
    }
}

//! What every room of this crate has in common: capture and restore of one kind of state.

use crate::program::{Answers, Program};
use crate::status::Status;
use crate::{Doing, Failure};
use nix::unistd::Pid;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fmt;

/// What is known of a stopped thread without asking it. Of a process, its leader stands for the whole. A survey of a
/// running job takes what is so at a moment for it.
#[derive(Debug, Clone)]
pub struct Stopped {
    /// Its id in ckrun's pid namespace.
    pub host: Pid,
    /// Its id in the job.
    pub tid: i32,
    /// Its process's id in the job.
    pub pid: i32,
    /// `/proc/TID/status`, read after it had stopped.
    pub status: Status,
}

impl Stopped {
    /// Reads `/proc/TID/NAME`.
    ///
    /// # Errors
    /// The kernel's, with the job's id of the thread.
    pub fn read(&self, name: &str) -> Result<Vec<u8>, Failure> {
        crate::proc::read(&format!("/proc/{}/{name}", self.host))
            .doing(|| format!("read {name} of task {}", self.tid))
    }

    /// Its command name.
    pub fn comm(&self) -> String {
        self.status.name.clone()
    }
}

/// One kind of state that a process or a thread has.
///
/// What the kernel shows to others is read from outside by [`Resource::capture`]. What only the task itself can say is
/// asked for in [`Resource::ask`], together with the questions of all other kinds, in a single [`Program`].
pub trait Resource: Serialize + DeserializeOwned + Sized {
    /// The calls and places that hold the answers.
    type Asked;

    /// Adds the questions.
    fn ask(program: &mut Program) -> Self::Asked;

    /// Reads the answers, and the rest from outside.
    ///
    /// # Errors
    /// What could not be read, and why.
    fn capture(task: &Stopped, asked: &Self::Asked, answers: &Answers) -> Result<Self, Failure>;

    /// Adds the calls that give the state to a new task. It still has every privilege of the container's first process,
    /// and no filter.
    fn restore(&self, program: &mut Program);
}

/// Something of a job that can't be carried into an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Blocker {
    /// The process's id in the job.
    pub pid: i32,
    /// Its command name.
    pub comm: String,
    /// Which thing: `fd 7: io_uring`.
    pub what: String,
    /// Why it can't be carried.
    pub why: String,
    /// What to do, when there is something: an option's name, say.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

impl fmt::Display for Blocker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "process {} ({}): {}: {}", self.pid, self.comm, self.what, self.why)?;
        self.remedy.as_ref().map_or(Ok(()), |remedy| write!(f, " ({remedy})"))
    }
}

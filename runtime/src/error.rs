//! Everything that a verb can fail with.
//!
//! An error says what, who, why and, where that helps, what to do. It travels up to `main`, which says it once, in
//! the form that `--log-format` asks for. The texts in quotation marks below are part of the contract: containerd,
//! podman and docker look for these words in what a runtime prints.

use ckrun_virt::Failure;
use ckrun_virt::error::text;
use nix::errno::Errno;
use std::ffi::OsString;
use std::path::PathBuf;

/// The result of anything in this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a verb failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// "does not exist" is what every client looks for.
    #[error("container {0:?} does not exist")]
    NoSuchContainer(String),

    #[error("container {0:?} already exists: choose another id, or `ckrun delete {0}` first")]
    IdTaken(String),

    #[error("invalid container id {id:?}: {why}")]
    InvalidId { id: String, why: &'static str },

    /// The container is in a state in which the verb makes no sense. For kill, containerd and podman take
    /// "container not running" as "it is gone already".
    #[error("cannot {verb} container {id:?}: {}", state_text(.status))]
    WrongState { verb: &'static str, id: String, status: crate::status::Status },

    #[error("container {id:?} is busy: another ckrun is at work on it")]
    Busy { id: String },

    /// Something in config.json (or in a process.json or resources.json) that can't be carried out.
    #[error("{field}: {why}")]
    Config { field: String, why: String },

    /// A JSON file that is not what it should be.
    #[error("{path}: {why}", path = path.display())]
    Json { path: PathBuf, why: String },

    #[error("{path}: {}", text(*errno), path = path.display())]
    File { path: PathBuf, errno: Errno },

    /// The command of the container can't be run; worded like Go's os/exec, because clients turn these words into
    /// the exit codes 126 and 127.
    #[error("exec: {command:?}: {why}")]
    Exec { command: String, why: String },

    #[error("hook {kind} {path}: {why}", path = path.display())]
    Hook { kind: &'static str, path: PathBuf, why: String },

    /// What another process of ckrun's, inside the sandbox or on another host, reported before it gave up.
    #[error("{0}")]
    Init(String),

    #[error("the container's init ended during {during}: {how}")]
    InitEnded { during: &'static str, how: String },

    /// Words on the command line that parse but don't go together.
    #[error("{0}")]
    Usage(String),

    #[error(transparent)]
    Sys(#[from] Failure),

    /// The file of a translation table.
    #[error(transparent)]
    Table(#[from] ckrun_virt::table::Unreadable),

    /// Ids that contradict each other.
    #[error("translation table: {0}")]
    Ids(#[from] ckrun_virt::table::Error),

    /// An image that can't be read.
    #[error(transparent)]
    Image(#[from] ckrun_virt::image::Error),

    /// What a checkpoint or a restart could not do.
    #[error(transparent)]
    Virt(#[from] ckrun_virt::Error),

    /// What a plugin of the job did wrong, or why it does not want a checkpoint.
    #[error(transparent)]
    Plugin(#[from] crate::plugin::Failed),

    /// The supervisor of a job's plugins has gone, or does not understand.
    #[error(
        "the supervisor of the job's plugins: {why}; the job is not harmed, and the next verb that needs the plugins starts another"
    )]
    Supervisor { why: String },

    /// A job has not moved to another host.
    #[error("migrate to {}: {why}; the job goes on here", host.to_string_lossy())]
    NotMoved { host: OsString, why: String },
    /// Another host has got a job, and has not said that it runs.
    #[error("migrate: {} was given the job and did not say that it runs: look there. The image is kept: {}",
        host.to_string_lossy(), image.display())]
    Unheard { host: OsString, image: PathBuf },
    /// What is known to stand in the way of a restart before anything of it was made.
    #[error("{image} can't be restored here:{}", list(.problems), image = image.display())]
    Unrestorable { image: PathBuf, problems: Vec<ckrun_virt::restore::Problem> },
}

impl Error {
    /// A field of config.json that can't be carried out, and the reason.
    pub fn config(field: impl Into<String>, why: impl Into<String>) -> Self {
        Error::Config { field: field.into(), why: why.into() }
    }

    /// A failed operation on a file.
    pub fn file(path: impl Into<PathBuf>, error: &std::io::Error) -> Self {
        let errno = error.raw_os_error().map_or(Errno::EIO, Errno::from_raw);
        Error::File { path: path.into(), errno }
    }
}

/// One on the same line, several each on a line of its own.
fn list(items: &[impl std::fmt::Display]) -> String {
    let separator = if items.len() == 1 { " " } else { "\n  " };
    items.iter().map(|item| format!("{separator}{item}")).collect()
}

fn state_text(status: &crate::status::Status) -> String {
    match status {
        crate::status::Status::Stopped => "container not running".into(),
        other => format!("container is {other}"),
    }
}

//! What verbs and the supervisor say to each other: the framing is that of plugins ([`Wire`]), requests go either way.
//!
//! A verb asks for one thing at a time. Until the answer comes the supervisor may ask it for what only the holder of a
//! stopped job can do: those are the plugins' calls as they are (`tasks`, `read`, `write`, `registers`).

use super::record::{Plugin, Saved};
use crate::error::{Error, Result};
use crate::intercept::Route;
use crate::plugin::{Failed, Why};
use crate::state::InitProcess;
use ckrun_plugin::binding::{Ioctl, Mount};
use ckrun_plugin::event::duration;
use ckrun_plugin::wire::Wire;
use ckrun_plugin::{After, Binding, Code, Event, Fault, Job};
use ckrun_virt::Doing;
use ckrun_virt::fd::Renewed;
use nix::sys::memfd::{MFdFlags, memfd_create};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::fd::OwnedFd;
use std::path::PathBuf;

/// What a verb asks for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "method", content = "params", rename_all = "kebab-case")]
pub enum Request {
    /// Start the plugins, which come in a [`sheet`], and say hello.
    Begin {
        /// The job.
        job: Job,
    },
    /// Start the plugins of the record: the supervisor before was killed.
    Recover {
        /// The job.
        job: Job,
        /// Its first process.
        init: InitProcess,
    },
    /// Start those plugins anew whose processes have ended; the answer is [`Mended`].
    Mend {},
    /// `init`; the answer is [`Tied`].
    Init {},
    /// `check`, with the plugins' folders; the answer is [`Failures`].
    Check {
        /// Their paths, in the order of the plugins.
        folders: Vec<PathBuf>,
    },
    /// `restart`, likewise; the answer is [`Tied`].
    Restart {
        /// Their paths, in the order of the plugins.
        folders: Vec<PathBuf>,
    },
    /// The job may ask for checkpoints.
    JobApi {
        /// The directory for them.
        images: PathBuf,
    },
    /// Where what the job connects to is.
    Routes {
        /// All of them.
        routes: Vec<Route>,
    },
    /// These connections of a job that is restored have been made anew.
    Renewed {
        /// They.
        connections: Vec<Renewed>,
    },
    /// The sandbox stands, and this is the job's first process. The listener of its filter comes along if it has one
    /// ([`crate::intercept`]).
    Made {
        /// It.
        init: InitProcess,
    },
    /// `running`, for a job that has not run on this host; the answer is [`Failures`].
    Running {
        /// From what it goes on.
        after: After,
    },
    /// From now on the job's life is that of the supervisor, and no longer the verb's.
    Stay {},
    /// The verb has done what it was to do.
    Done {},
    /// `presuspend`.
    Presuspend {},
    /// `precheckpoint`, with the plugins' folders; the answer has a [`sheet`] of what the image is to have of them.
    Precheckpoint {
        /// Their paths, in the order of the plugins.
        folders: Vec<PathBuf>,
    },
    /// `committed`; the answer is [`Failures`].
    Committed {
        /// The image.
        image: PathBuf,
    },
    /// `resume` and `running`: the job goes on; the answer is [`Failures`].
    Resume {
        /// After what.
        after: After,
    },
    /// The job will be killed, or dies with the verb: its image has taken its place.
    Doomed {},
    /// The job is gone: `exit`; the supervisor ends. The answer is [`Failures`].
    End {},
    /// The connected socket that a plugin has given for a virtual address; it comes with the answer.
    Socket {
        /// The virtual name.
        name: String,
    },
}

/// What a plugin has tied the job to.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Tie {
    /// Whose it is.
    pub plugin: String,
    /// The bindings. What came as a descriptor has the name that the kernel has for it.
    pub bindings: Vec<Binding>,
    /// Variables for the job's environment.
    pub env: BTreeMap<String, String>,
    /// Mounts for its sandbox.
    pub mounts: Vec<Mount>,
    /// Commands in which handles are to be translated.
    pub ioctls: Vec<Ioctl>,
}

/// An answer.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Tied {
    /// In the order of the plugins.
    pub ties: Vec<Tie>,
}

/// An answer: what has failed and changes nothing.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Failures {
    /// See [`Failure`].
    pub failures: Vec<Failure>,
}

/// An answer: what has happened since the last verb, and which plugins could not be started anew.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Mended {
    /// For a person.
    pub news: Vec<String>,
    /// See [`Failures`].
    pub failures: Failures,
}

/// A plugin has failed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Failure {
    plugin: String,
    event: Option<Event>,
    seconds: f64,
    why: String,
}

impl From<Failed> for Failure {
    fn from(failed: Failed) -> Failure {
        let Failed { plugin, event, after, why } = failed;
        Failure { plugin, event, seconds: after.as_secs_f64(), why: why.to_string() }
    }
}

impl From<Failure> for Failed {
    fn from(failure: Failure) -> Failed {
        let Failure { plugin, event, seconds, why } = failure;
        Failed { plugin, event, after: duration(seconds), why: Why::Quoted(why) }
    }
}

impl Failures {
    /// Those that were found.
    pub fn of(failed: Vec<Failed>) -> Failures {
        Failures { failures: failed.into_iter().map(Failure::from).collect() }
    }

    /// As they were found.
    pub fn failed(self) -> Vec<Failed> {
        self.failures.into_iter().map(Failed::from).collect()
    }
}

/// The plugins that a job is to have.
pub type Plugins = Vec<Plugin>;

/// What an image has of them.
pub type Image = Vec<Saved>;

/// An error on its way to the verb.
pub fn fault(error: Error) -> Fault {
    let text = error.to_string();
    let data = match error {
        Error::Plugin(failed) => serde_json::to_value(Failure::from(failed)).ok(),
        _ => None,
    };
    Fault { code: Code::Internal.number(), message: text, data }
}

/// The same at its end.
pub fn error(fault: Fault) -> Error {
    match fault.data.and_then(|data| serde_json::from_value::<Failure>(data).ok()) {
        Some(failure) => Failed::from(failure).into(),
        None => Error::Init(fault.message),
    }
}

/// A value that may be too large for a line goes as a file.
///
/// # Errors
/// The kernel's.
pub fn sheet(value: &impl Serialize) -> Result<OwnedFd> {
    let fd = memfd_create(c"plugins", MFdFlags::MFD_CLOEXEC).doing(|| "make a memfd")?;
    let mut file = File::from(fd);
    file.write_all(json!(value).to_string().as_bytes()).doing(|| "write to a memfd")?;
    Ok(file.into())
}

/// Reads one.
///
/// # Errors
/// [`Error::Json`].
pub fn read_sheet<T: DeserializeOwned>(fd: OwnedFd) -> Result<T> {
    let (mut file, mut text) = (File::from(fd), Vec::new());
    file.rewind().and_then(|()| file.read_to_end(&mut text)).doing(|| "read a memfd")?;
    let wrong =
        |e: serde_json::Error| Error::Json { path: "what ckrun says of plugins".into(), why: e.to_string() };
    serde_json::from_slice(&text).map_err(wrong)
}

impl Request {
    /// Its method and its params.
    pub fn words(&self) -> (String, Value) {
        let mut both = json!(self);
        (both["method"].as_str().unwrap_or_default().to_owned(), both["params"].take())
    }

    /// Reads one.
    ///
    /// # Errors
    /// [`Code::InvalidParams`].
    pub fn parse(method: &str, params: Value) -> Result<Request, Fault> {
        let request = serde_json::from_value(json!({"method": method, "params": params}));
        request.map_err(|e| Fault::new(Code::InvalidParams, format!("{method}: {e}")))
    }
}

/// One end, see the module.
pub type Line = Wire;

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn what_is_asked_is_understood() {
        let job = Job { id: "tb".into(), generation: 1, host: "h".into(), bundle: "/b".into() };
        let init = InitProcess { pid: 7, started: 9 };
        for request in [
            Request::Begin { job: job.clone() },
            Request::Recover { job, init },
            Request::Init {},
            Request::Precheckpoint { folders: vec!["/a".into()] },
            Request::Resume { after: After::Failure },
        ] {
            let (method, params) = request.words();
            assert!(params.is_object());
            assert_eq!(Request::parse(&method, params).unwrap(), request);
        }
        assert!(Request::parse("format-disk", json!({})).is_err());
    }

    #[test]
    fn an_error_keeps_its_plugin_event_and_seconds() {
        let why = Why::Refused(Fault::veto("busy"));
        let after = Duration::from_millis(250);
        let failed = Failed { plugin: "emu".into(), event: Some(Event::Presuspend), after, why };
        let text = failed.to_string();
        let Error::Plugin(there) = error(fault(failed.into())) else { panic!() };
        assert_eq!((there.to_string(), there.event), (text, Some(Event::Presuspend)));
        assert_eq!(error(fault(Error::Usage("no".into()))).to_string(), "no");
    }

    #[test]
    fn a_large_value_goes_as_a_file() {
        let value = "x".repeat(3 << 20);
        assert_eq!(read_sheet::<String>(sheet(&value).unwrap()).unwrap(), value);
    }
}

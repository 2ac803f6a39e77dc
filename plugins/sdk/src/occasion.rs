//! What an event says, and what `hello` and `precheckpoint` are answered with; for the others see
//! [`binding`](crate::binding).

use crate::binding::Binding;
use crate::event::{Deadlines, Event, Grant, known_deadlines};
use crate::fault::{Code, Fault};
use serde::de::{DeserializeOwned, Deserializer};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// The job that an event is about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    /// The container's id.
    pub id: String,
    /// How often it has been restarted.
    pub generation: u64,
    /// The name of this host.
    pub host: String,
    /// Its bundle on this host.
    pub bundle: PathBuf,
}

/// Who a plugin is in this job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Named {
    /// Its name, also that of its folder in an image.
    pub name: String,
    /// The options of the command line and of the manifest.
    #[serde(default)]
    pub options: BTreeMap<String, String>,
}

/// What `hello` has beside deadline and job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// The version of the protocol that ckrun speaks: major.minor.
    pub protocol: String,
    /// ckrun's own version.
    pub ckrun: String,
    /// The plugin, as ckrun knows it.
    pub plugin: Named,
    /// What it may do with the job.
    #[serde(default)]
    pub granted: Vec<Grant>,
}

/// Where a checkpoint is to be saved to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Precheckpoint {
    /// An empty directory of the image; also descriptor 0.
    pub folder: PathBuf,
}

/// A complete image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Committed {
    /// Its directory.
    pub image: PathBuf,
}

/// From what a job goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum After {
    /// From its first start (`running` only).
    Init,
    /// From a checkpoint.
    Checkpoint,
    /// From a checkpoint that failed.
    Failure,
    /// From a restart (`running` only).
    Restart,
}

/// What `resume` and `running` have beside deadline and job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Going {
    /// What was before.
    pub after: After,
}

/// What `check` and `restart` have beside deadline and job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Saved {
    /// What the plugin saved at `precheckpoint`; also descriptor 0, read-only.
    pub folder: PathBuf,
    /// What the answer to `precheckpoint` recorded.
    #[serde(default)]
    pub requirements: Map<String, Value>,
    /// The bindings at the checkpoint.
    #[serde(default)]
    pub bindings: Vec<Binding>,
}

/// Why a job is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Reason {
    /// It came to its end.
    Ended,
    /// It lives on in an image.
    Checkpointed,
    /// It could not be started or restarted.
    Failed,
}

/// What `exit` has beside deadline and job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// Why the job is gone.
    pub reason: Reason,
}

/// What `recover` has beside deadline and job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Recover {
    /// The bindings in force.
    #[serde(default)]
    pub bindings: Vec<Binding>,
}

/// An event with what it says beside deadline and job.
#[derive(Debug, Clone, PartialEq)]
pub enum Occasion {
    /// [`Event::Hello`].
    Hello(Hello),
    /// [`Event::Init`].
    Init,
    /// [`Event::Presuspend`].
    Presuspend,
    /// [`Event::Precheckpoint`].
    Precheckpoint(Precheckpoint),
    /// [`Event::Committed`].
    Committed(Committed),
    /// [`Event::Resume`].
    Resume(Going),
    /// [`Event::Check`].
    Check(Saved),
    /// [`Event::Restart`].
    Restart(Saved),
    /// [`Event::Running`].
    Running(Going),
    /// [`Event::Exit`].
    Exit(Exit),
    /// [`Event::Recover`].
    Recover(Recover),
}

/// The `params` of an event.
#[derive(Debug, Clone, PartialEq)]
pub struct Params {
    /// How long it may take, in seconds.
    pub deadline: f64,
    /// The job.
    pub job: Job,
    /// The rest.
    pub occasion: Occasion,
}

/// The members that every event has.
#[derive(Serialize, Deserialize)]
struct Common {
    deadline: f64,
    job: Job,
}

impl Occasion {
    /// Its name.
    pub fn event(&self) -> Event {
        match self {
            Occasion::Hello(_) => Event::Hello,
            Occasion::Init => Event::Init,
            Occasion::Presuspend => Event::Presuspend,
            Occasion::Precheckpoint(_) => Event::Precheckpoint,
            Occasion::Committed(_) => Event::Committed,
            Occasion::Resume(_) => Event::Resume,
            Occasion::Check(_) => Event::Check,
            Occasion::Restart(_) => Event::Restart,
            Occasion::Running(_) => Event::Running,
            Occasion::Exit(_) => Event::Exit,
            Occasion::Recover(_) => Event::Recover,
        }
    }
}

impl Params {
    /// As JSON.
    pub fn value(&self) -> Value {
        fn members(value: &impl Serialize) -> Map<String, Value> {
            match serde_json::to_value(value) {
                Ok(Value::Object(members)) => members,
                // All these are structures whose keys are strings.
                _ => Map::new(),
            }
        }
        let mut all = members(&Common { deadline: self.deadline, job: self.job.clone() });
        all.append(&mut match &self.occasion {
            Occasion::Init | Occasion::Presuspend => Map::new(),
            Occasion::Hello(it) => members(it),
            Occasion::Precheckpoint(it) => members(it),
            Occasion::Committed(it) => members(it),
            Occasion::Resume(it) | Occasion::Running(it) => members(it),
            Occasion::Check(it) | Occasion::Restart(it) => members(it),
            Occasion::Exit(it) => members(it),
            Occasion::Recover(it) => members(it),
        });
        Value::Object(all)
    }

    /// From JSON.
    ///
    /// # Errors
    /// [`Code::InvalidParams`] with the reason.
    pub fn parse(event: Event, params: Value) -> Result<Params, Fault> {
        fn part<T: DeserializeOwned>(event: Event, value: &Value) -> Result<T, Fault> {
            T::deserialize(value).map_err(|e| Fault::new(Code::InvalidParams, format!("{event}: {e}")))
        }
        let Common { deadline, job } = part(event, &params)?;
        let occasion = match event {
            Event::Hello => Occasion::Hello(part(event, &params)?),
            Event::Init => Occasion::Init,
            Event::Presuspend => Occasion::Presuspend,
            Event::Precheckpoint => Occasion::Precheckpoint(part(event, &params)?),
            Event::Committed => Occasion::Committed(part(event, &params)?),
            Event::Resume => Occasion::Resume(part(event, &params)?),
            Event::Check => Occasion::Check(part(event, &params)?),
            Event::Restart => Occasion::Restart(part(event, &params)?),
            Event::Running => Occasion::Running(part(event, &params)?),
            Event::Exit => Occasion::Exit(part(event, &params)?),
            Event::Recover => Occasion::Recover(part(event, &params)?),
        };
        Ok(Params { deadline, job, occasion })
    }
}

/// The answer to `hello`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Welcome {
    /// The version of the protocol that the plugin speaks: major.minor.
    pub protocol: String,
    /// The plugin's own version, for people.
    #[serde(default)]
    pub version: String,
    /// Deadlines that it needs.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "known_deadlines")]
    pub deadlines: Deadlines,
    /// The events that it wants; all if absent.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "known_events")]
    pub events: Option<Vec<Event>>,
}

/// The answer to `precheckpoint`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Requirements {
    /// What a restart needs; names and values are the plugin's own.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub requirements: Map<String, Value>,
}

fn known_events<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Vec<Event>>, D::Error> {
    let names = Vec::<String>::deserialize(from)?;
    Ok(Some(names.iter().filter_map(|name| Event::named(name)).collect()))
}

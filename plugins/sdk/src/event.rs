//! The names of the events, their deadlines, and the notifications.

use serde::de::Deserializer;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::time::Duration;

/// The version of the protocol that this crate speaks.
pub const PROTOCOL: &str = "1.0";

/// The longest deadline, in seconds.
pub const LONGEST: f64 = 3600.0;

/// The name of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Event {
    /// The first message.
    Hello,
    /// The sandbox of a new job is about to be made.
    Init,
    /// The job runs, and is about to be stopped.
    Presuspend,
    /// The job stands still.
    Precheckpoint,
    /// The image is complete.
    Committed,
    /// The job goes on on this host.
    Resume,
    /// Could this image be restarted here?
    Check,
    /// A restart in earnest.
    Restart,
    /// The job is about to run.
    Running,
    /// The job is gone.
    Exit,
    /// ckrun's supervisor was killed, and the job has been running all the time.
    Recover,
}

impl Event {
    /// All events.
    pub const ALL: [Event; 11] = [
        Event::Hello,
        Event::Init,
        Event::Presuspend,
        Event::Precheckpoint,
        Event::Committed,
        Event::Resume,
        Event::Check,
        Event::Restart,
        Event::Running,
        Event::Exit,
        Event::Recover,
    ];

    /// The method of its request.
    pub fn name(self) -> &'static str {
        match self {
            Event::Hello => "hello",
            Event::Init => "init",
            Event::Presuspend => "presuspend",
            Event::Precheckpoint => "precheckpoint",
            Event::Committed => "committed",
            Event::Resume => "resume",
            Event::Check => "check",
            Event::Restart => "restart",
            Event::Running => "running",
            Event::Exit => "exit",
            Event::Recover => "recover",
        }
    }

    /// The event of that name.
    pub fn named(name: &str) -> Option<Event> {
        Event::ALL.into_iter().find(|event| event.name() == name)
    }

    /// How long it may take if nobody says otherwise, in seconds.
    pub fn deadline(self) -> f64 {
        match self {
            Event::Hello | Event::Running | Event::Exit => 10.0,
            Event::Presuspend | Event::Check => 30.0,
            Event::Init | Event::Committed | Event::Resume | Event::Recover => 60.0,
            Event::Precheckpoint | Event::Restart => 120.0,
        }
    }

    /// Whether the answer may announce bindings.
    pub fn binds(self) -> bool {
        matches!(self, Event::Init | Event::Restart | Event::Resume | Event::Recover)
    }
}

impl std::fmt::Display for Event {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// Deadlines by event, in seconds. Events that this version does not know are left out.
pub type Deadlines = BTreeMap<Event, f64>;

/// A deadline as a length of time, at most [`LONGEST`] and not below nothing.
pub fn duration(seconds: f64) -> Duration {
    // What is no number is no time.
    Duration::try_from_secs_f64(seconds.clamp(0.0, LONGEST)).unwrap_or_default()
}

/// For `deserialize_with`: leaves out the events of later versions, and what is no time.
pub fn known_deadlines<'de, D: Deserializer<'de>>(from: D) -> Result<Deadlines, D::Error> {
    let all = BTreeMap::<String, f64>::deserialize(from)?;
    Ok(all.into_iter().filter_map(|(name, seconds)| Some((Event::named(&name)?, seconds))).collect())
}

/// A capability.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Grant {
    /// `read` and `write`.
    Memory,
    /// `registers`.
    Registers,
    /// `signal`.
    Signals,
}

impl Grant {
    /// All of them.
    pub const ALL: [Grant; 3] = [Grant::Memory, Grant::Registers, Grant::Signals];

    /// As it is written.
    pub fn name(self) -> &'static str {
        match self {
            Grant::Memory => "memory",
            Grant::Registers => "registers",
            Grant::Signals => "signals",
        }
    }
}

/// The notification `cancel`: an event's deadline has passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cancel {
    /// Which one.
    pub event: Event,
}

/// How much a log line matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Something failed.
    Error,
    /// Something may fail.
    Warn,
    /// Worth knowing.
    Info,
    /// For those who look for a reason.
    Debug,
}

/// The notification `log`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Log {
    /// How much it matters.
    pub level: Level,
    /// One line.
    pub message: String,
}

//! The calls: what a plugin may ask of ckrun.

use crate::binding::{Binding, Kind, Name};
use crate::event::Grant;
use crate::fault::{Code, Fault};
use crate::number::{Bytes, Hex, integer};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// The most bytes that one `read` or `write` moves.
pub const MEMORY: u64 = 524_288;

/// The most bytes of a key.
pub const KEY: usize = 255;

/// The most bytes of a value, as JSON.
pub const VALUE: usize = 65_536;

/// The most bytes of all keys and values of a plugin.
pub const AREA: usize = 1_048_576;

/// What is to be translated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Space {
    /// See [`Kind::Device`].
    Device,
    /// See [`Kind::Memory`].
    Memory,
    /// See [`Kind::Socket`].
    Socket,
    /// See [`Kind::Handle`].
    Handle,
    /// A process.
    Pid,
    /// A thread.
    Tid,
    /// A descriptor of a process.
    Fd,
}

/// A name, to be looked up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Translate {
    /// What it is the name of.
    pub kind: Space,
    /// The name that the job knows; or see `real`.
    #[serde(default, rename = "virtual", skip_serializing_if = "Option::is_none")]
    pub virtual_name: Option<Name>,
    /// The name on this host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub real: Option<Name>,
    /// Of a handle.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub space: Option<String>,
    /// Of a descriptor: its process, as the job sees it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u64>,
    /// Of a descriptor.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub number: Option<u64>,
}

/// The name of a binding that is to go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unbind {
    /// Only handles can be unbound.
    pub kind: Kind,
    /// Where the number is unique.
    pub space: String,
    /// The number that the job knows.
    #[serde(rename = "virtual", deserialize_with = "integer")]
    pub virtual_number: u64,
}

/// A value for the plugin's own area.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Put {
    /// 1 to [`KEY`] bytes.
    pub key: String,
    /// Up to [`VALUE`] bytes; none removes the key.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "present")]
    pub value: Option<Value>,
}

/// JSON's null is a value, unlike an absent one.
fn present<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Option<Value>, D::Error> {
    Value::deserialize(from).map(Some)
}

/// A value of the plugin's own area.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Get {
    /// As it was put.
    pub key: String,
}

/// A piece of a process's memory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Read {
    /// As the job sees it.
    #[serde(deserialize_with = "integer")]
    pub pid: u64,
    /// Where.
    pub address: Hex,
    /// Bytes, up to [`MEMORY`].
    #[serde(deserialize_with = "integer")]
    pub length: u64,
}

/// Bytes for a process's memory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Write {
    /// As the job sees it.
    #[serde(deserialize_with = "integer")]
    pub pid: u64,
    /// Where.
    pub address: Hex,
    /// Up to [`MEMORY`] bytes.
    pub data: Bytes,
}

/// Registers by the names of `struct user_regs_struct`.
pub type Registers = BTreeMap<String, Hex>;

/// The registers of a thread.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegistersOf {
    /// As the job sees it.
    #[serde(deserialize_with = "integer")]
    pub tid: u64,
    /// Those that are to be changed.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub set: Registers,
}

/// A signal for a process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signal {
    /// As the job sees it.
    #[serde(deserialize_with = "integer")]
    pub pid: u64,
    /// Its number.
    pub signal: i32,
}

/// A place where the plugins of a job wait for each other.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Barrier {
    /// The same for all.
    pub name: String,
}

/// A call of a plugin.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "method", content = "params", rename_all = "lowercase")]
pub enum Call {
    /// Which real name is behind a virtual one, or the other way round.
    Translate(Translate),
    /// Binds a handle.
    Bind(Binding),
    /// Takes a handle back.
    Unbind(Unbind),
    /// Keeps a value.
    Put(Put),
    /// A value that was kept.
    Get(Get),
    /// The job's threads.
    Tasks {},
    /// Memory of the job.
    Read(Read),
    /// Changes memory of the job.
    Write(Write),
    /// A thread's registers, changed before if asked for.
    Registers(RegistersOf),
    /// Sends a signal.
    Signal(Signal),
    /// Waits for the other plugins.
    Barrier(Barrier),
}

impl Call {
    /// The names of all calls.
    pub const NAMES: [&str; 11] = [
        "translate",
        "bind",
        "unbind",
        "put",
        "get",
        "tasks",
        "read",
        "write",
        "registers",
        "signal",
        "barrier",
    ];

    /// Reads a request.
    ///
    /// # Errors
    /// [`Code::NoSuchMethod`], [`Code::InvalidParams`].
    pub fn parse(method: &str, params: Value) -> Result<Call, Fault> {
        if !Call::NAMES.contains(&method) {
            return Err(Fault::new(Code::NoSuchMethod, format!("there is no call {method:?}")));
        }
        serde_json::from_value(json!({"method": method, "params": params}))
            .map_err(|e| Fault::new(Code::InvalidParams, format!("{method}: {e}")))
    }

    /// Its method and its params.
    pub fn request(&self) -> (String, Value) {
        let mut both = serde_json::to_value(self).unwrap_or_default();
        let method = both["method"].as_str().unwrap_or_default().to_owned();
        (method, both["params"].take())
    }

    /// The method.
    pub fn name(&self) -> &'static str {
        match self {
            Call::Translate(_) => "translate",
            Call::Bind(_) => "bind",
            Call::Unbind(_) => "unbind",
            Call::Put(_) => "put",
            Call::Get(_) => "get",
            Call::Tasks {} => "tasks",
            Call::Read(_) => "read",
            Call::Write(_) => "write",
            Call::Registers(_) => "registers",
            Call::Signal(_) => "signal",
            Call::Barrier(_) => "barrier",
        }
    }

    /// The capability that it needs.
    pub fn needs(&self) -> Option<Grant> {
        match self {
            Call::Read(_) | Call::Write(_) => Some(Grant::Memory),
            Call::Registers(_) => Some(Grant::Registers),
            Call::Signal(_) => Some(Grant::Signals),
            _ => None,
        }
    }

    /// Whether it is allowed only while the job stands still.
    pub fn needs_stillness(&self) -> bool {
        matches!(self, Call::Tasks {} | Call::Read(_) | Call::Write(_) | Call::Registers(_))
    }
}

/// A thread of the job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Task {
    /// Its process, as the job sees it.
    pub pid: u64,
    /// Itself, as the job sees it.
    pub tid: u64,
    /// Its command name.
    pub command: String,
}

/// What a call is answered with.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Answer {
    /// To `translate`.
    Names {
        /// The name that the job knows.
        r#virtual: Name,
        /// The name on this host.
        real: Name,
    },
    /// To `get`.
    Value {
        /// As it was put.
        #[serde(deserialize_with = "Value::deserialize")]
        value: Value,
    },
    /// To `tasks`.
    Tasks {
        /// All of the job's threads.
        tasks: Vec<Task>,
    },
    /// To `read`.
    Data {
        /// As many bytes as were asked for.
        data: Bytes,
    },
    /// To `registers`: as they are afterwards.
    Registers {
        /// All of the thread's.
        registers: Registers,
    },
    /// To all others.
    Nothing {},
}

impl Answer {
    /// As JSON.
    pub fn value(&self) -> Value {
        serde_json::to_value(self).unwrap_or_else(|_| json!({}))
    }
}

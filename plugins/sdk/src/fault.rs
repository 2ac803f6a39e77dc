//! An error as it travels in an answer.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::fmt;

/// What the number of an error means (PROTOCOL.md, "Errors").
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Code {
    /// -32700: the line is no JSON.
    Parse,
    /// -32600: JSON, but no message of JSON-RPC.
    InvalidRequest,
    /// -32601: there is no such event or call.
    NoSuchMethod,
    /// -32602: a parameter is missing or wrong.
    InvalidParams,
    /// -32603: something else went wrong inside.
    Internal,
    /// 1, by a plugin: not now.
    Veto,
    /// 2, by a plugin: what is needed is not there or is taken.
    Unavailable,
    /// 3, by a plugin: what is there is not what the image needs.
    Mismatch,
    /// 4, by a plugin: the emulator has gone, and with it its state.
    Lost,
    /// 5, by ckrun: the capability was not granted.
    Denied,
    /// 6, by ckrun: not allowed at this event.
    State,
    /// 7, by ckrun: there is no such name, task or key.
    Unknown,
    /// 8, by ckrun: too large, too many.
    Limit,
}

impl Code {
    /// All codes.
    pub const ALL: [Code; 13] = [
        Code::Parse,
        Code::InvalidRequest,
        Code::NoSuchMethod,
        Code::InvalidParams,
        Code::Internal,
        Code::Veto,
        Code::Unavailable,
        Code::Mismatch,
        Code::Lost,
        Code::Denied,
        Code::State,
        Code::Unknown,
        Code::Limit,
    ];

    /// The number on the wire.
    pub fn number(self) -> i64 {
        match self {
            Code::Parse => -32700,
            Code::InvalidRequest => -32600,
            Code::NoSuchMethod => -32601,
            Code::InvalidParams => -32602,
            Code::Internal => -32603,
            Code::Veto => 1,
            Code::Unavailable => 2,
            Code::Mismatch => 3,
            Code::Lost => 4,
            Code::Denied => 5,
            Code::State => 6,
            Code::Unknown => 7,
            Code::Limit => 8,
        }
    }

    /// The word for people.
    pub fn name(self) -> &'static str {
        match self {
            Code::Parse => "parse error",
            Code::InvalidRequest => "invalid request",
            Code::NoSuchMethod => "no such method",
            Code::InvalidParams => "invalid params",
            Code::Internal => "internal error",
            Code::Veto => "veto",
            Code::Unavailable => "unavailable",
            Code::Mismatch => "mismatch",
            Code::Lost => "lost",
            Code::Denied => "denied",
            Code::State => "state",
            Code::Unknown => "unknown",
            Code::Limit => "limit",
        }
    }
}

/// The member `error` of an answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, thiserror::Error)]
pub struct Fault {
    /// See [`Code`]; a peer may use others of its own.
    pub code: i64,
    /// One sentence for a person: what, why, and if possible what to do.
    pub message: String,
    /// Whatever the sender wants to add.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<Value>,
}

impl Fault {
    /// An error of a known kind.
    pub fn new(code: Code, message: impl Into<String>) -> Fault {
        Fault { code: code.number(), message: message.into(), data: None }
    }

    /// Not now: the reason is shown to the one who asked for a checkpoint.
    pub fn veto(message: impl Into<String>) -> Fault {
        Fault::new(Code::Veto, message)
    }

    /// No free slot, no route.
    pub fn unavailable(message: impl Into<String>) -> Fault {
        Fault::new(Code::Unavailable, message)
    }

    /// Another design, another version than the image needs.
    pub fn mismatch(message: impl Into<String>) -> Fault {
        Fault::new(Code::Mismatch, message)
    }

    /// The emulator and its state have gone.
    pub fn lost(message: impl Into<String>) -> Fault {
        Fault::new(Code::Lost, message)
    }

    /// What it means, if the code is one of the protocol's.
    pub fn kind(&self) -> Option<Code> {
        Code::ALL.into_iter().find(|code| code.number() == self.code)
    }
}

/// "veto: a transfer of 40 s is under way".
impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind() {
            Some(code) => write!(f, "{}: {}", code.name(), self.message),
            None => write!(f, "error {}: {}", self.code, self.message),
        }
    }
}

/// For `?` in a plugin's methods.
impl From<std::io::Error> for Fault {
    fn from(e: std::io::Error) -> Fault {
        Fault::new(Code::Internal, e.to_string())
    }
}

/// For `?` in a plugin's methods.
impl From<serde_json::Error> for Fault {
    fn from(e: serde_json::Error) -> Fault {
        Fault::new(Code::Internal, e.to_string())
    }
}

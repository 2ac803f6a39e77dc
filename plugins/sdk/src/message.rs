//! A message: one line of JSON-RPC 2.0.

use crate::fault::Fault;
use crate::number::INTEGERS;
use crate::wire::{Broken, DESCRIPTORS};
use serde_json::{Map, Value, json};

/// The most bytes of a textual id.
pub const ID: usize = 255;

/// What an answer refers to.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Id {
    /// As ckrun makes them.
    Number(u64),
    /// As a plugin may make them, up to [`ID`] bytes.
    Text(String),
}

impl Id {
    fn parse(value: &Value) -> Option<Id> {
        match value {
            Value::String(text) if text.len() <= ID => Some(Id::Text(text.clone())),
            Value::Number(number) => number.as_u64().filter(|n| *n < INTEGERS).map(Id::Number),
            _ => None,
        }
    }

    fn value(&self) -> Value {
        match self {
            Id::Number(number) => json!(number),
            Id::Text(text) => json!(text),
        }
    }
}

/// As in the text of a message: `7`, `"a"`.
impl std::fmt::Display for Id {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Id::Number(number) => write!(f, "{number}"),
            Id::Text(text) => write!(f, "{text:?}"),
        }
    }
}

/// One message of either side.
#[derive(Debug, Clone, PartialEq)]
pub enum Message {
    /// An event or a call, which is to be answered.
    Request {
        /// What its answer will have.
        id: Id,
        /// The name of the event or the call.
        method: String,
        /// An object; empty if absent.
        params: Value,
        /// How many descriptors come with it.
        fds: usize,
    },
    /// The answer to one.
    Answer {
        /// That of the request.
        id: Id,
        /// The member `result` or the member `error`.
        outcome: Result<Value, Fault>,
        /// How many descriptors come with it.
        fds: usize,
    },
    /// `log` or `cancel`, which nobody answers.
    Notification {
        /// Its name.
        method: String,
        /// An object; empty if absent.
        params: Value,
    },
}

impl Message {
    /// Reads a line, with or without its end.
    ///
    /// # Errors
    /// [`Broken::Json`] and [`Broken::Shape`].
    pub fn parse(line: &[u8]) -> Result<Message, Broken> {
        let value: Value = serde_json::from_slice(line).map_err(|e| Broken::Json(e.to_string()))?;
        let Value::Object(mut members) = value else { return Err(Broken::Shape("is no object")) };
        if members.get("jsonrpc").and_then(Value::as_str) != Some("2.0") {
            return Err(Broken::Shape("has no \"jsonrpc\": \"2.0\""));
        }
        let fds = announced(members.get("fds"))?;
        let id = match members.get("id") {
            None => None,
            Some(id) => Some(Id::parse(id).ok_or(Broken::Shape(
                "has an id that is neither an integer below 2^53 nor a string of up to 255 bytes",
            ))?),
        };
        match (members.remove("method"), id) {
            (Some(Value::String(method)), id) => {
                let params = members.remove("params").unwrap_or_else(|| Value::Object(Map::new()));
                if !params.is_object() {
                    return Err(Broken::Shape("has params that are no object"));
                }
                match id {
                    Some(id) => Ok(Message::Request { id, method, params, fds }),
                    None if fds > 0 => Err(Broken::Shape("is a notification with descriptors")),
                    None => Ok(Message::Notification { method, params }),
                }
            }
            (Some(_), _) => Err(Broken::Shape("has a method that is no string")),
            (None, None) => Err(Broken::Shape("has neither a method nor an id")),
            (None, Some(id)) => {
                let outcome = match (members.remove("result"), members.remove("error")) {
                    (Some(result), None) if result.is_object() => Ok(result),
                    (Some(_), None) => return Err(Broken::Shape("has a result that is no object")),
                    (None, Some(error)) => Err(serde_json::from_value(error)
                        .map_err(|_| Broken::Shape("has an error without an integer code and a message"))?),
                    _ => return Err(Broken::Shape("has not exactly one of method, result and error")),
                };
                Ok(Message::Answer { id, outcome, fds })
            }
        }
    }

    /// Its line, with the end.
    pub fn line(&self) -> Vec<u8> {
        let mut value = match self {
            Message::Request { id, method, params, .. } => {
                json!({"jsonrpc": "2.0", "id": id.value(), "method": method, "params": params})
            }
            Message::Answer { id, outcome: Ok(result), .. } => {
                json!({"jsonrpc": "2.0", "id": id.value(), "result": result})
            }
            Message::Answer { id, outcome: Err(fault), .. } => {
                json!({"jsonrpc": "2.0", "id": id.value(), "error": fault})
            }
            Message::Notification { method, params } => {
                json!({"jsonrpc": "2.0", "method": method, "params": params})
            }
        };
        if self.fds() > 0 {
            value["fds"] = json!(self.fds());
        }
        // JSON escapes newlines in strings, and there are none elsewhere.
        let mut line = value.to_string().into_bytes();
        line.push(b'\n');
        line
    }

    /// How many descriptors it announces.
    pub fn fds(&self) -> usize {
        match self {
            Message::Request { fds, .. } | Message::Answer { fds, .. } => *fds,
            Message::Notification { .. } => 0,
        }
    }
}

fn announced(member: Option<&Value>) -> Result<usize, Broken> {
    let Some(member) = member else { return Ok(0) };
    member
        .as_u64()
        .and_then(|n| usize::try_from(n).ok())
        .filter(|n| (1..=DESCRIPTORS).contains(n))
        .ok_or(Broken::Shape("has fds that are not an integer from 1 to 16"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        let params = json!({"key": "a\nb"});
        for message in [
            Message::Request {
                id: Id::Text("a".into()),
                method: "get".into(),
                params: params.clone(),
                fds: 0,
            },
            Message::Request { id: Id::Number(1), method: "check".into(), params: params.clone(), fds: 1 },
            Message::Answer { id: Id::Number(9), outcome: Ok(json!({})), fds: 16 },
            Message::Answer { id: Id::Number(9), outcome: Err(Fault::veto("no")), fds: 0 },
            Message::Notification { method: "log".into(), params },
        ] {
            let line = message.line();
            assert_eq!(line.iter().filter(|b| **b == b'\n').count(), 1);
            assert_eq!(Message::parse(&line).unwrap(), message);
        }
    }

    #[test]
    fn what_is_no_message_is_named() {
        for (line, why) in [
            ("[]", "is no object"),
            ("{\"id\":1,\"result\":{}}", "jsonrpc"),
            ("{\"jsonrpc\":\"2.0\",\"id\":null,\"result\":{}}", "an id"),
            ("{\"jsonrpc\":\"2.0\",\"id\":1.5,\"result\":{}}", "an id"),
            ("{\"jsonrpc\":\"2.0\",\"id\":9007199254740992,\"result\":{}}", "an id"),
            ("{\"jsonrpc\":\"2.0\",\"id\":1}", "exactly one"),
            ("{\"jsonrpc\":\"2.0\",\"id\":1,\"result\":{},\"error\":{}}", "exactly one"),
            ("{\"jsonrpc\":\"2.0\",\"id\":1,\"error\":{\"code\":\"1\"}}", "an error without"),
            ("{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"get\",\"params\":[]}", "params"),
            ("{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"get\",\"fds\":17}", "fds"),
            ("{\"jsonrpc\":\"2.0\",\"method\":\"log\",\"fds\":1}", "notification"),
            ("{\"jsonrpc\":\"2.0\",\"id\":1,\"result\":[]}", "result"),
            ("{\"jsonrpc\":\"2.0\"}", "neither"),
        ] {
            let said = Message::parse(line.as_bytes()).unwrap_err().to_string();
            assert!(said.contains(why), "{line}: {said}");
        }
        assert!(matches!(Message::parse(b"\xff{"), Err(Broken::Json(_))));
    }
}

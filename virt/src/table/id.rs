//! The names of things, as people and plugins write them.

use crate::image::Bytes;
use serde::{Serialize, Serializer};
use std::fmt::{self, Write};
use std::str::FromStr;

/// The name of one thing, virtual or real: both sides of the table use the same words.
///
/// ```text
/// pid:7            a process                      (a bare 7 is the same)
/// tid:8            a thread
/// sid:1  pgid:7    a session, a process group
/// fd:7:5           descriptor 5 of process 7
/// sock:emu:4000    a socket's address
/// dev:/dev/emu0    a device's path
/// handle:NAME:3    a number in the name space that a plugin has registered as NAME
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Id {
    /// A process, by the id of its leader.
    Process(i32),
    /// A thread; a process's leader has the process's id.
    Thread(i32),
    /// A session.
    Session(i32),
    /// A process group.
    Group(i32),
    /// A descriptor of a process.
    Descriptor {
        /// The process.
        process: i32,
        /// Its number.
        fd: i32,
    },
    /// A socket's address.
    Socket(Bytes),
    /// A device's path.
    Device(Bytes),
    /// A vendor's handle.
    Handle {
        /// The name space.
        space: String,
        /// The handle.
        number: u64,
    },
}

/// A text that names nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?} names nothing: {why} (pid:7, tid:8, sid:1, pgid:7, fd:7:5, sock:emu:4000, dev:/dev/emu0, handle:NAME:3)"
)]
pub struct NoId {
    text: String,
    why: &'static str,
}

impl FromStr for Id {
    type Err = NoId;

    fn from_str(text: &str) -> Result<Id, NoId> {
        let no = |why| NoId { text: text.to_owned(), why };
        let number = |word: &str| match word.parse() {
            Ok(n) if n > 0 && word.starts_with(|c: char| c.is_ascii_digit()) => Ok(n),
            _ => Err(no("an id is a number from 1 to 2147483647")),
        };
        let Some((kind, rest)) = text.split_once(':') else {
            return number(text).map(Id::Process);
        };
        let filled =
            |rest: &str| if rest.is_empty() { Err(no("nothing follows the kind")) } else { Ok(rest.into()) };
        match kind {
            "pid" => number(rest).map(Id::Process),
            "tid" => number(rest).map(Id::Thread),
            "sid" => number(rest).map(Id::Session),
            "pgid" => number(rest).map(Id::Group),
            "fd" => {
                let (process, fd) =
                    rest.split_once(':').ok_or_else(|| no("a descriptor is fd:PID:NUMBER"))?;
                let fd =
                    fd.parse().ok().filter(|n| *n >= 0).ok_or_else(|| no("a descriptor is fd:PID:NUMBER"))?;
                Ok(Id::Descriptor { process: number(process)?, fd })
            }
            "sock" => filled(rest).map(Id::Socket),
            "dev" if rest.starts_with('/') => filled(rest).map(Id::Device),
            "dev" => Err(no("the path of a device begins with /")),
            "handle" => {
                let words = rest.rsplit_once(':').filter(|(space, _)| !space.is_empty());
                let (space, word) = words.ok_or_else(|| no("a handle is handle:NAME:NUMBER"))?;
                let number = word.parse().map_err(|_| no("a handle is handle:NAME:NUMBER"))?;
                Ok(Id::Handle { space: space.to_owned(), number })
            }
            _ => Err(no("its kind is unknown")),
        }
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Id::Process(n) => write!(f, "pid:{n}"),
            Id::Thread(n) => write!(f, "tid:{n}"),
            Id::Session(n) => write!(f, "sid:{n}"),
            Id::Group(n) => write!(f, "pgid:{n}"),
            Id::Descriptor { process, fd } => write!(f, "fd:{process}:{fd}"),
            Id::Socket(address) => write!(f, "sock:{}", Printable(address)),
            Id::Device(path) => write!(f, "dev:{}", Printable(path)),
            Id::Handle { space, number } => write!(f, "handle:{}:{number}", Printable(space.as_bytes())),
        }
    }
}

/// A name as text in which nothing makes a terminal do more than show it.
#[derive(Debug, Clone, Copy)]
pub struct Printable<'a>(pub &'a [u8]);

impl fmt::Display for Printable<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        String::from_utf8_lossy(self.0).chars().try_for_each(|c| match c {
            c if c.is_control() => c.escape_default().fmt(f),
            c => f.write_char(c),
        })
    }
}

impl Serialize for Id {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_read_as_they_are_written() {
        for text in [
            "pid:7",
            "tid:8",
            "sid:1",
            "pgid:7",
            "fd:7:0",
            "sock:emu:4000",
            "dev:/dev/emu0",
            "handle:v/s:a:3",
        ] {
            assert_eq!(text.parse::<Id>().unwrap().to_string(), text);
        }
        assert_eq!("7".parse(), Ok(Id::Process(7)));
    }

    #[test]
    fn a_text_that_names_nothing_is_told_so() {
        for text in [
            "",
            "x",
            "0",
            "+7",
            "-1",
            "pid:",
            "pid:+1",
            "pid:x",
            "pid:4294967297",
            "fd:7",
            "fd:7:-1",
            "fd:0:1",
            "dev:emu0",
            "dev:",
            "sock:",
            "handle:3",
            "handle::3",
            "handle:a:x",
            "socket:a",
        ] {
            let said = text.parse::<Id>().unwrap_err().to_string();
            assert!(said.starts_with(&format!("{text:?} names nothing")), "{said}");
        }
    }
}

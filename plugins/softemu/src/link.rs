//! A link as a testbench holds it: opened once, by name, and then a stream of bytes each way.
//!
//! | name | what it is |
//! |---|---|
//! | `tcp:HOST:PORT` | a TCP connection |
//! | `unix:PATH` | a Unix stream socket |
//! | `dev:PATH` | a device file: a pty |
//! | `shm:PATH` | a ring in shared memory, see [`ring`] |
//! | `jtag:HOST:PORT` | a TCP connection on which a JTAG adapter speaks, no testbench |

pub mod ring;
mod stream;

use crate::error::{Error, Result};
use ring::Ring;
use std::fmt;
use std::str::FromStr;
use stream::Stream;

/// Kinds of links.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize, clap::ValueEnum,
)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A TCP connection.
    Tcp = 1,
    /// A Unix stream socket.
    Unix = 2,
    /// A pty.
    Pty = 3,
    /// A ring in shared memory.
    Ring = 4,
    /// A JTAG adapter's TCP connection: OpenOCD's remote_bitbang.
    Jtag = 5,
}

impl Kind {
    /// Every kind that testbenches open.
    pub const ALL: [Kind; 4] = [Kind::Tcp, Kind::Unix, Kind::Pty, Kind::Ring];

    /// The kind that state files know by this number.
    pub fn from_number(number: u32) -> Option<Kind> {
        Kind::ALL.into_iter().chain([Kind::Jtag]).find(|kind| *kind as u32 == number)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Tcp => "tcp",
            Kind::Unix => "unix",
            Kind::Pty => "pty",
            Kind::Ring => "ring",
            Kind::Jtag => "jtag",
        })
    }
}

/// The name of a link: its kind and address.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name {
    /// Of what kind it is.
    pub kind: Kind,
    /// HOST:PORT or a path.
    pub address: String,
}

impl FromStr for Name {
    type Err = Error;

    fn from_str(text: &str) -> Result<Name> {
        let kind = match text.split_once(':') {
            Some(("tcp", address)) if address.contains(':') => Kind::Tcp,
            Some(("jtag", address)) if address.contains(':') => Kind::Jtag,
            Some(("unix", path)) if !path.is_empty() => Kind::Unix,
            Some(("dev", path)) if !path.is_empty() => Kind::Pty,
            Some(("shm", path)) if !path.is_empty() => Kind::Ring,
            _ => {
                return Err(Error::Argument {
                    what: format!("link {text:?}"),
                    why: "must be tcp:HOST:PORT, unix:PATH, dev:PATH or shm:PATH".into(),
                });
            }
        };
        let address = text.split_once(':').map_or(String::new(), |(_, address)| address.to_owned());
        Ok(Name { kind, address })
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = match self.kind {
            Kind::Tcp => "tcp",
            Kind::Unix => "unix",
            Kind::Pty => "dev",
            Kind::Ring => "shm",
            Kind::Jtag => "jtag",
        };
        write!(f, "{scheme}:{}", self.address)
    }
}

impl TryFrom<String> for Name {
    type Error = Error;

    fn try_from(text: String) -> Result<Name> {
        text.parse()
    }
}

impl From<Name> for String {
    fn from(name: Name) -> String {
        name.to_string()
    }
}

/// An open link.
#[derive(Debug)]
pub struct Link {
    name: Name,
    wire: Wire,
}

#[derive(Debug)]
enum Wire {
    Stream(Stream),
    Ring(Ring),
}

impl Link {
    /// Opens the link.
    pub fn open(name: &Name) -> Result<Link> {
        let wire = match name.kind {
            Kind::Ring => Wire::Ring(Ring::open(name.address.as_ref())?),
            Kind::Jtag => {
                return Err(Error::Argument {
                    what: format!("link {name}"),
                    why: "is for a JTAG adapter: OpenOCD's remote_bitbang".into(),
                });
            }
            _ => Wire::Stream(Stream::open(name)?),
        };
        Ok(Link { name: name.clone(), wire })
    }

    /// Its name.
    pub fn name(&self) -> &Name {
        &self.name
    }

    /// Sends as many of the bytes as there is room for now, perhaps none.
    pub fn send(&mut self, bytes: &[u8]) -> Result<usize> {
        match &mut self.wire {
            Wire::Stream(stream) => stream.send(bytes).map_err(|why| self.gone(why)),
            Wire::Ring(ring) => ring.job().send(bytes).map_err(|why| self.broken(why)),
        }
    }

    /// Appends what has come, perhaps nothing.
    pub fn receive(&mut self, into: &mut Vec<u8>) -> Result<usize> {
        match &mut self.wire {
            Wire::Stream(stream) => stream.receive(into).map_err(|why| self.gone(why)),
            Wire::Ring(ring) => ring.job().receive(into, usize::MAX).map_err(|why| self.broken(why)),
        }
    }

    /// Waits until something has come or, if `sending`, there is room to send. It may return for no reason.
    pub fn wait(&mut self, sending: bool) -> Result<()> {
        match &mut self.wire {
            Wire::Stream(stream) => stream.wait(sending).map_err(|why| self.gone(why)),
            Wire::Ring(ring) => match ring.wait_for_server() {
                Ok(()) => Ok(()),
                Err(why) => Err(self.gone(why)),
            },
        }
    }

    fn gone(&self, why: String) -> Error {
        Error::Gone { link: self.name.to_string(), why }
    }

    fn broken(&self, why: String) -> Error {
        Error::Protocol { link: self.name.to_string(), why }
    }
}

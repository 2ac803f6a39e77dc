//! The vendor's side of the server: JSON over a Unix socket, a request a line, an answer a line.
//!
//! ```text
//! > {"op":"claim","owner":"tb1","links":["pty"],"frozen":true}
//! < {"ok":{"slot":0,"links":["dev:/dev/pts/9"]}}
//! > {"op":"load","owner":"tb1","slot":0,"file":"/images/tb1/plugins/emu/slot.state"}
//! < {"error":{"kind":"mismatch","message":"/images/…/slot.state: truncated: 100 bytes instead of 8704"}}
//! ```
//!
//! A claim belongs to its owner's name, not to the connection: who comes later and gives the same name goes on with it.

use crate::design::{Parameters, element::Element};
use crate::error::{Doing, Error, Refusal, Result};
use crate::link::{Kind, Name};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What can be asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "lowercase")]
pub enum Request {
    /// Takes a slot at power on. Answer: [`Claimed`].
    Claim {
        /// Who takes it.
        owner: String,
        /// What is wanted.
        #[serde(flatten)]
        claim: Claim,
    },
    /// Gives it back; its links end.
    Release(Slot),
    /// Finishes the transaction under way, and takes no further one. Answer: as [`Request::Drain`].
    Freeze(Slot),
    /// Goes on.
    Thaw(Slot),
    /// Saves a frozen slot and what is on its links. Answer: [`Summary`].
    Save(SlotFile),
    /// Loads a frozen slot: all of it, or nothing is changed. Answer: [`Summary`].
    Load(SlotFile),
    /// Whether this server could load a file. Answer: [`Summary`].
    Check {
        /// An absolute path.
        file: PathBuf,
    },
    /// Arms a fault.
    Fault {
        /// Where.
        #[serde(flatten)]
        slot: Slot,
        /// Which.
        #[serde(flatten)]
        fault: Fault,
    },
    /// Digest of the design's state. Answer: 32 hexadecimal digits.
    Digest {
        /// Number of the slot.
        slot: usize,
    },
    /// The design's cycle.
    Cycle {
        /// Number of the slot.
        slot: usize,
    },
    /// What is on the links. Answer: a list of [`Drain`].
    Drain {
        /// Number of the slot.
        slot: usize,
    },
    /// The server and its slots. Answer: [`Listing`].
    List,
}

/// A slot and whose it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Slot {
    /// The owner's name, as given with the claim.
    pub owner: String,
    /// The slot's number.
    pub slot: usize,
}

/// A slot, whose it is, and a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlotFile {
    /// The owner's name.
    pub owner: String,
    /// The slot's number.
    pub slot: usize,
    /// An absolute path.
    pub file: PathBuf,
}

/// What kind of slot is wanted.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// Which one; any if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slot: Option<usize>,
    /// Which links it is to have.
    #[serde(default)]
    pub links: Vec<Kind>,
    /// Whether a job may close a link and open it again.
    #[serde(default)]
    pub reconnect: bool,
    /// Whether it is to be frozen from the beginning, to be loaded.
    #[serde(default)]
    pub frozen: bool,
}

/// A slot that was claimed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claimed {
    /// Its number.
    pub slot: usize,
    /// Names of its links, in the order of the claim.
    pub links: Vec<Name>,
}

/// A flip of one bit of a state element.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    /// The element: `ram:17`.
    pub element: Element,
    /// Its bit, from 0.
    pub bit: u32,
    /// When.
    pub at: When,
}

/// When a fault strikes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum When {
    /// When so many cycles have passed since power on.
    Cycle(u64),
    /// When so many more transactions have been served.
    Transactions(u64),
}

/// What is on a link, in bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drain {
    /// Which link.
    pub link: Kind,
    /// Whether a job holds it, as far as the kernel says.
    pub connected: bool,
    /// Requests that have come and were not served.
    pub unserved: u64,
    /// Replies that the server still has.
    pub unwritten: u64,
    /// Replies that are on the way, not read by the job. Absent for TCP: they are in the job's own socket.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub undelivered: Option<u64>,
    /// Of TCP: replies that have not reached the job's socket yet, as far as its kernel has said so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unacknowledged: Option<u64>,
    /// Why the link is of no use any more.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub broken: Option<String>,
}

impl Drain {
    /// Whether nothing is on the link, as far as is known.
    pub fn is_empty(&self) -> bool {
        let sent = self.undelivered.unwrap_or(0) + self.unacknowledged.unwrap_or(0);
        self.unserved == 0 && self.unwritten == 0 && sent == 0
    }
}

/// A state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    /// Digest of the design's parameters and layout: what a restart must find.
    pub design: String,
    /// Its cycle.
    pub cycle: u64,
    /// Digest of its state.
    pub digest: String,
}

/// The server and its slots.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listing {
    /// Sizes of the design.
    pub parameters: Parameters,
    /// Their digest.
    pub design: String,
    /// All slots.
    pub slots: Vec<Listed>,
}

/// A slot in a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listed {
    /// Its number.
    pub slot: usize,
    /// Whose it is; free if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    /// Whether it is frozen.
    pub frozen: bool,
    /// Its cycle.
    pub cycle: u64,
    /// Transactions served since it was claimed.
    pub served: u64,
    /// Names of its links.
    pub links: Vec<Name>,
}

/// An answer.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Answer<T> {
    /// What was asked for.
    Ok(T),
    /// Why it did not happen.
    Error {
        /// What kind of refusal.
        kind: Refusal,
        /// A sentence for a person.
        message: String,
    },
}

/// A connection to a server's control socket, in the name of an owner.
#[derive(Debug)]
pub struct Control {
    stream: BufReader<UnixStream>,
    path: PathBuf,
    owner: String,
    patience: Option<Duration>,
}

impl Control {
    /// Connects to the socket `control` in a server's directory.
    pub fn connect(path: &Path, owner: &str) -> Result<Control> {
        let stream = UnixStream::connect(path).doing(|| format!("connect to {}", path.display()))?;
        let stream = BufReader::new(stream);
        Ok(Control { stream, path: path.to_owned(), owner: owner.to_owned(), patience: None })
    }

    /// How long to wait for each answer from now on; not at all for nothing. After [`Error::Late`] the connection is of
    /// no use any more: the answer may still come.
    pub fn set_patience(&mut self, patience: Duration) -> Result<()> {
        // A time of zero would mean for ever to the kernel.
        let patience = patience.max(Duration::from_millis(1));
        self.stream.get_ref().set_read_timeout(Some(patience)).doing(|| "set a timeout")?;
        self.patience = Some(patience);
        Ok(())
    }

    /// Claims a slot for the owner. From power on, it serves, unless the claim says `frozen`.
    pub fn claim(&mut self, claim: &Claim) -> Result<Claimed> {
        self.ask(&Request::Claim { owner: self.owner.clone(), claim: claim.clone() })
    }

    /// Gives a slot back. Its links end, its state is forgotten.
    pub fn release(&mut self, slot: usize) -> Result<()> {
        self.ask(&Request::Release(self.own(slot)))
    }

    /// Stops serving: returns when no transaction is under way, with what is on the links.
    pub fn freeze(&mut self, slot: usize) -> Result<Vec<Drain>> {
        self.ask(&Request::Freeze(self.own(slot)))
    }

    /// Serves again.
    pub fn thaw(&mut self, slot: usize) -> Result<()> {
        self.ask(&Request::Thaw(self.own(slot)))
    }

    /// What is on the links.
    pub fn drain(&mut self, slot: usize) -> Result<Vec<Drain>> {
        self.ask(&Request::Drain { slot })
    }

    /// Saves a frozen slot, with what is on its links, to a file. The job must stand still: replies that it has not read
    /// are taken back from a pty, and given again at the thaw.
    pub fn save(&mut self, slot: usize, file: &Path) -> Result<Summary> {
        self.ask(&Request::Save(self.with_file(slot, file)?))
    }

    /// Loads a file into a frozen slot. On failure the slot is unchanged.
    pub fn load(&mut self, slot: usize, file: &Path) -> Result<Summary> {
        self.ask(&Request::Load(self.with_file(slot, file)?))
    }

    /// Whether the server could load a file: the design is the same, the file is whole.
    pub fn check(&mut self, file: &Path) -> Result<Summary> {
        let file = absolute(file)?;
        self.ask(&Request::Check { file })
    }

    /// Arms a fault. It is forgotten with the slot, and is not saved.
    pub fn fault(&mut self, slot: usize, fault: &Fault) -> Result<()> {
        self.ask(&Request::Fault { slot: self.own(slot), fault: fault.clone() })
    }

    /// Digest of a slot's state.
    pub fn digest(&mut self, slot: usize) -> Result<String> {
        self.ask(&Request::Digest { slot })
    }

    /// A slot's cycle.
    pub fn cycle(&mut self, slot: usize) -> Result<u64> {
        self.ask(&Request::Cycle { slot })
    }

    /// The server and all slots.
    pub fn list(&mut self) -> Result<Listing> {
        self.ask(&Request::List)
    }

    /// Asks, and waits for the answer.
    pub fn ask<T: DeserializeOwned>(&mut self, request: &Request) -> Result<T> {
        let protocol =
            |why: String| Error::Protocol { link: format!("control socket {}", self.path.display()), why };
        let mut line = serde_json::to_string(request).map_err(|e| protocol(e.to_string()))?;
        line.push('\n');
        let gone = |why: String| Error::Gone { link: format!("control socket {}", self.path.display()), why };
        self.stream.get_mut().write_all(line.as_bytes()).map_err(|e| gone(e.to_string()))?;
        line.clear();
        match self.stream.read_line(&mut line) {
            Ok(0) => return Err(gone("end of file".into())),
            Ok(_) => {}
            Err(e) if e.kind() == ErrorKind::WouldBlock => {
                let seconds = self.patience.unwrap_or_default().as_secs();
                return Err(Error::Late { link: format!("control socket {}", self.path.display()), seconds });
            }
            Err(e) => return Err(gone(e.to_string())),
        }
        match serde_json::from_str(&line) {
            Ok(Answer::Ok(value)) => Ok(value),
            Ok(Answer::Error { kind, message }) => Err(Error::Refused { kind, message }),
            Err(e) => Err(protocol(format!("an answer that is none: {e}"))),
        }
    }

    fn own(&self, slot: usize) -> Slot {
        Slot { owner: self.owner.clone(), slot }
    }

    fn with_file(&self, slot: usize, file: &Path) -> Result<SlotFile> {
        Ok(SlotFile { owner: self.owner.clone(), slot, file: absolute(file)? })
    }
}

/// The path as the server, which has another working directory, must have it.
fn absolute(file: &Path) -> Result<PathBuf> {
    std::path::absolute(file).doing(|| format!("resolve {}", file.display()))
}

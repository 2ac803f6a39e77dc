//! The server as the plugin speaks with it, and the slot that it holds there.

use super::far_end::{FarEnd, FarEnds};
use crate::control::{Claim, Claimed, Control, Drain, Listed, Listing, Summary};
use crate::error::{Error, Refusal};
use crate::link::{Kind, Name};
use ckrun_plugin::{Ckrun, Code, Fault, Job};
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// In whose name a job's slot is claimed.
pub fn owner(job: &Job) -> String {
    format!("{}@{}", job.id, job.host)
}

/// The sizes of a server's design and its digest, as requirements.
pub fn parameters(listing: &Listing) -> Map<String, Value> {
    let mut map = Map::new();
    map.insert("design".into(), json!(listing.design));
    map.insert("ram".into(), json!(listing.parameters.ram));
    map.insert("fifo".into(), json!(listing.parameters.fifo));
    map.insert("boot".into(), json!(listing.parameters.boot));
    map
}

/// A link's name as bindings have it.
pub fn real(link: &Name) -> String {
    match link.kind {
        Kind::Tcp | Kind::Jtag => format!("tcp:{}", link.address),
        Kind::Unix => format!("unix:{}", link.address),
        Kind::Pty | Kind::Ring => link.address.clone(),
    }
}

/// What it means when the server has gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lost {
    /// The state of the job was in it.
    State,
    /// Nothing of the job was in it yet.
    Nothing,
}

/// An error of the control socket as one of the protocol.
pub fn fault(error: &Error, lost: Lost) -> Fault {
    let gone = match lost {
        Lost::State => Code::Lost,
        Lost::Nothing => Code::Unavailable,
    };
    let code = match error {
        Error::Refused { kind: Refusal::Taken | Refusal::Unknown, .. } => Code::Unavailable,
        Error::Refused { kind: Refusal::Mismatch, .. } => Code::Mismatch,
        Error::Refused { kind: Refusal::Owner, .. } | Error::Gone { .. } | Error::Call { .. } => gone,
        _ => Code::Internal,
    };
    let hint = match error {
        Error::Refused { kind: Refusal::Owner, .. } if lost == Lost::State => {
            "; it was this job's: has the server been started anew?"
        }
        Error::Call { .. } if lost == Lost::Nothing => "; is the server running?",
        _ => "",
    };
    Fault::new(code, format!("{error}{hint}"))
}

/// A server.
#[derive(Debug, Clone)]
pub struct Server {
    /// Its control socket.
    pub path: PathBuf,
    /// Who asks.
    pub owner: String,
    patience: Duration,
}

impl Server {
    /// A server that has so long for each answer.
    pub fn new(path: PathBuf, owner: String, patience: Duration) -> Server {
        Server { path, owner, patience }
    }

    /// The same, asked in another's name.
    pub fn of(self, owner: String) -> Server {
        Server { owner, ..self }
    }

    fn ask<T>(
        &self,
        lost: Lost,
        ask: impl FnOnce(&mut Control) -> crate::error::Result<T>,
    ) -> Result<T, Fault> {
        let asked = Control::connect(&self.path, &self.owner).and_then(|mut control| {
            control.set_patience(self.patience)?;
            ask(&mut control)
        });
        asked.map_err(|error| fault(&error, lost))
    }

    /// Its design and its slots.
    pub fn list(&self) -> Result<Listing, Fault> {
        self.ask(Lost::Nothing, Control::list)
    }

    /// Whether it could load a file.
    pub fn check(&self, file: &Path) -> Result<Summary, Fault> {
        self.ask(Lost::Nothing, |control| control.check(file))
    }

    /// Whether a slot is free, or the one that is asked for.
    pub fn has_room(&self, listing: &Listing, slot: Option<usize>) -> Result<(), Fault> {
        let path = self.path.display();
        let taken = |n: &Listed| {
            format!("slot {} of {path} is taken by {}", n.slot, n.owner.as_deref().unwrap_or("nobody"))
        };
        match slot {
            Some(number) => match listing.slots.iter().find(|slot| slot.slot == number) {
                None => Err(Fault::unavailable(format!("{path} has no slot {number}"))),
                Some(slot) if slot.owner.is_some() => Err(Fault::unavailable(taken(slot))),
                Some(_) => Ok(()),
            },
            None if listing.slots.iter().any(|slot| slot.owner.is_none()) => Ok(()),
            None => {
                let all: Vec<String> = listing.slots.iter().map(taken).collect();
                Err(Fault::unavailable(format!("no slot is free: {}", all.join(", "))))
            }
        }
    }

    /// Claims a slot.
    pub fn claim(
        &self,
        slot: Option<usize>,
        links: Vec<Kind>,
        reconnect: bool,
        frozen: bool,
    ) -> Result<Claimed, Fault> {
        self.ask(Lost::Nothing, |control| control.claim(&Claim { slot, links, reconnect, frozen }))
    }
}

/// What sockets carry, for a person; None if nothing.
#[derive(Debug, Default)]
pub struct OnTheWay {
    /// Replies that the job has not read.
    pub unread: Option<String>,
    /// Requests that have left the job and have not reached the server's socket.
    pub flying: Option<String>,
}

/// Bytes that the server has not seen the job's kernel, or the job, take.
fn sent(link: &Drain) -> u64 {
    link.unwritten + link.undelivered.unwrap_or(0) + link.unacknowledged.unwrap_or(0)
}

/// A slot that is this job's.
#[derive(Debug, Clone)]
pub struct Hold {
    /// Where.
    pub server: Server,
    /// Which.
    pub slot: usize,
}

impl Hold {
    /// The same, with so long for each answer.
    pub fn within(mut self, patience: Duration) -> Hold {
        self.server.patience = patience;
        self
    }

    fn ask<T>(&self, ask: impl FnOnce(&mut Control, usize) -> crate::error::Result<T>) -> Result<T, Fault> {
        self.server.ask(Lost::State, |control| ask(control, self.slot))
    }

    /// Stops it between two transactions.
    pub fn freeze(&self, patience: Duration) -> Result<(), Fault> {
        let asked = Control::connect(&self.server.path, &self.server.owner).and_then(|mut control| {
            control.set_patience(patience)?;
            control.freeze(self.slot)
        });
        match asked {
            Ok(_) => Ok(()),
            Err(Error::Late { seconds, .. }) => Err(Fault::veto(format!(
                "slot {} is in a transaction that has not ended within {seconds} s",
                self.slot
            ))),
            Err(other) => Err(fault(&other, Lost::State)),
        }
    }

    /// Whether it is there and this job's.
    pub fn look(&self) -> Result<(), Fault> {
        let listing = self.ask(|control, _| control.list())?;
        let found = listing.slots.iter().find(|slot| slot.slot == self.slot);
        match found.and_then(|slot| slot.owner.as_deref()) {
            Some(owner) if owner == self.server.owner => Ok(()),
            other => {
                let message = format!("slot {} is {}", self.slot, other.unwrap_or("nobody's"));
                Err(fault(&Error::Refused { kind: Refusal::Owner, message }, Lost::State))
            }
        }
    }

    /// What sockets carry at the moment. What a pty or a ring carries is part of what is saved.
    pub fn on_the_way(&self, ckrun: &mut Ckrun) -> Result<OnTheWay, Fault> {
        let mut links = self.ask(Control::drain)?;
        links.retain(|link| {
            matches!(link.link, Kind::Tcp | Kind::Unix | Kind::Jtag)
                && link.connected
                && link.broken.is_none()
        });
        let mut way = OnTheWay::default();
        for link in links {
            let mut unread = sent(&link);
            if link.link != Kind::Unix {
                // After the server's queues: what has left them is in this one.
                let end = self.far_end(link.link, &FarEnds::of(ckrun)?)?;
                unread += end.unread;
                way.flying = way.flying.or((end.unacknowledged > 0).then(|| {
                    format!("{} bytes of the job's requests have not reached the server", end.unacknowledged)
                }));
            }
            if unread > 0 {
                way.unread = Some(format!("the job has not read all replies on its {} link", link.link));
            }
        }
        Ok(way)
    }

    /// The job's end of the TCP connection of that kind.
    fn far_end(&self, kind: Kind, ends: &FarEnds) -> Result<FarEnd, Fault> {
        let listing = self.ask(|control, _| control.list())?;
        let slots = listing.slots.iter().filter(|slot| slot.slot == self.slot);
        let mut links = slots.flat_map(|slot| &slot.links).filter(|link| link.kind == kind);
        let address = links.next().map(|link| link.address.as_str()).unwrap_or_default();
        ends.of_address(address).ok_or_else(|| {
            Fault::veto(format!(
                "the job's end of the connection to tcp:{address} is not in the job's network namespace, so that \
                 nobody can say what is on its way"
            ))
        })
    }

    /// Saves it; it stays frozen.
    pub fn save(&self, file: &Path) -> Result<Summary, Fault> {
        self.ask(|control, slot| control.save(slot, file))
    }

    /// Loads it. Nothing of the job was in it before.
    pub fn load(&self, file: &Path) -> Result<Summary, Fault> {
        self.server.ask(Lost::Nothing, |control| control.load(self.slot, file))
    }

    /// Lets it go on.
    pub fn thaw(&self) -> Result<(), Fault> {
        self.ask(Control::thaw)
    }

    /// Gives it back.
    pub fn release(&self) -> Result<(), Fault> {
        self.ask(Control::release)
    }
}

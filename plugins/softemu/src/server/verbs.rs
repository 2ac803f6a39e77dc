//! What is asked on the control socket, and what the server does about it.

use super::Server;
use super::link::Link;
use super::port::Port;
use super::pty::Pty;
use super::ring::RingPort;
use super::slot::{Slot, hex, summary};
use super::socket::Socket;
use crate::control::{Claim, Claimed, Listing, Request};
use crate::error::{Error, Refusal, Result};
use crate::hardware::Hardware;
use crate::link::Kind;
use crate::state::Snapshot;
use serde::Serialize;
use serde_json::Value;

/// How a request ends.
#[derive(Debug)]
pub enum Outcome {
    /// With this answer.
    Now(Value),
    /// With what is on the slot's links, when its transaction is done.
    WhenStill(usize),
}

impl<H: Hardware> Server<H> {
    /// Does what was asked.
    pub fn serve(&mut self, request: Request) -> Result<Outcome> {
        now(match request {
            Request::Claim { owner, claim } => value(self.claim(owner, &claim)?),
            Request::Release(of) => {
                let parameters = self.options.parameters;
                *self.owned(of.slot, &of.owner)? = Slot::new(of.slot, parameters)?;
                Value::Null
            }
            Request::Freeze(of) => {
                self.owned(of.slot, &of.owner)?.frozen = true;
                return Ok(Outcome::WhenStill(of.slot));
            }
            Request::Thaw(of) => {
                self.owned(of.slot, &of.owner)?.thaw();
                Value::Null
            }
            Request::Save(of) => value(self.owned(of.slot, &of.owner)?.save(&of.file)?),
            Request::Load(of) => value(self.owned(of.slot, &of.owner)?.load(&of.file)?),
            Request::Check { file } => {
                value(summary(&Snapshot::<H>::read(&file, self.options.parameters)?.design))
            }
            Request::Fault { slot: of, fault } => {
                self.owned(of.slot, &of.owner)?.arm(fault)?;
                Value::Null
            }
            Request::Digest { slot } => value(hex(self.slot(slot)?.design.digest())),
            Request::Cycle { slot } => value(self.slot(slot)?.design.cycle()),
            Request::Drain { slot } => value(self.slot(slot)?.drain()),
            Request::List => value(self.list()),
        })
    }

    fn claim(&mut self, owner: String, claim: &Claim) -> Result<Claimed> {
        let number = match claim.slot {
            Some(number) => {
                if let Some(other) = &self.slot(number)?.owner {
                    return refuse(Refusal::Taken, format!("slot {number} is taken by {other}"));
                }
                number
            }
            None => match self.slots.iter().position(|slot| slot.owner.is_none()) {
                Some(number) => number,
                None => {
                    let owners: Vec<_> = self.slots.iter().filter_map(|slot| slot.owner.as_deref()).collect();
                    let all = format!("all {} slots are taken: {}", self.slots.len(), owners.join(", "));
                    return refuse(Refusal::Taken, all);
                }
            },
        };
        let mut slot = Slot::new(number, self.options.parameters)?;
        for kind in &claim.links {
            if slot.links.iter().any(|link| link.kind == *kind) {
                return refuse(Refusal::Request, format!("a slot has one link of kind {kind}, not two"));
            }
            let port = self.open(number, *kind, claim.reconnect)?;
            slot.links.push(Link::new(*kind, port));
        }
        slot.owner = Some(owner);
        slot.frozen = claim.frozen;
        let links = slot.links.iter().map(|link| link.port.name().clone()).collect();
        self.slots[number] = slot;
        Ok(Claimed { slot: number, links })
    }

    fn open(&self, slot: usize, kind: Kind, reconnect: bool) -> Result<Box<dyn Port>> {
        let place = |suffix: &str| self.options.directory.join(format!("slot{slot}.{suffix}"));
        Ok(match kind {
            Kind::Tcp => Box::new(Socket::tcp(kind, &self.options.listen, reconnect)?),
            Kind::Jtag if !H::HAS_PORT => {
                return refuse(Refusal::Request, "this design has no test access port (JTAG)".into());
            }
            Kind::Jtag => Box::new(Socket::tcp(kind, &self.options.listen, reconnect)?),
            Kind::Unix => Box::new(Socket::unix(&place("socket"), reconnect)?),
            Kind::Pty => Box::new(Pty::open(&place("pty"), reconnect)?),
            Kind::Ring => {
                // The process id keeps servers apart that share the directory of shared memory.
                let name = format!("softemu-{}-slot{slot}", std::process::id());
                Box::new(RingPort::open(&self.options.memory.join(name), &place("ring"))?)
            }
        })
    }

    fn list(&self) -> Listing {
        Listing {
            parameters: self.options.parameters,
            design: hex(H::identity(self.options.parameters)),
            slots: self.slots.iter().map(Slot::listed).collect(),
        }
    }

    /// What is on the links of a slot that was frozen, once no transaction is under way.
    pub fn still(&self, slot: usize) -> Option<Value> {
        let slot = self.slots.get(slot)?;
        (!slot.is_busy()).then(|| value(slot.drain()))
    }

    fn slot(&self, number: usize) -> Result<&Slot<H>> {
        let why = || format!("there is no slot {number}, there are {} from 0", self.slots.len());
        self.slots.get(number).ok_or_else(|| Error::Refused { kind: Refusal::Unknown, message: why() })
    }

    /// The slot, if it is this owner's.
    fn owned(&mut self, number: usize, owner: &str) -> Result<&mut Slot<H>> {
        match &self.slot(number)?.owner {
            Some(holder) if holder == owner => Ok(&mut self.slots[number]),
            Some(holder) => refuse(Refusal::Owner, format!("slot {number} is {holder}'s, not {owner}'s")),
            None => refuse(Refusal::Owner, format!("slot {number} was not claimed")),
        }
    }
}

fn refuse<T>(kind: Refusal, message: String) -> Result<T> {
    Err(Error::Refused { kind, message })
}

fn now(value: Value) -> Result<Outcome> {
    Ok(Outcome::Now(value))
}

/// As JSON. Only maps with keys that are no strings can fail, and there are none.
fn value(of: impl Serialize) -> Value {
    serde_json::to_value(of).unwrap_or_default()
}

//! A slot: one copy of the design, whose it is, its links, the transaction under way, the faults that are armed.

use super::bitbang;
use super::link::Link;
use crate::control::{Drain, Fault, Listed, Summary, When};
use crate::design::Parameters;
use crate::error::{Error, Refusal, Result};
use crate::hardware::Hardware;
use crate::link::Kind;
use crate::state::{LinkState, Snapshot};
use crate::transaction::Work;
use std::path::Path;

/// Cycles that a slot may take before the others have their turn: some milliseconds.
const SLICE: u64 = 1 << 20;
/// Transactions of a link, likewise.
const BATCH: usize = 256;
/// Commands of a JTAG adapter, likewise, of which there are many more.
const COMMANDS: usize = 256;

/// A slot.
#[derive(Debug)]
pub struct Slot<H> {
    number: usize,
    pub owner: Option<String>,
    pub frozen: bool,
    pub design: H,
    pub links: Vec<Link>,
    served: u64,
    underway: Option<Underway>,
    faults: Vec<Fault>,
}

/// A transaction that has begun.
#[derive(Debug)]
struct Underway {
    link: usize,
    sequence: u32,
    work: Work,
}

impl<H: Hardware> Slot<H> {
    /// A free slot.
    pub fn new(number: usize, parameters: Parameters) -> Result<Slot<H>> {
        Ok(Slot {
            number,
            owner: None,
            frozen: false,
            design: H::power_on(parameters)?,
            links: Vec::new(),
            served: 0,
            underway: None,
            faults: Vec::new(),
        })
    }

    /// Whether a transaction is under way.
    pub fn is_busy(&self) -> bool {
        self.underway.is_some()
    }

    /// Does what there is to do, for a while. True if there is more.
    pub fn turn(&mut self) -> bool {
        let mut more = self.underway.is_some() && !self.work();
        if !self.frozen {
            for link in 0..self.links.len() {
                let mut left = BATCH;
                while !more && self.serve(link) {
                    left -= 1;
                    more = self.underway.is_some() || left == 0;
                }
            }
        }
        self.links.iter_mut().for_each(Link::send);
        more
    }

    /// Carries out the next commands of a JTAG adapter, each of which is a transaction.
    fn serve_adapter(&mut self, link: usize) -> bool {
        let commands = self.links[link].commands(COMMANDS);
        for command in &commands {
            match bitbang::serve(&mut self.design, *command) {
                Ok(Some(answer)) => self.links[link].says(&[answer]),
                Ok(None) => {}
                Err(why) => {
                    self.links[link].breaks(&why);
                    return false;
                }
            }
            self.served += 1;
            self.count();
        }
        !commands.is_empty()
    }

    /// Begins the next transaction of a link, and perhaps ends it. False if there is none.
    fn serve(&mut self, link: usize) -> bool {
        if self.links[link].kind == Kind::Jtag {
            return self.serve_adapter(link);
        }
        let Some((sequence, request)) = self.links[link].next() else { return false };
        let work = Work::begin(&mut self.design, &request);
        self.underway = Some(Underway { link, sequence, work });
        self.work();
        true
    }

    /// Goes on with the transaction under way, for a slice. True when it is done.
    fn work(&mut self) -> bool {
        let Some(mut underway) = self.underway.take() else { return true };
        let mut left = SLICE;
        while left > 0 {
            // A fault strikes between two cycles, in the middle of a transaction if need be.
            let slice = left.min(self.until_fault());
            let done = underway.work.advance(&mut self.design, slice);
            self.strike();
            if done {
                let reply = underway.work.reply(&self.design, underway.sequence);
                self.links[underway.link].answer(&reply);
                self.served += 1;
                self.count();
                return true;
            }
            left -= slice;
        }
        self.underway = Some(underway);
        false
    }

    /// Cycles until the next fault that waits for its cycle, at least 1.
    fn until_fault(&self) -> u64 {
        let cycle = |fault: &Fault| match fault.at {
            When::Cycle(cycle) => Some(cycle.saturating_sub(self.design.cycle()).max(1)),
            When::Transactions(_) => None,
        };
        self.faults.iter().filter_map(cycle).min().unwrap_or(u64::MAX)
    }

    /// Lets the faults strike whose time has come.
    fn strike(&mut self) {
        let design = &mut self.design;
        self.faults.retain(|fault| {
            let due = match fault.at {
                When::Cycle(cycle) => cycle <= design.cycle(),
                When::Transactions(left) => left == 0,
            };
            // It was checked when it was armed, so it can't fail.
            !(due && design.flip(&fault.element, fault.bit).is_ok())
        });
    }

    /// One more transaction has been served.
    fn count(&mut self) {
        for fault in &mut self.faults {
            if let When::Transactions(left) = &mut fault.at {
                *left = left.saturating_sub(1);
            }
        }
        self.strike();
    }

    /// Arms a fault.
    pub fn arm(&mut self, fault: Fault) -> Result<()> {
        self.design.has(&fault.element, fault.bit)?;
        if let When::Cycle(cycle) = fault.at
            && cycle < self.design.cycle()
        {
            return Err(Error::Argument {
                what: format!("cycle {cycle}"),
                why: format!("has passed, slot {} is at {}", self.number, self.design.cycle()),
            });
        }
        self.faults.push(fault);
        self.strike();
        Ok(())
    }

    /// What is on its links.
    pub fn drain(&self) -> Vec<Drain> {
        self.links.iter().map(Link::drain).collect()
    }

    /// Serves again.
    pub fn thaw(&mut self) {
        self.frozen = false;
        self.links.iter_mut().for_each(Link::thaw);
    }

    /// Its state, which must stand still, to a file.
    pub fn save(&mut self, file: &Path) -> Result<Summary> {
        self.still()?;
        let links: std::result::Result<Vec<_>, String> = self.links.iter_mut().map(Link::save).collect();
        let links = links.map_err(|message| Error::Refused { kind: Refusal::System, message })?;
        let bytes = Snapshot::encode(&self.design, &links);
        Snapshot::<H>::write(&bytes, file)?;
        Ok(summary(&self.design))
    }

    /// Its state from a file: all of it, or nothing has changed.
    pub fn load(&mut self, file: &Path) -> Result<Summary> {
        self.still()?;
        let Snapshot { design, links } = Snapshot::read(file, self.design.parameters())?;
        let mut places = Vec::new();
        for state in links {
            if let Some(place) = self.place(&state).map_err(|why| Error::Refused {
                kind: Refusal::Mismatch,
                message: format!("{}: {why}", file.display()),
            })? {
                places.push((place, state));
            }
        }
        self.design = design;
        for (place, state) in places {
            self.links[place].load(state);
        }
        Ok(summary(&self.design))
    }

    /// Which link goes on where this one was saved; none if it had not been used.
    fn place(&self, state: &LinkState) -> std::result::Result<Option<usize>, String> {
        let kind = state.kind;
        let Some(place) = self.links.iter().position(|link| link.kind == kind) else {
            if state.next.is_none() && state.requests.is_empty() && state.replies.is_empty() {
                return Ok(None);
            }
            return Err(format!(
                "the job has used a link of kind {kind}, and slot {} was claimed without one",
                self.number
            ));
        };
        if !self.links[place].port.fits(&state.ring) {
            return Err(format!("the ring is not of the size of the one in slot {}", self.number));
        }
        Ok(Some(place))
    }

    fn still(&self) -> Result<()> {
        if self.frozen && self.underway.is_none() {
            return Ok(());
        }
        let message = format!("slot {} is not frozen: freeze it first", self.number);
        Err(Error::Refused { kind: Refusal::State, message })
    }

    /// How it is listed.
    pub fn listed(&self) -> Listed {
        Listed {
            slot: self.number,
            owner: self.owner.clone(),
            frozen: self.frozen,
            cycle: self.design.cycle(),
            served: self.served,
            links: self.links.iter().map(|link| link.port.name().clone()).collect(),
        }
    }
}

/// What a person and a plugin want to know of a state.
pub fn summary<H: Hardware>(design: &H) -> Summary {
    Summary {
        design: hex(H::identity(design.parameters())),
        cycle: design.cycle(),
        digest: hex(design.digest()),
    }
}

/// A digest in hexadecimal digits.
pub fn hex(digest: u128) -> String {
    format!("{digest:032x}")
}

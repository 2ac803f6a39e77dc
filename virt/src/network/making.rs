//! Making links again, and making those that are there what they were.

use super::links::{ADDRESS_GENERATION, ATTRIBUTES, FLAGS, Link, Origin, UP, dump, ifla, info, read};
use super::{FILE, Given, kinds, tun};
use crate::netlink::record::{Names, Record, number, write};
use crate::netlink::{Attributes, Netlink};
use crate::{Doing, Error, Failure};
use nix::errno::Errno;
use std::collections::BTreeMap;

/// `VETH_INFO_PEER` of `linux/veth.h`.
const PEER: u16 = 1;
/// `RTM_NEWLINKPROP` of `linux/rtnetlink.h`.
const NEW_NAMES: u16 = 108;
/// `IN6_ADDR_GEN_MODE_NONE`.
const NO_ADDRESSES: u8 = 1;

/// Whoever makes links.
pub(super) struct Maker<'a> {
    pub route: &'a mut Netlink,
    pub links: &'a [Link],
    /// The links that are there.
    pub names: Names,
}

fn damaged(link: &Link, why: impl std::fmt::Display) -> Error {
    Error::Damaged(format!("{FILE}: link {}: {why}", link.name))
}

fn header(index: u32, flags: u32, change: u32) -> Attributes {
    let words = [0, index, flags, change].map(u32::to_ne_bytes).concat();
    Attributes::behind(&words)
}

impl Maker<'_> {
    /// Makes every link that is to be made, each after what it stands on.
    pub fn make(&mut self) -> Result<(), Error> {
        for link in self.links.iter().filter(|link| !link.is_made()) {
            if self.names.index(&link.name).is_none() {
                let why =
                    "nothing in config.json (linux.netDevices, hooks) has brought it, and the job had it";
                return Err(Error::Unsupported(format!(
                    "link {}: {why}; --empty-ns network leaves what was in the network namespace out",
                    link.name
                )));
            }
        }
        let mut missing: Vec<&Link> = self.links.iter().filter(|link| link.is_made()).collect();
        while !missing.is_empty() {
            let (now, later): (Vec<_>, Vec<_>) = missing.into_iter().partition(|link| self.can_stand(link));
            if now.is_empty()
                && let Some(link) = later.first()
            {
                return Err(damaged(link, "what it stands on is not there"));
            }
            for link in now {
                // The other end of a pair comes with the first.
                if self.names.index(&link.name).is_none() {
                    self.make_one(link)?;
                }
            }
            missing = later;
        }
        Ok(())
    }

    fn can_stand(&self, link: &Link) -> bool {
        let on = link.link.as_ref().filter(|_| !link.is("veth"));
        on.is_none_or(|on| self.names.index(on).is_some())
    }

    fn make_one(&mut self, link: &Link) -> Result<(), Error> {
        match self.order_one(link, true) {
            // Another link has its number.
            Err(Error::Call(Failure { errno: Errno::EBUSY | Errno::EEXIST, .. })) => {
                self.order_one(link, false)?;
                self.names = dump(self.route)?.1;
            }
            made => {
                made?;
                self.names.insert(link.index, &link.name);
                let other = link.link.as_ref().filter(|_| link.is("veth"));
                if let Some(other) = self.links.iter().find(|end| Some(&end.name) == other) {
                    self.names.insert(other.index, &other.name);
                }
            }
        }
        Ok(())
    }

    fn order_one(&mut self, link: &Link, numbered: bool) -> Result<(), Error> {
        let index = |link: &Link| if numbered { link.index } else { 0 };
        if link.is("tun") {
            return Ok(tun::make(link, index(link))?);
        }
        let mut order = self.basics(link, index(link))?;
        let mut details = Attributes::default();
        details.put_text(info::KIND, link.kind.as_deref().unwrap_or_default());
        if link.is("veth") {
            let other =
                link.link.as_ref().and_then(|name| self.links.iter().find(|other| other.name == *name));
            let other = other.filter(|other| other.link.as_ref() == Some(&link.name) && other.is_made());
            let other = other.ok_or_else(|| damaged(link, "its other end is not there"))?;
            let mut data = Attributes::default();
            data.nest(PEER, &self.basics(other, index(other))?);
            details.nest(info::DATA, &data);
        } else {
            let table = link.kind.as_deref().and_then(kinds::table).unwrap_or_default();
            let data = write(table, &link.data, &self.names).map_err(|why| damaged(link, why))?;
            if !link.data.is_empty() {
                details.nest(info::DATA, &data);
            }
            if let Some(on) = &link.link {
                let index =
                    self.names.index(on).ok_or_else(|| damaged(link, "what it stands on is not there"))?;
                order.put_u32(ifla::LINK, index);
            }
        }
        order.nest(ifla::LINKINFO, &details);
        let flags = libc::NLM_F_CREATE | libc::NLM_F_EXCL;
        Ok(self
            .route
            .order(libc::RTM_NEWLINK, flags, order.bytes(), || format!("make the link {}", link.name))?)
    }

    /// What a link can only be born with.
    fn basics(&self, link: &Link, index: u32) -> Result<Attributes, Error> {
        let mut order = header(index, 0, 0);
        order.put_text(ifla::IFNAME, &link.name);
        let mut born = link.attributes.clone();
        born.retain(|name, _| {
            // A bridge has one of its ports', as long as nobody has said otherwise.
            ["sending-queues", "receiving-queues"].contains(&name.as_str())
                || name == "address" && !link.is("bridge")
        });
        let born = write(ATTRIBUTES, &born, &self.names).map_err(|why| damaged(link, why))?;
        Ok(Attributes::behind(&[order.bytes(), born.bytes()].concat()))
    }

    /// Gives all links but the sandbox's what they had, as far as they have not got it yet.
    pub fn change(&mut self) -> Result<(), Error> {
        self.change_those(false)?;
        // What a bridge has follows from its ports, unless it was set.
        if self.links.iter().any(|link| link.is("bridge")) { self.change_those(true) } else { Ok(()) }
    }

    fn change_those(&mut self, settled: bool) -> Result<(), Error> {
        let now = self.now()?;
        let mut all: Vec<&Link> = self.links.iter().filter(|link| link.origin != Origin::Given).collect();
        all.sort_by_key(|link| number(&link.port, kinds::PORT_NUMBER.1));
        for link in all {
            let Some(there) = now.get(&link.name) else { continue };
            let own = |name: &str| {
                let from_ports = link.is("bridge") && ["address", "mtu"].contains(&name);
                !["sending-queues", "receiving-queues"].contains(&name) && (settled || !from_ports)
            };
            let mut new = different(&link.attributes, &there.attributes);
            new.retain(|name, _| own(name));
            let mut details = Attributes::default();
            if link.master.is_some() && there.master == link.master {
                let mut port = different(&link.port, &there.port);
                port.remove(kinds::PORT_NUMBER.1);
                if !port.is_empty() {
                    let port = write(kinds::PORT, &port, &self.names).map_err(|why| damaged(link, why))?;
                    details.put_text(info::SLAVE_KIND, "bridge").nest(info::SLAVE_DATA, &port);
                }
            }
            // Up it goes last.
            let flags = (link.flags & !UP) | there.flags & UP;
            let nothing = new.is_empty() && details.bytes().is_empty();
            if nothing && there.master == link.master && flags == there.flags {
                continue;
            }
            let new = write(ATTRIBUTES, &new, &self.names).map_err(|why| damaged(link, why))?;
            let mut order = header(there.index, flags, FLAGS & !UP);
            order = Attributes::behind(&[order.bytes(), new.bytes()].concat());
            if there.master != link.master {
                let master = link.master.as_ref().map_or(Some(0), |name| self.names.index(name));
                order.put_u32(ifla::MASTER, master.ok_or_else(|| damaged(link, "its bridge is not there"))?);
            }
            if !details.bytes().is_empty() {
                order.nest(ifla::LINKINFO, &details);
            }
            self.set(link, &order)?;
        }
        self.rename(&now)
    }

    /// Other names.
    fn rename(&mut self, now: &BTreeMap<String, Link>) -> Result<(), Error> {
        for link in self.links.iter().filter(|link| link.origin != Origin::Given) {
            let Some(there) = now.get(&link.name) else { continue };
            let mut list = Attributes::default();
            for name in link.names.iter().filter(|name| !there.names.contains(name)) {
                list.put_text(ifla::ALT_IFNAME, name);
            }
            if !list.bytes().is_empty() {
                let mut order = header(there.index, 0, 0);
                order.nest(ifla::PROP_LIST, &list);
                let flags = libc::NLM_F_CREATE | libc::NLM_F_EXCL | libc::NLM_F_APPEND;
                let what = || format!("give the link {} its other names", link.name);
                self.route.order(NEW_NAMES, flags, order.bytes(), what)?;
            }
        }
        Ok(())
    }

    /// Sets links up and down, each after what it stands on. None makes addresses for itself: it gets those that it had.
    pub fn raise(&mut self) -> Result<(), Error> {
        let now = self.now()?;
        let mut order: Vec<&Link> = self.links.iter().filter(|link| link.origin != Origin::Given).collect();
        order.sort_by_key(|link| self.height(link));
        for link in order {
            let Some(there) = now.get(&link.name) else { continue };
            if link.flags & UP != there.flags & UP {
                if link.is_made() {
                    self.generate(link, NO_ADDRESSES)?;
                }
                self.set(link, &header(there.index, link.flags & UP, UP))?;
            }
        }
        Ok(())
    }

    /// How many links it stands on.
    fn height(&self, link: &Link) -> usize {
        let mut height = 0;
        let mut at = link;
        while let Some(on) = at.link.as_ref().filter(|_| !at.is("veth"))
            && let Some(below) = self.links.iter().find(|link| link.name == *on)
            && height <= self.links.len()
        {
            (height, at) = (height + 1, below);
        }
        height
    }

    /// Waits until all know of the state of the wires: the kernel tells it a little later, but before it answers a question
    /// about one link (`rtnl_getlink`).
    pub fn wires(&mut self) -> Result<(), Error> {
        for link in self.links.iter().filter(|link| link.is_made()) {
            let index = self.names.index(&link.name).unwrap_or(0);
            let what = || format!("look at the link {}", link.name);
            self.route.ask(libc::RTM_GETLINK, header(index, 0, 0).bytes()).doing(what)?;
        }
        Ok(())
    }

    /// Lets links make addresses for themselves as before. When its wire is connected a link begins with that, so those of
    /// which that is still to come are left for a second time.
    pub fn let_generate(&mut self, tuns: bool) -> Result<(), Error> {
        let now = self.now()?;
        let due = |link: &&Link| link.origin != Origin::Given && (tuns || !link.is("tun"));
        for link in self.links.iter().filter(due) {
            let there = now.get(&link.name).and_then(|there| there.address_generation);
            if let Some(mode) = link.address_generation
                && there.is_some_and(|there| there != mode)
            {
                self.generate(link, mode)?;
            }
        }
        Ok(())
    }

    fn generate(&mut self, link: &Link, mode: u8) -> Result<(), Error> {
        if link.address_generation.is_none() {
            return Ok(());
        }
        let (mut own, mut families) = (Attributes::default(), Attributes::default());
        own.put(ADDRESS_GENERATION, &[mode]);
        families.nest(libc::AF_INET6 as u16, &own);
        let index = self.names.index(&link.name).unwrap_or(0);
        let mut order = header(index, 0, 0);
        order.nest(ifla::AF_SPEC, &families);
        self.set(link, &order)
    }

    fn set(&mut self, link: &Link, order: &Attributes) -> Result<(), Error> {
        let what = || format!("change the link {}", link.name);
        Ok(self.route.order(libc::RTM_NEWLINK, 0, order.bytes(), what)?)
    }

    /// What is there.
    fn now(&mut self) -> Result<BTreeMap<String, Link>, Error> {
        let (messages, names) = dump(self.route)?;
        let mut found = BTreeMap::new();
        for message in &messages {
            let (link, _) = read(message, &names, &Given::default());
            found.insert(link.name.clone(), link);
        }
        self.names = names;
        Ok(found)
    }
}

/// What of a record another one has not, or has differently.
fn different(wanted: &Record, there: &Record) -> Record {
    let new = wanted.iter().filter(|(name, value)| there.get(*name) != Some(value));
    new.map(|(name, value)| (name.clone(), value.clone())).collect()
}

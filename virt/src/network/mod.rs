//! What is in a network namespace that ckrun has made for a job: links, addresses, routes, rules, neighbours, parameters and
//! packet filters.
//!
//! A restart's sandbox makes the namespace, and what config.json brings into it (`linux.netDevices`, hooks). All else is made
//! again from what the kernel has told of the old one ([`Network`]), before the job's sockets are, so that there are
//! addresses to bind them to. A namespace that is given by its path is its owner's: nothing of it is read or changed.
//!
//! The kernel's messages are kept with names instead of numbers ([`record`](crate::netlink::record)): links are known by
//! theirs, and may have other indices afterwards.

mod addresses;
mod connections;
mod entries;
mod kinds;
mod links;
mod making;
mod nft;
mod others;
mod routes;
mod sysctls;
#[cfg(test)]
mod tests;
pub mod tun;
pub mod wall;

pub use links::{Link, Origin};
pub use nft::Entry as Filter;
pub use sysctls::Sysctls;

use crate::fd::Mount;
use crate::namespace::{Kind, Namespace};
use crate::netlink::record::{Record, Value, number, text};
use crate::netlink::{Netlink, protocols};
use crate::resource::Blocker;
use crate::{Doing, Error, Failure};
use addresses::ADDRESSES;
use entries::Unread;
use nix::unistd::Pid;
use routes::{NEIGHBOUR_LISTS, NEIGHBOURS, ROUTES, RULES};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use sysctls::When;

/// The file of the image.
pub const FILE: &str = "network.json";
/// The most of anything that an image may list.
const MOST: usize = 1_000_000;

/// What the sandbox of a restart brings into the namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Given {
    /// Names of links; one that ends in `%d` stands for all with a number there.
    pub links: Vec<String>,
    /// There are hooks, which may bring anything.
    pub hooks: bool,
}

impl Given {
    fn has(&self, name: &str) -> bool {
        let is = |given: &String| match given.strip_suffix("%d") {
            None => given == name,
            Some(stem) => name
                .strip_prefix(stem)
                .is_some_and(|rest| !rest.is_empty() && rest.bytes().all(|byte| byte.is_ascii_digit())),
        };
        self.links.iter().any(is)
    }
}

/// What can't be carried.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Refusal {
    what: String,
    why: String,
    remedy: Option<String>,
}

/// What is in a namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Network {
    /// Links, by their indices.
    pub links: Vec<Link>,
    /// Their addresses.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<Record>,
    /// Routes of all tables.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub routes: Vec<Record>,
    /// Rules that choose a table.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<Record>,
    /// Neighbours that were entered, not found out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub neighbours: Vec<Record>,
    /// Parameters that are not those of a new namespace.
    #[serde(default, skip_serializing_if = "Sysctls::is_empty")]
    pub sysctls: Sysctls,
    /// Packet filters of nftables.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub filters: Vec<Filter>,
    /// Connections that these know.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub connections: Vec<Record>,
}

/// Names what of the network namespace of a job can't be carried; see [`capture`].
///
/// # Errors
/// The kernel's.
pub(crate) fn survey(
    init: Pid,
    processes: &[Pid],
    mounted: &[(u64, Mount)],
    given: &Given,
) -> Result<Vec<Blocker>, Failure> {
    Ok(look(init, processes, mounted, given, true)?.map(|(_, blockers)| blockers).unwrap_or_default())
}

/// Reads what is in the network namespace of the job whose first process is `init`, and whose processes are `processes`;
/// None when there is nothing but what a new sandbox has. What only an administrator makes, and what takes longest to look
/// for, [`survey`] has looked for a moment ago.
///
/// # Errors
/// The kernel's.
pub(crate) fn capture(
    init: Pid,
    processes: &[Pid],
    mounted: &[(u64, Mount)],
    given: &Given,
) -> Result<(Option<Network>, Vec<Blocker>), Failure> {
    let found = look(init, processes, mounted, given, false)?;
    let (network, blockers) =
        found.map_or((None, Vec::new()), |(network, blockers)| (Some(network), blockers));
    Ok((network.filter(|network| !network.is_new()), blockers))
}

/// None when the namespace is the host's.
fn look(
    init: Pid,
    processes: &[Pid],
    mounted: &[(u64, Mount)],
    given: &Given,
    thorough: bool,
) -> Result<Option<(Network, Vec<Blocker>)>, Failure> {
    let Some(namespace) = Namespace::of(init, Kind::Net)? else { return Ok(None) };
    let writable = sysctls::writable(init, mounted);
    let abroad = namespace.enter()?;
    let read = Network::read(given, writable && !thorough, thorough);
    drop(abroad);
    let (network, mut troubles) = read?;
    network.unattended(processes, &mut troubles);
    let comm =
        || std::fs::read_to_string(format!("/proc/{init}/comm")).unwrap_or_default().trim_end().to_owned();
    let blocker = |Refusal { what, why, remedy }| Blocker { pid: 1, comm: comm(), what, why, remedy };
    Ok(Some((network, troubles.into_iter().map(blocker).collect())))
}

impl Network {
    /// What is in the namespace that this thread is in; with the parameters, if these may have been changed, and, if it is to
    /// be thorough, with a look for what can't be carried at all.
    fn read(given: &Given, writable: bool, thorough: bool) -> Result<(Network, Vec<Refusal>), Failure> {
        let mut route =
            Netlink::open(protocols::ROUTE).doing(|| "open a socket to the job's network namespace")?;
        let route = &mut route;
        let mut troubles = Vec::new();
        let (messages, names) = links::dump(route)?;
        let mut links = Vec::with_capacity(messages.len());
        for message in &messages {
            let (link, found) = links::read(message, &names, given);
            links.push(link);
            troubles.extend(found);
        }
        links.sort_by_key(|link| link.index);
        // Who brings one end of a pair brings the other.
        let given: BTreeSet<String> =
            links.iter().filter(|link| link.origin == Origin::Given).map(|link| link.name.clone()).collect();
        for link in links.iter_mut().filter(|link| link.is("veth") && link.is_made()) {
            if link.link.as_ref().is_some_and(|other| given.contains(other)) {
                link.origin = Origin::Given;
            }
        }
        let mut note = |(records, unread): (Vec<Record>, Vec<Unread>)| {
            troubles.extend(unread.into_iter().map(|(what, why)| Refusal { what, why, remedy: None }));
            records
        };
        let addresses = note(ADDRESSES.read(route, &[0; 8], &names)?);
        let routes = note(ROUTES.read(route, &[0; 12], &names)?);
        let rules = note(RULES.read(route, &[0; 12], &names)?);
        let mut neighbours = Vec::new();
        // The loopback interface has none.
        if links.len() > 1 {
            let bridged = links.iter().any(|link| link.is("bridge"));
            for request in NEIGHBOUR_LISTS.iter().take(if bridged { 3 } else { 2 }) {
                neighbours.extend(note(NEIGHBOURS.read(route, request, &names)?));
            }
        }
        let given = |entry: &Record| {
            links.iter().any(|link| link.origin == Origin::Given && text(entry, "link") == Some(&link.name))
        };
        let own = |entry: &Record| {
            links.iter().any(|link| link.attributes.get("address") == entry.get("hardware"))
                && number(entry, "family") == libc::AF_BRIDGE as u64
        };
        neighbours.retain(|entry| !given(entry) && !own(entry));
        if thorough {
            others::survey(route, &links, &names, &mut troubles)?;
        }
        let filters = nft::capture(&names, &mut troubles)?;
        // Without filters nobody follows any.
        let follows = !filters.is_empty();
        let connections = if follows { connections::capture(&mut troubles)? } else { Vec::new() };
        let sysctls = if writable { sysctls::capture()? } else { Sysctls::new() };
        Ok((Network { links, addresses, routes, rules, neighbours, sysctls, filters, connections }, troubles))
    }

    /// A device of `/dev/net/tun` that lasts only as long as somebody outside of the job is attached to it.
    fn unattended(&self, processes: &[Pid], troubles: &mut Vec<Refusal>) {
        let passing =
            |link: &&Link| link.is("tun") && link.is_made() && number(&link.data, "persistent") == 0;
        if !self.links.iter().any(|link| passing(&link)) {
            return;
        }
        let attached = tun::attached(processes);
        for link in self.links.iter().filter(passing).filter(|link| !attached.contains(&link.name)) {
            troubles.push(Refusal {
                what: format!("link {}", link.name),
                why: "it is there as long as somebody is attached to it, and nobody in the job is".into(),
                remedy: Some(format!("make it persistent (ip tuntap add {} …)", link.name)),
            });
        }
    }

    /// For people: what there is, and how much.
    pub fn summary(&self) -> String {
        let kind = |link: &Link| match (&link.kind, link.origin) {
            (_, Origin::Given) => format!("{} (the sandbox's)", link.name),
            (Some(kind), _) => format!("{} ({kind})", link.name),
            (None, _) => link.name.clone(),
        };
        let made = self.routes.iter().filter(|route| !routes::is_by_kernel(route)).count();
        let counts = [
            (self.addresses.len(), "addresses"),
            (made, "routes"),
            (self.neighbours.len(), "neighbours"),
            (self.sysctls.len(), "parameters"),
            (self.filters.len(), "parts of packet filters"),
            (self.connections.len(), "connections that these know"),
        ];
        let counts =
            counts.iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!("{count} {what}"));
        let links: Vec<String> = self.links.iter().map(kind).collect();
        format!("{}; {}", links.join(", "), counts.collect::<Vec<_>>().join(", "))
    }

    /// It is as the sandbox makes it: with the loopback interface, which is up, and what the kernel adds to that.
    fn is_new(&self) -> bool {
        let [lo] = self.links.as_slice() else { return false };
        let plain = lo.flags & links::FLAGS == links::UP
            && lo.names.is_empty()
            && number(&lo.attributes, "mtu") == 65536
            && number(&lo.attributes, "queue-length") == 1000
            && number(&lo.attributes, "group") == 0
            && !lo.attributes.contains_key("alias");
        let own = |entry: &Record| match entry.get("local").or_else(|| entry.get("address")) {
            Some(Value::Text(address)) => {
                (address == "127.0.0.1" && number(entry, "prefix") == 8)
                    || (address == "::1" && number(entry, "prefix") == 128)
            }
            _ => false,
        };
        // As many as the kernel makes with these.
        let four = |entry: &&Record| number(entry, "family") == libc::AF_INET as u64;
        plain
            && self.addresses.iter().all(own)
            && self.addresses.iter().filter(four).count() == 1
            && self.routes.iter().all(routes::is_by_kernel)
            && self.routes.iter().filter(four).count() == 3
            && self.rules.iter().all(routes::is_by_kernel)
            && self.rules.iter().filter(four).count() == 3
            && self.neighbours.is_empty()
            && self.sysctls.is_empty()
            && self.filters.is_empty()
    }

    /// Makes the namespace of the new first process what it was.
    ///
    /// # Errors
    /// The kernel's; a link that the sandbox should have brought.
    pub(crate) fn restore(&self, init: Pid) -> Result<(), Error> {
        let Some(namespace) = Namespace::of(init, Kind::Net)? else {
            log::warn!("the container has the host's network namespace: what was in the job's is left out");
            return Ok(());
        };
        let _abroad = namespace.enter()?;
        self.make()
    }

    /// Does what is left when the job's descriptors are attached to its devices again.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) fn finish(&self, init: Pid) -> Result<(), Error> {
        if !self.links.iter().any(|link| link.is("tun")) {
            return Ok(());
        }
        let Some(namespace) = Namespace::of(init, Kind::Net)? else { return Ok(()) };
        let _abroad = namespace.enter()?;
        self.attached()
    }

    fn attached(&self) -> Result<(), Error> {
        let mut route =
            Netlink::open(protocols::ROUTE).doing(|| "open a socket to the job's network namespace")?;
        let (_, names) = links::dump(&mut route)?;
        let mut maker = making::Maker { route: &mut route, links: &self.links, names };
        maker.wires()?;
        sysctls::restore_links(&self.sysctls, &self.links, When::Up)?;
        maker.let_generate(true)
    }

    /// The same as [`Network::restore`] in the namespace that this thread is in.
    fn make(&self) -> Result<(), Error> {
        sysctls::restore(&self.sysctls)?;
        let mut route =
            Netlink::open(protocols::ROUTE).doing(|| "open a socket to the job's network namespace")?;
        let (_, names) = links::dump(&mut route)?;
        let mut maker = making::Maker { route: &mut route, links: &self.links, names };
        maker.make()?;
        sysctls::restore_links(&self.sysctls, &self.links, When::Down)?;
        maker.change()?;
        maker.raise()?;
        maker.wires()?;
        sysctls::restore_links(&self.sysctls, &self.links, When::Up)?;
        let names = maker.names.clone();
        let given = self.links.iter().filter(|link| link.origin == Origin::Given);
        let given: BTreeSet<&str> = given.map(|link| link.name.as_str()).collect();
        let elsewhere = addresses::restore(&self.addresses, &given, maker.route, &names)?;
        maker.let_generate(false)?;
        let up = self.links.iter().filter(|link| link.origin != Origin::Given && link.flags & links::UP != 0);
        let up: BTreeSet<&str> = up.map(|link| link.name.as_str()).collect();
        routes::await_local(&addresses::sixes(&self.addresses, &up), &mut route, &names)?;
        routes::restore_neighbours(&self.neighbours, &mut route, &names)?;
        routes::restore_rules(&self.rules, &mut route, &names)?;
        routes::restore(&self.routes, &given, &elsewhere, &mut route, &names)?;
        nft::restore(&self.filters, &names)?;
        connections::restore(&self.connections)
    }

    /// Checks what an image says, as far as the kernel will not.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(crate) fn check(&self) -> Result<(), String> {
        for list in [&self.addresses, &self.routes, &self.rules, &self.neighbours, &self.connections] {
            if list.len() > MOST {
                return Err(format!("more than {MOST} entries in a list"));
            }
        }
        if self.links.len() > MOST || self.filters.len() > MOST {
            return Err(format!("more than {MOST} links or filters"));
        }
        let mut names = BTreeSet::new();
        for link in &self.links {
            let strange = |c: char| c == '/' || c == ':' || c == '%' || c == '\0' || c.is_whitespace();
            let name = &link.name;
            if name.is_empty()
                || name.len() >= libc::IFNAMSIZ
                || name == "."
                || name == ".."
                || name.contains(strange)
            {
                return Err(format!("{name:?} is no name of a link"));
            }
            if !names.insert(name) {
                return Err(format!("two links {name}"));
            }
            let made = link.kind.as_deref().and_then(kinds::table);
            if link.is_made() && made.is_none() || (link.origin == Origin::Loopback) != (name == "lo") {
                return Err(format!("link {name}: it can't be of this kind"));
            }
            if link.index == 0 || i32::try_from(link.index).is_err() {
                return Err(format!("link {name}: it can't have the number {}", link.index));
            }
        }
        sysctls::check(&self.sysctls)
    }
}

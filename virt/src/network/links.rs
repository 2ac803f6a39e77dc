//! Links: what they are, and which of them an image can hold.

use super::kinds::{self, PORT};
use super::{Given, Refusal};
use crate::netlink::attributes::{find, find_u32};
use crate::netlink::record::{Field, Kind, Names, Record, Value, field, number, read_known};
use crate::netlink::{Attributes, Netlink, attributes};
use crate::{Doing, Failure};
use serde::{Deserialize, Serialize};

/// `struct ifinfomsg`.
pub(super) const HEADER: usize = 16;

/// `IFLA_*` of `linux/if_link.h` that are read one by one.
pub(super) mod ifla {
    pub const ADDRESS: u16 = 1;
    pub const IFNAME: u16 = 3;
    pub const MTU: u16 = 4;
    pub const LINK: u16 = 5;
    pub const MASTER: u16 = 10;
    pub const LINKINFO: u16 = 18;
    pub const AF_SPEC: u16 = 26;
    pub const EXT_MASK: u16 = 29;
    pub const NUM_TX_QUEUES: u16 = 31;
    pub const NUM_RX_QUEUES: u16 = 32;
    pub const LINK_NETNSID: u16 = 37;
    pub const XDP: u16 = 43;
    pub const PROP_LIST: u16 = 52;
    pub const ALT_IFNAME: u16 = 53;
}

/// `IFLA_INFO_*`.
pub(super) mod info {
    pub const KIND: u16 = 1;
    pub const DATA: u16 = 2;
    pub const SLAVE_KIND: u16 = 4;
    pub const SLAVE_DATA: u16 = 5;
}

/// `IFLA_INET6_*`, in `AF_INET6` of `IFLA_AF_SPEC`.
const INET6: u16 = libc::AF_INET6 as u16;
const TOKEN: u16 = 7;
pub(super) const ADDRESS_GENERATION: u16 = 8;
/// `RTEXT_FILTER_SKIP_STATS`.
const NO_STATISTICS: u32 = 8;
/// `IFLA_XDP_ATTACHED`.
const XDP_ATTACHED: u16 = 2;

/// Attributes that every link has, and that can be set.
pub(super) const ATTRIBUTES: &[Field] = &[
    field(ifla::ADDRESS, "address", Kind::Mac),
    field(ifla::MTU, "mtu", Kind::U32),
    field(13, "queue-length", Kind::U32),
    field(17, "mode", Kind::U8),
    field(20, "alias", Kind::Text),
    field(27, "group", Kind::U32),
    field(ifla::NUM_TX_QUEUES, "sending-queues", Kind::U32),
    field(ifla::NUM_RX_QUEUES, "receiving-queues", Kind::U32),
    field(39, "protocol-down", Kind::U8),
    field(40, "gso-segments", Kind::U32),
    field(41, "gso-size", Kind::U32),
    field(58, "gro-size", Kind::U32),
];

/// Whose a link is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Origin {
    /// The loopback interface: every namespace has one.
    Loopback,
    /// The sandbox brings it at a restart, as it is there.
    Given,
    /// It has been made in the namespace, and is made again.
    Made,
}

/// A link.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Link {
    /// Its name.
    pub name: String,
    /// Its number.
    pub index: u32,
    /// Whose it is.
    pub origin: Origin,
    /// What it is: `veth`, `bridge`, …
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// The other end, or what it stands on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub link: Option<String>,
    /// The bridge of which it is a port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub master: Option<String>,
    /// Its other names.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub names: Vec<String>,
    /// `IFF_*` that can be set.
    pub flags: u32,
    /// How it makes addresses of IPv6 for itself; None when it has no IPv6.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address_generation: Option<u8>,
    /// What every link has.
    #[serde(default, skip_serializing_if = "Record::is_empty")]
    pub attributes: Record,
    /// What links of its kind have.
    #[serde(default, skip_serializing_if = "Record::is_empty")]
    pub data: Record,
    /// What it is as a port of a bridge.
    #[serde(default, skip_serializing_if = "Record::is_empty")]
    pub port: Record,
}

/// `IFF_*` that dev_change_flags() of the kernel takes: up, debug, no trailers, no ARP, promiscuous, all multicast,
/// multicast, port selection, automatic media, dynamic.
pub(super) const FLAGS: u32 = 0x1 | 0x4 | 0x20 | 0x80 | 0x100 | 0x200 | 0x1000 | 0x2000 | 0x4000 | 0x8000;
pub(super) const UP: u32 = 0x1;

impl Link {
    pub fn is_made(&self) -> bool {
        self.origin == Origin::Made
    }

    pub fn is(&self, kind: &str) -> bool {
        self.kind.as_deref() == Some(kind)
    }
}

/// All links, as messages; and their names.
pub(super) fn dump(route: &mut Netlink) -> Result<(Vec<Vec<u8>>, Names), Failure> {
    let mut request = Attributes::behind(&[0; HEADER]);
    request.put_u32(ifla::EXT_MASK, NO_STATISTICS);
    let all = route.dump(libc::RTM_GETLINK, request.bytes()).doing(|| "list the links of the job")?;
    let all: Vec<Vec<u8>> = all.into_iter().map(|message| message.payload).collect();
    let mut names = Names::default();
    for message in &all {
        if let Some(name) = behind(message).and_then(|attributes| name(attributes).ok()) {
            names.insert(index(message), &name);
        }
    }
    Ok((all, names))
}

fn behind(message: &[u8]) -> Option<&[u8]> {
    message.get(HEADER..)
}

fn word(message: &[u8], at: usize) -> u32 {
    message.get(at..).and_then(|bytes| bytes.first_chunk()).map_or(0, |word| u32::from_ne_bytes(*word))
}

fn index(message: &[u8]) -> u32 {
    word(message, 4)
}

fn as_text(bytes: &[u8]) -> Result<String, String> {
    let text = bytes.split(|&byte| byte == 0).next().unwrap_or_default();
    std::str::from_utf8(text).map(str::to_owned).map_err(|_| "its name is not UTF-8".into())
}

fn name(attributes: &[u8]) -> Result<String, String> {
    as_text(find(attributes, ifla::IFNAME).unwrap_or_default())
}

/// What the kernel tells of a link, and what of that can't be carried.
pub(super) fn read(message: &[u8], names: &Names, given: &Given) -> (Link, Vec<Refusal>) {
    let attributes = behind(message).unwrap_or_default();
    let (mut troubles, known) = (Vec::new(), name(attributes));
    let name = known.clone().unwrap_or_else(|_| format!("number {}", index(message)));
    let mut note = |why: String, remedy: Option<String>| {
        troubles.push(Refusal { what: format!("link {name}"), why, remedy });
    };
    if let Err(why) = known {
        note(why, None);
    }
    let details = find(attributes, ifla::LINKINFO).unwrap_or_default();
    let kind = find(details, info::KIND).and_then(|kind| as_text(kind).ok());
    let abroad = find(attributes, ifla::LINK_NETNSID).is_some();
    let data = find(details, info::DATA).unwrap_or_default();
    let slave = find(details, info::SLAVE_KIND).and_then(|kind| as_text(kind).ok());
    let (origin, refused) = origin(&name, kind.as_deref(), abroad, given);
    if let Some((why, remedy)) = refused {
        note(why, Some(remedy));
    }
    let mut read = |table: Option<&[Field]>, bytes: &[u8]| match table {
        Some(table) if origin != Origin::Given => read_known(table, bytes, names).unwrap_or_else(|why| {
            note(why, None);
            Record::new()
        }),
        _ => Record::new(),
    };
    let table = kind.as_deref().and_then(kinds::table);
    let record = read(Some(ATTRIBUTES), attributes);
    let mut data = read(table, data);
    // A kernel that can't do it does not take a no either.
    data.retain(|name, value| name != "vlan-filtering" || *value != Value::Number(0));
    let port = read(slave.as_ref().map(|_| PORT), find(details, info::SLAVE_DATA).unwrap_or_default());
    let other = |kind| find_u32(attributes, kind).filter(|index| *index != 0 && !abroad);
    let inet6 = find(attributes, ifla::AF_SPEC).and_then(|all| find(all, INET6));
    let link = Link {
        index: index(message),
        origin,
        link: other(ifla::LINK).and_then(|index| names.name(index)).cloned(),
        master: find_u32(attributes, ifla::MASTER).and_then(|index| names.name(index)).cloned(),
        names: alternatives(attributes),
        flags: word(message, 8) & FLAGS,
        address_generation: inet6.and_then(|all| find(all, ADDRESS_GENERATION)?.first().copied()),
        attributes: record,
        data,
        port,
        name: name.clone(),
        kind,
    };
    if origin == Origin::Given {
        return (link, troubles);
    }
    let has = |bytes: Option<&[u8]>| bytes.is_some_and(|bytes| bytes.iter().any(|byte| *byte != 0));
    for (wrong, why) in [
        (
            has(find(attributes, ifla::XDP).and_then(|xdp| find(xdp, XDP_ATTACHED))),
            "a BPF program looks at its packets (XDP)",
        ),
        (has(inet6.and_then(|all| find(all, TOKEN))), "it has a token for addresses of IPv6"),
        (slave.is_some_and(|kind| kind != "bridge"), "it belongs to a link that is no bridge"),
        (number(&link.data, "vlan-filtering") != 0, "the bridge filters VLANs"),
        (
            link.is("macvlan") && number(&link.data, "mode") == kinds::MACVLAN_SOURCE,
            "it listens to certain sources only",
        ),
    ] {
        if wrong {
            troubles.push(Refusal { what: format!("link {name}"), why: why.into(), remedy: None });
        }
    }
    (link, troubles)
}

fn alternatives(bytes: &[u8]) -> Vec<String> {
    let list = find(bytes, ifla::PROP_LIST).unwrap_or_default();
    let names = attributes(list).filter(|(kind, _)| *kind == ifla::ALT_IFNAME);
    names.filter_map(|(_, name)| as_text(name).ok()).collect()
}

/// Whose a link is, and what is to be done about one that nobody would bring back.
fn origin(name: &str, kind: Option<&str>, abroad: bool, given: &Given) -> (Origin, Option<(String, String)>) {
    let remedy = "--empty-ns network leaves what is in the network namespace to the sandbox of a restart";
    let refuse = |why: String| (Origin::Given, (!given.hooks).then(|| (why, remedy.to_owned())));
    let nobody = "and nothing in config.json (linux.netDevices, hooks) brings it back";
    match kind {
        _ if name == "lo" => (Origin::Loopback, None),
        _ if given.has(name) => (Origin::Given, None),
        Some("veth") if abroad => refuse(format!("its other end is outside the container, {nobody}")),
        _ if abroad => refuse(format!("it stands on a link outside the container, {nobody}")),
        None => refuse(format!("it is a device of the host, {nobody}")),
        Some(kind) if kinds::table(kind).is_some() => (Origin::Made, None),
        Some(kind) => {
            refuse(format!("ckrun does not know how to make a link of the kind {kind:?}, {nobody}"))
        }
    }
}

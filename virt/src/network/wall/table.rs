//! The table of a wall: two sets of connections, one for each family of addresses, and a chain that drops what comes from
//! their peers, before it reaches a socket, or the absence of one, and after the addresses were translated (NAT): they
//! are those that a socket would see.
//!
//! Numbers and structures are those of `linux/netfilter/nf_tables.h`.

use super::Ends;
use crate::netlink::attributes::{attributes, find};
use crate::netlink::{Attributes, Netlink};
use crate::network::nft::batch::Batch;
use crate::network::nft::{What, order};
use nix::errno::Errno;
use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

/// The name of the one that all ckruns of a network namespace share.
pub const TABLE: &str = "ckrun";
const CHAIN: &str = "away";

/// `NFPROTO_INET`: a table for both families.
const HEADER: [u8; 4] = [1, 0, 0, 0];
/// `NFTA_LIST_ELEM`, `NFTA_DATA_VALUE`.
const ITEM: u16 = 1;
const VALUE: u16 = 1;
/// `NFT_MSG_*`.
const REMOVE_TABLE: u16 = 2;
const LIST_ELEMENTS: u16 = 13;
const REMOVE_ELEMENTS: u16 = 14;
/// So many entries fit into one attribute.
const AT_ONCE: usize = 500;

/// A family of addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    Four,
    Six,
}

impl Family {
    const ALL: [Family; 2] = [Family::Four, Family::Six];

    /// The name of the set.
    fn set(self) -> &'static str {
        match self {
            Family::Four => "four",
            Family::Six => "six",
        }
    }

    /// `NFPROTO_IPV4`, `NFPROTO_IPV6`.
    fn protocol(self) -> u32 {
        match self {
            Family::Four => 2,
            Family::Six => 10,
        }
    }

    /// Where the addresses are in the header, and how long they are.
    fn addresses(self) -> (u32, u32, u32) {
        match self {
            Family::Four => (12, 16, 4),
            Family::Six => (8, 24, 16),
        }
    }

    /// Addresses and ports, each in 32-bit registers of its own.
    fn key_length(self) -> u32 {
        2 * (self.addresses().2 + 4)
    }

    /// For nft(8): its numbers of the types ipv4_addr, ipv6_addr and inet_service, six bits each.
    fn key_type(self) -> u32 {
        let address = if self == Family::Four { 7 } else { 8 };
        [address, 13, address, 13].into_iter().fold(0, |all, kind| all << 6 | kind)
    }
}

/// The set that the entry of a connection is in, and the entry: from whom, to whom.
pub fn key((local, peer): &Ends) -> (Family, Vec<u8>) {
    let mut bytes = Vec::with_capacity(40);
    let mut family = Family::Four;
    for end in [peer, local] {
        match SocketAddr::ip(end).to_canonical() {
            IpAddr::V4(ip) => bytes.extend(ip.octets()),
            IpAddr::V6(ip) => {
                bytes.extend(ip.octets());
                family = Family::Six;
            }
        }
        bytes.extend(end.port().to_be_bytes());
        bytes.extend([0; 2]);
    }
    (family, bytes)
}

/// Makes it, in an order that fails if it is there. One that is `owned` goes with the socket by which it is made.
pub fn make(batch: &mut Batch, name: &str, owned: bool) {
    // NFT_TABLE_F_OWNER
    let flags = if owned { 2 } else { 0 };
    let new = libc::NLM_F_CREATE;
    let mut table = Attributes::behind(&HEADER);
    table.put_text(1, name).put_be32(2, flags);
    batch.add(What::Table.number(), new | libc::NLM_F_EXCL, table.bytes());
    // NF_INET_LOCAL_IN; behind all others but the one that confirms connections.
    let mut hook = Attributes::default();
    hook.put_be32(1, 1).put_be32(2, 1000);
    let mut chain = Attributes::behind(&HEADER);
    // NF_ACCEPT
    chain.put_text(1, name).put_text(3, CHAIN).nest(4, &hook).put_be32(5, 1).put_text(7, "filter");
    batch.add(What::Chain.number(), new, chain.bytes());
    for (id, family) in (1..).zip(Family::ALL) {
        let mut set = Attributes::behind(&HEADER);
        // NFT_SET_TIMEOUT
        set.put_text(1, name).put_text(2, family.set()).put_be32(3, 0x10);
        set.put_be32(4, family.key_type()).put_be32(5, family.key_length()).put_be32(10, id);
        batch.add(What::Set.number(), new, set.bytes());
        let mut rule = Attributes::behind(&HEADER);
        rule.put_text(1, name).put_text(2, CHAIN).nest(4, &expressions(family));
        batch.add(What::Rule.number(), new | libc::NLM_F_APPEND, rule.bytes());
    }
}

/// `meta nfproto F meta l4proto tcp F saddr . tcp sport . F daddr . tcp dport @F drop`.
fn expressions(family: Family) -> Attributes {
    // NFT_REG32_00
    const FIRST: u32 = 8;
    let mut all = Attributes::default();
    let mut add = |name: &str, data: &Attributes| {
        let mut expression = Attributes::default();
        expression.put_text(1, name).nest(2, data);
        all.nest(ITEM, &expression);
    };
    // NFT_META_NFPROTO and NFT_META_L4PROTO are a byte each.
    for (key, wanted) in [(15, family.protocol()), (16, libc::IPPROTO_TCP as u32)] {
        let (mut load, mut compare, mut data) = <(Attributes, Attributes, Attributes)>::default();
        load.put_be32(1, FIRST).put_be32(2, key);
        add("meta", &load);
        data.put(VALUE, &[wanted as u8]);
        compare.put_be32(1, FIRST).put_be32(2, 0).nest(3, &data);
        add("cmp", &compare);
    }
    // NFT_PAYLOAD_NETWORK_HEADER, _TRANSPORT_HEADER
    let (source, destination, length) = family.addresses();
    let mut register = FIRST;
    for (base, offset, length) in [(1, source, length), (2, 0, 2), (1, destination, length), (2, 2, 2)] {
        let mut load = Attributes::default();
        load.put_be32(1, register).put_be32(2, base).put_be32(3, offset).put_be32(4, length);
        add("payload", &load);
        register += length.div_ceil(4);
    }
    let mut lookup = Attributes::default();
    lookup.put_text(1, family.set()).put_be32(2, FIRST);
    add("lookup", &lookup);
    // NFT_REG_VERDICT; NFTA_DATA_VERDICT, NFTA_VERDICT_CODE, NF_DROP
    let (mut verdict, mut data, mut drop) = <(Attributes, Attributes, Attributes)>::default();
    verdict.put_be32(1, 0);
    data.nest(2, &verdict);
    drop.put_be32(1, 0).nest(2, &data);
    add("immediate", &drop);
    all
}

/// Enters connections, for some time.
pub fn enter(batch: &mut Batch, table: &str, connections: &[Ends], lasts: Option<Duration>) {
    let lasts = lasts.map(|lasts| u64::try_from(lasts.as_millis()).unwrap_or(u64::MAX));
    let keys: Vec<_> = connections.iter().map(key).collect();
    elements(batch, What::Elements.number(), table, &keys.iter().collect::<Vec<_>>(), lasts);
}

/// Takes entries out of the table that is shared.
pub fn take(batch: &mut Batch, entries: &[&(Family, Vec<u8>)]) {
    elements(batch, REMOVE_ELEMENTS, TABLE, entries, None);
}

fn elements(batch: &mut Batch, what: u16, table: &str, entries: &[&(Family, Vec<u8>)], lasts: Option<u64>) {
    for family in Family::ALL {
        let own: Vec<_> = entries.iter().filter(|(of, _)| *of == family).collect();
        for some in own.chunks(AT_ONCE) {
            let mut list = Attributes::default();
            for (_, bytes) in some {
                let (mut key, mut element) = <(Attributes, Attributes)>::default();
                key.put(VALUE, bytes);
                element.nest(1, &key);
                if let Some(lasts) = lasts {
                    element.put(4, &lasts.to_be_bytes());
                }
                list.nest(ITEM, &element);
            }
            let mut message = Attributes::behind(&HEADER);
            message.put_text(1, table).put_text(2, family.set()).nest(3, &list);
            let flags = if what == REMOVE_ELEMENTS { 0 } else { libc::NLM_F_CREATE };
            batch.add(what, flags, message.bytes());
        }
    }
}

/// Takes the table that is shared away.
pub fn remove(batch: &mut Batch) {
    let mut table = Attributes::behind(&HEADER);
    table.put_text(1, TABLE);
    batch.add(REMOVE_TABLE, 0, table.bytes());
}

/// Whether the namespace has the table that is shared.
pub fn is_there(netfilter: &mut Netlink) -> Result<bool, Errno> {
    let mut table = Attributes::behind(&HEADER);
    table.put_text(1, TABLE);
    // The one to ask for it is the next.
    match netfilter.ask(order(What::Table.number() + 1), table.bytes()) {
        Err(Errno::ENOENT) => Ok(false),
        answer => answer.map(|_| true),
    }
}

/// What is in the table that is shared.
pub fn entries(netfilter: &mut Netlink) -> Result<BTreeSet<(Family, Vec<u8>)>, Errno> {
    let mut found = BTreeSet::new();
    for family in Family::ALL {
        let mut request = Attributes::behind(&HEADER);
        request.put_text(1, TABLE).put_text(2, family.set());
        let messages = match netfilter.dump(order(LIST_ELEMENTS), request.bytes()) {
            // It has just been taken away.
            Err(Errno::ENOENT) => continue,
            listed => listed?,
        };
        for message in messages {
            let list = message.payload.get(HEADER.len()..).and_then(|attributes| find(attributes, 3));
            let keys = attributes(list.unwrap_or_default())
                .filter_map(|(_, element)| find(find(element, 1)?, VALUE).map(|key| (family, key.to_vec())));
            found.extend(keys);
        }
    }
    Ok(found)
}

//! Packet filters of nftables (nft(8)), and those of iptables(8) that are made of the same.
//!
//! What the kernel lists is nearly what it wants to be told: without the numbers by which it counts things, and as one
//! batch, which it takes as a whole or not at all.

pub(super) mod batch;
mod what;

pub use what::What;

use super::{FILE, Refusal, wall};
use crate::netlink::attributes::find;
use crate::netlink::record::{Names, Record, Value, number, text};
use crate::netlink::{Attributes, Netlink, protocols, said};
use crate::{Doing, Error, Failure};
use batch::{Batch, Generation};
use nix::errno::Errno;
use serde::{Deserialize, Serialize};
use what::HEADER;

/// A part of the filters.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Entry {
    /// What it is.
    pub what: What,
    /// What it has.
    pub of: Record,
}

/// `NFNL_SUBSYS_NFTABLES`, and `NFT_MSG_*` of `linux/netfilter/nf_tables.h`.
const SUBSYSTEM: u16 = 10;
const GET_FLOWTABLE: u16 = 23;
/// `NFTA_SET_ID`; `NFTA_SET_ELEM_LIST_TABLE` and `_SET`; `NFTA_RULE_COMPAT` and its protocol.
const SET_ID: u16 = 10;
const LIST_TABLE: u16 = 1;
const LIST_SET: u16 = 2;
const COMPAT: u16 = 5;
const COMPAT_PROTOCOL: u16 = 1;
const COMPAT_FLAGS: u16 = 2;

/// The type of a message to nftables.
pub(super) fn order(message: u16) -> u16 {
    SUBSYSTEM << 8 | message
}

/// All filters of the namespace that this thread is in, in the order in which they can be made again.
///
/// # Errors
/// The kernel's.
pub(super) fn capture(names: &Names, troubles: &mut Vec<Refusal>) -> Result<Vec<Entry>, Failure> {
    let what = || "list the packet filters of the job";
    let mut netfilter = match Netlink::open(protocols::NETFILTER) {
        // A kernel without any.
        Err(Errno::EPROTONOSUPPORT) => return Ok(Vec::new()),
        opened => opened.doing(what)?,
    };
    if untouched(&mut netfilter).doing(what)? {
        return Ok(Vec::new());
    }
    let mut all: Vec<Entry> = Vec::new();
    let mut walls = Vec::new();
    let mut note = |what: What, why: String| {
        troubles.push(Refusal { what: format!("packet filter: {}", what.name()), why, remedy: None });
    };
    for what in What::ALL {
        let mut requests = vec![vec![0; HEADER]];
        if what == What::Elements {
            requests =
                all.iter().filter(|entry| entry.what == What::Set).map(|set| elements_of(&set.of)).collect();
        }
        for request in requests {
            let listed = netfilter.dump(order(what.number() + 1), &request);
            for message in
                listed.doing(|| format!("list each {} of the job's packet filters", what.name()))?
            {
                if message.kind != order(what.number()) {
                    continue;
                }
                match what.layout().read(&message.payload, names) {
                    Ok(of) => {
                        let entry = Entry { what, of };
                        if entry.is_wall() {
                            walls.extend(entry.table());
                        }
                        if entry.table().is_some_and(|table| walls.contains(&table)) {
                            continue;
                        }
                        if let Some(why) = entry.lost() {
                            note(what, why);
                        }
                        all.push(entry);
                    }
                    Err(why) => note(what, why),
                }
            }
        }
    }
    // A kernel that has none says so.
    if netfilter.dump(order(GET_FLOWTABLE), &[0; HEADER]).is_ok_and(|found| !found.is_empty()) {
        note(What::Table, "it has a flow table".into());
    }
    Ok(all)
}

/// There has never been a filter here, or the kernel knows none.
fn untouched(netfilter: &mut Netlink) -> Result<bool, Errno> {
    let generation = Generation::now(netfilter)?;
    Ok(generation.is_none_or(|generation| generation == Generation::FIRST))
}

/// The request for the elements of one set.
fn elements_of(set: &Record) -> Vec<u8> {
    let mut request = Attributes::behind(&[number(set, "family") as u8, 0, 0, 0]);
    request.put_text(LIST_TABLE, text(set, "table").unwrap_or_default());
    request.put_text(LIST_SET, text(set, "name").unwrap_or_default());
    request.bytes().to_vec()
}

/// `NFT_CHAIN_BINDING`: a chain that is part of a rule.
const BINDING: u64 = 4;

impl Entry {
    /// The table that it is or belongs to: its family and its name.
    fn table(&self) -> Option<(u64, String)> {
        let name = text(&self.of, if self.what == What::Table { "name" } else { "table" })?;
        Some((number(&self.of, "family"), name.to_owned()))
    }

    /// It is a table of a ckrun's that is just writing another job of this namespace to an image.
    fn is_wall(&self) -> bool {
        let name = text(&self.of, "name").and_then(|name| name.strip_prefix(wall::TABLE)?.strip_prefix('-'));
        self.what == What::Table && self.of.contains_key("owner") && name.is_some()
    }

    /// What of it would be lost.
    fn lost(&self) -> Option<String> {
        let name = text(&self.of, "name").unwrap_or_default();
        match self.what {
            What::Table if self.of.contains_key("owner") => {
                Some(format!("{name} belongs to a socket of its own, and would go with it"))
            }
            What::Chain if number(&self.of, "flags") & BINDING != 0 => {
                Some(format!("{name} has no name of its own, and is part of a rule"))
            }
            _ => None,
        }
    }

    fn message(&self, number_of: u32, names: &Names) -> Result<Vec<u8>, Error> {
        let wrong = |why| Error::Damaged(format!("{FILE}: packet filter: {}: {why}", self.what.name()));
        let mut body = Attributes::behind(&self.what.layout().write(&self.of, names).map_err(wrong)?);
        match self.what {
            What::Set => {
                body.put(SET_ID, &number_of.to_be_bytes());
            }
            What::Rule => {
                if let Some((protocol, inverted)) = self.protocol() {
                    let mut compat = Attributes::default();
                    compat.put(COMPAT_PROTOCOL, &u32::from(protocol).to_be_bytes());
                    // NFT_RULE_COMPAT_F_INV
                    compat.put(COMPAT_FLAGS, &(if inverted { 2_u32 } else { 0 }).to_be_bytes());
                    body.nest(COMPAT, &compat);
                }
            }
            _ => {}
        }
        Ok(body.bytes().to_vec())
    }

    /// The protocol of a rule by iptables, which its matches and targets want to be told of when it is made, and which is not
    /// listed. It is what the rule itself compares the packet's protocol with; whether it is to be another one.
    fn protocol(&self) -> Option<(u8, bool)> {
        let Some(Value::List(expressions)) = self.of.get("expressions") else { return None };
        let named = |expression: &Record, names: &[&str]| {
            text(expression, "name").is_some_and(|name| names.contains(&name))
        };
        expressions.iter().find(|expression| named(expression, &["match", "target"]))?;
        expressions.windows(2).find_map(|pair| {
            let [load, compare] = pair else { return None };
            let (load, data) = (text(load, "name")?, (bytes(load)?, bytes(compare)?));
            let is = |number: u16, value: u32| find(&data.0, number) == Some(&value.to_be_bytes());
            // NFTA_META_KEY: NFT_META_L4PROTO; NFTA_PAYLOAD_BASE: the network header, _OFFSET, _LEN.
            let loads = match load {
                "meta" => is(2, 16),
                "payload" => is(2, 1) && (is(3, 9) || is(3, 6)) && is(4, 1),
                _ => false,
            };
            // NFTA_CMP_OP (equal, not equal), NFTA_CMP_DATA: NFTA_DATA_VALUE.
            let inverted = find(&data.1, 2)? == 1_u32.to_be_bytes();
            let value = find(find(&data.1, 3)?, 1)?;
            (loads && named(compare, &["cmp"]) && value.len() == 1).then(|| (value[0], inverted))
        })
    }
}

fn bytes(expression: &Record) -> Option<Vec<u8>> {
    let text = text(expression, "data")?.as_bytes();
    text.chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()).collect()
}

/// Makes all filters in the namespace that this thread is in. A table that the sandbox has made there is left as that has made
/// it.
///
/// # Errors
/// The kernel's, by what it is about.
pub(super) fn restore(entries: &[Entry], names: &Names) -> Result<(), Error> {
    if entries.is_empty() {
        return Ok(());
    }
    let what = || "make the packet filters of the job";
    let mut netfilter = Netlink::open(protocols::NETFILTER).doing(what)?;
    let mut there = Vec::new();
    if !untouched(&mut netfilter).doing(what)? {
        for message in netfilter.dump(order(What::Table.number() + 1), &[0; HEADER]).doing(what)? {
            let table = What::Table.layout().read(&message.payload, names).unwrap_or_default();
            log::debug!("packet filters: the sandbox has made {table:?}");
            there.extend(Entry { what: What::Table, of: table }.table());
        }
    }
    let entries: Vec<&Entry> =
        entries.iter().filter(|entry| entry.table().is_none_or(|table| !there.contains(&table))).collect();
    if entries.is_empty() {
        return Ok(());
    }
    let mut batch = Batch::new();
    for (sequence, entry) in (1..).zip(&entries) {
        let message = entry.message(sequence, names)?;
        batch.add(entry.what.number(), libc::NLM_F_CREATE | libc::NLM_F_APPEND, &message);
    }
    batch.commit(&mut netfilter).map_err(|(sequence, errno, words)| {
        let entry = usize::try_from(sequence).ok().and_then(|at| entries.get(at.checked_sub(1)?));
        let of = entry.map_or_else(String::new, |entry| {
            let part = ["table", "chain", "set", "name"].iter().filter_map(|name| text(&entry.of, name));
            format!(": {} {}", entry.what.name(), part.collect::<Vec<_>>().join(" "))
        });
        Failure::new(said(format!("{}{of}", what()), &words), errno).into()
    })
}

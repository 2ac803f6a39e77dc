//! Connections that packet filters have seen: without them, a filter that lets nobody begin anything would shut out the
//! packets of connections that were there before.
//!
//! Not kept are those whose addresses are translated, and those that others have led to expect.

use super::Refusal;
use crate::netlink::record::{Field, Kind, Layout, Names, Record, Value, field, number};
use crate::netlink::{Netlink, protocols};
use crate::{Doing, Error, Failure};
use nix::errno::Errno;

/// `NFNL_SUBSYS_CTNETLINK`, `IPCTNL_MSG_CT_NEW` and `_GET` (`linux/netfilter/nfnetlink_conntrack.h`).
const NEW: u16 = 1 << 8;
const GET: u16 = NEW + 1;

/// `CTA_TUPLE_*`, `CTA_IP_*`, `CTA_PROTO_*`.
const TUPLE: &[Field] = &[
    field(
        1,
        "addresses",
        Kind::Nest(&[
            field(1, "source", Kind::Ip),
            field(2, "destination", Kind::Ip),
            field(3, "source6", Kind::Ip),
            field(4, "destination6", Kind::Ip),
        ]),
    ),
    field(
        2,
        "protocol",
        Kind::Nest(&[
            field(1, "number", Kind::U8),
            field(2, "source-port", Kind::Be16),
            field(3, "port", Kind::Be16),
            field(4, "id", Kind::Be16),
            field(5, "type", Kind::U8),
            field(6, "code", Kind::U8),
            field(7, "id6", Kind::Be16),
            field(8, "type6", Kind::U8),
            field(9, "code6", Kind::U8),
        ]),
    ),
    field(3, "zone", Kind::Be16),
];

/// `struct nf_ct_tcp_flags`.
const FLAGS: Kind = Kind::Struct(2, &[field(0, "flags", Kind::U8), field(1, "mask", Kind::U8)]);

/// `CTA_*`.
const LAYOUT: Layout = Layout {
    size: 4,
    fields: &[field(0, "family", Kind::U8)],
    attributes: &[
        field(1, "original", Kind::Nest(TUPLE)),
        field(2, "reply", Kind::Nest(TUPLE)),
        field(3, "status", Kind::Be32),
        field(
            4,
            "state",
            Kind::Nest(&[
                field(
                    1,
                    "tcp",
                    Kind::Nest(&[
                        field(1, "state", Kind::U8),
                        field(2, "scale", Kind::U8),
                        field(3, "reply-scale", Kind::U8),
                        field(4, "flags", FLAGS),
                        field(5, "reply-flags", FLAGS),
                    ]),
                ),
                field(2, "dccp", Kind::Bytes),
                field(3, "sctp", Kind::Bytes),
            ]),
        ),
        field(5, "helper", Kind::Bytes),
        field(7, "timeout", Kind::Be32),
        field(8, "mark", Kind::Be32),
        field(9, "counters", Kind::Skip),
        field(10, "reply-counters", Kind::Skip),
        field(11, "use", Kind::Skip),
        field(12, "id", Kind::Skip),
        field(14, "master", Kind::Nest(TUPLE)),
        field(15, "adjustment", Kind::Bytes),
        field(16, "reply-adjustment", Kind::Bytes),
        field(17, "mark-of-security", Kind::Skip),
        field(18, "zone", Kind::Be16),
        field(19, "label-of-security", Kind::Skip),
        field(20, "times", Kind::Skip),
        field(22, "labels", Kind::Bytes),
        field(
            24,
            "syn-proxy",
            Kind::Nest(&[
                field(1, "sequence", Kind::Be32),
                field(2, "stamp", Kind::Be32),
                field(3, "stamp-offset", Kind::Be32),
            ]),
        ),
    ],
};

/// `IPS_*` of `linux/netfilter/nf_conntrack_common.h`: replies seen, assured, confirmed, fixed timeout.
const KEPT: u64 = 0x2 | 0x4 | 0x8 | 0x400;
/// Source or destination translated, dying.
const PASSED_OVER: u64 = 0x10 | 0x20 | 0x200;

fn tidy(mut entry: Record) -> Option<Record> {
    let status = number(&entry, "status");
    if status & PASSED_OVER != 0 || entry.contains_key("master") {
        return None;
    }
    entry.insert("status".into(), Value::Number(status & KEPT));
    if let Some(Value::Record(proxy)) = entry.get("syn-proxy")
        && proxy.values().all(|value| *value == Value::Number(0))
    {
        entry.remove("syn-proxy");
    }
    if let Some(Value::Record(state)) = entry.get_mut("state")
        && let Some(Value::Record(tcp)) = state.get_mut("tcp")
    {
        for name in ["flags", "reply-flags"] {
            if let Some(Value::Record(flags)) = tcp.get_mut(name) {
                // The kernel tells no mask, and wants one.
                flags.insert("mask".into(), Value::Number(0xff));
            }
        }
    }
    Some(entry)
}

/// All connections of the namespace that this thread is in, and in which there are filters.
///
/// # Errors
/// The kernel's.
pub(super) fn capture(troubles: &mut Vec<Refusal>) -> Result<Vec<Record>, Failure> {
    let what = || "list the connections that packet filters know";
    let mut netfilter = Netlink::open(protocols::NETFILTER).doing(what)?;
    let all = match netfilter.dump(GET, &[0; 4]) {
        // A kernel that follows no connections.
        Err(Errno::EINVAL | Errno::EOPNOTSUPP) => return Ok(Vec::new()),
        all => all.doing(what)?,
    };
    let mut found = Vec::new();
    for message in all.iter().filter(|message| message.kind == NEW) {
        match LAYOUT.read(&message.payload, &Names::default()) {
            Ok(entry) => found.extend(tidy(entry)),
            Err(why) => {
                troubles.push(Refusal {
                    what: "a connection known to packet filters".into(),
                    why,
                    remedy: None,
                });
            }
        }
    }
    Ok(found)
}

/// Lets the filters of the namespace that this thread is in know of them.
///
/// # Errors
/// The kernel's.
pub(super) fn restore(entries: &[Record]) -> Result<(), Error> {
    if entries.is_empty() {
        return Ok(());
    }
    let what = || "let packet filters know of a connection";
    let mut netfilter = Netlink::open(protocols::NETFILTER).doing(what)?;
    for entry in entries {
        let message = LAYOUT.write(entry, &Names::default());
        let message = message.map_err(|why| {
            Error::Damaged(format!("{}: a connection of packet filters: {why}", super::FILE))
        })?;
        match netfilter.order(NEW, libc::NLM_F_CREATE | libc::NLM_F_EXCL, &message, what) {
            Err(failure) if failure.errno == Errno::EEXIST => {}
            done => done?,
        }
    }
    Ok(())
}

//! Routes of all tables, the rules that choose between the tables, and neighbours that somebody has entered.

use super::entries::{List, plain};
use crate::Error;
use crate::netlink::Netlink;
use crate::netlink::record::{Field, Kind, Layout, Names, Record, Value, field, number, text};
use std::collections::BTreeSet;
use std::time::Duration;

/// `RTAX_*` of `linux/rtnetlink.h`.
const METRICS: &[Field] = &[
    field(1, "lock", Kind::U32),
    field(2, "mtu", Kind::U32),
    field(3, "window", Kind::U32),
    field(4, "rtt", Kind::U32),
    field(5, "rtt-variance", Kind::U32),
    field(6, "slow-start-threshold", Kind::U32),
    field(7, "congestion-window", Kind::U32),
    field(8, "segment", Kind::U32),
    field(9, "reordering", Kind::U32),
    field(10, "hop-limit", Kind::U32),
    field(11, "initial-congestion-window", Kind::U32),
    field(12, "features", Kind::U32),
    field(13, "retransmission-timeout", Kind::U32),
    field(14, "initial-receive-window", Kind::U32),
    field(15, "quick-acknowledgement", Kind::U32),
    field(16, "congestion-control", Kind::Text),
    field(17, "fast-open-without-cookie", Kind::U32),
];

const HOP: &[Field] = &[
    field(5, "gateway", Kind::Ip),
    field(11, "flow", Kind::U32),
    field(18, "via", Kind::Bytes),
    field(19, "new-destination", Kind::Bytes),
    field(21, "encapsulation-type", Kind::U16),
    field(22, "encapsulation", Kind::Bytes),
];

/// `struct rtmsg` and `RTA_*` of `linux/rtnetlink.h`.
pub(super) const ROUTES: List = List {
    name: "route",
    new: libc::RTM_NEWROUTE,
    layout: Layout {
        size: 12,
        fields: &[
            field(0, "family", Kind::U8),
            field(1, "prefix", Kind::U8),
            field(2, "source-prefix", Kind::U8),
            field(3, "tos", Kind::U8),
            field(4, "low-table", Kind::U8),
            field(5, "protocol", Kind::U8),
            field(6, "scope", Kind::U8),
            field(7, "type", Kind::U8),
            field(8, "flags", Kind::U32),
        ],
        attributes: &[
            field(1, "destination", Kind::Ip),
            field(2, "source", Kind::Ip),
            field(3, "from-link", Kind::Link),
            field(4, "link", Kind::Link),
            field(5, "gateway", Kind::Ip),
            field(6, "priority", Kind::U32),
            field(7, "preferred-source", Kind::Ip),
            field(8, "metrics", Kind::Nest(METRICS)),
            field(9, "hops", Kind::Hops(HOP)),
            field(11, "flow", Kind::U32),
            field(12, "cache", Kind::Struct(32, &[field(8, "expires", Kind::U32)])),
            field(15, "table", Kind::U32),
            field(16, "mark", Kind::U32),
            field(18, "via", Kind::Bytes),
            field(19, "new-destination", Kind::Bytes),
            field(20, "preference", Kind::U8),
            field(21, "encapsulation-type", Kind::U16),
            field(22, "encapsulation", Kind::Bytes),
            field(23, "expires", Kind::U32),
            field(26, "ttl-propagate", Kind::U8),
        ],
    },
    tidy: tidy_route,
};

/// `RTPROT_KERNEL`: the kernel made it with an address, or at the beginning.
const BY_KERNEL: u64 = 2;
/// `RTPROT_REDIRECT`.
const REDIRECT: u64 = 1;
/// `RTM_F_CLONED`: found out by the kernel.
const CLONED: u64 = 0x200;
/// `RTNH_F_ONLINK`; the other flags tell of the link's state.
const ONLINK: u64 = 4;
/// Ticks in a second, as the kernel counts for programs (`USER_HZ`).
const TICKS: u64 = 100;

fn tidy_route(mut route: Record) -> Option<Record> {
    let flags = number(&route, "flags");
    let inet =
        [libc::AF_INET, libc::AF_INET6].iter().any(|family| number(&route, "family") == *family as u64);
    if !inet || flags & CLONED != 0 || number(&route, "protocol") == REDIRECT {
        return None;
    }
    keep(&mut route, "flags", ONLINK);
    if let Some(Value::List(hops)) = route.get_mut("hops") {
        hops.iter_mut().for_each(|hop| keep(hop, "hop-flags", ONLINK));
    }
    // The attribute has room for all tables.
    route.remove("low-table");
    if let Some(Value::Record(cache)) = route.remove("cache")
        && number(&cache, "expires") != 0
        && !is_by_kernel(&route)
    {
        route.insert("expires".into(), Value::Number(number(&cache, "expires").div_ceil(TICKS)));
    }
    Some(route)
}

/// Leaves only these bits of a number, and nothing of none.
fn keep(record: &mut Record, name: &str, bits: u64) {
    let left = number(record, name) & bits;
    if left == 0 {
        record.remove(name);
    } else {
        record.insert(name.into(), Value::Number(left));
    }
}

/// The kernel makes it itself.
pub(super) fn is_by_kernel(record: &Record) -> bool {
    number(record, "protocol") == BY_KERNEL
}

fn is_four(record: &Record) -> bool {
    number(record, "family") == libc::AF_INET as u64
}

/// The links that a route leads to.
fn links(route: &Record) -> Vec<&str> {
    let hops = match route.get("hops") {
        Some(Value::List(hops)) => hops.as_slice(),
        _ => &[],
    };
    hops.iter().chain([route]).filter_map(|hop| text(hop, "link")).collect()
}

/// Makes the routes what they were, when the addresses are there. Those of the links `elsewhere`, which have other addresses
/// than the job's, are left out; those of the links `given` may be there already.
///
/// # Errors
/// The kernel's.
pub(super) fn restore(
    wanted: &[Record],
    given: &BTreeSet<&str>,
    elsewhere: &BTreeSet<String>,
    route: &mut Netlink,
    names: &Names,
) -> Result<(), Error> {
    let now = ROUTES.now(route, &[0; 12], names)?;
    // What the kernel makes for IPv6 comes and goes with the state of a link, some of it a little later.
    for made in now.iter().filter(|made| is_by_kernel(made) && is_four(made) && !wanted.contains(made)) {
        if !links(made).iter().any(|link| given.contains(link)) {
            ROUTES.remove(route, made, names)?;
        }
    }
    let mut missing: Vec<&Record> = Vec::new();
    for lost in wanted.iter().filter(|wanted| !is_by_kernel(wanted) && !now.contains(wanted)) {
        if links(lost).iter().any(|link| elsewhere.contains(*link)) {
            log::warn!("the route {} of the job is left out: its link has other addresses", plain(lost));
        } else {
            missing.push(lost);
        }
    }
    // A route may lead to a gateway to which another one leads.
    while !missing.is_empty() {
        let mut refused = Vec::new();
        let mut first = None;
        for lost in &missing {
            let flags = libc::NLM_F_CREATE | libc::NLM_F_APPEND;
            match ROUTES.add(route, lost, flags, names) {
                Ok(()) => {}
                Err(Error::Call(failure))
                    if failure.errno == nix::errno::Errno::EEXIST
                        && links(lost).iter().any(|link| given.contains(link)) => {}
                Err(e @ Error::Call(_)) => {
                    first.get_or_insert(e);
                    refused.push(*lost);
                }
                Err(e) => return Err(e),
            }
        }
        if refused.len() == missing.len()
            && let Some(e) = first
        {
            return Err(e);
        }
        missing = refused;
    }
    Ok(())
}

/// How often, and after what time, to look again for what the kernel does a little later.
const LOOKS: u32 = 500;
const MOMENT: Duration = Duration::from_millis(1);
/// `RTN_LOCAL`.
const LOCAL: u64 = 2;

/// Waits until packets to these addresses of IPv6 find their way: the kernel makes the route of an address in the background,
/// and a socket that is bound to it may be asked for the way at once.
///
/// # Errors
/// The kernel's.
pub(super) fn await_local(addresses: &[&str], route: &mut Netlink, names: &Names) -> Result<(), Error> {
    let mut missing = addresses.to_vec();
    let mut six = [0; 12];
    six[0] = libc::AF_INET6 as u8;
    for _ in 0..LOOKS {
        if missing.is_empty() {
            return Ok(());
        }
        let now = ROUTES.now(route, &six, names)?;
        let local = now.iter().filter(|route| number(route, "type") == LOCAL);
        let ways: BTreeSet<&str> = local.filter_map(|route| text(route, "destination")).collect();
        missing.retain(|address| !ways.contains(address));
        if !missing.is_empty() {
            std::thread::sleep(MOMENT);
        }
    }
    log::warn!("the kernel makes no route to {}", missing.join(", "));
    Ok(())
}

/// `struct fib_rule_hdr` and `FRA_*` of `linux/fib_rules.h`.
pub(super) const RULES: List = List {
    name: "rule",
    new: libc::RTM_NEWRULE,
    layout: Layout {
        size: 12,
        fields: &[
            field(0, "family", Kind::U8),
            field(1, "prefix", Kind::U8),
            field(2, "source-prefix", Kind::U8),
            field(3, "tos", Kind::U8),
            field(4, "low-table", Kind::U8),
            field(7, "action", Kind::U8),
            field(8, "flags", Kind::U32),
        ],
        attributes: &[
            field(1, "destination", Kind::Ip),
            field(2, "source", Kind::Ip),
            field(3, "from-link", Kind::Text),
            field(4, "goto", Kind::U32),
            field(6, "priority", Kind::U32),
            field(10, "mark", Kind::U32),
            field(11, "flow", Kind::U32),
            field(12, "tunnel", Kind::Be64),
            field(13, "suppressed-group", Kind::U32),
            field(14, "suppressed-prefix", Kind::U32),
            field(15, "table", Kind::U32),
            field(16, "mark-mask", Kind::U32),
            field(17, "to-link", Kind::Text),
            field(18, "padding", Kind::Skip),
            field(19, "l3-domain", Kind::U8),
            field(20, "users", Kind::Bytes),
            field(21, "protocol", Kind::U8),
            field(22, "ip-protocol", Kind::U8),
            field(23, "source-ports", Kind::Bytes),
            field(24, "ports", Kind::Bytes),
            field(25, "dscp", Kind::U8),
            field(26, "flow-label", Kind::Be32),
            field(27, "flow-label-mask", Kind::Be32),
            field(28, "source-ports-mask", Kind::U16),
            field(29, "ports-mask", Kind::U16),
            field(30, "dscp-mask", Kind::U8),
        ],
    },
    tidy: tidy_rule,
};

/// `FIB_RULE_INVERT`, `FIB_RULE_PERMANENT`; the others tell whether what it names is there.
const RULE_FLAGS: u64 = 3;

fn tidy_rule(mut rule: Record) -> Option<Record> {
    let inet = [libc::AF_INET, libc::AF_INET6].iter().any(|family| number(&rule, "family") == *family as u64);
    keep(&mut rule, "flags", RULE_FLAGS);
    rule.remove("low-table");
    inet.then_some(rule)
}

/// Makes the rules what they were. Of those that are there only the kernel's own are taken away.
///
/// # Errors
/// The kernel's.
pub(super) fn restore_rules(wanted: &[Record], route: &mut Netlink, names: &Names) -> Result<(), Error> {
    let now = RULES.now(route, &[0; 12], names)?;
    for rule in now.iter().filter(|rule| is_by_kernel(rule) && !wanted.contains(rule)) {
        RULES.remove(route, rule, names)?;
    }
    wanted
        .iter()
        .filter(|rule| !now.contains(rule))
        .try_for_each(|rule| RULES.add(route, rule, libc::NLM_F_CREATE | libc::NLM_F_EXCL, names))
}

/// `struct ndmsg` and `NDA_*` of `linux/neighbour.h`.
pub(super) const NEIGHBOURS: List = List {
    name: "neighbour",
    new: libc::RTM_NEWNEIGH,
    layout: Layout {
        size: 12,
        fields: &[
            field(0, "family", Kind::U8),
            field(4, "link", Kind::Link),
            field(8, "state", Kind::U16),
            field(10, "flags", Kind::U8),
        ],
        attributes: &[
            field(1, "address", Kind::Ip),
            field(2, "hardware", Kind::Mac),
            field(3, "cache", Kind::Skip),
            field(4, "probes", Kind::Skip),
            field(5, "vlan", Kind::U16),
            field(9, "master", Kind::Link),
            field(12, "protocol", Kind::U8),
            field(14, "bridge", Kind::Skip),
            field(15, "more-flags", Kind::U32),
        ],
    },
    tidy: tidy_neighbour,
};

/// `NUD_PERMANENT`, `NUD_NOARP`.
const PERMANENT: u64 = 0x80;
const NOARP: u64 = 0x40;
/// `NTF_MASTER`, `NTF_PROXY`.
const MASTER: u64 = 4;
const PROXY: u64 = 8;

fn tidy_neighbour(mut entry: Record) -> Option<Record> {
    let (state, flags) = (number(&entry, "state"), number(&entry, "flags"));
    if number(&entry, "family") == libc::AF_BRIDGE as u64 {
        // What a bridge has learned it learns again; those without a bridge are addresses to which a link listens.
        entry.remove("master")?;
        if state & (PERMANENT | NOARP) == 0 {
            return None;
        }
        entry.insert("flags".into(), Value::Number(flags | MASTER));
        return Some(entry);
    }
    (state & PERMANENT != 0 || flags & PROXY != 0).then_some(entry)
}

/// The requests that together list all of them: by address, those that are answered for, and those of bridges.
pub(super) const NEIGHBOUR_LISTS: [[u8; 12]; 3] = [
    [0; 12],
    [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, PROXY as u8, 0],
    [libc::AF_BRIDGE as u8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
];

/// Enters neighbours again.
///
/// # Errors
/// The kernel's.
pub(super) fn restore_neighbours(wanted: &[Record], route: &mut Netlink, names: &Names) -> Result<(), Error> {
    let flags = libc::NLM_F_CREATE | libc::NLM_F_REPLACE;
    wanted.iter().try_for_each(|entry| NEIGHBOURS.add(route, entry, flags, names))
}

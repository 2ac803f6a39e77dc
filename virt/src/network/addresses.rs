//! Addresses of links.

use super::entries::{List, plain};
use crate::Error;
use crate::netlink::Netlink;
use crate::netlink::record::{Kind, Layout, Names, Record, Value, field, number, text};
use std::collections::BTreeSet;

/// `struct ifaddrmsg` and `IFA_*` of `linux/if_addr.h`.
pub(super) const ADDRESSES: List = List {
    name: "address",
    new: libc::RTM_NEWADDR,
    layout: Layout {
        size: 8,
        fields: &[
            field(0, "family", Kind::U8),
            field(1, "prefix", Kind::U8),
            field(2, "low-flags", Kind::Skip),
            field(3, "scope", Kind::U8),
            field(4, "link", Kind::Link),
        ],
        attributes: &[
            field(1, "address", Kind::Ip),
            field(2, "local", Kind::Ip),
            field(3, "label", Kind::Text),
            field(4, "broadcast", Kind::Ip),
            field(
                6,
                "lifetime",
                Kind::Struct(16, &[field(0, "preferred", Kind::U32), field(4, "valid", Kind::U32)]),
            ),
            field(8, "flags", Kind::U32),
            field(9, "priority", Kind::U32),
            field(11, "protocol", Kind::U8),
        ],
    },
    tidy,
};

/// `IFA_F_*` that may be asked for: no question whether it is another's, home address, managed temporary, no prefix route,
/// multicast join. The others tell what the kernel makes of the rest.
const ASKED: u64 = NODAD | 0x10 | 0x100 | 0x200 | 0x400;
const NODAD: u64 = 0x02;
const FOREVER: u64 = u32::MAX as u64;

fn tidy(mut entry: Record) -> Option<Record> {
    let flags = number(&entry, "flags") & ASKED;
    entry.remove("flags");
    if flags != 0 {
        entry.insert("flags".into(), Value::Number(flags));
    }
    if let Some(Value::Record(life)) = entry.get("lifetime")
        && number(life, "valid") == FOREVER
        && number(life, "preferred") == FOREVER
    {
        entry.remove("lifetime");
    }
    Some(entry)
}

/// What tells an address of a link from all others.
fn key(entry: &Record) -> Vec<Option<&Value>> {
    ["family", "link", "prefix", "local", "address"].iter().map(|name| entry.get(*name)).collect()
}

fn is_six(entry: &Record) -> bool {
    number(entry, "family") == libc::AF_INET6 as u64
}

/// Gives the links the addresses that they had. The links `given` are the sandbox's: one that has addresses of the family
/// already keeps those, and the answer names it if they are not the job's.
///
/// # Errors
/// The kernel's.
pub(super) fn restore(
    wanted: &[Record],
    given: &BTreeSet<&str>,
    route: &mut Netlink,
    names: &Names,
) -> Result<BTreeSet<String>, Error> {
    let now = ADDRESSES.now(route, &[0; 8], names)?;
    let link = |entry: &Record| text(entry, "link").unwrap_or_default().to_owned();
    let is_given = |entry: &Record| given.contains(link(entry).as_str());
    for entry in now.iter().filter(|entry| !is_given(entry)) {
        if !wanted.iter().any(|wanted| key(wanted) == key(entry)) {
            ADDRESSES.remove(route, entry, names)?;
        }
    }
    let mut elsewhere = BTreeSet::new();
    // The kernel puts a new address of IPv4 behind the others, and one of IPv6 before them.
    let (six, four): (Vec<_>, Vec<_>) = wanted.iter().partition(|entry| is_six(entry));
    for entry in four.into_iter().chain(six.into_iter().rev()) {
        let there = now.iter().find(|there| key(there) == key(entry));
        if there == Some(entry) {
            continue;
        }
        if is_given(entry) {
            // Scope 0 is the whole world's: what is narrower the kernel makes itself.
            if there.is_some() || number(entry, "scope") != 0 {
                continue;
            }
            let like = |there: &&Record| {
                link(there) == link(entry) && is_six(there) == is_six(entry) && number(there, "scope") == 0
            };
            if let Some(other) = now.iter().find(like) {
                log::warn!(
                    "link {}: the sandbox has given it the address {}, and the job had {}",
                    link(entry),
                    local(other),
                    local(entry)
                );
                elsewhere.insert(link(entry));
                continue;
            }
        }
        add(entry, route, names)?;
    }
    Ok(elsewhere)
}

/// The addresses of IPv6 of these links.
pub(super) fn sixes<'a>(wanted: &'a [Record], links: &BTreeSet<&str>) -> Vec<&'a str> {
    let of = |entry: &&Record| is_six(entry) && text(entry, "link").is_some_and(|link| links.contains(link));
    wanted.iter().filter(of).map(local).collect()
}

fn local(entry: &Record) -> &str {
    text(entry, "local").or_else(|| text(entry, "address")).unwrap_or_default()
}

/// An address of IPv6 is usable at once only if nobody asks first whether it is another's; that it came so is not to be seen
/// afterwards.
fn add(entry: &Record, route: &mut Netlink, names: &Names) -> Result<(), Error> {
    let flags = libc::NLM_F_CREATE | libc::NLM_F_REPLACE;
    if is_six(entry) {
        let mut at_once = entry.clone();
        at_once.insert("flags".into(), Value::Number(number(entry, "flags") | NODAD));
        ADDRESSES.add(route, &at_once, flags, names)?;
    }
    log::debug!("address {}", plain(entry));
    ADDRESSES.add(route, entry, flags, names)
}

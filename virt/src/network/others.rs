//! What a namespace may have besides, and what nobody can put into an image yet.

use super::Refusal;
use super::links::{Link, Origin};
use crate::netlink::attributes::find;
use crate::netlink::record::Names;
use crate::netlink::{Attributes, Netlink, protocols};
use crate::{Doing, Failure};

/// `RTM_GETNEXTHOP` of `linux/rtnetlink.h`.
const GET_NEXTHOP: u16 = 106;
/// `struct tcmsg`: where the index of the link and the handle are, and its size.
const QUEUE: (usize, usize, usize) = (4, 8, 20);
const TCA_KIND: u16 = 1;
/// `XFRM_MSG_GETSA` and `_GETPOLICY` of `linux/xfrm.h`.
const GET_ASSOCIATION: u16 = 0x12;
const GET_POLICY: u16 = 0x15;
/// `NFNL_SUBSYS_IPSET` with `IPSET_CMD_LIST`, and `IPSET_ATTR_PROTOCOL` (`linux/netfilter/ipset/ip_set.h`).
const IPSET_LIST: u16 = 6 << 8 | 7;
const IPSET_PROTOCOL: u16 = 1;
const IPSET_VERSION: u8 = 7;

/// Names what is there, by the sockets of the namespace that this thread is in.
///
/// # Errors
/// The kernel's.
pub(super) fn survey(
    route: &mut Netlink,
    links: &[Link],
    names: &Names,
    troubles: &mut Vec<Refusal>,
) -> Result<(), Failure> {
    let mut note = |what: String, why: &str, remedy: Option<String>| {
        troubles.push(Refusal { what, why: why.into(), remedy });
    };
    let queues =
        route.dump(libc::RTM_GETQDISC, &[0; QUEUE.2]).doing(|| "list the queues of the job's links")?;
    for queue in queues {
        let word = |at: usize| queue.payload.get(at..).and_then(|bytes| bytes.first_chunk());
        let (index, handle) = (word(QUEUE.0).copied(), word(QUEUE.1).copied());
        let link = index.and_then(|index| names.name(u32::from_ne_bytes(index)));
        let given =
            |link: &String| links.iter().any(|known| known.name == *link && known.origin == Origin::Given);
        // Those that the kernel has put there have no handle.
        if let (Some(link), Some(handle)) = (link.filter(|link| !given(link)), handle)
            && handle != [0; 4]
        {
            let kind = queue.payload.get(QUEUE.2..).and_then(|all| find(all, TCA_KIND)).unwrap_or_default();
            let kind = String::from_utf8_lossy(kind);
            let kind = kind.trim_end_matches('\0');
            let remedy = format!("take it away (tc qdisc del dev {link} …)");
            note(
                format!("link {link}: queueing discipline {kind}"),
                "can't be checkpointed yet",
                Some(remedy),
            );
        }
    }
    // struct nhmsg; a kernel that has none says so.
    if route.dump(GET_NEXTHOP, &[0; 8]).is_ok_and(|hops| !hops.is_empty()) {
        note(
            "nexthop objects".into(),
            "can't be checkpointed yet",
            Some("let routes have their gateways themselves".into()),
        );
    }
    for (file, program) in [("ip", "iptables"), ("ip6", "ip6tables"), ("arp", "arptables")] {
        let path = format!("/proc/thread-self/net/{file}_tables_names");
        if let Some(table) = crate::proc::read(&path).ok().filter(|names| !names.is_empty()) {
            let tables =
                String::from_utf8_lossy(&table).split_ascii_whitespace().collect::<Vec<_>>().join(", ");
            let remedy = format!("use {program}-nft, whose rules are carried");
            note(
                format!("{program}-legacy: table {tables}"),
                "packet filters of this kind can't be checkpointed",
                Some(remedy),
            );
        }
    }
    if sets() {
        note("ipset".into(), "sets of addresses can't be checkpointed", Some("use sets of nftables".into()));
    }
    if secured() {
        note("IPsec".into(), "associations and policies (ip xfrm) can't be checkpointed", None);
    }
    Ok(())
}

/// There are sets of ipset(8). A kernel without it answers with an error.
fn sets() -> bool {
    let Ok(mut netfilter) = Netlink::open(protocols::NETFILTER) else { return false };
    let mut request = Attributes::behind(&[0; 4]);
    request.put(IPSET_PROTOCOL, &[IPSET_VERSION]);
    netfilter.dump(IPSET_LIST, request.bytes()).is_ok_and(|found| !found.is_empty())
}

/// IPsec has something to do here. A kernel without it opens no such socket.
fn secured() -> bool {
    let Ok(mut xfrm) = Netlink::open(protocols::XFRM) else { return false };
    [GET_ASSOCIATION, GET_POLICY]
        .iter()
        .any(|&list| xfrm.dump(list, &[]).is_ok_and(|found| !found.is_empty()))
}

//! Kinds of links that are made of nothing but numbers: what each of them has (`linux/if_link.h`).

use crate::netlink::record::{Field, Kind, field};

/// What a link of this kind has; None for a kind that is not known.
pub(super) fn table(kind: &str) -> Option<&'static [Field]> {
    match kind {
        "dummy" | "ifb" | "veth" => Some(&[]),
        "bridge" => Some(BRIDGE),
        "vlan" => Some(VLAN),
        "macvlan" => Some(MACVLAN),
        "tun" => Some(TUN),
        _ => None,
    }
}

/// `MACVLAN_MODE_SOURCE`.
pub(super) const MACVLAN_SOURCE: u64 = 16;

/// `IFLA_BR_*`.
const BRIDGE: &[Field] = &[
    field(1, "forward-delay", Kind::U32),
    field(2, "hello-time", Kind::U32),
    field(3, "max-age", Kind::U32),
    field(4, "ageing-time", Kind::U32),
    field(5, "stp", Kind::U32),
    field(6, "priority", Kind::U16),
    field(7, "vlan-filtering", Kind::U8),
    field(9, "group-forward-mask", Kind::U16),
    field(22, "multicast-router", Kind::U8),
    field(23, "multicast-snooping", Kind::U8),
    field(24, "multicast-query-by-own-address", Kind::U8),
    field(25, "multicast-querier", Kind::U8),
    field(27, "multicast-hash-max", Kind::U32),
    field(28, "multicast-last-member-count", Kind::U32),
    field(29, "multicast-startup-query-count", Kind::U32),
    field(30, "multicast-last-member-interval", Kind::U64),
    field(31, "multicast-membership-interval", Kind::U64),
    field(32, "multicast-querier-interval", Kind::U64),
    field(33, "multicast-query-interval", Kind::U64),
    field(34, "multicast-query-response-interval", Kind::U64),
    field(35, "multicast-startup-query-interval", Kind::U64),
    field(36, "call-iptables", Kind::U8),
    field(37, "call-ip6tables", Kind::U8),
    field(38, "call-arptables", Kind::U8),
    field(42, "multicast-statistics", Kind::U8),
    field(43, "igmp-version", Kind::U8),
    field(44, "mld-version", Kind::U8),
    field(49, "most-learned", Kind::U32),
];

/// Ports are numbered as they come.
pub(super) const PORT_NUMBER: (u16, &str) = (18, "number");

/// `IFLA_BRPORT_*`.
pub(super) const PORT: &[Field] = &[
    field(2, "priority", Kind::U16),
    field(3, "cost", Kind::U32),
    field(4, "hairpin", Kind::U8),
    field(5, "guard", Kind::U8),
    field(6, "protect", Kind::U8),
    field(7, "fast-leave", Kind::U8),
    field(8, "learning", Kind::U8),
    field(9, "unicast-flood", Kind::U8),
    field(10, "proxy-arp", Kind::U8),
    field(12, "proxy-arp-wifi", Kind::U8),
    field(PORT_NUMBER.0, PORT_NUMBER.1, Kind::U16),
    field(25, "multicast-router", Kind::U8),
    field(27, "multicast-flood", Kind::U8),
    field(28, "multicast-to-unicast", Kind::U8),
    field(30, "broadcast-flood", Kind::U8),
    field(31, "group-forward-mask", Kind::U16),
    field(32, "neighbour-suppression", Kind::U8),
    field(33, "isolated", Kind::U8),
    field(39, "locked", Kind::U8),
    field(40, "mab", Kind::U8),
];

/// `IFLA_VLAN_*`.
const VLAN: &[Field] = &[
    field(1, "id", Kind::U16),
    field(2, "flags", Kind::Bytes),
    field(3, "egress-qos", Kind::Bytes),
    field(4, "ingress-qos", Kind::Bytes),
    field(5, "protocol", Kind::Be16),
];

/// `IFLA_MACVLAN_*`.
const MACVLAN: &[Field] = &[
    field(1, "mode", Kind::U32),
    field(2, "flags", Kind::U16),
    field(7, "broadcast-queue-length", Kind::U32),
    field(9, "broadcast-cutoff", Kind::U32),
];

/// `IFLA_TUN_*`: what ioctls of tun_device(4) have set.
const TUN: &[Field] = &[
    field(1, "owner", Kind::U32),
    field(2, "group", Kind::U32),
    field(3, "type", Kind::U8),
    field(4, "packet-information", Kind::U8),
    field(5, "virtual-header", Kind::U8),
    field(6, "persistent", Kind::U8),
    field(7, "several-queues", Kind::U8),
];

//! The parts of packet filters, and what each has (`linux/netfilter/nf_tables.h`).

use crate::netlink::record::{Field, Kind, Layout, field};
use serde::{Deserialize, Serialize};

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum What {
    /// A table.
    Table,
    /// A chain of rules.
    Chain,
    /// A counter, a quota and the like, with a name.
    Object,
    /// A set or a map.
    Set,
    /// Elements of a set.
    Elements,
    /// A rule.
    Rule,
}

/// `struct nfgenmsg`.
pub(super) const HEADER: usize = 4;
const FAMILY: &[Field] = &[field(0, "family", Kind::U8)];

const fn layout(attributes: &'static [Field]) -> Layout {
    Layout { size: HEADER, fields: FAMILY, attributes }
}

const EXPRESSION: &[Field] = &[field(1, "name", Kind::Text), field(2, "data", Kind::Bytes)];
const ELEMENT: &[Field] = &[
    field(1, "key", Kind::Bytes),
    field(2, "data", Kind::Bytes),
    field(3, "flags", Kind::Be32),
    field(4, "timeout", Kind::Be64),
    field(5, "expires", Kind::Be64),
    field(6, "userdata", Kind::Bytes),
    field(7, "expression", Kind::Bytes),
    field(8, "padding", Kind::Skip),
    field(9, "object", Kind::Text),
    field(10, "key-end", Kind::Bytes),
    field(11, "expressions", Kind::Bytes),
];

const TABLE: Layout = layout(&[
    field(1, "name", Kind::Text),
    field(2, "flags", Kind::Be32),
    field(3, "use", Kind::Skip),
    field(4, "handle", Kind::Skip),
    field(5, "padding", Kind::Skip),
    field(6, "userdata", Kind::Bytes),
    field(7, "owner", Kind::Be32),
]);

const CHAIN: Layout = layout(&[
    field(1, "table", Kind::Text),
    field(2, "handle", Kind::Skip),
    field(3, "name", Kind::Text),
    field(
        4,
        "hook",
        Kind::Nest(&[
            field(1, "number", Kind::Be32),
            field(2, "priority", Kind::Be32),
            field(3, "link", Kind::Text),
            field(4, "links", Kind::Bytes),
        ]),
    ),
    field(5, "policy", Kind::Be32),
    field(6, "use", Kind::Skip),
    field(7, "type", Kind::Text),
    field(
        8,
        "counters",
        Kind::Nest(&[
            field(1, "bytes", Kind::Be64),
            field(2, "packets", Kind::Be64),
            field(3, "padding", Kind::Skip),
        ]),
    ),
    field(9, "padding", Kind::Skip),
    field(10, "flags", Kind::Be32),
    field(12, "userdata", Kind::Bytes),
]);

const OBJECT: Layout = layout(&[
    field(1, "table", Kind::Text),
    field(2, "name", Kind::Text),
    field(3, "type", Kind::Be32),
    field(4, "data", Kind::Bytes),
    field(5, "use", Kind::Skip),
    field(6, "handle", Kind::Skip),
    field(7, "padding", Kind::Skip),
    field(8, "userdata", Kind::Bytes),
]);

const SET: Layout = layout(&[
    field(1, "table", Kind::Text),
    field(2, "name", Kind::Text),
    field(3, "flags", Kind::Be32),
    field(4, "key-type", Kind::Be32),
    field(5, "key-length", Kind::Be32),
    field(6, "data-type", Kind::Be32),
    field(7, "data-length", Kind::Be32),
    field(8, "policy", Kind::Be32),
    field(9, "description", Kind::Bytes),
    field(11, "timeout", Kind::Be64),
    field(12, "collected-every", Kind::Be32),
    field(13, "userdata", Kind::Bytes),
    field(14, "padding", Kind::Skip),
    field(15, "object-type", Kind::Be32),
    field(16, "handle", Kind::Skip),
    field(17, "expression", Kind::Bytes),
    field(18, "expressions", Kind::Bytes),
    field(19, "type", Kind::Skip),
    field(20, "count", Kind::Skip),
]);

const ELEMENTS: Layout = layout(&[
    field(1, "table", Kind::Text),
    field(2, "set", Kind::Text),
    field(3, "elements", Kind::Each(1, ELEMENT)),
]);

const RULE: Layout = layout(&[
    field(1, "table", Kind::Text),
    field(2, "chain", Kind::Text),
    field(3, "handle", Kind::Skip),
    field(4, "expressions", Kind::Each(1, EXPRESSION)),
    field(6, "position", Kind::Skip),
    field(7, "userdata", Kind::Bytes),
    field(8, "padding", Kind::Skip),
]);

impl What {
    pub(super) const ALL: [What; 6] =
        [What::Table, What::Chain, What::Object, What::Set, What::Elements, What::Rule];

    /// `NFT_MSG_NEW…`; the one to list them is the next.
    pub(in crate::network) fn number(self) -> u16 {
        match self {
            What::Table => 0,
            What::Chain => 3,
            What::Rule => 6,
            What::Set => 9,
            What::Elements => 12,
            What::Object => 18,
        }
    }

    /// `NFTA_*`. What is skipped counts, or numbers what the kernel numbers anew.
    pub(super) fn layout(self) -> Layout {
        match self {
            What::Table => TABLE,
            What::Chain => CHAIN,
            What::Object => OBJECT,
            What::Set => SET,
            What::Elements => ELEMENTS,
            What::Rule => RULE,
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            What::Table => "table",
            What::Chain => "chain",
            What::Object => "object",
            What::Set => "set",
            What::Elements => "elements of a set",
            What::Rule => "rule",
        }
    }
}

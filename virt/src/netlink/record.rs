//! Messages as a person reads them: every field and every attribute by its name.
//!
//! A [`Layout`] says what a kind of message has. Reading by it what the kernel tells, and writing by it what the kernel is
//! told, are the same table; what stands in no table is reported, not passed over.

use super::attributes::{Attributes, attributes};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// A message or a part of one.
pub type Record = BTreeMap<String, Value>;

/// The value of a field or an attribute.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Value {
    /// A number of any size.
    Number(u64),
    /// A text, an address, or bytes.
    Text(String),
    /// Attributes inside of an attribute.
    Record(Record),
    /// Several of the same.
    List(Vec<Record>),
}

/// What a value is.
#[derive(Debug, Clone, Copy)]
pub enum Kind {
    /// Numbers in the order of this machine.
    U8,
    /// 16 bits.
    U16,
    /// 32 bits.
    U32,
    /// 64 bits.
    U64,
    /// Numbers in the order of the network: 16 bits.
    Be16,
    /// 32 bits.
    Be32,
    /// 64 bits.
    Be64,
    /// With a zero byte at its end.
    Text,
    /// Bytes of which only the kernel knows more, as digits.
    Bytes,
    /// An address of IPv4 or IPv6.
    Ip,
    /// An address of hardware.
    Mac,
    /// The index of a link, as that link's name.
    Link,
    /// Fields at offsets of a structure of this size.
    Struct(usize, &'static [Field]),
    /// Attributes.
    Nest(&'static [Field]),
    /// Attributes of one type, each of which holds attributes: what `nla_for_each_nested` walks over.
    Each(u16, &'static [Field]),
    /// `struct rtnexthop`, each with attributes behind it.
    Hops(&'static [Field]),
    /// What the kernel tells and nobody needs.
    Skip,
}

/// A field (its number is an offset) or an attribute (its type).
#[derive(Debug, Clone, Copy)]
pub struct Field {
    number: u16,
    name: &'static str,
    kind: Kind,
}

/// One line of a table.
pub const fn field(number: u16, name: &'static str, kind: Kind) -> Field {
    Field { number, name, kind }
}

/// What a kind of message has.
#[derive(Debug, Clone, Copy)]
pub struct Layout {
    /// The size of its structure.
    pub size: usize,
    /// The fields of that.
    pub fields: &'static [Field],
    /// The attributes behind it.
    pub attributes: &'static [Field],
}

/// The links of a namespace.
#[derive(Debug, Clone, Default)]
pub struct Names {
    by_index: BTreeMap<u32, String>,
    by_name: BTreeMap<String, u32>,
}

impl Names {
    /// Enters a link.
    pub fn insert(&mut self, index: u32, name: &str) {
        self.by_index.insert(index, name.to_owned());
        self.by_name.insert(name.to_owned(), index);
    }

    /// The name of a link.
    pub fn name(&self, index: u32) -> Option<&String> {
        self.by_index.get(&index)
    }

    /// The index of a link.
    pub fn index(&self, name: &str) -> Option<u32> {
        self.by_name.get(name).copied()
    }
}

impl Layout {
    /// Reads a message. The error says what of it can't be understood.
    ///
    /// # Errors
    /// An attribute that is in no table, or is not as it should be.
    pub fn read(&self, payload: &[u8], names: &Names) -> Result<Record, String> {
        let header = payload.get(..self.size).ok_or("a message that is too short")?;
        let mut record = structure(header, self.fields, names)?;
        record.extend(read(self.attributes, payload.get(self.size..).unwrap_or_default(), names)?);
        Ok(record)
    }

    /// Makes a message.
    ///
    /// # Errors
    /// The record has what the table has not, or a value of another kind; a link that is not there.
    pub fn write(&self, record: &Record, names: &Names) -> Result<Vec<u8>, String> {
        let known = |name: &str| self.fields.iter().chain(self.attributes).any(|field| field.name == name);
        if let Some(name) = record.keys().find(|name| !known(name)) {
            return Err(format!("there is no {name:?}"));
        }
        let mut message = Attributes::behind(&bytes_of(self.size, self.fields, record, names)?);
        for field in self.attributes {
            if let Some(value) = record.get(field.name) {
                put(&mut message, field, value, names)?;
            }
        }
        Ok(message.bytes().to_vec())
    }
}

/// Reads attributes by a table.
///
/// # Errors
/// As [`Layout::read`].
pub fn read(table: &[Field], bytes: &[u8], names: &Names) -> Result<Record, String> {
    let mut record = Record::new();
    for (number, value) in attributes(bytes) {
        let field = table.iter().find(|field| field.number == number);
        let field = field.ok_or_else(|| format!("attribute {number} is not known to ckrun"))?;
        if let Some(value) = understand(field, value, names)? {
            record.insert(field.name.to_owned(), value);
        }
    }
    Ok(record)
}

/// The same, of those that are in the table.
///
/// # Errors
/// As [`Layout::read`].
pub fn read_known(table: &[Field], bytes: &[u8], names: &Names) -> Result<Record, String> {
    let mut record = Record::new();
    for (number, value) in attributes(bytes) {
        if let Some(field) = table.iter().find(|field| field.number == number)
            && let Some(value) = understand(field, value, names)?
        {
            record.insert(field.name.to_owned(), value);
        }
    }
    Ok(record)
}

/// Makes attributes by a table.
///
/// # Errors
/// As [`Layout::write`].
pub fn write(table: &[Field], record: &Record, names: &Names) -> Result<Attributes, String> {
    let mut made = Attributes::default();
    if let Some(name) = record.keys().find(|name| !table.iter().any(|field| field.name == **name)) {
        return Err(format!("there is no {name:?}"));
    }
    for field in table {
        if let Some(value) = record.get(field.name) {
            put(&mut made, field, value, names)?;
        }
    }
    Ok(made)
}

/// The fields of a structure that are not zero.
fn structure(bytes: &[u8], fields: &[Field], names: &Names) -> Result<Record, String> {
    let mut record = Record::new();
    for field in fields {
        let at = usize::from(field.number);
        let value = bytes.get(at..at + width(field.kind)).ok_or_else(|| short(field))?;
        if value.iter().any(|&byte| byte != 0)
            && let Some(value) = understand(field, value, names)?
        {
            record.insert(field.name.to_owned(), value);
        }
    }
    Ok(record)
}

fn bytes_of(size: usize, fields: &[Field], record: &Record, names: &Names) -> Result<Vec<u8>, String> {
    let mut bytes = vec![0; size];
    for field in fields {
        let Some(value) = record.get(field.name) else { continue };
        let value = express(field, value, names)?;
        let at = usize::from(field.number);
        bytes.get_mut(at..at + value.len()).ok_or_else(|| short(field))?.copy_from_slice(&value);
    }
    Ok(bytes)
}

fn width(kind: Kind) -> usize {
    match kind {
        Kind::U8 => 1,
        Kind::U16 | Kind::Be16 => 2,
        Kind::U64 | Kind::Be64 => 8,
        Kind::Struct(size, _) => size,
        _ => 4,
    }
}

fn short(field: &Field) -> String {
    format!("{} has another size than it should have", field.name)
}

fn understand(field: &Field, bytes: &[u8], names: &Names) -> Result<Option<Value>, String> {
    let number = |size: usize, swapped: bool| -> Result<u64, String> {
        let mut padded = [0; 8];
        let exact = bytes.get(..size).filter(|_| bytes.len() == size).ok_or_else(|| short(field))?;
        if swapped {
            padded[8 - size..].copy_from_slice(exact);
            Ok(u64::from_be_bytes(padded))
        } else {
            padded[..size].copy_from_slice(exact);
            Ok(u64::from_le_bytes(padded))
        }
    };
    Ok(Some(match field.kind {
        Kind::U8 => Value::Number(number(1, false)?),
        Kind::U16 => Value::Number(number(2, false)?),
        Kind::U32 => Value::Number(number(4, false)?),
        Kind::U64 => Value::Number(number(8, false)?),
        Kind::Be16 => Value::Number(number(2, true)?),
        Kind::Be32 => Value::Number(number(4, true)?),
        Kind::Be64 => Value::Number(number(8, true)?),
        Kind::Text => {
            let text = bytes.split(|&byte| byte == 0).next().unwrap_or_default();
            let text = std::str::from_utf8(text).map_err(|_| format!("{} is not UTF-8", field.name))?;
            Value::Text(text.to_owned())
        }
        Kind::Bytes => Value::Text(digits(bytes, "")),
        Kind::Mac => Value::Text(digits(bytes, ":")),
        Kind::Ip => Value::Text(match (<[u8; 4]>::try_from(bytes), <[u8; 16]>::try_from(bytes)) {
            (Ok(four), _) => Ipv4Addr::from(four).to_string(),
            (_, Ok(six)) => Ipv6Addr::from(six).to_string(),
            _ => return Err(short(field)),
        }),
        Kind::Link => match number(4, false)? as u32 {
            0 => return Ok(None),
            index => {
                let name =
                    names.name(index).ok_or_else(|| format!("{}: there is no link {index}", field.name))?;
                Value::Text(name.clone())
            }
        },
        Kind::Struct(size, fields) => {
            let bytes = bytes.get(..size).ok_or_else(|| short(field))?;
            Value::Record(structure(bytes, fields, names)?)
        }
        Kind::Nest(table) => Value::Record(read(table, bytes, names)?),
        Kind::Each(_, table) => {
            let each = attributes(bytes).map(|(_, bytes)| read(table, bytes, names));
            Value::List(each.collect::<Result<_, _>>()?)
        }
        Kind::Hops(table) => Value::List(hops(table, bytes, names)?),
        Kind::Skip => return Ok(None),
    }))
}

/// The fields of `struct rtnexthop` behind its length, which is the first one.
const HOP: (usize, [Field; 3]) =
    (8, [field(2, "hop-flags", Kind::U8), field(3, "weight", Kind::U8), field(4, "link", Kind::Link)]);

fn hops(table: &[Field], mut bytes: &[u8], names: &Names) -> Result<Vec<Record>, String> {
    let mut found = Vec::new();
    while let Some(length) = bytes.first_chunk().map(|length| usize::from(u16::from_ne_bytes(*length))) {
        let hop =
            bytes.get(..length).filter(|hop| hop.len() >= HOP.0).ok_or("a next hop that is too short")?;
        let mut record = structure(&hop[..HOP.0], &HOP.1, names)?;
        record.extend(read(table, &hop[HOP.0..], names)?);
        found.push(record);
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(found)
}

fn put(message: &mut Attributes, field: &Field, value: &Value, names: &Names) -> Result<(), String> {
    let bytes = express(field, value, names)?;
    if bytes.len() > usize::from(u16::MAX) - 4 {
        return Err(short(field));
    }
    // The kernel wants to be told of what holds attributes; of bytes nobody knows.
    let nested = matches!(field.kind, Kind::Nest(_) | Kind::Each(..));
    message.put(field.number | if nested { 0x8000 } else { 0 }, &bytes);
    Ok(())
}

fn express(field: &Field, value: &Value, names: &Names) -> Result<Vec<u8>, String> {
    let wrong = || format!("{} is not of the kind that it should be", field.name);
    let number = |size: usize, swapped: bool| match value {
        Value::Number(number) if size == 8 || *number >> (8 * size) == 0 => Ok(if swapped {
            number.to_be_bytes()[8 - size..].to_vec()
        } else {
            number.to_le_bytes()[..size].to_vec()
        }),
        _ => Err(wrong()),
    };
    let text = || match value {
        Value::Text(text) => Ok(text.as_str()),
        _ => Err(wrong()),
    };
    let record = || match value {
        Value::Record(record) => Ok(record),
        _ => Err(wrong()),
    };
    let list = || match value {
        Value::List(list) => Ok(list),
        _ => Err(wrong()),
    };
    match field.kind {
        Kind::U8 => number(1, false),
        Kind::U16 => number(2, false),
        Kind::U32 => number(4, false),
        Kind::U64 => number(8, false),
        Kind::Be16 => number(2, true),
        Kind::Be32 => number(4, true),
        Kind::Be64 => number(8, true),
        Kind::Text => match text()? {
            text if text.contains('\0') => Err(wrong()),
            text => Ok([text.as_bytes(), &[0]].concat()),
        },
        Kind::Bytes => bytes_from(text()?, "").ok_or_else(wrong),
        Kind::Mac => bytes_from(text()?, ":").ok_or_else(wrong),
        Kind::Ip => match text()?.parse() {
            Ok(IpAddr::V4(four)) => Ok(four.octets().to_vec()),
            Ok(IpAddr::V6(six)) => Ok(six.octets().to_vec()),
            Err(_) => Err(wrong()),
        },
        Kind::Link => {
            let name = text()?;
            let index = names.index(name).ok_or_else(|| format!("there is no link {name:?}"))?;
            Ok(index.to_ne_bytes().to_vec())
        }
        Kind::Struct(size, fields) => bytes_of(size, fields, record()?, names),
        Kind::Nest(table) => Ok(write(table, record()?, names)?.bytes().to_vec()),
        Kind::Each(number, table) => {
            let mut all = Attributes::default();
            for record in list()? {
                all.nest(number, &write(table, record, names)?);
            }
            Ok(all.bytes().to_vec())
        }
        Kind::Hops(table) => {
            let mut all = Vec::new();
            for record in list()? {
                let (own, rest): (Record, Record) = record
                    .clone()
                    .into_iter()
                    .partition(|(name, _)| HOP.1.iter().any(|field| field.name == name));
                let mut hop = bytes_of(HOP.0, &HOP.1, &own, names)?;
                hop.extend(write(table, &rest, names)?.bytes());
                let length = u16::try_from(hop.len()).map_err(|_| short(field))?;
                hop[..2].copy_from_slice(&length.to_ne_bytes());
                all.extend(hop);
            }
            Ok(all)
        }
        Kind::Skip => Err(wrong()),
    }
}

fn digits(bytes: &[u8], between: &str) -> String {
    let mut text = String::with_capacity(bytes.len() * 3);
    for (at, byte) in bytes.iter().enumerate() {
        if at > 0 {
            text.push_str(between);
        }
        // Writing to a string does not fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}

fn bytes_from(text: &str, between: &str) -> Option<Vec<u8>> {
    let text = if between.is_empty() { text.to_owned() } else { text.replace(between, "") };
    let pair = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    let plain = text.bytes().all(|byte| byte.is_ascii_hexdigit()) && text.len().is_multiple_of(2);
    plain.then(|| text.as_bytes().chunks(2).map(pair).collect())?
}

/// A number of a record; 0 when there is none.
pub fn number(record: &Record, name: &str) -> u64 {
    match record.get(name) {
        Some(Value::Number(number)) => *number,
        _ => 0,
    }
}

/// A text of a record.
pub fn text<'r>(record: &'r Record, name: &str) -> Option<&'r str> {
    match record.get(name) {
        Some(Value::Text(text)) => Some(text),
        _ => None,
    }
}

#[cfg(test)]
mod tests;

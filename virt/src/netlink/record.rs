//! Messages as a person reads them: every field and every attribute by its name.
//!
//! A [`Layout`] says what a kind of message has. Reading by it what the kernel tells, and writing by it what the kernel is
//! told, are the same table; what stands in no table is reported, not passed over.

mod values;

use super::attributes::{Attributes, attributes};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use values::{express, put, short, understand, width};

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

//! Values as the kernel has them, and as a record has them.

use super::{Field, Kind, Names, Record, Value, bytes_of, field, read, structure, write};
use crate::netlink::attributes::{Attributes, attributes};
use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The order of this machine is that of the network.
const BIG: bool = cfg!(target_endian = "big");

/// How many bytes a field of a structure takes.
pub(super) fn width(kind: Kind) -> usize {
    match kind {
        Kind::U8 => 1,
        Kind::U16 | Kind::Be16 => 2,
        Kind::U64 | Kind::Be64 => 8,
        Kind::Struct(size, _) => size,
        _ => 4,
    }
}

pub(super) fn short(field: &Field) -> String {
    format!("{} has another size than it should have", field.name)
}

pub(super) fn understand(field: &Field, bytes: &[u8], names: &Names) -> Result<Option<Value>, String> {
    let number = |size: usize, swapped: bool| -> Result<u64, String> {
        let mut padded = [0; 8];
        let exact = bytes.get(..size).filter(|_| bytes.len() == size).ok_or_else(|| short(field))?;
        if swapped || BIG {
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

pub(super) fn put(
    message: &mut Attributes,
    field: &Field,
    value: &Value,
    names: &Names,
) -> Result<(), String> {
    let bytes = express(field, value, names)?;
    if bytes.len() > usize::from(u16::MAX) - 4 {
        return Err(short(field));
    }
    // The kernel wants to be told of what holds attributes; of bytes nobody knows.
    let nested = matches!(field.kind, Kind::Nest(_) | Kind::Each(..));
    message.put(field.number | if nested { 0x8000 } else { 0 }, &bytes);
    Ok(())
}

pub(super) fn express(field: &Field, value: &Value, names: &Names) -> Result<Vec<u8>, String> {
    let wrong = || format!("{} is not of the kind that it should be", field.name);
    let number = |size: usize, swapped: bool| match value {
        Value::Number(number) if size == 8 || *number >> (8 * size) == 0 => Ok(if swapped || BIG {
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

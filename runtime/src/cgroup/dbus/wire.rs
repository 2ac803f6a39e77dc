//! D-Bus messages as bytes.
//!
//! Values are aligned to their size, counted from the start of the message, structures to 8 bytes; strings have a
//! length in front and a NUL behind; an array has in front its length in bytes, without the padding before its first
//! element; a variant has its type in front. (D-Bus Specification, "Marshaling" and "Message Protocol".)

use super::Target;

/// Messages are sent in this machine's byte order, which the first byte names, and so are those of its own systemd.
pub(super) const ENDIAN: u8 = if cfg!(target_endian = "little") { b'l' } else { b'B' };

/// Message types.
const CALL: u8 = 1;
pub(super) const ERROR: u8 = 3;
pub(super) const SIGNAL: u8 = 4;

/// A value of a property.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::cgroup) enum Value {
    Bool(bool),
    I32(i32),
    U32(u32),
    I64(i64),
    U64(u64),
    Double(f64),
    Str(String),
    Bytes(Vec<u8>),
    U32s(Vec<u32>),
    Strs(Vec<String>),
}

/// A property of a unit.
pub(in crate::cgroup) type Property = (String, Value);

impl Value {
    fn signature(&self) -> &'static str {
        match self {
            Value::Bool(_) => "b",
            Value::I32(_) => "i",
            Value::U32(_) => "u",
            Value::I64(_) => "x",
            Value::U64(_) => "t",
            Value::Double(_) => "d",
            Value::Str(_) => "s",
            Value::Bytes(_) => "ay",
            Value::U32s(_) => "au",
            Value::Strs(_) => "as",
        }
    }
}

/// The arguments of a call, in the making. A body begins at a multiple of 8, so its own offsets align it.
#[derive(Debug, Default)]
pub(in crate::cgroup) struct Body(Vec<u8>);

impl Body {
    pub(in crate::cgroup) fn str(mut self, text: &str) -> Self {
        self.put_str(text);
        self
    }

    pub(in crate::cgroup) fn bool(mut self, value: bool) -> Self {
        self.put_u32(value.into());
        self
    }

    /// `a(sv)`
    pub(in crate::cgroup) fn properties(mut self, properties: &[Property]) -> Self {
        self.put_array(8, |body| {
            for (name, value) in properties {
                body.align(8);
                body.put_str(name);
                body.put_variant(value);
            }
        });
        self
    }

    /// An array without elements, of structures.
    pub(in crate::cgroup) fn nothing(mut self) -> Self {
        self.put_array(8, |_| ());
        self
    }

    fn align(&mut self, to: usize) {
        self.0.resize(self.0.len().next_multiple_of(to), 0);
    }

    fn put_u32(&mut self, value: u32) {
        self.align(4);
        self.0.extend(value.to_ne_bytes());
    }

    fn put_u64(&mut self, bits: u64) {
        self.align(8);
        self.0.extend(bits.to_ne_bytes());
    }

    fn put_str(&mut self, text: &str) {
        self.put_u32(text.len() as u32);
        self.0.extend(text.as_bytes());
        self.0.push(0);
    }

    fn put_signature(&mut self, text: &str) {
        self.0.push(text.len() as u8);
        self.0.extend(text.as_bytes());
        self.0.push(0);
    }

    fn put_array(&mut self, alignment: usize, elements: impl FnOnce(&mut Self)) {
        self.put_u32(0);
        let length_at = self.0.len() - 4;
        self.align(alignment);
        let start = self.0.len();
        elements(self);
        let length = (self.0.len() - start) as u32;
        self.0[length_at..length_at + 4].copy_from_slice(&length.to_ne_bytes());
    }

    fn put_variant(&mut self, value: &Value) {
        self.put_signature(value.signature());
        match value {
            Value::Bool(b) => self.put_u32((*b).into()),
            Value::I32(n) => self.put_u32(n.cast_unsigned()),
            Value::U32(n) => self.put_u32(*n),
            Value::I64(n) => self.put_u64(n.cast_unsigned()),
            Value::U64(n) => self.put_u64(*n),
            Value::Double(n) => self.put_u64(n.to_bits()),
            Value::Str(text) => self.put_str(text),
            Value::Bytes(bytes) => self.put_array(1, |body| body.0.extend(bytes)),
            Value::U32s(list) => self.put_array(4, |body| list.iter().for_each(|n| body.put_u32(*n))),
            Value::Strs(list) => self.put_array(4, |body| list.iter().for_each(|text| body.put_str(text))),
        }
    }
}

/// The fields of a header, by number.
const PATH: u8 = 1;
const INTERFACE: u8 = 2;
const MEMBER: u8 = 3;
const ERROR_NAME: u8 = 4;
const ANSWERS: u8 = 5;
const DESTINATION: u8 = 6;
const SIGNATURE: u8 = 8;

/// A method call.
pub(super) fn encode(serial: u32, target: Target, method: &str, signature: &str, body: &Body) -> Vec<u8> {
    let mut message = Body(vec![ENDIAN, CALL, 0, 1]);
    message.put_u32(body.0.len() as u32);
    message.put_u32(serial);
    message.put_array(8, |header| {
        let fields = [
            (PATH, "o", target.path),
            (INTERFACE, "s", target.interface),
            (MEMBER, "s", method),
            (DESTINATION, "s", target.destination),
        ];
        for (number, kind, value) in fields {
            header.align(8);
            header.0.push(number);
            header.put_signature(kind);
            header.put_str(value);
        }
        if !signature.is_empty() {
            header.align(8);
            header.0.push(SIGNATURE);
            header.put_signature("g");
            header.put_signature(signature);
        }
    });
    message.align(8);
    message.0.extend(&body.0);
    message.0
}

/// A message that came in.
#[derive(Debug, Default)]
pub(in crate::cgroup) struct Message {
    pub(super) kind: u8,
    /// A signal's name.
    pub(in crate::cgroup) member: String,
    /// An error's name.
    pub(super) error: String,
    /// The serial number of the call that it answers.
    pub(super) answers: u32,
    body: Vec<u8>,
}

impl Message {
    /// From the array of header fields, which begins at a multiple of 8, and the body.
    pub(super) fn decode(kind: u8, fields: &[u8], body: Vec<u8>) -> Option<Self> {
        let mut message = Message { kind, body, ..Message::default() };
        let mut reader = Reader { bytes: fields, at: 0 };
        while reader.at < fields.len() {
            reader.align(8);
            let number = reader.byte()?;
            let signature = reader.signature()?;
            match (signature.as_str(), number) {
                ("s", MEMBER) => message.member = reader.str()?,
                ("s", ERROR_NAME) => message.error = reader.str()?,
                ("u", ANSWERS) => message.answers = reader.u32()?,
                ("s" | "o", _) => drop(reader.str()?),
                ("u", _) => drop(reader.u32()?),
                ("g", _) => drop(reader.signature()?),
                _ => return None,
            }
        }
        Some(message)
    }

    /// Reads the arguments.
    pub(in crate::cgroup) fn arguments(&self) -> Reader<'_> {
        Reader { bytes: &self.body, at: 0 }
    }
}

/// Reads values one after the other; None at the end, or for what is no value.
#[derive(Debug)]
pub(in crate::cgroup) struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    fn align(&mut self, to: usize) {
        self.at = self.at.next_multiple_of(to);
    }

    fn take(&mut self, count: usize) -> Option<&[u8]> {
        let taken = self.bytes.get(self.at..self.at.checked_add(count)?)?;
        self.at += count;
        Some(taken)
    }

    fn byte(&mut self) -> Option<u8> {
        self.take(1)?.first().copied()
    }

    pub(in crate::cgroup) fn u32(&mut self) -> Option<u32> {
        self.align(4);
        Some(u32::from_ne_bytes(self.take(4)?.try_into().ok()?))
    }

    /// A string or an object path.
    pub(in crate::cgroup) fn str(&mut self) -> Option<String> {
        let length = self.u32()? as usize;
        let text = String::from_utf8(self.take(length)?.to_vec()).ok()?;
        self.byte()?;
        Some(text)
    }

    /// A type; in front of the value of a variant.
    pub(in crate::cgroup) fn signature(&mut self) -> Option<String> {
        let length = self.byte()?.into();
        let text = String::from_utf8(self.take(length)?.to_vec()).ok()?;
        self.byte()?;
        Some(text)
    }
}

//! Bytes that are mostly text.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};
use std::fmt;

/// A path or an address: a string in JSON when it is UTF-8, else `{"hex": "…"}`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Bytes(pub Vec<u8>);

impl From<&str> for Bytes {
    fn from(text: &str) -> Self {
        Bytes(text.into())
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A terminal must not obey a name.
        String::from_utf8_lossy(&self.0).chars().try_for_each(|c| match c {
            c if c.is_control() => c.escape_default().fmt(f),
            c => fmt::Write::write_char(f, c),
        })
    }
}

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Form {
    Text(String),
    Hex { hex: String },
}

impl Serialize for Bytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match std::str::from_utf8(&self.0) {
            Ok(text) => text.serialize(serializer),
            Err(_) => {
                Form::Hex { hex: self.0.iter().map(|b| format!("{b:02x}")).collect() }.serialize(serializer)
            }
        }
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Form::deserialize(deserializer)? {
            Form::Text(text) => Ok(Bytes(text.into_bytes())),
            Form::Hex { hex } => {
                let digits = hex.as_bytes().chunks(2).map(|pair| {
                    std::str::from_utf8(pair).ok().and_then(|pair| u8::from_str_radix(pair, 16).ok())
                });
                digits.collect::<Option<_>>().map(Bytes).ok_or_else(|| D::Error::custom("not hexadecimal"))
            }
        }
    }
}

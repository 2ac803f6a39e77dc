//! Numbers and bytes as the protocol writes them.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};
use std::fmt;

/// Integers of identity and size are below this, 2^53, so that every language's JSON reader keeps them exactly.
pub const INTEGERS: u64 = 1 << 53;

/// An address, the value of a register or an ioctl command: "0x7f00c0de1000".
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Hex(pub u64);

impl fmt::Display for Hex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

impl Serialize for Hex {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Hex {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Hex, D::Error> {
        let text = String::deserialize(from)?;
        let digits = text.strip_prefix("0x").filter(|digits| digits.bytes().all(|b| b.is_ascii_hexdigit()));
        digits
            .and_then(|digits| u64::from_str_radix(digits, 16).ok())
            .map(Hex)
            .ok_or_else(|| D::Error::custom(format!("{text:?} is not 0x and up to 16 hexadecimal digits")))
    }
}

/// Bytes, in base64 with padding (RFC 4648).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Bytes(pub Vec<u8>);

impl Serialize for Bytes {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&STANDARD.encode(&self.0))
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Bytes, D::Error> {
        let text = String::deserialize(from)?;
        STANDARD.decode(text).map(Bytes).map_err(|e| D::Error::custom(format!("not base64: {e}")))
    }
}

/// For `deserialize_with`: an integer below 2^53.
pub(crate) fn integer<'de, D: Deserializer<'de>>(from: D) -> Result<u64, D::Error> {
    let number = u64::deserialize(from)?;
    (number < INTEGERS)
        .then_some(number)
        .ok_or_else(|| D::Error::custom(format!("{number} is not below 2^53")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_written_in_hexadecimal() {
        assert_eq!(serde_json::to_string(&Hex(0x7f00_c0de_1000)).unwrap(), "\"0x7f00c0de1000\"");
        assert_eq!(serde_json::from_str::<Hex>("\"0xFFFFFFFFFFFFFFFF\"").unwrap(), Hex(u64::MAX));
        for wrong in ["\"12\"", "\"0x\"", "\"0x+1\"", "\"0x10000000000000000\"", "7"] {
            assert!(serde_json::from_str::<Hex>(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn bytes_are_base64_with_padding() {
        assert_eq!(serde_json::to_string(&Bytes(b"emu!".into())).unwrap(), "\"ZW11IQ==\"");
        assert_eq!(serde_json::from_str::<Bytes>("\"ZW11IQ==\"").unwrap().0, b"emu!");
        assert!(serde_json::from_str::<Bytes>("\"ZW11IQ\"").is_err());
    }
}

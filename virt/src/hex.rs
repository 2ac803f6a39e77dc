//! Addresses and sets of bits in JSON: as people write them, and exact (a JSON number is exact only up to 2^53).

use serde::de::Visitor;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::str::FromStr;

/// A 64-bit number that reads `0x7f2a9c000010`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Hex(pub u64);

impl Hex {
    /// Bit `n` is set.
    pub fn has(self, n: u32) -> bool {
        self.0.checked_shr(n).is_some_and(|rest| rest & 1 == 1)
    }

    /// The numbers of the bits that are set, from the lowest.
    pub fn bits(self) -> impl Iterator<Item = u32> {
        (0..u64::BITS).filter(move |&n| self.has(n))
    }
}

impl fmt::Display for Hex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

impl fmt::Debug for Hex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Hex {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // from_str_radix would take a sign.
        let digits = text.strip_prefix("0x").filter(|d| d.bytes().all(|b| b.is_ascii_hexdigit()));
        let number = digits.and_then(|digits| u64::from_str_radix(digits, 16).ok());
        number.map(Hex).ok_or_else(|| format!("{text:?} is not a 64-bit number of the form 0x1f"))
    }
}

impl Serialize for Hex {
    fn serialize<S: Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
        out.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Hex {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from_text(from, str::parse)
    }
}

/// Reads a string by `parse`, without making a copy of it: an image has many.
pub(crate) fn from_text<'de, D: Deserializer<'de>, T>(
    from: D,
    parse: fn(&str) -> Result<T, String>,
) -> Result<T, D::Error> {
    struct Text<T>(fn(&str) -> Result<T, String>);

    impl<T> Visitor<'_> for Text<T> {
        type Value = T;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a string")
        }

        fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<T, E> {
            self.0(text).map_err(E::custom)
        }
    }

    from.deserialize_str(Text(parse))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_written_as_it_is_read() {
        for number in [0, 1, 0x7fff_ffff_f000, u64::MAX] {
            let json = serde_json::to_string(&Hex(number)).unwrap();
            assert_eq!(serde_json::from_str::<Hex>(&json).unwrap(), Hex(number), "{json}");
        }
    }

    #[test]
    fn what_is_no_number_is_refused() {
        for text in ["", "0x", "12", "0x+1", "0x-1", "0x1g", "0x10000000000000000", " 0x1", "0X1"] {
            assert!(text.parse::<Hex>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn bits_are_numbered_from_the_lowest() {
        assert_eq!(Hex(0b1001).bits().collect::<Vec<_>>(), [0, 3]);
        assert!(Hex(1 << 63).has(63) && !Hex(u64::MAX).has(64));
    }
}

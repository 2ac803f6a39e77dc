//! Digests of files: XXH3 with 128 bits, against accidents. It runs at the speed of memory; an attacker who can write
//! to an image can make a digest fit.

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::str::FromStr;
use xxhash_rust::xxh3::xxh3_128;

const PLAIN: &str = "xxh3-128:";
const BLOCKS: &str = "xxh3-128-blocks:";

/// The digest of one file; in JSON `"xxh3-128:…"` with 32 lower-case hexadecimal digits, as `xxh128sum` prints them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Digest {
    /// Over the bytes of the file.
    Plain(u128),
    /// Over the blocks that are not zero, see IMAGE.md: a hole costs nothing, and a copy that filled it with
    /// zeroes has the same digest.
    Blocks(u128),
}

impl Digest {
    /// The plain digest of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        Digest::Plain(xxh3_128(bytes))
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Digest::Plain(sum) => write!(f, "{PLAIN}{sum:032x}"),
            Digest::Blocks(sum) => write!(f, "{BLOCKS}{sum:032x}"),
        }
    }
}

impl FromStr for Digest {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (make, digits): (fn(u128) -> Digest, _) = if let Some(digits) = text.strip_prefix(PLAIN) {
            (Digest::Plain, digits)
        } else if let Some(digits) = text.strip_prefix(BLOCKS) {
            (Digest::Blocks, digits)
        } else {
            return Err("not an xxh3-128 digest");
        };
        if digits.len() != 32 || !digits.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            return Err("not 32 lower-case hexadecimal digits");
        }
        u128::from_str_radix(digits, 16).map(make).map_err(|_| "not a number")
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
        text.parse().map_err(|why| serde::de::Error::custom(format_args!("digest {text:?}: {why}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_the_digest_that_other_programs_know() {
        // The test vector of XXH3-128 for no input and seed 0.
        assert_eq!(Digest::of(b"").to_string(), "xxh3-128:99aa06d3014798d86001c324468d497f");
    }

    #[test]
    fn it_is_read_as_written_and_nothing_else_is() {
        for digest in [Digest::of(b"x"), Digest::Blocks(7)] {
            assert_eq!(digest.to_string().parse(), Ok(digest));
        }
        let digits = "99aa06d3014798d86001c324468d497f";
        for bad in [
            digits.to_owned(),
            format!("xxh3-128:+{}", &digits[1..]),
            format!("xxh3-128:{}", &digits[1..]),
            format!("xxh3-128:{digits}0"),
            format!("xxh3-128:{}", digits.to_uppercase()),
            format!("sha256:{digits}"),
        ] {
            assert!(bad.parse::<Digest>().is_err(), "{bad}");
        }
    }
}

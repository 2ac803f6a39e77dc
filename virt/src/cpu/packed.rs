//! Bytes as one line of text: hexadecimal digits, with long runs of zeroes counted.
//!
//! `7f03 0*22 801f` is 7f 03, 22 bytes of zero, 80 1f. Register files are mostly zeroes, and text can be compared by
//! eye and by `diff`.

use crate::hex::from_text;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt::Write;

/// No component of a CPU's state is near this size; a count in a damaged or hostile image must not allocate more.
const MOST: usize = 64 << 10;
const DIGITS: &[u8; 16] = b"0123456789abcdef";
/// Fewer zeroes than this are written out.
const RUN: usize = 4;

/// Bytes that are written as text.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Packed(pub Vec<u8>);

impl Packed {
    fn text(&self) -> String {
        let mut text = String::with_capacity(self.0.len());
        let mut rest = self.0.as_slice();
        while let Some(&first) = rest.first() {
            let zeroes = rest.iter().take_while(|&&b| b == 0).count();
            if zeroes >= RUN || zeroes == rest.len() {
                let gap = if text.is_empty() { "" } else { " " };
                // Writing to a String can't fail.
                let _ = write!(text, "{gap}0*{zeroes}");
                rest = &rest[zeroes..];
                if !rest.is_empty() {
                    text.push(' ');
                }
            } else {
                text.extend([first >> 4, first & 15].map(|digit| char::from(DIGITS[usize::from(digit)])));
                rest = &rest[1..];
            }
        }
        text
    }

    fn parse(text: &str) -> Option<Packed> {
        let mut bytes = Vec::new();
        for word in text.split_ascii_whitespace() {
            let (len, run) = match word.strip_prefix("0*") {
                Some(count) => (count.parse::<usize>().ok()?, true),
                None => (word.len() / 2, false),
            };
            if len > MOST - bytes.len() || !word.is_ascii() || (!run && word.len() % 2 != 0) {
                return None;
            }
            if run {
                bytes.resize(bytes.len() + len, 0);
                continue;
            }
            for pair in word.as_bytes().chunks_exact(2) {
                let digit = |b: u8| char::from(b).to_digit(16);
                bytes.push((digit(pair[0])? * 16 + digit(pair[1])?) as u8);
            }
        }
        Some(Packed(bytes))
    }
}

impl Serialize for Packed {
    fn serialize<S: Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
        out.serialize_str(&self.text())
    }
}

impl<'de> Deserialize<'de> for Packed {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from_text(from, |text| {
            Packed::parse(text).ok_or_else(|| "not hexadecimal digits with runs like 0*22".to_owned())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_come_back() {
        let mut long = vec![0; 512];
        (long[0], long[1], long[24], long[300], long[304]) = (0x7f, 3, 0x80, 9, 1);
        for bytes in [vec![], vec![0], vec![1], vec![0, 0, 0, 7], vec![7, 0, 0, 0, 0, 0], long] {
            let packed = Packed(bytes);
            assert_eq!(Packed::parse(&packed.text()).unwrap(), packed, "{}", packed.text());
        }
        assert_eq!(Packed(vec![0x7f, 3, 0, 0, 0, 0, 0, 1]).text(), "7f03 0*5 01");
    }

    #[test]
    fn hostile_text_is_refused() {
        for text in ["7", "zz", "0*99999999999999999999", "0*70000", "0*60000 0*60000", "+1", "é"] {
            assert_eq!(Packed::parse(text), None, "{text}");
        }
    }
}

//! Paths and names as the kernel has them: bytes. In JSON they are readable as long as they are UTF-8.

use serde::de::{Error, MapAccess, Unexpected, Visitor};
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// A byte string that is a JSON string when it is UTF-8, and `{"hex": "2f746d70ff"}` otherwise.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Bytes(Vec<u8>);

impl Bytes {
    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The bytes, taken out.
    pub fn into_bytes(self) -> Vec<u8> {
        self.0
    }

    /// The same bytes as a path.
    pub fn as_path(&self) -> &Path {
        Path::new(self.as_os_str())
    }

    /// The same bytes as a string of the operating system.
    pub fn as_os_str(&self) -> &OsStr {
        OsStr::from_bytes(&self.0)
    }
}

impl std::ops::Deref for Bytes {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl AsRef<[u8]> for Bytes {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl AsRef<Path> for Bytes {
    fn as_ref(&self) -> &Path {
        self.as_path()
    }
}

impl From<Vec<u8>> for Bytes {
    fn from(bytes: Vec<u8>) -> Self {
        Bytes(bytes)
    }
}

impl From<&[u8]> for Bytes {
    fn from(bytes: &[u8]) -> Self {
        Bytes(bytes.to_owned())
    }
}

impl From<&str> for Bytes {
    fn from(text: &str) -> Self {
        Bytes(text.as_bytes().to_owned())
    }
}

impl From<String> for Bytes {
    fn from(text: String) -> Self {
        Bytes(text.into_bytes())
    }
}

impl From<OsString> for Bytes {
    fn from(text: OsString) -> Self {
        Bytes(text.into_vec())
    }
}

impl From<&OsStr> for Bytes {
    fn from(text: &OsStr) -> Self {
        Bytes(text.as_bytes().to_owned())
    }
}

impl From<PathBuf> for Bytes {
    fn from(path: PathBuf) -> Self {
        path.into_os_string().into()
    }
}

impl From<&Path> for Bytes {
    fn from(path: &Path) -> Self {
        path.as_os_str().into()
    }
}

/// For people: what is not UTF-8 is replaced.
impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&String::from_utf8_lossy(&self.0))
    }
}

impl fmt::Debug for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.as_os_str())
    }
}

impl Serialize for Bytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match std::str::from_utf8(&self.0) {
            Ok(text) => serializer.serialize_str(text),
            Err(_) => {
                let mut map = serializer.serialize_map(Some(1))?;
                map.serialize_entry("hex", &to_hex(&self.0))?;
                map.end()
            }
        }
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(StringOrHex)
    }
}

struct StringOrHex;

impl<'de> Visitor<'de> for StringOrHex {
    type Value = Bytes;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string, or an object with the one member \"hex\"")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Bytes, E> {
        Ok(text.into())
    }

    fn visit_string<E: Error>(self, text: String) -> Result<Bytes, E> {
        Ok(text.into())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Bytes, A::Error> {
        let Some(key) = map.next_key::<String>()? else { return Err(Error::missing_field("hex")) };
        if key != "hex" {
            return Err(Error::unknown_field(&key, &["hex"]));
        }
        let hex: String = map.next_value()?;
        if let Some(more) = map.next_key::<String>()? {
            return Err(if more == "hex" {
                Error::duplicate_field("hex")
            } else {
                Error::unknown_field(&more, &["hex"])
            });
        }
        from_hex(&hex)
            .map(Bytes)
            .ok_or_else(|| Error::invalid_value(Unexpected::Str(&hex), &"pairs of hexadecimal digits"))
    }
}

fn to_hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    bytes
        .iter()
        .flat_map(|b| [DIGITS[usize::from(b >> 4)], DIGITS[usize::from(b & 15)]])
        .map(char::from)
        .collect()
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digit = |b: u8| char::from(b).to_digit(16);
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    if !rest.is_empty() {
        return None;
    }
    pairs.iter().map(|&[high, low]| u8::try_from(digit(high)? << 4 | digit(low)?).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(json: &str) -> Result<Bytes, String> {
        serde_json::from_str(json).map_err(|e| e.to_string())
    }

    #[test]
    fn text_stays_readable_and_the_rest_becomes_hex() {
        assert_eq!(serde_json::to_string(&Bytes::from("/tmp/ä")).unwrap(), "\"/tmp/ä\"");
        assert_eq!(serde_json::to_string(&Bytes::from(b"/\xff".as_slice())).unwrap(), r#"{"hex":"2fff"}"#);
        assert_eq!(read(r#"{"hex":"2FfF"}"#).unwrap().as_bytes(), b"/\xff");
    }

    #[test]
    fn anything_else_is_refused() {
        for json in [
            "7",
            "null",
            "[47]",
            "{}",
            r#"{"hex":"2"}"#,
            r#"{"hex":"zz"}"#,
            r#"{"hex":"+1"}"#,
            r#"{"hex":"2é"}"#,
            r#"{"hex":"00","hex":"01"}"#,
            r#"{"hex":"00","more":1}"#,
            r#"{"HEX":"00"}"#,
            r#"{"hex":7}"#,
        ] {
            assert!(read(json).is_err(), "{json}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(bytes: Vec<u8>) {
            let bytes = Bytes::from(bytes);
            prop_assert_eq!(read(&serde_json::to_string(&bytes).unwrap()).unwrap(), bytes);
        }

        #[test]
        fn any_text_is_an_answer_or_an_error(text in r#"\PC*|\{"hex":"\PC*"\}"#) {
            let _ = read(&text);
        }
    }
}

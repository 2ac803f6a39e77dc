//! Maps in which no key comes twice. serde's own maps keep the last of two, so that two readers of one file could see
//! different things in it.

use serde::de::{Error, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;

/// Reads a map and refuses it when a key comes twice: `#[serde(deserialize_with = "crate::image::unique")]`.
///
/// # Errors
/// The deserializer's, and one that names the key.
pub fn unique<'de, D, K, V>(deserializer: D) -> Result<BTreeMap<K, V>, D::Error>
where
    D: Deserializer<'de>,
    K: Deserialize<'de> + Ord + fmt::Debug,
    V: Deserialize<'de>,
{
    deserializer.deserialize_map(Unique(PhantomData))
}

struct Unique<K, V>(PhantomData<(K, V)>);

impl<'de, K, V> Visitor<'de> for Unique<K, V>
where
    K: Deserialize<'de> + Ord + fmt::Debug,
    V: Deserialize<'de>,
{
    type Value = BTreeMap<K, V>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a map")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Self::Value, A::Error> {
        let mut map = BTreeMap::new();
        while let Some(key) = access.next_key::<K>()? {
            if map.contains_key(&key) {
                return Err(Error::custom(format_args!("{key:?} comes twice")));
            }
            map.insert(key, access.next_value()?);
        }
        Ok(map)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Deserialize)]
    struct Holder(#[serde(deserialize_with = "unique")] BTreeMap<i32, u8>);

    #[test]
    fn a_key_that_comes_twice_is_refused_by_name() {
        let said = serde_json::from_str::<Holder>(r#"{"7":1,"8":2,"7":3}"#).unwrap_err().to_string();
        assert!(said.contains("7 comes twice"), "{said}");
        assert_eq!(serde_json::from_str::<Holder>(r#"{"7":1,"-8":2}"#).unwrap().0, [(7, 1), (-8, 2)].into());
    }
}

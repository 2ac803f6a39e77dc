//! What a plugin keeps with ckrun: keys and values, which are part of the image.

use ckrun_plugin::call::{AREA, KEY, VALUE};
use ckrun_plugin::{Code, Fault};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;

/// The key-value area of one plugin. As JSON it is an object.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Area(BTreeMap<String, Value>);

impl Area {
    /// Keeps a value; None removes the key.
    ///
    /// # Errors
    /// [`Code::Limit`].
    pub fn put(&mut self, key: String, value: Option<Value>) -> Result<(), Fault> {
        let limit = |what: String| Err(Fault::new(Code::Limit, what));
        let Some(value) = value else {
            self.0.remove(&key);
            return Ok(());
        };
        if !(1..=KEY).contains(&key.len()) {
            return limit(format!("a key has 1 to {KEY} bytes, not {}", key.len()));
        }
        let size = length(&value);
        if size > VALUE {
            return limit(format!("{key:?}: a value has up to {VALUE} bytes, not {size}"));
        }
        let others = self.0.iter().filter(|(other, _)| **other != key);
        let rest: usize = others.map(|(key, value)| key.len() + length(value)).sum();
        if rest + key.len() + size > AREA {
            return limit(format!(
                "{key:?}: all keys and values may have {AREA} bytes, and {rest} are in use"
            ));
        }
        self.0.insert(key, value);
        Ok(())
    }

    /// A value that was kept.
    ///
    /// # Errors
    /// [`Code::Unknown`].
    pub fn get(&self, key: &str) -> Result<Value, Fault> {
        self.0.get(key).cloned().ok_or_else(|| Fault::new(Code::Unknown, format!("there is no key {key:?}")))
    }
}

fn length(value: &Value) -> usize {
    value.to_string().len()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn values_come_back_until_they_are_removed() {
        let mut area = Area::default();
        area.put("cycle".into(), Some(json!(4711))).unwrap();
        area.put("none".into(), Some(Value::Null)).unwrap();
        let mut area: Area = serde_json::from_value(serde_json::to_value(area).unwrap()).unwrap();
        assert_eq!((area.get("cycle").unwrap(), area.get("none").unwrap()), (json!(4711), Value::Null));
        area.put("cycle".into(), None).unwrap();
        assert_eq!(area.get("cycle").unwrap_err().kind(), Some(Code::Unknown));
        area.put("cycle".into(), None).unwrap();
    }

    #[test]
    fn the_area_has_limits() {
        let mut area = Area::default();
        let text = |bytes: usize| Some(json!("x".repeat(bytes - 2)));
        for (key, value) in [("", text(9)), (&"k".repeat(KEY + 1), text(9)), ("k", text(VALUE + 1))] {
            assert_eq!(area.put(key.into(), value).unwrap_err().kind(), Some(Code::Limit));
        }
        for number in 0..15 {
            area.put(number.to_string(), text(VALUE)).unwrap();
        }
        assert_eq!(area.put("15".into(), text(VALUE)).unwrap_err().kind(), Some(Code::Limit));
        area.put("3".into(), text(VALUE)).unwrap();
        area.put("15".into(), text(VALUE - 100)).unwrap();
    }
}

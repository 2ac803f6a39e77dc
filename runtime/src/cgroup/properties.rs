//! Properties of systemd's units: from limits, and from annotations.

pub(super) use super::dbus::Property;

use super::dbus::Value;
use super::limits::set;
use super::{Request, refuse, v2};
use crate::error::{Error, Result};
use oci_spec::runtime::LinuxResources;
use std::collections::HashMap;

/// systemd's period of the cpu quota, in microseconds.
const PERIOD: u64 = 100_000;

/// The limits that systemd knows. What it does not know is written to the cgroup files only.
pub(super) fn of_resources(resources: &LinuxResources, pure_v2: bool) -> Result<Vec<Property>> {
    let mut list = Properties(Vec::new());
    // systemd takes the largest number for "infinity", and -1 becomes that.
    let unsigned = |n: i64| u64::try_from(n).unwrap_or(u64::MAX);
    if let Some(memory) = resources.memory() {
        let limit = set(memory.limit());
        list.u64(if pure_v2 { "MemoryMax" } else { "MemoryLimit" }, limit.map(unsigned));
        if pure_v2 {
            list.u64("MemoryLow", set(memory.reservation()).map(unsigned));
            let swap = match (set(memory.swap()), limit) {
                (Some(swap), Some(limit)) if swap > 0 && limit > 0 => {
                    Some(unsigned(swap.saturating_sub(limit)))
                }
                (Some(-1), _) | (None, Some(-1)) => Some(u64::MAX),
                _ => None,
            };
            list.u64("MemorySwapMax", swap);
        }
    }
    if let Some(cpu) = resources.cpu() {
        let shares = set(cpu.shares());
        if pure_v2 {
            // An idle group has no weight.
            list.u64("CPUWeight", shares.filter(|_| cpu.idle() != Some(1)).map(v2::weight_of_shares));
            for (name, field, ids) in
                [("AllowedCPUs", "cpu.cpus", cpu.cpus()), ("AllowedMemoryNodes", "cpu.mems", cpu.mems())]
            {
                if let Some(ids) = ids.as_deref().filter(|ids| !ids.is_empty()) {
                    list.0.push((name.into(), Value::Bytes(bitmap(field, ids)?)));
                }
            }
        } else {
            list.u64("CPUShares", shares);
        }
        list.quota(set(cpu.quota()), set(cpu.period()));
    }
    if let Some(pids) = resources.pids() {
        list.u64("TasksMax", Some(if pids.limit() > 0 { unsigned(pids.limit()) } else { u64::MAX }));
    }
    if let Some(weight) = resources.block_io().as_ref().and_then(|io| set(io.weight()))
        && !pure_v2
    {
        list.u64("BlockIOWeight", Some(weight.into()));
    }
    if let Some(unified) = resources.unified() {
        list.unified(unified);
    }
    Ok(list.0)
}

struct Properties(Vec<Property>);

impl Properties {
    fn u64(&mut self, name: &str, value: Option<u64>) {
        self.0.extend(value.map(|value| (name.to_owned(), Value::U64(value))));
    }

    fn quota(&mut self, quota: Option<i64>, period: Option<u64>) {
        self.u64("CPUQuotaPeriodUSec", period);
        if quota.is_none() && period.is_none() {
            return;
        }
        let per_second = match quota.and_then(|quota| u64::try_from(quota).ok()) {
            // systemd keeps whole percents: what is more is rounded up, so as not to give less than was asked for.
            Some(quota) => {
                (quota.saturating_mul(1_000_000) / period.unwrap_or(PERIOD)).next_multiple_of(10_000)
            }
            None => u64::MAX,
        };
        self.u64("CPUQuotaPerSecUSec", Some(per_second));
    }

    /// The files of cgroup2 that are properties as well.
    fn unified(&mut self, files: &HashMap<String, String>) {
        let names = [
            ("cpu.weight", "CPUWeight"),
            ("memory.high", "MemoryHigh"),
            ("memory.low", "MemoryLow"),
            ("memory.max", "MemoryMax"),
            ("memory.min", "MemoryMin"),
            ("memory.swap.max", "MemorySwapMax"),
            ("pids.max", "TasksMax"),
        ];
        for (file, name) in names {
            let value = match files.get(file).map(|value| value.trim()) {
                Some("max") => Some(u64::MAX),
                Some(number) => number.parse().ok(),
                None => None,
            };
            self.u64(name, value);
        }
        if let Some(max) = files.get("cpu.max") {
            let mut words = max.split_whitespace();
            let quota = words.next().and_then(|quota| quota.parse().ok());
            self.quota(quota, words.next().and_then(|period| period.parse().ok()).or(Some(PERIOD)));
        }
    }
}

/// `0-2,5` as a bitmap, the lowest number in the first byte's lowest bit.
fn bitmap(field: &str, list: &str) -> Result<Vec<u8>> {
    let invalid = || refuse(field, format!("{list:?} is not a list like 0-2,5"));
    let mut bytes = Vec::new();
    for part in list.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let number = |text: &str| text.parse::<u16>().map_err(|_| invalid());
        for n in usize::from(number(first)?)..=usize::from(number(last)?) {
            bytes.resize(bytes.len().max(n / 8 + 1), 0);
            bytes[n / 8] |= 1 << (n % 8);
        }
    }
    if bytes.is_empty() { Err(invalid()) } else { Ok(bytes) }
}

/// The properties in the annotations `org.systemd.property.NAME`.
pub(super) fn of_annotations(request: &Request<'_>) -> Result<Vec<Property>> {
    const PREFIX: &str = "org.systemd.property.";
    let mut properties = Vec::new();
    for (key, text) in request.annotations.into_iter().flatten() {
        let Some(name) = key.strip_prefix(PREFIX) else { continue };
        let field = || format!("annotations[{key}]");
        if name.len() < 3 || !name.bytes().all(|b| b.is_ascii_alphabetic()) {
            return Err(Error::config(field(), "is no name of a property"));
        }
        let value = parse(text.trim()).ok_or_else(|| {
            Error::config(field(), format!("{text:?} is no value in GVariant's text format"))
        })?;
        properties.push(match (name.strip_suffix("Sec"), in_microseconds(&value)) {
            // In unit files times are in seconds, on the bus they are in microseconds and are called so.
            (Some(stem), Some(usec)) if stem.ends_with(|c: char| c.is_ascii_lowercase()) => {
                (format!("{stem}USec"), Value::U64(usec))
            }
            _ => (name.to_owned(), value),
        });
    }
    Ok(properties)
}

fn in_microseconds(value: &Value) -> Option<u64> {
    match *value {
        Value::I32(s) => u64::try_from(s).ok()?.checked_mul(1_000_000),
        Value::U32(s) => u64::from(s).checked_mul(1_000_000),
        Value::I64(s) => u64::try_from(s).ok()?.checked_mul(1_000_000),
        Value::U64(s) => s.checked_mul(1_000_000),
        Value::Double(s) if s >= 0.0 => Some((s * 1e6) as u64),
        _ => None,
    }
}

/// A value in GVariant's text format, as far as units have such: `true`, `'text'`, `42`, `uint64 42`, `@t 42`, `1.5`,
/// `['a', 'b']`.
fn parse(text: &str) -> Option<Value> {
    if let Some(list) = text.strip_prefix('[') {
        let elements = list.strip_suffix(']')?.split(',').map(str::trim).filter(|e| !e.is_empty());
        return elements.map(quoted).collect::<Option<_>>().map(Value::Strs);
    }
    if let Some((kind, number)) = text.split_once(' ') {
        let number = number.trim();
        match kind {
            "uint32" | "@u" => return number.parse().ok().map(Value::U32),
            "uint64" | "@t" => return number.parse().ok().map(Value::U64),
            "int32" | "@i" => return number.parse().ok().map(Value::I32),
            "int64" | "@x" => return number.parse().ok().map(Value::I64),
            "double" | "@d" => return number.parse().ok().map(Value::Double),
            "boolean" | "@b" => return number.parse().ok().map(Value::Bool),
            "string" | "@s" => return quoted(number).map(Value::Str),
            _ => {}
        }
    }
    let plain = text.parse().map(Value::Bool).ok().or_else(|| text.parse().map(Value::I32).ok());
    let number = || text.starts_with(|c: char| c.is_ascii_digit() || c == '-').then(|| text.parse().ok())?;
    plain.or_else(|| number().map(Value::Double)).or_else(|| quoted(text).map(Value::Str))
}

/// Text in single or double quotation marks.
fn quoted(text: &str) -> Option<String> {
    let inner = |mark| text.strip_prefix(mark)?.strip_suffix(mark);
    let inner = inner('\'').or_else(|| inner('"')).filter(|inner| !inner.contains(['\'', '"', '\\']))?;
    Some(inner.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn annotations_become_typed_properties() {
        let text = [
            ("org.systemd.property.CollectMode", "'inactive-or-failed'"),
            ("org.systemd.property.TimeoutStopSec", "90"),
            ("org.systemd.property.RuntimeMaxUSec", "uint64 5"),
            ("org.systemd.property.After", "['a.service', 'b.service']"),
            ("org.systemd.property.SendSIGHUP", "true"),
            ("something.else", "ignored"),
        ];
        let annotations = text.into_iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect();
        let request =
            Request { id: "x", path: None, systemd: true, rootless: false, annotations: Some(&annotations) };
        let mut properties = of_annotations(&request).unwrap();
        properties.sort_by(|a, b| a.0.cmp(&b.0));
        assert_eq!(
            properties,
            [
                ("After".into(), Value::Strs(vec!["a.service".into(), "b.service".into()])),
                ("CollectMode".into(), Value::Str("inactive-or-failed".into())),
                ("RuntimeMaxUSec".into(), Value::U64(5)),
                ("SendSIGHUP".into(), Value::Bool(true)),
                ("TimeoutStopUSec".into(), Value::U64(90_000_000)),
            ]
        );
    }

    #[test]
    fn what_is_no_property_is_refused() {
        for (key, value) in [("org.systemd.property.A/B", "1"), ("org.systemd.property.Abc", "it's")] {
            let annotations = HashMap::from([(key.to_owned(), value.to_owned())]);
            let request = Request {
                id: "x",
                path: None,
                systemd: true,
                rootless: false,
                annotations: Some(&annotations),
            };
            let refused = of_annotations(&request).unwrap_err().to_string();
            assert!(refused.starts_with(&format!("annotations[{key}]: ")), "{refused}");
        }
    }

    #[test]
    fn limits_become_properties() {
        let json = r#"{"memory":{"limit":1000,"swap":3000},"cpu":{"shares":1024,"quota":5001,"period":10000,
            "cpus":"0,9"},"pids":{"limit":0}}"#;
        let resources: LinuxResources = serde_json::from_str(json).unwrap();
        let number = |name: &str, value| (name.to_owned(), Value::U64(value));
        assert_eq!(
            of_resources(&resources, true).unwrap(),
            [
                number("MemoryMax", 1000),
                number("MemorySwapMax", 2000),
                number("CPUWeight", 100),
                ("AllowedCPUs".into(), Value::Bytes(vec![1, 2])),
                number("CPUQuotaPeriodUSec", 10_000),
                number("CPUQuotaPerSecUSec", 510_000),
                number("TasksMax", u64::MAX),
            ]
        );
        let v1: Vec<_> = of_resources(&resources, false).unwrap().into_iter().map(|(name, _)| name).collect();
        assert_eq!(v1, ["MemoryLimit", "CPUShares", "CPUQuotaPeriodUSec", "CPUQuotaPerSecUSec", "TasksMax"]);
    }
}

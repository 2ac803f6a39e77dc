//! A moment, as it is written down.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};
use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The last millisecond that RFC 3339 has digits for, 9999-12-31T23:59:59.999Z.
const LAST: u64 = 253_402_300_799_999;

/// A moment of the wall clock in milliseconds, UTC; written as RFC 3339: `2026-03-01T12:00:00.250Z`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Time(u64);

impl Time {
    /// This moment.
    pub fn now() -> Time {
        SystemTime::now().into()
    }

    /// So many clock ticks later, as the kernel counts them for those who look (`USER_HZ`, which is 100 everywhere but on
    /// alpha).
    pub fn after(self, ticks: u64) -> Time {
        Time(self.0.saturating_add(ticks.saturating_mul(10)).min(LAST))
    }

    /// Reads RFC 3339 in UTC; None when the text is anything else.
    pub fn parse(text: &str) -> Option<Time> {
        humantime::parse_rfc3339(text).ok().map(Time::from)
    }
}

impl From<SystemTime> for Time {
    /// What no date can be written for becomes the first or the last that there is.
    fn from(time: SystemTime) -> Time {
        let since = time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        Time(u64::try_from(since.as_millis()).unwrap_or(LAST).min(LAST))
    }
}

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        humantime::format_rfc3339_millis(UNIX_EPOCH + Duration::from_millis(self.0)).fmt(f)
    }
}

impl Serialize for Time {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Time, D::Error> {
        let text = String::deserialize(deserializer)?;
        Time::parse(&text).ok_or_else(|| D::Error::custom("not a time in RFC 3339, UTC"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_moment_has_a_text_that_reads_as_itself() {
        let far = UNIX_EPOCH + Duration::from_secs(1 << 50);
        for time in [UNIX_EPOCH - Duration::from_secs(5), UNIX_EPOCH, SystemTime::now(), far] {
            let time = Time::from(time);
            assert_eq!(Time::parse(&time.to_string()), Some(time), "{time}");
        }
        assert_eq!(Time(250).to_string(), "1970-01-01T00:00:00.250Z");
        assert_eq!(Time::parse("yesterday"), None);
    }
}

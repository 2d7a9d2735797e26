//! Moments as people and scripts read them: RFC 3339, UTC, with ms.

use chrono::{DateTime, SecondsFormat, Utc};

/// A moment of ms since the epoch; `None` past the end of the calendar.
#[must_use]
pub fn iso(ms: u64) -> Option<String> {
    let at = DateTime::<Utc>::from_timestamp_millis(i64::try_from(ms).ok()?)?;
    Some(at.to_rfc3339_opts(SecondsFormat::Millis, true))
}

/// Now, by this machine's clock.
#[must_use]
pub fn now() -> String {
    Utc::now().to_rfc3339_opts(SecondsFormat::Millis, true)
}

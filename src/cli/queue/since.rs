//! `--since`: a moment, in any of the ways in which people and logs write one.
//!
//! | text | meaning |
//! |---|---|
//! | `15m`, `2h` | so long ago |
//! | `1772911985` | seconds since the epoch (fewer than 13 digits) |
//! | `1772911985000` | milliseconds since the epoch |
//! | `2026-03-07T19:33:05Z` | ISO-8601; without a zone it is UTC |
//! | `1772911985000-0` | a stream id or a journal record's id |
//! | `drainer` | the start of the newest live drainer |
//! | blank | as if it were not given |

use chrono::{DateTime, NaiveDate, NaiveDateTime, NaiveTime};

use super::super::output::Failure;
use crate::config::units::parse_duration;
use crate::diagnose::Exit;
use crate::streams::bus::Bus;
use crate::streams::entry_id::EntryId;

/// Bare digits below this are seconds.
const LEAST_MS: u64 = 1_000_000_000_000;

/// A moment as it was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Since {
    /// At a time, ms since the epoch.
    At(u64),
    /// At an entry, which is included.
    Entry(EntryId),
    /// So many ms before now.
    Ago(u64),
    /// When the newest live drainer started.
    Drainer,
}

impl Since {
    /// Reads `--since`; `None` when it is absent or blank.
    pub fn of(text: Option<&str>) -> Result<Option<Self>, Failure> {
        let Some(text) = text.map(str::trim).filter(|text| !text.is_empty()) else { return Ok(None) };
        parse(text).map(Some).ok_or_else(|| {
            let fix = "Use for example --since 15m, --since 2026-03-07T19:33:05Z or a stream id.";
            Failure::new("INVALID_SINCE", Exit::Usage, format!("Invalid --since value: {text}"), fix)
        })
    }

    /// The first journal entry that counts, given Redis's clock.
    pub async fn entry(self, bus: &Bus, now_ms: u64) -> Result<EntryId, Failure> {
        let ms = match self {
            Self::Entry(id) => return Ok(id),
            Self::At(ms) => ms,
            Self::Ago(ms) => now_ms.saturating_sub(ms),
            Self::Drainer => newest_drainer(bus, now_ms).await?,
        };
        Ok(EntryId { ms, seq: 0 })
    }
}

async fn newest_drainer(bus: &Bus, now_ms: u64) -> Result<u64, Failure> {
    let sessions = bus.sessions().await?;
    let live = sessions.iter().filter(|session| session.expires_ms > now_ms);
    let started = live.filter_map(|session| session.details.as_ref()?.get("startedAtMs")?.as_u64()).max();
    started.ok_or_else(|| {
        let message = "--since drainer: no drainer is alive";
        Failure::new("INVALID_SINCE", Exit::Usage, message, "Start one with joelclaw drainer, or give a time.")
    })
}

fn parse(text: &str) -> Option<Since> {
    if text == "drainer" {
        return Some(Since::Drainer);
    }
    if text.bytes().all(|b| b.is_ascii_digit()) {
        let number: u64 = text.parse().ok()?;
        let ms = if number < LEAST_MS { number.checked_mul(1000)? } else { number };
        return (number > 0).then_some(Since::At(ms));
    }
    if let Some(ago) = parse_duration(text) {
        return u64::try_from(ago.as_millis()).ok().map(Since::Ago);
    }
    if let Ok(id) = text.parse() {
        return Some(Since::Entry(id));
    }
    let zoned = DateTime::parse_from_rfc3339(text).map(|time| time.timestamp_millis());
    let local = || text.parse::<NaiveDateTime>().map(|time| time.and_utc().timestamp_millis());
    let day = || text.parse::<NaiveDate>().map(|day| day.and_time(NaiveTime::MIN).and_utc().timestamp_millis());
    let ms = zoned.or_else(|_| local()).or_else(|_| day()).ok()?;
    u64::try_from(ms).ok().filter(|ms| *ms > 0).map(Since::At)
}

/// `2026-03-07T19:33:05.000Z`.
pub fn iso(ms: u64) -> String {
    crate::moment::iso(ms).unwrap_or_else(|| ms.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_instant_in_many_spellings() {
        for text in ["1772911985", "1772911985000", "2026-03-07T19:33:05Z", "2026-03-07T20:33:05+01:00"] {
            assert_eq!(Since::of(Some(text)).unwrap(), Some(Since::At(1_772_911_985_000)), "{text}");
        }
        assert_eq!(Since::of(Some("2026-03-07")).unwrap(), Some(Since::At(1_772_841_600_000)));
        assert_eq!(Since::of(Some(" 15m ")).unwrap(), Some(Since::Ago(900_000)));
        let id = EntryId { ms: 1_772_911_985_000, seq: 4 };
        assert_eq!(Since::of(Some("1772911985000-4")).unwrap(), Some(Since::Entry(id)));
        assert_eq!(iso(1_772_911_985_000), "2026-03-07T19:33:05.000Z");
    }

    #[test]
    fn blank_is_absent_and_nonsense_is_refused() {
        for text in [None, Some(""), Some("  ")] {
            assert_eq!(Since::of(text).unwrap(), None);
        }
        for text in ["0", "not-a-time", "-5m", "1.5h", "2026-13-01", "1960-01-01", "99999999999999999999"] {
            assert_eq!(Since::of(Some(text)).unwrap_err().exit(), Exit::Usage, "{text}");
        }
    }
}

//! Cron schedules: five fields, optionally after `TZ=Area/City` (protocol section A13).
//!
//! `minute hour day-of-month month day-of-week`, with `*`, `,`, `-`, `/`, `?` and the names of months and days. Without a
//! zone, UTC. When both day fields are restricted, either may match. Seconds, years, `@daily` and its like, and the `L`,
//! `W` and `#` of other dialects are refused.
//!
//! # When clocks change
//! A wall time that does not exist that day does not fire. One that exists twice fires once, the first time; a schedule
//! whose hours are open (`*`, `*/n`) goes on as time passes, so that "every five minutes" knows no gap.
//!
//! The `croner` crate walks the calendar; which instants a wall time stands for is decided here, because its own rule
//! for a missing time is another one.

use std::str::FromStr;

use chrono::{DateTime, Duration, LocalResult, NaiveDateTime, TimeZone as _, Utc};
use chrono_tz::Tz;
use croner::Cron;
use croner::parser::{CronParser, Seconds, Year};

/// Wall times looked at for one tick: a day of minutes and more than any change of clocks.
const LOOK: usize = 2_000;
/// More than clocks ever change by.
const CHANGE: Duration = Duration::hours(25);
/// Letters that may occur, beside those of a zone.
const NAMES: [&str; 19] = [
    "SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT", "JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP",
    "OCT", "NOV", "DEC",
];

/// A schedule. Cheap enough to be parsed where it is needed.
#[derive(Debug, Clone)]
pub struct Schedule {
    cron: Cron,
    zone: Tz,
    /// Its hours are open: in an hour that comes twice it fires twice.
    is_interval: bool,
}

/// The text is no schedule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ScheduleError(String);

impl FromStr for Schedule {
    type Err = ScheduleError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = |reason: String| ScheduleError(format!("`{text}` {reason}"));
        let (zone, fields) = match text.trim().strip_prefix("CRON_TZ=").or_else(|| text.trim().strip_prefix("TZ=")) {
            Some(rest) => {
                let (zone, fields) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
                let zone = Tz::from_str(zone).map_err(|_| {
                    wrong(format!("names the zone `{zone}`, which is none such as America/Los_Angeles"))
                })?;
                (zone, fields)
            }
            None => (Tz::UTC, text),
        };
        if fields.trim().starts_with('@') {
            return Err(wrong("is a nickname; write five fields, as in `0 9 * * 1`".into()));
        }
        let parts: Vec<&str> = fields.split_whitespace().collect();
        if parts.len() != 5 {
            return Err(wrong(format!("has {} fields; five are needed, as in `0 9 * * 1`", parts.len())));
        }
        if let Some(odd) = parts.iter().find(|part| !is_plain(part)) {
            return Err(wrong(format!("has `{odd}`, which is none of * , - / ? numbers and names of months and days")));
        }
        let parser =
            CronParser::builder().seconds(Seconds::Disallowed).year(Year::Disallowed).sloppy_ranges(true).build();
        let cron = parser.parse(&parts.join(" ")).map_err(|error| wrong(format!("can't be read: {error}")))?;
        let schedule = Self { cron, zone, is_interval: parts[1].starts_with('*') };
        match schedule.next_after(0) {
            Some(_) => Ok(schedule),
            None => Err(wrong("never fires".into())),
        }
    }
}

impl Schedule {
    /// The first tick after a moment, both ms.
    #[must_use]
    pub fn next_after(&self, after_ms: u64) -> Option<u64> {
        let after = DateTime::<Utc>::from_timestamp_millis(i64::try_from(after_ms).ok()?)?;
        // Wall times are walked as if they were UTC, from before any change of clocks.
        let mut wall = (after.with_timezone(&self.zone).naive_local() - CHANGE).and_utc();
        let mut best: Option<DateTime<Utc>> = None;
        for _ in 0..LOOK {
            wall = self.cron.find_next_occurrence(&wall, false).ok()?;
            let (first, second) = self.instants(wall.naive_utc());
            // From here on every wall time is later.
            if let (Some(first), Some(best)) = (first, best)
                && first >= best
            {
                break;
            }
            for instant in [first, second].into_iter().flatten() {
                if instant > after && best.is_none_or(|best| instant < best) {
                    best = Some(instant);
                }
            }
        }
        best.and_then(|at| u64::try_from(at.timestamp_millis()).ok())
    }

    /// The last tick at or before a moment and after another, and how many lie between them.
    #[must_use]
    pub fn last_between(&self, after_ms: u64, until_ms: u64) -> Option<(u64, usize)> {
        // From as near the end as holds a tick, so that a year of minutes is not walked.
        let mut span: u64 = 60_000;
        let mut from = until_ms.saturating_sub(span).max(after_ms);
        loop {
            let (mut last, mut count, mut at) = (None, 0, from);
            while let Some(tick) = self.next_after(at).filter(|tick| *tick <= until_ms) {
                (last, at) = (Some(tick), tick);
                count += 1;
            }
            if let Some(last) = last {
                return Some((last, count));
            }
            if from <= after_ms {
                return None;
            }
            span = span.saturating_mul(4);
            from = until_ms.saturating_sub(span).max(after_ms);
        }
    }

    /// The instants at which clocks show this time.
    fn instants(&self, wall: NaiveDateTime) -> (Option<DateTime<Utc>>, Option<DateTime<Utc>>) {
        match self.zone.from_local_datetime(&wall) {
            LocalResult::None => (None, None),
            LocalResult::Single(at) => (Some(at.to_utc()), None),
            LocalResult::Ambiguous(first, second) => (Some(first.to_utc()), self.is_interval.then(|| second.to_utc())),
        }
    }
}

/// Only what the five-field dialect knows.
fn is_plain(field: &str) -> bool {
    let mut rest = field.to_ascii_uppercase();
    for name in NAMES {
        rest = rest.replace(name, "");
    }
    rest.chars().all(|c| c.is_ascii_digit() || matches!(c, '*' | ',' | '-' | '/' | '?'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> u64 {
        u64::try_from(DateTime::parse_from_rfc3339(text).unwrap().timestamp_millis()).unwrap()
    }

    /// Ticks from a moment on, as UTC.
    fn ticks(cron: &str, from: &str, n: usize) -> Vec<String> {
        let schedule: Schedule = cron.parse().unwrap();
        let mut now = at(from) - 1;
        let mut ticks = Vec::new();
        for _ in 0..n {
            now = schedule.next_after(now).unwrap();
            ticks.push(crate::moment::iso(now).unwrap().replace(":00.000Z", "Z"));
        }
        ticks
    }

    #[test]
    fn fields_and_names() {
        for (cron, from, expected) in [
            ("*/15 * * * *", "2026-01-01T00:01:00Z", ["2026-01-01T00:15Z", "2026-01-01T00:30Z"]),
            ("30 13 * * 1-5", "2026-01-02T14:00:00Z", ["2026-01-05T13:30Z", "2026-01-06T13:30Z"]),
            ("0 9 * jan,JUL mon", "2026-01-27T00:00:00Z", ["2026-07-06T09:00Z", "2026-07-13T09:00Z"]),
            // Both day fields are restricted: either.
            ("0 0 13 * FRI", "2026-01-10T00:00:00Z", ["2026-01-13T00:00Z", "2026-01-16T00:00Z"]),
            ("0 0 ? * SUN", "2026-01-01T00:00:00Z", ["2026-01-04T00:00Z", "2026-01-11T00:00Z"]),
            ("0 0 * * 7", "2026-01-01T00:00:00Z", ["2026-01-04T00:00Z", "2026-01-11T00:00Z"]),
            ("0 17,22 * * *", "2026-01-01T18:00:00Z", ["2026-01-01T22:00Z", "2026-01-02T17:00Z"]),
            ("0 0 29 2 *", "2026-01-01T00:00:00Z", ["2028-02-29T00:00Z", "2032-02-29T00:00Z"]),
            ("TZ=Europe/Paris 0 12 * * *", "2026-07-01T00:00:00Z", ["2026-07-01T10:00Z", "2026-07-02T10:00Z"]),
            ("CRON_TZ=Asia/Kolkata 0 0 1 * *", "2026-01-15T00:00:00Z", ["2026-01-31T18:30Z", "2026-02-28T18:30Z"]),
        ] {
            assert_eq!(ticks(cron, from, 2), expected, "{cron}");
        }
    }

    #[test]
    fn what_is_no_schedule_is_refused_with_a_reason() {
        for (cron, reason) in [
            ("@daily", "nickname"),
            ("TZ=America/Los_Angeles @every 5m", "nickname"),
            ("* * * *", "4 fields"),
            ("0 * * * * *", "6 fields"),
            ("60 * * * *", "can't be read"),
            ("0 0 L * *", "`L`"),
            ("0 0 1W * *", "`1W`"),
            ("0 0 * * 1#2", "`1#2`"),
            ("TZ=Mars/Olympus 0 0 * * *", "Mars/Olympus"),
            ("0 0 30 2 *", "never fires"),
            ("", "0 fields"),
        ] {
            let error = cron.parse::<Schedule>().unwrap_err().to_string();
            assert!(error.contains(reason), "{cron}: {error}");
        }
    }

    #[test]
    fn a_missing_wall_time_does_not_fire() {
        let la = "TZ=America/Los_Angeles 30 2 * * *";
        // Clocks go from 2:00 to 3:00 on 8 March 2026.
        assert_eq!(ticks(la, "2026-03-07T00:00:00Z", 2), ["2026-03-07T10:30Z", "2026-03-09T09:30Z"]);
        let hourly = ticks("TZ=America/Los_Angeles 0 * * * *", "2026-03-08T09:00:00Z", 3);
        assert_eq!(hourly, ["2026-03-08T09:00Z", "2026-03-08T10:00Z", "2026-03-08T11:00Z"]);
    }

    #[test]
    fn a_repeated_wall_time_fires_once_and_intervals_go_on() {
        // Clocks go from 2:00 back to 1:00 on 1 November 2026: 1:30 is 8:30Z and 9:30Z.
        let fixed = ticks("TZ=America/Los_Angeles 30 1 * * *", "2026-11-01T00:00:00Z", 2);
        assert_eq!(fixed, ["2026-11-01T08:30Z", "2026-11-02T09:30Z"]);
        let half_hours = ticks("TZ=America/Los_Angeles */30 * * * *", "2026-11-01T08:00:00Z", 5);
        assert_eq!(
            half_hours,
            ["2026-11-01T08:00Z", "2026-11-01T08:30Z", "2026-11-01T09:00Z", "2026-11-01T09:30Z", "2026-11-01T10:00Z"]
        );
        let several = ticks("TZ=America/Los_Angeles 0,30 1,2 * * *", "2026-11-01T07:00:00Z", 5);
        assert_eq!(
            several,
            ["2026-11-01T08:00Z", "2026-11-01T08:30Z", "2026-11-01T10:00Z", "2026-11-01T10:30Z", "2026-11-02T09:00Z"]
        );
    }

    #[test]
    fn the_last_missed_tick_is_found_however_long_ago() {
        let schedule: Schedule = "0 * * * *".parse().unwrap();
        let (last, _) = schedule.last_between(at("2025-01-01T00:00:00Z"), at("2026-01-01T12:34:00Z")).unwrap();
        assert_eq!(last, at("2026-01-01T12:00:00Z"));
        assert_eq!(schedule.last_between(at("2026-01-01T12:00:00Z"), at("2026-01-01T12:59:59Z")), None);
        let yearly: Schedule = "0 0 1 1 *".parse().unwrap();
        let (last, _) = yearly.last_between(at("2020-01-01T00:00:00Z"), at("2026-06-01T00:00:00Z")).unwrap();
        assert_eq!(last, at("2026-01-01T00:00:00Z"));
    }
}

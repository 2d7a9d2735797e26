//! Ids of stream entries: two integers, compared as integers (`5-9` comes before `5-10`).

use std::fmt;
use std::str::FromStr;

/// `<ms>-<seq>`: the append time by Redis's clock, and a sequence within that millisecond.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct EntryId {
    /// Milliseconds since the epoch, Redis time.
    pub ms: u64,
    /// Sequence within the millisecond.
    pub seq: u64,
}

impl EntryId {
    /// The smallest id: before every entry.
    pub const MIN: Self = Self { ms: 0, seq: 0 };
    /// The largest id: after every entry.
    pub const MAX: Self = Self { ms: u64::MAX, seq: u64::MAX };

    /// The id right after this one.
    #[must_use]
    pub fn next(self) -> Self {
        match self.seq.checked_add(1) {
            Some(seq) => Self { ms: self.ms, seq },
            None => Self { ms: self.ms.saturating_add(1), seq: 0 },
        }
    }

    /// Reads `<ms>-<seq>` from raw bytes, as Redis sends it.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        std::str::from_utf8(bytes).ok()?.parse().ok()
    }
}

impl fmt::Display for EntryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.ms, self.seq)
    }
}

/// The text is not `<ms>-<seq>`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a stream entry id such as 1749990000000-0")]
pub struct ParseEntryIdError(String);

impl FromStr for EntryId {
    type Err = ParseEntryIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parts = text.split_once('-').and_then(|(ms, seq)| Some((number(ms)?, number(seq)?)));
        parts.map(|(ms, seq)| Self { ms, seq }).ok_or_else(|| ParseEntryIdError(text.to_owned()))
    }
}

/// Digits only: `u64::from_str` alone would accept a leading `+`.
fn number(text: &str) -> Option<u64> {
    text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_of_one_millisecond_are_ordered_as_numbers() {
        let mut ids: Vec<EntryId> = ["5-11", "5-9", "5-10"].iter().filter_map(|t| t.parse().ok()).collect();
        ids.sort();
        assert_eq!(ids.iter().map(ToString::to_string).collect::<Vec<_>>(), ["5-9", "5-10", "5-11"]);
    }

    #[test]
    fn other_texts_are_refused() {
        for text in ["", "5", "5-", "-5", "+5-1", "5-1-2", "a-b", "5-18446744073709551616"] {
            assert!(text.parse::<EntryId>().is_err(), "{text}");
        }
    }
}

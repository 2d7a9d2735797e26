//! Priorities `P0` (first) to `P3`. Each family has one lane per priority.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// How urgent an event is. `P0` sorts first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
#[repr(u8)]
pub enum Priority {
    /// Before everything else.
    P0 = 0,
    /// Work a person waits for.
    P1 = 1,
    /// The default.
    #[default]
    P2 = 2,
    /// Whenever there is time.
    P3 = 3,
}

impl Priority {
    /// Every priority, most urgent first.
    pub const ALL: [Self; 4] = [Self::P0, Self::P1, Self::P2, Self::P3];

    /// The priority with this number.
    #[must_use]
    pub const fn from_number(number: u64) -> Option<Self> {
        match number {
            0 => Some(Self::P0),
            1 => Some(Self::P1),
            2 => Some(Self::P2),
            3 => Some(Self::P3),
            _ => None,
        }
    }

    /// 0 to 3.
    #[must_use]
    pub const fn number(self) -> u8 {
        self as u8
    }

    /// `P0` to `P3`.
    #[must_use]
    pub const fn label(self) -> &'static str {
        ["P0", "P1", "P2", "P3"][self as usize]
    }
}

impl fmt::Display for Priority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.label())
    }
}

/// The text is not a priority.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a priority; use P0, P1, P2 or P3")]
pub struct ParsePriorityError(String);

impl FromStr for Priority {
    type Err = ParsePriorityError;

    /// Accepts `0`-`3` and `P0`-`P3` in any case.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let trimmed = text.trim();
        let digits = trimmed.strip_prefix(['p', 'P']).unwrap_or(trimmed);
        let number = if digits.len() == 1 { digits.parse().ok() } else { None };
        number.and_then(Self::from_number).ok_or_else(|| ParsePriorityError(text.to_owned()))
    }
}

impl Serialize for Priority {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u8(self.number())
    }
}

impl<'de> Deserialize<'de> for Priority {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let number = u64::deserialize(deserializer)?;
        Self::from_number(number).ok_or_else(|| serde::de::Error::custom(format!("priority {number} is not 0 to 3")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_labels_in_any_case_are_accepted() {
        for (text, priority) in [("0", Priority::P0), ("p0", Priority::P0), ("P3", Priority::P3), (" 2 ", Priority::P2)]
        {
            assert_eq!(text.parse(), Ok(priority));
        }
        for text in ["P9", "4", "", "p", "+1", "01", "high"] {
            assert!(text.parse::<Priority>().is_err(), "{text}");
        }
    }
}

//! A family is an event name: `domain/thing.happened`. It names lanes, routes, pauses and limits.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Events of this name only show that events go the whole way. Figures leave them out.
pub const CANARY: &str = "system-bus/canary";
/// Longest accepted name in bytes.
pub const MAX_FAMILY_BYTES: usize = 256;

/// A checked event name: 1-256 bytes of `[A-Za-z0-9._:/-]` with at least one letter; case-sensitive.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Family(Arc<str>);

impl Family {
    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::borrow::Borrow<str> for Family {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The text is not an event name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseFamilyError {
    /// Nothing but blanks.
    #[error("the event name is empty")]
    Empty,
    /// Over [`MAX_FAMILY_BYTES`].
    #[error("the event name is {0} bytes long; the limit is {MAX_FAMILY_BYTES}")]
    TooLong(usize),
    /// A character outside the alphabet.
    #[error("the event name `{name}` contains {character:?}; use letters, digits and . _ : / -")]
    Character {
        /// The refused name.
        name: String,
        /// The first character that is not allowed.
        character: char,
    },
    /// Digits and punctuation only.
    #[error("the event name `{0}` has no letter")]
    NoLetter(String),
}

impl FromStr for Family {
    type Err = ParseFamilyError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let name = text.trim();
        if name.is_empty() {
            return Err(ParseFamilyError::Empty);
        }
        if name.len() > MAX_FAMILY_BYTES {
            return Err(ParseFamilyError::TooLong(name.len()));
        }
        let allowed = |c: char| c.is_ascii_alphanumeric() || "._:/-".contains(c);
        if let Some(character) = name.chars().find(|&c| !allowed(c)) {
            return Err(ParseFamilyError::Character { name: name.to_owned(), character });
        }
        if !name.bytes().any(|b| b.is_ascii_alphabetic()) {
            return Err(ParseFamilyError::NoLetter(name.to_owned()));
        }
        Ok(Self(Arc::from(name)))
    }
}

impl Serialize for Family {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Family {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_trimmed_and_checked() {
        assert_eq!(" content/updated ".parse::<Family>().map(|f| f.to_string()), Ok("content/updated".into()));
        assert!(matches!("".parse::<Family>(), Err(ParseFamilyError::Empty)));
        assert!(matches!("a b".parse::<Family>(), Err(ParseFamilyError::Character { character: ' ', .. })));
        assert!(matches!("1/2".parse::<Family>(), Err(ParseFamilyError::NoLetter(_))));
        assert!(matches!("x".repeat(257).parse::<Family>(), Err(ParseFamilyError::TooLong(257))));
    }
}

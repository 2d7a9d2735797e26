//! A lane is one Redis stream: family × priority. Written `<family>:p<0-3>`.

use std::fmt;
use std::str::FromStr;

use super::family::Family;
use super::priority::Priority;

/// Which stream an event is in.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lane {
    /// The event name.
    pub family: Family,
    /// The stored priority.
    pub priority: Priority,
}

impl Lane {
    /// The lane of `family` at `priority`.
    #[must_use]
    pub const fn new(family: Family, priority: Priority) -> Self {
        Self { family, priority }
    }
}

impl fmt::Display for Lane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:p{}", self.family, self.priority.number())
    }
}

/// The event name in a lane as text, or the text itself where it is none: journal records name what was there then.
#[must_use]
pub fn family_of(lane: &str) -> &str {
    lane.rsplit_once(":p").map_or(lane, |(family, _)| family)
}

/// The text is not `<family>:p<0-3>`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a lane such as content/updated:p1")]
pub struct ParseLaneError(String);

impl FromStr for Lane {
    type Err = ParseLaneError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parse = || {
            let (family, priority) = text.rsplit_once(":p")?;
            let priority = Priority::from_number(priority.parse().ok()?)?;
            Some(Self { family: family.parse().ok()?, priority })
        };
        parse().ok_or_else(|| ParseLaneError(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_family_that_looks_like_a_lane_survives_the_round_trip() {
        let lane = Lane::new("odd:p7".parse().unwrap(), Priority::P1);
        assert_eq!(lane.to_string().parse(), Ok(lane));
    }
}

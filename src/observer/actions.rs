//! What can be suggested. Pausing, resuming and telling somebody are all that is ever done; the other kinds are recorded.

use serde::{Deserialize, Serialize};

use crate::streams::priority::Priority;

/// The shortest pause that can be suggested.
pub const LEAST_TTL_MS: u64 = 60_000;
/// The longest pause that can be suggested; what is applied is cut further.
pub const MOST_TTL_MS: u64 = 86_400_000;

/// One suggestion.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", rename_all_fields = "camelCase", deny_unknown_fields)]
pub enum Action {
    /// Nothing to do.
    Noop {
        /// Why.
        reason: String,
    },
    /// Hold a family.
    PauseFamily {
        /// Which.
        family: String,
        /// How long, ms.
        ttl_ms: u64,
        /// Why.
        reason: String,
    },
    /// Let a family go on.
    ResumeFamily {
        /// Which.
        family: String,
        /// Why.
        reason: String,
    },
    /// Recorded only.
    ReprioritizeFamily {
        /// Which.
        family: String,
        /// To which priority.
        #[serde(with = "label")]
        priority: Priority,
        /// Why.
        reason: String,
    },
    /// Recorded only.
    BatchFamily {
        /// Which.
        family: String,
        /// How long, ms.
        ttl_ms: u64,
        /// Why.
        reason: String,
    },
    /// Recorded only.
    ShedFamily {
        /// Which.
        family: String,
        /// Why.
        reason: String,
    },
    /// Tell somebody.
    Escalate {
        /// `telegram`.
        channel: String,
        /// How bad it is.
        severity: Severity,
        /// What to say.
        message: String,
    },
}

/// How bad an escalation is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Good to know.
    Info,
    /// Somebody should look.
    Warn,
    /// Somebody must look.
    Error,
}

impl Severity {
    /// The word.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Info => "info",
            Self::Warn => "warn",
            Self::Error => "error",
        }
    }
}

/// A priority as people write it.
mod label {
    use serde::{Deserialize as _, Deserializer, Serializer};

    use super::Priority;

    #[allow(clippy::trivially_copy_pass_by_ref)]
    pub fn serialize<S: Serializer>(priority: &Priority, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(priority)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Priority, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

impl Action {
    /// `noop`, `pause_family`, ….
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Noop { .. } => "noop",
            Self::PauseFamily { .. } => "pause_family",
            Self::ResumeFamily { .. } => "resume_family",
            Self::ReprioritizeFamily { .. } => "reprioritize_family",
            Self::BatchFamily { .. } => "batch_family",
            Self::ShedFamily { .. } => "shed_family",
            Self::Escalate { .. } => "escalate",
        }
    }

    /// The family it is about.
    #[must_use]
    pub fn family(&self) -> Option<&str> {
        match self {
            Self::Noop { .. } | Self::Escalate { .. } => None,
            Self::PauseFamily { family, .. }
            | Self::ResumeFamily { family, .. }
            | Self::ReprioritizeFamily { family, .. }
            | Self::BatchFamily { family, .. }
            | Self::ShedFamily { family, .. } => Some(family),
        }
    }

    /// Why, or what is said.
    #[must_use]
    pub fn reason(&self) -> &str {
        match self {
            Self::Noop { reason }
            | Self::PauseFamily { reason, .. }
            | Self::ResumeFamily { reason, .. }
            | Self::ReprioritizeFamily { reason, .. }
            | Self::BatchFamily { reason, .. }
            | Self::ShedFamily { reason, .. } => reason,
            Self::Escalate { message, .. } => message,
        }
    }

    /// The kinds of some actions, each once, sorted.
    #[must_use]
    pub fn kinds(actions: &[Self]) -> Vec<&'static str> {
        let mut kinds: Vec<_> = actions.iter().map(Self::kind).collect();
        kinds.sort_unstable();
        kinds.dedup();
        kinds
    }
}

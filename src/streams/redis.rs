//! The connection to Redis.

use crate::diagnose::{Diagnose, Exit};

/// Why Redis gave no usable answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No connection, or it broke.
    #[error("Redis at {redis} can't be reached: {source}")]
    Unreachable {
        /// URL without password.
        redis: String,
        /// The client's error.
        #[source]
        source: redis::RedisError,
    },
    /// No answer within the deadline.
    #[error("Redis at {redis} did not answer within {timeout_ms} ms")]
    Timeout {
        /// URL without password.
        redis: String,
        /// The deadline.
        timeout_ms: u64,
    },
    /// Redis answered with an error.
    #[error("Redis refused a command: {0}")]
    Refused(#[source] redis::RedisError),
    /// A reply of an unexpected shape.
    #[error("Redis answered something unexpected to {command}: {detail}")]
    Reply {
        /// The command or script.
        command: &'static str,
        /// What was unexpected.
        detail: String,
    },
}

impl Diagnose for Error {
    fn code(&self) -> &'static str {
        match self {
            Self::Unreachable { .. } | Self::Timeout { .. } => "REDIS_UNREACHABLE",
            Self::Refused(_) => "REDIS_REFUSED",
            Self::Reply { .. } => "INTERNAL_ERROR",
        }
    }

    fn exit(&self) -> Exit {
        match self {
            Self::Unreachable { .. } | Self::Timeout { .. } => Exit::Unreachable,
            Self::Refused(_) | Self::Reply { .. } => Exit::Internal,
        }
    }

    fn fix(&self) -> String {
        match self {
            Self::Unreachable { .. } | Self::Timeout { .. } => "joelclaw config".into(),
            Self::Refused(_) | Self::Reply { .. } => "joelclaw doctor".into(),
        }
    }
}

//! What every error must be able to say: a stable code, an exit code, an HTTP status and what to do next.
//!
//! Each module has its own `thiserror` enum; this trait is the only place where such an enum meets the outside.

use std::time::Duration;

/// Process exit codes of `joelclaw`; scripts rely on them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Done.
    Ok = 0,
    /// The thing asked about is unhealthy or failed.
    Unhealthy = 1,
    /// Usage or invalid input.
    Usage = 2,
    /// Redis or the server can't be reached, or it is not the one the service uses.
    Unreachable = 3,
    /// Refused for safety: live leases, a limit, needs `--apply` or `--yes`.
    Refused = 4,
    /// Not found.
    NotFound = 5,
    /// A port or another dependency is unavailable at start.
    Unavailable = 69,
    /// A fault of ours, or a stall seen by the watchdog.
    Internal = 70,
    /// The configuration is wrong; a supervisor must not restart quickly.
    Config = 78,
}

/// How an error shows itself at an edge: the command line's envelope, an HTTP answer.
pub trait Diagnose: std::error::Error {
    /// Stable UPPER_SNAKE code.
    fn code(&self) -> &'static str;
    /// Exit code of a command that ends with this error.
    fn exit(&self) -> Exit;
    /// HTTP status of an answer that reports this error. 503 answers carry [`Diagnose::retry_after`].
    fn http_status(&self) -> u16 {
        match self.exit() {
            Exit::Usage => 400,
            Exit::NotFound => 404,
            Exit::Refused => 409,
            Exit::Unreachable => 503,
            _ => 500,
        }
    }
    /// When the same request is worth repeating.
    fn retry_after(&self) -> Option<Duration> {
        (self.http_status() == 503).then_some(Duration::from_secs(5))
    }
    /// What to do, as a command where one exists. Never empty.
    fn fix(&self) -> String;
}

/// An error with its causes on one line, as messages and journal records show it.
pub fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        let next_text = next.to_string();
        if !text.contains(&next_text) {
            text.push_str(": ");
            text.push_str(&next_text);
        }
        cause = next.source();
    }
    text
}

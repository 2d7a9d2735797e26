//! Signals that end a command which goes on by itself: `queue tail`, `send --follow`.

use tokio::signal::unix::{Signal, SignalKind, signal};

/// Listens from here on; without it the signal ends the process as ever.
pub fn listen(kind: SignalKind) -> Option<Signal> {
    signal(kind).ok()
}

/// Returns when the signal comes; never where nobody listens.
pub async fn heard(signal: &mut Option<Signal>) {
    match signal {
        Some(signal) => {
            signal.recv().await;
        }
        None => std::future::pending().await,
    }
}

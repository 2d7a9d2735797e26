//! The telemetry parts of a process: what follows the journal, and the recorder for what the journal does not tell.
//!
//! All of it runs on connections of its own: a full disk, a dead endpoint or a slow Redis holds up no dispatch.

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::Error;
use crate::config::Config;
use crate::streams::bus::Bus;
use crate::telemetry::latency::Recorder;
use crate::telemetry::projection::Follower;

/// Names this process among the readers of the journal, and as a writer of histograms.
fn owner() -> String {
    let host = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok()).unwrap_or_default();
    format!("{host}-{}-{}", std::process::id(), uuid::Uuid::now_v7().simple())
}

/// Starts them. They end with `stop`.
pub(super) fn start(
    config: &Config,
    bus: &Bus,
    stop: &CancellationToken,
    tasks: &mut JoinSet<Result<(), Error>>,
) -> Recorder {
    let (owner, keep) = (owner(), config.telemetry.minute_retention);
    let (recorder, flusher) = Recorder::new(bus.separate(), owner.as_str(), keep);
    let flushing = flusher.run(stop.clone());
    tasks.spawn(async move {
        flushing.await;
        Ok(())
    });
    if !config.telemetry.is_enabled {
        tracing::warn!("OTEL_EVENTS_ENABLED is off: nothing reads the journal");
        return recorder;
    }
    let following = Follower::new(bus.separate(), owner, keep).run(stop.clone(), |_| {});
    tasks.spawn(async move {
        following.await;
        Ok(())
    });
    recorder
}

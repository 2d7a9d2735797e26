//! Dead letters of endpoints are kept for a while, 14 days unless told otherwise, and then dropped.
//!
//! A reconciler: it takes no input, looks every hour, and what another process dropped first is gone for it. What else
//! is dead is an operator's to drop.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::FAMILY;
use crate::diagnose::chain;
use crate::streams::bus::Bus;
use crate::streams::dead::{DeadFilter, Operator};
use crate::streams::entry_id::EntryId;
use crate::streams::redis::Error;

const EVERY: Duration = Duration::from_secs(3600);
/// Letters dropped in one call.
const CHUNK: usize = 500;
/// Letters looked at for one call.
const SCAN: usize = 20_000;

/// Drops what is older than `keep`, every hour until `stop`.
pub async fn run(bus: Bus, keep: Duration, stop: CancellationToken) {
    loop {
        match expire(&bus, keep).await {
            Ok(0) => {}
            Ok(dropped) => tracing::info!(dropped, "dead letters of endpoints were past their time"),
            Err(error) => tracing::warn!(error = %chain(&error), "dead letters of endpoints were not dropped"),
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(EVERY) => {}
        }
    }
}

/// Drops the dead letters of endpoints that died more than `keep` ago; how many.
pub async fn expire(bus: &Bus, keep: Duration) -> Result<usize, Error> {
    let keep_ms = u64::try_from(keep.as_millis()).unwrap_or(u64::MAX);
    let mut before = EntryId { ms: bus.now_ms().await?.saturating_sub(keep_ms), seq: 0 };
    let filter = DeadFilter { under: Some(FAMILY), ..DeadFilter::default() };
    let reason = format!("kept for {} days", keep.as_secs() / 86_400);
    let operator = Operator { actor: "system-bus".into(), reason };
    let mut dropped = 0;
    loop {
        let page = bus.dead_letters(&filter, Some(before), CHUNK, SCAN).await?;
        let ids: Vec<EntryId> = page.letters.iter().map(|letter| letter.id).collect();
        dropped += bus.drop_dead(&ids, &operator).await?.into_iter().filter(|is_dropped| *is_dropped).count();
        match page.next {
            Some(next) => before = next,
            None => return Ok(dropped),
        }
    }
}

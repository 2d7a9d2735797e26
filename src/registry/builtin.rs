//! The entries that are compiled in.

use std::time::Duration;

use super::entry::{Backoff, BreakerSpec, Entry, HandlerSpec, Origin, Pattern};
use crate::streams::family::Family;
use crate::streams::priority::Priority;

/// Rises with every change of the table, so that processes of different age can be told apart.
pub const VERSION: u32 = 2;

/// Short names that flags accept for families.
pub const ALIASES: [(&str, &[&str]); 4] = [
    ("discovery", &["discovery/noted", "discovery/captured"]),
    ("content", &["content/updated"]),
    ("subscriptions", &["subscription/check-feeds.requested"]),
    ("github", &["github/workflow_run.completed"]),
];

/// Name, priority, dedup window in s (0 = none), target event, description.
const TABLE: [(&str, Priority, u64, &str, &str); 6] = [
    ("discovery/noted", Priority::P2, 60, "discovery/noted", "a URL or repository was captured"),
    ("discovery/captured", Priority::P2, 60, "discovery/captured", "the captured item is complete, with metadata"),
    ("content/updated", Priority::P1, 0, "content/updated", "a content item changed"),
    (
        "subscription/check-feeds.requested",
        Priority::P2,
        300,
        "subscription/check-feeds.requested",
        "check the feed subscriptions",
    ),
    (
        "github/workflow_run.completed",
        Priority::P1,
        0,
        "github/workflow_run.completed",
        "a workflow run ended (webhook)",
    ),
    (
        "workload/requested",
        Priority::P1,
        0,
        "system/agent.requested",
        "a saved workload becomes a background agent request",
    ),
];

pub(super) fn entries() -> Vec<Entry> {
    // The names above are constants; a test reads them all.
    let family = |name: &str| name.parse::<Family>().ok();
    let mut entries: Vec<Entry> = TABLE
        .iter()
        .filter_map(|(name, priority, window, target, description)| {
            Some(Entry {
                pattern: Pattern::Exact(family(name)?),
                priority: *priority,
                dedup_window: (*window > 0).then(|| Duration::from_secs(*window)),
                dedup_key: None,
                description: (*description).to_owned(),
                handler: HandlerSpec::Inngest { target: family(target)? },
                concurrency: None,
                attempts: None,
                backoff: Backoff::default(),
                timeout: None,
                rate_per_s: None,
                weight: 1,
                ordered: false,
                aimd: false,
                max_age: None,
                retry_client_errors: false,
                breaker: BreakerSpec::default(),
                origin: Origin::BuiltIn,
            })
        })
        .collect();
    entries.extend(family(PROBE).map(probe));
    entries
}

/// The event that asks the observer for a look beside its cadence.
pub const PROBE: &str = "queue/observer.requested";

fn probe(name: Family) -> Entry {
    Entry {
        pattern: Pattern::Exact(name),
        priority: Priority::P1,
        dedup_window: None,
        dedup_key: None,
        description: "the observer looks once, and changes nothing".to_owned(),
        handler: HandlerSpec::Local { name: "observe".to_owned() },
        // One looks at a time; what is asked for meanwhile is answered `skipped` at once, and must not wait for it.
        concurrency: Some(4),
        attempts: Some(2),
        backoff: Backoff::default(),
        // Beyond the longest time that models may take.
        timeout: Some(Duration::from_secs(660)),
        rate_per_s: None,
        weight: 1,
        ordered: false,
        aimd: false,
        max_age: None,
        retry_client_errors: false,
        breaker: BreakerSpec { is_off: true, ..BreakerSpec::default() },
        origin: Origin::BuiltIn,
    }
}

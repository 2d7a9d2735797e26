//! The scripts of endpoints: on nothing, twice, and as a loser.

use std::collections::BTreeMap;
use std::time::Duration;

use system_bus::outbound::client::{Attempt, Ended};
use system_bus::outbound::endpoint::{Disabled, Endpoint, Secret};
use system_bus::outbound::shape::Transform;
use system_bus::outbound::store::{Endpoints, Health, Switch};
use system_bus::streams::records::Fact;

use crate::drainer_support::Stage;

fn endpoint(id: &str) -> Endpoint {
    Endpoint {
        id: id.into(),
        url: "https://example.com/hook?token=t".into(),
        events: vec!["a/*".into()],
        filter: None,
        conditions: Vec::new(),
        transform: Transform::default(),
        description: None,
        secret: Secret::fresh(),
        secret_previous: None,
        secret_previous_until_ms: None,
        headers: BTreeMap::new(),
        rate_limit_per_second: None,
        fifo: false,
        created_at_ms: 1,
    }
}

fn attempt(status: u16) -> Attempt {
    let error = (status >= 300).then(|| format!("HTTP {status}"));
    Attempt {
        status: Some(status),
        error,
        ended: Ended::of(status),
        retry_after: None,
        answer: String::new(),
        took: Duration::ZERO,
    }
}

fn fact() -> Fact {
    Fact::new("outbound", "webhook.endpoint.changed")
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_changes_at_once_the_second_is_told() {
    let stage = Stage::start().await;
    let endpoints = Endpoints::new(stage.bus.clone());
    assert!(endpoints.load().await.unwrap().endpoints.is_empty());
    let (first, mut second) = (endpoint("ep_1"), endpoint("ep_1"));
    second.url = "https://example.com/other".into();
    assert!(endpoints.put("ep_1", None, Some(&first), &Switch::Leave, fact()).await.unwrap());
    assert!(!endpoints.put("ep_1", None, Some(&second), &Switch::Leave, fact()).await.unwrap());
    assert!(endpoints.put("ep_1", Some(&first), Some(&second), &Switch::Leave, fact()).await.unwrap());
    assert!(!endpoints.put("ep_1", Some(&first), None, &Switch::Leave, fact()).await.unwrap());
    endpoints.refresh().await.unwrap();
    assert_eq!(*endpoints.current().endpoints["ep_1"], second);
    assert_eq!(stage.facts_of("webhook.endpoint.changed").await.len(), 2, "what was not done is not journaled");
    let disabled = Disabled { reason: "operator".into(), at_ms: 7, detail: None };
    let switch = Switch::Disable(disabled.clone());
    assert!(endpoints.put("ep_1", Some(&second), Some(&second), &switch, fact()).await.unwrap());
    assert_eq!(endpoints.load().await.unwrap().disabled["ep_1"], disabled);
    assert!(endpoints.put("ep_1", Some(&second), None, &Switch::Leave, fact()).await.unwrap());
    let left = endpoints.load().await.unwrap();
    assert!(left.endpoints.is_empty() && left.disabled.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_is_disabled_once_and_one_that_is_removed_gets_no_health() {
    let stage = Stage::start().await;
    let endpoints = Endpoints::new(stage.bus.clone());
    let (one, week) = (endpoint("ep_1"), Some(Duration::from_secs(7 * 86_400)));
    assert_eq!(endpoints.note(&one, &attempt(410), week).await.unwrap(), None);
    assert_eq!(endpoints.health("ep_1").await.unwrap(), Health::default());
    endpoints.put("ep_1", None, Some(&one), &Switch::Leave, fact()).await.unwrap();
    assert_eq!(endpoints.note(&one, &attempt(500), week).await.unwrap(), None);
    let health = endpoints.health("ep_1").await.unwrap();
    assert_eq!((health.failures, health.last_status, health.last_error.as_deref()), (1, Some(500), Some("HTTP 500")));
    assert!(health.failing_since_ms.is_some());
    endpoints.note(&one, &attempt(200), week).await.unwrap();
    let health = endpoints.health("ep_1").await.unwrap();
    assert_eq!((health.failures, health.failing_since_ms, health.last_error), (0, None, None));
    // A single failure never disables, however short the time; the second one may.
    assert_eq!(endpoints.note(&one, &attempt(500), Some(Duration::ZERO)).await.unwrap(), None);
    let twice = futures_util::future::join_all(
        (0..4).map(|_| async { endpoints.note(&one, &attempt(500), Some(Duration::ZERO)).await.unwrap() }),
    );
    let reasons: Vec<String> = twice.await.into_iter().flatten().collect();
    assert_eq!(reasons, ["failing"]);
    let disabled = endpoints.load().await.unwrap().disabled["ep_1"].clone();
    assert!(disabled.reason == "failing" && disabled.at_ms > 0, "{disabled:?}");
    let facts = stage.facts_of("webhook.endpoint.disabled").await;
    assert_eq!((facts.len(), &facts[0].metadata["url"]), (1, &serde_json::json!("https://example.com/hook")));
}

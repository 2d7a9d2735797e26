//! Health is a round trip: ready while canaries come back, and figures say nothing of them.

use std::time::Duration;

use crate::cli_queue_support::Story;
use crate::support::{eventually, free_port};
use serde_json::{Value, json};

const LONG: Duration = Duration::from_secs(60);

async fn ready(url: &str) -> (u16, Value) {
    let answer = reqwest::get(format!("{url}/health/ready")).await.unwrap();
    (answer.status().as_u16(), serde_json::from_str(&answer.text().await.unwrap()).unwrap())
}

#[tokio::test]
async fn ready_means_that_an_event_went_the_whole_way_lately() {
    let mut story = Story::begin().await;
    // Whatever the registry says of all events, canaries go nowhere else.
    story.joelclaw = story
        .joelclaw
        .registry("[[event]]\npattern = \"*\"\nhandler = { type = \"http\", target = \"http://127.0.0.1:9/\" }\n");
    let port = free_port().to_string();
    for (key, value) in [
        ("WORKER_PORT", port.as_str()),
        ("INNGEST_PORT", "0"),
        ("QUEUE_DRAIN_INTERVAL_MS", "100"),
        ("SYSTEM_BUS_CANARY_INTERVAL_MS", "100"),
    ] {
        story.joelclaw.env_file_line(key, value);
    }
    let mut up = story.joelclaw.spawn(&["up"]);
    up.wait_for_line("drainer started", LONG).await;
    let url = format!("http://127.0.0.1:{port}");
    let is = async |status: u16, wanted: fn(&Value) -> bool| {
        eventually(LONG, || async {
            let (found, report) = ready(&url).await;
            if found == status && wanted(&report["checks"]["canary"]) { Ok(()) } else { Err((found, report)) }
        })
        .await;
    };
    is(200, |canary| canary == "ok").await;

    // Held in its lane, by whatever: the process answers, and is not ready.
    story.pause("system-bus/canary", Duration::from_secs(600)).await;
    is(503, |canary| canary.as_str().is_some_and(|text| text.contains("came back") && text.ends_with("it is waiting")))
        .await;
    story.joelclaw.run(&["queue", "resume", "system-bus/canary"]).await.assert_success();
    is(200, |canary| canary == "ok").await;

    let told = story.joelclaw.run(&["queue", "stats", "--since", "1h"]).await.assert_success().json();
    let result = &told["result"];
    assert_eq!((&result["dispatches"]["started"], &result["queueLatencyMs"]["count"]), (&json!(0), &json!(0)));
    assert!(!result.to_string().contains("system-bus/canary"), "{result}");
    let verified = story.joelclaw.run(&["verify", "--since", "1h"]).await.assert_success().json();
    assert_eq!((&verified["result"]["accepted"], &verified["result"]["lost"]), (&json!(0), &json!(0)));
    let events = reqwest::get(format!("{url}/v1/events")).await.unwrap().text().await.unwrap();
    assert_eq!(serde_json::from_str::<Value>(&events).unwrap()["data"], json!([]));
}

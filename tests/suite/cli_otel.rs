//! `joelclaw otel`: telemetry events written, found and counted from the command line.

use std::time::Duration;

use serde_json::{Value, json};

use crate::cli_queue_support::{Story, envelope, failure};
use crate::support::{Joelclaw, TestRedis, eventually};

const LONG: Duration = Duration::from_secs(60);

async fn result(story: &Story, args: &[&str]) -> Value {
    envelope(&story.joelclaw.run(&[&["otel"], args].concat()).await.assert_success())["result"].clone()
}

#[tokio::test]
async fn events_are_written_found_by_their_facets_and_counted() {
    let story = Story::begin().await;
    let metadata = r#"{"files":12,"disk":"Tape"}"#;
    let emitted =
        result(&story, &["emit", "backup.finished", "--component", "backup", "--id", "b-1", "--metadata", metadata])
            .await;
    assert_eq!((&emitted["eventId"], &emitted["status"]), (&json!("b-1"), &json!("stored")));
    // Standard input is what the options leave open.
    let piped = r#"{"action":"backup.failed","component":"other","success":false,"error":"disk full","level":"error"}"#;
    let emit = ["otel", "emit", "--component", "backup", "--source", "cron"];
    let ran = story.joelclaw.run_with_stdin(&emit, piped.as_bytes()).await;
    assert_eq!(envelope(&ran.assert_success())["result"]["stored"], true);
    for n in 0..3 {
        result(&story, &["emit", "--action", "tick", "--level", "debug", "--id", &format!("t-{n}")]).await;
    }

    let failed = result(&story, &["list", "--component", "backup", "--success", "false", "-h", "1"]).await;
    assert_eq!((&failed["found"], &failed["events"][0]["error"]), (&json!(1), &json!("disk full")));
    assert_eq!(failed["facets"]["source"], json!({ "cron": 1 }));
    let filter = failed["filterBy"].as_str().unwrap();
    assert!(filter.contains("component=backup success=false"), "{filter}");
    let page = result(&story, &["list", "--level", "debug", "-n", "2", "--page", "2"]).await;
    assert_eq!((&page["found"], page["events"].as_array().map(Vec::len)), (&json!(3), Some(1)));
    assert_eq!(page["events"][0]["id"], "t-0", "newest first");
    assert_eq!(result(&story, &["search", "tAPE"]).await["events"][0]["id"], "b-1");
    assert_eq!(result(&story, &["search", "no such words"]).await["found"], 0);

    let stats = result(&story, &["stats", "--component", "backup"]).await;
    let counts = ["total", "errors", "errorRate", "windowHours"].map(|key| stats[key].clone());
    assert_eq!(counts, [json!(2), json!(1), json!(0.5), json!(24)]);
    assert_eq!(stats["recent15m"]["total"], 2);
    assert_eq!(result(&story, &["stats", "--source", "nobody"]).await["errorRate"], Value::Null);

    // What others say of queues is not what happened in ours.
    let wrong = json!({ "action": "queue.dispatch.completed", "component": "queue-drainer" }).to_string();
    story.joelclaw.run_with_stdin(&["otel", "emit"], wrong.as_bytes()).await.assert_success();
    let counted = envelope(&story.joelclaw.run(&["queue", "stats"]).await.assert_success())["result"].clone();
    assert_eq!(counted["dispatches"]["completed"], 0, "{counted}");
}

#[tokio::test]
async fn what_makes_no_event_is_refused_with_a_code() {
    let story = Story::begin().await;
    for (args, stdin) in [
        (&["emit"][..], ""),
        (&["emit", "a.b", "--metadata", "[]"], ""),
        (&["emit", "a.b", "--level", "loud"], ""),
        (&["emit", "a.b"], "[1]"),
    ] {
        let ran = story.joelclaw.run_with_stdin(&[&["otel"], args].concat(), stdin.as_bytes()).await;
        assert_eq!(failure(&ran.assert_code(2))["error"]["code"], "OTEL_INVALID_ARGS", "{args:?}");
    }
}

#[tokio::test]
async fn without_redis_an_event_waits_on_disk_for_a_service_of_this_machine() {
    let mut redis = TestRedis::start().await;
    let joelclaw = Joelclaw::new(&redis.url());
    redis.kill_9();
    let kept = joelclaw.run(&["otel", "emit", "cron.ran", "--id", "c-1", "--json"]).await.assert_success().json();
    assert_eq!((&kept["result"]["status"], &kept["result"]["stored"]), (&json!("queued"), &json!(false)));
    redis.restart().await;
    let _drainer = joelclaw.spawn(&["drainer"]);
    eventually(LONG, || async {
        let found = joelclaw.run(&["otel", "list", "--action", "cron.ran", "--json"]).await.assert_success().json();
        if found["result"]["events"][0]["id"] == "c-1" { Ok(()) } else { Err(found) }
    })
    .await;
}

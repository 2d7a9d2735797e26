//! What an endpoint is sent, and what becomes of what it does not take.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use system_bus::streams::priority::Priority;

use crate::drainer_support::lane;
use crate::outbound_support::{LONG, Outbound, ids};
use crate::support::{HttpSink, Received, Reply, eventually};

/// What the receivers' own packages say of each request.
pub fn verdicts(secret: &str, received: &[Received]) -> Vec<Value> {
    let requests: Vec<Value> = received
        .iter()
        .map(|request| {
            let headers = ["webhook-id", "webhook-timestamp", "webhook-signature"];
            let svix = |name: &str| name.replace("webhook-", "svix-");
            let mut named = serde_json::Map::new();
            for name in headers {
                let value = request.header(name).unwrap();
                named.insert(name.to_owned(), value.into());
                named.insert(svix(name), value.into());
            }
            json!({ "headers": named, "body": std::str::from_utf8(&request.body).unwrap() })
        })
        .collect();
    let js = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/conformance/js");
    let mut child = Command::new("node")
        .arg("outbound.mjs")
        .current_dir(js)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("node is installed: make deps");
    let asked = json!({ "secret": secret, "requests": requests }).to_string();
    child.stdin.take().unwrap().write_all(asked.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    String::from_utf8(output.stdout).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_receivers_own_packages_verify_what_we_send_before_and_after_a_rotation() {
    let outbound = Outbound::start("1s").await;
    let sink = HttpSink::start().await;
    let (id, secret) = outbound.endpoint(&sink, "order/*", &["--header", "X-Team: blue"]).await;
    let _drainer = outbound.joelclaw.spawn(&["drainer"]);
    let event = outbound.emit("order/placed", r#"{"n":9007199254740993,"text":"ü","b":1,"a":1.0}"#).await;
    let received = sink.wait_for(1, LONG).await;
    let request = &received[0];
    assert_eq!(request.header("webhook-id"), Some(event.as_str()));
    assert_eq!(request.header("x-team"), Some("blue"));
    assert_eq!(request.header("content-type"), Some("application/json"));
    assert!(request.header("user-agent").unwrap().starts_with("system-bus/"));
    assert_eq!(request.json()["type"], "order/placed");
    let timestamp = request.json()["timestamp"].as_str().unwrap().to_owned();
    assert!(chrono::DateTime::parse_from_rfc3339(&timestamp).is_ok(), "{timestamp}");
    let body = std::str::from_utf8(&request.body).unwrap();
    assert!(body.ends_with(r#""data":{"n":9007199254740993,"text":"ü","b":1,"a":1.0}}"#), "{body}");

    let valid = json!({ "standardwebhooks": "valid", "svix": "valid" });
    assert_eq!(verdicts(&secret, &received), std::slice::from_ref(&valid));
    let rotated = outbound.endpoints(&["rotate", &id]).await;
    let new = rotated["secret"].as_str().unwrap();
    assert_ne!(new, secret);
    // The drainer takes a change up within a second or so.
    let both = eventually(LONG, || async {
        outbound.emit("order/placed", "{}").await;
        let all = sink.wait_for(1, LONG).await;
        let last = all.last().unwrap().clone();
        if last.header("webhook-signature").unwrap().split(' ').count() == 2 { Ok(last) } else { Err(all.len()) }
    })
    .await;
    let both = [both];
    assert_eq!(verdicts(&secret, &both), std::slice::from_ref(&valid), "the old secret");
    assert_eq!(verdicts(new, &both), std::slice::from_ref(&valid), "the new secret");
    let wrong = verdicts("whsec_AQIDBAUGBwgJCgsMDQ4PEBESExQVFhcYGRobHB0eHyA=", &both);
    assert_ne!(wrong[0]["standardwebhooks"], "valid", "the test can fail");
}

#[tokio::test(flavor = "multi_thread")]
async fn only_what_patterns_and_filter_admit_is_sent_beside_the_events_own_handler() {
    let outbound = Outbound::start("1s").await;
    let (all, some) = (HttpSink::start().await, HttpSink::start().await);
    outbound.endpoint(&all, "work/*,other/thing", &[]).await;
    outbound.endpoint(&some, "*", &["--filter", "event.name == 'other/thing' && event.data.amount > 100"]).await;
    let _drainer = outbound.joelclaw.spawn(&["drainer"]);
    let worked = outbound.emit("work/done", r#"{"amount":500}"#).await;
    let small = outbound.emit("other/thing", r#"{"amount":1}"#).await;
    let large = outbound.emit("other/thing", r#"{"amount":101}"#).await;
    let expected: BTreeSet<String> = [worked.clone(), small, large.clone()].into();
    assert_eq!(ids(&all.wait_for(3, LONG).await).into_iter().collect::<BTreeSet<_>>(), expected);
    assert_eq!(ids(&some.wait_for(1, LONG).await), [large]);
    // `work/*` has a handler of its own in the registry.
    let handled = outbound.stage.sink.wait_for(1, LONG).await;
    assert_eq!(handled[0].header("x-event-id"), Some(worked.as_str()));
    outbound.stage.wait_until_empty(LONG).await;
    assert_eq!((all.received().len(), some.received().len()), (3, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delivery_is_tried_by_the_schedule_then_dead_and_can_be_sent_again() {
    let outbound = Outbound::start("100ms,200ms").await;
    let sink = HttpSink::start().await;
    sink.reply_next([Reply::status(500).body("broken"), Reply::status(302), Reply::status(400)]);
    let (id, _) = outbound.endpoint(&sink, "order/*", &[]).await;
    let told = HttpSink::start().await;
    outbound.endpoint(&told, "webhook/endpoint.*", &[]).await;
    let _drainer = outbound.joelclaw.spawn(&["drainer"]);
    let event = outbound.emit("order/placed", "{}").await;
    let tried = sink.wait_for(3, LONG).await;
    assert_eq!(ids(&tried), [event.clone(), event.clone(), event.clone()], "one id for all attempts");
    assert!(tried[1].at - tried[0].at >= std::time::Duration::from_millis(80));
    let exhausted = told.wait_for(1, LONG).await[0].json();
    assert_eq!(exhausted["type"], "webhook/endpoint.delivery.exhausted");
    assert_eq!((&exhausted["data"]["endpointId"], &exhausted["data"]["eventId"]), (&json!(id), &json!(event)));
    assert_eq!(exhausted["data"]["attempts"], 3);
    let shown = eventually(LONG, || async {
        let shown = outbound.endpoints(&["show", &id]).await;
        if shown["dead"] == 1 { Ok(shown) } else { Err(shown) }
    })
    .await;
    assert_eq!(shown["health"]["failures"], 3);
    assert_eq!(shown["health"]["lastError"], "HTTP 400");
    let enabled = outbound.endpoints(&["enable", &id, "--redrive"]).await;
    assert_eq!(enabled["redriven"], 1);
    assert_eq!(ids(&sink.wait_for(4, LONG).await)[3], event);
    outbound.stage.wait_until_empty(LONG).await;
    let health = outbound.endpoints(&["show", &id]).await["health"].clone();
    assert_eq!((&health["failures"], &health["failingSince"]), (&json!(0), &Value::Null));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_that_is_gone_is_disabled_and_its_deliveries_are_kept() {
    let outbound = Outbound::start("100ms,100ms").await;
    let (sink, told) = (HttpSink::start().await, HttpSink::start().await);
    sink.reply_next([Reply::status(410)]);
    let (id, _) = outbound.endpoint(&sink, "order/*", &[]).await;
    outbound.endpoint(&told, "webhook/endpoint.disabled", &[]).await;
    let _drainer = outbound.joelclaw.spawn(&["drainer"]);
    outbound.emit("order/placed", r#"{"n":1}"#).await;
    let event = told.wait_for(1, LONG).await[0].json();
    assert_eq!((&event["data"]["endpointId"], &event["data"]["reason"]), (&json!(id), &json!("gone")));
    outbound.emit("order/placed", r#"{"n":2}"#).await;
    eventually(LONG, || async {
        let shown = outbound.endpoints(&["show", &id]).await;
        if shown["dead"] == 2 && shown["disabledReason"] == "gone" { Ok(()) } else { Err(shown) }
    })
    .await;
    assert_eq!(sink.received().len(), 1, "nothing more was sent");
    outbound.endpoints(&["enable", &id, "--redrive"]).await;
    // What is dispatched before the drainer knows of the change is dead once more: that is seen, and repeated.
    eventually(LONG, || async {
        if sink.received().len() >= 3 {
            return Ok(());
        }
        outbound.endpoints(&["enable", &id, "--redrive"]).await;
        Err(sink.received().len())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_that_did_nothing_but_fail_for_days_is_disabled() {
    let outbound = Outbound::start("50ms,50ms,50ms").await;
    let sink = HttpSink::start().await;
    sink.reply_always(Reply::status(500));
    let (id, _) = outbound.endpoint(&sink, "order/*", &[]).await;
    // As if the first failure had been six days ago.
    let six_days = 6 * 86_400_000;
    let since = (outbound.stage.bus.now_ms().await.unwrap() - six_days).to_string();
    let health = outbound.stage.bus.keys.outbound_health(&id);
    outbound.stage.redis.cli(&["HSET", &health, "failingSince", &since, "failures", "7"]).await;
    let _drainer = outbound.joelclaw.spawn(&["drainer"]);
    outbound.emit("order/placed", "{}").await;
    eventually(LONG, || async {
        let shown = outbound.endpoints(&["show", &id]).await;
        if shown["disabledReason"] == "failing" && shown["dead"] == 1 { Ok(()) } else { Err(shown) }
    })
    .await;
    let facts = outbound.stage.facts_of("webhook.endpoint.disabled").await;
    assert_eq!((facts.len(), &facts[0].metadata["reason"]), (1, &json!("failing")));
}

#[tokio::test(flavor = "multi_thread")]
async fn deliveries_in_order_wait_behind_the_one_that_fails() {
    let outbound = Outbound::start("50ms,50ms,50ms").await;
    let sink = HttpSink::start().await;
    sink.reply_next([Reply::ok(), Reply::status(500), Reply::status(503), Reply::ok()]);
    outbound.endpoint(&sink, "order/*", &["--fifo"]).await;
    let emitted = outbound.stage.emit("order/placed", 40).await;
    let _drainer = outbound.joelclaw.spawn(&["drainer"]);
    let mut arrived = ids(&sink.wait_for(42, LONG).await);
    arrived.dedup();
    let expected: Vec<String> = emitted.into_iter().map(|event| event.event_id).collect();
    assert_eq!(arrived, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_endpoint_delays_neither_others_nor_handlers() {
    let outbound = Outbound::start("1h").await;
    let (slow, quick) = (HttpSink::start().await, HttpSink::start().await);
    slow.reply_always(Reply::hang());
    outbound.endpoint(&slow, "*", &[]).await;
    outbound.endpoint(&quick, "*", &[]).await;
    outbound.joelclaw.env_file_line("QUEUE_DRAINER_CONCURRENCY", "1");
    let _drainer = outbound.joelclaw.spawn(&["drainer"]);
    outbound.stage.emit("work/done", 30).await;
    quick.wait_for(30, LONG).await;
    outbound.stage.sink.wait_for(30, LONG).await;
    assert!(slow.received().len() <= 4, "so many at once");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_delivery_is_lost_or_made_twice_when_the_drainer_is_killed() {
    let outbound = Outbound::start("200ms,200ms,200ms,200ms,200ms,200ms").await;
    let sink = HttpSink::start().await;
    let (id, _) = outbound.endpoint(&sink, "order/*", &[]).await;
    let emitted = outbound.stage.emit("order/placed", 300).await;
    for at in [20, 120, 220] {
        let mut drainer = outbound.joelclaw.spawn(&["drainer"]);
        sink.wait_for(at, LONG).await;
        drainer.kill_9().await;
    }
    let _drainer = outbound.joelclaw.spawn(&["drainer"]);
    outbound.stage.wait_until_empty(LONG).await;
    let arrived: BTreeSet<String> = ids(&sink.received()).into_iter().collect();
    assert_eq!(arrived, emitted.into_iter().map(|event| event.event_id).collect::<BTreeSet<_>>());
    let made = outbound.stage.facts_of("queue.dead").await;
    assert!(made.is_empty(), "{made:?}");
    // A request may come twice, when the process ends before its end is written; a delivery is made once.
    let lane = outbound.stage.bus.keys.lane(&lane(&format!("outbound/{id}"), Priority::P1));
    assert_eq!(outbound.stage.redis.cli(&["XLEN", &lane]).await.trim(), "300");
}

#[tokio::test(flavor = "multi_thread")]
async fn events_are_not_sent_into_networks_that_only_we_can_reach() {
    let outbound = Outbound::start("50ms").await;
    let sink = HttpSink::start().await;
    // Added while it was allowed; a name, so that only looking it up can tell.
    let url = format!("http://localhost:{}/hook", sink.address().port());
    let id = outbound.endpoints(&["add", &url, "--events", "order/*"]).await["id"].as_str().unwrap().to_owned();
    outbound.joelclaw.env_file_line("WEBHOOK_ALLOWED_SUBNETS", "10.9.0.0/16");
    for url in
        ["http://example.com/", "https://127.0.0.1/", "https://169.254.169.254/", "https://[::1]/", "http://10.1.2.3/"]
    {
        let args = ["webhooks", "endpoints", "add", url, "--events", "a/b", "--json"];
        let refused = outbound.joelclaw.run(&args).await;
        // A name may still lead into the allowed range; it is judged when it is looked up.
        if url != "http://example.com/" {
            assert_eq!(refused.assert_code(4).json()["error"]["code"], "ENDPOINT_ADDRESS_REFUSED", "{url}");
        }
    }
    let _drainer = outbound.joelclaw.spawn(&["drainer"]);
    outbound.emit("order/placed", "{}").await;
    let shown = eventually(LONG, || async {
        let shown = outbound.endpoints(&["show", &id]).await;
        if shown["dead"] == 1 { Ok(shown) } else { Err(shown) }
    })
    .await;
    let error = shown["health"]["lastError"].as_str().unwrap();
    assert!(error.contains("refused") && error.contains("not a public address"), "{error}");
    assert!(sink.received().is_empty());
}

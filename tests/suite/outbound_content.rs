//! What an endpoint asks for beside names: conditions on content, another form, patience, a rate; and what is told.

use std::time::Duration;

use serde_json::{Value, json};

use system_bus::outbound::expiry::expire;

use crate::outbound_support::{LONG, Outbound, ids};
use crate::support::{HttpSink, Reply, eventually, free_port};

#[tokio::test(flavor = "multi_thread")]
async fn conditions_choose_events_and_a_transformation_says_how_they_are_sent() {
    let outbound = Outbound::start("1s").await;
    let (plain, shaped) = (HttpSink::start().await, HttpSink::start().await);
    let wanted = ["--where", "/data/amount gt 100", "--where", r#"/data/kind in ["book","cd"]"#];
    outbound.endpoint(&plain, "order/*", &wanted).await;
    let template =
        r#"{"text":"{{/data/kind}} for {{/data/price}}","id":"{{/id}}","by":"{{/data/by}}","data":"{{/data}}"}"#;
    let form = ["--pick", "/data/amount,/data/kind,/data/by/name", "--rename", "/data/amount=/data/price"];
    let (id, secret) = outbound.endpoint(&shaped, "order/*", &[&form[..], &["--template", template]].concat()).await;
    let _drainer = outbound.joelclaw.spawn(&["drainer"]);
    let data = r#"{"amount":101,"kind":"book","by":{"name":"Ü","mail":"u@x"},"more":[1]}"#;
    let sent = outbound.emit("order/placed", data).await;
    for other in [r#"{"amount":100,"kind":"book"}"#, r#"{"amount":500,"kind":"car"}"#, r#"{"kind":"cd"}"#] {
        outbound.emit("order/placed", other).await;
    }
    let received = shaped.wait_for(4, LONG).await;
    let first = received.iter().find(|request| request.header("webhook-id") == Some(&sent)).unwrap();
    assert_eq!(
        first.json(),
        json!({ "text": "book for 101", "id": sent, "by": { "name": "Ü" },
            "data": { "kind": "book", "by": { "name": "Ü" }, "price": 101 } })
    );
    let valid = json!({ "standardwebhooks": "valid", "svix": "valid" });
    assert!(crate::outbound_delivery::verdicts(&secret, &received).iter().all(|verdict| *verdict == valid));
    outbound.stage.wait_until_empty(LONG).await;
    assert_eq!(ids(&plain.received()), [sent]);

    let shown = outbound.endpoints(&["show", &id]).await;
    assert_eq!(shown["transform"]["rename"], json!({ "/data/amount": "/data/price" }));
    let changed = outbound.endpoints(&["update", &id, "--no-transform", "--where", "/data/kind exists false"]).await;
    assert_eq!((&changed["transform"], &changed["where"]), (&Value::Null, &json!(["/data/kind exists false"])));
    for (more, code) in [
        (["--where", "/data/a is 1"], "ENDPOINT_INVALID_CONDITION"),
        (["--rename", "/data/a"], "ENDPOINT_INVALID_TRANSFORM"),
        (["--pick", "/id"], "ENDPOINT_INVALID_TRANSFORM"),
        (["--template", "[1]"], "ENDPOINT_INVALID_TRANSFORM"),
        (["--template", "{"], "ENDPOINT_INVALID_TRANSFORM"),
    ] {
        let args = [&["webhooks", "endpoints", "update", &id, "--json"], &more[..]].concat();
        assert_eq!(outbound.joelclaw.run(&args).await.assert_code(2).json()["error"]["code"], code, "{more:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_that_asks_for_patience_or_a_rate_gets_it() {
    let outbound = Outbound::start("50ms,50ms,50ms").await;
    let (busy, slow) = (HttpSink::start().await, HttpSink::start().await);
    busy.reply_next([
        Reply::status(429).header("retry-after", "2"),
        Reply::status(503).header("retry-after", "1"),
        // Only those two may ask.
        Reply::status(500).header("retry-after", "3600"),
    ]);
    outbound.endpoint(&busy, "order/*", &[]).await;
    outbound.endpoint(&slow, "tick/*", &["--rate", "2"]).await;
    let _drainer = outbound.joelclaw.spawn(&["drainer"]);
    outbound.stage.emit("tick/tock", 7).await;
    outbound.emit("order/placed", "{}").await;
    let tried = busy.wait_for(4, LONG).await;
    assert!(tried[1].at - tried[0].at >= Duration::from_millis(1900));
    assert!(tried[2].at - tried[1].at >= Duration::from_millis(900));
    let sent = slow.wait_for(7, LONG).await;
    // At most two at once, and then two a second.
    assert!(sent[6].at - sent[0].at >= Duration::from_secs(2), "{:?}", sent[6].at - sent[0].at);
}

#[tokio::test(flavor = "multi_thread")]
async fn deliveries_that_were_given_up_are_listed_sent_again_purged_and_at_last_dropped() {
    let outbound = Outbound::start("50ms").await;
    let (broken, other) = (HttpSink::start().await, HttpSink::start().await);
    broken.reply_always(Reply::status(500));
    other.reply_always(Reply::status(500));
    outbound.stage.sink.reply_always(Reply::status(404));
    let (id, _) = outbound.endpoint(&broken, "order/*", &[]).await;
    let (second, _) = outbound.endpoint(&other, "order/*", &[]).await;
    let _drainer = outbound.joelclaw.spawn(&["drainer"]);
    let emitted: Vec<String> = outbound.stage.emit("order/placed", 3).await.into_iter().map(|e| e.event_id).collect();
    outbound.stage.emit("work/refused", 1).await;
    let dlq = async |args: &[&str], code: i32| {
        let all = [&["webhooks", "dlq"], args, &["--json"]].concat();
        outbound.joelclaw.run(&all).await.assert_code(code).json()
    };
    eventually(LONG, || async {
        let dead = outbound.stage.bus.dead_count().await.unwrap();
        if dead == 7 { Ok(()) } else { Err(dead) }
    })
    .await;
    assert_eq!(dlq(&["list"], 0).await["result"]["count"], 6, "not what handlers refused");
    let listed = dlq(&["list", "--endpoint", &id], 0).await["result"].clone();
    assert_eq!(listed["count"], 3);
    let first = listed["letters"].as_array().unwrap().last().unwrap().clone();
    assert_eq!(first["endpointId"], json!(id));
    assert!(emitted.iter().any(|event| first["eventId"] == json!(event)), "{first}");
    assert_eq!((&first["event"], &first["reason"]), (&json!("order/placed"), &json!("attempts_exhausted")));

    broken.reply_always(Reply::ok());
    let before = broken.received().len();
    assert_eq!(dlq(&["retry", "--endpoint", &id], 2).await["error"]["code"], "REASON_REQUIRED");
    assert_eq!(dlq(&["retry", first["id"].as_str().unwrap(), "--reason", "back"], 0).await["result"]["sent"], 1);
    assert_eq!(dlq(&["retry", "--endpoint", &id, "--reason", "back"], 0).await["result"]["sent"], 2);
    let again = broken.wait_for(before + 3, LONG).await;
    let mut again = ids(&again[before..]);
    again.sort();
    let mut expected = emitted.clone();
    expected.sort();
    assert_eq!(again, expected, "under the ids they had");

    assert_eq!(
        dlq(&["purge", "--endpoint", &second, "--reason", "test"], 4).await["error"]["code"],
        "CONFIRMATION_REQUIRED"
    );
    let work = dlq(&["retry", "1-1", "--reason", "x"], 5).await;
    assert_eq!(work["error"]["code"], "DEAD_LETTER_NOT_FOUND");
    let left = dlq(&["list"], 0).await["result"].clone();
    let one = left["letters"][0]["id"].as_str().unwrap().to_owned();
    assert_eq!(dlq(&["purge", &one, "--yes", "--reason", "test"], 0).await["result"]["removed"], 1);
    let hour = Duration::from_secs(3600);
    assert_eq!(expire(&outbound.stage.bus, hour).await.unwrap(), 0, "not old enough");
    assert_eq!(expire(&outbound.stage.bus, Duration::ZERO).await.unwrap(), 2);
    assert_eq!(outbound.stage.bus.dead_count().await.unwrap(), 1, "a handler's dead letters are its operator's");
    // Nobody wants what is told of the endpoints: it waits.
    outbound.stage.assert_accounted_for().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_tell_how_endpoints_do_and_name_none_of_them() {
    let outbound = Outbound::start("50ms").await;
    let sink = HttpSink::start().await;
    sink.reply_next([Reply::status(500), Reply::ok(), Reply::status(410)]);
    let port = free_port();
    outbound.joelclaw.env_file_line("WORKER_PORT", &port.to_string());
    let (id, _) = outbound.endpoint(&sink, "order/*", &["--fifo"]).await;
    let _server = outbound.joelclaw.spawn(&["up"]);
    outbound.stage.emit("order/placed", 3).await;
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let told = [
        r#"outbound_requests_total{outcome="taken"} 1"#,
        r#"outbound_requests_total{outcome="failed"} 1"#,
        r#"outbound_requests_total{outcome="gone"} 1"#,
        r#"outbound_requests_total{outcome="timed_out"} 0"#,
        r#"outbound_deliveries_total{outcome="delivered"} 1"#,
        r#"outbound_deliveries_total{outcome="gone"} 1"#,
        r#"outbound_deliveries_total{outcome="disabled"} 1"#,
        "outbound_circuits_open 0",
        "outbound_request_duration_seconds_count 3",
        r#"outbound_endpoints{state="disabled"} 1"#,
        r#"outbound_endpoints{state="enabled"} 0"#,
    ];
    let text = eventually(LONG, || async {
        let answer = client.get(format!("http://127.0.0.1:{port}/metrics")).send().await.map_err(|e| e.to_string())?;
        let text = answer.text().await.map_err(|e| e.to_string())?;
        let missing: Vec<_> =
            told.iter().filter(|line| !text.contains(&format!("system_bus_webhook_{line}"))).collect();
        if missing.is_empty() { Ok(text) } else { Err(format!("{missing:?}")) }
    })
    .await;
    let ours = text.lines().filter(|line| line.contains("webhook_outbound"));
    assert!(ours.clone().count() > 20 && ours.clone().all(|line| !line.contains(&id) && !line.contains("127.0.0.1")));
}

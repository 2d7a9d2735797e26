//! Events that wait for a function: endpoints are sent them meanwhile, and the function gets them all the same.

use std::collections::BTreeSet;

use serde_json::json;

use system_bus::streams::entry_id::EntryId;
use system_bus::streams::priority::Priority;

use crate::conformance_support::{Sdk, Stage as Server};
use crate::drainer_support::{assert_in_order, lane};
use crate::outbound_support::{LONG, Outbound, ids};
use crate::support::{HttpSink, Reply, eventually};

const ROUTES: &str = "[[event]]\nname = \"flow/start\"\nhandler = { type = \"inngest\", target = \"flow/start\" }\n";

#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_waits_for_a_function_is_sent_to_endpoints_once_and_goes_on_waiting() {
    let outbound = Outbound::start_with("1s", ROUTES).await;
    let sink = HttpSink::start().await;
    let (id, _) = outbound.endpoint(&sink, "flow/*", &["--fifo"]).await;
    let mut expected: Vec<String> =
        outbound.stage.emit("flow/start", 40).await.into_iter().map(|e| e.event_id).collect();
    let mut drainer = outbound.joelclaw.spawn(&["drainer"]);
    assert_eq!(ids(&sink.wait_for(40, LONG).await), expected, "in their order");
    let depth = outbound.stage.bus.depth().await.unwrap();
    let waiting = depth.by_family.iter().find(|family| family.family.as_str() == "flow/start").unwrap();
    assert_eq!(waiting.waiting, 40, "they wait");
    let explained = outbound.joelclaw.run(&["queue", "registry", "explain", "flow/start", "--json"]).await.json();
    assert_eq!(explained["result"]["routed"], false);
    // What arrives while it waits is sent at once; a pause holds it.
    expected.push(outbound.emit("flow/start", "{}").await);
    assert_eq!(ids(&sink.wait_for(41, LONG).await), expected);
    // The mark follows the delivery.
    let bus = &outbound.stage.bus;
    let waiting = lane("flow/start", Priority::default());
    let newest = outbound.stage.redis.cli(&["XREVRANGE", &bus.keys.lane(&waiting), "+", "-", "COUNT", "1"]).await;
    let newest = newest.lines().next().unwrap().trim().to_owned();
    eventually(LONG, || async {
        let mark = outbound.stage.redis.cli(&["HGET", &bus.keys.outbound("ahead"), &waiting.to_string()]).await;
        if mark.trim() == newest { Ok(()) } else { Err(mark) }
    })
    .await;
    drainer.kill_9().await;
    // As if the ids of deliveries had been forgotten, after days: the mark is what tells.
    let forget = "for _, key in ipairs(redis.call('KEYS', '*:seen:*')) do redis.call('DEL', key) end return 1";
    outbound.stage.redis.cli(&["EVAL", forget, "0"]).await;
    let events = HttpSink::start().await;
    events.reply_always(Reply::ok().header("content-type", "application/json").body(r#"{"ids":["x"],"status":200}"#));
    outbound.joelclaw.env_file_line("INNGEST_URL", &events.url());
    outbound.joelclaw.env_file_line("INNGEST_EVENT_KEY", "key");
    let _drainer = outbound.joelclaw.spawn(&["drainer"]);
    let taken = events.wait_for(41, LONG).await;
    outbound.stage.wait_until_empty(LONG).await;
    let named: BTreeSet<String> = taken
        .iter()
        .flat_map(|request| match request.json() {
            serde_json::Value::Array(all) => all,
            one => vec![one],
        })
        .map(|event| event["id"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(named.len(), 41);
    // The last one may have been under way when the process ended.
    assert_in_order(&ids(&sink.received()), &expected);
    let lane = outbound.stage.bus.keys.lane(&lane(&format!("outbound/{id}"), Priority::default()));
    assert_eq!(outbound.stage.redis.cli(&["XLEN", &lane]).await.trim(), "41");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pause_holds_what_waits_for_a_function_too() {
    let outbound = Outbound::start_with("1s", ROUTES).await;
    let sink = HttpSink::start().await;
    outbound.endpoint(&sink, "flow/*,other/*", &[]).await;
    let pause = ["queue", "pause", "flow/start", "--ttl", "5m", "--reason", "try", "--json"];
    outbound.joelclaw.run(&pause).await.assert_success();
    let held = outbound.emit("flow/start", "{}").await;
    let free = outbound.emit("other/thing", "{}").await;
    let _drainer = outbound.joelclaw.spawn(&["drainer"]);
    assert_eq!(ids(&sink.wait_for(1, LONG).await), std::slice::from_ref(&free));
    outbound.joelclaw.run(&["queue", "resume", "flow/start", "--json"]).await.assert_success();
    assert_eq!(ids(&sink.wait_for(2, LONG).await), [free, held]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mark_never_moves_back() {
    let outbound = Outbound::start("1s").await;
    let endpoints = system_bus::outbound::store::Endpoints::new(outbound.stage.bus.clone());
    let (one, other) = (lane("a/b", Priority::P1), lane("a/b", Priority::P2));
    assert_eq!(endpoints.ahead(&one).await.unwrap(), None);
    let id = |ms, seq| EntryId { ms, seq };
    for (given, expected) in [
        (id(5, 9), id(5, 9)),
        (id(5, 10), id(5, 10)),
        (id(5, 9), id(5, 10)),
        (id(4, 99), id(5, 10)),
        (id(5, 10), id(5, 10)),
        (id(10, 0), id(10, 0)),
    ] {
        endpoints.set_ahead([(&one, given), (&other, id(1, 1))].into_iter()).await.unwrap();
        assert_eq!(endpoints.ahead(&one).await.unwrap(), Some(expected), "after {given}");
    }
    assert_eq!(endpoints.ahead(&other).await.unwrap(), Some(id(1, 1)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_function_that_registers_later_gets_what_endpoints_were_sent_before() {
    let mut server = Server::configured(&[("WEBHOOK_ALLOWED_SUBNETS", "127.0.0.0/8")]).await;
    server.stop_server().await;
    let entry = "[[event]]\nname = \"conf/hello\"\nhandler = { type = \"inngest\", target = \"conf/hello\" }\n";
    std::fs::write(server.joelclaw.home().join("registry.toml"), entry).unwrap();
    let sink = HttpSink::start().await;
    let add = ["webhooks", "endpoints", "add", &sink.url(), "--events", "conf/*", "--json"];
    server.joelclaw.run(&add).await.assert_success();
    server.start_server().await;
    let before = server.send("conf/hello", json!({ "n": 1 })).await;
    assert_eq!(sink.wait_for(1, LONG).await[0].json()["data"]["n"], 1);
    assert!(server.runs_of(&before).await.is_empty());
    let app = server.app(Sdk::Js4).await;
    server.ended_run_of(&before).await.completed();
    let after = server.send("conf/hello", json!({ "n": 2 })).await;
    server.ended_run_of(&after).await.completed();
    let received = eventually(LONG, || async {
        let received = sink.received();
        if received.len() >= 2 { Ok(received) } else { Err(received.len()) }
    })
    .await;
    let numbers: Vec<_> = received.iter().map(|request| request.json()["data"]["n"].clone()).collect();
    assert_eq!(numbers, [json!(1), json!(2)], "each once");
    drop(app);
}

//! Every kind of step, alone and in parallel, as real SDK apps execute them: what comes back, and how often each ran.

use std::collections::BTreeSet;

use crate::conformance_support::{App, Counts, Sdk, Stage, each_sdk, side_by_side};
use crate::support::{HttpSink, Reply, free_port};
use serde_json::{Value, json};

const MIB: u64 = 1024 * 1024;

each_sdk!(
    steps_run_once_and_return_what_they_returned, large_runs_and_limits;
    js: requests_are_made_by_the_server
);

async fn steps_run_once_and_return_what_they_returned(sdk: Sdk) {
    let stage = Stage::start().await;
    let app = stage.app(sdk).await;
    side_by_side!(&stage, &app;
        every_kind, memos, values_that_look_like_wrappers, events_as_sent, no_output, an_id_with_a_slash, parallel_branches,
        fifty_branches, race, race_mode, repeated_ids);
}

async fn large_runs_and_limits(sdk: Sdk) {
    let stage = Stage::start().await;
    let app = stage.app(sdk).await;
    side_by_side!(&stage, &app; state_beyond_a_body, too_large_an_output, too_many_steps);
}

async fn requests_are_made_by_the_server(sdk: Sdk) {
    let stage = Stage::start().await;
    let app = stage.app(sdk).await;
    let sink = HttpSink::start().await;
    sink.reply_always(Reply::status(418).header("x-kind", "teapot").body("short and stout"));
    let request = json!({ "url": sink.url(), "method": "POST", "body": "tea", "headers": { "x-ask": "1" } });
    let run = stage.run_to_end("conf/fetches", request).await;
    assert_eq!(run.completed(), &json!({ "status": 418, "kind": "teapot", "text": "short and stout" }));
    let received = sink.received();
    assert_eq!((received.len(), received[0].header("x-ask")), (1, Some("1")));
    assert!(received[0].header("user-agent").unwrap().starts_with("system-bus/"), "not the app's own request");
    // Nobody there: an attempt more, and then an error that the function may catch.
    let nowhere = format!("http://127.0.0.1:{}/", free_port());
    let run = stage.run_to_end("conf/fetches", json!({ "url": nowhere })).await;
    run.failed_with("Connection refused");
    drop(app);
}

/// Each of these steps once.
fn once(steps: &[&str]) -> Counts {
    steps.iter().map(|step| ((*step).to_owned(), 1)).collect()
}

/// The calls of a run that look for what is next, not for one step.
fn discoveries(wire: &[Value]) -> Vec<&Value> {
    wire.iter().filter(|entry| entry["url"].as_str().is_some_and(|url| url.ends_with("stepId=step"))).collect()
}

fn size(value: &Value) -> usize {
    value.as_array().map_or(0, Vec::len)
}

async fn every_kind(stage: &Stage, app: &App) {
    let run = stage.run_to_end("conf/kinds", json!({})).await;
    let mut output = run.completed().clone();
    let ids: Vec<String> = serde_json::from_value(output["ids"].take()).unwrap();
    let expected = json!({
        "object": { "n": 1, "text": "ä€😀", "float": 0.1, "big": 1e21 }, "named": "got 2", "undef": null, "empty": null,
        "number": 42.5, "list": [1, "two", null], "ids": null,
    });
    assert_eq!(output, expected);
    assert_eq!(app.steps_of(&run.id).await, once(&["object", "named", "undefined", "null", "number", "list"]));
    // What it sent started other functions, in order.
    assert_eq!(ids.len(), 2);
    for (id, n) in ids.iter().zip(1..) {
        assert_eq!(stage.ended_run_of(id).await.completed(), &json!({ "n": n }));
    }
    // Ten operations end ten calls, or only the three sleeps do.
    let wire = app.wire_of(&run.id).await;
    assert_eq!(wire.len(), if app.settings.sdk.checkpoints() { 4 } else { 11 }, "calls of the run");
    for entry in &wire {
        let ctx = &entry["ctx"];
        assert_eq!((&ctx["attempt"], &ctx["max_attempts"]), (&json!(0), &json!(5)), "{ctx}");
        assert_eq!(ctx["step_id"], "step");
        for key in ["fn_id", "qi_id", "job_id", "request_id"] {
            assert!(ctx[key].as_str().is_some_and(|id| !id.is_empty()), "{key} in {ctx}");
        }
        for header in ["x-run-id", "x-request-id", "x-inngest-job-id", "x-inngest-generation-id", "x-inngest-step-id"] {
            assert!(entry["headers"][header].is_string(), "{header} in {}", entry["headers"]);
        }
        let memos: BTreeSet<&str> = entry["stepIds"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
        let stack = ctx["stack"]["stack"].as_array().unwrap();
        let stack: BTreeSet<&str> = stack.iter().filter_map(Value::as_str).collect();
        assert_eq!(memos, stack, "every finished step has a memo");
    }
    assert_eq!(wire[0]["version"], -1, "the version is the SDK's to choose");
    assert_eq!(wire[1]["version"], app.settings.sdk.request_version());
    // Both sleeps lasted: from the answer that began the first to the call after the second.
    let began = wire.iter().find(|entry| entry["answer"][0]["op"] == "Sleep").unwrap();
    let names = |entry: &&Value| size(&entry["stepIds"]) == 8;
    let after = wire.iter().find(names).unwrap();
    let slept = after["at"].as_u64().unwrap() - began["at"].as_u64().unwrap();
    assert!((1900..20_000).contains(&slept), "{slept} ms");
}

/// The shapes of what the SDK is given back.
async fn memos(stage: &Stage, app: &App) {
    let run = stage.run_to_end("conf/kinds", json!({})).await;
    run.completed();
    let wire = app.wire_of(&run.id).await;
    let last = wire.last().unwrap();
    let steps = &last["steps"];
    let ids: Vec<String> = serde_json::from_value(run.output["ids"].clone()).unwrap();
    let mut expected = vec![
        ("object", json!({ "data": { "n": 1, "text": "ä€😀", "float": 0.1, "big": 1e21 } })),
        ("named", json!({ "data": "got 2" })),
        ("undefined", json!({ "data": null })),
        ("null", json!({ "data": null })),
        ("number", json!({ "data": 42.5 })),
        ("list", json!({ "data": [1, "two", null] })),
        ("nap", Value::Null),
        ("until", Value::Null),
        ("past", Value::Null),
    ];
    match app.settings.sdk {
        Sdk::Js4 => {} // It went on in the same call.
        Sdk::Js3 => expected.push(("send", json!({ "data": { "ids": ids } }))),
        Sdk::Py => expected.push(("send", json!({ "data": ids }))),
    }
    let mut order = Vec::new();
    for (name, memo) in &expected {
        let id = stage.hashed(name).await;
        assert_eq!(&steps[&id], memo, "{name} in {steps}");
        order.push(id);
    }
    assert_eq!(size(&last["stepIds"]), expected.len());
    let stack: Vec<String> = serde_json::from_value(last["ctx"]["stack"]["stack"].clone()).unwrap();
    assert_eq!(stack, order, "the stack has the order of completion");
}

async fn values_that_look_like_wrappers(stage: &Stage, _: &App) {
    let run = stage.run_to_end("conf/lookalikes", json!({})).await;
    let expected = json!({ "data": { "data": { "data": 1 } }, "error": { "error": { "message": "not one" } } });
    assert_eq!(run.completed(), &expected);
}

async fn events_as_sent(stage: &Stage, _: &App) {
    let data = json!({ "n": 1, "text": "ä€😀 \"\\\u{1}", "deep": [{ "x": [1.5, null, true] }], "float": 0.1 });
    let events = json!([
        { "name": "conf/echo", "data": data, "user": { "id": "u-1" } },
        { "name": "conf/echo", "data": data, "id": "my-own-id", "ts": 1_700_000_000_123_u64 },
        { "name": "conf/echo", "data": null },
    ]);
    let ids = stage.send_all(&events).await;
    let first = stage.ended_run_of(&ids[0]).await.completed().clone();
    assert_eq!((&first["count"], &first["event"]["data"]), (&json!(1), &data));
    assert_eq!((&first["event"]["name"], &first["event"]["id"]), (&json!("conf/echo"), &json!(ids[0])));
    assert!(first["event"]["ts"].as_u64().unwrap() > 1_700_000_000_123);
    let second = stage.ended_run_of(&ids[1]).await.completed().clone();
    assert_ne!(ids[1], "my-own-id", "the answer has the server's ids");
    assert_eq!(second["event"]["id"], "my-own-id");
    assert_eq!(second["event"]["ts"], 1_700_000_000_123_u64);
    assert_eq!(stage.ended_run_of(&ids[2]).await.completed()["event"]["data"], json!({}));
}

async fn no_output(stage: &Stage, _: &App) {
    assert_eq!(stage.run_to_end("conf/void", json!({})).await.completed(), &Value::Null);
}

async fn an_id_with_a_slash(stage: &Stage, app: &App) {
    let run = stage.run_to_end("conf/slashed", json!({})).await;
    assert_eq!(run.completed(), "slashed");
    assert_eq!(app.steps_of(&run.id).await, once(&["only"]));
    let url = app.wire_of(&run.id).await[0]["url"].as_str().unwrap().to_owned();
    assert!(url.contains("fnId=conf-check%2Fslashed"), "the registered query is kept: {url}");
}

/// Two steps and a sleep side by side, then a step.
async fn parallel_branches(stage: &Stage, app: &App) {
    let run = stage.run_to_end("conf/parallel", json!({})).await;
    assert_eq!(run.completed(), &json!({ "after": 3 }));
    assert_eq!(app.steps_of(&run.id).await, once(&["one", "two", "after"]));
    let wire = app.wire_of(&run.id).await;
    if app.settings.sdk.request_version() == 2 {
        let memos: Vec<_> = discoveries(&wire).iter().map(|entry| size(&entry["stepIds"])).collect();
        assert_eq!(memos[..2], [0, 3], "nothing is looked for until all branches are done");
        assert!(memos[2..].iter().all(|&done| done == 4) && memos.len() <= 3, "{memos:?}");
    }
    let planned = &wire[0]["answer"];
    assert_eq!(size(planned), 3, "{planned}");
}

async fn fifty_branches(stage: &Stage, app: &App) {
    let run = stage.run_to_end("conf/fan-in", json!({ "n": 50 })).await;
    assert_eq!(run.completed(), &json!({ "sum": 49 * 50 / 2 }));
    let counts = app.steps_of(&run.id).await;
    assert_eq!(counts.len(), 51);
    assert!(counts.values().all(|&count| count == 1), "{counts:?}");
    if app.settings.sdk.request_version() == 2 {
        let wire = app.wire_of(&run.id).await;
        let memos: Vec<_> = discoveries(&wire).iter().map(|entry| size(&entry["stepIds"])).collect();
        assert_eq!(memos[..2], [0, 50], "one look at what is next, when all fifty are done");
        assert!(memos[2..].iter().all(|&done| done == 51) && memos.len() <= 3, "{memos:?}");
    }
}

/// Under version 1 the loser is not waited for; under version 2 it is, and loses all the same.
async fn race(stage: &Stage, app: &App) {
    if !app.settings.sdk.is_js() {
        return;
    }
    let slow = if app.settings.sdk.request_version() == 1 { "10m" } else { "2s" };
    let run = stage.run_to_end("conf/race", json!({ "slow": slow })).await;
    assert_eq!(run.completed(), &json!({ "winner": "fast", "after": "fast" }));
    assert_eq!(app.steps_of(&run.id).await, once(&["fast", "after"]));
}

/// Where the user says so, the step after a race does not wait for the loser under version 2 either. (Python's group
/// returns when all are done.)
async fn race_mode(stage: &Stage, app: &App) {
    if app.settings.sdk == Sdk::Js3 {
        return;
    }
    let run = stage.run_to_end("conf/race-mode", json!({ "slow": "4s" })).await;
    assert_eq!(run.completed(), &json!({ "winner": "fast", "after": "fast" }));
    assert_eq!(app.steps_of(&run.id).await, once(&["fast", "after"]));
    if app.settings.sdk == Sdk::Js4 {
        let calls = app.calls_of(&run.id).await;
        let at = |step: &str| calls.iter().find(|call| call.step.as_deref() == Some(step)).unwrap().at;
        assert!(at("after") - at("fast") < 3000, "the race was over before the sleep was");
    }
}

async fn repeated_ids(stage: &Stage, app: &App) {
    let run = stage.run_to_end("conf/loop", json!({ "times": 5 })).await;
    assert_eq!(run.completed(), &json!({ "seen": [0, 1, 2, 3, 4] }));
    assert_eq!(app.steps_of(&run.id).await["tick"], 5);
}

/// What does not fit into one call's body is fetched by the SDK.
async fn state_beyond_a_body(stage: &Stage, app: &App) {
    // Without checkpoints every step is a call with everything before it, so there they are fewer and larger.
    let (steps, bytes) = if app.settings.sdk.checkpoints() { (200, 30 * 1024) } else { (16, 400 * 1024) };
    let run = stage.run_to_end("conf/large", json!({ "steps": steps, "bytes": bytes })).await;
    assert_eq!(run.completed(), &json!({ "total": steps * bytes }));
    let counts = app.steps_of(&run.id).await;
    assert_eq!(counts.len(), steps + 1);
    assert!(counts.values().all(|&count| count == 1), "{counts:?}");
    let wire = app.wire_of(&run.id).await;
    assert!(wire.iter().all(|entry| entry["bytes"].as_u64().unwrap() <= 4 * MIB), "no body is over 4 MiB");
    let fetching: Vec<_> = wire.iter().filter(|entry| entry["useApi"] == true).collect();
    assert!(!fetching.is_empty());
    for entry in fetching {
        assert_eq!((size(&entry["stepIds"]), &entry["ctx"]["use_api"]), (0, &json!(true)));
        assert!(size(&entry["ctx"]["stack"]["stack"]) > 0, "the stack stays");
    }
}

async fn too_large_an_output(stage: &Stage, app: &App) {
    let step = stage.run_to_end("conf/too-large", json!({})).await;
    step.failed_with("output_too_large");
    assert_eq!(app.steps_of(&step.id).await, once(&["huge"]));
    stage.run_to_end("conf/huge-result", json!({})).await.failed_with("output_too_large");
}

async fn too_many_steps(stage: &Stage, app: &App) {
    let run = stage.run_to_end("conf/fan-in", json!({ "n": 1001 })).await;
    run.failed_with("exceeded the step limit of 1000 steps");
    assert!(!app.steps_of(&run.id).await.contains_key("after"));
}

//! How runs of real SDK apps begin, wait for each other, and end before their time: triggers, waits, invocations, signals,
//! cancellation, timeouts, and the server's own events about them.

use std::collections::BTreeSet;

use crate::conformance_support::{App, LONG, Sdk, Stage, each_sdk, side_by_side};
use crate::support::eventually;
use serde_json::{Value, json};

each_sdk!(events_start_runs, runs_wait_for_each_other, runs_end_before_their_time; js: signals_reach_one_waiter);

async fn events_start_runs(sdk: Sdk) {
    let stage = Stage::start().await;
    let app = stage.app(sdk).await;
    side_by_side!(&stage, &app;
        conditions, wildcards, several_triggers, ids_in_order, an_id_counts_once, refused_events, events_about_runs);
}

async fn runs_wait_for_each_other(sdk: Sdk) {
    let stage = Stage::start().await;
    let app = stage.app(sdk).await;
    // Its runs are counted, so nothing else may wait for the same event.
    waits(&stage, &app).await;
    side_by_side!(&stage, &app;
        a_wait_for_its_own_event, invoking, invoking_what_fails, invoking_nothing, invoking_too_slow, invoking_cancelled,
        invoking_without_triggers);
}

async fn runs_end_before_their_time(sdk: Sdk) {
    let stage = Stage::start().await;
    let app = stage.app(sdk).await;
    side_by_side!(&stage, &app; cancelled_by_event, cancelled_by_match, cancelled_by_hand, finish_timeout, start_timeout);
}

async fn signals_reach_one_waiter(sdk: Sdk) {
    let stage = Stage::start().await;
    let app = stage.app(sdk).await;
    side_by_side!(&stage, &app; signal_sent, signal_missed, signal_conflict, signal_replaced, signal_to_nobody);
}

/// Sends the events in one request, waits for the runs of the last one, and returns how many each has started.
async fn started(stage: &Stage, events: Value, of_last: usize) -> Vec<usize> {
    let ids = stage.send_all(&events).await;
    // Events are scheduled in order: when the last one's runs are there, so are those of all before it.
    stage.ended_runs_of(ids.last().unwrap(), of_last).await;
    let mut counts = Vec::new();
    for id in &ids {
        counts.push(stage.runs_of(id).await.len());
    }
    counts
}

// Triggers.

async fn conditions(stage: &Stage, _: &App) {
    let event = |data: Value| json!({ "name": "conf/if", "data": data });
    let events = json!([
        event(json!({ "x": 1, "who": "me" })),
        event(json!({ "x": 2, "who": "you" })),
        event(json!({ "who": "me" })),
        event(json!({ "x": "2", "who": null })),
        event(json!({ "x": 1.5, "who": "me" })),
    ]);
    assert_eq!(started(stage, events, 1).await, [0, 0, 0, 0, 1]);
}

async fn wildcards(stage: &Stage, _: &App) {
    let names = ["conf.wx/y", "conf.w", "conf.w/x", "conf.w/exact", "conf.w/deeper", "conf.w/deep.a.b"];
    let events: Vec<_> = names.iter().map(|name| json!({ "name": name, "data": {} })).collect();
    // Two functions have `conf.w/*`, one of them a second trigger too; one has `conf.w/deep.*`.
    assert_eq!(started(stage, json!(events), 3).await, [0, 0, 2, 2, 2, 3]);
    let id = stage.send("conf.w/exact", json!({})).await;
    for run in stage.ended_runs_of(&id, 2).await {
        assert_eq!(run.completed(), "conf.w/exact");
    }
}

async fn several_triggers(stage: &Stage, _: &App) {
    let events = json!([
        { "name": "conf/several-2", "data": { "x": 1 } },
        { "name": "conf/several-2", "data": { "x": 2 } },
        { "name": "conf/several-1", "data": {} },
    ]);
    assert_eq!(started(stage, events, 1).await, [0, 1, 1]);
}

async fn ids_in_order(stage: &Stage, _: &App) {
    let events: Vec<_> = (0..5).map(|n| json!({ "name": "conf/echo", "data": { "n": n } })).collect();
    let ids = stage.send_all(&json!(events)).await;
    let distinct: BTreeSet<_> = ids.iter().collect();
    assert_eq!(distinct.len(), 5);
    for (n, id) in ids.iter().enumerate() {
        assert_eq!(id.len(), 26, "a ULID: {id}");
        assert_eq!(stage.ended_run_of(id).await.completed()["event"]["data"]["n"], n);
    }
}

async fn an_id_counts_once(stage: &Stage, app: &App) {
    let event = json!({ "name": "conf/sink", "data": { "mark": "once" }, "id": "order-4711" });
    let first = stage.send_all(&json!([event, event])).await;
    let run = stage.ended_run_of(&first[0]).await;
    // Also when the run has ended.
    let again = stage.send_all(&json!([event, { "name": "conf/sink", "data": { "mark": "last" } }])).await;
    stage.ended_run_of(&again[1]).await;
    let got = app.noted("sink", "got").await;
    let runs: Vec<_> = got.iter().filter(|call| call.value["mark"] == "once").map(|call| &call.run).collect();
    assert_eq!(runs, [&run.id]);
}

async fn refused_events(stage: &Stage, _: &App) {
    let path = stage.events_path();
    for (body, part) in [
        ("{", ""),
        ("", ""),
        ("null", ""),
        ("[{\"name\":\"\"}]", "event name is empty"),
        ("[{\"data\":{}}]", "event name is empty"),
        ("{\"name\":\"inngest/function.finished\"}", "event name is reserved for internal use"),
        ("{\"name\":\"Inngest/x\"}", "event name is reserved for internal use"),
        ("{\"name\":\"conf/hello\",\"data\":[1]}", ""),
        ("{\"name\":\"conf/hello\",\"ts\":1}", ""),
    ] {
        let (status, answer) = stage.post(&path, body).await;
        assert_eq!((status, &answer["status"]), (400, &json!(400)), "{body}: {answer}");
        assert!(answer["error"].as_str().is_some_and(|error| error.contains(part)), "{body}: {answer}");
    }
    // All or nothing.
    let events = json!([{ "name": "conf/sink", "data": { "mark": "half" } }, { "name": "" }]);
    assert_eq!(stage.post(&path, &events.to_string()).await.0, 400);
}

/// `inngest/function.finished` and its kin start functions like any event.
async fn events_about_runs(stage: &Stage, app: &App) {
    let about = async |what: &str, run: &str| {
        let found =
            app.wait_for(what, |call| call.function == what && call.what == "got" && is_about(&call.value, run));
        found.await.value
    };
    let events = ["ok", "fail", "hang"].map(|how| json!({ "name": "conf/source", "data": { "how": how } }));
    let ids = stage.send_all(&json!(events)).await;
    let hanging = stage.run_id_of(&ids[2]).await;
    app.wait_for_op(&hanging, "Sleep").await;
    stage.cancel(&hanging).await;

    let ok = stage.ended_run_of(&ids[0]).await;
    ok.completed();
    let finished = about("on-finished", &ok.id).await["data"].clone();
    assert_eq!((&finished["function_id"], &finished["result"]), (&json!("conf-source"), &json!({ "how": "ok" })));
    assert_eq!(finished["event"]["id"], ids[0]);
    assert_eq!(finished["events"].as_array().map(Vec::len), Some(1));
    assert_eq!((&finished["_inngest"]["status"], finished.get("error")), (&json!("Completed"), None), "{finished}");

    let failed = stage.ended_run_of(&ids[1]).await;
    failed.failed_with("source failed");
    let finished = about("on-finished", &failed.id).await["data"].clone();
    assert_eq!(
        (&finished["_inngest"]["status"], &finished["error"]["message"]),
        (&json!("Failed"), &json!("source failed"))
    );
    let told = about("on-failed", &failed.id).await;
    assert_eq!((&told["id"], &told["name"]), (&json!(failed.id), &json!("inngest/function.failed")));
    assert_eq!(told["data"]["error"]["message"], "source failed");
    app.wait_for("failure handler", |call| call.function == "source-failure" && call.what == "end").await;

    assert_eq!(stage.ended_run_of(&ids[2]).await.status, "Cancelled");
    let told = about("on-cancelled", &hanging).await;
    assert_eq!((&told["id"], &told["name"]), (&json!(hanging), &json!("inngest/function.cancelled")));
    let finished = about("on-finished", &hanging).await["data"].clone();
    assert_eq!(finished["_inngest"]["status"], "Cancelled");

    // Each was told once, and nobody was told of a failure that was none.
    for (what, runs) in [("on-finished", 3), ("on-failed", 1), ("on-cancelled", 1)] {
        assert_eq!(app.noted(what, "got").await.len(), runs, "{what}");
    }
    assert_eq!(
        app.noted("source-failure", "enter").await.iter().map(|call| &call.run).collect::<BTreeSet<_>>().len(),
        1
    );
}

fn is_about(value: &Value, run: &str) -> bool {
    value["data"]["run_id"] == run
}

// Waits.

async fn waits(stage: &Stage, app: &App) {
    let wait = |k: &str, timeout: &str| json!({ "name": "conf/wait", "data": { "k": k, "timeout": timeout } });
    let mut events = vec![wait("hit", "10m"), wait("timeout", "1s"), wait("missed", "3s")];
    if app.settings.sdk.is_js() {
        events.push(json!({ "name": "conf/wait-match", "data": { "k": "hit", "timeout": "10m" } }));
    }
    let ids = stage.send_all(&json!(events)).await;
    for id in &ids {
        let run = stage.run_id_of(id).await;
        app.wait_for_op(&run, "WaitForEvent").await; // The event comes right after the answer that asks for it.
    }
    let awaited = |k: Value| json!({ "name": "conf/awaited", "data": { "k": k, "more": [1] } });
    let sent = stage.send_all(&json!([awaited(json!("other")), awaited(json!(null)), awaited(json!("hit"))])).await;

    let hit = stage.ended_run_of(&ids[0]).await;
    let got = &hit.completed()["got"];
    assert_eq!(got["data"], json!({ "k": "hit", "more": [1] }));
    assert_eq!((&got["name"], &got["id"]), (&json!("conf/awaited"), &json!(sent[2])));
    assert_eq!(hit.output["after"], "hit");
    assert_eq!(app.steps_of(&hit.id).await["after"], 1);
    for (n, k) in [(1, "timeout"), (2, "missed")] {
        let run = stage.ended_run_of(&ids[n]).await;
        assert_eq!(run.completed(), &json!({ "got": null, "after": k }));
    }
    if let Some(matching) = ids.get(3) {
        assert_eq!(stage.ended_run_of(matching).await.completed()["got"]["data"]["k"], "hit");
    }
}

/// Sent by the step before the wait: it may be there before the wait is.
async fn a_wait_for_its_own_event(stage: &Stage, app: &App) {
    if !app.settings.sdk.checkpoints() {
        return; // There the event is older than the call that asks for it.
    }
    let run = stage.run_to_end("conf/wait-own", json!({ "k": "own" })).await;
    assert_eq!(run.completed(), &json!({ "got": { "k": "own" } }));
}

// Invocations.

async fn invoking(stage: &Stage, app: &App) {
    let run = stage.run_to_end("conf/invoke", json!({ "target": "child", "data": { "x": 7 } })).await;
    assert_eq!(run.completed(), &json!({ "ok": { "x": 7, "name": "inngest/function.invoked", "of": "conf" } }));
    assert_eq!(app.steps_of(&run.id).await["after"], 1);
    let worked: Vec<_> = app.noted("child", "step").await;
    assert_eq!(worked.len(), 1, "{worked:?}");
    assert_ne!(worked[0].run, run.id, "the child is a run of its own");
}

async fn invoking_what_fails(stage: &Stage, app: &App) {
    let run = stage.run_to_end("conf/invoke", json!({ "target": "failing-child", "data": {} })).await;
    let error = &run.completed()["error"];
    let name = if app.settings.sdk.is_js() { "RangeError" } else { "ValueError" };
    assert_eq!((&error["name"], &error["message"]), (&json!(name), &json!("child broke")));
}

async fn invoking_nothing(stage: &Stage, _: &App) {
    let run = stage.run_to_end("conf/invoke", json!({ "target": "no-such-function", "data": {} })).await;
    let message = run.completed()["error"]["message"].as_str().unwrap();
    assert_eq!(message, "could not find function with ID: conf-no-such-function");
}

async fn invoking_too_slow(stage: &Stage, app: &App) {
    let data = json!({ "target": "sleepy-child", "timeout": "1s", "data": { "nap": "4s", "mark": "slow" } });
    let run = stage.run_to_end("conf/invoke", data).await;
    let error = &run.completed()["error"];
    assert_eq!(error["name"], "InngestInvokeTimeoutError", "{error}");
    assert_eq!(error["message"], "Timed out waiting for invoked function to complete");
    // Nobody waits for it any more, and it goes on all the same.
    app.wait_for("end of the child", |call| call.step.as_deref() == Some("woke")).await;
}

async fn invoking_cancelled(stage: &Stage, app: &App) {
    let data = json!({ "target": "sleepy-child", "data": { "nap": "10m" } });
    let parent = stage.send("conf/invoke", data).await;
    let parent_run = stage.run_id_of(&parent).await;
    app.wait_for_op(&parent_run, "InvokeFunction").await;
    let child = eventually(LONG, || async {
        let wire = app.wire().await;
        let of_child = |entry: &&Value| entry["url"].as_str().is_some_and(|url| url.contains("sleepy-child"));
        let asleep = wire.iter().filter(of_child).find(|entry| sleeps_for_minutes(entry));
        asleep
            .and_then(|entry| entry["ctx"]["run_id"].as_str())
            .map(str::to_owned)
            .ok_or("the child does not sleep yet")
    })
    .await;
    stage.cancel(&child).await;
    let run = stage.ended_run_of(&parent).await;
    let message = run.completed()["error"]["message"].as_str().unwrap().to_owned();
    assert!(message.contains("cancelled"), "{message}");
}

/// Python says when a sleep ends, JavaScript how long it is.
fn sleeps_for_minutes(entry: &Value) -> bool {
    let name = entry["answer"][0]["name"].as_str().unwrap_or_default();
    if name == "10m" {
        return true;
    }
    let until = chrono::DateTime::parse_from_rfc3339(name);
    until.is_ok_and(|until| until.timestamp() > entry["at"].as_i64().unwrap() / 1000 + 60)
}

/// Its only trigger is the invocation itself, which version 4 does not even register.
async fn invoking_without_triggers(stage: &Stage, _: &App) {
    let run = stage.run_to_end("conf/invoke", json!({ "target": "on-invoked", "data": { "x": 9 } })).await;
    assert_eq!(run.completed(), &json!({ "ok": { "name": "inngest/function.invoked", "x": 9 } }));
}

// Signals.

fn waiting(signal: &str, timeout: &str, conflict: &str) -> Value {
    json!({ "signal": signal, "timeout": timeout, "onConflict": conflict })
}

/// Starts a run that waits for the signal, and returns its event and its run once it has asked for it.
async fn waiter(stage: &Stage, app: &App, wait: Value) -> (String, String) {
    let event = stage.send("conf/signal-wait", wait).await;
    let run = stage.run_id_of(&event).await;
    app.wait_for_op(&run, "WaitForSignal").await;
    (event, run)
}

async fn signal_sent(stage: &Stage, app: &App) {
    let (event, waiting_run) = waiter(stage, app, waiting("sent", "10m", "fail")).await;
    // Asked for and registered are two things; a signal that comes between them finds nobody.
    let sender = eventually(LONG, || async {
        let run = stage.run_to_end("conf/signal-send", json!({ "signal": "sent", "data": { "n": 1 } })).await;
        let is_taken = stage.run(&waiting_run).await.is_ended();
        if is_taken { Ok(run) } else { Err(run) }
    })
    .await;
    if app.settings.sdk == Sdk::Js4 {
        assert_eq!(sender.completed()["sent"]["runId"], waiting_run);
    }
    let run = stage.ended_run_of(&event).await;
    assert_eq!(run.completed(), &json!({ "got": { "signal": "sent", "data": { "n": 1 } } }));
}

async fn signal_missed(stage: &Stage, _: &App) {
    let run = stage.run_to_end("conf/signal-wait", waiting("missed", "1s", "fail")).await;
    assert_eq!(run.completed(), &json!({ "got": null }));
}

async fn signal_conflict(stage: &Stage, app: &App) {
    let (first, first_run) = waiter(stage, app, waiting("conflict", "4s", "fail")).await;
    let second = stage.run_to_end("conf/signal-wait", waiting("conflict", "4s", "fail")).await;
    second.failed_with("Signal conflict; signal wait already exists for another run");
    assert!(!stage.run(&first_run).await.is_ended(), "the first goes on waiting");
    assert_eq!(stage.ended_run_of(&first).await.completed(), &json!({ "got": null }));
}

async fn signal_replaced(stage: &Stage, app: &App) {
    let (first, _) = waiter(stage, app, waiting("replaced", "5s", "fail")).await;
    let (second, second_run) = waiter(stage, app, waiting("replaced", "10m", "replace")).await;
    eventually(LONG, || async {
        stage.run_to_end("conf/signal-send", json!({ "signal": "replaced", "data": 2 })).await.completed();
        if stage.run(&second_run).await.is_ended() { Ok(()) } else { Err("the second still waits") }
    })
    .await;
    assert_eq!(stage.ended_run_of(&second).await.completed()["got"]["data"], 2);
    assert_eq!(stage.ended_run_of(&first).await.completed()["got"], Value::Null);
}

async fn signal_to_nobody(stage: &Stage, _: &App) {
    stage.run_to_end("conf/signal-send", json!({ "signal": "nobody", "data": 1 })).await.completed();
    let (status, answer) = stage.post("/v1/signals", r#"{"signal":"nobody","data":1}"#).await;
    assert_eq!(status, 404, "{answer}");
}

// Cancellation and timeouts.

/// That the run was cancelled where it hung, and that no failure handler heard of it.
async fn assert_cancelled(stage: &Stage, app: &App, event: &str, function: &str) {
    let run = stage.ended_run_of(event).await;
    assert_eq!(run.status, "Cancelled", "{}", run.raw);
    let steps = app.steps_of(&run.id).await;
    assert_eq!((steps.get("begin"), steps.get("never")), (Some(&1), None));
    assert!(app.noted(&format!("{function}-failure"), "enter").await.is_empty());
}

async fn cancelled_by_event(stage: &Stage, app: &App) {
    let event = stage.send("conf/cancel-on", json!({ "u": "one" })).await;
    let run = stage.run_id_of(&event).await;
    app.wait_for_op(&run, "Sleep").await;
    let cancel = |u: &str, really: bool| json!({ "name": "conf/cancel", "data": { "u": u, "really": really } });
    stage.send_all(&json!([cancel("two", true), cancel("one", false)])).await;
    // A run that starts after them has them behind it.
    stage.run_to_end("conf/hello", json!({})).await.completed();
    assert_eq!(stage.run(&run).await.status, "Running");
    stage.send_all(&json!([cancel("one", true)])).await;
    assert_cancelled(stage, app, &event, "cancel-on").await;
}

async fn cancelled_by_match(stage: &Stage, app: &App) {
    let event = stage.send("conf/cancel-match", json!({ "u": 1 })).await;
    let run = stage.run_id_of(&event).await;
    app.wait_for_op(&run, "Sleep").await;
    // It is the function's own trigger too: this run is cancelled and another one starts.
    let second = stage.send("conf/cancel-match", json!({ "u": 1 })).await;
    assert_cancelled(stage, app, &event, "cancel-match").await;
    let second_run = stage.run_id_of(&second).await;
    app.wait_for_op(&second_run, "Sleep").await;
    assert_eq!(stage.run(&second_run).await.status, "Running");
}

async fn cancelled_by_hand(stage: &Stage, app: &App) {
    let event = stage.send("conf/cancel-on", json!({ "u": "by hand" })).await;
    let run = stage.run_id_of(&event).await;
    app.wait_for_op(&run, "Sleep").await;
    stage.cancel(&run).await;
    assert_cancelled(stage, app, &event, "cancel-on").await;
    stage.cancel(&run).await; // Once more changes nothing.
    let (status, answer) = stage.get("/v1/runs/01K00000000000000000000000").await;
    assert_eq!(status, 404, "{answer}");
}

async fn finish_timeout(stage: &Stage, app: &App) {
    let event = stage.send("conf/finish-timeout", json!({})).await;
    assert_cancelled(stage, app, &event, "finish-timeout").await;
}

async fn start_timeout(stage: &Stage, app: &App) {
    let first = stage.send("conf/start-timeout", json!({})).await;
    app.wait_for("the step", |call| call.step.as_deref() == Some("held")).await;
    let second = stage.send("conf/start-timeout", json!({})).await;
    let late = stage.ended_run_of(&second).await;
    assert_eq!(late.status, "Cancelled", "{}", late.raw);
    app.open("start-timeout").await;
    let run = stage.ended_run_of(&first).await;
    assert_eq!(run.completed(), "held");
    assert!(app.calls_of(&late.id).await.is_empty(), "it was never called");
    assert!(app.noted("start-timeout-failure", "enter").await.is_empty());
}

//! What operators do to functions and to many runs at once, with a real app: pause, cancel, rerun, replay.

use crate::conformance_support::{App, LONG, Sdk, Stage};
use crate::support::eventually;
use serde_json::{Value, json};

async fn start(set: &str) -> (Stage, App) {
    let stage = Stage::start().await;
    let app = stage.app_with(stage.settings(Sdk::Js4).env("FUNCTIONS", set)).await;
    (stage, app)
}

/// The result of a command that succeeds.
async fn command(stage: &Stage, args: &[&str]) -> Value {
    let ran = stage.joelclaw.run(&[args, &["--json"]].concat()).await.assert_success();
    ran.json()["result"].clone()
}

fn counts(result: &Value) -> (u64, u64, u64) {
    let count = |key: &str| result[key].as_u64().unwrap_or_else(|| panic!("no {key} in {result}"));
    (count("matched"), count("changed"), count("alreadyDone"))
}

#[tokio::test]
async fn a_paused_function_skips_events_holds_its_runs_and_goes_on() {
    let (stage, app) = start("limits").await;
    let event = stage.send("conf/newest", json!({"nap": "1s", "n": 1})).await;
    let run = stage.run_id_of(&event).await;
    stage.wait_for_status(&run, "Running").await;
    let paused = command(&stage, &["functions", "pause", "conf-newest", "--reason", "provider is away"]).await;
    assert_eq!(paused["mark"]["reason"], "provider is away");
    let skipped = stage.send("conf/newest", json!({"nap": "1s", "n": 2})).await;
    assert_eq!(stage.ended_run_of(&skipped).await.status, "Skipped");
    // Its nap is over, and it is not called.
    eventually(LONG, || async {
        let why = command(&stage, &["queue", "why", &run]).await;
        if why["sentence"].as_str().unwrap().contains("paused by") { Ok(()) } else { Err(why) }
    })
    .await;
    assert_eq!(stage.run(&run).await.status, "Running");
    let listed = command(&stage, &["functions"]).await;
    let newest = listed["functions"].as_array().unwrap().iter().find(|one| one["slug"] == "conf-newest").unwrap();
    assert_eq!(newest["paused"]["reason"], "provider is away");

    command(&stage, &["functions", "resume", "conf-newest"]).await;
    assert_eq!(stage.ended_run_of(&event).await.completed(), 1);
    // What was skipped is brought back.
    let rerun =
        command(&stage, &["runs", "rerun", "--function", "conf-newest", "--status", "skipped", "--apply"]).await;
    assert_eq!(counts(&rerun), (1, 1, 0));
    let run = rerun["runs"][0].as_str().unwrap();
    assert_eq!(stage.wait_for_status(run, "Completed").await.output, 2);
    assert_eq!(stage.runs_of(&skipped).await.len(), 2, "listed under its event");
    drop(app);
}

#[tokio::test]
async fn a_paused_app_is_all_of_its_functions() {
    let (stage, _app) = start("limits").await;
    command(&stage, &["functions", "pause", "--app", "conf", "--reason", "upgrade"]).await;
    let event = stage.send("conf/plain", json!({})).await;
    assert_eq!(stage.ended_run_of(&event).await.status, "Skipped");
    let resumed = command(&stage, &["functions", "resume", "--app", "conf"]).await;
    assert_eq!(resumed["before"]["reason"], "upgrade");
    stage.run_to_end("conf/plain", json!({})).await.completed();
    let ran = stage.joelclaw.run(&["functions", "pause", "conf-plian", "--json"]).await;
    assert_eq!((ran.code(), &ran.json()["error"]["code"]), (Some(5), &json!("FUNCTION_NOT_FOUND")));
    assert!(ran.json()["error"]["message"].as_str().unwrap().contains("conf-plain"));
}

#[tokio::test]
async fn many_runs_are_cancelled_once_shown_and_then_done() {
    let (stage, _app) = start("a").await;
    for n in 0..4 {
        let event = stage.send("conf/asleep", json!({"nap": "1h", "n": n})).await;
        let run = stage.run_id_of(&event).await;
        stage.wait_for_status(&run, "Running").await;
    }
    let base = ["runs", "cancel", "--function", "conf-asleep"];
    assert_eq!(counts(&command(&stage, &base).await), (4, 0, 0), "only shown");
    let some = [&base[..], &["--if", "event.data.n >= 3", "--apply"]].concat();
    assert_eq!(counts(&command(&stage, &some).await), (1, 1, 0));
    let all = [&base[..], &["--apply", "--reason", "test"]].concat();
    assert_eq!(counts(&command(&stage, &all).await), (3, 3, 0));
    assert_eq!(counts(&command(&stage, &all).await), (0, 0, 0));
    // The same over REST, as a record that can be listed and forgotten.
    let event = stage.send("conf/asleep", json!({"nap": "1h"})).await;
    let run = stage.run_id_of(&event).await;
    let body = json!({"app_id": "conf", "function_id": "asleep", "started_before": "2100-01-01T00:00:00Z"});
    let (status, answer) = stage.post("/v1/cancellations", &body.to_string()).await;
    assert_eq!((status, &answer["data"]["cancelled"]), (201, &json!(1)), "{answer}");
    stage.wait_for_status(&run, "Cancelled").await;
    let id = answer["data"]["id"].as_str().unwrap();
    let (_, listed) = stage.get("/v1/cancellations").await;
    assert_eq!(listed["data"][0]["id"], id);
    let path = format!("/v1/cancellations/{id}");
    assert_eq!(stage.request(reqwest::Method::DELETE, &path, None).await.0, 204);
    assert_eq!(stage.request(reqwest::Method::DELETE, &path, None).await.0, 404);
    let ran = stage.joelclaw.run(&["runs", "cancel", "--function", "conf-asleep", "--if", "event.", "--json"]).await;
    assert_eq!((ran.code(), &ran.json()["error"]["code"]), (Some(2), &json!("INVALID_EXPRESSION")));
}

#[tokio::test]
async fn failed_runs_of_a_time_are_rerun_once() {
    let (stage, _app) = start("limits").await;
    let mut events = Vec::new();
    for _ in 0..2 {
        events.push(stage.send("conf/twice", json!({})).await);
    }
    for event in &events {
        stage.ended_run_of(event).await.failed_with("always");
    }
    let base = ["runs", "rerun", "--function", "conf-twice", "--since", "1h"];
    assert_eq!(counts(&command(&stage, &base).await), (2, 0, 0));
    let apply = [&base[..], &["--apply"]].concat();
    // Broken off after the first, and gone on with.
    assert_eq!(counts(&command(&stage, &[&apply[..], &["--limit", "1"]].concat()).await), (1, 1, 0));
    assert_eq!(counts(&command(&stage, &apply).await), (2, 1, 1));
    assert_eq!(counts(&command(&stage, &apply).await), (2, 0, 2));
    assert_eq!(counts(&command(&stage, &[&apply[..], &["--again", "fixed"]].concat()).await), (2, 2, 0));
    for event in &events {
        assert_eq!(stage.ended_runs_of(event, 3).await.len(), 3);
    }
}

#[tokio::test]
async fn events_are_replayed_to_a_function_once_under_one_name() {
    let (stage, app) = start("limits").await;
    for n in 0..3 {
        stage.run_to_end("conf/once", json!({"id": format!("e{n}"), "n": n})).await.completed();
    }
    let base = ["functions", "replay", "conf-once", "--since", "1h"];
    assert_eq!(counts(&command(&stage, &base).await), (3, 0, 0));
    let named = [&base[..], &["--id", "fix-17", "--apply"]].concat();
    let first = command(&stage, &[&named[..], &["--limit", "2"]].concat()).await;
    assert_eq!(counts(&first), (2, 2, 0));
    assert_eq!(counts(&command(&stage, &named).await), (3, 1, 2));
    assert_eq!(counts(&command(&stage, &named).await), (3, 0, 3));
    // Once a day or not, a replay is a replay.
    eventually(LONG, || async {
        let ended = app.noted("once", "end").await.len();
        if ended == 6 { Ok(()) } else { Err(ended) }
    })
    .await;
    let run = first["runs"][0].as_str().unwrap();
    let shown = command(&stage, &["run", run]).await;
    assert_eq!(shown["run"]["cause"], "replay");
}

#[tokio::test]
async fn what_holds_a_run_is_named() {
    let (stage, app) = start("limits").await;
    let first = stage.send("conf/skipping", json!({"user": "x"})).await;
    stage.run_id_of(&first).await;
    let mut last = String::new();
    for _ in 0..3 {
        let event = stage.send("conf/slow", json!({})).await;
        last = stage.run_id_of(&event).await;
    }
    let why = command(&stage, &["queue", "why", &last]).await;
    assert!(why["sentence"].as_str().unwrap().contains("slots of concurrency are taken"), "{why}");
    let shown = command(&stage, &["functions", "show", "conf-slow"]).await;
    assert_eq!((&shown["slotsHeld"], &shown["waiting"]), (&json!(2), &json!(1)), "{shown}");
    app.open("singleton").await;
    stage.wait_for_status(&last, "Completed").await;
    // How long runs waited and steps took, by the command line and for Prometheus.
    eventually(LONG, || async {
        let shown = command(&stage, &["functions", "show", "conf-slow"]).await;
        let count = |of: &str| shown["lastHour"][of]["count"].as_u64().unwrap();
        if count("queueMs") == 3 && count("stepMs") == 6 { Ok(()) } else { Err(shown) }
    })
    .await;
    eventually(LONG, || async {
        let (_, text) = stage.get("/metrics").await;
        let text = text.as_str().unwrap_or_default().to_owned();
        let is_there = |name: &str| text.lines().any(|line| line.starts_with(name) && line.contains("conf-slow"));
        if is_there("system_bus_function_queue_hdr_seconds") && is_there("system_bus_function_step_hdr_seconds") {
            Ok(())
        } else {
            Err(text)
        }
    })
    .await;
}

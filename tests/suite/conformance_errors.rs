//! What happens when steps and functions of real SDK apps fail: retries, give-ups, and who hears of it.

use crate::conformance_support::{App, LONG, Run, Sdk, Stage, each_sdk, side_by_side};
use crate::support::eventually;
use serde_json::{Value, json};

each_sdk!(failures_are_retried_and_told);

async fn failures_are_retried_and_told(sdk: Sdk) {
    let stage = Stage::start().await;
    let app = stage.app(sdk).await;
    side_by_side!(&stage, &app;
        retried_until_it_works, exhausted_and_caught, exhausted_and_uncaught, no_retries, non_retriable_in_a_step,
        non_retriable_caught, non_retriable_in_the_function, retry_after_in_a_step, retry_after_in_the_function,
        a_flaky_function, a_hopeless_function);
}

/// When each execution of the step began, and at which attempt.
async fn executions(app: &App, run: &str, step: &str) -> Vec<(u32, u64)> {
    let calls = app.calls_of(run).await.into_iter();
    calls.filter(|call| call.step.as_deref() == Some(step)).map(|call| (call.attempt, call.at)).collect()
}

fn attempts(executions: &[(u32, u64)]) -> Vec<u32> {
    executions.iter().map(|(attempt, _)| *attempt).collect()
}

/// What the failure handler of the function was told about the run; that it was told once.
async fn told(app: &App, function: &str, run: &Run) -> Value {
    let handler = format!("{function}-failure");
    let handled = eventually(LONG, || async {
        let noted = app.noted(&handler, "failure").await;
        let about: Vec<_> = noted.into_iter().filter(|call| call.value["run_id"] == run.id).collect();
        let ended = app.noted(&handler, "end").await;
        let is_over = about.first().is_some_and(|call| ended.iter().any(|end| end.run == call.run));
        if is_over { Ok(about) } else { Err(about) }
    })
    .await;
    assert_eq!(handled.len(), 1, "{handled:?}");
    let value = handled[0].value.clone();
    assert_eq!(value["name"], "inngest/function.failed", "{value}");
    assert_eq!(value["function_id"], format!("conf-{function}"));
    assert_eq!(value["original"]["name"], format!("conf/{function}"));
    assert_eq!(value["original"]["data"]["mark"], function, "the event that started the run");
    for key in ["name", "message"] {
        assert!(value["raw"][key].is_string(), "{key} in {value}");
    }
    assert!(value["raw"]["stack"].is_string(), "the stack in {value}");
    value
}

async fn retried_until_it_works(stage: &Stage, app: &App) {
    let run = stage.run_to_end("conf/flaky", json!({ "fails": 2 })).await;
    assert_eq!(run.completed(), &json!({ "before": "before", "flaky": "at last", "after": "after" }));
    let flaky = executions(app, &run.id, "flaky").await;
    assert_eq!(attempts(&flaky), [0, 1, 2]);
    for pair in flaky.windows(2) {
        let waited = pair[1].1 - pair[0].1;
        assert!((950..15_000).contains(&waited), "a second lies between attempts: {waited} ms");
    }
    assert_eq!(attempts(&executions(app, &run.id, "before").await), [0], "what succeeded is not repeated");
    assert_eq!(attempts(&executions(app, &run.id, "after").await), [0], "attempts count anew after a step");
}

async fn exhausted_and_caught(stage: &Stage, app: &App) {
    let run = stage.run_to_end("conf/caught", json!({})).await;
    let output = run.completed();
    assert_eq!((&output["caught"]["name"], &output["caught"]["message"]), (&json!("TypeError"), &json!("never works")));
    assert_eq!(output["after"], "after");
    assert_eq!(attempts(&executions(app, &run.id, "doomed").await), [0, 1]);
    assert_eq!(attempts(&executions(app, &run.id, "after").await), [0]);
    let doomed = stage.hashed("doomed").await;
    let wire = app.wire_of(&run.id).await;
    let memo = wire.iter().find_map(|entry| entry["steps"].get(&doomed)).unwrap();
    assert_eq!(memo["error"]["message"], "never works", "{memo}");
    assert!(memo["error"]["stack"].is_string(), "{memo}");
    assert_eq!(memo["error"].get("__serialized"), None, "{memo}");
}

async fn exhausted_and_uncaught(stage: &Stage, app: &App) {
    let run = stage.run_to_end("conf/uncaught", json!({ "mark": "uncaught" })).await;
    run.failed_with("never works");
    assert_eq!(attempts(&executions(app, &run.id, "doomed").await), [0, 1]);
    assert!(executions(app, &run.id, "never").await.is_empty());
    let told = told(app, "uncaught", &run).await;
    // Version 3 forgets the name when it throws a step's error again.
    let name = if app.settings.sdk == Sdk::Js3 { "Error" } else { "TypeError" };
    assert_eq!((&told["error"]["name"], &told["error"]["message"]), (&json!(name), &json!("never works")));
}

async fn no_retries(stage: &Stage, app: &App) {
    let run = stage.run_to_end("conf/no-retries", json!({ "mark": "no-retries" })).await;
    run.failed_with("only once");
    assert_eq!(attempts(&executions(app, &run.id, "doomed").await), [0]);
    assert_eq!(app.wire_of(&run.id).await[0]["ctx"]["max_attempts"], 1);
    assert_eq!(told(app, "no-retries", &run).await["error"]["message"], "only once");
}

async fn non_retriable_in_a_step(stage: &Stage, app: &App) {
    let run = stage.run_to_end("conf/non-retriable-step", json!({ "mark": "non-retriable-step" })).await;
    run.failed_with("pointless");
    assert_eq!(attempts(&executions(app, &run.id, "doomed").await), [0]);
    assert_eq!(told(app, "non-retriable-step", &run).await["error"]["message"], "pointless");
}

async fn non_retriable_caught(stage: &Stage, app: &App) {
    if !app.settings.sdk.is_js() {
        return; // Python lets it end the function.
    }
    let run = stage.run_to_end("conf/non-retriable-caught", json!({})).await;
    assert_eq!(run.completed()["caught"]["message"], "pointless");
    assert_eq!(attempts(&executions(app, &run.id, "doomed").await), [0]);
    let doomed = stage.hashed("doomed").await;
    let wire = app.wire_of(&run.id).await;
    let memo = wire.iter().find_map(|entry| entry["steps"].get(&doomed)).unwrap();
    assert_eq!(memo["error"]["cause"]["message"], "the reason", "{memo}");
}

async fn non_retriable_in_the_function(stage: &Stage, app: &App) {
    let run = stage.run_to_end("conf/non-retriable-function", json!({ "mark": "non-retriable-function" })).await;
    run.failed_with("pointless");
    assert_eq!(attempts(&executions(app, &run.id, "before").await), [0]);
    let told = told(app, "non-retriable-function", &run).await;
    assert_eq!(told["error"]["message"], "pointless");
    if app.settings.sdk.is_js() {
        assert!(told["raw"]["cause"].to_string().contains("the reason"), "{told}");
    }
}

/// Four seconds are asked for, and the usual retry would come after one.
fn assert_four_seconds(first: u64, second: u64) {
    let waited = second - first;
    assert!((3900..20_000).contains(&waited), "{waited} ms");
}

async fn retry_after_in_a_step(stage: &Stage, app: &App) {
    let run = stage.run_to_end("conf/retry-after-step", json!({})).await;
    assert_eq!(run.completed(), &json!({ "done": true }));
    let busy = executions(app, &run.id, "busy").await;
    assert_eq!(attempts(&busy), [0, 1]);
    assert_four_seconds(busy[0].1, busy[1].1);
}

async fn retry_after_in_the_function(stage: &Stage, app: &App) {
    let run = stage.run_to_end("conf/retry-after-function", json!({})).await;
    assert_eq!(run.completed(), &json!({ "done": true }));
    assert_eq!(attempts(&executions(app, &run.id, "before").await), [0]);
    let wire = app.wire_of(&run.id).await;
    let (last, tried) = wire.split_last().unwrap();
    assert_eq!(last["ctx"]["attempt"], 1);
    assert_four_seconds(tried.last().unwrap()["at"].as_u64().unwrap(), last["at"].as_u64().unwrap());
}

async fn a_flaky_function(stage: &Stage, app: &App) {
    let run = stage.run_to_end("conf/function-flaky", json!({ "fails": 2 })).await;
    assert_eq!(run.completed(), &json!({ "done": true }));
    assert_eq!(attempts(&executions(app, &run.id, "before").await), [0]);
    assert_eq!(executions(app, &run.id, "after").await.len(), 1);
}

async fn a_hopeless_function(stage: &Stage, app: &App) {
    let run = stage.run_to_end("conf/function-flaky", json!({ "fails": 99 })).await;
    run.failed_with("function failed");
    assert_eq!(attempts(&executions(app, &run.id, "before").await), [0]);
    let calls = app.calls_of(&run.id).await;
    let entered: Vec<_> = calls.iter().filter(|call| call.what == "enter").map(|call| call.attempt).collect();
    // Where the step before was a call of its own, that is one more at attempt 0.
    let expected: &[u32] = if app.settings.sdk.checkpoints() { &[0, 1, 2] } else { &[0, 0, 1, 2] };
    assert_eq!(entered, expected);
}

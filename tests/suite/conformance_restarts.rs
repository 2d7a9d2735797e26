//! Apps and servers that die in the middle of runs: nothing is lost, and nothing that was reported runs twice.

use crate::conformance_support::{App, Call, Counts, LONG, Sdk, Stage, each_sdk};
use crate::support::eventually;
use serde_json::{Value, json};

each_sdk!(
    an_app_that_dies_in_a_step_runs_that_step_again,
    a_server_that_dies_leaves_everything_where_it_was,
    a_server_that_dies_again_and_again_finishes_a_run,
    a_server_that_dies_under_parallel_steps_joins_them,
    a_server_that_stops_in_order_leaves_the_rest_to_the_next,
    a_call_that_outlives_its_time_changes_nothing;
    js4: a_checkpoint_of_a_call_long_gone_is_refused
);

/// What a dead server held is free again after some seconds.
async fn mortal() -> Stage {
    Stage::configured(&[("QUEUE_DRAIN_LEASE_MS", "4000")]).await
}

/// How many executions were more than one each.
fn repeats(counts: &Counts) -> usize {
    counts.values().map(|count| count - 1).sum()
}

async fn an_app_that_dies_in_a_step_runs_that_step_again(sdk: Sdk) {
    let stage = Stage::start().await;
    let mut app = stage.app(sdk).await;
    let event = stage.send("conf/held", json!({ "gate": "never" })).await;
    let held = app.wait_for("the held step", |call| call.step.as_deref() == Some("held")).await;
    app.start_again(|settings| settings.env("GATES", "open")).await;
    assert_eq!(stage.ended_run_of(&event).await.completed(), &json!({ "sum": 3 }));
    let counts = app.counted_steps(&held.run);
    assert_eq!((counts["one"], counts["held"], counts["two"]), (1, 2, 1), "{counts:?}");
}

/// One server is killed under a run of each kind of waiting, and the next one goes on with all of them.
async fn a_server_that_dies_leaves_everything_where_it_was(sdk: Sdk) {
    let mut stage = mortal().await;
    let app = stage.app(sdk).await;
    let events = json!([
        { "name": "conf/held", "data": { "gate": "held" } },
        { "name": "conf/asleep", "data": { "nap": "4s" } },
        { "name": "conf/wait", "data": { "k": "after", "timeout": "10m" } },
        { "name": "conf/wait", "data": { "k": "nobody", "timeout": "4s" } },
        { "name": "conf/invoke", "data": { "target": "sleepy-child", "data": { "nap": "4s" } } },
        { "name": "conf/retry-after-step", "data": {} },
        { "name": "conf/cancel-on", "data": { "u": "restart" } },
    ]);
    let ids = stage.send_all(&events).await;
    let mut runs = Vec::new();
    for id in &ids {
        runs.push(stage.run_id_of(id).await);
    }
    let [held, asleep, waiting, unmet, parent, failing, hanging] = &runs[..] else { panic!("{runs:?}") };
    app.wait_for("the held step", |call| call.step.as_deref() == Some("held")).await;
    for (run, op) in [
        (asleep, "Sleep"),
        (waiting, "WaitForEvent"),
        (unmet, "WaitForEvent"),
        (parent, "InvokeFunction"),
        (hanging, "Sleep"),
    ] {
        app.wait_for_op(run, op).await;
    }
    app.wait_for("the failure", |call| call.run == *failing && call.step.as_deref() == Some("busy")).await;
    // An answer is the server's when the server has shown that it has it: these runs have gone on to wait.
    settle(&stage, &app).await;
    // Accepted and perhaps not looked at yet.
    let burst: Vec<_> = (0..20).map(|n| json!({ "name": "conf/sink", "data": { "n": n } })).collect();
    let burst = stage.send_all(&json!(burst)).await;
    stage.kill_server().await;
    app.open("held").await; // The step's result finds nobody.
    stage.start_server().await;

    for (n, id) in burst.iter().enumerate() {
        assert_eq!(stage.ended_run_of(id).await.completed(), &json!({ "n": n }));
    }
    stage.send("conf/awaited", json!({ "k": "after" })).await;
    stage.send("conf/cancel", json!({ "u": "restart", "really": true })).await;
    assert_eq!(stage.ended_run_of(&ids[0]).await.completed(), &json!({ "sum": 3 }));
    stage.ended_run_of(&ids[1]).await.completed();
    assert_eq!(stage.ended_run_of(&ids[2]).await.completed()["got"]["data"]["k"], "after");
    assert_eq!(stage.ended_run_of(&ids[3]).await.completed()["got"], Value::Null);
    assert_eq!(stage.ended_run_of(&ids[4]).await.completed(), &json!({ "ok": "woke" }));
    assert_eq!(stage.ended_run_of(&ids[5]).await.completed(), &json!({ "done": true }));
    assert_eq!(stage.ended_run_of(&ids[6]).await.status, "Cancelled");

    let steps = app.steps_of(held).await;
    assert_eq!(steps["one"], 1, "{steps:?}");
    assert!(repeats(&steps) <= 1, "only what was in flight may run again: {steps:?}");
    let steps = app.steps_of(asleep).await;
    assert_eq!((steps["before"], steps["after"]), (1, 1));
    let calls = app.calls_of(asleep).await;
    let at = |step: &str| calls.iter().find(|call| call.step.as_deref() == Some(step)).unwrap().at;
    assert!(at("after") - at("before") >= 4000, "a sleep is not cut short");
    for (run, step) in [(waiting, "after"), (unmet, "after"), (parent, "after"), (hanging, "begin")] {
        assert_eq!(app.steps_of(run).await[step], 1);
    }
    let attempts: Vec<_> = app.calls_of(failing).await.into_iter().filter(|call| call.step.is_some()).collect();
    assert_eq!(attempts.iter().map(|call| call.attempt).collect::<Vec<_>>(), [0, 1]);
    let woke: Vec<_> = app.noted("sleepy-child", "step").await;
    assert_eq!(woke.len(), 1, "{woke:?}");
}

/// Waits until the server has taken in the answers that the app has given so far: nothing is in flight but the held step.
async fn settle(stage: &Stage, app: &App) {
    let open = |wire: &[Value]| wire.iter().filter(|entry| entry["status"].is_null()).count();
    eventually(LONG, || async {
        let wire = app.wire().await;
        if open(&wire) <= 1 { Ok(()) } else { Err(open(&wire)) }
    })
    .await;
    // A run through the same queue, begun later and ended.
    stage.run_to_end("conf/hello", json!({})).await.completed();
}

async fn a_server_that_dies_again_and_again_finishes_a_run(sdk: Sdk) {
    let mut stage = mortal().await;
    let app = stage.app(sdk).await;
    let event = stage.send("conf/journey", json!({ "steps": 9, "ms": 100 })).await;
    let kills = [1, 4, 7];
    for step in kills {
        let step = format!("s{step}");
        app.wait_for(&step, |call| call.step.as_deref() == Some(&step)).await;
        stage.kill_server().await;
        stage.start_server().await;
    }
    let run = stage.ended_run_of(&event).await;
    assert_eq!(run.completed(), &json!({ "sum": 36 }));
    let counts = app.steps_of(&run.id).await;
    assert_eq!(counts.len(), 9);
    assert!(repeats(&counts) <= kills.len(), "at most what was in flight at each kill runs again: {counts:?}");
}

async fn a_server_that_dies_under_parallel_steps_joins_them(sdk: Sdk) {
    let mut stage = mortal().await;
    let app = stage.app(sdk).await;
    let event = stage.send("conf/fan-in", json!({ "n": 20, "ms": 300 })).await;
    app.wait_for("a branch", |call| call.step.as_deref() == Some("p19")).await;
    stage.kill_server().await;
    stage.start_server().await;
    let run = stage.ended_run_of(&event).await;
    assert_eq!(run.completed(), &json!({ "sum": 190 }));
    let counts = app.steps_of(&run.id).await;
    assert_eq!(counts.len(), 21);
    assert!(counts.values().all(|&count| count <= 2), "{counts:?}");
    assert_eq!(counts["after"], 1, "{counts:?}");
}

/// A stop does not wait for a step that takes its time; what the step did counts, or it is done again.
async fn a_server_that_stops_in_order_leaves_the_rest_to_the_next(sdk: Sdk) {
    let mut stage = mortal().await;
    let app = stage.app(sdk).await;
    let events = json!([
        { "name": "conf/held", "data": { "gate": "stop" } },
        { "name": "conf/asleep", "data": { "nap": "2s" } },
    ]);
    let ids = stage.send_all(&events).await;
    app.wait_for("the held step", |call| call.step.as_deref() == Some("held")).await;
    let asleep = stage.run_id_of(&ids[1]).await;
    app.wait_for_op(&asleep, "Sleep").await;
    stage.stop_server().await;
    app.open("stop").await;
    stage.start_server().await;
    let run = stage.ended_run_of(&ids[0]).await;
    assert_eq!(run.completed(), &json!({ "sum": 3 }));
    let counts = app.steps_of(&run.id).await;
    assert_eq!(counts["one"], 1, "{counts:?}");
    assert!(repeats(&counts) <= 1, "{counts:?}");
    let run = stage.ended_run_of(&ids[1]).await;
    run.completed();
    assert_eq!(repeats(&app.steps_of(&run.id).await), 0);
}

/// The server gives a call up and makes another one; when the first one ends after all, its answer, or the checkpoint
/// it asks for, is nobody's.
async fn a_call_that_outlives_its_time_changes_nothing(sdk: Sdk) {
    let stage = Stage::configured(&[("FUNCTIONS_CALL_TIMEOUT_MS", "2000")]).await;
    let app = stage.app(sdk).await;
    let event = stage.send("conf/held", json!({ "gate": "late" })).await;
    let is_held = |call: &&Call| call.step.as_deref() == Some("held");
    eventually(LONG, || async {
        let held = app.calls().await.iter().filter(is_held).count();
        if held == 2 { Ok(()) } else { Err(held) }
    })
    .await;
    app.open("late").await;
    let run = stage.ended_run_of(&event).await;
    assert_eq!(run.completed(), &json!({ "sum": 3 }));
    let counts = app.steps_of(&run.id).await;
    assert_eq!((counts["one"], counts["held"], counts["two"]), (1, 2, 1), "{counts:?}");
}

/// The call that comes after the next sleep is another one, and what the first asks for is still not its to ask.
async fn a_checkpoint_of_a_call_long_gone_is_refused(sdk: Sdk) {
    let stage = Stage::configured(&[("FUNCTIONS_CALL_TIMEOUT_MS", "3000")]).await;
    let app = stage.app(sdk).await;
    let event = stage.send("conf/overtaken", json!({})).await;
    let later = app.wait_for("the call after the sleep", |call| call.step.as_deref() == Some("later")).await;
    app.open("overtaken").await;
    // The overtaken call has answered, to nobody.
    let first = eventually(LONG, || async {
        let first = app.wire_of(&later.run).await.remove(0);
        if first["answeredAt"].is_u64() { Ok(first) } else { Err("the first call still runs") }
    })
    .await;
    assert_eq!(first["status"], 400, "it was told to stop: {}", first["answer"]);
    app.open("later").await;
    let run = stage.ended_run_of(&event).await;
    assert_eq!(run.completed(), "done");
    let counts = app.steps_of(&run.id).await;
    assert_eq!((counts["one"], counts["held"], counts["mid"]), (1, 2, 1), "{counts:?}");
}

//! Flow control with the real SDKs (protocol sections A12, A14): one scenario for each feature.

use crate::conformance_support::{App, LONG, Run, Sdk, Stage, side_by_side};
use crate::support::eventually;
use serde_json::{Value, json};

mod js4 {
    crate::conformance_support::sdk_tests!(Js4: flow_control_holds, a_minute_of_cron, what_was_taken_once_stays_so_after_a_restart);
}
mod js3 {
    crate::conformance_support::sdk_tests!(Js3: flow_control_holds);
}

async fn app(stage: &Stage, sdk: Sdk) -> App {
    stage.app_with(stage.settings(sdk).env("FUNCTIONS", "limits")).await
}

async fn flow_control_holds(sdk: Sdk) {
    let stage = Stage::start().await;
    let app = app(&stage, sdk).await;
    side_by_side!(&stage, &app;
        a_limit_of_two,
        a_limit_for_each_user,
        functions_of_an_account_share_a_limit,
        two_limits_at_once,
        older_runs_end_first,
        a_throttle_spreads_starts,
        a_rate_limit_admits_its_number,
        an_idempotency_key_runs_once,
        the_last_event_of_a_burst_runs,
        events_come_in_batches,
        priority_goes_first,
        a_singleton_skips,
        a_singleton_cancels,
        retries_are_the_functions_own,
        an_invoke_is_told_why_there_is_no_run,
    );
}

/// Sends `n` events in one request: `data(i)` each.
async fn send(stage: &Stage, name: &str, n: usize, data: impl Fn(usize) -> Value) -> Vec<String> {
    let events: Vec<Value> = (0..n).map(|i| json!({"name": name, "data": data(i)})).collect();
    stage.send_all(&json!(events)).await
}

async fn all_completed(stage: &Stage, events: &[String]) {
    for event in events {
        stage.ended_run_of(event).await.completed();
    }
}

/// How many steps of these functions ran at once, at most, by what limits them.
async fn most_at_once(app: &App, functions: &[&str], key: &str) -> u64 {
    let mut most = 0;
    for function in functions {
        let noted = app.noted(function, "live").await;
        most = most.max(noted.iter().filter_map(|call| call.value[key].as_u64()).max().unwrap_or(0));
    }
    most
}

async fn a_limit_of_two(stage: &Stage, app: &App) {
    let sent = send(stage, "conf/plain", 8, |_| json!({})).await;
    all_completed(stage, &sent).await;
    assert_eq!(most_at_once(app, &["plain"], "plain").await, 2);
}

async fn a_limit_for_each_user(stage: &Stage, app: &App) {
    let sent = send(stage, "conf/keyed", 9, |i| json!({"user": (["ada", "bob", "cy"][i % 3])})).await;
    all_completed(stage, &sent).await;
    for user in ["ada", "bob", "cy"] {
        assert_eq!(most_at_once(app, &["keyed"], &format!("keyed/{user}")).await, 1, "{user}");
    }
}

async fn functions_of_an_account_share_a_limit(stage: &Stage, app: &App) {
    for (name, key) in [("shared", "api"), ("odd", "odd")] {
        let mut sent = Vec::new();
        for _ in 0..3 {
            for other in ["a", "b"] {
                sent.push(stage.send(&format!("conf/{name}-{other}"), json!({})).await);
            }
        }
        all_completed(stage, &sent).await;
        let functions = [format!("{name}-a"), format!("{name}-b")];
        assert_eq!(most_at_once(app, &[&functions[0], &functions[1]], key).await, 1, "{name}");
    }
}

async fn two_limits_at_once(stage: &Stage, app: &App) {
    let sent = send(stage, "conf/both", 8, |i| json!({"user": (if i % 2 == 0 { "ada" } else { "bob" })})).await;
    all_completed(stage, &sent).await;
    assert!(most_at_once(app, &["both"], "both").await <= 2);
    for user in ["ada", "bob"] {
        assert_eq!(most_at_once(app, &["both"], &format!("both/{user}")).await, 1);
    }
}

/// The event of a run that keeps the function's only slot until its gate is opened: all others can stand in line by then.
async fn slot_holder(stage: &Stage, app: &App, function: &str) -> String {
    let event = stage.send(&format!("conf/{function}"), json!({"waits": true})).await;
    app.wait_for("the slot to be taken", |call| call.function == function && call.step.as_deref() == Some("wait"))
        .await;
    event
}

async fn older_runs_end_first(stage: &Stage, app: &App) {
    let holder = slot_holder(stage, app, "older").await;
    let mut expected = vec![stage.run_id_of(&holder).await];
    let sent = send(stage, "conf/older", 3, |_| json!({})).await;
    for event in &sent {
        expected.push(stage.run_id_of(event).await);
    }
    app.open("older").await;
    all_completed(stage, &sent).await;
    let steps = app.noted("older", "step").await;
    let mut order: Vec<String> = steps.into_iter().map(|call| call.run).collect();
    assert_eq!(order.len(), 9);
    order.dedup();
    assert_eq!(order, expected, "each run ends before the next begins");
}

async fn a_throttle_spreads_starts(stage: &Stage, app: &App) {
    let sent = send(stage, "conf/throttled", 4, |_| json!({})).await;
    all_completed(stage, &sent).await;
    let mut starts: Vec<u64> = app.noted("throttled", "enter").await.iter().map(|call| call.at).collect();
    starts.sort_unstable();
    let after: Vec<u64> = starts.iter().map(|at| at - starts[0]).collect();
    // Two at once, then one each 2 s. A busy app notes a start late, so the margins are wide.
    assert!(after[2] >= 1_000 && after[3] >= 2_500, "{after:?}");
}

async fn a_rate_limit_admits_its_number(stage: &Stage, _: &App) {
    let sent = send(stage, "conf/limited", 12, |_| json!({"user": "ada"})).await;
    let (mut ran, last) = (0, sent.last().unwrap());
    let after = stage.send("conf/limited", json!({"user": "bob"})).await;
    stage.ended_run_of(&after).await.completed();
    let _ = last;
    eventually(LONG, || async {
        let mut runs = Vec::new();
        for event in &sent {
            runs.extend(stage.runs_of(event).await);
        }
        if runs.len() >= 10 && runs.iter().all(Run::is_ended) { Ok(()) } else { Err(runs.len()) }
    })
    .await;
    for event in &sent {
        ran += stage.runs_of(event).await.len();
    }
    assert_eq!(ran, 10);
}

async fn an_idempotency_key_runs_once(stage: &Stage, app: &App) {
    let first = stage.send("conf/once", json!({"id": "x"})).await;
    stage.ended_run_of(&first).await.completed();
    let again = stage.send("conf/once", json!({"id": "x"})).await;
    let other = stage.send("conf/once", json!({"id": "y"})).await;
    stage.ended_run_of(&other).await.completed();
    assert!(stage.runs_of(&again).await.is_empty());
    assert_eq!(app.noted("once", "end").await.len(), 2);
}

async fn the_last_event_of_a_burst_runs(stage: &Stage, app: &App) {
    let mut sent = Vec::new();
    for n in 0..4 {
        sent.push(stage.send("conf/debounced", json!({"user": "ada", "n": n})).await);
    }
    let bob = stage.send("conf/debounced", json!({"user": "bob", "n": 7})).await;
    assert_eq!(stage.ended_run_of(&sent[3]).await.completed(), 3);
    assert_eq!(stage.ended_run_of(&bob).await.completed(), 7);
    for lost in &sent[..3] {
        assert!(stage.runs_of(lost).await.is_empty());
    }
    assert_eq!(app.noted("debounced", "end").await.len(), 2);
}

async fn events_come_in_batches(stage: &Stage, app: &App) {
    let ada = send(stage, "conf/batched", 3, |n| json!({"user": "ada", "n": n})).await;
    let bob = send(stage, "conf/batched", 2, |n| json!({"user": "bob", "n": n})).await;
    let mut runs = Vec::new();
    for event in &ada {
        let run = stage.ended_run_of(event).await;
        let mut got: Vec<u64> = serde_json::from_value(run.completed().clone()).unwrap();
        got.sort_unstable();
        assert_eq!(got, [0, 1, 2], "full");
        runs.push(run.id);
    }
    runs.dedup();
    assert_eq!(runs.len(), 1, "one run, found by each of its events");
    let run = stage.ended_run_of(&bob[0]).await;
    assert_eq!(run.completed().as_array().unwrap().len(), 2, "old enough");
    assert_eq!(app.noted("batched", "end").await.len(), 2);
}

async fn priority_goes_first(stage: &Stage, app: &App) {
    let holder = slot_holder(stage, app, "first").await;
    let mut sent = Vec::new();
    for p in [0, -60, 120, 60] {
        sent.push(stage.send("conf/first", json!({"p": p})).await);
        stage.run_id_of(&sent[sent.len() - 1]).await;
    }
    app.open("first").await;
    all_completed(stage, &[vec![holder], sent.clone()].concat()).await;
    let mut order = Vec::new();
    for call in app.noted("first", "step").await.iter().filter(|call| call.step.as_deref() == Some("work")) {
        for (index, event) in sent.iter().enumerate() {
            if stage.runs_of(event).await[0].id == call.run {
                order.push(index);
            }
        }
    }
    assert_eq!(order, [2, 3, 0, 1]);
}

async fn a_singleton_skips(stage: &Stage, app: &App) {
    let first = stage.send("conf/skipping", json!({"user": "ada"})).await;
    let live = stage.run_id_of(&first).await;
    stage.wait_for_status(&live, "Running").await;
    let second = stage.send("conf/skipping", json!({"user": "ada"})).await;
    let skipped = stage.ended_run_of(&second).await;
    assert_eq!(skipped.status, "Skipped");
    // Who asks for it by invoke is told.
    let asked = stage.send("conf/asks", json!({"child": "skipping", "with": {"user": "ada"}})).await;
    let told = stage.ended_run_of(&asked).await;
    assert_eq!(told.completed()["error"], "invoked function was skipped: singleton");
    app.open("singleton").await;
    assert_eq!(stage.ended_run_of(&first).await.completed(), "done");
    let third = stage.send("conf/skipping", json!({"user": "ada"})).await;
    assert_eq!(stage.ended_run_of(&third).await.completed(), "done");
}

async fn a_singleton_cancels(stage: &Stage, _: &App) {
    let first = stage.send("conf/newest", json!({"nap": "1h", "n": 1})).await;
    let live = stage.run_id_of(&first).await;
    stage.wait_for_status(&live, "Running").await;
    let second = stage.send("conf/newest", json!({"nap": "1s", "n": 2})).await;
    assert_eq!(stage.ended_run_of(&second).await.completed(), 2);
    assert_eq!(stage.run(&live).await.status, "Cancelled");
}

async fn retries_are_the_functions_own(stage: &Stage, app: &App) {
    let run = stage.run_to_end("conf/twice", json!({})).await;
    run.failed_with("always");
    assert_eq!(app.steps_of(&run.id).await["fails"], 2);
}

async fn an_invoke_is_told_why_there_is_no_run(stage: &Stage, _: &App) {
    let ask = async |child: &str, with: Value| -> Value {
        let run = stage.run_to_end("conf/asks", json!({"child": child, "with": with})).await;
        run.completed().clone()
    };
    for _ in 0..10 {
        assert!(ask("limited", json!({"user": "inv"})).await["error"].is_null());
    }
    assert_eq!(ask("limited", json!({"user": "inv"})).await["error"], "invoked function is rate limited");
    // Of two invokes that are debounced together the first has lost its run.
    let one = stage.send("conf/asks", json!({"child": "debounced", "with": {"user": "inv", "n": 1}})).await;
    let run = stage.run_id_of(&one).await;
    stage.wait_for_status(&run, "Running").await;
    tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    let two = ask("debounced", json!({"user": "inv", "n": 2})).await;
    assert_eq!(two["got"], 2);
    let lost = stage.ended_run_of(&one).await;
    assert_eq!(lost.completed()["error"], "invoked function was skipped: debounce");
    // Each event of a batch has somebody who waits for it.
    let sent = send(stage, "conf/asks", 3, |n| json!({"child": "batched", "with": {"user": "inv", "n": n}})).await;
    for event in &sent {
        let run = stage.ended_run_of(event).await;
        assert_eq!(run.completed()["got"].as_array().unwrap().len(), 3, "{}", run.raw);
    }
}

/// By the real clock: at most a minute to wait.
async fn a_minute_of_cron(sdk: Sdk) {
    let stage = Stage::start().await;
    let app = app(&stage, sdk).await;
    let tick = eventually(2 * LONG, || async {
        app.noted("every-minute", "end").await.into_iter().next().ok_or("no tick yet")
    })
    .await;
    let scheduled = tick.value.as_str().unwrap().to_owned();
    assert!(scheduled.ends_with(":00Z"), "{scheduled}");
    assert_eq!(app.noted("every-minute", "end").await.len(), 1, "one run a tick");
}

async fn what_was_taken_once_stays_so_after_a_restart(sdk: Sdk) {
    let mut stage = Stage::start().await;
    let app = app(&stage, sdk).await;
    let first = stage.send("conf/once", json!({"id": "kept"})).await;
    stage.ended_run_of(&first).await.completed();
    let burst = stage.send("conf/quiet", json!({"n": 1})).await;
    stage.kill_server().await;
    stage.start_server().await;
    assert_eq!(stage.ended_run_of(&burst).await.completed(), 1, "a debounce outlives its server");
    let again = stage.send("conf/once", json!({"id": "kept"})).await;
    let other = stage.send("conf/once", json!({"id": "other"})).await;
    stage.ended_run_of(&other).await.completed();
    assert!(stage.runs_of(&again).await.is_empty());
    assert_eq!(app.noted("quiet", "end").await.len(), 1);
}

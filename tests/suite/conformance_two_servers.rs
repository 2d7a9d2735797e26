//! Two servers on one Redis, one of them killed again and again: limits hold, and what is to happen once does.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::conformance_support::{LONG, Sdk, Stage};
use crate::support::{Joelclaw, eventually, free_port};
use serde_json::{Value, json};

/// The second server: the same Redis, another port.
fn second(stage: &Stage) -> Joelclaw {
    let joelclaw = Joelclaw::new(&stage.redis.url()).env("INNGEST_RETRY_INTERVAL", "1");
    joelclaw.env_file_line("WORKER_PORT", &free_port().to_string());
    joelclaw.env_file_line("QUEUE_DRAIN_INTERVAL_MS", "100");
    joelclaw
}

#[tokio::test]
async fn a_server_that_is_killed_again_and_again_changes_nothing() {
    let stage = Stage::start().await;
    let app = stage.app_with(stage.settings(Sdk::Js3).env("FUNCTIONS", "limits")).await;
    let other = second(&stage);
    let mut killed = other.spawn(&["up"]);
    killed.wait_for_line("drainer started", LONG).await;

    let (mut slow, mut quiet, mut gathered, mut plain) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for round in 0..3 {
        for n in 0..6 {
            slow.push(stage.send("conf/slow", json!({})).await);
            plain.push(stage.send("conf/plain", json!({})).await);
            gathered.push(stage.send("conf/gathered", json!({"n": round * 6 + n})).await);
        }
        quiet.push(stage.send("conf/quiet", json!({"n": round})).await);
        // It is killed while it calls the app.
        let began = app.noted("slow", "live").await.len();
        eventually(LONG, || async {
            let now = app.noted("slow", "live").await.len();
            if now >= began + 2 { Ok(()) } else { Err(now) }
        })
        .await;
        killed.kill_9().await;
        // The debounce of this round fires, on whichever server is there.
        let fired = quiet.last().unwrap();
        stage.ended_run_of(fired).await.completed();
        killed = other.spawn(&["up"]);
        killed.wait_for_line("drainer started", LONG).await;
    }

    // Nothing is lost.
    for event in slow.iter().chain(&plain) {
        let run = eventually(2 * LONG, || async {
            let mut runs = stage.runs_of(event).await;
            if runs.len() == 1 && runs[0].is_ended() { Ok(runs.remove(0)) } else { Err(runs) }
        })
        .await;
        run.completed();
    }
    // No limit was ever passed, as the app counts it: a call of the killed server goes on there.
    for (function, limit) in [("slow", 2), ("plain", 2)] {
        let noted = app.noted(function, "live").await;
        let most = noted.iter().filter_map(|call| call.value[function].as_u64()).max().unwrap();
        assert!(most <= limit, "{function}: {most} at once");
    }
    // No debounce fired twice, no event is in two batches, and each is in one.
    let fired: BTreeMap<String, Value> =
        app.noted("quiet", "end").await.into_iter().map(|call| (call.run, call.value)).collect();
    let mut values: Vec<&Value> = fired.values().collect();
    values.sort_by_key(|value| value.as_u64());
    assert_eq!(values, [&json!(0), &json!(1), &json!(2)], "a run for each burst: {fired:?}");
    let mut batches: BTreeMap<String, Vec<u64>> = BTreeMap::new();
    for event in &gathered {
        let run = stage.ended_run_of(event).await;
        batches.insert(run.id.clone(), serde_json::from_value(run.completed().clone()).unwrap());
    }
    let mut events: Vec<u64> = batches.into_values().flatten().collect();
    events.sort_unstable();
    assert_eq!(events, (0..18).collect::<Vec<u64>>());
}

#[tokio::test]
async fn a_tick_runs_once_with_two_servers_and_a_kill() {
    let stage = Stage::start().await;
    let app = stage.app_with(stage.settings(Sdk::Js4).env("FUNCTIONS", "limits")).await;
    let other = second(&stage);
    let mut killed = other.spawn(&["up"]);
    killed.wait_for_line("drainer started", LONG).await;
    eventually(2 * LONG, || async {
        let ticks = app.noted("every-minute", "enter").await;
        if ticks.is_empty() { Err("no tick yet") } else { Ok(()) }
    })
    .await;
    killed.kill_9().await;
    let ended = eventually(LONG, || async {
        let ended = app.noted("every-minute", "end").await;
        if ended.is_empty() { Err("not ended") } else { Ok(ended) }
    })
    .await;
    // Whoever else would run it has had its chance.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let mut runs: Vec<String> = app.noted("every-minute", "enter").await.into_iter().map(|call| call.run).collect();
    runs.sort();
    runs.dedup();
    assert_eq!(runs, [ended[0].run.clone()], "one run, however often it was called");
}

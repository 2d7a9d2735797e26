//! kill -9 of the server, ten times, under five hundred runs of five steps.

use std::collections::HashMap;
use std::time::Duration;

use crate::conformance_support::{App, Run, Sdk, Stage};
use crate::support::eventually;
use serde_json::{Value, json};

const RUNS: usize = 500;
const STEPS: usize = 5;
const KILLS: usize = 10;
/// Two cores, shared with whatever else runs.
const PATIENCE: Duration = Duration::from_secs(180);

#[tokio::test]
async fn five_hundred_runs_of_js4_outlive_ten_kills() {
    outlive_kills(Sdk::Js4).await;
}

#[tokio::test]
async fn five_hundred_runs_of_js3_outlive_ten_kills() {
    outlive_kills(Sdk::Js3).await;
}

async fn outlive_kills(sdk: Sdk) {
    let mut stage = Stage::start().await;
    let app = stage.app(sdk).await;
    let events: Vec<Value> =
        (0..RUNS).map(|_| json!({ "name": "conf/journey", "data": { "steps": STEPS, "ms": 20 } })).collect();
    let ids = stage.send_all(&json!(events)).await;
    for kill in 1..=KILLS {
        let wanted = RUNS * STEPS * kill / (KILLS + 2);
        eventually(PATIENCE, || async {
            let executed = executed(&app).await;
            if executed >= wanted { Ok(()) } else { Err(executed) }
        })
        .await;
        stage.kill_server().await;
        stage.start_server().await;
    }

    let mut by_run = HashMap::new();
    for id in &ids {
        let runs = eventually(PATIENCE, || async {
            let runs = stage.runs_of(id).await;
            if runs.iter().all(Run::is_ended) && !runs.is_empty() { Ok(runs) } else { Err(runs) }
        })
        .await;
        assert_eq!(runs.len(), 1, "one event, one run");
        assert_eq!(runs[0].completed(), &json!({ "sum": (0..STEPS).sum::<usize>() }));
        by_run.insert(runs[0].id.clone(), 0_usize);
    }
    assert_eq!(by_run.len(), RUNS);

    // Calls in the order in which they were sent, which their request ids tell: what a killed server had sent may be read
    // by the app only after the next server's calls, and no server can take that back.
    let mut hashes = HashMap::new();
    for step in 0..STEPS {
        hashes.insert(stage.hashed(&format!("s{step}")).await, format!("s{step}"));
    }
    let mut known: HashMap<String, Vec<String>> = HashMap::new();
    let mut wire = app.wire().await;
    wire.sort_by_key(|request| request["ctx"]["request_id"].as_str().map(str::to_owned));
    for request in wire {
        let (Some(run), Some(given)) = (request["ctx"]["run_id"].as_str(), request["stepIds"].as_array()) else {
            continue;
        };
        let given: Vec<String> = given.iter().filter_map(|step| hashes.get(step.as_str()?)).cloned().collect();
        let before = known.entry(run.to_owned()).or_default();
        let forgotten: Vec<&String> = before.iter().filter(|step| !given.contains(step)).collect();
        assert!(forgotten.is_empty(), "{run}: a call was not given {forgotten:?}: {}", request["ctx"]);
        before.extend(given.into_iter().filter(|step| !before.contains(step)).collect::<Vec<_>>());
    }
    let mut executions: HashMap<(String, String), usize> = HashMap::new();
    for call in app.calls().await.into_iter().filter(|call| call.what == "step") {
        *executions.entry((call.run, call.step.unwrap())).or_default() += 1;
    }
    assert_eq!(executions.len(), RUNS * STEPS, "every step ran");
    let (status, open) = stage.get("/v1/apps/conf/functions").await;
    assert_eq!(status, 200, "{open}");
    for status in ["RUNNING", "QUEUED"] {
        let left = stage.redis.cli(&["ZCARD", &format!("{{joelclaw:bus:0}}:fn:runs:st:{status}")]).await;
        assert_eq!(left, "0", "no run is left {status}");
    }
    let log = stage.log();
    let repaired = log.lines().find(|line| line.contains("nothing would have brought this run on"));
    assert_eq!(repaired, None, "a kill leaves every run with something that brings it on");
    drop(app);
    stage.stop_server().await;
}

async fn executed(app: &App) -> usize {
    app.calls().await.iter().filter(|call| call.what == "step").count()
}

//! Servers, apps and Redis that start in any order: the registry equals what the app serves, and no event is lost.

use std::time::Duration;

use crate::conformance_support::{App, Sdk, Stage, each_sdk};
use crate::support::eventually;
use serde_json::json;

/// What is promised.
const AGREEMENT: Duration = Duration::from_secs(30);

each_sdk!(
    an_app_away_for_a_while_gets_what_was_sent_meanwhile,
    an_app_that_starts_while_the_server_is_away_is_asked_at_its_start,
    a_server_and_an_app_that_start_at_once_agree,
    redis_may_come_last;
    js: what_is_sent_before_any_app_is_known_waits_for_it
);

/// The registry holds exactly the functions of set `b`, which the app never registered by itself.
async fn agrees_on_b(stage: &Stage) {
    eventually(AGREEMENT, || async {
        let mut slugs: Vec<String> = stage
            .functions_of("conf")
            .await
            .iter()
            .map(|function| function["slug"].as_str().unwrap().to_owned())
            .collect();
        slugs.sort();
        if slugs == ["conf-hello", "conf-only-b"] { Ok(()) } else { Err(slugs) }
    })
    .await;
}

async fn runs_of_set_b(stage: &Stage, event: &str) {
    assert_eq!(stage.ended_run_of(event).await.completed(), &json!({ "set": "b" }));
}

async fn an_app_away_for_a_while_gets_what_was_sent_meanwhile(sdk: Sdk) {
    let stage = Stage::start().await;
    let mut app = stage.app(sdk).await;
    app.kill_9();
    let mut sent = Vec::new();
    for _ in 0..5 {
        sent.push(stage.send("conf/hello", json!({})).await);
    }
    // Long enough for more attempts than the function has.
    tokio::time::sleep(Duration::from_secs(7)).await;
    app.start_again(|settings| settings.env("FUNCTIONS", "b")).await;
    agrees_on_b(&stage).await;
    for event in &sent {
        runs_of_set_b(&stage, event).await;
    }
}

async fn an_app_that_starts_while_the_server_is_away_is_asked_at_its_start(sdk: Sdk) {
    let mut stage = Stage::start().await;
    let mut app = stage.app(sdk).await;
    stage.kill_server().await;
    app.start_again(|settings| settings.env("FUNCTIONS", "b")).await;
    let (status, _) = app.register().await;
    assert!(status >= 400, "nobody is there to register with");
    stage.start_server().await;
    let event = stage.send("conf/hello", json!({})).await;
    agrees_on_b(&stage).await;
    runs_of_set_b(&stage, &event).await;
}

async fn a_server_and_an_app_that_start_at_once_agree(sdk: Sdk) {
    let mut stage = Stage::start().await;
    let mut app = stage.app(sdk).await;
    let sent = stage.send("conf/asleep", json!({ "nap": "2s" })).await;
    stage.run_id_of(&sent).await;
    stage.kill_server().await;
    app.kill_9();
    let restart = async |app: &mut App| app.start_again(|settings| settings.env("FUNCTIONS", "b")).await;
    tokio::join!(stage.start_server(), restart(&mut app));
    agrees_on_b(&stage).await;
    let event = stage.send("conf/only-b", json!({})).await;
    runs_of_set_b(&stage, &event).await;
    assert!(!stage.run(&stage.run_id_of(&sent).await).await.is_ended(), "it waits for an app that serves it again");
}

async fn redis_may_come_last(sdk: Sdk) {
    let mut stage = Stage::start().await;
    let mut app = stage.app(sdk).await;
    stage.kill_server().await;
    stage.redis.cli(&["SAVE"]).await;
    stage.redis.kill_9();
    app.start_again(|settings| settings.env("FUNCTIONS", "b")).await;
    stage.start_server_before_redis(Duration::from_secs(2)).await;
    let event = stage.send("conf/hello", json!({})).await;
    agrees_on_b(&stage).await;
    runs_of_set_b(&stage, &event).await;
}

async fn what_is_sent_before_any_app_is_known_waits_for_it(sdk: Sdk) {
    let stage = Stage::start().await;
    let early = stage.send("conf/hello", json!({})).await;
    assert!(stage.runs_of(&early).await.is_empty());
    let _app = stage.app(sdk).await;
    assert_eq!(stage.ended_run_of(&early).await.completed(), &json!({ "set": "a" }));
}

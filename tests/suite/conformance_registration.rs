//! Registering real SDK apps: what they send, what the server remembers, and what it refuses.

use std::collections::BTreeSet;

use crate::conformance_support::{App, LONG, Sdk, Settings, Stage, each_sdk};
use crate::support::{HttpSink, Reply, eventually, free_port};
use serde_json::{Value, json};

each_sdk!(
    an_app_says_what_the_protocol_says_it_does,
    registering_is_remembered,
    changed_functions_replace_the_old_ones,
    the_last_app_of_a_name_is_the_one_that_is_called,
    a_wrong_function_refuses_the_whole_app,
    an_app_named_in_the_settings_need_not_register;
    js4: apps_of_several_names_and_sdks
);

/// The harness itself, and the shapes that everything else stands on.
async fn an_app_says_what_the_protocol_says_it_does(sdk: Sdk) {
    let sink = HttpSink::start().await;
    sink.reply_always(Reply::ok().header("content-type", "application/json").body(r#"{"ok":true,"modified":true}"#));
    let app = App::start(Settings::new(sdk).env("INNGEST_DEV", &sink.url())).await;
    let introspection = app.introspection().await;
    assert_eq!(introspection["mode"], "dev", "{introspection}");
    assert!(app.sync().await);
    let requests = sink.wait_for(1, LONG).await;
    assert_eq!(requests[0].path, "/fn/register");
    let body = requests[0].json();
    let functions = body["functions"].as_array().unwrap();
    assert_eq!(introspection["function_count"], counted(sdk, functions).len());
    let name = if sdk.is_js() { "appName" } else { "appname" };
    assert_eq!(body[name], "conf");
    assert_eq!(body["url"], app.url());
    let slashed = functions.iter().find(|function| function["id"] == "conf-check/slashed").unwrap();
    let url = slashed["steps"]["step"]["runtime"]["url"].as_str().unwrap();
    assert_eq!(url, format!("{}?fnId=conf-check%2Fslashed&stepId=step", app.url()));
    let failure = functions.iter().find(|function| function["id"] == "conf-uncaught-failure").unwrap();
    assert_eq!(failure["triggers"][0]["expression"], "event.data.function_id == 'conf-uncaught'");
    assert!(app.calls().await.is_empty(), "registering calls no function");
}

/// The functions that introspection counts: Python leaves out its failure handlers.
fn counted(sdk: Sdk, functions: &[Value]) -> Vec<&Value> {
    let is_handler = |function: &Value| text_of(function).contains("-failure\"");
    functions.iter().filter(|function| sdk.is_js() || !is_handler(function)).collect()
}

fn text_of(function: &Value) -> String {
    let mut identity = function.clone();
    if let Some(fields) = identity.as_object_mut() {
        fields.retain(|key, _| key == "id" || key == "slug");
    }
    identity.to_string()
}

/// Whether the server lists a function with this composite id.
async fn knows(stage: &Stage, app: &str, slug: &str) -> bool {
    let quoted = format!("\"{slug}\"");
    stage.functions_of(app).await.iter().any(|function| text_of(function).contains(&quoted))
}

async fn registering_is_remembered(sdk: Sdk) {
    let mut stage = Stage::start().await;
    let (status, dev) = stage.get("/dev").await;
    assert_eq!((status, dev["functions"].is_array()), (200, true), "{dev}");
    let app = stage.app(sdk).await;
    assert!(!app.sync().await, "nothing has changed");
    let functions = stage.functions_of("conf").await;
    assert_eq!(counted(sdk, &functions).len(), app.introspection().await["function_count"]);
    assert!(knows(&stage, "conf", "conf-check/slashed").await);
    assert!(knows(&stage, "conf", "conf-uncaught-failure").await);

    // It works for the server that comes after, however the first one ended, before the app registers again.
    stage.stop_server().await;
    stage.start_server().await;
    stage.run_to_end("conf/hello", json!({})).await.completed();
    assert!(!app.sync().await);
    stage.kill_server().await;
    stage.start_server().await;
    stage.run_to_end("conf/hello", json!({})).await.completed();
    assert_eq!(stage.functions_of("conf").await.len(), functions.len());
    assert!(!app.sync().await);

    // A server that knows nothing says so.
    stage.stop_server().await;
    stage.redis.cli(&["FLUSHALL"]).await;
    stage.start_server().await;
    assert!(stage.functions_of("conf").await.is_empty());
    assert!(app.sync().await);
    stage.run_to_end("conf/hello", json!({})).await.completed();
}

async fn changed_functions_replace_the_old_ones(sdk: Sdk) {
    let stage = Stage::start().await;
    let mut app = stage.app(sdk).await;
    assert_eq!(stage.run_to_end("conf/hello", json!({})).await.completed(), &json!({ "set": "a" }));
    app.start_again(|settings| settings.env("FUNCTIONS", "b")).await;
    assert!(app.sync().await);
    assert!(!app.sync().await);
    assert!(knows(&stage, "conf", "conf-only-b").await);
    assert!(!knows(&stage, "conf", "conf-kinds").await);
    let events = json!([
        { "name": "conf/echo", "data": {} },
        { "name": "conf/only-b", "data": {} },
        { "name": "conf/hello", "data": {} },
    ]);
    let ids = stage.send_all(&events).await;
    for id in &ids[1..] {
        assert_eq!(stage.ended_run_of(id).await.completed(), &json!({ "set": "b" }));
    }
    assert!(stage.runs_of(&ids[0]).await.is_empty(), "what is gone is not started");
    // And back: what was gone is known again.
    app.start_again(|settings| settings.env("FUNCTIONS", "a")).await;
    assert!(app.sync().await);
    stage.run_to_end("conf/echo", json!({})).await.completed();
    assert!(!knows(&stage, "conf", "conf-only-b").await);
}

async fn the_last_app_of_a_name_is_the_one_that_is_called(sdk: Sdk) {
    let stage = Stage::start().await;
    let first = stage.app(sdk).await;
    let run = stage.run_to_end("conf/hello", json!({})).await;
    assert_eq!(first.steps_of(&run.id).await["which"], 1);
    let second = App::start(stage.settings(sdk)).await;
    assert!(second.sync().await, "the URL has changed");
    let run = stage.run_to_end("conf/hello", json!({})).await;
    assert!(first.calls_of(&run.id).await.is_empty());
    assert_eq!(second.steps_of(&run.id).await["which"], 1);
    assert!(first.sync().await);
    let run = stage.run_to_end("conf/hello", json!({})).await;
    assert_eq!(first.steps_of(&run.id).await["which"], 1);
}

async fn a_wrong_function_refuses_the_whole_app(sdk: Sdk) {
    let stage = Stage::start().await;
    let mut app = App::start(stage.settings(sdk).env("FUNCTIONS", "invalid")).await;
    let refusal = app.refused().await;
    assert!(refusal.contains("broken-if"), "the answer names the function: {refusal}");
    assert!(stage.functions_of("conf").await.is_empty());
    // What is registered stays when a later sync is refused.
    app.start_again(|settings| settings.env("FUNCTIONS", "a")).await;
    assert!(app.sync().await);
    let count = stage.functions_of("conf").await.len();
    app.start_again(|settings| settings.env("FUNCTIONS", "invalid")).await;
    app.refused().await;
    assert_eq!(stage.functions_of("conf").await.len(), count);
}

/// The server asks apps that it is told of, until they are there and whenever they have changed.
async fn an_app_named_in_the_settings_need_not_register(sdk: Sdk) {
    // The app is not there yet when the server starts: its port is chosen, and free.
    let port = free_port();
    let url = format!("http://127.0.0.1:{port}/api/inngest");
    let stage = Stage::configured(&[("INNGEST_SDK_URLS", &url), ("INNGEST_POLL_INTERVAL", "1")]).await;
    let mut app = App::start(stage.settings(sdk).env("PORT", &port.to_string())).await;
    assert_eq!(app.url(), url);
    let is_known = async |slug: &str| {
        eventually(LONG, || async { if knows(&stage, "conf", slug).await { Ok(()) } else { Err("not known") } }).await;
    };
    is_known("conf-hello").await;
    assert_eq!(stage.run_to_end("conf/hello", json!({})).await.completed(), &json!({ "set": "a" }));
    app.start_again(|settings| settings.env("FUNCTIONS", "b")).await;
    is_known("conf-only-b").await;
    assert_eq!(stage.run_to_end("conf/only-b", json!({})).await.completed(), &json!({ "set": "b" }));
}

/// One event starts the functions of all, and each calls functions of the others.
async fn apps_of_several_names_and_sdks(_: Sdk) {
    let stage = Stage::start().await;
    let mut apps = Vec::new();
    for (name, sdk) in [("alpha", Sdk::Js4), ("beta", Sdk::Js3), ("gamma", Sdk::Py)] {
        apps.push(stage.app_with(stage.settings(sdk).name(name)).await);
    }
    let event = stage.send("conf/hello", json!({})).await;
    let runs = stage.ended_runs_of(&event, 3).await;
    for app in &apps {
        let mut own = 0;
        for run in &runs {
            run.completed();
            own += app.steps_of(&run.id).await.len();
        }
        assert_eq!(own, 1, "{} ran it once", app.settings.name);
    }
    let next = ["beta", "gamma", "alpha"];
    let data = |target: &str| json!({ "target": "child", "app": target, "data": { "x": 1 } });
    // Every app has this function and runs it; so each of the three calls the app named.
    for target in next {
        let event = stage.send("conf/invoke", data(target)).await;
        for run in stage.ended_runs_of(&event, 3).await {
            let expected = json!({ "ok": { "x": 1, "name": "inngest/function.invoked", "of": target } });
            assert_eq!(run.completed(), &expected);
        }
    }
    let names: BTreeSet<_> = apps.iter().map(|app| app.settings.name.clone()).collect();
    for name in names {
        assert!(knows(&stage, &name, &format!("{name}-hello")).await);
    }
}

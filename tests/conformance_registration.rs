//! Registering real SDK apps: what they send, what the server remembers, and what it refuses.
#![allow(clippy::unwrap_used, missing_docs)]

mod conformance_support;
mod support;

use conformance_support::{App, LONG, Sdk, Settings, each_sdk};
use support::{HttpSink, Reply};

each_sdk!(an_app_says_what_the_protocol_says_it_does);

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
    // Python does not count the functions that its failure handlers are.
    let is_counted = |id: &str| sdk.is_js() || !id.ends_with("-failure");
    let counted = functions.iter().filter(|function| is_counted(function["id"].as_str().unwrap())).count();
    assert_eq!(introspection["function_count"], counted);
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

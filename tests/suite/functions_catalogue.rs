//! The catalogue of functions that is to move here (`vectors/functions.json`): all of it registers and comes back as it went.

use std::collections::BTreeSet;

use crate::conformance_support::Stage;
use serde_json::{Value, json};
use system_bus::functions::expr::{Expr, Roots, Scope};
use system_bus::functions::registry::Registration;

fn catalogue() -> Vec<Value> {
    let all: Value = serde_json::from_str(include_str!("../vectors/functions.json")).unwrap();
    all["functions"].as_array().unwrap().clone()
}

/// A value that may be read from the environment: its default.
fn plain(value: &Value) -> Value {
    match value {
        Value::Object(object) if object.contains_key("default") => object["default"].clone(),
        Value::Object(object) => {
            let known = object.iter().filter(|(key, _)| *key != "keyKind");
            Value::Object(known.map(|(key, value)| (key.clone(), plain(value))).collect())
        }
        Value::Array(list) => list.iter().map(plain).collect(),
        other => other.clone(),
    }
}

/// As the SDK registers it.
fn definition(app: &str, entry: &Value) -> Value {
    let slug = format!("{app}-{}", entry["id"].as_str().unwrap());
    let triggers: Vec<Value> = entry["triggers"]
        .as_array()
        .unwrap()
        .iter()
        .map(|trigger| match (&trigger["event"], &trigger["cron"], &trigger["timezone"]) {
            (Value::String(event), ..) => json!({"event": event}),
            (_, Value::String(cron), Value::String(zone)) if zone != "UTC" => {
                json!({"cron": format!("TZ={zone} {cron}")})
            }
            (_, Value::String(cron), _) => json!({"cron": cron}),
            other => panic!("{slug}: {other:?}"),
        })
        .collect();
    let cancel: Vec<Value> = entry["cancelOn"]
        .as_array()
        .unwrap()
        .iter()
        .map(|cancel| {
            let matched = cancel["match"].as_str().map(|path| format!("event.{path} == async.{path}"));
            let condition = cancel["if"].as_str().map(str::to_owned);
            let whole = match (matched, condition) {
                (Some(matched), Some(condition)) => Some(format!("{matched} && {condition}")),
                (one, other) => one.or(other),
            };
            let mut cancel = json!({"event": cancel["event"]});
            if let Some(whole) = whole {
                cancel["if"] = whole.into();
            }
            cancel
        })
        .collect();
    let mut function = json!({
        "id": slug, "name": entry["name"], "triggers": triggers, "cancel": cancel,
        "steps": {"step": {"id": "step", "name": "step",
            "retries": {"attempts": entry["retries"].as_u64().unwrap_or(3)},
            "runtime": {"type": "http", "url": format!("http://127.0.0.1:9/api/inngest?fnId={}&stepId=step", slug.replace('/', "%2F"))}}},
    });
    for key in ["concurrency", "throttle", "rateLimit", "debounce", "singleton", "priority", "idempotency", "timeouts"]
    {
        if !entry[key].is_null() {
            function[key] = plain(&entry[key]);
        }
    }
    function
}

fn document(app: &str, role: &str) -> Value {
    let entries = catalogue();
    let of_role = entries.iter().filter(|entry| entry["role"] == role || entry["role"] == "both");
    json!({
        "url": "http://127.0.0.1:9/api/inngest", "appName": app, "sdk": "js:v3.54.2", "framework": "hono", "v": "0.1",
        "deployType": "ping", "functions": of_role.map(|entry| definition(app, entry)).collect::<Vec<_>>(),
    })
}

#[tokio::test]
async fn the_whole_catalogue_registers_and_comes_back_as_it_went() {
    let stage = Stage::start().await;
    let mut unquoted = BTreeSet::new();
    for (app, role) in [("system-bus-host", "host"), ("system-bus-cluster", "cluster")] {
        let document = document(app, role);
        let (status, answer) = stage.post("/fn/register", &document.to_string()).await;
        assert_eq!((status, &answer["ok"], &answer["modified"]), (200, &json!(true), &json!(true)), "{answer}");
        let (_, again) = stage.post("/fn/register", &document.to_string()).await;
        assert_eq!(again["modified"], false);

        let stored = stage.functions_of(app).await;
        let sent = document["functions"].as_array().unwrap();
        assert_eq!(stored.len(), sent.len());
        for (stored, sent) in stored.iter().zip(sent) {
            let slug = sent["id"].as_str().unwrap();
            assert_eq!(stored["slug"], sent["id"]);
            assert_eq!(stored["config"], *sent, "{slug}");
            assert_eq!(stored["triggers"], sent["triggers"], "{slug}");
            if !stored["warnings"].as_array().unwrap().is_empty() {
                unquoted.insert(slug.to_owned());
            }
        }
        // What the command line shows of flow control is what was registered.
        let shown = stage.joelclaw.run(&["functions", "--app", app, "--json"]).await.json();
        for shown in shown["result"]["functions"].as_array().unwrap() {
            let sent = sent.iter().find(|sent| sent["id"] == shown["slug"]).unwrap();
            for key in
                ["concurrency", "throttle", "rateLimit", "debounce", "singleton", "priority", "idempotency", "timeouts"]
            {
                assert_eq!(shown["flowControl"][key], sent[key], "{}: {key}", shown["slug"]);
            }
        }
    }
    // The unquoted constants are pointed out, and nothing else is.
    let expected: BTreeSet<String> = catalogue()
        .iter()
        .filter(|entry| {
            let limits = entry["concurrency"].as_array().cloned().unwrap_or_default();
            limits.iter().any(|limit| limit["keyKind"] == "unquoted-constant")
        })
        .map(|entry| {
            let app = if entry["role"] == "cluster" { "system-bus-cluster" } else { "system-bus-host" };
            format!("{app}-{}", entry["id"].as_str().unwrap())
        })
        .collect();
    assert_eq!(expected.len(), 19);
    assert_eq!(unquoted, expected);
}

/// Milliseconds of `45s`, `30m`, `12h`.
fn ms(text: &Value) -> u64 {
    let text = text.as_str().unwrap();
    let (number, unit) = text.split_at(text.len() - 1);
    let unit_ms = match unit {
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        other => panic!("{text}: no unit {other}"),
    };
    number.parse::<u64>().unwrap() * unit_ms
}

#[test]
fn flow_control_is_read_as_it_is_meant() {
    for (app, role) in [("system-bus-host", "host"), ("system-bus-cluster", "cluster")] {
        let document = document(app, role);
        let registration = Registration::parse(&document, None).unwrap();
        for (function, sent) in registration.functions.iter().zip(document["functions"].as_array().unwrap()) {
            let slug = &function.slug;
            let limits: Vec<Value> = match &sent["concurrency"] {
                Value::Array(list) => list.clone(),
                Value::Null => Vec::new(),
                other => vec![other.clone()],
            };
            assert_eq!(function.flow.concurrency.len(), limits.len(), "{slug}");
            for (read, sent) in function.flow.concurrency.iter().zip(&limits) {
                assert_eq!(u64::from(read.limit), sent["limit"].as_u64().or(sent.as_u64()).unwrap(), "{slug}");
                assert_eq!(read.key.as_deref(), sent["key"].as_str(), "{slug}");
                assert_eq!(read.scope.as_str(), sent["scope"].as_str().unwrap_or("fn"), "{slug}");
            }
            let flow = &function.flow;
            let throttle = flow.throttle.as_ref().map(|it| json!([it.limit, it.burst, it.period_ms, it.key]));
            let meant =
                sent["throttle"].as_object().map(|it| json!([it["limit"], 0, ms(&it["period"]), it.get("key")]));
            assert_eq!(throttle, meant, "{slug}");
            let rate = flow.rate_limit.as_ref().map(|it| json!([it.limit, it.period_ms, it.key]));
            let once = sent["idempotency"].as_str().map(|key| json!([1, 86_400_000, key]));
            let meant = sent["rateLimit"].as_object().map(|it| json!([it["limit"], ms(&it["period"]), it.get("key")]));
            assert_eq!(rate, once.or(meant), "{slug}");
            let debounce = flow.debounce.as_ref().map(|it| json!([it.period_ms, it.timeout_ms, it.key]));
            let of_text =
                |it: &Value| it["period"].as_str().map(|_| json!([ms(&it["period"]), ms(&it["timeout"]), it["key"]]));
            assert_eq!(debounce, of_text(&sent["debounce"]), "{slug}");
            let singleton = flow.singleton.as_ref().map(|it| json!([it.key, it.mode]));
            let meant = sent["singleton"].as_object().map(|it| json!([it["key"], it["mode"]]));
            assert_eq!(singleton, meant, "{slug}");
            assert_eq!(json!(flow.priority), sent["priority"]["run"], "{slug}");
            let timeout = |key: &str| sent["timeouts"].get(key).map(ms);
            let read = (function.start_timeout_ms, function.finish_timeout_ms);
            assert_eq!(read, (timeout("start"), timeout("finish")), "{slug}");
            let retries = &sent["steps"]["step"]["retries"]["attempts"];
            assert_eq!(json!(function.retries), *retries, "{slug}");
            let cancels: Vec<_> = function.cancel.iter().map(|it| json!([it.event, it.condition])).collect();
            let meant = sent["cancel"].as_array().into_iter().flatten().map(|it| json!([it["event"], it["if"]]));
            assert_eq!(cancels, meant.collect::<Vec<_>>(), "{slug}");
            // Every schedule has a next tick.
            let now = 1_795_735_000_000;
            let crons = function.triggers.iter().filter(|trigger| trigger.cron.is_some()).count();
            let ticks = function.series().iter().filter_map(|series| series.schedule.next_after(now)).count();
            assert_eq!(ticks, crons, "{slug}");
        }
    }
}

#[tokio::test]
async fn a_wrong_schedule_refuses_the_sync_and_names_function_field_and_cause() {
    let stage = Stage::start().await;
    let app = "system-bus-host";
    let mut document = document(app, "host");
    let (status, answer) = stage.post("/fn/register", &document.to_string()).await;
    assert_eq!(status, 200, "{answer}");
    let before = stage.functions_of(app).await;
    document["functions"][3]["triggers"] = json!([{"cron": "61 * * * *"}]);
    let slug = document["functions"][3]["id"].as_str().unwrap().to_owned();
    let (status, answer) = stage.post("/fn/register", &document.to_string()).await;
    assert_eq!(status, 400, "{answer}");
    let error = answer["error"].as_str().unwrap();
    assert!(error.contains(&slug) && error.contains("triggers[0].cron") && error.contains("61"), "{error}");
    assert_eq!(stage.functions_of(app).await, before, "what was registered stays");
}

#[test]
fn the_expressions_of_the_catalogue_have_the_values_that_are_meant() {
    let event = json!({"name": "docs/ingest.requested", "id": "e", "ts": 1, "user": {}, "data": {
        "chainId": "c1", "loopId": "l1", "contentType": "post", "contentSlug": "hello", "nasPath": "", "filePath": "/f.pdf",
        "idempotencyKey": "k", "priority": "ingest-realtime", "from": {"phone_number": "+15550100"},
        "audit": {"rawEventId": 77}, "isHuman": true, "chatId": "chat", "call_session_id": "s",
    }});
    let arriving = json!({"name": "x", "data": {"loopId": "l1", "isHuman": true, "chatId": "chat", "call_session_id": "t", "actorId": "a"}});
    let scope = Scope { event: Some(&event), async_event: Some(&arriving), now_ms: 0 };
    for (text, expected) in [
        ("event.data.chainId", json!("c1")),
        ("event.name", json!("docs/ingest.requested")),
        ("event.data.from.phone_number", json!("+15550100")),
        ("event.data.audit.rawEventId", json!(77)),
        ("\"global\"", json!("global")),
        (
            "event.data.resourceId ? event.data.resourceId : (event.data.contentType == \"post\" ? \"post:\" + event.data.contentSlug : event.data.contentType + \":\" + event.data.contentSlug)",
            json!("post:hello"),
        ),
        (
            "((event.data.nasPath ? event.data.nasPath : (event.data.filePath ? event.data.filePath : \"\")) + \"::\" + event.data.idempotencyKey)",
            json!("/f.pdf::k"),
        ),
        ("event.data.priority == 'query' ? 0 : event.data.priority == 'ingest-realtime' ? 10 : 100", json!(10)),
        ("event.data.loopId == async.data.loopId", json!(true)),
        ("event.data.isHuman == true && async.data.isHuman == true", json!(true)),
        ("event.data.call_session_id == async.data.call_session_id", json!(false)),
        ("async.data.actorId == \"a\"", json!(true)),
    ] {
        let value = Expr::compile(text, Roots::EventAndAsync).unwrap().evaluate(&scope).unwrap();
        assert_eq!(value, expected, "{text}");
    }
}

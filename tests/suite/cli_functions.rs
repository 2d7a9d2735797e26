//! Functions, runs and events from the command line: first what Redis holds, with the daemons stopped; then one story
//! with a running service and an app that speaks just enough of the protocol.
// The lint's exemption covers test functions, not their helpers.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::cli_queue_support::{Story, envelope, failure, lines, violations};
use crate::support::{Joelclaw, Ran, eventually, free_port};
use axum::extract::{Query, State};
use axum::http::{Method, StatusCode};
use axum::response::{IntoResponse as _, Response};
use serde_json::{Value, json};
use system_bus::functions::ids;
use system_bus::functions::registry::{Function, Health, Registration, Registry};
use system_bus::functions::store::{
    Advance, Advanced, Begun, Bounds, End, Guard, Limits, NewRun, Runs, Scheduled, Status, Wait, history, work_family,
    work_lane,
};
use system_bus::streams::append::{Appender, NewEvent, Settings};
use system_bus::streams::json::JsonObject;
use system_bus::streams::priority::Priority;

const SOON: Duration = Duration::from_secs(20);
const LIMITS: Limits = Limits { steps: 1_000, state_bytes: 1 << 20 };
const KEEP_MS: u64 = 3_600_000;

fn document(functions: &[Value]) -> Value {
    json!({ "appName": "shop", "url": "http://127.0.0.1:9/api/inngest", "sdk": "test:v1", "functions": functions })
}

fn function(id: &str, event: &str) -> Value {
    json!({
        "id": format!("shop-{id}"), "name": format!("The {id}"), "triggers": [{ "event": event }],
        "steps": { "step": { "id": "step", "name": "step", "runtime": {
            "type": "http", "url": format!("http://127.0.0.1:9/api/inngest?fnId=shop-{id}&stepId=step") } } },
    })
}

/// One Redis with an app's functions in it, and runs made as the engine makes them.
struct Shop {
    story: Story,
    runs: Runs,
    functions: Vec<Function>,
}

impl Shop {
    async fn open() -> Self {
        let story = Story::begin().await;
        let mut charge = function("charge", "shop/order.placed");
        charge["concurrency"] = json!([{ "limit": 2, "key": "event.data.customer" }]);
        charge["throttle"] = json!({ "limit": 10, "period": "1m" });
        let listed = [charge, function("mail", "shop/order.placed"), function("old", "shop/order.gone")];
        let mut registration = Registration::parse(&document(&listed), None).unwrap();
        registration.functions[1].warnings.push("concurrency.key: `mail` is one constant group".into());
        let functions = registration.functions.clone();
        let registry = Registry::new(story.bus.clone());
        registry.register(&registration).await.unwrap();
        let mut smaller = registration;
        smaller.functions.pop();
        smaller.app.functions.pop();
        registry.register(&smaller).await.unwrap();
        Self { runs: Runs::new(story.bus.clone()), story, functions }
    }

    async fn run(&self, args: &[&str]) -> Ran {
        self.story.joelclaw.run(args).await
    }

    /// One envelope with this exit code.
    async fn ok(&self, args: &[&str]) -> Value {
        let told = envelope(&self.run(args).await.assert_success());
        assert_eq!(told["ok"], true, "{told}");
        told
    }

    async fn refused(&self, args: &[&str], exit: i32, code: &str) -> Value {
        let told = failure(&self.run(args).await.assert_code(exit));
        assert_eq!(told["error"]["code"], code, "{told}");
        told
    }

    /// An event and the id by which it is known.
    async fn event(&self, name: &str, data: &Value) -> String {
        let appender = Appender::start(&self.story.bus, Settings::default());
        let data = JsonObject::parse(&data.to_string()).unwrap();
        let id = ids::fresh();
        let mut event = NewEvent::new(name.parse().unwrap(), "test", data);
        event.id = Some(id.clone());
        appender.append(vec![event]).await.unwrap();
        id
    }

    /// The run that a function makes of an event.
    async fn start(&self, function: usize, event: &str, data: &Value) -> String {
        let function = &self.functions[function];
        let id = ids::run_id(function.id, event, "");
        let events = json!([{ "data": data, "id": event, "name": "shop/order.placed", "ts": 1_700_000_000_000_u64, "user": {} }]);
        let run = NewRun {
            id: id.clone(),
            function: function.slug.clone(),
            function_id: function.id,
            app: function.app.clone(),
            lane: work_lane(&function.slug, function.id, Priority::P2),
            events: events.as_array().unwrap().iter().map(ToString::to_string).collect(),
            event_ids: vec![event.to_owned()],
            correlation: None,
            cause: "event",
            at: None,
            start_timeout_ms: None,
            finish_timeout_ms: None,
            cancels: Vec::new(),
            bounds: Bounds::default(),
        };
        assert_eq!(self.runs.start(&[run]).await.unwrap(), [Scheduled::New]);
        id
    }

    /// Its discovery, taken up as a drainer does it.
    async fn begin(&self, run: &str) -> Begun {
        let thread = self.runs.live(run).await.unwrap()["t:d"].clone();
        let entry = thread.rsplit('|').next().unwrap();
        self.runs.begin(run, "d", entry, 0).await.unwrap().begun().unwrap()
    }

    async fn advance(&self, run: &str, fill: impl FnOnce(&mut Advance<'_>)) {
        let begun = self.begin(run).await;
        let entry = self.runs.live(run).await.unwrap()["t:d"].rsplit('|').next().unwrap().to_owned();
        let guard = Guard::Thread { thread: "d", generation: begun.generation, entry: Some(&entry) };
        let mut advance = Advance::new(run, guard, LIMITS, KEEP_MS);
        advance.request_version(Some(2));
        fill(&mut advance);
        let advanced = self.runs.advance(advance).await.unwrap();
        assert!(matches!(advanced, Advanced::On { .. }), "{advanced:?}");
    }

    /// A run with a step that failed once, and its result.
    async fn completed(&self, event: &str, data: &Value) -> String {
        let run = self.start(0, event, data).await;
        self.advance(&run, |advance| {
            let error = json!({ "name": "Error", "message": "card reader away", "stack": "Error: card reader away\n    at pay" });
            advance.note(history::step_scheduled("s1", "take-payment", "StepPlanned", json!({})));
            advance.note(history::errored(Some(("s1", "s1")), 0, 1_000, &error));
            let done = history::step_completed("s1", "take-payment", "StepRun", 1, Some((5_000_000, 7_500_000)), false);
            advance.memo("s1", r#"{"data":{"paid":true}}"#.into(), done);
            advance.end(end(Status::Completed, r#"{"ok":1}"#, ""));
        })
        .await;
        run
    }

    async fn failed(&self, event: &str, data: &Value) -> String {
        let run = self.start(1, event, data).await;
        self.advance(&run, |advance| {
            let error =
                r#"{"name":"TypeError","message":"no address","stack":"TypeError: no address\n    at mail.ts:3"}"#;
            advance.end(end(Status::Failed, "", error));
        })
        .await;
        run
    }

    /// A run that sleeps in one step and waits for an event in another.
    async fn waiting(&self, event: &str, data: &Value) -> String {
        let run = self.start(0, event, data).await;
        let wait = Wait { condition: None, event: Value::Null, since_ms: 1, until_ms: None, sought: None };
        self.advance(&run, |advance| {
            advance.sleep(
                "nap",
                false,
                600_000,
                history::step_scheduled("nap", "cool-down", "Sleep", json!({ "ms": 600_000 })),
            );
            let note =
                history::step_scheduled("w", "approval", "WaitForEvent", json!({ "event": "shop/order.approved" }));
            advance.wait("w", false, "shop/order.approved", &wait, 3_600_000, note);
        })
        .await;
        run
    }
}

fn end<'a>(status: Status, output: &'a str, error: &'a str) -> End<'a> {
    let why = if error.is_empty() { "" } else { "invalid status code: 500" };
    End { status, output, error, why, events: Vec::new() }
}

#[tokio::test]
async fn without_functions_or_redis_each_command_says_what_to_do() {
    let story = Story::begin().await;
    let run = async |args: &[&str], exit: i32| failure(&story.joelclaw.run(args).await.assert_code(exit));
    assert_eq!(run(&["functions"], 1).await["error"]["code"], "REGISTRATION_EMPTY");
    assert_eq!(run(&["refresh"], 1).await["error"]["code"], "REGISTRATION_EMPTY");
    assert_eq!(run(&["functions", "--app", "x"], 5).await["error"]["code"], "APP_NOT_FOUND");
    assert_eq!(run(&["run", "01JZ8Q4T0V5N1XW2C3D4E5F6G7"], 5).await["error"]["code"], "RUN_NOT_FOUND");
    assert_eq!(run(&["run", "01JZ8Q4T0"], 5).await["error"]["code"], "RUN_NOT_FOUND");
    assert_eq!(run(&["run", "no run"], 2).await["error"]["code"], "USAGE_ERROR");
    assert_eq!(run(&["event", "01JZ8Q4T0V5N1XW2C3D4E5F6G7"], 5).await["error"]["code"], "EVENT_NOT_FOUND");
    assert_eq!(run(&["runs", "--function", "nothing"], 5).await["error"]["code"], "FUNCTION_NOT_FOUND");
    for args in [&["runs", "--status", "done"][..], &["runs", "--since", "soon"], &["runs", "--count", "0"], &["run"]] {
        let told = run(args, 2).await;
        assert!(["USAGE_ERROR", "INVALID_SINCE"].contains(&told["error"]["code"].as_str().unwrap()), "{told}");
    }
    for (args, code) in [
        (&["send", "a/b", "-d", "[1]"][..], "INVALID_JSON"),
        (&["send", "a/b", "-d", "{"], "INVALID_JSON"),
        (&["send", "a b"], "INVALID_EVENT_NAME"),
        (&["send", "Inngest/function.failed"], "INVALID_EVENT_NAME"),
        (&["send", "a/b", "--watch"], "USAGE_ERROR"),
    ] {
        assert_eq!(run(args, 2).await["error"]["code"], code, "{args:?}");
    }
    for args in [&["runs"][..], &["events"]] {
        let told = envelope(&story.joelclaw.run(args).await.assert_success());
        assert_eq!(told["result"]["count"], 0);
    }
    let sent = envelope(&story.joelclaw.run(&["send", "a/b", "--url", "http://x"]).await.assert_success());
    assert_eq!(sent["result"]["warnings"][0]["code"], "EVENT_UNMATCHED", "{sent}");
    assert_eq!(sent["result"]["data"], json!({ "url": "http://x" }));

    let away = Joelclaw::new("unix:///nowhere.sock");
    for args in
        [&["functions"][..], &["runs"], &["run", "01JZ8Q4T0V"], &["events"], &["event", "01JZ8Q4T0V"], &["send", "a/b"]]
    {
        let told = failure(&away.run(args).await.assert_code(3));
        assert_eq!(told["error"]["code"], "REDIS_UNREACHABLE", "{args:?}");
    }
}

#[tokio::test]
async fn functions_show_what_starts_and_limits_them_and_what_is_wrong() {
    let shop = Shop::open().await;
    let event = shop.event("shop/order.placed", &json!({})).await;
    let ran = shop.completed(&event, &json!({})).await;
    let told = shop.ok(&["functions"]).await;
    let result = &told["result"];
    assert_eq!((&result["count"], &result["archived"]), (&json!(2), &json!(["shop-old"])));
    let charge = &result["functions"][0];
    assert_eq!(
        (&charge["slug"], &charge["app"], &charge["paused"]),
        (&json!("shop-charge"), &json!("shop"), &Value::Null)
    );
    assert_eq!(charge["triggers"], json!([{ "type": "event", "value": "shop/order.placed" }]));
    assert_eq!(charge["flowControl"]["throttle"]["limit"], 10);
    assert_eq!((&charge["lastRun"]["id"], &charge["lastRun"]["status"]), (&json!(ran), &json!("COMPLETED")));
    assert_eq!(charge["warnings"], json!([]));
    assert_eq!(result["functions"][1]["warnings"][0]["code"], "FUNCTION_WARNING");
    assert_eq!(result["warnings"][0]["code"], "TRIGGER_ARCHIVED", "{result}");
    assert!(result["warnings"][0]["message"].as_str().unwrap().starts_with("shop/order.gone starts nothing"));
    let sends =
        told["next_actions"].as_array().unwrap().iter().filter(|next| next["command"] == "joelclaw send <event>");
    assert_eq!(sends.count(), 1, "an event is suggested once");

    let family = work_family(&shop.functions[0].slug, shop.functions[0].id);
    shop.story.pause(family.as_str(), Duration::from_secs(60)).await;
    shop.story.pause("shop/order.placed", Duration::from_secs(60)).await;
    let health = Health {
        asked_ms: 1,
        seen_ms: Some(1),
        agrees: false,
        problem: Some("it can't be reached".into()),
        failures: 3,
    };
    Registry::new(shop.story.bus.clone()).set_health("shop", &health).await.unwrap();
    let bad = envelope(&shop.run(&["functions", "--unhealthy"]).await.assert_code(1));
    let charge = &bad["result"]["functions"][0];
    assert_eq!(bad["ok"], false);
    assert_eq!((&charge["warnings"][0]["code"], &charge["paused"]["reason"]), (&json!("APP_SILENT"), &json!("try")));
    assert_eq!(charge["pausedEvents"], json!(["shop/order.placed"]));
    assert_eq!(bad["result"]["apps"][0]["failures"], 3);

    let text = shop.story.joelclaw.run(&["functions", "--ndjson"]).await.assert_success().stdout;
    assert_eq!(text.lines().count(), 2);
}

#[tokio::test]
async fn runs_are_listed_by_status_function_and_time() {
    let shop = Shop::open().await;
    let data = json!({ "n": 1 });
    let (one, two) = (shop.event("shop/order.placed", &data).await, shop.event("shop/order.placed", &data).await);
    let done = shop.completed(&one, &data).await;
    let failed = shop.failed(&one, &data).await;
    let waiting = shop.waiting(&two, &data).await;
    let queued = shop.start(1, &two, &data).await;

    let all = shop.ok(&["runs"]).await;
    let ids: Vec<&str> =
        all["result"]["runs"].as_array().unwrap().iter().map(|run| run["id"].as_str().unwrap()).collect();
    assert_eq!(ids.len(), 4);
    assert_eq!(all["next_actions"][0]["params"]["run-id"]["value"], json!(failed), "what failed comes first");
    let of = async |args: &[&str]| -> Vec<String> {
        let told = shop.ok(&[&["runs"], args].concat()).await;
        let runs = told["result"]["runs"].as_array().unwrap().clone();
        runs.iter().map(|run| run["id"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(of(&["--status", "completed"]).await, [done.as_str()]);
    assert_eq!(of(&["--status", "Waiting"]).await, [waiting.as_str()]);
    assert_eq!(of(&["--status", "QUEUED,failed"]).await, [queued.as_str(), failed.as_str()]);
    for name in ["shop-mail", "mail", "The mail", &shop.functions[1].id.to_string()] {
        assert_eq!(of(&["--function", name]).await, [queued.as_str(), failed.as_str()], "{name}");
    }
    assert_eq!(of(&["--function", "mail", "--status", "failed"]).await, [failed.as_str()]);
    assert_eq!(of(&["-n", "1"]).await.len(), 1);
    assert_eq!(of(&["--since", "2100-01-01"]).await.len(), 0);

    let done_row = all["result"]["runs"].as_array().unwrap().iter().find(|run| run["id"] == json!(done)).unwrap();
    assert_eq!((&done_row["function"], &done_row["functionName"]), (&json!("shop-charge"), &json!("The charge")));
    assert_eq!(
        (&done_row["status"], &done_row["attempts"], &done_row["waiting"]),
        (&json!("COMPLETED"), &json!(2), &json!(false))
    );
    assert!(done_row["durationMs"].is_u64() && done_row["endedAt"].is_string(), "{done_row}");

    let compact = shop.ok(&["runs", "--compact", "--status", "failed"]).await;
    let row = &compact["result"]["runs"][0];
    assert_eq!((&row["runIdShort"], &row["status"]), (&json!(failed[..12]), &json!("FAILED")));
    assert_eq!(row["started"].as_str().unwrap().len(), 5);
}

#[tokio::test]
async fn a_run_tells_its_steps_its_errors_and_what_it_waits_for() {
    let shop = Shop::open().await;
    let data = json!({ "n": 9_007_199_254_740_993_u64, "text": "x".repeat(9_000) });
    let event = shop.event("shop/order.placed", &data).await;
    let done = shop.completed(&event, &data).await;
    let told = shop.ok(&["run", &done]).await;
    let result = &told["result"];
    assert_eq!((&result["run"]["status"], &result["run"]["output"]), (&json!("COMPLETED"), &json!({ "ok": 1 })));
    assert_eq!(
        (&result["trigger"]["eventName"], &result["trigger"]["IDs"]),
        (&json!("shop/order.placed"), &json!([event]))
    );
    let shown = &result["trigger"]["events"][0]["data"];
    assert_eq!(shown["n"], 9_007_199_254_740_993_u64);
    assert!(shown["text"].as_str().unwrap().ends_with("... (9000 chars)"));
    let step = &result["steps"][0];
    assert_eq!(
        (&step["name"], &step["op"], &step["status"]),
        (&json!("take-payment"), &json!("StepRun"), &json!("COMPLETED"))
    );
    assert_eq!(
        (&step["attempts"], &step["durationMs"], &step["output"]),
        (&json!(2), &json!(7.5), &json!({ "paid": true }))
    );
    assert_eq!(result["errorList"][0]["error"]["stack"], "Error: card reader away\n    at pay");
    assert_eq!(
        (&result["errorList"][0]["step"], &result["errorList"][0]["final"]),
        (&json!("take-payment"), &json!(false))
    );
    assert_eq!(result["errors"], json!({}));
    assert_eq!(result["trace"]["childrenSpans"][0]["stepID"], "s1");
    let full = shop.ok(&["run", &done, "--full"]).await;
    assert_eq!(full["result"]["trigger"]["events"][0]["data"]["text"].as_str().unwrap().len(), 9_000);

    let failed = shop.failed(&event, &data).await;
    let bad = envelope(&shop.run(&["run", &failed]).await.assert_code(1));
    assert_eq!((&bad["ok"], &bad["result"]["run"]["status"]), (&json!(false), &json!("FAILED")));
    assert_eq!(bad["result"]["errors"]["(function)"]["error"]["message"], "no address");

    // Ids that share their time differ from the eleventh character on.
    assert_ne!(done, failed);
    assert_eq!(shop.ok(&["run", &done[..22]]).await["result"]["run"]["id"], json!(done));
    assert_eq!(shop.ok(&["run", &done[..22].to_ascii_lowercase()]).await["result"]["run"]["id"], json!(done));
    let both = shop.refused(&["run", &done[..8]], 2, "AMBIGUOUS_ID").await;
    assert!(both["error"]["message"].as_str().unwrap().contains("shop-mail"), "{both}");

    let other = shop.event("shop/order.placed", &data).await;
    let waiting = shop.waiting(&other, &data).await;
    let told = shop.ok(&["run", &waiting, "--wait-ms", "50"]).await;
    let waits = &told["result"]["waitsFor"];
    assert_eq!((&waits[0]["kind"], &waits[0]["step"]), (&json!("sleep"), &json!("cool-down")));
    assert_eq!((&waits[1]["kind"], &waits[1]["event"]), (&json!("event"), &json!("shop/order.approved")));
    assert_eq!(told["result"]["nextAt"], waits[0]["until"]);
    let statuses: Vec<&Value> =
        told["result"]["steps"].as_array().unwrap().iter().map(|step| &step["status"]).collect();
    assert_eq!(statuses, ["SLEEPING", "WAITING"]);

    let queued = shop.start(1, &other, &data).await;
    let waits = shop.ok(&["run", &queued]).await["result"]["waitsFor"].take();
    assert_eq!((&waits[0]["kind"], &waits[0]["command"]), (&json!("queued"), &json!("joelclaw drainer")), "{waits}");
    shop.advance(&queued, |advance| {
        advance
            .retry(30_000, history::errored(None, 0, 30_000, &json!({ "name": "E", "message": "mail server away" })));
    })
    .await;
    let told = shop.ok(&["run", &queued]).await;
    let wait = &told["result"]["waitsFor"][0];
    assert_eq!((&wait["kind"], &wait["lastError"]), (&json!("retry"), &json!("mail server away")));
    assert_eq!(told["result"]["nextAttemptAt"], wait["at"]);
    assert_eq!(told["result"]["lastError"]["error"]["message"], "mail server away");
}

#[tokio::test]
async fn a_run_is_cancelled_once_and_repeated_at_will() {
    let shop = Shop::open().await;
    let event = shop.event("shop/order.placed", &json!({})).await;
    let waiting = shop.waiting(&event, &json!({})).await;
    let told = shop.ok(&["run", &waiting, "--cancel", "--reason", "wrong customer"]).await;
    let cancellation = &told["result"]["cancellation"];
    assert_eq!((&cancellation["cancelled"], &cancellation["observedStatus"]), (&json!(true), &json!("CANCELLED")));
    let reason = told["result"]["run"]["reason"].as_str().unwrap();
    assert!(reason.starts_with("wrong customer (cancelled by joelclaw run ("), "{reason}");
    let again = shop.refused(&["run", &waiting, "--cancel"], 4, "RUN_ALREADY_ENDED").await;
    assert!(again["error"]["message"].as_str().unwrap().contains("CANCELLED"), "{again}");
    shop.refused(&["run", &waiting, "--cancel", "--rerun"], 2, "USAGE_ERROR").await;
    let shown = shop.ok(&["run", &waiting]).await;
    assert_eq!(shown["result"]["steps"][0]["status"], "CANCELLED");

    let told = shop.ok(&["run", &waiting, "--rerun"]).await;
    let new = told["result"]["rerun"]["runId"].as_str().unwrap().to_owned();
    assert_eq!(told["result"]["rerun"]["of"], json!(waiting));
    let shown = shop.ok(&["run", &new]).await;
    assert_eq!(
        (&shown["result"]["run"]["cause"], &shown["result"]["run"]["status"]),
        (&json!("rerun"), &json!("QUEUED"))
    );

    let of_event = shop.ok(&["event", &event]).await;
    let ids: Vec<&Value> = of_event["result"]["runs"].as_array().unwrap().iter().map(|run| &run["id"]).collect();
    assert_eq!(ids, [&json!(waiting), &json!(new)]);
    assert_eq!(
        (&of_event["result"]["event"]["totalRuns"], &of_event["result"]["event"]["pendingRuns"]),
        (&json!(2), &json!(1))
    );
}

#[tokio::test]
async fn events_show_what_each_started() {
    let shop = Shop::open().await;
    let data = json!({ "text": "y".repeat(150) });
    let event = shop.event("shop/order.placed", &data).await;
    let run = shop.completed(&event, &data).await;
    for _ in 0..3 {
        shop.event("other/thing.happened", &json!({})).await;
    }
    let all = shop.ok(&["events"]).await;
    assert_eq!((&all["result"]["count"], &all["result"]["prefix"]), (&json!(4), &json!("(all)")), "no work items");
    assert_eq!(all["result"]["summary"], json!({ "other": 3, "shop": 1 }));
    // The prefix is applied before the limit.
    let ours = shop.ok(&["events", "--prefix", "shop/", "--count", "1"]).await;
    let shown = &ours["result"]["events"][0];
    assert_eq!(
        (&shown["id"], &shown["runs"][0]["id"], &shown["runs"][0]["status"]),
        (&json!(event), &json!(run), &json!("COMPLETED"))
    );
    assert!(shown["data"]["text"].as_str().unwrap().ends_with("... (150 chars)"));

    let stream_id = shown["streamId"].as_str().unwrap();
    for id in [&event, stream_id, &event[..16], &event.to_ascii_lowercase()] {
        let told = shop.ok(&["event", id]).await;
        assert_eq!(told["result"]["event"]["id"], json!(event), "{id}");
        assert_eq!(told["result"]["event"]["data"], data);
        let run_shown = &told["result"]["runs"][0];
        assert_eq!((&run_shown["id"], &run_shown["output"]), (&json!(run), &json!({ "ok": 1 })));
        assert!(run_shown["finishedAt"].is_string());
    }
    let others = shop.refused(&["event", &event[..8]], 2, "AMBIGUOUS_ID").await;
    assert!(others["next_actions"].as_array().unwrap().len() > 1);

    // Its lane was trimmed; the run remembers it.
    let lane = shop
        .story
        .bus
        .lanes()
        .await
        .unwrap()
        .into_iter()
        .find(|lane| lane.family.as_str() == "shop/order.placed")
        .unwrap();
    shop.story.redis.cli(&["XDEL", &shop.story.bus.keys.lane(&lane), stream_id]).await;
    let told = shop.ok(&["event", &event]).await;
    assert_eq!(
        (&told["result"]["event"]["name"], &told["result"]["event"]["streamId"]),
        (&json!("shop/order.placed"), &Value::Null)
    );
}

#[tokio::test]
async fn the_queue_knows_that_functions_want_an_event() {
    let shop = Shop::open().await;
    let event = shop.event("shop/order.placed", &json!({})).await;
    shop.start(0, &event, &json!({})).await;
    let depth = shop.ok(&["queue", "depth"]).await;
    assert_eq!(
        (&depth["result"]["total"], &depth["result"]["unrouted"]),
        (&json!(2), &json!(0)),
        "an event, a work item"
    );
    assert_eq!(shop.ok(&["queue", "why", &event]).await["result"]["hold"]["kind"], "no_drainer");
    let explained = shop.ok(&["queue", "registry", "explain", "shop/order.placed"]).await;
    assert_eq!(
        (&explained["result"]["routed"], &explained["result"]["functions"]),
        (&json!(true), &json!(["shop-charge", "shop-mail"]))
    );
    let old = ["queue", "ack", "--older-than", "1s"];
    eventually(SOON, async || {
        let matched = shop.ok(&old).await["result"]["matched"].take();
        if matched == 2 { Ok(()) } else { Err(matched) }
    })
    .await;
    let swept = shop.ok(&[&old[..], &["--unrouted"]].concat()).await;
    assert_eq!(swept["result"]["matched"], 0, "{swept}");
}

/// An app: what it serves can be changed, and what it answers depends on the function.
#[derive(Clone)]
struct App {
    url: String,
    functions: Arc<Mutex<Vec<Value>>>,
    is_away: Arc<Mutex<bool>>,
}

impl App {
    async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let url = format!("http://{}/api/inngest", listener.local_addr().unwrap());
        let app = Self { url, functions: Arc::default(), is_away: Arc::default() };
        let router = axum::Router::new().fallback(answer).with_state(app.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        app
    }

    fn serve(&self, ids: &[&str]) {
        let of = |id: &&str| {
            let runtime = json!({ "type": "http", "url": format!("{}?fnId=app-{id}&stepId=step", self.url) });
            json!({ "id": format!("app-{id}"), "name": id, "triggers": [{ "event": format!("app/{id}") }],
                "steps": { "step": { "id": "step", "name": "step", "runtime": runtime, "retries": { "attempts": 0 } } } })
        };
        *self.functions.lock().unwrap() = ids.iter().map(of).collect();
    }
}

async fn answer(
    State(app): State<App>,
    method: Method,
    Query(query): Query<std::collections::HashMap<String, String>>,
    body: String,
) -> Response {
    let sdk = ("x-inngest-sdk", "test:v1");
    if *app.is_away.lock().unwrap() {
        return StatusCode::BAD_GATEWAY.into_response();
    }
    if method == Method::PUT {
        let functions = app.functions.lock().unwrap().clone();
        let document = json!({ "app_id": "app", "url": app.url, "functions": functions, "sdk": "test:v1" });
        return ([sdk, ("x-inngest-sync-kind", "in_band")], document.to_string()).into_response();
    }
    let call: Value = serde_json::from_str(&body).unwrap_or_default();
    match query.get("fnId").map(String::as_str) {
        Some("app-steps") if call["steps"].as_object().is_none_or(serde_json::Map::is_empty) => {
            let op = json!([{ "id": "3c01bdbb26f358bab27f267924aa2c9a03fcfdb8", "op": "StepRun", "name": "fetch",
                "displayName": "fetch", "data": { "n": 1 } }]);
            (StatusCode::PARTIAL_CONTENT, [sdk, ("x-inngest-req-version", "2")], op.to_string()).into_response()
        }
        Some("app-bad") => {
            let error =
                json!({ "name": "Error", "message": "out of cheese", "stack": "Error: out of cheese\n  at app" });
            (StatusCode::BAD_REQUEST, [sdk, ("x-inngest-no-retry", "true")], error.to_string()).into_response()
        }
        Some("app-slow") => std::future::pending().await,
        _ => ([sdk], json!({ "done": true }).to_string()).into_response(),
    }
}

/// Type and name of every line.
fn names(told: &[Value]) -> Vec<(String, String, String)> {
    let text = |line: &Value, key: &str| line[key].as_str().unwrap_or_default().to_owned();
    told.iter()
        .filter(|line| line["type"] == "step")
        .map(|line| (text(line, "function"), text(line, "name"), text(line, "status")))
        .collect()
}

#[tokio::test]
async fn a_service_an_app_and_the_commands_that_call_it() {
    let story = Story::begin().await;
    let bus = story.joelclaw;
    for (key, value) in
        [("INNGEST_PORT", "0"), ("INNGEST_POLL_INTERVAL", "3600"), ("WORKER_PORT", &free_port().to_string())]
    {
        bus.env_file_line(key, value);
    }
    let app = App::start().await;
    app.serve(&["steps", "bad", "slow"]);
    let down = envelope(&bus.run(&["inngest", "status"]).await.assert_code(1));
    assert_eq!(
        (&down["result"]["summary"]["server"], &down["result"]["summary"]["route"]),
        (&json!(false), &json!("down"))
    );
    let mut up = bus.spawn(&["up"]);
    up.wait_for_line("ready", SOON).await;

    let first = envelope(&bus.run(&["refresh", &app.url]).await.assert_success());
    let result = &first["result"];
    assert_eq!((&result["action"], &result["functionCount"]), (&json!("refreshed"), &json!(3)));
    assert_eq!(result["added"], json!(["app-bad", "app-slow", "app-steps"]));
    assert_eq!(
        (&result["apps"][0]["before"], &result["apps"][0]["after"], &result["apps"][0]["ok"]),
        (&json!(0), &json!(3), &json!(true))
    );
    let again = envelope(&bus.run(&["refresh"]).await.assert_success());
    assert_eq!((&again["result"]["action"], &again["result"]["apps"][0]["id"]), (&json!("clean"), &json!("app")));
    let status = eventually(SOON, async || {
        let ran = bus.run(&["inngest", "status"]).await;
        if ran.code() == Some(0) { Ok(envelope(&ran)) } else { Err(ran) }
    })
    .await;
    assert_eq!(
        (&status["result"]["summary"]["ok"], &status["result"]["registeredFunctionCount"]),
        (&json!(true), &json!(3))
    );
    assert!(status["result"]["checks_raw"]["app app"]["detail"].as_str().unwrap().starts_with("serves 3"), "{status}");

    let followed = lines(&bus.run(&["send", "app/steps", "--follow", "--timeout", "30"]).await.assert_success());
    let last = followed.last().unwrap();
    let run = last["result"]["runs"][0]["id"].as_str().unwrap();
    assert_eq!(
        (&last["result"]["runs"][0]["status"], &last["result"]["runs"][0]["output"]),
        (&json!("COMPLETED"), &json!({ "done": true }))
    );
    assert_eq!(last["result"]["response"]["ids"], followed[0]["ids"]);
    let steps = names(&followed);
    let expected = [
        ("app-steps", "app-steps", "started"),
        ("app-steps", "fetch", "completed"),
        ("app-steps", "app-steps", "completed"),
    ];
    assert_eq!(steps, expected.map(|(a, b, c)| (a.to_owned(), b.to_owned(), c.to_owned())));
    let shown = envelope(&bus.run(&["run", run]).await.assert_success());
    assert_eq!(
        (&shown["result"]["steps"][0]["name"], &shown["result"]["steps"][0]["output"]),
        (&json!("fetch"), &json!({ "n": 1 }))
    );
    let once = envelope(&bus.run(&["run", run, "--rerun", "--wait-ms", "20000"]).await.assert_success());
    assert_eq!(
        (&once["result"]["run"]["status"], &once["result"]["run"]["cause"]),
        (&json!("COMPLETED"), &json!("rerun"))
    );

    let bad = bus.run(&["send", "app/bad", "--follow"]).await.assert_code(1);
    let last: Value = serde_json::from_str(bad.stdout.lines().last().unwrap()).unwrap();
    assert_eq!(
        (violations(&last), &last["type"], &last["error"]["code"]),
        (Vec::new(), &json!("error"), &json!("RUN_FAILED"))
    );
    assert!(last["error"]["message"].as_str().unwrap().ends_with("out of cheese"), "{last}");
    let run = last["next_actions"][0]["params"]["run-id"]["value"].as_str().unwrap();
    let shown = envelope(&bus.run(&["run", run]).await.assert_code(1));
    assert_eq!(shown["result"]["errors"]["(function)"]["error"]["stack"], "Error: out of cheese\n  at app");

    let slow = lines(&bus.run(&["send", "app/slow", "--follow", "--timeout", "3"]).await.assert_code(1));
    let last = slow.last().unwrap();
    assert_eq!(
        (&last["ok"], &last["result"]["reason"], &last["result"]["timeout_ms"]),
        (&json!(false), &json!("timeout"), &json!(3000))
    );
    let run = last["result"]["runs"][0]["id"].as_str().unwrap();
    let shown = envelope(&bus.run(&["run", run]).await.assert_success());
    assert_eq!(shown["result"]["waitsFor"][0]["kind"], "running", "{shown}");
    envelope(&bus.run(&["run", run, "--cancel"]).await.assert_success());
    let nothing = lines(&bus.run(&["send", "nobody/cares", "--follow"]).await.assert_success());
    assert_eq!(nothing.last().unwrap()["result"]["warnings"][0]["code"], "EVENT_UNMATCHED");

    // The app was changed and nobody asked it since.
    app.serve(&["steps", "new"]);
    let differs = envelope(&bus.run(&["inngest", "status"]).await.assert_code(1));
    let registry = &differs["result"]["registry"];
    assert_eq!((&registry["missing"], &registry["extra"]), (&json!(["app-new"]), &json!(["app-bad", "app-slow"])));
    assert_eq!(differs["result"]["checks"]["registry"]["ok"], false);
    let healed = envelope(&bus.run(&["inngest", "status", "--heal", "--wait-ms", "200"]).await.assert_success());
    assert_eq!(
        (&healed["result"]["healing"]["attempted"], &healed["result"]["summary"]["ok"]),
        (&json!(true), &json!(true))
    );
    assert_eq!(healed["result"]["before"]["registry"]["missing"], json!(["app-new"]));

    *app.is_away.lock().unwrap() = true;
    let away = envelope(&bus.run(&["refresh"]).await.assert_code(1));
    assert_eq!((&away["result"]["apps"][0]["ok"], &away["result"]["functionCount"]), (&json!(false), &json!(2)));
    let functions = envelope(&bus.run(&["functions", "--unhealthy"]).await.assert_code(1));
    assert_eq!(functions["result"]["functions"][0]["warnings"][0]["code"], "APP_SILENT");
    let status = envelope(&bus.run(&["inngest", "status"]).await.assert_code(1));
    assert_eq!(
        (&status["result"]["checks"]["server"]["ok"], &status["result"]["checks"]["worker"]["ok"]),
        (&json!(true), &json!(false))
    );
}

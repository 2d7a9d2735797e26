//! The log of deliveries, and the commands over it, against a running server.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{Joelclaw, Running, TestRedis, eventually, free_port};

const LONG: Duration = Duration::from_secs(60);
const SECRET: &str = "gh-test-secret-0001";

struct Served {
    redis: TestRedis,
    joelclaw: Joelclaw,
    base: String,
    _server: Running,
}

impl Served {
    async fn start(more: &[(&str, &str)]) -> Self {
        let redis = TestRedis::start().await;
        let port = free_port();
        let joelclaw = Joelclaw::new(&redis.url());
        joelclaw.env_file_line("WORKER_PORT", &port.to_string());
        joelclaw.env_file_line("GITHUB_WEBHOOK_SECRET", SECRET);
        joelclaw.env_file_line("WEBHOOK_SECRETS_COMMAND", "");
        for (key, value) in more {
            joelclaw.env_file_line(key, value);
        }
        let server = joelclaw.spawn(&["serve"]);
        let base = format!("http://127.0.0.1:{port}");
        let client = client();
        eventually(LONG, || async {
            let answer = client.get(format!("{base}/webhooks")).send().await.map_err(|error| error.to_string())?;
            if answer.status().is_success() { Ok(()) } else { Err(answer.status().to_string()) }
        })
        .await;
        Self { redis, joelclaw, base, _server: server }
    }

    async fn webhooks(&self, args: &[&str]) -> Value {
        let all = [&["webhooks"], args, &["--json"]].concat();
        self.joelclaw.run(&all).await.assert_success().json()["result"].clone()
    }

    /// Waits until the log has so many deliveries; newest first.
    async fn logged(&self, count: usize) -> Vec<Value> {
        eventually(LONG, || async {
            let listed = self.webhooks(&["list"]).await;
            let deliveries = listed["deliveries"].as_array().unwrap().clone();
            if deliveries.len() == count { Ok(deliveries) } else { Err(listed) }
        })
        .await
    }
}

fn client() -> reqwest::Client {
    reqwest::Client::builder().no_proxy().build().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signed_sample_is_accepted_logged_inspected_and_replayed() {
    let served = Served::start(&[]).await;
    let tested = served.webhooks(&["test", "github"]).await;
    assert_eq!((&tested["accepted"], &tested["status"]), (&json!(true), &json!(200)), "{tested}");
    assert!(tested["events"].as_u64().unwrap() >= 1, "{tested}");
    // What nobody signed is answered 401 and not kept.
    let forged = client().post(format!("{}/webhooks/github", served.base)).body("{}").send().await.unwrap();
    assert_eq!(forged.status(), 401);
    let delivery = served.logged(1).await.remove(0);
    assert_eq!((&delivery["outcome"], &delivery["secretSlot"]), (&json!("accepted"), &json!("current")));
    let reference = delivery["deliveryRef"].as_str().unwrap();

    let ran = served.joelclaw.run(&["webhooks", "inspect", reference, "--json"]).await.assert_success();
    let inspected = ran.json()["result"].clone();
    let header = |name: &str| {
        let headers = inspected["headers"].as_array().unwrap();
        headers.iter().find(|header| header["name"] == name).map(|header| header["value"].clone()).unwrap()
    };
    assert_eq!(header("x-hub-signature-256"), "[redacted]");
    assert!(header("x-github-event").is_string() && !ran.stdout.contains("sha256="), "{}", ran.stdout);
    assert!(serde_json::from_str::<Value>(inspected["body"].as_str().unwrap()).unwrap().is_object());

    let first = delivery["events"][0]["id"].as_str().unwrap().to_owned();
    for number in 1..=2 {
        let replayed = served.webhooks(&["replay", reference]).await;
        let id = replayed["deliveries"][0]["events"][0]["id"].as_str().unwrap();
        assert_eq!(id, format!("{first}~r{number}"));
        let found = served.joelclaw.run(&["queue", "inspect", id, "--json"]).await.assert_success().json();
        assert_eq!(found["result"]["event"]["name"], delivery["events"][0]["name"], "{found}");
    }
    let dry = served.webhooks(&["replay", "--provider", "github"]).await;
    assert_eq!((&dry["dryRun"], &dry["matched"]), (&json!(true), &json!(1)));
    let applied = served.webhooks(&["replay", "--provider", "github", "--apply"]).await;
    assert_eq!((&applied["dryRun"], &applied["replayed"]), (&json!(false), &json!(1)));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_is_bounded_and_keeps_no_bodies_where_none_are_wanted() {
    let served = Served::start(&[("WEBHOOK_LOG_MAX_ENTRIES", "3"), ("WEBHOOK_LOG_BODIES", "off")]).await;
    for _ in 0..5 {
        served.webhooks(&["test", "github"]).await;
    }
    // The newest are left; each write forgets what is too many.
    eventually(LONG, || async {
        let added = served.redis.cli(&["XINFO", "STREAM", "{joelclaw:bus:0}:deliveries"]).await;
        if format!("{added:?}").contains("entries-added") { Ok(()) } else { Err(format!("{added:?}")) }
    })
    .await;
    let deliveries = served.logged(3).await;
    assert!(deliveries.iter().all(|delivery| delivery["hasBody"] == false));
    let reference = deliveries[0]["deliveryRef"].as_str().unwrap();
    let ran = served.joelclaw.run(&["webhooks", "replay", reference, "--json"]).await.assert_code(5);
    assert_eq!(ran.json()["error"]["code"], "WEBHOOK_BODY_NOT_KEPT");
}

#[tokio::test(flavor = "multi_thread")]
async fn sources_say_who_may_send_and_failures_have_their_codes() {
    let served = Served::start(&[]).await;
    let listed = served.webhooks(&["sources"]).await;
    let source = |id: &str| {
        let sources = listed["sources"].as_array().unwrap();
        sources.iter().find(|source| source["id"] == id).unwrap().clone()
    };
    assert_eq!((&source("github")["configured"], &source("mux")["configured"]), (&json!(true), &json!(false)));
    for (args, code, exit) in [
        (vec!["test", "mux"], "WEBHOOK_SECRET_MISSING", 2),
        (vec!["test", "githab"], "WEBHOOK_UNKNOWN_PROVIDER", 5),
        (vec!["test", "github", "--url", "http://127.0.0.1:1"], "SERVER_UNREACHABLE", 3),
        (vec!["inspect", "01ARZ3NDEKTSV4RRFFQ69G5FAV"], "WEBHOOK_DELIVERY_NOT_FOUND", 5),
        (vec!["replay"], "USAGE_ERROR", 2),
    ] {
        let all = [&["webhooks"], args.as_slice(), &["--json"]].concat();
        let ran = served.joelclaw.run(&all).await.assert_code(exit);
        assert_eq!(ran.json()["error"]["code"], code, "{args:?}");
        served.joelclaw.run(&["explain", code]).await.assert_success();
    }
    served.joelclaw.env_file_line("GITHUB_WEBHOOK_SECRET", "another");
    // Signed with what the server does not know (it may have read the file by then).
    let ran = served.joelclaw.run(&["webhooks", "test", "github", "--json"]).await;
    assert!(matches!(ran.code(), Some(0 | 1)), "{ran:?}");
    if ran.code() == Some(1) {
        assert_eq!((&ran.json()["ok"], &ran.json()["result"]["status"]), (&json!(false), &json!(401)));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn deliveries_are_replayed_over_http_one_at_once_and_many_only_when_told_so() {
    let served = Served::start(&[]).await;
    for _ in 0..3 {
        served.webhooks(&["test", "github"]).await;
    }
    let deliveries = served.logged(3).await;
    let post = |path: String, body: Value| {
        let request = client().post(format!("{}/internal/webhooks/{path}", served.base));
        async move {
            let response = request.body(body.to_string()).send().await.unwrap();
            (response.status().as_u16(), serde_json::from_str::<Value>(&response.text().await.unwrap()).unwrap())
        }
    };
    let reference = deliveries[0]["deliveryRef"].as_str().unwrap();
    let (status, one) = post(format!("deliveries/{reference}/replay"), json!({})).await;
    let id = format!("{}~r1", deliveries[0]["events"][0]["id"].as_str().unwrap());
    assert_eq!((status, &one["result"]["events"][0]["id"]), (200, &json!(id)), "{one}");
    let (_, dry) = post("replay".into(), json!({ "provider": "github" })).await;
    assert_eq!((&dry["result"]["dryRun"], &dry["result"]["matched"]), (&json!(true), &json!(3)), "{dry}");
    let began = std::time::Instant::now();
    let (_, done) = post("replay".into(), json!({ "provider": "github", "apply": true })).await;
    assert_eq!((&done["result"]["replayed"], &done["result"]["failed"]), (&json!(3), &json!(0)), "{done}");
    // Ten a second: the third not before a fifth of one. More is never wrong.
    assert!(began.elapsed() >= Duration::from_millis(190));
    // As they came: the newest, replayed before, is the last.
    assert_eq!(done["result"]["deliveries"][2]["replay"], 2, "{done}");
    for (path, body, status) in [
        ("replay", json!({}), 400),
        ("replay", json!({ "since": "soon" }), 400),
        ("replay", json!({ "provder": "github" }), 400),
        ("deliveries/01ARZ3NDEKTSV4RRFFQ69G5FAV/replay", json!({}), 404),
    ] {
        assert_eq!(post(path.into(), body).await.0, status, "{path}");
    }
}

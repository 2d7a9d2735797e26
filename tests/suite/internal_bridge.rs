//! The internal endpoints: who is admitted, what is answered, and what is left on disk.

use std::time::Duration;

use reqwest::{Method, RequestBuilder};
use serde_json::{Value, json};

use crate::support::{Joelclaw, Running, TestRedis, eventually, free_port};

const LONG: Duration = Duration::from_secs(60);

pub struct Served {
    pub joelclaw: Joelclaw,
    pub base: String,
    client: reqwest::Client,
    pub server: Running,
    pub redis: TestRedis,
}

impl Served {
    pub async fn start(settings: &[(&str, &str)]) -> Self {
        let redis = TestRedis::start().await;
        let port = free_port();
        let joelclaw = Joelclaw::new(&redis.url());
        joelclaw.env_file_line("WORKER_PORT", &port.to_string());
        joelclaw.env_file_line("WEBHOOK_SECRETS_COMMAND", "");
        joelclaw.env_file_line("JOELCLAW_DATA_DIR", &joelclaw.home().join("claw").display().to_string());
        for (key, value) in settings {
            joelclaw.env_file_line(key, value);
        }
        let server = joelclaw.spawn(&["serve"]);
        let (base, client) =
            (format!("http://127.0.0.1:{port}"), reqwest::Client::builder().no_proxy().build().unwrap());
        eventually(LONG, || async { client.get(format!("{base}/health/live")).send().await.map(drop) }).await;
        Self { joelclaw, base, client, server, redis }
    }

    pub fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.client.request(method, format!("{}{path}", self.base))
    }

    pub async fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        answer(self.request(Method::POST, path).body(body.to_string())).await
    }

    pub async fn get(&self, path: &str) -> (u16, Value) {
        answer(self.request(Method::GET, path)).await
    }
}

pub async fn answer(request: RequestBuilder) -> (u16, Value) {
    let response = request.send().await.unwrap();
    let status = response.status().as_u16();
    (status, serde_json::from_str(&response.text().await.unwrap()).unwrap_or(Value::Null))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_asked_for_where_one_is_set_and_machines_of_others_never_pass_without() {
    let unauthorized = (401, json!({ "error": "Unauthorized" }));
    let with_token = Served::start(&[("OTEL_EMIT_TOKEN", "right-token")]).await;
    let path = "/internal/agent-result/some-id";
    assert_eq!(with_token.get(path).await, unauthorized);
    for (name, value, passes) in [
        ("x-otel-emit-token", "right-token", true),
        ("x-internal-token", "right-token", true),
        ("authorization", "Bearer right-token", true),
        ("x-internal-token", "wrong-token", false),
        ("x-internal-token", "", false),
        ("authorization", "right-token", false),
    ] {
        let (status, body) = answer(with_token.request(Method::GET, path).header(name, value)).await;
        assert_eq!(status == 200, passes, "{name}: {value}: {body}");
    }
    let open = Served::start(&[]).await;
    assert_eq!(open.get(path).await.0, 200, "this machine, bound to loopback");
    let forwarded = open.request(Method::GET, path).header("x-forwarded-for", "203.0.113.9");
    assert_eq!(answer(forwarded).await, unauthorized);
    let bound_to_all = Served::start(&[("WORKER_BIND", "0.0.0.0")]).await;
    for path in [path, "/internal/webhooks/deliveries"] {
        assert_eq!(bound_to_all.get(path).await, unauthorized);
    }
    assert_eq!(bound_to_all.post("/observability/emit", &json!({})).await, unauthorized);
}

#[tokio::test(flavor = "multi_thread")]
async fn events_are_enqueued_as_the_contract_says() {
    let served = Served::start(&[("GITHUB_WEBHOOK_SECRET", "planted-secret-0001")]).await;
    let path = "/internal/queue/enqueue";
    for (body, error) in [
        (json!([]), "Invalid payload"),
        (json!({ "name": " ", "source": "x", "data": {} }), "Missing required fields: name, source"),
        (json!({ "name": "content/updated", "source": "x", "data": [] }), "data must be a JSON object"),
        (
            json!({ "name": "content/updated", "source": "x", "data": {}, "metadata": 1 }),
            "metadata must be a JSON object when provided",
        ),
        (json!({ "name": "no/such", "source": "x", "data": {} }), "queue registry has no entry for no/such"),
    ] {
        assert_eq!(served.post(path, &body).await, (400, json!({ "ok": false, "error": error })));
    }
    let body =
        r#"{"name":"content/updated","source":"test","eventId":"e-1","priority":0,"data":{"n":9007199254740993}}"#;
    let (status, accepted) = answer(served.request(Method::POST, path).body(body)).await;
    let result = &accepted["result"];
    assert_eq!((status, &accepted["ok"], &result["eventId"]), (200, &json!(true), &json!("e-1")), "{accepted}");
    let shown = served.joelclaw.run(&["queue", "inspect", "e-1", "--json"]).await.assert_success();
    assert!(shown.stdout.contains("9007199254740993"), "{}", shown.stdout);
    let (_, again) = answer(served.request(Method::POST, path).body(body)).await;
    assert_eq!(again["result"]["streamId"], result["streamId"], "a retry finds the first");
    let (status, stored) =
        served.post("/observability/emit", &json!({ "component": "agent", "action": "agent.seen", "id": "t-1" })).await;
    assert_eq!((status, &stored["result"]["eventId"]), (200, &json!("t-1")));
    let told = json!({ "result": { "stored": true, "dropped": false, "eventId": "t-1" }, "ok": true });
    assert_eq!(stored, told);
    assert_eq!(served.post("/observability/emit", &json!([])).await, (400, json!({ "error": "Invalid payload" })));
    // A list is stored whole, with what each event says of itself, and without secrets.
    let event = |id: &str, level: &str| {
        json!({ "id": id, "timestamp": 1_772_981_290_859_u64, "level": level, "source": "gateway", "component": "telegram",
            "action": "send.failed", "success": false, "error": "planted-secret-0001 was refused", "metadata": {} })
    };
    let (status, answer) =
        served.post("/observability/emit", &json!([event("t-2", "fatal"), event("t-3", "warn")])).await;
    assert_eq!((status, answer["results"].as_array().map(Vec::len)), (200, Some(2)), "{answer}");
    let (status, refused) = served.post("/observability/emit", &json!([event("t-4", "loud")])).await;
    assert_eq!((status, &refused["detail"]), (400, &json!("event 1: level is debug, info, warn, error or fatal")));
    let query = ["journal", "query", "--component", "telegram", "--json"];
    let found = served.joelclaw.run(&query).await.assert_success().json()["result"]["events"].clone();
    assert_eq!(
        (found.as_array().map(Vec::len), &found[1]["id"], &found[1]["level"]),
        (Some(2), &json!("t-2"), &json!("fatal"))
    );
    assert_eq!((&found[0]["timestamp"], &found[0]["source"]), (&json!(1_772_981_290_859_u64), &json!("gateway")));
    assert_eq!(found[0]["error"], "[redacted] was refused");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_is_asked_for_once_and_its_result_is_awaited() {
    let served = Served::start(&[]).await;
    let request = json!({ "requestId": "wf-1", "task": "add a test", "tool": "pi", "timeout": 60 });
    let (status, _) = served.post("/internal/agent-dispatch", &json!({ "requestId": "wf-1", "tool": "pi" })).await;
    assert_eq!(status, 400);
    let answers =
        futures_util::future::join_all((0..8).map(|_| served.post("/internal/agent-dispatch", &request))).await;
    assert!(answers.iter().all(|(status, _)| *status == 200), "{answers:?}");
    let sent: Vec<_> = answers.iter().filter(|(_, body)| body["duplicate"] != true).collect();
    assert_eq!(sent.len(), 1, "{answers:?}");
    assert_eq!(sent[0].1["sendResult"]["ids"], json!(["agent-dispatch-wf-1-1"]));
    let waiting = served.get("/internal/agent-await/wf-1?timeoutMs=60000");
    let finishing = async {
        let running = json!({ "requestId": "wf-1", "state": "running", "startedAt": "2026-11-27T05:00:00Z" });
        assert_eq!(served.post("/internal/agent-result", &running).await.0, 200);
        let done =
            json!({ "requestId": "wf-1", "state": "completed", "startedAt": "2026-11-27T05:00:00Z", "output": "ok" });
        served.post("/internal/agent-result", &done).await
    };
    let (awaited, finished) = tokio::join!(waiting, finishing);
    assert_eq!((finished.0, &finished.1["status"]), (200, &json!("completed")));
    assert_eq!((awaited.0, &awaited.1["status"]), (200, &json!("completed")), "not at `running`");
    assert_eq!((&awaited.1["result"]["result"], &awaited.1["result"]["task"]), (&json!("ok"), &json!("add a test")));
    let late = json!({ "requestId": "wf-1", "state": "running", "startedAt": "2026-11-27T05:00:00Z" });
    assert_eq!(served.post("/internal/agent-result", &late).await.1["status"], "completed", "terminal stays");
    assert_eq!(served.get("/internal/agent-result/unknown").await.1["status"], "pending");
    assert_eq!(served.get("/internal/agent-result/..%2F..%2Fsecret").await.0, 400);
    assert!(served.joelclaw.home().join("claw/workspace/inbox/wf-1.json").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_root_says_what_this_worker_is_and_a_cluster_runs_no_agents() {
    let served = Served::start(&[("WORKER_ROLE", " Cluster ")]).await;
    let (status, root) = served.get("/").await;
    assert_eq!((status, &root["service"], &root["status"]), (200, &json!("system-bus"), &json!("running")));
    assert_eq!(root["worker"]["role"], "cluster");
    assert_eq!(root["queue"]["admissionEndpoint"], "/internal/queue/enqueue");
    assert_eq!(root["observability"]["ingestEndpoint"], "/observability/emit");
    assert!(root["functions"].is_array() && root["worker"]["duplicateFunctionIds"].is_array());
    assert!(root["webhooks"]["providers"].as_array().unwrap().contains(&json!("github")));
    let (status, answer) = served.get("/internal/agent-result/x").await;
    assert_eq!((status, answer), (404, json!({ "ok": false, "error": "Not available in this role" })));
}

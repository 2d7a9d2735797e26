//! Senders and their secrets as an operator sets them up: sources in a file, rotation, secrets from files and from a
//! command, each taken up by a running service.

use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use hmac::{Hmac, KeyInit as _, Mac as _};
use serde_json::{Value, json};
use sha2::Sha256;
use system_bus::ingest::event_api::EventApiSettings;
use system_bus::ingest::gateway::GatewaySettings;
use system_bus::ingest::limiter::Rate;

use crate::ingest_support::{Server, client, senders};
use crate::support::{Joelclaw, Running, TestRedis, eventually, free_port};

const LONG: Duration = Duration::from_secs(60);
const BODY: &str = r#"{"action":"published","package":{"name":"widgets"}}"#;

fn mac(secret: &str, text: &str) -> String {
    let mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).unwrap().chain_update(text.as_bytes());
    hex::encode(mac.finalize().into_bytes())
}

async fn answer(request: reqwest::RequestBuilder) -> (u16, Value) {
    let response = request.timeout(LONG).send().await.unwrap();
    let status = response.status().as_u16();
    (status, serde_json::from_slice(&response.bytes().await.unwrap()).unwrap_or_default())
}

struct Service {
    url: String,
    joelclaw: Joelclaw,
    process: Running,
}

impl Service {
    async fn start(joelclaw: Joelclaw) -> Self {
        let port = free_port();
        joelclaw.env_file_line("WORKER_PORT", &port.to_string());
        let url = format!("http://127.0.0.1:{port}");
        let process = joelclaw.spawn(&["serve"]);
        let started = client();
        eventually(LONG, || async { started.get(format!("{url}/webhooks")).send().await.map(drop) }).await;
        Self { url, joelclaw, process }
    }

    /// The status of a GitHub delivery signed with `secret`.
    async fn github(&self, secret: &str, delivery: &str) -> u16 {
        let request = client().post(format!("{}/webhooks/github", self.url)).header("x-github-event", "package");
        let signature = format!("sha256={}", mac(secret, BODY));
        let request = request.header("x-github-delivery", delivery).header("x-hub-signature-256", signature);
        answer(request.body(BODY)).await.0
    }

    async fn until_github(&self, secret: &str, wanted: u16) {
        eventually(LONG, || async {
            let status = self.github(secret, "again").await;
            if status == wanted { Ok(()) } else { Err(status) }
        })
        .await;
    }

    async fn end(mut self) {
        self.process.terminate();
        self.process.wait_exit(LONG).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_of_the_file_is_served_and_a_changed_file_is_taken_up() {
    let redis = TestRedis::start().await;
    let joelclaw = Joelclaw::new(&redis.url());
    let file = joelclaw.home().join("webhooks.toml");
    let shop = "[[source]]\nid = \"shop\"\nscheme = \"hmac\"\nsignature_header = \"X-Shop-Hmac\"\n\
                timestamp_header = \"x-shop-time\"\ntype_header = \"x-shop-topic\"\nid_field = \"meta.id\"\ndata_field = \"order\"\n";
    std::fs::write(&file, shop).unwrap();
    joelclaw.env_file_line("WEBHOOK_SOURCE_SHOP_SECRET", "shop-secret");
    let service = Service::start(joelclaw).await;
    let body = r#"{"meta":{"id":"o-1"},"order":{"total":12}}"#;
    let now = chrono::Utc::now().timestamp();
    let deliver = |time: i64, secret: &str| {
        let request = client().post(format!("{}/webhooks/shop", service.url)).header("x-shop-topic", "orders.created");
        let request = request.header("x-shop-time", time).header("x-shop-hmac", mac(secret, &format!("{time}.{body}")));
        answer(request.body(body))
    };
    let (status, told) = deliver(now, "shop-secret").await;
    assert_eq!((status, &told["events"], &told["deliveryId"]), (200, &json!(1), &json!("o-1")), "{told}");
    assert_eq!(deliver(now, "other").await.0, 401);
    assert_eq!(deliver(now - 400, "shop-secret").await.0, 401, "too old");
    assert_eq!(deliver(now, "shop-secret").await.1["duplicate"], true);
    let ids = service.joelclaw.run(&["queue", "inspect", "shop-o-1", "--json"]).await.assert_success().json();
    assert!(ids.to_string().contains("shop/orders.created"), "{ids}");

    // A broken file changes nothing; a good one is taken up.
    std::fs::write(&file, "[[source]]\nid = \"github\"\n").unwrap();
    let mut process = service.process;
    process.wait_for_line("a built-in provider has this id", LONG).await;
    let service = Service { process, ..service };
    assert_eq!(service.github("x", "d-1").await, 503, "no secret is set");
    std::fs::write(&file, format!("{shop}[[source]]\nid = \"crm\"\n")).unwrap();
    eventually(LONG, || async {
        let (_, index) = answer(client().get(format!("{}/webhooks", service.url))).await;
        if index["providers"].as_array().unwrap().contains(&json!("crm")) { Ok(()) } else { Err(index) }
    })
    .await;
    service.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_file_that_is_wrong_stops_the_start() {
    let redis = TestRedis::start().await;
    let joelclaw = Joelclaw::new(&redis.url());
    joelclaw.env_file_line("WORKER_PORT", &free_port().to_string());
    joelclaw.env_file_line("WEBHOOK_SOURCES", "vercel");
    let ran = joelclaw.run(&["serve", "--json"]).await;
    assert_eq!(ran.code(), Some(78), "{}", ran.stderr);
    assert!(format!("{}{}", ran.stdout, ran.stderr).contains("a built-in provider has this id"), "{}", ran.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_rotates_without_a_restart_and_without_a_gap() {
    let redis = TestRedis::start().await;
    let joelclaw = Joelclaw::new(&redis.url());
    let file = joelclaw.home().join("github-secret");
    std::fs::write(&file, "first\n").unwrap();
    joelclaw.env_file_line("GITHUB_WEBHOOK_SECRET_FILE", file.to_str().unwrap());
    joelclaw.env_file_line("GITHUB_WEBHOOK_SECRET", "the file wins");
    let service = Service::start(joelclaw).await;
    assert_eq!(service.github("first", "d-1").await, 200);
    assert_eq!(service.github("the file wins", "d-2").await, 401);
    // The sender has not rotated yet: the old one goes on.
    service.joelclaw.env_file_line("GITHUB_WEBHOOK_SECRET_PREVIOUS", "first");
    std::fs::write(&file, "second\n").unwrap();
    service.process.hang_up();
    service.until_github("second", 200).await;
    assert_eq!(service.github("first", "d-3").await, 200);
    // A file that is gone keeps the secrets in force.
    std::fs::remove_file(&file).unwrap();
    service.process.hang_up();
    let mut process = service.process;
    process.wait_for_line("the old ones stay", LONG).await;
    let service = Service { process, ..service };
    assert_eq!(service.github("second", "d-4").await, 200);
    service.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_that_is_set_nowhere_comes_from_the_command() {
    let redis = TestRedis::start().await;
    let joelclaw = Joelclaw::new(&redis.url());
    let script = joelclaw.home().join("lease");
    std::fs::write(
        &script,
        "#!/bin/sh\n[ \"$2\" = github_webhook_secret ] || exit 1\n[ \"$3\" = 2h ] && echo leased\n",
    )
    .unwrap();
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
    joelclaw.env_file_line("WEBHOOK_SECRETS_COMMAND", &format!("{} lease {{name}} {{ttl}}", script.display()));
    joelclaw.env_file_line("WEBHOOK_SECRETS_TTL", "2h");
    joelclaw.env_file_line("MUX_WEBHOOK_SECRET", "set");
    let mut service = Service::start(joelclaw).await;
    service.process.wait_for_line("[secrets] loaded GITHUB_WEBHOOK_SECRET", LONG).await;
    service.until_github("leased", 200).await;
    let said = service.process.stderr();
    assert!(said.contains("VERCEL_WEBHOOK_SECRET") && !said.contains("MUX_WEBHOOK_SECRET"), "{said}");
    assert!(!said.contains("leased\n") && !said.contains("\"leased\""), "{said}");
    service.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_of_the_cluster_serves_webhooks_and_asks_no_command_for_secrets() {
    let redis = TestRedis::start().await;
    let joelclaw = Joelclaw::new(&redis.url());
    let (script, asked) = (joelclaw.home().join("lease"), joelclaw.home().join("asked"));
    std::fs::write(&script, format!("#!/bin/sh\ntouch {}\necho leased\n", asked.display())).unwrap();
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
    joelclaw.env_file_line("WEBHOOK_SECRETS_COMMAND", &format!("{} {{name}}", script.display()));
    joelclaw.env_file_line("GITHUB_WEBHOOK_SECRET", "s");
    joelclaw.env_file_line("WORKER_ROLE", "\" Cluster \"");
    let mut service = Service::start(joelclaw).await;
    service.process.wait_for_line("WORKER_ROLE is cluster", LONG).await;
    service.until_github("s", 200).await;
    let (_, root) = answer(client().get(format!("{}/", service.url))).await;
    assert_eq!(root["worker"]["role"], "cluster", "{root}");
    let (status, body) = answer(client().get(format!("{}/internal/agent-result/some-id", service.url))).await;
    assert_eq!((status, body), (404, json!({ "ok": false, "error": "Not available in this role" })));
    assert!(!asked.exists());
    service.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_that_we_closed_is_no_event_for_as_long_as_it_is_remembered() {
    let redis = TestRedis::start().await;
    let joelclaw = Joelclaw::new(&redis.url());
    joelclaw.env_file_line("TODOIST_CLIENT_SECRET", "s");
    let service = Service::start(joelclaw).await;
    let deliver = |task: &str, delivery: &str| {
        let body = json!({ "event_name": "item:completed", "event_data": { "id": task } }).to_string();
        let mac = Hmac::<Sha256>::new_from_slice(b"s").unwrap().chain_update(body.as_bytes()).finalize().into_bytes();
        let signature = system_bus::ingest::signature::to_base64(&mac);
        let request = client().post(format!("{}/webhooks/todoist", service.url));
        let request = request.header("x-todoist-hmac-sha256", signature).header("x-todoist-delivery-id", delivery);
        answer(request.body(body))
    };
    const KEY: &str = system_bus::streams::echoes::CLOSED_TASKS;
    let now = chrono::Utc::now().timestamp_millis();
    redis.cli(&["ZADD", KEY, &(now + 60_000).to_string(), "ours", &(now - 1).to_string(), "long-ago"]).await;
    assert_eq!(deliver("ours", "d-1").await.1, json!({"ok":true,"events":0,"note":"No matching events"}));
    assert_eq!(deliver("long-ago", "d-2").await.1["events"], 1);
    assert_eq!(deliver("theirs", "d-3").await.1["events"], 1);
    // When nobody can tell, it passes.
    redis.cli(&["DEL", KEY]).await;
    redis.cli(&["SET", KEY, "no sorted set"]).await;
    assert_eq!(deliver("ours", "d-4").await.1["events"], 1);
    service.end().await;
}

#[tokio::test]
async fn every_provider_signs_a_sample_that_its_own_gateway_takes() {
    let all = [
        ("VERCEL_WEBHOOK_SECRET", "s"),
        ("FRONT_RULES_WEBHOOK_SECRET", "s"),
        ("TODOIST_CLIENT_SECRET", "s"),
        ("GITHUB_WEBHOOK_SECRET", "s"),
        ("MUX_WEBHOOK_SECRET", "s"),
        ("JOELCLAW_WEBHOOK_SECRET", "s"),
        ("JOELCLAW_WEBHOOK_REQUIRE_TIMESTAMP", "1"),
        ("TELNYX_PUBLIC_KEY", "A6EHv/POEL4dcN0Y50vAmWfk1jCbpQ1fHdyGZBJVMbg="),
        ("X_CONSUMER_SECRET", "s"),
        ("STANDARD_WEBHOOK_SECRET", "whsec_AQIDBAUGBwgJCgsMDQ4PEBESExQVFhcYGRobHB0eHyA="),
        ("WEBHOOK_SOURCES", "crm"),
        ("WEBHOOK_SOURCE_CRM_SECRET", "whsec_AQIDBAUGBwgJCgsMDQ4PEBESExQVFhcYGRobHB0eHyA="),
    ];
    let known = senders(&all);
    let server = Server::start(GatewaySettings::default(), known.clone(), EventApiSettings::default()).await;
    let now = chrono::Utc::now().timestamp();
    for provider in known.all() {
        let id = provider.id();
        let sample = known.sample(&**provider, now, "nonce-1");
        if id == "telnyx" {
            let told = sample.unwrap_err().to_string();
            assert_eq!(told, "TELNYX_PUBLIC_KEY is a public key: it can verify a delivery, but not sign one");
            continue;
        }
        let sample = sample.unwrap();
        let request = client().post(server.url(&format!("/webhooks/{id}"))).headers(sample.headers).body(sample.body);
        let (status, told) = answer(request).await;
        assert_eq!((status, &told["events"]), (200, &json!(1)), "{id}: {told}");
    }
    let bare = senders(&[]);
    let missing = bare.sample(&*bare.find("mux").unwrap(), now, "n").unwrap_err().to_string();
    assert_eq!(missing, "MUX_WEBHOOK_SECRET is not set, or is no secret of this kind");
}

#[tokio::test]
async fn a_rate_limit_is_answered_429_only_where_the_sender_sends_again() {
    let rate = Rate { count: 2, per: Duration::from_secs(3600) };
    let settings = GatewaySettings {
        rate_limits: [("vercel".to_owned(), rate), ("github".to_owned(), rate)].into(),
        ..GatewaySettings::default()
    };
    let known = senders(&[("VERCEL_WEBHOOK_SECRET", "s"), ("GITHUB_WEBHOOK_SECRET", "s")]);
    let server = Server::start(settings, known.clone(), EventApiSettings::default()).await;
    let deliver = |id: &'static str, nonce: String| {
        let sample = known.sample(&*known.find(id).unwrap(), 0, &nonce).unwrap();
        answer(client().post(server.url(&format!("/webhooks/{id}"))).headers(sample.headers).body(sample.body))
    };
    let mut statuses = Vec::new();
    for n in 0..3 {
        statuses.push(deliver("vercel", format!("v-{n}")).await.0);
        statuses.push(deliver("github", format!("g-{n}")).await.0);
    }
    assert_eq!(statuses, [200, 200, 200, 200, 429, 200]);
    let (_, told) = deliver("vercel", "v-9".to_owned()).await;
    assert_eq!(told, json!({"ok":false,"error":"Rate limit exceeded","code":"rate_limited"}));
    assert_eq!(server.memory.events().len(), 5);
}

#[tokio::test]
async fn the_handshake_of_x_is_answered_ten_times_a_minute_and_signs_no_json() {
    let server =
        Server::start(GatewaySettings::default(), senders(&[("X_CONSUMER_SECRET", "s")]), EventApiSettings::default())
            .await;
    let ask = |token: &str| {
        let token: String = form_urlencoded::byte_serialize(token.as_bytes()).collect();
        answer(client().get(server.url(&format!("/webhooks/x?crc_token={token}"))))
    };
    let invalid = json!({"ok":false,"error":"Invalid crc_token"});
    for token in ["{\"for_user_id\":\"1\"}", "[1]", &"a".repeat(257)] {
        assert_eq!(ask(token).await, (400, invalid.clone()));
    }
    for _ in 0..7 {
        assert_eq!(ask("token").await.0, 200);
    }
    assert_eq!(ask("token").await.0, 429);
}

#[tokio::test]
async fn the_relay_emits_only_what_it_may_and_answers_with_ids() {
    let known =
        senders(&[("JOELCLAW_WEBHOOK_SECRET", "s"), ("JOELCLAW_WEBHOOK_ALLOWED_EVENTS", "discovery/*,exact/one")]);
    let server = Server::start(GatewaySettings::default(), known, EventApiSettings::default()).await;
    let send = |name: &str| {
        let body = json!({ "name": name, "data": { "n": 1 } }).to_string();
        let request = client().post(server.url("/webhooks/joelclaw")).header("x-joelclaw-signature", mac("s", &body));
        answer(request.header("x-joelclaw-delivery", format!("d-{name}")).body(body))
    };
    let (status, told) = send("discovery/noted").await;
    let ids = json!(["joelclaw-discovery/noted-d-discovery/noted"]);
    let expected = json!({"ok":true,"events":1,"queued":0,"direct":1,"ids":ids,"status":200});
    assert_eq!((status, told), (200, expected));
    let refused = (403, json!({"ok":false,"error":"Event not allowed"}));
    assert_eq!(send("inngest/function.finished").await, refused);
    assert_eq!(send("exact/two").await, refused);
    assert_eq!(send("exact/one").await.0, 200);
    // As the event intake would say it.
    let (status, told) = send("discovery/no name").await;
    assert_eq!((status, told["ok"].as_bool()), (400, Some(false)), "{told}");
}

#[tokio::test]
async fn ids_of_senders_that_no_event_can_have_are_hashed_and_told_apart() {
    let known = senders(&[("TODOIST_CLIENT_SECRET", "s")]);
    let server = Server::start(GatewaySettings::default(), known, EventApiSettings::default()).await;
    let send = |task: String| {
        let body = json!({ "event_name": "item:added", "event_data": { "id": task } }).to_string();
        let mac = Hmac::<Sha256>::new_from_slice(b"s").unwrap().chain_update(body.as_bytes()).finalize().into_bytes();
        let request = client().post(server.url("/webhooks/todoist")).header("x-todoist-delivery-id", "x".repeat(900));
        answer(request.header("x-todoist-hmac-sha256", system_bus::ingest::signature::to_base64(&mac)).body(body))
    };
    assert_eq!(send("1".to_owned()).await.1["events"], 1);
    assert_eq!(send("1".to_owned()).await.1["duplicate"], true);
    let event = server.memory.events().remove(0);
    assert!(event.id.unwrap().starts_with("todoist-sha256-"));
    assert!(event.once.unwrap().key.starts_with("todoist:sha256-"));
}

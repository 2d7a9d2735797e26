//! `joelclaw doctor` and `queue config` on a real Redis: what is right, what is wrong, and what differs from the service.

use std::time::Duration;

use serde_json::{Value, json};

use crate::drainer_support::Stage;
use crate::support::{Joelclaw, TestRedis, eventually};

const LONG: Duration = Duration::from_secs(60);

fn checks<'a>(result: &'a Value, name: &str) -> Vec<&'a Value> {
    result["checks"].as_array().unwrap().iter().filter(|check| check["name"] == name).collect()
}

fn status<'a>(result: &'a Value, name: &str) -> &'a str {
    checks(result, name).first().unwrap_or_else(|| panic!("no {name}: {result:#}"))["status"].as_str().unwrap()
}

async fn doctor(joelclaw: &Joelclaw, code: i32, more: &[&str]) -> Value {
    let ran = joelclaw.run(&[&["doctor", "--json"], more].concat()).await.assert_code(code);
    ran.json()["result"].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sound_installation_is_told_so_and_each_fault_has_its_line() {
    let redis = TestRedis::start().await;
    let joelclaw = Joelclaw::new(&redis.url()).env("WORKER_PORT", &crate::support::free_port().to_string());
    let sound = doctor(&joelclaw, 0, &["--no-model"]).await;
    for name in [
        "env file",
        "registry",
        "port",
        "redis version",
        "redis persistence",
        "redis eviction",
        "durability",
        "clock",
        "held",
    ] {
        assert_eq!(status(&sound, name), "ok", "{name}: {sound:#}");
    }
    assert_eq!(status(&sound, "drainers"), "warn", "none runs");
    assert_eq!(checks(&sound, "durability")[0]["detail"], "asked memory, in force memory");
    assert!(
        sound["checks"].as_array().unwrap().iter().all(|check| check["status"] == "ok" || check["fix"].is_string())
    );
    redis.cli(&["CONFIG", "SET", "maxmemory-policy", "allkeys-lru"]).await;
    redis.cli(&["CONFIG", "SET", "appendonly", "no"]).await;
    joelclaw.env_file_line("QUEUE_DURABILITY", "replica");
    joelclaw.env_file_line("QUEUE_OBSERVER_AUTO_FAMILIES", "github");
    joelclaw.env_file_line("QUEUE_TRIAGE_MODE", "on");
    let ill = doctor(&joelclaw, 1, &["--no-model"]).await;
    for name in ["redis persistence", "redis eviction", "durability"] {
        assert_eq!(status(&ill, name), "fail", "{name}: {ill:#}");
    }
    let flags: Vec<String> = checks(&ill, "flags").iter().map(|check| check["detail"].to_string()).collect();
    assert!(flags.iter().any(|detail| detail.contains("QUEUE_OBSERVER_AUTO_FAMILIES `github`")), "{flags:?}");
    let settings: Vec<String> = checks(&ill, "settings").iter().map(|check| check["detail"].to_string()).collect();
    assert!(settings.iter().any(|detail| detail.contains("QUEUE_TRIAGE_MODE")), "{settings:?}");
    drop(redis);
    let away = doctor(&joelclaw, 1, &["--no-model"]).await;
    assert_eq!((status(&away, "redis"), checks(&away, "redis version").len()), ("fail", 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn each_configured_model_is_asked_one_tiny_question() {
    let redis = TestRedis::start().await;
    let with = |script: &str| {
        let command = json!(["sh", "-c", script]).to_string();
        let joelclaw = Joelclaw::new(&redis.url()).env("SYSTEM_BUS_MODEL_COMMAND", &command);
        joelclaw.env_file_line("QUEUE_TRIAGE_MODE", "shadow");
        joelclaw.env_file_line("QUEUE_OBSERVER_PROVIDER", "rules");
        joelclaw.env_file_line("WORKER_PORT", "0");
        joelclaw
    };
    let name = "model command anthropic/claude-haiku-4-5";
    let good = doctor(&with("cat > /dev/null; echo '{\"ok\":true}'"), 0, &[]).await;
    assert_eq!(status(&good, name), "ok", "{good:#}");
    let wordy = doctor(&with("cat > /dev/null; echo 'Sure! {\"ok\":true}'"), 0, &[]).await;
    assert_eq!(status(&wordy, name), "warn", "{wordy:#}");
    let broken = doctor(&with("exit 2"), 0, &[]).await;
    assert_eq!(status(&broken, name), "warn");
    assert!(checks(&broken, name)[0]["detail"].as_str().unwrap().starts_with("model_error: exit 2"), "{broken:#}");
}

#[tokio::test(flavor = "multi_thread")]
async fn queue_config_tells_what_the_service_goes_by_and_where_this_shell_would_not() {
    let stage = Stage::start().await;
    let joelclaw = stage.joelclaw("");
    joelclaw.env_file_line("QUEUE_TRIAGE_MODE", "enforce");
    joelclaw.env_file_line("QUEUE_OBSERVER_INTERVAL_SECONDS", "5");
    let config = async || {
        let ran = joelclaw.run(&["queue", "config", "--json"]).await.assert_success();
        ran.json()["result"].clone()
    };
    let alone = config().await;
    assert_eq!((&alone["service"], &alone["differs"]), (&Value::Null, &json!([])), "{alone:#}");
    let mode = |config: &Value, family: &str| {
        let all = config["triage"]["effective"].as_array().unwrap().clone();
        all.into_iter().find(|row| row["family"] == family).unwrap()
    };
    let clamped = mode(&alone, "content/updated");
    assert_eq!((&clamped["mode"], &clamped["clampedFrom"]), (&json!("shadow"), &json!("enforce")));
    assert_eq!(mode(&alone, "discovery/noted")["mode"], "enforce");
    let observer = &alone["observer"];
    assert_eq!((&observer["intervalSeconds"], &observer["effectiveIntervalSeconds"]), (&json!("5"), &json!(60)));
    assert!(alone["ignored"].to_string().contains("QUEUE_OBSERVER_INTERVAL_SECONDS"), "{alone:#}");
    // A service that runs with other settings than the file has by now.
    let mut drainer = joelclaw.spawn(&["drainer"]);
    drainer.wait_for_line("drainer started", LONG).await;
    eventually(LONG, || async { if config().await["service"].is_object() { Ok(()) } else { Err("no note yet") } })
        .await;
    assert_eq!(config().await["differs"], json!([]));
    joelclaw.env_file_line("QUEUE_DRAINER_CONCURRENCY", "7");
    let differs = config().await["differs"].clone();
    assert_eq!(differs, json!([{ "key": "QUEUE_DRAINER_CONCURRENCY", "cli": "7", "service": "64" }]));
    // What takes effect at once is told of the service once it has.
    joelclaw.env_file_line("QUEUE_OBSERVER_MODE", "dry-run");
    drainer.hang_up();
    eventually(LONG, || async {
        let told = config().await;
        if told["observer"]["mode"] == "dry-run" { Ok(()) } else { Err(told["differs"].clone()) }
    })
    .await;
    assert_eq!(config().await["drainer"]["concurrency"], 64, "it needs a restart");
    drainer.kill_9().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_newer_joelclaw_keeps_in_redis_is_not_touched() {
    let stage = Stage::start().await;
    let joelclaw = stage.joelclaw("");
    joelclaw.env_file_line("WORKER_PORT", &crate::support::free_port().to_string());
    joelclaw.run(&["queue", "emit", "a/b"]).await.assert_success();
    assert_eq!(status(&doctor(&joelclaw, 0, &["--no-model"]).await, "redis instance"), "ok");
    stage.redis.cli(&["HSET", &stage.bus.keys.meta(), "schema", "2"]).await;
    let before = stage.redis.cli(&["DBSIZE"]).await;
    let refused = joelclaw.run(&["queue", "emit", "a/b", "--json"]).await.assert_code(78).json();
    assert_eq!(refused["error"]["code"], "SCHEMA_TOO_NEW", "{refused}");
    for part in ["drainer", "serve"] {
        let mut process = joelclaw.spawn(&[part]);
        process.wait_exit(LONG).await.assert_code(78);
    }
    let found = doctor(&joelclaw, 1, &["--no-model"]).await;
    assert!(found.to_string().contains("has key schema 2; this joelclaw knows 1"), "{found:#}");
    assert_eq!(stage.redis.cli(&["DBSIZE"]).await, before);
}

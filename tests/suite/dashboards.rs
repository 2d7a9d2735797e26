//! The dashboards and rules against the real things: Grafana's types, promtool, and a Prometheus that scrapes a real run,
//! where every query has an answer.
//!
//! `scripts/dashboard-pictures.sh` runs the last one with `SYSTEM_BUS_DASHBOARD_DATA` and draws what it writes there.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use hmac::{Hmac, KeyInit, Mac};
use regex::Regex;
use serde_json::{Map, Value, json};
use sha2::Sha256;

use crate::conformance_support::{Sdk, Stage};
use crate::dashboards_prometheus::{Prometheus, repository};
use crate::support::{HttpSink, Reply, eventually};
use system_bus::telemetry::metrics::Metrics;

const LONG: Duration = Duration::from_secs(60);
const SECRET: &str = "gh-test-secret-0001";

/// The dashboards by file, as they are in the repository.
fn dashboards() -> Vec<(String, Value)> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(repository("dashboards"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "json"))
        .collect();
    files.sort();
    let read = |path: PathBuf| {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        (name, serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap())
    };
    files.into_iter().map(read).collect()
}

fn list<'v>(value: &'v Value, key: &str) -> &'v [Value] {
    value[key].as_array().map(Vec::as_slice).unwrap_or_default()
}

/// Where it is, and the expression: of every panel and every annotation.
fn queries(dashboards: &[(String, Value)]) -> Vec<(String, String)> {
    let mut all = Vec::new();
    for (file, board) in dashboards {
        for panel in list(board, "panels") {
            for target in list(panel, "targets") {
                let place = format!("{file}: {} {}", panel["title"].as_str().unwrap(), target["refId"]);
                all.push((place, target["expr"].as_str().unwrap().to_owned()));
            }
        }
        for annotation in list(&board["annotations"], "list") {
            let place = format!("{file}: annotation {}", annotation["name"]);
            all.push((place, annotation["target"]["expr"].as_str().unwrap().to_owned()));
        }
    }
    all
}

/// The expression as Grafana sends it, for a run of a few minutes that is scraped every second.
fn filled(expression: &str) -> String {
    let spans = [("$__rate_interval", "15s"), ("$__range", "5m"), ("$__interval", "1s")];
    let filled = spans.into_iter().fold(expression.to_owned(), |text, (name, span)| text.replace(name, span));
    Regex::new(r"\$\w+").unwrap().replace_all(&filled, ".*").into_owned()
}

/// `record` or `alert`, name, expression.
fn rules() -> Vec<(String, String, String)> {
    let one = Regex::new(r"- (record|alert): (\S+)\n\s+expr: >-\n\s+(.+)\n").unwrap();
    let read = |file: &str| std::fs::read_to_string(repository("dashboards/rules").join(file)).unwrap();
    let text = read("recording.yml") + &read("alerts.yml");
    one.captures_iter(&text).map(|found| (found[1].into(), found[2].into(), found[3].into())).collect()
}

/// Metric names of an expression that are ours.
fn names(expression: &str) -> BTreeSet<String> {
    let name = Regex::new(r"\b(?:system_bus_\w+|process_\w+)").unwrap();
    name.find_iter(expression).map(|found| found.as_str().to_owned()).collect()
}

#[track_caller]
fn succeeds(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}; `make deps` installs it"));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{command:?}\n{text}\n{}", String::from_utf8_lossy(&output.stderr));
    text
}

#[test]
fn the_dashboards_are_what_the_script_prints() {
    let printed = succeeds(Command::new("node").arg(repository("dashboards/generate.mjs")).arg("--print"));
    let printed: Map<String, Value> = serde_json::from_str(&printed).unwrap();
    let stored: Map<String, Value> = dashboards().into_iter().collect();
    assert_eq!(stored, printed, "run: node dashboards/generate.mjs");
}

#[test]
fn the_dashboards_have_the_types_of_grafana_and_a_wrong_one_is_found() {
    let check = || {
        let mut command = Command::new("node");
        command.arg(repository("tests/dashboards/typecheck.mjs"));
        command
    };
    let files = dashboards();
    succeeds(check().args(files.iter().map(|(name, _)| repository("dashboards").join(name))));
    let dir = tempfile::tempdir().unwrap();
    let (name, good) = &files[0];
    let wrong = dir.path().join(name);
    for change in [
        |board: &mut Value| board["panels"][0]["gridPos"]["w"] = json!("12"),
        |board: &mut Value| board["panels"][0]["descripton"] = json!("misspelt"),
        |board: &mut Value| board["panels"][1]["options"]["tooltip"]["mode"] = json!("many"),
    ] {
        let mut board = good.clone();
        change(&mut board);
        std::fs::write(&wrong, board.to_string()).unwrap();
        let output = check().arg(&wrong).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "not found: {}", String::from_utf8_lossy(&output.stdout));
    }
}

#[test]
fn panels_keep_the_house_rules() {
    let boards = dashboards();
    assert_eq!(boards.len(), 6);
    let uids: BTreeSet<&str> = boards.iter().map(|(_, board)| board["uid"].as_str().unwrap()).collect();
    assert_eq!(uids.len(), boards.len());
    for (file, board) in &boards {
        let mut ids = BTreeSet::new();
        let mut taken = BTreeSet::new();
        for panel in list(board, "panels") {
            let title = panel["title"].as_str().unwrap();
            assert!(ids.insert(panel["id"].as_u64().unwrap()), "{file}: {title} has an id of another");
            assert!(panel["description"].as_str().is_some_and(|text| text.len() > 10), "{file}: {title} says nothing");
            assert!(panel["fieldConfig"]["defaults"]["unit"].is_string(), "{file}: {title} has no unit");
            assert_eq!(panel["datasource"]["uid"], "${datasource}", "{file}: {title}");
            let at = |key: &str| panel["gridPos"][key].as_u64().unwrap();
            assert!(at("x") + at("w") <= 24, "{file}: {title} is beside the grid");
            for x in at("x")..at("x") + at("w") {
                for y in at("y")..at("y") + at("h") {
                    assert!(taken.insert((x, y)), "{file}: {title} covers another panel");
                }
            }
        }
    }
    for (place, expression) in queries(&boards) {
        assert!(expression.contains(r#"job=~"$job""#), "{place} is not of the chosen job: {expression}");
        assert!(!expression.contains("instance=\""), "{place} names an instance");
    }
}

#[test]
fn promtool_accepts_every_expression_and_the_rules_fire_as_their_tests_say() {
    let dir = repository("dashboards/rules");
    let file = |name: &str| dir.join(name);
    succeeds(Command::new("promtool").args(["check", "rules"]).arg(file("recording.yml")).arg(file("alerts.yml")));
    succeeds(Command::new("promtool").args(["test", "rules"]).arg(file("tests.yml")));
    let config = repository("dashboards/prometheus.yml");
    succeeds(Command::new("promtool").args(["check", "config", "--syntax-only"]).arg(config));
    let own = tempfile::tempdir().unwrap();
    let panels = own.path().join("panels.yml");
    let rule = |(n, (_, expression)): (usize, &(String, String))| json!({ "record": format!("panel:{n}"), "expr": filled(expression) });
    let all = queries(&dashboards());
    let rules: Vec<Value> = all.iter().enumerate().map(rule).collect();
    assert!(rules.len() > 100, "{} queries", rules.len());
    std::fs::write(&panels, json!({ "groups": [{ "name": "panels", "rules": rules }] }).to_string()).unwrap();
    succeeds(Command::new("promtool").args(["check", "rules"]).arg(panels));
}

#[test]
fn every_metric_of_a_query_or_rule_is_one_of_ours() {
    let mut known: BTreeSet<String> = BTreeSet::from(["system_bus_log_lines_total".into()]);
    known.insert("system_bus_metric_label_overflow_total".into());
    for (name, kind, _) in Metrics::catalogue() {
        match kind {
            "histogram" => known.extend(["bucket", "count", "sum"].map(|part| format!("{name}_{part}"))),
            _ => known.extend([name.to_owned()]),
        }
    }
    let process = ["cpu_seconds_total", "resident_memory_bytes", "open_fds", "max_fds", "start_time_seconds"];
    known.extend(process.map(|name| format!("process_{name}")));
    let rules = rules().into_iter().map(|(_, name, expression)| (name, expression));
    for (place, expression) in queries(&dashboards()).into_iter().chain(rules) {
        let unknown: Vec<String> = names(&expression).difference(&known).cloned().collect();
        assert!(unknown.is_empty(), "{place} asks for {unknown:?}");
    }
}

#[tokio::test]
async fn every_alert_names_a_command_that_exists_and_is_in_the_docs() {
    let text = std::fs::read_to_string(repository("dashboards/rules/alerts.yml")).unwrap();
    let docs = std::fs::read_to_string(repository("docs/dashboards.md")).unwrap();
    let one = Regex::new(
        r#"- alert: (\S+)(?s:.*?)severity: (page|ticket)(?s:.*?)summary: "[^\n]+"\n\s+runbook: "([^"\n]+)""#,
    )
    .unwrap();
    let alerts: Vec<(String, String, String)> =
        one.captures_iter(&text).map(|found| (found[1].into(), found[2].into(), found[3].into())).collect();
    assert_eq!(alerts.len(), text.matches("- alert:").count(), "an alert lacks severity, summary or runbook");
    let bus = crate::support::Joelclaw::unconfigured();
    let mut asked = BTreeSet::new();
    for (name, severity, runbook) in alerts {
        assert!(docs.contains(&format!("| `{name}` | {severity} |")), "docs/dashboards.md does not tell of {name}");
        let mut words: Vec<&str> = runbook.split_whitespace().collect();
        if words.remove(0) == "joelclaw" && asked.insert(runbook.clone()) {
            words.push("--help");
            bus.run(&words).await.assert_success();
        }
    }
}

/// Registry of the run: what works, what works at the second try, what never does, what is held.
fn registry(good: &HttpSink, flaky: &HttpSink, refusing: &HttpSink) -> String {
    let event = |name: &str, priority: &str, sink: &HttpSink| {
        format!(
            "[[event]]\nname = \"{name}\"\npriority = \"{priority}\"\nattempts = 4\n\
             backoff = {{ initial = \"2s\", multiplier = 2.0, jitter = \"none\" }}\n\
             handler = {{ type = \"http\", target = \"{}\" }}\n\n",
            sink.url()
        )
    };
    [
        event("demo/order", "P1", good),
        event("demo/mail", "P2", good),
        event("demo/report", "P3", good),
        event("demo/held", "P2", good),
        event("demo/flaky", "P1", flaky),
        event("demo/refused", "P2", refusing),
        event("github/package.published", "P2", good),
        event("discovery/noted", "P2", good),
    ]
    .concat()
}

/// A model that agrees, disagrees, answers rubbish or disputes the route, as the event's title asks for.
const MODEL: &str = r#"case "$(cat)" in
  *urgent*) p=P1 route=confirm ;;
  *rubbish*) echo 'I am not sure'; exit ;;
  *elsewhere*) p=P2 route=mismatch ;;
  *) p=P2 route=confirm ;;
esac
printf '{"priority":"%s","dedupKey":null,"routeCheck":"%s","reasoning":"The title says so."}' $p $route"#;

/// One endpoint that takes what it is sent, and one that is down.
async fn endpoints(stage: &Stage, good: &HttpSink) {
    let down = format!("http://127.0.0.1:{}/hook", crate::support::free_port());
    for (url, event) in [(format!("{}/hook", good.url()), "demo/order"), (down, "demo/report")] {
        stage.joelclaw.run(&["webhooks", "endpoints", "add", &url, "--events", event]).await.assert_success();
    }
}

/// Sends deliveries as GitHub does; some are wrong.
async fn webhooks(stage: &Stage, round: u64) {
    let client = reqwest::Client::builder().no_proxy().timeout(LONG).build().unwrap();
    let body = json!({ "action": "published", "package": { "name": format!("widgets-{}", round / 2) } }).to_string();
    let mac = Hmac::<Sha256>::new_from_slice(SECRET.as_bytes()).unwrap().chain_update(&body);
    let signature = format!("sha256={}", hex::encode(mac.finalize().into_bytes()));
    let send = |path: &str, event: &'static str, delivery: u64, signature: String| {
        client
            .post(stage.url(path))
            .header("x-github-event", event)
            .header("x-github-delivery", format!("d-{delivery}"))
            .header("x-hub-signature-256", signature)
            .body(body.clone())
            .send()
    };
    // Every delivery comes twice: the second is a duplicate.
    assert_eq!(send("/webhooks/github", "package", round / 2, signature.clone()).await.unwrap().status(), 200);
    if round.is_multiple_of(3) {
        assert_eq!(send("/webhooks/github", "ping", 1000 + round, signature.clone()).await.unwrap().status(), 200);
    }
    if round.is_multiple_of(6) {
        assert_eq!(send("/webhooks/github", "package", 1, "sha256=00".into()).await.unwrap().status(), 401);
        assert_eq!(send("/webhooks/nobody", "package", 1, signature).await.unwrap().status(), 404);
    }
}

/// One second of the run.
async fn drive(stage: &Stage, round: u64) {
    let event = |name: &str, n: u64| json!({ "name": name, "data": { "n": n } });
    let mut events: Vec<Value> = (0..4 + round % 5).map(|n| event("demo/order", n)).collect();
    events.extend((0..2).map(|n| event("demo/mail", n)));
    events.extend([event("demo/report", round), event("demo/held", round), event("conf/hello", round)]);
    events.push(json!({ "name": "demo/mail", "id": format!("once-{}", round / 2), "data": {} }));
    let word = ["plain", "urgent", "rubbish", "elsewhere"][usize::try_from(round % 4).unwrap()];
    events.push(json!({ "name": "discovery/noted", "data": { "title": word } }));
    if round.is_multiple_of(2) {
        events.push(event("demo/flaky", round));
    }
    if round % 5 == 1 {
        events.push(json!({ "name": "conf/flaky", "data": { "fails": 1 } }));
        events.extend([event("conf/parallel", round), event("conf/no-retries", round), event("demo/refused", round)]);
        events.push(event("nobody/wants", round));
    }
    stage.send_all(&Value::Array(events)).await;
    webhooks(stage, round).await;
}

/// What of these dashboards and rules has no answer between two moments, and all answers by file and panel.
async fn look(
    prometheus: &Prometheus,
    dashboards: &[(String, Value)],
    from: f64,
    to: f64,
) -> (Vec<String>, Map<String, Value>) {
    let mut empty = Vec::new();
    let mut answers = Map::new();
    for (file, board) in dashboards {
        let mut of_board = Map::new();
        for panel in list(board, "panels") {
            let mut of_panel = Vec::new();
            for target in list(panel, "targets") {
                let expression = filled(target["expr"].as_str().unwrap());
                let series = prometheus.range(&expression, from, to).await;
                let has_number = series.iter().any(|(_, samples)| samples.iter().any(|(_, value)| value.is_finite()));
                if !has_number {
                    empty.push(format!("{file}: {} {}: {expression}", panel["title"], target["refId"]));
                }
                let told = |(metric, samples): &(Value, Vec<(f64, f64)>)| {
                    let samples: Vec<Value> = samples.iter().map(|(at, value)| json!([at, value])).collect();
                    json!({ "metric": metric, "values": samples })
                };
                of_panel.push(Value::Array(series.iter().map(told).collect()));
            }
            of_board.insert(panel["id"].to_string(), Value::Array(of_panel));
        }
        answers.insert(file.clone(), Value::Object(of_board));
    }
    (empty, answers)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_query_has_an_answer_from_a_real_run_and_a_wrong_name_has_none() {
    let (good, flaky, refusing) = (HttpSink::start().await, HttpSink::start().await, HttpSink::start().await);
    good.reply_always(Reply::ok().delay(Duration::from_millis(15)));
    refusing.reply_always(Reply::status(422));
    // Without breakers every try is made, and so counted.
    let settings = [
        ("GITHUB_WEBHOOK_SECRET", SECRET),
        ("INNGEST_POLL_INTERVAL", "1"),
        ("SYSTEM_BUS_METRICS_ADDR", ""),
        ("QUEUE_BREAKER", "off"),
        ("QUEUE_TRIAGE_MODE", "shadow"),
        ("QUEUE_TRIAGE_PROVIDER", "command"),
        ("SYSTEM_BUS_MODEL_COMMAND", &json!(["sh", "-c", MODEL]).to_string()),
        ("QUEUE_OBSERVER_MODE", "dry-run"),
        ("QUEUE_OBSERVER_PROVIDER", "rules"),
        ("WEBHOOK_ALLOWED_SUBNETS", "127.0.0.0/8"),
        ("WEBHOOK_ENDPOINT_RETRIES", "1s"),
    ];
    let mut stage = Stage::configured(&settings).await;
    stage.stop_server().await;
    std::fs::write(stage.joelclaw.home().join("registry.toml"), registry(&good, &flaky, &refusing)).unwrap();
    stage.redis.cli(&["CONFIG", "SET", "maxmemory", "268435456"]).await;
    stage.start_server().await;
    let rules_dir = repository("dashboards/rules");
    let files = [rules_dir.join("recording.yml"), rules_dir.join("alerts.yml")];
    let prometheus = Prometheus::start(&format!("127.0.0.1:{}", stage.port), &files).await;
    let _app = stage.app(Sdk::Js4).await;
    endpoints(&stage, &good).await;
    let from = prometheus.next_scrape().await;

    let rounds: u64 = if std::env::var_os("SYSTEM_BUS_DASHBOARD_DATA").is_some() { 100 } else { 30 };
    let run = |args: &'static [&'static str]| stage.joelclaw.run(args);
    for round in 0..rounds {
        let is_at = |part: u64| round == rounds * part / 40;
        if is_at(8) {
            run(&["queue", "pause", "demo/held", "--ttl", "1h", "--reason", "the shop is closed"])
                .await
                .assert_success();
        } else if is_at(26) {
            run(&["queue", "resume", "demo/held"]).await.assert_success();
        } else if is_at(30) {
            run(&["queue", "pause", "demo/held", "--ttl", "30m", "--reason", "stock-taking"]).await.assert_success();
        } else if is_at(20) {
            run(&["queue", "emit", "queue/observer.requested"]).await.assert_success();
        }
        if round.is_multiple_of(2) {
            flaky.reply_next([Reply::status(503)]);
        }
        drive(&stage, round).await;
        prometheus.next_scrape().await;
    }

    // Everything is told within two turns of the slowest figure; nothing here depends on how long that takes.
    let boards = dashboards();
    let (to, answers) = eventually(2 * LONG, || async {
        let to = prometheus.next_scrape().await;
        let (empty, answers) = look(&prometheus, &boards, from, to).await;
        if empty.is_empty() { Ok((to, answers)) } else { Err(empty) }
    })
    .await;
    for (kind, name, expression) in rules() {
        let recorded = if kind == "record" { name.clone() } else { continue };
        for query in [recorded, filled(&expression)] {
            let series = prometheus.range(&query, from, to).await;
            assert!(series.iter().any(|(_, samples)| samples.iter().any(|(_, v)| v.is_finite())), "{name}: {query}");
        }
    }
    // Of what alerts ask for, everything is there to be asked.
    let asked: BTreeSet<String> = rules().iter().flat_map(|(_, _, expression)| names(expression)).collect();
    for name in asked {
        assert!(!prometheus.range(&name, from, to).await.is_empty(), "no alert can see {name}");
    }
    assert_counts(&prometheus, rounds).await;
    if let Some(dir) = std::env::var_os("SYSTEM_BUS_DASHBOARD_DATA") {
        let all = json!({ "from": from, "to": to, "answers": answers });
        std::fs::write(PathBuf::from(dir).join("answers.json"), all.to_string()).unwrap();
    }
    the_checker_finds_wrong_names(&prometheus, &boards, from, to).await;
    the_exposition_is_clean_small_and_there_without_redis(&stage).await;
}

/// The counters are those of what was done, not just some number.
async fn assert_counts(prometheus: &Prometheus, rounds: u64) {
    let expected = [
        (r#"sum(system_bus_webhook_requests_total{outcome="accepted"})"#, rounds.div_ceil(2)),
        (r#"sum(system_bus_webhook_requests_total{outcome="duplicate"})"#, rounds / 2),
        (r#"sum(system_bus_webhook_requests_total{outcome="ignored"})"#, rounds.div_ceil(3)),
        (r#"sum(system_bus_webhook_requests_total{outcome="bad_signature"})"#, rounds.div_ceil(6)),
        (r#"sum(system_bus_webhook_requests_total{outcome="unknown_provider"})"#, rounds.div_ceil(6)),
        (r#"sum(system_bus_queue_dead_letters_total{family="demo/refused",reason="rejected"})"#, (rounds + 3) / 5),
        (r#"sum(system_bus_queue_dead_letter_depth{family="demo/refused"})"#, (rounds + 3) / 5),
        (r#"system_bus_queue_retries_total{family="demo/flaky",reason="http_5xx"}"#, rounds.div_ceil(2)),
        (r#"system_bus_function_runs_total{function="conf-hello",status="completed"}"#, rounds),
        (r#"system_bus_function_runs_total{function="conf-no-retries",status="failed"}"#, (rounds + 3) / 5),
        (r#"system_bus_function_steps_total{function="conf-hello",op="run",outcome="completed"}"#, rounds),
        (r#"system_bus_function_retries_total{function="conf-flaky"}"#, (rounds + 3) / 5),
        (r#"sum(system_bus_queue_control_total{action="pause",source="manual",outcome="applied"})"#, 2),
        (r#"system_bus_queue_pause_active{family="demo/held",source="manual"}"#, 1),
        (r#"system_bus_function_events_unmatched_total{family="nobody/wants"}"#, (rounds + 3) / 5),
        (r#"sum(system_bus_drainer_leader)"#, 1),
        (r#"sum(system_bus_triage_agreement_total{family="discovery/noted",result="disagree"})"#, rounds / 2),
        (r#"sum(system_bus_triage_fallback_total{family="discovery/noted"})"#, (rounds + 1) / 4),
        (r#"sum(system_bus_triage_route_mismatch_total{family="discovery/noted"})"#, rounds / 4),
        (r#"sum(system_bus_observer_runs_total{trigger="manual"})"#, 1),
        (r#"sum(system_bus_webhook_outbound_endpoints{state="enabled"})"#, 2),
        (r#"system_bus_webhook_outbound_deliveries_total{outcome="delivered"}"#, rounds * 4 + rounds / 5 * 10),
    ];
    for (query, count) in expected {
        eventually(LONG, || async {
            let told = prometheus.value(query).await;
            #[allow(clippy::cast_precision_loss)]
            let is_right = told.is_some_and(|told| (told - count as f64).abs() < 1e-9);
            if is_right { Ok(()) } else { Err(format!("{query}: {told:?}, not {count}")) }
        })
        .await;
    }
}

/// One metric of each dashboard is misspelt: the panel that asks for it must be named.
async fn the_checker_finds_wrong_names(prometheus: &Prometheus, boards: &[(String, Value)], from: f64, to: f64) {
    for (file, board) in boards {
        let mut wrong = board.clone();
        let panels = wrong["panels"].as_array_mut().unwrap().iter_mut();
        let asks = |panel: &&mut Value| panel["targets"][0]["expr"].as_str().unwrap().contains("system_bus_");
        let panel = panels.filter(asks).last().unwrap();
        let title = panel["title"].to_string();
        let expression = panel["targets"][0]["expr"].as_str().unwrap().to_owned();
        let changed = expression.replacen("system_bus_", "system_bus_x", 2);
        assert_ne!(changed, expression);
        panel["targets"][0]["expr"] = json!(changed);
        let (empty, _) = look(prometheus, &[(file.clone(), wrong)], from, to).await;
        assert_eq!(empty.len(), 1, "{empty:?}");
        assert!(empty[0].contains(&title), "{empty:?}");
    }
}

async fn the_exposition_is_clean_small_and_there_without_redis(stage: &Stage) {
    let client = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(5)).build().unwrap();
    let scrape = || async {
        let request = client.get(stage.url("/metrics")).header("accept", "text/plain");
        request.send().await.unwrap().text().await.unwrap()
    };
    let text = scrape().await;
    let series = text.lines().filter(|line| !line.starts_with('#')).count();
    assert!(series < 10_000, "{series}");
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("metrics");
    std::fs::write(&file, &text).unwrap();
    let said = succeeds(Command::new("promtool").args(["check", "metrics"]).stdin(std::fs::File::open(file).unwrap()));
    assert_eq!(said, "");
    // Redis holds its connections and says nothing: what was read last is still told, and that it is old.
    stage.redis.pause();
    eventually(LONG, || async {
        let text = scrape().await;
        assert!(text.contains("system_bus_queue_depth{"), "{text}");
        if text.contains("system_bus_redis_up 0") { Ok(()) } else { Err("Redis is still said to be up") }
    })
    .await;
    stage.redis.resume();
    eventually(LONG, || async {
        let text = scrape().await;
        if text.contains("system_bus_redis_reconnects_total 1") { Ok(()) } else { Err("no reconnect is told") }
    })
    .await;
}

//! One trace from the webhook to the last step, as a collector gets it: real deliveries, a real SDK app, OTLP over HTTP.

use std::collections::BTreeMap;

use crate::conformance_support::{LONG, Sdk, Stage};
use crate::support::{HttpSink, Reply, eventually};
use hmac::{Hmac, KeyInit as _, Mac as _};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message as _;
use serde_json::json;

const SECRET: &str = "gh-test-secret-0001";
const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const CALLER: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

fn sign(body: &str) -> String {
    let mut mac = Hmac::<sha2::Sha256>::new_from_slice(SECRET.as_bytes()).unwrap();
    mac.update(body.as_bytes());
    format!("sha256={}", hex::encode(mac.finalize().into_bytes()))
}

fn workflow_run() -> String {
    let vectors: serde_json::Value = serde_json::from_str(include_str!("../vectors/webhooks/github.json")).unwrap();
    vectors["vectors"][0]["request"]["body"].as_str().unwrap().to_owned()
}

/// What the collector has.
fn all_spans(collector: &HttpSink) -> Vec<Span> {
    let requests = collector.received();
    let bodies = requests.iter().filter(|request| request.path == "/v1/traces").map(|request| &request.body);
    bodies
        .flat_map(|body| ExportTraceServiceRequest::decode(&body[..]).unwrap().resource_spans)
        .flat_map(|resource| resource.scope_spans)
        .flat_map(|scope| scope.spans)
        .collect()
}

/// What it has of a trace, by span id.
fn spans_of(collector: &HttpSink, trace: &str) -> BTreeMap<String, Span> {
    let spans = all_spans(collector).into_iter().filter(|span| hex::encode(&span.trace_id) == trace);
    spans.map(|span| (hex::encode(&span.span_id), span)).collect()
}

fn attribute(span: &Span, key: &str) -> String {
    let value = span.attributes.iter().find(|attribute| attribute.key == key).and_then(|a| a.value.clone());
    format!("{value:?}")
}

struct Scene {
    stage: Stage,
    collector: HttpSink,
    target: HttpSink,
    _files: tempfile::TempDir,
}

impl Scene {
    async fn start(settings: &[(&str, &str)]) -> Self {
        let (collector, target) = (HttpSink::start().await, HttpSink::start().await);
        let files = tempfile::tempdir().unwrap();
        let registry = files.path().join("registry.toml");
        let text = format!(
            "[[event]]\nname = \"github/workflow_run.completed\"\nhandler = {{ type = \"inngest\", target = \"conf/hello\" }}\n\
             [[event]]\nname = \"a/http\"\nbackoff = {{ initial = \"10ms\" }}\nhandler = {{ type = \"http\", target = \"{}\" }}\n",
            target.url()
        );
        std::fs::write(&registry, text).unwrap();
        let url = collector.url();
        let own = [
            ("SYSTEM_BUS_REGISTRY", registry.to_str().unwrap()),
            ("GITHUB_WEBHOOK_SECRET", SECRET),
            ("OTEL_EXPORTER_OTLP_ENDPOINT", url.as_str()),
        ];
        let stage = Stage::configured(&[&own, settings].concat()).await;
        Self { stage, collector, target, _files: files }
    }

    async fn deliver(&self, id: &str, trace: &str) {
        let body = workflow_run();
        let answer = reqwest::Client::builder()
            .no_proxy()
            .build()
            .unwrap()
            .post(self.stage.url("/webhooks/github"))
            .header("x-github-event", "workflow_run")
            .header("x-github-delivery", id)
            .header("x-hub-signature-256", sign(&body))
            .header("content-type", "application/json")
            .header("traceparent", trace)
            .body(body)
            .send()
            .await
            .unwrap();
        assert_eq!(answer.status(), 200, "{}", answer.text().await.unwrap());
    }

    async fn send(&self, name: &str, trace: &str) {
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        let request = client.post(self.stage.url("/e/any")).header("traceparent", trace);
        let answer = request.body(json!({ "name": name, "data": {} }).to_string()).send().await.unwrap();
        assert_eq!(answer.status(), 200);
    }

    async fn spans(&self, trace: &str, wanted: &[&str]) -> BTreeMap<String, Span> {
        eventually(LONG, || async {
            let spans = spans_of(&self.collector, trace);
            let missing: Vec<_> =
                wanted.iter().filter(|name| !spans.values().any(|span| span.name == **name)).collect();
            let names: Vec<_> = spans.values().map(|span| &span.name).collect();
            if missing.is_empty() { Ok(spans) } else { Err(format!("no {missing:?} among {names:?}")) }
        })
        .await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_trace_leads_from_the_webhook_to_the_last_step() {
    let scene = Scene::start(&[]).await;
    let app = scene.stage.app(Sdk::Js4).await;
    let slug = format!("{}-hello", app.settings.name);
    scene.deliver("d-1", CALLER).await;
    let (send, step) = ("send github/workflow_run.completed:p1".to_owned(), format!("step {slug}"));
    let (run, work) = (format!("run {slug}"), format!("process inngest/fn:{slug}"));
    let path = ["POST /webhooks/{provider}", &send, "process github/workflow_run.completed", &run, &step];
    let spans = scene.spans(TRACE, &[&path[..], &[&work]].concat()).await;
    // Each span is the child of the one before it, and the first that of the caller.
    let mut parent = "b7ad6b7169203331".to_owned();
    for name in path {
        let named: Vec<_> = spans.iter().filter(|(_, span)| span.name == name).collect();
        assert_eq!(named.len(), 1, "{name} once: {:?}", spans.values().map(|span| &span.name).collect::<Vec<_>>());
        let (id, span) = named[0];
        assert_eq!(hex::encode(&span.parent_span_id), parent, "the parent of {name}");
        assert!(span.end_time_unix_nano >= span.start_time_unix_nano, "{name}");
        parent.clone_from(id);
    }
    let of = |name: &str| spans.values().find(|span| span.name == name).unwrap();
    assert!(attribute(of(&send), "messaging.operation.type").contains("send"));
    assert!(attribute(of(path[2]), "messaging.operation.type").contains("process"));
    assert!(attribute(of(path[0]), "http.response.status_code").contains("200"));
    assert!(attribute(of(&step), "system_bus.step.name").contains("which"));
    let run_id = spans.iter().find(|(_, span)| span.name == run).unwrap().0;
    assert_eq!(&hex::encode(&of(&work).parent_span_id), run_id, "work items are done within the run");
    // What the run ends with is an event of the same trace.
    scene.spans(TRACE, &["send inngest/function.finished:p2"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_gets_the_span_of_its_dispatch_and_a_failed_try_is_a_span_with_an_error() {
    let scene = Scene::start(&[]).await;
    scene.target.reply_next([Reply::status(503)]);
    scene.send("a/http", CALLER).await;
    let requests = scene.target.wait_for(2, LONG).await;
    let spans = eventually(LONG, || async {
        let spans = spans_of(&scene.collector, TRACE);
        let tries = spans.values().filter(|span| span.name == "process a/http").count();
        if tries == 2 { Ok(spans) } else { Err(format!("{tries} tries")) }
    })
    .await;
    for (request, is_error) in requests.iter().zip([true, false]) {
        let context = request.header("traceparent").unwrap();
        let (_, id) = context.strip_suffix("-01").unwrap().rsplit_once('-').unwrap();
        assert!(context.starts_with(&format!("00-{TRACE}-")));
        let status = spans[id].status.as_ref().map(|status| status.code);
        assert_eq!(status == Some(2), is_error, "{:?}", spans[id]);
        assert_eq!(attribute(&spans[id], "error.type").contains("503"), is_error);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_not_trusted_is_only_linked_and_who_is_not_sampled_is_not_told() {
    let settings = [("SYSTEM_BUS_TRUST_TRACEPARENT", "none"), ("OTEL_TRACES_SAMPLER", "parentbased_always_on")];
    let scene = Scene::start(&settings).await;
    scene.send("a/http", CALLER).await;
    let request = scene.target.wait_for(1, LONG).await.remove(0);
    let trace = request.header("traceparent").unwrap().split('-').nth(1).unwrap().to_owned();
    assert_ne!(trace, TRACE);
    let spans = scene.spans(&trace, &["POST /e/{key}", "send a/http:p2", "process a/http"]).await;
    let root = spans.values().find(|span| span.name == "POST /e/{key}").unwrap();
    assert!(root.parent_span_id.is_empty());
    assert_eq!(hex::encode(&root.links[0].trace_id), TRACE);
    assert!(spans_of(&scene.collector, TRACE).is_empty());

    let scene = Scene::start(&[]).await;
    scene.send("a/http", &CALLER.replace("-01", "-00")).await;
    scene.send("a/http", &CALLER.replace(TRACE, "1af7651916cd43dd8448eb211c80319c")).await;
    let requests = scene.target.wait_for(2, LONG).await;
    assert!(requests.iter().any(|request| request.header("traceparent").unwrap().ends_with("-00")));
    scene.spans("1af7651916cd43dd8448eb211c80319c", &["process a/http"]).await;
    assert!(spans_of(&scene.collector, TRACE).is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_decision_of_triage_is_within_the_events_trace_and_a_pass_of_the_observer_is_one_of_its_own() {
    let answer = r#"{"priority":"P1","dedupKey":null,"routeCheck":"confirm","reasoning":"It is soon."}"#;
    let command = json!(["sh", "-c", format!("cat >/dev/null; echo '{answer}'")]).to_string();
    let settings = [
        ("QUEUE_TRIAGE_MODE", "shadow"),
        ("QUEUE_TRIAGE_PROVIDER", "command"),
        ("SYSTEM_BUS_MODEL_COMMAND", command.as_str()),
        ("QUEUE_OBSERVER_MODE", "dry-run"),
        ("QUEUE_OBSERVER_PROVIDER", "rules"),
        ("OTEL_TRACES_SAMPLER", "always_on"),
    ];
    let scene = Scene::start(&settings).await;
    scene.send("discovery/noted", CALLER).await;
    let model = "chat anthropic/claude-haiku-4-5";
    let spans = scene.spans(TRACE, &["send discovery/noted:p2", "triage discovery/noted", model]).await;
    let of = |name: &str| spans.iter().find(|(_, span)| span.name == name).unwrap();
    assert_eq!(&hex::encode(&of("triage discovery/noted").1.parent_span_id), of("send discovery/noted:p2").0);
    assert_eq!(&hex::encode(&of(model).1.parent_span_id), of("triage discovery/noted").0);
    assert!(attribute(of("triage discovery/noted").1, "system_bus.triage.outcome").contains("completed"));
    assert!(attribute(of(model).1, "gen_ai.provider.name").contains("command"));

    let pass = eventually(LONG, || async {
        let spans = all_spans(&scene.collector);
        spans.into_iter().find(|span| span.name == "observe").ok_or("no pass is told")
    })
    .await;
    assert!(pass.parent_span_id.is_empty());
    assert!(attribute(&pass, "system_bus.observer.mode").contains("dry-run"));
}

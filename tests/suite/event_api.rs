//! The event API through the real router: what is accepted, what is refused, and in which words.

use crate::ingest_support::{Server, client};
use secrecy::SecretString;
use serde_json::{Value, json};
use system_bus::ingest::event_api::EventApiSettings;
use system_bus::ingest::gateway::GatewaySettings;
use system_bus::ingest::providers::Senders;

async fn server(settings: EventApiSettings) -> Server {
    Server::start(GatewaySettings::default(), Senders::default(), settings).await
}

fn ulids(body: &Value) -> Vec<String> {
    let ids: Vec<String> = body["ids"].as_array().unwrap().iter().map(|id| id.as_str().unwrap().to_owned()).collect();
    assert!(ids.iter().all(|id| system_bus::streams::public_id::parse(id).is_some()), "{body}");
    ids
}

async fn post(server: &Server, path: &str, body: impl Into<reqwest::Body>) -> (u16, Value) {
    answer(client().post(server.url(path)).body(body)).await
}

async fn answer(request: reqwest::RequestBuilder) -> (u16, Value) {
    let response = request.send().await.unwrap();
    let status = response.status().as_u16();
    let text = response.text().await.unwrap();
    assert!(text.ends_with('\n'));
    let body: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(body["status"], status, "{body}");
    (status, body)
}

#[tokio::test]
async fn an_event_is_stored_to_the_letter_whatever_the_content_type() {
    let server = server(EventApiSettings::default()).await;
    let data = r#"{"n":9007199254740993,"b":1,"a":1.0,"b":2}"#;
    let body = format!(" \n{{\"name\":\"a/b\",\"id\":\"e-1\",\"ts\":1790000000000,\"data\":{data}}}");
    let mut answers = Vec::new();
    for kind in ["text/plain", "application/json", "application/octet-stream"] {
        let request = client().post(server.url("/e/any")).header("content-type", kind).body(body.clone());
        let (status, body) = answer(request).await;
        assert_eq!((status, ulids(&body).len()), (200, 1));
        answers.push(body);
    }
    assert!(answers.iter().all(|body| *body == answers[0]), "a repetition is answered as the first: {answers:?}");
    let events = server.memory.events();
    assert_eq!(events.len(), 1, "the same id is stored once");
    assert_eq!((events[0].data.as_str(), events[0].ts), (data, Some(1_790_000_000_000)));
}

#[tokio::test]
async fn a_batch_is_answered_in_order_and_stored_whole_or_not_at_all() {
    let server = server(EventApiSettings::default()).await;
    let (status, body) =
        post(&server, "/e/k", r#"[{"name":"a/b","id":"1"},{"name":"a/c"},{"name":"a/d","id":"3"}]"#).await;
    assert_eq!((status, ulids(&body).len()), (200, 3));
    let stored: Vec<_> = server.memory.events().into_iter().map(|event| event.id.unwrap()).collect();
    assert_eq!((&*stored[0], &stored[1], &*stored[2]), ("1", &ulids(&body)[1], "3"));
    let (status, body) = post(&server, "/e/k", r#"[{"name":"a/b"},{"name":"a b"}]"#).await;
    assert_eq!((status, &body["ids"]), (400, &json!([])));
    assert!(body["error"].as_str().unwrap().starts_with("event 1: "), "{body}");
    assert_eq!(server.memory.events().len(), 3);
}

#[tokio::test]
async fn a_seeded_request_has_the_same_ids_each_time_and_is_stored_once() {
    let server = server(EventApiSettings::default()).await;
    let mut answers = Vec::new();
    for _ in 0..2 {
        let request =
            client().post(server.url("/e/k")).header("x-inngest-event-id-seed", "1795469392061,AAECAwQFBgcICQ==");
        answers.push(answer(request.body(r#"[{"name":"a/b"},{"name":"a/c","id":"mine"}]"#)).await.1);
    }
    let expected: Vec<String> = (1..=2)
        .map(|n| system_bus::streams::public_id::seeded("1795469392061,AAECAwQFBgcICQ==", n).unwrap().to_string())
        .collect();
    assert_eq!((ulids(&answers[0]), ulids(&answers[1])), (expected.clone(), expected));
    assert_eq!(server.memory.events().len(), 2);
}

#[tokio::test]
async fn what_breaks_a_rule_is_refused_in_plain_words() {
    let server = server(EventApiSettings::default()).await;
    let too_many = format!("[{}]", vec![r#"{"name":"a/b"}"#; 5_001].join(","));
    let cases = [
        ("", "the request is empty"),
        (" \n ", "the request is empty"),
        ("[]", "the request holds no event"),
        ("hello", "not valid JSON"),
        ("{\"name\":", "not valid JSON: EOF while parsing a value at line 1 column 8"),
        ("[1]", "an event must be a JSON object"),
        ("{}", "event name is empty"),
        (r#"{"name":" "}"#, "event name is empty"),
        (r#"{"name":7}"#, "name must be a string"),
        (r#"{"name":"inngest/x"}"#, "event name is reserved for internal use: inngest/x"),
        (r#"{"name":"InnGest/x"}"#, "event name is reserved for internal use: InnGest/x"),
        (r#"{"name":"a/b","data":[1]}"#, "data must be a JSON object"),
        (r#"{"name":"a/b","data":"x"}"#, "data must be a JSON object"),
        (r#"{"name":"a/b","id":7}"#, "id must be a string"),
        (r#"{"name":"a/b","ts":1.5}"#, "ts must be an integer"),
        (r#"{"name":"a/b","ts":315532799999}"#, "ts 315532799999 lies outside"),
        (r#"{"name":"a/b","ts":4102444800001}"#, "ts 4102444800001 lies outside"),
        (r#"{"name":"a/b","meta":1}"#, "meta must be a JSON object"),
        (too_many.as_str(), "Cannot have more than 5000 events in a batch"),
    ];
    for (body, error) in cases {
        let (status, answer) = post(&server, "/e/k", body.to_owned()).await;
        assert_eq!((status, &answer["ids"]), (400, &json!([])), "{error}");
        assert!(answer["error"].as_str().unwrap().contains(error), "{error}: {answer}");
    }
    assert_eq!(post(&server, "/e/k", vec![b'{', 0xff, b'}']).await.0, 400);
    assert!(server.memory.events().is_empty());
}

#[tokio::test]
async fn an_event_over_the_limit_is_answered_413_with_both_sizes() {
    let settings = EventApiSettings { max_event_bytes: 40, max_body_bytes: 100, ..EventApiSettings::default() };
    let server = server(settings).await;
    let event = |size: usize| format!("{{\"name\":\"a/b\",\"data\":{{\"x\":\"{}\"}}}}", "x".repeat(size - 30));
    assert_eq!(event(40).len(), 40);
    assert_eq!(post(&server, "/e/k", event(40)).await.0, 200);
    let (status, body) = post(&server, "/e/k", event(41)).await;
    assert_eq!((status, &body["error"]), (413, &json!("Event is over the max size: Max 40 bytes / Size 41 bytes")));
    assert_eq!(post(&server, "/e/k", event(101)).await.0, 413);
}

#[tokio::test]
async fn while_the_store_refuses_the_sender_is_told_when_to_come_back() {
    let server = server(EventApiSettings::default()).await;
    server.memory.take_down();
    let response = client().post(server.url("/e/k")).body(r#"{"name":"a/b"}"#).send().await.unwrap();
    assert_eq!((response.status().as_u16(), &response.headers()["retry-after"]), (503, &"5".parse().unwrap()));
}

#[tokio::test]
async fn configured_keys_are_required() {
    let keys = ["one", "two"].map(SecretString::from).to_vec();
    let server = server(EventApiSettings { keys, ..EventApiSettings::default() }).await;
    for (path, status) in
        [("/e/one", 200), ("/e/two", 200), ("/e/three", 401), ("/e/on", 401), ("/e/", 401), ("/e", 401)]
    {
        assert_eq!(post(&server, path, r#"{"name":"a/b"}"#).await.0, status, "{path}");
    }
    assert_eq!(post(&server, "/e/three", "{}").await.1["error"], "Event key not found");
    assert_eq!(post(&server, "/e/", "{}").await.1["error"], "Event key is required");
}

#[tokio::test]
async fn without_keys_only_this_machine_may_send() {
    let server = server(EventApiSettings::default()).await;
    assert_eq!(post(&server, "/e/any", r#"{"name":"a/b"}"#).await.0, 200);
    for header in ["x-forwarded-for", "forwarded", "x-real-ip"] {
        let forwarded = client().post(server.url("/e/any")).header(header, "203.0.113.9").body(r#"{"name":"a/b"}"#);
        assert_eq!(answer(forwarded).await.0, 401, "{header}");
    }
}

#[tokio::test]
async fn our_own_fields_are_taken_and_an_unknown_priority_is_reported() {
    let server = server(EventApiSettings::default()).await;
    let body = r#"{"name":"a/b","priority":"P0","dedup_key":"k","source":"mine","meta":{"m":1.0},"user":{"id":1},
        "v":"2","data":{"_inngest":{},"x":1e3}}"#;
    assert_eq!(post(&server, "/e/k", body).await.1.get("priorityIgnored"), None);
    let event = server.memory.events().pop().unwrap();
    assert_eq!((event.priority.label(), event.dedup_key.as_deref(), event.source.as_str()), ("P0", Some("k"), "mine"));
    assert_eq!(event.data.as_str(), r#"{"x":1e3}"#);
    let meta = r#"{"envelope_version":"1","source":"mine","m":1.0,"user":{"id":1},"v":"2"}"#;
    assert_eq!(event.meta.unwrap().as_str(), meta);
    let (_, body) = post(&server, "/e/k", r#"[{"name":"a/b","priority":7},{"name":"a/b","priority":1}]"#).await;
    assert_eq!(body["priorityIgnored"], true);
    let priorities: Vec<_> = server.memory.events().iter().map(|event| event.priority.label()).collect();
    assert_eq!(priorities, ["P0", "P2", "P1"]);
}

#[tokio::test]
async fn environment_and_trace_headers_stay_with_the_event() {
    let server = server(EventApiSettings::default()).await;
    const TRACE: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let request = client().post(server.url("/e/k")).header("x-inngest-env", "prod").header("traceparent", TRACE);
    answer(request.body(r#"{"name":"a/b","ts":0,"data":null}"#)).await;
    let event = server.memory.events().pop().unwrap();
    assert_eq!(event.meta.unwrap().to_value()["env"], "prod");
    assert_eq!(event.trace.unwrap().to_value()["traceparent"], TRACE);
    assert_eq!((event.ts, event.data.as_str()), (None, "{}"));
}

#[tokio::test]
async fn any_page_may_send_and_other_methods_are_refused() {
    let server = server(EventApiSettings::default()).await;
    let preflight = client().request(reqwest::Method::OPTIONS, server.url("/e/k")).send().await.unwrap();
    assert_eq!(preflight.status(), 204);
    for (name, value) in [
        ("access-control-allow-origin", "*"),
        ("access-control-allow-methods", "GET, POST, PUT, DELETE, OPTIONS"),
        ("access-control-allow-headers", "*"),
        ("access-control-max-age", "3600"),
    ] {
        assert_eq!(preflight.headers()[name], value);
    }
    assert_eq!(answer(client().get(server.url("/e/k"))).await.0, 405);
}

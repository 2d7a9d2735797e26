//! `joelclaw webhooks endpoints`: what operators see, and what they are refused.

use serde_json::json;

use crate::outbound_support::Outbound;
use crate::support::{HttpSink, Reply};

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_is_added_seen_changed_and_removed_and_its_secret_is_shown_once() {
    let outbound = Outbound::start("1s").await;
    let sink = HttpSink::start().await;
    let (id, secret) =
        outbound.endpoint(&sink, "a/*,b/c", &["--rate", "5", "--header", "authorization: Bearer t"]).await;
    assert!(id.starts_with("ep_") && secret.starts_with("whsec_"));
    let listed = outbound.joelclaw.run(&["webhooks", "endpoints", "list", "--json"]).await.assert_success();
    assert!(!listed.stdout.contains(&secret) && !listed.stdout.contains("Bearer"), "{}", listed.stdout);
    let endpoint = &listed.json()["result"]["endpoints"][0];
    assert_eq!(endpoint["id"], json!(id));
    assert_eq!(endpoint["events"], json!(["a/*", "b/c"]));
    assert_eq!((&endpoint["enabled"], &endpoint["rateLimitPerSecond"]), (&json!(true), &json!(5.0)));

    let changed = outbound.endpoints(&["update", &id, "--events", "c/d", "--no-rate", "--fifo", "true"]).await;
    assert_eq!((&changed["events"], &changed["fifo"]), (&json!(["c/d"]), &json!(true)));
    assert_eq!(changed["rateLimitPerSecond"], json!(null));
    assert_eq!(outbound.endpoints(&["disable", &id, "--reason", "moved"]).await["enabled"], false);
    let shown = outbound.endpoints(&["show", &id[..12]]).await;
    assert_eq!((&shown["disabledReason"], &shown["disabledDetail"]), (&json!("operator"), &json!("moved")));

    let refused = outbound.joelclaw.run(&["webhooks", "endpoints", "remove", &id, "--json"]).await.assert_code(4);
    assert_eq!(refused.json()["error"]["code"], "CONFIRMATION_REQUIRED");
    outbound.endpoints(&["remove", &id, "--yes"]).await;
    let gone = outbound.joelclaw.run(&["webhooks", "endpoints", "show", &id, "--json"]).await.assert_code(5);
    assert_eq!(gone.json()["error"]["code"], "ENDPOINT_NOT_FOUND");
    let journaled: Vec<String> = outbound
        .stage
        .facts()
        .await
        .into_iter()
        .filter(|fact| fact.component == "outbound")
        .map(|fact| fact.action.into_owned())
        .collect();
    let actions = ["added", "updated", "disabled", "removed"].map(|action| format!("webhook.endpoint.{action}"));
    assert_eq!(journaled, actions);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_can_not_work_is_refused_with_its_code() {
    let outbound = Outbound::start("1s").await;
    for (args, code, exit) in [
        (vec!["ftp://x/", "--events", "a/b"], "ENDPOINT_INVALID_URL", 2),
        (vec!["https://user:secret-word@x/", "--events", "a/b"], "ENDPOINT_INVALID_URL", 2),
        (vec!["https://x/", "--events", "a b"], "ENDPOINT_INVALID_PATTERN", 2),
        (vec!["https://x/", "--events", "a/b", "--filter", "event.data.("], "ENDPOINT_INVALID_FILTER", 2),
        (vec!["https://x/", "--events", "a/b", "--header", "webhook-id: 1"], "ENDPOINT_INVALID_HEADER", 2),
        (vec!["https://x/", "--events", "a/b", "--secret", "short"], "ENDPOINT_INVALID_SECRET", 2),
        (vec!["https://x/", "--events", "a/b", "--rate", "0"], "ENDPOINT_INVALID_RATE", 2),
        (vec!["http://10.0.0.1/", "--events", "a/b"], "ENDPOINT_ADDRESS_REFUSED", 4),
    ] {
        let all = [&["webhooks", "endpoints", "add"], args.as_slice(), &["--json"]].concat();
        let ran = outbound.joelclaw.run(&all).await.assert_code(exit);
        assert_eq!(ran.json()["error"]["code"], code, "{args:?}");
        assert!(!ran.stdout.contains("secret-word"));
        outbound.joelclaw.run(&["explain", code]).await.assert_success();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_test_says_what_the_endpoint_answered() {
    let outbound = Outbound::start("1s").await;
    let sink = HttpSink::start().await;
    sink.reply_next([Reply::status(202).body("fine"), Reply::status(401).body("who are you")]);
    let (id, _) = outbound.endpoint(&sink, "a/*", &[]).await;
    let taken = outbound.endpoints(&["test", &id]).await;
    assert_eq!((&taken["delivered"], &taken["status"], &taken["answer"]), (&json!(true), &json!(202), &json!("fine")));
    assert_eq!(sink.received()[0].json()["type"], "webhook/endpoint.test");
    let ran = outbound.joelclaw.run(&["webhooks", "endpoints", "test", &id, "--json"]).await.assert_code(1);
    assert_eq!(ran.json()["ok"], false);
    assert_eq!(ran.json()["result"]["error"], "HTTP 401: who are you");
}

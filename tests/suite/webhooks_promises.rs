//! What the gateway promises beyond single vectors, over a real Redis and the real binary: one delivery is stored once,
//! however it comes, and no valid one is refused while secrets change.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use serde_json::{Value, json};

use crate::ingest_support::live::{BODY, LONG, Live, SECRET, serve};
use crate::ingest_support::{client, octokit_examples};
use crate::support::{Joelclaw, TestRedis, eventually, free_port};

async fn answer(request: reqwest::RequestBuilder) -> (u16, Value) {
    let response = request.send().await.unwrap();
    let status = response.status().as_u16();
    (status, serde_json::from_slice(&response.bytes().await.unwrap()).unwrap_or(Value::Null))
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_thousand_copies_at_once_one_is_stored_and_the_others_are_told_so() {
    let served = Live::start(&[]).await;
    let client = client();
    let copies = (0..1000).map(|_| answer(served.signed(&client, "package", "same", BODY, SECRET)));
    let mut events = 0;
    for (status, body) in join_all(copies).await {
        match (status, &body["duplicate"]) {
            (200, Value::Bool(true)) | (409, _) => {}
            (200, _) => events += body["events"].as_u64().unwrap(),
            _ => panic!("{status}: {body}"),
        }
    }
    assert_eq!(events, 1);
    assert_eq!(served.stored().await, ["same"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_all_published_examples_six_are_stored_in_redis() {
    let served = Live::start(&[]).await;
    let (client, examples) = (client(), octokit_examples());
    let (mut sent, mut emitted) = (0, Vec::new());
    for event in examples.as_array().unwrap() {
        for example in event["examples"].as_array().unwrap() {
            let (id, name) = (format!("corpus-{sent}"), event["name"].as_str().unwrap());
            let (status, body) = answer(served.signed(&client, name, &id, &example.to_string(), SECRET)).await;
            assert_eq!(status, 200, "{name}: {body}");
            if body["events"] == 1 {
                emitted.push(id);
            }
            sent += 1;
        }
    }
    assert_eq!((sent, emitted.len()), (329, 6));
    let mut ids = served.ids("github/workflow_run.completed").await;
    ids.extend(served.ids("github/package.published").await);
    assert_eq!(ids.len(), 6);
    for delivery in emitted {
        assert_eq!(ids.iter().filter(|id| id.contains(&format!("-{delivery}"))).count(), 1, "{delivery}: {ids:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_valid_delivery_is_refused_while_a_secret_is_rotated() {
    const NEW: &str = "gh-test-secret-0002";
    let served = Live::start(&[]).await;
    let client = client();
    let (is_new_known, is_over) = (AtomicBool::new(false), AtomicBool::new(false));
    let sent = AtomicUsize::new(0);
    // Senders go over to the new secret once the operator says that it is in force.
    let load = |sender: usize| {
        let (served, client, is_new_known, is_over, sent) = (&served, &client, &is_new_known, &is_over, &sent);
        async move {
            let mut statuses = HashMap::<u16, usize>::new();
            for n in 0.. {
                if is_over.load(Ordering::SeqCst) {
                    break;
                }
                let is_new = is_new_known.load(Ordering::SeqCst) && (sender + n).is_multiple_of(2);
                let (secret, id) = (if is_new { NEW } else { SECRET }, format!("r-{sender}-{n}"));
                let (status, _) = answer(served.signed(client, "package", &id, BODY, secret)).await;
                *statuses.entry(status).or_default() += 1;
                sent.fetch_add(1, Ordering::SeqCst);
            }
            statuses
        }
    };
    let more = |count: usize| {
        let (sent, from) = (&sent, sent.load(Ordering::SeqCst));
        eventually(LONG, move || async move {
            let now = sent.load(Ordering::SeqCst);
            if now >= from + count { Ok(()) } else { Err(now) }
        })
    };
    let operator = async {
        more(50).await;
        // First what stays valid, then what becomes so: no moment knows only the new one.
        served.joelclaw.env_file_line("GITHUB_WEBHOOK_SECRET_PREVIOUS", SECRET);
        served.joelclaw.env_file_line("GITHUB_WEBHOOK_SECRET", NEW);
        eventually(LONG, || async {
            let (status, _) = answer(served.signed(&client, "package", "trial", BODY, NEW)).await;
            if status == 200 { Ok(()) } else { Err(status) }
        })
        .await;
        is_new_known.store(true, Ordering::SeqCst);
        more(200).await;
        is_over.store(true, Ordering::SeqCst);
    };
    let (statuses, ()) = tokio::join!(join_all((0..8).map(load)), operator);
    for of_sender in statuses {
        assert_eq!(of_sender.keys().collect::<Vec<_>>(), [&200], "{of_sender:?}");
    }
    // The old one ends with its line.
    served.joelclaw.env_file_line("GITHUB_WEBHOOK_SECRET_PREVIOUS", "");
    eventually(LONG, || async {
        let (status, _) = answer(served.signed(&client, "package", "late", BODY, SECRET)).await;
        // The trials before were failures of the same address.
        if matches!(status, 401 | 429) { Ok(()) } else { Err(status) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_append_whose_answer_is_lost_and_its_retry_are_stored_once() {
    let mut served = Live::start(&[("WEBHOOK_SPOOL", "off")]).await;
    let client = client();
    assert_eq!(served.deliver(&client, "before").await, 200);
    // It takes the append into its socket, and answers nobody.
    served.stage.redis.pause();
    let (status, body) = answer(served.signed(&client, "package", "mid", BODY, SECRET)).await;
    assert_eq!((status, &body["code"]), (503, &json!("append_failed")), "{body}");
    served.stage.redis.resume();
    eventually(LONG, || async {
        let status = served.deliver(&client, "mid").await;
        if status == 200 { Ok(()) } else { Err(status) }
    })
    .await;
    assert_eq!(served.stored().await, ["before", "mid"]);

    // The same with the server gone in the middle.
    served.stage.redis.pause();
    let lost = tokio::spawn(served.signed(&client, "package", "crash", BODY, SECRET).send());
    tokio::time::timeout(Duration::from_secs(1), async {
        while !lost.is_finished() {
            tokio::task::yield_now().await
        }
    })
    .await
    .unwrap_err();
    served.process.kill_9().await;
    assert!(lost.await.unwrap().is_err());
    served.stage.redis.resume();
    served.process = serve(&served.joelclaw, &served.url).await;
    assert_eq!(served.deliver(&client, "crash").await, 200);
    assert_eq!(served.stored().await, ["before", "mid", "crash"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn while_redis_is_away_a_crowd_is_refused_and_taken_again_afterwards() {
    let mut served = Live::start(&[("WEBHOOK_SPOOL", "off")]).await;
    let client = client();
    served.stage.redis.kill_9();
    // The first one finds out.
    assert_eq!(served.deliver(&client, "first").await, 503);
    let refused = (0..400).map(|n| {
        let request = served.signed(&client, "package", &format!("n-{n}"), BODY, SECRET);
        async move {
            let response = request.send().await.unwrap();
            let retry_after = response.headers()["retry-after"].to_str().unwrap().to_owned();
            (response.status().as_u16(), retry_after)
        }
    });
    for answer in join_all(refused).await {
        assert_eq!(answer, (503, "30".to_owned()));
    }
    served.stage.redis.restart().await;
    eventually(LONG, || async {
        let status = served.deliver(&client, "after").await;
        if status == 200 { Ok(()) } else { Err(status) }
    })
    .await;
    assert_eq!(served.deliver(&client, "straight").await, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_disables_a_provider_and_enables_it_again() {
    let served = Live::start(&[("WEBHOOK_FILTER_GITHUB", "github/*,!github/workflow_run.*")]).await;
    let client = client();
    let ran = served.joelclaw.run(&["webhooks", "disable", "github", "--reason", "frozen", "--json"]).await;
    assert_eq!(ran.assert_success().json()["result"]["changed"], true);
    let answered = eventually(LONG, || async {
        let request = served.signed(&client, "package", "off", BODY, SECRET);
        let response = request.send().await.unwrap();
        let (status, retry) = (response.status().as_u16(), response.headers().contains_key("retry-after"));
        let body: Value = serde_json::from_slice(&response.bytes().await.unwrap()).unwrap();
        if status == 503 { Ok((retry, body)) } else { Err(status) }
    })
    .await;
    assert_eq!(answered, (true, json!({ "ok": false, "error": "Provider disabled", "code": "provider_disabled" })));
    let sources = served.joelclaw.run(&["webhooks", "sources", "--json"]).await.assert_success().json();
    let github = sources["result"]["sources"].as_array().unwrap().iter().find(|source| source["id"] == "github");
    assert_eq!(github.unwrap()["disabled"]["reason"], "frozen");
    served.joelclaw.run(&["webhook", "enable", "github"]).await.assert_success();
    eventually(LONG, || async {
        let status = served.deliver(&client, "on").await;
        if status == 200 { Ok(()) } else { Err(status) }
    })
    .await;
    // The filter leaves the others out.
    let run = r#"{"action":"completed","workflow_run":{"id":1}}"#;
    let (status, body) = answer(served.signed(&client, "workflow_run", "left-out", run, SECRET)).await;
    assert_eq!((status, &body["events"]), (200, &json!(0)));
    assert!(served.ids("github/workflow_run.completed").await.is_empty());
    let metrics = client.get(format!("{}/metrics", served.url)).send().await.unwrap().text().await.unwrap();
    assert!(metrics.contains(r#"system_bus_webhook_secret_slot_total{provider="github",slot="current"}"#), "{metrics}");
    assert!(metrics.contains("system_bus_webhook_spool_entries 0"), "{metrics}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_of_yours_is_sent_signed_and_a_delivery_says_which_check_it_fails() {
    let served = Live::start(&[]).await;
    let file = |name: &str, text: &str| {
        let path = served.joelclaw.home().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let (body, other) = (file("body.json", BODY), file("other.json", r#"{"action":"published"}"#));
    let send = ["webhook", "send", "github", "--event", "package", "--id", "mine", "--file", &body, "--json"];
    let sent = served.joelclaw.run(&send).await.assert_success().json();
    assert_eq!((&sent["result"]["status"], &sent["result"]["events"]), (&json!(200), &json!(1)), "{sent}");
    assert_eq!(served.stored().await, ["mine"]);
    served.joelclaw.run(&["webhooks", "send", "mux", "--event", "x", "--file", &body]).await.assert_code(2);

    let signature = crate::ingest_support::live::signature(BODY, SECRET);
    let headers = json!({ "X-GitHub-Event": "package", "x-github-delivery": "d-1", "x-hub-signature-256": signature });
    let headers = file("headers.json", &headers.to_string());
    let verify = |body: String| {
        let (joelclaw, headers) = (&served.joelclaw, &headers);
        async move {
            let args = ["webhooks", "verify", "github", "--headers", headers, "--body", &body, "--json"];
            joelclaw.run(&args).await
        }
    };
    let good = verify(body.clone()).await.assert_success().json();
    assert_eq!(good["result"]["valid"], true, "{good}");
    assert_eq!(good["result"]["events"][0]["id"], "github-package-published-d-1");
    let bad = verify(other).await.assert_code(1).json();
    let failed = bad["result"]["checks"].as_array().unwrap().iter().find(|check| check["ok"] == false).unwrap();
    assert_eq!((&failed["check"], &failed["detail"]), (&json!("signature"), &json!("mismatch")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_that_is_taken_is_exit_78() {
    let redis = TestRedis::start().await;
    let holder = std::net::TcpListener::bind(("127.0.0.1", free_port())).unwrap();
    let joelclaw = Joelclaw::new(&redis.url());
    joelclaw.env_file_line("WORKER_PORT", &holder.local_addr().unwrap().port().to_string());
    let ran = joelclaw.run(&["serve"]).await.assert_code(78);
    let said = format!("{}{}", ran.stdout, ran.stderr);
    assert!(said.contains("in use by another process"), "{said}");
}

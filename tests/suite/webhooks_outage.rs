//! Redis killed and started again in the middle of a load of signed deliveries: what was answered 2xx is appended exactly
//! once, and everything else was answered 503.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::{Value, json};

use crate::ingest_support::client;
use crate::ingest_support::live::{BODY, LONG, Live, serve};
use crate::support::{TestRedis, eventually};

/// Delivers `count`, 24 at a time, and kills Redis after a third of the answers; starts it again after another third.
async fn load(served: &mut Live, count: usize) -> HashMap<String, u16> {
    let answered = Arc::new(AtomicUsize::new(0));
    let mut redis = std::mem::replace(&mut served.stage.redis, TestRedis::start().await);
    let outage = {
        let answered = answered.clone();
        async move {
            let passed = |share: usize| {
                let answered = answered.clone();
                async move {
                    eventually(LONG, || async {
                        let done = answered.load(Ordering::SeqCst);
                        if done >= share { Ok(()) } else { Err(done) }
                    })
                    .await;
                }
            };
            passed(count / 3).await;
            redis.kill_9();
            passed(2 * count / 3).await;
            redis.restart().await;
            redis
        }
    };
    let next = AtomicUsize::new(0);
    let (client, shared) = (client(), &*served);
    let deliver = || async {
        let mut statuses = Vec::new();
        loop {
            let n = next.fetch_add(1, Ordering::SeqCst);
            if n >= count {
                return statuses;
            }
            let id = format!("d-{n}");
            statuses.push((id.clone(), shared.deliver(&client, &id).await));
            answered.fetch_add(1, Ordering::SeqCst);
        }
    };
    let delivering = futures_util::future::join_all((0..24).map(|_| deliver()));
    let (statuses, redis) = tokio::join!(delivering, outage);
    let statuses = statuses.into_iter().flatten().collect();
    served.stage.redis = redis;
    statuses
}

/// Each 2xx is stored once, all others are 503, and nothing is stored twice.
async fn assert_kept(served: &Live, statuses: &HashMap<String, u16>) {
    let stored = served.stored().await;
    let mut counts: HashMap<&str, usize> = HashMap::new();
    for id in &stored {
        *counts.entry(id).or_default() += 1;
    }
    assert!(counts.values().all(|count| *count == 1), "something is stored twice");
    for (id, status) in statuses {
        match status {
            200..=299 => assert!(counts.contains_key(id.as_str()), "{id} was answered {status} and is not stored"),
            503 => {}
            status => panic!("{id} was answered {status}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_spool_every_delivery_is_stored_once_or_answered_503() {
    let mut served = Live::start(&[("WEBHOOK_SPOOL", "off")]).await;
    let statuses = load(&mut served, 300).await;
    assert_kept(&served, &statuses).await;
    let of = |status: u16| statuses.values().filter(|answered| **answered == status).count();
    assert!(of(200) >= 100 && of(503) > 0, "{} were 200, {} were 503", of(200), of(503));
    assert_eq!(of(202), 0);
    // What was refused is taken when it is sent again.
    let refused = statuses.iter().find(|(_, status)| **status == 503).unwrap().0;
    assert_eq!(served.deliver(&client(), refused).await, 200);
    served.process.terminate();
    served.process.wait_exit(LONG).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_a_spool_every_delivery_is_taken_and_stored_once() {
    let mut served = Live::start(&[]).await;
    let statuses = load(&mut served, 600).await;
    served.wait_until_drained().await;
    assert_kept(&served, &statuses).await;
    let of = |status: u16| statuses.values().filter(|answered| **answered == status).count();
    assert!(of(200) >= 200 && of(202) > 0, "{} were 200, {} were 202", of(200), of(202));
    assert_eq!(served.stored().await.len(), 600);
    served.process.terminate();
    served.process.wait_exit(LONG).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_spooled_survives_a_kill_and_is_drained_in_order() {
    let mut served = Live::start(&[]).await;
    let client = client();
    assert_eq!(served.deliver(&client, "first").await, 200);
    served.stage.redis.kill_9();
    for n in 0..20 {
        assert_eq!(served.deliver(&client, &format!("s-{n}")).await, 202);
    }
    // A provider that sends again is told to.
    let unsigned = client.post(format!("{}/webhooks/github", served.url)).body(BODY).send().await.unwrap();
    assert_eq!(unsigned.status(), 401, "an outage opens no door");
    served.process.kill_9().await;
    assert!(served.spool_files() > 0);
    served.stage.redis.restart().await;
    served.process = serve(&served.joelclaw, &served.url).await;
    served.wait_until_drained().await;
    let expected: Vec<String> = ["first".to_owned()].into_iter().chain((0..20).map(|n| format!("s-{n}"))).collect();
    assert_eq!(served.stored().await, expected);
    // Known by its id, although it was spooled.
    assert_eq!(served.deliver(&client, "s-3").await, 200);
    assert_eq!(served.stored().await.len(), expected.len());
    served.process.terminate();
    served.process.wait_exit(LONG).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_corrupt_file_is_set_aside_and_holds_nothing_up() {
    let mut served = Live::start(&[]).await;
    let client = client();
    served.stage.redis.kill_9();
    assert_eq!(served.deliver(&client, "kept").await, 202);
    served.process.kill_9().await;
    let dir = served.joelclaw.home().join(".joelclaw/webhook-spool");
    // Its name sorts before the other.
    std::fs::write(dir.join("01ARZ3NDEKTSV4RRFFQ69G5FAV.mpk"), b"\xc1 no delivery").unwrap();
    served.stage.redis.restart().await;
    served.process = serve(&served.joelclaw, &served.url).await;
    served.wait_until_drained().await;
    assert_eq!(served.stored().await, ["kept"]);
    assert!(dir.join("bad/01ARZ3NDEKTSV4RRFFQ69G5FAV.mpk").exists());
    served.process.terminate();
    served.process.wait_exit(LONG).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_spool_is_answered_503() {
    let mut served = Live::start(&[("WEBHOOK_SPOOL_MAX_BYTES", "65536")]).await;
    let client = client();
    served.stage.redis.kill_9();
    let mut answers = Vec::new();
    while answers.last() != Some(&503) && answers.len() < 1000 {
        answers.push(served.deliver(&client, &format!("f-{}", answers.len())).await);
    }
    let taken = answers.len() - 1;
    assert!(taken > 20 && answers[..taken].iter().all(|status| *status == 202), "{answers:?}");
    let response: Value = {
        let ready = client.get(format!("{}/health/ready", served.url)).send().await.unwrap();
        serde_json::from_slice(&ready.bytes().await.unwrap()).unwrap()
    };
    assert_eq!(response["checks"]["spool"], "ok", "a young spool is no fault: {response}");
    let secrets = &response["checks"]["secrets"];
    assert_eq!((&secrets["github"], &secrets["vercel"]), (&json!("configured"), &json!("missing")), "{response}");
    // Another process finds it full, and drains it.
    served.restart().await;
    assert_eq!(served.deliver(&client, "one-more").await, 503);
    served.stage.redis.restart().await;
    served.wait_until_drained().await;
    assert_eq!(served.stored().await.len(), taken);
    assert_eq!(served.deliver(&client, "one-more").await, 200);
    served.process.terminate();
    served.process.wait_exit(LONG).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn files_that_a_crash_left_after_their_append_are_known_and_add_nothing() {
    let mut served = Live::start(&[]).await;
    let client = client();
    served.stage.redis.kill_9();
    for n in 0..30 {
        assert_eq!(served.deliver(&client, &format!("c-{n}")).await, 202);
    }
    let dir = served.joelclaw.home().join(".joelclaw/webhook-spool");
    let aside = served.joelclaw.home().join("aside");
    std::fs::create_dir(&aside).unwrap();
    let files = || std::fs::read_dir(&dir).unwrap().map(|file| file.unwrap().path());
    for file in files().filter(|file| file.extension().is_some_and(|end| end == "mpk")) {
        std::fs::copy(&file, aside.join(file.file_name().unwrap())).unwrap();
    }
    served.stage.redis.restart().await;
    served.wait_until_drained().await;
    let stored = served.stored().await;
    assert_eq!(stored, (0..30).map(|n| format!("c-{n}")).collect::<Vec<_>>());
    // As if it had been killed between the append and the removal of the files.
    served.process.kill_9().await;
    for file in std::fs::read_dir(&aside).unwrap().map(|file| file.unwrap().path()) {
        std::fs::copy(&file, dir.join(file.file_name().unwrap())).unwrap();
    }
    assert!(served.spool_files() > 0);
    served.process = serve(&served.joelclaw, &served.url).await;
    served.wait_until_drained().await;
    assert_eq!(served.stored().await, stored);
}

#[tokio::test(flavor = "multi_thread")]
async fn once_redis_is_back_deliveries_go_straight_to_it() {
    let mut served = Live::start(&[]).await;
    let client = client();
    served.stage.redis.kill_9();
    let spooled = futures_util::future::join_all((0..200).map(|n| {
        let (served, client) = (&served, &client);
        async move { served.deliver(client, &format!("p-{n}")).await }
    }));
    assert!(spooled.await.iter().all(|status| *status == 202));
    served.stage.redis.restart().await;
    served.wait_until_drained().await;
    for n in 0..20 {
        assert_eq!(served.deliver(&client, &format!("q-{n}")).await, 200);
    }
    assert_eq!(served.stored().await.len(), 220);
}

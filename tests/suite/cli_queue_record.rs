//! Looking back from the command line: the journal live, the pauses, whether anything is lost. As scripts run it: the
//! built binary, a Redis of its own, one envelope in a pipe.
// The lint's exemption covers test functions, not their helpers.

use std::time::{Duration, Instant};

use crate::cli_queue_support::{Story, envelope, failure, lines};
use crate::support::{Joelclaw, eventually};
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(10);

const COMMANDS: &[&[&str]] = &[
    &["queue", "control", "status"],
    &["queue", "fsck"],
    &["queue", "fsck", "--apply"],
    &["queue", "depth"],
    &["queue", "resume", "a/b"],
    &["queue", "tail", "--timeout", "1s"],
    &["verify"],
];

#[tokio::test]
async fn without_redis_every_command_says_so_within_its_deadline() {
    let away = Joelclaw::new("unix:///tmp/no-such-redis.sock");
    // Accepts connections into its backlog and never answers.
    let black_hole = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let silent = Joelclaw::new(&format!("redis://{}", black_hole.local_addr().unwrap()));
    for joelclaw in [&away, &silent] {
        for args in COMMANDS {
            let started = Instant::now();
            let ran = joelclaw.run(args).await.assert_code(3);
            assert!(started.elapsed() < Duration::from_secs(3), "{args:?}: {:?}", started.elapsed());
            let code = failure(&ran)["error"]["code"].clone();
            let expected = if args.contains(&"control") { "QUEUE_CONTROL_STATUS_FAILED" } else { "REDIS_UNREACHABLE" };
            assert_eq!(code, expected, "{args:?}");
        }
    }
}

#[tokio::test]
async fn nonsense_in_since_is_wrong_usage() {
    let story = Story::begin().await;
    for args in [&["queue", "control", "status"][..], &["queue", "tail"], &["verify"]] {
        for since in ["not-a-time", "0", "1.5h"] {
            let ran = story.joelclaw.run(&[args, &["--since", since]].concat()).await.assert_code(2);
            assert_eq!(failure(&ran)["error"]["code"], "INVALID_SINCE", "{args:?} {since}");
        }
    }
    for spelling in ["1772911985", "1772911985000", "2026-03-07T19:33:05Z"] {
        let ran = story.joelclaw.run(&["queue", "control", "status", "--since", spelling]).await;
        let window = &envelope(&ran)["result"]["control"]["window"];
        assert_eq!(window["sinceTimestamp"], 1_772_911_985_000_u64, "{spelling}");
        assert_eq!(window["sinceIso"], "2026-03-07T19:33:05.000Z");
    }
    let ran = story.joelclaw.run(&["queue", "tail", "--watch"]).await.assert_code(2);
    assert_eq!(failure(&ran)["error"]["code"], "USAGE_ERROR");
}

#[tokio::test]
async fn on_a_redis_never_used_nothing_is_paused_and_nothing_is_lost() {
    let story = Story::begin().await;
    let control = envelope(&story.joelclaw.run(&["queue", "control", "status"]).await.assert_success());
    assert_eq!(control["result"]["control"]["activePauses"], json!([]));
    assert_eq!(control["result"]["control"]["counts"], json!({"applied": 0, "expired": 0, "rejected": 0}));
    assert_eq!(control["result"]["redis"]["instanceId"], Value::Null);
    let verdict = envelope(&story.joelclaw.run(&["verify", "--since", "1h"]).await.assert_success());
    assert_eq!((&verdict["result"]["lost"], &verdict["result"]["accepted"]), (&json!(0), &json!(0)));
    let fsck = envelope(&story.joelclaw.run(&["queue", "fsck"]).await.assert_success());
    assert_eq!((&fsck["result"]["ok"], &fsck["result"]["count"]), (&json!(true), &json!(0)));
    assert_eq!(story.redis.cli(&["DBSIZE"]).await, "0", "reading leaves nothing behind");
}

#[tokio::test]
async fn a_pause_is_seen_until_it_is_resumed_and_then_in_the_history() {
    let story = Story::begin().await;
    let ran = story.joelclaw.run(&["queue", "resume", "a/b"]).await.assert_code(5);
    let failed = failure(&ran);
    assert_eq!(failed["error"]["code"], "QUEUE_FAMILY_NOT_PAUSED");
    assert_eq!(failed["error"]["message"], "Queue family a/b is not paused");

    story.pause("later/one", Duration::from_secs(900)).await;
    story.pause("a/b", Duration::from_secs(600)).await;
    let ran = story.joelclaw.run(&["queue", "control", "status"]).await.assert_success();
    let status = envelope(&ran);
    let control = &status["result"]["control"];
    let families: Vec<_> = control["activePauses"].as_array().unwrap().iter().map(|p| p["family"].clone()).collect();
    assert_eq!(families, ["a/b", "later/one"], "by expiry");
    let pause = &control["activePauses"][0];
    assert_eq!(
        (&pause["ttlMs"], &pause["sourceType"], &pause["mode"]),
        (&json!(600_000), &json!("manual"), &json!("manual"))
    );
    assert!(pause["expiresInMs"].as_u64().is_some_and(|ms| (590_000..=600_000).contains(&ms)), "{pause}");
    assert_eq!(control["counts"], json!({"applied": 2, "expired": 0, "rejected": 1}));
    assert_eq!(control["recentEvents"][0]["family"], "a/b", "newest first");
    assert_eq!(control["recentEvents"][2]["action"], "queue.control.rejected");
    let resume = &status["next_actions"][0];
    assert_eq!(
        (&resume["command"], &resume["params"]["family"]["value"]),
        (&json!("joelclaw queue resume <family>"), &json!("a/b"))
    );

    story.joelclaw.run(&["queue", "resume", "a/b", "--reason", "it is back"]).await.assert_success();
    let status = envelope(&story.joelclaw.run(&["queue", "control", "status"]).await);
    let control = &status["result"]["control"];
    assert_eq!(control["activePauses"].as_array().unwrap().len(), 1);
    assert_eq!(control["recentEvents"][0]["reason"], "it is back");
    assert_eq!(control["recentEvents"][0]["actionMetadata"]["kind"], "resume_family");
}

#[tokio::test]
async fn what_is_due_ends_by_looking_and_only_once() {
    let story = Story::begin().await;
    story.pause("a/b", Duration::from_secs(60)).await;
    story.age_pause("a/b", 61_000).await;
    let looks = (0..4).map(|_| story.joelclaw.run(&["queue", "control", "status"]));
    for ran in futures_util::future::join_all(looks).await {
        assert_eq!(envelope(&ran)["result"]["control"]["activePauses"], json!([]));
    }
    let status = envelope(&story.joelclaw.run(&["queue", "control", "status"]).await);
    let control = &status["result"]["control"];
    assert_eq!(control["counts"], json!({"applied": 1, "expired": 1, "rejected": 0}));
    let ended = &control["recentEvents"][0];
    assert_eq!((&ended["action"], &ended["family"]), (&json!("queue.control.expired"), &json!("a/b")));
    assert!(ended["expiredAt"].as_str().unwrap() >= ended["expiresAt"].as_str().unwrap(), "{ended}");
}

#[tokio::test]
async fn a_pause_that_cannot_be_read_still_holds_and_resume_removes_it() {
    let story = Story::begin().await;
    story.pause("a/b", Duration::from_secs(600)).await;
    story.redis.cli(&["HSET", &story.bus.keys.pauses(), "a/b", "{garbage"]).await;
    let status = envelope(&story.joelclaw.run(&["queue", "control", "status"]).await.assert_success());
    assert_eq!(status["result"]["control"]["activePauses"], json!([]));
    assert_eq!(status["result"]["control"]["invalid"][0]["family"], "a/b");
    assert_eq!(status["next_actions"][0]["params"]["family"]["value"], "a/b");
    let resumed = envelope(&story.joelclaw.run(&["queue", "resume", "a/b"]).await.assert_success());
    assert_eq!(resumed["result"]["previousPause"], Value::Null);
    let status = envelope(&story.joelclaw.run(&["queue", "control", "status"]).await);
    assert_eq!(status["result"]["control"]["invalid"], json!([]));
}

#[tokio::test]
async fn pauses_are_shown_to_a_user_who_may_only_read() {
    let story = Story::begin().await;
    story.pause("a/b", Duration::from_secs(600)).await;
    story.redis.cli(&["ACL", "SETUSER", "default", "-@all", "+@read", "+@connection", "+time", "+info"]).await;
    let status = envelope(&story.joelclaw.run(&["queue", "control", "status"]).await.assert_success());
    assert_eq!(status["result"]["control"]["activePauses"][0]["family"], "a/b");
    envelope(&story.joelclaw.run(&["verify"]).await.assert_success());
    envelope(&story.joelclaw.run(&["queue", "fsck"]).await.assert_success());
    lines(&story.joelclaw.run(&["queue", "tail", "--timeout", "1s"]).await.assert_success());
}

#[tokio::test]
async fn pauses_are_shown_although_the_history_cannot_be_read() {
    let story = Story::begin().await;
    story.pause("a/b", Duration::from_secs(600)).await;
    story.redis.cli(&["DEL", &story.bus.keys.journal()]).await;
    story.redis.cli(&["SET", &story.bus.keys.journal(), "not a stream"]).await;
    let status = envelope(&story.joelclaw.run(&["queue", "control", "status"]).await.assert_success());
    let control = &status["result"]["control"];
    assert_eq!((&control["available"], &control["activePauses"][0]["family"]), (&json!(false), &json!("a/b")));
    assert!(control["error"].is_string());
}

#[tokio::test]
async fn a_tail_shows_what_happens_and_ends_with_why_it_ended() {
    let story = Story::begin().await;
    let mut tail = story.joelclaw.spawn(&["queue", "tail", "--family", "a/b"]);
    tail.wait_for_line(r#""type":"start""#, SOON).await;
    story.emit("other/one").await;
    let event = story.emit("a/b").await;
    let line = tail.wait_for_line(r#""type":"event""#, SOON).await;
    let shown: Value = serde_json::from_str(&line).unwrap();
    assert_eq!((&shown["name"], &shown["data"]["metadata"]["eventId"]), (&json!("queue.enqueue"), &json!(event)));
    tail.interrupt();
    let ran = tail.wait_exit(SOON).await.assert_code(130);
    let told = lines(&ran);
    let last = told.last().unwrap();
    assert_eq!(
        (&last["type"], &last["result"]["reason"], &last["result"]["events"]),
        (&json!("result"), &json!("interrupted"), &json!(1))
    );

    // Where a reader stopped, the next one goes on.
    let again = story.joelclaw.run(&["queue", "tail", "--since", shown["id"].as_str().unwrap(), "--limit", "1"]).await;
    let told = lines(&again.assert_success());
    assert_eq!((told.len(), &told[1]["id"], &told[2]["result"]["reason"]), (3, &shown["id"], &json!("limit")));

    let mut tail = story.joelclaw.spawn(&["queue", "tail"]);
    tail.wait_for_line(r#""type":"start""#, SOON).await;
    tail.terminate();
    tail.wait_exit(SOON).await.assert_code(143);
}

#[tokio::test]
async fn a_tail_ends_in_time_and_people_see_lines_of_text() {
    let story = Story::begin().await;
    let event = story.emit("a/b").await;
    let ran = story.joelclaw.run(&["queue", "tail", "--since", "1m", "--timeout", "1s"]).await.assert_success();
    let told = lines(&ran);
    assert_eq!(told.last().unwrap()["result"]["reason"], "timeout");
    assert_eq!(told.last().unwrap()["result"]["timeout_ms"], 1000);

    let people = Joelclaw::new(&story.redis.url()).env("JOELCLAW_OUTPUT", "text");
    let ran = people.run(&["queue", "tail", "--since", "1m", "--limit", "1"]).await.assert_success();
    assert!(
        ran.stdout.contains("enqueue") && ran.stdout.contains(&event) && !ran.stdout.contains('\u{1b}'),
        "{}",
        ran.stdout
    );
}

#[tokio::test]
async fn a_tail_outlives_a_restart_of_redis() {
    let mut story = Story::begin().await;
    let tail = story.joelclaw.spawn(&["queue", "tail"]);
    let mut tail = tail;
    tail.wait_for_line(r#""type":"start""#, SOON).await;
    story.redis.restart().await;
    let event = eventually(SOON, || story.try_emit("a/b")).await;
    tail.wait_for_line(&event, SOON).await;
}

#[tokio::test]
async fn a_lost_event_is_found_told_once_and_counted() {
    let story = Story::begin().await;
    let kept = story.emit_entry("a/b").await;
    let lost = story.emit_entry("a/b").await;
    let lane = story.bus.keys.lane(&"a/b:p2".parse().unwrap());
    story.redis.cli(&["XDEL", &lane, &lost]).await;

    let ran = story.joelclaw.run(&["verify", "--since", "1h"]).await.assert_code(1);
    let verdict = envelope(&ran);
    assert_eq!(
        (&verdict["ok"], &verdict["result"]["lost"], &verdict["result"]["waiting"]),
        (&json!(false), &json!(1), &json!(1))
    );
    assert_eq!(verdict["next_actions"][0]["command"], "joelclaw queue fsck");

    let ran = story.joelclaw.run(&["queue", "fsck"]).await.assert_code(1);
    let found = envelope(&ran);
    assert_eq!(found["result"]["count"], 1);
    assert_eq!(found["result"]["findings"][0]["kind"], "lost");
    assert!(found["result"]["findings"][0]["where"].as_str().unwrap().contains(&lost), "{found}");
    assert!(!ran.stdout.contains(&kept));
    assert_eq!(found["next_actions"][0]["command"], "joelclaw queue fsck --apply");

    // Nobody can bring it back: the run that notes it says so, and it is told once.
    let noted = envelope(&story.joelclaw.run(&["queue", "fsck", "--apply"]).await.assert_code(1));
    assert_eq!((&noted["result"]["repaired"], &noted["result"]["open"]), (&json!(0), &json!(1)));
    envelope(&story.joelclaw.run(&["queue", "fsck"]).await.assert_success());
    assert_eq!(envelope(&story.joelclaw.run(&["verify"]).await.assert_code(1))["result"]["lost"], 1);
    let ran = story.joelclaw.run(&["queue", "fsck", "--ndjson"]).await.assert_success();
    assert_eq!(ran.stdout, "", "a list without items");
}

#[tokio::test]
async fn a_change_is_refused_on_another_redis_than_the_service_uses() {
    let story = Story::begin().await;
    story.emit("a/b").await;
    let data = story.joelclaw.home().join("data");
    std::fs::create_dir_all(&data).unwrap();
    let note =
        |pid: u32| json!({"instanceId": "another", "redisUrl": "redis://elsewhere:6379/0", "pid": pid}).to_string();
    std::fs::write(data.join("service.json"), note(std::process::id())).unwrap();
    for args in [&["queue", "resume", "a/b"][..], &["queue", "fsck", "--apply"]] {
        let ran = story.joelclaw.run(args).await.assert_code(3);
        let failed = failure(&ran);
        assert_eq!(failed["error"]["code"], "REDIS_INSTANCE_MISMATCH");
        let message = failed["error"]["message"].as_str().unwrap();
        assert!(
            message.contains("elsewhere") && message.contains("another") && message.contains("redis.sock"),
            "{message}"
        );
    }
    // What only reads still reads, and a note of a service that is gone binds nobody.
    envelope(&story.joelclaw.run(&["queue", "fsck"]).await.assert_success());
    std::fs::write(data.join("service.json"), note(4_000_000)).unwrap();
    story.joelclaw.run(&["queue", "fsck", "--apply"]).await.assert_success();
}

#[tokio::test]
async fn people_see_tables_and_what_to_do_next() {
    let story = Story::begin().await;
    story.pause("a/b", Duration::from_secs(600)).await;
    let people = Joelclaw::new(&story.redis.url()).env("JOELCLAW_OUTPUT", "text");
    let shown = people.run(&["queue", "control", "status"]).await.assert_success().stdout;
    assert!(
        shown.contains("FAMILY") && shown.contains("a/b") && shown.contains("joelclaw queue resume a/b"),
        "{shown}"
    );
    let shown = people.run(&["verify"]).await.assert_success().stdout;
    assert!(shown.starts_with("lost 0, duplicated 0, unrouted 0\n"), "{shown}");
    let shown = people.run(&["queue", "control", "status", "--help"]).await.assert_success().stdout;
    assert!(shown.contains("-h, --hours"), "{shown}");
}

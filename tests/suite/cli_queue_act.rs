//! Acting on the queue from the command line: pauses, acknowledgements, dead letters. Failures first, then the story in
//! the order in which a person would do it.
// The lint's exemption covers test functions, not their helpers.

use std::time::Duration;

use crate::cli_queue_support::{Story, envelope, failure};
use crate::support::{HttpSink, Joelclaw, Reply, eventually};
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(20);

#[tokio::test]
async fn a_pause_lasts_from_a_minute_to_a_day() {
    let story = Story::begin().await;
    for (ttl, is_valid) in
        [("45", false), ("59s", false), ("60s", true), ("1d", true), ("25h", false), ("bogus", false)]
    {
        let ran = story.joelclaw.run(&["queue", "pause", "a/b", "--ttl", ttl, "--yes"]).await;
        if is_valid {
            envelope(&ran.assert_success());
            continue;
        }
        let failed = failure(&ran.assert_code(2));
        assert_eq!(failed["error"]["code"], "QUEUE_CONTROL_INVALID_TTL");
        assert_eq!(failed["error"]["message"], format!("Invalid --ttl value: {ttl}"));
        let retry = &failed["next_actions"][0];
        assert_eq!(retry["command"], "joelclaw queue pause <family> --ttl 10m --reason <text>");
        assert_eq!(retry["params"]["family"]["value"], "a/b");
    }
    failure(&story.joelclaw.run(&["queue", "pause", ""]).await.assert_code(2));
    let past = ["queue", "pause", "a/b", "--until", "2020-01-01T00:00:00Z"];
    assert_eq!(failure(&story.joelclaw.run(&past).await.assert_code(2))["error"]["code"], "QUEUE_CONTROL_INVALID_TTL");
    story.joelclaw.env_file_line("QUEUE_PAUSE_MAX_TTL_MS", "172800000");
    story.joelclaw.run(&["queue", "pause", "a/b", "--ttl", "2d"]).await.assert_success();
}

#[tokio::test]
async fn a_pause_holds_what_is_emitted_and_says_what_it_replaced() {
    let story = Story::begin().await;
    let first = envelope(&story.joelclaw.run(&["queue", "pause", "a/b", "--ttl", "10m", "--reason", " "]).await);
    let pause = &first["result"]["pause"];
    assert_eq!(
        (&pause["family"], &pause["ttlMs"], &pause["sourceType"]),
        (&json!("a/b"), &json!(600_000), &json!("manual"))
    );
    assert_eq!(pause["reason"], "Manual pause from joelclaw queue pause for a/b");
    assert!(pause["actor"].as_str().unwrap().starts_with("joelclaw queue pause ("), "{pause}");
    assert_eq!(first["result"]["warnings"][0]["code"], "UNKNOWN_FAMILY", "pausing ahead is allowed");
    assert_eq!(first["result"].get("replaced"), None);

    let held = envelope(&story.joelclaw.run(&["queue", "emit", "a/b"]).await.assert_success());
    assert_eq!(held["result"]["held"]["family"], "a/b");
    let second = envelope(&story.joelclaw.run(&["queue", "pause", "a/b", "--ttl", "20m", "--actor", "me"]).await);
    assert_eq!(second["result"]["replaced"]["ttlMs"], 600_000);
    assert_eq!(second["result"]["pause"]["actor"], "me");
    assert_eq!(second["result"].get("warnings"), None, "it has events by now");

    let shorter = ["queue", "pause", "a/b", "--ttl", "5m"];
    let refused = failure(&story.joelclaw.run(&shorter).await.assert_code(4));
    assert_eq!(refused["error"]["code"], "QUEUE_PAUSE_SHORTER");
    let replaced = envelope(&story.joelclaw.run(&[&shorter[..], &["--yes"]].concat()).await.assert_success());
    assert_eq!(replaced["result"]["replaced"]["ttlMs"], 1_200_000);

    let resumed = envelope(&story.joelclaw.run(&["queue", "resume", "a/b"]).await.assert_success());
    assert_eq!(resumed["result"]["previousPause"]["ttlMs"], 300_000);
    let near = envelope(&story.joelclaw.run(&["queue", "pause", "content/updatd"]).await);
    assert!(
        near["result"]["warnings"][0]["message"].as_str().unwrap().ends_with("did you mean content/updated?"),
        "{near}"
    );
    let alias = envelope(&story.joelclaw.run(&["queue", "pause", "discovery"]).await);
    assert!(alias["result"]["warnings"][0]["message"].as_str().unwrap().contains("discovery/captured"), "{alias}");
}

#[tokio::test]
async fn an_entry_is_acknowledged_with_a_reason_and_can_be_brought_back() {
    let story = Story::begin().await;
    let id = story.emit_entry("a/b").await;
    let wrong = failure(&story.joelclaw.run(&["queue", "ack"]).await.assert_code(2));
    assert_eq!(wrong["error"]["code"], "USAGE_ERROR");
    let wrong = failure(&story.joelclaw.run(&["queue", "ack", &id]).await.assert_code(2));
    assert_eq!(wrong["error"]["code"], "REASON_REQUIRED");
    let wrong =
        failure(&story.joelclaw.run(&["queue", "ack", "1749990000000-0", "--reason", "r"]).await.assert_code(5));
    assert_eq!(wrong["error"]["code"], "QUEUE_MESSAGE_MISSING");

    let acked = envelope(&story.joelclaw.run(&["queue", "ack", &id, "--reason", "by hand"]).await.assert_success());
    assert_eq!((&acked["result"]["acked"], &acked["result"]["dryRun"]), (&json!(1), &json!(false)));
    assert!(acked["result"]["undoUntil"].is_string());
    let again = failure(&story.joelclaw.run(&["queue", "ack", &id, "--reason", "r"]).await.assert_code(5));
    assert!(again["fix"].as_str().unwrap().contains("acked"), "{again}");

    let undo =
        acked["next_actions"].as_array().unwrap().iter().find(|a| a["command"] == "joelclaw queue ack --undo <batch>");
    let batch = undo.unwrap()["params"]["batch"]["value"].as_str().unwrap();
    let back = envelope(&story.joelclaw.run(&["queue", "ack", "--undo", batch]).await.assert_success());
    assert_eq!((&back["result"]["restored"], &back["result"]["entries"][0]["oldStreamId"]), (&json!(1), &json!(id)));
    let over = failure(&story.joelclaw.run(&["queue", "ack", "--undo", batch]).await.assert_code(5));
    assert_eq!(over["error"]["code"], "QUEUE_UNDO_EXPIRED");
    envelope(&story.joelclaw.run(&["verify"]).await.assert_success());
    envelope(&story.joelclaw.run(&["queue", "fsck"]).await.assert_success());
}

#[tokio::test]
async fn a_pass_is_shown_first_and_acts_on_what_was_shown() {
    let story = Story::begin().await;
    for _ in 0..3 {
        story.emit("old/name").await;
    }
    story.emit("a/b").await;
    tokio::time::sleep(Duration::from_millis(1100)).await; // the least age that can be asked for is a second
    let pass = ["queue", "ack", "--older-than", "1s", "--family", "old/name"];
    let shown = envelope(&story.joelclaw.run(&pass).await.assert_success());
    let result = &shown["result"];
    assert_eq!((&result["dryRun"], &result["matched"], &result["acked"]), (&json!(true), &json!(3), &json!(0)));
    assert_eq!(result["byState"], json!({"waiting": 3}));
    let plan = result["planHash"].as_str().unwrap();
    let apply = shown["next_actions"].as_array().unwrap().last().unwrap();
    assert_eq!((&apply["destructive"], &apply["params"]["family"]["value"]), (&json!(true), &json!("old/name")));
    assert!(apply["command"].as_str().unwrap().contains(plan));

    let act = |plan: &str| -> Vec<String> {
        pass.iter().chain(&["--apply", "--reason", "left over", "--plan", plan]).map(ToString::to_string).collect()
    };
    let stale = act("0000");
    let refused =
        failure(&story.joelclaw.run(&stale.iter().map(String::as_str).collect::<Vec<_>>()).await.assert_code(4));
    assert_eq!(refused["error"]["code"], "QUEUE_PLAN_CHANGED");
    let fresh = act(plan);
    let acked =
        envelope(&story.joelclaw.run(&fresh.iter().map(String::as_str).collect::<Vec<_>>()).await.assert_success());
    assert_eq!(acked["result"]["acked"], 3);
    assert_eq!(envelope(&story.joelclaw.run(&["queue", "depth"]).await)["result"]["total"], 1);
    let verdict = envelope(&story.joelclaw.run(&["verify"]).await.assert_success());
    assert_eq!((&verdict["result"]["acked"], &verdict["result"]["lost"]), (&json!(3), &json!(0)));
}

#[tokio::test]
async fn what_a_live_drainer_works_on_is_left_alone() {
    let story = Story::begin().await;
    let sink = HttpSink::start().await;
    sink.reply_next([Reply::hang()]);
    let registry = format!("[[event]]\nname = \"a/b\"\nhandler = {{ type = \"http\", target = \"{}\" }}\n", sink.url());
    let joelclaw = Joelclaw::new(&story.redis.url()).registry(&registry);
    let id = story.emit_entry("a/b").await;
    let _drainer = joelclaw.spawn(&["drainer"]);
    sink.wait_for(1, SOON).await;
    let refused = failure(&joelclaw.run(&["queue", "ack", &id, "--reason", "r"]).await.assert_code(4));
    assert_eq!(refused["error"]["code"], "QUEUE_ACK_LEASED");
    assert!(refused["error"]["message"].as_str().unwrap().contains("alive until"), "{refused}");
    let young = ["queue", "ack", "--older-than", "1s", "--family", "c/d", "--apply", "--reason", "r"];
    // Once the drainer is older than that, an entry of this age may be one that it is about to dispatch.
    let refused = eventually(SOON, || async {
        let ran = joelclaw.run(&young).await;
        if ran.code() == Some(4) { Ok(failure(&ran)) } else { Err(ran) }
    })
    .await;
    assert_eq!(refused["error"]["code"], "QUEUE_ACK_TOO_YOUNG");
    let forced = envelope(&joelclaw.run(&["queue", "ack", &id, "--reason", "r", "--force"]).await.assert_success());
    assert_eq!(forced["result"]["acked"], 1);
}

/// `count` events of a/b that died because their handler refused them.
async fn dead(story: &Story, count: usize) -> (Joelclaw, Vec<Value>) {
    let sink = HttpSink::start().await;
    sink.reply_next((0..count).map(|_| Reply::status(400)));
    let registry = format!("[[event]]\nname = \"a/b\"\nhandler = {{ type = \"http\", target = \"{}\" }}\n", sink.url());
    let joelclaw = Joelclaw::new(&story.redis.url()).registry(&registry);
    for _ in 0..count {
        story.emit("a/b").await;
    }
    let mut drainer = joelclaw.spawn(&["drainer"]);
    let letters = eventually(SOON, || async {
        let listed = envelope(&joelclaw.run(&["queue", "dead", "list"]).await);
        let letters = listed["result"]["letters"].as_array().unwrap().clone();
        if letters.len() == count { Ok(letters) } else { Err(letters.len()) }
    })
    .await;
    drainer.terminate();
    drainer.wait_exit(SOON).await;
    (joelclaw, letters)
}

#[tokio::test]
async fn dead_letters_are_shown_then_sent_round_again_or_removed() {
    let story = Story::begin().await;
    let (joelclaw, letters) = dead(&story, 4).await;
    let id = |n: usize| letters[n]["id"].as_str().unwrap();
    for args in [&["queue", "dead", "redrive"][..], &["queue", "dead", "drop"]] {
        failure(&joelclaw.run(args).await.assert_code(2));
    }
    let missing = ["queue", "dead", "redrive", "1749990000000-0", "--reason", "r"];
    assert_eq!(failure(&joelclaw.run(&missing).await.assert_code(5))["error"]["code"], "QUEUE_MESSAGE_MISSING");
    let no_reason = failure(&joelclaw.run(&["queue", "dead", "redrive", id(0)]).await.assert_code(2));
    assert_eq!(no_reason["error"]["code"], "REASON_REQUIRED");
    let not_json = ["queue", "dead", "redrive", id(0), "--edit", "[1]", "--reason", "r"];
    assert_eq!(failure(&joelclaw.run(&not_json).await.assert_code(2))["error"]["code"], "INVALID_JSON");

    // One named letter goes at once, here with other data.
    let edit = ["queue", "dead", "redrive", id(0), "--edit", "{\"mended\":true}", "--reason", "wrong path"];
    let sent = envelope(&joelclaw.run(&edit).await.assert_success());
    assert_eq!(sent["result"]["sent"], 1);
    let stream_id = sent["result"]["letters"][0]["streamId"].as_str().unwrap();
    let inspected = envelope(&joelclaw.run(&["queue", "inspect", stream_id]).await.assert_success());
    assert_eq!(inspected["result"]["message"]["payload"], json!({"mended": true}));

    // One is removed, which always has to be confirmed.
    let drop = ["queue", "dead", "drop", id(1), "--reason", "a test"];
    assert_eq!(envelope(&joelclaw.run(&drop).await.assert_success())["result"]["dryRun"], true);
    let dropped = envelope(&joelclaw.run(&[&drop[..], &["--apply"]].concat()).await.assert_success());
    assert_eq!(dropped["result"]["dropped"], 1);

    // The rest: shown, then sent at a rate.
    let all = ["queue", "dead", "redrive", "--family", "a/b", "--rate", "50"];
    let shown = envelope(&joelclaw.run(&all).await.assert_success());
    assert_eq!((&shown["result"]["dryRun"], &shown["result"]["matched"]), (&json!(true), &json!(2)));
    let sent =
        envelope(&joelclaw.run(&[&all[..], &["--apply", "--reason", "is back"]].concat()).await.assert_success());
    assert_eq!((&sent["result"]["sent"], &sent["result"]["refused"]), (&json!(2), &json!(0)));
    let nothing = envelope(&joelclaw.run(&["queue", "dead", "redrive", "--all"]).await.assert_success());
    assert_eq!(nothing["result"]["matched"], 0);
    let depth = envelope(&joelclaw.run(&["queue", "depth"]).await.assert_success());
    assert_eq!((&depth["result"]["total"], &depth["result"]["dead"]), (&json!(3), &json!(0)));
    envelope(&joelclaw.run(&["queue", "fsck"]).await.assert_success());
}

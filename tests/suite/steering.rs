//! An operator's steering with real processes: other priorities, batches, trickles and pauses of a beginning of names.
//! Each holds on all nodes, survives a restart and ends.

use std::time::Duration;

use serde_json::{Value, json};
use system_bus::streams::control::{NewPause, PauseSource};
use system_bus::streams::priority::Priority;
use system_bus::streams::steering::{Permits, Rate, Slot, Wish};

use crate::common_streams::{TestBus, event, family};
use crate::drainer_support::Stage;
use crate::support::{Joelclaw, Reply, eventually};

const LONG: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);

async fn result(joelclaw: &Joelclaw, args: &[&str]) -> Value {
    joelclaw.run(&[args, &["--json"]].concat()).await.assert_success().json()["result"].clone()
}

fn received(stage: &Stage, name: &str) -> usize {
    stage.sink.received().iter().filter(|request| request.header("x-event-name") == Some(name)).count()
}

async fn wait_for(stage: &Stage, name: &str, count: usize) {
    eventually(LONG, || async {
        let seen = received(stage, name);
        if seen >= count { Ok(()) } else { Err(format!("{seen} of {count} {name}")) }
    })
    .await;
}

/// Whatever could have started before this has started.
async fn flows(stage: &Stage, name: &str) {
    let before = received(stage, name);
    stage.emit(name, 3).await;
    wait_for(stage, name, before + 3).await;
}

#[tokio::test]
async fn steering_is_set_replaced_ended_and_expires_by_redis_clock() {
    let t = TestBus::start().await;
    let name = family("a/b");
    let set = async |wish| t.bus.steer(&name, wish, HOUR, "why", "me").await.unwrap();
    assert_eq!(t.bus.permits(&name, 5).await.unwrap(), None, "no pace");
    assert_eq!(t.bus.end_steering(&name, Slot::Pace, "r", "me").await.unwrap(), None);
    let (first, replaced) = set(Wish::Priority(Priority::P0)).await;
    assert_eq!((first.priority(), first.ttl_ms, replaced), (Some(Priority::P0), 3_600_000, None));
    let (second, replaced) = set(Wish::Priority(Priority::P3)).await;
    assert_eq!(replaced.unwrap().rev, first.rev);
    assert!(second.rev > first.rev);
    set(Wish::Batch { every: HOUR, max: 5 }).await;
    assert_eq!(t.bus.steerings().await.unwrap().sorted().len(), 2, "a priority and a pace");
    let granted = async |asked| t.bus.permits(&name, asked).await.unwrap().unwrap();
    let Permits { granted: three, next_ms } = granted(3).await;
    assert_eq!((three, granted(9).await.granted, granted(9).await.granted), (3, 2, 0));
    // The window ends: the next one begins where it ended.
    let key = t.bus.keys.pace();
    let state: String = t.cmd(&["HGET", &key, "a/b"]).await;
    let parts: Vec<u64> = state.split(' ').map(|part| part.parse().unwrap()).collect();
    let aged = format!("{} {} {}", parts[0], parts[1] - 3_600_000, parts[2]);
    t.cmd::<()>(&["HSET", &key, "a/b", &aged]).await;
    assert_eq!(granted(9).await, Permits { granted: 5, next_ms });
    let ended = t.bus.end_steering(&name, Slot::Pace, "r", "me").await.unwrap().unwrap();
    assert_eq!((ended.kind.as_str(), ended.max), ("batch_family", Some(5)));
    assert_eq!(t.bus.permits(&name, 5).await.unwrap(), None);
    // Its time comes: whoever notices first ends it, once.
    t.cmd::<()>(&["ZADD", &t.bus.keys.steering_expiry(), "1", "priority|a/b"]).await;
    t.bus.expire_steering().await.unwrap();
    t.bus.expire_steering().await.unwrap();
    assert!(t.bus.steerings().await.unwrap().is_empty());
    let count = async |wanted: &str| t.actions().await.iter().filter(|action| *action == wanted).count();
    assert_eq!(count("queue.control.applied").await, 4);
    assert_eq!(count("queue.control.rejected").await, 1);
    assert_eq!(count("queue.control.expired").await, 1);
}

#[tokio::test]
async fn a_trickle_ends_once_nothing_waits_and_only_then() {
    let t = TestBus::start().await;
    let name = family("a/b");
    t.emit(event("a/b")).await;
    let trickle = Wish::Trickle(Rate::parse("5/s").unwrap());
    let (trickle, _) = t.bus.steer(&name, trickle, HOUR, "why", "me").await.unwrap();
    assert!(!t.bus.end_trickle_if_through(&trickle).await.unwrap());
    t.open("host-1-a").await;
    let leased = t.lease("host-1-a", &crate::common_streams::lane("a/b:p1"), 1).await;
    assert!(!t.bus.end_trickle_if_through(&trickle).await.unwrap(), "it is being worked on");
    t.done("host-1-a", &leased[0]).await;
    assert!(t.bus.end_trickle_if_through(&trickle).await.unwrap());
    assert!(!t.bus.end_trickle_if_through(&trickle).await.unwrap(), "once");
    assert!(t.bus.steerings().await.unwrap().is_empty());
    // A resume without a rate ends what an earlier one began, and leaves a batch alone.
    for (wish, left) in [(Wish::Trickle(Rate::parse("5/s").unwrap()), 0), (Wish::Batch { every: HOUR, max: 5 }, 1)] {
        t.bus.steer(&name, wish, HOUR, "why", "me").await.unwrap();
        let pause = NewPause {
            family: (&name).into(),
            ttl: HOUR,
            reason: "r".into(),
            source: PauseSource::Manual,
            actor: None,
            shorten: true,
        };
        t.bus.pause(&pause).await.unwrap();
        t.bus.resume(&name, PauseSource::Manual, "r", None).await.unwrap();
        assert_eq!(t.bus.steerings().await.unwrap().sorted().len(), left, "{wish:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_holds_for_all_drainers_together_and_survives_their_restart() {
    let stage = Stage::start().await;
    let joelclaw = stage.joelclaw("");
    let set = result(&joelclaw, &["queue", "batch", "work/a", "--every", "1h", "--max", "3", "--reason", "slow"]).await;
    assert_eq!((&set["batch"]["everyMs"], &set["batch"]["max"]), (&json!(3_600_000), &json!(3)), "{set:#}");
    let mut drainers = [joelclaw.spawn(&["drainer"]), joelclaw.spawn(&["drainer"])];
    for drainer in &mut drainers {
        drainer.wait_for_line("drainer started", LONG).await;
    }
    let emitted = stage.emit("work/a", 20).await;
    wait_for(&stage, "work/a", 3).await;
    flows(&stage, "work/b").await;
    assert_eq!(received(&stage, "work/a"), 3);
    for drainer in &mut drainers {
        drainer.kill_9().await;
    }
    let mut again = joelclaw.spawn(&["drainer"]);
    again.wait_for_line("drainer started", LONG).await;
    flows(&stage, "work/b").await;
    assert_eq!(received(&stage, "work/a"), 3, "the window is not over");
    let last = emitted.last().unwrap().event_id.clone();
    eventually(LONG, || async {
        let why = result(&joelclaw, &["queue", "why", &last]).await;
        if why["hold"]["kind"] == "paced" { Ok(()) } else { Err(why) }
    })
    .await;
    let status = result(&joelclaw, &["queue", "control", "status"]).await;
    assert_eq!(status["control"]["steering"][0]["kind"], "batch_family", "{status:#}");
    let ended = result(&joelclaw, &["queue", "batch", "work/a", "--end"]).await;
    assert_eq!(ended["ended"]["max"], 3, "{ended:#}");
    joelclaw.run(&["queue", "batch", "work/a", "--end", "--json"]).await.assert_code(5);
    stage.wait_until_empty(LONG).await;
    again.kill_9().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_priority_counts_in_the_scheduler_and_in_the_list() {
    let stage = Stage::start().await;
    let joelclaw = stage.joelclaw("");
    joelclaw.env_file_line("QUEUE_DRAINER_CONCURRENCY", "1");
    joelclaw.env_file_line("QUEUE_FAIRNESS", "off");
    stage.emit("work/first", 5).await;
    stage.emit("work/late", 5).await;
    result(&joelclaw, &["queue", "reprioritize", "work/first", "P2", "--reason", "the others matter"]).await;
    let replaced = result(&joelclaw, &["queue", "reprioritize", "work/first", "P3"]).await;
    assert_eq!(replaced["replaced"]["priority"], "P2", "{replaced:#}");
    let list = result(&joelclaw, &["queue", "list", "--limit", "10"]).await;
    let told = list.to_string();
    assert!(told.find("work/late").unwrap() < told.find("work/first").unwrap(), "{list:#}");
    assert!(told.contains("\"effectivePriority\":3"), "{list:#}");
    let mut drainer = joelclaw.spawn(&["drainer"]);
    stage.wait_until_empty(LONG).await;
    let order: Vec<String> =
        stage.sink.received().iter().map(|request| request.header("x-event-name").unwrap().to_owned()).collect();
    let (late, first) = order.split_at(5);
    assert!(late.iter().all(|name| name == "work/late") && first.iter().all(|name| name == "work/first"), "{order:?}");
    for fact in stage.facts_of("queue.dispatch.started").await {
        assert!(!fact.metadata.contains_key("promotedFrom"), "it is no promotion: {fact:?}");
    }
    result(&joelclaw, &["queue", "reprioritize", "work/first", "--end"]).await;
    let log = result(&joelclaw, &["queue", "control", "log", "--family", "work/first"]).await;
    let kinds: Vec<&str> = log["records"].as_array().unwrap().iter().map(|row| row["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["end_reprioritize_family", "reprioritize_family", "reprioritize_family"], "{log:#}");
    assert_eq!(log["records"][0]["previous"]["priority"], "P3", "{log:#}");
    for args in [
        &["queue", "reprioritize", "work/first", "P9"][..],
        &["queue", "reprioritize", "work/first"],
        &["queue", "reprioritize", "work/first", "P1", "--ttl", "30s"],
        &["queue", "batch", "work/first", "--max", "3"],
        &["queue", "batch", "work/first", "--every", "1ms", "--max", "3"],
        &["queue", "resume", "work/first", "--trickle", "fast"],
    ] {
        joelclaw.run(&[args, &["--json"]].concat()).await.assert_code(2);
    }
    drainer.kill_9().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_resume_may_trickle_until_what_waited_is_through() {
    let stage = Stage::start().await;
    let joelclaw = stage.joelclaw("");
    let mut drainer = joelclaw.spawn(&["drainer"]);
    drainer.wait_for_line("drainer started", LONG).await;
    result(&joelclaw, &["queue", "pause", "work/a"]).await;
    stage.emit("work/a", 6).await;
    let resumed = result(&joelclaw, &["queue", "resume", "work/a", "--trickle", "0.001/s"]).await;
    assert_eq!(resumed["trickle"], json!({ "everyMs": 1_000_000, "max": 1 }), "{resumed:#}");
    assert_eq!(resumed["previousPause"]["family"], "work/a");
    wait_for(&stage, "work/a", 1).await;
    flows(&stage, "work/b").await;
    assert_eq!(received(&stage, "work/a"), 1, "one in a thousand seconds");
    // Another rate; then it ends by itself.
    let faster = result(&joelclaw, &["queue", "resume", "work/a", "--trickle", "1000/s"]).await;
    assert_eq!(faster["previousTrickle"]["everyMs"], 1_000_000, "{faster:#}");
    stage.wait_until_empty(LONG).await;
    eventually(LONG, || async {
        let ended = stage.facts_of("queue.control.expired").await;
        if ended.len() == 1 { Ok(()) } else { Err(format!("{ended:?}")) }
    })
    .await;
    assert!(stage.bus.steerings().await.unwrap().is_empty());
    joelclaw.run(&["queue", "resume", "work/a", "--json"]).await.assert_code(5);
    drainer.kill_9().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pause_of_a_beginning_of_names_holds_them_all_and_nothing_else() {
    let stage = Stage::start().await;
    let url = stage.sink.url();
    let joelclaw = stage
        .joelclaw(&format!("[[event]]\npattern = \"other/*\"\nhandler = {{ type = \"http\", target = \"{url}\" }}\n"));
    let mut drainer = joelclaw.spawn(&["drainer"]);
    drainer.wait_for_line("drainer started", LONG).await;
    flows(&stage, "work/a").await;
    let paused = result(&joelclaw, &["queue", "pause", "work/*", "--reason", "migration"]).await;
    assert_eq!((&paused["pause"]["family"], &paused["pause"]["scope"]), (&json!("work/*"), &json!("prefix")));
    let held = stage.emit("work/a", 2).await;
    stage.emit("work/new", 2).await;
    flows(&stage, "other/a").await;
    assert_eq!((received(&stage, "work/a"), received(&stage, "work/new")), (3, 0));
    let why = result(&joelclaw, &["queue", "why", &held[0].event_id]).await;
    assert_eq!((&why["hold"]["kind"], &why["hold"]["reason"]), (&json!("paused"), &json!("migration")), "{why:#}");
    let depth = result(&joelclaw, &["queue", "depth"]).await;
    let families = depth["byFamily"].as_array().unwrap();
    assert!(families.iter().filter(|row| row["paused"] == true).count() == 2, "{depth:#}");
    let emitted = result(&joelclaw, &["queue", "emit", "work/a"]).await;
    assert!(emitted["held"].is_object(), "{emitted:#}");
    joelclaw.run(&["queue", "resume", "work/a", "--json"]).await.assert_code(5);
    result(&joelclaw, &["queue", "resume", "work/*"]).await;
    stage.wait_until_empty(LONG).await;
    for name in ["*", "inngest/*", "inn*", "outbound/x*", "wo rk/*"] {
        joelclaw.run(&["queue", "pause", name, "--json"]).await.assert_code(2);
    }
    drainer.kill_9().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_family_that_adapts_runs_less_at_once_while_its_target_fails_and_says_so() {
    let stage = Stage::start().await;
    let url = stage.sink.url();
    let joelclaw = stage.joelclaw(&format!(
        "[[event]]\nname = \"slow/a\"\nconcurrency = 8\naimd = true\nbreaker = false\nattempts = 50\n\
         backoff = {{ initial = \"10ms\", max = \"20ms\" }}\n\
         handler = {{ type = \"http\", target = \"{url}\" }}\n"
    ));
    stage.sink.reply_always(Reply::status(503));
    let mut drainer = joelclaw.spawn(&["drainer"]);
    stage.emit("slow/a", 30).await;
    let limit = async || {
        let depth = result(&joelclaw, &["queue", "depth"]).await;
        let row = depth["byFamily"].as_array().unwrap().iter().find(|row| row["family"] == "slow/a").cloned();
        row.and_then(|row| row["adaptedLimit"].as_u64())
    };
    eventually(LONG, || async {
        let limit = limit().await;
        if limit.is_some_and(|limit| limit <= 2) { Ok(()) } else { Err(limit) }
    })
    .await;
    stage.sink.reply_always(Reply::ok());
    stage.wait_until_empty(LONG).await;
    drainer.kill_9().await;
}

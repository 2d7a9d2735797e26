//! The whole cycle with the real binary: downstream goes away, the observer holds the family, downstream returns, the
//! observer lets it go, and every event is run once. Time moves by ageing what is stored.

use std::collections::HashMap;
use std::time::Duration;

use crate::drainer_support::Stage;
use crate::support::{Joelclaw, Reply, eventually};
use serde_json::Value;
use system_bus::streams::breaker::State;
use system_bus::streams::control::PauseSource;

const LONG: Duration = Duration::from_secs(60);
const FAMILY: &str = "content/updated";
const EVENTS: usize = 30;

fn joelclaw(stage: &Stage, mode: &str) -> Joelclaw {
    let url = stage.sink.url();
    // What it reports goes to the sink too.
    let route =
        |name: &str| format!("[[event]]\nname = \"{name}\"\nhandler = {{ type = \"http\", target = \"{url}\" }}\n");
    let joelclaw = stage.joelclaw(&[route(FAMILY), route("gateway/send.message")].concat());
    for (key, value) in [
        ("QUEUE_OBSERVER_MODE", mode),
        ("QUEUE_OBSERVER_AUTO_FAMILIES", "content"),
        ("QUEUE_OBSERVER_PROVIDER", "rules"),
        ("QUEUE_OBSERVER_QUIET_HOURS", "off"),
        // The journal alone is read, so that ageing it ages everything.
        ("OTEL_EVENTS_ENABLED", "false"),
    ] {
        joelclaw.env_file_line(key, value);
    }
    joelclaw
}

/// Makes the next pass due.
async fn next_cadence(stage: &Stage) {
    let mut connection = stage.redis.connection().await;
    let key = stage.bus.keys.observer("last-run");
    redis::cmd("SET").arg(key).arg(0).query_async::<()>(&mut connection).await.unwrap();
}

/// Ages the journal and the pause by `ms`, in one step.
async fn age(stage: &Stage, ms: u64) {
    const AGE: &str = r"
        local shift = tonumber(ARGV[1])
        local all = redis.call('XRANGE', KEYS[1], '-', '+')
        redis.call('DEL', KEYS[1])
        for _, entry in ipairs(all) do
          local at, seq = string.match(entry[1], '^(%d+)-(%d+)$')
          redis.call('XADD', KEYS[1], string.format('%.0f-%s', tonumber(at) - shift, seq), unpack(entry[2]))
        end
        local pause = redis.call('HGET', KEYS[2], ARGV[2])
        if pause then
          local record = cjson.decode(pause)
          record.appliedAtMs = record.appliedAtMs - shift
          redis.call('HSET', KEYS[2], ARGV[2], cjson.encode(record))
        end";
    let mut connection = stage.redis.connection().await;
    redis::cmd("EVAL")
        .arg(AGE)
        .arg(2)
        .arg(stage.bus.keys.journal())
        .arg(stage.bus.keys.pauses())
        .arg(ms)
        .arg(FAMILY)
        .query_async::<()>(&mut connection)
        .await
        .unwrap();
}

async fn passes(stage: &Stage) -> usize {
    stage.facts_of("queue.observe.completed").await.len()
}

async fn outage(stage: &Stage) {
    stage.sink.reply_always(Reply::status(503));
    stage.emit(FAMILY, EVENTS).await;
    eventually(LONG, || async {
        match stage.bus.breakers().await.unwrap().get(FAMILY) {
            Some(circuit) if circuit.rev > 0 => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn enforcing_it_holds_an_outage_and_lets_go_after_it_and_nothing_is_lost_or_run_twice() {
    let stage = Stage::start().await;
    let joelclaw = joelclaw(&stage, "enforce");
    let mut drainer = joelclaw.spawn(&["drainer"]);
    drainer.wait_for_line("drainer started", LONG).await;
    eventually(LONG, || async { if passes(&stage).await >= 1 { Ok(()) } else { Err("no pass yet") } }).await;
    outage(&stage).await;

    // A probe says what it would do, and does nothing.
    let seen = joelclaw.run(&["queue", "observe", "--json"]).await.assert_success().json();
    let result = &seen["result"];
    assert_eq!(result["decision"]["rule"], "R1", "{seen:#}");
    assert_eq!(result["decision"]["suggestedActions"][0]["kind"], "pause_family", "{seen:#}");
    assert_eq!(
        (&result["applied"], &result["decision"]["finalActions"]),
        (&Value::Bool(false), &serde_json::json!([]))
    );
    assert!(stage.bus.pauses().await.unwrap().active.is_empty(), "a probe applies nothing");

    let done = passes(&stage).await;
    next_cadence(&stage).await;
    let pause = eventually(LONG, || async {
        let pauses = stage.bus.pauses().await.unwrap();
        pauses.active.get(FAMILY).and_then(|(_, pause)| pause.clone()).ok_or("not paused yet")
    })
    .await;
    assert_eq!((pause.source, pause.ttl_ms, pause.mode.as_str()), (PauseSource::Observer, 300_000, "enforce"));
    assert!(pause.snapshot_id.is_some());
    let before = stage.sink.received().len();
    stage.sink.reply_always(Reply::ok());

    // The pass that paused it gives its lease back at its very end, which has to come before time moves.
    eventually(LONG, || async {
        let mut connection = stage.redis.connection().await;
        let key = stage.bus.keys.observer("lease");
        let is_held: bool = redis::cmd("EXISTS").arg(key).query_async(&mut connection).await.unwrap();
        if !is_held && passes(&stage).await > done { Ok(()) } else { Err("the pass has not ended") }
    })
    .await;
    age(&stage, 70_000).await;
    next_cadence(&stage).await;
    stage.wait_until_empty(LONG).await;

    let completions = stage.completions().await;
    let ours = completions.values().filter(|times| **times == 1).count();
    assert!(ours >= EVENTS && completions.values().all(|times| *times == 1), "{completions:?}");
    let mut runs: HashMap<String, usize> = HashMap::new();
    for request in stage.sink.received().iter().skip(before) {
        if request.header("x-event-name") == Some(FAMILY) {
            *runs.entry(request.header("x-event-id").unwrap().to_owned()).or_default() += 1;
        }
    }
    assert_eq!(runs.len(), EVENTS, "{runs:?}");
    assert!(runs.values().all(|times| *times == 1), "run once after the outage: {runs:?}");
    assert!(stage.facts_of("queue.dead").await.is_empty());
    let applied = stage.facts_of("queue.control.applied").await;
    let kinds: Vec<_> =
        applied.iter().map(|fact| fact.metadata["action"]["kind"].as_str().unwrap().to_owned()).collect();
    assert_eq!(kinds, ["pause_family", "resume_family"], "each decision is applied once");
    for fact in &applied {
        for key in ["snapshotId", "mode", "family", "sourceType", "actor", "rev"] {
            assert!(!fact.metadata[key].is_null(), "{key}: {fact:?}");
        }
    }
    // Today's policy decides on the recorded snapshots as it did then.
    let replayed = joelclaw.run(&["queue", "observe", "--replay", "1h", "--fail-on-change", "--json"]).await;
    let replayed = replayed.assert_success().json();
    assert!(replayed["result"]["total"].as_u64().unwrap() >= 3, "{replayed:#}");
    assert_eq!(replayed["result"]["changed"], 0, "{replayed:#}");
    drainer.kill_9().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_resume_into_an_outage_that_goes_on_tries_one_event_and_touches_no_other() {
    let stage = Stage::start().await;
    let joelclaw = joelclaw(&stage, "enforce");
    let mut drainer = joelclaw.spawn(&["drainer"]);
    drainer.wait_for_line("drainer started", LONG).await;
    eventually(LONG, || async { if passes(&stage).await >= 1 { Ok(()) } else { Err("no pass yet") } }).await;
    outage(&stage).await;
    next_cadence(&stage).await;
    eventually(LONG, || async {
        let is_held = stage.bus.pauses().await.unwrap().active.contains_key(FAMILY);
        let key = stage.bus.keys.observer("lease");
        let is_over = stage.redis.cli(&["EXISTS", &key]).await == "0";
        if is_held && is_over && passes(&stage).await >= 2 { Ok(()) } else { Err("not paused yet") }
    })
    .await;
    // Nothing of it is on its way any more.
    eventually(LONG, || async {
        let depth = stage.bus.depth().await.unwrap();
        let leased: u64 = depth.by_family.iter().map(|family| family.leased).sum();
        if leased == 0 { Ok(()) } else { Err(leased) }
    })
    .await;
    let tried =
        || stage.sink.received().iter().filter(|request| request.header("x-event-name") == Some(FAMILY)).count();
    let before = tried();
    age(&stage, 70_000).await;
    next_cadence(&stage).await;
    let circuit = eventually(LONG, || async {
        let applied = stage.facts_of("queue.control.applied").await.len();
        let circuits = stage.bus.breakers().await.unwrap();
        let found = circuits.get(FAMILY).filter(|circuit| circuit.state == State::Open && applied == 2).cloned();
        found.ok_or(format!("{applied} applied, {circuits:?}"))
    })
    .await;
    assert_eq!(tried(), before + 1, "{circuit:?}");
    assert!(stage.bus.pauses().await.unwrap().active.is_empty());
    assert_eq!(stage.bus.depth().await.unwrap().dead, 0);
    drainer.kill_9().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn in_dry_run_nothing_is_applied() {
    let stage = Stage::start().await;
    let joelclaw = joelclaw(&stage, "dry-run");
    let mut drainer = joelclaw.spawn(&["drainer"]);
    drainer.wait_for_line("drainer started", LONG).await;
    outage(&stage).await;
    next_cadence(&stage).await;
    let decided = eventually(LONG, || async {
        let all = stage.facts_of("queue.observe.completed").await;
        let wants = |fact: &&system_bus::streams::records::Fact| {
            fact.metadata["suggestedCount"] == 1 && fact.metadata["rule"] == "R1"
        };
        all.iter().find(wants).cloned().ok_or("no such decision yet")
    })
    .await;
    assert_eq!((&decided.metadata["finalCount"], &decided.metadata["appliedCount"]), (&0.into(), &0.into()));
    assert_eq!(decided.metadata["wouldApplyCount"], 1);
    assert!(stage.bus.pauses().await.unwrap().active.is_empty());
    assert!(stage.facts_of("queue.control.applied").await.is_empty());
    drainer.kill_9().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_three_drainers_one_observes() {
    let stage = Stage::start().await;
    let joelclaw = joelclaw(&stage, "dry-run");
    let mut drainers: Vec<_> = (0..3).map(|_| joelclaw.spawn(&["drainer"])).collect();
    for drainer in &mut drainers {
        drainer.wait_for_line("observer started", LONG).await;
    }
    eventually(LONG, || async { if passes(&stage).await >= 1 { Ok(()) } else { Err("no pass yet") } }).await;
    // All three have asked by the time that three more entries were dispatched.
    stage.emit("work/any", 3).await;
    stage.sink.wait_for(3, LONG).await;
    assert_eq!(stage.facts_of("queue.observe.started").await.len(), 1);
    for drainer in &mut drainers {
        drainer.kill_9().await;
    }
}

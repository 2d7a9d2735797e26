//! Cron schedules: one run per tick, whatever number of servers, restarts and changes of clocks there are.

use crate::common_streams::TestBus;
use crate::flow_support::Stage;
use chrono::DateTime;
use serde_json::{Value, json};
use system_bus::config::MissedTicks;
use system_bus::functions::store::{Mark, Status};

const MINUTE: u64 = 60_000;
const HOUR: u64 = 60 * MINUTE;

fn ms(text: &str) -> u64 {
    u64::try_from(DateTime::parse_from_rfc3339(text).unwrap().timestamp_millis()).unwrap()
}

fn cron(expression: &str) -> Value {
    json!({"triggers": [{"cron": expression}]})
}

/// A stage whose clock stands at `now`, with schedules that count from there.
async fn stage(functions: &[(&str, Value)], now: &str, missed: MissedTicks) -> Stage {
    let stage = Stage::on(TestBus::start().await, functions, missed).await;
    stage.at_instant(ms(now)).await;
    let tag = stage.t.bus.keys.tag().to_owned();
    stage.t.cmd::<()>(&["DEL", &format!("{tag}:fn:crons"), &format!("{tag}:fn:timers")]).await;
    stage.engine.reconcile_flow().await.unwrap();
    stage
}

/// Moves the clock on minute by minute: ticks that were run, as scheduled.
async fn run_through(stage: &mut Stage, from: &str, until: &str, step: u64) -> Vec<String> {
    let mut ran = Vec::new();
    let mut now = ms(from);
    while now <= ms(until) {
        stage.at_instant(now + 200).await;
        for tick in stage.called().await {
            stage.end(&tick).await;
            ran.push(tick);
        }
        now += step;
    }
    ran
}

/// As a server that had read the timers before another one fired: the schedule is still in its list, its tick is not.
#[tokio::test]
async fn who_comes_too_late_for_a_tick_does_not_take_the_next_one() {
    let stage = stage(&[("f", cron("*/5 * * * *"))], "2026-05-01T10:02:00Z", MissedTicks::Last).await;
    let timers = format!("{}:fn:timers", stage.t.bus.keys.tag());
    let members: Vec<String> = stage.t.cmd(&["ZRANGE", &timers, "0", "-1"]).await;
    assert_eq!(members.len(), 1, "{members:?}");
    stage.t.cmd::<i64>(&["ZADD", &timers, "0", &members[0]]).await;
    stage.engine.fire_due().await.unwrap();
    assert_eq!(stage.with_status(Status::Queued).await, [""; 0]);
}

#[tokio::test]
async fn a_tick_makes_one_run_with_its_event_on_one_of_two_servers() {
    let mut stage = stage(&[("f", cron("*/5 * * * *"))], "2026-05-01T10:02:00Z", MissedTicks::Last).await;
    let second = stage.second().await;
    stage.at_instant(ms("2026-05-01T10:04:59Z")).await;
    assert_eq!(stage.called().await, [""; 0]);
    stage.at_instant(ms("2026-05-01T10:05:00Z") + 120).await;
    let (one, other) = tokio::join!(stage.engine.fire_due(), second.fire_due());
    one.unwrap();
    other.unwrap();
    assert_eq!(stage.called().await, ["2026-05-01T10:05:00Z"]);
    let run = stage.run_of("2026-05-01T10:05:00Z").await;
    let event: Value = serde_json::from_str::<Value>(&run.events).unwrap()[0].clone();
    assert_eq!(
        (event["name"].as_str(), event["id"].as_str()),
        (Some("inngest/scheduled.timer"), Some("2026-05-01T10:05:00Z"))
    );
    assert_eq!(
        event["data"],
        json!({"cron": "*/5 * * * *", "scheduledAt": "2026-05-01T10:05:00Z", "fireAt": "2026-05-01T10:05:00Z"})
    );
    assert_eq!(run.cause, "cron");
    stage.at_instant(ms("2026-05-01T10:10:00Z") + 120).await;
    assert_eq!(stage.called().await, ["2026-05-01T10:10:00Z"]);
    assert_eq!(stage.t.actions().await.iter().filter(|action| *action == "function.cron.ticked").count(), 2);
}

#[tokio::test]
async fn clocks_that_go_forward_leave_a_missing_time_out() {
    // Los Angeles, 8 March 2026: 2:00 to 3:00 does not exist.
    let functions =
        [("fixed", cron("TZ=America/Los_Angeles 30 2 * * *")), ("hourly", cron("TZ=America/Los_Angeles 0 * * * *"))];
    let (from, until) = ("2026-03-07T08:00:00Z", "2026-03-09T07:00:00Z");
    let mut one = stage(&functions[..1], from, MissedTicks::Last).await;
    assert_eq!(run_through(&mut one, from, until, 30 * MINUTE).await, ["2026-03-07T10:30:00Z"]);
    let mut other = stage(&functions[1..], from, MissedTicks::Last).await;
    // 24 h, then a day of 23.
    assert_eq!(run_through(&mut other, from, until, HOUR).await.len(), 24 + 23);
}

#[tokio::test]
async fn clocks_that_go_back_fire_a_fixed_time_once_and_an_interval_as_time_passes() {
    // Los Angeles, 1 November 2026: 1:00 to 2:00 comes twice, at 8:00Z and 9:00Z.
    let functions = [
        ("fixed", cron("TZ=America/Los_Angeles 30 1 * * *")),
        ("quarters", cron("TZ=America/Los_Angeles */15 * * * *")),
    ];
    let (from, until) = ("2026-11-01T07:15:00Z", "2026-11-02T08:00:00Z");
    let mut one = stage(&functions[..1], from, MissedTicks::Last).await;
    assert_eq!(run_through(&mut one, from, until, 15 * MINUTE).await, ["2026-11-01T08:30:00Z"]);
    let mut other = stage(&functions[1..], from, MissedTicks::Last).await;
    let ran = run_through(&mut other, from, until, 15 * MINUTE).await;
    // From 7:30Z on: 24.5 h of quarters, and the one at the end.
    assert_eq!(ran.len(), 99);
}

#[tokio::test]
async fn of_missed_ticks_the_last_one_runs_or_none() {
    for (policy, expected) in [(MissedTicks::Last, vec!["2026-05-01T13:00:00Z"]), (MissedTicks::Skip, vec![])] {
        let mut stage = stage(&[("f", cron("0 * * * *"))], "2026-05-01T09:30:00Z", policy).await;
        // Nobody was there from 10:00 to 13:20.
        stage.at_instant(ms("2026-05-01T13:20:00Z")).await;
        assert_eq!(stage.called().await, expected, "{policy:?}");
        stage.at_instant(ms("2026-05-01T14:00:00Z") + 300).await;
        assert_eq!(stage.called().await, ["2026-05-01T14:00:00Z"], "{policy:?}");
        let missed = stage.t.actions().await.iter().any(|action| action == "function.cron.missed");
        assert_eq!(missed, policy == MissedTicks::Skip);
    }
}

#[tokio::test]
async fn another_expression_stops_the_old_series_and_a_removed_function_ticks_no_more() {
    let mut stage =
        stage(&[("f", cron("0 * * * *")), ("g", cron("0 * * * *"))], "2026-05-01T09:30:00Z", MissedTicks::Last).await;
    let kept = stage.runs.schedules().await.unwrap();
    stage.register(&[("f", cron("30 12 * * *")), ("g", cron("0 * * * *"))]).await;
    let changed = stage.runs.schedules().await.unwrap();
    assert_eq!(changed.len(), 2);
    let same: Vec<&String> = changed.keys().filter(|name| kept.contains_key(*name)).collect();
    assert!(same.len() == 1 && same[0].ends_with("|app-g") && kept[same[0]] == changed[same[0]], "{changed:?}");
    stage.register(&[("f", cron("30 12 * * *"))]).await;
    assert_eq!(stage.runs.schedules().await.unwrap().len(), 1);
    let timers: Vec<String> =
        stage.t.cmd(&["ZRANGE", &format!("{}:fn:timers", stage.t.bus.keys.tag()), "0", "-1"]).await;
    assert_eq!(timers.iter().filter(|timer| timer.starts_with("C|")).count(), 1, "{timers:?}");
}

#[tokio::test]
async fn a_schedule_whose_timer_is_lost_is_put_back() {
    let mut stage = stage(&[("f", cron("0 * * * *"))], "2026-05-01T09:30:00Z", MissedTicks::Last).await;
    stage.t.cmd::<()>(&["DEL", &format!("{}:fn:timers", stage.t.bus.keys.tag())]).await;
    stage.engine.reconcile_flow().await.unwrap();
    stage.at_instant(ms("2026-05-01T10:00:00Z") + 300).await;
    assert_eq!(stage.called().await, ["2026-05-01T10:00:00Z"]);
}

#[tokio::test]
async fn jitter_moves_a_tick_by_its_own_share_and_loses_none() {
    let config = json!({"triggers": [{"cron": "* * * * *", "jitter": "2m"}]});
    let (from, until) = ("2026-05-01T10:00:30Z", "2026-05-01T10:20:30Z");
    let mut stage = stage(&[("f", config)], from, MissedTicks::Last).await;
    let mut ran = run_through(&mut stage, from, until, 1_000).await;
    ran.sort();
    // The last two minutes' ticks may still be to come.
    assert!(ran.len() >= 17, "{ran:?}");
    let expected: Vec<String> = (0..ran.len()).map(|n| format!("2026-05-01T10:{:02}:00Z", n + 1)).collect();
    assert_eq!(ran, expected, "each once");
}

#[tokio::test]
async fn a_tick_of_a_paused_function_is_skipped_and_one_of_a_singleton_gives_way() {
    let single = json!({"triggers": [{"cron": "0 * * * *"}], "singleton": {"mode": "skip"}});
    let mut stage = stage(&[("f", single)], "2026-05-01T09:30:00Z", MissedTicks::Last).await;
    stage.at_instant(ms("2026-05-01T10:00:00Z") + 300).await;
    assert_eq!(stage.called().await, ["2026-05-01T10:00:00Z"]);
    stage.at_instant(ms("2026-05-01T11:00:00Z") + 300).await;
    assert_eq!(stage.called().await, [""; 0], "the run of ten is still live");
    stage.end("2026-05-01T10:00:00Z").await;
    stage.runs.set_paused("fn:app-f", Some(&Mark::default())).await.unwrap();
    stage.at_instant(ms("2026-05-01T12:00:00Z") + 300).await;
    assert_eq!(stage.called().await, [""; 0]);
    assert_eq!(stage.with_status(Status::Skipped).await, ["2026-05-01T11:00:00Z", "2026-05-01T12:00:00Z"]);
}

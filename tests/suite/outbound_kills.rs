//! The process ends with SIGKILL while events are fanned out and while they are delivered.

use std::collections::BTreeSet;

use crate::drainer_support::assert_in_order;
use crate::outbound_support::{LONG, Outbound, ids};
use crate::support::{HttpSink, Reply};

const RETRIES: &str = "100ms,100ms,100ms,100ms,100ms,100ms,100ms,100ms";

#[tokio::test(flavor = "multi_thread")]
async fn deliveries_in_order_stay_in_order_over_kills() {
    let outbound = Outbound::start(RETRIES).await;
    let sink = HttpSink::start().await;
    outbound.endpoint(&sink, "order/*", &["--fifo"]).await;
    let emitted: Vec<String> = outbound.stage.emit("order/placed", 120).await.into_iter().map(|e| e.event_id).collect();
    for at in [1, 15, 40, 80] {
        let mut drainer = outbound.joelclaw.spawn(&["drainer"]);
        sink.wait_for(at, LONG).await;
        drainer.kill_9().await;
    }
    let _drainer = outbound.joelclaw.spawn(&["drainer"]);
    outbound.stage.wait_until_empty(LONG).await;
    assert_in_order(&ids(&sink.received()), &emitted);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_when_one_of_two_drainers_is_killed_again_and_again() {
    let outbound = Outbound::start(RETRIES).await;
    let (one, two) = (HttpSink::start().await, HttpSink::start().await);
    outbound.endpoint(&one, "order/*", &[]).await;
    outbound.endpoint(&two, "order/*", &["--fifo"]).await;
    let _steady = outbound.joelclaw.spawn(&["drainer"]);
    let mut expected = Vec::new();
    for _ in 0..4 {
        let mut killed = outbound.joelclaw.spawn(&["drainer"]);
        killed.wait_for_line("drainer started", LONG).await;
        let at = expected.len();
        expected.extend(outbound.stage.emit("order/placed", 60).await.into_iter().map(|event| event.event_id));
        one.wait_for(at + 5, LONG).await;
        killed.kill_9().await;
    }
    outbound.stage.wait_until_empty(LONG).await;
    assert_eq!(ids(&one.received()).into_iter().collect::<BTreeSet<_>>(), expected.iter().cloned().collect());
    assert_in_order(&ids(&two.received()), &expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_fanned_out_ahead_of_its_function_survives_kills_in_order() {
    let routes = "[[event]]\nname = \"flow/start\"\nhandler = { type = \"inngest\", target = \"flow/start\" }\n";
    let outbound = Outbound::start_with(RETRIES, routes).await;
    let sink = HttpSink::start().await;
    sink.reply_next([Reply::status(500), Reply::status(503)]);
    outbound.endpoint(&sink, "flow/*", &["--fifo"]).await;
    let emitted: Vec<String> = outbound.stage.emit("flow/start", 300).await.into_iter().map(|e| e.event_id).collect();
    for at in [1, 30, 90, 180] {
        let mut drainer = outbound.joelclaw.spawn(&["drainer"]);
        sink.wait_for(at, LONG).await;
        drainer.kill_9().await;
    }
    let _drainer = outbound.joelclaw.spawn(&["drainer"]);
    sink.wait_for(300, LONG).await;
    crate::support::eventually(LONG, || async {
        let waiting = outbound.stage.bus.depth().await.unwrap().total;
        if waiting == 300 { Ok(()) } else { Err(waiting) }
    })
    .await;
    assert_in_order(&ids(&sink.received()), &emitted);
    assert_eq!(outbound.stage.bus.dead_count().await.unwrap(), 0);
}

//! Order and limits across real drainers: ordered families, per-family concurrency.

use std::time::Duration;

use crate::drainer_support::{Stage, assert_in_order};
use crate::support::Reply;

const LONG: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread")]
async fn an_ordered_family_keeps_its_order_across_retries_and_drainers() {
    let stage = Stage::start().await;
    let url = stage.sink.url();
    let extra = format!(
        "[[event]]\nname = \"ordered/event\"\nordered = true\n\
         backoff = {{ initial = \"200ms\", jitter = \"none\" }}\nhandler = {{ type = \"http\", target = \"{url}\" }}\n"
    );
    let joelclaw = stage.joelclaw(&extra);
    stage.sink.reply_next([Reply::ok(), Reply::status(500), Reply::ok()]);
    let emitted = stage.emit("ordered/event", 30).await;
    let mut drainers = [joelclaw.spawn(&["drainer"]), joelclaw.spawn(&["drainer"])];
    stage.wait_until_empty(LONG).await;
    let mut expected: Vec<String> = emitted.into_iter().map(|appended| appended.event_id).collect();
    expected.insert(1, expected[1].clone());
    let seen: Vec<String> =
        stage.sink.received().iter().map(|request| request.header("x-event-id").unwrap().to_owned()).collect();
    assert_eq!(seen, expected);
    for drainer in &mut drainers {
        drainer.kill_9().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ordered_family_keeps_its_order_and_goes_on_when_its_drainers_are_killed() {
    let stage = Stage::start().await;
    let url = stage.sink.url();
    let extra = format!(
        "[[event]]\nname = \"ordered/event\"\nordered = true\nattempts = 20\n\
         backoff = {{ initial = \"100ms\", jitter = \"none\" }}\nhandler = {{ type = \"http\", target = \"{url}\" }}\n"
    );
    let joelclaw = stage.joelclaw(&extra);
    stage.sink.reply_next([Reply::ok(), Reply::status(500)]);
    // More than one claim takes: a drainer that ends may hold far more than 64 of them.
    let mut emitted = stage.emit("ordered/event", 300).await;
    let mut other = joelclaw.spawn(&["drainer"]);
    for at in [1, 40, 120, 240] {
        let mut killed = joelclaw.spawn(&["drainer"]);
        stage.sink.wait_for(at, LONG).await;
        other.kill_9().await;
        emitted.extend(stage.emit("ordered/event", 10).await);
        std::mem::swap(&mut other, &mut killed);
    }
    stage.wait_until_empty(LONG).await;
    let expected: Vec<String> = emitted.into_iter().map(|appended| appended.event_id).collect();
    let seen: Vec<String> =
        stage.sink.received().iter().map(|request| request.header("x-event-id").unwrap().to_owned()).collect();
    assert_in_order(&seen, &expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_familys_concurrency_holds_in_its_process_while_others_go_past() {
    let stage = Stage::start().await;
    let url = stage.sink.url();
    let extra = format!(
        "[[event]]\nname = \"narrow/event\"\nconcurrency = 2\nhandler = {{ type = \"http\", target = \"{url}\" }}\n"
    );
    let joelclaw = stage.joelclaw(&extra);
    stage.sink.reply_next([Reply::hang(), Reply::hang()]);
    let mut drainer = joelclaw.spawn(&["drainer"]);
    stage.emit("narrow/event", 10).await;
    stage.sink.wait_for(2, LONG).await;
    stage.emit("work/free", 50).await;
    let requests = stage.sink.wait_for(52, LONG).await;
    let narrow = requests.iter().filter(|request| request.header("x-event-name") == Some("narrow/event")).count();
    assert_eq!(narrow, 2);
    drainer.kill_9().await;
}

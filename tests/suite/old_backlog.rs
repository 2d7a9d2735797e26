//! Ten thousand that waited longer than a day are all delivered at the start.

use std::collections::HashSet;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::drainer_support::{Stage, lane};
use system_bus::streams::envelope::Envelope;
use system_bus::streams::json::JsonObject;
use system_bus::streams::priority::Priority;

const LONG: Duration = Duration::from_secs(60);
const COUNT: usize = 10_000;

fn envelope(id: String) -> Vec<u8> {
    let envelope = Envelope {
        v: 1,
        id,
        name: "work/old".parse().unwrap(),
        source: "test".into(),
        ts: 1,
        data: JsonObject::default(),
        priority: Priority::P1,
        dedup_key: None,
        trace: None,
        triage: None,
        meta: None,
    };
    envelope.encode().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_of_yesterday_are_delivered_and_none_is_acknowledged_for_its_age() {
    let stage = Stage::start().await;
    let lane = lane("work/old", Priority::P1);
    let day = Duration::from_secs(25 * 3600);
    let yesterday = (SystemTime::now() - day).duration_since(UNIX_EPOCH).unwrap().as_millis();
    stage.plant(&lane, &format!("{yesterday}-0"), &envelope("old-0".into())).await;
    let mut pipe = redis::pipe();
    for n in 1..COUNT {
        let entry = envelope(format!("old-{n}"));
        pipe.cmd("XADD").arg(stage.bus.keys.lane(&lane)).arg(format!("{yesterday}-{n}")).arg("e").arg(entry).ignore();
    }
    pipe.query_async::<()>(&mut stage.redis.connection().await).await.unwrap();

    let joelclaw = stage.joelclaw("");
    let mut drainer = joelclaw.spawn(&["drainer"]);
    stage.wait_until_empty(LONG).await;
    let requests = stage.sink.received();
    let ids: HashSet<_> = requests.iter().map(|request| request.header("x-event-id").unwrap()).collect();
    assert_eq!((requests.len(), ids.len()), (COUNT, COUNT), "each once");
    assert_eq!(stage.completions().await.len(), COUNT);
    let replay = &stage.facts_of("queue.replay").await[0].metadata;
    assert_eq!((&replay["replayable"], &replay["stale_acked"]), (&COUNT.into(), &0.into()));
    drainer.terminate();
    assert_eq!(drainer.wait_exit(LONG).await.code(), Some(0));
}

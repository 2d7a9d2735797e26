//! A Redis, an environment for the real binary and a way to look at the queue, for tests of the drainer.

#![allow(dead_code, clippy::unwrap_used, missing_docs)] // Each test file uses a part of it.

use std::collections::HashMap;
use std::time::Duration;

use system_bus::streams::append::{Appended, Appender, NewEvent, Settings};
use system_bus::streams::bus::Bus;
use system_bus::streams::entry_id::EntryId;
use system_bus::streams::json::JsonObject;
use system_bus::streams::lane::Lane;
use system_bus::streams::priority::Priority;
use system_bus::streams::records::Fact;
use system_bus::streams::redis::Redis;

use crate::support::{HttpSink, Joelclaw, TestRedis, eventually};

/// The key prefix that the binary uses unless told otherwise.
const PREFIX: &str = "joelclaw:bus";

pub struct Stage {
    pub redis: TestRedis,
    pub bus: Bus,
    pub appender: Appender,
    pub sink: HttpSink,
}

impl Stage {
    pub async fn start() -> Self {
        Self::on(TestRedis::start().await).await
    }

    pub async fn on(redis: TestRedis) -> Self {
        let bus = Bus::new(Redis::open(&redis.url(), "test").unwrap(), PREFIX);
        let settings = Settings { deadline: Duration::from_secs(10), ..Settings::default() };
        let appender = Appender::start(&bus, settings);
        Self { redis, bus, appender, sink: HttpSink::start().await }
    }

    /// The binary's environment: quick ticks and short leases, `extra` entries after one that sends `work/*` to the
    /// sink.
    pub fn joelclaw(&self, extra: &str) -> Joelclaw {
        let url = self.sink.url();
        let joelclaw = Joelclaw::new(&self.redis.url()).registry(&format!(
            "[[event]]\npattern = \"work/*\"\nhandler = {{ type = \"http\", target = \"{url}\" }}\n{extra}"
        ));
        for (key, value) in [
            ("QUEUE_DRAIN_INTERVAL_MS", "100"),
            ("QUEUE_DRAIN_LEASE_MS", "1000"),
            ("QUEUE_DRAINER_CONCURRENCY", "64"),
            ("QUEUE_DRAIN_FAILURE_BACKOFF_MS", "50"),
        ] {
            joelclaw.env_file_line(key, value);
        }
        joelclaw
    }

    pub async fn emit(&self, name: &str, count: usize) -> Vec<Appended> {
        let events = (0..count).map(|n| event(name, &format!("{{\"n\":{n}}}"))).collect();
        self.appender.append(events).await.unwrap()
    }

    /// Waits until nothing is open, and proves that nothing was lost.
    pub async fn wait_until_empty(&self, deadline: Duration) {
        eventually(deadline, || async {
            let depth = self.bus.depth().await.map_err(|error| error.to_string())?;
            if depth.total + depth.later == 0 { Ok(()) } else { Err(format!("{depth:?}")) }
        })
        .await;
        self.assert_accounted_for().await;
    }

    pub async fn assert_accounted_for(&self) {
        let findings = self.bus.fsck(false, Duration::from_secs(3600)).await.unwrap();
        assert!(findings.is_empty(), "{findings:?}");
        let verdict = self.bus.verify(0).await.unwrap();
        assert_eq!(verdict.lost, 0, "{verdict:?}");
    }

    /// Every fact of the journal, oldest first.
    pub async fn facts(&self) -> Vec<Fact> {
        let mut facts = Vec::new();
        let mut from = EntryId::MIN;
        loop {
            let page = self.bus.journal_page(from, EntryId::MAX, 1000).await.unwrap();
            facts.extend(page.entries.into_iter().map(|entry| entry.fact));
            match page.last {
                Some(last) => from = last.next(),
                None => return facts,
            }
        }
    }

    pub async fn facts_of(&self, action: &str) -> Vec<Fact> {
        self.facts().await.into_iter().filter(|fact| fact.action == action).collect()
    }

    /// How often each event was completed.
    pub async fn completions(&self) -> HashMap<String, usize> {
        let mut completions = HashMap::new();
        for fact in self.facts_of("queue.dispatch.completed").await {
            *completions.entry(fact.event_id.unwrap()).or_default() += 1;
        }
        completions
    }

    /// Writes an entry as it would look after a day in its lane.
    pub async fn plant(&self, lane: &Lane, id: &str, envelope: &[u8]) {
        self.bus.create_group(lane).await.unwrap();
        let mut connection = self.redis.connection().await;
        let mut pipe = redis::pipe();
        pipe.cmd("SADD").arg(self.bus.keys.families()).arg(lane.family.as_str());
        pipe.cmd("HSETNX").arg(self.bus.keys.lanes()).arg(lane.to_string()).arg("1,1");
        pipe.cmd("XADD").arg(self.bus.keys.lane(lane)).arg(id).arg("e").arg(envelope);
        pipe.query_async::<()>(&mut connection).await.unwrap();
    }
}

pub fn event(name: &str, data: &str) -> NewEvent {
    let data = JsonObject::parse(data).unwrap();
    NewEvent { priority: Priority::P1, ..NewEvent::new(name.parse().unwrap(), "test", data) }
}

pub fn lane(name: &str, priority: Priority) -> Lane {
    Lane::new(name.parse().unwrap(), priority)
}

/// All of `expected` arrived, and none before those that come before it. What had arrived and was not written when its
/// process ended comes again.
#[track_caller]
pub fn assert_in_order(arrived: &[String], expected: &[String]) {
    let places: HashMap<&String, usize> = expected.iter().enumerate().map(|(place, id)| (id, place)).collect();
    let mut next = 0;
    for (n, id) in arrived.iter().enumerate() {
        let place = *places.get(id).unwrap_or_else(|| panic!("arrival {n}, {id}, was not expected"));
        assert!(place <= next, "arrival {n} is number {place}; number {next} had not come yet");
        next = place + 1;
    }
    let came: std::collections::HashSet<&String> = arrived.iter().collect();
    assert_eq!(came.len(), expected.len(), "not all came");
}

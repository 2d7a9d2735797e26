//! A redis-server of its own for each test, on a socket in a temporary directory, gone at drop.
#![allow(dead_code)]

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use system_bus::streams::append::{Appended, Appender, NewEvent, Settings};
use system_bus::streams::bus::Bus;
use system_bus::streams::complete::{Completion, DeadRecord, Ending};
use system_bus::streams::dead::Operator;
use system_bus::streams::entry_id::EntryId;
use system_bus::streams::family::Family;
use system_bus::streams::json::JsonObject;
use system_bus::streams::lane::Lane;
use system_bus::streams::lease::{Failures, LaneReader, Leased, ReadLane};
use system_bus::streams::priority::Priority;
use system_bus::streams::records::{DispatchRow, Dispatches, Fact, PackedId, Record};
use system_bus::streams::redis::Redis;
use system_bus::streams::sessions::Renewal;

pub struct TestRedis {
    server: Child,
    dir: tempfile::TempDir,
}

impl TestRedis {
    pub async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let server = Command::new("redis-server")
            .args(["--port", "0", "--save", "", "--appendonly", "no", "--unixsocket", "redis.sock", "--dir"])
            .arg(dir.path())
            .current_dir(dir.path())
            .stdout(Stdio::null())
            .spawn()
            .expect("redis-server is installed");
        let this = Self { server, dir };
        for _ in 0..200 {
            let client = redis::Client::open(this.url()).unwrap();
            if let Ok(mut connection) = client.get_multiplexed_async_connection().await
                && redis::cmd("PING").query_async::<String>(&mut connection).await.is_ok()
            {
                return this;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("redis-server did not start");
    }

    pub fn url(&self) -> String {
        format!("redis+unix://{}/redis.sock", self.dir.path().display())
    }
}

impl Drop for TestRedis {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

pub const SESSION: &str = "host-1-a";
pub const LEASE: Duration = Duration::from_secs(30);

/// A bus on its own Redis, with what tests do to it.
pub struct TestBus {
    pub bus: Bus,
    pub appender: Appender,
    pub redis: TestRedis,
}

pub fn operator() -> Operator {
    Operator { actor: "op".into(), reason: "test".into() }
}

pub fn family(name: &str) -> Family {
    name.parse().unwrap()
}

pub fn lane(name: &str) -> Lane {
    name.parse().unwrap()
}

pub fn event(name: &str) -> NewEvent {
    let data = JsonObject::parse(r#"{"n":1}"#).unwrap();
    NewEvent { priority: Priority::P1, ..NewEvent::new(family(name), "test", data) }
}

impl TestBus {
    pub async fn start() -> Self {
        Self::with(Settings::default()).await
    }

    pub async fn with(settings: Settings) -> Self {
        let redis = TestRedis::start().await;
        let bus = Bus::new(Redis::open(&redis.url(), "test").unwrap(), "test");
        let appender = Appender::start(&bus, settings);
        Self { bus, appender, redis }
    }

    pub async fn emit(&self, event: NewEvent) -> Appended {
        self.appender.append(vec![event]).await.unwrap().remove(0)
    }

    pub async fn cmd<T: redis::FromRedisValue>(&self, words: &[&str]) -> T {
        let mut cmd = redis::cmd(words[0]);
        for word in &words[1..] {
            cmd.arg(*word);
        }
        self.bus.redis.query(&cmd).await.unwrap()
    }

    pub async fn open(&self, session: &str) {
        let renewal = self.bus.renew_session(session, true, LEASE, "{}", &[]).await.unwrap();
        assert!(matches!(renewal, Renewal::Live { .. }));
    }

    /// Ages a session's heartbeat so that it is overdue.
    pub async fn expire(&self, session: &str) {
        self.cmd::<()>(&["ZADD", &self.bus.keys.sessions(), "1", session]).await;
    }

    pub async fn lease(&self, session: &str, lane: &Lane, count: usize) -> Vec<Leased> {
        let mut reader = LaneReader::new(self.bus.clone(), session.into());
        reader.read(&[ReadLane { lane: lane.clone(), key: self.bus.keys.lane(lane) }], count, None).await.unwrap().0
    }

    pub async fn end(&self, session: &str, leased: &Leased, ending: Ending) -> Vec<String> {
        let batch = [Completion { lane: leased.lane.clone(), id: leased.id, ending: ending.clone() }];
        self.bus.complete(session, &batch, &[record(leased, &ending)]).await.unwrap()
    }

    pub async fn done(&self, session: &str, leased: &Leased) {
        self.end(session, leased, Ending::Done { forget_failures: false }).await;
    }

    pub async fn retry(&self, session: &str, leased: &Leased, delay: Duration) {
        let failures = Failures { count: 1, error: "boom".into(), ..Failures::default() };
        self.end(session, leased, Ending::Retry { delay, failures }).await;
    }

    pub async fn kill(&self, session: &str, leased: &Leased) -> EntryId {
        self.end(session, leased, Ending::Dead(dead_record(leased))).await;
        let page = self.bus.dead_letters(&Default::default(), None, 1, 10).await.unwrap();
        page.letters[0].id
    }

    pub async fn actions(&self) -> Vec<String> {
        let page = self.bus.journal_page(EntryId::MIN, EntryId::MAX, 10_000).await.unwrap();
        assert_eq!(page.undecodable, 0);
        page.entries.into_iter().map(|entry| entry.fact.action.into_owned()).collect()
    }

    pub async fn assert_clean(&self) {
        let findings = self.bus.fsck(false, system_bus::streams::fsck::WINDOW).await.unwrap();
        assert!(findings.is_empty(), "{findings:#?}");
        assert_eq!(self.bus.verify(0).await.unwrap().lost, 0);
    }
}

pub fn dead_record(leased: &Leased) -> DeadRecord {
    DeadRecord {
        reason: "rejected".into(),
        error: "400".into(),
        attempts: leased.deliveries,
        lane: leased.lane.to_string(),
        entry_id: leased.id.to_string(),
        first_at: leased.enqueued_ms,
        redrives: leased.redrive.as_ref().map_or(0, |redrive| redrive.redrives),
        ..DeadRecord::default()
    }
}

/// The journal record a drainer writes with each ending.
fn record(leased: &Leased, ending: &Ending) -> Record {
    let event_id = system_bus::streams::envelope::Envelope::decode(&leased.envelope).map(|e| e.id).unwrap_or_default();
    let fact = |action| {
        let mut fact = Fact::new("queue", action).event(event_id.clone());
        fact.lane = Some(leased.lane.to_string());
        fact.stream_id = Some(leased.id.to_string());
        Record::Fact(fact)
    };
    match ending {
        Ending::Done { .. } => Record::Dispatch(Dispatches {
            lanes: vec![leased.lane.to_string()],
            handlers: vec![("http".into(), "x".into())],
            rows: vec![DispatchRow {
                lane: 0,
                ms: leased.id.ms,
                seq: leased.id.seq,
                id: PackedId(event_id.clone()),
                handler: 0,
                attempt: leased.deliveries,
                wait_ms: 0,
                started_ms: 0,
                duration_us: 1,
                promoted_from: None,
                start_known: true,
            }],
        }),
        Ending::Retry { .. } => fact("queue.dispatch.failed"),
        Ending::Dead(_) => fact("queue.dead"),
        Ending::HandBack { .. } => fact("queue.handback"),
    }
}

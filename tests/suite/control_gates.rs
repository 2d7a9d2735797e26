//! `observer.lua`, `observe_apply.lua` and `breaker.lua` on a real Redis: every gate, twice, and as a loser; and that the
//! gates of the pure policy say the same.

use std::time::Duration;

use crate::common_streams::{TestBus, event, family};
use system_bus::config::ObserverMode;
use system_bus::observer::actions::Action;
use system_bus::observer::flags::{Limits, Policy, Provider};
use system_bus::observer::{gates, gather};
use system_bus::streams::breaker::{Change, State, Thresholds, Trip};
use system_bus::streams::control::{NewPause, Pause, PauseOutcome, PauseSource};
use system_bus::streams::control_observer::{Application, Applied, Bounds, Claim};
use system_bus::streams::family::Family;

const MINUTE: Duration = Duration::from_secs(60);
const LEASE: Duration = Duration::from_secs(15);
const NAME: &str = "content/updated";

fn bounds() -> Bounds {
    let limits = Limits::default();
    Bounds {
        snapshot_ms: 90_000,
        max_ttl_ms: limits.max_ttl_ms,
        manual_quiet_ms: limits.manual_quiet_ms,
        resume_dwell_ms: limits.resume_dwell_ms,
        pause_dwell_ms: limits.pause_dwell_ms,
        per_family: limits.pauses_per_family,
        in_all: limits.pauses_in_all,
        hold_ms: limits.hold_ms,
    }
}

fn policy() -> Policy {
    Policy {
        mode: ObserverMode::Enforce,
        observe: vec![NAME.into()],
        auto: vec![NAME.into()],
        interval: MINUTE,
        providers: vec![Provider::Rules],
        model: "m".into(),
        timeout: MINUTE,
        limits: Limits::default(),
    }
}

struct Stage {
    t: TestBus,
    token: String,
    family: Family,
}

impl Stage {
    async fn start() -> Self {
        let t = TestBus::start().await;
        let Claim::Run { token, .. } = t.bus.claim_observer("a", LEASE * 100, MINUTE, Duration::ZERO).await.unwrap()
        else {
            panic!()
        };
        Self { t, token, family: family(NAME) }
    }

    async fn apply_at(&self, id: &str, ttl_ms: Option<u64>, captured_ms: u64, seen_rev: Option<u64>) -> Applied {
        let bounds = bounds();
        let action = match ttl_ms {
            Some(ttl) => serde_json::json!({ "kind": "pause_family", "family": NAME, "ttlMs": ttl, "reason": "test" }),
            None => serde_json::json!({ "kind": "resume_family", "family": NAME, "reason": "test" }),
        };
        let application = Application {
            token: &self.token,
            snapshot_id: id,
            index: 0,
            family: &self.family,
            ttl_ms,
            action: &action,
            refused: None,
            mode: "enforce",
            model: None,
            seen_rev,
            captured_ms,
            bounds: &bounds,
            with_probe: true,
        };
        self.t.bus.apply_observed(&application).await.unwrap()
    }

    /// Applies as the observer would, and checks that the pure gates say the same on a snapshot taken just before.
    async fn apply(&self, id: &str, ttl_ms: Option<u64>) -> Result<Option<Box<Pause>>, String> {
        let snapshot = gather::snapshot(&self.t.bus, &policy(), None, 1).await.unwrap();
        let (family, reason) = (NAME.to_owned(), "test".to_owned());
        let action = match ttl_ms {
            Some(ttl_ms) => Action::PauseFamily { family, ttl_ms, reason },
            None => Action::ResumeFamily { family, reason },
        };
        let pure = gates::by_state(&action, &snapshot, &Limits::default()).map(|refusal| refusal.reason.to_owned());
        let rev = snapshot.pause(NAME).and_then(|pause| pause.rev);
        let applied = self.apply_at(id, ttl_ms, snapshot.captured_ms(), rev).await;
        let result = match applied {
            Applied::Done(pause) => Ok(pause),
            Applied::Rejected { reason, .. } => Err(reason),
            Applied::Lost => panic!("lost"),
        };
        assert_eq!(result.as_ref().err().cloned(), pure, "{id}: script and policy disagree");
        result
    }

    async fn now(&self) -> u64 {
        self.t.bus.now_ms().await.unwrap()
    }

    async fn manual(&self, seconds: u64) {
        let new = NewPause {
            family: self.family.clone().into(),
            ttl: Duration::from_secs(seconds),
            reason: "r".into(),
            source: PauseSource::Manual,
            actor: None,
            shorten: true,
        };
        assert!(matches!(self.t.bus.pause(&new).await.unwrap(), PauseOutcome::Paused { .. }));
    }

    async fn set_memory(&self, text: &str) {
        self.t.cmd::<()>(&["HSET", &self.t.bus.keys.observer("memory"), NAME, text]).await;
    }

    /// Ages the pause in force.
    async fn age(&self, ms: u64) {
        let key = self.t.bus.keys.pauses();
        let text: String = self.t.cmd(&["HGET", &key, NAME]).await;
        let mut record: serde_json::Value = serde_json::from_str(&text).unwrap();
        record["appliedAtMs"] = (record["appliedAtMs"].as_u64().unwrap() - ms).into();
        self.t.cmd::<()>(&["HSET", &key, NAME, &record.to_string()]).await;
    }

    async fn count(&self, action: &str) -> usize {
        self.t.actions().await.iter().filter(|found| *found == action).count()
    }
}

#[tokio::test]
async fn a_pause_and_a_resume_pass_their_gates_once() {
    let stage = Stage::start().await;
    assert_eq!(stage.apply("s0", Some(300_000)).await, Err("empty_family".into()));
    assert_eq!(stage.apply("s0r", None).await, Err("not_paused".into()));
    stage.t.emit(event(NAME)).await;
    let pause = stage.apply("s1", Some(3_600_000)).await.unwrap().unwrap();
    assert_eq!((pause.source, pause.ttl_ms), (PauseSource::Observer, 900_000), "cut to the longest");
    let applied = stage.count("queue.control.applied").await;
    // A step that is repeated answers the same and changes nothing.
    let again = stage.apply_at("s1", Some(3_600_000), stage.now().await, None).await;
    assert!(matches!(again, Applied::Done(Some(repeated)) if repeated.rev == pause.rev));
    assert_eq!(stage.count("queue.control.applied").await, applied);
    assert_eq!(stage.apply("s2", Some(300_000)).await, Err("already_paused".into()));
    assert_eq!(stage.apply("s3", None).await, Err("dwell".into()));
    stage.age(60_000).await;
    let wrong_rev = stage.apply_at("s4", None, stage.now().await, Some(pause.rev + 7)).await;
    assert!(matches!(wrong_rev, Applied::Rejected { reason, .. } if reason == "state_changed"));
    assert!(stage.apply("s5", None).await.is_ok());
    assert!(stage.t.bus.pauses().await.unwrap().active.is_empty());
    assert_eq!(stage.t.bus.breakers().await.unwrap()[NAME].state, State::HalfOpen, "one event first");
    assert_eq!(stage.apply("s6", Some(300_000)).await, Err("dwell".into()));
}

#[tokio::test]
async fn budget_hold_limit_and_an_operators_word_refuse() {
    let stage = Stage::start().await;
    stage.t.emit(event(NAME)).await;
    let now = stage.now().await;
    let span = |ago: u64, lasts: u64| format!("[{},{}]", now - ago, now - ago + lasts);
    stage.set_memory(&format!("{{\"pauses\":[{},{}]}}", span(3_000_000, 60_000), span(2_000_000, 60_000))).await;
    assert_eq!(stage.apply("b1", Some(300_000)).await, Err("budget_exhausted".into()));
    // Two pauses are spent; the second is still there. A resume is never refused for that.
    stage.set_memory("{}").await;
    assert!(stage.apply("b1a", Some(300_000)).await.is_ok());
    stage.age(60_000).await;
    stage.set_memory(&format!("{{\"pauses\":[{},{}]}}", span(3_000_000, 60_000), span(60_000, 360_000))).await;
    assert!(stage.apply("b1b", None).await.is_ok());
    stage.set_memory(&format!("{{\"pauses\":[{}]}}", span(6_900_000, 3_200_000))).await;
    assert_eq!(stage.apply("b2", Some(900_000)).await, Err("hold_limit".into()));
    stage.set_memory(&format!("{{\"pauses\":{{}},\"at\":{},\"by\":\"manual\"}}", now - 800_000)).await;
    assert_eq!(stage.apply("b3", Some(300_000)).await, Err("manual_quiet".into()));
    stage.set_memory("{}").await;
    stage.manual(600).await;
    assert_eq!(stage.apply("b4", Some(300_000)).await, Err("manual_pause_active".into()));
    assert_eq!(stage.apply("b5", None).await, Err("manual_pause_active".into()));
    assert_eq!(stage.count("queue.control.rejected").await, 5);
    assert_eq!(stage.t.bus.pauses().await.unwrap().active[NAME].1.as_ref().unwrap().source, PauseSource::Manual);
}

#[tokio::test]
async fn an_operators_resume_is_remembered_and_a_record_that_cant_be_read_stands() {
    let stage = Stage::start().await;
    stage.t.emit(event(NAME)).await;
    assert!(stage.apply("m1", Some(300_000)).await.is_ok());
    stage.t.bus.resume(&stage.family, PauseSource::Manual, "mine", None).await.unwrap();
    assert_eq!(stage.apply("m2", Some(300_000)).await, Err("manual_quiet".into()));
    stage.t.cmd::<()>(&["HSET", &stage.t.bus.keys.pauses(), NAME, "garbage"]).await;
    let until = (stage.now().await + 600_000).to_string();
    stage.t.cmd::<()>(&["ZADD", &stage.t.bus.keys.pause_expiry(), &until, NAME]).await;
    assert_eq!(stage.apply("m3", Some(300_000)).await, Err("manual_pause_active".into()));
    assert_eq!(stage.apply("m4", None).await, Err("manual_pause_active".into()));
}

#[tokio::test]
async fn kill_switch_stale_snapshot_and_lost_lease_stop_it() {
    let stage = Stage::start().await;
    stage.t.emit(event(NAME)).await;
    let old = stage.now().await - 91_000;
    let stale = stage.apply_at("k1", Some(300_000), old, None).await;
    assert!(matches!(stale, Applied::Rejected { reason, .. } if reason == "stale_snapshot"));
    stage.t.bus.throw_kill_switch(true, None, "me", "drill").await.unwrap();
    let killed = stage.apply_at("k2", Some(300_000), stage.now().await, None).await;
    assert!(matches!(killed, Applied::Rejected { reason, .. } if reason == "kill_switch"));
    stage.t.bus.throw_kill_switch(false, None, "me", "over").await.unwrap();
    let records = stage.t.actions().await.len();
    stage.t.cmd::<()>(&["DEL", &stage.t.bus.keys.observer("lease")]).await;
    assert_eq!(stage.apply_at("k3", Some(300_000), stage.now().await, None).await, Applied::Lost);
    assert_eq!(stage.t.actions().await.len(), records, "the loser leaves no trace");
}

#[tokio::test]
async fn one_claims_per_cadence_and_a_crashed_pass_is_gone_on_with() {
    let t = TestBus::start().await;
    let claim = |owner: &'static str| t.bus.claim_observer(owner, LEASE, MINUTE, Duration::ZERO);
    let Claim::Run { token, last_ms, open, .. } = claim("a").await.unwrap() else { panic!() };
    assert_eq!((last_ms, open), (None, None));
    assert_eq!(claim("b").await.unwrap(), Claim::Held);
    assert!(t.bus.keep_observer("b:1", LEASE, None).await.unwrap().is_err());
    assert!(t.bus.keep_observer(&token, LEASE, Some("{\"decided\":1}")).await.unwrap().is_ok());
    // It crashes: its lease ends, and whatever the cadence says the next goes on with what was decided.
    t.cmd::<()>(&["DEL", &t.bus.keys.observer("lease")]).await;
    let Claim::Run { token: second, open, .. } = claim("b").await.unwrap() else { panic!() };
    assert_eq!(open.as_deref(), Some("{\"decided\":1}"));
    assert!(t.bus.keep_observer(&token, LEASE, None).await.unwrap().is_err(), "the crashed one comes back");
    let fact = || vec![system_bus::streams::records::Fact::new("queue-observe", "queue.observe.completed")];
    let result = serde_json::json!({"n": 1});
    assert!(t.bus.end_observer(&second, None, Some(&result), fact()).await.unwrap().is_ok());
    assert!(t.bus.end_observer(&second, None, Some(&result), fact()).await.unwrap().is_err(), "a pass ends once");
    assert_eq!(t.actions().await.iter().filter(|action| *action == "queue.observe.completed").count(), 1);
    let Claim::Early { next_ms, last_ms } = claim("a").await.unwrap() else { panic!() };
    assert_eq!(next_ms - last_ms, 60_000);
    assert_eq!(t.bus.last_observed().await.unwrap().0.unwrap()["n"], 1);
    // A cron that fires 1.5 s early is on time; 3 s early is not.
    let last = |ago: u64| async move { (ago).to_string() };
    let now = t.bus.now_ms().await.unwrap();
    let tolerant = || t.bus.claim_observer("c", LEASE, MINUTE, Duration::from_secs(2));
    t.cmd::<()>(&["SET", &t.bus.keys.observer("last-run"), &last(now - 57_000).await]).await;
    assert!(matches!(tolerant().await.unwrap(), Claim::Early { .. }));
    t.cmd::<()>(&["SET", &t.bus.keys.observer("last-run"), &last(now - 58_500).await]).await;
    assert!(matches!(tolerant().await.unwrap(), Claim::Run { .. }));
}

#[tokio::test]
async fn a_breaker_changes_only_from_what_was_seen() {
    let t = TestBus::start().await;
    let (name, thresholds) = (family("a/b"), Thresholds::default());
    let change = |change: Change| {
        let (bus, name, thresholds) = (t.bus.clone(), name.clone(), thresholds.clone());
        async move { bus.change_breaker(&name, &change, &thresholds, "test", None).await.unwrap() }
    };
    let trip = || Change::Trip(Trip { failures: 5, attempts: 5, error: "HTTP 503".into(), not_before: None });
    let (one, two) = tokio::join!(change(trip()), change(trip()));
    assert_eq!((one.unwrap().state, two.unwrap().state), (State::Open, State::Open));
    assert_eq!(t.actions().await.iter().filter(|action| *action == "queue.breaker.opened").count(), 1);
    // Its time comes: of two that ask for the probe, one gets it.
    let mut circuit: serde_json::Value =
        serde_json::from_str(&t.cmd::<String>(&["HGET", &t.bus.keys.breaker(), "a/b"]).await).unwrap();
    circuit["openUntil"] = 1.into();
    t.cmd::<()>(&["HSET", &t.bus.keys.breaker(), "a/b", &circuit.to_string()]).await;
    let take = |holder: &str| Change::Take { holder: holder.into(), lease: MINUTE };
    let (one, two) = tokio::join!(change(take("x")), change(take("y")));
    assert_eq!(one.unwrap().holder, two.unwrap().holder);
    let holder = t.bus.breakers().await.unwrap()["a/b"].holder.clone().unwrap();
    let good = || Change::Good { holder: holder.clone() };
    for _ in 0..2 {
        assert_eq!(change(good()).await.unwrap().holder, None);
        assert_eq!(change(take(&holder)).await.unwrap().holder, Some(holder.clone()));
    }
    assert_eq!(change(good()).await, None);
    assert!(t.bus.breakers().await.unwrap().is_empty());
    assert_eq!(change(good()).await, None, "a late result");
}

#[tokio::test]
async fn what_is_shed_is_a_dead_letter_and_comes_back() {
    use system_bus::streams::dead::DeadFilter;
    use system_bus::streams::residue::Pass;
    let t = TestBus::start().await;
    for _ in 0..5 {
        t.emit(event("a/b")).await;
    }
    t.open("host-1-a").await;
    let leased = t.lease("host-1-a", &crate::common_streams::lane("a/b:p1"), 2).await;
    t.retry("host-1-a", &leased[0], Duration::from_secs(600)).await;
    let pass = Pass { older_than: Duration::ZERO, family: Some(family("a/b")), condition: None, limit: 100 };
    let preview = t.bus.residue(&pass, None).await.unwrap();
    assert_eq!(preview.candidates.len(), 5);
    let done = t.bus.shed(&preview.candidates, &crate::common_streams::operator()).await.unwrap();
    assert_eq!((done.shed, done.leased, done.missing), (4, 1, 0), "what is being worked on stays");
    let again = t.bus.shed(&preview.candidates, &crate::common_streams::operator()).await.unwrap();
    assert_eq!((again.shed, again.missing), (0, 4));
    let dead = t.bus.dead_letters(&DeadFilter::default(), None, 1, 10).await.unwrap();
    assert!(dead.letters.iter().all(|letter| letter.reason() == "shed" && letter.event.is_some()));
    t.done("host-1-a", &leased[1]).await;
    t.assert_clean().await;
    assert_eq!(t.bus.depth().await.unwrap().dead, 4);
}

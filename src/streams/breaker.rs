//! Circuit breakers: a family whose target fails again and again is not read for a while, then tried with one event.
//!
//! | key (after the tag) | type | changed by |
//! |---|---|---|
//! | `:breaker` | hash: family → [`Circuit`], JSON; a closed one has no field | `breaker.lua`, `observe_apply.lua` |
//!
//! ```text
//! closed ──failures──▶ open ──time──▶ half open ──3 × good──▶ closed
//!                       ▲                 │
//!                       └──── bad ────────┘      each time twice as long
//! ```
//! # Invariants
//! 1. What a circuit becomes is decided here, by [`Circuit::after`], a pure function; the script only compares and sets.
//! 2. While half open, one event is in flight in the whole fleet: that of the holder, whose lease ends by itself.
//! 3. A breaker is no pause: it has no record of its own to resume, and hides nothing.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::bus::Bus;
use super::family::Family;
use super::journal;
use super::records::Fact;
use super::redis::Error;
use super::scripts;

/// What opens a breaker, and for how long.
#[derive(Debug, Clone, PartialEq)]
pub struct Thresholds {
    /// Attempts are counted over this.
    pub window: Duration,
    /// Fewer attempts than this say nothing.
    pub min: u64,
    /// The share of failures that opens.
    pub ratio: f64,
    /// So many distinct events that fail in a row open, too.
    pub consecutive: usize,
    /// How long it stays open at first; twice as long after each probe that fails.
    pub open: Duration,
    /// How long at most.
    pub max: Duration,
    /// Probes that must go well in a row.
    pub close_after: u32,
}

impl Default for Thresholds {
    fn default() -> Self {
        Self {
            window: Duration::from_secs(60),
            min: 10,
            ratio: 0.5,
            consecutive: 5,
            open: Duration::from_secs(30),
            max: Duration::from_secs(600),
            close_after: 3,
        }
    }
}

/// States other than closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Not read.
    Open,
    /// One event at a time.
    HalfOpen,
    /// Not read, on an operator's word.
    ForcedOpen,
    /// Read whatever fails, on an operator's word.
    ForcedClosed,
}

impl State {
    /// The word.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::HalfOpen => "half_open",
            Self::ForcedOpen => "forced_open",
            Self::ForcedClosed => "forced_closed",
        }
    }
}

/// A breaker that is not closed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Circuit {
    /// Its state.
    pub state: State,
    /// Since when, ms.
    pub since: u64,
    /// Until when, ms; `None` while half open, or forced for good.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub open_until: Option<u64>,
    /// Probes that failed since it was closed.
    #[serde(default)]
    pub n: u32,
    /// Failures that opened it.
    #[serde(default)]
    pub failures: u64,
    /// Of so many attempts.
    #[serde(default)]
    pub attempts: u64,
    /// The last of them.
    #[serde(default)]
    pub last_error: String,
    /// Who has the one probe.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub holder: Option<String>,
    /// Until when, ms.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub holder_until: Option<u64>,
    /// Probes that went well in a row.
    #[serde(default)]
    pub successes: u32,
    /// Rises with every change.
    #[serde(default)]
    pub rev: u64,
}

/// What happens to a breaker.
#[derive(Debug, Clone, PartialEq)]
pub enum Change {
    /// Too much failed.
    Trip(Trip),
    /// A drainer asks for the one probe.
    Take {
        /// Its session.
        holder: String,
        /// How long at most.
        lease: Duration,
    },
    /// The probe went well.
    Good {
        /// Whose.
        holder: String,
    },
    /// The probe failed.
    Bad {
        /// Whose.
        holder: String,
        /// Why.
        error: String,
        /// What the target asked for.
        not_before: Option<Duration>,
    },
    /// The probe says nothing.
    GiveBack {
        /// Whose.
        holder: String,
    },
    /// An operator's word.
    Force {
        /// Open, or closed.
        is_open: bool,
        /// For how long; `None` until it is reset.
        lasts: Option<Duration>,
    },
    /// As if nothing had ever failed.
    Reset,
}

/// What opens a breaker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trip {
    /// Failures counted.
    pub failures: u64,
    /// Attempts counted.
    pub attempts: u64,
    /// The last error.
    pub error: String,
    /// What the target asked for.
    pub not_before: Option<Duration>,
}

/// What a change makes of a breaker.
#[derive(Debug, Clone, PartialEq)]
pub enum After {
    /// Nothing.
    Same,
    /// This; `None` is closed.
    Becomes(Option<Circuit>, Option<&'static str>),
}

fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

impl Circuit {
    /// One in this state since `since` (ms), of which nothing else is known.
    #[must_use]
    pub const fn new(state: State, since: u64) -> Self {
        Self {
            state,
            since,
            open_until: None,
            n: 0,
            failures: 0,
            attempts: 0,
            last_error: String::new(),
            holder: None,
            holder_until: None,
            successes: 0,
            rev: 0,
        }
    }

    /// Whether the family may not be read at `now_ms`, by anybody but the holder.
    #[must_use]
    pub fn is_closed_gate(&self, now_ms: u64) -> bool {
        match self.state {
            State::Open | State::HalfOpen => true,
            State::ForcedOpen => self.open_until.is_none_or(|until| until > now_ms),
            State::ForcedClosed => false,
        }
    }

    /// Whether a probe may be asked for at `now_ms`.
    #[must_use]
    pub fn wants_probe(&self, now_ms: u64) -> bool {
        match self.state {
            State::Open => self.open_until.is_none_or(|until| until <= now_ms),
            State::HalfOpen => self.holder.is_none() || self.holder_until.is_none_or(|until| until <= now_ms),
            State::ForcedOpen | State::ForcedClosed => false,
        }
    }

    /// What `change` makes of `circuit` at `now_ms`. Pure; `random` in `0..1` draws the jitter of ±10 %.
    #[must_use]
    pub fn after(circuit: Option<&Self>, change: &Change, thresholds: &Thresholds, now_ms: u64, random: f64) -> After {
        let is_over = |circuit: &&Self| {
            matches!(circuit.state, State::ForcedOpen | State::ForcedClosed)
                && circuit.open_until.is_some_and(|until| until <= now_ms)
        };
        // An operator's word that is over is a closed breaker.
        let circuit = circuit.filter(|circuit| !is_over(circuit));
        let open = |n: u32, failures: u64, attempts: u64, error: &str, not_before: Option<Duration>| {
            let doubled = ms(thresholds.open).saturating_mul(1 << n.min(20)).min(ms(thresholds.max));
            #[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]
            let drawn = (doubled as f64 * (0.9 + 0.2 * random.clamp(0.0, 1.0))) as u64;
            let hold = drawn.min(ms(thresholds.max)).max(not_before.map_or(0, ms));
            let last_error: String = error.chars().take(300).collect();
            let open_until = Some(now_ms + hold);
            let circuit = Self { open_until, n, failures, attempts, last_error, ..Self::new(State::Open, now_ms) };
            After::Becomes(Some(circuit), Some("queue.breaker.opened"))
        };
        match (change, circuit) {
            (Change::Reset, Some(_)) => After::Becomes(None, Some("queue.breaker.closed")),
            (Change::Force { is_open, lasts }, _) => {
                let state = if *is_open { State::ForcedOpen } else { State::ForcedClosed };
                let action = if *is_open { "queue.breaker.opened" } else { "queue.breaker.closed" };
                let open_until = lasts.map(|lasts| now_ms.saturating_add(ms(lasts)));
                let forced = Self { open_until, ..Self::new(state, now_ms) };
                After::Becomes(Some(forced), Some(action))
            }
            (Change::Trip(trip), None) => open(0, trip.failures, trip.attempts, &trip.error, trip.not_before),
            (Change::Take { holder, lease }, Some(circuit))
                if circuit.wants_probe(now_ms)
                    || (circuit.state == State::HalfOpen && circuit.holder.as_deref() == Some(holder)) =>
            {
                let is_new = circuit.state == State::Open;
                let taken = Self {
                    state: State::HalfOpen,
                    since: if is_new { now_ms } else { circuit.since },
                    open_until: None,
                    holder: Some(holder.clone()),
                    holder_until: Some(now_ms + ms(*lease)),
                    successes: if is_new { 0 } else { circuit.successes },
                    ..circuit.clone()
                };
                After::Becomes(Some(taken), is_new.then_some("queue.breaker.half_open"))
            }
            (Change::Good { holder }, Some(circuit)) if circuit.is_held_by(holder) => {
                let successes = circuit.successes + 1;
                if successes >= thresholds.close_after {
                    return After::Becomes(None, Some("queue.breaker.closed"));
                }
                After::Becomes(Some(Self { successes, ..circuit.without_holder() }), None)
            }
            (Change::Bad { holder, error, not_before }, Some(circuit)) if circuit.is_held_by(holder) => {
                open(circuit.n + 1, circuit.failures + 1, circuit.attempts + 1, error, *not_before)
            }
            (Change::GiveBack { holder }, Some(circuit)) if circuit.is_held_by(holder) => {
                After::Becomes(Some(circuit.without_holder()), None)
            }
            _ => After::Same,
        }
    }

    fn is_held_by(&self, holder: &str) -> bool {
        self.state == State::HalfOpen && self.holder.as_deref() == Some(holder)
    }

    fn without_holder(&self) -> Self {
        Self { holder: None, holder_until: None, ..self.clone() }
    }
}

/// What one drainer saw of a family. Pure.
#[derive(Debug, Clone, Default)]
pub struct Evidence {
    /// Second, attempts, failures.
    seconds: VecDeque<(u64, u64, u64)>,
    /// Distinct events that failed in a row.
    streak: Vec<String>,
    /// Second of the last failure, event: the last few distinct ones.
    failed: VecDeque<(u64, String)>,
}

impl Evidence {
    /// An attempt went well.
    pub fn good(&mut self, now_ms: u64, thresholds: &Thresholds) {
        self.streak.clear();
        self.count(now_ms, false, thresholds);
    }

    /// An attempt failed downstream. What opens the breaker, if this does.
    pub fn bad(
        &mut self,
        event_id: &str,
        error: &str,
        not_before: Option<Duration>,
        now_ms: u64,
        thresholds: &Thresholds,
    ) -> Option<Trip> {
        if !self.streak.iter().any(|id| id == event_id) {
            self.streak.push(event_id.to_owned());
        }
        self.count(now_ms, true, thresholds);
        let (attempts, failures) = self
            .seconds
            .iter()
            .fold((0, 0), |(all, failed), (_, attempts, failures)| (all + attempts, failed + failures));
        #[allow(clippy::cast_precision_loss)]
        let is_share = attempts >= thresholds.min && failures as f64 >= attempts as f64 * thresholds.ratio;
        let second = now_ms / 1000;
        let oldest = second.saturating_sub(thresholds.window.as_secs());
        self.failed.retain(|(at, id)| *at > oldest && id != event_id);
        self.failed.push_back((second, event_id.to_owned()));
        if self.failed.len() > 8 {
            self.failed.pop_front();
        }
        // One poison event that fails again and again is no outage, however many attempts it makes.
        let trips = self.streak.len() >= thresholds.consecutive || (is_share && self.failed.len() > 1);
        let error = error.to_owned();
        trips.then_some(Trip { failures, attempts, error, not_before })
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        *self = Self::default();
    }

    fn count(&mut self, now_ms: u64, failed: bool, thresholds: &Thresholds) {
        let second = now_ms / 1000;
        let oldest = second.saturating_sub(thresholds.window.as_secs());
        while self.seconds.front().is_some_and(|(at, ..)| *at <= oldest) {
            self.seconds.pop_front();
        }
        match self.seconds.back_mut() {
            Some((at, attempts, failures)) if *at == second => {
                *attempts += 1;
                *failures += u64::from(failed);
            }
            _ => self.seconds.push_back((second, 1, u64::from(failed))),
        }
    }
}

/// Breakers by family; those that are closed are not there.
pub type Circuits = HashMap<String, Circuit>;

impl Bus {
    /// Every breaker that is not closed.
    pub async fn breakers(&self) -> Result<Circuits, Error> {
        let rows: HashMap<String, String> = self.redis.query(redis::cmd("HGETALL").arg(self.keys.breaker())).await?;
        Ok(rows.into_iter().filter_map(|(family, text)| Some((family, read(&text)?))).collect())
    }

    /// The same in the order of names.
    pub async fn breakers_sorted(&self) -> Result<BTreeMap<String, Circuit>, Error> {
        Ok(self.breakers().await?.into_iter().collect())
    }

    /// Changes a breaker; what it is then.
    pub async fn change_breaker(
        &self,
        family: &Family,
        change: &Change,
        thresholds: &Thresholds,
        actor: &str,
        reason: Option<&str>,
    ) -> Result<Option<Circuit>, Error> {
        let mut standing: Option<String> =
            self.redis.query(redis::cmd("HGET").arg(self.keys.breaker()).arg(family.as_str())).await?;
        loop {
            let now = self.now_ms().await?;
            let circuit = standing.as_deref().and_then(read);
            let (next, action) = match Circuit::after(circuit.as_ref(), change, thresholds, now, rand::random()) {
                After::Same => return Ok(circuit),
                After::Becomes(next, action) => (next, action),
            };
            let fact = action.map(|action| fact(action, family, next.as_ref().or(circuit.as_ref()), actor, reason));
            let text = next.as_ref().map(|next| serde_json::to_string(next).unwrap_or_default()).unwrap_or_default();
            let call = Self::call(&scripts::BREAKER)
                .key(self.keys.breaker())
                .key(self.keys.journal())
                .key(self.keys.meta())
                .arg(family.as_str())
                .number(circuit.as_ref().map_or(0, |circuit| circuit.rev))
                .arg(text)
                .arg(self.keys.ctl())
                .arg(fact.map(|fact| journal::encode_facts([fact])).unwrap_or_default());
            let (status, stored): (String, String) = self.redis.run(call).await?;
            if status == "ok" {
                return Ok(read(&stored));
            }
            // Somebody else changed it: judge what it is by now.
            standing = (!stored.is_empty()).then_some(stored);
        }
    }
}

fn read(text: &str) -> Option<Circuit> {
    // Lua writes whole numbers without a fraction as far as ms and counts go.
    serde_json::from_str(text).ok()
}

fn fact(action: &'static str, family: &Family, circuit: Option<&Circuit>, actor: &str, reason: Option<&str>) -> Fact {
    let fact = Fact::new("queue-control", action).with("family", family.as_str()).with("actor", actor);
    let fact = if action == "queue.breaker.opened" { fact.warn() } else { fact };
    let fact = match reason {
        Some(reason) => fact.with("reason", reason),
        None => fact,
    };
    match circuit {
        Some(circuit) => fact
            .with("state", circuit.state.as_str())
            .with("failures", circuit.failures)
            .with("attempts", circuit.attempts)
            .with("n", circuit.n)
            .with("openUntil", circuit.open_until.and_then(crate::moment::iso).map_or(Value::Null, Value::from))
            .with("lastError", circuit.last_error.as_str()),
        None => fact,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trip(evidence: &mut Evidence, id: &str, now: u64) -> Option<Trip> {
        evidence.bad(id, "HTTP 503", None, now, &Thresholds::default())
    }

    fn next(circuit: Option<&Circuit>, change: &Change, now: u64) -> Option<Circuit> {
        match Circuit::after(circuit, change, &Thresholds::default(), now, 0.5) {
            After::Same => circuit.cloned(),
            After::Becomes(next, _) => next,
        }
    }

    #[test]
    fn five_distinct_failures_in_a_row_open_and_a_success_between_does_not() {
        let mut evidence = Evidence::default();
        for n in 0..4 {
            assert_eq!(trip(&mut evidence, &format!("e{n}"), 1000), None);
        }
        evidence.good(1000, &Thresholds::default());
        for n in 0..4 {
            assert_eq!(trip(&mut evidence, &format!("f{n}"), 70_000), None, "the window has passed");
        }
        assert_eq!(trip(&mut evidence, "f4", 70_000).map(|trip| trip.failures), Some(5));
    }

    #[test]
    fn half_of_ten_attempts_open_and_one_poison_event_never_does() {
        let mut evidence = Evidence::default();
        for n in 0..4 {
            evidence.good(1000, &Thresholds::default());
            assert_eq!(trip(&mut evidence, &format!("a{n}"), 1000), None, "{n}");
        }
        evidence.good(1000, &Thresholds::default());
        assert!(trip(&mut evidence, "b", 1000).is_some(), "five of ten");
        let mut poison = Evidence::default();
        for _ in 0..50 {
            assert_eq!(trip(&mut poison, "poison", 1000), None);
        }
    }

    #[test]
    fn it_opens_longer_each_time_and_closes_after_three_probes() {
        let tripped = Change::Trip(Trip { failures: 5, attempts: 5, error: "x".into(), not_before: None });
        let take = Change::Take { holder: "a".into(), lease: Duration::from_secs(20) };
        let good = Change::Good { holder: "a".into() };
        let bad = Change::Bad { holder: "a".into(), error: "y".into(), not_before: None };
        let open = next(None, &tripped, 0).unwrap();
        assert_eq!((open.state, open.open_until), (State::Open, Some(30_000)));
        assert_eq!(next(Some(&open), &take, 29_999), Some(open.clone()), "too early");
        let half = next(Some(&open), &take, 30_000).unwrap();
        assert_eq!((half.state, half.holder.as_deref()), (State::HalfOpen, Some("a")));
        let other = Change::Take { holder: "b".into(), lease: Duration::from_secs(20) };
        assert_eq!(next(Some(&half), &other, 40_000), Some(half.clone()), "one probe in the fleet");
        assert_eq!(next(Some(&half), &other, 50_000).unwrap().holder.as_deref(), Some("b"), "a crashed holder");
        let again = next(Some(&half), &bad, 31_000).unwrap();
        assert_eq!((again.state, again.open_until, again.n), (State::Open, Some(91_000), 1));
        let mut circuit = next(Some(&again), &take, 91_000);
        for _ in 0..2 {
            circuit = next(circuit.as_ref(), &good, 92_000);
            circuit = next(circuit.as_ref(), &take, 92_000);
            assert_eq!(circuit.as_ref().unwrap().state, State::HalfOpen);
        }
        assert_eq!(next(circuit.as_ref(), &good, 93_000), None);
    }

    #[test]
    fn a_late_result_changes_nothing_and_a_retry_after_is_honoured() {
        let wait = Some(Duration::from_secs(120));
        let tripped = Change::Trip(Trip { failures: 5, attempts: 5, error: "x".into(), not_before: wait });
        let open = next(None, &tripped, 0).unwrap();
        assert_eq!(open.open_until, Some(120_000));
        assert_eq!(next(Some(&open), &Change::Good { holder: "a".into() }, 1), Some(open.clone()));
        assert_eq!(next(Some(&open), &tripped, 1), Some(open));
    }

    #[test]
    fn an_operators_word_beats_evidence_and_ends() {
        let force = |is_open, lasts| Change::Force { is_open, lasts };
        let tripped = Change::Trip(Trip { failures: 5, attempts: 5, error: "x".into(), not_before: None });
        let closed = next(None, &force(false, Some(Duration::from_secs(1))), 0).unwrap();
        assert!(!closed.is_closed_gate(0));
        assert_eq!(next(Some(&closed), &tripped, 500), Some(closed.clone()));
        assert_eq!(next(Some(&closed), &tripped, 1000).unwrap().state, State::Open);
        let open = next(None, &force(true, None), 0).unwrap();
        assert!(open.is_closed_gate(u64::MAX) && !open.wants_probe(u64::MAX));
        assert_eq!(next(Some(&open), &Change::Reset, 1), None);
    }
}

//! The controller: one pass per cadence, in one process of any number.
//!
//! | step | what | a crash right there leaves |
//! |---|---|---|
//! | claim | `observer.lua` takes lease and cadence | an open pass: whoever claims next goes on with it |
//! | snapshot, decide | journaled; the decision is stored with the open pass | the same; the stored decision is the one that is applied |
//! | apply | `observe_apply.lua`, once per action | applied actions answer the same again |
//! | report | an event for the gateway | told once more at most, or not at all |
//! | end | the lease is given back | nothing open |

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::actions::Action;
use super::decide::{self, Decision, FallbackReason, Reply, Step};
use super::flags::{Policy, Provider, Trigger};
use super::post::Asked;
use super::report::{Outcomes, Reporter};
use super::snapshot::Snapshot;
use super::{gates, gather, prompt};
use crate::config::{Config, ObserverMode};
use crate::diagnose::chain;
use crate::model::{self, Answer, Caller, Models, Request};
use crate::moment::iso;
use crate::streams::bus::Bus;
use crate::streams::control_observer::{ACTOR, Application, Applied, Bounds, Claim};
use crate::streams::family::Family;
use crate::streams::records::Fact;
use crate::streams::redis::Error;

/// How long a pass may be silent before another process goes on with it.
const LEASE: Duration = Duration::from_secs(15);
/// How often the lease is renewed, and the claim is tried.
pub(super) const BEAT: Duration = Duration::from_secs(1);
/// After a pass that failed.
pub(super) const AFTER_FAILURE: Duration = Duration::from_secs(5);
/// A snapshot may be older than the model's time by this.
const SNAPSHOT_MS: u64 = 30_000;

/// The observer of one process.
#[derive(Clone)]
pub struct Observer {
    bus: Bus,
    policy: Policy,
    reporter: Option<Reporter>,
    models: Option<Models>,
    owner: String,
    with_probe: bool,
}

/// What a look found.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Look {
    /// What was seen.
    pub snapshot: Snapshot,
    /// What would be done about it.
    pub decision: Decision,
}

fn reply_of(answer: Result<Answer, model::Error>) -> Reply {
    match answer {
        Ok(answer) => Reply::Text { text: answer.text, model: Some(answer.model), detail: answer.detail },
        Err(error) => {
            let reason = match error.reason() {
                "timeout" => FallbackReason::Timeout,
                _ => FallbackReason::ModelError,
            };
            Reply::Failed { reason, detail: error.detail() }
        }
    }
}

enum Ended {
    Done(Box<Value>, Vec<Fact>),
    Lost,
}

impl Observer {
    /// An observer that can look. With a reporter it may also tell.
    #[must_use]
    pub fn new(bus: Bus, policy: Policy, reporter: Option<Reporter>, models: Option<Models>) -> Self {
        let owner = format!("{}-{}", std::process::id(), uuid::Uuid::now_v7());
        Self { bus, policy, reporter, models, owner, with_probe: true }
    }

    /// Whether a resumed family is tried with one event first.
    #[must_use]
    pub const fn with_probe(mut self, with_probe: bool) -> Self {
        self.with_probe = with_probe;
        self
    }

    /// The policy that it decides by.
    #[must_use]
    pub const fn policy(&self) -> &Policy {
        &self.policy
    }

    /// The same with what a changed configuration says. What it knows of models that fail stays.
    #[must_use]
    pub fn reconfigured(&self, config: &Config) -> Self {
        let reporter = self.reporter.as_ref().map(|reporter| reporter.reconfigured(config));
        Self { policy: Policy::from_config(config), reporter, ..self.clone() }
    }

    /// One turn of the cadence: a pass if it is due, and what came of it.
    pub async fn pass(&self) -> Result<Value, Error> {
        if self.policy.mode == ObserverMode::Off {
            return Ok(self.disabled(Trigger::Cron));
        }
        let claim = self.bus.claim_observer(&self.owner, LEASE, self.policy.interval, Duration::ZERO).await?;
        let (token, now_ms, last_ms, open) = match claim {
            Claim::Run { token, now_ms, last_ms, open } => (token, now_ms, last_ms, open),
            Claim::Early { next_ms, last_ms } => return Ok(self.skipped(Some((last_ms, next_ms)))),
            Claim::Held => return Ok(self.skipped(None)),
        };
        let beat = async {
            loop {
                tokio::time::sleep(BEAT * 3).await;
                // An error may pass; the end of the lease is what counts, and the scripts judge that.
                if let Ok(Err(_)) = self.bus.keep_observer(&token, LEASE, None).await {
                    return;
                }
            }
        };
        let open = open.and_then(|open| serde_json::from_str::<Look>(&open).ok());
        let ended = tokio::select! {
            ended = self.go_through(&token, now_ms, open) => ended,
            () = beat => Ok(Ended::Lost),
        };
        match ended {
            Ok(Ended::Done(result, facts)) => {
                // Counted from the end of a pass that paused something, so that its pause is old enough for the next.
                let acted = result["appliedCount"].as_u64().unwrap_or(0) > 0;
                let last_run = if acted { Some(self.bus.now_ms().await?) } else { None };
                let ended = self.bus.end_observer(&token, last_run, Some(&result), facts).await?;
                Ok(if ended.is_ok() { *result } else { self.skipped(None) })
            }
            Ok(Ended::Lost) => Ok(self.skipped(None)),
            Err(error) => {
                // A failed pass costs no cadence.
                let _ = self.bus.end_observer(&token, last_ms.or(Some(0)), None, Vec::new()).await;
                Err(error)
            }
        }
    }

    async fn go_through(&self, token: &str, now_ms: u64, open: Option<Look>) -> Result<Ended, Error> {
        let limit = self.stale_after_ms();
        let fresh = open.filter(|look| now_ms.saturating_sub(look.snapshot.captured_ms()) <= limit);
        let Look { snapshot, mut decision } = match fresh {
            Some(look) => look,
            None => {
                let look = self.look(Trigger::Cron, 1, true).await?;
                let text = serde_json::to_string(&look).unwrap_or_default();
                if self.bus.keep_observer(token, LEASE, Some(&text)).await?.is_err() {
                    return Ok(Ended::Lost);
                }
                look
            }
        };
        let Some(outcomes) = self.apply(token, &snapshot, &decision).await? else { return Ok(Ended::Lost) };
        let mut is_told = false;
        decision.applied_count = (outcomes.applied.len() + outcomes.escalated.len()) as u64;
        if let Some(reporter) = self.reporter.as_ref().filter(|_| self.policy.mode == ObserverMode::Enforce) {
            is_told = reporter.tell(&snapshot, &decision, outcomes, now_ms).await;
        }
        let facts = self.end_facts(&snapshot, &decision, Trigger::Cron);
        Ok(Ended::Done(Box::new(self.result(&snapshot, &decision, Trigger::Cron, is_told)), facts))
    }

    /// A look that changes nothing, of whatever mode.
    pub async fn look(&self, trigger: Trigger, hours: u64, is_journaled: bool) -> Result<Look, Error> {
        let is_quiet = self.reporter.as_ref().and_then(Reporter::is_quiet_now);
        let snapshot = gather::snapshot(&self.bus, &self.policy, is_quiet, hours).await?;
        if is_journaled {
            self.bus.journal(self.start_facts(&snapshot, trigger)).await?;
        }
        let started = Instant::now();
        let mut decision = self.decide(&snapshot, trigger).await;
        if matches!(decision.provider.as_str(), "shortcut" | "none") {
            decision.latency_ms = 0;
        } else {
            decision.latency_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
        }
        Ok(Look { snapshot, decision })
    }

    /// A probe on request: one at a time, and nothing is applied or told.
    pub async fn probe(&self, hours: u64) -> Result<Value, Error> {
        self.probe_for(hours, None).await
    }

    /// The same for an event, whose history tells what became of it.
    pub async fn probe_for(&self, hours: u64, asked: Option<&Asked>) -> Result<Value, Error> {
        let token = uuid::Uuid::now_v7().to_string();
        let skipped = if self.policy.mode == ObserverMode::Off {
            Some(self.disabled(Trigger::Manual))
        } else if !self.bus.begin_probe(&token, self.policy.timeout + LEASE).await? {
            Some(json!({ "status": "skipped", "reason": "singleton", "trigger": "manual",
                "mode": self.policy.mode, "autoApplyEnabled": false }))
        } else {
            None
        };
        if let Some(result) = skipped {
            if let Some(asked) = asked {
                self.bus.journal([asked.fact(&result)]).await?;
            }
            return Ok(result);
        }
        let ended = match self.look(Trigger::Manual, hours, true).await {
            Ok(Look { snapshot, decision }) => {
                let result = self.result(&snapshot, &decision, Trigger::Manual, false);
                let mut facts = self.end_facts(&snapshot, &decision, Trigger::Manual);
                facts.extend(asked.map(|asked| asked.fact(&result)));
                self.bus.journal(facts).await.map(|_| result)
            }
            Err(error) => Err(error),
        };
        self.bus.end_probe(&token).await?;
        ended
    }

    async fn decide(&self, snapshot: &Snapshot, trigger: Trigger) -> Decision {
        let deadline = Instant::now() + self.policy.timeout;
        let mut step = decide::begin(snapshot, &self.policy, trigger);
        loop {
            let at = match step {
                Step::Decided(decision) => return *decision,
                Step::Ask { at } => at,
            };
            let reply = match (&self.models, self.policy.providers.get(at)) {
                (Some(models), Some(Provider::Model(provider))) => {
                    let request = Request {
                        caller: Caller::Observer,
                        chain: &[*provider],
                        model: &self.policy.model,
                        prompt: &prompt::question(snapshot, &self.policy),
                        deadline,
                    };
                    reply_of(models.ask(request).await)
                }
                _ => Reply::Failed { reason: FallbackReason::ModelError, detail: "no_provider".into() },
            };
            step = decide::resume(at, &reply, snapshot, &self.policy, trigger);
        }
    }

    fn stale_after_ms(&self) -> u64 {
        SNAPSHOT_MS + u64::try_from(self.policy.timeout.as_millis()).unwrap_or(u64::MAX / 2)
    }

    /// Tries every suggestion, in order. `None` when the lease was lost.
    async fn apply(&self, token: &str, snapshot: &Snapshot, decision: &Decision) -> Result<Option<Outcomes>, Error> {
        let mut outcomes = Outcomes::default();
        if self.policy.mode != ObserverMode::Enforce || decision.fallback_reason.is_some() {
            return Ok(Some(outcomes));
        }
        let limits = &self.policy.limits;
        let bounds = Bounds {
            snapshot_ms: self.stale_after_ms(),
            max_ttl_ms: limits.max_ttl_ms,
            manual_quiet_ms: limits.manual_quiet_ms,
            resume_dwell_ms: limits.resume_dwell_ms,
            pause_dwell_ms: limits.pause_dwell_ms,
            per_family: limits.pauses_per_family,
            in_all: limits.pauses_in_all,
            hold_ms: limits.hold_ms,
        };
        let is_killed = snapshot.control.kill_switch == Some(true);
        for (index, action) in decision.suggested_actions.iter().enumerate() {
            // With the kill switch on a pass is one in dry-run: nobody is told either.
            if matches!(action, Action::Escalate { .. }) && !is_killed {
                outcomes.escalated.push(action.clone());
            }
            let Some(family) = action.family() else { continue };
            let Ok(name) = family.parse::<Family>() else { continue };
            let refusal = gates::by_kind(action, &self.policy.auto);
            let ttl_ms = match action {
                Action::PauseFamily { ttl_ms, .. } => Some(*ttl_ms),
                _ => None,
            };
            let application = Application {
                token,
                snapshot_id: &decision.snapshot_id,
                index,
                family: &name,
                ttl_ms,
                action: &json!(action),
                refused: refusal.as_ref().map(|refusal| (refusal.reason, refusal.message.as_str())),
                mode: decision.mode.as_str(),
                model: decision.model.as_deref(),
                seen_rev: snapshot.pause(family).and_then(|pause| pause.rev),
                captured_ms: snapshot.captured_ms(),
                bounds: &bounds,
                with_probe: self.with_probe,
            };
            match self.bus.apply_observed(&application).await {
                Ok(Applied::Done(pause)) => {
                    tracing::info!(family, kind = action.kind(), reason = action.reason(), "the observer acted");
                    let ttl = ttl_ms.map(|asked| pause.map_or(asked, |pause| pause.ttl_ms));
                    outcomes.applied.push((action.clone(), ttl));
                }
                Ok(Applied::Rejected { reason, .. }) => outcomes.rejected.push((action.clone(), reason)),
                Ok(Applied::Lost) => return Ok(None),
                Err(error) if error.is_unreachable() => return Err(error),
                Err(error) => {
                    // One action that fails does not stop the others.
                    let message = chain(&error);
                    self.bus.journal([self.rejected(action, decision, "error", &message)]).await?;
                    outcomes.rejected.push((action.clone(), "error".into()));
                }
            }
        }
        Ok(Some(outcomes))
    }

    fn rejected(&self, action: &Action, decision: &Decision, reason: &str, message: &str) -> Fact {
        Fact::new("queue-control", "queue.control.rejected")
            .failed(message)
            .warn()
            .with("snapshotId", decision.snapshot_id.as_str())
            .with("mode", decision.mode.as_str())
            .with("model", decision.model.as_deref())
            .with("family", action.family())
            .with("sourceType", "observer")
            .with("actor", ACTOR)
            .with("reason", reason)
            .with("message", message)
            .with("action", json!(action))
    }

    fn start_facts(&self, snapshot: &Snapshot, trigger: Trigger) -> [Fact; 2] {
        let fact = |action| {
            Fact::new("queue-observe", action)
                .with("snapshotId", snapshot.snapshot_id.as_str())
                .with("mode", self.policy.mode.as_str())
                .with("trigger", trigger.as_str())
        };
        let started = fact("queue.observe.started")
            .with("model", self.policy.model.as_str())
            .with("depth", snapshot.totals.depth)
            .with("familyCount", snapshot.families.len())
            .with("activePauseCount", snapshot.control.active_pauses.len())
            .with("autoApplyFamilies", self.policy.auto.clone());
        [started, fact("queue.observe.snapshot").with("snapshot", json!(snapshot))]
    }

    fn end_facts(&self, snapshot: &Snapshot, decision: &Decision, trigger: Trigger) -> Vec<Fact> {
        let fact = |action| {
            Fact::new("queue-observe", action)
                .with("snapshotId", decision.snapshot_id.as_str())
                .with("mode", decision.mode.as_str())
                .with("model", decision.model.as_deref())
                .with("trigger", trigger.as_str())
                .with("latencyMs", decision.latency_ms)
        };
        let found = |fact: Fact| {
            fact.with("queuePressure", decision.findings.queue_pressure.as_str())
                .with("downstreamState", decision.findings.downstream_state.as_str())
                .with("summary", decision.findings.summary.as_str())
        };
        if let Some(reason) = decision.fallback_reason {
            let failed = decision.detail.as_ref().map(|detail| {
                fact("queue.observe.failed")
                    .failed(detail.as_str())
                    .with("depth", snapshot.totals.depth)
                    .with("familyCount", snapshot.families.len())
                    .with("detail", detail.as_str())
            });
            let fallback = found(fact("queue.observe.fallback")).failed(reason.as_str()).warn();
            let fallback = fallback.with("fallbackReason", reason.as_str());
            return failed.into_iter().chain([fallback]).collect();
        }
        let completed = found(fact("queue.observe.completed"))
            .with("suggestedCount", decision.suggested_actions.len())
            .with("finalCount", decision.final_actions.len())
            .with("appliedCount", decision.applied_count)
            .with("suggestedActionKinds", Action::kinds(&decision.suggested_actions))
            .with("finalActionKinds", Action::kinds(&decision.final_actions))
            .with("autoApplyFamilies", self.policy.auto.clone())
            .with("fallbackReason", Value::Null)
            .with("provider", decision.provider.as_str())
            .with("rule", decision.rule.as_deref())
            .with("suggestedActions", json!(decision.suggested_actions))
            .with("wouldApplyCount", decision.would_apply.len())
            .with("findingsDelta", json!(decision.findings_delta));
        vec![completed]
    }

    fn result(&self, snapshot: &Snapshot, decision: &Decision, trigger: Trigger, is_told: bool) -> Value {
        let is_killed = snapshot.control.kill_switch == Some(true);
        let may_apply = trigger == Trigger::Cron && self.policy.mode == ObserverMode::Enforce && !is_killed;
        let status = if decision.fallback_reason.is_some() { "fallback" } else { self.policy.mode.as_str() };
        json!({
            "status": status,
            "trigger": trigger,
            "mode": self.policy.mode,
            "autoApplyEnabled": may_apply,
            "killSwitch": is_killed,
            "intervalSeconds": self.policy.interval.as_secs(),
            "observeFamilies": self.policy.observe,
            "autoApplyFamilies": self.policy.auto,
            "snapshotId": decision.snapshot_id,
            "capturedAt": snapshot.captured_at,
            "provider": decision.provider,
            "rule": decision.rule,
            "findings": decision.findings,
            "suggestedActions": decision.suggested_actions,
            "finalActions": decision.final_actions,
            "wouldApply": decision.would_apply,
            "appliedCount": decision.applied_count,
            "fallbackReason": decision.fallback_reason,
            "reportQueued": is_told,
            "queuedDepth": snapshot.totals.depth,
            "activePauses": snapshot.control.active_pauses,
        })
    }

    fn disabled(&self, trigger: Trigger) -> Value {
        json!({ "status": "disabled", "trigger": trigger, "mode": "off", "autoApplyEnabled": false,
            "observeFamilies": self.policy.observe, "autoApplyFamilies": self.policy.auto })
    }

    fn skipped(&self, times: Option<(u64, u64)>) -> Value {
        let mut result = json!({ "status": "skipped", "reason": if times.is_some() { "cadence" } else { "lease" },
            "trigger": "cron", "mode": self.policy.mode, "autoApplyEnabled": false,
            "intervalSeconds": self.policy.interval.as_secs() });
        if let Some((last, next)) = times {
            result["lastRunAt"] = json!(iso(last));
            result["nextRunAt"] = json!(iso(next));
        }
        result
    }
}

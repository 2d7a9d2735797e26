//! What is told, to whom and when: one message per pass that did or refused something.
//!
//! The event `gateway/send.message` carries it. While the operator sleeps it goes into the digest of the gateway; in
//! quiet hours it is kept and told at their end; a muted channel gets nothing. The same escalation or refusal is told at
//! most once in half an hour.

use chrono::{Timelike as _, Utc};
use serde_json::json;

use super::actions::{Action, Severity};
use super::decide::Decision;
use super::snapshot::{GatewayView, Snapshot};
use crate::config::{Breakthrough, Config};
use crate::streams::append::{Appender, NewEvent};
use crate::streams::bus::Bus;
use crate::streams::json::JsonObject;
use crate::streams::priority::Priority;

/// The same is not told again for so long.
const REPEAT_MS: u64 = 1_800_000;
/// Where reports go.
const CHANNEL: &str = "telegram";

/// What became of the actions of a pass.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Outcomes {
    /// Pauses (with how long, ms) and resumes that were applied.
    pub applied: Vec<(Action, Option<u64>)>,
    /// What was refused, and the code.
    pub rejected: Vec<(Action, String)>,
    /// What somebody should know.
    pub escalated: Vec<Action>,
}

/// The message; `None` when there is nothing to tell. Pure.
#[must_use]
pub fn text(decision: &Decision, outcomes: &Outcomes, repeats: &dyn Fn(&Action) -> Option<String>) -> Option<String> {
    let Outcomes { applied, rejected, escalated } = outcomes;
    if applied.is_empty() && rejected.is_empty() && escalated.is_empty() {
        return None;
    }
    let found = &decision.findings;
    let mut lines = vec![
        format!(
            "Queue observer {} · {}/{}",
            decision.mode.as_str(),
            found.queue_pressure.as_str(),
            found.downstream_state.as_str()
        ),
        found.summary.clone(),
        format!("Snapshot: {}", decision.snapshot_id),
    ];
    let mut block = |title: &str, rows: Vec<String>| {
        if !rows.is_empty() {
            lines.push(String::new());
            lines.push(title.to_owned());
            lines.extend(rows);
        }
    };
    let family = |action: &Action| action.family().unwrap_or_default().to_owned();
    let row = |(action, ttl): &(Action, Option<u64>)| match ttl {
        #[allow(clippy::cast_precision_loss)]
        Some(ttl) => {
            let minutes = (*ttl as f64 / 60_000.0).round();
            format!("- pause {} for {minutes}m — {}", family(action), action.reason())
        }
        None => format!("- resume {} — {}", family(action), action.reason()),
    };
    block("Applied actions:", applied.iter().map(row).collect());
    block(
        "Rejected actions:",
        rejected.iter().map(|(action, reason)| format!("- {}: {reason}", action.kind())).collect(),
    );
    let escalation = |action: &Action| match action {
        Action::Escalate { severity, message, .. } => {
            let again = repeats(action).map(|again| format!(" {again}")).unwrap_or_default();
            Some(format!("- [{}] {message}{again}", severity.as_str()))
        }
        _ => None,
    };
    block("Escalation:", escalated.iter().filter_map(escalation).collect());
    Some(lines.join("\n"))
}

/// How reports leave.
#[derive(Clone)]
pub struct Reporter {
    bus: Bus,
    appender: Appender,
    quiet_hours: Option<(u32, u32)>,
    zone: chrono_tz::Tz,
    breakthrough: Breakthrough,
}

impl std::fmt::Debug for Reporter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reporter").field("quiet_hours", &self.quiet_hours).finish_non_exhaustive()
    }
}

/// `23-7`: from hour, to hour. `None` = never quiet; what can't be read is the default.
#[must_use]
pub fn quiet_hours(text: &str) -> Option<(u32, u32)> {
    let text = text.trim();
    if text.eq_ignore_ascii_case("off") {
        return None;
    }
    parse_quiet_hours(text).or(Some((23, 7)))
}

/// From hour, to hour, where the text says so.
#[must_use]
pub fn parse_quiet_hours(text: &str) -> Option<(u32, u32)> {
    let hour = |text: &str| text.trim().parse::<u32>().ok().filter(|hour| *hour < 24);
    let (from, to) = text.split_once('-')?;
    Some((hour(from)?, hour(to)?))
}

/// Whether `hour` is quiet.
#[must_use]
pub const fn is_quiet(hours: (u32, u32), hour: u32) -> bool {
    match hours {
        (from, to) if from <= to => from <= hour && hour < to,
        (from, to) => hour >= from || hour < to,
    }
}

impl Reporter {
    /// Reports of a process of this configuration.
    #[must_use]
    pub fn new(config: &Config, bus: Bus, appender: Appender) -> Self {
        let own = &config.observer;
        Self {
            bus,
            appender,
            quiet_hours: quiet_hours(&own.quiet_hours),
            zone: own.time_zone.parse().unwrap_or(chrono_tz::UTC),
            breakthrough: own.breakthrough,
        }
    }

    /// The same with what a changed configuration says.
    #[must_use]
    pub fn reconfigured(&self, config: &Config) -> Self {
        Self::new(config, self.bus.clone(), self.appender.clone())
    }

    /// Whether now is quiet; `None` when it never is.
    #[must_use]
    pub fn is_quiet_now(&self) -> Option<bool> {
        let hour = Utc::now().with_timezone(&self.zone).hour();
        self.quiet_hours.map(|hours| is_quiet(hours, hour))
    }

    /// Tells what a pass did; true when something was handed over or kept. A failure undoes nothing and is only logged.
    pub async fn tell(&self, snapshot: &Snapshot, decision: &Decision, outcomes: Outcomes, now_ms: u64) -> bool {
        let result = async {
            self.end_quiet_hours(&snapshot.gateway).await?;
            self.tell_news(snapshot, decision, outcomes, now_ms).await
        };
        match result.await {
            Ok(told) => told,
            Err(error) => {
                tracing::warn!(error, "the observer's report was not handed over");
                false
            }
        }
    }

    async fn tell_news(
        &self,
        snapshot: &Snapshot,
        decision: &Decision,
        outcomes: Outcomes,
        now_ms: u64,
    ) -> Result<bool, String> {
        let text_of = |error: crate::streams::redis::Error| error.to_string();
        let mut news = Outcomes { applied: outcomes.applied, ..Outcomes::default() };
        let mut again: Vec<(Action, String)> = Vec::new();
        for action in outcomes.escalated {
            let Action::Escalate { severity, .. } = &action else { continue };
            let mut families: Vec<&str> = snapshot.families.iter().map(|view| view.family.as_str()).collect();
            families.sort_unstable();
            let key = format!("escalate|{}|{}", severity.as_str(), families.join(","));
            if let Some(note) = self.is_new(&key, now_ms).await.map_err(text_of)? {
                if !note.is_empty() {
                    again.push((action.clone(), note));
                }
                news.escalated.push(action);
            }
        }
        for (action, reason) in outcomes.rejected {
            let key = format!("{}|{}|{reason}", action.kind(), action.family().unwrap_or_default());
            if self.is_new(&key, now_ms).await.map_err(text_of)?.is_some() {
                news.rejected.push((action, reason));
            }
        }
        let note = |action: &Action| again.iter().find(|(of, _)| of == action).map(|(_, note)| note.clone());
        let Some(text) = text(decision, &news, &note) else { return Ok(false) };
        let is_error =
            news.escalated.iter().any(|action| matches!(action, Action::Escalate { severity: Severity::Error, .. }));
        self.hand_over(&decision.snapshot_id, &text, is_error, &snapshot.gateway).await
    }

    /// `None` while it was told lately; a note of how often it came up meanwhile, or an empty one.
    async fn is_new(&self, key: &str, now_ms: u64) -> Result<Option<String>, crate::streams::redis::Error> {
        let (at, times) = self.bus.reported(key).await?.unwrap_or((0, 0));
        if now_ms.saturating_sub(at) < REPEAT_MS {
            self.bus.set_reported(key, at, times + 1).await?;
            return Ok(None);
        }
        self.bus.set_reported(key, now_ms, 0).await?;
        if times == 0 {
            return Ok(Some(String::new()));
        }
        let since = chrono::DateTime::<Utc>::from_timestamp_millis(i64::try_from(at).unwrap_or(0));
        let since = since.map(|since| since.with_timezone(&self.zone).format("%H:%M").to_string()).unwrap_or_default();
        Ok(Some(format!("(×{} since {since})", times + 1)))
    }

    async fn hand_over(
        &self,
        snapshot_id: &str,
        text: &str,
        is_error: bool,
        gateway: &GatewayView,
    ) -> Result<bool, String> {
        let text_of = |error: crate::streams::redis::Error| error.to_string();
        if gateway.sleep_mode {
            let entry = json!({ "event": "queue/observer.report", "timestamp": crate::moment::now(), "summary": text });
            self.bus.add_to_sleep_digest(&entry, is_error).await.map_err(text_of)?;
            return Ok(true);
        }
        if gateway.muted_channels.iter().any(|channel| channel == CHANNEL) {
            return Ok(false);
        }
        let breaks_through = is_error && self.breakthrough == Breakthrough::Error;
        if gateway.quiet_hours == Some(true) && !breaks_through {
            self.bus.add_to_digest(text).await.map_err(text_of)?;
            return Ok(true);
        }
        // A pass that is gone on with after a crash tells no second time.
        self.send(text, Some(format!("{snapshot_id}-report"))).await?;
        Ok(true)
    }

    /// Tells at the end of quiet hours what was kept in them.
    async fn end_quiet_hours(&self, gateway: &GatewayView) -> Result<(), String> {
        let text_of = |error: crate::streams::redis::Error| error.to_string();
        let is_muted = gateway.muted_channels.iter().any(|channel| channel == CHANNEL);
        if gateway.quiet_hours == Some(true) || gateway.sleep_mode || is_muted {
            return Ok(());
        }
        let kept = self.bus.digest().await.map_err(text_of)?;
        if kept.is_empty() {
            return Ok(());
        }
        self.send(&kept.join("\n\n"), None).await?;
        self.bus.forget_digest(kept.len()).await.map_err(text_of)
    }

    async fn send(&self, text: &str, id: Option<String>) -> Result<(), String> {
        let data = json!({ "channel": CHANNEL, "text": text, "audit": { "producer": "queue-observer" } });
        let data = JsonObject::parse(&data.to_string()).map_err(|error| error.to_string())?;
        let name = "gateway/send.message".parse().map_err(|_| "no event name".to_owned())?;
        let event = NewEvent { id, priority: Priority::P1, ..NewEvent::new(name, "queue-observer", data) };
        self.appender.append(vec![event]).await.map_err(|error| error.to_string()).map(|_| ())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quiet_hours_may_span_midnight() {
        assert_eq!(quiet_hours("off"), None);
        assert_eq!(quiet_hours("22-6"), Some((22, 6)));
        assert_eq!(quiet_hours("nonsense"), Some((23, 7)));
        let quiet: Vec<u32> = (0..24).filter(|hour| is_quiet((23, 7), *hour)).collect();
        assert_eq!(quiet, [0, 1, 2, 3, 4, 5, 6, 23]);
        assert!(is_quiet((1, 3), 2) && !is_quiet((1, 3), 3));
    }
}

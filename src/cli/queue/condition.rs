//! `--where`: a condition (CEL) on events, evaluated here on what Redis answers.

use serde_json::json;

use crate::functions::expr::{Expr, Roots, Scope};
use crate::streams::condition::Condition;
use crate::streams::envelope::Envelope;

/// The option.
#[derive(Debug, Clone, clap::Args)]
pub struct Where {
    /// Only where this holds, over `event` {id, name, source, ts, data, meta}: event.data.amount > 100
    #[arg(long = "where", value_name = "CEL", value_parser = parse)]
    expr: Option<Expr>,
}

impl Where {
    /// Its text.
    pub fn text(&self) -> Option<&str> {
        self.expr.as_ref().map(Expr::text)
    }

    /// As streams take it. An event that it has no truth value for is left out.
    pub fn condition(&self) -> Option<Condition> {
        let expr = self.expr.clone()?;
        Some(Condition::new(move |event| holds(&expr, event)))
    }
}

fn holds(expr: &Expr, event: &Envelope) -> bool {
    let event = json!({
        "id": event.id,
        "name": event.name.as_str(),
        "source": event.source,
        "ts": event.ts,
        "data": event.data.to_value(),
        "meta": event.meta.as_ref().map(crate::streams::json::JsonObject::to_value),
    });
    let scope = Scope { event: Some(&event), async_event: None, now_ms: chrono::Utc::now().timestamp_millis() };
    expr.matches(&scope).unwrap_or(false)
}

fn parse(text: &str) -> Result<Expr, String> {
    Expr::compile(text, Roots::Event)
        .map_err(|error| format!("{error}; write for example 'event.data.user == \"ada\"'"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_condition_looks_at_the_whole_event_and_one_without_an_answer_leaves_it_out() {
        let text =
            r#"{"v":1,"id":"e1","name":"a/b","source":"shop","ts":7,"data":{"n":3},"priority":2,"meta":{"k":1}}"#;
        let event: Envelope = serde_json::from_str(text).unwrap();
        let holds = |text: &str| holds(&parse(text).unwrap(), &event);
        assert!(
            holds("event.data.n > 2 && event.name == 'a/b'") && holds("event.source == 'shop' && event.meta.k == 1")
        );
        assert!(!holds("event.data.n > 3") && !holds("event.data.missing == 1") && !holds("event.data.n"));
        assert!(parse("event.data.(").is_err() && parse("other.n == 1").is_err());
    }
}

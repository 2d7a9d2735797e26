//! One Redis, one installation that uses it, and what a script may rely on in every answer.
#![allow(dead_code)]

use std::time::Duration;

use serde_json::Value;
use system_bus::streams::append::{Appended, Appender, Error, NewEvent, Settings};
use system_bus::streams::bus::Bus;
use system_bus::streams::control::{NewPause, PauseOutcome, PauseSource};
use system_bus::streams::json::JsonObject;
use system_bus::streams::redis::Redis;

use crate::support::{Joelclaw, Ran, TestRedis};

pub struct Story {
    pub redis: TestRedis,
    pub joelclaw: Joelclaw,
    /// The same data, without the command line between.
    pub bus: Bus,
}

impl Story {
    pub async fn begin() -> Self {
        let redis = TestRedis::start().await;
        let joelclaw = Joelclaw::new(&redis.url());
        let bus = Bus::new(Redis::open(&redis.url(), "test").unwrap(), "joelclaw:bus");
        Self { joelclaw, bus, redis }
    }

    pub async fn pause(&self, family: &str, ttl: Duration) {
        let new = NewPause {
            family: family.parse().unwrap(),
            ttl,
            reason: "try".into(),
            source: PauseSource::Manual,
            actor: Some("test".into()),
            shorten: false,
        };
        assert!(matches!(self.bus.pause(&new).await.unwrap(), PauseOutcome::Paused { .. }));
    }

    /// As if the pause had been set so much earlier.
    pub async fn age_pause(&self, family: &str, ms: u64) {
        let record = self.redis.cli(&["HGET", &self.bus.keys.pauses(), family]).await;
        let mut record: Value = serde_json::from_str(&record).unwrap();
        for key in ["appliedAtMs", "expiresAtMs"] {
            record[key] = (record[key].as_u64().unwrap() - ms).into();
        }
        let until = record["expiresAtMs"].to_string();
        self.redis.cli(&["HSET", &self.bus.keys.pauses(), family, &record.to_string()]).await;
        self.redis.cli(&["ZADD", &self.bus.keys.pause_expiry(), &until, family]).await;
    }

    /// Appends one event; its id.
    pub async fn emit(&self, family: &str) -> String {
        self.append(family).await.unwrap().event_id
    }

    /// Appends one event; the id of its entry.
    pub async fn emit_entry(&self, family: &str) -> String {
        self.append(family).await.unwrap().entry_id.unwrap().to_string()
    }

    pub async fn try_emit(&self, family: &str) -> Result<String, Error> {
        Ok(self.append(family).await?.event_id)
    }

    async fn append(&self, family: &str) -> Result<Appended, Error> {
        let event = NewEvent::new(family.parse().unwrap(), "test", JsonObject::parse("{}").unwrap());
        let appender = Appender::start(&self.bus, Settings::default());
        Ok(appender.append(vec![event]).await?.remove(0))
    }
}

/// One valid envelope on one line, and nothing on stderr.
#[track_caller]
pub fn envelope(ran: &Ran) -> Value {
    assert_eq!(ran.stderr, "", "{ran:#?}");
    assert_eq!(ran.stdout.lines().count(), 1, "{ran:#?}");
    let envelope = ran.json();
    assert_eq!(violations(&envelope), Vec::<String>::new(), "{envelope}");
    assert_next_actions_parse(&envelope);
    envelope
}

/// What a program would run: known values in place, unknown ones as some word, optional parts left out.
fn filled(action: &Value) -> Vec<String> {
    let command = action["command"].as_str().unwrap();
    let words = command.split(" [").next().unwrap().split_whitespace();
    words
        .map(|word| match word.strip_prefix('<').and_then(|word| word.strip_suffix('>')) {
            Some(name) => {
                let value = &action["params"][name]["value"];
                assert!(action["params"][name].is_object(), "{name} is not described: {action}");
                value
                    .as_str()
                    .map_or_else(|| if value.is_null() { "x".into() } else { value.to_string() }, str::to_owned)
            }
            None => word.to_owned(),
        })
        .collect()
}

/// Every next action is a command of this binary.
#[track_caller]
fn assert_next_actions_parse(envelope: &Value) {
    use clap::CommandFactory as _;
    for action in envelope["next_actions"].as_array().unwrap() {
        if action["external"] != true {
            let parsed = system_bus::cli::Cli::command().try_get_matches_from(filled(action));
            assert!(parsed.is_ok(), "{action}: {}", parsed.unwrap_err());
        }
    }
}

/// The failure that a command ends with; of a stream, its last line.
#[track_caller]
pub fn failure(ran: &Ran) -> Value {
    assert_eq!(ran.stderr, "", "{ran:#?}");
    let last = ran.stdout.lines().last().unwrap_or_default();
    let failure: Value = serde_json::from_str(last).unwrap();
    assert_eq!(violations(&failure), Vec::<String>::new(), "{failure}");
    assert!(failure["error"].is_object(), "{failure}");
    assert_next_actions_parse(&failure);
    failure
}

/// The lines of a stream: `start` first, `result` last, each with its type.
#[track_caller]
pub fn lines(ran: &Ran) -> Vec<Value> {
    assert_eq!(ran.stderr, "", "{ran:#?}");
    let lines: Vec<Value> = ran.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines[0]["type"], "start");
    let last = lines.last().unwrap();
    assert_eq!(last["type"], "result");
    assert_eq!(violations(last), Vec::<String>::new(), "{last}");
    lines
}

/// The contract's validator: its messages, empty when the envelope is valid.
pub fn violations(envelope: &Value) -> Vec<String> {
    let is_text = |value: &Value| value.as_str().is_some_and(|text| !text.is_empty());
    let mut found = Vec::new();
    let mut check = |holds: bool, message: String| {
        if !holds {
            found.push(message);
        }
    };
    check(envelope["ok"].is_boolean(), "ok must be boolean".into());
    check(is_text(&envelope["command"]), "command must be non-empty string".into());
    check(envelope.get("result").is_some(), "result field is required".into());
    match envelope["next_actions"].as_array() {
        None => check(false, "next_actions must be an array".into()),
        Some(actions) => {
            for (i, action) in actions.iter().enumerate() {
                check(is_text(&action["command"]), format!("next_actions[{i}].command must be non-empty string"));
                check(
                    is_text(&action["description"]),
                    format!("next_actions[{i}].description must be non-empty string"),
                );
            }
        }
    }
    if envelope.get("error").is_some() {
        check(is_text(&envelope["error"]["message"]), "error.message must be non-empty string".into());
        check(is_text(&envelope["error"]["code"]), "error.code must be non-empty string".into());
        check(is_text(&envelope["fix"]), "fix must be non-empty string when error is present".into());
    }
    found
}

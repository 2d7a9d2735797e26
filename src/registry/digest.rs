//! Identifies an effective table: SHA-256 over every field of every entry.
//!
//! The same table has the same digest in every process and wherever its lines stand in the file, so that two drainers
//! can be compared; anything that changes what an event means changes it. Each field is written with its name and
//! length, so that no two tables are written alike.

use std::fmt::Display;
use std::time::Duration;

use sha2::{Digest as _, Sha256};

use super::entry::{Backoff, BreakerSpec, Entry, HandlerSpec};

/// The digest of a table in its order, 64 hex digits.
pub(super) fn of(entries: &[&Entry]) -> String {
    let mut writer = Writer(Sha256::new());
    for entry in entries {
        writer.entry(entry);
    }
    hex::encode(writer.0.finalize())
}

struct Writer(Sha256);

impl Writer {
    fn field(&mut self, name: &str, value: impl Display) {
        let value = value.to_string();
        self.0.update(format!("{name} {} {value}\n", value.len()));
    }

    /// An absent value is not written; an empty one is.
    fn option(&mut self, name: &str, value: Option<impl Display>) {
        if let Some(value) = value {
            self.field(name, value);
        }
    }

    fn duration(&mut self, name: &str, value: Option<Duration>) {
        self.option(name, value.map(|value| value.as_nanos()));
    }

    /// Takes the entry apart by name: a new field can't be forgotten here.
    fn entry(&mut self, entry: &Entry) {
        let Entry {
            pattern,
            priority,
            dedup_window,
            dedup_key,
            description,
            handler,
            concurrency,
            attempts,
            backoff: Backoff { initial, multiplier, max, full_jitter },
            timeout,
            rate_per_s,
            weight,
            ordered,
            aimd,
            max_age,
            retry_client_errors,
            breaker,
            // Where it stands is not what it means.
            origin: _,
        } = entry;
        self.field("entry", pattern);
        self.field("priority", priority.number());
        self.duration("dedup_window", *dedup_window);
        self.option("dedup_key", dedup_key.as_ref());
        self.field("description", description);
        self.handler(handler);
        self.option("concurrency", *concurrency);
        self.option("attempts", *attempts);
        self.duration("backoff.initial", *initial);
        self.option("backoff.multiplier", *multiplier);
        self.duration("backoff.max", *max);
        self.option("backoff.jitter", *full_jitter);
        self.duration("timeout", *timeout);
        self.option("rate", *rate_per_s);
        self.field("weight", weight);
        self.field("ordered", ordered);
        self.field("aimd", aimd);
        self.duration("max_age", *max_age);
        self.field("retry_client_errors", retry_client_errors);
        self.breaker(breaker);
    }

    fn breaker(&mut self, breaker: &BreakerSpec) {
        let BreakerSpec { is_off, window, min, ratio, consecutive, open, max, close_after } = breaker;
        self.field("breaker.off", is_off);
        self.duration("breaker.window", *window);
        self.option("breaker.min", *min);
        self.option("breaker.ratio", *ratio);
        self.option("breaker.consecutive", *consecutive);
        self.duration("breaker.open", *open);
        self.duration("breaker.max", *max);
        self.option("breaker.close_after", *close_after);
    }

    fn handler(&mut self, handler: &HandlerSpec) {
        self.field("handler", handler.kind());
        match handler {
            HandlerSpec::Inngest { target } => self.field("target", target),
            HandlerSpec::Http { target, secret_env, headers } => {
                self.field("target", target);
                self.option("secret_env", secret_env.as_ref());
                for (name, value) in headers {
                    self.field("header", name);
                    self.field("value", value);
                }
            }
            HandlerSpec::Command { program, args, permanent_exit } => {
                self.field("program", program);
                for arg in args {
                    self.field("arg", arg);
                }
                for code in permanent_exit {
                    self.field("permanent_exit", code);
                }
            }
            HandlerSpec::Local { name } => self.field("name", name),
        }
    }
}

//! Who waits for an event: runs that go on with it, and runs that it cancels.
//!
//! A busy event name may have a hundred thousand of them. Most conditions ask for equality of one field with a value that
//! is known when the wait begins, so waits are kept in places: one per value of such a field, and one for all others.
//!
//! | key (after the tag) | type | holds |
//! |---|---|---|
//! | `:fn:wait:<place>` | hash | `<run>\|<step>` or `<run>\|c:<n>` → [`Wait`] |
//! | `:fn:paths:<event>` | set | fields by whose values waits of the event are kept |
//! | `:fn:waitn` | hash | event → how many wait for it |

use serde_json::Value;
use sha2::{Digest, Sha256};

use super::{Runs, Wait};
use crate::streams::redis::Error;

/// Between the names of a path.
const DOT: char = '\u{1f}';

impl Wait {
    /// Where it is kept: `<event>`, or `<event>\n<path>\n<value>` (see `scripts/lib.lua`).
    #[must_use]
    pub fn place(&self, event: &str) -> String {
        let sought = self.sought.as_ref().and_then(|(path, value)| {
            let path: Vec<&str> = path.iter().map(String::as_str).collect();
            place(event, &path.join(&DOT.to_string()), value)
        });
        sought.unwrap_or_else(|| event.to_owned())
    }
}

/// The event of a place.
#[must_use]
pub fn event_of(place: &str) -> &str {
    place.split('\n').next().unwrap_or(place)
}

/// `None` for a value that is not compared by its text alone.
fn place(event: &str, path: &str, value: &Value) -> Option<String> {
    // Beyond this, integers and doubles that are equal are written differently.
    const EXACT: f64 = 9_007_199_254_740_992.0;
    let text = match value {
        Value::String(text) => format!("s{text}"),
        Value::Bool(value) => format!("b{value}"),
        Value::Number(number) => format!("n{:?}", number.as_f64().filter(|n| n.abs() < EXACT)? + 0.0),
        Value::Null | Value::Array(_) | Value::Object(_) => return None,
    };
    let hash = hex::encode(Sha256::digest(text));
    Some(format!("{event}\n{path}\n{}", &hash[..32]))
}

fn field<'a>(event: &'a Value, path: &str) -> Option<&'a Value> {
    path.split(DOT).try_fold(event, |value, name| value.get(name))
}

impl Runs {
    /// What may wait for this event, each with its condition, which is still to be looked at: run, step and wait.
    pub async fn waits(&self, name: &str, event: &Value) -> Result<Vec<(String, String, Wait)>, Error> {
        let key = |place: &str| self.key(&format!("wait:{place}"));
        let mut pipeline = redis::pipe();
        pipeline.cmd("HGETALL").arg(key(name));
        pipeline.cmd("SMEMBERS").arg(self.key(&format!("paths:{name}")));
        let mut values = self.bus.redis.pipeline(&pipeline).await?.into_iter();
        let rows = |value: Option<redis::Value>| -> Vec<(String, String)> {
            value.and_then(|value| redis::from_redis_value(value).ok()).unwrap_or_default()
        };
        let mut found = rows(values.next());
        let paths: Vec<String> =
            values.next().and_then(|value| redis::from_redis_value(value).ok()).unwrap_or_default();
        let places: Vec<String> = paths.iter().filter_map(|path| place(name, path, field(event, path)?)).collect();
        if !places.is_empty() {
            let mut pipeline = redis::pipe();
            for place in &places {
                pipeline.cmd("HGETALL").arg(key(place));
            }
            for value in self.bus.redis.pipeline(&pipeline).await? {
                found.extend(rows(Some(value)));
            }
        }
        let read = |(field, text): (String, String)| {
            let (run, step) = field.split_once('|')?;
            Some((run.to_owned(), step.to_owned(), serde_json::from_str(&text).ok()?))
        };
        Ok(found.into_iter().filter_map(read).collect())
    }

    /// Takes event names out of the routing that no run waits for any more.
    pub(super) async fn forget_unwaited(&self) -> Result<(), Error> {
        let waited: Vec<String> = self.bus.redis.query(redis::cmd("HKEYS").arg(self.key("waited"))).await?;
        if waited.is_empty() {
            return Ok(());
        }
        let mut cmd = redis::cmd("HMGET");
        cmd.arg(self.key("waitn")).arg(&waited);
        let counts: Vec<Option<u64>> = self.bus.redis.query(&cmd).await?;
        for (event, _) in waited.iter().zip(counts).filter(|(_, count)| count.is_none()) {
            let mut pipeline = redis::pipe();
            pipeline.cmd("HDEL").arg(self.key("waited")).arg(event);
            pipeline.cmd("DEL").arg(self.key(&format!("paths:{event}")));
            pipeline.cmd("INCR").arg(self.key("rev"));
            self.bus.redis.pipeline(&pipeline).await?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn equal_values_have_one_place_and_others_another() {
        let at = |value: Value| place("e", "data", &value);
        assert_eq!(at(json!(5)), at(json!(5.0)));
        assert_eq!(at(json!(0.0)), at(json!(-0.0)));
        assert_ne!(at(json!(5)), at(json!("5")));
        assert_ne!(at(json!(true)), at(json!("true")));
        for value in [json!(null), json!([1]), json!({}), json!(9_007_199_254_740_993_u64)] {
            assert_eq!(at(value), None);
        }
        assert_eq!(event_of(&at(json!("x")).unwrap()), "e");
    }
}

//! Flow control in Redis: timers that are due, schedules, pauses, and who holds and waits. The contracts are in
//! `scripts/{fire,tick,hold,sweep}.lua`.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use super::{NewRun, Runs, Scheduled, scripts};
use crate::streams::family::Family;
use crate::streams::records::{Fact, Record};
use crate::streams::redis::Error;

/// What firing a timer of flow control did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fired {
    /// Nothing: it is not due, or another server was first, or those who wait were called.
    Nothing,
    /// An event or a batch went on.
    Went {
        /// What became of its run.
        scheduled: Scheduled,
        /// The run.
        run: String,
        /// Who invoked it, joined by commas.
        correlation: Option<String>,
    },
}

/// What a group stands for, and who is in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Group {
    /// Its id.
    pub group: String,
    /// A function that uses it.
    pub function: String,
    /// Feature, scope and key as registered.
    pub key: String,
    /// Value of the key.
    pub value: String,
    /// Slots held.
    pub held: u64,
    /// Who waits for a slot or a start; events, of a batch.
    pub waiting: u64,
}

/// Who paused a function or an app, when and why.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Mark {
    /// Who.
    pub actor: String,
    /// Why.
    pub reason: String,
    /// Since when, ms.
    pub at_ms: u64,
}

impl Mark {
    /// A stored mark; one that can't be read is a mark all the same.
    #[must_use]
    pub fn read(text: &str) -> Option<Self> {
        (!text.is_empty()).then(|| serde_json::from_str(text).unwrap_or_default())
    }
}

#[derive(Deserialize)]
struct Label {
    r#fn: String,
    k: String,
    v: String,
}

impl Group {
    fn read(group: String, text: &str) -> Option<Self> {
        let label: Label = serde_json::from_str(text).ok()?;
        Some(Self { group, function: label.r#fn, key: label.k, value: label.v, held: 0, waiting: 0 })
    }
}

impl Runs {
    /// Fires a timer of flow control: `D`, `B`, `T` or `G`.
    pub async fn fire(&self, member: &str) -> Result<Fired, Error> {
        let fact = Fact::new("functions", "function.event.released").with("timer", member);
        let call = self.call(&scripts::FIRE, &[Record::Fact(fact)]).arg(member);
        let answer: Vec<String> = self.bus.redis.run(call).await?;
        let part = |index: usize| answer.get(index).cloned().unwrap_or_default();
        Ok(match part(0).as_str() {
            "early" | "gone" | "called" | "" => Fired::Nothing,
            result => Fired::Went {
                scheduled: Scheduled::read(result),
                run: part(1),
                correlation: Some(part(2)).filter(|text| !text.is_empty()),
            },
        })
    }

    /// The tick that a schedule (`<hash>|<function>`) comes to next, ms.
    pub async fn next_tick(&self, schedule: &str) -> Result<Option<u64>, Error> {
        self.bus.redis.query(redis::cmd("HGET").arg(self.key("crons")).arg(schedule)).await
    }

    /// All schedules and their next ticks, ms.
    pub async fn schedules(&self) -> Result<HashMap<String, u64>, Error> {
        self.bus.redis.query(redis::cmd("HGETALL").arg(self.key("crons"))).await
    }

    /// Takes the tick of a schedule, with its run or without one. `None` when another server took it.
    pub async fn tick(
        &self,
        schedule: &str,
        tick_ms: u64,
        next: (u64, u64),
        run: Option<&NewRun>,
        fact: Fact,
    ) -> Result<Option<Scheduled>, Error> {
        let packed = run.map(|run| self.pack(run)).unwrap_or_default();
        let call = self
            .call(&scripts::TICK, &[Record::Fact(fact)])
            .arg(schedule)
            .number(tick_ms)
            .number(next.0)
            .number(next.1)
            .arg(packed);
        let answer: String = self.bus.redis.run(call).await?;
        Ok((answer != "moved").then(|| Scheduled::read(&answer)))
    }

    /// Puts a schedule without a timer back, or a new one in.
    pub async fn set_schedule(&self, schedule: &str, tick_ms: u64, fires_ms: u64) -> Result<(), Error> {
        let mut pipeline = redis::pipe();
        pipeline.cmd("HSET").arg(self.key("crons")).arg(schedule).arg(tick_ms);
        pipeline.cmd("ZADD").arg(self.key("timers")).arg(fires_ms).arg(format!("C|{schedule}"));
        self.bus.redis.pipeline(&pipeline).await.map(drop)
    }

    /// Takes a schedule out.
    pub async fn forget_schedule(&self, schedule: &str) -> Result<(), Error> {
        let mut pipeline = redis::pipe();
        pipeline.cmd("HDEL").arg(self.key("crons")).arg(schedule);
        pipeline.cmd("ZREM").arg(self.key("timers")).arg(format!("C|{schedule}"));
        self.bus.redis.pipeline(&pipeline).await.map(drop)
    }

    /// Functions with calls that wait because their family is paused.
    pub async fn held(&self) -> Result<Vec<String>, Error> {
        self.bus.redis.query(redis::cmd("SMEMBERS").arg(self.key("held"))).await
    }

    /// Makes what waits for a function agree with its pause. How many calls were moved.
    pub async fn hold(&self, function: &str, app: &str, family: &Family, groups: &[String]) -> Result<u64, Error> {
        let call = self.call(&scripts::HOLD, &[]).arg(function).arg(family.as_str()).arg(groups.join("\n")).arg(app);
        self.bus.redis.run(call).await
    }

    /// Frees the slots of a group whose holders are gone, and calls its line. How many were freed.
    pub async fn sweep(&self, group: &str) -> Result<u64, Error> {
        self.bus.redis.run(self.call(&scripts::SWEEP, &[]).arg(group)).await
    }

    /// One group, if anybody holds or waits.
    pub async fn group(&self, group: &str) -> Result<Option<Group>, Error> {
        let text: Option<String> = self.bus.redis.query(redis::cmd("HGET").arg(self.key("groups")).arg(group)).await?;
        let mut found: Vec<Group> = text.and_then(|text| Group::read(group.to_owned(), &text)).into_iter().collect();
        self.count(&mut found).await?;
        Ok(found.pop())
    }

    /// Groups in use, with who holds and who waits, ordered by function, key and value.
    pub async fn groups(&self) -> Result<Vec<Group>, Error> {
        let labels: HashMap<String, String> =
            self.bus.redis.query(redis::cmd("HGETALL").arg(self.key("groups"))).await?;
        let mut groups: Vec<Group> = labels.into_iter().filter_map(|(group, text)| Group::read(group, &text)).collect();
        groups.sort_by(|a, b| (&a.function, &a.key, &a.value).cmp(&(&b.function, &b.key, &b.value)));
        for chunk in groups.chunks_mut(512) {
            self.count(chunk).await?;
        }
        Ok(groups)
    }

    /// Ids of at most so many groups in use, drawn at random where there are more.
    pub async fn some_groups(&self, limit: usize) -> Result<Vec<String>, Error> {
        self.bus.redis.query(redis::cmd("HRANDFIELD").arg(self.key("groups")).arg(limit)).await
    }

    async fn count(&self, groups: &mut [Group]) -> Result<(), Error> {
        if groups.is_empty() {
            return Ok(());
        }
        let mut pipeline = redis::pipe();
        for group in &*groups {
            let key = |kind: &str| self.key(&format!("{kind}:{}", group.group));
            pipeline.cmd("SCARD").arg(key("slots"));
            pipeline.cmd("ZCARD").arg(key("line"));
            pipeline.cmd("LLEN").arg(key("batch"));
            pipeline.cmd("EXISTS").arg(key("deb"));
        }
        let counts = self.bus.redis.pipeline(&pipeline).await?;
        let mut counts = counts.into_iter().map(|n| redis::from_redis_value::<u64>(n).unwrap_or(0));
        for group in groups {
            group.held = counts.next().unwrap_or(0);
            group.waiting = counts.by_ref().take(3).sum();
        }
        Ok(())
    }

    /// Marks a function (`fn:<slug>`) or an app (`app:<name>`) as paused, or takes the mark off. The mark before.
    pub async fn set_paused(&self, what: &str, why: Option<&Mark>) -> Result<Option<Mark>, Error> {
        let action = if why.is_some() { "function.paused" } else { "function.resumed" };
        let mut fact = Fact::new("functions", action).with("what", what);
        if let Some(why) = why {
            fact = fact.with("reason", why.reason.clone()).with("actor", why.actor.clone());
        }
        let text = why.map(|why| serde_json::to_string(why).unwrap_or_default()).unwrap_or_default();
        let call = self.call(&scripts::MARK, &[Record::Fact(fact)]).arg(what).arg(text);
        let before: String = self.bus.redis.run(call).await?;
        Ok(Mark::read(&before))
    }
}

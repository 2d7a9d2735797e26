//! `queue fsck`: finds what contradicts "every accepted event is in exactly one place", and mends it.
//!
//! A scan runs beside live drainers, so what it sees may be half of a change. A finding counts only when a second
//! scan sees it too, and `repair.lua` judges it a third time. After a repairing run the next one is clean, except for
//! leases of sessions that are gone without a trace: those the drainers take over.

use std::collections::{BTreeSet, HashSet};
use std::time::Duration;

use redis::Value;
use serde::Serialize;

use super::bus::Bus;
use super::complete::DeadRecord;
use super::entry_id::EntryId;
use super::family::Family;
use super::journal;
use super::lane::Lane;
use super::ledger::Standing;
use super::priority::Priority;
use super::records::Fact;
use super::redis::Error;
use super::rows::{CHUNK, Pending, convert, is_handback, is_retry, member};
use super::scripts;

/// How far back the journal is held against the lanes, unless asked otherwise.
pub const WINDOW: Duration = Duration::from_secs(86_400);
/// Rows per page of a pending list, a due set or the dead letters.
const PAGE: usize = 512;

/// One contradiction.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// One of the kinds of `repair.lua`, or `orphaned_lease`.
    pub kind: &'static str,
    /// The lane, entry, member or family.
    #[serde(rename = "where")]
    pub place: String,
    /// What contradicts what.
    pub detail: String,
    /// `--apply` can do something about it.
    pub repairable: bool,
    /// It was mended in this run.
    pub repaired: bool,
    #[serde(skip)]
    target: Target,
}

/// What `repair.lua` needs to know.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Target {
    lane: Option<Lane>,
    family: Option<Family>,
    prefix: String,
    id: String,
    event_id: Option<String>,
    record: Vec<u8>,
}

impl Finding {
    fn new(kind: &'static str, place: impl Into<String>, detail: impl Into<String>, target: Target) -> Self {
        Self { kind, place: place.into(), detail: detail.into(), repairable: true, repaired: false, target }
    }

    fn entry(kind: &'static str, lane: &Lane, id: EntryId, detail: impl Into<String>) -> Self {
        let target = Target {
            lane: Some(lane.clone()),
            prefix: format!("p{}|", lane.priority.number()),
            id: id.to_string(),
            ..Target::default()
        };
        Self::new(kind, format!("{lane}|{id}"), detail, target)
    }

    fn is(&self, other: &Self) -> bool {
        self.kind == other.kind && self.place == other.place
    }
}

impl Bus {
    /// Looks for contradictions, the journal of the last `window` included; with `apply`, mends them.
    pub async fn fsck(&self, apply: bool, window: Duration) -> Result<Vec<Finding>, Error> {
        let seen = self.scan(window).await?;
        if seen.is_empty() {
            return Ok(seen);
        }
        let again = self.scan(window).await?;
        let mut findings: Vec<Finding> =
            again.into_iter().filter(|finding| seen.iter().any(|first| first.is(finding))).collect();
        if apply {
            for finding in &mut findings {
                if finding.repairable {
                    finding.repaired = self.repair(finding).await?;
                }
            }
        }
        Ok(findings)
    }

    async fn scan(&self, window: Duration) -> Result<Vec<Finding>, Error> {
        let mut findings = Vec::new();
        let names: Vec<String> = self.redis.query(redis::cmd("SMEMBERS").arg(self.keys.families())).await?;
        let mut families: BTreeSet<Family> = names.iter().filter_map(|name| name.parse().ok()).collect();
        let mut lanes = self.lanes().await?;
        self.scan_unknown_lanes(&families, &mut lanes, &mut findings).await?;
        families.extend(lanes.iter().map(|lane| lane.family.clone()));
        self.scan_pending(&lanes, &mut findings).await?;
        for family in &families {
            self.scan_due(family, &mut findings).await?;
        }
        self.scan_dead(&mut findings).await?;
        self.scan_later(&mut findings).await?;
        self.scan_journal(window, &mut findings).await?;
        Ok(findings)
    }

    /// Lane streams that no reader knows of.
    async fn scan_unknown_lanes(
        &self,
        families: &BTreeSet<Family>,
        lanes: &mut Vec<Lane>,
        findings: &mut Vec<Finding>,
    ) -> Result<(), Error> {
        let known: HashSet<&Lane> = lanes.iter().collect();
        let all = families.iter().flat_map(|family| Priority::ALL.map(|priority| Lane::new(family.clone(), priority)));
        let unknown: Vec<Lane> = all.filter(|lane| !known.contains(lane)).collect();
        for chunk in unknown.chunks(CHUNK) {
            let mut pipeline = redis::pipe();
            for lane in chunk {
                pipeline.cmd("EXISTS").arg(self.keys.lane(lane));
            }
            for (lane, exists) in chunk.iter().zip(self.redis.pipeline(&pipeline).await?) {
                if exists == Value::Int(1) {
                    let target = Target { lane: Some(lane.clone()), ..Target::default() };
                    let detail = "the stream exists, but no reader knows of it";
                    findings.push(Finding::new("unknown_lane", lane.to_string(), detail, target));
                    lanes.push(lane.clone());
                }
            }
        }
        Ok(())
    }

    /// Groups, and what each pending entry needs: to exist, to be due or to have a holder.
    async fn scan_pending(&self, lanes: &[Lane], findings: &mut Vec<Finding>) -> Result<(), Error> {
        let sessions = self.session_expiries().await?;
        for state in self.lane_states(lanes).await? {
            let lane = &state.lane;
            if !state.has_group {
                let target = Target { lane: Some(lane.clone()), ..Target::default() };
                let detail = "the lane has no group: it can't be read";
                findings.push(Finding::new("missing_group", lane.to_string(), detail, target));
            }
            if state.pending() == 0 {
                continue;
            }
            let mut from = "-".to_owned();
            loop {
                let page = self.pending_rows(lane, &from, PAGE).await?;
                self.check_pending(lane, &page, findings).await?;
                for row in page.iter().filter(|row| !is_retry(&row.owner) && !is_handback(&row.owner)) {
                    if !sessions.contains_key(&row.owner) {
                        let detail = format!("held by {}, which is gone; a drainer takes it over", row.owner);
                        let finding = Finding::entry("orphaned_lease", lane, row.id, detail);
                        findings.push(Finding { repairable: false, ..finding });
                    }
                }
                match page.last() {
                    Some(row) if page.len() == PAGE => from = format!("({}", row.id),
                    _ => break,
                }
            }
        }
        Ok(())
    }

    async fn check_pending(&self, lane: &Lane, page: &[Pending], findings: &mut Vec<Finding>) -> Result<(), Error> {
        let ids: Vec<EntryId> = page.iter().map(|row| row.id).collect();
        let rows = self.rows_each(&self.keys.lane(lane), &ids).await?;
        let mut pipeline = redis::pipe();
        for row in page {
            pipeline.cmd("ZSCORE").arg(self.keys.due_of(&lane.family)).arg(member(lane, row.id));
        }
        let due = if page.is_empty() { Vec::new() } else { self.redis.pipeline(&pipeline).await? };
        for ((pending, row), due) in page.iter().zip(rows).zip(due) {
            if row.is_none() {
                let detail = format!("pending for {}, but no longer in the lane", pending.owner);
                findings.push(Finding::entry("trimmed_pending", lane, pending.id, detail));
            } else if (is_retry(&pending.owner) || is_handback(&pending.owner)) && due == Value::Nil {
                let detail = format!("held by {} without a time at which it is due", pending.owner);
                findings.push(Finding::entry("pending_without_due", lane, pending.id, detail));
            }
        }
        Ok(())
    }

    /// The due set and the failures of one family, against what is pending, and the index against the set.
    async fn scan_due(&self, family: &Family, findings: &mut Vec<Finding>) -> Result<(), Error> {
        let mut offset = 0;
        loop {
            let mut cmd = redis::cmd("ZRANGE");
            cmd.arg(self.keys.due_of(family)).arg(offset).arg(offset + PAGE - 1);
            let members: Vec<String> = self.redis.query(&cmd).await?;
            self.check_members("due_without_entry", family, &members, findings).await?;
            offset += PAGE;
            if members.len() < PAGE {
                break;
            }
        }
        let failed: Vec<String> = self.redis.query(redis::cmd("HKEYS").arg(self.keys.failures_of(family))).await?;
        self.check_members("failures_without_entry", family, &failed, findings).await?;
        let mut pipeline = redis::pipe();
        pipeline.cmd("ZRANGE").arg(self.keys.due_of(family)).arg(0).arg(0).arg("WITHSCORES");
        pipeline.cmd("ZSCORE").arg(self.keys.due()).arg(family.as_str());
        let mut replies = self.redis.pipeline(&pipeline).await?.into_iter();
        let mut next = || replies.next().unwrap_or(Value::Nil);
        let earliest: Vec<(String, f64)> = convert(next(), "ZRANGE")?;
        let indexed: Option<f64> = convert(next(), "ZSCORE")?;
        if earliest.first().map(|(_, at)| *at) != indexed {
            let target = Target { family: Some(family.clone()), ..Target::default() };
            let detail = "the index of due times disagrees with the family's own";
            findings.push(Finding::new("due_index", family.to_string(), detail, target));
        }
        Ok(())
    }

    async fn check_members(
        &self,
        kind: &'static str,
        family: &Family,
        members: &[String],
        findings: &mut Vec<Finding>,
    ) -> Result<(), Error> {
        let parsed: Vec<Option<(Lane, EntryId)>> = members.iter().map(|member| parse_member(family, member)).collect();
        let ids: Vec<(Lane, EntryId)> = parsed.iter().flatten().cloned().collect();
        let mut pending = self.pending_each(&ids).await?.into_iter();
        for (member, parsed) in members.iter().zip(parsed) {
            match parsed {
                Some((lane, id)) => {
                    if pending.next().flatten().is_none() {
                        findings.push(Finding::entry(kind, &lane, id, "its entry is not pending"));
                    }
                }
                None => {
                    let target = Target { family: Some(family.clone()), id: member.clone(), ..Target::default() };
                    findings.push(Finding::new(kind, format!("{family} {member}"), "it names no entry", target));
                }
            }
        }
        Ok(())
    }

    /// Dead letters that nobody can make sense of.
    async fn scan_dead(&self, findings: &mut Vec<Finding>) -> Result<(), Error> {
        let mut from = "-".to_owned();
        loop {
            let rows = self.rows(&self.keys.dead(), &from, "+", PAGE).await?;
            for row in &rows {
                let record: Option<DeadRecord> = row.field("r").and_then(|record| rmp_serde::from_slice(record).ok());
                let detail = match &record {
                    None => "the dead letter has no record",
                    Some(record) if row.envelope().is_empty() && record.reason != "orphaned" => {
                        "the dead letter has no event"
                    }
                    Some(_) => continue,
                };
                let orphaned = DeadRecord {
                    reason: "orphaned".into(),
                    error: detail.into(),
                    last_at: row.id.ms,
                    ..record.unwrap_or_default()
                };
                let target = Target {
                    id: row.id.to_string(),
                    record: rmp_serde::to_vec_named(&orphaned).unwrap_or_default(),
                    event_id: row.event_id(),
                    ..Target::default()
                };
                findings.push(Finding::new("orphaned_dead", row.id.to_string(), detail, target));
            }
            match rows.last() {
                Some(row) if rows.len() == PAGE => from = format!("({}", row.id),
                _ => return Ok(()),
            }
        }
    }

    /// Scheduled events: the time and the event belong together.
    async fn scan_later(&self, findings: &mut Vec<Finding>) -> Result<(), Error> {
        let mut pipeline = redis::pipe();
        pipeline.cmd("ZRANGE").arg(self.keys.later()).arg(0).arg(-1);
        pipeline.cmd("HKEYS").arg(self.keys.later_data());
        let mut replies = self.redis.pipeline(&pipeline).await?.into_iter();
        let mut next = || replies.next().unwrap_or(Value::Nil);
        let members: Vec<String> = convert(next(), "ZRANGE")?;
        let data: Vec<String> = convert(next(), "HKEYS")?;
        let (members, data): (HashSet<_>, HashSet<_>) = (members.into_iter().collect(), data.into_iter().collect());
        let mut found = |kind, member: &String, detail: &str| {
            let (lane, event_id) = member.split_once('|').unwrap_or_default();
            let (lane, event_id) = (lane.parse().ok(), Some(event_id.to_owned()));
            let target = Target { lane, event_id, id: member.clone(), ..Target::default() };
            findings.push(Finding::new(kind, member.clone(), detail, target));
        };
        for member in members.difference(&data) {
            found("later_without_data", member, "scheduled, but its event is gone");
        }
        for member in data.difference(&members) {
            found("data_without_later", member, "kept for later, but not scheduled");
        }
        Ok(())
    }

    /// Entries that the journal says were accepted, and that are in no place.
    async fn scan_journal(&self, window: Duration, findings: &mut Vec<Finding>) -> Result<(), Error> {
        let window_ms = u64::try_from(window.as_millis()).unwrap_or(u64::MAX);
        let ledger = self.ledger(self.now_ms().await?.saturating_sub(window_ms)).await?;
        let open = ledger.open_entries();
        for ((lane, id), standing) in open.iter().zip(self.standings(&open).await?) {
            let (kind, detail) = match standing {
                Standing::InPlace => continue,
                Standing::Stranded => ("stranded", "delivered, but neither pending nor ended: append it again"),
                Standing::Nowhere => ("lost", "accepted, but in no place and without an outcome; can't be repaired"),
            };
            let place = format!("{lane}|{id}");
            // A pending entry that was trimmed is lost too, and is reported as that.
            if findings.iter().any(|finding| finding.kind == "trimmed_pending" && finding.place == place) {
                continue;
            }
            let event_id = ledger.accounts.get(&(lane.clone(), id.clone())).and_then(|a| a.event_id.clone());
            let target = Target { lane: lane.parse().ok(), id: id.clone(), event_id, ..Target::default() };
            findings.push(Finding::new(kind, place, detail, target));
        }
        Ok(())
    }

    /// Mends one finding; false when it was gone already. A lost entry is only journaled, so that it is told once.
    async fn repair(&self, finding: &Finding) -> Result<bool, Error> {
        let keys = &self.keys;
        let target = &finding.target;
        // Kinds that concern no lane touch no lane key; the name only has to share the slot.
        let family = target.lane.as_ref().map(|lane| &lane.family).or(target.family.as_ref());
        let (lane_key, lane_name) = match &target.lane {
            Some(lane) => (keys.lane(lane), lane.to_string()),
            None => (format!("{}:lane:", keys.tag()), String::new()),
        };
        let (due_of, failures) = match family {
            Some(family) => (keys.due_of(family), keys.failures_of(family)),
            None => (format!("{}:due:", keys.tag()), format!("{}:failures:", keys.tag())),
        };
        let mut fact = Fact::new("queue", "queue.fsck.repaired")
            .warn()
            .with("kind", finding.kind)
            .with("where", finding.place.as_str())
            .with("detail", finding.detail.as_str());
        fact.event_id.clone_from(&target.event_id);
        fact.lane = target.lane.as_ref().map(ToString::to_string);
        fact.stream_id = target.lane.is_some().then(|| target.id.clone());
        let call = Self::call(&scripts::REPAIR)
            .key(lane_key)
            .key(keys.due())
            .key(due_of)
            .key(failures)
            .key(keys.dead())
            .key(keys.journal())
            .key(keys.lanes())
            .key(keys.later())
            .key(keys.later_data())
            .arg(finding.kind)
            .arg(lane_name)
            .arg(family.map_or("", Family::as_str))
            .arg(target.prefix.as_str())
            .arg(target.id.as_str())
            .arg(journal::encode_facts([fact]))
            .arg(target.record.as_slice());
        let (changed, _): (u8, String) = self.redis.run(call).await?;
        Ok(changed == 1 && finding.kind != "lost")
    }
}

fn parse_member(family: &Family, member: &str) -> Option<(Lane, EntryId)> {
    let (priority, id) = member.strip_prefix('p')?.split_once('|')?;
    let priority = Priority::from_number(priority.parse().ok()?)?;
    Some((Lane::new(family.clone(), priority), id.parse().ok()?))
}

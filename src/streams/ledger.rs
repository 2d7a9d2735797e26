//! The ledger: what the journal says became of every entry, held against where the entries are. For `fsck`, `verify`.
//!
//! The journal is read first and the lanes after it, so an entry that ends in between looks astray. Whoever reports
//! one reads a second time.

use std::collections::HashMap;

use serde::Serialize;

use super::bus::Bus;
use super::entry_id::EntryId;
use super::family::CANARY;
use super::lane::{Lane, family_of};
use super::records::Fact;
use super::redis::Error;

/// Journal batches read at most.
const BATCHES: usize = 400_000;
/// Entries held at most.
const ENTRIES: usize = 2_000_000;
/// Batches per page.
const PAGE: usize = 500;

/// What was accepted and what became of it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Verdict {
    /// Events accepted since then.
    pub accepted: u64,
    /// Of those, dispatched with success.
    pub completed: u64,
    /// Dead letters, redriven ones not counted.
    pub dead: u64,
    /// Acknowledged by an operator, undone ones not counted.
    pub acked: u64,
    /// Ended by a policy on their age.
    pub expired: u64,
    /// Still open, each in its place.
    pub waiting: u64,
    /// In no place and without an outcome.
    pub lost: u64,
    /// Completed more than once.
    pub duplicated: u64,
    /// Accepted without a known route, and still open.
    pub unrouted: u64,
    /// Not the whole journal was read.
    pub cut: bool,
}

/// How an entry ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    Completed,
    Dead,
    Acked,
    Expired,
    Lost,
}

/// One entry as the journal knows it.
#[derive(Debug, Clone, Default)]
pub(super) struct Account {
    pub event_id: Option<String>,
    pub outcome: Option<Outcome>,
    pub unrouted: bool,
    completions: u32,
    /// Accepted within the time asked about, not only brought back in it.
    counted: bool,
}

/// Lane and entry id; a scheduled event has its own id behind `@` instead.
type Key = (String, String);

/// Where an open entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    InPlace,
    /// Delivered, not pending, still in its lane.
    Stranded,
    Nowhere,
}

#[derive(Debug, Default)]
pub(super) struct Ledger {
    pub accounts: HashMap<Key, Account>,
    pub cut: bool,
}

impl Ledger {
    fn open(&mut self, key: Key, fact: &Fact, counted: bool) {
        let unrouted = fact.metadata.get("unrouted").and_then(serde_json::Value::as_bool).unwrap_or(false);
        let account = Account { event_id: fact.event_id.clone(), unrouted, counted, ..Account::default() };
        self.accounts.insert(key, account);
    }

    /// The entry goes on under another id.
    fn moved(&mut self, old: &Key, new: Key, fact: &Fact) {
        let before = self.accounts.remove(old);
        let counted = before.as_ref().is_some_and(|account| account.counted);
        let event_id = before.and_then(|account| account.event_id).or_else(|| fact.event_id.clone());
        self.accounts.insert(new, Account { event_id, counted, ..Account::default() });
    }

    fn end(&mut self, key: &Key, outcome: Outcome) {
        let Some(account) = self.accounts.get_mut(key) else { return };
        account.completions += u32::from(outcome == Outcome::Completed);
        // A completion stands over what came before: at least once is what is promised.
        if account.outcome.is_none() || outcome == Outcome::Completed {
            account.outcome = Some(outcome);
        }
    }

    fn take(&mut self, fact: &Fact) {
        let text = |name: &str| fact.metadata.get(name).and_then(serde_json::Value::as_str).unwrap_or_default();
        let lane = fact.lane.clone().unwrap_or_default();
        if family_of(&lane) == CANARY {
            return;
        }
        let scheduled = (lane.clone(), format!("@{}", fact.event_id.as_deref().unwrap_or_default()));
        let key = (lane.clone(), fact.stream_id.clone().unwrap_or_default());
        match &*fact.action {
            "queue.enqueue" => self.open(key, fact, true),
            "queue.scheduled" => self.open(scheduled, fact, true),
            "queue.promoted" => self.moved(&scheduled, key, fact),
            "queue.dispatch.completed" => self.end(&key, Outcome::Completed),
            "queue.dead" if text("reason") == "expired" => self.end(&key, Outcome::Expired),
            "queue.dead" => self.end(&key, Outcome::Dead),
            "queue.expired" => self.end(&key, Outcome::Expired),
            "queue.ack" => self.end(&key, Outcome::Acked),
            "queue.ack.undone" => {
                let new = text("result").rsplit('|').next().unwrap_or_default().to_owned();
                self.moved(&key, (lane, new), fact);
            }
            "queue.dead.redriven" => {
                self.moved(&(lane.clone(), text("entryId").to_owned()), (lane, text("result").to_owned()), fact);
            }
            "queue.fsck.repaired" => match text("kind") {
                "stranded" => self.moved(&key, (lane, text("result").to_owned()), fact),
                "lost" | "trimmed_pending" => self.end(&key, Outcome::Lost),
                _ => {}
            },
            _ => {}
        }
    }

    /// Entries without an outcome, oldest first.
    pub(super) fn open_entries(&self) -> Vec<&Key> {
        let mut open: Vec<_> =
            self.accounts.iter().filter(|(_, account)| account.outcome.is_none()).map(|(key, _)| key).collect();
        open.sort_by_cached_key(|(lane, id)| (id.parse::<EntryId>().unwrap_or(EntryId::MAX), lane.clone()));
        open
    }
}

impl Bus {
    /// Reads the journal from `since_ms` on.
    pub(super) async fn ledger(&self, since_ms: u64) -> Result<Ledger, Error> {
        let mut ledger = Ledger::default();
        let mut from = EntryId { ms: since_ms, seq: 0 };
        for _ in 0..BATCHES / PAGE {
            let page = self.journal_page(from, EntryId::MAX, PAGE).await?;
            for entry in &page.entries {
                ledger.take(&entry.fact);
            }
            ledger.cut |= page.undecodable > 0;
            let Some(last) = page.last else { return Ok(ledger) };
            from = last.next();
            if ledger.accounts.len() > ENTRIES {
                break;
            }
        }
        ledger.cut = true;
        Ok(ledger)
    }

    /// Where entries of the ledger are.
    pub(super) async fn standings(&self, keys: &[&Key]) -> Result<Vec<Standing>, Error> {
        let mut standings = vec![Standing::Nowhere; keys.len()];
        let mut asked = Vec::new();
        for (index, (lane, id)) in keys.iter().enumerate() {
            if let Some(event) = id.strip_prefix('@') {
                let mut cmd = redis::cmd("ZSCORE");
                cmd.arg(self.keys.later()).arg(format!("{lane}|{event}"));
                if self.redis.query::<Option<f64>>(&cmd).await?.is_some() {
                    standings[index] = Standing::InPlace;
                }
            } else if let (Ok(lane), Ok(id)) = (lane.parse::<Lane>(), id.parse::<EntryId>()) {
                asked.push((index, lane, id));
            }
        }
        let mut lanes: Vec<Lane> = asked.iter().map(|(_, lane, _)| lane.clone()).collect();
        lanes.sort();
        lanes.dedup();
        let cursors: HashMap<Lane, EntryId> =
            self.lane_states(&lanes).await?.into_iter().map(|state| (state.lane, state.cursor)).collect();
        for chunk in asked.chunks(256) {
            let ids: Vec<_> = chunk.iter().map(|(_, lane, id)| (lane.clone(), *id)).collect();
            let ranges: Vec<_> = ids.iter().map(|(lane, id)| (lane.clone(), id.to_string(), id.to_string())).collect();
            let (rows, pending) = (self.rows_of(&ranges, 1).await?, self.pending_each(&ids).await?);
            for (((index, lane, id), rows), pending) in chunk.iter().zip(rows).zip(pending) {
                let is_delivered = cursors.get(lane).is_some_and(|cursor| id <= cursor);
                standings[*index] = match (rows.is_empty(), pending.is_some() || !is_delivered) {
                    (true, _) => Standing::Nowhere,
                    (false, true) => Standing::InPlace,
                    (false, false) => Standing::Stranded,
                };
            }
        }
        Ok(standings)
    }

    /// Holds the journal since `since_ms` against the state. On a healthy system `lost` is 0.
    pub async fn verify(&self, since_ms: u64) -> Result<Verdict, Error> {
        let first = self.verdict(since_ms).await?;
        if first.lost == 0 {
            return Ok(first);
        }
        // An entry that ended between the two readings looked lost.
        self.verdict(since_ms).await
    }

    async fn verdict(&self, since_ms: u64) -> Result<Verdict, Error> {
        let ledger = self.ledger(since_ms).await?;
        let mut verdict = Verdict { cut: ledger.cut, ..Verdict::default() };
        for account in ledger.accounts.values().filter(|account| account.counted) {
            verdict.accepted += 1;
            verdict.duplicated += u64::from(account.completions > 1);
            match account.outcome {
                Some(Outcome::Completed) => verdict.completed += 1,
                Some(Outcome::Dead) => verdict.dead += 1,
                Some(Outcome::Acked) => verdict.acked += 1,
                Some(Outcome::Expired) => verdict.expired += 1,
                Some(Outcome::Lost) => verdict.lost += 1,
                None => verdict.unrouted += u64::from(account.unrouted),
            }
        }
        let open = ledger.open_entries();
        for (key, standing) in open.iter().zip(self.standings(&open).await?) {
            if ledger.accounts.get(*key).is_some_and(|account| account.counted) {
                match standing {
                    Standing::InPlace => verdict.waiting += 1,
                    Standing::Stranded | Standing::Nowhere => verdict.lost += 1,
                }
            }
        }
        Ok(verdict)
    }
}

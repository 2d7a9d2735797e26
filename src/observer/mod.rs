//! The observer: looks at the queue once a minute and holds a family whose downstream is away, until it is back.
//!
//! ```text
//! gate ─▶ snapshot ─▶ decide ─▶ apply ─▶ report          one pass; one controller among any number of processes
//!           │           │         │
//!           └───────────┴─────────┴─▶ journal
//! ```
//! | file | decides or does |
//! |---|---|
//! | [`flags`] | what may be looked at and touched |
//! | [`snapshot`], [`findings`] | what is seen, and what it means. Pure |
//! | [`decide`], [`rules`], [`answer`] | what to do: short circuits, rules, a model's answer. Pure |
//! | [`controller`], [`gather`], [`report`] | one pass: claims it, reads, applies, tells |
//! | [`post`] | the observer of a running process: passes, requested probes, a policy that changes |
//! | [`prompt`] | the question to a model |
//! | [`lab`] | the same policy on virtual time, through outages |
//! | [`gates`] | what may be applied. Pure; `observe_apply.lua` judges the same again |
//!
//! # Invariants
//! 1. It can't route, acknowledge, drop or invent: all it ever changes is whether an allowlisted family is read.
//! 2. Only a pass of the cadence, in `enforce`, with no kill switch, applies anything; a probe never does.
//! 3. An operator's pause stands. So does a record that can't be read.
//! 4. Each decision is applied at most once, however often its pass is repeated.

pub mod actions;
pub mod answer;
pub mod controller;
pub mod decide;
pub mod findings;
pub mod flags;
pub mod gates;
pub mod gather;
pub mod lab;
pub mod post;
pub mod prompt;
pub mod report;
pub mod rules;
pub mod snapshot;

#[cfg(test)]
mod tests;

//! The Lua scripts: one file each under `scripts/`, with a header that is the contract.

use std::sync::LazyLock;

/// A script and its SHA-1, by which Redis knows it.
pub struct Script {
    /// The text.
    pub source: &'static str,
    hash: String,
}

impl Script {
    pub(crate) fn new(source: &'static str) -> Self {
        Self { source, hash: redis::Script::new(source).get_hash().to_owned() }
    }

    /// SHA-1 of the text, hex.
    #[must_use]
    pub fn hash(&self) -> &str {
        &self.hash
    }
}

macro_rules! scripts {
    ($($(#[$doc:meta])* $name:ident = $file:literal;)*) => {$(
        $(#[$doc])*
        pub static $name: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!(concat!("scripts/", $file))));
    )*};
}

scripts! {
    /// Appends events with id and window dedup.
    APPEND = "append.lua";
    /// Ends dispatches: acknowledge, retry, dead letter, hand back.
    COMPLETE = "complete.lua";
    /// Claims retries whose time has come.
    DUE = "due.lua";
    /// Moves scheduled events into their lanes.
    LATER = "later.lua";
    /// Opens, renews and closes a session.
    SESSION = "session.lua";
    /// Names the data set, once.
    INSTANCE = "instance.lua";
    /// Takes over what an ended session held.
    REAP = "reap.lua";
    /// Pauses a family.
    PAUSE = "pause.lua";
    /// Resumes a family.
    RESUME = "resume.lua";
    /// Ends pauses whose time has come.
    EXPIRE = "expire.lua";
    /// Gives a family another priority or a pace.
    STEER = "steer.lua";
    /// Grants permits of a pace.
    PACE = "pace.lua";
    /// Who runs the observer's next pass, and when.
    OBSERVER = "observer.lua";
    /// Applies one decision of the observer, through its gates.
    OBSERVE_APPLY = "observe_apply.lua";
    /// Throws the observer's kill switch, or takes it back.
    KILL_SWITCH = "kill_switch.lua";
    /// Moves open entries to the dead letters.
    SHED = "shed.lua";
    /// Changes a circuit breaker by compare-and-set.
    BREAKER = "breaker.lua";
    /// Acknowledges entries on an operator's word.
    OPERATOR_ACK = "operator_ack.lua";
    /// Brings operator-acknowledged entries back.
    UNDO_ACK = "undo_ack.lua";
    /// Sends dead letters round again.
    REDRIVE = "redrive.lua";
    /// Drops dead letters for good.
    DROP = "drop.lua";
    /// Removes entries past their retention.
    TRIM = "trim.lua";
    /// Writes journal records that belong to no other change.
    JOURNAL = "journal.lua";
    /// Repairs what `queue fsck` found.
    REPAIR = "repair.lua";
    /// Moves the cursor of a reader of the journal, with what it made of it.
    PROJECT = "project.lua";
    /// Removes old journal batches that every required reader has passed.
    TRIM_JOURNAL = "trim_journal.lua";
}

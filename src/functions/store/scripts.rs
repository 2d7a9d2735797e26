//! The scripts of runs and of the registry: one file each under `scripts/`, each behind the shared `lib.lua`.

use std::sync::LazyLock;

use crate::streams::scripts::Script;

macro_rules! scripts {
    ($($(#[$doc:meta])* $name:ident = $flags:literal $file:literal;)*) => {$(
        $(#[$doc])*
        pub static $name: LazyLock<Script> = LazyLock::new(|| {
            Script::new(concat!("#!lua", $flags, "\n", include_str!("scripts/lib.lua"), include_str!(concat!("scripts/", $file))))
        });
    )*};
}

scripts! {
    /// Creates the runs that one event starts. Refused by a full Redis.
    START = "" "start.lua";
    /// Takes up a thread of a run.
    BEGIN = " flags=allow-oom" "begin.lua";
    /// Brings a run on.
    ADVANCE = " flags=allow-oom" "advance.lua";
    /// Finds what will bring a run on, and repairs it where nothing will.
    RECONCILE = " flags=allow-oom" "reconcile.lua";
    /// Replaces what one app serves.
    REGISTER = " flags=allow-oom" "register.lua";
}

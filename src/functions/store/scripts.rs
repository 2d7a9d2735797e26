//! The scripts of runs and of the registry: one file each under `scripts/`, each behind the shared parts it needs.

use std::sync::LazyLock;

use crate::streams::scripts::Script;

macro_rules! scripts {
    ($($(#[$doc:meta])* $name:ident = $flags:literal $($file:literal)+;)*) => {$(
        $(#[$doc])*
        pub static $name: LazyLock<Script> =
            LazyLock::new(|| Script::new(concat!("#!lua", $flags, $("\n", include_str!(concat!("scripts/", $file))),+)));
    )*};
}

scripts! {
    /// Hands one event to the functions that it triggers. Refused by a full Redis.
    START = "" "lib.lua" "limits.lua" "schedule.lua" "start.lua";
    /// A timer of flow control is due. Refused by a full Redis.
    FIRE = "" "lib.lua" "limits.lua" "schedule.lua" "fire.lua";
    /// A schedule's time has come. Refused by a full Redis.
    TICK = "" "lib.lua" "limits.lua" "schedule.lua" "tick.lua";
    /// Takes up a thread of a run.
    BEGIN = " flags=allow-oom" "lib.lua" "begin.lua";
    /// Brings a run on.
    ADVANCE = " flags=allow-oom" "lib.lua" "limits.lua" "advance.lua";
    /// Finds what will bring a run on, and repairs it where nothing will.
    RECONCILE = " flags=allow-oom" "lib.lua" "limits.lua" "reconcile.lua";
    /// A function was paused or resumed.
    HOLD = " flags=allow-oom" "lib.lua" "limits.lua" "hold.lua";
    /// Marks a function or an app as paused.
    MARK = " flags=allow-oom" "lib.lua" "mark.lua";
    /// Looks after one group of a limit.
    SWEEP = " flags=allow-oom" "lib.lua" "limits.lua" "sweep.lua";
    /// Replaces what one app serves.
    REGISTER = " flags=allow-oom" "lib.lua" "register.lua";
}

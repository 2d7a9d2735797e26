//! Telling that another process of this machine is gone, without waiting for its lease to end.
//!
//! A process is known by its pid within a *home*: the boot of the machine and the pid namespace. Only where both are
//! known to be ours does a missing pid mean that the process ended; anywhere else its lease decides.

use nix::errno::Errno;
use nix::sys::signal::kill;
use nix::unistd::Pid;
use serde_json::Value;

/// What pids of this process are unique within; `None` where the system doesn't say.
#[must_use]
pub fn of_this_process() -> Option<String> {
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    let namespace = std::fs::read_link("/proc/self/ns/pid").ok()?;
    Some(format!("{}/{}", boot.trim(), namespace.display()))
}

/// Whether the process that reported these session details is certainly gone.
#[must_use]
pub fn is_gone(details: &Value) -> bool {
    let Some(own) = of_this_process() else { return false };
    if details.get("home").and_then(Value::as_str) != Some(own.as_str()) {
        return false;
    }
    let Some(pid) = details.get("pid").and_then(Value::as_i64).and_then(|pid| i32::try_from(pid).ok()) else {
        return false;
    };
    pid > 0 && kill(Pid::from_raw(pid), None) == Err(Errno::ESRCH)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_a_missing_pid_of_our_own_home_is_gone() {
        let mut ended = std::process::Command::new("true").spawn().unwrap();
        let pid = ended.id();
        ended.wait().unwrap();
        let home = of_this_process();
        assert_eq!(is_gone(&json!({"pid": pid, "home": home})), home.is_some());
        assert!(!is_gone(&json!({"pid": std::process::id(), "home": home})));
        assert!(!is_gone(&json!({"pid": pid, "home": "elsewhere"})));
        assert!(!is_gone(&json!({"pid": pid})));
    }
}

//! systemd: `systemctl` and `journalctl`, of the machine or of a user.

use std::path::Path;

use super::Error;
use super::manager::{Manager, State, call, stream};
use super::unit::{Domain, Service};

/// systemd of this machine.
pub struct Systemd {
    /// Whose.
    pub domain: Domain,
}

impl Systemd {
    fn systemctl(&self, args: &[&str]) -> Result<String, Error> {
        call("systemctl", &self.args(args))
    }

    fn args<'a>(&self, args: &[&'a str]) -> Vec<&'a str> {
        let scope = (self.domain == Domain::User).then_some("--user");
        scope.into_iter().chain(args.iter().copied()).collect()
    }
}

impl Manager for Systemd {
    fn install(&self, name: &str, _unit: &Path, start: bool) -> Result<(), Error> {
        self.systemctl(&["daemon-reload"])?;
        match start {
            // A new version of a running one takes effect too.
            true => self.systemctl(&["enable", name]).and_then(|_| self.systemctl(&["restart", name])),
            false => self.systemctl(&["enable", name]),
        }
        .map(drop)
    }

    fn uninstall(&self, name: &str, _unit: &Path) -> Result<(), Error> {
        self.systemctl(&["disable", "--now", name]).map(drop)
    }

    fn forget(&self) -> Result<(), Error> {
        self.systemctl(&["daemon-reload"]).map(drop)
    }

    fn restart(&self, name: &str) -> Result<(), Error> {
        self.systemctl(&["restart", name]).map(drop)
    }

    fn state(&self, name: &str) -> Result<State, Error> {
        let properties = "ActiveState,SubState,MainPID,NRestarts,ExecMainStatus,ActiveEnterTimestamp,Result";
        Ok(read(&self.systemctl(&["show", "--property", properties, name])?))
    }

    fn logs(&self, name: &str, _service: Service, lines: usize, follow: bool) -> Result<String, Error> {
        let lines = lines.to_string();
        let mut args = self.args(&["--unit", name, "--lines", &lines, "--output", "short-iso", "--no-pager"]);
        // journalctl's own way to name a user's unit.
        if self.domain == Domain::User {
            args = vec!["--user-unit", name, "--lines", &lines, "--output", "short-iso", "--no-pager"];
        }
        if follow {
            args.push("--follow");
            return stream("journalctl", &args).map(|()| String::new());
        }
        call("journalctl", &args)
    }
}

/// `systemctl show`.
fn read(text: &str) -> State {
    let property = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
        line.map(str::trim).filter(|value| !value.is_empty()).map(str::to_owned)
    };
    let active = property("ActiveState").unwrap_or_default();
    let sub = property("SubState").unwrap_or_default();
    let ended = property("Result").filter(|result| result != "success");
    let status = property("ExecMainStatus").filter(|status| status != "0");
    State {
        is_up: active == "active" || active == "reloading",
        state: if sub.is_empty() { active } else { format!("{active} ({sub})") },
        pid: property("MainPID").and_then(|pid| pid.parse().ok()).filter(|pid| *pid != 0),
        since: property("ActiveEnterTimestamp"),
        restarts: property("NRestarts").and_then(|n| n.parse().ok()),
        last_exit: match (ended, status) {
            (Some(result), Some(status)) => Some(format!("{result}, status {status}")),
            (result, status) => result.or(status),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::read;

    #[test]
    fn what_systemctl_shows_is_read() {
        let state = read(
            "ActiveState=active\nSubState=running\nMainPID=42\nNRestarts=3\nExecMainStatus=0\nActiveEnterTimestamp=Thu 2026-11-26 23:00:00 UTC\nResult=success\n",
        );
        assert!(state.is_up);
        assert_eq!((state.state.as_str(), state.pid, state.restarts), ("active (running)", Some(42), Some(3)));
        let state = read("ActiveState=failed\nSubState=failed\nMainPID=0\nExecMainStatus=78\nResult=exit-code\n");
        assert!(!state.is_up);
        assert_eq!((state.pid, state.last_exit.as_deref()), (None, Some("exit-code, status 78")));
    }
}

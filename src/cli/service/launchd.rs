//! launchd: `launchctl`, of the machine or of a user's session.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use super::Error;
use super::manager::{Manager, State, call, stream};
use super::unit::{Domain, Service, Site, log_name};

/// launchd of this machine.
pub struct Launchd {
    /// Whose.
    pub domain: Domain,
    /// Of the operator.
    pub home: PathBuf,
}

impl Launchd {
    /// `gui/501`, `system`.
    fn domain(&self) -> String {
        match self.domain {
            Domain::System => "system".into(),
            Domain::User => format!("gui/{}", self.uid()),
        }
    }

    /// The operator is whom the home directory belongs to.
    fn uid(&self) -> u32 {
        std::fs::metadata(&self.home).map(|home| home.uid()).unwrap_or_default()
    }

    fn target(&self, name: &str) -> String {
        format!("{}/{name}", self.domain())
    }
}

impl Manager for Launchd {
    fn install(&self, name: &str, unit: &Path, start: bool) -> Result<(), Error> {
        // An older version of it, if there is one.
        let _ = call("launchctl", &["bootout", &self.target(name)]);
        if !start {
            return Ok(());
        }
        call("launchctl", &["bootstrap", &self.domain(), &unit.display().to_string()]).map(drop)
    }

    fn uninstall(&self, name: &str, _unit: &Path) -> Result<(), Error> {
        // One that was never started is not known there.
        let _ = call("launchctl", &["bootout", &self.target(name)]);
        Ok(())
    }

    fn forget(&self) -> Result<(), Error> {
        Ok(())
    }

    fn restart(&self, name: &str) -> Result<(), Error> {
        call("launchctl", &["kickstart", "-k", &self.target(name)]).map(drop)
    }

    fn state(&self, name: &str) -> Result<State, Error> {
        let uid = self.uid();
        // A service may have been started in another domain by hand: then it runs all the same.
        let targets =
            [self.target(name), format!("gui/{uid}/{name}"), format!("user/{uid}/{name}"), format!("system/{name}")];
        let found = targets.iter().find_map(|target| call("launchctl", &["print", target]).ok());
        Ok(found.map_or_else(|| State { state: "not loaded".into(), ..State::default() }, |text| read(&text)))
    }

    fn logs(&self, _name: &str, service: Service, lines: usize, follow: bool) -> Result<String, Error> {
        let log = |end: &str| Site::logs(&self.home).join(format!("{}.{end}", log_name(service))).display().to_string();
        let (out, err, lines) = (log("log"), log("err"), lines.to_string());
        if follow {
            return stream("tail", &["-n", &lines, "-F", &out, &err]).map(|()| String::new());
        }
        call("tail", &["-n", &lines, &out, &err])
    }
}

/// `launchctl print`: `state = running`, `pid = 42`, `runs = 3`, `last exit code = 78: EX_CONFIG`.
fn read(text: &str) -> State {
    let property = |name: &str| {
        text.lines()
            .find_map(|line| line.trim().strip_prefix(name)?.trim_start().strip_prefix('='))
            .map(|value| value.trim().to_owned())
    };
    let state = property("state").unwrap_or_else(|| "unknown".into());
    let pid = property("pid").and_then(|pid| pid.parse().ok());
    State {
        // A watcher waits without a process.
        is_up: state == "running" || (state == "not running" && text.contains("watch paths")),
        pid,
        since: None,
        restarts: property("runs").and_then(|runs| runs.parse::<u32>().ok()).map(|runs| runs.saturating_sub(1)),
        last_exit: property("last exit code").filter(|code| code != "0" && code != "(never exited)"),
        state,
    }
}

#[cfg(test)]
mod tests {
    use super::read;

    #[test]
    fn what_launchctl_prints_is_read() {
        let state = read(
            "gui/501/x = {\n\tactive count = 1\n\tstate = running\n\n\truns = 4\n\tpid = 812\n\tlast exit code = 70: EX_SOFTWARE\n}",
        );
        assert!(state.is_up);
        assert_eq!(
            (state.pid, state.restarts, state.last_exit.as_deref()),
            (Some(812), Some(3), Some("70: EX_SOFTWARE"))
        );
        assert!(!read("x = {\n\tstate = not running\n\tlast exit code = 78: EX_CONFIG\n}").is_up);
    }
}

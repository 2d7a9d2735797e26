//! Whether a pid file still means something.

use std::fs;
use std::path::Path;
use std::process::Command;

use nix::errno::Errno;
use nix::sys::signal::kill;
use nix::unistd::Pid;

/// The live server that a pid file names, with the system's name for it; `None` when the file is stale.
///
/// A number alone proves nothing. It is used again after a reboot, and in a container, where numbers start over, it may
/// be a thread of ours: refusing then would keep `joelclaw up` down until a person comes. So the process has to be
/// called like a server, or to have no name that we can read.
pub(super) fn server_named_in(pid_file: &Path, binary: Option<&Path>) -> Option<(u32, String)> {
    let pid = read_pid(pid_file).filter(|&pid| is_alive(pid))?;
    let Some(name) = name_of(pid) else { return Some((pid, "unknown".into())) };
    let ours = binary.and_then(Path::file_name).map(|name| name.to_string_lossy().into_owned());
    // Linux cuts names after 15 characters.
    let is_server =
        name.contains("redis") || name.contains("valkey") || ours.is_some_and(|ours| ours.starts_with(&name));
    is_server.then_some((pid, name))
}

pub(super) fn read_pid(path: &Path) -> Option<u32> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// The process exists and has not ended. A zombie has ended, whoever its parent leaves it to.
pub(super) fn is_alive(pid: u32) -> bool {
    // 0 and negative numbers name process groups.
    let Some(number) = i32::try_from(pid).ok().filter(|&number| number > 0) else { return false };
    // EPERM is somebody else's process: alive.
    let exists = !matches!(kill(Pid::from_raw(number), None), Err(Errno::ESRCH));
    exists && linux_stat(pid).is_none_or(|(_, state)| state != 'Z')
}

fn name_of(pid: u32) -> Option<String> {
    if let Some((name, _)) = linux_stat(pid) {
        return Some(name);
    }
    let output = Command::new("ps").args(["-o", "comm=", "-p", &pid.to_string()]).output().ok()?;
    let name = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    let name = name.rsplit('/').next().unwrap_or_default();
    (!name.is_empty()).then(|| name.to_owned())
}

/// Name and state out of `/proc/<pid>/stat`: `4242 (redis-server) S 1 …`. `None` where there is no `/proc`.
fn linux_stat(pid: u32) -> Option<(String, char)> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (before, after) = text.rsplit_once(") ")?;
    let (_, name) = before.split_once('(')?;
    Some((name.to_owned(), after.chars().next()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pid_file_with_anything_but_a_living_process_names_nobody() {
        assert!(!is_alive(0));
        assert!(!is_alive(u32::MAX));
        assert!(is_alive(std::process::id()));
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("redis.pid");
        assert_eq!(server_named_in(&file, None), None);
        for text in ["", "words", "-1", "0", "4294967295"] {
            fs::write(&file, text).unwrap();
            assert_eq!(server_named_in(&file, None), None, "{text}");
        }
    }

    #[test]
    fn a_pid_that_passed_to_another_program_is_stale_unless_that_program_is_the_server() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("redis.pid");
        let mut other = Command::new("sleep").arg("30").spawn().unwrap();
        fs::write(&file, other.id().to_string()).unwrap();
        assert_eq!(server_named_in(&file, None), None);
        assert_eq!(server_named_in(&file, Some(Path::new("/opt/sleep"))), Some((other.id(), "sleep".into())));
        other.kill().unwrap();
        // Not reaped yet, so the number still exists.
        while is_alive(other.id()) {
            std::thread::yield_now();
        }
        other.wait().unwrap();
    }
}

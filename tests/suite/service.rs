//! Service files: what launchd and systemd are given, and what they do with it.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::support::{Joelclaw, TestRedis, eventually};
use plist::Value as Plist;

const LONG: Duration = Duration::from_secs(60);
const BINARY: &str = env!("CARGO_BIN_EXE_joelclaw");

fn deploy() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy")
}

fn shipped(folder: &str) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(deploy().join(folder)).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(files.len() >= 4, "{files:?}");
    files
}

/// Files as `service install --print` would write them: path and text.
async fn rendered(bus: &Joelclaw, service: &str, more: &[&str]) -> Vec<(PathBuf, String)> {
    let args = [&["service", "install", service, "--print", "--json", "--bin", BINARY], more].concat();
    let ran = bus.run(&args).await.assert_success().json();
    let files = ran["result"]["files"].as_array().unwrap().clone();
    files
        .iter()
        .map(|file| (file["path"].as_str().unwrap().into(), file["text"].as_str().unwrap().to_owned()))
        .collect()
}

/// The keys of launchd.plist(5) that we use, and what each holds.
fn check_plist(path: &Path, plist: &Plist) {
    let dict = plist.as_dictionary().unwrap_or_else(|| panic!("{}: no dictionary", path.display()));
    let texts = |value: &Plist| {
        value.as_array().is_some_and(|list| !list.is_empty() && list.iter().all(|one| one.as_string().is_some()))
    };
    let absolute = |value: &Plist| value.as_string().is_some_and(|path| path.starts_with('/') && !path.contains('~'));
    for (key, value) in dict {
        let is_right = match key.as_str() {
            "Label" | "UserName" | "GroupName" => value.as_string().is_some_and(|text| !text.is_empty()),
            "ProgramArguments" => texts(value) && absolute(&value.as_array().unwrap()[0]),
            "WatchPaths" => texts(value) && value.as_array().unwrap().iter().all(absolute),
            "WorkingDirectory" | "StandardOutPath" | "StandardErrorPath" => absolute(value),
            "EnvironmentVariables" => {
                value.as_dictionary().is_some_and(|vars| vars.values().all(|one| one.as_string().is_some()))
            }
            "RunAtLoad" | "KeepAlive" => value.as_boolean() == Some(true),
            "ThrottleInterval" => value.as_signed_integer().is_some_and(|s| s == 5 || s == 30),
            // Longer than the drainer waits for what is in flight, and 5 s more.
            "ExitTimeOut" => value.as_signed_integer().is_some_and(|s| s >= 15),
            "ProcessType" => value.as_string() == Some("Standard"),
            "Umask" => value.as_signed_integer() == Some(0o077),
            "SoftResourceLimits" | "HardResourceLimits" => {
                value.as_dictionary().and_then(|limits| limits.get("NumberOfFiles")?.as_signed_integer()) == Some(8192)
            }
            _ => panic!("{}: {key} is none of the keys in use", path.display()),
        };
        assert!(is_right, "{}: {key} = {value:?}", path.display());
    }
    for key in ["Label", "ProgramArguments", "StandardOutPath", "StandardErrorPath", "EnvironmentVariables"] {
        assert!(dict.contains_key(key), "{}: no {key}", path.display());
    }
    assert!(!format!("{dict:?}").contains("SECRET"), "a plist is readable for everybody");
}

#[tokio::test]
async fn the_plists_are_what_launchd_reads() {
    for path in shipped("launchd") {
        let plist = Plist::from_file(&path).unwrap();
        check_plist(&path, &plist);
        let label = plist.as_dictionary().unwrap()["Label"].as_string().unwrap();
        assert_eq!(path.file_stem().unwrap().to_str().unwrap(), label, "named after its label");
    }
    let bus = Joelclaw::unconfigured();
    for service in ["up", "worker", "drainer", "content-sync-watcher"] {
        for domain in ["user", "system"] {
            let more = ["--platform", "launchd", "--domain", domain, "--label", "org.example"];
            for (path, text) in rendered(&bus, service, &more).await {
                if path.extension().is_some_and(|end| end == "plist") {
                    check_plist(&path, &Plist::from_reader(std::io::Cursor::new(&text)).unwrap());
                    assert!(path.display().to_string().contains("org.example."), "{}", path.display());
                    assert!(text.contains(BINARY) || service == "content-sync-watcher", "{text}");
                }
            }
        }
    }
}

#[cfg(target_os = "linux")]
fn verify_units(dir: &Path) {
    let units: Vec<PathBuf> = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    let ran =
        Command::new("systemd-analyze").arg("verify").args(&units).output().expect("systemd-analyze is installed");
    // Units of the machine itself are read too, and may be odd.
    let said = String::from_utf8_lossy(&ran.stderr).into_owned();
    let about_ours: Vec<&str> = said.lines().filter(|line| line.contains("system-bus")).collect();
    assert!(about_ours.is_empty() && ran.status.success(), "{said}");
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn systemd_accepts_the_units() {
    let dir = tempfile::tempdir().unwrap();
    for path in shipped("systemd") {
        // Where the program is on this machine.
        let text = std::fs::read_to_string(&path).unwrap().replace("/usr/local/bin/joelclaw", BINARY);
        std::fs::write(dir.path().join(path.file_name().unwrap()), text).unwrap();
    }
    verify_units(dir.path());
    let bus = Joelclaw::unconfigured();
    for domain in ["user", "system"] {
        let dir = tempfile::tempdir().unwrap();
        for service in ["up", "worker", "drainer", "content-sync-watcher"] {
            for (path, text) in rendered(&bus, service, &["--platform", "systemd", "--domain", domain]).await {
                if path.extension().is_some_and(|end| end != "sh") {
                    std::fs::write(dir.path().join(path.file_name().unwrap()), text).unwrap();
                }
            }
        }
        verify_units(dir.path());
    }
}

#[tokio::test]
async fn what_is_not_installed_is_said_to_be_so() {
    let bus = Joelclaw::unconfigured();
    for command in ["status", "restart", "uninstall", "logs"] {
        let ran = bus.run(&["service", command, "--json"]).await;
        assert_eq!(ran.code(), Some(5), "{command}");
        assert_eq!(ran.json()["error"]["code"], "SERVICE_NOT_INSTALLED", "{command}");
    }
    let ran = bus.run(&["service", "install", "--label", "a b"]).await;
    assert_eq!(ran.code(), Some(2));
}

/// The watcher's script decides by the env file at each run.
#[tokio::test]
async fn the_content_watcher_emits_as_the_pilots_say() {
    let redis = TestRedis::start().await;
    for (line, is_queued) in [
        ("QUEUE_PILOTS=github", false),
        ("QUEUE_PILOTS=\"content\"", true),
        ("export QUEUE_PILOTS=' GitHub , Content '", true),
        ("QUEUE_PILOTS=content\nQUEUE_PILOTS=", false),
    ] {
        redis.cli(&["FLUSHALL"]).await;
        let bus = Joelclaw::new(&redis.url());
        let (key, value) = line.split_once('=').unwrap();
        bus.env_file_line(key, value);
        let ran = Command::new("bash")
            .arg(deploy().join("content-sync-watcher.sh"))
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap())
            .env("HOME", bus.home())
            .env("SYSTEM_BUS_ENV_FILE", bus.env_file())
            .env("JOELCLAW", BINARY)
            .output()
            .unwrap();
        assert!(ran.status.success(), "{line}: {}", String::from_utf8_lossy(&ran.stderr));
        let listed = bus.run(&["queue", "list", "--json"]).await.assert_success().json();
        let id = listed["result"]["messages"][0]["streamId"].as_str().unwrap().to_owned();
        let event = bus.run(&["queue", "inspect", &id, "--json"]).await.assert_success().json().to_string();
        assert!(event.contains("content/updated") && event.contains("fswatch"), "{line}: {event}");
        let said = String::from_utf8_lossy(&ran.stdout).into_owned();
        let command = if is_queued { "joelclaw queue emit" } else { "joelclaw send" };
        assert!(said.contains(command), "{line}: {said}");
    }
    let ran = Command::new("bash")
        .arg(deploy().join("content-sync-watcher.sh"))
        .env("JOELCLAW", "/nonexistent/joelclaw")
        .output()
        .unwrap();
    assert_eq!(ran.status.code(), Some(69));
    assert!(String::from_utf8_lossy(&ran.stderr).contains("not executable"));
}

/// Processes of this machine with this in their environment, and this in their command line.
#[cfg(target_os = "linux")]
fn pids(environment: &str, command: &str) -> Vec<i32> {
    let processes =
        std::fs::read_dir("/proc").unwrap().filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let holds = |path: String, text: &str| {
        std::fs::read(path).is_ok_and(|bytes| String::from_utf8_lossy(&bytes).contains(text))
    };
    processes
        .filter(|pid: &i32| {
            holds(format!("/proc/{pid}/environ"), environment) && holds(format!("/proc/{pid}/cmdline"), command)
        })
        .collect()
}

/// A real systemd as process 1 of namespaces of its own, with one unit; gone at drop.
#[cfg(target_os = "linux")]
struct Systemd(std::process::Child);

#[cfg(target_os = "linux")]
impl Drop for Systemd {
    fn drop(&mut self) {
        // `--kill-child`: with unshare its systemd goes, and with that everything in the namespace.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_stalled_drainer_is_restarted_by_systemds_watchdog() {
    let is_root = std::fs::read_to_string("/proc/self/status").unwrap().contains("Uid:\t0\t0");
    if !is_root {
        // Namespaces with a systemd in them need root; CI has it.
        eprintln!("skipped: run as root to test with a systemd of its own");
        return;
    }
    let redis = TestRedis::start().await;
    let bus = Joelclaw::new(&redis.url());
    let units = bus.home().join("units");
    std::fs::create_dir_all(units.join("system-bus-drainer.service.d")).unwrap();
    let (path, text) = rendered(&bus, "drainer", &["--platform", "systemd", "--domain", "system"]).await.remove(0);
    std::fs::write(units.join(path.file_name().unwrap()), text).unwrap();
    let (log, result, env_file) = (bus.home().join("drainer.log"), bus.home().join("result"), bus.env_file());
    let drop_in = format!(
        "[Unit]\nDefaultDependencies=no\n[Service]\nDynamicUser=no\nUser=root\nStateDirectory=\nPrivateTmp=no\nProtectSystem=no\n\
         MemoryMax=infinity\nWatchdogSec=2\nRestartSec=200ms\nEnvironment=HOME={home}\nEnvironment=SYSTEM_BUS_ENV_FILE={env}\n\
         Environment=INNGEST_PORT=0\nExecStopPost=/bin/sh -c 'echo \"$SERVICE_RESULT\" >> {result}'\nStandardOutput=append:{log}\nStandardError=append:{log}\n",
        home = bus.home().display(),
        env = env_file.display(),
        log = log.display(),
        result = result.display(),
    );
    std::fs::write(units.join("system-bus-drainer.service.d/test.conf"), drop_in).unwrap();
    let boot = format!(
        "set -e\nmount --make-rprivate /\nmount -t tmpfs tmpfs /run\nmount -t cgroup2 cgroup2 /sys/fs/cgroup\n\
         mkdir -p /run/systemd\ncp -r {} /run/systemd/system\nexport container=yes\n\
         exec /lib/systemd/systemd --system --unit=system-bus-drainer.service --log-target=console\n",
        units.display()
    );
    let console = bus.home().join("console.log");
    let output = std::fs::File::create(&console).unwrap();
    let _systemd = Systemd(
        Command::new("unshare")
            .args(["--fork", "--kill-child", "--pid", "--mount", "--mount-proc", "--cgroup", "--ipc", "--uts"])
            .args(["bash", "-c", &boot])
            .stdout(output.try_clone().unwrap())
            .stderr(output)
            .spawn()
            .unwrap(),
    );
    let mark = env_file.display().to_string();
    let started = |times: usize| {
        let (log, console) = (log.clone(), console.clone());
        async move {
            eventually(LONG, || async {
                let text = std::fs::read_to_string(&log).unwrap_or_default();
                match text.matches("drainer started").count() >= times {
                    true => Ok(()),
                    false => Err(format!("{text}\n{}", std::fs::read_to_string(&console).unwrap_or_default())),
                }
            })
            .await;
        }
    };
    started(1).await;
    let running = pids(&mark, "drainer");
    assert_eq!(running.len(), 1, "{running:?}");
    let stalled = nix::unistd::Pid::from_raw(running[0]);
    nix::sys::signal::kill(stalled, nix::sys::signal::Signal::SIGSTOP).unwrap();
    started(2).await;
    let now = pids(&mark, "drainer");
    assert!(now.len() == 1 && now != running, "{running:?} -> {now:?}");
    assert_eq!(std::fs::read_to_string(&result).unwrap().trim(), "watchdog", "systemd says why it ended it");
}

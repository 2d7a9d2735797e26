//! The files of a service: those of `deploy/`, with the paths of a machine.

use std::path::{Path, PathBuf};

use serde::Serialize;

use super::Error;

const WATCHER_SCRIPT: &str = include_str!("../../../deploy/content-sync-watcher.sh");

/// Which service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Service {
    /// Everything on one machine
    Up,
    /// HTTP alone
    Worker,
    /// Dispatching alone
    Drainer,
    /// Emits `content/updated` when folders change
    ContentSyncWatcher,
}

/// Whose service manager.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Domain {
    /// This user's
    User,
    /// The machine's
    System,
}

impl Domain {
    /// The other one.
    pub const fn other(self) -> Self {
        match self {
            Self::User => Self::System,
            Self::System => Self::User,
        }
    }
}

/// Which service manager.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Platform {
    /// Linux
    Systemd,
    /// macOS
    Launchd,
}

impl Platform {
    /// That of this machine.
    pub fn here() -> Option<Self> {
        match std::env::consts::OS {
            "macos" => Some(Self::Launchd),
            "linux" => Some(Self::Systemd),
            _ => None,
        }
    }

    /// For messages.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Systemd => "systemd",
            Self::Launchd => "launchd",
        }
    }
}

/// The paths of a machine.
#[derive(Debug, Clone)]
pub struct Site {
    /// Its service manager.
    pub platform: Platform,
    /// Whose.
    pub domain: Domain,
    /// Of the operator.
    pub home: PathBuf,
    /// The operator, for services of the machine.
    pub user: String,
    /// The program.
    pub bin: PathBuf,
    /// The env file.
    pub env_file: PathBuf,
    /// Of launchd labels.
    pub prefix: String,
    /// What the content watcher watches.
    pub folders: Vec<PathBuf>,
}

impl Site {
    /// The site that this process sees.
    pub fn of_process(platform: Platform, domain: Domain, prefix: String) -> Self {
        let home = PathBuf::from(std::env::var_os("HOME").unwrap_or_else(|| "/".into()));
        let named = std::env::var_os("SYSTEM_BUS_ENV_FILE").filter(|path| !path.is_empty()).map(PathBuf::from);
        let env_file = match (named, platform, domain) {
            (Some(named), ..) => named,
            (None, Platform::Systemd, Domain::System) => PathBuf::from("/etc/system-bus/system-bus.env"),
            (None, ..) => home.join(".config/system-bus.env"),
        };
        Self {
            platform,
            domain,
            user: std::env::var("SUDO_USER").or_else(|_| std::env::var("USER")).unwrap_or_else(|_| "root".into()),
            bin: std::env::current_exe().unwrap_or_else(|_| home.join(".local/bin/joelclaw")),
            env_file,
            prefix,
            folders: vec![home.join("Vault/docs/decisions"), home.join("Vault/Resources/discoveries")],
            home,
        }
    }

    fn share(&self) -> PathBuf {
        match (self.platform, self.domain) {
            (Platform::Systemd, Domain::System) => PathBuf::from("/usr/local/share/system-bus"),
            _ => self.home.join(".local/share/system-bus"),
        }
    }

    fn units(&self) -> PathBuf {
        match (self.platform, self.domain) {
            (Platform::Systemd, Domain::System) => PathBuf::from("/etc/systemd/system"),
            (Platform::Systemd, Domain::User) => self.home.join(".config/systemd/user"),
            (Platform::Launchd, Domain::System) => PathBuf::from("/Library/LaunchDaemons"),
            (Platform::Launchd, Domain::User) => self.home.join("Library/LaunchAgents"),
        }
    }

    /// Where launchd writes what a service prints.
    pub fn logs(home: &Path) -> PathBuf {
        home.join(".local/log")
    }
}

/// One file to write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct File {
    /// Where.
    pub path: PathBuf,
    /// What.
    pub text: String,
    /// A unit or a plist, not a script.
    pub is_unit: bool,
}

impl File {
    /// Writes it whole or not at all.
    pub fn write(&self) -> Result<(), Error> {
        use std::os::unix::fs::PermissionsExt as _;
        let failed = |source| Error::File { path: self.path.clone(), source };
        let dir = self.path.parent().unwrap_or_else(|| Path::new("/"));
        std::fs::create_dir_all(dir).map_err(failed)?;
        let mut temporary = tempfile::NamedTempFile::new_in(dir).map_err(failed)?;
        std::io::Write::write_all(&mut temporary, self.text.as_bytes()).map_err(failed)?;
        let mode = if self.is_unit { 0o644 } else { 0o755 };
        temporary.as_file().set_permissions(std::fs::Permissions::from_mode(mode)).map_err(failed)?;
        temporary.persist(&self.path).map_err(|error| failed(error.error))?;
        Ok(())
    }
}

/// What the service manager calls it.
pub fn name(service: Service, site: &Site) -> String {
    match (site.platform, service) {
        (Platform::Systemd, Service::Up) => "system-bus.service".into(),
        (Platform::Systemd, Service::Worker) => "system-bus-worker.service".into(),
        (Platform::Systemd, Service::Drainer) => "system-bus-drainer.service".into(),
        (Platform::Systemd, Service::ContentSyncWatcher) => "system-bus-content-sync-watcher.path".into(),
        (Platform::Launchd, Service::Up) => format!("{}.system-bus", site.prefix),
        (Platform::Launchd, Service::Worker) => format!("{}.system-bus-worker", site.prefix),
        (Platform::Launchd, Service::Drainer) => format!("{}.restate-worker", site.prefix),
        (Platform::Launchd, Service::ContentSyncWatcher) => format!("{}.content-sync-watcher", site.prefix),
    }
}

/// The file by which the service manager knows it.
pub fn path(service: Service, site: &Site) -> PathBuf {
    let name = name(service, site);
    match site.platform {
        Platform::Systemd => site.units().join(name),
        Platform::Launchd => site.units().join(format!("{name}.plist")),
    }
}

/// The log of a launchd service.
pub const fn log_name(service: Service) -> &'static str {
    match service {
        Service::Up => "system-bus",
        Service::Worker => "system-bus-worker",
        Service::Drainer => "system-bus-drainer",
        Service::ContentSyncWatcher => "content-sync-watcher",
    }
}

/// Folders that must exist before the service starts: launchd makes none.
pub fn folders(service: Service, site: &Site) -> Vec<PathBuf> {
    let mut folders = Vec::new();
    if site.platform == Platform::Launchd {
        folders.push(Site::logs(&site.home));
    }
    if service == Service::ContentSyncWatcher {
        folders.extend(site.folders.iter().cloned());
    }
    folders
}

/// Everything that a service needs on disk.
pub fn files(service: Service, site: &Site) -> Vec<File> {
    let unit = |path: PathBuf, text: String| File { path, text, is_unit: true };
    let mut files = match site.platform {
        Platform::Launchd => vec![unit(path(service, site), plist(service, site))],
        Platform::Systemd => {
            let mut files = vec![unit(path(service, site), unit_file(template(service), site))];
            if service == Service::ContentSyncWatcher {
                const RUN: &str = include_str!("../../../deploy/systemd/system-bus-content-sync-watcher.service");
                let path = site.units().join("system-bus-content-sync-watcher.service");
                files.push(unit(path, unit_file(RUN, site)));
            }
            files
        }
    };
    if service == Service::ContentSyncWatcher {
        let path = site.share().join("content-sync-watcher.sh");
        files.push(File { path, text: WATCHER_SCRIPT.to_owned(), is_unit: false });
    }
    files
}

const fn template(service: Service) -> &'static str {
    match service {
        Service::Up => include_str!("../../../deploy/systemd/system-bus.service"),
        Service::Worker => include_str!("../../../deploy/systemd/system-bus-worker.service"),
        Service::Drainer => include_str!("../../../deploy/systemd/system-bus-drainer.service"),
        Service::ContentSyncWatcher => include_str!("../../../deploy/systemd/system-bus-content-sync-watcher.path"),
    }
}

fn unit_file(template: &str, site: &Site) -> String {
    let is_user = site.domain == Domain::User;
    // What a user's manager can't grant, or has no target for.
    const OF_THE_MACHINE: [&str; 11] = [
        "# A user of its own",
        "User=",
        "DynamicUser=",
        "StateDirectory=",
        "Environment=HOME=",
        "PrivateTmp=",
        "ProtectSystem=",
        "Wants=network-online",
        "After=network-online",
        "SystemCallFilter=",
        "RestrictAddressFamilies=",
    ];
    let mut lines = Vec::new();
    for line in template.lines() {
        if line.starts_with('#') && line.contains("writes this file") {
            continue;
        }
        if is_user && OF_THE_MACHINE.iter().any(|start| line.starts_with(start)) {
            continue;
        }
        let line = match line {
            line if line.starts_with("EnvironmentFile=") && is_user => {
                format!("Environment={}", systemd_word(&format!("SYSTEM_BUS_ENV_FILE={}", site.env_file.display())))
            }
            line if line.starts_with("EnvironmentFile=") => format!("EnvironmentFile=-{}", site.env_file.display()),
            "WantedBy=multi-user.target" if is_user => "WantedBy=default.target".to_owned(),
            line if line.starts_with("PathModified=") => {
                // All of them stand where the first one stood.
                if lines.iter().any(|line: &String| line.starts_with("PathModified=")) {
                    continue;
                }
                let watched =
                    site.folders.iter().map(|dir| format!("PathModified={}", escaped(&dir.display().to_string())));
                watched.collect::<Vec<_>>().join("\n")
            }
            line if line.starts_with("Environment=SYSTEM_BUS_ENV_FILE=") => {
                format!("Environment={}", systemd_word(&format!("SYSTEM_BUS_ENV_FILE={}", site.env_file.display())))
            }
            line if line.starts_with("Environment=JOELCLAW=") => {
                format!("Environment={}", systemd_word(&format!("JOELCLAW={}", site.bin.display())))
            }
            line => line
                .replace("/usr/local/bin/joelclaw", &systemd_word(&site.bin.display().to_string()))
                .replace("/usr/local/share/system-bus", &escaped(&site.share().display().to_string())),
        };
        lines.push(line);
    }
    lines.join("\n") + "\n"
}

/// `%` begins a specifier in unit files.
fn escaped(text: &str) -> String {
    text.replace('%', "%%")
}

/// One word of a unit file, quoted where it has to be.
fn systemd_word(text: &str) -> String {
    let text = escaped(text);
    match text.chars().any(|c| c.is_whitespace() || matches!(c, '"' | '\\' | '\'')) {
        true => format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"")),
        false => text,
    }
}

fn plist(service: Service, site: &Site) -> String {
    let template = match service {
        Service::Up => include_str!("../../../deploy/launchd/com.joelclaw.system-bus.plist"),
        Service::Worker => include_str!("../../../deploy/launchd/com.joelclaw.system-bus-worker.plist"),
        Service::Drainer => include_str!("../../../deploy/launchd/com.joelclaw.restate-worker.plist"),
        Service::ContentSyncWatcher => include_str!("../../../deploy/launchd/com.joelclaw.content-sync-watcher.plist"),
    };
    let path = |path: &Path| xml(&path.display().to_string());
    let watched: String = site.folders.iter().map(|dir| format!("    <string>{}</string>\n", path(dir))).collect();
    let mut text = String::new();
    for line in template.lines() {
        if line.contains("/Users/OPERATOR/Vault/") {
            // All of them stand where the first one stood.
            if line.contains("decisions") {
                text.push_str(&watched);
            }
            continue;
        }
        let line = line
            .replace("/Users/OPERATOR/.local/bin/joelclaw", &path(&site.bin))
            .replace("/Users/OPERATOR/.config/system-bus.env", &path(&site.env_file))
            .replace("/Users/OPERATOR", &path(&site.home))
            .replace("<string>com.joelclaw.", &format!("<string>{}.", xml(&site.prefix)));
        text.push_str(&line);
        text.push('\n');
    }
    if site.domain == Domain::System {
        let owner = format!(
            "  <key>UserName</key>\n  <string>{}</string>\n  <key>GroupName</key>\n  <string>staff</string>\n</dict>\n</plist>",
            xml(&site.user)
        );
        text = text.replace("</dict>\n</plist>", &owner);
    }
    text
}

fn xml(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn site(platform: Platform, domain: Domain) -> Site {
        Site {
            platform,
            domain,
            home: "/home/a & b".into(),
            user: "ada".into(),
            bin: "/opt/my bin/joelclaw".into(),
            env_file: "/home/a & b/100%.env".into(),
            prefix: "org.example".into(),
            folders: vec!["/data/one".into(), "/data/two <x>".into()],
        }
    }

    #[test]
    fn every_path_of_a_template_becomes_one_of_the_machine() {
        for platform in [Platform::Systemd, Platform::Launchd] {
            for domain in [Domain::User, Domain::System] {
                for service in [Service::Up, Service::Worker, Service::Drainer, Service::ContentSyncWatcher] {
                    let site = site(platform, domain);
                    for file in files(service, &site).into_iter().filter(|file| file.is_unit) {
                        for template in ["OPERATOR", "/usr/local/bin/joelclaw", "com.joelclaw"] {
                            assert!(!file.text.contains(template), "{}\n{}", file.path.display(), file.text);
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn odd_characters_are_quoted_as_each_format_wants_it() {
        let unit = &files(Service::Up, &site(Platform::Systemd, Domain::User))[0].text;
        assert!(unit.contains("ExecStart=\"/opt/my bin/joelclaw\" up\n"), "{unit}");
        assert!(unit.contains("Environment=\"SYSTEM_BUS_ENV_FILE=/home/a & b/100%%.env\"\n"), "{unit}");
        assert!(unit.contains("WantedBy=default.target"), "{unit}");
        let plist = &files(Service::ContentSyncWatcher, &site(Platform::Launchd, Domain::System))[0].text;
        assert!(plist.contains("<string>/data/two &lt;x&gt;</string>"), "{plist}");
        assert!(plist.contains("<string>/home/a &amp; b/.local/log/content-sync-watcher.log</string>"), "{plist}");
        assert!(plist.contains("<key>UserName</key>\n  <string>ada</string>"), "{plist}");
    }
}

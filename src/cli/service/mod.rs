//! `joelclaw service`: writes the files of this machine's service manager and drives it: launchd on macOS, systemd on
//! Linux. Works without a configuration, and with a broken one.

mod launchd;
mod manager;
mod systemd;
mod unit;

use std::path::PathBuf;

use serde_json::json;

use super::output::{Failure, NextAction, Report};
use super::render::Human;
use crate::diagnose::{Diagnose, Exit};
use manager::{Manager, State};
use unit::{Domain, Platform, Service, Site};

/// Install, look at and drive the service of this machine
#[derive(Debug, Clone, clap::Args)]
#[command(
    after_help = "Examples:\n  joelclaw service install                         # everything on this machine, for this user\n  joelclaw service install drainer --domain system  # before login, as root\n  joelclaw service install content-sync-watcher --folder ~/Vault/docs\n  joelclaw service install --print                 # show the files, change nothing\n  joelclaw service status\n  joelclaw service logs --follow\n\nmacOS: launchd, state `launchctl print gui/$UID/<label>`, by hand `launchctl bootstrap|bootout|kickstart -k`.\nLinux: systemd, `systemctl [--user] status system-bus`; a user's services end at logout unless `loginctl enable-linger` was said."
)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Clone, clap::Subcommand)]
enum Command {
    /// Write the files and start it
    Install(Install),
    /// Stop it and remove its files
    Uninstall(Which),
    /// Whether it runs: exit 1 when it does not, 5 when it is not installed
    Status(Which),
    /// Stop it and start it again
    Restart(Which),
    /// What it wrote
    Logs(Logs),
}

/// Which service, of which service manager.
#[derive(Debug, Clone, clap::Args)]
struct Which {
    /// The service
    #[arg(value_enum, default_value_t = Service::Up)]
    service: Service,
    /// `user`, or `system` (before login; needs root)
    #[arg(long, value_enum, default_value_t = Domain::User)]
    domain: Domain,
    /// Reverse-DNS prefix of launchd labels
    #[arg(long, default_value = "com.joelclaw", value_parser = prefix)]
    label: String,
    /// Another platform's files; only to print them
    #[arg(long, value_enum)]
    platform: Option<Platform>,
}

#[derive(Debug, Clone, clap::Args)]
struct Install {
    #[command(flatten)]
    which: Which,
    /// Show the files instead of writing them
    #[arg(long)]
    print: bool,
    /// Write them without starting anything
    #[arg(long)]
    no_start: bool,
    /// For content-sync-watcher: a folder to watch; repeatable
    #[arg(long = "folder", value_name = "DIR")]
    folders: Vec<PathBuf>,
    /// The program, if not this one
    #[arg(long, value_name = "PATH")]
    bin: Option<PathBuf>,
}

#[derive(Debug, Clone, clap::Args)]
struct Logs {
    #[command(flatten)]
    which: Which,
    /// Lines from the end
    #[arg(short = 'n', long, default_value_t = 100)]
    lines: usize,
    /// Go on as it writes
    #[arg(short, long)]
    follow: bool,
}

fn prefix(text: &str) -> Result<String, String> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-');
    match !text.is_empty() && text.chars().all(is_plain) {
        true => Ok(text.to_owned()),
        false => Err("use letters, digits, `.` and `-`, as in com.example".into()),
    }
}

/// Why the service manager was not driven.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Neither launchd nor systemd.
    #[error("this machine has no service manager that joelclaw knows: launchd or systemd")]
    NoManager,
    /// Its files are for another machine.
    #[error("files of {0} can't be installed here")]
    OtherPlatform(&'static str),
    /// It is in the other domain already.
    #[error("{0} is installed already: two supervisors of one service would fight")]
    OtherDomain(PathBuf),
    /// There is nothing of this name.
    #[error("{0} is not installed")]
    NotInstalled(String),
    /// A file could not be written or removed.
    #[error("{path}: {source}")]
    File {
        /// Which one.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: std::io::Error,
    },
    /// The service manager refused.
    #[error("`{command}` failed: {reason}")]
    Tool {
        /// As it was called.
        command: String,
        /// What it said.
        reason: String,
    },
}

impl Diagnose for Error {
    fn code(&self) -> &'static str {
        match self {
            Self::NoManager => "NO_SERVICE_MANAGER",
            Self::OtherPlatform(_) => "OTHER_PLATFORM",
            Self::OtherDomain(_) => "SERVICE_IN_OTHER_DOMAIN",
            Self::NotInstalled(_) => "SERVICE_NOT_INSTALLED",
            Self::File { .. } => "SERVICE_FILE",
            Self::Tool { .. } => "SERVICE_MANAGER_FAILED",
        }
    }

    fn exit(&self) -> Exit {
        match self {
            Self::NoManager | Self::Tool { .. } | Self::File { .. } => Exit::Unavailable,
            Self::OtherPlatform(_) => Exit::Usage,
            Self::OtherDomain(_) => Exit::Refused,
            Self::NotInstalled(_) => Exit::NotFound,
        }
    }

    fn fix(&self) -> String {
        match self {
            Self::NoManager => "Run it under whatever supervises processes here: joelclaw up".into(),
            Self::OtherPlatform(_) => "Add --print to see them.".into(),
            Self::OtherDomain(_) => "joelclaw service uninstall --domain user (or system), then install again".into(),
            Self::NotInstalled(_) => "joelclaw service install".into(),
            Self::File { .. } => "Check who may write there; --domain system needs root.".into(),
            Self::Tool { .. } => "Read its message; joelclaw service status shows what it thinks.".into(),
        }
    }
}

/// Runs the command.
pub fn run(args: &Args) -> Result<Report, Failure> {
    match &args.command {
        Command::Install(args) => install(args),
        Command::Uninstall(which) => uninstall(which),
        Command::Status(which) => status(which),
        Command::Restart(which) => restart(which),
        Command::Logs(args) => logs(args),
    }
}

impl Which {
    fn site(&self) -> Result<Site, Error> {
        let platform = self.platform.or_else(Platform::here).ok_or(Error::NoManager)?;
        Ok(Site::of_process(platform, self.domain, self.label.clone()))
    }

    /// The manager of this machine, and the site it works on.
    fn manager(&self) -> Result<(Box<dyn Manager>, Site), Error> {
        let site = self.site()?;
        if Platform::here() != Some(site.platform) {
            return Err(Error::OtherPlatform(site.platform.as_str()));
        }
        let manager: Box<dyn Manager> = match site.platform {
            Platform::Systemd => Box::new(systemd::Systemd { domain: site.domain }),
            Platform::Launchd => Box::new(launchd::Launchd { domain: site.domain, home: site.home.clone() }),
        };
        Ok((manager, site))
    }
}

fn install(args: &Install) -> Result<Report, Failure> {
    let mut site = args.which.site()?;
    if let Some(bin) = &args.bin {
        site.bin.clone_from(bin);
    }
    if !args.folders.is_empty() {
        site.folders.clone_from(&args.folders);
    }
    let files = unit::files(args.which.service, &site);
    if args.print {
        let text = files.iter().map(|file| format!("# {}\n{}", file.path.display(), file.text)).collect::<Vec<_>>();
        let shown = files.iter().map(|file| json!({"path": file.path, "text": file.text})).collect::<Vec<_>>();
        return Ok(Report::raw(json!({ "files": shown }), text.join("\n")));
    }
    let (manager, here) = args.which.manager()?;
    let other = Site { domain: here.domain.other(), ..here.clone() };
    if let Some(file) =
        unit::files(args.which.service, &other).into_iter().find(|file| file.is_unit && file.path.exists())
    {
        return Err(Error::OtherDomain(file.path).into());
    }
    manager::ensure_env_file(&site)?;
    for dir in unit::folders(args.which.service, &site) {
        std::fs::create_dir_all(&dir).map_err(|source| Error::File { path: dir.clone(), source })?;
    }
    for file in &files {
        file.write()?;
    }
    let name = unit::name(args.which.service, &site);
    let unit = unit::path(args.which.service, &site);
    manager.install(&name, &unit, !args.no_start)?;
    let written: Vec<String> = files.iter().map(|file| file.path.display().to_string()).collect();
    let result = json!({ "service": name, "files": written, "started": !args.no_start, "domain": site.domain });
    let human = Human::new()
        .text(format!("{name} is installed{}", if args.no_start { "" } else { " and started" }))
        .pairs(written.into_iter().map(|path| ("file", path)));
    let report = Report::new(result, human).next(NextAction::new("service status", "Whether it runs"));
    Ok(report.next(NextAction::new("service logs", "What it wrote")))
}

fn uninstall(which: &Which) -> Result<Report, Failure> {
    let (manager, site) = which.manager()?;
    let (name, unit) = installed(which, &site)?;
    manager.uninstall(&name, &unit)?;
    let mut removed = Vec::new();
    for file in unit::files(which.service, &site).into_iter().filter(|file| file.path.exists()) {
        std::fs::remove_file(&file.path).map_err(|source| Error::File { path: file.path.clone(), source })?;
        removed.push(file.path.display().to_string());
    }
    manager.forget()?;
    let human = Human::new().text(format!("{name} is stopped and removed; its data stays."));
    Ok(Report::new(json!({ "service": name, "removed": removed }), human))
}

fn restart(which: &Which) -> Result<Report, Failure> {
    let (manager, site) = which.manager()?;
    let (name, _) = installed(which, &site)?;
    manager.restart(&name)?;
    let human = Human::new().text(format!("{name} was restarted."));
    let report = Report::new(json!({ "service": name, "restarted": true }), human);
    Ok(report.next(NextAction::new("service status", "Whether it runs")))
}

fn status(which: &Which) -> Result<Report, Failure> {
    let (manager, site) = which.manager()?;
    let (name, unit) = installed(which, &site)?;
    let found: State = manager.state(&name)?;
    let human = Human::new().text(format!("{name}: {}", found.state)).pairs(
        [
            ("pid", found.pid.map(|pid| pid.to_string())),
            ("since", found.since.clone()),
            ("restarts", found.restarts.map(|n| n.to_string())),
            ("last exit", found.last_exit.clone()),
            ("file", Some(unit.display().to_string())),
        ]
        .into_iter()
        .filter_map(|(key, value)| Some((key, value?))),
    );
    let mut result = json!(found);
    result["service"] = name.into();
    result["file"] = json!(unit);
    result["domain"] = json!(site.domain);
    let report = Report::new(result, human);
    Ok(match found.is_up {
        true => report.next(NextAction::new("jobs status", "What it does")),
        false => report.unhealthy(Exit::Unhealthy).next(NextAction::new("service logs", "Why it is down")),
    })
}

fn logs(args: &Logs) -> Result<Report, Failure> {
    let (manager, site) = args.which.manager()?;
    let (name, _) = installed(&args.which, &site)?;
    let text = manager.logs(&name, args.which.service, args.lines, args.follow)?;
    Ok(Report::raw(json!({ "service": name, "lines": text.lines().collect::<Vec<_>>() }), text))
}

/// Name and file of a service that is there.
fn installed(which: &Which, site: &Site) -> Result<(String, PathBuf), Error> {
    let (name, unit) = (unit::name(which.service, site), unit::path(which.service, site));
    if !unit.exists() {
        return Err(Error::NotInstalled(name));
    }
    Ok((name, unit))
}

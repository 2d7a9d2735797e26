//! The command line: parse, load the configuration, run one command, print one outcome.
//!
//! A command is a file: its `Args` (clap) and `run(&Args, &Context) -> Result<Report, Failure>`. It never prints and
//! never chooses an exit code by itself: [`output`] does both from what it returns. To add one, add its variant to
//! [`Configured`] and its line to [`Configured::run`].
//!
//! Every way to end is an outcome: wrong usage (2), a broken configuration (2 or 78), a panic (70) print an envelope
//! like any failure. Help and version are text.

pub mod bench;
pub mod completions;
pub mod config;
pub mod doctor;
pub mod explain;
pub mod functions;
mod interrupt;
pub mod jobs;
pub mod journal;
mod otel;
pub mod output;
pub mod queue;
pub mod render;
pub mod service;
pub mod up;
pub mod verify;
pub mod webhooks;

use std::io::IsTerminal;
use std::panic::{self, AssertUnwindSafe};
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use serde_json::{Value, json};

use crate::config::{Config, Sources};
use crate::diagnose::Exit;
use output::{Asked, Failure, Mode, Output, Report};

/// Webhooks and scripts append events to Redis Streams; handlers run on them, and nothing is lost
#[derive(Debug, Parser)]
#[command(name = "joelclaw", version, propagate_version = true, disable_help_subcommand = true)]
pub struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// Flags of every command.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Global options")]
pub struct Global {
    /// One JSON envelope, also at a terminal (JOELCLAW_OUTPUT=json does the same)
    #[arg(long, global = true, alias = "toon")]
    pub json: bool,
    /// The items of a list, one JSON document a line
    #[arg(long, global = true, conflicts_with = "json")]
    pub ndjson: bool,
    /// The result alone: no hints, no progress, no warnings
    #[arg(long, global = true)]
    pub quiet: bool,
    /// Details on stderr
    #[arg(long, global = true, conflicts_with = "quiet")]
    pub verbose: bool,
    /// No colour (as NO_COLOR)
    #[arg(long, global = true)]
    pub no_color: bool,
    /// The Redis to use, before REDIS_URL of the env file and of the environment
    #[arg(long, global = true, value_name = "URL")]
    pub redis_url: Option<String>,
    /// The env file, instead of ~/.config/system-bus.env
    #[arg(long, global = true, value_name = "PATH")]
    pub env_file: Option<std::path::PathBuf>,
    /// Repeat every so many seconds until interrupted
    #[arg(long, global = true, value_name = "SECS", num_args = 0..=1, default_missing_value = "2",
          value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub watch: Option<u64>,
}

#[derive(Debug, Subcommand)]
enum Command {
    #[command(flatten)]
    Configured(Configured),
    #[command(flatten)]
    Offline(Offline),
}

/// Commands that work without any configuration, and so also with a broken one.
#[derive(Debug, Subcommand)]
enum Offline {
    Explain(explain::Args),
    Completions(completions::Args),
    Service(service::Args),
}

/// Commands that run with a configuration. New ones are added here.
#[derive(Debug, Subcommand)]
pub enum Configured {
    /// Everything on this machine
    Up(up::UpArgs),
    /// HTTP alone
    Serve(up::ServeArgs),
    /// Dispatching alone
    Drainer(up::DrainerArgs),
    /// Show every setting in force and what chose it
    Config(config::Args),
    /// Look at the queue and act on it
    Queue(Box<queue::Args>),
    /// Count what became of every accepted event: lost must be 0
    Verify(verify::Args),
    /// Whether everything around the program is as it must be
    Doctor(doctor::Args),
    /// Whether everything that runs jobs is healthy
    Jobs(jobs::Args),
    /// The record of everything that happened
    Journal(journal::Args),
    /// Telemetry events by level, source and component
    Otel(Box<otel::Args>),
    /// Send an event to functions, and follow the runs that it starts
    Send(functions::send::Args),
    /// The functions that apps serve: triggers, flow control, last run, what is wrong
    Functions(functions::list::Args),
    /// The latest runs of functions
    Runs(functions::runs::Args),
    /// Everything about one run; cancel it, or run it once more
    Run(functions::run::Args),
    /// The latest events and the runs that they started
    Events(functions::events::Args),
    /// One event and the runs that it started
    Event(functions::event::Args),
    /// Ask every app what it serves and make the registry agree
    Refresh(functions::refresh::Args),
    /// Look after what serves functions
    Inngest(functions::inngest::Args),
    /// Webhooks: what comes in, and the endpoints that events are sent to
    #[command(visible_alias = "webhook")]
    Webhooks(webhooks::Args),
    /// Measure the pipeline
    Bench(bench::Args),
}

impl Configured {
    /// A service runs until it is told to stop; anything else answers and ends.
    fn is_service(&self) -> bool {
        matches!(self, Self::Up(_) | Self::Serve(_) | Self::Drainer(_))
    }

    /// Services use every core, and so does what measures them; for an answer, a pool of threads would take longer to
    /// start than the answer takes.
    fn wants_every_core(&self) -> bool {
        self.is_service() || matches!(self, Self::Bench(_))
    }

    /// Settings that this command takes as flags.
    fn flags(&self) -> Vec<(&'static str, Option<String>)> {
        match self {
            Self::Up(args) => args.flags(),
            Self::Drainer(args) => args.flags(),
            _ => Vec::new(),
        }
    }

    /// Prints as it goes, so that nothing is left to repeat or to print at its end.
    fn is_stream(&self) -> bool {
        match self {
            Self::Queue(args) => args.is_stream(),
            Self::Journal(args) => args.is_stream(),
            // Not to be repeated: each time would be another event.
            Self::Send(_) => true,
            _ => false,
        }
    }

    async fn run(&self, context: &Context) -> Ending {
        match self.dispatch(context).await {
            Ending::Outcome(outcome) => Ending::Outcome(outcome.map_err(|failure| context.advise(failure))),
            streamed => streamed,
        }
    }

    async fn dispatch(&self, context: &Context) -> Ending {
        Ending::Outcome(match self {
            Self::Up(args) => up::up(args, context).await,
            Self::Serve(args) => up::serve(args, context).await,
            Self::Drainer(args) => up::drainer(args, context).await,
            Self::Config(args) => config::run(args, context),
            Self::Queue(args) => return queue::run(args, context).await,
            Self::Verify(args) => verify::run(args, context).await,
            Self::Doctor(args) => doctor::run(args, context).await,
            Self::Jobs(args) => jobs::run(args, context).await,
            Self::Journal(args) => return journal::run(args, context).await,
            Self::Otel(args) => return otel::run(args, context).await,
            Self::Send(args) => return functions::send::run(args, context).await,
            Self::Functions(args) => functions::list::run(args, context).await,
            Self::Runs(args) => functions::runs::run(args, context).await,
            Self::Run(args) => functions::run::run(args, context).await,
            Self::Events(args) => functions::events::run(args, context).await,
            Self::Event(args) => functions::event::run(args, context).await,
            Self::Refresh(args) => functions::refresh::run(args, context).await,
            Self::Inngest(args) => functions::inngest::run(args, context).await,
            Self::Webhooks(args) => webhooks::run(args, context).await,
            Self::Bench(args) => bench::run(args, context).await,
        })
    }
}

/// What a command is given.
#[derive(Debug, Clone)]
pub struct Context {
    /// The configuration in force.
    pub config: Config,
    /// Where it came from.
    pub sources: Sources,
    /// How this run talks: for streams ([`Output::line`]) and progress.
    pub output: Output,
    /// Path of the command, as `joelclaw queue depth`.
    pub command: String,
}

impl Context {
    /// Where no Redis was ever configured, "can't be reached" has a better answer than looking at the settings.
    fn advise(&self, failure: Failure) -> Failure {
        if failure.code() == "REDIS_UNREACHABLE" && !self.config.redis.is_configured() {
            return failure.with_fix("joelclaw up (starts a Redis of its own), or put REDIS_URL into the env file");
        }
        failure
    }

    /// `{url, origin}` of the Redis in use, for every result that came from it; with the warnings about its choice.
    pub fn redis_origin(&self) -> Value {
        let redis = &self.config.redis;
        let mut origin = json!({ "url": redis.display, "origin": redis.origin });
        let warnings: Vec<_> = self.config.warnings.iter().filter(|w| w.code.starts_with("CONFIG_REDIS_")).collect();
        if !warnings.is_empty() {
            origin["warnings"] = json!(warnings);
        }
        origin
    }
}

/// Runs the process's command line.
pub fn run() -> ExitCode {
    let args: Vec<std::ffi::OsString> = std::env::args_os().collect();
    let matches = match Cli::command().try_get_matches_from(&args) {
        Ok(matches) => matches,
        Err(error) => return refuse(&args, &error),
    };
    let command = path_of(&matches);
    let cli = match Cli::from_arg_matches(&matches) {
        Ok(cli) => cli,
        Err(error) => return refuse(&args, &error),
    };
    let Global { json, ndjson, quiet, verbose, no_color, .. } = cli.global;
    let output = Output::of_process(Asked { json, ndjson, quiet, verbose, no_color });
    let outcome = guard(|| match cli.command {
        Command::Offline(Offline::Explain(args)) => Ending::Outcome(explain::run(&args)),
        Command::Offline(Offline::Completions(args)) => Ending::Outcome(completions::run(&args)),
        Command::Offline(Offline::Service(args)) => Ending::Outcome(service::run(&args)),
        Command::Configured(configured) => execute(&configured, &cli.global, &command, &output),
    });
    match outcome {
        Ending::Outcome(outcome) => output.finish(&command, outcome),
        Ending::Streamed(exit) => exit,
    }
}

/// How a command ended.
enum Ending {
    /// Still to be printed.
    Outcome(Result<Report, Failure>),
    /// Everything is printed.
    Streamed(ExitCode),
}

fn execute(configured: &Configured, global: &Global, command: &str, output: &Output) -> Ending {
    let mut sources = Sources::of_process().flag("REDIS_URL", global.redis_url.clone());
    sources.env_file = global.env_file.clone();
    for (key, value) in configured.flags() {
        sources = sources.flag(key, value);
    }
    let config = match Config::load(&sources) {
        Ok(config) => config,
        Err(error) => return Ending::Outcome(Err(error.into())),
    };
    let is_service = configured.is_service();
    install_tracing(&config, output, is_service);
    if is_service {
        config.warnings.iter().for_each(|warning| tracing::warn!(code = warning.code, "{}", warning.message));
    } else if !matches!(configured, Configured::Config(_)) {
        output.warn(&config.warnings);
    }
    let context = Context { config, sources, output: output.clone(), command: command.to_owned() };
    let mut builder = if configured.wants_every_core() {
        tokio::runtime::Builder::new_multi_thread()
    } else {
        tokio::runtime::Builder::new_current_thread()
    };
    let runtime = match builder.enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            let message = format!("the runtime did not start: {error}");
            let fix = "Check the limits on threads and open files of this user.";
            return Ending::Outcome(Err(Failure::new("INTERNAL_ERROR", Exit::Internal, message, fix)));
        }
    };
    let ending = runtime.block_on(async {
        match global.watch {
            Some(_) if is_service || configured.is_stream() => Ending::Outcome(Err(Failure::new(
                "USAGE_ERROR",
                Exit::Usage,
                "--watch is for commands that show something; this one runs until it is stopped",
                "Leave --watch out.",
            ))),
            Some(seconds) => watch(configured, &context, Duration::from_secs(seconds)).await,
            None => configured.run(&context).await,
        }
    });
    // A blocked read on stdin must not hold the process back.
    runtime.shutdown_background();
    ending
}

/// Repeats a command: a page at a terminal, a `snapshot` line a time otherwise. Ends by an interrupt or a failure.
async fn watch(configured: &Configured, context: &Context, every: Duration) -> Ending {
    const INTERRUPTED: u8 = 130;
    let output = &context.output;
    let mut ticks = tokio::time::interval(every);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            _ = tokio::signal::ctrl_c() => {
                if output.mode != Mode::Human {
                    output.line(&json!({ "type": "result", "ok": true, "command": context.command,
                        "result": { "reason": "interrupted" }, "next_actions": [] }));
                }
                return Ending::Streamed(ExitCode::from(INTERRUPTED));
            }
        }
        let Ending::Outcome(outcome) = configured.run(context).await else {
            return Ending::Streamed(ExitCode::SUCCESS);
        };
        let is_read = match (&outcome, output.mode) {
            (Err(failure), Mode::Json | Mode::Ndjson) => {
                let exit = failure.exit();
                let mut line = output::envelope(&context.command, &outcome);
                line["type"] = json!("error");
                output.line(&line);
                return Ending::Streamed(ExitCode::from(exit as u8));
            }
            (Err(_), Mode::Human) => return Ending::Outcome(outcome),
            (Ok(_), Mode::Human) => output.page(&output.render(&context.command, &outcome).stdout),
            (Ok(report), _) => {
                let ts = crate::moment::now();
                output.line(&json!({ "type": "snapshot", "result": output::result_of(report), "ts": ts }))
            }
        };
        if !is_read {
            return Ending::Streamed(ExitCode::SUCCESS);
        }
    }
}

/// `joelclaw queue depth`: the names of the subcommands, without arguments.
fn path_of(matches: &clap::ArgMatches) -> String {
    let mut path = String::from("joelclaw");
    let mut level = matches;
    while let Some((name, inner)) = level.subcommand() {
        path.push(' ');
        path.push_str(name);
        level = inner;
    }
    path
}

/// The same for arguments that do not parse: as many names as are known.
fn path_of_args(args: &[std::ffi::OsString]) -> String {
    let mut path = String::from("joelclaw");
    let mut level = Cli::command();
    for word in args.iter().skip(1).filter_map(|arg| arg.to_str()) {
        if let Some(inner) = level.find_subcommand(word).cloned() {
            path.push(' ');
            path.push_str(inner.get_name());
            level = inner;
        }
    }
    path
}

/// Help and version are what was asked for; anything else is wrong usage.
fn refuse(args: &[std::ffi::OsString], error: &clap::Error) -> ExitCode {
    if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) {
        return output::print_help(&error.render().to_string());
    }
    let has = |flag: &str| args.iter().any(|arg| arg == flag);
    let output = Output::of_process(Asked { json: has("--json") || has("--ndjson"), ..Asked::default() });
    let text = output::redact(&error.render().to_string());
    if output.mode == Mode::Human {
        return output::print_usage(&text);
    }
    let command = path_of_args(args);
    let (code, message) = match error.kind() {
        ErrorKind::InvalidSubcommand => ("UNKNOWN_COMMAND", first_paragraph(&text)),
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand | ErrorKind::MissingSubcommand => {
            ("USAGE_ERROR", "a command is missing".to_owned())
        }
        _ => ("USAGE_ERROR", first_paragraph(&text)),
    };
    let suggested = match error.get(ContextKind::SuggestedSubcommand) {
        Some(ContextValue::Strings(names)) => names.first().cloned(),
        Some(ContextValue::String(name)) => Some(name.clone()),
        _ => None,
    };
    let fix = suggested.map_or_else(|| format!("{command} --help"), |name| format!("{command} {name}"));
    output.finish(&command, Err(Failure::new(code, Exit::Usage, message, fix)))
}

fn first_paragraph(text: &str) -> String {
    let lines = text.lines().map(str::trim).take_while(|line| !line.is_empty());
    let paragraph = lines.collect::<Vec<_>>().join(" ");
    paragraph.strip_prefix("error: ").unwrap_or(&paragraph).to_owned()
}

/// What the last panic said. A panic of a service's task is logged where it happens; one of the command itself also
/// ends it, and then the envelope tells.
static PANIC: Mutex<Option<String>> = Mutex::new(None);

fn guard(body: impl FnOnce() -> Ending) -> Ending {
    panic::set_hook(Box::new(|info| {
        let place = info.location().map(|at| format!(" at {}:{}", at.file(), at.line())).unwrap_or_default();
        let payload = info.payload();
        let text =
            payload.downcast_ref::<&str>().copied().or_else(|| payload.downcast_ref::<String>().map(String::as_str));
        let message = format!("{}{place}", text.unwrap_or("panic"));
        tracing::error!("panic: {message}");
        *PANIC.lock().unwrap_or_else(PoisonError::into_inner) = Some(message);
    }));
    panic::catch_unwind(AssertUnwindSafe(body)).unwrap_or_else(|_| {
        let message = PANIC.lock().unwrap_or_else(PoisonError::into_inner).take().unwrap_or_default();
        let fix = "Report this with the output of joelclaw config.";
        Ending::Outcome(Err(Failure::new("INTERNAL_ERROR", Exit::Internal, format!("internal fault: {message}"), fix)))
    })
}

/// Logs go to stderr. In pipes a command that works is silent there.
fn install_tracing(config: &Config, output: &Output, is_service: bool) {
    use tracing_subscriber::EnvFilter;
    use tracing_subscriber::layer::SubscriberExt as _;
    use tracing_subscriber::util::SubscriberInitExt as _;
    let default = match (output.is_verbose, output.is_quiet, is_service) {
        (true, _, _) => "info,system_bus=debug",
        (_, true, true) => "warn",
        (_, _, true) => "info",
        _ => "error",
    };
    let asked = config.system.log.as_deref();
    let (filter, is_bad) = match asked.map(EnvFilter::try_new) {
        Some(Ok(filter)) => (filter, false),
        Some(Err(_)) => (EnvFilter::new(default), true),
        None => (EnvFilter::new(default), false),
    };
    // A second call (a test in this process) keeps the first subscriber.
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(output.is_colored && std::io::stderr().is_terminal())
        .with_target(output.is_verbose);
    let _ =
        tracing_subscriber::registry().with(filter).with(crate::telemetry::metrics::logs::Count).with(lines).try_init();
    if is_bad {
        tracing::warn!("SYSTEM_BUS_LOG is no log filter; using {default}");
    }
}

#[cfg(test)]
mod tests;

//! `joelclaw up`, `serve` and `drainer`: the services. They run until they are told to stop.

use serde_json::json;

use super::Context;
use super::output::{Failure, NextAction, Report};
use super::render::Human;
use crate::service::{self, Options, Role, Started};

/// Run everything on this machine: Redis where none is configured, HTTP server, drainer
#[derive(Debug, Clone, clap::Args)]
#[command(
    after_help = "Examples:\n  joelclaw up\n  joelclaw --env-file ./my.env up\n\nCtrl-C or SIGTERM stops gracefully; a second one at once."
)]
pub struct UpArgs {
    #[command(flatten)]
    shared: SharedArgs,
}

/// Serve HTTP: webhooks, event API, health
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "Example:\n  joelclaw serve")]
pub struct ServeArgs {}

/// Dispatch events to their handlers, and nothing else
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "Example:\n  joelclaw drainer --concurrency 64")]
pub struct DrainerArgs {
    #[command(flatten)]
    shared: SharedArgs,
}

/// Flags of every command that drains.
#[derive(Debug, Clone, clap::Args)]
struct SharedArgs {
    /// Dispatches in flight (QUEUE_DRAINER_CONCURRENCY)
    #[arg(long, value_name = "N")]
    concurrency: Option<String>,
    /// An app to ask what it serves, until it answers; repeatable (INNGEST_SDK_URLS)
    #[arg(short = 'u', long = "sdk-url", value_name = "URL")]
    sdk_urls: Vec<String>,
    /// Seconds between attempts of a step, always the same (INNGEST_RETRY_INTERVAL)
    #[arg(long, value_name = "SECONDS")]
    retry_interval: Option<String>,
    /// A name in app URLs that stands for another host; repeatable (INNGEST_HOST_ALIASES)
    #[arg(long = "host-alias", value_name = "NAME=HOST")]
    host_aliases: Vec<String>,
    /// Drain although Redis's maxmemory-policy may evict whole lanes
    #[arg(long)]
    unsafe_eviction: bool,
}

impl UpArgs {
    /// Settings given as flags.
    pub fn flags(&self) -> Vec<(&'static str, Option<String>)> {
        self.shared.flags()
    }
}

impl DrainerArgs {
    /// Settings given as flags.
    pub fn flags(&self) -> Vec<(&'static str, Option<String>)> {
        self.shared.flags()
    }
}

impl SharedArgs {
    fn flags(&self) -> Vec<(&'static str, Option<String>)> {
        let joined = |list: &[String]| (!list.is_empty()).then(|| list.join(","));
        vec![
            ("QUEUE_DRAINER_CONCURRENCY", self.concurrency.clone()),
            ("INNGEST_SDK_URLS", joined(&self.sdk_urls)),
            ("INNGEST_RETRY_INTERVAL", self.retry_interval.clone()),
            ("INNGEST_HOST_ALIASES", joined(&self.host_aliases)),
        ]
    }
}

/// Runs `up`.
pub async fn up(args: &UpArgs, context: &Context) -> Result<Report, Failure> {
    let options = Options { unsafe_eviction: args.shared.unsafe_eviction, sources: context.sources.clone() };
    run(Role { http: true, drainer: true, managed_redis: true }, options, context).await
}

/// Runs `serve`.
pub async fn serve(_: &ServeArgs, context: &Context) -> Result<Report, Failure> {
    run(
        Role { http: true, drainer: false, managed_redis: false },
        Options { unsafe_eviction: false, sources: context.sources.clone() },
        context,
    )
    .await
}

/// Runs `drainer`.
pub async fn drainer(args: &DrainerArgs, context: &Context) -> Result<Report, Failure> {
    let options = Options { unsafe_eviction: args.shared.unsafe_eviction, sources: context.sources.clone() };
    run(Role { http: false, drainer: true, managed_redis: false }, options, context).await
}

async fn run(role: Role, options: Options, context: &Context) -> Result<Report, Failure> {
    let mut told = None;
    service::run(&context.config, role, options, |started| {
        announce(started, context);
        told = Some(started.clone());
    })
    .await?;
    let result = json!({ "ok": true, "stopped": true, "started": told });
    Ok(Report::new(result, Human::new().text("Stopped.")).next(NextAction::new("queue depth", "See what waits")))
}

/// One line on stderr that scripts may wait for.
fn announce(started: &Started, context: &Context) {
    let http = started.http.map(|address| format!("http://{address}"));
    tracing::info!(http, redis = started.redis, drainer = started.drainer, env_file = %context.config.env_file.display(), "ready");
}

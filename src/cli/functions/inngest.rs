//! `joelclaw inngest status`: whether the server runs, every app answers and both agree about the functions.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use serde_json::{Map, Value, json};

use super::super::Context;
use super::super::output::{Failure, NextAction, Report};
use super::super::queue::{bus, bus_to_change, redis_of};
use super::super::render::Human;
use super::{engine, snapshot};
use crate::diagnose::{Exit, chain};
use crate::functions::engine::Engine;
use crate::functions::engine::call;
use crate::functions::registry::{Snapshot, definition::same_url};
use crate::service::{engine_settings, running_service};
use crate::streams::bus::Bus;

/// How long one probe may take, ms, and the least that may be asked for.
const PROBE_MS: (u64, u64) = (1_500, 600);
/// The variable that says otherwise.
const PROBE_VARIABLE: &str = "JOELCLAW_HEALTH_PROBE_TIMEOUT_MS";

/// Look after what serves functions
#[derive(Debug, Clone, clap::Args)]
#[command(arg_required_else_help = true)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Clone, clap::Subcommand)]
enum Command {
    /// Whether the server runs, every app answers, and both agree about the functions
    Status(StatusArgs),
}

/// Whether the server runs, every app answers, and both agree about the functions
#[derive(Debug, Clone, clap::Args)]
#[command(
    after_help = "Examples:\n  joelclaw inngest status\n  joelclaw inngest status --heal   # make the registry agree with the apps\n\n\
                        Starts and restarts nothing: how an app is started is known to whoever runs it.
\
                        One probe may take JOELCLAW_HEALTH_PROBE_TIMEOUT_MS, 1500 unless set."
)]
struct StatusArgs {
    /// Make the registry agree with what the apps serve, then look again
    #[arg(long)]
    heal: bool,
    /// How long to wait before looking again
    #[arg(long, value_name = "MS", default_value_t = 1_500, requires = "heal",
          value_parser = clap::value_parser!(u64).range(200..=600_000))]
    wait_ms: u64,
}

/// Runs the command.
pub async fn run(args: &Args, context: &Context) -> Result<Report, Failure> {
    match &args.command {
        Command::Status(args) => status(args, context).await,
    }
}

async fn status(args: &StatusArgs, context: &Context) -> Result<Report, Failure> {
    let bus = if args.heal { bus_to_change(context).await? } else { bus(context)? };
    let engine = engine(&bus, context).await?;
    let mut look = look(&bus, &engine, context).await?;
    let mut healing = json!({ "requested": args.heal, "attempted": false, "reasons": [], "worker": {} });
    let mut before = Value::Null;
    if args.heal && !look.is_ok() {
        let reasons = look.problems();
        let worker = heal(&engine, &look).await;
        healing = json!({ "requested": true, "attempted": true, "reasons": reasons, "worker": worker });
        tokio::time::sleep(Duration::from_millis(args.wait_ms)).await;
        before = look.json();
        look = self::look(&bus, &engine, context).await?;
    }
    let mut result = look.json();
    result["healing"] = healing;
    result["before"] = before;
    result["redis"] = redis_of(&bus, context).await;

    let rows = look.probes.iter().map(|probe| {
        let mark = if probe.ok { "ok" } else { "fail" };
        vec![mark.to_owned(), probe.name.clone(), format!("{}ms", probe.ms), probe.detail.clone()]
    });
    let checks = look.checks();
    let judged = checks.iter().map(|(name, check)| {
        let mark = if check["ok"] == true { "ok" } else { "fail" };
        vec![mark.to_owned(), name.clone(), check["detail"].as_str().unwrap_or_default().to_owned()]
    });
    let human = Human::new()
        .table(&["", "CHECK", "DETAIL"], judged)
        .title("Probes")
        .table(&["", "WHAT", "TOOK", "FOUND"], rows);
    let mut report = Report::new(result, human);
    if !look.is_ok() {
        report = report.unhealthy(Exit::Unhealthy);
        if !args.heal && look.can_heal() {
            report = report.next(NextAction::new("inngest status --heal", "Make the registry agree with the apps"));
        }
        if !look.is_server_ok() {
            report = report.next(NextAction::new("up", "Start the server and the drainer"));
        }
    }
    Ok(report
        .next(NextAction::new("functions", "What there is, and what is wrong with it"))
        .next(NextAction::new("runs", "What ran lately")))
}

/// One probe as it went.
struct Probe {
    name: String,
    ok: bool,
    detail: String,
    ms: u128,
    url: Option<String>,
}

/// What one app said, held against the registry.
struct AppLook {
    /// As registered; of an app that is only configured, as it answered.
    name: Option<String>,
    url: String,
    problem: Option<String>,
    /// Slugs, where it told them.
    served: Option<BTreeSet<String>>,
    registered: BTreeSet<String>,
}

impl AppLook {
    fn missing(&self) -> Vec<&String> {
        self.served.iter().flat_map(|served| served.difference(&self.registered)).collect()
    }

    fn extra(&self) -> Vec<&String> {
        self.served.iter().flat_map(|served| self.registered.difference(served)).collect()
    }

    fn agrees(&self) -> bool {
        self.missing().is_empty() && self.extra().is_empty()
    }
}

/// Everything found.
struct Look {
    probes: Vec<Probe>,
    apps: Vec<AppLook>,
    /// Functions that some app is registered for.
    registered: usize,
    pid: Option<u32>,
}

async fn look(bus: &Bus, engine: &Engine, context: &Context) -> Result<Look, Failure> {
    let within = probe_time(context);
    let known = snapshot(bus).await?;
    let now = bus.now_ms().await?;
    let note = running_service(&context.config.system.data_dir);
    let own = own_url(context);
    let client = call::client(&engine_settings(&context.config)?.host_aliases).map_err(|error| {
        Failure::new("INTERNAL_ERROR", Exit::Internal, error, "Check the TLS roots of this system.")
    })?;

    let mut targets: Vec<(Option<String>, String)> =
        known.apps.iter().map(|(name, record)| (Some(name.clone()), record.app.url.clone())).collect();
    for url in &context.config.functions.app_urls {
        if !targets.iter().any(|(_, known)| same_url(known, url)) {
            targets.push((None, url.clone()));
        }
    }
    let external = context.config.inngest.url.as_ref().map(|url| format!("{}/health", url.trim_end_matches('/')));
    let (server, external, found) = tokio::join!(
        health(&client, "server", own, within),
        async {
            match external {
                Some(url) => Some(health(&client, "external", url, within).await),
                None => None,
            }
        },
        join_all(targets.iter().map(|(name, url)| app(engine, &known, name.as_ref(), url, within))),
    );
    let mut probes = vec![server];
    probes.push(Probe {
        name: "service".into(),
        ok: note.is_some(),
        detail: note.as_ref().map_or_else(
            || "no service of this machine has left its note".into(),
            |note| format!("pid {} uses {}", note.pid, note.redis_url),
        ),
        ms: 0,
        url: None,
    });
    let live = bus.sessions().await?.iter().filter(|session| session.expires_ms > now).count();
    probes.push(Probe {
        name: "drainer".into(),
        ok: live > 0,
        detail: format!("{live} drainer(s) alive"),
        ms: 0,
        url: None,
    });
    probes.extend(external);
    let mut apps = Vec::new();
    for (probe, app) in found {
        probes.push(probe);
        apps.push(app);
    }
    let registered = known.functions.keys().filter(|slug| known.is_served(slug)).count();
    Ok(Look { probes, apps, registered, pid: note.map(|note| note.pid) })
}

/// Where the server of this configuration listens, as seen from this machine.
fn own_url(context: &Context) -> String {
    let server = &context.config.server;
    let host = match server.bind {
        bind if bind.is_unspecified() => "127.0.0.1".to_owned(),
        IpAddr::V6(bind) => format!("[{bind}]"),
        IpAddr::V4(bind) => bind.to_string(),
    };
    format!("http://{host}:{}/health", server.port)
}

fn probe_time(context: &Context) -> Duration {
    let asked = context.sources.environment.get(PROBE_VARIABLE).and_then(|text| text.trim().parse().ok());
    Duration::from_millis(asked.unwrap_or(PROBE_MS.0).max(PROBE_MS.1))
}

async fn health(client: &reqwest::Client, name: &str, url: String, within: Duration) -> Probe {
    let began = Instant::now();
    let (ok, detail) = match tokio::time::timeout(within, client.get(&url).send()).await {
        Ok(Ok(response)) => {
            let status = response.status();
            (status.is_success(), format!("HTTP {} at {url}", status.as_u16()))
        }
        Ok(Err(error)) => (false, format!("{url}: {}", chain(&error.without_url()))),
        Err(_) => (false, format!("{url}: no answer within {} ms", within.as_millis())),
    };
    Probe { name: name.to_owned(), ok, detail, ms: began.elapsed().as_millis(), url: Some(url) }
}

async fn app(
    engine: &Engine,
    known: &Snapshot,
    name: Option<&String>,
    url: &str,
    within: Duration,
) -> (Probe, AppLook) {
    let began = Instant::now();
    let said = engine.look(url, within).await;
    let ms = began.elapsed().as_millis();
    let name = name.cloned().or_else(|| Some(said.as_ref().ok()?.as_ref()?.app.name.clone()));
    let is_own = |app: &str| name.as_ref().is_some_and(|name| name == app);
    let registered: BTreeSet<String> = known
        .functions
        .values()
        .filter(|function| is_own(&function.app) && known.is_served(&function.slug))
        .map(|function| function.slug.clone())
        .collect();
    let (detail, problem, served) = match said {
        Ok(Some(said)) => {
            let other = Some(&said.app.name).filter(|other| !is_own(other)).map(|other| format!(", as app {other}"));
            let served: BTreeSet<String> = said.functions.into_iter().map(|function| function.slug).collect();
            (format!("serves {} function(s) at {url}{}", served.len(), other.unwrap_or_default()), None, Some(served))
        }
        Ok(None) => (format!("answers at {url}, and registers by itself"), None, None),
        Err(problem) => (format!("{url}: {problem}"), Some(problem), None),
    };
    let label = name.clone().unwrap_or_else(|| url.to_owned());
    let probe = Probe { name: format!("app {label}"), ok: problem.is_none(), detail, ms, url: Some(url.to_owned()) };
    (probe, AppLook { name, url: url.to_owned(), problem, served, registered })
}

/// Registers what every app serves that answers. What each said.
async fn heal(engine: &Engine, look: &Look) -> Value {
    let asked = join_all(look.apps.iter().map(|app| engine.ask(&app.url, app.name.as_deref()))).await;
    let told = asked.into_iter().map(|one| {
        let name = one.app.clone().unwrap_or_else(|| one.url.clone());
        let said = json!({
            "url": one.url, "ok": one.problem.is_none(), "modified": one.modified, "functions": one.functions,
            "error": one.problem,
        });
        (name, said)
    });
    Value::Object(told.collect::<Map<_, _>>())
}

impl Look {
    fn probe(&self, name: &str) -> Option<&Probe> {
        self.probes.iter().find(|probe| probe.name == name)
    }

    fn is_server_ok(&self) -> bool {
        self.probe("server").is_some_and(|probe| probe.ok) && self.probe("drainer").is_some_and(|probe| probe.ok)
    }

    /// Some app answers and does not agree.
    fn can_heal(&self) -> bool {
        self.apps.iter().any(|app| app.problem.is_none() && !app.agrees())
    }

    /// The checks that decide, by name.
    fn checks(&self) -> Vec<(String, Value)> {
        let check = |ok: bool, detail: String| json!({ "ok": ok, "detail": detail });
        let told = |name: &str| self.probe(name).map_or_else(String::new, |probe| probe.detail.clone());
        let mut checks =
            vec![("server".to_owned(), check(self.is_server_ok(), format!("{}; {}", told("server"), told("drainer"))))];
        if let Some(external) = self.probe("external") {
            checks.push(("external".to_owned(), check(external.ok, external.detail.clone())));
        }
        let silent: Vec<String> = self
            .apps
            .iter()
            .filter_map(|app| Some(format!("{}: {}", app.name.as_ref().unwrap_or(&app.url), app.problem.as_ref()?)))
            .collect();
        checks.push((
            "worker".to_owned(),
            match (self.apps.len(), silent.is_empty()) {
                (0, _) => check(false, "no app has registered".into()),
                (n, true) => check(true, format!("{n} app(s) answer")),
                (_, false) => check(false, silent.join("; ")),
            },
        ));
        let (missing, extra) = self.differences();
        let is_agreed = missing.is_empty() && extra.is_empty();
        let detail = match (is_agreed, self.registered) {
            (true, n) => format!("{n} function(s) registered"),
            (false, _) => {
                let part = |what: &str, list: &[&String]| {
                    let names: Vec<&str> = list.iter().map(|slug| slug.as_str()).collect();
                    (!names.is_empty()).then(|| format!("{what}: {}", names.join(", ")))
                };
                let parts = [part("served but not registered", &missing), part("registered but not served", &extra)];
                parts.into_iter().flatten().collect::<Vec<_>>().join("; ")
            }
        };
        checks.push(("registry".to_owned(), check(is_agreed && self.registered > 0, detail)));
        checks
    }

    fn differences(&self) -> (Vec<&String>, Vec<&String>) {
        let missing = self.apps.iter().flat_map(AppLook::missing).collect();
        (missing, self.apps.iter().flat_map(AppLook::extra).collect())
    }

    fn is_ok(&self) -> bool {
        self.checks().iter().all(|(_, check)| check["ok"] == true)
    }

    fn problems(&self) -> Vec<String> {
        let bad = self.checks().into_iter().filter(|(_, check)| check["ok"] != true);
        bad.map(|(name, check)| format!("{name}: {}", check["detail"].as_str().unwrap_or_default())).collect()
    }

    fn json(&self) -> Value {
        let checks: Map<String, Value> = self.checks().into_iter().collect();
        let raw: Map<String, Value> = self
            .probes
            .iter()
            .map(|probe| {
                let found = json!({ "ok": probe.ok, "detail": probe.detail, "url": probe.url, "ms": probe.ms });
                (probe.name.clone(), found)
            })
            .collect();
        let is = |name: &str| checks.get(name).is_some_and(|check| check["ok"] == true);
        let (missing, extra) = self.differences();
        let answering: Vec<&AppLook> = self.apps.iter().filter(|app| app.problem.is_none()).collect();
        let served: usize = answering.iter().filter_map(|app| app.served.as_ref()).map(BTreeSet::len).sum();
        json!({
            "summary": {
                "server": is("server"),
                "worker": is("worker"),
                "workerEndpoint": answering.first().map(|app| app.url.as_str()),
                "workerK8s": null,
                "k8sCore": null,
                "route": if answering.is_empty() { "down" } else { "direct" },
                "ok": self.is_ok(),
            },
            "registeredFunctionCount": self.registered,
            "worker": {
                "reachable": !answering.is_empty(),
                "functionCount": served,
                "apps": self.apps.iter().map(|app| json!({
                    "app": app.name,
                    "url": app.url,
                    "reachable": app.problem.is_none(),
                    "error": app.problem,
                    "served": app.served.as_ref().map(BTreeSet::len),
                    "registered": app.registered.len(),
                    "agrees": app.served.as_ref().map(|_| app.agrees()),
                })).collect::<Vec<_>>(),
            },
            "registry": { "served": served, "registered": self.registered, "missing": missing, "extra": extra },
            "service": { "running": self.pid.is_some(), "pid": self.pid },
            "core_k8s": null,
            "talon": null,
            "checks": checks,
            "checks_raw": raw,
        })
    }
}

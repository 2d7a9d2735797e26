//! `GET /`: what this worker is and what it serves. Everything is read from what is in force; no list is kept by hand.
//!
//! Who is not of this machine is not told the names of functions and where the process runs.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Request, State};
use serde_json::{Map, Value, json};

use crate::config::Cidr;
use crate::functions::registry::Registry as Functions;
use crate::ingest::gateway::Gateway;
use crate::ingest::peer::Peer;
use crate::moment;
use crate::registry::watch::RegistryHandle;

/// What the answer is made from. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Worker(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    role: &'static str,
    started_at: String,
    trusted_proxies: Vec<Cidr>,
    functions: Functions,
    registry: RegistryHandle,
}

impl Worker {
    /// A worker that starts now, as `host` or `cluster`.
    #[must_use]
    pub fn new(is_host: bool, trusted_proxies: Vec<Cidr>, functions: Functions, registry: RegistryHandle) -> Self {
        let role = if is_host { "host" } else { "cluster" };
        Self(Arc::new(Inner { role, started_at: moment::now(), trusted_proxies, functions, registry }))
    }

    fn describe(&self, is_local: bool, body: &mut Value) {
        let Inner { role, started_at, functions, registry, .. } = &*self.0;
        let known = functions.current();
        let served: Vec<&String> = known.functions.keys().filter(|slug| known.is_served(slug)).collect();
        let count = served.len();
        // Registered is what an app really registered, not what was tried.
        let registered = known.apps.values().map(|app| app.synced_ms).max();
        let of = |name: &str| if *role == name { count } else { 0 };
        body["count"] = count.into();
        body["worker"] = json!({
            "role": role,
            "startedAt": started_at,
            "lastRegistrationAt": registered.and_then(moment::iso),
            "roleCounts": { "host": of("host"), "cluster": of("cluster"), "active": count },
            // A function is a key of the registry: there can't be two.
            "duplicateFunctionIds": [],
            "hasDuplicateFunctionIds": false,
        });
        let mut runtime = json!({
            "deploymentModel": "single-source",
            "legacyCloneDetected": false,
            "version": env!("CARGO_PKG_VERSION"),
            "pid": std::process::id(),
        });
        if is_local {
            body["functions"] = json!(served);
            runtime["cwd"] = std::env::current_dir().map(|path| path.display().to_string()).ok().into();
        }
        body["runtime"] = runtime;
        let table = registry.current();
        let mut events: Map<String, Value> = Map::new();
        for entry in table.entries() {
            let what = format!("{} to {}", entry.priority.label(), entry.handler.kind());
            events.insert(entry.pattern.to_string(), what.into());
        }
        body["events"] = events.into();
    }
}

/// What `GET /` needs.
#[derive(Debug, Clone)]
pub(super) struct Root {
    pub gateway: Gateway,
    pub worker: Option<Worker>,
}

pub(super) async fn root(State(root): State<Root>, request: Request) -> Json<Value> {
    let mut body = json!({
        "service": "system-bus",
        "status": "running",
        "version": env!("CARGO_PKG_VERSION"),
        "webhooks": { "endpoint": "/webhooks/:provider", "providers": root.gateway.senders().ids() },
        "eventApi": { "endpoint": "/e/:key" },
        "observability": { "ingestEndpoint": "/observability/emit" },
        "queue": { "admissionEndpoint": "/internal/queue/enqueue" },
        "health": { "live": "/health/live", "ready": "/health/ready" },
    });
    if let Some(worker) = &root.worker {
        let peer = Peer::of(request.extensions(), request.headers(), &worker.0.trusted_proxies);
        worker.describe(peer.is_local, &mut body);
    }
    Json(body)
}

//! Health: alive means that requests are answered, ready means that every named check passes.
//!
//! `/health/ready` answers `{"ok":bool,"checks":{"<name>":"ok" or what is wrong,"draining":bool}}` with 200 or 503. Beside
//! the checks stands what decides nothing, such as which providers have secrets.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use futures_util::future::{BoxFuture, join_all};
use serde_json::{Map, Value, json};
use tokio_util::sync::CancellationToken;

/// How long one check may take before it counts as failed.
const CHECK_TIMEOUT: Duration = Duration::from_secs(2);

/// One named check: what is wrong, if anything.
type Check = (&'static str, Arc<dyn Fn() -> BoxFuture<'static, Result<(), String>> + Send + Sync>);

/// What is told beside the checks.
type Detail = (&'static str, Arc<dyn Fn() -> Value + Send + Sync>);

/// What has to hold before this process wants traffic. Cheap to clone.
#[derive(Clone)]
pub struct Readiness {
    checks: Vec<Check>,
    details: Vec<Detail>,
    draining: CancellationToken,
}

impl fmt::Debug for Readiness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.checks.iter().map(|(name, _)| name)).finish()
    }
}

impl Readiness {
    /// No checks yet. Not ready from the moment `draining` is cancelled.
    #[must_use]
    pub fn new(draining: CancellationToken) -> Self {
        Self { checks: Vec::new(), details: Vec::new(), draining }
    }

    /// Adds a check. All run at the same time, at each request.
    #[must_use]
    pub fn with<F, R>(mut self, name: &'static str, check: F) -> Self
    where
        F: Fn() -> R + Send + Sync + 'static,
        R: Future<Output = Result<(), String>> + Send + 'static,
    {
        self.checks.push((name, Arc::new(move || Box::pin(check()))));
        self
    }

    /// Adds what is told and decides nothing.
    #[must_use]
    pub fn telling(mut self, name: &'static str, detail: impl Fn() -> Value + Send + Sync + 'static) -> Self {
        self.details.push((name, Arc::new(detail)));
        self
    }

    /// Runs all checks.
    pub async fn report(&self) -> (bool, Value) {
        let runs = self.checks.iter().map(|(name, check)| async move {
            let result = tokio::time::timeout(CHECK_TIMEOUT, check()).await;
            let result = result.unwrap_or_else(|_| Err(format!("no answer within {CHECK_TIMEOUT:?}")));
            (*name, result)
        });
        let results = join_all(runs).await;
        let draining = self.draining.is_cancelled();
        let ok = !draining && results.iter().all(|(_, result)| result.is_ok());
        let mut checks: Map<String, Value> = results
            .into_iter()
            .map(|(name, result)| (name.to_owned(), result.map_or_else(Value::from, |()| Value::from("ok"))))
            .collect();
        checks.extend(self.details.iter().map(|(name, detail)| ((*name).to_owned(), detail())));
        checks.insert("draining".into(), draining.into());
        (ok, json!({ "ok": ok, "checks": checks }))
    }

    pub(super) async fn answer(&self) -> Response {
        let (ok, body) = self.report().await;
        let status = if ok { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        (status, Json(body)).into_response()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn one_failed_or_silent_check_or_draining_is_not_ready() {
        let draining = CancellationToken::new();
        let good = Readiness::new(draining.clone()).with("redis", || async { Ok(()) });
        let good_report = good.report().await;
        let telling = good.clone().telling("secrets", || json!({ "github": "missing" })).report().await;
        assert_eq!((telling.0, &telling.1["checks"]["secrets"]["github"]), (true, &json!("missing")));
        assert_eq!(good_report, (true, json!({ "ok": true, "checks": { "redis": "ok", "draining": false } })));
        let bad = Readiness::new(CancellationToken::new())
            .with("redis", || async { Err("away".to_owned()) })
            .with("silent", std::future::pending);
        let (ok, report) = bad.report().await;
        assert!(!ok);
        assert_eq!(report["checks"], json!({ "redis": "away", "silent": "no answer within 2s", "draining": false }));
        draining.cancel();
        assert!(!good.report().await.0);
    }
}

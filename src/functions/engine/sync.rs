//! Asking every app what it serves: the registry heals itself (promise 9).
//!
//! Each app is asked at our start, on a timer, and soon after it did not answer or did not know a function. It is asked
//! in band: a PUT with `x-inngest-sync-kind: in_band`, whose answer holds the functions. An SDK that doesn't do that
//! registers by itself (`POST /fn/register`) while it is being asked; both end in [`Registry::register`].

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::super::registry::{Health, Registration, definition};
use super::{Engine, Error};
use crate::diagnose::chain;

/// How soon an app that did not answer is asked again.
const AGAIN: Duration = Duration::from_secs(2);
/// How long one app may take.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Longest answer, bytes.
const ANSWER_MAX: usize = 16 << 20;

/// What asking one app found.
#[derive(Debug, Clone, PartialEq)]
pub struct Asked {
    /// The app, where it is known.
    pub app: Option<String>,
    /// Where.
    pub url: String,
    /// The registry was changed by it.
    pub modified: bool,
    /// Functions that it serves, where it said so.
    pub functions: Option<usize>,
    /// Why it could not be asked.
    pub problem: Option<String>,
}

/// What an app answered.
enum Said {
    /// What it serves.
    Functions(Box<Registration>),
    /// Nothing: it registered by itself.
    Registered {
        /// That changed the registry.
        modified: bool,
    },
}

impl Engine {
    pub(super) async fn keep_apps_in_step(&self, stop: CancellationToken) {
        let mut pending: Vec<String> = self.settings().app_urls.clone();
        loop {
            let all_agree = match self.ask_all(&mut pending).await {
                Ok(all_agree) => all_agree,
                Err(error) => {
                    tracing::debug!(error = %error, "apps could not be asked");
                    false
                }
            };
            let wait = if all_agree { self.settings().sync_interval } else { AGAIN.min(self.settings().sync_interval) };
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(wait) => {}
                () = self.inner.drifted.notified() => {
                    // Many calls may say so at once.
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
            }
        }
    }

    /// Asks every registered app, and the URLs in `pending` until each has answered once. True when all agree.
    async fn ask_all(&self, pending: &mut Vec<String>) -> Result<bool, Error> {
        let registry = self.registry();
        let known = registry.load().await?;
        let mut health = registry.health().await?;
        let mut all_agree = true;
        for (name, record) in &known.apps {
            let asked = self.ask(&record.app.url, Some(name)).await;
            all_agree &= self.note(name, &asked, &mut health).await?;
            if asked.problem.is_none() {
                pending.retain(|url| !definition::same_url(url, &record.app.url));
            }
        }
        let urls = std::mem::take(pending);
        for url in urls {
            let asked = self.ask(&url, None).await;
            match asked.problem {
                None => tracing::info!(url, functions = asked.functions, "app answered"),
                Some(problem) => {
                    all_agree = false;
                    tracing::debug!(url, problem, "app not there yet");
                    pending.push(url);
                }
            }
        }
        Ok(all_agree)
    }

    async fn note(&self, name: &str, asked: &Asked, health: &mut BTreeMap<String, Health>) -> Result<bool, Error> {
        let now = self.runs().bus().now_ms().await?;
        let before = health.remove(name);
        let answered = asked.problem.is_none();
        let found = Health {
            asked_ms: now,
            seen_ms: if answered { Some(now) } else { before.as_ref().and_then(|before| before.seen_ms) },
            agrees: answered,
            problem: asked.problem.clone(),
            failures: if answered { 0 } else { before.as_ref().map_or(0, |before| before.failures).saturating_add(1) },
        };
        match (&before.and_then(|before| before.problem), &found.problem) {
            (None, Some(problem)) => tracing::warn!(app = name, problem, "the app does not say what it serves"),
            (Some(_), None) => tracing::info!(app = name, "the app answers again"),
            _ => {}
        }
        self.registry().set_health(name, &found).await?;
        Ok(answered)
    }

    /// Asks one app what it serves and makes the registry agree.
    pub async fn ask(&self, url: &str, app: Option<&str>) -> Asked {
        let base =
            Asked { app: app.map(str::to_owned), url: url.to_owned(), modified: false, functions: None, problem: None };
        match tokio::time::timeout(TIMEOUT, self.put(url, &base)).await {
            Ok(Ok(asked)) => asked,
            Ok(Err(problem)) => Asked { problem: Some(problem), ..base },
            Err(_) => Asked { problem: Some(format!("no answer within {} s", TIMEOUT.as_secs())), ..base },
        }
    }

    async fn put(&self, url: &str, base: &Asked) -> Result<Asked, String> {
        let registration = match self.fetch(url).await? {
            Said::Functions(registration) => registration,
            Said::Registered { modified } => return Ok(Asked { modified, ..base.clone() }),
        };
        let registered = self.registry().register(&registration).await.map_err(|error| chain(&error))?;
        Ok(Asked {
            app: Some(registration.app.name.clone()),
            modified: registered.modified,
            functions: Some(registration.functions.len()),
            ..base.clone()
        })
    }

    /// What one app says that it serves, without making the registry agree. `None` from an SDK that registers by itself
    /// instead of saying so; the error says why there is no answer.
    pub async fn look(&self, url: &str, within: Duration) -> Result<Option<Registration>, String> {
        match tokio::time::timeout(within.min(TIMEOUT), self.fetch(url)).await {
            Ok(Ok(Said::Functions(registration))) => Ok(Some(*registration)),
            Ok(Ok(Said::Registered { .. })) => Ok(None),
            Ok(Err(problem)) => Err(problem),
            Err(_) => Err(format!("no answer within {} ms", within.min(TIMEOUT).as_millis())),
        }
    }

    async fn fetch(&self, url: &str) -> Result<Said, String> {
        let body = serde_json_canonicalizer::to_string(&json!({ "url": url })).map_err(|error| error.to_string())?;
        let keys = &self.settings().keys;
        let kind = if keys.is_keyed() { "cloud" } else { "dev" };
        let mut request = self
            .inner
            .client
            .put(url)
            .header("content-type", "application/json")
            .header("x-inngest-server-kind", kind)
            .header("x-inngest-sync-kind", "in_band");
        if let Some(signature) = keys.sign(body.as_bytes(), chrono::Utc::now().timestamp()) {
            request = request.header("x-inngest-signature", signature);
        }
        let mut response = request.body(body).send().await.map_err(|error| {
            let reason = chain(&error.without_url());
            format!("it can't be reached: {reason}")
        })?;
        let status = response.status();
        let in_band = response.headers().get("x-inngest-sync-kind").is_some_and(|kind| kind == "in_band");
        let is_sdk = response.headers().contains_key("x-inngest-sdk")
            || response.headers().contains_key("x-inngest-sdk-handled");
        let mut text = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|error| chain(&error.without_url()))? {
            if text.len() + chunk.len() > ANSWER_MAX {
                return Err("its answer is too large".into());
            }
            text.extend_from_slice(&chunk);
        }
        let document: Value = serde_json::from_slice(&text).unwrap_or_default();
        if !status.is_success() {
            if status.as_u16() == 401 && is_sdk {
                return Err("it refused our signature: its signing key is not the one in use here".into());
            }
            let message = document.get("message").or_else(|| document.get("error")).and_then(Value::as_str);
            return Err(format!("it answered HTTP {}: {}", status.as_u16(), message.unwrap_or("no reason given")));
        }
        if !in_band {
            // It registered by itself while it was asked, or refused to do it in band.
            return match document.get("modified") {
                Some(modified) => Ok(Said::Registered { modified: modified == true }),
                None if is_sdk => Ok(Said::Registered { modified: false }),
                None => Err("what answers there is no Inngest SDK".into()),
            };
        }
        let registration = Registration::parse(&document, Some(url)).map_err(|error| error.to_string())?;
        Ok(Said::Functions(Box::new(registration)))
    }
}

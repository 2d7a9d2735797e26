//! The trace of a request that brings events: which context its events go on with, and its own span.
//!
//! The `traceparent` of a caller that we trust is the parent; that of anybody else is only a link, so that a stranger
//! can't write into our traces. Without an exporter there is no span of ours: the events go on with the caller's.

use std::net::IpAddr;
use std::time::SystemTime;

use axum::extract::{MatchedPath, Request, State};
use axum::middleware::Next;
use axum::response::Response;

use crate::config::{Cidr, TraceTrust};
use crate::ingest::caused_by::CausedBy;
use crate::ingest::gateway::ProviderTag;
use crate::ingest::peer::Peer;
use crate::streams::trace::TraceContext;
use crate::telemetry::spans::{HttpSpan, Spans};

/// Longest `tracestate`, bytes.
const LONGEST_STATE: usize = 512;

/// Whose contexts count, and where spans go.
#[derive(Debug, Clone)]
pub struct Tracing {
    /// Whose `traceparent` is taken for the parent.
    pub trust: TraceTrust,
    /// Proxies whose `x-forwarded-for` is believed.
    pub trusted_proxies: Vec<Cidr>,
    /// The exporter.
    pub spans: Option<Spans>,
}

impl Tracing {
    fn trusts(&self, request: &Request) -> bool {
        match self.trust {
            TraceTrust::All => true,
            TraceTrust::None => false,
            TraceTrust::Internal => {
                let peer = Peer::of(request.extensions(), request.headers(), &self.trusted_proxies);
                peer.is_local || (!peer.is_shared && is_private(peer.address))
            }
        }
    }
}

fn is_private(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_loopback() || address.is_private(),
        IpAddr::V6(address) => address.is_loopback() || address.is_unique_local(),
    }
}

/// What a caller says about the trace that it calls in.
struct Caller {
    parent: Option<TraceContext>,
    link: Option<TraceContext>,
    state: Option<String>,
}

impl Caller {
    fn of(request: &Request, tracing: &Tracing) -> Self {
        let header = |name: &str| request.headers().get(name).and_then(|value| value.to_str().ok());
        let remote = header("traceparent").and_then(|text| TraceContext::remote(text).ok());
        if remote.is_some() && tracing.trusts(request) {
            let state = header("tracestate").filter(|state| state.len() <= LONGEST_STATE).map(str::to_owned);
            return Self { parent: remote, link: None, state };
        }
        Self { parent: None, link: remote, state: None }
    }
}

/// For the routes that take events.
pub async fn follow(State(tracing): State<Tracing>, mut request: Request, next: Next) -> Response {
    let Caller { parent, link, state } = Caller::of(&request, &tracing);
    let Some(spans) = tracing.spans else {
        if let Some(context) = parent {
            request.extensions_mut().insert(CausedBy { context, state });
        }
        return next.run(request).await;
    };
    // A request has no name of its own.
    let name = uuid::Uuid::now_v7().to_string();
    let context = parent.map_or_else(|| TraceContext::root(&name), |parent| parent.child(&["request", &name]));
    request.extensions_mut().insert(CausedBy { context, state });
    let began = SystemTime::now();
    let method = request.method().to_string();
    let route = request.extensions().get::<MatchedPath>().map_or_else(String::new, |route| route.as_str().to_owned());
    let response = next.run(request).await;
    let status = response.status().as_u16();
    let provider = response.extensions().get::<ProviderTag>().map(|tag| tag.0);
    spans.record(HttpSpan { context, parent, link, began, ended: SystemTime::now(), method, route, provider, status });
    response
}

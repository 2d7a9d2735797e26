//! OTLP over gRPC, to real services of the protocol: records and spans of a drainer, with the headers asked for.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::cli_queue_support::Story;
use crate::support::eventually;
use opentelemetry_proto::tonic::collector::logs::v1::logs_service_server::{LogsService, LogsServiceServer};
use opentelemetry_proto::tonic::collector::logs::v1::{ExportLogsServiceRequest, ExportLogsServiceResponse};
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{TraceService, TraceServiceServer};
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

/// What arrived: event ids of records with their action, names of spans. The first export of each kind is refused.
#[derive(Debug, Default)]
struct Got {
    records: Vec<(String, String)>,
    spans: Vec<String>,
    refused: Vec<&'static str>,
}

#[derive(Debug, Clone, Default)]
struct Collector(Arc<Mutex<Got>>);

impl Collector {
    fn admit<T>(&self, request: Request<T>, kind: &'static str) -> Result<T, Status> {
        let token = request.metadata().get("x-collector-token").and_then(|value| value.to_str().ok());
        if token != Some("open sesame") {
            return Err(Status::unauthenticated("no token"));
        }
        let mut got = self.0.lock().unwrap();
        if !got.refused.contains(&kind) {
            got.refused.push(kind);
            return Err(Status::unavailable("not yet"));
        }
        Ok(request.into_inner())
    }
}

#[tonic::async_trait]
impl LogsService for Collector {
    async fn export(
        &self,
        request: Request<ExportLogsServiceRequest>,
    ) -> Result<Response<ExportLogsServiceResponse>, Status> {
        let message = self.admit(request, "logs")?;
        let scopes = message.resource_logs.into_iter().flat_map(|resource| resource.scope_logs);
        let records = scopes.flat_map(|scope| scope.log_records).map(|record| {
            let text = |key: &str| {
                let found = record.attributes.iter().find(|attribute| attribute.key == key);
                found.map(|attribute| format!("{:?}", attribute.value)).unwrap_or_default()
            };
            (text("system_bus.eventId"), text("event.name"))
        });
        self.0.lock().unwrap().records.extend(records);
        Ok(Response::new(ExportLogsServiceResponse::default()))
    }
}

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let message = self.admit(request, "traces")?;
        let scopes = message.resource_spans.into_iter().flat_map(|resource| resource.scope_spans);
        let names = scopes.flat_map(|scope| scope.spans).map(|span| span.name);
        self.0.lock().unwrap().spans.extend(names);
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

#[tokio::test]
async fn a_grpc_collector_that_refuses_at_first_gets_every_record_and_the_spans() {
    const EVENTS: usize = 20;
    let collector = Collector::default();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let stop = CancellationToken::new();
    let serving = tonic::transport::Server::builder()
        .add_service(LogsServiceServer::new(collector.clone()))
        .add_service(TraceServiceServer::new(collector.clone()))
        .serve_with_incoming_shutdown(
            tonic::transport::server::TcpIncoming::from(listener),
            stop.clone().cancelled_owned(),
        );
    let serving = tokio::spawn(serving);

    let mut story = Story::begin().await;
    story.joelclaw =
        story.joelclaw.registry("[[event]]\nname = \"test/good\"\nhandler = { type = \"local\", target = \"noop\" }\n");
    story.joelclaw.env_file_line("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint);
    story.joelclaw.env_file_line("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc");
    story.joelclaw.env_file_line("OTEL_EXPORTER_OTLP_HEADERS", "X-Collector-Token=open sesame");
    story.joelclaw.env_file_line("OTEL_TRACES_SAMPLER", "always_on");
    let drainer = story.joelclaw.spawn(&["drainer"]);
    for _ in 0..EVENTS {
        story.emit("test/good").await;
    }
    eventually(Duration::from_secs(30), || async {
        let got = collector.0.lock().unwrap();
        let ended = got.records.iter().filter(|(_, action)| action.contains("queue.dispatch.completed"));
        let ids: std::collections::HashSet<&String> = ended.map(|(id, _)| id).collect();
        let has_span = got.spans.iter().any(|name| name == "process test/good");
        let is_done = ids.len() == EVENTS && has_span && got.refused.len() == 2;
        if is_done { Ok(()) } else { Err(format!("{} records ended, {:?}", ids.len(), got.spans)) }
    })
    .await;
    drop(drainer);
    stop.cancel();
    serving.await.unwrap().unwrap();
}

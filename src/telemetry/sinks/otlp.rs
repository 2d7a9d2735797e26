//! OTLP logs: every event as a log record, over HTTP (protobuf) or gRPC, by the OpenTelemetry exporter.
//!
//! Severity 5, 9, 13, 17 and 21; `log.record.uid` is the event's id, the event name its action. The exporter has no queue of
//! ours: a batch that the endpoint did not take is taken again from the journal.

use std::collections::HashMap;
use std::time::{Duration, SystemTime};

use opentelemetry::logs::{AnyValue, LogRecord as _, Logger as _, LoggerProvider as _, Severity};
use opentelemetry::{InstrumentationScope, Key};
use opentelemetry_otlp::{LogExporter, Protocol, WithExportConfig as _, WithHttpConfig as _, WithTonicConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::logs::{LogBatch, LogExporter as _, SdkLogRecord, SdkLogger, SdkLoggerProvider};
use serde_json::Value;

use super::super::event::Event;
use super::{Batches, Failed, Sink};

/// Records in one export.
const MOST: usize = 512;

/// How the endpoint is spoken to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// HTTP with protobuf bodies.
    Http,
    /// gRPC.
    Grpc,
}

/// Where events go.
#[derive(Debug, Clone)]
pub struct Settings {
    /// `OTEL_EXPORTER_OTLP_ENDPOINT`.
    pub endpoint: String,
    /// How.
    pub transport: Transport,
    /// `OTEL_EXPORTER_OTLP_HEADERS`: `key=value,…`.
    pub headers: Vec<(String, secrecy::SecretString)>,
    /// How long one export may take.
    pub timeout: Duration,
    /// `service.name`.
    pub service: String,
    /// `host.name`.
    pub host: String,
    /// `service.instance.id`: of this process.
    pub instance: String,
}

impl Settings {
    /// The URL of one kind of data, over HTTP.
    pub(super) fn url(&self, path: &str) -> String {
        format!("{}/{path}", self.endpoint.trim_end_matches('/'))
    }

    /// The headers, for HTTP.
    pub(super) fn header_map(&self) -> HashMap<String, String> {
        use secrecy::ExposeSecret as _;
        self.headers.iter().map(|(name, value)| (name.clone(), value.expose_secret().to_owned())).collect()
    }

    /// The headers, for gRPC.
    pub(super) fn metadata(&self) -> tonic::metadata::MetadataMap {
        use secrecy::ExposeSecret as _;
        let mut metadata = tonic::metadata::MetadataMap::new();
        for (name, value) in &self.headers {
            let name = tonic::metadata::AsciiMetadataKey::from_bytes(name.to_ascii_lowercase().as_bytes());
            if let (Ok(name), Ok(value)) = (name, value.expose_secret().parse()) {
                metadata.insert(name, value);
            }
        }
        metadata
    }
}

/// The sink.
#[derive(Debug)]
pub struct Otlp {
    exporter: LogExporter,
    /// Makes records; exports nothing itself.
    logger: SdkLogger,
    scope: InstrumentationScope,
    timeout: Duration,
}

impl Otlp {
    /// A sink for an endpoint. Nothing is connected yet.
    pub fn new(settings: &Settings) -> Result<Self, Failed> {
        let built = match settings.transport {
            Transport::Http => LogExporter::builder()
                .with_http()
                .with_protocol(Protocol::HttpBinary)
                .with_endpoint(settings.url("v1/logs"))
                .with_timeout(settings.timeout)
                .with_headers(settings.header_map())
                .build(),
            Transport::Grpc => LogExporter::builder()
                .with_tonic()
                .with_endpoint(settings.endpoint.as_str())
                .with_timeout(settings.timeout)
                .with_metadata(settings.metadata())
                .build(),
        };
        let mut exporter = built.map_err(|error| Failed(format!("the OTLP endpoint can't be used: {error}")))?;
        exporter.set_resource(&resource(settings));
        let logger = SdkLoggerProvider::builder().build().logger("system-bus");
        let scope = InstrumentationScope::builder("system-bus").with_version(env!("CARGO_PKG_VERSION")).build();
        Ok(Self { exporter, logger, scope, timeout: settings.timeout })
    }

    fn record(&self, event: &Event) -> SdkLogRecord {
        let mut record = self.logger.create_log_record();
        let json = &event.json;
        let ms = json["timestamp"].as_u64().unwrap_or(event.id.batch.ms);
        let at = SystemTime::UNIX_EPOCH + Duration::from_millis(ms);
        record.set_timestamp(at);
        record.set_observed_timestamp(SystemTime::now());
        let (number, text) = match json["level"].as_str() {
            Some("fatal") => (Severity::Fatal, "FATAL"),
            Some("error") => (Severity::Error, "ERROR"),
            Some("debug") => (Severity::Debug, "DEBUG"),
            Some("warn") => (Severity::Warn, "WARN"),
            _ => (Severity::Info, "INFO"),
        };
        record.set_severity_number(number);
        record.set_severity_text(text);
        let action = json["action"].as_str().unwrap_or_default();
        record.set_body(AnyValue::from(json["error"].as_str().unwrap_or(action).to_owned()));
        record.add_attribute("log.record.uid", json["id"].as_str().unwrap_or_default().to_owned());
        record.add_attribute("event.name", action.to_owned());
        for key in ["component", "source", "systemId", "family", "eventId", "streamId", "runId"] {
            if let Some(text) = json[key].as_str() {
                record.add_attribute(format!("system_bus.{key}"), text.to_owned());
            }
        }
        record.add_attribute("system_bus.success", json["success"].as_bool().unwrap_or(true));
        if let Some(metadata) = json["metadata"].as_object() {
            for (key, value) in metadata {
                if let Some(value) = any(value) {
                    record.add_attribute(Key::from(format!("system_bus.metadata.{key}")), value);
                }
            }
        }
        record
    }
}

impl Sink for Otlp {
    const NAME: &'static str = "otlp";
    const IS_REQUIRED: bool = false;

    async fn write(&mut self, batches: Batches<'_>) -> Result<(), Failed> {
        for chunk in batches.events().chunks(MOST) {
            let records: Vec<SdkLogRecord> = chunk.iter().map(|event| self.record(event)).collect();
            let batch: Vec<(&SdkLogRecord, &InstrumentationScope)> =
                records.iter().map(|record| (record, &self.scope)).collect();
            let sent = tokio::time::timeout(
                self.timeout + Duration::from_secs(1),
                self.exporter.export(LogBatch::new(&batch)),
            );
            match sent.await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => return Err(Failed(format!("the OTLP endpoint did not take a batch: {error}"))),
                Err(_) => return Err(Failed(format!("the OTLP endpoint did not answer within {:?}", self.timeout))),
            }
        }
        Ok(())
    }
}

pub(super) fn resource(settings: &Settings) -> Resource {
    Resource::builder_empty()
        .with_attributes([
            opentelemetry::KeyValue::new("service.name", settings.service.clone()),
            opentelemetry::KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
            opentelemetry::KeyValue::new("host.name", settings.host.clone()),
            opentelemetry::KeyValue::new("service.instance.id", settings.instance.clone()),
        ])
        .build()
}

fn any(value: &Value) -> Option<AnyValue> {
    Some(match value {
        Value::Null => return None,
        Value::Bool(is_so) => AnyValue::Boolean(*is_so),
        Value::Number(number) => match number.as_i64() {
            Some(whole) => AnyValue::Int(whole),
            None => AnyValue::Double(number.as_f64()?),
        },
        Value::String(text) => AnyValue::from(text.clone()),
        Value::Array(values) => AnyValue::ListAny(Box::new(values.iter().filter_map(any).collect())),
        Value::Object(values) => {
            let pairs = values.iter().filter_map(|(key, value)| Some((Key::from(key.clone()), any(value)?)));
            AnyValue::Map(Box::new(pairs.collect()))
        }
    })
}

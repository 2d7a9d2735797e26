//! Trace context (W3C): who is the parent of what happens to an event.
//!
//! Span ids follow from what a span stands for (event, attempt, run), so that each process can name a span that another
//! one will export, and a span that is exported twice has one id. An event that came without a context starts a trace
//! whose id follows from the event's id. Format: <https://www.w3.org/TR/trace-context/>.

use std::fmt;
use std::str::FromStr;
use std::sync::OnceLock;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::envelope::Envelope;
use super::json::JsonObject;

/// A span, as others refer to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TraceContext {
    /// Not 0.
    pub trace_id: u128,
    /// Not 0.
    pub span_id: u64,
    /// Whether its spans are exported.
    pub is_sampled: bool,
}

/// Not a `traceparent`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a traceparent: 00-<32 hex digits>-<16 hex digits>-<2 hex digits>, ids not 0")]
pub struct NoContext;

impl fmt::Display for TraceContext {
    /// The value of a `traceparent` header.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{:032x}-{:016x}-{:02x}", self.trace_id, self.span_id, u8::from(self.is_sampled))
    }
}

impl FromStr for TraceContext {
    type Err = NoContext;

    /// Versions above 00 may have more parts; their first four are read.
    fn from_str(text: &str) -> Result<Self, NoContext> {
        let mut parts = text.trim().split('-');
        let mut part = |digits: usize| {
            let text = parts.next()?;
            let is_hex = text.len() == digits && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
            u128::from_str_radix(text, 16).ok().filter(|_| is_hex)
        };
        let (Some(version), Some(trace_id), Some(span_id), Some(flags)) = (part(2), part(32), part(16), part(2)) else {
            return Err(NoContext);
        };
        let is_whole = version != 0 || parts.next().is_none();
        let span_id = u64::try_from(span_id).map_err(|_| NoContext)?;
        if version == 0xff || !is_whole || trace_id == 0 || span_id == 0 {
            return Err(NoContext);
        }
        Ok(Self { trace_id, span_id, is_sampled: flags & 1 == 1 })
    }
}

/// Packed: 16 bytes of the trace id, 8 of the span id, 1 of flags.
impl Serialize for TraceContext {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut bytes = [0; 25];
        bytes[..16].copy_from_slice(&self.trace_id.to_be_bytes());
        bytes[16..24].copy_from_slice(&self.span_id.to_be_bytes());
        bytes[24] = u8::from(self.is_sampled);
        serializer.serialize_bytes(&bytes)
    }
}

impl<'de> Deserialize<'de> for TraceContext {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl serde::de::Visitor<'_> for Visitor {
            type Value = TraceContext;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("25 bytes")
            }
            fn visit_bytes<E: serde::de::Error>(self, bytes: &[u8]) -> Result<TraceContext, E> {
                let invalid = || E::invalid_length(bytes.len(), &self);
                let (trace, rest) = bytes.split_first_chunk::<16>().ok_or_else(invalid)?;
                let (span, rest) = rest.split_first_chunk::<8>().ok_or_else(invalid)?;
                let is_sampled = rest.first().ok_or_else(invalid)? & 1 == 1;
                Ok(TraceContext {
                    trace_id: u128::from_be_bytes(*trace),
                    span_id: u64::from_be_bytes(*span),
                    is_sampled,
                })
            }
        }
        deserializer.deserialize_bytes(Visitor)
    }
}

/// Which traces that begin here are exported.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Sampler {
    /// All.
    On,
    /// None.
    Off,
    /// This share of them, by their ids.
    Ratio(f64),
}

/// Of this process: every part that begins a trace must decide alike.
static SAMPLER: OnceLock<(Sampler, bool)> = OnceLock::new();

impl Sampler {
    /// Sets the sampler of this process, once. `follows_parent` says whether a context from outside decides for its
    /// trace. Until then a tenth of all traces are sampled, and a context from outside decides.
    pub fn install(self, follows_parent: bool) {
        let _ = SAMPLER.set((self, follows_parent));
    }

    fn keeps(self, trace_id: u128) -> bool {
        match self {
            Self::On => true,
            Self::Off => false,
            // As OpenTelemetry's TraceIdRatioBased: the lower half of the id below the share of its range.
            #[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation)]
            Self::Ratio(ratio) => ((trace_id as u64) >> 1) as f64 <= ratio * (u64::MAX >> 1) as f64 && ratio > 0.0,
        }
    }
}

fn keeps(trace_id: u128) -> bool {
    SAMPLER.get().map_or(Sampler::Ratio(0.1), |(sampler, _)| *sampler).keeps(trace_id)
}

impl TraceContext {
    /// The root of a trace for what has this name, e.g. an event's id.
    #[must_use]
    pub fn root(name: &str) -> Self {
        let digest = digest(&[b"trace", name.as_bytes()]);
        let trace_id = digest.first_chunk::<16>().map_or(1, |bytes| u128::from_be_bytes(*bytes)).max(1);
        let root = Self { trace_id, span_id: 1, is_sampled: keeps(trace_id) };
        root.child(&["root", name])
    }

    /// A context that came from outside.
    pub fn remote(text: &str) -> Result<Self, NoContext> {
        let mut remote: Self = text.parse()?;
        if let Some((sampler, false)) = SAMPLER.get() {
            remote.is_sampled = sampler.keeps(remote.trace_id);
        }
        Ok(remote)
    }

    /// The span of the same trace that stands for this.
    #[must_use]
    pub fn child(&self, of: &[&str]) -> Self {
        let trace = self.trace_id.to_be_bytes();
        let parts: Vec<&[u8]> =
            std::iter::once(trace.as_slice()).chain(of.iter().map(|part| part.as_bytes())).collect();
        let span = digest(&parts).first_chunk::<8>().map_or(1, |bytes| u64::from_be_bytes(*bytes)).max(1);
        Self { span_id: span, ..*self }
    }

    /// What the envelope says about who caused the event.
    #[must_use]
    pub fn of_envelope(envelope: &Envelope) -> Option<Self> {
        Self::of_object(envelope.trace.as_ref()?)
    }

    /// What the object says that an envelope holds.
    #[must_use]
    pub fn of_object(trace: &JsonObject) -> Option<Self> {
        Self::remote(trace.to_value().get("traceparent")?.as_str()?).ok()
    }

    /// The span of the event's append: the root of its trace where nobody is known to have caused it.
    #[must_use]
    pub fn send(event_id: &str, caused_by: Option<Self>) -> Self {
        match caused_by {
            Some(parent) => parent.child(&["send", event_id]),
            None => Self::root(event_id),
        }
    }

    /// The span of one try to dispatch the event.
    #[must_use]
    pub fn process(event_id: &str, caused_by: Option<Self>, attempt: u32) -> Self {
        Self::send(event_id, caused_by).child(&["process", event_id, &attempt.to_string()])
    }

    /// The object that an envelope holds.
    #[must_use]
    pub fn to_object(&self, state: Option<&str>) -> JsonObject {
        let mut object = serde_json::Map::from_iter([("traceparent".to_owned(), self.to_string().into())]);
        if let Some(state) = state {
            object.insert("tracestate".into(), state.into());
        }
        JsonObject::parse(&serde_json::Value::Object(object).to_string()).unwrap_or_default()
    }
}

/// Of all parts, none of which runs into the next.
fn digest(parts: &[&[u8]]) -> [u8; 32] {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update(u64::try_from(part.len()).unwrap_or(u64::MAX).to_be_bytes());
        hash.update(part);
    }
    hash.finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn a_traceparent_is_read_as_the_standard_says() {
        let context: TraceContext = TEXT.parse().unwrap();
        assert_eq!(context.to_string(), TEXT);
        assert!(context.is_sampled);
        assert!("cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00-more".parse::<TraceContext>().is_ok());
        for wrong in [
            "",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-x",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-+bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        ] {
            assert_eq!(wrong.parse::<TraceContext>(), Err(NoContext), "{wrong}");
        }
    }

    #[test]
    fn spans_have_the_ids_of_what_they_stand_for() {
        let parent: TraceContext = TEXT.parse().unwrap();
        let send = TraceContext::send("e1", Some(parent));
        assert_eq!((send.trace_id, send.is_sampled), (parent.trace_id, true));
        assert_eq!(send, TraceContext::send("e1", Some(parent)));
        let first = TraceContext::process("e1", Some(parent), 1);
        assert_ne!(first.span_id, TraceContext::process("e1", Some(parent), 2).span_id);
        let (one, two) = (TraceContext::send("e1", None), TraceContext::send("e2", None));
        assert_ne!(one.trace_id, two.trace_id);
        assert_eq!(TraceContext::process("e1", None, 1).trace_id, one.trace_id);
    }

    #[test]
    fn a_share_of_traces_is_sampled() {
        let kept = (0..10_000).filter(|n| Sampler::Ratio(0.1).keeps(TraceContext::root(&n.to_string()).trace_id));
        assert!((800..1200).contains(&kept.count()));
        assert!(!Sampler::Ratio(0.0).keeps(u128::MAX) && Sampler::On.keeps(1) && !Sampler::Off.keeps(1));
    }

    #[test]
    fn a_packed_context_survives_the_round_trip() {
        let context: TraceContext = TEXT.parse().unwrap();
        let bytes = rmp_serde::to_vec(&Some(context)).unwrap();
        assert_eq!(bytes.len(), 27);
        assert_eq!(rmp_serde::from_slice::<Option<TraceContext>>(&bytes).unwrap(), Some(context));
        assert_eq!(rmp_serde::from_slice::<Option<TraceContext>>(&[0xc0]).unwrap(), None);
    }
}

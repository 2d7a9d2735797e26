//! A source from the configuration: a sender that needs no code, because it follows Standard Webhooks or puts a MAC in
//! a header. See `docs/webhooks.md` for the file.
//!
//! | signature | Standard Webhooks, a MAC in a named header, or a list `t=…,v1=…` in one |
//! |---|---|
//! | event name | `<prefix>/<type>`, where the type is a header, a field, or `message` |
//! | event id | `<id>-<delivery>`, where the delivery is told by a header or a field; without one, the append's own |
//! | retries | as the file says |

use std::borrow::Cow;

use axum::http::HeaderMap;
use serde_json::{Map, Value};

use super::{DeliveryKey, NormalizedEvent, Provider, Sample, Skip, payload, standard};
use crate::ingest::fields::Fields;
use crate::ingest::signature::{Delivery, Scheme, Verified};
use crate::streams::json::JsonObject;

/// See the module. Made by [`crate::ingest::sources`].
#[derive(Debug, Clone)]
pub struct Source {
    /// Its id, in the URL.
    pub id: &'static str,
    /// What its events' names begin with.
    pub prefix: String,
    /// Its secret.
    pub variable: String,
    /// How it signs.
    pub scheme: Scheme,
    /// Whether it sends a delivery again.
    pub redelivers: bool,
    /// Where the delivery's id is.
    pub delivery: Option<Place>,
    /// Where the event's type is.
    pub kind: Option<Place>,
    /// The field that holds the payload; the whole body without.
    pub data: Option<String>,
}

/// Where a text is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// In a header.
    Header(String),
    /// In a field of the body; a dot goes into an object.
    Field(String),
}

impl Place {
    fn read(&self, delivery: &Delivery, body: &JsonObject) -> Option<String> {
        let text = match self {
            Self::Header(name) => delivery.header(name).map(|text| text.trim().to_owned()),
            Self::Field(path) => {
                let mut fields = Fields::parse(body.as_str()).unwrap_or_default();
                let (objects, last) = path.rsplit_once('.').unwrap_or(("", path));
                for object in objects.split('.').filter(|name| !name.is_empty()) {
                    fields = fields.object(object);
                }
                fields.first_text(&[last])
            }
        };
        text.filter(|text| !text.is_empty())
    }
}

impl Source {
    fn is_standard(&self) -> bool {
        self.scheme == Scheme::Standard
    }

    fn sent_id(&self, delivery: &Delivery, body: &JsonObject) -> Option<String> {
        if self.is_standard() {
            return Some(standard::sent_id(delivery));
        }
        self.delivery.as_ref()?.read(delivery, body)
    }
}

impl Provider for Source {
    fn id(&self) -> &'static str {
        self.id
    }

    fn event_prefix(&self) -> &str {
        &self.prefix
    }

    fn secrets(&self) -> Vec<Cow<'static, str>> {
        vec![self.variable.clone().into()]
    }

    fn signature(&self, _headers: &HeaderMap) -> (Scheme, Cow<'static, str>) {
        (self.scheme.clone(), self.variable.clone().into())
    }

    fn event_header(&self) -> Option<Cow<'static, str>> {
        match &self.kind {
            Some(Place::Header(name)) => Some(name.clone().into()),
            _ => None,
        }
    }

    fn redelivers(&self) -> bool {
        self.redelivers
    }

    fn delivery_key(&self, delivery: &Verified<Delivery>, body: &JsonObject) -> DeliveryKey {
        DeliveryKey::id_or_body(self.sent_id(delivery, body), delivery)
    }

    fn normalize(&self, delivery: &Verified<Delivery>, body: &JsonObject) -> Result<Vec<NormalizedEvent>, Skip> {
        let mut event = standard::event(self.id, delivery, body);
        if let Some(place) = &self.kind {
            event.name = place.read(delivery, body).ok_or(Skip::MissingType)?.into();
        } else if !self.is_standard() {
            event.name = "message".into();
        }
        if !self.is_standard() {
            event.id = self.sent_id(delivery, body).map(|id| format!("{}-{id}", self.id));
            let hook = Fields::parse(body.as_str()).unwrap_or_default();
            let own = self.data.as_ref().and_then(|field| hook.object_text(field));
            event.data = own.map_or_else(|| body.clone(), |text| payload(Some(text)));
        }
        Ok(vec![event])
    }

    fn sample(&self, nonce: &str) -> Sample {
        if self.is_standard() {
            return standard::sample(nonce);
        }
        let (mut body, mut headers) = (Map::new(), Vec::new());
        for (place, text) in [(&self.kind, "sample.sent"), (&self.delivery, nonce)] {
            match place {
                Some(Place::Header(name)) => headers.push((Cow::Owned(name.clone()), text.to_owned())),
                Some(Place::Field(path)) => put(&mut body, path, text),
                None => {}
            }
        }
        if let Some(field) = &self.data {
            body.entry(field).or_insert_with(|| Value::Object(Map::new()));
        }
        Sample { body: Value::Object(body).to_string(), headers }
    }
}

/// Sets the text at `path`, whose dots go into objects.
fn put(body: &mut Map<String, Value>, path: &str, text: &str) {
    match path.split_once('.') {
        None => drop(body.insert(path.to_owned(), text.into())),
        Some((object, rest)) => {
            let inner = body.entry(object).or_insert_with(|| Value::Object(Map::new()));
            if let Value::Object(inner) = inner {
                put(inner, rest, text);
            }
        }
    }
}

//! X: account activity. Cases: `tests/vectors/webhooks/x.json`.
//!
//! | signature | `x-twitter-webhooks-signature`: `sha256=` and base64 HMAC-SHA256 of the raw body |
//! |---|---|
//! | handshake | `GET ?crc_token=T` is answered with a MAC of `T`, made with the secret that signs deliveries |
//! | event id | account, kinds and ids of what happened, else the body's hash |
//! | replay | nothing signed carries a time that is checked: only the dedup window protects |
//! | retries | none |
//!
//! The handshake signs what anybody sends us, so a token that could be a delivery, or is long, is refused, and the
//! gateway answers ten a minute.

use std::borrow::Cow;

use axum::http::HeaderMap;
use serde_json::json;

use super::{Challenge, DeliveryKey, NormalizedEvent, Provider, Sample, SecretTable, Skip};
use crate::ingest::fields::{Fields, as_text, items, json_string, object_text};
use crate::ingest::signature::{Delivery, Encoding, Hash, Scheme, Verified, to_base64};
use crate::streams::json::JsonObject;

/// See the module.
#[derive(Debug, Clone, Copy)]
pub struct X;

const SECRET: &str = "X_CONSUMER_SECRET";
const MAX_TOKEN_BYTES: usize = 256;
/// Ids of what happened that the event id holds.
const MAX_IDS: usize = 10;
/// Kinds, in the order in which they are told.
const KINDS: [&str; 14] = [
    "tweet_create_events",
    "tweet_delete_events",
    "favorite_events",
    "follow_events",
    "unfollow_events",
    "block_events",
    "unblock_events",
    "mute_events",
    "unmute_events",
    "user_event",
    "direct_message_events",
    "direct_message_indicate_typing_events",
    "direct_message_mark_read_events",
    "replay_event",
];
const ID_KEYS: [&str; 6] = ["id", "id_str", "event_id", "tweet_id", "status_id", "job_id"];

impl Provider for X {
    fn id(&self) -> &'static str {
        "x"
    }

    fn secrets(&self) -> Vec<Cow<'static, str>> {
        vec![SECRET.into()]
    }

    fn signature(&self, _headers: &HeaderMap) -> (Scheme, Cow<'static, str>) {
        (Scheme::of_body("x-twitter-webhooks-signature", "sha256=", Hash::Sha256, Encoding::Base64), SECRET.into())
    }

    fn redelivers(&self) -> bool {
        false
    }

    fn challenge_get(&self, query: &str, secrets: &SecretTable) -> Option<Challenge> {
        let refused = |status, error: &str| Some(Challenge { status, body: json!({ "ok": false, "error": error }) });
        let token = form_urlencoded::parse(query.as_bytes()).find(|(name, _)| name == "crc_token");
        let Some((_, token)) = token.filter(|(_, token)| !token.is_empty()) else {
            return refused(400, "Missing crc_token");
        };
        if token.len() > MAX_TOKEN_BYTES || token.contains(['{', '[']) {
            return refused(400, "Invalid crc_token");
        }
        match secrets.get(SECRET).and_then(|secrets| secrets.sign_sha256(token.as_bytes())) {
            Some(mac) => {
                let body = json!({ "response_token": format!("sha256={}", to_base64(&mac)) });
                Some(Challenge { status: 200, body })
            }
            None => refused(503, "X consumer secret unavailable"),
        }
    }

    fn delivery_key(&self, delivery: &Verified<Delivery>, body: &JsonObject) -> DeliveryKey {
        let activity = Activity::of(delivery, body);
        match activity.ids.is_empty() {
            true => DeliveryKey::Hash(delivery.body_hash()),
            false => DeliveryKey::Id(activity.key()),
        }
    }

    fn normalize(&self, delivery: &Verified<Delivery>, body: &JsonObject) -> Result<Vec<NormalizedEvent>, Skip> {
        let activity = Activity::of(delivery, body);
        let webhook =
            ["x-twitter-webhooks-webhook-id", "x-webhook-id"].into_iter().find_map(|name| delivery.header(name));
        let user = activity.user.as_deref().map(json_string);
        let kinds = json!(activity.kinds()).to_string();
        let webhook = webhook.map(json_string);
        let hash = json_string(&activity.hash);
        let members = [
            ("source", Some("\"x-webhook\"")),
            ("forUserId", user.as_deref()),
            ("eventTypes", Some(kinds.as_str())),
            ("webhookId", webhook.as_deref()),
            ("payloadHash", Some(hash.as_str())),
            ("payload", Some(body.as_str())),
        ];
        let text = object_text(members.into_iter().filter_map(|(key, value)| Some((key, value?))));
        // One level deeper than the body was: at the limit of nesting there is no such event.
        let data = JsonObject::parse(&text).map_err(|_| Skip::InvalidEvent)?;
        let id = format!("x-account-activity-{}", activity.key());
        Ok(vec![NormalizedEvent::new("account_activity.received", id, data)])
    }

    fn sample(&self, nonce: &str) -> Sample {
        let body = json!({ "for_user_id": "1", "favorite_events": [{ "id": format!("sample-{nonce}") }] });
        Sample { body: body.to_string(), headers: Vec::new() }
    }
}

/// Who, what, and which.
struct Activity {
    user: Option<String>,
    kinds: Vec<&'static str>,
    ids: Vec<String>,
    /// 24 hex digits of the body's hash.
    hash: String,
}

impl Activity {
    fn of(delivery: &Delivery, body: &JsonObject) -> Self {
        let hook = Fields::parse(body.as_str()).unwrap_or_default();
        let kinds: Vec<&str> = KINDS.into_iter().filter(|kind| hook.iter().any(|(key, _)| key == *kind)).collect();
        let mut ids = Vec::new();
        for kind in &kinds {
            collect(hook.get(kind).unwrap_or_default(), &mut ids);
        }
        let user = hook.first_text(&["for_user_id"]).filter(|user| !user.is_empty());
        Self { user, kinds, ids, hash: delivery.body_hash()[..24].to_owned() }
    }

    fn kinds(&self) -> Vec<&'static str> {
        if self.kinds.is_empty() { vec!["account_activity"] } else { self.kinds.clone() }
    }

    fn key(&self) -> String {
        let user = self.user.as_deref().unwrap_or("unknown-user");
        let what = if self.ids.is_empty() { self.hash.clone() } else { self.ids.join("+") };
        format!("{user}-{}-{what}", self.kinds().join("+"))
    }
}

/// `<key>:<value>` of each id of each object, through arrays but never into an object's members.
fn collect(json: &str, ids: &mut Vec<String>) {
    if ids.len() >= MAX_IDS {
        return;
    }
    match json.as_bytes().first() {
        Some(b'[') => items(json).into_iter().for_each(|item| collect(item, ids)),
        Some(b'{') => {
            let object = Fields::parse(json).unwrap_or_default();
            for key in ID_KEYS {
                let value = object.get(key).map(as_text).unwrap_or_default();
                if !value.is_empty() && ids.len() < MAX_IDS {
                    ids.push(format!("{key}:{value}"));
                }
            }
        }
        _ => {}
    }
}

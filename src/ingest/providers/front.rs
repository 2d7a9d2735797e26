//! Front: messages and conversations, from rules and from applications. Cases: `tests/vectors/webhooks/front.json`.
//!
//! | | rules | applications |
//! |---|---|---|
//! | told by | no `x-front-request-timestamp` | `x-front-request-timestamp` |
//! | signature | base64 HMAC-SHA1 of the body, or of its compact form | base64 HMAC-SHA256 of `<timestamp>:<body>` |
//! | secret | `FRONT_RULES_WEBHOOK_SECRET` | `FRONT_APPLICATION_SECRET`; one never stands in for the other |
//! | replay | only the dedup window protects | the signed time, five minutes |
//! | handshake | – | a verified `x-front-challenge` is sent back as plain text |
//!
//! | event id | `front-<type>-<event>-<time>` |
//! |---|---|
//! | retries | with backoff |

use std::borrow::Cow;

use axum::http::HeaderMap;
use serde_json::json;

use super::{DeliveryKey, NormalizedEvent, Provider, Sample, Skip, h16, object, time_ms};
use crate::ingest::fields::{Fields, as_text, json_string, object_text};
use crate::ingest::html;
use crate::ingest::signature::{Delivery, Encoding, Hash, MacScheme, Scheme, Signed, Verified};
use crate::streams::json::JsonObject;

/// See the module.
#[derive(Debug, Clone, Copy)]
pub struct Front;

const RULES_SECRET: &str = "FRONT_RULES_WEBHOOK_SECRET";
const APPLICATION_SECRET: &str = "FRONT_APPLICATION_SECRET";
const SIGNATURE: &str = "x-front-signature";
const TIMESTAMP: &str = "x-front-request-timestamp";
const CHALLENGE: &str = "x-front-challenge";
const MAX_CHALLENGE_BYTES: usize = 1024;

/// Who uses a type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum By {
    Rules,
    Application,
}

/// Every type that we take, and the event that it stands for.
const TYPES: [(&str, By, &str); 24] = [
    ("inbound", By::Rules, "message.received"),
    ("inbound_received", By::Application, "message.received"),
    ("outbound", By::Rules, "message.sent"),
    ("outbound_sent", By::Application, "message.sent"),
    ("message_delivery_failed", By::Application, "message.failed"),
    ("move", By::Rules, "conversation.moved"),
    ("archive", By::Rules, "conversation.archived"),
    ("conversation_archived", By::Application, "conversation.archived"),
    ("reopen", By::Rules, "conversation.reopened"),
    ("conversation_reopened", By::Application, "conversation.reopened"),
    ("trash", By::Rules, "conversation.deleted"),
    ("conversation_deleted", By::Application, "conversation.deleted"),
    ("restore", By::Rules, "conversation.restored"),
    ("conversation_snoozed", By::Application, "conversation.snoozed"),
    ("conversation_snooze_expired", By::Application, "conversation.unsnoozed"),
    ("assign", By::Rules, "assignee.changed"),
    ("unassign", By::Rules, "assignee.changed"),
    ("assignee_changed", By::Application, "assignee.changed"),
    ("tag", By::Rules, "tag.added"),
    ("tag_added", By::Application, "tag.added"),
    ("untag", By::Rules, "tag.removed"),
    ("tag_removed", By::Application, "tag.removed"),
    ("comment", By::Rules, "comment.added"),
    ("new_comment_added", By::Application, "comment.added"),
];

impl Provider for Front {
    fn id(&self) -> &'static str {
        "front"
    }

    fn secrets(&self) -> Vec<Cow<'static, str>> {
        vec![RULES_SECRET.into(), APPLICATION_SECRET.into()]
    }

    fn signature(&self, headers: &HeaderMap) -> (Scheme, Cow<'static, str>) {
        if headers.contains_key(TIMESTAMP) {
            return (Scheme::timed(SIGNATURE, Encoding::Base64, TIMESTAMP, ":"), APPLICATION_SECRET.into());
        }
        let scheme = Scheme::Mac(MacScheme {
            header: SIGNATURE.into(),
            prefix: "".into(),
            hash: Hash::Sha1,
            encoding: Encoding::Base64,
            signed: Signed::Compact,
        });
        (scheme, RULES_SECRET.into())
    }

    fn redelivers(&self) -> bool {
        true
    }

    fn challenge_post(&self, delivery: &Verified<Delivery>) -> Option<String> {
        // Only an application signs the time with it.
        let challenge = delivery.header(TIMESTAMP).and_then(|_| delivery.header(CHALLENGE))?;
        let is_plain = challenge.len() <= MAX_CHALLENGE_BYTES && challenge.bytes().all(|b| b.is_ascii_graphic());
        is_plain.then(|| challenge.to_owned())
    }

    fn delivery_key(&self, delivery: &Verified<Delivery>, body: &JsonObject) -> DeliveryKey {
        let hook = Hook::of(body);
        match hook.stamp() {
            Some(stamp) => DeliveryKey::Id(hook.id(&stamp)),
            None => DeliveryKey::Hash(delivery.body_hash()),
        }
    }

    fn normalize(&self, delivery: &Verified<Delivery>, body: &JsonObject) -> Result<Vec<NormalizedEvent>, Skip> {
        let hook = Hook::of(body);
        if hook.kind.is_empty() {
            return Err(Skip::MissingType);
        }
        let name = hook.name.ok_or(Skip::UnmappedType)?;
        let (name, data) = match name {
            "message.received" | "message.sent" => hook.message(name),
            "message.failed" => (name, hook.failed()),
            "assignee.changed" => (name, hook.assignee()),
            "comment.added" => (name, hook.comment()),
            "tag.added" | "tag.removed" => (name, hook.tag()),
            _ => (name, hook.conversation()),
        };
        let stamp = hook.stamp().unwrap_or_else(|| h16(delivery));
        Ok(vec![NormalizedEvent::new(name, hook.id(&stamp), data)])
    }

    fn own_time_ms(&self, delivery: &Verified<Delivery>, body: &JsonObject) -> Option<i64> {
        // An application's signature covers a time.
        let is_timed = delivery.headers.contains_key(TIMESTAMP);
        time_ms(&Hook::of(body).stamp()?).filter(|_| !is_timed)
    }

    fn sample(&self, nonce: &str) -> Sample {
        let body = json!({
            "type": "archive",
            "id": format!("evt_{nonce}"),
            "emitted_at": 1_790_000_000,
            "conversation": { "id": "cnv_sample", "subject": "Sample" },
        });
        Sample { body: body.to_string(), headers: Vec::new() }
    }
}

/// A body, with the parts of it that all events read.
struct Hook<'a> {
    body: Fields<'a>,
    kind: String,
    name: Option<&'static str>,
    /// `payload` of an application's event, else the body; its text, and its members.
    own_text: &'a str,
    own: Fields<'a>,
    conversation: Fields<'a>,
    target: Fields<'a>,
}

impl<'a> Hook<'a> {
    fn of(body: &'a JsonObject) -> Self {
        let text = body.as_str();
        let body = Fields::parse(text).unwrap_or_default();
        let kind = body.text("type");
        let known = TYPES.iter().find(|(known, _, _)| *known == kind);
        let is_application = known.is_some_and(|(_, by, _)| *by == By::Application);
        let own_text = if is_application { body.object_text("payload").unwrap_or("{}") } else { text };
        let own = Fields::parse(own_text).unwrap_or_default();
        let conversation = match own.object_text("conversation") {
            None if is_application => own.clone(),
            _ => own.object("conversation"),
        };
        let target = own.object("target").object("data");
        Self { kind, name: known.map(|(_, _, name)| *name), own_text, own, conversation, target, body }
    }

    /// When it happened, as it is written.
    fn stamp(&self) -> Option<String> {
        self.body.first_text(&["emitted_at", "ts"]).filter(|stamp| !stamp.is_empty())
    }

    fn id(&self, stamp: &str) -> String {
        let id = self.own.first_text(&["id"]).or_else(|| self.body.first_text(&["id"])).unwrap_or_default();
        let id = if id.is_empty() { self.conversation.text("id") } else { id };
        format!("front-{}-{id}-{stamp}", self.kind)
    }

    fn message(&self, name: &'static str) -> (&'static str, JsonObject) {
        let target = &self.target;
        let attachments = target.items("attachments").len();
        let plain = plain_text(target, attachments);
        let Some(plain) = plain else { return ("message.quarantined", self.quarantined()) };
        let recipients: Vec<Fields<'_>> =
            target.items("recipients").into_iter().map(|one| Fields::parse(one).unwrap_or_default()).collect();
        let of_role = |role: &'static str| recipients.iter().filter(move |one| one.text("role") == role);
        let from = of_role("from").next();
        let author = || target.object("author").text("email");
        let to: Vec<String> = of_role("to").map(|one| one.text("handle")).collect();
        let subject = target.first_text(&["subject"]).or_else(|| self.conversation.first_text(&["subject"]));
        let blurb = html::collapsed(&target.text("blurb"));
        let mut data = json!({
            "conversationId": self.conversation.text("id"),
            "messageId": target.text("id"),
            "from": from.and_then(|from| from.first_text(&["handle"])).unwrap_or_else(author),
            "fromName": from.map(|from| from.text("name")).unwrap_or_default(),
            "to": to,
            "subject": subject.unwrap_or_default(),
            "body": target.text("body"),
            "bodyPlain": plain,
            "preview": if blurb.is_empty() { plain.clone() } else { blurb },
            "isInbound": name == "message.received",
            "attachmentCount": attachments,
        });
        if let (Some(at), Some(data)) = (created_at(target), data.as_object_mut()) {
            data.insert("createdAt".to_owned(), at.into());
        }
        (name, object(data))
    }

    /// A message in which we find nothing to read is told, never dropped in silence.
    fn quarantined(&self) -> JsonObject {
        let mut keys: Vec<&str> = self.target.iter().map(|(key, _)| key).collect();
        keys.sort_unstable();
        keys.dedup();
        object(json!({
            "conversationId": self.conversation.text("id"),
            "messageId": self.target.text("id"),
            "eventType": self.kind,
            "reason": "missing-message-text",
            "payloadKeys": keys,
        }))
    }

    fn conversation(&self) -> JsonObject {
        object(json!({
            "conversationId": self.conversation.text("id"),
            "subject": self.conversation.text("subject"),
        }))
    }

    fn assignee(&self) -> JsonObject {
        let names = [self.target.text("first_name"), self.target.text("last_name")];
        let names: Vec<&str> = names.iter().map(|name| name.trim()).filter(|name| !name.is_empty()).collect();
        object(json!({
            "conversationId": self.conversation.text("id"),
            "assigneeEmail": self.target.text("email"),
            "assigneeName": names.join(" "),
            "isUnassign": self.kind == "unassign",
        }))
    }

    fn comment(&self) -> JsonObject {
        object(json!({
            "conversationId": self.conversation.text("id"),
            "commentBody": self.target.text("body"),
            "authorEmail": self.target.object("author").text("email"),
        }))
    }

    fn tag(&self) -> JsonObject {
        object(json!({
            "conversationId": self.conversation.text("id"),
            "tagName": self.target.text("name"),
            "tagId": self.target.text("id"),
        }))
    }

    fn failed(&self) -> JsonObject {
        let id = json_string(&self.conversation.text("id"));
        let text = object_text([("conversationId", id.as_str()), ("raw", self.own_text)]);
        JsonObject::parse(&text).unwrap_or_default()
    }
}

/// What a person would read; `None` when there is nothing at all.
fn plain_text(target: &Fields<'_>, attachments: usize) -> Option<String> {
    let texts = [
        html::collapsed(&target.text("text")),
        html::collapsed(&target.text("blurb")),
        html::collapsed(&html::to_text(&target.text("body"))),
    ];
    let note = match attachments {
        0 => None,
        1 => Some("[Attachment-only message: 1 attachment]".to_owned()),
        n => Some(format!("[Attachment-only message: {n} attachments]")),
    };
    texts.into_iter().find(|text| !text.is_empty()).or(note)
}

/// Ms since the epoch, where the message says when it was made.
fn created_at(target: &Fields<'_>) -> Option<i64> {
    let text = ["created_at", "createdAt", "received_at"].iter().find_map(|key| target.get(key)).map(as_text)?;
    let text = text.trim();
    let ms = match text.parse::<f64>() {
        #[expect(clippy::cast_possible_truncation, reason = "a cast of a float saturates")]
        Ok(number) if number.is_finite() => (if number > 1e12 { number } else { number * 1000.0 }) as i64,
        Ok(_) => return None,
        Err(_) => chrono::DateTime::parse_from_rfc3339(text).ok()?.timestamp_millis(),
    };
    (ms > 0).then_some(ms)
}

//! Anything that anybody may send: a property for each provider's parser, and for the parser of signatures.
//!
//! In the suite each runs a fixed number of inputs. By hand without limit:
//! `PROPTEST_CASES=10000000 cargo nextest run --release webhooks_fuzz`; a failure prints its smallest input.

use std::sync::OnceLock;

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use base64::Engine as _;
use bytes::Bytes;
use proptest::collection::vec;
use proptest::prelude::*;
use serde_json::Value;
use system_bus::ingest::fields::Fields;
use system_bus::ingest::providers::{Provider, Senders};
use system_bus::ingest::signature::{Clock, Delivery, Scheme, Verified};
use system_bus::streams::json::JsonObject;

use crate::ingest_support::senders;

const NOW: i64 = 1_790_000_000;
const CLOCK: Clock = Clock { now_s: NOW, tolerance_s: 300 };
const SEED: [u8; 32] = [9; 32];
const WHSEC: &str = "whsec_AQIDBAUGBwgJCgsMDQ4PEBESExQVFhcYGRobHB0eHyA=";

/// Every provider, and the two kinds of sources, with a secret each.
fn all() -> &'static Senders {
    static ALL: OnceLock<Senders> = OnceLock::new();
    ALL.get_or_init(|| {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("webhooks.toml");
        std::fs::write(
            &file,
            "[[source]]\nid = \"shop\"\nscheme = \"hmac\"\nsignature_header = \"x-shop-signature\"\nid_field = \"meta.id\"\n\
             type_field = \"topic\"\ndata_field = \"data\"\n[[source]]\nid = \"timed\"\nscheme = \"hmac\"\n\
             signature_header = \"x-timed-signature\"\nencoding = \"base64\"\ntimestamp_header = \"x-timed-timestamp\"\n\
             signed = \"v0:{timestamp}:{body}\"\ntype_header = \"x-timed-type\"\n[[source]]\nid = \"listed\"\n\
             scheme = \"list\"\nsignature_header = \"x-listed-signature\"\n",
        )
        .unwrap();
        let key = Ed25519KeyPair::from_seed_unchecked(&SEED).unwrap();
        let public = base64::engine::general_purpose::STANDARD.encode(key.public_key().as_ref());
        senders(&[
            ("WEBHOOK_SOURCES", "crm"),
            ("WEBHOOK_SOURCES_FILE", file.to_str().unwrap()),
            ("WEBHOOK_SOURCE_CRM_SECRET", WHSEC),
            ("WEBHOOK_SOURCE_SHOP_SECRET", "s"),
            ("WEBHOOK_SOURCE_TIMED_SECRET", "s"),
            ("WEBHOOK_SOURCE_LISTED_SECRET", "s"),
            ("VERCEL_WEBHOOK_SECRET", "s"),
            ("FRONT_RULES_WEBHOOK_SECRET", "s"),
            ("FRONT_APPLICATION_SECRET", "a"),
            ("TODOIST_CLIENT_SECRET", "s"),
            ("GITHUB_WEBHOOK_SECRET", "s"),
            ("GITHUB_WEBHOOK_PASSTHROUGH", "push,issues"),
            ("MUX_WEBHOOK_SECRET", "s"),
            ("JOELCLAW_WEBHOOK_SECRET", "s"),
            ("TELNYX_PUBLIC_KEY", &public),
            ("X_CONSUMER_SECRET", "s"),
            ("STANDARD_WEBHOOK_SECRET", WHSEC),
        ])
    })
}

/// Names that parsers look for: what is under them is what they trip over.
const KEYS: [&str; 48] = [
    "type",
    "id",
    "name",
    "data",
    "payload",
    "event_name",
    "event_data",
    "event_data_extra",
    "event_type",
    "action",
    "workflow_run",
    "workflow",
    "repository",
    "package",
    "package_version",
    "head_repository",
    "conversation",
    "target",
    "recipients",
    "role",
    "handle",
    "text",
    "blurb",
    "body",
    "attachments",
    "created_at",
    "emitted_at",
    "ts",
    "subject",
    "author",
    "email",
    "deployment",
    "meta",
    "links",
    "regions",
    "project",
    "createdAt",
    "triggered_at",
    "labels",
    "initiator",
    "tweet_create_events",
    "favorite_events",
    "for_user_id",
    "id_str",
    "item_id",
    "topic",
    "timestamp",
    "full_name",
];

/// Values that select a branch.
const WORDS: [&str; 22] = [
    "deployment.succeeded",
    "inbound",
    "inbound_received",
    "message_delivery_failed",
    "unassign",
    "tag_added",
    "comment",
    "conversation_archived",
    "item:completed",
    "note:added",
    "video.asset.ready",
    "video.",
    "call.initiated",
    "message.received",
    "completed",
    "published",
    "from",
    "to",
    "discovery/noted",
    "inngest/x",
    "<p>a&amp;<br></p>",
    "<script",
];

fn leaf() -> impl Strategy<Value = String> {
    prop_oneof![
        Just("null".to_owned()),
        any::<bool>().prop_map(|b| b.to_string()),
        any::<i64>().prop_map(|n| n.to_string()),
        any::<f64>().prop_filter_map("finite", |n| n.is_finite().then(|| format!("{n:e}"))),
        "-?(0|[1-9][0-9]{0,30})(\\.[0-9]{1,20})?([eE][-+]?[0-9]{1,5})?",
        proptest::sample::select(&WORDS[..]).prop_map(|word| Value::from(word).to_string()),
        "\\PC{0,24}".prop_map(|text| Value::from(text).to_string()),
        any::<String>().prop_map(|text| Value::from(text).to_string()),
        Just("\"\\ud83d\"".to_owned()),
    ]
}

fn key() -> impl Strategy<Value = String> {
    prop_oneof![4 => proptest::sample::select(&KEYS[..]).prop_map(str::to_owned), 1 => "\\PC{0,8}"]
}

fn json_text() -> impl Strategy<Value = String> {
    leaf().prop_recursive(5, 64, 6, |inner| {
        let member = (key(), inner.clone()).prop_map(|(key, value)| format!("{}: {value}", Value::from(key)));
        prop_oneof![
            1 => vec(inner, 0..5).prop_map(|items| format!("[{}]", items.join(" ,"))),
            3 => vec(member, 0..8).prop_map(|members| format!("{{{}}}", members.join(",\n"))),
        ]
    })
}

/// Bodies of the published vectors.
fn published() -> &'static Vec<String> {
    static BODIES: OnceLock<Vec<String>> = OnceLock::new();
    BODIES.get_or_init(|| {
        let files = [
            include_str!("../vectors/webhooks/front.json"),
            include_str!("../vectors/webhooks/github.json"),
            include_str!("../vectors/webhooks/joelclaw.json"),
            include_str!("../vectors/webhooks/mux.json"),
            include_str!("../vectors/webhooks/standard.json"),
            include_str!("../vectors/webhooks/telnyx.json"),
            include_str!("../vectors/webhooks/todoist.json"),
            include_str!("../vectors/webhooks/vercel.json"),
            include_str!("../vectors/webhooks/x.json"),
        ];
        let files = files.iter().map(|text| serde_json::from_str::<Value>(text).unwrap());
        files
            .flat_map(|file| file["vectors"].as_array().unwrap().clone())
            .filter_map(|vector| vector["request"]["body"].as_str().map(str::to_owned))
            .collect()
    })
}

fn body() -> impl Strategy<Value = Vec<u8>> {
    let object = vec((key(), json_text()), 0..8).prop_map(|members| {
        let members: Vec<String> =
            members.into_iter().map(|(key, value)| format!("{}:{value}", Value::from(key))).collect();
        format!("{{{}}}", members.join(",")).into_bytes()
    });
    let changed =
        (proptest::sample::select(&published()[..]), any::<prop::sample::Index>(), vec(any::<u8>(), 0..4), 0..4usize)
            .prop_map(|(body, at, new, gone)| {
                let mut bytes = body.into_bytes();
                let at = at.index(bytes.len().max(1)).min(bytes.len());
                bytes.splice(at..(at + gone).min(bytes.len()), new);
                bytes
            });
    prop_oneof![
        4 => object,
        3 => changed,
        1 => json_text().prop_map(String::into_bytes),
        1 => vec(any::<u8>(), 0..64),
        1 => (1..140usize).prop_map(|depth| format!("{}1{}", "{\"data\":".repeat(depth), "}".repeat(depth)).into_bytes()),
    ]
}

fn header_text() -> impl Strategy<Value = String> {
    prop_oneof![
        "[ -~]{0,90}",
        "(sha256=|v0=|v1,|v1a,|t=)?[0-9a-fA-F]{38,66}",
        "(sha256=|v1,|v1a,)?[A-Za-z0-9+/]{26,88}={0,2}",
        "t=1790000000,v1=[0-9a-f]{64}(,v1=[0-9a-f]{0,64})?",
        Just(NOW.to_string()),
        "[0-9]{0,20}",
        Just(String::new()),
    ]
}

/// Every header that any provider reads.
const HEADERS: [&str; 28] = [
    "x-hub-signature-256",
    "x-github-event",
    "x-github-delivery",
    "x-front-signature",
    "x-front-request-timestamp",
    "x-front-challenge",
    "x-vercel-signature",
    "x-todoist-hmac-sha256",
    "x-todoist-delivery-id",
    "mux-signature",
    "x-joelclaw-signature",
    "x-joelclaw-timestamp",
    "x-joelclaw-delivery",
    "telnyx-signature-ed25519",
    "telnyx-timestamp",
    "x-twitter-webhooks-signature",
    "x-webhook-id",
    "webhook-id",
    "webhook-timestamp",
    "webhook-signature",
    "svix-id",
    "svix-timestamp",
    "svix-signature",
    "content-type",
    "x-shop-signature",
    "x-timed-signature",
    "x-timed-timestamp",
    "x-listed-signature",
];

fn headers() -> impl Strategy<Value = HeaderMap> {
    let text = prop_oneof![
        header_text(),
        proptest::sample::select(vec!["workflow_run", "package", "push", "ping", "application/x-www-form-urlencoded"])
            .prop_map(str::to_owned),
    ];
    vec((proptest::sample::select(&HEADERS[..]), text), 0..12).prop_map(|pairs| {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(HeaderName::from_static(name), HeaderValue::try_from(value).unwrap());
        }
        headers
    })
}

/// `body` as the provider would sign it, over these headers; `None` where it can't.
fn signed(provider: &dyn Provider, mut headers: HeaderMap, body: &[u8]) -> Option<Verified<Delivery>> {
    // Those of the signature are the provider's own.
    for name in
        HEADERS.iter().filter(|name| name.contains("signature") || name.contains("hmac") || name.contains("svix"))
    {
        headers.remove(*name);
    }
    for name in ["webhook-id", "webhook-timestamp", "x-timed-timestamp", "telnyx-timestamp"] {
        headers.remove(name);
    }
    let (scheme, secrets) = all().signature(provider, &headers);
    let secrets = secrets.unwrap();
    let made = match scheme {
        Scheme::Ed25519 { .. } => {
            let key = Ed25519KeyPair::from_seed_unchecked(&SEED).unwrap();
            let text = [NOW.to_string().as_bytes(), b"|", body].concat();
            let signature = base64::engine::general_purpose::STANDARD.encode(key.sign(&text).as_ref());
            vec![("telnyx-signature-ed25519".to_owned(), signature), ("telnyx-timestamp".to_owned(), NOW.to_string())]
        }
        _ => scheme.sign(body, secrets, NOW, "msg_1")?,
    };
    for (name, value) in made {
        headers.insert(HeaderName::try_from(name).unwrap(), HeaderValue::try_from(value).unwrap());
    }
    let delivery = Delivery { headers, raw: Bytes::copy_from_slice(body) };
    let (scheme, secrets) = all().signature(provider, &delivery.headers);
    Some(scheme.verify(delivery, secrets.unwrap(), CLOCK).expect("what was signed is believed"))
}

/// Nothing panics, and what comes out is an event.
fn parse(id: &str, headers: HeaderMap, body: &[u8]) -> Result<(), TestCaseError> {
    let provider = all().find(id).unwrap();
    let Some(delivery) = signed(&*provider, headers, body) else { return Ok(()) };
    let Some(text) = provider.json(&delivery) else { return Ok(()) };
    let Ok(object) = JsonObject::parse(&text) else { return Ok(()) };
    prop_assert!(!provider.delivery_key(&delivery, &object).as_str().is_empty());
    if let Some(challenge) = provider.challenge_post(&delivery) {
        prop_assert!(challenge.len() <= 1024 && challenge.bytes().all(|b| b.is_ascii_graphic()));
    }
    let first = provider.normalize(&delivery, &object);
    for event in first.iter().flatten() {
        prop_assert!(!event.name.is_empty());
        prop_assert!(event.id.as_ref().is_none_or(|id| !id.is_empty()));
        prop_assert!(JsonObject::parse(event.data.as_str()).is_ok());
        prop_assert!(Fields::parse(event.data.as_str()).is_ok());
    }
    prop_assert_eq!(first, provider.normalize(&delivery, &object), "the same delivery is the same events");
    Ok(())
}

/// No body passes without its signature: not with headers of anybody's making, not with those of another body.
fn refuse(id: &str, headers: HeaderMap, body: &[u8], other: &[u8]) -> Result<(), TestCaseError> {
    let provider = all().find(id).unwrap();
    let raw = Bytes::copy_from_slice(body);
    let check = |headers: HeaderMap| {
        let (scheme, secrets) = all().signature(&*provider, &headers);
        scheme.verify(Delivery { headers, raw: raw.clone() }, secrets.unwrap(), CLOCK).is_ok()
    };
    prop_assert!(!check(headers.clone()));
    let compact = |bytes: &[u8]| std::str::from_utf8(bytes).ok().and_then(system_bus::ingest::fields::compact);
    let is_other = body != other && (compact(body).is_none() || compact(body) != compact(other));
    if let Some(signed) = signed(&*provider, headers, other).filter(|_| is_other) {
        prop_assert!(!check(signed.headers.clone()));
    }
    Ok(())
}

macro_rules! targets {
    ($($name:ident = $id:literal;)*) => {$(
        mod $name {
            use super::*;
            proptest! {
                #[test]
                fn parser(headers in headers(), body in body()) {
                    parse($id, headers, &body)?;
                }

                #[test]
                fn signature(headers in headers(), body in body(), other in body()) {
                    refuse($id, headers, &body, &other)?;
                }
            }
        }
    )*};
}

targets! {
    crm = "crm";
    front = "front";
    github = "github";
    joelclaw = "joelclaw";
    listed = "listed";
    mux = "mux";
    shop = "shop";
    standard = "standard";
    telnyx = "telnyx";
    timed = "timed";
    todoist = "todoist";
    vercel = "vercel";
    x = "x";
}

#[test]
fn every_provider_has_a_target() {
    let known = [
        "crm", "front", "github", "joelclaw", "listed", "mux", "shop", "standard", "telnyx", "timed", "todoist",
        "vercel", "x",
    ];
    let mut ids = all().ids();
    ids.sort_unstable();
    assert_eq!(ids, known);
}

proptest! {
    #[test]
    fn the_handshake_of_x_signs_no_delivery(query in "[ -~]{0,300}", token in "\\PC{0,300}") {
        let x = all().find("x").unwrap();
        for query in [query, format!("crc_token={}", form_urlencoded::byte_serialize(token.as_bytes()).collect::<String>())] {
            let challenge = x.challenge_get(&query, &all().secrets).unwrap();
            let token = form_urlencoded::parse(query.as_bytes()).find(|(name, _)| name == "crc_token");
            let token = token.map(|(_, token)| token.into_owned()).unwrap_or_default();
            if challenge.status == 200 {
                prop_assert!(JsonObject::parse(&token).is_err());
            }
        }
    }
}

//! `joelclaw explain <CODE>`: what a code means and what to do. One table for all codes that anything here emits.

use serde_json::json;

use super::output::{Failure, NextAction, Report};
use super::render::Human;
use crate::config::nearest;
use crate::diagnose::Exit;

/// Explain an error code; without one, list them all
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "Examples:\n  joelclaw explain REDIS_UNREACHABLE\n  joelclaw explain")]
pub struct Args {
    /// A code from an error or a warning
    code: Option<String>,
}

struct Code {
    code: &'static str,
    means: &'static str,
    fix: &'static str,
}

const fn code(code: &'static str, means: &'static str, fix: &'static str) -> Code {
    Code { code, means, fix }
}

/// In alphabetical order.
const CODES: &[Code] = &[
    code(
        "AMBIGUOUS_FUNCTION",
        "Several functions are called so; the message lists them.",
        "Give the slug, as `joelclaw functions` shows it.",
    ),
    code(
        "AMBIGUOUS_ID",
        "Several events match the id; the message lists them.",
        "Use more characters, or the event id where two lanes share a stream id.",
    ),
    code(
        "APP_DISAGREES",
        "An app serves other functions than are registered, or does not say what it serves.",
        "Ask it with `joelclaw refresh`; the message says why it could not be asked.",
    ),
    code(
        "APP_MOVED",
        "A second URL registered an app of the same name, and its calls go there now.",
        "Give each app an id of its own, or stop the one that is not wanted.",
    ),
    code("APP_NOT_FOUND", "No app of this name has registered.", "See the apps with `joelclaw functions`."),
    code(
        "APP_SILENT",
        "An app did not answer when it was last asked. Its runs wait, nothing is lost.",
        "Start it, or see what it answers with `joelclaw inngest status`.",
    ),
    code(
        "BENCH_FAILED",
        "Something that was to be measured did not start or did not answer.",
        "Read the message; for `bench functions`, node must be on the PATH.",
    ),
    code(
        "BENCH_TOO_SLOW",
        "A measured rate is below what was asked for.",
        "Compare with the raw ceiling that the bench prints: a loaded machine or a slow disk shows there too.",
    ),
    code(
        "BIND_FAILED",
        "The address of the HTTP server can't be used.",
        "Set WORKER_BIND to an address of this machine, and WORKER_PORT to a port its user may open.",
    ),
    code("CODE_UNKNOWN", "No such code exists.", "List them with `joelclaw explain`."),
    code(
        "CONFIG_FILE_LINE",
        "A line of the env file is neither KEY=value nor a comment. It is ignored; its text is not shown because it may be a secret.",
        "Correct the line whose number the warning names: a quote may not be closed.",
    ),
    code(
        "CONFIG_FILE_MODE",
        "The env file holds secrets and others on this machine may read it.",
        "Run the `chmod 600` that the warning shows.",
    ),
    code(
        "CONFIG_FILE_UNREADABLE",
        "The env file can't be read. It must be readable when --env-file or SYSTEM_BUS_ENV_FILE names it; the usual one may be missing.",
        "Name an existing file, or correct its permissions.",
    ),
    code(
        "CONFIG_INVALID_VALUE",
        "A setting has a value that is not accepted; its default is used.",
        "See `joelclaw config --docs` for what is accepted.",
    ),
    code(
        "CONFIG_REDIS_HOST",
        "Redis was chosen by REDIS_HOST and REDIS_PORT, which can't name a password, a database or TLS.",
        "Put REDIS_URL in the env file that the warning names.",
    ),
    code(
        "CONFIG_REDIS_MISMATCH",
        "The env file and the environment name different Redis servers. The file's is used, so that commands act on the Redis that the service uses.",
        "Unset REDIS_URL in the shell, or make both the same.",
    ),
    code(
        "CONFIG_REDIS_URL_INVALID",
        "The Redis URL can't be read. No other Redis is used in its place.",
        "Write redis://user:password@host:6379/0, rediss://… or unix:///path/redis.sock; % encode special characters.",
    ),
    code("CONFIG_SECRET_FILE", "A file of secrets can't be read.", "Make it readable for the user of the service."),
    code(
        "CONFIG_UNKNOWN_KEY",
        "The env file has a key with one of our prefixes that is no setting: most likely a typo.",
        "Correct the key; `joelclaw config --docs` lists all.",
    ),
    code("CONFIRMATION_REQUIRED", "The command would remove something for good.", "Repeat it with --yes."),
    code(
        "DEAD_LETTER_NOT_FOUND",
        "There is no dead letter of an endpoint with this id: it was redriven, dropped, or never there.",
        "See the ids with `joelclaw webhooks dlq list`.",
    ),
    code(
        "ENDPOINT_ADDRESS_REFUSED",
        "The address of an endpoint is not public, or http is asked for: events are not sent into networks that only this machine can reach.",
        "Use a public https URL, or open an exception with WEBHOOK_ALLOWED_SUBNETS.",
    ),
    code(
        "ENDPOINT_CHANGED",
        "Somebody else changed the endpoint between look and change; nothing was done.",
        "Look at it with `joelclaw webhooks endpoints show`, then repeat the command.",
    ),
    code(
        "ENDPOINT_INVALID_CONDITION",
        "A condition of --where is not understood.",
        "Write a path into the data, an operator and a value; see docs/webhooks-outbound.md.",
    ),
    code(
        "ENDPOINT_INVALID_FILTER",
        "The condition of an endpoint is not CEL, or names something else than `event`.",
        "Write a condition over `event`, such as event.data.amount > 100.",
    ),
    code(
        "ENDPOINT_INVALID_HEADER",
        "A header of an endpoint can't be sent, or is one that we set ourselves.",
        "Give headers as 'Name: value'; webhook-*, Host and Content-Type are ours.",
    ),
    code(
        "ENDPOINT_INVALID_PATTERN",
        "A pattern is not made of the characters of event names and `*`, or there is none.",
        "Give patterns such as github/* or content/updated.",
    ),
    code(
        "ENDPOINT_INVALID_RATE",
        "The limit of an endpoint is no rate.",
        "Give requests per second, between 0.001 and 1000.",
    ),
    code(
        "ENDPOINT_INVALID_SECRET",
        "The secret is not one of Standard Webhooks.",
        "Leave it out: one is made and shown once.",
    ),
    code(
        "ENDPOINT_INVALID_TRANSFORM",
        "A part of --pick, --rename or --template is not understood.",
        "Give JSON pointers below /data; see docs/webhooks-outbound.md.",
    ),
    code(
        "ENDPOINT_INVALID_URL",
        "The URL of an endpoint can't be posted to.",
        "Give an https URL with a host and without user and password.",
    ),
    code(
        "ENDPOINT_NOT_FOUND",
        "There is no endpoint with this id.",
        "See the ids with `joelclaw webhooks endpoints list`.",
    ),
    code(
        "EVENT_KEY_MISSING",
        "INNGEST_URL names an external server but INNGEST_EVENT_KEY is not set, so every dispatch there would fail.",
        "Set INNGEST_EVENT_KEY, or unset INNGEST_URL.",
    ),
    code(
        "EVENT_NOT_FOUND",
        "No such event is stored: it was trimmed, or never sent.",
        "See the latest ones with `joelclaw events`.",
    ),
    code(
        "EVENT_UNMATCHED",
        "The event is stored, but no function and no route wants it, so it started nothing.",
        "See with `joelclaw functions` what would start something; it is kept until something wants it.",
    ),
    code(
        "FUNCTION_NOT_FOUND",
        "No app serves a function of this name.",
        "See them with `joelclaw functions`; an app that was started lately is found by `joelclaw refresh`.",
    ),
    code(
        "FUNCTION_WARNING",
        "A function was registered in a way that most likely is a mistake, such as a constant key without quotes.",
        "Change its definition as the message says.",
    ),
    code("INPUT_UNREADABLE", "A file of events or data can't be read.", "Name a readable file, or - for stdin."),
    code(
        "INTERNAL_ERROR",
        "A fault of this program.",
        "Report it with the output of `joelclaw config`, which shows no secrets.",
    ),
    code(
        "INVALID_EVENT_ID",
        "The event id is too long or holds control characters.",
        "Use 1 to 200 bytes without control characters, or leave the id out.",
    ),
    code("INVALID_EVENT_NAME", "The event name is not usable.", "Use a name such as content/updated."),
    code(
        "INVALID_EXPRESSION",
        "The condition is no expression, or looks at what there is not: `event` is all there is.",
        "Correct it at the character named; quote texts inside it.",
    ),
    code("INVALID_FIELD", "A source, dedup key or time breaks its rule.", "Correct the field that the message names."),
    code(
        "INVALID_JSON",
        "The data is no JSON; the message has the position.",
        "Check quoting: -d '{\"n\":1}', or -d @file.",
    ),
    code("INVALID_PRIORITY", "The priority is none of P0 to P3.", "Use P0 (now) to P3 (whenever)."),
    code("INVALID_SCENARIO", "The bench has no such scenario.", "See `joelclaw bench --help`."),
    code(
        "INVALID_SINCE",
        "The time is neither a timestamp, an ISO-8601 time nor an age.",
        "Use for example --since 15m or --since 2026-03-07T19:33:05Z.",
    ),
    code(
        "INVALID_SNAPSHOT",
        "A line of standard input is no snapshot of the observer.",
        "Give one snapshot as JSON a line, as the journal's `queue.observe.snapshot` records hold it.",
    ),
    code(
        "INVALID_STATUS",
        "Runs with this status can't be changed so.",
        "Use one of the statuses that the message names.",
    ),
    code("NOT_AN_OBJECT", "Event data has to be a JSON object.", "Wrap the value: {\"items\":[1]}."),
    code(
        "NOT_DURABLE",
        "The event is appended but not confirmed as safely as was asked for.",
        "Check appendfsync or the replicas, then repeat it with the same id.",
    ),
    code(
        "NO_SERVICE_MANAGER",
        "This machine has neither launchd nor systemd.",
        "Let whatever supervises processes here run `joelclaw up`.",
    ),
    code(
        "OTEL_EMIT_FAILED",
        "A telemetry event could be written neither to Redis nor to the outbox.",
        "Bring Redis back, or make room in the outbox (OTEL_OUTBOX_DIR).",
    ),
    code(
        "OTEL_INVALID_ARGS",
        "What `joelclaw otel` was given makes no event: no action, or a field of the wrong kind.",
        "See `joelclaw otel emit --help`.",
    ),
    code(
        "OTEL_QUERY_FAILED",
        "The journal could not be read for `joelclaw otel list` or `search`.",
        "See what `joelclaw doctor` says.",
    ),
    code(
        "OTEL_STATS_FAILED",
        "The journal could not be read for `joelclaw otel stats`.",
        "See what `joelclaw doctor` says.",
    ),
    code(
        "OTHER_PLATFORM",
        "The files of another platform can be shown here, not installed.",
        "Add --print, or leave --platform out.",
    ),
    code(
        "PORT_IN_USE",
        "Another process has the port of the HTTP server: most likely a second service.",
        "Stop the other process, or set WORKER_PORT.",
    ),
    code(
        "QUEUE_ACK_LEASED",
        "A drainer is working on the entry.",
        "Wait for it, or use --force if that drainer is gone for good.",
    ),
    code(
        "QUEUE_ACK_TOO_YOUNG",
        "The age asked for is less than the oldest live drainer has run, so what is about to be dispatched would be acknowledged too.",
        "Use the age that the error names, or --force.",
    ),
    code(
        "QUEUE_CONTROL_INVALID_TTL",
        "A pause lasts from 60 s to the configured maximum.",
        "Use for example --ttl 10m.",
    ),
    code(
        "QUEUE_CONTROL_NOT_IN_FORCE",
        "The family has no such priority or pace to end.",
        "See what is in force with `joelclaw queue control status`.",
    ),
    code(
        "QUEUE_CONTROL_STATUS_FAILED",
        "The state of the pauses can't be read.",
        "Check Redis with `joelclaw config`.",
    ),
    code("QUEUE_FAMILY_NOT_PAUSED", "There is no pause to end.", "See `joelclaw queue control status`."),
    code(
        "QUEUE_FULL",
        "Redis uses more memory than the queue may fill. Nothing was appended; pausing, acknowledging and redriving still work.",
        "Let the drainer catch up, shorten QUEUE_RETAIN, or raise QUEUE_MEMORY_BUDGET or maxmemory.",
    ),
    code(
        "QUEUE_MESSAGE_MISSING",
        "No such entry is stored: it was completed and trimmed, acknowledged, or never appended.",
        "Look for its id with `joelclaw queue list`.",
    ),
    code(
        "QUEUE_OBSERVE_FAILED",
        "The queue can't be looked at, so the observer has nothing to judge.",
        "Check Redis with `joelclaw config`; then try again.",
    ),
    code(
        "QUEUE_PAUSE_SHORTER",
        "The family is paused for longer than the new pause would hold it.",
        "Add --yes to replace it all the same.",
    ),
    code(
        "QUEUE_PLAN_CHANGED",
        "The entries are not those of the dry run any more.",
        "Look at the dry run again, then use its planHash.",
    ),
    code(
        "QUEUE_STATS_FAILED",
        "The figures of the queue can't be read.",
        "Check Redis with `joelclaw config`; then try again.",
    ),
    code(
        "QUEUE_UNDO_EXPIRED",
        "The batch is unknown, was undone before, or its time is over.",
        "See what it acknowledged with `joelclaw queue tail --since 1h`.",
    ),
    code("REASON_REQUIRED", "The change is recorded and needs a reason.", "Add --reason with a few words."),
    code(
        "REDIS_DATA_IN_USE",
        "Another process may be using the data of the managed Redis, so no second one is started on it.",
        "Run the `ps` or `lsof` that the error shows, and stop that process.",
    ),
    code(
        "REDIS_DIRECTORY_UNUSABLE",
        "The directory of the managed Redis can't hold its data or its socket.",
        "Set SYSTEM_BUS_DATA_DIR to a short path of yours on a disk with room.",
    ),
    code(
        "REDIS_EVICTS",
        "This Redis may drop keys when it is full, and with them accepted events; draining is refused.",
        "Set `maxmemory-policy noeviction`, or accept losses with --unsafe-eviction.",
    ),
    code(
        "REDIS_INSTANCE_MISMATCH",
        "The command reaches another data set than the running service uses, so a change would have no effect there. Nothing was changed.",
        "See `joelclaw config` for what chose the Redis; unset REDIS_URL in the shell, or correct the env file.",
    ),
    code(
        "REDIS_NOT_EMPTY",
        "The bench was given a Redis that holds keys, and would remove them.",
        "Leave --throwaway-redis out: the bench starts its own.",
    ),
    code(
        "REDIS_REFUSED",
        "Redis answered a command with an error.",
        "Read the message; the user may lack a permission, or Redis may be read-only or out of memory.",
    ),
    code(
        "REDIS_SERVER_MISSING",
        "No redis-server or valkey-server is installed.",
        "Install one, or set REDIS_URL to a server that runs elsewhere.",
    ),
    code(
        "REDIS_SERVER_NOT_STARTED",
        "The managed Redis ended while it started, or was not ready in time.",
        "Read the end of its log, which the error names.",
    ),
    code(
        "REDIS_SERVER_NOT_STOPPED",
        "The managed Redis does not end: it hangs in the kernel, often on its disk.",
        "Check the disk; end the process once it answers.",
    ),
    code(
        "REDIS_SERVER_TOO_OLD",
        "The installed Redis server lacks commands that the queue needs.",
        "Install Redis 7.0 or newer, or Valkey 8 or newer.",
    ),
    code(
        "REDIS_SERVER_UNUSABLE",
        "SYSTEM_BUS_REDIS_SERVER names something that is no Redis server.",
        "Set it to a Redis server, or unset it.",
    ),
    code(
        "REDIS_START_LOCKED",
        "Another process is starting the managed Redis.",
        "Wait for it, or end it with the `lsof` that the error shows.",
    ),
    code(
        "REDIS_TOO_OLD",
        "The Redis in use lacks commands that the queue needs.",
        "Use Redis 7.0 or newer, or Valkey 8 or newer.",
    ),
    code(
        "REDIS_UNREACHABLE",
        "Redis gave no answer in time.",
        "`joelclaw config` shows which Redis is used and what chose it.",
    ),
    code(
        "REDIS_URL_INVALID",
        "The Redis client can't use the URL.",
        "Write redis://user:password@host:6379/0, rediss://… or unix:///path/redis.sock.",
    ),
    code(
        "REGISTRATION_EMPTY",
        "No app has registered a function.",
        "Start an app, then `joelclaw refresh`; `joelclaw up --sdk-url <url>` asks one that does not register itself.",
    ),
    code(
        "REGISTRY_INVALID",
        "The registry file says something that is not possible. A running service keeps the last good one.",
        "See every problem with `joelclaw queue registry check`.",
    ),
    code("REGISTRY_UNREADABLE", "The registry file can't be read.", "Correct its path or its permissions."),
    code(
        "RUN_ALREADY_ENDED",
        "The run has ended, so it can't be cancelled.",
        "See how it ended with `joelclaw run <id>`.",
    ),
    code("RUN_FAILED", "A run that the event started has failed.", "See why with `joelclaw run <id>`."),
    code(
        "RUN_NOT_FOUND",
        "No such run is stored: ended ones stay for FUNCTIONS_RETAIN and FUNCTIONS_RETAIN_FAILED.",
        "See the latest ones with `joelclaw runs`.",
    ),
    code(
        "SCHEMA_TOO_NEW",
        "A newer joelclaw keeps its keys in this Redis, in a form that this one does not know.",
        "Install the newer version, or point REDIS_URL (or the key prefix) elsewhere.",
    ),
    code(
        "SDK_MISSING",
        "`bench functions` runs a Node app with the Inngest SDK, and there is none in the directory that was named.",
        "Run `npm install inngest` somewhere and name that directory with --sdk-dir.",
    ),
    code(
        "SERVER_UNREACHABLE",
        "The HTTP server did not answer.",
        "Start it with `joelclaw up` or `joelclaw serve`, or name it with --url.",
    ),
    code(
        "SERVICE_FILE",
        "A file of the service could not be written or removed.",
        "Check who may write there; --domain system needs root.",
    ),
    code(
        "SERVICE_IN_OTHER_DOMAIN",
        "The service is installed for the other domain already; two supervisors would fight over its port.",
        "Run `joelclaw service uninstall` with the other --domain first.",
    ),
    code(
        "SERVICE_MANAGER_FAILED",
        "launchd or systemd refused; the message has its words.",
        "See what it thinks with `joelclaw service status` and `joelclaw service logs`.",
    ),
    code(
        "SERVICE_NOT_INSTALLED",
        "No file of this service is where the service manager looks.",
        "Run `joelclaw service install`; --domain says for whom.",
    ),
    code(
        "SIGNING_KEY_INVALID",
        "INNGEST_SIGNING_KEY is not `signkey-<env>-` and an even number of hex digits, so nothing could be signed with it.",
        "Make one with `echo signkey-prod-$(openssl rand -hex 32)`, and give it to the apps too.",
    ),
    code(
        "SINK_UNKNOWN",
        "No sink of this name has read the journal.",
        "See which there are with `joelclaw journal verify`.",
    ),
    code(
        "TOO_LARGE",
        "The event is over QUEUE_MAX_EVENT_BYTES.",
        "Keep the payload elsewhere and emit a reference, or raise the limit (at most 3 MiB).",
    ),
    code(
        "TOO_MANY_FAMILIES",
        "There are QUEUE_MAX_FAMILIES event names already.",
        "Put ids into the data, not into the name; or raise the limit.",
    ),
    code(
        "TRIGGER_ARCHIVED",
        "An event starts nothing because its function is not served any more.",
        "Start the app that served it, or send another event.",
    ),
    code("UNKNOWN_COMMAND", "There is no such command.", "See `joelclaw --help`."),
    code("UNKNOWN_ERROR", "An error without a code of its own.", "Inspect the message and retry."),
    code(
        "UNKNOWN_FAMILY",
        "No event of this name was ever appended. Pausing ahead is allowed.",
        "Check the name with `joelclaw queue depth`.",
    ),
    code(
        "UNKNOWN_OUTCOME",
        "The connection broke and nobody knows whether the event is stored.",
        "Repeat it with the same id: a stored event is answered as a duplicate.",
    ),
    code(
        "UNROUTED",
        "No registry entry and no function wants this event.",
        "Add a route to the registry file, or emit without --strict to keep it until one appears.",
    ),
    code("USAGE_ERROR", "The arguments are not what the command takes.", "Add --help to the command."),
    code(
        "WEBHOOK_BODY_NOT_KEPT",
        "The log has the delivery, but not its body.",
        "Set WEBHOOK_LOG_BODIES=redacted to keep bodies from now on.",
    ),
    code(
        "WEBHOOK_CANNOT_SIGN",
        "The provider signs with a private key that only it has, so no sample can be signed here.",
        "Have the provider send a test.",
    ),
    code(
        "WEBHOOK_DELIVERY_NOT_FOUND",
        "The log of deliveries has no such ref; it may be older than WEBHOOK_LOG_RETENTION_HOURS.",
        "See the refs with `joelclaw webhooks list`.",
    ),
    code(
        "WEBHOOK_NOTHING_TO_REPLAY",
        "The delivery makes no events by today's code.",
        "Look at it with `joelclaw webhooks inspect`.",
    ),
    code(
        "WEBHOOK_SECRET_MISSING",
        "The secret of the provider is not set, or is of another kind.",
        "Put the variable that the message names into the env file.",
    ),
    code(
        "WEBHOOK_SOURCES_INVALID",
        "WEBHOOK_SOURCES or the file that describes sources of webhooks can't be used. A running service goes on with the sources that it has.",
        "Correct what the message names; docs/webhooks.md describes every key.",
    ),
    code(
        "WEBHOOK_UNKNOWN_PROVIDER",
        "There is no provider of this name.",
        "See them with `joelclaw webhooks sources`.",
    ),
];

/// Runs the command.
pub fn run(args: &Args) -> Result<Report, Failure> {
    let Some(asked) = &args.code else {
        let list: Vec<_> = CODES.iter().map(|entry| json!({ "code": entry.code, "means": entry.means })).collect();
        let rows = CODES.iter().map(|entry| vec![entry.code.to_owned(), entry.means.to_owned()]);
        let human = Human::new().table(&["CODE", "MEANS"], rows);
        return Ok(Report::new(json!({ "count": list.len(), "codes": list }), human).list("codes"));
    };
    let wanted = asked.trim().to_ascii_uppercase();
    let Some(entry) = CODES.iter().find(|entry| entry.code == wanted) else {
        let near = nearest(&wanted, CODES.iter().map(|entry| entry.code));
        let fix = near.map_or_else(|| "joelclaw explain".to_owned(), |near| format!("joelclaw explain {near}"));
        let failure = Failure::new("CODE_UNKNOWN", Exit::NotFound, format!("no code `{asked}`"), fix);
        return Err(failure.next(NextAction::new("explain", "List all codes")));
    };
    let result = json!({ "code": entry.code, "means": entry.means, "fix": entry.fix });
    let human = Human::new().title(entry.code).text(entry.means).text(format!("What to do: {}", entry.fix));
    Ok(Report::new(result, human))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_sorted_and_complete() {
        assert!(CODES.is_sorted_by(|a, b| a.code < b.code));
        assert!(CODES.iter().all(|entry| entry.means.ends_with('.') && entry.fix.ends_with('.')));
    }

    /// Of the source: what follows `Failure::new(`, and what a `fn code` answers.
    fn emitted(source: &str, into: &mut std::collections::BTreeSet<String>) {
        let literal = |text: &str| {
            let code = text.trim_start().strip_prefix('"')?.split('"').next()?;
            let is_code = code.len() > 3 && code.bytes().all(|b| b.is_ascii_uppercase() || b == b'_');
            is_code.then(|| code.to_owned())
        };
        into.extend(source.split("Failure::new(").skip(1).filter_map(literal));
        for body in source.split("fn code(&self)").skip(1) {
            let body = body.split("\n    }\n").next().unwrap_or_default();
            into.extend(body.split("=>").skip(1).filter_map(literal));
        }
    }

    fn visit(folder: &std::path::Path, codes: &mut std::collections::BTreeSet<String>) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                visit(&path, codes);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = std::fs::read_to_string(&path).unwrap();
                emitted(text.split("#[cfg(test)]").next().unwrap(), codes);
            }
        }
    }

    #[test]
    fn every_code_in_the_source_is_explained() {
        let mut codes = std::collections::BTreeSet::new();
        visit(&std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut codes);
        assert!(codes.len() > 40, "{codes:?}");
        let unexplained: Vec<_> =
            codes.iter().filter(|code| !CODES.iter().any(|entry| entry.code == code.as_str())).collect();
        assert!(unexplained.is_empty(), "{unexplained:?}");
    }

    #[test]
    fn a_typo_gets_the_code_that_was_meant() {
        let failure = run(&Args { code: Some("redis_unreachble".into()) }).unwrap_err();
        assert_eq!(failure.exit(), Exit::NotFound);
        assert!(format!("{failure:?}").contains("explain REDIS_UNREACHABLE"));
    }
}

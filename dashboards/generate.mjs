#!/usr/bin/env node
// Writes the dashboards beside this file from the lists below, so that they stay alike.
//
//   node dashboards/generate.mjs           write them
//   node dashboards/generate.mjs --print   one JSON document with all of them, by file name
//
// A panel is [id, title, kind, unit, queries, what it means and what to do, options]. A query is text, or [text,
// legend, unit of its own]; without a legend it is named by the labels that it groups by. Kinds: stat, lines, stack, bars, gauge, heatmap, states,
// table. Options: steps (thresholds: [value, colour]), w, h, max, mappings, calc.
import { writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const J = 'job=~"$job"';
const above = (...values) => values.map((value, n) => [value, values.length === 1 || n > 0 ? "red" : "yellow"]);
const rate = (metric, by, more = "", span = "$__rate_interval") =>
  `sum${by ? ` by (${by}) ` : ""}(rate(${metric}{${J}${more}}[${span}]))`;
const increase = (metric, by, more = "", span = "$__rate_interval") =>
  `sum${by ? ` by (${by}) ` : ""}(increase(${metric}{${J}${more}}[${span}]))`;
const quantile = (q, metric, by, more = "") =>
  `histogram_quantile(${q}, sum by (${["le", ...by].join(", ")}) (rate(${metric}_bucket{${J}${more}}[$__rate_interval])))`;
const FAMILY = ',family=~"$family"';
const FUNCTION = ',function=~"$function"';
const PROVIDER = ',provider=~"$provider"';
const REFUSED = ',outcome!~"accepted|ignored|duplicate|challenge"';

const boards = [
  {
    uid: "sb-overview",
    file: "system-bus-overview.json",
    title: "system-bus / Overview",
    panels: [
      ["O1", "Instances up", "stat", "none", [[`count(system_bus_build_info{${J}})`, "instances"]],
        "Processes that answer scrapes. None: look at joelclaw service status on the host.", { steps: [[null, "red"], [1, "green"]] }],
      ["O2", "Queue depth", "stat", "none", [[`sum(system_bus_queue_depth{${J}})`, "open events"]],
        "Open events: waiting, held or retrying. When it grows, joelclaw queue depth says of which family.", { steps: above(5, 25) }],
      ["O3", "Oldest unpaused age", "stat", "s",
        [[`max(system_bus_queue_oldest_age_seconds{${J}} unless on(job, family) system_bus_queue_pause_active{${J}})`, "oldest"]],
        "Age of the oldest open event of a family that is not paused. joelclaw queue why <id> names what holds it.", { steps: above(300, 900) }],
      ["O4", "Wait p95, 5 min, exact", "stat", "s",
        [[`max(system_bus_queue_wait_hdr_seconds{${J},window="5m",q="p95",priority="all"})`, "p95"]],
        "From append to the first start of a handler. The promise is 5 s for 99 % of events.", { steps: above(2.5, 5) }],
      ["O5", "Dispatch success, 1 h", "stat", "percentunit",
        [[`${increase("system_bus_queue_dispatch_total", "", ',outcome="completed"', "1h")} / clamp_min(${increase("system_bus_queue_dispatch_total", "", ',outcome=~"completed|failed|dead_lettered"', "1h")}, 1)`, "success"]],
        "Share of dispatches that completed. Low: joelclaw queue stats --since 1h shows the latest failures.",
        { steps: [[null, "red"], [0.95, "yellow"], [0.99, "green"]], max: 1 }],
      ["O6", "Dead letters, 24 h", "stat", "none", [[increase("system_bus_queue_dead_letters_total", "", "", "24h"), "dead letters"]],
        "Events that no handler could take. Look with joelclaw queue dead, then redrive or drop them.", { steps: above(1) }],
      ["O7", "Active pauses: time left", "table", "s", [[`system_bus_queue_pause_expires_timestamp_seconds{${J}} - time()`, "{{family}} ({{source}})"]],
        "What is held, by whom, and for how much longer. joelclaw queue resume <family> ends a pause.", { empty: "no pause" }],
      ["O8", "Critical health", "states", "none", [`min by (component) (system_bus_health_check_ok{${J}})`],
        "The checks behind /health/ready. 0: joelclaw jobs status gives the reason.", { steps: [[null, "red"], [1, "green"]], mappings: { 0: "down", 1: "ok" }, max: 1 }],
      ["O9", "Flow in and out", "lines", "ops",
        [[rate("system_bus_queue_appended_total", "", ',outcome="accepted"'), "accepted"], [rate("system_bus_queue_dispatch_total", "", ',outcome="completed"'), "completed"]],
        "Events accepted and completed per second. Apart for long: the drainer does not keep up, see the dashboard Queue."],
      ["O10", "SLO burn: 5 s active wait, 99 %", "lines", "none",
        [[`(1 - sum(rate(system_bus_queue_active_wait_seconds_bucket{${J},le=~"5(\\\\.0)?"}[1h])) / clamp_min(sum(rate(system_bus_queue_active_wait_seconds_count{${J}}[1h])), 1e-9)) / 0.01`, "burn rate"]],
        "How fast the budget of slow events is used, pauses not counted: 1 uses it up exactly. Above 14.4 it pages.",
        { steps: [[1, "yellow"], [6, "orange"], [14.4, "red"]] }],
      ["O11", "Redis", "stat", "none", [[`min(system_bus_redis_up{${J}})`, "answers"], [`min(system_bus_redis_policy_ok{${J}})`, "never evicts"]],
        "Both must be yes. Evicting Redis loses events: redis-cli config set maxmemory-policy noeviction.",
        { steps: [[null, "red"], [1, "green"]], mappings: { 0: "no", 1: "yes" } }],
      ["O12", "Firing alerts", "table", "none", [['ALERTS{alertstate="firing",alertname=~"SystemBus.*",job=~"$job"}', "{{alertname}} {{severity}} {{family}}"]],
        "Alerts that fire now. docs/dashboards.md says what to do about each.", { empty: "none" }],
    ],
  },
  {
    uid: "sb-queue",
    file: "system-bus-queue.json",
    title: "system-bus / Queue",
    panels: [
      ["Q1", "Depth by priority", "stack", "none", [`sum by (priority) (system_bus_queue_depth{${J}})`],
        "Open events by stored priority. P0 should be empty nearly always.", { steps: above(25) }],
      ["Q2", "Depth by family", "lines", "none", [`topk(15, sum by (family) (system_bus_queue_family_depth{${J}${FAMILY}}))`],
        "Which event names the backlog is made of. A paused family grows by design."],
      ["Q3", "Oldest age by family", "lines", "s", [`max by (family) (system_bus_queue_oldest_age_seconds{${J}${FAMILY}})`],
        "Age of the oldest open event. Rising without a pause: joelclaw queue why <id>.", { steps: above(300, 900) }],
      ["Q4", "Wait, 5 min, exact", "lines", "s", [`max by (q) (system_bus_queue_wait_hdr_seconds{${J},window="5m",priority="all"})`],
        "From append to first start, pauses included, from full histograms, not estimated.", { steps: above(5) }],
      ["Q5", "Wait p95 by priority, 1 h, exact", "lines", "s", [`max by (priority) (system_bus_queue_wait_hdr_seconds{${J},window="1h",q="p95",priority=~"$priority"})`],
        "Whether urgent events really wait less. P0 above P3 points to a full handler of P0 families."],
      ["Q6", "Wait p95 and p99 by family, estimated", "lines", "s",
        [[quantile(0.95, "system_bus_queue_wait_seconds", ["family"], FAMILY), "p95 {{family}}"], [quantile(0.99, "system_bus_queue_wait_seconds", ["family"], FAMILY), "p99 {{family}}"]],
        "Interpolated within buckets: for comparing families. joelclaw queue stats has the exact figures."],
      ["Q7", "Waits", "heatmap", "s", [[`sum by (le) (increase(system_bus_queue_wait_seconds_bucket{${J}${FAMILY}}[$__rate_interval]))`, "{{le}}"]],
        "How many events waited how long. Two bands: some families wait for something that others do not."],
      ["Q8", "Dispatch duration, 5 min, exact", "lines", "s", [`max by (q) (system_bus_queue_dispatch_hdr_seconds{${J},window="5m"})`],
        "From the start of a handler to its end. Near the handler's timeout, expect retries.", { steps: above(10, 15) }],
      ["Q9", "Dispatch p95 by family, estimated", "lines", "s", [quantile(0.95, "system_bus_queue_dispatch_duration_seconds", ["family"], FAMILY)],
        "Which handler is slow."],
      ["Q10", "Dispatches by outcome", "stack", "ops", [rate("system_bus_queue_dispatch_total", "outcome", FAMILY)],
        "Failed attempts are retried; dead-lettered ones are not."],
      ["Q11", "Failure ratio by family, 15 min", "lines", "percentunit",
        [`sum by (family) (rate(system_bus_queue_dispatch_total{${J},outcome!="completed"${FAMILY}}[15m])) / clamp_min(sum by (family) (rate(system_bus_queue_dispatch_total{${J}${FAMILY}}[15m])), 1e-9)`],
        "Share of attempts that did not complete. Above a fifth: pause the family, fix its handler, resume.", { steps: above(0.05, 0.2), max: 1 }],
      ["Q12", "Retries by reason", "bars", "none", [increase("system_bus_queue_retries_total", "reason", FAMILY)],
        "Why attempts are repeated. connect and timeout: the other side; http_4xx: our request."],
      ["Q13", "Waiting for a retry", "lines", "none", [[`sum(system_bus_queue_retry_scheduled{${J}})`, "events"]],
        "Events in back-off. They come back by themselves."],
      ["Q14", "Dead letters: added per hour, held", "lines", "none",
        [[increase("system_bus_queue_dead_letters_total", "family", "", "1h"), "added {{family}}"], [`sum by (family) (system_bus_queue_dead_letter_depth{${J}})`, "held {{family}}"]],
        "joelclaw queue dead lists them with the error and the attempts.", { steps: above(1) }],
      ["Q15", "Slots busy", "gauge", "percentunit", [[`sum(system_bus_drainer_slots{${J},state="busy"}) / clamp_min(sum(system_bus_drainer_slots{${J}}), 1)`, "busy"]],
        "Share of QUEUE_DRAINER_CONCURRENCY in use. Full for long with a growing depth: raise it.", { steps: above(0.8, 1), max: 1 }],
      ["Q16", "Age of the drainer's heartbeat", "lines", "s", [[`time() - max(system_bus_drainer_last_tick_timestamp_seconds{${J}})`, "age"]],
        "A drainer renews its session every few seconds. Above 45 s it hangs or is gone: joelclaw jobs status.", { steps: above(10, 45) }],
      ["Q17", "Raised by aging", "bars", "none", [increase("system_bus_queue_promotions_total", "from, to")],
        "Events that waited so long that they were treated as more urgent. Many: too little capacity."],
      ["Q18", "Appends by outcome", "stack", "ops", [rate("system_bus_queue_appended_total", "outcome", FAMILY)],
        "Duplicates are answered with the first event's id and change nothing."],
      ["Q19", "Pending, unread, orphans", "lines", "none",
        [[`sum by (group) (system_bus_queue_pending{${J}})`, "pending"], [`max by (group) (system_bus_queue_group_lag{${J}})`, "unread"], [`max(system_bus_queue_unindexed{${J}})`, "orphans"]],
        "Orphans are held by a drainer that is gone; another takes them over within a lease. Longer: joelclaw queue fsck.", { steps: above(1000) }],
      ["Q20", "Pauses", "states", "none", [[`max by (family, source) (system_bus_queue_pause_active{${J}})`, "{{family}} ({{source}})"]],
        "Who paused what, and when.", { steps: [[null, "green"], [1, "blue"]], mappings: { 1: "paused" }, empty: "no pause" }],
      ["Q21", "End to end p95 by priority, estimated", "lines", "s", [quantile(0.95, "system_bus_queue_e2e_seconds", ["priority"], ',priority=~"$priority"')],
        "From append to the end of the last attempt."],
      ["Q22", "In flight by handler, starts by priority", "lines", "none",
        [[`sum by (handler_type) (system_bus_queue_dispatch_inflight{${J}})`, "in flight {{handler_type}}"], [rate("system_bus_queue_leased_total", "priority"), "starts/s {{priority}}"]],
        "What the drainer is busy with. One handler with all slots starves the others: give its families a limit."],
    ],
  },
  {
    uid: "sb-triage-observer",
    file: "system-bus-triage-observer.json",
    title: "system-bus / Triage and observer",
    panels: [
      ["T1", "Triage by mode and outcome", "stack", "ops", [rate("system_bus_triage_total", "mode, outcome", FAMILY)],
        "Nothing here means that triage is off for these families."],
      ["T2", "Agreement by family, 1 h", "lines", "percentunit",
        [`${increase("system_bus_triage_agreement_total", "family", `,result="agree"${FAMILY}`, "1h")} / clamp_min(${increase("system_bus_triage_agreement_total", "family", FAMILY, "1h")}, 1)`],
        "How often triage suggested what was done anyway. Look at the samples in joelclaw queue stats before you enforce.", { steps: [[null, "red"], [0.8, "green"]], max: 1 }],
      ["T3", "Fallback ratio, 15 min", "lines", "percentunit",
        [[`${rate("system_bus_triage_fallback_total", "", ',reason!="disabled"', "15m")} / clamp_min(${rate("system_bus_triage_total", "", "", "15m")}, 1e-9)`, "fallbacks"]],
        "Share of events that triage could not decide; they were admitted as with triage off.", { steps: above(0.05, 0.2), max: 1 }],
      ["T4", "Fallback reasons", "bars", "none", [increase("system_bus_triage_fallback_total", "reason", FAMILY)],
        "timeout and model_error: the model; schema_error and invalid_json: its answers."],
      ["T5", "Applied, and only suggested, 1 h", "lines", "none",
        [[increase("system_bus_triage_applied_total", "", "", "1h"), "applied"], [increase("system_bus_triage_agreement_total", "", ',result="disagree"', "1h"), "suggested something else"]],
        "In shadow mode nothing is ever applied."],
      ["T6", "Route mismatches, 24 h", "stat", "none", [[increase("system_bus_triage_route_mismatch_total", "", "", "24h"), "mismatches"]],
        "Triage disputed a route. It can't change it; look whether the registry entry is right.", { steps: above(1) }],
      ["T7", "Triage latency, estimated", "lines", "s",
        [[quantile(0.5, "system_bus_triage_duration_seconds", []), "p50"], [quantile(0.95, "system_bus_triage_duration_seconds", []), "p95"]],
        "Time that triage took of an append.", { steps: above(10, 45) }],
      ["T8", "Observer passes", "bars", "none", [increase("system_bus_observer_runs_total", "trigger, outcome")],
        "Passes by who asked for them and how they ended."],
      ["T9", "Observer actions", "bars", "none", [increase("system_bus_observer_actions_total", "kind, disposition")],
        "What it suggested, what the rules left of it, and what was applied."],
      ["T10", "Queue pressure and downstream state", "states", "none", [[`max by (dimension, state) (system_bus_observer_state{${J}})`, "{{dimension}} {{state}}"]],
        "What the observer last found; exactly one state of each dimension is on once it has run.", { steps: [[null, "green"], [1, "blue"]], mappings: { 0: " ", 1: "yes" }, max: 1 }],
      ["T11", "Pauses and resumes", "table", "none", [increase("system_bus_queue_control_total", "action, source, outcome", "", "$__range")],
        "Who changed what in the time shown. joelclaw queue control status has the history."],
      ["T12", "Since the observer's last pass", "stat", "s",
        [[`(time() - (max by (trigger) (system_bus_observer_last_run_timestamp_seconds{${J}}) > 0)) or max by (trigger) (system_bus_observer_last_run_timestamp_seconds{${J}})`, "{{trigger}}"]],
        "cron should run every minute where the observer is on.", { steps: above(180, 600), mappings: { 0: "never" } }],
      ["T13", "Model calls avoided", "stat", "percentunit",
        [[`${increase("system_bus_observer_runs_total", "", ',outcome="short_circuit"', "$__range")} / clamp_min(${increase("system_bus_observer_runs_total", "", "", "$__range")}, 1)`, "avoided"]],
        "Share of passes that the rules decided alone.", { max: 1 }],
    ],
  },
  {
    uid: "sb-functions",
    file: "system-bus-functions.json",
    title: "system-bus / Functions",
    panels: [
      ["F1", "Registered functions", "stat", "none", [`sum by (app) (system_bus_functions_registered{${J}})`],
        "What each app serves. 0: its functions get nothing; joelclaw refresh asks it again.", { steps: [[null, "red"], [1, "green"]] }],
      ["F2", "Runs by status", "stack", "ops", [rate("system_bus_function_runs_total", "status", FUNCTION)],
        "Runs that ended, per second."],
      ["F3", "Failure ratio by function", "table", "percentunit",
        [`topk(20, ${increase("system_bus_function_runs_total", "function", ',status="failed"', "$__range")} / clamp_min(${increase("system_bus_function_runs_total", "function", "", "$__range")}, 1))`],
        "Share of runs that failed after all their attempts. joelclaw runs --status failed lists them.", { steps: above(0.05, 0.2), max: 1 }],
      ["F4", "Active runs", "lines", "none", [`sum by (status) (system_bus_function_runs_active{${J}})`],
        "Runs that have not ended. Many queued: a limit holds them, see joelclaw functions show <function>."],
      ["F5", "Stale runs", "stat", "none", [[`max(system_bus_function_stale_runs{${J}})`, "stale"]],
        "Runs created over an hour ago that wait for nothing: their app hangs. joelclaw run <id>.", { steps: above(1, 10) }],
      ["F6", "Run duration p95, estimated", "lines", "s", [`topk(10, ${quantile(0.95, "system_bus_function_run_duration_seconds", ["function"], FUNCTION)})`],
        "From the first call to the end; sleeps and waits count."],
      ["F7", "Step latency, estimated", "lines", "s",
        [[quantile(0.95, "system_bus_function_step_duration_seconds", ["function"], FUNCTION), "p95 {{function}}"], [quantile(0.99, "system_bus_function_step_duration_seconds", ["function"], FUNCTION), "p99 {{function}}"]],
        "Steps that run code. joelclaw functions show <function> has exact figures."],
      ["F8", "Steps by kind and outcome", "stack", "ops", [rate("system_bus_function_steps_total", "op, outcome", FUNCTION.replace("$function", "$function|_unknown"))],
        "A memoized step counts once, however often its function is called again."],
      ["F9", "Retries by function", "bars", "none", [increase("system_bus_function_retries_total", "function", FUNCTION)],
        "Calls that failed and are tried again."],
      ["F10", "Events without a function", "table", "none", [`${increase("system_bus_function_events_unmatched_total", "family", "", "$__range")}`],
        "Events that nothing wanted when they came. They are kept and dispatched when a route appears.", { steps: above(1) }],
      ["F11", "Registration", "lines", "s",
        [[`time() - max(system_bus_registration_last_success_timestamp_seconds{${J}})`, "since an app answered"], [increase("system_bus_registration_total", "", ',outcome="failed"'), "failed", "none"]],
        "Apps are asked what they serve on a timer. Failures: the app is down or refuses us."],
    ],
  },
  {
    uid: "sb-webhooks",
    file: "system-bus-webhooks.json",
    title: "system-bus / Webhooks",
    panels: [
      ["W1", "Accepted by provider", "stack", "ops", [rate("system_bus_webhook_requests_total", "provider", `,outcome="accepted"${PROVIDER}`)],
        "Deliveries whose events are kept."],
      ["W2", "Refused by provider and outcome", "bars", "none", [increase("system_bus_webhook_requests_total", "provider, outcome", `${REFUSED}${PROVIDER}`)],
        "bad_signature: compare the secret with the provider's; enqueue_failed: Redis or a missing secret."],
      ["W3", "Refusal ratio, 15 min", "lines", "percentunit",
        [`${rate("system_bus_webhook_requests_total", "provider", `${REFUSED}${PROVIDER}`, "15m")} / clamp_min(${rate("system_bus_webhook_requests_total", "provider", PROVIDER, "15m")}, 1e-9)`],
        "Share of deliveries that were refused.", { steps: above(0.05, 0.25), max: 1 }],
      ["W4", "Answer time p95, estimated", "lines", "s", [quantile(0.95, "system_bus_webhook_duration_seconds", ["provider"], PROVIDER)],
        "Providers give up after a few seconds and send again.", { steps: above(1, 5) }],
      ["W5", "Events by path", "stack", "ops", [rate("system_bus_webhook_events_total", "provider, path", PROVIDER)],
        "queue: a piloted provider's events; direct: all others. Both are kept."],
      ["W6", "Secret loaded", "states", "none", [`min by (provider) (system_bus_webhook_secret_loaded{${J}})`],
        "Without a secret every delivery is refused. Secrets are read again when they change.", { steps: [[null, "red"], [1, "green"]], mappings: { 0: "missing", 1: "loaded" }, max: 1 }],
      ["W7", "Accepted in 24 h", "stat", "none", [increase("system_bus_webhook_requests_total", "provider", ',outcome="accepted"', "24h")],
        "0 for a provider that should send: look at its delivery log.", { steps: [[null, "red"], [1, "green"]] }],
      ["W8", "HTTP by route and class", "stack", "ops", [rate("system_bus_http_requests_total", "route, code")],
        "Everything that the port answers, Prometheus and health checks included."],
      ["W9", "Kept on disk while Redis is away", "lines", "none", [[`sum by (instance) (system_bus_webhook_spool_entries{${J}})`, "{{instance}}"]],
        "Deliveries that were answered 202 and wait for Redis. They go in by themselves, in order.", { steps: above(1) }],
      ["W10", "Age of the oldest on disk", "lines", "s", [[`max by (instance) (system_bus_webhook_spool_oldest_seconds{${J}})`, "{{instance}}"]],
        "Above some minutes with Redis back: joelclaw doctor, then the log.", { steps: above(60, 300) }],
      ["W11", "Believed by which secret", "bars", "none", [increase("system_bus_webhook_secret_slot_total", "provider, slot", PROVIDER)],
        "After a rotation, previous must fall to 0 before the old secret is taken away."],
      ["W12", "Requests to endpoints", "stack", "ops", [rate("system_bus_webhook_outbound_requests_total", "outcome")],
        "Every attempt by how it ended. joelclaw webhooks endpoints list says which endpoint fails."],
      ["W13", "Answer time of endpoints p95, estimated", "lines", "s", [[quantile(0.95, "system_bus_webhook_outbound_request_duration_seconds", []), "p95"]],
        "How long endpoints take to answer us.", { steps: above(5, 15) }],
      ["W14", "Deliveries to endpoints by their end", "bars", "none", [increase("system_bus_webhook_outbound_deliveries_total", "outcome")],
        "exhausted and gone are kept as dead letters: joelclaw webhooks dlq list."],
      ["W15", "Endpoints", "stat", "none",
        [[`sum by (state) (system_bus_webhook_outbound_endpoints{${J}})`, "{{state}}"], [`sum(system_bus_webhook_outbound_circuits_open{${J}})`, "left alone"]],
        "left alone: it failed, and is asked again a little later. disabled: by an operator, or after days of failure."],
    ],
  },
  {
    uid: "sb-platform",
    file: "system-bus-platform.json",
    title: "system-bus / Platform",
    panels: [
      ["P1", "Redis memory", "lines", "percentunit", [[`max(system_bus_redis_memory_used_bytes{${J}}) / (max(system_bus_redis_memory_max_bytes{${J}}) > 0)`, "of maxmemory"]],
        "Full, Redis refuses appends; pausing and acknowledging still work. Empty without a maxmemory.", { steps: above(0.7, 0.9), max: 1, empty: "no maxmemory" }],
      ["P2", "Redis ping p99, estimated", "lines", "s", [[quantile(0.99, "system_bus_redis_ping_seconds", []), "p99"]],
        "A round trip, measured every 5 s. Slow: a busy host, or another client's slow command.", { steps: above(0.01, 0.1) }],
      ["P3", "Redis errors, reconnects, evictions", "bars", "none",
        [[increase("system_bus_redis_command_errors_total", "command"), "{{command}}"], [increase("system_bus_redis_reconnects_total", ""), "reconnects"], [`max(increase(system_bus_redis_evicted_keys_total{${J}}[$__rate_interval]))`, "evicted keys"]],
        "One evicted key may be an event: set maxmemory-policy noeviction at once. Refused eval calls are mostly a full Redis."],
      ["P4", "Streams", "lines", "none", [`max by (stream) (system_bus_queue_stream_length{${J}})`],
        "Entries of the journal, of dead letters, of scheduled events, and open ones of all lanes."],
      ["P5", "Journal records by level", "stack", "ops", [rate("system_bus_telemetry_events_total", "level")],
        "What happened, per second. joelclaw journal query finds single records."],
      ["P6", "Telemetry dropped", "bars", "none", [increase("system_bus_telemetry_dropped_total", "reason")],
        "Measurements that found no room. State changes are never dropped."],
      ["P7", "Sinks: lag and errors", "lines", "none",
        [[`max by (sink) (system_bus_telemetry_sink_lag_events{${J}})`, "lag {{sink}}"], [rate("system_bus_telemetry_sink_errors_total", "sink"), "errors/s {{sink}}"]],
        "Journal batches that a reader has not passed. The journal keeps them.", { steps: above(1000, 10000) }],
      ["P8", "Outbox on disk", "lines", "bytes", [[`sum(system_bus_telemetry_outbox_bytes{${J}})`, "outbox"]],
        "Posted telemetry that waits for Redis. It goes in by itself.", { steps: above(1 << 20, 1 << 27) }],
      ["P9", "Processor cores", "lines", "none", [`sum by (instance) (rate(process_cpu_seconds_total{${J}}[$__rate_interval]))`],
        "Cores in use per process.", { steps: above(0.8, 1) }],
      ["P10", "Resident memory", "lines", "bytes", [`max by (instance) (process_resident_memory_bytes{${J}})`],
        "The backlog lives in Redis, so this stays flat.", { steps: above(512 << 20, 900 << 20) }],
      ["P11", "File descriptors", "gauge", "percentunit", [`max by (instance) (process_open_fds{${J}} / process_max_fds{${J}})`],
        "Share of the limit. Raise LimitNOFILE or NumberOfFiles of the service.", { steps: above(0.7, 0.9), max: 1 }],
      ["P12", "Runtime", "lines", "none",
        [[`max by (instance) (system_bus_runtime_heartbeat_age_seconds{${J}})`, "heartbeat age {{instance}}", "s"], [`max by (instance) (system_bus_runtime_tasks{${J}})`, "tasks {{instance}}"]],
        "A heartbeat older than a few seconds: the runtime is blocked, and the watchdog will end the process."],
      ["P13", "Uptime and restarts", "stat", "s",
        [[`time() - max by (instance) (process_start_time_seconds{${J}})`, "up {{instance}}"], [`sum(changes(process_start_time_seconds{${J}}[1h]))`, "restarts, 1 h", "none"]],
        "Restarts beside the uptime. Repeated ones: read the service's log."],
      ["P14", "Series and label overflow", "stat", "none",
        [[`max by (instance) (scrape_samples_scraped{${J}})`, "series {{instance}}"], [`sum(increase(system_bus_metric_label_overflow_total{${J}}[24h]))`, "overflow, 24 h"]],
        "All series of a process; 10,000 is the budget. Overflow: names beyond the caps, told as _other.", { steps: above(10000) }],
      ["P15", "Failures by component", "bars", "none", [`topk(10, ${increase("system_bus_telemetry_failures_total", "component")})`],
        "Journal records of something that failed."],
      ["P16", "Redis clients, age of the figures", "lines", "none",
        [[`max(system_bus_redis_connected_clients{${J}})`, "clients"], [`max(system_bus_redis_refresh_age_seconds{${J}})`, "age", "s"]],
        "Figures are read every 5 s. Older ones: Redis does not answer.", { steps: above(1000) }],
      ["P17", "Data quality", "bars", "none",
        [[increase("system_bus_hdr_saturated_total", ""), "over 24 h"], [increase("system_bus_clock_negative_total", ""), "clock went back"], [increase("system_bus_telemetry_redactions_total", "kind"), "redacted by {{kind}}"]],
        "Durations that can't be trusted, and secrets that were about to be written. Redactions by pattern: find the emitter."],
      ["P18", "Journal in memory", "lines", "bytes", [[`sum(system_bus_journal_bytes{${J}})`, "journal"]],
        "It keeps what sinks have not written. Above OTEL_TRIM_FORCE_BYTES it goes on without them.", { steps: above(1 << 28, 1 << 29) }],
    ],
  },
];

const datasource = { type: "prometheus", uid: "${datasource}" };

const annotation = (name, expr, iconColor, titleFormat, more = {}) => ({
  name,
  datasource,
  enable: true,
  hide: false,
  iconColor,
  target: { refId: name, expr, range: true, instant: false },
  titleFormat,
  ...more,
});
export const annotations = [
  annotation("Pauses", `system_bus_queue_pause_applied_timestamp_seconds{${J}} * 1000`, "blue", "Paused {{family}} ({{source}})", { useValueForTime: true }),
  annotation("Control actions", `increase(system_bus_queue_control_total{${J},outcome="applied"}[1m]) > 0`, "purple", "{{action}} by {{source}}"),
  annotation("Restarts", `changes(process_start_time_seconds{${J}}[2m]) > 0`, "orange", "Restarted {{instance}}"),
  annotation("Stalls", `increase(system_bus_drainer_stalls_total{${J}}[2m]) > 0`, "red", "Stalled: {{reason}}"),
];

const all = { multi: true, includeAll: true, allValue: ".*", current: { selected: true, text: ["All"], value: ["$__all"] } };
const asked = (name, query) => ({ name, type: "query", datasource, query: { query, refId: name }, refresh: 2, sort: 1, ...all });
const variables = [
  { name: "datasource", type: "datasource", query: "prometheus", current: { text: "Prometheus", value: "prometheus" } },
  asked("job", "label_values(system_bus_build_info, job)"),
  asked("instance", 'label_values(system_bus_build_info{job=~"$job"}, instance)'),
  asked("family", 'label_values(system_bus_queue_family_depth{job=~"$job"}, family)'),
  { name: "priority", type: "custom", query: "P0,P1,P2,P3", ...all },
  asked("provider", 'label_values(system_bus_webhook_secret_loaded{job=~"$job"}, provider)'),
  asked("function", 'label_values(system_bus_function_runs_total{job=~"$job"}, function)'),
];

const legend = { showLegend: true, displayMode: "table", placement: "bottom", calcs: ["lastNotNull", "max"] };
const tooltip = { mode: "multi", sort: "desc" };
const reduced = { values: false, calcs: ["lastNotNull"], fields: "" };
const line = (more) => ({ drawStyle: "line", lineWidth: 1, fillOpacity: 10, showPoints: "never", spanNulls: false, ...more });
const drawn = {
  stat: { type: "stat", size: [4, 4], options: { reduceOptions: reduced, colorMode: "value", graphMode: "area", justifyMode: "auto", orientation: "auto", textMode: "auto", wideLayout: true, showPercentChange: false, percentChangeColorMode: "standard" } },
  gauge: { type: "gauge", size: [6, 8], options: { reduceOptions: reduced, orientation: "auto", showThresholdLabels: false, showThresholdMarkers: true, sizing: "auto", minVizWidth: 75, minVizHeight: 75, barShape: "flat", barWidthFactor: 0.4, effects: {}, segmentCount: 1, segmentSpacing: 0.3, shape: "gauge" } },
  lines: { type: "timeseries", size: [12, 8], options: { legend, tooltip }, custom: line({}) },
  stack: { type: "timeseries", size: [12, 8], options: { legend, tooltip }, custom: line({ fillOpacity: 40, stacking: { mode: "normal", group: "A" } }) },
  bars: { type: "timeseries", size: [12, 8], options: { legend, tooltip }, custom: line({ drawStyle: "bars", fillOpacity: 80, stacking: { mode: "normal", group: "A" } }) },
  states: { type: "state-timeline", size: [12, 8], options: { legend: { showLegend: true, displayMode: "list", placement: "bottom", calcs: [] }, tooltip, showValue: "auto", rowHeight: 0.9, mergeValues: true, alignValue: "left" }, custom: { lineWidth: 0, fillOpacity: 70 } },
  table: { type: "table", size: [12, 8], options: { showHeader: true, frameIndex: 0, cellHeight: "sm", sortBy: [{ displayName: "Value", desc: true }] }, custom: { align: "auto", cellOptions: { type: "auto" }, inspect: false } },
  heatmap: { type: "heatmap", size: [12, 8], options: { calculate: false, cellGap: 1, color: { mode: "scheme", scheme: "Oranges", fill: "dark-orange", exponent: 0.5, steps: 64, reverse: false }, exemplars: { color: "rgba(255,0,255,0.7)" }, filterValues: { le: 1e-9 }, legend: { show: true }, rowsFrame: { layout: "auto" }, showValue: "never", tooltip: { mode: "single", yHistogram: true }, yAxis: { axisPlacement: "left", unit: "s" } }, custom: { hideFrom: { legend: false, tooltip: false, viz: false } } },
};

function target([expr, legendFormat], n, kind) {
  const isNow = kind === "table";
  const grouped = /^(?:topk\(\d+, )?(?:\()?(?:sum|max|min|histogram_quantile)[^(]*? by \(([^)]*)\)/.exec(expr) ?? /sum by \(([^)]*)\)/.exec(expr);
  const labels = (grouped?.[1] ?? "").split(",").map((label) => label.trim()).filter((label) => label && label !== "le");
  const named = legendFormat ?? labels.map((label) => `{{${label}}}`).join(" ");
  const format = isNow ? "table" : kind === "heatmap" ? "heatmap" : "time_series";
  return { refId: String.fromCharCode(65 + n), datasource, editorMode: "code", expr, format, instant: isNow, range: !isNow, legendFormat: named || "value" };
}

function panel([key, title, kind, unit, queries, description, options = {}], id, gridPos) {
  const { type, options: drawing, custom = {} } = drawn[kind];
  const steps = (options.steps ?? []).map(([value, color]) => ({ color, value }));
  if (steps[0]?.value !== null) steps.unshift({ color: "green", value: null });
  const hasLine = options.steps && type === "timeseries";
  const mappings = options.mappings
    ? [{ type: "value", options: Object.fromEntries(Object.entries(options.mappings).map(([value, text], index) => [value, { text, index }])) }]
    : [];
  const defaults = {
    unit,
    min: 0,
    ...(options.max === undefined ? {} : { max: options.max }),
    noValue: options.empty ?? "no data",
    color: { mode: ["stat", "gauge", "states"].includes(kind) ? "thresholds" : "palette-classic" },
    thresholds: { mode: "absolute", steps },
    mappings,
    custom: hasLine ? { ...custom, thresholdsStyle: { mode: "dashed" } } : custom,
  };
  const targets = queries.map((query, n) => target(Array.isArray(query) ? query : [query], n, kind));
  const overrides = queries
    .map((query, n) => ({ unit: Array.isArray(query) ? query[2] : undefined, options: targets[n].refId }))
    .filter(({ unit }) => unit)
    .map(({ unit: value, options }) => ({ matcher: { id: "byFrameRefID", options }, properties: [{ id: "unit", value }] }));
  const transformations =
    kind === "table" ? [{ id: "organize", options: { excludeByName: { Time: true, __name__: true, instance: true, job: true } } }] : undefined;
  return { id, type, title: `${key} ${title}`, description, datasource, gridPos, fieldConfig: { defaults, overrides }, options: drawing, targets, ...(transformations && { transformations }) };
}

/** Left to right, row by row; a row is as high as its highest panel. */
function placed(panels) {
  let [x, y, high] = [0, 0, 0];
  return panels.map((spec, n) => {
    const [width, height] = drawn[spec[2]].size;
    const [w, h] = [spec[6]?.w ?? width, spec[6]?.h ?? height];
    if (x + w > 24) [x, y, high] = [0, y + high, 0];
    const at = { x, y, w, h };
    [x, high] = [x + w, Math.max(high, h)];
    return panel(spec, n + 1, at);
  });
}

export function dashboard({ uid, title, panels }) {
  return {
    uid,
    title,
    description: "Generated by dashboards/generate.mjs: change it there.",
    tags: ["system-bus"],
    schemaVersion: 39,
    version: 1,
    editable: true,
    graphTooltip: 1,
    refresh: "30s",
    time: { from: "now-6h", to: "now" },
    timezone: "browser",
    links: [{ title: "system-bus", type: "dashboards", tags: ["system-bus"], asDropdown: true, includeVars: true, keepTime: true, targetBlank: false, icon: "external link", tooltip: "" }],
    annotations: { list: annotations },
    templating: { list: variables },
    panels: placed(panels),
  };
}

const made = Object.fromEntries(boards.map((board) => [board.file, dashboard(board)]));
const text = (value) => `${JSON.stringify(value, null, 2)}\n`;
if (process.argv.includes("--print")) {
  process.stdout.write(text(made));
} else {
  const here = dirname(fileURLToPath(import.meta.url));
  for (const [file, board] of Object.entries(made)) writeFileSync(join(here, file), text(board));
}

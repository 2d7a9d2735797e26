//! Looking at the queue and emitting into it, by the built binary.

use std::time::Duration;

use crate::support::{HttpSink, Joelclaw, Reply, TestRedis, eventually};
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(20);

async fn here() -> (TestRedis, Joelclaw) {
    let redis = TestRedis::start().await;
    let bus = Joelclaw::new(&redis.url());
    (redis, bus)
}

/// Runs it, checks the exit code and that the output is an envelope which agrees with it.
async fn run(bus: &Joelclaw, args: &[&str], code: i32) -> Value {
    run_with(bus, args, "", code).await
}

async fn run_with(bus: &Joelclaw, args: &[&str], stdin: &str, code: i32) -> Value {
    let ran = bus.run_with_stdin(args, stdin.as_bytes()).await.assert_code(code);
    let envelope = ran.json();
    assert_eq!(envelope["ok"], code == 0, "{envelope}");
    assert!(envelope["command"].as_str().unwrap().starts_with("joelclaw queue "), "{envelope}");
    assert!(envelope["next_actions"].is_array(), "{envelope}");
    assert_eq!(ran.stderr, "");
    envelope
}

async fn emit(bus: &Joelclaw, args: &[&str]) -> Value {
    let args: Vec<&str> = ["queue", "emit"].iter().chain(args).copied().collect();
    run(bus, &args, 0).await["result"].take()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("no text: {value}"))
}

#[tokio::test]
async fn what_is_wrong_with_an_event_is_said_before_anything_is_stored() {
    let (redis, bus) = here().await;
    let table: [(&[&str], &str, &str); 8] = [
        (&["a/b", "-d", "[1]"], "NOT_AN_OBJECT", "--data must be a JSON object, got an array"),
        (&["a/b", "-d", "{\"n\":"], "INVALID_JSON", "column 5"),
        (&["a/b", "-p", "P7"], "INVALID_PRIORITY", "P7"),
        (&["a b"], "INVALID_EVENT_NAME", ""),
        (&["a/b", "--strict"], "UNROUTED", "a/b"),
        (&["a/b", "-d", "@nowhere.json"], "INPUT_UNREADABLE", "nowhere.json"),
        (&["a/b", "--in", "soon"], "USAGE_ERROR", "soon"),
        (&[], "USAGE_ERROR", ""),
    ];
    for (args, code, part) in table {
        let args: Vec<&str> = ["queue", "emit"].iter().chain(args).copied().collect();
        let envelope = run(&bus, &args, 2).await;
        assert_eq!(envelope["error"]["code"], code, "{envelope}");
        assert!(text(&envelope["error"]["message"]).contains(part), "{envelope}");
    }
    let envelope = run(&bus, &["queue", "emit", "a/b", "-d", "[1]"], 2).await;
    assert_eq!(envelope["fix"], "Wrap the value: joelclaw queue emit a/b -d '{\"items\":[1]}'");
    bus.env_file_line("QUEUE_MAX_EVENT_BYTES", "1024");
    let large = format!("{{\"t\":\"{}\"}}", "x".repeat(2000));
    let envelope = run(&bus, &["queue", "emit", "a/b", "-d", &large], 2).await;
    assert_eq!(envelope["error"]["code"], "TOO_LARGE");
    assert_eq!(run(&bus, &["queue", "list"], 0).await["result"]["count"], 0);

    redis.cli(&["CONFIG", "SET", "maxmemory", "1"]).await;
    bus.env_file_line("QUEUE_MEMORY_BUDGET", "1");
    let envelope = run(&bus, &["queue", "emit", "a/b"], 4).await;
    assert_eq!(envelope["error"]["code"], "QUEUE_FULL", "{envelope}");
}

#[tokio::test]
async fn without_redis_every_command_says_so_within_seconds() {
    let bus = Joelclaw::new("unix:///nowhere.sock");
    for args in [&["emit", "a/b"][..], &["list"], &["inspect", "1-1"], &["why", "1-1"], &["dead", "list"], &["tail"]] {
        let args: Vec<&str> = ["queue"].iter().chain(args).copied().collect();
        let started = std::time::Instant::now();
        let envelope = run(&bus, &args, 3).await;
        assert_eq!(envelope["error"]["code"], "REDIS_UNREACHABLE", "{envelope}");
        assert!(started.elapsed() < Duration::from_secs(4), "{args:?} took {:?}", started.elapsed());
    }
}

#[tokio::test]
async fn an_emitted_event_is_answered_listed_and_found_by_every_id() {
    let (_redis, bus) = here().await;
    let long = "é".repeat(150);
    let data = json!({ "text": long, "n": 1 }).to_string();
    let envelope = run(&bus, &["queue", "emit", "a/b", "-d", &data, "-p", "p1", "--meta", "{\"k\":1}"], 0).await;
    let result = &envelope["result"];
    let fields = ["ok", "priority", "priorityLabel", "event", "lane", "triageMode", "durability", "unrouted"];
    let got: Vec<&Value> = fields.iter().map(|field| &result[field]).collect();
    let expected =
        [json!(true), json!(1), json!("P1"), json!("a/b"), json!("a/b:p1"), json!("off"), json!("memory"), json!(true)];
    assert_eq!(got, expected.iter().collect::<Vec<_>>(), "{result}");
    assert_eq!(envelope["next_actions"][0]["params"]["stream-id"]["value"], result["streamId"]);
    assert_eq!(envelope["next_actions"][1]["params"]["event"]["value"], "a/b");
    let (stream_id, event_id) = (text(&result["streamId"]), text(&result["eventId"]));

    let listed = run(&bus, &["queue", "list"], 0).await;
    let message = &listed["result"]["messages"][0];
    assert_eq!(listed["result"]["count"], 1);
    assert_eq!((text(&message["id"]), text(&message["streamId"])), (stream_id, stream_id));
    assert_eq!(
        (&message["acked"], text(&message["state"]), &message["priority"]),
        (&json!(false), "waiting", &json!(1))
    );
    assert_eq!(text(&message["payload"]["text"]), format!("{}... (150 chars)", "é".repeat(100)));
    let full = run(&bus, &["queue", "list", "--full"], 0).await;
    assert_eq!(text(&full["result"]["messages"][0]["payload"]["text"]), long);

    for id in [stream_id, event_id, &event_id[..18]] {
        let found = run(&bus, &["queue", "inspect", id], 0).await;
        let found = &found["result"];
        assert_eq!((text(&found["message"]["id"]), text(&found["state"])), (stream_id, "waiting"));
        assert_eq!(found["message"]["metadata"]["k"], 1);
        assert_eq!(found["why"]["hold"]["kind"], "unrouted");
        assert_eq!(found["history"][0]["action"], "queue.enqueue", "{found}");
    }
    let why = run(&bus, &["queue", "why", stream_id], 0).await;
    assert_eq!(why["result"]["command"], "joelclaw queue registry explain a/b");
    assert!(text(&why["result"]["sentence"]).contains("No route serves a/b"));

    let again = emit(&bus, &["a/b", "--id", "mine"]).await;
    let duplicate = emit(&bus, &["a/b", "--id", "mine"]).await;
    assert_eq!((&duplicate["streamId"], &duplicate["duplicate"]), (&again["streamId"], &json!("id")));
    let later = emit(&bus, &["a/later", "--in", "1h", "--id", "tomorrow-1"]).await;
    assert_eq!(later["streamId"], Value::Null);
    let why = run(&bus, &["queue", "why", "tomorrow-1"], 0).await;
    assert_eq!(why["result"]["hold"]["kind"], "later");
    let scheduled = run(&bus, &["queue", "list", "--state", "later"], 0).await;
    assert_eq!(scheduled["result"]["messages"][0]["id"], "tomorrow-1");
    let lines = bus.run(&["queue", "list", "--ndjson", "--family", "a/b"]).await.assert_success();
    assert_eq!(
        lines.stdout.lines().filter(|line| serde_json::from_str::<Value>(line).unwrap()["event"] == "a/b").count(),
        2
    );
}

#[tokio::test]
async fn an_id_of_nothing_or_of_two_things_is_refused() {
    let (_redis, bus) = here().await;
    for command in ["inspect", "why"] {
        let missing = run(&bus, &["queue", command, "1749990000000-0"], 5).await;
        assert_eq!(missing["error"]["code"], "QUEUE_MESSAGE_MISSING");
        assert!(text(&missing["fix"]).contains("journal does not know"), "{missing}");
    }
    let missing = run(&bus, &["queue", "dead", "inspect", "1749990000000-0"], 5).await;
    assert_eq!(missing["error"]["code"], "QUEUE_MESSAGE_MISSING");
    for id in ["shared-id-1", "shared-id-2"] {
        emit(&bus, &["a/b", "--id", id]).await;
    }
    let two = run(&bus, &["queue", "inspect", "shared-id"], 2).await;
    assert_eq!(two["error"]["code"], "AMBIGUOUS_ID");
    assert_eq!(text(&two["error"]["message"]).matches(" in a/b:p2").count(), 2, "{two}");
    let one = run(&bus, &["queue", "inspect", "shared-id-2"], 0).await;
    assert_eq!(one["result"]["event"]["id"], "shared-id-2");
    let alive = run(&bus, &["queue", "dead", "inspect", "shared-id-2"], 5).await;
    assert_eq!(alive["fix"], "joelclaw queue why shared-id-2");
}

#[tokio::test]
async fn what_became_of_an_event_is_shown_whether_it_ended_well_or_not() {
    let (redis, bus) = here().await;
    let sink = HttpSink::start().await;
    sink.reply_next([Reply::status(422), Reply::status(200)]);
    let entry = format!("[[event]]\nname = \"a/b\"\nhandler = {{ type = \"http\", target = \"{}\" }}\n", sink.url());
    let bus = bus.registry(&entry);
    let dead = emit(&bus, &["a/b", "--id", "to-die-1", "-d", "{\"n\":1}"]).await;
    assert!(dead.get("unrouted").is_none(), "{dead}");
    let waiting = run(&bus, &["queue", "why", "to-die-1"], 0).await;
    assert_eq!(waiting["result"]["hold"]["kind"], "no_drainer");
    let mut drainer = bus.spawn(&["drainer"]);
    let listed = eventually(SOON, || async {
        let listed = run(&bus, &["queue", "dead", "list", "--family", "a/b"], 0).await;
        if listed["result"]["count"] == 1 { Ok(listed) } else { Err(listed) }
    })
    .await;
    let letter = &listed["result"]["letters"][0];
    assert_eq!(
        (text(&letter["eventId"]), text(&letter["family"]), &letter["attempts"]),
        ("to-die-1", "a/b", &json!(1))
    );
    assert_eq!(run(&bus, &["queue", "dead", "list", "--reason", "expired"], 0).await["result"]["count"], 0);
    let letter = run(&bus, &["queue", "dead", "inspect", text(&letter["id"])], 0).await;
    assert_eq!(letter["result"]["event"]["data"]["n"], 1);
    let inspected = run(&bus, &["queue", "inspect", "to-die-1"], 0).await;
    assert_eq!(
        (&inspected["result"]["state"], &inspected["result"]["why"]["hold"]["kind"]),
        (&json!("dead"), &json!("dead"))
    );

    let done = emit(&bus, &["a/b"]).await;
    let (stream_id, event_id) = (text(&done["streamId"]), text(&done["eventId"]));
    eventually(SOON, || async {
        let ran = bus.run(&["queue", "inspect", stream_id]).await;
        let is_done = ran.json()["result"]["state"] == "done" || ran.json()["fix"].to_string().contains("completed");
        if is_done { Ok(()) } else { Err(ran) }
    })
    .await;
    drainer.kill_9().await;
    redis.cli(&["EVAL", "for _,k in ipairs(redis.call('KEYS','*a/b:p2*')) do if redis.call('TYPE',k).ok=='stream' then redis.call('XTRIM',k,'MAXLEN',0) end end return 1", "0"]).await;
    for id in [stream_id, event_id] {
        let gone = run(&bus, &["queue", "inspect", id], 5).await;
        assert!(text(&gone["fix"]).starts_with("It was completed "), "{gone}");
    }
}

#[tokio::test]
async fn a_registry_file_is_checked_listed_and_explained() {
    let (_redis, bus) = here().await;
    std::fs::write(bus.home().join("bad.toml"), "[[event]]\nname = \"a/b\"\nhandler = 1\npriority = \"P9\"\n").unwrap();
    let wrong = run(&bus, &["queue", "registry", "check", "bad.toml"], 2).await;
    assert!(!wrong["result"]["problems"].as_array().unwrap().is_empty(), "{wrong}");
    assert!(text(&wrong["result"]["problems"][0]).starts_with("bad.toml:"), "{wrong}");
    run(&bus, &["queue", "registry", "check", "nowhere.toml"], 2).await;
    run(&bus, &["queue", "registry", "check"], 0).await;
    let none = run(&bus, &["queue", "registry", "explain", "x/y"], 0).await;
    assert_eq!((&none["result"]["routed"], &none["result"]["entry"]), (&json!(false), &Value::Null));
    // What it says to add is right as it is.
    let bus = bus.registry(text(&none["result"]["toAdd"]));
    run(&bus, &["queue", "registry", "check"], 0).await;
    let explained = run(&bus, &["queue", "registry", "explain", "x/y"], 0).await;
    assert_eq!(explained["result"]["routed"], true);
    assert_eq!(explained["result"]["entry"]["origin"], "registry.toml:1");
    let list = run(&bus, &["queue", "registry", "list"], 0).await;
    let entries = list["result"]["entries"].as_array().unwrap();
    assert!(entries.iter().any(|entry| entry["pattern"] == "x/y"), "{list}");
    assert!(entries.iter().any(|entry| entry["origin"] == "built in"), "{list}");
}

#[tokio::test]
async fn the_journal_is_followed_until_interrupted() {
    let (_redis, bus) = here().await;
    emit(&bus, &["a/b", "--id", "before-1"]).await;
    let mut tail = bus.spawn(&["queue", "tail", "--since", "5m", "--family", "a/b"]);
    let start: Value = serde_json::from_str(&tail.wait_for_line("\"start\"", SOON).await).unwrap();
    assert_eq!(start["type"], "start");
    tail.wait_for_line("before-1", SOON).await;
    emit(&bus, &["c/d", "--id", "other-1"]).await;
    emit(&bus, &["a/b", "--id", "after-1"]).await;
    let line: Value = serde_json::from_str(&tail.wait_for_line("after-1", SOON).await).unwrap();
    assert_eq!((text(&line["type"]), text(&line["name"])), ("event", "queue.enqueue"));
    assert_eq!(line["data"]["metadata"]["eventId"], "after-1");
    assert!(!tail.stdout().contains("other-1"));
    tail.interrupt();
    let ended = tail.wait_exit(SOON).await.assert_code(130);
    let last: Value = serde_json::from_str(ended.stdout.lines().last().unwrap()).unwrap();
    assert_eq!((&last["result"]["reason"], &last["result"]["events"]), (&json!("interrupted"), &json!(2)));
}

#[tokio::test]
async fn following_ends_when_its_reader_leaves() {
    use std::io::{BufRead as _, BufReader};
    let (redis, bus) = here().await;
    let mut child = std::process::Command::new(env!("CARGO_BIN_EXE_joelclaw"))
        .args(["queue", "tail", "--redis-url", &redis.url()])
        .env("SYSTEM_BUS_ENV_FILE", bus.env_file())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert!(line.contains("\"start\""), "{line}");
    let status = eventually(SOON, || {
        let ended = child.try_wait().unwrap().ok_or("still running");
        async move { ended }
    })
    .await;
    assert_eq!(status.code(), Some(0));
    assert_eq!(std::io::read_to_string(child.stderr.take().unwrap()).unwrap(), "");
}

#[tokio::test]
async fn a_file_of_events_is_appended_once_and_its_bad_lines_are_named() {
    let (_redis, bus) = here().await;
    let mut file: Vec<String> = (1..=450)
        .map(|n| json!({ "name": "a/b", "data": { "n": n }, "id": format!("bulk-{n}") }).to_string())
        .collect();
    file[10] = "{\"name\":".into();
    file[20] = "[1]".into();
    file[30] = json!({ "event": "a/b", "data": [1] }).to_string();
    file[300] = json!({ "name": "a/b", "priority": "P9" }).to_string();
    file[440] = file[439].clone();
    let path = bus.home().join("events.ndjson");
    std::fs::write(&path, file.join("\n")).unwrap();
    let ran = run(&bus, &["queue", "emit", "--bulk", "events.ndjson"], 2).await;
    let result = &ran["result"];
    let counts = [&result["accepted"], &result["duplicates"], &result["failed"], &result["nextLine"]];
    assert_eq!(counts, [&json!(445), &json!(1), &json!(4), &json!(451)], "{ran}");
    let lines: Vec<u64> =
        result["errors"].as_array().unwrap().iter().map(|bad| bad["line"].as_u64().unwrap()).collect();
    assert_eq!(lines, [11, 21, 31, 301], "{ran}");
    assert_eq!(run(&bus, &["queue", "depth"], 0).await["result"]["total"], 445);

    // The first bad line ends it; the lines before it are stored.
    let stdin = "{\"name\":\"a/b\",\"id\":\"s-1\"}\n{\"name\":\"a/b\",\"id\":\"s-2\"}\n?\n{\"name\":\"a/b\"}\n";
    let bus =
        bus.registry("[[event]]\nname = \"a/b\"\nhandler = { type = \"http\", target = \"http://127.0.0.1:9/\" }\n");
    let strict = run_with(&bus, &["queue", "emit", "--bulk", "-", "--strict"], stdin, 2).await;
    assert_eq!((&strict["result"]["accepted"], &strict["result"]["nextLine"]), (&json!(2), &json!(3)), "{strict}");
    let rest = run_with(&bus, &["queue", "emit", "--bulk", "-", "--from-line", "4"], stdin, 0).await;
    assert_eq!((&rest["result"]["accepted"], &rest["result"]["nextLine"]), (&json!(1), &json!(5)));
}

#[tokio::test]
async fn a_file_of_events_waits_for_redis_to_come_back() {
    let (redis, bus) = here().await;
    emit(&bus, &["a/b"]).await;
    let file: String = (0..3_000).map(|n| format!("{{\"name\":\"a/b\",\"data\":{{\"n\":{n}}}}}\n")).collect();
    std::fs::write(bus.home().join("events.ndjson"), file).unwrap();
    redis.pause();
    let mut running = bus.spawn(&["queue", "emit", "--bulk", "events.ndjson"]);
    tokio::time::sleep(Duration::from_millis(2_500)).await;
    assert!(running.is_running(), "{}", running.stdout());
    redis.resume();
    let ran = running.wait_exit(SOON).await.assert_success();
    assert_eq!((&ran.json()["result"]["accepted"], &ran.json()["result"]["failed"]), (&json!(3_000), &json!(0)));
    assert_eq!(run(&bus, &["queue", "depth"], 0).await["result"]["total"], 3_001);
}

#[tokio::test]
async fn a_condition_narrows_what_is_listed_shed_and_sent_round_again() {
    let (_redis, bus) = here().await;
    for n in 1..=3 {
        run(&bus, &["queue", "emit", "a/b", "-d", &format!("{{\"n\":{n}}}")], 0).await;
    }
    let count = async |args: &[&str]| run(&bus, args, 0).await["result"]["count"].clone();
    assert_eq!(count(&["queue", "list", "--where", "event.data.n >= 2"]).await, 2);
    assert_eq!(count(&["queue", "list", "--where", "event.data.n >= 2", "--limit", "1"]).await, 1);
    assert_eq!(count(&["queue", "list", "--where", "event.data.nothing > 2"]).await, 0);
    let wrong = run(&bus, &["queue", "list", "--where", "other == 2"], 2).await;
    assert_eq!(wrong["error"]["code"], "USAGE_ERROR", "{wrong}");

    let shed = ["queue", "shed", "a/b", "--to-dead", "--where", "event.data.n == 3"];
    let preview = run(&bus, &shed, 0).await;
    assert_eq!(preview["result"]["matched"], 1);
    assert_eq!(preview["next_actions"][0]["params"]["where"]["value"], "event.data.n == 3", "{preview}");
    let done = run(&bus, &[&shed[..], &["--apply", "--reason", "a drill"]].concat(), 0).await;
    assert_eq!(done["result"]["shed"], 1);
    assert_eq!(count(&["queue", "list"]).await, 2);

    assert_eq!(count(&["queue", "dead", "list", "--where", "event.data.n == 1"]).await, 0);
    assert_eq!(count(&["queue", "dead", "list", "--where", "event.data.n == 3"]).await, 1);
    let back = ["queue", "dead", "redrive", "--where", "event.data.n == 3", "--apply", "--reason", "over"];
    assert_eq!(run(&bus, &back, 0).await["result"]["sent"], 1);
    assert_eq!(count(&["queue", "list"]).await, 3);
}

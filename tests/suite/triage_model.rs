//! The model's providers against real programs and servers that hang, fail, answer rubbish, or answer.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use system_bus::model::{Answer, Caller, Error, KeySource, Models, Prompt, Provider, Request, Settings};
use tokio_util::sync::CancellationToken;

use crate::support::{HttpSink, Reply, eventually};

const KEY: &str = "planted-key-0123456789";

fn settings(command: &[&str], base_url: Option<String>) -> Settings {
    let command = command.iter().map(|&word| word.to_owned()).collect();
    Settings { concurrency: 2, command, base_url, key: KeySource::new(Some(KEY.into()), None, None) }
}

fn sh(script: &str) -> Models {
    Models::new(settings(&["sh", "-c", script, "{model}", "{system}"], None), CancellationToken::new())
}

async fn ask(models: &Models, chain: &[Provider], within: Duration) -> Result<Answer, Error> {
    ask_as(models, Caller::TriageEnforce, chain, within).await
}

async fn ask_as(models: &Models, caller: Caller, chain: &[Provider], within: Duration) -> Result<Answer, Error> {
    let prompt = Prompt { system: "be brief".into(), user: "what is it?".into() };
    let deadline = tokio::time::Instant::now() + within;
    models.ask(Request { caller, chain, model: "anthropic/claude-haiku-4-5", prompt: &prompt, deadline }).await
}

async fn ask_program(script: &str) -> Result<Answer, Error> {
    ask(&sh(script), &[Provider::Command], Duration::from_secs(20)).await
}

const SHORT: Duration = Duration::from_millis(300);

#[tokio::test]
async fn a_program_gets_model_and_system_as_arguments_and_the_prompt_on_stdin() {
    let answer =
        ask_program("printf '%s|%s|' \"$0\" \"$1\"; cat; test -z \"$SYSTEM_BUS_MODEL_API_KEY\"").await.unwrap();
    assert_eq!(answer.text, "anthropic/claude-haiku-4-5|be brief|what is it?");
    assert_eq!((answer.provider, answer.model.as_str()), (Provider::Command, "anthropic/claude-haiku-4-5"));
    assert!(!format!("{answer:?}").contains("what is it"), "an answer may quote a payload");
}

#[tokio::test]
async fn how_a_program_ends_decides() {
    let cases = [
        ("exit 0", Err(Error::Empty)),
        ("exit 2", Err(Error::Exit(2))),
        ("exit 143", Err(Error::Exit(143))),
        ("kill -9 $$", Err(Error::Signal(9))),
        ("echo '{\"type\":\"session\"}'", Err(Error::Empty)),
        ("echo yes; exit 1", Ok(("yes", Some("exit 1")))),
        ("echo rubbish; echo more >&2", Ok(("rubbish", None))),
    ];
    for (script, expected) in cases {
        let answer = ask_program(script).await;
        let got = answer.as_ref().map(|answer| (answer.text.as_str(), answer.detail.as_deref()));
        assert_eq!(got, expected.as_ref().map(|(text, detail)| (*text, *detail)), "{script}");
    }
    let missing = Models::new(settings(&["/nowhere/model"], None), CancellationToken::new());
    let error = ask(&missing, &[Provider::Command], SHORT).await.unwrap_err();
    assert!(matches!(error, Error::Spawn { .. }), "{error}");
    assert_eq!(error.reason(), "model_error");
}

#[tokio::test]
async fn a_program_that_hangs_is_ended_with_all_it_started_and_nobody_waits_for_it() {
    let dir = tempfile::tempdir().unwrap();
    let pids = dir.path().join("pids");
    // Both ignore SIGTERM, and the grandchild holds stdout.
    let script = format!("trap '' TERM; sleep 1000 & echo $! > {0}; echo $$ >> {0}; wait; sleep 1000", pids.display());
    let models = sh(&script);
    let asked = ask(&models, &[Provider::Command], Duration::from_secs(5));
    let error = asked.await.unwrap_err();
    assert_eq!((error.clone(), error.reason()), (Error::Timeout, "timeout"));
    let text = std::fs::read_to_string(pids).unwrap();
    eventually(Duration::from_secs(20), || async {
        let alive = |pid: &&str| {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            !stat.is_empty() && !stat.contains(") Z ")
        };
        let left: Vec<&str> = text.lines().filter(alive).collect();
        if left.is_empty() { Ok(()) } else { Err(left.len()) }
    })
    .await;
}

#[tokio::test]
async fn an_orphan_that_holds_stdout_delays_nothing() {
    let started = Instant::now();
    assert_eq!(ask_program("sleep 1000 & echo done").await.unwrap().text, "done");
    assert!(started.elapsed() < Duration::from_secs(15));
}

#[tokio::test]
async fn a_program_without_end_of_output_is_stopped() {
    assert_eq!(ask_program("yes 0123456789012345678901234567890123456789").await, Err(Error::TooLong));
    assert_eq!(ask_program("head -c 300000 /dev/zero | tr '\\0' x").await, Err(Error::TooLong));
}

async fn ask_server(provider: Provider, replies: Vec<Reply>, within: Duration) -> (Result<Answer, Error>, HttpSink) {
    let sink = HttpSink::start().await;
    sink.reply_next(replies);
    let models = Models::new(settings(&["false"], Some(sink.url())), CancellationToken::new());
    (ask(&models, &[provider], within).await, sink)
}

fn openai(text: &str) -> Reply {
    let body = json!({ "model": "gpt-x-1", "choices": [{ "message": { "role": "assistant", "content": text } }] });
    Reply::ok().body(body.to_string())
}

#[tokio::test]
async fn the_two_http_forms_are_those_of_their_vendors() {
    let (answer, sink) = ask_server(Provider::OpenAi, vec![openai(" {} ")], Duration::from_secs(20)).await;
    let answer = answer.unwrap();
    assert_eq!((answer.text.as_str(), answer.model.as_str()), ("{}", "gpt-x-1"));
    let got = &sink.received()[0];
    let bearer = format!("Bearer {KEY}");
    assert_eq!((got.path.as_str(), got.header("authorization")), ("/chat/completions", Some(bearer.as_str())));
    let body = got.json();
    assert_eq!(
        (&body["model"], &body["temperature"], &body["max_tokens"]),
        (&json!("claude-haiku-4-5"), &json!(0), &json!(1024))
    );
    assert_eq!(body["response_format"], json!({ "type": "json_object" }));
    assert_eq!(body["messages"][1], json!({ "role": "user", "content": "what is it?" }));

    let reply = json!({ "content": [{ "type": "thinking" }, { "type": "text", "text": "{\"a\":" }, { "type": "text", "text": "1}" }] });
    let replies = vec![Reply::ok().body(reply.to_string())];
    let (answer, sink) = ask_server(Provider::Anthropic, replies, Duration::from_secs(20)).await;
    let answer = answer.unwrap();
    assert_eq!((answer.text.as_str(), answer.model.as_str()), ("{\"a\":1}", "anthropic/claude-haiku-4-5"));
    let got = &sink.received()[0];
    assert_eq!((got.path.as_str(), got.header("x-api-key")), ("/v1/messages", Some(KEY)));
    assert_eq!(got.header("anthropic-version"), Some("2023-06-01"));
    assert_eq!((&got.json()["system"], got.json().get("response_format")), (&json!("be brief"), None));
}

/// Replies, time, what is answered, requests.
type Case = (Vec<Reply>, Duration, Result<&'static str, Error>, usize);

#[tokio::test]
async fn how_a_server_fails_decides() {
    let long = Duration::from_secs(20);
    let again = || Reply::status(529);
    let cases: Vec<Case> = vec![
        (vec![Reply::hang()], SHORT, Err(Error::Timeout), 1),
        (vec![again(), again()], long, Err(Error::Http(529)), 2),
        (vec![again(), openai("x")], long, Ok("x"), 2),
        (vec![Reply::status(429).header("retry-after", "30")], long, Err(Error::Http(429)), 1),
        (vec![Reply::status(429).header("retry-after", "0"), openai("x")], long, Ok("x"), 2),
        (vec![Reply::status(401)], long, Err(Error::Http(401)), 1),
        (vec![Reply::status(302).header("location", "http://127.0.0.1:1/")], long, Err(Error::Http(302)), 1),
        (vec![Reply::ok().body("<html>")], long, Err(Error::Connection("the reply is not JSON")), 1),
        (vec![Reply::ok().body("{}")], long, Err(Error::Empty), 1),
        (vec![Reply::ok().body(vec![b' '; 300_000])], long, Err(Error::TooLong), 1),
        (vec![Reply::status(400).body("response_format is not known"), openai("x")], long, Ok("x"), 2),
        (vec![Reply::status(400).body("what?")], long, Err(Error::Http(400)), 1),
    ];
    for (replies, within, expected, requests) in cases {
        let name = format!("{replies:?}");
        let (answer, sink) = ask_server(Provider::OpenAi, replies, within).await;
        assert_eq!(answer.as_ref().map(|answer| answer.text.as_str()), expected.as_ref().map(|text| *text), "{name}");
        assert_eq!(sink.received().len(), requests, "{name}");
    }
    let (_, sink) =
        ask_server(Provider::OpenAi, vec![Reply::status(400).body("no response_format"), openai("x")], long).await;
    let second: Value = sink.received()[1].json();
    assert!(second.get("response_format").is_none() && second.get("messages").is_some());
}

#[tokio::test]
async fn the_next_provider_of_the_chain_is_asked_within_the_same_deadline() {
    let sink = HttpSink::start().await;
    sink.reply_always(openai("from the server"));
    let failing = Models::new(settings(&["false"], Some(sink.url())), CancellationToken::new());
    let chain = [Provider::Rules, Provider::Command, Provider::OpenAi];
    assert_eq!(ask(&failing, &chain, Duration::from_secs(20)).await.unwrap().text, "from the server");
    // A hanging first provider leaves nothing for the second.
    let hanging = Models::new(settings(&["sleep", "1000"], Some(sink.url())), CancellationToken::new());
    assert_eq!(ask(&hanging, &chain, SHORT).await, Err(Error::Timeout));
    assert_eq!(sink.received().len(), 1);
    assert_eq!(ask(&failing, &[Provider::None], SHORT).await, Err(Error::NoProvider));
    // Beside admission nobody starts what can't end.
    let short = Duration::from_millis(900);
    assert_eq!(ask_as(&failing, Caller::TriageShadow, &chain, short).await, Err(Error::Timeout));
}

#[tokio::test]
async fn a_provider_that_keeps_failing_is_left_alone_but_not_for_the_observer() {
    let models = sh("exit 3");
    for _ in 0..3 {
        assert_eq!(ask(&models, &[Provider::Command], Duration::from_secs(20)).await, Err(Error::Exit(3)));
    }
    let error = ask(&models, &[Provider::Command], Duration::from_secs(20)).await.unwrap_err();
    assert_eq!((error.reason(), error.detail()), ("model_error", "circuit_open".into()));
    let observer = ask_as(&models, Caller::Observer, &[Provider::Command], Duration::from_secs(20)).await;
    assert_eq!(observer, Err(Error::Exit(3)));
}

#[tokio::test]
async fn one_slot_is_the_observers_and_the_waiting_room_is_bounded() {
    let stop = CancellationToken::new();
    let script = "grep -q what && [ -n \"$0\" ] && sleep 1000";
    let models = Models::new(settings(&["sh", "-c", script, "{model}"], None), stop.clone());
    let long = Duration::from_secs(600);
    let mut asking = tokio::task::JoinSet::new();
    for _ in 0..70 {
        let models = models.clone();
        asking.spawn(async move { ask(&models, &[Provider::Command], long).await });
    }
    // One runs, 64 wait, the rest is told so.
    for _ in 0..5 {
        assert_eq!(asking.join_next().await.unwrap().unwrap(), Err(Error::Busy));
    }
    let observer = ask_as(&models, Caller::Observer, &[Provider::Command], Duration::from_secs(3)).await;
    assert_eq!(observer, Err(Error::Timeout), "it ran, beside triage's 65");
    stop.cancel();
    while let Some(ended) = asking.join_next().await {
        let error = ended.unwrap().unwrap_err();
        assert_eq!((error.reason(), error.detail()), ("timeout", "shutdown".into()));
    }
}

#[tokio::test]
async fn a_key_comes_from_a_file_a_command_or_the_setting_and_is_never_shown() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("key");
    std::fs::write(&file, "\nfrom-the-file\n").unwrap();
    let command = vec!["echo".to_owned(), "from-the-command".to_owned()];
    let sources = [
        (KeySource::new(Some(KEY.into()), Some(file), Some(command.clone())), Some("Bearer from-the-file")),
        (KeySource::new(Some(KEY.into()), None, Some(command)), Some("Bearer from-the-command")),
        (KeySource::default(), None),
    ];
    for (key, expected) in sources {
        let sink = HttpSink::start().await;
        sink.reply_always(openai("x"));
        let settings = Settings { key, ..settings(&["false"], Some(sink.url())) };
        assert!(!format!("{settings:?}").contains(KEY));
        let models = Models::new(settings, CancellationToken::new());
        assert!(!format!("{models:?}").contains(KEY));
        ask(&models, &[Provider::OpenAi], Duration::from_secs(20)).await.unwrap();
        assert_eq!(sink.received()[0].header("authorization"), expected);
    }
    let failing = KeySource::new(None, None, Some(vec!["false".into()]));
    let settings = Settings { key: failing, ..settings(&["false"], None) };
    let error =
        ask(&Models::new(settings, CancellationToken::new()), &[Provider::OpenAi], Duration::from_secs(20)).await;
    assert_eq!(error, Err(Error::Key("its command failed")));
    let bad = Settings { key: KeySource::new(Some(format!("{KEY}\n").into()), None, None), ..settings_of() };
    let error = ask(&Models::new(bad, CancellationToken::new()), &[Provider::OpenAi], Duration::from_secs(20)).await;
    assert!(!format!("{error:?}").contains(KEY), "{error:?}");
}

fn settings_of() -> Settings {
    settings(&["false"], Some("http://127.0.0.1:1".into()))
}

#[tokio::test]
async fn a_model_that_answers_is_not_switched_off_by_those_who_waited_for_their_turn() {
    let models = sh("sleep 0.4; echo yes");
    let asked = (0..8).map(|_| ask(&models, &[Provider::Command], Duration::from_secs(1)));
    let answers = futures_util::future::join_all(asked).await;
    let late = answers.iter().filter(|answer| matches!(answer, Err(Error::Timeout))).count();
    assert!(late >= 4 && late + answers.iter().filter(|answer| answer.is_ok()).count() == 8, "{answers:?}");
    assert_eq!(ask(&models, &[Provider::Command], Duration::from_secs(20)).await.unwrap().text, "yes");
}

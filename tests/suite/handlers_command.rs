//! Programs as handlers: exit codes, input, and what becomes of a program that does not end.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::Value;
use system_bus::drainer::handlers::command::{CommandHandler, CommandSpec};
use system_bus::drainer::handlers::{Dispatch, Handler, Outcome};
use system_bus::streams::entry_id::EntryId;
use system_bus::streams::envelope::Envelope;
use system_bus::streams::json::JsonObject;
use system_bus::streams::priority::Priority;
use tokio_util::sync::CancellationToken;

fn dispatch(data: &str) -> Dispatch {
    let envelope = Envelope {
        v: 1,
        id: "evt:abc/123".into(),
        name: "content/updated".parse().unwrap(),
        source: "cli".into(),
        ts: 1_790_000_000_000,
        data: JsonObject::parse(data).unwrap(),
        priority: Priority::P1,
        dedup_key: None,
        trace: None,
        triage: None,
        meta: None,
    };
    Dispatch {
        envelope: Arc::new(envelope),
        entry_id: EntryId { ms: 1, seq: 2 },
        attempt: 3,
        fence: 4,
        redrives: 0,
        timeout: Duration::from_secs(20),
        cancel: CancellationToken::new(),
    }
}

/// `/bin/sh -c <script>` with `folder` as `$1`.
fn shell(script: &str, folder: &Path) -> CommandHandler {
    let args = ["-c", script, "sh", folder.to_str().unwrap()].map(str::to_owned).into();
    CommandHandler::new(CommandSpec { program: "/bin/sh".into(), args, permanent_exit: vec![3, 4] })
}

async fn outcome_of(script: &str) -> Outcome {
    let folder = tempfile::tempdir().unwrap();
    shell(script, folder.path()).run(dispatch("{}")).await
}

fn retry(error: &str, status: Option<i32>) -> Outcome {
    Outcome::Retry { error: error.into(), not_before: None, status }
}

/// Whether the process whose id a script wrote to `file` runs. A zombie does not.
fn runs(file: &Path) -> bool {
    let id = std::fs::read_to_string(file).unwrap();
    let state = std::process::Command::new("ps").args(["-o", "stat=", "-p", id.trim()]).output().unwrap();
    let state = String::from_utf8(state.stdout).unwrap();
    !state.trim().is_empty() && !state.trim().starts_with('Z')
}

async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !is_so() {
        assert!(begin.elapsed() < Duration::from_secs(10), "{what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn the_exit_code_decides() {
    assert_eq!(outcome_of("exit 0").await, Outcome::Done);
    assert_eq!(outcome_of("echo much; echo oops >&2; exit 1").await, retry("exit 1: oops", Some(1)));
    assert_eq!(outcome_of("exit 75").await, retry("exit 75", Some(75)));
    let permanent = Outcome::Fail { reason: "permanent_exit", error: "exit 3: no".into(), status: Some(3) };
    assert_eq!(outcome_of("echo no >&2; exit 3").await, permanent);
    assert_eq!(outcome_of("kill -9 $$").await, retry("killed by SIGKILL", None));
}

#[tokio::test]
async fn the_last_2_kb_of_stderr_are_kept() {
    let Outcome::Retry { error, .. } =
        outcome_of("head -c 5000 /dev/zero | tr '\\0' x >&2; echo end >&2; exit 1").await
    else {
        panic!()
    };
    assert_eq!(error, format!("exit 1: {}end", "x".repeat(2044)));
}

#[tokio::test]
async fn a_program_that_complains_on_stdout_is_heard_too() {
    assert_eq!(outcome_of("echo no disk; exit 1").await, retry("exit 1: on stdout: no disk", Some(1)));
    assert_eq!(outcome_of("echo no disk; echo oops >&2; exit 1").await, retry("exit 1: oops", Some(1)));
}

#[tokio::test]
async fn the_program_is_given_the_event_and_then_eof() {
    let folder = tempfile::tempdir().unwrap();
    let data = r#"{"n":9007199254740993,"b":1,"a":1.0}"#;
    let script = r#"cat > "$1/stdin"; echo "$EVENT_ID $EVENT_NAME $ATTEMPT" > "$1/env""#;
    assert_eq!(shell(script, folder.path()).run(dispatch(data)).await, Outcome::Done);

    let stdin = std::fs::read_to_string(folder.path().join("stdin")).unwrap();
    assert!(stdin.contains(&format!(r#""data":{data}"#)), "{stdin}");
    let event: Value = serde_json::from_str(&stdin).unwrap();
    assert_eq!((&event["id"], &event["name"]), (&"evt:abc/123".into(), &"content/updated".into()));
    let env = std::fs::read_to_string(folder.path().join("env")).unwrap();
    assert_eq!(env, "evt:abc/123 content/updated 3\n");
}

#[tokio::test]
async fn arguments_pass_no_shell() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("a b;$HOME*");
    let args = vec![file.to_str().unwrap().to_owned()];
    let handler = CommandHandler::new(CommandSpec { program: "touch".into(), args, ..CommandSpec::default() });
    assert_eq!((handler.kind(), handler.target()), ("command", "touch"));
    assert_eq!(handler.run(dispatch("{}")).await, Outcome::Done);
    assert!(file.exists());
}

#[tokio::test]
async fn a_process_left_behind_with_the_output_open_delays_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let begin = Instant::now();
    let script = r#"sleep 60 & echo $! > "$1/left"; exit 0"#;
    assert_eq!(shell(script, folder.path()).run(dispatch("{}")).await, Outcome::Done);
    assert!(begin.elapsed() < Duration::from_secs(10));
    assert!(runs(&folder.path().join("left")));
    let id = std::fs::read_to_string(folder.path().join("left")).unwrap();
    std::process::Command::new("kill").arg(id.trim()).status().unwrap();
}

#[tokio::test]
async fn a_program_need_not_read_its_input() {
    let data = format!(r#"{{"a":"{}"}}"#, "x".repeat(1 << 20));
    let folder = tempfile::tempdir().unwrap();
    for script in ["exit 0", "exec 0<&-; sleep 0.2; exit 0", "sleep 0.2"] {
        assert_eq!(shell(script, folder.path()).run(dispatch(&data)).await, Outcome::Done, "{script}");
    }
    let script = r#"test "$(wc -c)" -gt 1048576"#;
    assert_eq!(shell(script, folder.path()).run(dispatch(&data)).await, Outcome::Done);
}

#[tokio::test]
async fn at_the_timeout_the_whole_group_ends() {
    let folder = tempfile::tempdir().unwrap();
    let script = r#"echo begun >&2; sleep 60 & echo $! > "$1/child"; wait"#;
    let mut slow = dispatch("{}");
    slow.timeout = Duration::from_millis(700);
    let begin = Instant::now();
    let ended = shell(script, folder.path()).run(slow).await;
    assert_eq!(ended, retry("still running after 700 ms: begun", None));
    assert!(begin.elapsed() < Duration::from_secs(10));
    until("the child ends", || !runs(&folder.path().join("child"))).await;
}

#[tokio::test]
async fn who_ignores_sigterm_is_killed() {
    let folder = tempfile::tempdir().unwrap();
    // The leader ends at once; the one it started does not.
    let script = r#"sh -c 'trap "" TERM; echo $$ > "$0/stubborn"; while :; do sleep 0.1; done' "$1" & wait"#;
    let mut slow = dispatch("{}");
    slow.timeout = Duration::from_millis(700);
    let ended = shell(script, folder.path()).run(slow).await;
    assert!(matches!(ended, Outcome::Retry { .. }), "{ended:?}");
    until("the stubborn one ends", || !runs(&folder.path().join("stubborn"))).await;
}

#[tokio::test]
async fn dropping_the_future_kills_the_group() {
    let folder = tempfile::tempdir().unwrap();
    let child = folder.path().join("child");
    let handler = shell(r#"sleep 60 & echo $! > "$1/new"; mv "$1/new" "$1/child"; wait"#, folder.path());
    {
        let running = handler.run(dispatch("{}"));
        tokio::select! {
            ended = running => panic!("{ended:?}"),
            () = until("the child starts", || child.exists()) => {}
        }
    }
    until("the child ends", || !runs(&child)).await;
}

#[tokio::test]
async fn cancelled_before_the_start_is_handed_back_and_later_is_a_failed_try() {
    let folder = tempfile::tempdir().unwrap();
    let handler = shell(r#"touch "$1/begun"; sleep 60"#, folder.path());
    let early = dispatch("{}");
    early.cancel.cancel();
    assert_eq!(handler.run(early).await, Outcome::Cancelled);
    let begun = folder.path().join("begun");
    assert!(!begun.exists());

    let late = dispatch("{}");
    let cancel = late.cancel.clone();
    let cancelled = async {
        until("the program starts", || begun.exists()).await;
        cancel.cancel();
    };
    let (ended, ()) = tokio::join!(handler.run(late), cancelled);
    assert_eq!(ended, retry("cancelled while it was running", None));
}

#[tokio::test]
async fn a_missing_program_is_tried_again() {
    let spec = CommandSpec { program: "/nowhere/program".into(), ..CommandSpec::default() };
    let Outcome::Retry { error, status, .. } = CommandHandler::new(spec).run(dispatch("{}")).await else { panic!() };
    assert!(error.starts_with("`/nowhere/program` can't be started: No such file"), "{error}");
    assert_eq!(status, None);
}

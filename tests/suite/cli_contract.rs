//! The command line's contract, run as scripts run it: the real binary, its own home, an empty environment.

// The lint's exemption covers test functions, not their helpers.

use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

/// A home directory with an env file; nothing of this machine's environment reaches the binary.
struct Home(tempfile::TempDir);

impl Home {
    fn new(env_file: &str) -> Self {
        let home = Self(tempfile::tempdir().unwrap());
        std::fs::create_dir_all(home.0.path().join(".config")).unwrap();
        std::fs::write(home.env_file(), env_file).unwrap();
        use std::os::unix::fs::PermissionsExt;
        std::fs::set_permissions(home.env_file(), std::fs::Permissions::from_mode(0o600)).unwrap();
        home
    }

    fn env_file(&self) -> PathBuf {
        self.0.path().join(".config/system-bus.env")
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_joelclaw"));
        command.args(args).env_clear().env("HOME", self.0.path()).current_dir(self.0.path()).stdin(Stdio::null());
        command
    }

    fn run(&self, args: &[&str]) -> Run {
        Run::of(self.command(args).output().unwrap())
    }

    fn run_with(&self, args: &[&str], environment: &[(&str, &str)]) -> Run {
        Run::of(self.command(args).envs(environment.iter().copied()).output().unwrap())
    }
}

struct Run {
    stdout: String,
    stderr: String,
    exit: i32,
}

impl Run {
    fn of(output: Output) -> Self {
        Self {
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
            exit: output.status.code().expect("ended by a signal"),
        }
    }

    /// One envelope on one line, stderr empty: what every command owes a pipe.
    #[track_caller]
    fn envelope(&self) -> Value {
        assert_eq!(self.stderr, "");
        assert_eq!(self.stdout.trim_end_matches('\n').lines().count(), 1, "{}", self.stdout);
        let envelope: Value = serde_json::from_str(&self.stdout).unwrap();
        assert_eq!(violations(&envelope), Vec::<String>::new(), "{envelope}");
        envelope
    }
}

/// The contract's validator: its messages, empty when the envelope is valid.
fn violations(envelope: &Value) -> Vec<String> {
    let is_text = |value: &Value| value.as_str().is_some_and(|text| !text.is_empty());
    let mut found = Vec::new();
    let mut check = |holds: bool, message: String| {
        if !holds {
            found.push(message);
        }
    };
    check(envelope["ok"].is_boolean(), "ok must be boolean".into());
    check(is_text(&envelope["command"]), "command must be non-empty string".into());
    check(envelope.get("result").is_some(), "result field is required".into());
    match envelope["next_actions"].as_array() {
        None => check(false, "next_actions must be an array".into()),
        Some(actions) => {
            check(actions.len() <= 8, "at most 8 next_actions".into());
            for (i, action) in actions.iter().enumerate() {
                check(is_text(&action["command"]), format!("next_actions[{i}].command must be non-empty string"));
                check(
                    is_text(&action["description"]),
                    format!("next_actions[{i}].description must be non-empty string"),
                );
            }
        }
    }
    if let Some(error) = envelope.get("error") {
        check(is_text(&error["message"]), "error.message must be non-empty string".into());
        check(is_text(&error["code"]), "error.code must be non-empty string".into());
        check(is_text(&envelope["fix"]), "fix must be non-empty string when error is present".into());
        check(envelope["result"].is_null() && envelope["ok"] == false, "a failure has no result".into());
    }
    found
}

#[test]
fn config_shows_each_value_and_what_chose_it() {
    let home = Home::new("QUEUE_DRAINER_CONCURRENCY=2\nREDIS_URL=redis://:pw@file:7000/1\n");
    let environment = [("QUEUE_DRAINER_CONCURRENCY", "3"), ("WORKER_PORT", "4000")];
    let run = home.run_with(&["config"], &environment);
    assert_eq!(run.exit, 0);
    let envelope = run.envelope();
    assert_eq!((&envelope["ok"], &envelope["command"]), (&Value::Bool(true), &Value::from("joelclaw config")));
    let result = &envelope["result"];
    let of = |key: &str| (result["settings"][key]["value"].clone(), result["settings"][key]["origin"].clone());
    assert_eq!(of("QUEUE_DRAINER_CONCURRENCY"), ("2".into(), "file".into()), "the file wins over the environment");
    assert_eq!(of("WORKER_PORT"), ("4000".into(), "environment".into()));
    assert_eq!(of("QUEUE_DRAIN_MAX_ATTEMPTS"), ("12".into(), "default".into()));
    assert_eq!(result["redis"], serde_json::json!({"url": "redis://file:7000/1", "origin": "file"}));
    assert_eq!(result["warnings"], serde_json::json!([]));

    let run = home.run_with(&["config", "--redis-url", "redis://flag"], &[("REDIS_URL", "redis://env")]);
    assert_eq!(run.envelope()["result"]["redis"]["origin"], "flag");
}

#[test]
fn the_env_file_is_read_as_a_shell_would() {
    let home = Home::new("# ours\n\nexport WORKER_PORT='4001'\nWORKER_PORT=\"4002\" # last wins\nnonsense\n");
    let envelope = home.run(&["config"]).envelope();
    assert_eq!(envelope["result"]["settings"]["WORKER_PORT"]["value"], "4002");
    let warning = &envelope["result"]["warnings"][0];
    assert_eq!(warning["code"], "CONFIG_FILE_LINE");
    assert!(warning["message"].as_str().unwrap().contains("line 5"));

    let other = home.0.path().join("other.env");
    std::fs::write(&other, "WORKER_PORT=4003\n").unwrap();
    let run = home.run(&["config", "--env-file", other.to_str().unwrap()]);
    assert_eq!(run.envelope()["result"]["settings"]["WORKER_PORT"]["value"], "4003");
    let run = home.run_with(&["config"], &[("SYSTEM_BUS_ENV_FILE", other.to_str().unwrap())]);
    assert_eq!(run.envelope()["result"]["settings"]["WORKER_PORT"]["value"], "4003");
}

#[test]
fn a_planted_secret_is_in_no_output() {
    const SECRET: &str = "hunter2";
    let home = Home::new(&format!(
        "GITHUB_WEBHOOK_SECRET={SECRET}\nINNGEST_EVENT_KEY={SECRET}\nREDIS_URL=redis://{SECRET}:{SECRET}@h/1\n\
         INNGEST_URL=http://u:{SECRET}@h\nQUEUE_{SECRET}\n"
    ));
    let url = format!("redis://:{SECRET}@h:1");
    let bad_url = format!("redis//:{SECRET}@h:1");
    let commands: &[&[&str]] = &[
        &["config"],
        &["config", "--json", "--verbose"],
        &["config", "--ndjson"],
        &["config", "--redis-url", &url],
        &["config", "--redis-url", &bad_url],
        &["config", &url],
        &["--redis-url", &url, "nothing"],
    ];
    for args in commands {
        for format in ["json", "text"] {
            let environment = [("JOELCLAW_OUTPUT", format), ("REDIS_URL", &format!("redis://x:{SECRET}@other"))];
            let run = home.run_with(args, &environment);
            assert!(!run.stdout.contains(SECRET), "{args:?}: {}", run.stdout);
            assert!(!run.stderr.contains(SECRET), "{args:?}: {}", run.stderr);
        }
    }
    let shown = home.run(&["config"]).envelope()["result"]["settings"]["GITHUB_WEBHOOK_SECRET"]["value"].clone();
    assert_eq!(shown, "set (sha256 f52fbd…)");
}

#[test]
fn two_redis_urls_are_a_warning_that_names_both() {
    let home = Home::new("REDIS_URL=redis://mine\n");
    let envelope = home.run_with(&["config"], &[("REDIS_URL", "redis://:pw@cloud:6380")]).envelope();
    let redis = &envelope["result"]["redis"];
    assert_eq!((&redis["url"], &redis["origin"]), (&"redis://mine:6379/0".into(), &"file".into()));
    assert_eq!(redis["warnings"][0]["code"], "CONFIG_REDIS_MISMATCH");
    let message = redis["warnings"][0]["message"].as_str().unwrap();
    assert!(message.contains("redis://mine:6379/0") && message.contains("redis://cloud:6380/0"), "{message}");
}

#[test]
fn every_failure_is_an_envelope_with_its_exit_code() {
    let home = Home::new("");
    let broken = Home::new("REDIS_URL=localhost\n");
    let cases: &[(&Home, &[&str], i32, &str, &str)] = &[
        (&home, &["nothing"], 2, "UNKNOWN_COMMAND", "joelclaw"),
        (&home, &["confg"], 2, "UNKNOWN_COMMAND", "joelclaw"),
        (&home, &[], 2, "USAGE_ERROR", "joelclaw"),
        (&home, &["config", "--wrong"], 2, "USAGE_ERROR", "joelclaw config"),
        (&home, &["config", "--watch", "0"], 2, "USAGE_ERROR", "joelclaw config"),
        (&home, &["config", "--json", "--ndjson"], 2, "USAGE_ERROR", "joelclaw config"),
        (&home, &["config", "--env-file", "none.env"], 2, "CONFIG_FILE_UNREADABLE", "joelclaw config"),
        (&home, &["config", "--redis-url", "http://h"], 2, "CONFIG_REDIS_URL_INVALID", "joelclaw config"),
        (&broken, &["config"], 78, "CONFIG_REDIS_URL_INVALID", "joelclaw config"),
        (&home, &["explain", "NOTHING_LIKE_IT"], 5, "CODE_UNKNOWN", "joelclaw explain"),
    ];
    for (home, args, exit, code, command) in cases {
        let run = home.run(args);
        let envelope = run.envelope();
        assert_eq!((run.exit, envelope["error"]["code"].as_str()), (*exit, Some(*code)), "{args:?}");
        assert_eq!(envelope["command"], *command, "{args:?}");
    }
    assert_eq!(home.run(&["confg"]).envelope()["fix"], "joelclaw config", "a typo gets the command that was meant");
}

#[test]
fn what_needs_no_configuration_works_with_a_broken_one() {
    let broken = Home::new("REDIS_URL=localhost\n");
    let run = broken.run(&["explain", "redis_unreachable"]);
    assert_eq!((run.exit, &run.envelope()["result"]["code"]), (0, &"REDIS_UNREACHABLE".into()));
    for shell in ["bash", "zsh", "fish"] {
        let run = broken.run(&["completions", shell]);
        assert_eq!((run.exit, run.stderr.as_str()), (0, ""));
        assert!(run.stdout.contains("joelclaw") && !run.stdout.starts_with('{'), "a script, ready to be sourced");
    }
}

#[test]
fn help_and_version_are_text() {
    let home = Home::new("");
    for args in [&["--help"][..], &["config", "--help"], &["--version"], &["--json", "--help"]] {
        let run = home.run(args);
        assert_eq!((run.exit, run.stderr.as_str()), (0, ""), "{args:?}");
        assert!(run.stdout.contains("joelclaw") && !run.stdout.contains('\u{1b}'), "{}", run.stdout);
    }
}

#[test]
fn text_in_a_pipe_has_no_colour_and_ends_with_what_to_do_next() {
    let home = Home::new("");
    for extra in [&[][..], &[("NO_COLOR", "1")], &[("TERM", "xterm-256color")]] {
        let environment = [&[("JOELCLAW_OUTPUT", "text")], extra].concat();
        let run = home.run_with(&["config"], &environment);
        assert!(!run.stdout.contains('\u{1b}'));
        assert!(run.stdout.contains("QUEUE_DRAINER_CONCURRENCY"));
        assert!(
            run.stdout.trim_end().ends_with("joelclaw config --docs  # What every setting means"),
            "{}",
            run.stdout
        );
    }
    let run = home.run_with(&["config", "--quiet"], &[("JOELCLAW_OUTPUT", "text")]);
    assert!(!run.stdout.contains("--docs"));
    let run = home.run_with(&["explain", "NOTHING"], &[("JOELCLAW_OUTPUT", "text")]);
    assert_eq!((run.stdout.as_str(), run.exit), ("", 5));
    assert!(run.stderr.starts_with("error: no code `NOTHING` (CODE_UNKNOWN)\nfix: "), "{}", run.stderr);
}

#[test]
fn a_reader_that_leaves_is_no_failure() {
    let home = Home::new("");
    let mut child =
        home.command(&["config", "--watch", "1"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut first = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut first).unwrap();
    let snapshot: Value = serde_json::from_str(&first).unwrap();
    assert_eq!(snapshot["type"], "snapshot");
    // The reader is gone now; the next snapshot can't be written.
    assert_eq!(child.wait().unwrap().code(), Some(0));
    let mut stderr = String::new();
    child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
    assert_eq!(stderr, "");
}

#[test]
fn a_watch_ends_with_a_result_when_it_is_interrupted() {
    let home = Home::new("");
    let mut child = home.command(&["config", "--watch", "60"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    lines.next().unwrap().unwrap();
    let pid = nix::unistd::Pid::from_raw(child.id().try_into().unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).unwrap();
    let last: Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
    assert_eq!((&last["type"], &last["result"]["reason"]), (&"result".into(), &"interrupted".into()));
    assert_eq!(child.wait().unwrap().code(), Some(130));
}

#[test]
fn lists_are_printed_item_by_item() {
    let run = Home::new("").run(&["explain", "--ndjson"]);
    assert!(run.stdout.lines().count() > 20);
    for line in run.stdout.lines() {
        let item: Value = serde_json::from_str(line).unwrap();
        assert!(item["code"].is_string());
    }
}

#[test]
fn the_docs_are_a_markdown_table() {
    let run = Home::new("").run(&["config", "--docs"]);
    assert!(run.stdout.starts_with("# Configuration\n"));
    assert!(run.stdout.contains("| `QUEUE_DRAIN_LEASE_MS` | `30000` |"));
    let asked = Home::new("").run(&["config", "--docs", "--json"]).envelope();
    assert_eq!(asked["result"]["markdown"], run.stdout);
}

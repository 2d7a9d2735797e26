//! `registry.toml`: what wins, what is refused and in which words, and how a running process follows the file.

use std::path::{Path, PathBuf};
use std::time::Duration;

use system_bus::drainer::plan::RetryPolicy;
use system_bus::registry::entry::{HandlerSpec, Origin};
use system_bus::registry::watch::RegistryHandle;
use system_bus::registry::{Error, Registry};
use system_bus::streams::family::Family;
use system_bus::streams::json::JsonObject;
use tokio_util::sync::CancellationToken;

const ONE: &str = "[[event]]\nname = \"a/one\"\nhandler = { type = \"local\", target = \"noop\" }\n";
const TWO: &str = "[[event]]\nname = \"a/two\"\nhandler = { type = \"local\", target = \"noop\" }\n";
const WRONG: &str = "[[event]]\nname = \"a/two\"\nprioritty = 1\nhandler = { type = \"local\", target = \"noop\" }\n";
const LONG: Duration = Duration::from_secs(20);

fn parse(text: &str) -> Result<Registry, Error> {
    Registry::parse(text, Path::new("registry.toml"))
}

fn family(name: &str) -> Family {
    name.parse().unwrap()
}

fn problems(text: &str) -> Vec<String> {
    let error = parse(text).unwrap_err();
    assert!(matches!(error, Error::Invalid { .. }), "{error}");
    error.to_string().lines().map(str::to_owned).collect()
}

/// A registry file in a folder of its own, replaced as an editor does it.
struct File {
    folder: tempfile::TempDir,
}

impl File {
    fn new(text: &str) -> Self {
        let file = Self { folder: tempfile::tempdir().unwrap() };
        file.write(text);
        file
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("registry.toml")
    }

    fn write(&self, text: &str) {
        let new = self.folder.path().join("new");
        std::fs::write(&new, text).unwrap();
        std::fs::rename(new, self.path()).unwrap();
    }
}

#[test]
fn the_most_exact_entry_wins() {
    let local = |kind: &str, name: &str, target: &str| {
        format!("[[event]]\n{kind} = \"{name}\"\nhandler = {{ type = \"local\", target = \"{target}\" }}\n")
    };
    let text = [
        local("pattern", "*", "everything"),
        local("pattern", "github/*", "short"),
        local("pattern", "github/pull*", "long"),
        local("name", "github/pull_request.opened", "exact"),
        local("name", "discovery/noted", "instead of the built-in"),
    ]
    .concat();
    let registry = parse(&text).unwrap();
    for (name, expected) in [
        ("gitlab/push", "everything"),
        ("github/push", "short"),
        ("github/pull_request.closed", "long"),
        ("github/pull_request.opened", "exact"),
        ("discovery/noted", "instead of the built-in"),
        // A built-in name is exact: only an entry of that name replaces it.
        ("github/workflow_run.completed", "github/workflow_run.completed"),
    ] {
        assert_eq!(registry.lookup(&family(name)).unwrap().handler.target(), expected, "{name}");
    }
    let explained = registry.explain(&family("discovery/noted"));
    let shadowed: Vec<_> = explained.shadowed.iter().map(|e| (e.pattern.to_string(), e.origin)).collect();
    assert_eq!(shadowed, [("discovery/noted".to_owned(), Origin::BuiltIn), ("*".to_owned(), Origin::File { line: 1 })]);
}

#[test]
fn each_mistake_has_its_line_its_key_and_its_words() {
    for (line, expected) in [
        ("prioritty = 1", "registry.toml:3: prioritty: unknown key; did you mean `priority`?"),
        ("priority = \"P7\"", "registry.toml:3: priority: write P0, P1, P2 or P3"),
        ("weight = 0", "registry.toml:3: weight: must be a whole number of at least 1"),
        ("ordered = 1", "registry.toml:3: ordered: must be true or false"),
        ("rate = \"5/fortnight\"", "registry.toml:3: rate: must be a rate such as"),
        ("max_age = 5", "registry.toml:3: max_age: must be a duration such as"),
        ("dedup_window = \"0s\"", "registry.toml:3: dedup_window: must be a duration such as"),
        ("backoff = { jitter = \"half\" }", "registry.toml:3: backoff.jitter: write \"full\" or \"none\""),
        ("backoff = { jiter = \"full\" }", "registry.toml:3: backoff.jiter: unknown key; did you mean `jitter`?"),
        ("pattern = \"a/*\"", "registry.toml:1: name: give either `name` or `pattern`, not both"),
        ("name = \"b/c\"", "registry.toml:3: duplicate key"),
    ] {
        let text = format!(
            "[[event]]\nname = \"a/b\"\n{line}\nhandler = {{ type = \"local\", target = \"noop\" }}\n# the end\n"
        );
        let problems = problems(&text);
        assert_eq!(problems.len(), 1, "{problems:?}");
        assert!(problems[0].starts_with(expected), "{expected} is not {}", problems[0]);
    }
}

#[test]
fn each_handler_says_what_it_needs() {
    for (handler, expected) in [
        ("{ target = \"x\" }", "handler.type: is missing"),
        ("{ type = \"local\" }", "handler.target: is missing"),
        ("{ type = \"command\" }", "handler.program: is missing"),
        ("{ type = \"command\", program = \"x\", permanent_exit = [\"3\"] }", "handler.permanent_exit: has an item"),
        ("{ type = \"inngest\", target = \"not a name\" }", "handler.target: "),
        ("{ type = \"http\", target = \"ftp://a/b\" }", "handler.target: must begin with http:// or https://"),
        (
            "{ type = \"http\", target = \"http://a\", header = {} }",
            "handler.header: unknown key; did you mean `headers`?",
        ),
        (
            "{ type = \"http\", target = \"http://a\", headers = { \"x y\" = \"1\" } }",
            "handler.headers: `x y` is no header name",
        ),
        (
            "{ type = \"http\", target = \"http://a\", headers = { x-own = \"a\\nb\" } }",
            "handler.headers: the value of header `x-own` can't be sent",
        ),
    ] {
        let problems = problems(&format!("[[event]]\nname = \"a/b\"\nhandler = {handler}\n"));
        assert_eq!(problems.len(), 1, "{problems:?}");
        let expected = format!("registry.toml:3: {expected}");
        assert!(problems[0].starts_with(&expected), "{expected} is not {}", problems[0]);
    }
}

#[test]
fn an_expression_that_does_not_parse_is_a_problem_and_never_a_crash() {
    for wrong in ["data.", "'", "\\\"", "(", "a b", "data.url +", "[", "{", "data[", "1 ? 2", "\u{1f980}"] {
        let text = format!("[[event]]\nname = \"discovery/noted\"\ndedup_key = '''{wrong}'''\n");
        let problems = problems(&text);
        assert!(problems[0].starts_with("registry.toml:3: dedup_key: "), "{wrong}: {problems:?}");
    }
}

#[test]
fn a_key_is_derived_only_from_what_can_be_one() {
    let data = JsonObject::parse(r#"{"url":" https://a/b ","empty":"","n":7,"list":["a"],"none":null}"#).unwrap();
    for (expression, expected) in [
        ("data.url", Some("https://a/b")),
        ("source + '/' + name", Some("cli/discovery/noted")),
        ("data.list[0]", Some("a")),
        ("data.empty", None),
        ("data.list", None),
        ("data.none", None),
        ("data.missing.deeper", None),
        ("data.list[9]", None),
        ("data.n / 0", None),
        ("true", None),
    ] {
        let text = format!("[[event]]\nname = \"discovery/noted\"\ndedup_key = \"{expression}\"\n");
        let registry = parse(&text).unwrap();
        let key = registry.lookup(&family("discovery/noted")).unwrap().dedup_key.clone().unwrap();
        assert_eq!(key.derive(&family("discovery/noted"), "cli", &data).as_deref(), expected, "{expression}");
    }
}

#[test]
fn the_hash_is_of_the_table_and_not_of_the_file() {
    let base = parse(&format!("{ONE}{TWO}")).unwrap();
    assert_eq!(base.hash().len(), 64, "{}", base.hash());
    let moved = parse(&format!("# a comment\n\n{TWO}\n\n{ONE}")).unwrap();
    assert_eq!(moved.hash(), base.hash());
    let with = |line: &str| parse(&format!("{ONE}{TWO}{line}\n")).unwrap().hash().to_owned();
    let mut seen = vec![base.hash().to_owned(), Registry::builtin().hash().to_owned()];
    for line in [
        "priority = \"P0\"",
        "dedup_window = \"1m\"",
        "dedup_key = \"data.url\"",
        "description = \"x\"",
        "concurrency = 1",
        "attempts = 1",
        "backoff = { initial = \"1s\" }",
        "backoff = { max = \"1s\" }",
        "backoff = { multiplier = 3 }",
        "backoff = { jitter = \"none\" }",
        "timeout = \"1s\"",
        "rate = 1",
        "weight = 2",
        "ordered = true",
        "max_age = \"1s\"",
        "retry_client_errors = true",
    ] {
        let hash = with(line);
        assert!(!seen.contains(&hash), "{line} leaves the hash as it was");
        seen.push(hash);
    }
    let http = |rest: &str| {
        let text = format!("[[event]]\nname = \"a/b\"\nhandler = {{ type = \"http\", target = \"http://a\"{rest} }}\n");
        parse(&text).unwrap().hash().to_owned()
    };
    assert_ne!(http(", headers = { x = \"1\" }"), http(", headers = { x = \"2\" }"));
    assert_ne!(http(", secret_env = \"A\""), http(", secret_env = \"B\""));
}

#[test]
fn no_secret_of_an_entry_is_shown() {
    let text = r#"
[[event]]
name = "a/http"
handler = { type = "http", target = "https://user:secret-word@host/hook?token=secret-word#secret-word", headers = { authorization = "Bearer secret-word" } }
[[event]]
name = "a/command"
handler = { type = "command", program = "/bin/true", args = ["--token=secret-word"] }
"#;
    let registry = parse(text).unwrap();
    let entry = registry.lookup(&family("a/http")).unwrap();
    assert_eq!(entry.handler.target(), "https://host/hook");
    let shown = format!("{registry:?}");
    assert!(shown.contains("https://host/hook") && shown.contains("authorization"), "{shown}");
    assert!(!shown.contains("secret-word"), "{shown}");
    // What is sent is as it was written.
    let HandlerSpec::Http { target, headers, .. } = &entry.handler else { panic!() };
    assert!(target.contains("user:secret-word@") && headers[0].1 == "Bearer secret-word");
}

#[test]
fn a_missing_file_is_an_empty_one_and_an_unreadable_one_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let registry = Registry::load(&folder.path().join("none.toml")).unwrap();
    assert_eq!(registry.hash(), Registry::builtin().hash());
    assert!(matches!(Registry::load(folder.path()), Err(Error::Unreadable { .. })));
}

#[test]
fn a_wrong_file_keeps_the_last_good_table_and_says_so_until_it_is_mended() {
    let file = File::new(ONE);
    let handle = RegistryHandle::load(file.path()).unwrap();
    let fault = handle.fault();
    let (version, hash) = (handle.version(), handle.current().hash().to_owned());
    assert!(fault.borrow().is_none());

    file.write(WRONG);
    assert!(matches!(handle.reload(), Err(Error::Invalid { .. })));
    assert_eq!((handle.version(), handle.current().hash()), (version, hash.as_str()));
    assert!(fault.borrow().as_ref().unwrap().to_string().starts_with("registry.toml:3: prioritty:"));

    file.write(TWO);
    assert_eq!(handle.reload(), Ok(true));
    assert!(handle.version() > version);
    assert!(handle.current().lookup(&family("a/two")).is_some());
    assert!(fault.borrow().is_none());
}

#[test]
fn a_moved_table_changes_the_lines_and_nothing_else() {
    let file = File::new(ONE);
    let handle = RegistryHandle::load(file.path()).unwrap();
    let version = handle.version();
    file.write(&format!("# a comment\n{ONE}"));
    assert_eq!(handle.reload(), Ok(false));
    assert_eq!(handle.version(), version);
    assert_eq!(handle.current().lookup(&family("a/one")).unwrap().origin, Origin::File { line: 2 });
}

#[test]
fn a_file_that_goes_away_takes_no_route_with_it() {
    let file = File::new(ONE);
    let handle = RegistryHandle::load(file.path()).unwrap();
    std::fs::remove_file(file.path()).unwrap();
    assert!(matches!(handle.reload(), Err(Error::Unreadable { .. })));
    assert!(handle.current().lookup(&family("a/one")).is_some());
    file.write("");
    assert_eq!(handle.reload(), Ok(true));
    assert!(handle.current().lookup(&family("a/one")).is_none());
}

#[tokio::test]
async fn a_change_is_in_force_without_a_restart() {
    let file = File::new(ONE);
    let handle = RegistryHandle::load(file.path()).unwrap();
    // Between loading and watching: a change here must not be missed.
    file.write(&format!("{ONE}{TWO}"));
    let stop = CancellationToken::new();
    let watching = tokio::spawn(handle.clone().watch(stop.clone()));
    let until = async |what: &str, is_so: &dyn Fn() -> bool| {
        let wait = async {
            while !is_so() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        assert!(tokio::time::timeout(LONG, wait).await.is_ok(), "{what}");
    };
    until("the second entry", &|| handle.current().lookup(&family("a/two")).is_some()).await;

    let mut fault = handle.fault();
    file.write(WRONG);
    tokio::time::timeout(LONG, fault.wait_for(Option::is_some)).await.unwrap().unwrap();
    assert!(handle.current().lookup(&family("a/one")).is_some(), "the last good table stays");

    file.write(TWO);
    until("the first entry's end", &|| handle.current().lookup(&family("a/one")).is_none()).await;
    assert!(fault.borrow().is_none());
    stop.cancel();
    tokio::time::timeout(LONG, watching).await.unwrap().unwrap();
}

#[test]
fn delays_grow_to_the_cap_and_full_jitter_draws_a_share() {
    let policy = RetryPolicy {
        attempts: 12,
        initial: Duration::from_secs(1),
        multiplier: 2.0,
        max: Duration::from_secs(600),
        full_jitter: false,
    };
    let jittered = RetryPolicy { full_jitter: true, ..policy.clone() };
    for (failures, random, plain_ms, jittered_ms) in [
        (0, 0.5, 1_000, 500),
        (1, 0.5, 1_000, 500),
        (2, 0.5, 2_000, 1_000),
        (5, 0.25, 16_000, 4_000),
        (10, 0.0, 512_000, 0),
        (11, 1.0, 600_000, 600_000),
        (u32::MAX, 0.5, 600_000, 300_000),
    ] {
        assert_eq!(policy.delay(failures, random).as_millis(), plain_ms, "{failures}");
        assert_eq!(jittered.delay(failures, random).as_millis(), jittered_ms, "{failures} × {random}");
    }
    let flat = RetryPolicy { multiplier: 1.0, ..policy };
    assert_eq!(flat.delay(9, 0.5).as_millis(), 1_000);
}

use std::time::Duration;

use secrecy::ExposeSecret;

use super::*;

/// A home with an env file, and nothing of this machine's environment.
struct Home {
    dir: tempfile::TempDir,
    sources: Sources,
}

impl Home {
    fn new(env_file: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(".config/system-bus.env");
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, env_file).unwrap();
        set_mode(&path, 0o600);
        let sources = Sources { home: dir.path().to_path_buf(), ..Sources::default() };
        Self { dir, sources }
    }

    fn env(mut self, key: &str, value: &str) -> Self {
        self.sources.environment.insert(key.into(), value.into());
        self
    }

    fn flag(mut self, key: &str, value: &str) -> Self {
        self.sources = self.sources.flag(key, Some(value.into()));
        self
    }

    fn load(&self) -> Config {
        Config::load(&self.sources).unwrap()
    }
}

fn set_mode(path: &std::path::Path, mode: u32) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

fn origin_of(config: &Config, key: &str) -> Origin {
    config.effective.iter().find(|e| e.declared.key == key).unwrap().origin
}

fn codes(config: &Config) -> Vec<&'static str> {
    config.warnings.iter().map(|warning| warning.code).collect()
}

#[test]
fn every_default_is_accepted_by_its_kind() {
    let config = Home::new("").load();
    assert_eq!(config.warnings, []);
    assert!(config.effective.iter().all(|e| e.origin == Origin::Default));
    assert_eq!(config.effective.len(), settings::declared().len());
    assert_eq!(config.drainer.concurrency, 16);
    assert_eq!(config.drainer.lease, Duration::from_secs(30));
    assert_eq!(config.drainer.fairness, Fairness::Drr);
    assert_eq!(config.queue.max_event_bytes, 512 << 10);
    assert_eq!(config.queue.memory_budget, MemoryBudget::Percent(80));
    assert_eq!(config.queue.journal_retain, Duration::from_secs(7 * 86_400));
    assert_eq!(config.queue.durability, DurabilityClass::Memory);
    assert!(config.server.bind.is_loopback());
    assert!(config.external_inngest().unwrap().is_none());
}

#[test]
fn each_setting_is_declared_once_with_a_doc() {
    let mut keys: Vec<_> = settings::declared().into_iter().map(|setting| setting.key).collect();
    assert!(settings::declared().iter().all(|setting| !setting.doc.is_empty()));
    let all = keys.len();
    keys.sort_unstable();
    keys.dedup();
    assert_eq!(keys.len(), all);
}

#[test]
fn flags_win_over_the_file_and_the_file_over_the_environment() {
    let key = "QUEUE_DRAINER_CONCURRENCY";
    let home = Home::new("QUEUE_DRAINER_CONCURRENCY=2\n").env(key, "3");
    assert_eq!((home.load().drainer.concurrency, origin_of(&home.load(), key)), (2, Origin::File));
    let home = home.flag(key, "1");
    assert_eq!((home.load().drainer.concurrency, origin_of(&home.load(), key)), (1, Origin::Flag));
    let home = Home::new("").env(key, "3");
    assert_eq!((home.load().drainer.concurrency, origin_of(&home.load(), key)), (3, Origin::Environment));
    // A blank number is no value.
    assert_eq!(Home::new("QUEUE_DRAINER_CONCURRENCY=\n").env(key, "3").load().drainer.concurrency, 3);
    // A blank list is: the file turns every pilot off.
    assert!(!Home::new("QUEUE_PILOTS=\n").env("QUEUE_PILOTS", "github").load().pilots.is_on(Pilot::Github));
}

#[test]
fn the_inngest_variables_take_the_environment_before_the_file() {
    let home = Home::new("INNGEST_URL=http://file:1\nINNGEST_EVENT_KEY=f\n").env("INNGEST_URL", "http://env:1/");
    let external = home.load().external_inngest().unwrap().unwrap();
    assert_eq!((external.url.as_str(), external.event_key.expose_secret()), ("http://env:1", "f"));
    let error = Home::new("INNGEST_URL=http://h:1\n").load().external_inngest().unwrap_err();
    assert_eq!((error.code(), error.exit()), ("EVENT_KEY_MISSING", Exit::Config));
}

#[test]
fn a_value_that_is_not_accepted_falls_back_with_one_warning() {
    let cases = [
        ("QUEUE_DRAINER_CONCURRENCY", "0"),
        ("QUEUE_DRAINER_CONCURRENCY", "-4"),
        ("QUEUE_DRAIN_LEASE_MS", "30s"),
        ("QUEUE_DRAIN_MAX_ATTEMPTS", "many"),
        ("QUEUE_DRAINER_ENABLED", "maybe"),
        ("QUEUE_MAX_EVENT_BYTES", "4MiB"),
        ("QUEUE_MEMORY_BUDGET", "0%"),
        ("QUEUE_FAIRNESS", "fifo"),
        ("QUEUE_RETAIN", "1.5h"),
        ("QUEUE_LOW_SHARE", "5"),
        ("WORKER_PORT", "70000"),
        ("WORKER_BIND", "localhost"),
        ("SYSTEM_BUS_KEY_PREFIX", "a b"),
        ("INNGEST_URL", "localhost:8288"),
        ("WEBHOOK_TRUSTED_PROXIES", "10.0.0.0/8,proxy"),
    ];
    for (key, value) in cases {
        let config = Home::new(&format!("{key}={value}\n")).load();
        assert_eq!(codes(&config), ["CONFIG_INVALID_VALUE"], "{key}={value}: {:?}", config.warnings);
        assert!(config.warnings[0].message.contains(key));
        assert_eq!(origin_of(&config, key), Origin::Default);
    }
}

#[test]
fn credentials_in_any_url_are_neither_kept_nor_shown() {
    let text = "OTEL_FORWARD_URL=http://u:hunter2@h/x\nINNGEST_URL=u:hunter2@h\nOTEL_EMIT_TOKEN=hunter2\n";
    let config = Home::new(text).load();
    assert_eq!(codes(&config), ["CONFIG_INVALID_VALUE", "CONFIG_INVALID_VALUE"]);
    assert!(!format!("{config:?}").contains("hunter2"));
}

#[test]
fn values_in_other_words() {
    let text = "QUEUE_DRAINER_ENABLED=Off\nQUEUE_RETAIN=off\nQUEUE_RETAIN_COUNT=1000\nQUEUE_MEMORY_BUDGET=512MiB\n\
                QUEUE_SEEN_TTL_MS=0\nQUEUE_DURABILITY=Disk\nQUEUE_LOW_SHARE=off\nWORKER_BIND=::\n";
    let config = Home::new(text).load();
    assert_eq!(config.warnings, []);
    assert!(!config.drainer.is_enabled);
    assert_eq!(config.queue.retain, None);
    assert_eq!(config.queue.retain_count, Some(1000));
    assert_eq!(config.queue.memory_budget, MemoryBudget::Bytes(512 << 20));
    assert!(config.queue.seen_ttl.is_zero());
    assert_eq!(config.queue.durability, DurabilityClass::Disk);
    assert_eq!(config.drainer.low_share, 0.0);
    assert!(config.server.bind.is_unspecified());
}

#[test]
fn pilots_are_trimmed_in_any_case_and_a_typo_is_named() {
    let config = Home::new("QUEUE_PILOTS=\" GitHub ,content, ,discvery\"\n").load();
    assert!(config.pilots.is_on(Pilot::Github) && config.pilots.is_on(Pilot::Content));
    assert!(!config.pilots.is_on(Pilot::Discovery));
    assert!(config.warnings[0].message.contains("did you mean `discovery`?"), "{:?}", config.warnings);
    let config = Home::new("QUEUE_PILOTS=discovery\n").load();
    assert!(!config.pilots.is_on(Pilot::DiscoveryCaptured), "one does not imply the other");
}

#[test]
fn an_unknown_key_of_ours_gets_a_suggestion() {
    let config = Home::new("QUEUE_DRAINER_CONCURENCY=4\nOTHER_THING=1\nQUEUE_ZZZ=1\n").load();
    assert_eq!(codes(&config), ["CONFIG_UNKNOWN_KEY", "CONFIG_UNKNOWN_KEY"]);
    assert!(config.warnings[0].message.ends_with("did you mean QUEUE_DRAINER_CONCURRENCY?"));
    assert!(config.warnings[1].message.ends_with("QUEUE_ZZZ is no setting"));
}

#[test]
fn paths_are_relative_to_what_names_them() {
    let home = Home::new("SYSTEM_BUS_DATA_DIR=~/data\n");
    let config = home.load();
    assert_eq!(config.system.registry, home.dir.path().join(".config/registry.toml"));
    assert_eq!(config.managed.socket, home.dir.path().join("data/redis/redis.sock"));
    let config = Home::new("").env("SYSTEM_BUS_REGISTRY", "here.toml").load();
    assert_eq!(config.system.registry, PathBuf::from("here.toml"));
}

#[test]
fn an_env_file_must_exist_only_when_it_was_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let missing = dir.path().join("none.env");
    let mut sources = Sources { home: dir.path().to_path_buf(), ..Sources::default() };
    assert_eq!(Config::load(&sources).unwrap().warnings, []);
    sources.environment.insert("SYSTEM_BUS_ENV_FILE".into(), missing.display().to_string());
    assert_eq!(Config::load(&sources).unwrap_err().exit(), Exit::Config);
    sources.env_file = Some(missing);
    assert_eq!(Config::load(&sources).unwrap_err().exit(), Exit::Usage);
    let given = dir.path().join("given.env");
    std::fs::write(&given, "WORKER_PORT=4000\n").unwrap();
    sources.env_file = Some(given.clone());
    let config = Config::load(&sources).unwrap();
    assert_eq!((config.server.port, config.env_file), (4000, given));
}

#[test]
fn secrets_in_a_file_that_others_may_read_are_a_warning() {
    let cases = [
        ("GITHUB_WEBHOOK_SECRET=x\n", 0o644, true),
        ("GITHUB_WEBHOOK_SECRET=x\n", 0o600, false),
        ("GITHUB_WEBHOOK_SECRET=x\n", 0o400, false),
        ("GITHUB_WEBHOOK_SECRET=\n", 0o644, false),
        ("REDIS_URL=redis://:x@h\n", 0o640, true),
        ("REDIS_URL=redis://h\n", 0o640, false),
        ("SLACK_TOKEN=x\n", 0o604, true),
        ("WORKER_PORT=1\n", 0o644, false),
    ];
    for (text, mode, expected) in cases {
        let home = Home::new(text);
        set_mode(&home.dir.path().join(".config/system-bus.env"), mode);
        assert_eq!(codes(&home.load()).contains(&"CONFIG_FILE_MODE"), expected, "{text} {mode:o}");
    }
}

#[test]
fn the_managed_redis_that_starts_is_no_changed_setting_and_one_that_is_named_is() {
    let home = Home::new("");
    let data = home.sources.home.join("data");
    let home = home.env("SYSTEM_BUS_DATA_DIR", &data.display().to_string());
    let before = home.load();
    std::fs::create_dir_all(data.join("redis")).unwrap();
    std::fs::write(data.join("redis/redis.sock"), "").unwrap();
    let started = home.load();
    assert_eq!((before.redis.origin, started.redis.origin), (RedisOrigin::Default, RedisOrigin::Managed));
    assert_eq!(started.changed_keys(&before), Vec::<&str>::new());
    let named = home.env("REDIS_URL", "redis://other").load();
    assert!(named.changed_keys(&started).contains(&"REDIS_URL"));
}

#[test]
fn redis_is_chosen_in_order() {
    let home = Home::new("").env("REDIS_HOST", "h").env("REDIS_PORT", "7000");
    let config = home.load();
    assert_eq!((config.redis.display.as_str(), config.redis.origin), ("redis://h:7000/0", RedisOrigin::HostPort));
    assert_eq!(codes(&config), ["CONFIG_REDIS_HOST"]);
    assert!(config.warnings[0].message.contains("system-bus.env"));

    let socket = home.sources.home.join("data/redis/redis.sock");
    std::fs::create_dir_all(socket.parent().unwrap()).unwrap();
    std::fs::write(&socket, "").unwrap();
    let data = home.sources.home.join("data").display().to_string();
    let home = home.env("SYSTEM_BUS_DATA_DIR", &data);
    let config = home.load();
    assert_eq!((config.redis.origin, config.warnings.len()), (RedisOrigin::Managed, 0));
    assert_eq!(config.redis.display, format!("unix://{}", socket.display()));

    let home = home.env("REDIS_URL", "redis://env");
    assert_eq!(home.load().redis.origin, RedisOrigin::Environment);
    let home = home.flag("REDIS_URL", "redis://flag");
    assert_eq!((home.load().redis.origin, home.load().warnings), (RedisOrigin::Flag, vec![]));

    let config = Home::new("").load();
    assert_eq!(
        (config.redis.display.as_str(), config.redis.origin),
        ("redis://localhost:6379/0", RedisOrigin::Default)
    );
    assert!(!config.redis.is_configured());
}

#[test]
fn file_and_environment_naming_two_redis_is_a_warning_without_credentials() {
    let home = Home::new("REDIS_URL=redis://:hunter2@mine:6379\n").env("REDIS_URL", "rediss://u:hunter3@cloud:6380");
    let config = home.load();
    assert_eq!((config.redis.origin, codes(&config)), (RedisOrigin::File, vec!["CONFIG_REDIS_MISMATCH"]));
    let message = &config.warnings[0].message;
    assert!(message.contains("redis://mine:6379/0") && message.contains("rediss://cloud:6380/0"), "{message}");
    assert!(!format!("{config:?}").contains("hunter"));
    let same = Home::new("REDIS_URL=redis://localhost\n").env("REDIS_URL", "redis://:x@127.0.0.1:6379/0");
    assert_eq!(same.load().warnings, []);
}

#[test]
fn an_unusable_redis_url_is_an_error_rather_than_another_redis() {
    let error = Config::load(&Home::new("REDIS_URL=localhost:6379\n").sources).unwrap_err();
    assert_eq!((error.code(), error.exit()), ("CONFIG_REDIS_URL_INVALID", Exit::Config));
}

#[test]
fn a_change_is_known_by_the_names_of_its_keys() {
    let before = Home::new("WORKER_PORT=1\nGITHUB_WEBHOOK_SECRET=a\nREDIS_URL=redis://:a@h\n").load();
    let after = Home::new("WORKER_PORT=1\nGITHUB_WEBHOOK_SECRET=b\nREDIS_URL=redis://:b@h\n").load();
    let changed: Vec<_> = after.changed_keys(&before);
    assert_eq!(changed, ["GITHUB_WEBHOOK_SECRET", "REDIS_URL"]);
    assert!(before.changed_keys(&before).is_empty());
}

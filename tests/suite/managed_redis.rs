//! The system's own Redis: started, shared, found stale, refused, killed and brought back.

use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use crate::support::{TestRedis, eventually, redis_server_binary};
use nix::sys::signal::Signal;
use system_bus::diagnose::{Diagnose as _, Exit};
use system_bus::streams::managed::{self, AppendFsync, Error, ManagedOptions, ManagedRedis};
use tempfile::TempDir;

const SOON: Duration = Duration::from_secs(20);

struct Place {
    dir: TempDir,
}

impl Place {
    fn new() -> Self {
        Self { dir: tempfile::Builder::new().prefix("bus-managed-").tempdir_in("/tmp").unwrap() }
    }

    fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    fn file(&self, name: &str) -> PathBuf {
        std::fs::create_dir_all(self.data()).unwrap();
        self.data().join(name)
    }

    fn options(&self) -> ManagedOptions {
        ManagedOptions { binary: Some(redis_server_binary()), ..ManagedOptions::new(self.data()) }
    }

    /// A program that prints this when asked for its version.
    fn fake_server(&self, dir: &str, name: &str, version_line: &str) -> PathBuf {
        let dir = self.dir.path().join(dir);
        std::fs::create_dir_all(&dir).unwrap();
        let program = dir.join(name);
        // Moved into place by `sh`, so that no descriptor of ours is open for writing when it is run.
        let script = format!("#!/bin/sh\necho '{version_line}'\n");
        let status = std::process::Command::new("sh")
            .args(["-c", "printf %s \"$1\" > \"$2\" && chmod 755 \"$2\"", "sh", &script])
            .arg(&program)
            .status()
            .unwrap();
        assert!(status.success());
        program
    }
}

async fn connection(redis: &ManagedRedis) -> redis::aio::MultiplexedConnection {
    redis::Client::open(redis.url()).unwrap().get_multiplexed_async_connection().await.unwrap()
}

async fn ask<T: redis::FromRedisValue>(redis: &ManagedRedis, words: &[&str]) -> T {
    let mut command = redis::cmd(words[0]);
    command.arg(&words[1..]);
    command.query_async(&mut connection(redis).await).await.unwrap()
}

fn signal(pid: u32, signal: Signal) {
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid.try_into().unwrap()), signal).unwrap();
}

fn is_listening(socket: &Path) -> bool {
    std::os::unix::net::UnixStream::connect(socket).is_ok()
}

#[tokio::test]
async fn a_new_directory_gets_a_private_durable_server_that_stops_with_its_owner() {
    let place = Place::new();
    let options = ManagedOptions { maxmemory: Some(64 << 20), ..place.options() };
    let redis = ManagedRedis::start(options).await.unwrap();
    assert!(redis.is_owner() && !redis.is_adopted());
    assert_eq!(redis.url(), managed::url(&place.data()).unwrap());
    let expected = [
        ("port", "0"),
        ("appendonly", "yes"),
        ("appendfsync", "everysec"),
        ("maxmemory", "67108864"),
        ("maxmemory-policy", "noeviction"),
        ("lazyfree-lazy-expire", "yes"),
        ("save", ""),
    ];
    for (key, value) in expected {
        assert_eq!(ask::<(String, String)>(&redis, &["CONFIG", "GET", key]).await.1, value, "{key}");
    }
    let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&place.data()), mode(redis.socket())), (0o700, 0o700));

    let socket = redis.socket().to_owned();
    redis.stop().await.unwrap();
    assert!(!is_listening(&socket));
    assert!(!place.file("redis.pid").exists() && !place.file("redis.sock").exists());
}

#[tokio::test]
async fn what_was_written_is_there_after_an_orderly_stop() {
    let place = Place::new();
    let redis = ManagedRedis::start(place.options()).await.unwrap();
    let () = ask(&redis, &["SET", "kept", "yes"]).await;
    redis.stop().await.unwrap();
    let redis = ManagedRedis::start(place.options()).await.unwrap();
    assert_eq!(ask::<String>(&redis, &["GET", "kept"]).await, "yes");
    redis.stop().await.unwrap();
}

#[tokio::test]
async fn a_killed_server_is_reported_and_comes_back_with_its_data() {
    let place = Place::new();
    let options = ManagedOptions { appendfsync: AppendFsync::Always, ..place.options() };
    let mut redis = ManagedRedis::start(options).await.unwrap();
    for number in 0..200 {
        let () = ask(&redis, &["RPUSH", "kept", &number.to_string()]).await;
    }
    let first = redis.pid();
    signal(first, Signal::SIGKILL);
    let exit = tokio::time::timeout(SOON, redis.wait_exit()).await.unwrap();
    assert_eq!(exit.pid, first);
    assert!(exit.status.as_deref().unwrap().contains('9'), "{exit:?}");
    assert_eq!(redis.wait_exit().await, exit, "asked again, answered again");

    redis.restart().await.unwrap();
    assert_ne!(redis.pid(), first);
    assert!(redis.is_owner());
    assert_eq!(ask::<u32>(&redis, &["LLEN", "kept"]).await, 200);
    redis.stop().await.unwrap();
}

#[tokio::test]
async fn a_second_start_adopts_the_server_and_leaves_it_running() {
    let place = Place::new();
    let owner = ManagedRedis::start(place.options()).await.unwrap();
    // Adopting needs no program at all.
    let options = ManagedOptions { binary: None, search: Vec::new(), ..place.options() };
    let guest = ManagedRedis::start(options).await.unwrap();
    assert!(guest.is_adopted() && !guest.is_owner());
    assert_eq!((guest.pid(), guest.url()), (owner.pid(), owner.url()));
    guest.stop().await.unwrap();
    assert_eq!(ask::<String>(&owner, &["PING"]).await, "PONG");
    drop(ManagedRedis::start(place.options()).await.unwrap());
    assert_eq!(ask::<String>(&owner, &["PING"]).await, "PONG");
    owner.stop().await.unwrap();
}

#[tokio::test]
async fn a_guest_learns_that_the_owner_has_stopped_the_server_and_starts_its_own() {
    let place = Place::new();
    let owner = ManagedRedis::start(place.options()).await.unwrap();
    let () = ask(&owner, &["SET", "kept", "yes"]).await;
    let mut guest = ManagedRedis::start(place.options()).await.unwrap();
    owner.stop().await.unwrap();
    let exit = tokio::time::timeout(SOON, guest.wait_exit()).await.unwrap();
    assert_eq!(exit.status, None, "it was not our child");
    guest.restart().await.unwrap();
    assert!(guest.is_owner() && !guest.is_adopted());
    assert_eq!(ask::<String>(&guest, &["GET", "kept"]).await, "yes");
    guest.stop().await.unwrap();
}

#[tokio::test]
async fn ten_starts_at_once_end_as_one_server_with_one_owner() {
    let place = Place::new();
    let starts: Vec<_> = (0..10).map(|_| tokio::spawn(ManagedRedis::start(place.options()))).collect();
    let mut all = Vec::new();
    for start in starts {
        all.push(start.await.unwrap().unwrap());
    }
    assert!(all.iter().all(|redis| redis.pid() == all[0].pid()));
    assert_eq!(all.iter().filter(|redis| redis.is_owner()).count(), 1);
    let owner = all.swap_remove(all.iter().position(ManagedRedis::is_owner).unwrap());
    owner.stop().await.unwrap();
}

#[tokio::test]
async fn a_server_whose_owner_has_died_gets_a_new_owner_who_stops_it() {
    let place = Place::new();
    ManagedRedis::start(place.options()).await.unwrap().stop().await.unwrap();
    // What a killed `joelclaw up` leaves behind: its server on its configuration, and nobody with the owner's lock.
    let mut orphan = tokio::process::Command::new(redis_server_binary())
        .arg(place.file("redis.conf"))
        .stdout(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let socket = place.file("redis.sock");
    eventually(SOON, || async { is_listening(&socket).then_some(()).ok_or("not listening") }).await;
    let redis = ManagedRedis::start(place.options()).await.unwrap();
    assert_eq!(Some(redis.pid()), orphan.id());
    assert!(redis.is_adopted() && redis.is_owner());
    redis.stop().await.unwrap();
    assert!(tokio::time::timeout(SOON, orphan.wait()).await.unwrap().unwrap().success());
}

#[tokio::test]
async fn a_socket_and_a_pid_file_of_nobody_are_cleared_away() {
    let place = Place::new();
    drop(UnixListener::bind(place.file("redis.sock")).unwrap());
    let mut gone = std::process::Command::new("true").spawn().unwrap();
    gone.wait().unwrap();
    std::fs::write(place.file("redis.pid"), gone.id().to_string()).unwrap();
    let redis = ManagedRedis::start(place.options()).await.unwrap();
    assert!(!redis.is_adopted());
    assert_eq!(std::fs::read_to_string(place.file("redis.pid")).unwrap().trim(), redis.pid().to_string());
    redis.stop().await.unwrap();
}

#[tokio::test]
async fn a_pid_that_passed_to_another_program_does_not_keep_us_down() {
    let place = Place::new();
    let mut other = std::process::Command::new("sleep").arg("60").spawn().unwrap();
    std::fs::write(place.file("redis.pid"), other.id().to_string()).unwrap();
    let redis = ManagedRedis::start(place.options()).await.unwrap();
    redis.stop().await.unwrap();
    assert!(other.try_wait().unwrap().is_none(), "it was left alone");
    other.kill().unwrap();
    other.wait().unwrap();
}

#[tokio::test]
async fn a_pid_file_that_names_another_live_server_is_refused_and_that_server_left_alone() {
    let place = Place::new();
    let foreign = TestRedis::start().await;
    let pid_file = place.file("redis.pid");
    std::fs::write(&pid_file, foreign.pid().to_string()).unwrap();
    let error = ManagedRedis::start(place.options()).await.unwrap_err();
    assert_eq!((error.code(), error.exit()), ("REDIS_DATA_IN_USE", Exit::Unavailable));
    for told in [error.to_string(), error.fix()] {
        assert!(told.contains(&foreign.pid().to_string()) && told.contains(pid_file.to_str().unwrap()), "{told}");
    }
    assert!(pid_file.exists());
    assert_eq!(foreign.cli(&["PING"]).await, "PONG");
}

#[tokio::test]
async fn a_socket_that_accepts_and_says_nothing_is_refused_with_its_process() {
    let place = Place::new();
    let socket = place.file("redis.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let options = ManagedOptions { ping_deadline: Duration::from_millis(100), ..place.options() };
    let error = ManagedRedis::start(options).await.unwrap_err();
    assert_eq!(error.code(), "REDIS_DATA_IN_USE");
    let text = error.to_string();
    assert!(text.contains(&std::process::id().to_string()) && text.contains(socket.to_str().unwrap()), "{text}");
    drop(listener);
    assert!(socket.exists());
}

#[tokio::test]
async fn a_missing_server_is_one_error_that_says_how_to_install_it() {
    let place = Place::new();
    let options = ManagedOptions { binary: None, search: Vec::new(), ..place.options() };
    let error = ManagedRedis::start(options).await.unwrap_err();
    assert_eq!((error.code(), error.exit() as u8), ("REDIS_SERVER_MISSING", 69));
    let fix = error.fix();
    assert!(fix.contains("brew install redis") && fix.contains("sudo apt-get install redis-server"), "{fix}");
    assert!(!error.to_string().contains('\n'));
}

#[tokio::test]
async fn a_server_that_is_too_old_or_no_server_is_refused_by_its_own_word() {
    let place = Place::new();
    let old = place.fake_server("old", "redis-server", "Redis server v=6.2.14 sha=00000000:0 bits=64 build=0");
    let early = place.fake_server("early", "valkey-server", "Valkey server v=7.2.5 sha=00000000:0 bits=64 build=0");
    let other = place.fake_server("other", "redis-server", "hello");
    let codes = [
        (&old, "REDIS_SERVER_TOO_OLD", "Redis 6.2; Redis 7.0 or newer"),
        (&early, "REDIS_SERVER_TOO_OLD", "Valkey 7.2; Valkey 8.0 or newer"),
        (&other, "REDIS_SERVER_UNUSABLE", "hello"),
        (&place.data().join("nothing"), "REDIS_SERVER_UNUSABLE", "no program"),
    ];
    for (binary, code, part) in codes {
        let options = ManagedOptions { binary: Some(binary.clone()), ..place.options() };
        let error = ManagedRedis::start(options).await.unwrap_err();
        assert_eq!(error.code(), code, "{error}");
        assert!(error.to_string().contains(part), "{error}");
    }
}

#[tokio::test]
async fn an_old_server_in_front_does_not_hide_a_new_one_behind_it() {
    let place = Place::new();
    let old = place.fake_server("old", "redis-server", "Redis server v=6.2.14 sha=00000000:0 bits=64 build=0");
    let new = redis_server_binary();
    let dirs = [&old, &new].map(|program| program.parent().unwrap().to_owned());
    let options = ManagedOptions { binary: None, search: dirs.to_vec(), ..place.options() };
    let redis = ManagedRedis::start(options.clone()).await.unwrap();
    redis.stop().await.unwrap();
    let options = ManagedOptions { search: dirs[..1].to_vec(), ..options };
    assert!(matches!(ManagedRedis::start(options).await, Err(Error::TooOld { .. })));
}

#[tokio::test]
async fn a_server_that_ends_while_it_starts_is_reported_with_its_own_words() {
    let place = Place::new();
    let redis = ManagedRedis::start(place.options()).await.unwrap();
    let () = ask(&redis, &["SET", "key", "value"]).await;
    redis.stop().await.unwrap();
    // A damaged append-only file: Redis says so and exits.
    let manifest = place.file("appendonlydir/appendonly.aof.manifest");
    std::fs::write(&manifest, "nonsense\n").unwrap();
    let error = ManagedRedis::start(place.options()).await.unwrap_err();
    assert_eq!(error.code(), "REDIS_SERVER_NOT_STARTED");
    assert!(error.to_string().contains("manifest"), "{error}");
    assert!(!is_listening(&place.file("redis.sock")));
}

#[tokio::test]
async fn a_directory_too_long_for_a_socket_gets_a_short_one_and_a_link() {
    let place = Place::new();
    let options = ManagedOptions { dir: place.data().join("long".repeat(30)), ..place.options() };
    let redis = ManagedRedis::start(options.clone()).await.unwrap();
    assert_eq!(redis.url(), managed::url(&options.dir).unwrap());
    assert_eq!(ask::<String>(&redis, &["PING"]).await, "PONG");
    let link = options.dir.join("redis.sock");
    assert_eq!(std::fs::read_link(&link).unwrap(), redis.socket());
    let guest = ManagedRedis::start(options).await.unwrap();
    assert!(guest.is_adopted());
    redis.stop().await.unwrap();
    assert!(link.symlink_metadata().is_err());
}

#[tokio::test]
async fn a_directory_with_blanks_and_quotes_in_its_name_works() {
    let place = Place::new();
    let options = ManagedOptions { dir: place.data().join("Application \"Support\" 100%"), ..place.options() };
    let redis = ManagedRedis::start(options).await.unwrap();
    assert_eq!(ask::<String>(&redis, &["PING"]).await, "PONG");
    redis.stop().await.unwrap();
}

#[tokio::test]
async fn a_dropped_owner_takes_its_server_with_it() {
    let place = Place::new();
    let redis = ManagedRedis::start(place.options()).await.unwrap();
    let socket = redis.socket().to_owned();
    drop(redis);
    eventually(SOON, || async { (!is_listening(&socket)).then_some(()).ok_or("still listening") }).await;
}

#[tokio::test]
async fn a_server_that_hangs_is_killed_when_its_deadlines_have_passed_and_nothing_is_lost() {
    let place = Place::new();
    let options = ManagedOptions { stop_deadline: Duration::from_millis(100), ..place.options() };
    let redis = ManagedRedis::start(options.clone()).await.unwrap();
    let () = ask(&redis, &["SET", "kept", "yes"]).await;
    signal(redis.pid(), Signal::SIGSTOP);
    redis.stop().await.unwrap();
    let redis = ManagedRedis::start(options).await.unwrap();
    assert_eq!(ask::<String>(&redis, &["GET", "kept"]).await, "yes");
    redis.stop().await.unwrap();
}

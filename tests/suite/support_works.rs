//! The harness itself: what the other tests take for granted.

use std::time::Duration;

use crate::support::{HttpSink, Joelclaw, Reply, TestRedis, eventually};

const SOON: Duration = Duration::from_secs(20);

#[tokio::test]
async fn a_test_redis_keeps_its_data_through_a_kill_and_can_be_frozen() {
    let mut redis = TestRedis::start_with(&["appendfsync", "always"]).await;
    assert_eq!(redis.cli(&["SET", "key", "value"]).await, "OK");
    redis.restart().await;
    assert_eq!(redis.cli(&["GET", "key"]).await, "value");
    assert_eq!(redis.cli(&["CONFIG", "GET", "appendfsync"]).await, "appendfsync\nalways");

    redis.pause();
    let url = redis.url();
    let asked = tokio::spawn(async move {
        let mut connection = redis::Client::open(url).unwrap().get_multiplexed_async_connection().await?;
        redis::cmd("PING").query_async::<String>(&mut connection).await
    });
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(!asked.is_finished());
    redis.resume();
    assert_eq!(redis.cli(&["PING"]).await, "PONG");
    asked.abort();
}

#[tokio::test]
async fn a_test_redis_can_listen_on_a_port() {
    let mut redis = TestRedis::tcp().await;
    assert!(redis.url().ends_with(&redis.port().to_string()));
    redis.restart().await;
    assert_eq!(redis.cli(&["PING"]).await, "PONG");
}

#[tokio::test]
async fn a_sink_answers_in_order_and_keeps_what_it_was_sent() {
    let sink = HttpSink::start().await;
    sink.reply_next([Reply::status(503).header("retry-after", "1"), Reply::hang()]);
    sink.reply_always(Reply::status(201).body("made").delay(Duration::from_millis(1)));
    let client = reqwest::Client::new();
    let post = |body: &'static str| client.post(sink.url() + "/hook?a=1").header("x-n", body).body(body).send();
    let first = post("1").await.unwrap();
    assert_eq!((first.status().as_u16(), first.headers()["retry-after"].to_str().unwrap()), (503, "1"));
    let hanging = tokio::spawn(post("2"));
    sink.wait_for(2, SOON).await;
    let third = post("3").await.unwrap();
    assert_eq!((third.status().as_u16(), third.text().await.unwrap().as_str()), (201, "made"));
    let received = sink.received();
    let bodies: Vec<_> = received.iter().map(|request| request.body.as_ref()).collect();
    assert_eq!(bodies, [b"1", b"2", b"3"]);
    assert_eq!((received[0].path.as_str(), received[0].header("x-n")), ("/hook?a=1", Some("1")));
    assert!(!hanging.is_finished());
    hanging.abort();
}

#[tokio::test]
async fn the_built_binary_runs_in_a_home_of_its_own() {
    let bus = Joelclaw::new("unix:///nowhere.sock").registry("");
    assert!(bus.home().join("registry.toml").exists());
    let ran = bus.run(&["--help"]).await.assert_success();
    assert_eq!(ran.signal(), None);
    let env_file = std::fs::read_to_string(bus.env_file()).unwrap();
    assert!(env_file.contains("REDIS_URL=unix:///nowhere.sock\n"), "{env_file}");
}

#[tokio::test]
#[should_panic(expected = "last seen: 3")]
async fn waiting_in_vain_shows_the_last_answer() {
    eventually(Duration::from_millis(20), || async { Err::<(), _>(3) }).await;
}

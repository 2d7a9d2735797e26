//! What the integration tests stand on: a Redis of their own, the built binary, a sink for HTTP, and waiting without sleeping.
//!
//! ```ignore
//! use crate::support::{HttpSink, Joelclaw, Reply, TestRedis, eventually};
//!
//! #[tokio::test]
//! async fn an_emitted_event_reaches_its_handler() {
//!     let redis = TestRedis::start().await;                       // gone at drop, like everything below
//!     let sink = HttpSink::start().await;
//!     sink.reply_next([Reply::status(503)]);                      // then 200 for ever
//!     let bus = Joelclaw::new(&redis.url()).registry(&format!(
//!         "[[event]]\nname = \"a/b\"\nhandler = {{ type = \"http\", target = \"{}\" }}\n", sink.url()));
//!     let mut drainer = bus.spawn(&["drainer"]);
//!     let emitted = bus.run(&["queue", "emit", "a/b", "-d", "{}", "--json"]).await.assert_success().json();
//!     let got = sink.wait_for(2, Duration::from_secs(10)).await;  // the refused try and the one after it
//!     assert_eq!(got[0].header("x-event-id"), emitted["result"]["id"].as_str());
//!     drainer.kill_9().await;
//! }
//! ```
//!
//! Everything is parallel-safe: unix sockets in temporary directories, port 0 for HTTP, an environment of its own for
//! each process. Data is aged, processes are stopped with SIGSTOP; nothing waits by sleeping a fixed time.
// Each test binary compiles this module and uses a part of it.
#![allow(dead_code, unused_imports)]

mod http_sink;
mod joelclaw;
mod redis_gate;
mod redis_server;

use std::fmt::Debug;
use std::time::{Duration, Instant};

pub use http_sink::{HttpSink, Received, Reply};
pub use joelclaw::{Joelclaw, Ran, Running};
pub use redis_gate::{RedisGate, Side};
pub use redis_server::{TestRedis, redis_server_binary};

/// The step of every wait.
pub const STEP: Duration = Duration::from_millis(10);

/// Asks again until the answer is `Ok`, and panics with the last `Err` at the deadline.
///
/// ```ignore
/// eventually(Duration::from_secs(5), || async {
///     let depth = bus.depth().await;
///     if depth == 0 { Ok(()) } else { Err(depth) }
/// }).await;
/// ```
#[track_caller]
pub fn eventually<T, E, F, A>(deadline: Duration, mut ask: A) -> impl Future<Output = T>
where
    E: Debug,
    F: Future<Output = Result<T, E>>,
    A: FnMut() -> F,
{
    let caller = std::panic::Location::caller();
    async move {
        let started = Instant::now();
        loop {
            match ask().await {
                Ok(value) => return value,
                Err(last) if started.elapsed() >= deadline => {
                    panic!("at {caller}: still not after {deadline:?}; last seen: {last:?}")
                }
                Err(_) => tokio::time::sleep(STEP).await,
            }
        }
    }
}

/// A port that was free a moment ago. Prefer port 0 and asking the process what it got, where that is possible.
pub fn free_port() -> u16 {
    std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port()
}

/// Signals a process that the test started.
fn signal(pid: u32, signal: nix::sys::signal::Signal) {
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid.try_into().unwrap()), signal).unwrap();
}

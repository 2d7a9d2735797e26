//! A steady load of signed deliveries to `joelclaw up`, whose own Redis is killed in the middle: it is started again, and
//! what was answered 2xx is stored exactly once. `joelclaw bench webhooks` is the same at 1,000 a second for a minute.

use std::collections::HashMap;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use system_bus::streams::bus::Bus;
use system_bus::streams::redis::Redis;

use crate::ingest_support::client;
use crate::ingest_support::live::{BODY, LONG, SECRET, ids, signature};
use crate::support::{Joelclaw, eventually, free_port};

/// Deliveries a second, and for how many seconds.
const RATE: u32 = 200;
const SECONDS: u32 = 4;

#[tokio::test(flavor = "multi_thread")]
async fn what_up_answered_2xx_survives_a_kill_of_its_redis_under_load() {
    for (spool, refused) in [("no-retry-providers", false), ("off", true)] {
        let joelclaw = Joelclaw::unconfigured();
        let port = free_port();
        for (key, value) in [
            ("WORKER_PORT", port.to_string().as_str()),
            ("GITHUB_WEBHOOK_SECRET", SECRET),
            ("WEBHOOK_SECRETS_COMMAND", ""),
            ("WEBHOOK_SPOOL", spool),
        ] {
            joelclaw.env_file_line(key, value);
        }
        let mut up = joelclaw.spawn(&["up"]);
        let (client, url) = (client(), format!("http://127.0.0.1:{port}/webhooks"));
        eventually(LONG, || async { client.get(&url).send().await.map(drop) }).await;
        let dir = joelclaw.home().join("data/redis");
        let pid = || std::fs::read_to_string(dir.join("redis.pid")).ok()?.trim().parse::<i32>().ok();
        let first = pid().unwrap();
        let began = tokio::time::Instant::now();
        let (client, url) = (&client, &url);
        let sent = (0..RATE * SECONDS).map(|n| async move {
            // The pace of a load, not a wait for anything.
            tokio::time::sleep_until(began + Duration::from_secs(1) * n / RATE).await;
            if n == RATE * SECONDS / 2 {
                kill(Pid::from_raw(first), Signal::SIGKILL).unwrap();
            }
            let id = format!("l-{n}");
            let request = client.post(format!("{url}/github")).timeout(LONG);
            let request = request.header("x-github-event", "package").header("x-github-delivery", &id);
            let response =
                request.header("x-hub-signature-256", signature(BODY, SECRET)).body(BODY).send().await.unwrap();
            let (status, retry) = (response.status().as_u16(), response.headers().contains_key("retry-after"));
            assert!(status != 503 || retry);
            (id, status)
        });
        let statuses: HashMap<String, u16> = futures_util::future::join_all(sent).await.into_iter().collect();
        let wrong: Vec<u16> = statuses.values().copied().filter(|status| ![200, 202, 503].contains(status)).collect();
        assert!(wrong.is_empty(), "{wrong:?}");
        assert!(refused || statuses.values().all(|status| *status < 300), "the spool takes what Redis does not");
        let bus = Bus::new(
            Redis::open(&format!("unix://{}", dir.join("redis.sock").display()), "up").unwrap(),
            "joelclaw:bus",
        );
        let promised = statuses.values().filter(|status| **status < 300).count();
        eventually(LONG, || async {
            let mut connection = bus.redis.dedicated().await.map_err(|error| error.to_string())?;
            let mut counts: HashMap<String, usize> = HashMap::new();
            for id in ids(&mut connection, &bus, "github/package.published").await {
                *counts.entry(id.strip_prefix("github-package-published-").unwrap().to_owned()).or_default() += 1;
            }
            assert!(counts.values().all(|count| *count == 1), "something is stored twice");
            let kept = statuses.iter().filter(|(id, status)| **status < 300 && counts.contains_key(*id)).count();
            if kept == promised { Ok(()) } else { Err(format!("{kept} of {promised} are stored")) }
        })
        .await;
        assert_ne!(pid(), Some(first), "another Redis runs");
        up.terminate();
        up.wait_exit(LONG).await;
    }
}

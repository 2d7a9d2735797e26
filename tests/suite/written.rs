//! Whether Redis has written what it answered: asked of a real one, and of one that was killed and started again.

use futures_util::future::join_all;
use system_bus::streams::bus::Bus;
use system_bus::streams::redis::Redis;
use system_bus::streams::written::{Unwritten, Written};

use crate::support::TestRedis;

#[tokio::test]
async fn a_redis_that_was_started_again_vouches_for_nothing_that_the_former_one_answered() {
    let mut redis = TestRedis::start().await;
    let bus = Bus::new(Redis::open(&redis.url(), "test").unwrap(), "written");
    let written = Written::new(&bus);
    assert!(join_all((0..50).map(|_| written.wait())).await.iter().all(Result::is_ok));
    redis.kill_9();
    // Those who wait for the same question get the same answer.
    let away = join_all((0..50).map(|_| written.wait())).await;
    assert!(away.iter().all(|answer| matches!(answer, Err(Unwritten::Away(_)))), "{away:?}");
    redis.restart().await;
    assert!(matches!(written.wait().await, Err(Unwritten::Away(None))));
    written.wait().await.unwrap();
}

#[tokio::test]
async fn a_sync_that_is_due_does_not_hold_up_the_next_answers_for_ever() {
    let redis = TestRedis::start().await;
    let bus = Bus::new(Redis::open(&redis.url(), "test").unwrap(), "written");
    let written = Written::new(&bus);
    for n in 0..200 {
        redis.cli(&["SET", "key", &n.to_string()]).await;
        written.wait().await.unwrap();
    }
}

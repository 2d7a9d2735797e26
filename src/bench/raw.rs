//! The raw ceiling: what a client gets from Redis that does nothing but move the same bytes.

use std::time::Instant;

use redis::Value;

use super::{Error, payload, rate};
use crate::streams::redis::{Error as RedisError, Redis};

const STREAM: &str = "bench:raw";

/// A stored envelope of the same size as ours.
fn entry() -> Vec<u8> {
    let data = payload();
    let mut entry = data.as_str().as_bytes().to_vec();
    entry.resize(entry.len() + 100, b'.');
    entry
}

/// 4 clients, each `XADD` in pipelines of 100. Events a second.
pub async fn append(redis: &Redis, events: usize) -> Result<f64, Error> {
    const CLIENTS: usize = 4;
    let started = Instant::now();
    let mut clients = tokio::task::JoinSet::new();
    for client in 0..CLIENTS {
        let redis = redis.separate();
        let pipelines = (events / 100 + CLIENTS - 1 - client) / CLIENTS;
        clients.spawn(async move {
            let entry = entry();
            for _ in 0..pipelines {
                let mut pipeline = redis::pipe();
                for _ in 0..100 {
                    pipeline.cmd("XADD").arg(STREAM).arg("*").arg("e").arg(&entry);
                }
                redis.pipeline(&pipeline).await?;
            }
            Ok::<(), RedisError>(())
        });
    }
    while let Some(done) = clients.join_next().await {
        done.unwrap_or(Ok(()))?;
    }
    Ok(rate(events, started.elapsed()))
}

/// Fills a stream, then 2 clients read it through a group: `XREADGROUP` of 128, `XACK` of the same. Events a second.
pub async fn drain(redis: &Redis, events: usize) -> Result<f64, Error> {
    const CLIENTS: usize = 2;
    append(redis, events).await?;
    redis.query::<Value>(redis::cmd("XGROUP").arg("CREATE").arg(STREAM).arg("raw").arg("0")).await?;
    let started = Instant::now();
    let mut clients = tokio::task::JoinSet::new();
    for client in 0..CLIENTS {
        let redis = redis.separate();
        clients.spawn(async move {
            loop {
                let mut read = redis::cmd("XREADGROUP");
                read.arg("GROUP").arg("raw").arg(format!("c{client}"));
                read.arg("COUNT").arg(128).arg("STREAMS").arg(STREAM).arg(">");
                let ids = ids(redis.query(&read).await?);
                if ids.is_empty() {
                    return Ok::<(), RedisError>(());
                }
                let mut acknowledge = redis::cmd("XACK");
                acknowledge.arg(STREAM).arg("raw");
                for id in ids {
                    acknowledge.arg(id);
                }
                redis.query::<Value>(&acknowledge).await?;
            }
        });
    }
    while let Some(done) = clients.join_next().await {
        done.unwrap_or(Ok(()))?;
    }
    Ok(rate(events, started.elapsed()))
}

/// The ids of an `XREADGROUP` reply of one stream.
fn ids(reply: Value) -> Vec<Vec<u8>> {
    let rows = match reply {
        Value::Array(streams) => match streams.into_iter().next() {
            Some(Value::Array(stream)) => stream.into_iter().nth(1),
            _ => None,
        },
        Value::Map(streams) => streams.into_iter().next().map(|(_, rows)| rows),
        _ => None,
    };
    let Some(Value::Array(rows)) = rows else { return Vec::new() };
    rows.into_iter()
        .filter_map(|row| match row {
            Value::Array(row) => match row.into_iter().next() {
                Some(Value::BulkString(id)) => Some(id),
                _ => None,
            },
            _ => None,
        })
        .collect()
}

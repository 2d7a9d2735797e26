//! Which Redis a service uses, and keeping our own one alive.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::Error;
use crate::config::Config;
use crate::streams::managed::{ManagedOptions, ManagedRedis};
use crate::streams::redis::Redis;

/// Opens the configured Redis, or starts our own where none is configured and `managed` allows it.
pub(super) async fn open(config: &Config, managed: bool) -> Result<(Redis, Option<ManagedRedis>), Error> {
    if !managed || config.redis.is_configured() {
        return Ok((Redis::open(config.redis.expose(), &config.redis.display)?, None));
    }
    let mut options = ManagedOptions::new(config.managed.dir.clone());
    options.binary = std::env::var_os("SYSTEM_BUS_REDIS_SERVER").map(Into::into);
    let server = ManagedRedis::start(options).await?;
    let url = server.url();
    Ok((Redis::open(&url, &url)?, Some(server)))
}

/// Starts our own Redis again whenever it ends, and stops it once everything else has.
pub(super) async fn keep(mut server: ManagedRedis, ended: CancellationToken) {
    loop {
        tokio::select! {
            () = ended.cancelled() => break,
            exit = server.wait_exit() => {
                tracing::error!(pid = exit.pid, status = exit.status, "our Redis has ended; starting it again");
                while let Err(error) = server.restart().await {
                    tracing::error!(error = %error, "it did not start; trying again");
                    tokio::select! {
                        () = ended.cancelled() => return,
                        () = tokio::time::sleep(Duration::from_secs(1)) => {}
                    }
                }
            }
        }
    }
    if let Err(error) = server.stop().await {
        tracing::error!(error = %error, "our Redis did not stop cleanly");
    }
}

//! Settings, files, disk, ports and secrets of this machine.

use std::net::{SocketAddr, TcpListener};
use std::path::Path;

use super::super::Context;
use super::super::queue::registry;
use super::Check;
use crate::observer::flags as observer_flags;
use crate::service::ServiceNote;
use crate::triage::flags::Flags;

/// Less free space than this is told.
const LEAST_FREE: u64 = 1 << 30;

/// The env file, the routing table, and flags without effect.
pub(super) fn settings(context: &Context) -> Vec<Check> {
    let config = &context.config;
    let file = config.env_file.display();
    let mut checks = vec![match config.env_file.exists() {
        true => Check::ok("env file", file.to_string()),
        false => Check::warn(
            "env file",
            format!("{file} is not there: defaults and environment are used"),
            "joelclaw config",
        ),
    }];
    checks.extend(
        config.warnings.iter().map(|warning| {
            Check::warn("settings", warning.message.clone(), format!("joelclaw explain {}", warning.code))
        }),
    );
    match registry(context) {
        Ok(registry) => {
            let table = registry.current();
            checks.push(Check::ok("registry", format!("{} entries", table.entries().len())));
            let mut ignored = Flags::from_config(config).ignored(Some(&table));
            ignored.extend(observer_flags::ignored(config, Some(&table)));
            // What a warning has told already is not told twice.
            let news = ignored.into_iter().filter(|one| !config.warnings.iter().any(|known| known.message == one.why));
            checks.extend(news.map(|one| {
                let item = if one.item.is_empty() { String::new() } else { format!(" `{}`", one.item) };
                Check::warn("flags", format!("{}{item}: {}", one.variable, one.why), "joelclaw queue config")
            }));
        }
        Err(failure) => checks.push(Check::fail("registry", failure.message(), "joelclaw queue registry check")),
    }
    checks
}

/// The service, its port, the disk, and the secrets of webhooks.
pub(super) fn machine(context: &Context, service: Option<&ServiceNote>) -> Vec<Check> {
    vec![running(service), port(context, service), disk(&context.config.system.data_dir), secrets(context)]
}

fn running(service: Option<&ServiceNote>) -> Check {
    match service {
        Some(note) => Check::ok("service", format!("running, pid {}", note.pid)),
        None => Check::warn("service", "no service of this machine runs", "joelclaw service start, or joelclaw up"),
    }
}

fn port(context: &Context, service: Option<&ServiceNote>) -> Check {
    let server = &context.config.server;
    let address = SocketAddr::new(server.bind, server.port);
    match (TcpListener::bind(address), service) {
        (Ok(_), _) => Check::ok("port", format!("{address} is free")),
        (Err(_), Some(_)) => Check::ok("port", format!("{address} is taken, by the service as it seems")),
        (Err(error), None) => Check::fail(
            "port",
            format!("{address} can't be taken: {error}"),
            "Stop the other process, or set WORKER_PORT.",
        ),
    }
}

fn disk(data_dir: &Path) -> Check {
    // A directory that is not there yet is made where its nearest ancestor is.
    let Some(place) = data_dir.ancestors().find(|place| place.exists()) else {
        return Check::warn("disk", format!("{} has no place", data_dir.display()), "Set SYSTEM_BUS_DATA_DIR.");
    };
    match nix::sys::statvfs::statvfs(place) {
        Ok(stat) => {
            #[allow(clippy::useless_conversion)] // The width differs between systems.
            let free = u64::from(stat.blocks_available()) * u64::from(stat.fragment_size());
            let detail = format!("{} MiB free at {}", free >> 20, place.display());
            match free < LEAST_FREE {
                true => Check::warn("disk", detail, "Make room: Redis and the archive of the journal write here."),
                false => Check::ok("disk", detail),
            }
        }
        Err(error) => Check::warn("disk", format!("{}: {error}", place.display()), "Look at the file system."),
    }
}

/// Names only.
fn secrets(context: &Context) -> Check {
    let all = &context.config.webhook_secrets;
    let set: Vec<&str> = all.iter().filter(|(_, secret)| secret.is_set()).map(|(name, _)| *name).collect();
    match set.is_empty() {
        true => Check::ok("webhook secrets", "none is set: no provider is served"),
        false => Check::ok("webhook secrets", set.join(", ")),
    }
}

//! Ids of the functions engine: ULIDs of events and runs, UUIDs of apps and functions.
//!
//! Nothing here is drawn twice for one thing. A run's id follows from its function and its event, so an event that is
//! dispatched again finds the run it made; the ids of app and function follow from their names, so they outlive
//! re-sync, change of URL and a lost registry.

use uuid::Uuid;

pub use crate::streams::public_id::{derived, fresh, parse, public_id};

/// The run that `function` makes of the event with this public id. `again` tells a rerun from the first run.
#[must_use]
pub fn run_id(function: Uuid, event: &str, again: &str) -> String {
    let ms = parse(event).map_or(0, |id| id.timestamp_ms());
    derived(ms, &[&function.to_string(), event, again])
}

/// An app's id: UUIDv5 of its name.
#[must_use]
pub fn app_id(name: &str) -> Uuid {
    Uuid::new_v5(&Uuid::NAMESPACE_OID, name.as_bytes())
}

/// A function's id: UUIDv5 of its slug below its app's id.
#[must_use]
pub fn function_id(app: Uuid, slug: &str) -> Uuid {
    Uuid::new_v5(&app, slug.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_follow_from_what_they_are_of() {
        let function = function_id(app_id("app"), "app-a");
        let event = fresh();
        assert_eq!(run_id(function, &event, ""), run_id(function, &event, ""));
        assert_ne!(run_id(function, &event, ""), run_id(function, &event, "again"));
        assert_eq!(parse(&run_id(function, &event, "")).unwrap().timestamp_ms(), parse(&event).unwrap().timestamp_ms());
    }
}

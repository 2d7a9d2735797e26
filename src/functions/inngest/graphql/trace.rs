//! The trace of a run.

use std::collections::HashMap;

use async_graphql::{Context, Object, Result};

use super::super::super::store::{Run, Runs};
use super::spans::Span;
use super::tree::tree;
use super::{Scope, failed, limits, missing, runs};

/// Queries about traces.
#[derive(Default)]
pub(super) struct Queries;

#[Object(name = "TraceQueries")]
impl Queries {
    /// What a run did, as a tree.
    #[graphql(complexity = "limits::times(1, child_complexity) + limits::TRACE")]
    async fn run_trace(&self, ctx: &Context<'_>, #[graphql(name = "runID")] run_id: String) -> Result<Span> {
        let run = runs::find(ctx, &run_id).await?.ok_or_else(|| missing(format!("there is no run {run_id}")))?;
        of(Scope::of(ctx)?.runs(), &run).await
    }
}

/// The tree of a run as it was read: its root says what `run` says, whatever has happened since.
pub(super) async fn of(runs: &Runs, run: &Run) -> Result<Span> {
    let details = runs.details(&run.id).await.map_err(failed)?;
    let live = match run.status.is_terminal() {
        true => HashMap::new(),
        false => runs.live(&run.id).await.map_err(failed)?,
    };
    Ok(tree(run, &details, &live))
}

//! Everything that changes something.

use std::sync::Arc;

use async_graphql::{Context, InputObject, Object, Result};

use super::super::super::ids;
use super::super::super::registry::{Snapshot, definition::same_url};
use super::apps::App;
use super::runs::FunctionRun;
use super::scalars::{Bytes, Map, Ulid};
use super::{Scope, failed, invalid, missing, said};

/// The root of mutations.
pub(super) struct Mutation;

#[Object]
impl Mutation {
    /// Asks the app at this URL what it serves, and registers that.
    async fn create_app(&self, ctx: &Context<'_>, input: CreateAppInput) -> Result<App> {
        ask(Scope::of(ctx)?, &input.url, None).await
    }

    /// Asks for an app at another URL.
    async fn update_app(&self, ctx: &Context<'_>, input: UpdateAppInput) -> Result<App> {
        let scope = Scope::of(ctx)?;
        let known = fresh(scope).await?;
        let app = App::by_id(&known, &input.id).ok_or_else(|| no_app(&input.id))?;
        ask(scope, &input.url, Some(app.name())).await
    }

    /// Archives an app's functions. Answers its id.
    async fn delete_app(&self, ctx: &Context<'_>, id: String) -> Result<String> {
        let scope = Scope::of(ctx)?;
        let known = fresh(scope).await?;
        let app = App::by_id(&known, &id).ok_or_else(|| no_app(&id))?;
        match remove(scope, app.name()).await? {
            true => Ok(id),
            false => Err(no_app(&id)),
        }
    }

    /// The same by name; false when there is none of this name.
    async fn delete_app_by_name(&self, ctx: &Context<'_>, name: String) -> Result<bool> {
        remove(Scope::of(ctx)?, &name).await
    }

    /// Starts a function, whatever its triggers are.
    async fn invoke_function(
        &self,
        ctx: &Context<'_>,
        data: Option<Map>,
        function_slug: String,
    ) -> Result<Option<bool>> {
        let data = data.unwrap_or_default().0;
        Scope::of(ctx)?.engine().invoke(&function_slug, data.into()).await.map_err(failed)?;
        Ok(Some(true))
    }

    /// Ends a run. One that has ended already stays as it is, and is an error.
    async fn cancel_run(&self, ctx: &Context<'_>, #[graphql(name = "runID")] run_id: Ulid) -> Result<FunctionRun> {
        let id = run(&run_id)?;
        let cancelled = Scope::of(ctx)?.engine().cancel(&id, "cancelled by API").await;
        cancelled.map(FunctionRun).map_err(failed)
    }

    /// Runs a run's function once more, for the same event. Answers the new run's id.
    async fn rerun(
        &self,
        ctx: &Context<'_>,
        #[graphql(name = "runID")] run_id: Ulid,
        from_step: Option<RerunFromStepInput>,
    ) -> Result<Ulid> {
        if let Some(from) = from_step {
            let error =
                format!("a run can't be run again from step {}: leave fromStep out to run all of it", from.step_id);
            return Err(said("NOT_IMPLEMENTED", error));
        }
        Scope::of(ctx)?.engine().rerun(&run(&run_id)?).await.map(Ulid).map_err(failed)
    }
}

/// Where the app is.
#[derive(InputObject)]
struct CreateAppInput {
    url: String,
}

/// Which app, and where it is now.
#[derive(InputObject)]
struct UpdateAppInput {
    id: String,
    url: String,
}

/// The step to begin with, and its input instead of the first one.
#[derive(InputObject)]
struct RerunFromStepInput {
    #[graphql(name = "stepID")]
    step_id: String,
    #[allow(dead_code, reason = "refused together with the step")]
    input: Option<Bytes>,
}

fn run(id: &Ulid) -> Result<String> {
    let parsed = ids::parse(&id.0).ok_or_else(|| invalid(format!("`{}` is no run id", id.0)))?;
    Ok(parsed.to_string())
}

fn no_app(id: &str) -> async_graphql::Error {
    missing(format!("there is no app with ID: {id}"))
}

async fn fresh(scope: &Scope) -> Result<Arc<Snapshot>> {
    scope.engine().registry().load().await.map(Arc::new).map_err(failed)
}

async fn remove(scope: &Scope, name: &str) -> Result<bool> {
    scope.engine().registry().remove(name).await.map_err(failed)
}

/// Asks what is served at a URL; the app as it is registered then. With `name` it must be that app.
async fn ask(scope: &Scope, url: &str, name: Option<&str>) -> Result<App> {
    let asked = scope.engine().ask(url, None).await;
    if let Some(problem) = asked.problem {
        return Err(said("APP_NOT_SYNCED", format!("{url}: {problem}")));
    }
    let known = fresh(scope).await?;
    // An app that registers by itself tells its name to the registry only.
    let by_url = || known.apps.values().find(|record| same_url(&record.app.url, url)).map(|record| &record.app.name);
    let found = asked.app.as_ref().or_else(by_url).ok_or_else(|| {
        said("APP_NOT_SYNCED", format!("{url}: the app answered, but has not registered under this URL"))
    })?;
    match name.filter(|name| name != found) {
        Some(name) => Err(said("APP_NOT_SYNCED", format!("{url}: what answers there is app {found}, not {name}"))),
        None => Ok(App::new(&known, found)),
    }
}

//! Apps and functions.

use std::sync::Arc;

use async_graphql::{Context, Enum, ID, InputObject, Object, Result, SimpleObject};

use super::super::super::ids;
use super::super::super::registry::{self, AppRecord, Snapshot};
use super::scalars::Uuid;
use super::{Scope, limits};

/// Queries about what is registered.
#[derive(Default)]
pub(super) struct Queries;

#[Object(name = "AppQueries")]
impl Queries {
    /// Every app.
    #[graphql(complexity = "limits::times(5, child_complexity)")]
    async fn apps(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "Only those that are reached so.")] filter: Option<AppsFilter>,
    ) -> Result<Vec<App>> {
        let known = Scope::of(ctx)?.registry().await?;
        let is_wanted = filter.is_none_or(|filter| filter.method.is_none_or(|method| method == AppMethod::Serve));
        let names: Vec<String> = if is_wanted { known.apps.keys().cloned().collect() } else { Vec::new() };
        Ok(names.into_iter().map(|name| App::new(&known, &name)).collect())
    }

    /// One app.
    async fn app(&self, ctx: &Context<'_>, id: Uuid) -> Result<Option<App>> {
        Ok(App::by_id(&Scope::of(ctx)?.registry().await?, &id.0))
    }

    /// Every function that an app serves.
    #[graphql(complexity = "limits::times(limits::LIST, child_complexity)")]
    async fn functions(&self, ctx: &Context<'_>) -> Result<Option<Vec<Function>>> {
        let known = Scope::of(ctx)?.registry().await?;
        let served = known.functions.keys().filter(|slug| known.is_served(slug));
        Ok(Some(served.map(|slug| Function::new(&known, slug)).collect()))
    }

    /// One function that an app serves.
    async fn function_by_slug(&self, ctx: &Context<'_>, query: FunctionQuery) -> Result<Option<Function>> {
        let known = Scope::of(ctx)?.registry().await?;
        Ok(known.is_served(&query.function_slug).then(|| Function::new(&known, &query.function_slug)))
    }
}

/// Which apps.
#[derive(InputObject)]
#[graphql(name = "AppsFilterV1")]
struct AppsFilter {
    method: Option<AppMethod>,
}

/// Which function.
#[derive(InputObject)]
struct FunctionQuery {
    #[graphql(default_with = "ID::from(\"local\")")]
    #[allow(dead_code, reason = "there is one workspace; clients may name it")]
    workspace_id: ID,
    function_slug: String,
}

/// How an app is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Enum)]
enum AppMethod {
    /// By HTTP calls.
    Serve,
    /// By a connection of the app's own.
    Connect,
}

/// An app: registered, or known from a run that outlived it.
pub(super) struct App {
    name: String,
    record: Option<AppRecord>,
    known: Arc<Snapshot>,
}

impl App {
    /// The app of this name, whether or not it is registered.
    pub(super) fn new(known: &Arc<Snapshot>, name: &str) -> Self {
        Self { name: name.to_owned(), record: known.apps.get(name).cloned(), known: known.clone() }
    }

    /// The registered app with this id.
    pub(super) fn by_id(known: &Arc<Snapshot>, id: &str) -> Option<Self> {
        let id = uuid::Uuid::try_parse(id).ok()?;
        known.apps.values().find(|record| record.app.id == id).map(|record| Self::new(known, &record.app.name))
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Language and version of its SDK: `js:v4.24.0` is `js` and `4.24.0`.
    fn sdk(&self) -> (&str, &str) {
        let sdk = self.record.as_ref().map_or("", |record| record.app.sdk.as_str());
        let (language, version) = sdk.split_once(':').unwrap_or((sdk, ""));
        (language, version.strip_prefix('v').unwrap_or(version))
    }

    fn served(&self) -> impl Iterator<Item = &String> {
        let functions = self.record.as_ref().map_or(&[][..], |record| &record.app.functions);
        functions.iter().filter(|slug| self.known.is_served(slug))
    }

    fn present(&self, text: impl Fn(&AppRecord) -> &str) -> Option<&str> {
        self.record.as_ref().map(text).filter(|text| !text.is_empty())
    }
}

#[Object]
impl App {
    async fn id(&self) -> ID {
        ids::app_id(&self.name).into()
    }

    #[graphql(name = "externalID")]
    async fn external_id(&self) -> &str {
        &self.name
    }

    #[graphql(name = "name")]
    async fn shown_name(&self) -> &str {
        &self.name
    }

    async fn sdk_language(&self) -> &str {
        self.sdk().0
    }

    async fn sdk_version(&self) -> &str {
        self.sdk().1
    }

    async fn framework(&self) -> Option<&str> {
        self.present(|record| &record.app.framework)
    }

    async fn url(&self) -> Option<&str> {
        self.present(|record| &record.app.url)
    }

    async fn checksum(&self) -> Option<&str> {
        self.present(|record| &record.app.checksum)
    }

    /// Why it does not answer, or does not serve what is registered.
    async fn error(&self) -> Option<&str> {
        match &self.record {
            Some(record) => record.health.as_ref()?.problem.as_deref(),
            None => Some("the app is not registered any more"),
        }
    }

    #[graphql(complexity = "limits::times(limits::LIST, child_complexity)")]
    async fn functions(&self) -> Vec<Function> {
        self.served().map(|slug| Function::new(&self.known, slug)).collect()
    }

    /// It answered when it was last asked. One that was not asked yet has just registered.
    async fn connected(&self) -> bool {
        self.record.as_ref().is_some_and(|record| record.health.as_ref().is_none_or(|health| health.problem.is_none()))
    }

    async fn method(&self) -> AppMethod {
        AppMethod::Serve
    }

    async fn function_count(&self) -> usize {
        self.served().count()
    }

    /// Ports are not searched for apps.
    async fn autodiscovered(&self) -> bool {
        false
    }

    async fn app_version(&self) -> Option<&str> {
        None
    }
}

/// A function: served, archived, or known from a run that outlived it.
pub(super) struct Function {
    slug: String,
    record: Option<Arc<registry::Function>>,
    /// Where there is no record: id and app as a run tells them.
    told: (String, String),
    known: Arc<Snapshot>,
}

impl Function {
    fn new(known: &Arc<Snapshot>, slug: &str) -> Self {
        Self::told(known, slug, "", "")
    }

    /// The function of a run.
    pub(super) fn told(known: &Arc<Snapshot>, slug: &str, id: &str, app: &str) -> Self {
        let record = known.functions.get(slug).cloned();
        Self { slug: slug.to_owned(), record, told: (id.to_owned(), app.to_owned()), known: known.clone() }
    }

    fn app_name(&self) -> &str {
        self.record.as_ref().map_or(&self.told.1, |record| &record.app)
    }
}

#[Object]
impl Function {
    async fn id(&self) -> String {
        self.record.as_ref().map_or_else(|| self.told.0.clone(), |record| record.id.to_string())
    }

    async fn name(&self) -> &str {
        self.record.as_ref().map_or(&self.slug, |record| &record.name)
    }

    async fn slug(&self) -> &str {
        &self.slug
    }

    /// As it was registered, JSON.
    async fn config(&self) -> String {
        self.record.as_ref().map_or_else(|| "{}".to_owned(), |record| record.config.to_string())
    }

    /// Steps of it that run at once; 0 is any number.
    async fn concurrency(&self) -> u32 {
        self.record.as_ref().and_then(|record| record.flow.plain_limit()).unwrap_or(0)
    }

    async fn triggers(&self) -> Option<Vec<FunctionTrigger>> {
        let triggers = self.record.as_ref()?.triggers.iter();
        Some(triggers.flat_map(FunctionTrigger::of).collect())
    }

    async fn url(&self) -> &str {
        self.record.as_ref().map_or("", |record| &record.url)
    }

    #[graphql(name = "appID")]
    async fn app_id(&self) -> String {
        ids::app_id(self.app_name()).to_string()
    }

    async fn app(&self) -> App {
        App::new(&self.known, self.app_name())
    }

    /// No app serves it any more.
    async fn is_archived(&self) -> bool {
        !self.known.is_served(&self.slug)
    }
}

/// What starts a function.
#[derive(SimpleObject)]
struct FunctionTrigger {
    #[graphql(name = "type")]
    kind: FunctionTriggerTypes,
    value: String,
    /// Condition on the event.
    condition: Option<String>,
}

#[derive(Clone, Copy, PartialEq, Eq, Enum)]
enum FunctionTriggerTypes {
    Event,
    Cron,
}

impl FunctionTrigger {
    fn of(trigger: &registry::Trigger) -> Option<Self> {
        let (kind, value) = match (&trigger.event, &trigger.cron) {
            (Some(event), _) => (FunctionTriggerTypes::Event, event),
            (None, Some(cron)) => (FunctionTriggerTypes::Cron, cron),
            (None, None) => return None,
        };
        Some(Self { kind, value: value.clone(), condition: trigger.expression.clone() })
    }
}

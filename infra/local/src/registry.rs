//! Lists the handlers and workers by name.
//!
//! To add a function, add a line to [`handlers`] or [`workers`]: [`mount_table`] for a function with
//! several routes. The runner does not start if a
//! function is missing here or in `template.yaml`.

use std::{
    collections::BTreeMap,
    future::Future,
    pin::Pin,
    sync::{Arc, LazyLock, Mutex, PoisonError},
};

use http::Method;
use karta_shared::{
    App,
    http::{ResponseBody, Route, RouteTable, TableRoute, serve},
    worker::{Fault, Wake, Worker, work},
};
use lambda_http::{Request, Response};
use tokio::task::JoinSet;
use worker_audit_chain::AuditChain;
use worker_budget_checks::BudgetChecks;
use worker_cache_push::{AuthorizerCache, CachePush};
use worker_expiry_notices::ExpiryNotices;
use worker_model_keys_reseal::ModelKeysReseal;
use worker_turns_sweep::TurnsSweep;
use worker_webhook_deliveries::WebhookDeliveries;
use worker_webhook_events::{Waker, WebhookEvents};

use crate::gateway::Gateway;

/// A handler and the requests that it serves.
pub struct Mounted {
    /// The name of the route.
    pub name: &'static str,
    /// Method and path. `None` serves every route of the function.
    pub route: Option<(Method, &'static str)>,
    pub handler: Handler,
}

type HandlerFuture = Pin<Box<dyn Future<Output = Response<ResponseBody>> + Send>>;
pub type Handler = Arc<dyn Fn(Request) -> HandlerFuture + Send + Sync>;

/// Returns the handlers of every function that handles requests, by the name of its folder.
pub fn handlers(app: &App) -> BTreeMap<&'static str, Vec<Mounted>> {
    BTreeMap::from([
        mount::<agent_projects_create::AgentProjectsCreate>(app),
        mount::<agent_projects_get::AgentProjectsGet>(app),
        mount::<agent_projects_list::AgentProjectsList>(app),
        mount::<agent_projects_update::AgentProjectsUpdate>(app),
        mount::<api_keys_create::ApiKeysCreate>(app),
        mount::<api_keys_get::ApiKeysGet>(app),
        mount::<api_keys_list::ApiKeysList>(app),
        mount::<api_keys_revoke::ApiKeysRevoke>(app),
        mount::<api_keys_rotate::ApiKeysRotate>(app),
        mount::<api_keys_update::ApiKeysUpdate>(app),
        mount::<audit_events_list::AuditEventsList>(app),
        mount::<billing_get::BillingGet>(app),
        mount::<budget_get::BudgetGet>(app),
        mount::<budget_update::BudgetUpdate>(app),
        mount::<deploys_create::DeploysCreate>(app),
        mount::<docs_get::DocsGet>(app),
        mount::<healthz::Healthz>(app),
        mount::<internal_active_release_get::InternalActiveReleaseGet>(app),
        mount::<internal_api_keys_create::InternalApiKeysCreate>(app),
        mount::<internal_keys_validate::InternalKeysValidate>(app),
        mount::<internal_model_keys_active::InternalModelKeysActive>(app),
        mount::<internal_model_settings_get::InternalModelSettingsGet>(app),
        mount::<internal_organizations_create::InternalOrganizationsCreate>(app),
        mount::<internal_organizations_get::InternalOrganizationsGet>(app),
        mount::<internal_organizations_update::InternalOrganizationsUpdate>(app),
        mount::<internal_releases_status::InternalReleasesStatus>(app),
        mount::<internal_usage_events_create::InternalUsageEventsCreate>(app),
        mount::<internal_whoami::InternalWhoami>(app),
        mount::<model_keys_create::ModelKeysCreate>(app),
        mount::<model_keys_list::ModelKeysList>(app),
        mount::<model_keys_revoke::ModelKeysRevoke>(app),
        mount::<openapi_get::OpenapiGet>(app),
        mount::<projects_whoami::ProjectsWhoami>(app),
        mount::<release_logs_list::ReleaseLogsList>(app),
        mount::<releases_list::ReleasesList>(app),
        mount::<releases_rollback::ReleasesRollback>(app),
        mount::<session_tokens_create::SessionTokensCreate>(app),
        mount_table(app, sessions::routes()),
        mount::<stripe_events_create::StripeEventsCreate>(app),
        mount_table(app, turn_streams::routes()),
        mount_table(app, turns::routes()),
        mount::<usage_get::UsageGet>(app),
        mount::<usage_keys_list::UsageKeysList>(app),
        mount::<webhook_deliveries_list::WebhookDeliveriesList>(app),
        mount::<webhook_deliveries_replay::WebhookDeliveriesReplay>(app),
        mount::<webhook_endpoints_create::WebhookEndpointsCreate>(app),
        mount::<webhook_endpoints_delete::WebhookEndpointsDelete>(app),
        mount::<webhook_endpoints_get::WebhookEndpointsGet>(app),
        mount::<webhook_endpoints_list::WebhookEndpointsList>(app),
        mount::<webhook_endpoints_recover::WebhookEndpointsRecover>(app),
        mount::<webhook_endpoints_rotate_secret::WebhookEndpointsRotateSecret>(app),
        mount::<webhook_endpoints_test::WebhookEndpointsTest>(app),
        mount::<webhook_endpoints_update::WebhookEndpointsUpdate>(app),
        mount::<whoami::Whoami>(app),
    ])
}

type Work = Pin<Box<dyn Future<Output = Result<(), Fault>> + Send>>;
/// Runs a worker once.
pub type RunWorker = Arc<dyn Fn() -> Work + Send + Sync>;

/// Returns every worker with a schedule, by the name of its folder.
pub fn workers(app: &App, gateway: &Arc<Gateway>) -> BTreeMap<&'static str, RunWorker> {
    let gateway = Arc::clone(gateway);
    let cache = AuthorizerCache::Local(Arc::new(move || gateway.flush_authorizer_cache()));
    let deliveries = WebhookDeliveries::new(app.for_function(WebhookDeliveries::NAME), Vec::new());
    let waker = waker(deliveries.clone());
    BTreeMap::from([
        mount_worker(app, AuditChain::new),
        mount_worker(app, BudgetChecks::new),
        mount_worker(app, |app| CachePush::new(app, cache)),
        mount_worker(app, ExpiryNotices::new),
        mount_worker(app, ModelKeysReseal::new),
        mount_worker(app, TurnsSweep::new),
        mount_worker(app, |app| WebhookEvents::new(app, waker)),
        mount_worker(app, |_| deliveries),
    ])
}

/// Returns a waker that delivers to endpoints concurrently in this process. Dropping its last clone
/// aborts the running deliveries.
pub fn waker(deliveries: WebhookDeliveries) -> Waker {
    let running = Mutex::new(JoinSet::new());
    Waker::Local(Arc::new(move |organization_id, webhook_endpoint_id| {
        let (deliveries, mut running) = (deliveries.clone(), running.lock().unwrap_or_else(PoisonError::into_inner));
        while running.try_join_next().is_some() {}
        running.spawn(async move {
            // `work` logs a fault, and the next sweep retries.
            work(&deliveries, &Wake::Endpoint { organization_id, webhook_endpoint_id }).await.ok();
        });
    }))
}

/// Creates the worker with its own app at the first run.
fn mount_worker<W: Worker>(app: &App, new: impl FnOnce(App) -> W + Send + 'static) -> (&'static str, RunWorker) {
    let app = app.clone();
    let worker = LazyLock::new(move || Arc::new(new(app.for_function(W::NAME))));
    let run_worker = move || -> Work {
        let worker = Arc::clone(&worker);
        Box::pin(async move { work(&*worker, &Wake::Sweep).await })
    };
    (W::NAME, Arc::new(run_worker))
}

/// Creates the handler's own app at the first request.
fn mount<R: Route>(app: &App) -> (&'static str, Vec<Mounted>) {
    let app = app.clone();
    let app = LazyLock::new(move || app.for_function(R::NAME));
    let handler = move |request| -> HandlerFuture {
        let app = App::clone(&app);
        Box::pin(async move { serve::<R>(&app, request).await })
    };
    (R::NAME, vec![Mounted { name: R::NAME, route: None, handler: Arc::new(handler) }])
}

/// Mounts a function with several routes. They share an app, which the first request creates.
pub fn mount_table(app: &App, table: RouteTable) -> (&'static str, Vec<Mounted>) {
    debug_assert_eq!(table.check(), Ok(()));
    let (app, function) = (app.clone(), table.function());
    let app = Arc::new(LazyLock::new(move || app.for_function(function)));
    let mount = |route: TableRoute| {
        let (name, method, path) = (route.name, route.method.clone(), route.path);
        let (app, route) = (Arc::clone(&app), Arc::new(route));
        let handler = move |request| -> HandlerFuture {
            let (app, route) = (App::clone(&app), Arc::clone(&route));
            Box::pin(async move { route.serve(&app, request).await })
        };
        Mounted { name, route: Some((method, path)), handler: Arc::new(handler) }
    };
    (function, table.into_routes().into_iter().map(mount).collect())
}

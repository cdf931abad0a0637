//! The frame that every route runs in.
//!
//! A route is a type that implements [`Route`]: its name, who may call it ([`Access`]), the types
//! of its path, query and body, and [`Route::handle`]. [`serve`] checks the request in a fixed
//! order: credential, kind and scope, query, body, idempotency key, path. Then it runs the handler
//! and encodes the response.
//!
//! A function serves one route ([`run`]) or a [`RouteTable`]. To add a route, add a package under
//! `functions/`, a function in `template.yaml` and a line in the local runner's registry and
//! `OpenAPI` list. A new resource also needs a type in `resources`.

mod access;
mod api_response;
mod authorizer_context;
mod body;
mod call;
mod cors;
pub mod cursor;
mod error;
mod event;
mod idempotency;
mod json;
mod lambda;
mod path;
mod query;
mod reader;
mod resources;
mod route;
mod schema;
mod serve;
mod sessions;
mod stream;
mod stripe;
mod webhooks;

pub use self::{
    access::{
        Access, Admin, AnyKey, AnyService, ApiKeyCaller, AuthorizationRequest, Byok, CallerIdentity, Internal,
        ProjectAccess, ProjectScoped, Provision, Public, Read, Releases, ReportUsage, RequiredCredential,
        RequiredScope, SessionCaller, Validate, Write,
    },
    api_response::{ApiResponse, Revealed, Verbatim},
    authorizer_context::{AuthorizerContext, ContextError},
    body::{NoBody, NoFields, UncheckedText, null_as_default, present},
    call::Call,
    cors::Cors,
    error::Error,
    event::{EventText, GatewayEvent},
    idempotency::{Reveals, StoredIdempotencyKey},
    lambda::{Preflight, RouteTable, TableRoute, run, serve_event},
    path::decode_unreserved,
    query::{AnyQuery, CommaSeparated, Days, IdParameter, Limit, NoQuery},
    reader::{Bounded, ItemResult, RawJson},
    resources::{
        AgentProjectResource, ApiKeyResource, AuditEventResource, BudgetResource, DeliveryResource, ModelKeyResource,
        OrganizationResource, ReleaseResource, UnpricedUsage, UsageResource, WebhookEndpointResource,
    },
    route::{DeliveryPath, FromPath, ProjectPath, ReleasePath, Route},
    serve::serve,
    sessions::{
        AgentName, ApiKeyOnly, Family, MessagePartResource, MessageResource, OrganizationSessions, ProjectSessions,
        SessionPath, SessionProjectResource, SessionResource, SessionStatus, SessionTurnResource, SessionUsageResource,
        SessionsPath, TurnUsageResource, open_messages, text_of,
    },
    stream::{EventSender, EventStream, ResponseBody, event_channel},
    stripe::{Stripe, StripeCaller},
    webhooks::require_enabled,
};
pub use crate::domain::{Action, NewAuditEvent};

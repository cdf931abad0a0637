//! `GET /v1/audit_events`: the organization's audit events, newest first, each with the state of
//! its chain.

use karta_shared::{
    App,
    config::{Ring, Secret},
    domain::{Action, AuditEvent, Name},
    http::{Admin, ApiResponse, AuditEventResource, Call, Error, Limit, NoBody, Route, cursor},
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Query {
    #[serde(default)]
    limit: Limit,
    cursor: Option<String>,
    /// Only events of this actor: an API key's id, or the name of an actor. Text that is an id is never
    /// compared with names.
    actor: Option<Name>,
    /// Only events with this action.
    action: Option<Action>,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct Output {
    audit_events: Vec<AuditEventResource>,
    next_cursor: Option<String>,
}

#[derive(Debug)]
pub struct AuditEventsList;

impl Route for AuditEventsList {
    const NAME: &'static str = "audit-events-list";
    const SECRETS: &'static [Secret] = &[Secret::Ring(Ring::Cursor)];
    type Access = Admin;
    type Path = ();
    type Query = Query;
    type Body = NoBody;
    type Output = Output;

    async fn handle(app: &App, call: &Call<Self>) -> Result<ApiResponse<Output>, Error> {
        let organization = call.caller.organization_id;
        let Query { limit, cursor, actor, action } = &call.query;
        let list = format!("audit_events?actor={actor:?}&action={action:?}");
        let below = cursor::open(app, organization, &list, cursor.as_deref()).await?;
        let wanted = |event: &AuditEvent| {
            actor.as_ref().is_none_or(|actor| event.actor.has_id_or_name(actor.as_str()))
                && action.is_none_or(|action| event.action == action.as_str())
        };
        let page = app.store.audit_events(organization, below, limit.get(), wanted).await?;
        let chains = app.store.chains(organization, &page.items, app.clock.now()).await?;
        let events = page.items.into_iter().zip(chains);
        ApiResponse::ok(&Output {
            audit_events: events.map(|(logged, chain)| AuditEventResource { event: logged.event, chain }).collect(),
            next_cursor: cursor::seal(app, organization, &list, page.resume_below).await?,
        })
    }
}

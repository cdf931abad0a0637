//! `GET …/sessions/{id}/messages`: the messages of a session, oldest first.

use std::marker::PhantomData;

use karta_shared::{
    App,
    config::{Ring, Secret},
    http::{
        ApiResponse, Call, Cors, Error, Family, Limit, MessageResource, NoBody, Route, SessionPath, cursor,
        open_messages,
    },
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Query {
    #[serde(default)]
    limit: Limit,
    cursor: Option<String>,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct Output {
    messages: Vec<MessageResource>,
    next_cursor: Option<String>,
}

#[derive(Debug)]
pub struct MessagesList<F>(PhantomData<F>);

impl<F: Family> Route for MessagesList<F> {
    const NAME: &'static str = if F::IN_PROJECT { "project-messages-list" } else { "messages-list" };
    const SECRETS: &'static [Secret] = &[Secret::Ring(Ring::Cursor), Secret::Ring(Ring::SealingSessions)];
    const CORS: Option<Cors> = F::CORS;
    type Access = F::Read;
    type Path = SessionPath;
    type Query = Query;
    type Body = NoBody;
    type Output = Output;

    async fn handle(app: &App, call: &Call<Self>) -> Result<ApiResponse<Output>, Error> {
        let organization = call.caller.organization_id;
        let session = call.session(app).await?;
        call.require_transcript_access(app, &session).await?;
        let name = format!("messages of {}", session.id);
        let after = cursor::open(app, organization, &name, call.query.cursor.as_deref()).await?;
        let page = app.store.messages(organization, &session.id, after, call.query.limit.get()).await?;
        let next_cursor = cursor::seal(app, organization, &name, page.resume_after).await?;
        let opened = open_messages(app, organization, &session.id, page.messages).await?;
        call.audit_transcript_read(app, &session).await?;
        let resource = |(message, parts): (karta_shared::store::SealedMessage, _)| {
            MessageResource::new(message.id, message.turn_id, message.role, parts, message.created_at)
        };
        ApiResponse::ok(&Output { messages: opened.into_iter().map(resource).collect(), next_cursor })
    }
}

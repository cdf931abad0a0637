//! Shared by the routes of sessions: their two families of paths, the sessions that a caller
//! reaches, and the resources that responses show.

use std::marker::PhantomData;

use lambda_http::aws_lambda_events::query_map::QueryMap;
use serde::Serialize;
use utoipa::ToSchema;

use super::{
    Access, Action, ApiKeyCaller, AuthorizationRequest, Call, CallerIdentity, Cors, Error, FromPath, NewAuditEvent,
    ProjectScoped, RequiredCredential, Route, SessionCaller, access::RequiredScope,
};
use crate::{
    app::App,
    config::Ring,
    domain::{
        Id, MessageId, MessageRole, Metadata, PrincipalKind, Session, SessionId, SessionReach, Slug, Timestamp,
        TurnCaller, TurnId, TurnStatus, TurnUsage, UserId, Version,
    },
    store::SealedMessage,
    transcripts::{TranscriptContext, TranscriptPart},
    turn_events::{MessagePart, PartKind},
};

/// Nano-cents in a cent.
const NANO: u128 = 1_000_000_000;

/// A family of paths to sessions.
pub trait Family: Send + Sync + 'static {
    const IN_PROJECT: bool;
    const CORS: Option<Cors>;
    type Read: Access<Caller = SessionCaller>;
    type Write: Access<Caller = SessionCaller>;
}

/// `/v1/sessions…`: for API keys. Reaches every session of the organization.
#[derive(Debug)]
pub struct OrganizationSessions;

impl Family for OrganizationSessions {
    const IN_PROJECT: bool = false;
    const CORS: Option<Cors> = None;
    type Read = ApiKeyOnly<super::Read>;
    type Write = ApiKeyOnly<super::Write>;
}

/// `/v1/projects/{ref}/sessions…`: for session tokens and API keys. Reaches the sessions of the
/// project.
#[derive(Debug)]
pub struct ProjectSessions;

impl Family for ProjectSessions {
    const IN_PROJECT: bool = true;
    const CORS: Option<Cors> = Some(Cors::DATA_PLANE);
    type Read = ProjectScoped<super::Read>;
    type Write = ProjectScoped<super::Write>;
}

/// An API key with scope `S`, on a data-plane route without a project.
#[derive(Debug)]
pub struct ApiKeyOnly<S>(PhantomData<fn() -> S>);

impl<S: RequiredScope> Access for ApiKeyOnly<S> {
    type Caller = SessionCaller;
    const CREDENTIAL: RequiredCredential = RequiredCredential::ApiKey(S::SCOPE);

    fn identity(caller: &SessionCaller) -> Option<&dyn CallerIdentity> {
        Some(caller)
    }

    async fn authorize(request: AuthorizationRequest<'_>) -> Result<SessionCaller, Error> {
        let caller: ApiKeyCaller = S::authorize(request).await?;
        Ok(caller.into())
    }
}

/// `{ref}`, if the path has it.
#[derive(Debug)]
pub struct SessionsPath {
    pub project: Option<Slug>,
}

impl FromPath for SessionsPath {
    fn from_path(variables: &QueryMap) -> Option<Self> {
        let project = variables.first("ref").map(|slug| Slug::try_from(slug.to_owned())).transpose();
        project.ok().map(|project| Self { project })
    }
}

/// `{id}` and, if the path has it, `{ref}`. An invalid id is `None`. Handlers return 404 for it, after
/// the earlier checks.
#[derive(Debug)]
pub struct SessionPath {
    pub project: Option<Slug>,
    pub session: Option<SessionId>,
}

impl FromPath for SessionPath {
    fn from_path(variables: &QueryMap) -> Option<Self> {
        let project = variables.first("ref").map(|slug| Slug::try_from(slug.to_owned())).transpose();
        let session = variables.first("id").and_then(SessionId::parse);
        Some(match project {
            Ok(project) => Self { project, session },
            Err(_) => Self { project: None, session: None },
        })
    }
}

impl SessionCaller {
    /// Returns the sessions that the caller reaches on a path with this project.
    pub fn reach(&self, project: Option<&Slug>) -> SessionReach {
        match (self.project_id, project) {
            (Some(project), _) => SessionReach::User { project, user: self.user() },
            (None, Some(project)) => SessionReach::Project(project.clone()),
            (None, None) => SessionReach::Organization,
        }
    }

    /// Returns the end user of a session token.
    pub fn user(&self) -> Option<UserId> {
        self.sub.clone().and_then(|sub| UserId::try_from(sub).ok())
    }

    pub fn is_token(&self) -> bool {
        self.kind == PrincipalKind::Session
    }
}

impl<R> Call<R>
where
    R: Route<Path = SessionPath>,
    R::Access: Access<Caller = SessionCaller>,
{
    /// Returns the session of the path, or a 404 if it is missing or out of the caller's reach.
    pub async fn session(&self, app: &App) -> Result<Session, Error> {
        let id = self.path.session.as_ref().ok_or(Error::NotFound)?;
        let session = app.store.session(self.caller.organization_id, id).await?;
        self.reachable(session)
    }

    /// Returns a session that was read, or a 404 if it is missing or out of the caller's reach.
    pub fn reachable(&self, session: Option<Session>) -> Result<Session, Error> {
        let reach = self.caller.reach(self.path.project.as_ref());
        session.filter(|session| session.is_reachable(&reach, self.now)).ok_or(Error::NotFound)
    }

    /// Returns whether the caller needs the organization's `transcript_access` for a session: an API
    /// key for a session that belongs to a user or that a token created.
    fn needs_transcript_access(&self, session: &Session) -> bool {
        !self.caller.is_token() && session.is_private()
    }

    /// Returns the caller of a turn in a session, for checks while the turn runs or is followed.
    pub fn turn_caller(&self, session: &Session) -> TurnCaller {
        TurnCaller {
            organization: self.caller.organization_id,
            api_key: self.caller.api_key_id,
            needs_transcript_access: self.needs_transcript_access(session),
        }
    }

    /// Checks that the caller may read or continue a session: it does not need `transcript_access`, or
    /// the organization has it.
    pub async fn require_transcript_access(&self, app: &App, session: &Session) -> Result<(), Error> {
        if !self.needs_transcript_access(session) {
            return Ok(());
        }
        let organization = app.store.organization(self.caller.organization_id).await?;
        self.check_transcript_access(session, organization.is_some_and(|organization| organization.transcript_access))
    }

    /// Like [`require_transcript_access`](Self::require_transcript_access), for an organization that
    /// was read.
    pub fn check_transcript_access(&self, session: &Session, has_access: bool) -> Result<(), Error> {
        if has_access || !self.needs_transcript_access(session) {
            Ok(())
        } else {
            Err(Error::Forbidden(
                "transcript_access is off: use a session token of the user, or ask the operator to enable it".into(),
            ))
        }
    }

    /// Writes an audit event if an API key reads the content of a session that belongs to a user or
    /// that a token created.
    pub async fn audit_transcript_read(&self, app: &App, session: &Session) -> Result<(), Error> {
        if !self.needs_transcript_access(session) {
            return Ok(());
        }
        let event = NewAuditEvent {
            action: Action::SessionTranscriptRead,
            resource_kind: "session",
            resource_id: session.id.clone().into(),
            changes: [].into(),
        };
        let organization = self.caller.organization_id;
        let mut transaction = app.store.transaction();
        transaction.audit(organization, &self.audit_event(app, event))?;
        Ok(transaction.commit().await?)
    }
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Session)]
pub struct SessionResource {
    id: SessionId,
    metadata: Metadata,
    /// The end user that the session belongs to.
    user_id: Option<UserId>,
    /// Always `active`: a deleted or expired session is not shown.
    status: SessionStatus,
    current_agent: AgentName,
    project: Option<SessionProjectResource>,
    /// The turn that was started last.
    turn: Option<SessionTurnResource>,
    usage: SessionUsageResource,
    created_at: Timestamp,
    updated_at: Timestamp,
    /// When the session is deleted, unless a turn ends before.
    expires_at: Timestamp,
}

#[derive(Debug, Clone, Copy, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum SessionStatus {
    Active,
}

/// The agent that answers. There is one.
#[derive(Debug, Clone, Copy, Default, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum AgentName {
    #[default]
    Default,
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = SessionProject)]
pub struct SessionProjectResource {
    /// The project's slug.
    #[serde(rename = "ref")]
    slug: Slug,
    project_id: Id,
    /// The release that was active when the session was created.
    version: Version,
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = SessionTurn)]
pub struct SessionTurnResource {
    id: TurnId,
    status: TurnStatus,
    started_at: Timestamp,
}

/// Sums of the turns that ended. `input_tokens` includes the tokens of the provider's prompt cache.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = SessionUsage)]
pub struct SessionUsageResource {
    input_tokens: u64,
    output_tokens: u64,
    cost_cents: u64,
}

impl From<Session> for SessionResource {
    fn from(session: Session) -> Self {
        Self {
            id: session.id,
            metadata: session.metadata,
            user_id: session.user_id,
            status: SessionStatus::Active,
            current_agent: AgentName::Default,
            project: session.project.map(|project| SessionProjectResource {
                slug: project.slug,
                project_id: project.id,
                version: project.version,
            }),
            turn: session.last_turn.map(|turn| SessionTurnResource {
                id: turn.id,
                status: turn.status,
                started_at: turn.started_at,
            }),
            usage: SessionUsageResource {
                input_tokens: session.usage.input_tokens,
                output_tokens: session.usage.output_tokens,
                cost_cents: cents(session.usage.cost.into()),
            },
            created_at: session.created_at,
            updated_at: session.updated_at,
            expires_at: session.expires_at,
        }
    }
}

/// Usage of a turn. `input_tokens` excludes the tokens of the provider's prompt cache.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = TurnUsage)]
pub struct TurnUsageResource {
    input_tokens: u64,
    output_tokens: u64,
    cache_read_tokens: u64,
    cache_write_tokens: u64,
    /// Rounded up.
    cost_cents: u64,
}

impl TurnUsageResource {
    /// `cost` is in nano-cents.
    pub fn new(usage: &TurnUsage, cost: u128) -> Self {
        Self {
            input_tokens: usage.input_tokens,
            output_tokens: usage.output_tokens,
            cache_read_tokens: usage.cache_read_tokens,
            cache_write_tokens: usage.cache_write_tokens,
            cost_cents: cents(cost),
        }
    }
}

fn cents(nano_cents: u128) -> u64 {
    u64::try_from(nano_cents.div_ceil(NANO)).unwrap_or(u64::MAX)
}

#[derive(Debug, Clone, Serialize, ToSchema)]
#[schema(as = Message)]
pub struct MessageResource {
    id: MessageId,
    turn_id: TurnId,
    role: MessageRole,
    /// The texts of the parts, without reasoning.
    text: String,
    parts: Vec<MessagePartResource>,
    created_at: Timestamp,
}

#[derive(Debug, Clone, Serialize, ToSchema)]
#[schema(as = MessagePart)]
pub struct MessagePartResource {
    id: String,
    #[serde(rename = "type")]
    kind: PartKind,
    text: String,
}

impl MessageResource {
    pub fn new(
        id: MessageId,
        turn_id: TurnId,
        role: MessageRole,
        parts: Vec<MessagePart>,
        created_at: Timestamp,
    ) -> Self {
        Self {
            id,
            turn_id,
            role,
            text: text_of(&parts),
            parts: parts
                .into_iter()
                .map(|MessagePart { id, kind, text }| MessagePartResource { id, kind, text })
                .collect(),
            created_at,
        }
    }
}

/// Returns the text of a message, without reasoning.
pub fn text_of(parts: &[MessagePart]) -> String {
    parts.iter().filter(|part| part.kind == PartKind::Text).map(|part| part.text.as_str()).collect()
}

/// Opens sealed messages.
pub async fn open_messages(
    app: &App,
    organization: Id,
    session: &SessionId,
    sealed: Vec<SealedMessage>,
) -> Result<Vec<(SealedMessage, Vec<MessagePart>)>, Error> {
    let mut opened = Vec::with_capacity(sealed.len());
    for message in sealed {
        let ring = app.secrets.ring_with(Ring::SealingSessions, &message.content.kid).await?;
        let context = TranscriptContext { organization, session, turn: &message.turn_id };
        let opened_parts = context.open(&ring, TranscriptPart::Message(message.role), &message.content)?;
        let parts = serde_json::from_slice(&opened_parts)
            .map_err(|error| Error::Internal(format!("message {} cannot be decoded: {error}", message.id)))?;
        opened.push((message, parts));
    }
    Ok(opened)
}

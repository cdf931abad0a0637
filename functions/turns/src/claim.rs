//! Validates a request for a turn in the documented order of checks (docs/api.md), and claims its
//! session.

use std::borrow::Cow;

use karta_dialects::{Dialect, Prompt, PromptMessage, Role};
use karta_shared::{
    App, auth,
    config::{self, Ring},
    domain::{
        Budget, BudgetVerdict, EndpointUrl, Exhausted, Id, MessageId, MessageRole, ModelChoice, ModelId, ModelKey,
        ModelRefused, ModelRule, OutboundUrl, Price, Provider, Session, Spending, Tally, Timestamp, Turn, TurnError,
        TurnId, TurnStatus, TurnUsage, may_send_key_to,
    },
    http::{Access, Call, Error, MessageResource, Route, SessionCaller, SessionPath, open_messages, text_of},
    settlement::{estimate_tokens, leased_until},
    store::{
        Amount, KnownCounters, Reservation, SealedMessage, SealedModelKey, StoreError, TurnClaim, TurnRequest,
        TurnSettings, TurnState,
    },
    transcripts::{TranscriptContext, TranscriptPart},
    turn_events::MessagePart,
};
use secrecy::SecretString;

use crate::{
    messages::{Input, MAX_TOKENS_DEFAULT, user_parts},
    provider::{BaseUrl, Failure, Target, dialect_of},
    run::{SLICE, TurnTask, output_cost},
};

/// Reservations count this many times the estimated input, so that they are rarely too low.
const RESERVED_INPUT_FACTOR: u64 = 2;

/// A request that may start a turn.
struct ValidatedRequest {
    session: Session,
    known: KnownCounters,
    spending: Spending,
    choice: ModelChoice,
    price: Option<Price>,
    model_key_id: Id,
    target: Target,
    messages: Vec<PromptMessage<'static>>,
}

/// Claims the session for a turn, and reserves its first slice where a cap applies. `replaced` is
/// the earlier turn of the same `Idempotency-Key`; the new turn replaces it.
pub(crate) async fn claim<R>(app: &App, call: &Call<R>, replaced: Option<&TurnId>) -> Result<TurnTask, Error>
where
    R: Route<Path = SessionPath, Body = Input>,
    R::Access: Access<Caller = SessionCaller>,
{
    let validated = Box::pin(validate_request(app, call)).await?;
    let (organization, now) = (call.caller.organization_id, call.now);
    let input_bytes: usize = validated.messages.iter().map(|message| message.text.len()).sum();
    let input_estimate = estimate_tokens(input_bytes);
    let is_capped = caps(&validated.spending).any(|budget| budget.limits().next().is_some());
    let hides_output = call.body.thinking || validated.target.dialect != Dialect::AnthropicMessages;
    let mut max_tokens = call.body.max_tokens.map_or(MAX_TOKENS_DEFAULT, |tokens| tokens.0);
    // Output that the provider bills without showing it cannot be reserved in slices.
    if is_capped && hides_output {
        if call.caller.is_token() {
            // One browser must not reserve all that a cap leaves.
            max_tokens = max_tokens.min(MAX_TOKENS_DEFAULT);
        }
        if let Some(left) = output_left(&validated.spending, &validated.known, validated.price, input_estimate) {
            max_tokens = max_tokens.min(u32::try_from(left).unwrap_or(u32::MAX));
        }
    }
    let body = validated.target.dialect.request(&Prompt {
        model: validated.choice.upstream_name(),
        system: None,
        messages: &validated.messages,
        max_tokens,
        thinking: call.body.thinking,
    });
    let reserved_output = if hides_output { u64::from(max_tokens) } else { SLICE.min(u64::from(max_tokens)) };
    let turn = new_turn(app, call, &validated, input_estimate, (max_tokens, hides_output));
    let reservation = is_capped.then(|| Reservation::new(organization, turn.lineage_id, now.month(), turn.id.as_str()));
    let parts = user_parts(&call.body.text.0);
    let leased_until =
        store_claim(app, call, &validated.session, &turn, &parts, reservation.as_ref(), replaced).await?;

    let user_message =
        MessageResource::new(turn.user_message_id.clone(), turn.id.clone(), MessageRole::User, parts, now);
    let mut task = TurnTask {
        app: app.clone(),
        caller: call.turn_caller(&validated.session),
        session: validated.session.id,
        turn,
        leased_until,
        user_message,
        retention: app.session_retention,
        known: Some(validated.known),
        reservation,
        budgets: (validated.spending.organization_budget, validated.spending.key_budget),
        reserved_output,
        target: validated.target,
        body,
        sender: None,
    };
    match task.reserve_first(input_estimate.saturating_mul(RESERVED_INPUT_FACTOR)).await {
        Ok(Ok(())) if app.clock.now() < leased_until => Ok(task),
        // The lease has ended, for example because Lambda froze the process. The sweep may have settled the
        // turn already.
        Ok(Ok(())) => {
            Box::pin(task.end_unsent(TurnError::Interrupted.into())).await;
            Err(Error::turn_failed(TurnError::Interrupted))
        }
        Ok(Err(exhausted)) => {
            let failure = Failure { exhausted: Some(exhausted), ..TurnError::BudgetExhausted.into() };
            Box::pin(task.end_unsent(failure)).await;
            Err(Error::budget_held(exhausted, now))
        }
        Err(fault) => {
            task.known = None;
            Box::pin(task.end_unsent(TurnError::Internal.into())).await;
            Err(fault.into())
        }
    }
}

/// Checks everything that precedes the claim, in the documented order.
async fn validate_request<R>(app: &App, call: &Call<R>) -> Result<ValidatedRequest, Error>
where
    R: Route<Path = SessionPath, Body = Input>,
    R::Access: Access<Caller = SessionCaller>,
{
    let (organization, now) = (call.caller.organization_id, call.now);
    let SessionCaller { api_key_id, lineage_id, .. } = call.caller;
    let state = app.store.turn_state(organization, call.path.session.as_ref(), api_key_id, lineage_id, now).await?;
    let TurnState { session, key, spending, model_keys, known } = state;
    auth::check_status(&key, now).map_err(|_| Error::Unauthorized)?;
    let verdict = BudgetVerdict::new(key.organization.subscription_status, &spending);
    if let BudgetVerdict::Exhausted(exhausted) = verdict {
        return Err(Error::budget_exhausted(exhausted, now));
    }
    let session = call.reachable(session)?;
    call.check_transcript_access(&session, key.organization.transcript_access)?;
    if session.open_turn.is_some() {
        return Err(Error::turn_in_progress());
    }

    let project = session.project.as_ref().map(|project| project.id);
    let ids: Vec<Id> = model_keys.values().map(|key| key.model_key_id).collect();
    let (settings, history) = tokio::join!(app.store.turn_settings(organization, project, &ids), async {
        if session.turns == 0 { Ok(None) } else { app.store.history(organization, &session.id).await.map(Some) }
    });
    let (settings, history) = (settings?, history?);
    // A key was replaced since its pointer was read.
    if settings.model_keys.len() < ids.len() {
        return Err(Error::WriteConflict);
    }
    if history.as_ref().is_some_and(|page| page.resume_after.is_some()) {
        return Err(Error::SessionFull);
    }
    let history = history.map(|page| page.messages).unwrap_or_default();
    let project = settings.project.as_ref();
    let model = project.and_then(|project| project.model_id.as_ref()).or(key.organization.model_id.as_ref());
    let choice = choose(app, call, model, &settings)?;
    let price = app.prices.price(Some(choice.model.as_str()));
    if price.is_none() && caps(&spending).any(|budget| budget.cost_cents.is_some()) {
        return Err(Error::ModelUnpriced);
    }
    let of_project = project.and_then(|project| Some((project.endpoint_url.as_ref()?, project.endpoint_url_set_at)));
    let of_organization = key.organization.endpoint_url.as_ref().zip(Some(key.organization.endpoint_url_set_at));
    let endpoint = of_project.or(of_organization).filter(|_| choice.provider == Provider::Anthropic);
    if endpoint.is_some_and(|(url, _)| points_to_this_stack(app, url, call.meta.api_id.as_deref())) {
        let message = "endpoint_url points to Karta itself. Set it to the base URL of your model provider.".into();
        tracing::warn!(organization_id = organization.get(), "endpoint_url points to this stack");
        return Err(Error::TurnFailed { code: TurnError::ProviderError, message, retry_after: None });
    }
    let (model_key, target) = target(app, organization, &choice, &settings, endpoint).await?;
    let messages = prompt_messages(app, call, &session, history).await?;
    let model_key_id = model_key.id;
    Ok(ValidatedRequest { session, known, spending, choice, price, model_key_id, target, messages })
}

/// Stores the turn with its user message, if no other turn runs in the session. Returns the end of its
/// lease.
async fn store_claim<R>(
    app: &App,
    call: &Call<R>,
    session: &Session,
    turn: &Turn,
    parts: &[MessagePart],
    reservation: Option<&Reservation>,
    replaced: Option<&TurnId>,
) -> Result<Timestamp, Error>
where
    R: Route<Path = SessionPath, Body = Input>,
    R::Access: Access<Caller = SessionCaller>,
{
    let (organization, now) = (call.caller.organization_id, call.now);
    let message = seal_user_message(app, organization, session, turn, parts).await?;
    let idempotency_key = call.idempotency_key();
    let request = idempotency_key.as_ref().map(|key| TurnRequest {
        hash: &key.hash,
        fingerprint: &key.fingerprint,
        replaces: replaced,
    });
    // Not `call.now`: reading a long conversation may have taken seconds.
    let leased_until = leased_until(app, app.clock.now());
    let claim = TurnClaim { session, turn, message: &message, leased_until, reservation, request };
    let mut transaction = app.store.transaction();
    transaction.claim_turn(organization, &claim, now)?;
    // After a conflict the handler runs again, and finds the other turn, or no session.
    transaction.commit().await?;
    Ok(leased_until)
}

fn caps(spending: &Spending) -> impl Iterator<Item = &Budget> {
    spending.organization_budget.iter().chain(&spending.key_budget)
}

/// Returns the output tokens that the caps and the running turns leave, at least one; `None` if no cap
/// limits them.
fn output_left(spending: &Spending, known: &KnownCounters, price: Option<Price>, input: u64) -> Option<u64> {
    let (of_organization, of_key) = known.with_holds_of_turns(spending);
    let tokens_left = |budget: &Option<Budget>, committed: &Tally| {
        budget.as_ref().and_then(|budget| budget.output_left(committed, price, input))
    };
    let organization = tokens_left(&spending.organization_budget, &of_organization);
    let key = tokens_left(&spending.key_budget, &of_key);
    organization.into_iter().chain(key).min().map(|left| left.max(1))
}

fn choose<R>(
    app: &App,
    call: &Call<R>,
    configured: Option<&ModelId>,
    settings: &TurnSettings,
) -> Result<ModelChoice, Error>
where
    R: Route<Path = SessionPath, Body = Input>,
    R::Access: Access<Caller = SessionCaller>,
{
    let rule = ModelRule { configured, may_choose: !call.caller.is_token() };
    let not_allowed = |allowed: Vec<ModelId>| Error::ModelNotAllowed {
        allowed: allowed.into_iter().map(|model| model.as_str().to_owned()).collect(),
    };
    let choice = rule
        .choose(
            call.body.model.as_ref().map(|name| name.0.as_str()),
            |name| app.prices.price(Some(name)).is_some(),
            |provider| settings.model_keys.iter().any(|(key, _)| key.provider == provider),
        )
        .map_err(|refused| match refused {
            ModelRefused::Required => Error::ModelRequired,
            ModelRefused::NotAllowed { allowed } => not_allowed(allowed),
        })?;
    if dialect_of(choice.provider).is_none() {
        return Err(not_allowed(Vec::new()));
    }
    Ok(choice)
}

/// Returns whether a customer's base URL points to this stack.
fn points_to_this_stack(app: &App, url: &EndpointUrl, api_id: Option<&str>) -> bool {
    // A local run has no host names of its own.
    let hosts = config::own_hosts().unwrap_or_default().into_iter();
    let hosts: Vec<_> = hosts.map(|host| host.replace("{api}", api_id.unwrap_or_default())).collect();
    OutboundUrl::parse(url.as_str(), app.outbound_reach).is_ok_and(|url| url.is_on(&hosts))
}

/// Opens the provider key of the choice. A key is never sent to an `endpoint_url` that was set after
/// the key was stored.
async fn target<'a>(
    app: &App,
    organization: Id,
    choice: &ModelChoice,
    settings: &'a TurnSettings,
    endpoint: Option<(&EndpointUrl, Option<Timestamp>)>,
) -> Result<(&'a ModelKey, Target), Error> {
    let provider = choice.provider;
    let missing = || Error::NoModelKey { provider };
    let dialect = dialect_of(provider).ok_or_else(missing)?;
    let found = settings.model_keys.iter().find(|(key, _)| key.provider == provider);
    let (model_key, sealed) = found.ok_or_else(missing)?;
    let base_url = match endpoint {
        None => BaseUrl::Provider,
        Some((url, set_at)) if may_send_key_to(set_at, model_key.created_at) => BaseUrl::Customer(url.clone()),
        Some(_) => return Err(missing()),
    };
    let key = open_key(app, organization, model_key, sealed).await?;
    Ok((model_key, Target { provider, dialect, base_url, key }))
}

async fn open_key(app: &App, organization: Id, key: &ModelKey, sealed: &SealedModelKey) -> Result<SecretString, Error> {
    let context = karta_shared::byok::ModelKeyContext { organization, provider: key.provider, id: key.id };
    let ring = app.secrets.ring_with(Ring::SealingByok, &sealed.kid).await?;
    Ok(context.open(&ring, sealed)?)
}

/// Returns the conversation: the turns with an answer, and the new message.
async fn prompt_messages<R>(
    app: &App,
    call: &Call<R>,
    session: &Session,
    history: Vec<SealedMessage>,
) -> Result<Vec<PromptMessage<'static>>, Error>
where
    R: Route<Path = SessionPath, Body = Input>,
    R::Access: Access<Caller = SessionCaller>,
{
    let opened = open_messages(app, call.caller.organization_id, &session.id, history).await?;
    let mut messages = Vec::with_capacity(opened.len() + 1);
    let mut asked: Option<(TurnId, String)> = None;
    for (message, parts) in opened {
        let text = text_of(&parts);
        match message.role {
            MessageRole::User => asked = Some((message.turn_id, text)),
            MessageRole::Assistant => {
                let question = asked.take().filter(|(turn, _)| *turn == message.turn_id);
                // Providers reject blank messages.
                if let Some((_, question)) = question
                    && !question.trim().is_empty()
                    && !text.trim().is_empty()
                {
                    messages.push(PromptMessage { role: Role::User, text: Cow::Owned(question) });
                    messages.push(PromptMessage { role: Role::Assistant, text: Cow::Owned(text) });
                }
            }
        }
    }
    messages.push(PromptMessage { role: Role::User, text: Cow::Owned(call.body.text.0.clone()) });
    Ok(messages)
}

fn new_turn<R>(
    app: &App,
    call: &Call<R>,
    validated: &ValidatedRequest,
    input_estimate: u64,
    (max_tokens, hides_output): (u32, bool),
) -> Turn
where
    R: Route<Path = SessionPath, Body = Input>,
    R::Access: Access<Caller = SessionCaller>,
{
    Turn {
        id: TurnId::draw(&*app.entropy),
        number: validated.session.turns + 1,
        status: TurnStatus::Running,
        model: validated.choice.model.clone(),
        provider: validated.choice.provider,
        api_key_id: call.caller.api_key_id,
        lineage_id: call.caller.lineage_id,
        model_key_id: validated.model_key_id,
        user_message_id: MessageId::draw(&*app.entropy),
        assistant_message_id: MessageId::draw(&*app.entropy),
        is_streamed: call.body.stream,
        started_at: call.now,
        ended_at: None,
        input_estimate,
        max_tokens: max_tokens.into(),
        hides_output,
        price: validated.price,
        usage: TurnUsage::default(),
        estimated: false,
        stop_reason: None,
        error_code: None,
        exhausted: None,
        retry_at: None,
        idempotency_hash: call.idempotency_key().map(|key| key.hash),
        cancel_requested: false,
        last_seq: 0,
        ended_by_sweep: false,
    }
}

async fn seal_user_message(
    app: &App,
    organization: Id,
    session: &Session,
    turn: &Turn,
    parts: &[MessagePart],
) -> Result<SealedMessage, Error> {
    let encoded = serde_json::to_vec(parts).map_err(|error| Error::Internal(format!("message encoding: {error}")))?;
    let ring = app.secrets.ring(Ring::SealingSessions).await?;
    let context = TranscriptContext { organization, session: &session.id, turn: &turn.id };
    let part = TranscriptPart::Message(MessageRole::User);
    Ok(SealedMessage {
        id: turn.user_message_id.clone(),
        turn_id: turn.id.clone(),
        turn_number: turn.number,
        role: MessageRole::User,
        created_at: turn.started_at,
        content: context.seal(&ring, &*app.entropy, part, &encoded),
    })
}

impl TurnTask {
    /// Reserves the input and the first slice, where a cap applies.
    async fn reserve_first(&mut self, input_tokens: u64) -> Result<Result<(), Exhausted>, StoreError> {
        let Some(reservation) = self.reservation.as_mut() else { return Ok(Ok(())) };
        let input_cost = self.turn.price.map_or(0, |price| u128::from(price.input) * u128::from(input_tokens));
        let amount = Amount {
            input_tokens,
            output_tokens: self.reserved_output,
            cost: input_cost + output_cost(&self.turn, self.reserved_output),
        };
        let budgets = (self.budgets.0.as_ref(), self.budgets.1.as_ref());
        self.app.store.reserve(reservation, budgets, amount).await
    }
}

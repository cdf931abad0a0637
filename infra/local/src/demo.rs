//! A first conversation without a provider account: `karta --demo` adds a project that talks to the
//! scripted provider of this process ([`crate::provider`]).

use anyhow::{Context, Result};
use karta_shared::{
    App,
    byok::ModelKeyContext,
    config::Ring,
    domain::{
        Action, Actor, ActorKind, AuditEvent, CacheEffect, Changes, CommitSha, Id, ModelId, ModelKey, Name,
        OrganizationPatch, Project, ProjectPatch, Provider, ProviderKey, ResourceRef, Slug,
    },
    entropy::uuid,
};

use crate::provider::{FakeProvider, Script};

/// The project of the demo.
pub const PROJECT: &str = "demo";
/// The provider whose host the scripted one replaces. The others stay real.
pub const PROVIDER: Provider = Provider::OpenRouter;
const MODEL: &str = "openrouter/karta/demo";
/// Pause between two words of an answer.
const PAUSE: std::time::Duration = std::time::Duration::from_millis(40);
const NAME: &str = "karta --demo";
const KEY_NAME: &str = "Demo provider";

/// Starts the scripted provider.
pub async fn provider() -> Result<FakeProvider> {
    let script = Script { echoes: true, pause: PAUSE, ..Script::default() };
    FakeProvider::start(script).await.context("--demo: cannot listen on loopback")
}

/// Adds the project with a release, its model and a provider key, unless they exist. An organization
/// without a model gets the demo's, so that sessions without a project can talk too.
pub async fn set_up(app: &App, organization: Id) -> Result<()> {
    let slug = Slug::try_from(PROJECT.to_owned())?;
    let now = app.clock.now();
    let project = if let Some(project) = app.store.project(organization, &slug).await? {
        project
    } else {
        let name = Name::try_from("Demo".to_owned())?;
        let mut project = Project::new(Id::draw(now, &*app.entropy), slug, name, now);
        let model_id = Some(Some(ModelId::try_from(MODEL.to_owned())?));
        project.apply(ProjectPatch { model_id, ..ProjectPatch::default() }, now);
        let mut transaction = app.store.transaction();
        transaction.create_project(organization, &project)?;
        let event = audited(app, Action::AgentProjectCreated, "agent_project", project.id, project.creation());
        transaction.audit(organization, &event)?;
        transaction.commit().await?;
        project
    };
    let before = app.store.organization(organization).await?.context("the organization of the demo is missing")?;
    if before.model_id.is_none() {
        let mut after = before.clone();
        let model_id = Some(Some(ModelId::try_from(MODEL.to_owned())?));
        let changes = after.apply(OrganizationPatch { model_id, ..OrganizationPatch::default() }, now);
        let mut transaction = app.store.transaction();
        transaction.update_organization(&before, &after)?;
        let event = audited(app, Action::OrganizationUpdated, "organization", organization, changes);
        transaction.audit(organization, &event)?;
        transaction.invalidate(organization, CacheEffect::Stale, now)?;
        transaction.commit().await?;
    }
    if project.current_version.is_none() {
        let mut after = project.clone();
        let commit = CommitSha::try_from("0000000".to_owned())?;
        let release = after.deploy(Id::draw(now, &*app.entropy), commit, None, true, now);
        let mut transaction = app.store.transaction();
        transaction.create_release(organization, &project, &after, &release)?;
        let event = audited(app, Action::ReleaseCreated, "release", release.id, release.creation());
        transaction.audit(organization, &event)?;
        transaction.commit().await?;
    }
    if app.store.active_model_key(organization, PROVIDER).await?.is_none() {
        let body = format!("{}{}", uuid(&*app.entropy), uuid(&*app.entropy)).replace('-', "");
        let text = format!("sk-or-v1-{body}");
        let key = ProviderKey::parse(PROVIDER, text.into(), None).context("the demo's provider key")?;
        let name = Some(Name::try_from(KEY_NAME.to_owned())?);
        let model_key = ModelKey::new(Id::draw(now, &*app.entropy), &key, name, now);
        let context = ModelKeyContext { organization, provider: PROVIDER, id: model_key.id };
        let sealed = context.seal(&*app.secrets.ring(Ring::SealingByok).await?, &*app.entropy, key.expose());
        let mut transaction = app.store.transaction();
        transaction.create_model_key(organization, &model_key, &sealed)?;
        let event = audited(app, Action::ModelKeyCreated, "model_key", model_key.id, model_key.creation());
        transaction.audit(organization, &event)?;
        transaction.commit().await?;
    }
    Ok(())
}

/// Revokes the demo's provider key, in a run without the scripted provider: turns with the demo's
/// model would send their messages to OpenRouter.
pub async fn retire(app: &App, organization: Id) -> Result<()> {
    let Some(active) = app.store.active_model_key(organization, PROVIDER).await? else { return Ok(()) };
    let before = app.store.model_key(organization, active.model_key_id).await?;
    let Some(before) = before.filter(|key| key.name.as_ref().is_some_and(|name| name.as_str() == KEY_NAME)) else {
        return Ok(());
    };
    let (mut after, now) = (before.clone(), app.clock.now());
    after.revoke(now);
    let mut transaction = app.store.transaction();
    transaction.revoke_model_key(organization, &before, &after)?;
    let event = audited(app, Action::ModelKeyRevoked, "model_key", after.id, after.revocation(None));
    transaction.audit(organization, &event)?;
    transaction.invalidate(organization, CacheEffect::Stale, now)?;
    Ok(transaction.commit().await?)
}

fn audited(app: &App, action: Action, kind: &str, id: Id, changes: Changes) -> AuditEvent {
    let now = app.clock.now();
    AuditEvent {
        id: Id::draw(now, &*app.entropy),
        at: now,
        actor: Actor { kind: ActorKind::System, id: None, name: NAME.to_owned() },
        action: action.as_str().to_owned(),
        resource: ResourceRef { kind: kind.to_owned(), id: id.into() },
        changes,
        ip_address: None,
        user_agent: None,
        request_id: "demo".to_owned(),
    }
}

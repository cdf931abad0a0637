//! `POST /v1/internal/releases/{id}/status`: accepts a builder's report.
//!
//! A new log is written before the release refers to it, and an old log is deleted after the
//! release refers to the new log. A reader therefore sees either the old or the new log.

mod tidy;

use karta_shared::{
    App,
    domain::{BuildLog, CacheEffect, Id, ImageRef, LogGeneration, ReleaseStatus, StatusReport, TemplatePath},
    http::{
        Action, ApiResponse, Call, Error, Internal, NewAuditEvent, NoQuery, ReleaseResource, Releases, Route,
        UncheckedText,
    },
    telemetry,
};
use serde::{Deserialize, Deserializer, Serialize, de::Error as _};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Input {
    #[serde(deserialize_with = "reported_status")]
    status: ReleaseStatus,
    /// The log as received. Builds print what they were given, secrets included.
    build_log: Option<UncheckedText>,
    template_path: Option<TemplatePath>,
    image_ref: Option<ImageRef>,
}

/// Reads any status, because a builder may repeat a release's current one. The message for another
/// value lists the statuses that a build reaches.
fn reported_status<'de, D: Deserializer<'de>>(deserializer: D) -> Result<ReleaseStatus, D::Error> {
    ReleaseStatus::deserialize(deserializer)
        .map_err(|_| D::Error::unknown_variant("", &["building", "ready", "failed"]))
}

#[derive(Debug, Serialize)]
pub struct Output {
    release: ReleaseResource,
}

#[derive(Debug)]
pub struct InternalReleasesStatus;

impl Route for InternalReleasesStatus {
    const NAME: &'static str = "internal-releases-status";
    /// Large enough for the build log.
    const BODY_MAX: usize = 1024 * 1024;
    type Access = Internal<Releases>;
    type Path = Id;
    type Query = NoQuery;
    type Body = Input;
    type Output = Output;

    async fn handle(app: &App, call: &Call<Self>) -> Result<ApiResponse<Output>, Error> {
        if let Some(image) = &call.body.image_ref {
            image.check_grammar().map_err(|problem| Error::invalid("image_ref", problem))?;
        }
        if let Some(path) = &call.body.template_path {
            path.check_input().map_err(|problem| Error::invalid("template_path", problem))?;
        }
        let location = app.store.release_location(call.path).await?.ok_or(Error::NotFound)?;
        let organization = location.organization_id;
        let (project, release) = tokio::join!(
            app.store.project_by_id(organization, location.project_id),
            app.store.release(organization, location.project_id, location.version),
        );
        let current = project?.ok_or(Error::NotFound)?.current_version;
        let before = release?.ok_or(Error::NotFound)?;
        let mut release = before.clone();
        let report = report(&call.body);
        let generation = LogGeneration::draw(app.clock.now(), &*app.entropy);
        let changes = release.report(current, report.clone(), generation)?;
        if !changes.is_empty() {
            if let Some((index, log)) = release.log.as_ref().zip(report.log).filter(|_| release.log != before.log) {
                let write = app.store.write_build_log(organization, release.id, index.generation(), &log).await;
                if write.is_err() {
                    tidy::discard(app, call, organization, &release).await;
                }
                write?;
            }
            let mut transaction = app.store.transaction();
            transaction.update_release(organization, &before, &release)?;
            let event = NewAuditEvent {
                action: Action::ReleaseUpdated,
                resource_kind: "release",
                resource_id: release.id.into(),
                changes,
            };
            transaction.audit(organization, &call.audit_event(app, event))?;
            let active = release.status(current) == ReleaseStatus::Active;
            let effect = if active { CacheEffect::Stale } else { CacheEffect::None };
            transaction.invalidate(organization, effect, call.now)?;
            let committed = transaction.commit().await;
            if before.log != release.log {
                tidy::tidy(app, call, organization, committed.as_ref().err(), [&before, &release]).await;
            }
            committed?;
        }
        ApiResponse::ok(&Output { release: ReleaseResource::new(release, current) })
    }
}

/// Converts the request to a report. Secrets are redacted before anything is stored.
fn report(input: &Input) -> StatusReport {
    StatusReport {
        status: input.status,
        log: input.build_log.as_ref().map(|log| BuildLog::new(&telemetry::scrub(log.expose()))),
        template_path: input.template_path.clone(),
        image_ref: input.image_ref.clone(),
    }
}

use serde::{Deserialize, Serialize};

use super::{
    ArtifactUrl, CacheEffect, Change, Changes, CommitSha, EndpointUrl, Flip, Id, ModelId, Name, NotReady, Release,
    ReleaseStatus, Slug, Timestamp, Value, Version,
};

/// An agent project. Releases are deployed to it, and a session token is limited to one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Project {
    pub id: Id,
    pub slug: Slug,
    pub name: Name,
    /// The active release; `None` before the first. It is stored only here.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub current_version: Option<Version>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub latest_version: Option<Version>,
    /// Overrides the organization's value, as `endpoint_url` does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model_id: Option<ModelId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint_url: Option<EndpointUrl>,
    /// When `endpoint_url` was last changed; `None` if it never was, or before Karta stored it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint_url_set_at: Option<Timestamp>,
    pub created_at: Timestamp,
    /// Counts changes: a write that depends on a read is conditional on it.
    pub version: u64,
}

/// `None` keeps the current value.
#[derive(Debug, Clone, Default)]
pub struct ProjectPatch {
    pub name: Option<Name>,
    pub model_id: Option<Option<ModelId>>,
    pub endpoint_url: Option<Option<EndpointUrl>>,
}

impl Project {
    pub fn new(id: Id, slug: Slug, name: Name, now: Timestamp) -> Self {
        Self {
            id,
            slug,
            name,
            current_version: None,
            latest_version: None,
            model_id: None,
            endpoint_url: None,
            endpoint_url_set_at: None,
            created_at: now,
            version: 1,
        }
    }

    /// Returns the settings as the audit event of the creation shows them.
    pub fn creation(&self) -> Changes {
        [("slug", self.slug.as_str()), ("name", self.name.as_str())]
            .map(|(field, after)| (field.to_owned(), Change { before: Value::Null, after: after.into() }))
            .into()
    }

    /// Returns the changes by field.
    pub fn apply(&mut self, patch: ProjectPatch, now: Timestamp) -> Changes {
        let before = self.clone();
        let ProjectPatch { name, model_id, endpoint_url } = patch;
        self.name = name.unwrap_or(self.name.clone());
        self.model_id = model_id.unwrap_or(self.model_id.take());
        self.endpoint_url = endpoint_url.unwrap_or(self.endpoint_url.take());
        if !EndpointUrl::is_same_target(before.endpoint_url.as_ref(), self.endpoint_url.as_ref()) {
            self.endpoint_url_set_at = Some(now);
        }
        let changes: Changes = before
            .audited()
            .into_iter()
            .zip(self.audited())
            .filter(|((_, before), (_, after))| before != after)
            .map(|((field, before), (_, after))| (field.to_owned(), Change { before, after }))
            .collect();
        if !changes.is_empty() {
            self.version += 1;
        }
        changes
    }

    /// Creates the next release and makes it active if `activate` is set. It is ready at once,
    /// because there is nothing to build.
    pub fn deploy(
        &mut self,
        id: Id,
        commit_sha: CommitSha,
        artifact_url: Option<ArtifactUrl>,
        activate: bool,
        now: Timestamp,
    ) -> Release {
        let version = self.latest_version.map_or(Version::FIRST, Version::next);
        self.latest_version = Some(version);
        if activate {
            self.current_version = Some(version);
        }
        self.version += 1;
        Release::ready(id, self.id, version, commit_sha, artifact_url, now, activate.then_some(now))
    }

    /// Returns `None` if the release is already active.
    pub fn activate(&mut self, release: &mut Release, now: Timestamp) -> Result<Option<Flip>, NotReady> {
        let status = release.status(self.current_version);
        match status {
            ReleaseStatus::Active => Ok(None),
            ReleaseStatus::Ready | ReleaseStatus::Superseded => {
                self.current_version = Some(release.version);
                self.version += 1;
                release.activated_at = Some(now);
                release.revision += 1;
                let first = status == ReleaseStatus::Ready;
                Ok(Some(if first { Flip::Activation } else { Flip::Rollback }))
            }
            ReleaseStatus::Pending | ReleaseStatus::Building | ReleaseStatus::Failed => Err(NotReady),
        }
    }

    /// Compares the active release and the model settings, which data planes cache.
    pub fn cache_effect(&self, after: &Self) -> CacheEffect {
        let kept = |project: &Self| (project.current_version, project.model_id.clone(), project.endpoint_url.clone());
        if kept(self) == kept(after) { CacheEffect::None } else { CacheEffect::Stale }
    }

    fn audited(&self) -> [(&'static str, Value); 3] {
        [
            ("name", self.name.as_str().into()),
            ("model_id", self.model_id.as_ref().map(ModelId::as_str).into()),
            ("endpoint_url", self.endpoint_url.as_ref().map(EndpointUrl::as_str).into()),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entropy::SeededEntropy;

    fn now() -> Timestamp {
        "2026-11-22T12:00:00Z".parse().unwrap()
    }

    fn id() -> Id {
        Id::draw(now(), &SeededEntropy::new(1))
    }

    fn project() -> Project {
        let (slug, name) = (Slug::try_from("app".to_owned()).unwrap(), Name::try_from("App".to_owned()).unwrap());
        Project::new(id(), slug, name, now())
    }

    fn deploy(project: &mut Project, activate: bool) -> Release {
        project.deploy(id(), CommitSha::try_from("abcdef0".to_owned()).unwrap(), None, activate, now())
    }

    #[test]
    fn project_numbers_releases_and_records_the_active_one() {
        let mut project = project();
        let releases = [true, false, true].map(|activate| deploy(&mut project, activate));
        assert_eq!(releases.each_ref().map(|release| release.version.get()), [1, 2, 3]);
        let statuses = |project: &Project| releases.each_ref().map(|release| release.status(project.current_version));
        assert_eq!(
            statuses(&project),
            [ReleaseStatus::Superseded, ReleaseStatus::Ready, ReleaseStatus::Active],
            "a release that was never active is not superseded"
        );
        let mut first = releases[0].clone();
        assert_eq!(project.activate(&mut first, now()), Ok(Some(Flip::Rollback)));
        assert_eq!(project.activate(&mut first, now()), Ok(None), "it is already active");
        assert_eq!(statuses(&project), [ReleaseStatus::Active, ReleaseStatus::Ready, ReleaseStatus::Superseded]);
        assert_eq!((project.version, first.revision), (5, 2), "each change counts once");
    }

    #[test]
    fn time_of_the_endpoint_follows_its_changes() {
        let mut project = project();
        let url = |text: &str| Some(EndpointUrl::try_from(text.to_owned()).unwrap());
        let mut set = |endpoint_url, at: &str| {
            project.apply(ProjectPatch { endpoint_url, ..ProjectPatch::default() }, at.parse().unwrap());
            project.endpoint_url_set_at.map(|at| at.to_string())
        };
        let (first, second, third) =
            ("2026-11-22T13:00:00.000Z", "2026-11-22T14:00:00.000Z", "2026-11-22T15:00:00.000Z");
        assert_eq!(set(None, first), None);
        assert_eq!(set(Some(url("https://a.com")), first).as_deref(), Some(first));
        assert_eq!(set(Some(url("https://a.com")), second).as_deref(), Some(first), "nothing changed");
        for same in ["https://A.com:443/", "https://a.com//", "HTTPS://a.com:443"] {
            assert_eq!(set(Some(url(same)), second).as_deref(), Some(first), "{same} is the same target");
        }
        assert_eq!(set(Some(url("https://a.com/v1")), second).as_deref(), Some(second));
        assert_eq!(set(Some(url("https://b.com")), second).as_deref(), Some(second));
        assert_eq!(set(Some(None), third).as_deref(), Some(third));
    }

    #[test]
    fn only_cached_settings_affect_data_planes() {
        let before = project();
        for (patch, effect) in [
            (ProjectPatch::default(), CacheEffect::None),
            (
                ProjectPatch { name: Some(Name::try_from("Other".to_owned()).unwrap()), ..ProjectPatch::default() },
                CacheEffect::None,
            ),
            (
                ProjectPatch {
                    model_id: Some(Some(ModelId::try_from("m".to_owned()).unwrap())),
                    ..ProjectPatch::default()
                },
                CacheEffect::Stale,
            ),
        ] {
            let mut after = before.clone();
            after.apply(patch, now());
            assert_eq!(before.cache_effect(&after), effect);
        }
        for (activate, effect) in [(false, CacheEffect::None), (true, CacheEffect::Stale)] {
            let mut after = before.clone();
            deploy(&mut after, activate);
            assert_eq!(before.cache_effect(&after), effect);
        }
    }
}

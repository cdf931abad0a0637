use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    ArtifactUrl, BuildLog, Change, Changes, CommitSha, Id, ImageRef, Invalid, LogGeneration, LogIndex, TemplatePath,
    Timestamp, Value,
};

/// The number of a release in its project, without gaps. It is within the range of ids, so that
/// releases are listed like other resources.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "u64", into = "u64")]
pub struct Version(Id);

impl Version {
    pub const FIRST: Self = Self(Id::new(1).expect("1 is a valid id"));

    #[must_use]
    pub fn next(self) -> Self {
        Self(Id::new(self.get() + 1).unwrap_or(self.0))
    }

    pub fn parse(text: &str) -> Option<Self> {
        Id::parse(text).map(Self)
    }

    pub const fn get(self) -> u64 {
        self.0.get()
    }

    /// Returns the position in the list of the project's releases.
    pub const fn as_id(self) -> Id {
        self.0
    }
}

impl TryFrom<u64> for Version {
    type Error = Invalid;

    fn try_from(number: u64) -> Result<Self, Invalid> {
        Id::try_from(number).map(Self)
    }
}

impl From<Version> for u64 {
    fn from(version: Version) -> Self {
        version.get()
    }
}

/// A version of a project's code. The project records which release is active.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Release {
    pub id: Id,
    pub project_id: Id,
    pub version: Version,
    pub commit_sha: CommitSha,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub artifact_url: Option<ArtifactUrl>,
    pub build: Build,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub template_path: Option<TemplatePath>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image_ref: Option<ImageRef>,
    /// The index of the build log; `None` without a line.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log: Option<LogIndex>,
    pub created_at: Timestamp,
    /// When it last became the active release.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub activated_at: Option<Timestamp>,
    /// Counts changes: a write that depends on a read is conditional on it.
    pub revision: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Build {
    Pending,
    Building,
    Ready,
    Failed,
}

/// The status of a release, derived from its build and the project's active version. It is never
/// stored, so two releases cannot be active.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ReleaseStatus {
    Pending,
    Building,
    Ready,
    Active,
    /// It was active before.
    Superseded,
    Failed,
}

impl ReleaseStatus {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Building => "building",
            Self::Ready => "ready",
            Self::Active => "active",
            Self::Superseded => "superseded",
            Self::Failed => "failed",
        }
    }
}

/// The form in which a release runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum BuildKind {
    Image,
    Template,
}

/// How the active release changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flip {
    /// The new one was never active before.
    Activation,
    /// The new one was active before.
    Rollback,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotReady;

/// `None` keeps the stored value.
#[derive(Debug, Clone)]
pub struct StatusReport {
    pub status: ReleaseStatus,
    pub log: Option<BuildLog>,
    pub template_path: Option<TemplatePath>,
    pub image_ref: Option<ImageRef>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NoTransition {
    pub from: ReleaseStatus,
    pub to: ReleaseStatus,
}

impl Release {
    pub(super) fn ready(
        id: Id,
        project_id: Id,
        version: Version,
        commit_sha: CommitSha,
        artifact_url: Option<ArtifactUrl>,
        created_at: Timestamp,
        activated_at: Option<Timestamp>,
    ) -> Self {
        Self {
            id,
            project_id,
            version,
            commit_sha,
            artifact_url,
            build: Build::Ready,
            template_path: None,
            image_ref: None,
            log: None,
            created_at,
            activated_at,
            revision: 1,
        }
    }

    /// Derives the status. `current` is the project's active version.
    pub fn status(&self, current: Option<Version>) -> ReleaseStatus {
        match self.build {
            Build::Pending => ReleaseStatus::Pending,
            Build::Building => ReleaseStatus::Building,
            Build::Failed => ReleaseStatus::Failed,
            Build::Ready if current == Some(self.version) => ReleaseStatus::Active,
            Build::Ready if self.activated_at.is_some() => ReleaseStatus::Superseded,
            Build::Ready => ReleaseStatus::Ready,
        }
    }

    /// Returns `None` until a builder reports a kind.
    pub fn build_kind(&self) -> Option<BuildKind> {
        match (&self.image_ref, &self.template_path) {
            (Some(_), _) => Some(BuildKind::Image),
            (None, Some(_)) => Some(BuildKind::Template),
            (None, None) => None,
        }
    }

    /// Returns the settings as the audit event of the creation shows them.
    pub fn creation(&self) -> Changes {
        let chosen = [
            ("version", self.version.get().into()),
            ("commit_sha", self.commit_sha.as_str().into()),
            ("artifact_url", self.artifact_url.as_ref().map(ArtifactUrl::as_str).into()),
        ];
        let chosen = chosen.into_iter().filter(|(_, after)| *after != Value::Null);
        chosen.map(|(field, after)| (field.to_owned(), Change { before: Value::Null, after })).collect()
    }

    /// Applies a builder's report and returns the changes by field. A build only moves forward. A
    /// builder may repeat a report, but it cannot activate a release. `generation` identifies the
    /// chunks of a log that differs from the stored one.
    pub fn report(
        &mut self,
        current: Option<Version>,
        report: StatusReport,
        generation: LogGeneration,
    ) -> Result<Changes, NoTransition> {
        let before = self.clone();
        let (from, to) = (self.status(current), report.status);
        self.build = match (self.build, to) {
            (build, _) if from == to => build,
            (Build::Pending, ReleaseStatus::Building) => Build::Building,
            (Build::Pending | Build::Building | Build::Ready, ReleaseStatus::Ready) => Build::Ready,
            (Build::Pending | Build::Building, ReleaseStatus::Failed) => Build::Failed,
            _ => return Err(NoTransition { from, to }),
        };
        self.template_path = report.template_path.or(self.template_path.take());
        self.image_ref = report.image_ref.or(self.image_ref.take());
        if let Some(log) = report.log.filter(|log| self.log.as_ref().map(LogIndex::digest) != Some(log.digest())) {
            self.log = log.index(generation);
        }
        let changes: Changes = before
            .audited(current)
            .into_iter()
            .zip(self.audited(current))
            .filter(|((_, before), (_, after))| before != after)
            .map(|((field, before), (_, after))| (field.to_owned(), Change { before, after }))
            .collect();
        if !changes.is_empty() {
            self.revision += 1;
        }
        Ok(changes)
    }

    /// Returns only the digest of the build log.
    fn audited(&self, current: Option<Version>) -> [(&'static str, Value); 4] {
        [
            ("status", self.status(current).as_str().into()),
            ("template_path", self.template_path.as_ref().map(TemplatePath::as_str).into()),
            ("image_ref", self.image_ref.as_ref().map(ImageRef::as_str).into()),
            ("build_log", self.log.as_ref().map(LogIndex::digest).into()),
        ]
    }
}

pub fn activation(before: Option<Version>, after: Version) -> Changes {
    let change = Change { before: before.map(Version::get).into(), after: after.get().into() };
    Changes::from([("current_version".to_owned(), change)])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entropy::SeededEntropy;

    const ALL: [ReleaseStatus; 6] = [
        ReleaseStatus::Pending,
        ReleaseStatus::Building,
        ReleaseStatus::Ready,
        ReleaseStatus::Active,
        ReleaseStatus::Superseded,
        ReleaseStatus::Failed,
    ];

    /// Returns a release and the project's active version.
    fn release_with(status: ReleaseStatus) -> (Release, Option<Version>) {
        let now: Timestamp = "2026-11-22T12:00:00Z".parse().unwrap();
        let id = Id::draw(now, &SeededEntropy::new(1));
        let sha = CommitSha::try_from("abcdef0".to_owned()).unwrap();
        let mut release = Release::ready(id, id, Version::FIRST, sha, None, now, None);
        let (build, activated, current) = match status {
            ReleaseStatus::Pending => (Build::Pending, false, None),
            ReleaseStatus::Building => (Build::Building, false, None),
            ReleaseStatus::Ready => (Build::Ready, false, None),
            ReleaseStatus::Active => (Build::Ready, true, Some(Version::FIRST)),
            ReleaseStatus::Superseded => (Build::Ready, true, Some(Version::FIRST.next())),
            ReleaseStatus::Failed => (Build::Failed, false, None),
        };
        (release.build, release.activated_at) = (build, activated.then_some(now));
        assert_eq!(release.status(current), status);
        (release, current)
    }

    fn generation() -> LogGeneration {
        LogGeneration::draw("2026-11-22T12:00:00Z".parse().unwrap(), &SeededEntropy::new(1))
    }

    fn report(status: ReleaseStatus) -> StatusReport {
        StatusReport { status, log: None, template_path: None, image_ref: None }
    }

    #[test]
    fn build_only_moves_forward() {
        use ReleaseStatus::{Active, Building, Failed, Pending, Ready, Superseded};
        let allowed = [(Pending, Building), (Pending, Ready), (Pending, Failed), (Building, Ready), (Building, Failed)];
        // A builder repeats its report after the release was activated.
        let repeats = [(Active, Ready), (Superseded, Ready)];
        for from in ALL {
            for to in ALL {
                let (mut release, current) = release_with(from);
                let outcome = release.report(current, report(to), generation());
                if allowed.contains(&(from, to)) {
                    assert_eq!(outcome.unwrap().into_keys().collect::<Vec<_>>(), ["status"], "{from:?} to {to:?}");
                    assert_eq!((release.status(current), release.revision), (to, 2));
                } else if from == to || repeats.contains(&(from, to)) {
                    assert!(outcome.unwrap().is_empty(), "{from:?} to {to:?}");
                    assert_eq!((release.status(current), release.revision), (from, 1));
                } else {
                    assert_eq!(outcome, Err(NoTransition { from, to }));
                    assert_eq!((release.status(current), release.revision), (from, 1));
                }
            }
        }
    }

    #[test]
    fn report_keeps_fields_that_it_omits() {
        let (mut release, current) = release_with(ReleaseStatus::Active);
        assert_eq!(release.build_kind(), None);
        let template = TemplatePath::try_from("agents/app.yaml".to_owned()).unwrap();
        let first = StatusReport { template_path: Some(template), ..report(ReleaseStatus::Active) };
        assert_eq!(release.report(current, first.clone(), generation()).unwrap().len(), 1);
        assert_eq!(release.build_kind(), Some(BuildKind::Template));
        assert!(release.report(current, first, generation()).unwrap().is_empty());
        let image = ImageRef::try_from("registry.example.com/app:1".to_owned()).unwrap();
        release
            .report(current, StatusReport { image_ref: Some(image), ..report(ReleaseStatus::Active) }, generation())
            .unwrap();
        assert_eq!((release.build_kind(), release.revision), (Some(BuildKind::Image), 3));
        assert!(release.template_path.is_some());
        let log = |text: &str| StatusReport { log: Some(BuildLog::new(text)), ..report(ReleaseStatus::Active) };
        assert_eq!(
            release.report(current, log("one\ntwo"), generation()).unwrap().into_keys().collect::<Vec<_>>(),
            ["build_log"]
        );
        assert!(release.report(current, log("one\ntwo"), generation()).unwrap().is_empty());
        assert_eq!(release.report(current, log("one\nTWO"), generation()).unwrap().len(), 1);
        assert_eq!(release.report(current, log(""), generation()).unwrap()["build_log"].after, Value::Null);
    }
}

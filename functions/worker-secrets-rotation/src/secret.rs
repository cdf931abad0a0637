use aws_sdk_secretsmanager::{
    Client, error::ProvideErrorMetadata, operation::get_secret_value::builders::GetSecretValueFluentBuilder,
    primitives::DateTime,
};
use karta_shared::{
    config::{parse_ring, serialize_ring},
    domain::{Keyring, RingUse, RotationError, Timestamp},
    fault,
    worker::Fault,
};

const CURRENT: &str = "AWSCURRENT";
const PENDING: &str = "AWSPENDING";

/// The versions of a secret.
pub(crate) struct SecretVersions<'a> {
    pub(crate) client: &'a Client,
    pub(crate) secret_id: &'a str,
}

pub(crate) struct SecretVersion {
    pub(crate) id: String,
    pub(crate) ring: Keyring,
    pub(crate) created_at: Option<Timestamp>,
}

impl SecretVersion {
    /// Checks whether `next` may replace this version. Rejects `next` if this version was set after
    /// `next` was created, even with the same ring, because its age starts again.
    pub(crate) fn permits(&self, ring_use: RingUse, next: &Self) -> Result<(), RotationError> {
        if self.created_at > next.created_at {
            return Err(RotationError::NotNext);
        }
        self.ring.permits(ring_use, &next.ring)
    }
}

/// The state of a version in its rotation.
pub(crate) enum State {
    Current,
    Pending {
        /// When the previous rotation ended.
        rotated_at: Option<Timestamp>,
    },
}

impl SecretVersions<'_> {
    /// Returns the state of a version. Fails if the version does not belong to a rotation.
    pub(crate) async fn state(&self, version: &str) -> Result<State, Fault> {
        let described = self.client.describe_secret().secret_id(self.secret_id).send().await;
        let described = described.map_err(|error| fault::describe(&error))?;
        let rotated_at = described.last_rotated_date.and_then(|at| timestamp(&at));
        let stages = described.version_ids_to_stages.unwrap_or_default();
        let stages = stages.get(version).ok_or_else(|| format!("the secret has no version {version}"))?;
        let has = |stage: &str| stages.iter().any(|held| held == stage);
        match (has(CURRENT), has(PENDING)) {
            (true, _) => Ok(State::Current),
            (false, true) => Ok(State::Pending { rotated_at }),
            (false, false) => Err(format!("version {version} is not pending").into()),
        }
    }

    pub(crate) async fn current(&self) -> Result<SecretVersion, Fault> {
        let current = self.read(self.client.get_secret_value().version_stage(CURRENT)).await?;
        current.ok_or_else(|| "the secret has no current version".into())
    }

    /// Returns the pending version, or `None` while it has no value.
    pub(crate) async fn pending(&self, version: &str) -> Result<Option<SecretVersion>, Fault> {
        self.read(self.client.get_secret_value().version_id(version).version_stage(PENDING)).await
    }

    pub(crate) async fn put(&self, version: &str, ring: &Keyring) -> Result<(), Fault> {
        let put = self.client.put_secret_value().secret_id(self.secret_id).client_request_token(version);
        let put = put.secret_string(serialize_ring(ring)).version_stages(PENDING).send().await;
        put.map(drop).map_err(|error| fault::describe(&error).into())
    }

    /// Makes a version current. Fails if the current version has changed since `before` was read.
    pub(crate) async fn make_current(&self, version: &str, before: &str) -> Result<(), Fault> {
        let update = self.client.update_secret_version_stage().secret_id(self.secret_id).version_stage(CURRENT);
        let moved = update.move_to_version_id(version).remove_from_version_id(before).send().await;
        moved.map(drop).map_err(|error| fault::describe(&error).into())
    }

    async fn read(&self, get: GetSecretValueFluentBuilder) -> Result<Option<SecretVersion>, Fault> {
        let read = match get.secret_id(self.secret_id).send().await {
            Ok(read) => read,
            Err(error) if error.code() == Some("ResourceNotFoundException") => return Ok(None),
            Err(error) => return Err(fault::describe(&error).into()),
        };
        let created_at = read.created_date.and_then(|at| timestamp(&at));
        let id = read.version_id.ok_or("Secrets Manager returned a version without an id")?;
        let Some(text) = read.secret_string else {
            return Err(format!("version {id} of the secret is binary: store it as text").into());
        };
        let ring =
            parse_ring(&text).map_err(|problem| format!("version {id} of the secret is malformed: {problem}"))?;
        Ok(Some(SecretVersion { id, ring, created_at }))
    }
}

fn timestamp(at: &DateTime) -> Option<Timestamp> {
    Timestamp::from_millis(at.to_millis().ok()?)
}

use std::{net::IpAddr, sync::Arc, time::Duration};

use quick_cache::sync::Cache;
use tokio::time::timeout;

use super::{BcryptPool, Undecided};
use crate::{
    app::App,
    clock::Clock,
    config::{Deadlines, Ring, Secrets},
    domain::{
        ApiKey, ApiKeyToken, BudgetVerdict, Id, KeyStatus, Organization, Principal, PrincipalKind, Spending, Timestamp,
        TokenError,
    },
    store::{Credential, KeyState, Store},
    telemetry::{Metrics, ProofSource},
};

/// Maximum cached proofs in a process, 48 bytes each.
const MAX_PROOFS: usize = 100_000;
const MAX_REFUSALS: usize = 10_000;
/// How long a wrong token is rejected without another bcrypt comparison.
const REFUSAL_TTL: Duration = Duration::from_secs(5);

/// Maximum age of a verdict when API Gateway receives it. The gateway caches it for 3 s, so a
/// revoked key stops working within 5 s.
pub const GATEWAY_VERDICT_MAX_AGE: Duration = Duration::from_millis(1_500);

/// Interval between writes of `last_used_at`: a key in use costs one write per interval, not one
/// per request.
const USE_WRITE_INTERVAL: Duration = Duration::from_mins(1);
/// Maximum time that a validation waits for this write.
const USE_WRITE_TIMEOUT: Duration = Duration::from_millis(250);
/// Interval after which a process tries this write again.
const USE_RETRY_INTERVAL: Duration = Duration::from_secs(5);

/// Validates API keys.
///
/// The order is: shape and tag, candidates by prefix, bcrypt, and only then revocation, expiry and
/// the other state. A proof never changes, so it is cached for the life of the process. State is
/// never cached: every validation reads it in one BatchGetItem.
///
/// An unknown prefix costs a bcrypt comparison with a decoy, and a failed proof ends the validation
/// without further reads. Responses and their timing therefore reveal neither whether a prefix
/// exists nor the state of its key.
pub struct Validator {
    store: Store,
    secrets: Arc<Secrets>,
    clock: Arc<dyn Clock>,
    bcrypt: BcryptPool,
    proofs: Cache<[u8; 32], Proof>,
    refusals: Cache<[u8; 32], Timestamp>,
    /// When this process next checks whether a key's use must be recorded.
    use_write_due: Cache<Id, Timestamp>,
    metrics: Metrics,
    deadlines: Deadlines,
}

/// Proof that a token is the plaintext of this key.
#[expect(clippy::struct_field_names, reason = "the names of the stored attributes")]
#[derive(Debug, Clone, Copy)]
struct Proof {
    organization_id: Id,
    api_key_id: Id,
    lineage_id: Id,
}

/// Whether the validation of a valid key updates its `last_used_at`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RecordUse {
    /// The caller checks the client's address itself.
    Always,
    /// Updated only if the key may be used from this address.
    IfPermitted(Option<IpAddr>),
    /// The caller only inspects the key.
    Never,
}

#[derive(Debug, Clone)]
pub enum Verdict {
    Valid(Box<ValidKey>),
    Invalid(Invalidity),
}

/// A key that is valid, apart from the client's address, which the caller checks.
#[derive(Debug, Clone)]
pub struct ValidKey {
    pub organization: Organization,
    pub api_key: ApiKey,
    pub spending: Spending,
    pub budget: BudgetVerdict,
}

/// Why a key was rejected, for the log and metrics. Clients get the same 401 in every case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Invalidity {
    Shape,
    Tag,
    /// No key matches the token. The reason does not reveal whether the prefix exists.
    Unproven,
    Revoked,
    Expired,
}

impl Invalidity {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Shape => "shape",
            Self::Tag => "tag",
            Self::Unproven => "unproven",
            Self::Revoked => "revoked",
            Self::Expired => "expired",
        }
    }
}

impl Validator {
    pub fn new(app: App) -> Self {
        let App { store, secrets, clock, bcrypt, metrics, deadlines, .. } = app;
        Self {
            store,
            secrets,
            clock,
            bcrypt,
            proofs: Cache::new(MAX_PROOFS),
            refusals: Cache::new(MAX_REFUSALS),
            use_write_due: Cache::new(MAX_PROOFS),
            metrics,
            deadlines,
        }
    }

    /// Returns a verdict on the token and records the use of a valid key.
    pub async fn validate(&self, text: &str) -> Result<Verdict, Undecided> {
        self.validate_counted(text, RecordUse::Always, Duration::MAX).await
    }

    /// Returns a verdict for a caller that caches it. Its state was read at most `max_age` ago:
    /// older state is read a second time, and [`Undecided::Stale`] is returned if that is too old
    /// as well.
    pub async fn validate_for_cache(
        &self,
        text: &str,
        record_use: RecordUse,
        max_age: Duration,
    ) -> Result<Verdict, Undecided> {
        self.validate_counted(text, record_use, max_age).await
    }

    /// Validates the token and counts the outcome in the metrics.
    async fn validate_counted(
        &self,
        text: &str,
        record_use: RecordUse,
        max_age: Duration,
    ) -> Result<Verdict, Undecided> {
        let mut proof_source = None;
        let outcome = self.decide_fresh(text, record_use, max_age, &mut proof_source).await;
        let outcome_name = outcome.as_ref().map_or("undecided", Verdict::as_str);
        self.metrics.validation(self.clock.now(), outcome_name, proof_source);
        outcome
    }

    async fn decide_fresh(
        &self,
        text: &str,
        record_use: RecordUse,
        max_age: Duration,
        proof_source: &mut Option<ProofSource>,
    ) -> Result<Verdict, Undecided> {
        let is_stale = |read_at: Option<Timestamp>| read_at.is_some_and(|at| self.clock.now().since(at) > max_age);
        let (verdict, read_at) = self.decide(text, record_use, proof_source).await?;
        if !is_stale(read_at) {
            return Ok(verdict);
        }
        // The proof is cached by now, so only the state is read again.
        let (verdict, read_at) = self.decide(text, record_use, &mut None).await?;
        if is_stale(read_at) { Err(Undecided::Stale) } else { Ok(verdict) }
    }

    /// Returns the verdict and the time at which its state was read; no time if there is no proof.
    async fn decide(
        &self,
        text: &str,
        record_use: RecordUse,
        proof_source: &mut Option<ProofSource>,
    ) -> Result<(Verdict, Option<Timestamp>), Undecided> {
        let invalid = |why| Ok((Verdict::Invalid(why), None));
        let token = match self.parse(text).await? {
            Ok(token) => token,
            Err(TokenError::Shape) => return invalid(Invalidity::Shape),
            Err(TokenError::Tag) => return invalid(Invalidity::Tag),
        };
        let Some(proof) = self.find_proof(&token, proof_source).await? else {
            return invalid(Invalidity::Unproven);
        };
        let read_at = self.clock.now();
        let Proof { organization_id, api_key_id, lineage_id } = proof;
        let must_record =
            record_use != RecordUse::Never && self.use_write_due.get(&api_key_id).is_none_or(|due| due <= read_at);
        let (key_state, spending) = if must_record {
            self.store.access_to_use(organization_id, api_key_id, lineage_id, read_at).await?
        } else {
            self.store.access_to_spend(organization_id, api_key_id, lineage_id, read_at).await?
        };
        let verdict = match check_status(&key_state, self.clock.now()) {
            Ok(()) => Verdict::Valid(Box::new(ValidKey::new(key_state, spending))),
            Err(why) => Verdict::Invalid(why),
        };
        if let Verdict::Valid(valid) = &verdict
            && must_record
            && record_use.counts(valid)
        {
            self.write_use(valid).await;
        }
        Ok((verdict, Some(read_at)))
    }

    /// Checks shape and tag. The ring is refetched if no known key made the tag, because a newer
    /// key may have made it.
    async fn parse(&self, text: &str) -> Result<Result<ApiKeyToken, TokenError>, Undecided> {
        let parsed = ApiKeyToken::parse(text, &*self.secrets.ring(Ring::KeyTag).await?);
        if !matches!(parsed, Err(TokenError::Tag)) {
            return Ok(parsed);
        }
        Ok(ApiKeyToken::parse(text, &*self.secrets.ring_refetched(Ring::KeyTag).await?))
    }

    /// Writes the key's `last_used_at`, unless any process wrote it within the last minute. Best
    /// effort: a failed write does not fail the validation.
    async fn write_use(&self, valid: &ValidKey) {
        let (now, organization, key) = (self.clock.now(), valid.organization.id, valid.api_key.id);
        if self.use_write_due.get(&key).is_some_and(|due| now < due) {
            return;
        }
        if let Some(last) = valid.api_key.last_used_at.filter(|at| now.since(*at) < USE_WRITE_INTERVAL) {
            self.use_write_due.insert(key, last.plus(USE_WRITE_INTERVAL));
            return;
        }
        // Set before the write, so that concurrent validations of the key do not write as well.
        self.use_write_due.insert(key, now.plus(USE_RETRY_INTERVAL));
        let write = self.store.note_use(organization, key, now, USE_WRITE_INTERVAL);
        let within = self.deadlines.scale(USE_WRITE_TIMEOUT);
        match timeout(within, write).await {
            Ok(Ok(true)) => self.use_write_due.insert(key, now.plus(USE_WRITE_INTERVAL)),
            // Another process wrote first. The first validation after `USE_RETRY_INTERVAL` reads the time of
            // that write.
            Ok(Ok(false)) => {}
            Ok(Err(fault)) => tracing::warn!(%fault, "last_used_at update failed"),
            Err(_) => tracing::warn!(fault = format!("timed out after {within:?}"), "last_used_at update failed"),
        }
    }

    /// Returns the key that the token matches, and stores in `proof_source` how it was found.
    /// Concurrent first validations of one token share one bcrypt comparison.
    async fn find_proof(
        &self,
        token: &ApiKeyToken,
        proof_source: &mut Option<ProofSource>,
    ) -> Result<Option<Proof>, Undecided> {
        let fingerprint = token.fingerprint();
        *proof_source = Some(ProofSource::Known);
        let proof = self.proofs.get_or_insert_async(&fingerprint, async {
            if self.was_refused(&fingerprint) {
                return Err(None);
            }
            *proof_source = None;
            match self.compare(token, proof_source).await {
                Ok(Some(proof)) => Ok(proof),
                Ok(None) => {
                    self.refusals.insert(fingerprint, self.clock.now());
                    Err(None)
                }
                Err(undecided) => Err(Some(undecided)),
            }
        });
        match proof.await {
            Ok(proof) => Ok(Some(proof)),
            Err(None) => Ok(None),
            Err(Some(undecided)) => Err(undecided),
        }
    }

    fn was_refused(&self, fingerprint: &[u8; 32]) -> bool {
        let refused_at = self.refusals.get(fingerprint);
        refused_at.is_some_and(|at| self.clock.now().since(at) < REFUSAL_TTL)
    }

    /// Compares the token with every key of its prefix, or with the decoy if the prefix has no key.
    /// The bcrypt slot is reserved first, so that a flood that finds the queue full does not reach
    /// the store.
    async fn compare(
        &self,
        token: &ApiKeyToken,
        proof_source: &mut Option<ProofSource>,
    ) -> Result<Option<Proof>, Undecided> {
        let slot = self.bcrypt.reserve()?;
        let candidates = self.store.credentials(&token.prefix()).await?;
        if candidates.is_empty() {
            *proof_source = Some(slot.verify(token, self.bcrypt.decoy()).await?.1);
            return Ok(None);
        }
        for candidate in candidates {
            let (matches, took) = slot.verify(token, candidate.digest.clone()).await?;
            *proof_source = Some(took);
            if matches {
                let Credential { organization_id, api_key_id, lineage_id, .. } = candidate;
                return Ok(Some(Proof { organization_id, api_key_id, lineage_id }));
            }
        }
        Ok(None)
    }
}

impl Verdict {
    /// Returns the name of the outcome in the log and in metrics.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Valid(_) => "valid",
            Self::Invalid(why) => why.as_str(),
        }
    }
}

impl RecordUse {
    fn counts(self, valid: &ValidKey) -> bool {
        match self {
            Self::Always => true,
            Self::IfPermitted(address) => valid.is_permitted(address),
            Self::Never => false,
        }
    }
}

/// Checks the state of a proven key, apart from the client's address.
pub fn check_status(key_state: &KeyState, now: Timestamp) -> Result<(), Invalidity> {
    match key_state.api_key.status(now) {
        KeyStatus::Revoked => Err(Invalidity::Revoked),
        KeyStatus::Expired => Err(Invalidity::Expired),
        KeyStatus::Active | KeyStatus::Rotating => Ok(()),
    }
}

/// A step of a validation, in the order of execution. State is checked only after the proof.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ValidationStep {
    Shape,
    Tag,
    /// The lookup of the token's prefix. It always passes, so the trace does not reveal whether the
    /// prefix exists.
    Candidates,
    Proof,
    Revocation,
    Expiry,
    Cidr,
    Budget,
}

impl ValidationStep {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Shape => "shape",
            Self::Tag => "tag",
            Self::Candidates => "candidates",
            Self::Proof => "proof",
            Self::Revocation => "revocation",
            Self::Expiry => "expiry",
            Self::Cidr => "cidr",
            Self::Budget => "budget",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StepResult {
    pub step: ValidationStep,
    pub passed: bool,
}

/// Returns the steps that led to the verdict on a key that is used from `address`. The list ends at
/// the step that failed, so that it reveals no more than the failure. An exhausted budget fails its
/// own step and does not make the key invalid.
pub fn trace(verdict: &Verdict, address: Option<IpAddr>) -> Vec<StepResult> {
    let steps = [
        ValidationStep::Shape,
        ValidationStep::Tag,
        ValidationStep::Candidates,
        ValidationStep::Proof,
        ValidationStep::Revocation,
        ValidationStep::Expiry,
        ValidationStep::Cidr,
        ValidationStep::Budget,
    ];
    let failed = match verdict {
        Verdict::Invalid(Invalidity::Shape) => Some(ValidationStep::Shape),
        Verdict::Invalid(Invalidity::Tag) => Some(ValidationStep::Tag),
        Verdict::Invalid(Invalidity::Unproven) => Some(ValidationStep::Proof),
        Verdict::Invalid(Invalidity::Revoked) => Some(ValidationStep::Revocation),
        Verdict::Invalid(Invalidity::Expired) => Some(ValidationStep::Expiry),
        Verdict::Valid(valid) if !valid.is_permitted(address) => Some(ValidationStep::Cidr),
        Verdict::Valid(valid) => (!valid.budget.is_ok()).then_some(ValidationStep::Budget),
    };
    let mut results = Vec::with_capacity(steps.len());
    for step in steps {
        let passed = Some(step) != failed;
        results.push(StepResult { step, passed });
        if !passed {
            break;
        }
    }
    results
}

impl ValidKey {
    /// Combines a key that passed [`check_status`] with its spending.
    pub fn new(key_state: KeyState, spending: Spending) -> Self {
        let KeyState { organization, api_key } = key_state;
        let budget = BudgetVerdict::new(organization.subscription_status, &spending);
        Self { organization, api_key, spending, budget }
    }

    /// Returns whether the key may be used from this address.
    pub fn is_permitted(&self, address: Option<IpAddr>) -> bool {
        self.api_key.allowed_cidrs.permit(address)
    }

    pub fn principal(&self) -> Principal {
        Principal {
            kind: PrincipalKind::ApiKey,
            organization_id: self.organization.id,
            organization_slug: self.organization.slug.as_str().to_owned(),
            scopes: self.api_key.scopes,
            api_key_id: self.api_key.id,
            api_key_prefix: Some(self.api_key.prefix.as_str().to_owned()),
            project_id: None,
            project_slug: None,
            sub: None,
            budget_ok: self.budget.is_ok(),
            budget_reason: self.budget.reason(),
        }
    }
}

impl std::fmt::Debug for Validator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Validator").field("proofs", &self.proofs.len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::HashMap, sync::Mutex};

    use aws_config::{BehaviorVersion, Region, SdkConfig};
    use aws_sdk_dynamodb::config::{Credentials, SharedCredentialsProvider};
    use aws_smithy_runtime_api::client::{
        http::{HttpClient, HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpConnector},
        orchestrator::{HttpRequest, HttpResponse},
        runtime_components::RuntimeComponents,
    };
    use aws_smithy_types::body::SdkBody;
    use serde_json::{Value, json};

    use super::*;
    use crate::{
        clock::ManualClock,
        config::{Config, SecretSource},
        domain::Keyring,
        entropy::OsEntropy,
        store::table::Tables,
    };

    /// A fake AWS with an empty store. Fetching the key-tag ring fails while it is null.
    #[derive(Debug, Clone)]
    struct Aws(Arc<Mutex<Value>>);

    impl HttpConnector for Aws {
        fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
            let is_secret_request =
                request.headers().get("x-amz-target").is_some_and(|to| to.starts_with("secretsmanager"));
            let ring = self.0.lock().unwrap();
            let (status, body) = match (is_secret_request, &*ring) {
                (true, Value::Null) => (400, json!({ "__type": "AccessDeniedException" })),
                (true, ring) => (200, json!({ "SecretString": ring.to_string() })),
                (false, _) => (200, json!({ "Count": 0, "Items": [] })),
            };
            let response = http::Response::builder().status(status).body(SdkBody::from(body.to_string())).unwrap();
            HttpConnectorFuture::ready(Ok(HttpResponse::try_from(response).unwrap()))
        }
    }

    impl HttpClient for Aws {
        fn http_connector(&self, _: &HttpConnectorSettings, _: &RuntimeComponents) -> SharedHttpConnector {
            SharedHttpConnector::new(self.clone())
        }
    }

    fn app(aws: &Aws, clock: Arc<dyn Clock>) -> App {
        let sdk = SdkConfig::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::from_static("us-east-1"))
            .credentials_provider(SharedCredentialsProvider::new(Credentials::new("a", "b", None, None, "test")))
            .http_client(aws.clone())
            .build();
        let ids = HashMap::from([(Ring::KeyTag.into(), "key-tag".to_owned())]);
        let secrets = SecretSource::Manager { client: aws_sdk_secretsmanager::Client::new(&sdk), ids };
        App::new(Config::local(Tables::local(), Some(4)).unwrap(), &sdk, secrets, clock, Arc::new(OsEntropy))
    }

    #[tokio::test]
    async fn unknown_tag_is_final_only_after_refetch() {
        let clock = Arc::new(ManualClock::at("2026-11-21T12:00:00Z".parse().unwrap()));
        let (old, new) = (
            json!({ "current": "k1", "k1": "a".repeat(32) }),
            json!({ "current": "k2", "k1": "a".repeat(32), "k2": "b".repeat(32) }),
        );
        let promoted: Keyring = serde_json::from_value(new.clone()).unwrap();
        let token = ApiKeyToken::mint(&promoted, &OsEntropy);
        let aws = Aws(Arc::new(Mutex::new(old)));
        let app = app(&aws, Arc::clone(&clock) as Arc<dyn Clock>);
        app.secrets.warm_up().await.unwrap();
        let verdict = async || app.validator().validate(token.expose()).await;
        assert!(matches!(verdict().await, Ok(Verdict::Invalid(Invalidity::Tag))), "no other fetch within 30 s");
        *aws.0.lock().unwrap() = Value::Null;
        clock.advance(Duration::from_secs(30));
        for _ in 0..2 {
            assert!(matches!(verdict().await, Err(Undecided::Secret(_))));
        }
        *aws.0.lock().unwrap() = new;
        clock.advance(Duration::from_secs(30));
        // The tag passes now, but the store has no such key.
        assert!(matches!(verdict().await, Ok(Verdict::Invalid(Invalidity::Unproven))));
        let foreign = ApiKeyToken::mint(&Keyring::single("k1", "c".repeat(32)).unwrap(), &OsEntropy);
        let verdict = app.validator().validate(foreign.expose()).await;
        assert!(matches!(verdict, Ok(Verdict::Invalid(Invalidity::Tag))));
    }
}

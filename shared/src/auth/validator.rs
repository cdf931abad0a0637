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
        TokenRefused,
    },
    store::{Access, Credential, Store},
    telemetry::{Metrics, Proving},
};

/// How many proofs a process remembers: 48 bytes each.
const PROOFS_KEPT: usize = 100_000;
const REFUSALS_KEPT: usize = 10_000;
/// How long a wrong token is refused without another bcrypt.
const REFUSAL_KEPT_FOR: Duration = Duration::from_secs(5);

/// How old a verdict may be when API Gateway gets it, which keeps it for 3 s: a revoked key is dead within 5 s.
pub const GATEWAY_NOTIFIED_WITHIN: Duration = Duration::from_millis(1_500);

/// How late `last_used_at` may be: a key in use costs one write in this time, not one per request.
const USE_NOTED_EVERY: Duration = Duration::from_mins(1);
/// How long a validation waits for that write at most.
const USE_NOTED_WITHIN: Duration = Duration::from_millis(250);
/// How soon a process tries again to note a key's use.
const USE_TRIED_EVERY: Duration = Duration::from_secs(5);

/// Judges API keys.
///
/// Shape and tag → candidates by prefix → bcrypt → only then revocation, expiry and the rest. The proof, an immutable fact, is
/// cached for the process's life; state never is: it is read afresh, in one BatchGetItem, at every validation. A prefix that
/// is not there costs a bcrypt against a decoy, and a failed proof answers without any further read, so that neither a prefix's existence nor
/// its key's state shows.
pub struct Validator {
    store: Store,
    secrets: Arc<Secrets>,
    clock: Arc<dyn Clock>,
    bcrypt: BcryptPool,
    proofs: Cache<[u8; 32], Proof>,
    refusals: Cache<[u8; 32], Timestamp>,
    /// When this process looks again whether a key's use is to be noted.
    note_due: Cache<Id, Timestamp>,
    metrics: Metrics,
    deadlines: Deadlines,
}

/// "This token is the plaintext of that key."
#[derive(Debug, Clone, Copy)]
struct Proof {
    organization_id: Id,
    api_key_id: Id,
    lineage_id: Id,
}

/// Whether a validation counts as a use of a key that is valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Use {
    /// From an address that is judged elsewhere.
    Noted,
    /// From here, if the key may be used from here.
    NotedFrom(Option<IpAddr>),
    /// For whoever only looks.
    Unnoted,
}

#[derive(Debug, Clone)]
pub enum Verdict {
    Valid(Box<ValidKey>),
    Invalid(Invalidity),
}

/// A key that may be let in, but for the client's address, which is judged where it is known.
#[derive(Debug, Clone)]
pub struct ValidKey {
    pub organization: Organization,
    pub api_key: ApiKey,
    pub spending: Spending,
    pub budget: BudgetVerdict,
}

/// Why a key is not let in: for the log and for metrics. Clients see one 401 for all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Invalidity {
    Shape,
    Tag,
    /// No key is proven by the token; whether its prefix exists is nobody's business.
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
            proofs: Cache::new(PROOFS_KEPT),
            refusals: Cache::new(REFUSALS_KEPT),
            note_due: Cache::new(PROOFS_KEPT),
            metrics,
            deadlines,
        }
    }

    pub async fn validate(&self, text: &str) -> Result<Verdict, Undecided> {
        self.counted(text, Use::Noted, Duration::MAX).await
    }

    /// A verdict for a caller that caches it. Its state was requested at most `within` ago: state that took longer is read once more, and the
    /// second time it is [`Undecided::Stale`].
    pub async fn validate_to_pass_on(&self, text: &str, how: Use, within: Duration) -> Result<Verdict, Undecided> {
        self.counted(text, how, within).await
    }

    /// The verdict, counted in the metrics.
    async fn counted(&self, text: &str, how: Use, within: Duration) -> Result<Verdict, Undecided> {
        let mut proving = None;
        let outcome = self.decide_within(text, how, within, &mut proving).await;
        let word = outcome.as_ref().map_or("undecided", Verdict::as_str);
        self.metrics.validation(self.clock.now(), word, proving);
        outcome
    }

    async fn decide_within(
        &self,
        text: &str,
        how: Use,
        within: Duration,
        proving: &mut Option<Proving>,
    ) -> Result<Verdict, Undecided> {
        let is_stale = |asked_at: Option<Timestamp>| asked_at.is_some_and(|at| self.clock.now().since(at) > within);
        let (verdict, asked_at) = self.decide(text, how, proving).await?;
        if !is_stale(asked_at) {
            return Ok(verdict);
        }
        // The proof is cached by now, so only the state is read again.
        let (verdict, asked_at) = self.decide(text, how, &mut None).await?;
        if is_stale(asked_at) { Err(Undecided::Stale) } else { Ok(verdict) }
    }

    /// The verdict, and the time at which its state was requested; none without a proof.
    async fn decide(
        &self,
        text: &str,
        how: Use,
        proving: &mut Option<Proving>,
    ) -> Result<(Verdict, Option<Timestamp>), Undecided> {
        let invalid = |why| Ok((Verdict::Invalid(why), None));
        let token = match self.parse(text).await? {
            Ok(token) => token,
            Err(TokenRefused::Shape) => return invalid(Invalidity::Shape),
            Err(TokenRefused::Tag) => return invalid(Invalidity::Tag),
        };
        let Some(proof) = self.prove(&token, proving).await? else {
            return invalid(Invalidity::Unproven);
        };
        let asked_at = self.clock.now();
        let Proof { organization_id, api_key_id, lineage_id } = proof;
        let notes = how != Use::Unnoted && self.note_due.get(&api_key_id).is_none_or(|due| due <= asked_at);
        let (access, spending) = if notes {
            self.store.access_to_use(organization_id, api_key_id, lineage_id, asked_at).await?
        } else {
            self.store.access_to_spend(organization_id, api_key_id, lineage_id, asked_at).await?
        };
        let verdict = match judge(&access, self.clock.now()) {
            Ok(()) => Verdict::Valid(Box::new(ValidKey::new(access, spending))),
            Err(why) => Verdict::Invalid(why),
        };
        if let Verdict::Valid(valid) = &verdict
            && notes
            && how.counts(valid)
        {
            self.note_use(valid).await;
        }
        Ok((verdict, Some(asked_at)))
    }

    /// Shape and tag. What no key at hand has tagged may be tagged by one that was published since.
    async fn parse(&self, text: &str) -> Result<Result<ApiKeyToken, TokenRefused>, Undecided> {
        let parsed = ApiKeyToken::parse(text, &*self.secrets.ring(Ring::KeyTag).await?);
        if !matches!(parsed, Err(TokenRefused::Tag)) {
            return Ok(parsed);
        }
        Ok(ApiKeyToken::parse(text, &*self.secrets.ring_refetched(Ring::KeyTag).await?))
    }

    /// Notes a key's use, if the last one that was noted, by any process, is a minute ago. Best effort: no validation fails because of it.
    async fn note_use(&self, valid: &ValidKey) {
        let (now, organization, key) = (self.clock.now(), valid.organization.id, valid.api_key.id);
        if self.note_due.get(&key).is_some_and(|due| now < due) {
            return;
        }
        if let Some(last) = valid.api_key.last_used_at.filter(|at| now.since(*at) < USE_NOTED_EVERY) {
            self.note_due.insert(key, last.plus(USE_NOTED_EVERY));
            return;
        }
        // Before the write: concurrent validations of the key do not write too.
        self.note_due.insert(key, now.plus(USE_TRIED_EVERY));
        let noted = self.store.note_use(organization, key, now, USE_NOTED_EVERY);
        let within = self.deadlines.scale(USE_NOTED_WITHIN);
        match timeout(within, noted).await {
            Ok(Ok(true)) => self.note_due.insert(key, now.plus(USE_NOTED_EVERY)),
            // Another process was faster: the next look learns when.
            Ok(Ok(false)) => {}
            Ok(Err(error)) => tracing::warn!(%error, "the use of a key was not noted"),
            Err(_) => tracing::warn!(error = "timeout", ?within, "the use of a key was not noted"),
        }
    }

    /// Whose plaintext the token is, and in `proving` what it took to know. Concurrent first proofs of one token run one bcrypt.
    async fn prove(&self, token: &ApiKeyToken, proving: &mut Option<Proving>) -> Result<Option<Proof>, Undecided> {
        let fingerprint = token.fingerprint();
        *proving = Some(Proving::Known);
        let proof = self.proofs.get_or_insert_async(&fingerprint, async {
            if self.was_refused(&fingerprint) {
                return Err(None);
            }
            *proving = None;
            match self.compare(token, proving).await {
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
        refused_at.is_some_and(|at| self.clock.now().since(at) < REFUSAL_KEPT_FOR)
    }

    /// Compares with every key of the prefix, or with the decoy where there is none. The place in bcrypt's line comes first: a flood that
    /// finds none does not reach the store either.
    async fn compare(&self, token: &ApiKeyToken, proving: &mut Option<Proving>) -> Result<Option<Proof>, Undecided> {
        let place = self.bcrypt.enter()?;
        let candidates = self.store.credentials(&token.prefix()).await?;
        if candidates.is_empty() {
            *proving = Some(place.proves(token, self.bcrypt.decoy()).await?.1);
            return Ok(None);
        }
        for candidate in candidates {
            let (proves, took) = place.proves(token, candidate.digest.clone()).await?;
            *proving = Some(took);
            if proves {
                let Credential { organization_id, api_key_id, lineage_id, .. } = candidate;
                return Ok(Some(Proof { organization_id, api_key_id, lineage_id }));
            }
        }
        Ok(None)
    }
}

impl Verdict {
    /// In a word, for the log and for metrics.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Valid(_) => "valid",
            Self::Invalid(why) => why.as_str(),
        }
    }
}

impl Use {
    fn counts(self, valid: &ValidKey) -> bool {
        match self {
            Self::Noted => true,
            Self::NotedFrom(address) => valid.is_permitted(address),
            Self::Unnoted => false,
        }
    }
}

/// Judges a proven key by its state, but for the client's address.
pub fn judge(access: &Access, now: Timestamp) -> Result<(), Invalidity> {
    match access.api_key.status(now) {
        KeyStatus::Revoked => Err(Invalidity::Revoked),
        KeyStatus::Expired => Err(Invalidity::Expired),
        KeyStatus::Active | KeyStatus::Rotating => Ok(()),
    }
}

/// A step of a decision, in the order in which they are taken. State is looked at after the proof alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ValidationStep {
    Shape,
    Tag,
    /// The keys of the token's prefix, or the decoy where there is none: which of them shows nowhere.
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

/// What a step found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StepResult {
    pub step: ValidationStep,
    pub passed: bool,
}

/// How the verdict over a key that is used from `address` came about. It ends where the key failed, so that of a token without a proof it says no
/// more than that; an exhausted budget fails its own step and does not make the key invalid.
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
    let mut findings = Vec::with_capacity(steps.len());
    for step in steps {
        let passed = Some(step) != failed;
        findings.push(StepResult { step, passed });
        if !passed {
            break;
        }
    }
    findings
}

impl ValidKey {
    /// A key that was judged, and what it may spend.
    pub fn new(access: Access, spending: Spending) -> Self {
        let Access { organization, api_key } = access;
        let budget = BudgetVerdict::new(organization.subscription_status, &spending);
        Self { organization, api_key, spending, budget }
    }

    /// Whether the key may be used from there.
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

    /// AWS: a store that holds nothing, and a key-tag ring that cannot be fetched while it is null.
    #[derive(Debug, Clone)]
    struct Aws(Arc<Mutex<Value>>);

    impl HttpConnector for Aws {
        fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
            let asks_for_secret =
                request.headers().get("x-amz-target").is_some_and(|to| to.starts_with("secretsmanager"));
            let ring = self.0.lock().unwrap();
            let (status, body) = match (asks_for_secret, &*ring) {
                (true, Value::Null) => (400, json!({ "__type": "AccessDeniedException" })),
                (true, ring) => (200, json!({ "SecretString": ring.to_string() })),
                (false, _) => (200, json!({ "Count": 0, "Items": [] })),
            };
            let answer = http::Response::builder().status(status).body(SdkBody::from(body.to_string())).unwrap();
            HttpConnectorFuture::ready(Ok(HttpResponse::try_from(answer).unwrap()))
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
    async fn a_tag_is_wrong_only_under_a_ring_that_is_known_to_be_the_newest() {
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
        // Past the tag: the store knows of no such key.
        assert!(matches!(verdict().await, Ok(Verdict::Invalid(Invalidity::Unproven))));
        let foreign = ApiKeyToken::mint(&Keyring::single("k1", "c".repeat(32)).unwrap(), &OsEntropy);
        let verdict = app.validator().validate(foreign.expose()).await;
        assert!(matches!(verdict, Ok(Verdict::Invalid(Invalidity::Tag))));
    }
}

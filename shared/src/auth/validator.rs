use std::{net::IpAddr, sync::Arc, time::Duration};

use quick_cache::sync::Cache;
use tokio::time::timeout;

use super::{BcryptPool, Undecided};
use crate::{
    app::App,
    clock::Clock,
    config::{Ring, Secrets},
    domain::{
        ApiKey, ApiKeyToken, BudgetVerdict, Id, KeyStatus, Organization, Principal, PrincipalKind, Timestamp,
        TokenRefused,
    },
    store::{Access, Store},
};

/// How many proofs a process remembers: 48 bytes each.
const PROOFS_KEPT: usize = 100_000;
const REFUSALS_KEPT: usize = 10_000;
/// How long a wrong token is refused without another bcrypt.
const REFUSAL_KEPT_FOR: Duration = Duration::from_secs(5);
/// How old a verdict's read may be when it is passed on to who keeps it.
const PASSED_ON_WITHIN: Duration = Duration::from_millis(500);

/// How late `last_used_at` may be: a key in use costs one write in this time, not one per request.
const USE_NOTED_EVERY: Duration = Duration::from_mins(1);

/// How long a validation waits for that write at most.
const USE_NOTED_WITHIN: Duration = Duration::from_millis(250);

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
    /// When this process last noted a key's use.
    noted: Cache<Id, Timestamp>,
}

/// "This token is the plaintext of that key."
#[derive(Debug, Clone, Copy)]
struct Proof {
    organization_id: Id,
    api_key_id: Id,
}

/// Whether a validation counts as a use of the key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Use {
    Noted,
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
        let App { store, secrets, clock, bcrypt, .. } = app;
        Self {
            store,
            secrets,
            clock,
            bcrypt,
            proofs: Cache::new(PROOFS_KEPT),
            refusals: Cache::new(REFUSALS_KEPT),
            noted: Cache::new(PROOFS_KEPT),
        }
    }

    pub async fn validate(&self, text: &str) -> Result<Verdict, Undecided> {
        self.validate_since(text, Use::Noted).await.map(|(verdict, _)| verdict)
    }

    /// A verdict for somebody who keeps it: none where half a second has gone by since the state behind it was asked for.
    pub async fn validate_to_pass_on(&self, text: &str, how: Use) -> Result<Verdict, Undecided> {
        let (verdict, asked_at) = self.validate_since(text, how).await?;
        if asked_at.is_some_and(|at| self.clock.now().since(at) > PASSED_ON_WITHIN) {
            return Err(Undecided::Stale);
        }
        Ok(verdict)
    }

    /// The verdict, and when the state behind it was asked for; it is not asked for without a proof.
    async fn validate_since(&self, text: &str, how: Use) -> Result<(Verdict, Option<Timestamp>), Undecided> {
        let invalid = |why| Ok((Verdict::Invalid(why), None));
        let ring = self.secrets.ring(Ring::KeyTag).await?;
        let token = match ApiKeyToken::parse(text, &ring) {
            Ok(token) => token,
            Err(TokenRefused::Shape) => return invalid(Invalidity::Shape),
            Err(TokenRefused::Tag) => return invalid(Invalidity::Tag),
        };
        let Some(proof) = self.prove(&token).await? else {
            return invalid(Invalidity::Unproven);
        };
        let asked_at = self.clock.now();
        let noted = async {
            match how {
                Use::Noted => self.note_use(proof).await,
                Use::Unnoted => {}
            }
        };
        let (access, ()) = tokio::join!(self.store.access(proof.organization_id, proof.api_key_id), noted);
        let verdict = access?.map_or(Verdict::Invalid(Invalidity::Unproven), |access| judge(access, self.clock.now()));
        Ok((verdict, Some(asked_at)))
    }

    /// Notes a key's use beside the read that is waited for anyway. Best effort: no validation fails because of it.
    async fn note_use(&self, proof: Proof) {
        let now = self.clock.now();
        if self.noted.get(&proof.api_key_id).is_some_and(|at| now.since(at) < USE_NOTED_EVERY) {
            return;
        }
        self.noted.insert(proof.api_key_id, now);
        let (organization, key) = (proof.organization_id, proof.api_key_id);
        let noted = self.store.note_use(organization, key, now, USE_NOTED_EVERY);
        match timeout(USE_NOTED_WITHIN, noted).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "the use of a key was not noted"),
            Err(_) => tracing::warn!("the use of a key was not noted within {USE_NOTED_WITHIN:?}"),
        }
    }

    /// Whose plaintext the token is. Concurrent first proofs of one token run one bcrypt.
    async fn prove(&self, token: &ApiKeyToken) -> Result<Option<Proof>, Undecided> {
        let fingerprint = token.fingerprint();
        let proof = self.proofs.get_or_insert_async(&fingerprint, async {
            if self.was_refused(&fingerprint) {
                return Err(None);
            }
            match self.compare(token).await {
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

    /// Compares with every key of the prefix, or with the decoy where there is none.
    async fn compare(&self, token: &ApiKeyToken) -> Result<Option<Proof>, Undecided> {
        let bcrypt = &self.bcrypt;
        let candidates = self.store.credentials(&token.prefix()).await?;
        if candidates.is_empty() {
            bcrypt.proves(token, bcrypt.decoy()).await?;
            return Ok(None);
        }
        for candidate in candidates {
            if bcrypt.proves(token, candidate.digest).await? {
                let (organization_id, api_key_id) = (candidate.organization_id, candidate.api_key_id);
                return Ok(Some(Proof { organization_id, api_key_id }));
            }
        }
        Ok(None)
    }
}

/// The verdict over a proven key's state.
pub fn judge(access: Access, now: Timestamp) -> Verdict {
    let Access { organization, api_key } = access;
    match api_key.status(now) {
        KeyStatus::Revoked => Verdict::Invalid(Invalidity::Revoked),
        KeyStatus::Expired => Verdict::Invalid(Invalidity::Expired),
        KeyStatus::Active | KeyStatus::Rotating => {
            let budget = BudgetVerdict::judge(organization.subscription_status);
            Verdict::Valid(Box::new(ValidKey { organization, api_key, budget }))
        }
    }
}

/// A step of a decision, in the order in which they are taken. State is looked at after the proof alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
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

impl Step {
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
pub struct Finding {
    pub step: Step,
    pub passed: bool,
}

/// How the verdict over a key that is used from `address` came about. It ends where the key failed, so that of a token without a proof it says no
/// more than that; an exhausted budget fails its own step and does not make the key invalid.
pub fn trace(verdict: &Verdict, address: Option<IpAddr>) -> Vec<Finding> {
    let steps = [
        Step::Shape,
        Step::Tag,
        Step::Candidates,
        Step::Proof,
        Step::Revocation,
        Step::Expiry,
        Step::Cidr,
        Step::Budget,
    ];
    let failed = match verdict {
        Verdict::Invalid(Invalidity::Shape) => Some(Step::Shape),
        Verdict::Invalid(Invalidity::Tag) => Some(Step::Tag),
        Verdict::Invalid(Invalidity::Unproven) => Some(Step::Proof),
        Verdict::Invalid(Invalidity::Revoked) => Some(Step::Revocation),
        Verdict::Invalid(Invalidity::Expired) => Some(Step::Expiry),
        Verdict::Valid(valid) if !valid.is_permitted(address) => Some(Step::Cidr),
        Verdict::Valid(valid) => (!valid.budget.is_ok()).then_some(Step::Budget),
    };
    let mut findings = Vec::with_capacity(steps.len());
    for step in steps {
        let passed = Some(step) != failed;
        findings.push(Finding { step, passed });
        if !passed {
            break;
        }
    }
    findings
}

impl ValidKey {
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
            budget_reason: self.budget.reason().map(ToOwned::to_owned),
        }
    }
}

impl std::fmt::Debug for Validator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Validator").field("proofs", &self.proofs.len()).finish_non_exhaustive()
    }
}

use std::time::Duration;

use quick_cache::sync::Cache;
use tokio::time::timeout;

use super::Undecided;
use crate::{
    app::App,
    config::Ring,
    domain::{
        ApiKey, ApiKeyToken, BudgetVerdict, Id, KeyStatus, Organization, Principal, PrincipalKind, Timestamp,
        TokenRefused,
    },
    store::Access,
};

/// How many proofs a process remembers: 48 bytes each.
const PROOFS_KEPT: usize = 100_000;
const REFUSALS_KEPT: usize = 10_000;
/// How long a wrong token is refused without another bcrypt.
const REFUSAL_KEPT_FOR: Duration = Duration::from_secs(5);

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
    app: App,
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
        Self {
            app,
            proofs: Cache::new(PROOFS_KEPT),
            refusals: Cache::new(REFUSALS_KEPT),
            noted: Cache::new(PROOFS_KEPT),
        }
    }

    pub async fn validate(&self, text: &str) -> Result<Verdict, Undecided> {
        let ring = self.app.secrets.ring(Ring::KeyTag).await?;
        let token = match ApiKeyToken::parse(text, &ring) {
            Ok(token) => token,
            Err(TokenRefused::Shape) => return Ok(Verdict::Invalid(Invalidity::Shape)),
            Err(TokenRefused::Tag) => return Ok(Verdict::Invalid(Invalidity::Tag)),
        };
        let Some(proof) = self.prove(&token).await? else {
            return Ok(Verdict::Invalid(Invalidity::Unproven));
        };
        let (access, ()) =
            tokio::join!(self.app.store.access(proof.organization_id, proof.api_key_id), self.note_use(proof));
        Ok(access?.map_or(Verdict::Invalid(Invalidity::Unproven), |access| judge(access, self.app.clock.now())))
    }

    /// Notes a key's use beside the read that is waited for anyway. Best effort: no validation fails because of it.
    async fn note_use(&self, proof: Proof) {
        let now = self.app.clock.now();
        if self.noted.get(&proof.api_key_id).is_some_and(|at| now.since(at) < USE_NOTED_EVERY) {
            return;
        }
        self.noted.insert(proof.api_key_id, now);
        let (organization, key) = (proof.organization_id, proof.api_key_id);
        let noted = self.app.store.note_use(organization, key, now, USE_NOTED_EVERY);
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
                    self.refusals.insert(fingerprint, self.app.clock.now());
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
        refused_at.is_some_and(|at| self.app.clock.now().since(at) < REFUSAL_KEPT_FOR)
    }

    /// Compares with every key of the prefix, or with the decoy where there is none.
    async fn compare(&self, token: &ApiKeyToken) -> Result<Option<Proof>, Undecided> {
        let bcrypt = &self.app.bcrypt;
        let candidates = self.app.store.credentials(&token.prefix()).await?;
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

impl ValidKey {
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

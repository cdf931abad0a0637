use std::sync::Arc;

use tokio::{sync::Semaphore, task};

use super::Undecided;
use crate::{
    domain::{ApiKeyToken, Entropy},
    store::Digest,
};

/// Runs bcrypt off the async threads, no more at once than there are processors, so that a flood of first proofs
/// leaves the rest of the process responsive.
#[derive(Debug, Clone)]
pub struct BcryptPool {
    permits: Arc<Semaphore>,
    cost: u32,
}

impl BcryptPool {
    pub fn new(cost: u32) -> Self {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        Self { permits: Arc::new(Semaphore::new(processors)), cost }
    }

    /// A digest of the token under a fresh salt.
    pub async fn digest(&self, token: &ApiKeyToken, entropy: &dyn Entropy) -> Result<Digest, Undecided> {
        let mut salt = [0; 16];
        entropy.fill(&mut salt);
        let (token, cost) = (token.clone(), self.cost);
        self.run(move || {
            let parts = bcrypt::hash_with_salt(token.expose(), cost, salt)?;
            Ok(Digest::new(parts.to_string()))
        })
        .await
    }

    /// Whether the digest is the token's. The comparison itself is constant-time.
    pub(super) async fn proves(&self, token: &ApiKeyToken, digest: Digest) -> Result<bool, Undecided> {
        let token = token.clone();
        self.run(move || bcrypt::verify(token.expose(), digest.as_str())).await
    }

    /// A digest of nothing at the configured cost: comparing with it takes what a real comparison takes.
    pub(super) fn decoy(&self) -> Digest {
        Digest::new(format!("$2b${:02}${}{}", self.cost, ".".repeat(22), ".".repeat(31)))
    }

    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> bcrypt::BcryptResult<T> + Send + 'static,
    ) -> Result<T, Undecided> {
        let permit =
            Arc::clone(&self.permits).acquire_owned().await.map_err(|error| Undecided::Bcrypt(error.to_string()))?;
        let done = task::spawn_blocking(move || {
            let _held = permit;
            work()
        });
        done.await
            .map_err(|error| Undecided::Bcrypt(error.to_string()))?
            .map_err(|error| Undecided::Bcrypt(error.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{domain::Keyring, entropy::SeededEntropy};

    #[tokio::test]
    async fn a_digest_proves_its_token_and_no_other_and_the_decoy_proves_none() {
        let (ring, entropy) = (Keyring::single("k1", "s".repeat(32)).unwrap(), SeededEntropy::new(3));
        let (token, other) = (ApiKeyToken::mint(&ring, &entropy), ApiKeyToken::mint(&ring, &entropy));
        let pool = BcryptPool::new(4);
        let digest = pool.digest(&token, &entropy).await.unwrap();
        assert!(digest.as_str().starts_with("$2b$04$"));
        assert!(pool.proves(&token, digest.clone()).await.unwrap());
        assert!(!pool.proves(&other, digest).await.unwrap());
        assert!(!pool.proves(&token, pool.decoy()).await.unwrap());
    }
}

use std::{sync::Arc, thread, time::Instant};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    task,
};

use super::Undecided;
use crate::{
    domain::{ApiKeyToken, Entropy},
    store::Digest,
    telemetry::Proving,
};

/// How many wait at most for each that runs, at cost 12: two seconds' worth, half of what a validation may take. Each step of the cost doubles the
/// time of one, and halves the line.
const WAITING_AT_COST_12: usize = 9;

/// Runs bcrypt off the async threads, on fewer than all processors, so that the rest of the process goes on beside a flood of first proofs.
///
/// Who comes while they are busy waits in a line, oldest first. The line is bounded: where it is full there is no verdict
/// ([`Undecided::Busy`]), at once, rather than one that nobody waits for any more.
#[derive(Debug, Clone)]
pub struct BcryptPool {
    /// A permit for each that runs or waits.
    places: Arc<Semaphore>,
    /// A permit for each that runs.
    workers: Arc<Semaphore>,
    cost: u32,
}

/// A place in the line. It is free again when this is dropped and nothing runs under it any more.
#[derive(Debug)]
pub(super) struct Slot {
    held: Arc<OwnedSemaphorePermit>,
    workers: Arc<Semaphore>,
}

impl BcryptPool {
    pub fn new(cost: u32) -> Self {
        Self { places: Arc::new(Semaphore::new(places(cost))), workers: Arc::new(Semaphore::new(workers())), cost }
    }

    /// A digest of the token under a fresh salt.
    pub async fn digest(&self, token: &ApiKeyToken, entropy: &dyn Entropy) -> Result<Digest, Undecided> {
        let mut salt = [0; 16];
        entropy.fill(&mut salt);
        let (token, cost) = (token.clone(), self.cost);
        let hash = move || {
            let parts = bcrypt::hash_with_salt(token.expose(), cost, salt)?;
            Ok(Digest::new(parts.to_string()))
        };
        self.enter()?.run(hash).await.map(|(digest, _)| digest)
    }

    /// A place at the end of the line, unless it is full.
    pub(super) fn enter(&self) -> Result<Slot, Undecided> {
        let held = Arc::clone(&self.places).try_acquire_owned().map_err(|_| Undecided::Busy)?;
        Ok(Slot { held: Arc::new(held), workers: Arc::clone(&self.workers) })
    }

    /// A digest of nothing at the configured cost: comparing with it takes what a real comparison takes.
    pub(super) fn decoy(&self) -> Digest {
        Digest::new(format!("$2b${:02}${}{}", self.cost, ".".repeat(22), ".".repeat(31)))
    }
}

impl Slot {
    /// Whether the digest is the token's, and what it took. The comparison itself is constant-time.
    pub(super) async fn proves(&self, token: &ApiKeyToken, digest: Digest) -> Result<(bool, Proving), Undecided> {
        let token = token.clone();
        self.run(move || bcrypt::verify(token.expose(), digest.as_str())).await
    }

    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> bcrypt::BcryptResult<T> + Send + 'static,
    ) -> Result<(T, Proving), Undecided> {
        let came = Instant::now();
        let worker =
            Arc::clone(&self.workers).acquire_owned().await.map_err(|error| Undecided::Bcrypt(error.to_string()))?;
        // What has begun runs to its end, also when its request is given up: until then it keeps both.
        let place = Arc::clone(&self.held);
        let done = task::spawn_blocking(move || {
            let _held = (worker, place);
            let waited = came.elapsed();
            let done = work()?;
            Ok((done, Proving::Compared { waited, ran: came.elapsed().saturating_sub(waited) }))
        });
        done.await
            .map_err(|error| Undecided::Bcrypt(error.to_string()))?
            .map_err(|error: bcrypt::BcryptError| Undecided::Bcrypt(error.to_string()))
    }
}

/// How many run at once: one processor is left to the rest of the process, where there is more than one.
fn workers() -> usize {
    thread::available_parallelism().map_or(1, |processors| processors.get().saturating_sub(1).max(1))
}

/// How many run or wait at once.
fn places(cost: u32) -> usize {
    let waiting = ((WAITING_AT_COST_12 << 12) >> cost).max(1);
    workers() * (1 + waiting)
}

/// The line in the hands of a test.
#[cfg(any(test, feature = "testing"))]
impl BcryptPool {
    /// Lets nothing begin until the answer is dropped: who comes waits.
    pub async fn pause(&self) -> OwnedSemaphorePermit {
        let all = u32::try_from(workers()).expect("a number of processors");
        Arc::clone(&self.workers).acquire_many_owned(all).await.expect("never closed")
    }

    /// Takes every place that is left until the answer is dropped.
    pub fn fill(&self) -> OwnedSemaphorePermit {
        let left = u32::try_from(self.places.available_permits()).expect("a length");
        Arc::clone(&self.places).try_acquire_many_owned(left).expect("nobody came in between")
    }

    /// How many run or wait.
    pub fn in_line(&self) -> usize {
        places(self.cost) - self.places.available_permits()
    }
}

#[cfg(test)]
mod tests {
    use std::{
        future::Future,
        pin::pin,
        task::{Context, Waker},
    };

    use super::*;
    use crate::{domain::Keyring, entropy::SeededEntropy};

    fn token(seed: u64) -> ApiKeyToken {
        ApiKeyToken::mint(&Keyring::single("k1", "s".repeat(32)).unwrap(), &SeededEntropy::new(seed))
    }

    /// Has a future go as far as it gets at once.
    fn begin(future: std::pin::Pin<&mut impl Future>) {
        assert!(future.poll(&mut Context::from_waker(Waker::noop())).is_pending());
    }

    #[tokio::test]
    async fn a_digest_proves_its_token_and_no_other_and_the_decoy_proves_none() {
        let pool = BcryptPool::new(4);
        let digest = pool.digest(&token(1), &SeededEntropy::new(3)).await.unwrap();
        assert!(digest.as_str().starts_with("$2b$04$"));
        let place = pool.enter().unwrap();
        assert!(place.proves(&token(1), digest.clone()).await.unwrap().0);
        assert!(!place.proves(&token(2), digest).await.unwrap().0);
        assert!(!place.proves(&token(1), pool.decoy()).await.unwrap().0);
    }

    #[tokio::test]
    async fn whoever_comes_to_a_full_line_is_sent_away_and_served_later() {
        let (pool, entropy) = (BcryptPool::new(4), SeededEntropy::new(3));
        let full = pool.fill();
        assert!(matches!(pool.enter(), Err(Undecided::Busy)));
        assert!(matches!(pool.digest(&token(1), &entropy).await, Err(Undecided::Busy)));
        drop(full);
        pool.digest(&token(1), &entropy).await.unwrap();
        assert_eq!(pool.in_line(), 0);
    }

    #[tokio::test]
    async fn who_gives_up_waiting_frees_the_place() {
        let (pool, entropy, one) = (BcryptPool::new(4), SeededEntropy::new(3), token(1));
        let paused = pool.pause().await;
        {
            let mut given_up = pin!(pool.digest(&one, &entropy));
            begin(given_up.as_mut());
            assert_eq!(pool.in_line(), 1);
        }
        assert_eq!(pool.in_line(), 0);
        drop(paused);
        pool.digest(&one, &entropy).await.unwrap();
    }

    #[tokio::test]
    async fn what_runs_keeps_its_place_though_its_request_was_given_up() {
        let pool = BcryptPool::new(4);
        let (finish, finished) = std::sync::mpsc::channel::<()>();
        {
            let place = pool.enter().unwrap();
            let mut given_up = pin!(place.run(move || {
                finished.recv().ok();
                Ok(())
            }));
            begin(given_up.as_mut());
        }
        assert_eq!((pool.in_line(), pool.workers.available_permits()), (1, workers() - 1));
        drop(finish);
        drop(pool.pause().await);
        while pool.in_line() > 0 {
            task::yield_now().await;
        }
    }

    #[test]
    fn a_full_line_is_through_in_half_the_time_that_a_validation_may_take() {
        // Some 0.22 s each at cost 12.
        for (cost, waiting) in [(4, 2_304), (10, 36), (12, 9), (13, 4), (14, 2), (15, 1), (31, 1)] {
            assert_eq!(places(cost), workers() * (1 + waiting), "{cost}");
        }
    }
}

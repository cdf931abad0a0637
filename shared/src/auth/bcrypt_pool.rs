use std::{sync::Arc, thread, time::Instant};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    task,
};

use super::Undecided;
use crate::{
    domain::{ApiKeyToken, Entropy},
    store::Digest,
    telemetry::ProofSource,
};

/// Maximum waiting jobs per worker at cost 12: about two seconds of work, half of the time limit of
/// `internal-keys-validate`. Each cost step doubles the time of a job and halves the queue.
const QUEUE_LENGTH_AT_COST_12: usize = 9;

/// Runs bcrypt outside the async threads, on all processors but one, so that a flood of first
/// validations does not stall the rest of the process.
///
/// Jobs wait in a bounded queue, first in, first out. A full queue returns [`Undecided::Busy`] at
/// once.
#[derive(Debug, Clone)]
pub struct BcryptPool {
    /// One permit per running or waiting job.
    slots: Arc<Semaphore>,
    /// One permit per running job.
    workers: Arc<Semaphore>,
    cost: u32,
}

/// A reservation in the queue. It ends when it is dropped and its job has finished.
#[derive(Debug)]
pub(super) struct Slot {
    permit: Arc<OwnedSemaphorePermit>,
    workers: Arc<Semaphore>,
}

impl BcryptPool {
    pub fn new(cost: u32) -> Self {
        Self { slots: Arc::new(Semaphore::new(slots(cost))), workers: Arc::new(Semaphore::new(workers())), cost }
    }

    /// Returns a bcrypt digest of the token with a new salt.
    pub async fn digest(&self, token: &ApiKeyToken, entropy: &dyn Entropy) -> Result<Digest, Undecided> {
        let mut salt = [0; 16];
        entropy.fill(&mut salt);
        let (token, cost) = (token.clone(), self.cost);
        let hash = move || {
            let parts = bcrypt::hash_with_salt(token.expose(), cost, salt)?;
            Ok(Digest::new(parts.to_string()))
        };
        self.reserve()?.run(hash).await.map(|(digest, _)| digest)
    }

    /// Reserves a slot at the end of the queue. Returns [`Undecided::Busy`] if the queue is full.
    pub(super) fn reserve(&self) -> Result<Slot, Undecided> {
        let permit = Arc::clone(&self.slots).try_acquire_owned().map_err(|_| Undecided::Busy)?;
        Ok(Slot { permit: Arc::new(permit), workers: Arc::clone(&self.workers) })
    }

    /// Returns a placeholder digest at the configured cost. A comparison with it takes as long as a
    /// real one.
    pub(super) fn decoy(&self) -> Digest {
        Digest::new(format!("$2b${:02}${}{}", self.cost, ".".repeat(22), ".".repeat(31)))
    }
}

impl Slot {
    /// Compares the token with the digest in constant time. Returns whether they match, and the
    /// time taken.
    pub(super) async fn verify(&self, token: &ApiKeyToken, digest: Digest) -> Result<(bool, ProofSource), Undecided> {
        let token = token.clone();
        self.run(move || bcrypt::verify(token.expose(), digest.as_str())).await
    }

    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> bcrypt::BcryptResult<T> + Send + 'static,
    ) -> Result<(T, ProofSource), Undecided> {
        let queued_at = Instant::now();
        let worker =
            Arc::clone(&self.workers).acquire_owned().await.map_err(|error| Undecided::Bcrypt(error.to_string()))?;
        // A job that has started runs to its end even if its request is dropped, so it keeps both
        // permits.
        let slot = Arc::clone(&self.permit);
        let done = task::spawn_blocking(move || {
            let _permits = (worker, slot);
            let waited = queued_at.elapsed();
            let done = work()?;
            Ok((done, ProofSource::Compared { waited, ran: queued_at.elapsed().saturating_sub(waited) }))
        });
        done.await
            .map_err(|error| Undecided::Bcrypt(error.to_string()))?
            .map_err(|error: bcrypt::BcryptError| Undecided::Bcrypt(error.to_string()))
    }
}

/// Maximum running jobs. One processor is left to the rest of the process if there are several.
fn workers() -> usize {
    thread::available_parallelism().map_or(1, |processors| processors.get().saturating_sub(1).max(1))
}

/// Maximum running and waiting jobs.
fn slots(cost: u32) -> usize {
    let waiting = ((QUEUE_LENGTH_AT_COST_12 << 12) >> cost).max(1);
    workers() * (1 + waiting)
}

/// Control over the queue, for tests.
#[cfg(any(test, feature = "testing"))]
impl BcryptPool {
    /// Keeps every job waiting until the returned permit is dropped.
    pub async fn pause(&self) -> OwnedSemaphorePermit {
        let all = u32::try_from(workers()).expect("processor count fits in u32");
        Arc::clone(&self.workers).acquire_many_owned(all).await.expect("never closed")
    }

    /// Takes every free slot until the returned permit is dropped.
    pub fn fill(&self) -> OwnedSemaphorePermit {
        let left = u32::try_from(self.slots.available_permits()).expect("queue length fits in u32");
        Arc::clone(&self.slots).try_acquire_many_owned(left).expect("no concurrent reservation")
    }

    /// Returns the number of running and waiting jobs.
    pub fn occupied_slots(&self) -> usize {
        slots(self.cost) - self.slots.available_permits()
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

    /// Polls a future once and expects it to be pending.
    fn poll_once(future: std::pin::Pin<&mut impl Future>) {
        assert!(future.poll(&mut Context::from_waker(Waker::noop())).is_pending());
    }

    #[tokio::test]
    async fn digest_matches_only_its_token() {
        let pool = BcryptPool::new(4);
        let digest = pool.digest(&token(1), &SeededEntropy::new(3)).await.unwrap();
        assert!(digest.as_str().starts_with("$2b$04$"));
        let slot = pool.reserve().unwrap();
        assert!(slot.verify(&token(1), digest.clone()).await.unwrap().0);
        assert!(!slot.verify(&token(2), digest).await.unwrap().0);
        assert!(!slot.verify(&token(1), pool.decoy()).await.unwrap().0);
    }

    #[tokio::test]
    async fn full_queue_refuses_jobs_until_slots_free() {
        let (pool, entropy) = (BcryptPool::new(4), SeededEntropy::new(3));
        let full = pool.fill();
        assert!(matches!(pool.reserve(), Err(Undecided::Busy)));
        assert!(matches!(pool.digest(&token(1), &entropy).await, Err(Undecided::Busy)));
        drop(full);
        pool.digest(&token(1), &entropy).await.unwrap();
        assert_eq!(pool.occupied_slots(), 0);
    }

    #[tokio::test]
    async fn cancelled_waiting_job_frees_its_slot() {
        let (pool, entropy, one) = (BcryptPool::new(4), SeededEntropy::new(3), token(1));
        let paused = pool.pause().await;
        {
            let mut cancelled = pin!(pool.digest(&one, &entropy));
            poll_once(cancelled.as_mut());
            assert_eq!(pool.occupied_slots(), 1);
        }
        assert_eq!(pool.occupied_slots(), 0);
        drop(paused);
        pool.digest(&one, &entropy).await.unwrap();
    }

    #[tokio::test]
    async fn running_job_keeps_slot_after_cancellation() {
        let pool = BcryptPool::new(4);
        let (finish, finished) = std::sync::mpsc::channel::<()>();
        {
            let slot = pool.reserve().unwrap();
            let mut cancelled = pin!(slot.run(move || {
                finished.recv().ok();
                Ok(())
            }));
            poll_once(cancelled.as_mut());
        }
        assert_eq!((pool.occupied_slots(), pool.workers.available_permits()), (1, workers() - 1));
        drop(finish);
        drop(pool.pause().await);
        while pool.occupied_slots() > 0 {
            task::yield_now().await;
        }
    }

    #[test]
    fn queue_length_halves_per_cost_step() {
        // A job takes about 0.22 s at cost 12, so a full queue takes half of the 4 s of
        // `internal-keys-validate`.
        for (cost, waiting) in [(4, 2_304), (10, 36), (12, 9), (13, 4), (14, 2), (15, 1), (31, 1)] {
            assert_eq!(slots(cost), workers() * (1 + waiting), "{cost}");
        }
    }
}

//! Runs many futures with bounded concurrency.

use std::future::Future;

use tokio::task::JoinSet;

const MAX_CONCURRENT: usize = 16;

/// Runs at most 16 futures at a time and returns their results in no particular order. Dropping the
/// returned future cancels them.
pub async fn join_bounded<T, F>(futures: impl IntoIterator<Item = F>) -> Vec<T>
where
    T: Send + 'static,
    F: Future<Output = T> + Send + 'static,
{
    let mut running = JoinSet::new();
    let mut results = Vec::new();
    for future in futures {
        running.spawn(future);
        if running.len() == MAX_CONCURRENT {
            results.extend(running.join_next().await.map(|result| result.expect("a task does not panic")));
        }
    }
    results.extend(running.join_all().await);
    results
}

//! Many calls at once, within bounds.

use std::future::Future;

use tokio::task::JoinSet;

/// How many calls of a kind are under way at once.
const AT_ONCE: usize = 16;

/// Awaits all of them, at most 16 at a time; the answers come in no order. They end with whoever waits for them.
pub async fn join_bounded<T, F>(futures: impl IntoIterator<Item = F>) -> Vec<T>
where
    T: Send + 'static,
    F: Future<Output = T> + Send + 'static,
{
    let mut running = JoinSet::new();
    let mut answers = Vec::new();
    for future in futures {
        running.spawn(future);
        if running.len() == AT_ONCE {
            answers.extend(running.join_next().await.map(|answer| answer.expect("a task does not panic")));
        }
    }
    answers.extend(running.join_all().await);
    answers
}

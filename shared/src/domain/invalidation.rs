use std::{collections::BTreeSet, time::Duration};

use serde::{Deserialize, Serialize};

use super::{Id, Timestamp};

/// How long an invalidation is retried. Verdicts cached when it was written expire long before.
const RETRY_TIMEOUT: Duration = Duration::from_mins(10);
const MAX_PAUSE: Duration = Duration::from_mins(1);

/// The effect of a change on cached verdicts. A larger value includes the smaller ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum CacheEffect {
    /// No cache holds what changed.
    None,
    /// The caches of data planes are out of date.
    Stale,
    /// Access was reduced: the gateway's cache must be flushed too.
    AccessReduced,
}

/// A request to data planes to drop what they cache about an organization.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Invalidation {
    pub id: Id,
    pub organization_id: Id,
    pub at: Timestamp,
    /// Whether the gateway must flush its cache too; stored as `access_cut`.
    #[serde(rename = "access_cut")]
    pub access_reduced: bool,
    /// The names of the receivers that confirmed; stored as `told`.
    #[serde(default, rename = "told")]
    pub notified: BTreeSet<String>,
    /// Number of attempts started.
    #[serde(default)]
    pub attempts: u32,
}

impl Invalidation {
    /// Returns when to retry after a failure at `now`, or `None` after the timeout. The pauses are
    /// 1, 2, 4, … 60 s, each shortened by up to a quarter depending on `random`.
    pub fn next_try(&self, now: Timestamp, random: u8) -> Option<Timestamp> {
        let doublings = self.attempts.saturating_sub(1).min(6);
        let pause = MAX_PAUSE.min(Duration::from_secs(1 << doublings));
        let pause = pause.mul_f64(1.0 - f64::from(random) / 1024.0);
        (now.since(self.at) < RETRY_TIMEOUT).then(|| now.plus(pause))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_pauses_double_up_to_a_minute() {
        let at: Timestamp = "2026-11-21T12:00:00Z".parse().unwrap();
        let id = Id::new(1).unwrap();
        let mut item =
            Invalidation { id, organization_id: id, at, access_reduced: true, notified: BTreeSet::new(), attempts: 0 };
        let mut pauses = Vec::new();
        for attempts in [1, 2, 3, 6, 7, 8, u32::MAX] {
            item.attempts = attempts;
            pauses.push([0, 255].map(|random| item.next_try(at, random).unwrap().since(at).as_millis()));
        }
        let expected = [
            [1_000, 750],
            [2_000, 1_501],
            [4_000, 3_003],
            [32_000, 24_031],
            [60_000, 45_058],
            [60_000, 45_058],
            [60_000, 45_058],
        ];
        assert_eq!(pauses, expected);
        let end = at.plus(RETRY_TIMEOUT);
        assert!(item.next_try(end.minus(Duration::from_millis(1)), 0).is_some());
        assert_eq!(item.next_try(end, 0), None);
    }
}

use std::{collections::BTreeSet, time::Duration};

use serde::{Deserialize, Serialize};

use super::{Id, Timestamp};

/// How long whoever has not been told is tried. What they kept when it was written ended long before.
const TRIED_FOR: Duration = Duration::from_mins(10);
const PAUSE_MAX: Duration = Duration::from_mins(1);

/// What a change does to the verdicts that others keep about an organization's keys. The larger includes the smaller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum CacheEffect {
    /// Nothing that anybody keeps.
    None,
    /// What data planes keep is out of date.
    Stale,
    /// Somebody has less access than before: the gateway's verdicts must go too.
    AccessCut,
}

/// That data planes must forget what they keep about an organization.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Invalidation {
    pub id: Id,
    pub organization_id: Id,
    pub at: Timestamp,
    /// Whether the gateway must forget as well.
    pub access_cut: bool,
    /// Who has been told, by name.
    #[serde(default)]
    pub told: BTreeSet<String>,
    /// How often somebody set out to tell.
    #[serde(default)]
    pub attempts: u32,
}

impl Invalidation {
    /// When to try again after a failure at `now`, or `None` if that is over: after 1, 2, 4, … 60 s, of which `random` takes away up to a
    /// quarter.
    pub fn next_try(&self, now: Timestamp, random: u8) -> Option<Timestamp> {
        let doublings = self.attempts.saturating_sub(1).min(6);
        let pause = PAUSE_MAX.min(Duration::from_secs(1 << doublings));
        let pause = pause.mul_f64(1.0 - f64::from(random) / 1024.0);
        (now.since(self.at) < TRIED_FOR).then(|| now.plus(pause))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_a_minute_for_ten_minutes() {
        let at: Timestamp = "2026-11-21T12:00:00Z".parse().unwrap();
        let id = Id::new(1).unwrap();
        let mut item =
            Invalidation { id, organization_id: id, at, access_cut: true, told: BTreeSet::new(), attempts: 0 };
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
        let end = at.plus(TRIED_FOR);
        assert!(item.next_try(end.minus(Duration::from_millis(1)), 0).is_some());
        assert_eq!(item.next_try(end, 0), None);
    }
}

use std::time::Duration;

use secrecy::SecretString;

use super::{Keyring, Kid, Timestamp};

/// After this time every process has fetched a new ring. Rings are cached for five minutes.
const PROPAGATION_TIME: Duration = Duration::from_mins(10);
/// After this time every token that a retired key signed has expired. A process that cannot fetch
/// the ring goes on signing with its old one for an hour, a token is valid for an hour, and clocks
/// differ.
const RETIREMENT_TIME: Duration = Duration::from_mins(2 * 60 + 5);

/// The first key of a ring, which the stack creates.
const FIRST: &str = "k1";

/// Determines when a rotation removes a retired key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RingUse {
    /// Once every token that it signed has expired.
    Signs,
    /// Never: the operator removes it when nothing is sealed under it.
    Seals,
}

/// The change that a rotation made to a ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Move {
    /// A key was added. It is not used yet.
    Added,
    /// The key that was added last became current.
    Promoted,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RotationError {
    #[error("the next key is not known to every process yet: rotate again in ten minutes")]
    TooSoon,
    #[error("the clock is behind the ring's newest key: correct the clock, or remove the key that is newer than now")]
    ClockBehind,
    #[error("the ring changed after the pending version was created: remove AWSPENDING from it and rotate again")]
    NotNext,
}

impl Keyring {
    /// Returns the ring after one rotation, and the move that the rotation made. `age` is the time
    /// since this ring became current. If a key is pending, the rotation promotes it. Otherwise it
    /// adds `secret` under a kid made from `now`. In a ring that signs, it also removes the retired
    /// keys whose tokens have expired.
    pub fn rotated(
        &self,
        ring_use: RingUse,
        age: Duration,
        now: Timestamp,
        secret: SecretString,
    ) -> Result<(Self, Move), RotationError> {
        if let Some(pending) = self.pending_key() {
            if age < PROPAGATION_TIME {
                return Err(RotationError::TooSoon);
            }
            return Ok((self.with_current(pending), Move::Promoted));
        }
        let kid = kid_from(now);
        if self.kids().any(|held| made_at(held) >= made_at(&kid)) {
            return Err(RotationError::ClockBehind);
        }
        Ok((
            self.with_another(kid, secret, |held| age < RETIREMENT_TIME || !self.may_leave(ring_use, held)),
            Move::Added,
        ))
    }

    /// Checks that `next` is the same ring, or this ring after one rotation. Rejects `next` if the
    /// ring was changed manually after `next` was created.
    pub fn permits(&self, ring_use: RingUse, next: &Self) -> Result<(), RotationError> {
        let held = |kid: &Kid| next.get(kid.as_str()) == self.get(kid.as_str());
        let (kept, gone): (Vec<_>, Vec<_>) = self.kids().partition(|kid| next.get(kid.as_str()).is_some());
        let joined: Vec<_> = next.kids().filter(|kid| self.get(kid.as_str()).is_none()).collect();
        let (current, next_current) = (self.current().0, next.current().0);
        let follows = match *joined {
            [] => gone.is_empty() && (next_current == current || Some(next_current) == self.pending_key()),
            [joined] => {
                let is_newest = self.kids().all(|kid| made_at(kid) < made_at(joined));
                is_newest && next_current == current && gone.iter().all(|kid| self.may_leave(ring_use, kid))
            }
            _ => false,
        };
        if follows && kept.into_iter().all(held) { Ok(()) } else { Err(RotationError::NotNext) }
    }

    /// Returns the newest key that a rotation added after the current one.
    fn pending_key(&self) -> Option<&Kid> {
        let current = self.current().0;
        self.other_kids().filter(|kid| made_at(kid) > made_at(current)).max_by_key(|kid| made_at(kid))
    }

    /// Returns true only if a newer key of a rotation is current. Keys that an operator added may
    /// be pending, so only an operator removes them.
    fn may_leave(&self, ring_use: RingUse, kid: &Kid) -> bool {
        let is_managed = kid.as_str() == FIRST || made_at(kid).is_some();
        ring_use == RingUse::Signs && is_managed && made_at(kid) < made_at(self.current().0)
    }

    fn kids(&self) -> impl Iterator<Item = &Kid> {
        self.other_kids().chain([self.current().0])
    }
}

/// Names a key by the time to the millisecond, such as `k20261122104500123`, so that a ring never
/// reuses a name.
fn kid_from(now: Timestamp) -> Kid {
    let digits = now.to_string().chars().filter(char::is_ascii_digit).collect::<String>();
    Kid::parse(&format!("k{digits}")).expect("k and 17 digits are a valid kid")
}

/// Returns the time in a kid that a rotation made. Other kids sort first.
fn made_at(kid: &Kid) -> Option<&str> {
    let digits = &kid.as_str()[1..];
    (digits.len() == 17 && digits.bytes().all(|byte| byte.is_ascii_digit())).then_some(digits)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    /// How long a process may use a ring that it cannot refetch, in milliseconds.
    const MAX_STALE: i64 = 60 * 60_000;
    /// Maximum lifetime of a token with the leeway of its verification, in milliseconds.
    const TOKEN_LIFE: i64 = 60 * 60_000 + 30_000;
    /// How long a process caches a ring, in milliseconds.
    const CACHE_LIFE: i64 = 5 * 60_000;

    fn at(millis: i64) -> Timestamp {
        Timestamp::from_millis(1_795_000_000_000 + millis).unwrap()
    }

    /// The versions of a ring's secret in Secrets Manager.
    struct Versions {
        of: RingUse,
        made: BTreeMap<u8, Keyring>,
        /// The versions that were current, each with the time at which it became current.
        current: Vec<(i64, u8)>,
        pending: Option<u8>,
        secrets: u64,
    }

    impl Versions {
        fn new(of: RingUse) -> Self {
            let ring = Keyring::single("k1", "s".repeat(64)).unwrap();
            Self { of, made: BTreeMap::from([(0, ring)]), current: vec![(0, 0)], pending: None, secrets: 0 }
        }

        fn ring_at(&self, millis: i64) -> &Keyring {
            let (_, version) =
                self.current.iter().rev().find(|(since, _)| *since <= millis).unwrap_or(&self.current[0]);
            &self.made[version]
        }

        fn create(&mut self, version: u8, now: i64) {
            let (since, current) = self.current[self.current.len() - 1];
            if self.made.contains_key(&version) {
                return;
            }
            self.pending = Some(version);
            self.secrets += 1;
            let (age, secret) = (Duration::from_millis((now - since).unsigned_abs()), format!("{:064}", self.secrets));
            if let Ok((next, _)) = self.made[&current].rotated(self.of, age, at(now), secret.into()) {
                self.made.insert(version, next);
            }
        }

        fn finish(&mut self, version: u8, now: i64) {
            let (_, current) = self.current[self.current.len() - 1];
            let Some(next) = self.made.get(&version).filter(|_| self.pending == Some(version)) else { return };
            if version != current && self.made[&current].permits(self.of, next).is_ok() {
                self.current.push((now, version));
            }
        }
    }

    /// Runs steps in any order, each after a pause in minutes, and returns their times. Version 0
    /// means the version that is due: a new version to create, or the pending version to finish.
    fn run(of: RingUse, steps: &[(i64, bool, u8)]) -> (Versions, Vec<i64>) {
        let (mut versions, mut now, mut times) = (Versions::new(of), 0, vec![0]);
        for (pause, creates, version) in steps {
            now += pause * 60_000 + 1;
            times.push(now);
            let fresh = 100 + u8::try_from(times.len()).unwrap();
            match (*creates, *version) {
                (true, 0) => versions.create(fresh, now),
                (false, 0) => versions.finish(versions.pending.unwrap_or_default(), now),
                (true, version) => versions.create(version, now),
                (false, version) => versions.finish(version, now),
            }
        }
        (versions, times)
    }

    fn steps() -> impl Strategy<Value = Vec<(i64, bool, u8)>> {
        let pause = prop_oneof![0..4_i64, 0..12_i64, 0..200_i64];
        // A few fixed versions, so that a step of one version is repeated after steps of others.
        let version = prop_oneof![3 => Just(0), 1 => 1..9_u8];
        prop::collection::vec((pause, any::<bool>(), version), 0..40)
    }

    proptest! {
        #[test]
        fn tokens_verify_until_expiry_in_any_step_order(steps in steps()) {
            let (versions, times) = run(RingUse::Signs, &steps);
            for minted in &times {
                for stale in [0, CACHE_LIFE, MAX_STALE] {
                    let (kid, secret) = versions.ring_at(minted - stale).current();
                    let ends = minted + TOKEN_LIFE;
                    for presented in times.iter().copied().filter(|time| (*minted..ends).contains(time)).chain([ends]) {
                        prop_assert_eq!(versions.ring_at(presented).get(kid.as_str()), Some(secret));
                    }
                }
                // No process gets a token whose key it cannot have.
                let (kid, _) = versions.ring_at(*minted).current();
                prop_assert!(versions.ring_at(minted - CACHE_LIFE).get(kid.as_str()).is_some());
            }
        }

        #[test]
        fn sealed_values_open_in_any_step_order(steps in steps()) {
            let (versions, times) = run(RingUse::Seals, &steps);
            for sealed in &times {
                for stale in [0, CACHE_LIFE, MAX_STALE] {
                    let (kid, secret) = versions.ring_at(sealed - stale).current();
                    for opened in times.iter().filter(|time| *time >= sealed) {
                        prop_assert_eq!(versions.ring_at(*opened).get(kid.as_str()), Some(secret));
                    }
                }
            }
        }

        #[test]
        fn kid_never_names_two_keys(steps in steps(), signs: bool) {
            let (versions, _) = run(if signs { RingUse::Signs } else { RingUse::Seals }, &steps);
            let mut known = BTreeMap::new();
            for (_, version) in &versions.current {
                let ring = &versions.made[version];
                for kid in ring.other_kids().chain([ring.current().0]) {
                    let secret = ring.get(kid.as_str()).unwrap();
                    prop_assert_eq!(*known.entry(kid.clone()).or_insert(secret), secret, "{}", kid);
                }
            }
        }
    }

    #[test]
    fn rotation_adds_promotes_and_removes_in_turn() {
        let kids = |ring: &Keyring| {
            let others: Vec<_> = ring.other_kids().map(Kid::to_string).collect();
            (ring.current().0.to_string(), others)
        };
        let day = Duration::from_hours(24);
        let mut ring = Keyring::single("k1", "s".repeat(64)).unwrap();
        let mut seen = Vec::new();
        for turn in 0..4 {
            let now = at(0).plus(day * turn);
            let (next, moved) = ring.rotated(RingUse::Signs, day, now, format!("{turn:064}").into()).unwrap();
            ring.permits(RingUse::Signs, &next).unwrap();
            seen.push((moved, kids(&next)));
            ring = next;
        }
        let (first, third) = (kid_from(at(0)).to_string(), kid_from(at(0).plus(day * 2)).to_string());
        let expected = [
            (Move::Added, ("k1".to_owned(), vec![first.clone()])),
            (Move::Promoted, (first.clone(), vec!["k1".to_owned()])),
            (Move::Added, (first.clone(), vec![third.clone()])),
            (Move::Promoted, (third, vec![first])),
        ];
        assert_eq!(seen, expected);
    }

    #[test]
    fn manually_changed_ring_is_not_overwritten() {
        let ring = |members: &[(&str, &str)]| {
            let members = members.iter().map(|(name, text)| ((*name).to_owned(), text.repeat(32)));
            let mut members: BTreeMap<_, _> = members.collect();
            members.insert("current".to_owned(), "k1".to_owned());
            Keyring::try_from(members).unwrap()
        };
        let (next, _) =
            ring(&[("k1", "a")]).rotated(RingUse::Seals, Duration::ZERO, at(0), "n".repeat(64).into()).unwrap();
        assert_eq!(ring(&[("k1", "a")]).permits(RingUse::Seals, &next), Ok(()));
        for changed in [ring(&[("k1", "a"), ("k2", "b")]), ring(&[("k1", "c")])] {
            assert_eq!(changed.permits(RingUse::Seals, &next), Err(RotationError::NotNext));
        }
        let (promoted, _) = next.rotated(RingUse::Seals, PROPAGATION_TIME, at(1), "m".repeat(64).into()).unwrap();
        assert_eq!(
            ring(&[("k1", "a")]).permits(RingUse::Seals, &promoted),
            Err(RotationError::NotNext),
            "the promoted key is unknown"
        );
    }

    #[test]
    fn manual_change_wins_over_a_pending_ring() {
        let ring = |current: &str, members: &[&str]| {
            let members = members.iter().map(|name| ((*name).to_owned(), format!("{name:0>64}")));
            let mut members: BTreeMap<_, _> = members.collect();
            members.insert("current".to_owned(), current.to_owned());
            Keyring::try_from(members).unwrap()
        };
        let (a, b) = ("k20261122104500001", "k20261122104500002");
        for of in [RingUse::Signs, RingUse::Seals] {
            let next = ring(a, &["k1", a, b]);
            assert_eq!(ring(a, &["k1", a]).permits(of, &next), Ok(()));
            for (by_hand, why) in [
                (ring(a, &[a]), "a key that was removed would return"),
                (ring(a, &["k1", a, "k2"]), "a key that was added would be lost"),
                (ring("k2", &["k1", a, "k2"]), "another key was promoted"),
                (ring("k1", &["k1", a]), "an older key was made current again"),
                (ring(b, &["k1", a, b]), "the ring is one step further"),
            ] {
                assert_eq!(by_hand.permits(of, &next), Err(RotationError::NotNext), "{why}");
            }
            let promoted = ring(b, &["k1", a, b]);
            assert_eq!(ring(a, &["k1", a, b]).permits(of, &promoted), Ok(()));
            assert_eq!(ring(a, &[a, b]).permits(of, &promoted), Err(RotationError::NotNext));
            assert_eq!(ring(a, &["k1", a]).permits(of, &promoted), Err(RotationError::NotNext));
            // Secrets Manager tests the function with the current ring.
            assert_eq!(promoted.permits(of, &promoted), Ok(()));
        }
    }

    #[test]
    fn manually_added_key_is_never_removed() {
        let members = [("k1", "1"), ("k2", "2"), ("k20261022104500001", "3")];
        let members = members.map(|(name, text)| (name.to_owned(), text.repeat(64)));
        let mut members = BTreeMap::from(members);
        members.insert("current".to_owned(), "k20261022104500001".to_owned());
        let ring = Keyring::try_from(members).unwrap();
        let (next, _) = ring.rotated(RingUse::Signs, RETIREMENT_TIME, at(0), "n".repeat(64).into()).unwrap();
        assert!(next.get("k2").is_some() && next.get("k1").is_none());
        assert_eq!(ring.permits(RingUse::Signs, &next), Ok(()));
    }

    #[test]
    fn early_promotion_and_clock_skew_are_rejected() {
        let ring = Keyring::single("k1", "s".repeat(64)).unwrap();
        let another = |ring: &Keyring, age, now| ring.rotated(RingUse::Signs, age, now, "n".repeat(64).into());
        let (added, _) = another(&ring, Duration::ZERO, at(0)).unwrap();
        let almost = PROPAGATION_TIME.saturating_sub(Duration::from_millis(1));
        assert_eq!(another(&added, almost, at(0)).unwrap_err(), RotationError::TooSoon);
        let (promoted, moved) = another(&added, PROPAGATION_TIME, at(0)).unwrap();
        assert_eq!(moved, Move::Promoted);
        assert_eq!(another(&promoted, PROPAGATION_TIME, at(0)).unwrap_err(), RotationError::ClockBehind);
    }
}

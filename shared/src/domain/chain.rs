//! The audit log's chain.
//!
//! A worker, the only function that holds the ring `audit`, appends links to the chain. Each
//! link holds the digests of some events and the hash of the previous link, and has a MAC.
//! [`check`](super::check) therefore finds every item that was changed, dropped, inserted or
//! reordered. An attacker who recomputes the hashes lacks the key for the MACs.
//!
//! Hashed content has a unique encoding: numbers take eight bytes, and texts follow their lengths.

use std::{collections::BTreeMap, fmt, time::Duration};

use aws_lc_rs::{digest, hmac};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Id, Invalid, Keyring, Timestamp, hex::hex};

const EVENT: &[u8] = b"karta audit event 1\0";
const LINK: &[u8] = b"karta audit link 1\0";
/// The `previous` hash of an organization's first link.
const GENESIS: Hash32 = Hash32([0; 32]);
/// How long an event may wait. The worker runs every minute.
const MAX_WAIT: Duration = Duration::from_mins(10);

/// SHA-256 or HMAC-SHA256, written as 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Hash32([u8; 32]);

impl Hash32 {
    /// Hashes everything that is stored of an event, in an encoding that differs between any two
    /// items.
    pub fn for_event(encoded: &[u8]) -> Self {
        Self::digest(EVENT, encoded)
    }

    fn digest(kind: &[u8], content: &[u8]) -> Self {
        let mut hashing = digest::Context::new(&digest::SHA256);
        hashing.update(kind);
        hashing.update(content);
        Self(hashing.finish().as_ref().try_into().expect("SHA-256 has 32 bytes"))
    }
}

impl fmt::Display for Hash32 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

impl fmt::Debug for Hash32 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl TryFrom<String> for Hash32 {
    type Error = Invalid;

    fn try_from(text: String) -> Result<Self, Invalid> {
        let invalid = Invalid::new("must be 64 digits out of 0-9 and a-f");
        if text.len() != 64 || !text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(invalid);
        }
        let mut bytes = [0; 32];
        for (at, byte) in bytes.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&text[2 * at..2 * at + 2], 16).map_err(|_| invalid.clone())?;
        }
        Ok(Self(bytes))
    }
}

impl From<Hash32> for String {
    fn from(hash: Hash32) -> Self {
        hash.to_string()
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChainedEvent {
    /// The time and the id of the event.
    pub sk: String,
    pub digest: Hash32,
}

/// The first link has the number 1.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Link {
    pub n: u64,
    pub at: Timestamp,
    pub events: Vec<ChainedEvent>,
    pub previous: Hash32,
    /// Covers the organization, all fields above, and `kid`.
    pub hash: Hash32,
    /// The key of the ring `audit` that made `mac`.
    pub kid: String,
    /// HMAC-SHA256 of `hash`.
    pub mac: Hash32,
}

impl Link {
    /// A transaction has at most 100 items: the link, its anchor, and two items for each event.
    pub const MAX_EVENTS: usize = 45;

    /// Creates the link after `head`, which is `None` for the first link.
    pub fn after(
        head: Option<&Self>,
        organization: Id,
        at: Timestamp,
        events: Vec<ChainedEvent>,
        ring: &Keyring,
    ) -> Self {
        let (kid, secret) = ring.current();
        let mut link = Self {
            n: head.map_or(1, |head| head.n.saturating_add(1)),
            at,
            events,
            previous: head.map_or(GENESIS, |head| head.hash),
            hash: GENESIS,
            kid: kid.to_string(),
            mac: GENESIS,
        };
        link.hash = link.recomputed(organization);
        let mac = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret), &link.hash.0);
        link.mac = Hash32(mac.as_ref().try_into().expect("HMAC-SHA256 has 32 bytes"));
        link
    }

    /// Computes the hash of the content.
    pub fn recomputed(&self, organization: Id) -> Hash32 {
        let mut content = Vec::with_capacity(128 + self.events.len() * 96);
        content.extend(organization.get().to_be_bytes());
        content.extend(self.n.to_be_bytes());
        content.extend(self.at.as_millis().to_be_bytes());
        content.extend(self.previous.0);
        push_text(&mut content, &self.kid);
        content.extend((self.events.len() as u64).to_be_bytes());
        for event in &self.events {
            push_text(&mut content, &event.sk);
            content.extend(event.digest.0);
        }
        Hash32::digest(LINK, &content)
    }

    /// Returns whether the hash matches the content and the link follows `before`, the hash of the
    /// previous link (`None` for the first).
    pub(super) fn follows(&self, organization: Id, before: Option<Hash32>) -> bool {
        self.previous == before.unwrap_or(GENESIS) && self.recomputed(organization) == self.hash
    }

    /// Returns `None` if the ring does not hold the key.
    pub(super) fn is_genuine(&self, ring: &Keyring) -> Option<bool> {
        let key = hmac::Key::new(hmac::HMAC_SHA256, ring.get(&self.kid)?);
        Some(hmac::verify(&key, &self.hash.0, &self.mac.0).is_ok())
    }
}

fn push_text(content: &mut Vec<u8>, text: &str) {
    content.extend((text.len() as u64).to_be_bytes());
    content.extend(text.as_bytes());
}

/// A copy of a link's hash and MAC in an append-only table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Anchor {
    pub n: u64,
    pub hash: Hash32,
    pub kid: String,
    pub mac: Hash32,
    pub at: Timestamp,
}

impl From<&Link> for Anchor {
    fn from(link: &Link) -> Self {
        Self { n: link.n, hash: link.hash, kid: link.kid.clone(), mac: link.mac, at: link.at }
    }
}

/// The chain state that an event's item records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EventMark {
    pub digest: Hash32,
    pub link: Option<u64>,
    /// Whether the item has the attribute `unchained`.
    pub unchained: bool,
    /// Whether the item has the key and the attributes of an event and, while it is unchained, the index
    /// key that the worker reads.
    pub sound: bool,
}

/// The chain state of an event, as far as it can be verified without the key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
pub struct Chain {
    pub state: ChainState,
    pub link: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ChainState {
    /// Written in the last minutes and not chained yet.
    Pending,
    /// Unchanged since it was chained.
    Verified,
    /// The event or the chain around it was tampered with, or the event was kept from being
    /// chained.
    Broken,
}

impl Chain {
    /// Derives the chain state of an event. `claimed` is the link into which the worker put the
    /// event, and `links` hold that link and the previous one. Functions that write events can
    /// write neither, so an event that is rewritten as a new one still belongs to its link.
    pub fn at(
        organization: Id,
        sk: &str,
        mark: &EventMark,
        claimed: Option<u64>,
        links: &BTreeMap<u64, Link>,
        now: Timestamp,
    ) -> Self {
        let state = match (claimed, mark.link) {
            _ if !mark.sound => ChainState::Broken,
            (None, None) if mark.unchained && !is_overdue(sk, now) => ChainState::Pending,
            (Some(n), named) => {
                // The event was read before the claim and may have been chained in between.
                let agrees = named.map_or(mark.unchained, |named| named == n && !mark.unchained);
                let listed = links.get(&n).filter(|link| link.n == n).is_some_and(|link| {
                    let before = n.checked_sub(1).and_then(|n| links.get(&n));
                    (n == 1 || before.is_some())
                        && link.follows(organization, before.map(|link| link.recomputed(organization)))
                        && link.events.iter().any(|event| event.sk == sk && event.digest == mark.digest)
                });
                if agrees && listed { ChainState::Verified } else { ChainState::Broken }
            }
            (None, _) => ChainState::Broken,
        };
        Self { state, link: claimed.or(mark.link) }
    }
}

/// Compares with the time in the sort key.
pub(super) fn is_overdue(sk: &str, now: Timestamp) -> bool {
    let at = sk.split_once('#').and_then(|(at, _)| at.parse::<Timestamp>().ok());
    at.is_none_or(|at| at.plus(MAX_WAIT) < now)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ORGANIZATION: u64 = 7;

    fn organization() -> Id {
        Id::new(ORGANIZATION).unwrap()
    }

    fn ring() -> Keyring {
        Keyring::single("k1", "0123456789abcdef".repeat(2)).unwrap()
    }

    fn event(sk: &str) -> ChainedEvent {
        ChainedEvent { sk: sk.to_owned(), digest: Hash32::for_event(sk.as_bytes()) }
    }

    fn at() -> Timestamp {
        "2026-11-22T00:00:00Z".parse().unwrap()
    }

    fn links() -> BTreeMap<u64, Link> {
        let first = Link::after(None, organization(), at(), vec![event("a"), event("b")], &ring());
        let second = Link::after(Some(&first), organization(), at(), vec![event("c"), event("d")], &ring());
        BTreeMap::from([(1, first), (2, second)])
    }

    fn state(sk: &str, mark: EventMark, claimed: Option<u64>, links: &BTreeMap<u64, Link>) -> ChainState {
        Chain::at(organization(), sk, &mark, claimed, links, at()).state
    }

    fn mark(sk: &str, link: Option<u64>) -> EventMark {
        EventMark { digest: event(sk).digest, link, unchained: link.is_none(), sound: true }
    }

    #[test]
    fn hashes_never_change() {
        // Stored chains depend on these values, which were computed with Python's hashlib and hmac.
        let link = &links()[&2];
        assert_eq!(event("c").digest.to_string(), "a3d329b2b537abee51586ed645920fa66b8bf3aef4b5da44c97f9ed9c9efc597");
        assert_eq!(link.hash.to_string(), "eaf142165c2c5211baa7af435aa3f2e017de44d5e0ddd096e3bee8fea74f24b3");
        assert_eq!(link.mac.to_string(), "0c99b71353d9088ff00e527a083129a9ddc9a1d9a00fc935f07e7a8f10e2a387");
    }

    #[test]
    fn event_is_verified_only_in_its_own_link() {
        let links = links();
        for (sk, n) in [("a", 1), ("b", 1), ("c", 2), ("d", 2)] {
            assert_eq!(state(sk, mark(sk, Some(n)), Some(n), &links), ChainState::Verified);
            assert_eq!(state(sk, mark(sk, None), Some(n), &links), ChainState::Verified, "chained since it was read");
            assert_eq!(state(sk, mark("x", Some(n)), Some(n), &links), ChainState::Broken, "changed");
            assert_eq!(state(sk, mark("x", None), Some(n), &links), ChainState::Broken, "rewritten");
            assert_eq!(state(sk, mark(sk, Some(3 - n)), Some(n), &links), ChainState::Broken, "names another link");
            assert_eq!(state(sk, mark(sk, Some(3 - n)), Some(3 - n), &links), ChainState::Broken, "not listed");
            assert_eq!(state(sk, mark(sk, Some(n)), None, &links), ChainState::Broken, "no claim");
            let still_unchained = EventMark { unchained: true, ..mark(sk, Some(n)) };
            assert_eq!(state(sk, still_unchained, Some(n), &links), ChainState::Broken, "chained and unchained");
        }
        let lost = EventMark { unchained: false, ..mark("e", None) };
        assert_eq!(state("e", lost, None, &links), ChainState::Broken, "neither chained nor unchained");
        for missing in [0, 3, u64::MAX] {
            assert_eq!(state("e", mark("e", Some(missing)), Some(missing), &links), ChainState::Broken);
        }
    }

    #[test]
    fn event_waits_for_at_most_ten_minutes() {
        for (sk, expected) in [
            ("2026-11-21T23:50:00.000Z#1", ChainState::Pending),
            ("2026-11-21T23:49:59.999Z#1", ChainState::Broken),
            ("2027-01-01T00:00:00.000Z#1", ChainState::Pending),
            ("e", ChainState::Broken),
            ("e#1", ChainState::Broken),
        ] {
            assert_eq!(state(sk, mark(sk, None), None, &links()), expected, "{sk}");
            let unsound = EventMark { sound: false, ..mark(sk, None) };
            assert_eq!(state(sk, unsound, None, &links()), ChainState::Broken, "{sk}, unsound");
        }
        let unsound = EventMark { sound: false, ..mark("a", Some(1)) };
        assert_eq!(state("a", unsound, Some(1), &links()), ChainState::Broken);
    }

    #[test]
    fn damaged_link_breaks_its_events() {
        let whole = links();
        let broken = |edit: &dyn Fn(&mut BTreeMap<u64, Link>)| {
            let mut links = whole.clone();
            edit(&mut links);
            state("c", mark("c", Some(2)), Some(2), &links) == ChainState::Broken
        };
        assert!(!broken(&|_| {}));
        assert!(broken(&|links| links.get_mut(&2).unwrap().events.truncate(1)), "an event of the same link is gone");
        assert!(broken(&|links| links.get_mut(&1).unwrap().events.truncate(1)), "one of the link before is gone");
        assert!(broken(&|links| drop(links.remove(&1))), "the link before is gone");
        assert!(broken(&|links| links.get_mut(&2).unwrap().n = 3), "the link has another number");
        assert!(broken(&|links| {
            let other = Link::after(None, organization(), at(), vec![event("x")], &ring());
            links.insert(1, other);
        }));
    }

    proptest! {
        #[test]
        fn hash_round_trips(bytes: [u8; 32], other in "[0-9a-fA-F]{0,65}") {
            prop_assert_eq!(Hash32::try_from(Hash32(bytes).to_string()).unwrap().0, bytes);
            if let Ok(hash) = Hash32::try_from(other.clone()) {
                prop_assert_eq!(hash.to_string(), other);
            }
        }

        #[test]
        fn no_two_links_share_a_hash(one in content(), other in content()) {
            prop_assert_eq!(one.hash() == other.hash(), one == other);
        }
    }

    #[derive(Debug, PartialEq, Eq)]
    struct Content {
        organization: u64,
        link: Link,
    }

    impl Content {
        fn hash(&self) -> Hash32 {
            self.link.recomputed(Id::new(self.organization).unwrap())
        }
    }

    fn content() -> impl Strategy<Value = Content> {
        let hash = || (0..2_u8).prop_map(|byte| Hash32([byte; 32]));
        let event = ("[ab]{0,2}", hash()).prop_map(|(sk, digest)| ChainedEvent { sk, digest });
        let events = prop::collection::vec(event, 0..3);
        (1..3_u64, 0..2_u64, 0..2_i64, events, hash(), "[ab]{0,2}").prop_map(
            |(organization, n, at, events, previous, kid)| {
                let at = Timestamp::from_millis(at).unwrap();
                Content { organization, link: Link { n, at, events, previous, hash: GENESIS, kid, mac: GENESIS } }
            },
        )
    }
}

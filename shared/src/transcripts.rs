//! Seals and opens the content of sessions: messages and events of turns.
//!
//! Each organization has its own subkey, derived from the ring's key. Content is bound to its
//! organization, session and turn and to its place in the turn, so that it does not open if it is
//! moved to another item. The kid is stored with it.
//!
//! The content is bytes here: callers decide on their format.

use zeroize::Zeroizing;

use crate::{
    domain::{Entropy, Id, Keyring, Kid, MessageRole, SessionId, TurnId},
    sealing::{self, SealingKey},
    store::{Ciphertext, SealedContent},
};

/// NEVER CHANGE: stored content is sealed for this purpose.
const PURPOSE: &[u8] = b"karta sessions";

/// A turn whose content is sealed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TranscriptContext<'a> {
    pub organization: Id,
    pub session: &'a SessionId,
    pub turn: &'a TurnId,
}

/// The place of content in its turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TranscriptPart {
    Message(MessageRole),
    /// A batch of events, by the number of its first event.
    Events {
        first_seq: u32,
    },
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TranscriptUnsealError {
    /// The cached ring may be older than the content.
    #[error(
        "content of a session is sealed under {0}, which the ring sealing-sessions does not hold: add that key again, not as current"
    )]
    UnknownKid(Kid),
    #[error("content of a session was changed or moved from another item")]
    Tampered,
}

impl TranscriptContext<'_> {
    /// Returns a text that is unique to this place, because its parts contain no slashes.
    fn associated_data(self, part: TranscriptPart) -> String {
        let Self { organization, session, turn } = self;
        match part {
            TranscriptPart::Message(role) => format!("{organization}/{session}/{turn}/message/{}", role.as_str()),
            TranscriptPart::Events { first_seq } => format!("{organization}/{session}/{turn}/events/{first_seq}"),
        }
    }

    fn subkey(self, secret: &[u8]) -> SealingKey {
        sealing::derive_key(secret, self.organization.to_string().as_bytes(), PURPOSE)
    }

    pub fn seal(self, ring: &Keyring, entropy: &dyn Entropy, part: TranscriptPart, content: &[u8]) -> SealedContent {
        let (kid, secret) = ring.current();
        let mut nonce = [0; 12];
        entropy.fill(&mut nonce);
        let sealed = self.subkey(secret).seal(nonce, self.associated_data(part).as_bytes(), content);
        SealedContent { kid: kid.clone(), ciphertext: Ciphertext::new(sealed) }
    }

    /// Opens under any key of the ring. The content is wiped from memory when it is dropped.
    pub fn open(
        self,
        ring: &Keyring,
        part: TranscriptPart,
        sealed: &SealedContent,
    ) -> Result<Zeroizing<Vec<u8>>, TranscriptUnsealError> {
        let secret =
            ring.get(sealed.kid.as_str()).ok_or_else(|| TranscriptUnsealError::UnknownKid(sealed.kid.clone()))?;
        self.subkey(secret)
            .open(self.associated_data(part).as_bytes(), sealed.ciphertext.as_bytes())
            .map_err(|_| TranscriptUnsealError::Tampered)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::entropy::SeededEntropy;

    const CONTENT: &[u8] = b"the quick brown fox";

    fn ring(members: &str) -> Keyring {
        let (a, b) = ("a".repeat(32), "b".repeat(32));
        serde_json::from_str(&members.replace("<a>", &a).replace("<b>", &b)).unwrap()
    }

    /// Returns the session and the turn with this number.
    fn ids(session: u8, turn: u8) -> (SessionId, TurnId) {
        (
            SessionId::parse(&format!("sess_{session:032x}")).unwrap(),
            TurnId::parse(&format!("turn_{turn:032x}")).unwrap(),
        )
    }

    fn part(part: u8) -> TranscriptPart {
        match part {
            0 => TranscriptPart::Message(MessageRole::User),
            1 => TranscriptPart::Message(MessageRole::Assistant),
            seq => TranscriptPart::Events { first_seq: seq.into() },
        }
    }

    fn context(organization: u64, (session, turn): &(SessionId, TurnId)) -> TranscriptContext<'_> {
        TranscriptContext { organization: Id::new(organization).unwrap(), session, turn }
    }

    #[test]
    fn content_opens_under_any_ring_key() {
        let (old, both) = (ring(r#"{"current":"k1","k1":"<a>"}"#), ring(r#"{"current":"k2","k1":"<a>","k2":"<b>"}"#));
        let (ids, entropy, user) = (ids(1, 2), SeededEntropy::new(1), part(0));
        let here = context(7, &ids);
        for (sealed, kid) in
            [(here.seal(&old, &entropy, user, CONTENT), "k1"), (here.seal(&both, &entropy, user, CONTENT), "k2")]
        {
            assert_eq!(sealed.kid.as_str(), kid);
            assert_eq!(&**here.open(&both, user, &sealed).unwrap(), CONTENT);
        }
        let new = here.seal(&both, &entropy, user, CONTENT);
        assert_eq!(here.open(&old, user, &new).unwrap_err(), TranscriptUnsealError::UnknownKid(new.kid));
    }

    #[test]
    fn stored_content_still_opens() {
        // From Python: HKDF-SHA256("a" * 32, "7", "seal:karta sessions"), AES-256-GCM with the
        // nonce 0..11 and "7/sess_0…01/turn_0…02/events/3".
        let stored = "01000102030405060708090a0b4f2cabb63bb319ff985a1b94aa7a0471ee9a7901d05ac8e5049073a4a3c57065fc310c";
        let bytes =
            stored.as_bytes().chunks(2).map(|hex| u8::from_str_radix(str::from_utf8(hex).unwrap(), 16).unwrap());
        let ciphertext = Ciphertext::new(bytes.collect());
        let sealed = SealedContent { kid: Kid::parse("k1").unwrap(), ciphertext };
        let opened = context(7, &ids(1, 2)).open(&ring(r#"{"current":"k1","k1":"<a>"}"#), part(3), &sealed);
        assert_eq!(&**opened.unwrap(), CONTENT);
    }

    #[test]
    fn debug_output_shows_no_content() {
        let ring = ring(r#"{"current":"k1","k1":"<a>"}"#);
        let sealed = context(7, &ids(1, 2)).seal(&ring, &SeededEntropy::new(1), part(0), CONTENT);
        assert!(format!("{sealed:?}").contains("[sealed]"));
    }

    proptest! {
        #[test]
        fn content_opens_only_in_its_place(
            here in (1..4_u64, 0..3_u8, 0..3_u8, 0..6_u8),
            there in (1..4_u64, 0..3_u8, 0..3_u8, 0..6_u8),
            content in prop::collection::vec(any::<u8>(), 0..200),
            seed: u64,
        ) {
            let ring = ring(r#"{"current":"k1","k1":"<a>"}"#);
            let (ids_here, ids_there) = (ids(here.1, here.2), ids(there.1, there.2));
            let entropy = SeededEntropy::new(seed);
            let sealed = context(here.0, &ids_here).seal(&ring, &entropy, part(here.3), &content);
            let opened = context(there.0, &ids_there).open(&ring, part(there.3), &sealed);
            prop_assert_eq!(opened.is_ok(), here == there);
            if let Ok(opened) = opened {
                prop_assert_eq!(&**opened, &content[..]);
            }
        }
    }
}

//! Seals and opens customers' provider keys ("bring your own key").
//!
//! Each organization has its own subkey, derived from the ring's key. A sealed key is bound to its
//! organization, provider and id, so that it does not open if it is moved to another item. The kid
//! is stored with it.

use std::str;

use secrecy::{ExposeSecret, SecretString};

use crate::{
    domain::{Entropy, Id, Keyring, Kid, Provider},
    sealing::{self, SealingKey},
    store::{Ciphertext, SealedModelKey},
};

/// NEVER CHANGE: stored keys are sealed for this purpose.
const PURPOSE: &[u8] = b"karta byok";

/// A sealed key is bound to these values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ModelKeyContext {
    pub organization: Id,
    pub provider: Provider,
    pub id: Id,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ModelKeyUnsealError {
    /// The cached ring may be older than the sealed key.
    #[error(
        "a provider key is sealed under {0}, which the ring sealing-byok does not hold: add that key again, not as current"
    )]
    UnknownKid(Kid),
    #[error("a provider key cannot be unsealed: it was changed, or it belongs to another item")]
    Tampered,
}

impl ModelKeyContext {
    /// Returns a text that is unique to this context, because its parts contain no slashes.
    fn associated_data(self) -> String {
        format!("{}/{}/{}", self.organization, self.provider, self.id)
    }

    fn subkey(self, secret: &[u8]) -> SealingKey {
        sealing::derive_key(secret, self.organization.to_string().as_bytes(), PURPOSE)
    }

    pub fn seal(self, ring: &Keyring, entropy: &dyn Entropy, plaintext: &str) -> SealedModelKey {
        let (kid, secret) = ring.current();
        let mut nonce = [0; 12];
        entropy.fill(&mut nonce);
        let sealed = self.subkey(secret).seal(nonce, self.associated_data().as_bytes(), plaintext.as_bytes());
        SealedModelKey { provider: self.provider, kid: kid.clone(), ciphertext: Ciphertext::new(sealed) }
    }

    /// Opens under any key of the ring.
    pub fn open(self, ring: &Keyring, sealed: &SealedModelKey) -> Result<SecretString, ModelKeyUnsealError> {
        let secret =
            ring.get(sealed.kid.as_str()).ok_or_else(|| ModelKeyUnsealError::UnknownKid(sealed.kid.clone()))?;
        let opened = self.subkey(secret).open(self.associated_data().as_bytes(), sealed.ciphertext.as_bytes());
        let plaintext = opened.map_err(|_| ModelKeyUnsealError::Tampered)?;
        str::from_utf8(&plaintext).map(SecretString::from).map_err(|_| ModelKeyUnsealError::Tampered)
    }

    /// Returns `None` if the key is already sealed under the ring's current key.
    pub fn reseal(
        self,
        ring: &Keyring,
        entropy: &dyn Entropy,
        sealed: &SealedModelKey,
    ) -> Result<Option<SealedModelKey>, ModelKeyUnsealError> {
        if sealed.kid == *ring.current().0 {
            return Ok(None);
        }
        let plaintext = self.open(ring, sealed)?;
        Ok(Some(self.seal(ring, entropy, plaintext.expose_secret())))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::entropy::SeededEntropy;

    const KEY: &str = "sk-ant-api03-0123456789";

    fn context(organization: u64, provider: Provider, id: u64) -> ModelKeyContext {
        ModelKeyContext { organization: Id::new(organization).unwrap(), provider, id: Id::new(id).unwrap() }
    }

    fn ring(members: &str) -> Keyring {
        let (a, b) = ("a".repeat(32), "b".repeat(32));
        serde_json::from_str(&members.replace("<a>", &a).replace("<b>", &b)).unwrap()
    }

    fn seal(context: ModelKeyContext, ring: &Keyring) -> SealedModelKey {
        context.seal(ring, &SeededEntropy::new(1), KEY)
    }

    #[test]
    fn sealed_key_opens_under_any_ring_key() {
        let (old, both) = (ring(r#"{"current":"k1","k1":"<a>"}"#), ring(r#"{"current":"k2","k1":"<a>","k2":"<b>"}"#));
        let here = context(7, Provider::Anthropic, 9);
        for (sealed, kid) in [(seal(here, &old), "k1"), (seal(here, &both), "k2")] {
            assert_eq!(sealed.kid.as_str(), kid);
            assert_eq!(here.open(&both, &sealed).unwrap().expose_secret(), KEY);
        }
        let resealed = here.reseal(&both, &SeededEntropy::new(2), &seal(here, &old)).unwrap().unwrap();
        assert_eq!((resealed.kid.as_str(), here.open(&both, &resealed).unwrap().expose_secret()), ("k2", KEY));
        assert_eq!(here.reseal(&both, &SeededEntropy::new(2), &resealed), Ok(None));
        let new = seal(here, &both);
        assert_eq!(here.open(&old, &new).unwrap_err(), ModelKeyUnsealError::UnknownKid(new.kid));
    }

    #[test]
    fn sealing_twice_gives_different_values() {
        let (ring, entropy) = (ring(r#"{"current":"k1","k1":"<a>"}"#), SeededEntropy::new(1));
        let here = context(7, Provider::Anthropic, 9);
        assert_ne!(here.seal(&ring, &entropy, KEY), here.seal(&ring, &entropy, KEY));
    }

    #[test]
    fn stored_key_still_opens() {
        // From Python: HKDF-SHA256("a" * 32, "7", "seal:karta byok"), AES-256-GCM with the nonce
        // 0..11 and "7/anthropic/9".
        let stored =
            "01000102030405060708090a0be5f46bcf8ec6c888a7cd46423375d96b0b5531609add8557ab20c76d9e67a892492a0c73d37723";
        let bytes =
            stored.as_bytes().chunks(2).map(|hex| u8::from_str_radix(str::from_utf8(hex).unwrap(), 16).unwrap());
        let sealed = SealedModelKey {
            provider: Provider::Anthropic,
            kid: Kid::parse("k1").unwrap(),
            ciphertext: Ciphertext::new(bytes.collect()),
        };
        let ring = ring(r#"{"current":"k1","k1":"<a>"}"#);
        assert_eq!(context(7, Provider::Anthropic, 9).open(&ring, &sealed).unwrap().expose_secret(), KEY);
    }

    proptest! {
        #[test]
        fn sealed_key_opens_only_in_its_context(
            organization in 1..40_u64, id in 1..40_u64, provider in 0..5_usize,
            other in (1..40_u64, 1..40_u64, 0..5_usize),
        ) {
            let ring = ring(r#"{"current":"k1","k1":"<a>"}"#);
            let here = context(organization, Provider::ALL[provider], id);
            let there = context(other.0, Provider::ALL[other.2], other.1);
            let opened = there.open(&ring, &seal(here, &ring));
            prop_assert_eq!(opened.is_ok(), here == there);
        }
    }
}

//! Sealing (AES-256-GCM) and MACs (HMAC-SHA256) with keys that HKDF-SHA256 derives.
//!
//! Each use derives its own key from (secret, salt, info), so that no other use can open what it
//! sealed. Nonces are arguments, because randomness is injected. With nonces of 96 random bits, a
//! key may seal 2^32 times.

use std::fmt;

use aws_lc_rs::{
    aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, Tag, UnboundKey},
    hkdf, hmac,
};
use zeroize::Zeroizing;

/// The first byte of a sealed value. Later formats get other numbers.
const VERSION: u8 = 1;
const KEY_LEN: usize = 32;

/// Derives a sealing key. `salt` identifies the owner and `info` the purpose; neither is secret.
pub fn derive_key(secret: &[u8], salt: &[u8], info: &[u8]) -> SealingKey {
    SealingKey::new(&derive(secret, salt, [b"seal:", info]))
}

/// Derives a MAC key, which never equals the [`SealingKey`] of the same arguments.
pub fn derive_mac_key(secret: &[u8], salt: &[u8], info: &[u8]) -> Mac {
    let key = derive(secret, salt, [b"mac:", info]);
    Mac(hmac::Key::new(hmac::HMAC_SHA256, &*key))
}

fn derive(secret: &[u8], salt: &[u8], info: [&[u8]; 2]) -> Zeroizing<[u8; KEY_LEN]> {
    let mut key = Zeroizing::new([0; KEY_LEN]);
    hkdf::Salt::new(hkdf::HKDF_SHA256, salt)
        .extract(secret)
        .expand(&info, hkdf::HKDF_SHA256)
        .and_then(|okm| okm.fill(&mut *key))
        .expect("HKDF-SHA256 yields 32 bytes");
    key
}

/// AWS-LC wipes the key when it is dropped.
pub struct SealingKey(LessSafeKey);

/// The value was truncated or changed, has another version, or was sealed under another key or with
/// other associated data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the sealed value cannot be opened")]
pub struct UnsealError;

impl SealingKey {
    fn new(key: &[u8; KEY_LEN]) -> Self {
        Self(LessSafeKey::new(UnboundKey::new(&AES_256_GCM, key).expect("AES-256 takes 32 bytes")))
    }

    /// Returns version byte, nonce, ciphertext and tag: 29 bytes more than the plaintext.
    /// `associated_data` is not stored, but opening requires it: pass the identity of the item, so
    /// that the value cannot be moved to another item. Never use a nonce twice.
    pub fn seal(&self, nonce: [u8; NONCE_LEN], associated_data: &[u8], plaintext: &[u8]) -> Vec<u8> {
        let head = 1 + NONCE_LEN;
        let mut sealed = Vec::with_capacity(head + plaintext.len() + AES_256_GCM.tag_len());
        sealed.push(VERSION);
        sealed.extend_from_slice(&nonce);
        sealed.extend_from_slice(plaintext);
        let tag = self.encrypt(nonce, associated_data, &mut sealed[head..]);
        sealed.extend_from_slice(tag.as_ref());
        sealed
    }

    fn encrypt(&self, nonce: [u8; NONCE_LEN], associated_data: &[u8], in_out: &mut [u8]) -> Tag {
        let (nonce, aad) = (Nonce::assume_unique_for_key(nonce), Aad::from(associated_data));
        self.0.seal_in_place_separate_tag(nonce, aad, in_out).expect("AES-GCM takes up to 64 GiB")
    }

    pub fn open(&self, associated_data: &[u8], sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, UnsealError> {
        let (version, rest) = sealed.split_first().ok_or(UnsealError)?;
        let (nonce, ciphertext) = rest.split_first_chunk::<NONCE_LEN>().ok_or(UnsealError)?;
        if *version != VERSION {
            return Err(UnsealError);
        }
        let mut plaintext = Zeroizing::new(ciphertext.to_vec());
        let len = self
            .0
            .open_in_place(Nonce::assume_unique_for_key(*nonce), Aad::from(associated_data), &mut plaintext)
            .map_err(|_| UnsealError)?
            .len();
        plaintext.truncate(len);
        Ok(plaintext)
    }
}

impl fmt::Debug for SealingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SealingKey([redacted])")
    }
}

/// AWS-LC wipes the key when it is dropped.
pub struct Mac(hmac::Key);

impl Mac {
    /// Returns the whole HMAC-SHA256. If a message joins several values, their boundaries must be
    /// unambiguous.
    pub fn tag(&self, message: &[u8]) -> [u8; 32] {
        let mut tag = [0; 32];
        tag.copy_from_slice(hmac::sign(&self.0, message).as_ref());
        tag
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Mac([redacted])")
    }
}

#[cfg(test)]
mod tests {
    use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
    use proptest::{collection::vec, prelude::*};

    use super::*;

    fn bytes() -> impl Strategy<Value = Vec<u8>> {
        vec(any::<u8>(), 0..80)
    }

    #[test]
    fn every_argument_separates_keys() {
        let tag = |secret, salt, info| derive_mac_key(secret, salt, info).tag(b"message");
        let tags = [tag(b"a", b"b", b"c"), tag(b"x", b"b", b"c"), tag(b"a", b"x", b"c"), tag(b"a", b"b", b"x")];
        for (at, tag) in tags.iter().enumerate() {
            assert!(!tags[..at].contains(tag));
        }
        assert_ne!(*derive(b"a", b"b", [b"seal:", b"c"]), *derive(b"a", b"b", [b"mac:", b"c"]));
    }

    #[test]
    fn derived_keys_never_change() {
        // Stored values were sealed under these bytes. They come from Python's hmac module:
        // HKDF-SHA256("secret", "salt", "seal:info").
        let key = derive(b"secret", b"salt", [b"seal:", b"info"]);
        assert_eq!(URL_SAFE_NO_PAD.encode(*key), "Ey4mzpMAb2uOM2EBzbUGkSjZjOmMX7gzk4r1kBWC7ho");
    }

    #[test]
    fn derived_key_debug_output_is_redacted() {
        let (sealing, mac) = (derive_key(b"secret", b"", b""), derive_mac_key(b"secret", b"", b""));
        assert_eq!(format!("{sealing:?} {mac:?}"), "SealingKey([redacted]) Mac([redacted])");
    }

    proptest! {
        #[test]
        fn sealed_value_opens(nonce: [u8; 12], aad in bytes(), plaintext in bytes()) {
            let key = derive_key(b"secret", b"salt", b"info");
            let sealed = key.seal(nonce, &aad, &plaintext);
            prop_assert_eq!(sealed.len(), plaintext.len() + 29);
            prop_assert_eq!(&**key.open(&aad, &sealed).unwrap(), &plaintext[..]);
        }

        #[test]
        fn changed_value_does_not_open(nonce: [u8; 12], aad in bytes(), other in bytes(), plaintext in bytes(), bit in 0..8_u8) {
            let key = derive_key(b"secret", b"salt", b"info");
            let sealed = key.seal(nonce, &aad, &plaintext);
            prop_assert!(derive_key(b"secret", b"salt", b"other").open(&aad, &sealed).is_err());
            prop_assert_eq!(key.open(&other, &sealed).is_ok(), other == aad);
            prop_assert!(key.open(&aad, &other).is_err());
            for at in 0..sealed.len() {
                prop_assert_eq!(key.open(&aad, &sealed[..at]), Err(UnsealError));
                let mut changed = sealed.clone();
                changed[at] ^= 1_u8 << bit;
                prop_assert_eq!(key.open(&aad, &changed), Err(UnsealError));
            }
        }

        #[test]
        fn tag_is_bound_to_message_and_key(message in bytes(), other in bytes()) {
            let key = derive_mac_key(b"secret", b"salt", b"info");
            let tag = key.tag(&message);
            prop_assert_eq!(key.tag(&message), tag);
            prop_assert_eq!(key.tag(&other) == tag, other == message);
            prop_assert_ne!(derive_mac_key(b"other", b"salt", b"info").tag(&message), tag);
        }
    }
}

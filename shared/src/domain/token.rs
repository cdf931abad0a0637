use std::fmt;

use aws_lc_rs::{digest, hmac};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};

use super::{CredentialKind, Entropy, Invalid, Keyring};

const BRAND: &str = CredentialKind::ApiKey.brand();
const RANDOM_LEN: usize = 26;
const TAG_LEN: usize = 6;
const TOKEN_LEN: usize = BRAND.len() + RANDOM_LEN + TAG_LEN;
/// The brand and six random characters are public.
pub const PREFIX_LEN: usize = BRAND.len() + 6;
const BASE62: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// The plaintext of an API key: `kt_live_`, 26 random base62 characters (154 bits) and a tag, the
/// truncated HMAC-SHA256 of the characters before it. The tag of a value is valid, but its key may
/// be revoked or expired.
#[derive(Debug, Clone)]
pub struct ApiKeyToken(SecretString);

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    #[error("token is not an API key")]
    Shape,
    #[error("token tag is invalid")]
    Tag,
}

impl ApiKeyToken {
    pub fn mint(ring: &Keyring, entropy: &dyn Entropy) -> Self {
        Self::starting_with(BRAND, ring, entropy)
    }

    /// Mints a genuine token with the prefix of another token, to test what a prefix may reveal.
    #[cfg(any(test, feature = "testing"))]
    pub fn mint_under(prefix: &Prefix, ring: &Keyring, entropy: &dyn Entropy) -> Self {
        Self::starting_with(prefix.as_str(), ring, entropy)
    }

    fn starting_with(start: &str, ring: &Keyring, entropy: &dyn Entropy) -> Self {
        let mut token = String::with_capacity(TOKEN_LEN);
        token.push_str(start);
        push_random(&mut token, BRAND.len() + RANDOM_LEN - start.len(), entropy);
        let (_, secret) = ring.current();
        let tag = tag(secret, token.as_bytes());
        token.extend(tag.iter().map(|byte| char::from(*byte)));
        Self(token.into())
    }

    /// Checks shape and tag in microseconds, without I/O. A tag under any key of the ring is valid,
    /// so that tokens survive the ring's rotation.
    pub fn parse(text: &str, ring: &Keyring) -> Result<Self, TokenError> {
        let body = text.strip_prefix(BRAND).ok_or(TokenError::Shape)?;
        if text.len() != TOKEN_LEN || !body.bytes().all(|b| b.is_ascii_alphanumeric()) {
            return Err(TokenError::Shape);
        }
        let (signed, presented) = text.as_bytes().split_at(TOKEN_LEN - TAG_LEN);
        let genuine = ring
            .iter()
            .any(|secret| aws_lc_rs::constant_time::verify_slices_are_equal(&tag(secret, signed), presented).is_ok());
        if genuine { Ok(Self(text.into())) } else { Err(TokenError::Tag) }
    }

    pub fn expose(&self) -> &str {
        self.0.expose_secret()
    }

    pub fn prefix(&self) -> Prefix {
        Prefix(self.expose()[..PREFIX_LEN].to_owned())
    }

    /// Returns the SHA-256 of the token, the key of in-memory caches, which hold no plaintext.
    pub fn fingerprint(&self) -> [u8; 32] {
        let digest = digest::digest(&digest::SHA256, self.expose().as_bytes());
        digest.as_ref().try_into().expect("SHA-256 has 32 bytes")
    }
}

fn tag(secret: &[u8], signed: &[u8]) -> [u8; TAG_LEN] {
    let mac = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret), signed);
    let head: [u8; 8] = mac.as_ref()[..8].try_into().expect("HMAC-SHA256 has 32 bytes");
    let mut number = u64::from_be_bytes(head);
    [(); TAG_LEN].map(|()| {
        let digit = usize::try_from(number % 62).expect("a remainder below 62 fits");
        number /= 62;
        BASE62[digit]
    })
}

/// Draws bytes above the largest multiple of 62 again, so that each character is equally likely.
fn push_random(text: &mut String, count: usize, entropy: &dyn Entropy) {
    let wanted = text.len() + count;
    let mut bytes = [0; 32];
    while text.len() < wanted {
        entropy.fill(&mut bytes);
        let digits = bytes.iter().filter(|byte| **byte < 248).map(|byte| char::from(BASE62[usize::from(byte % 62)]));
        text.extend(digits.take(wanted - text.len()));
    }
    zeroize::Zeroize::zeroize(&mut bytes);
}

/// The first 14 characters of a token, neither secret nor unique. The key is found by them and
/// shown with them.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub struct Prefix(String);

impl Prefix {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for Prefix {
    type Error = Invalid;

    fn try_from(text: String) -> Result<Self, Invalid> {
        let random = text.strip_prefix(BRAND);
        if text.len() == PREFIX_LEN && random.is_some_and(|random| random.bytes().all(|b| b.is_ascii_alphanumeric())) {
            Ok(Self(text))
        } else {
            Err(Invalid::new("must be the first 14 characters of an API key"))
        }
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::entropy::SeededEntropy;

    fn ring(secret: &str) -> Keyring {
        Keyring::single("k1", secret.repeat(32)).unwrap()
    }

    #[test]
    fn minted_token_has_the_documented_shape() {
        let token = ApiKeyToken::mint(&ring("a"), &SeededEntropy::new(7));
        assert_eq!(token.expose().len(), 40);
        assert_eq!(token.prefix().as_str(), &token.expose()[..14]);
        assert!(!format!("{token:?}").contains(&token.expose()[8..]));
    }

    #[test]
    fn token_minted_under_a_prefix_is_genuine() {
        let (ring, entropy) = (ring("a"), SeededEntropy::new(7));
        let token = ApiKeyToken::mint(&ring, &entropy);
        let twin = ApiKeyToken::mint_under(&token.prefix(), &ring, &entropy);
        assert_eq!(ApiKeyToken::parse(twin.expose(), &ring).unwrap().prefix(), token.prefix());
        assert_ne!(twin.expose(), token.expose());
    }

    #[test]
    fn tag_survives_rotation_but_not_another_ring() {
        let token = ApiKeyToken::mint(&ring("a"), &SeededEntropy::new(7));
        let rotated: Keyring =
            serde_json::from_str(&format!(r#"{{"current":"k2","k1":"{}","k2":"{}"}}"#, "a".repeat(32), "b".repeat(32)))
                .unwrap();
        assert!(ApiKeyToken::parse(token.expose(), &rotated).is_ok());
        assert_eq!(ApiKeyToken::parse(token.expose(), &ring("b")).unwrap_err(), TokenError::Tag);
    }

    #[test]
    fn every_character_is_equally_likely() {
        let (ring, entropy) = (ring("a"), SeededEntropy::new(7));
        let mut counts = [0_u32; 256];
        for _ in 0..2_000 {
            for byte in ApiKeyToken::mint(&ring, &entropy).expose()[8..34].bytes() {
                counts[usize::from(byte)] += 1;
            }
        }
        // 52,000 draws over 62 characters: 839 expected for each, with a standard deviation of 29.
        // The bounds are six of those, a chance of one in a billion.
        for byte in BASE62 {
            assert!((665..1013).contains(&counts[usize::from(*byte)]), "{}", char::from(*byte));
        }
    }

    proptest! {
        #[test]
        fn changed_character_is_rejected(seed: u64, at in 0_usize..40, to in "[0-9A-Za-z_ ]") {
            let ring = ring("a");
            let token = ApiKeyToken::mint(&ring, &SeededEntropy::new(seed));
            let mut forged = token.expose().to_owned();
            forged.replace_range(at..=at, &to);
            prop_assert_eq!(ApiKeyToken::parse(&forged, &ring).is_ok(), forged == token.expose());
        }

        #[test]
        fn random_text_never_panics(text in ".*", bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            prop_assert!(ApiKeyToken::parse(&text, &ring("a")).is_err());
            let branded = format!("kt_live_{}", String::from_utf8_lossy(&bytes));
            prop_assert!(ApiKeyToken::parse(&branded, &ring("a")).is_err());
        }
    }
}

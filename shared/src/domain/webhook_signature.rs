use std::fmt;

use aws_lc_rs::hmac;
use base64::{Engine, engine::general_purpose::STANDARD};
use secrecy::{ExposeSecret, SecretString};
use zeroize::{Zeroize, Zeroizing};

use super::{CredentialKind, Entropy, Invalid, Timestamp, stripe};

const BRAND: &str = CredentialKind::WebhookSecret.brand();
const KEY_LEN: usize = 32;

/// `whsec_` and the base64 of 32 random bytes.
#[derive(Clone)]
pub struct WebhookSecret(SecretString);

impl WebhookSecret {
    pub fn generate(entropy: &dyn Entropy) -> Self {
        let mut key = Zeroizing::new([0; KEY_LEN]);
        entropy.fill(&mut *key);
        let mut encoded = STANDARD.encode(*key);
        let secret = Self(format!("{BRAND}{encoded}").into());
        encoded.zeroize();
        secret
    }

    /// Accepts only the form that [`generate`](Self::generate) makes.
    pub fn parse(text: &str) -> Result<Self, Invalid> {
        match decode(text) {
            Some(_) => Ok(Self(text.into())),
            None => Err(Invalid::new("must be whsec_ and the base64 of 32 bytes")),
        }
    }

    pub fn expose(&self) -> &str {
        self.0.expose_secret()
    }
}

impl fmt::Debug for WebhookSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WebhookSecret([redacted])")
    }
}

fn decode(text: &str) -> Option<Zeroizing<[u8; KEY_LEN]>> {
    let encoded = text.strip_prefix(BRAND)?;
    // One byte larger than the key, because the decoder requires whole groups of three.
    let mut bytes = Zeroizing::new([0; KEY_LEN + 1]);
    let length = STANDARD.decode_slice(encoded, &mut *bytes).ok()?;
    let mut key = Zeroizing::new([0; KEY_LEN]);
    key.copy_from_slice(&bytes[..KEY_LEN]);
    (length == KEY_LEN).then_some(key)
}

/// The signature headers of a delivery, in the formats of Stripe and of Standard Webhooks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signatures {
    /// `t=<unix seconds>,v1=<hex>`, with one `v1` for each secret.
    pub karta_signature: String,
    pub webhook_id: String,
    /// Unix seconds.
    pub webhook_timestamp: String,
    /// `v1,<base64>` for each secret, separated by spaces.
    pub webhook_signature: String,
}

impl Signatures {
    /// Signs a delivery. `id` is the id of the event, the same at every attempt, and `at` is the
    /// time of this attempt.
    pub fn sign(secrets: &[&WebhookSecret], id: &str, at: Timestamp, body: &[u8]) -> Self {
        let time = at.as_seconds().to_string();
        let mut karta_signature = format!("t={time}");
        let mut webhook_signature = Vec::with_capacity(secrets.len());
        for secret in secrets {
            karta_signature.push_str(",v1=");
            karta_signature.push_str(&stripe::sign(secret.expose(), &time, body));
            webhook_signature.push(format!("v1,{}", sign(secret, id, &time, body)));
        }
        let webhook_signature = webhook_signature.join(" ");
        Self { karta_signature, webhook_id: id.to_owned(), webhook_timestamp: time, webhook_signature }
    }
}

/// Computes the formula of Standard Webhooks. The key is the decoded secret.
fn sign(secret: &WebhookSecret, id: &str, time: &str, body: &[u8]) -> String {
    let key = decode(secret.expose()).expect("a secret is parsed or generated");
    let mut mac = hmac::Context::with_key(&hmac::Key::new(hmac::HMAC_SHA256, &*key));
    for part in [id.as_bytes(), b".", time.as_bytes(), b".", body] {
        mac.update(part);
    }
    STANDARD.encode(mac.sign())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{
        domain::{SignatureError, StripeSecrets},
        entropy::SeededEntropy,
    };

    const BODY: &[u8] = br#"{"id":"evt_1"}"#;
    const FIRST: &str = "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
    const SECOND: &str = "whsec_ICEiIyQlJicoKSorLC0uLzAxMjM0NTY3ODk6Ozw9Pj8=";

    fn at(second: i64) -> Timestamp {
        Timestamp::from_millis(second * 1000 + 999).unwrap()
    }

    #[test]
    fn delivery_is_signed_in_both_formats() {
        let (first, second) = (WebhookSecret::parse(FIRST).unwrap(), WebhookSecret::parse(SECOND).unwrap());
        let signed = |secrets: &[&WebhookSecret]| Signatures::sign(secrets, "evt_1", at(1_795_000_000), BODY);
        // Python: hmac.new(FIRST.encode(), b"1795000000." + BODY, "sha256").hexdigest(), and
        // base64.b64encode(hmac.new(bytes(range(32)), b"evt_1.1795000000." + BODY,
        // "sha256").digest()); SECOND encodes bytes(range(32, 64)).
        let one = Signatures {
            karta_signature: "t=1795000000,v1=1437c5653ff294ed8351ddaec792448fa677d0d48270fd8a36db0c003814e289"
                .to_owned(),
            webhook_id: "evt_1".to_owned(),
            webhook_timestamp: "1795000000".to_owned(),
            webhook_signature: "v1,UbmuSSBTbi0FzZxrX+pVv0KQGcBQsKFhg7a5KckLFeY=".to_owned(),
        };
        assert_eq!(signed(&[&first]), one);
        let both = Signatures {
            karta_signature: one.karta_signature
                + ",v1=b32f29a49a9529c6c14d44c8018f68adc244f490fbd357ea613710e7f27d197a",
            webhook_signature: one.webhook_signature + " v1,PeRrhpRSlnzcrZd+adH0CrVLyioC30BFaNOHap+1Zh0=",
            ..one
        };
        assert_eq!(signed(&[&first, &second]), both);
    }

    #[test]
    fn generated_secret_round_trips_and_is_redacted() {
        let entropy = SeededEntropy::new(7);
        let (secret, other) = (WebhookSecret::generate(&entropy), WebhookSecret::generate(&entropy));
        assert_eq!(secret.expose().len(), 50);
        assert_ne!(secret.expose(), other.expose());
        assert_eq!(WebhookSecret::parse(secret.expose()).unwrap().expose(), secret.expose());
        assert_eq!(format!("{secret:?}"), "WebhookSecret([redacted])");
    }

    #[test]
    fn invalid_secrets_are_rejected() {
        for text in [
            "",
            "whsec_",
            &FIRST[6..],
            &FIRST.replace("whsec_", "WHSEC_"),
            &FIRST[..FIRST.len() - 1],
            &format!("{FIRST}="),
            &format!(" {FIRST}"),
            &format!("{FIRST}\n"),
            // 31 and 33 bytes, the alphabet for URLs, and unused bits that are set.
            "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHg==",
            "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8g",
            &FIRST.replace("AwQF", "-_QF"),
            &FIRST.replace("Hh8=", "Hh9="),
        ] {
            let refusal = WebhookSecret::parse(text).expect_err(text).to_string();
            assert_eq!(refusal, "must be whsec_ and the base64 of 32 bytes");
        }
    }

    proptest! {
        #[test]
        fn stripe_verifier_accepts_our_signatures(seed: u64, second in 0_i64..10_000_000_000, body: Vec<u8>, changed: u8) {
            let secret = WebhookSecret::generate(&SeededEntropy::new(seed));
            let header = Signatures::sign(&[&secret], "evt_1", at(second), &body).karta_signature;
            let secrets: StripeSecrets = serde_json::from_value(
                serde_json::json!({ "livemode": true, "signing_secrets": [secret.expose()] }),
            ).unwrap();
            prop_assert_eq!(secrets.verify(Some(&header), &body, at(second)), Ok(()));
            let other = [&body[..], &[changed]].concat();
            prop_assert_eq!(secrets.verify(Some(&header), &other, at(second)), Err(SignatureError::Mismatch));
        }
    }
}

use std::fmt;

use aws_lc_rs::{constant_time, hmac};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Deserializer, de::Error as _};

use super::{ObjectOnly, Timestamp, hex::hex};

/// Maximum difference between a signature's time and the clock, in either direction.
const TOLERANCE_MILLIS: u64 = 300_000;
const MAX_SECRETS: usize = 10;
const PREFIX: &str = "whsec_";
const MIN_SECRET_BYTES: usize = 16;

/// The secrets with which Stripe signs its events.
///
/// Parsed from `{"livemode":true,"signing_secrets":["whsec_…"]}`. `{}` means that Stripe is not
/// configured. To rotate a secret, list the old one and the new one.
#[derive(Default)]
pub struct StripeSecrets {
    livemode: bool,
    secrets: Vec<SecretString>,
}

/// Why signing secrets are invalid. Never shows a secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StripeSecretsError {
    #[error(r#"it must be {{}} or a JSON object of "livemode" and a list of "signing_secrets", and nothing else"#)]
    Shape,
    #[error(r#""signing_secrets" must hold 1 to 10 secrets, not {0}"#)]
    Count(usize),
    #[error(
        "signing secret {0} is invalid: must be whsec_ and 16 or more printable ASCII characters without commas and blanks"
    )]
    SecretShape(usize),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SignatureError {
    #[error("The request has no Stripe-Signature header")]
    Missing,
    #[error("The Stripe-Signature header must be t=<unix seconds>,v1=<signature>")]
    Malformed,
    #[error("No v1 signature in the Stripe-Signature header matches the body: check the signing secret")]
    Mismatch,
    #[error(
        "The time in the Stripe-Signature header is more than 300 seconds off: check the clock, or send the event again"
    )]
    OutOfTime,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawStripeSecrets {
    livemode: Option<bool>,
    signing_secrets: Option<Vec<String>>,
}

impl StripeSecrets {
    pub fn livemode(&self) -> bool {
        self.livemode
    }

    /// Returns whether billing through Stripe is not configured.
    pub fn is_empty(&self) -> bool {
        self.secrets.is_empty()
    }

    /// Verifies the header `Stripe-Signature` over the raw body: exactly one time, and at least one
    /// `v1` signature that matches under one of the secrets. Other items are ignored.
    pub fn verify(&self, header: Option<&str>, body: &[u8], now: Timestamp) -> Result<(), SignatureError> {
        let (time, signatures) = parse(header.ok_or(SignatureError::Missing)?).ok_or(SignatureError::Malformed)?;
        let mut matches = false;
        for secret in &self.secrets {
            let expected = sign(secret.expose_secret(), time, body);
            for signature in &signatures {
                matches |= constant_time::verify_slices_are_equal(expected.as_bytes(), signature.as_bytes()).is_ok();
            }
        }
        if !matches {
            return Err(SignatureError::Mismatch);
        }
        let time = time.parse::<i64>().map_err(|_| SignatureError::Malformed)?.saturating_mul(1000);
        if now.as_millis().abs_diff(time) > TOLERANCE_MILLIS { Err(SignatureError::OutOfTime) } else { Ok(()) }
    }

    fn checked(written: RawStripeSecrets) -> Result<Self, StripeSecretsError> {
        let (livemode, secrets) = match (written.livemode, written.signing_secrets) {
            (None, None) => return Ok(Self::default()),
            (Some(livemode), Some(secrets)) => (livemode, secrets),
            _ => return Err(StripeSecretsError::Shape),
        };
        // Zeroizing, so that rejected secrets are wiped too.
        let secrets: Vec<SecretString> = secrets.into_iter().map(Into::into).collect();
        if !(1..=MAX_SECRETS).contains(&secrets.len()) {
            return Err(StripeSecretsError::Count(secrets.len()));
        }
        match secrets.iter().position(|secret| !is_signing_secret(secret.expose_secret())) {
            Some(at) => Err(StripeSecretsError::SecretShape(at + 1)),
            None => Ok(Self { livemode, secrets }),
        }
    }
}

fn is_signing_secret(text: &str) -> bool {
    let rest = text.strip_prefix(PREFIX).unwrap_or_default();
    rest.len() >= MIN_SECRET_BYTES && rest.bytes().all(|byte| byte.is_ascii_graphic() && byte != b',')
}

/// Returns the time as written, and the signatures of scheme `v1`.
fn parse(header: &str) -> Option<(&str, Vec<&str>)> {
    let (mut time, mut signatures) = (None, Vec::new());
    for item in header.split(',') {
        match item.trim().split_once('=') {
            Some(("t", _)) if time.is_some() => return None,
            Some(("t", text)) => time = Some(text),
            Some(("v1", signature)) => signatures.push(signature),
            _ => {}
        }
    }
    let time = time.filter(|time| (1..=12).contains(&time.len()) && time.bytes().all(|byte| byte.is_ascii_digit()))?;
    Some((time, signatures))
}

/// Computes Stripe's formula. The key is the whole text of the secret.
pub(super) fn sign(secret: &str, time: &str, body: &[u8]) -> String {
    let mut mac = hmac::Context::with_key(&hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes()));
    for part in [time.as_bytes(), b".", body] {
        mac.update(part);
    }
    hex(mac.sign().as_ref())
}

impl<'de> Deserialize<'de> for StripeSecrets {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // serde's own message would quote the input, which may be a secret.
        let ObjectOnly(written) = ObjectOnly::<RawStripeSecrets>::deserialize(deserializer)
            .map_err(|_| D::Error::custom(StripeSecretsError::Shape))?;
        Self::checked(written).map_err(D::Error::custom)
    }
}

impl fmt::Debug for StripeSecrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StripeSecrets").field("livemode", &self.livemode).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BODY: &[u8] = br#"{"id":"evt_1"}"#;
    // Python: hmac.new(b"whsec_0123456789abcdef", b'1795000000.{"id":"evt_1"}',
    // "sha256").hexdigest()
    const SIGNATURE: &str = "f3693a385085b03ae61b6bf5c46ed145c247ea855e3d4f8b3f1a987b63ef27ce";

    fn secrets(list: &[&str]) -> StripeSecrets {
        serde_json::from_value(serde_json::json!({ "livemode": false, "signing_secrets": list })).unwrap()
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_millis(second * 1000).unwrap()
    }

    #[test]
    fn one_valid_signature_is_enough() {
        let wrong = "0".repeat(64);
        let (one, two) =
            (secrets(&["whsec_0123456789abcdef"]), secrets(&["whsec_fedcba9876543210", "whsec_0123456789abcdef"]));
        for header in [
            format!("t=1795000000,v1={SIGNATURE}"),
            format!("t=1795000000,v1={wrong},v1={SIGNATURE},v0={wrong}"),
            format!("v2=x, v1={SIGNATURE}, t=1795000000"),
        ] {
            for secrets in [&one, &two] {
                assert_eq!(secrets.verify(Some(&header), BODY, at(1_795_000_000)), Ok(()), "{header}");
            }
        }
    }

    #[test]
    fn invalid_signature_is_rejected_with_its_reason() {
        use SignatureError::{Malformed, Mismatch, Missing, OutOfTime};
        let right = format!("t=1795000000,v1={SIGNATURE}");
        let now = at(1_795_000_000);
        let verify = |header: &str| secrets(&["whsec_0123456789abcdef"]).verify(Some(header), BODY, now);
        assert_eq!(secrets(&["whsec_0123456789abcdef"]).verify(None, BODY, now), Err(Missing));
        for (header, reason) in [
            ("", Malformed),
            ("v1", Malformed),
            (&format!("v1={SIGNATURE}"), Malformed),
            (&format!("t=,v1={SIGNATURE}"), Malformed),
            (&format!("t=+1795000000,v1={SIGNATURE}"), Malformed),
            (&format!("{right},t=1795000000"), Malformed),
            ("t=1795000000", Mismatch),
            ("t=1795000000,v1=", Mismatch),
            (&right.replace("v1=", "v0="), Mismatch),
            (&right.replace("t=1795000000", "t=1795000001"), Mismatch),
            (&right.to_uppercase().replace("T=", "t=").replace("V1=", "v1="), Mismatch),
        ] {
            assert_eq!(verify(header), Err(reason), "{header}");
        }
        let other = secrets(&["whsec_fedcba9876543210"]);
        assert_eq!(other.verify(Some(&right), BODY, now), Err(Mismatch));
        let ours = secrets(&["whsec_0123456789abcdef"]);
        assert_eq!(ours.verify(Some(&right), br#"{"id":"evt_2"}"#, now), Err(Mismatch));
        for (seconds, verdict) in [(300, Ok(())), (301, Err(OutOfTime)), (-300, Ok(())), (-301, Err(OutOfTime))] {
            assert_eq!(ours.verify(Some(&right), BODY, at(1_795_000_000 + seconds)), verdict, "{seconds}");
        }
        assert_eq!(StripeSecrets::default().verify(Some(&right), BODY, now), Err(Mismatch));
    }

    #[test]
    fn invalid_secrets_are_rejected_and_not_shown() {
        let read = |text: &str| serde_json::from_str::<StripeSecrets>(text);
        assert!(read("{}").unwrap().is_empty());
        let secrets = read(r#"{"livemode":true,"signing_secrets":["whsec_0123456789abcdef"]}"#).unwrap();
        assert!(secrets.livemode() && !secrets.is_empty());
        assert!(!format!("{secrets:?}").contains("0123"));
        for text in [
            r#""whsec_0123456789abcdef""#,
            r#"[true,["whsec_0123456789abcdef"]]"#,
            r#"{"signing_secrets":["whsec_0123456789abcdef"]}"#,
            r#"{"livemode":true}"#,
            r#"{"livemode":true,"signing_secrets":[]}"#,
            r#"{"livemode":"whsec_0123456789abcdef","signing_secrets":[]}"#,
            r#"{"livemode":true,"signing_secrets":"whsec_0123456789abcdef"}"#,
            r#"{"livemode":true,"signing_secrets":["whsec_0123456789abcdef","0123456789abcdef0123"]}"#,
            r#"{"livemode":true,"signing_secrets":["whsec_0123"]}"#,
            r#"{"livemode":true,"signing_secrets":["whsec_0123456789 abcdef"]}"#,
            r#"{"livemode":true,"signing_secrets":["whsec_0123456789abcdef"],"whsec_0123456789abcdef":1}"#,
        ] {
            let refusal = read(text).unwrap_err().to_string();
            assert!(!refusal.contains("0123"), "{refusal}");
        }
    }
}

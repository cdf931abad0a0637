//! Session tokens: HS256 JWTs for browsers, minted with a ring's current key and verified offline.
//!
//! Verification needs only the ring and the time. Every holder of the ring can mint tokens.
//!
//! The parts are decoded here rather than by `jsonwebtoken::decode`, which reads the system clock,
//! parses the header three times and lets it choose the algorithm from a list. Here the header only
//! names the key.

use std::{borrow::Cow, fmt};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header};
use secrecy::{ExposeSecret, SecretString};
use serde::{
    Deserialize, Deserializer, Serialize,
    de::{self, IgnoredAny, Visitor},
};

use crate::domain::{Id, Keyring, Kid, UserId};

/// Default lifetime of a token and the bounds of a requested lifetime, in seconds.
pub const TTL_DEFAULT: u32 = 900;
pub const TTL_MIN: u32 = 60;
pub const TTL_MAX: u32 = 3600;
/// Tolerance for clock skew around `exp` and `nbf`, in seconds.
const LEEWAY: i64 = 30;
/// Maximum length of a token, which bounds the work on junk. Minted tokens are below 2 KiB.
const TOKEN_MAX_BYTES: usize = 4096;

/// Latest time that a claim may hold, in Unix seconds: the end of the year 9999.
const TIME_MAX: i64 = 253_402_300_799;

/// Claims of a session token. Times are in Unix seconds. Verification also checks `nbf` and `aud`
/// and ignores other claims.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SessionClaims {
    pub org_id: Id,
    pub org_slug: String,
    pub project_id: Id,
    pub project_slug: String,
    pub scope: SessionScope,
    pub budget_ok: bool,
    pub iat: i64,
    pub exp: i64,
    pub jti: String,
    /// The API key that minted the token.
    pub akid: Id,
    /// The end user of the token, 1 to 255 bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sub: Option<String>,
}

/// The claim `scope`. A type with one value, so that claims with another scope do not parse.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SessionScope {
    #[default]
    Session,
}

/// The claims of a received token.
#[derive(Deserialize)]
struct PresentedClaims {
    org_id: Id,
    org_slug: String,
    project_id: Id,
    project_slug: String,
    scope: SessionScope,
    budget_ok: bool,
    iat: NumericDate,
    exp: NumericDate,
    jti: String,
    akid: Id,
    #[serde(default, deserialize_with = "not_null")]
    sub: Option<String>,
    #[serde(default, deserialize_with = "not_null")]
    nbf: Option<NumericDate>,
    /// Karta is never an intended audience, so any `aud` is rejected (RFC 7519 §4.1.3).
    #[serde(default, deserialize_with = "is_present")]
    aud: bool,
}

/// A time of a token in whole Unix seconds. Fractions are truncated (RFC 7519 §2).
#[derive(Clone, Copy)]
struct NumericDate(i64);

impl<'de> Deserialize<'de> for NumericDate {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(NumericDateVisitor)
    }
}

struct NumericDateVisitor;

impl Visitor<'_> for NumericDateVisitor {
    type Value = NumericDate;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("seconds since 1970, before the year 10000")
    }

    fn visit_u64<E: de::Error>(self, seconds: u64) -> Result<NumericDate, E> {
        let seconds = i64::try_from(seconds).ok().filter(|seconds| *seconds <= TIME_MAX);
        seconds.map(NumericDate).ok_or_else(|| E::custom("not a time"))
    }

    #[expect(clippy::cast_possible_truncation, reason = "the range is checked, and truncation is intended")]
    #[expect(clippy::cast_precision_loss, reason = "the bound is below 2^53")]
    fn visit_f64<E: de::Error>(self, seconds: f64) -> Result<NumericDate, E> {
        let is_time = (0.0..=TIME_MAX as f64).contains(&seconds);
        is_time.then_some(NumericDate(seconds as i64)).ok_or_else(|| E::custom("not a time"))
    }
}

/// A derived implementation would also accept `{"session": null}`.
impl<'de> Deserialize<'de> for SessionScope {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let word = Cow::<str>::deserialize(deserializer)?;
        if word == "session" { Ok(Self::Session) } else { Err(de::Error::custom("unknown scope")) }
    }
}

/// Reads a JSON object. `serde_json` would also accept an array of the struct's fields.
fn read_object<'a, T: Deserialize<'a>>(json: &'a [u8]) -> Option<T> {
    if json.trim_ascii_start().starts_with(b"{") { serde_json::from_slice(json).ok() } else { None }
}

/// A minted token. Prints as `[redacted]`.
#[derive(Clone)]
pub struct SessionToken(SecretString);

impl SessionToken {
    pub fn expose(&self) -> &str {
        self.0.expose_secret()
    }
}

impl fmt::Debug for SessionToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SessionToken([redacted])")
    }
}

/// The header fields that verification reads. `alg` can only cause a rejection.
#[derive(Deserialize)]
struct PresentedHeader<'a> {
    #[serde(borrow)]
    alg: Cow<'a, str>,
    #[serde(borrow)]
    kid: Option<Cow<'a, str>>,
    /// Extensions that a verifier must understand. Karta supports no extensions, so any value is
    /// rejected, `null` included.
    #[serde(default, deserialize_with = "is_present")]
    crit: bool,
}

/// Reads an optional member without taking `null` for a missing one.
fn not_null<'de, T: Deserialize<'de>, D: Deserializer<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

fn is_present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    IgnoredAny::deserialize(deserializer).map(|_| true)
}

/// Why a session token was rejected, as a word for the log. Callers get the same 401 in every case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("session token rejected: {}", self.as_str())]
pub enum SessionTokenError {
    /// The token is too long, or does not have three parts with a JSON header.
    Malformed,
    /// The algorithm is not HS256, or the header has critical extensions.
    Algorithm,
    /// The kid is missing or malformed.
    NoKid,
    /// The ring does not hold the kid. Only this result can change after a refetch of the ring.
    UnknownKid,
    Signature,
    /// A claim is missing, or of a wrong type or value.
    Claims,
    /// The token names an audience.
    Audience,
    /// The lifetime is above an hour, zero or negative.
    Lifetime,
    Expired,
    /// Its `nbf` is in the future.
    NotBefore,
}

impl SessionTokenError {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::Algorithm => "algorithm",
            Self::NoKid => "no_kid",
            Self::UnknownKid => "unknown_kid",
            Self::Signature => "signature",
            Self::Claims => "claims",
            Self::Audience => "audience",
            Self::Lifetime => "lifetime",
            Self::Expired => "expired",
            Self::NotBefore => "not_before",
        }
    }
}

/// Signs `claims` with the ring's current key. The caller chooses `exp`; [`verify`] rejects
/// lifetimes above [`TTL_MAX`].
pub fn mint(ring: &Keyring, claims: &SessionClaims) -> SessionToken {
    let (kid, secret) = ring.current();
    SessionToken(sign(kid, secret, claims).into())
}

fn sign(kid: &Kid, secret: &[u8], claims: &SessionClaims) -> String {
    let header = Header { kid: Some(kid.to_string()), ..Header::new(Algorithm::HS256) };
    jsonwebtoken::encode(&header, claims, &EncodingKey::from_secret(secret))
        .expect("claims are JSON, and HMAC takes any key")
}

/// Verifies a token at `now_unix` (seconds) with the key that its header names.
pub fn verify(ring: &Keyring, token: &str, now_unix: i64) -> Result<SessionClaims, SessionTokenError> {
    if token.len() > TOKEN_MAX_BYTES {
        return Err(SessionTokenError::Malformed);
    }
    let (message, signature) = token.rsplit_once('.').ok_or(SessionTokenError::Malformed)?;
    let (header, claims) = message.split_once('.').ok_or(SessionTokenError::Malformed)?;
    let secret = named_key(ring, header)?;
    let key = DecodingKey::from_secret(secret);
    match jsonwebtoken::crypto::verify(signature, message.as_bytes(), &key, Algorithm::HS256) {
        Ok(true) => {}
        Ok(false) | Err(_) => return Err(SessionTokenError::Signature),
    }
    let claims = URL_SAFE_NO_PAD.decode(claims).map_err(|_| SessionTokenError::Claims)?;
    read_object::<PresentedClaims>(&claims).ok_or(SessionTokenError::Claims)?.check(now_unix)
}

fn named_key<'ring>(ring: &'ring Keyring, header: &str) -> Result<&'ring [u8], SessionTokenError> {
    let header = URL_SAFE_NO_PAD.decode(header).map_err(|_| SessionTokenError::Malformed)?;
    let header: PresentedHeader = read_object(&header).ok_or(SessionTokenError::Malformed)?;
    if header.alg != "HS256" || header.crit {
        return Err(SessionTokenError::Algorithm);
    }
    let kid = header.kid.ok_or(SessionTokenError::NoKid)?;
    // Distinct errors, so that a malformed kid does not trigger a refetch of the ring.
    ring.get(&kid).ok_or(match Kid::parse(&kid) {
        Some(_) => SessionTokenError::UnknownKid,
        None => SessionTokenError::NoKid,
    })
}

impl PresentedClaims {
    fn check(self, now_unix: i64) -> Result<SessionClaims, SessionTokenError> {
        let (NumericDate(iat), NumericDate(exp)) = (self.iat, self.exp);
        if self.sub.as_ref().is_some_and(|sub| UserId::try_from(sub.clone()).is_err()) {
            return Err(SessionTokenError::Claims);
        }
        if self.aud {
            return Err(SessionTokenError::Audience);
        }
        if !(1..=i64::from(TTL_MAX)).contains(&(exp - iat)) {
            return Err(SessionTokenError::Lifetime);
        }
        if now_unix.saturating_sub(exp) >= LEEWAY {
            return Err(SessionTokenError::Expired);
        }
        if self.nbf.is_some_and(|NumericDate(nbf)| nbf.saturating_sub(now_unix) > LEEWAY) {
            return Err(SessionTokenError::NotBefore);
        }
        Ok(SessionClaims {
            org_id: self.org_id,
            org_slug: self.org_slug,
            project_id: self.project_id,
            project_slug: self.project_slug,
            scope: self.scope,
            budget_ok: self.budget_ok,
            iat,
            exp,
            jti: self.jti,
            akid: self.akid,
            sub: self.sub,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    const NOW: i64 = 1_795_000_000;

    fn ring() -> Keyring {
        serde_json::from_value(json!({"current": "k2", "k1": "1".repeat(32), "k2": "2".repeat(32)})).unwrap()
    }

    fn claims() -> SessionClaims {
        let id = |number| Id::new(number).unwrap();
        SessionClaims {
            org_id: id(1),
            org_slug: "acme".to_owned(),
            project_id: id((1 << 53) - 1),
            project_slug: "support".to_owned(),
            scope: SessionScope::Session,
            budget_ok: true,
            iat: NOW,
            exp: NOW + i64::from(TTL_DEFAULT),
            jti: "1pXq".to_owned(),
            akid: id(3),
            sub: None,
        }
    }

    /// Signs any header and claims, as a holder of the ring could.
    fn forge(header: &Value, claims: &Value, secret: &str, algorithm: Algorithm) -> String {
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let message = format!("{}.{}", part(header), part(claims));
        let key = EncodingKey::from_secret(secret.as_bytes());
        let signature = jsonwebtoken::crypto::sign(message.as_bytes(), &key, algorithm).unwrap();
        format!("{message}.{signature}")
    }

    fn with_header(header: &Value) -> Result<SessionClaims, SessionTokenError> {
        verify(&ring(), &forge(header, &json!(claims()), &"2".repeat(32), Algorithm::HS256), NOW)
    }

    /// Verifies the usual claims under a valid signature after one claim was replaced, or removed
    /// by `null`.
    fn with_claim(name: &str, value: Value) -> Result<SessionClaims, SessionTokenError> {
        let mut claims = json!(claims());
        claims[name] = value;
        verify_claims(&claims)
    }

    fn without_claim(name: &str) -> Result<SessionClaims, SessionTokenError> {
        let mut claims = json!(claims());
        claims.as_object_mut().unwrap().remove(name);
        verify_claims(&claims)
    }

    fn verify_claims(claims: &Value) -> Result<SessionClaims, SessionTokenError> {
        let header = json!({"alg": "HS256", "kid": "k2"});
        verify(&ring(), &forge(&header, claims, &"2".repeat(32), Algorithm::HS256), NOW)
    }

    #[test]
    fn token_of_another_library_is_accepted() {
        // Made in Python with base64, json and hmac.
        let token = concat!(
            "eyJ0eXAiOiAiSldUIiwgImFsZyI6ICJIUzI1NiIsICJraWQiOiAiazIifQ.eyJvcmdfaWQiOiAxLCAib3JnX3NsdWciOiAiY",
            "WNtZSIsICJwcm9qZWN0X2lkIjogOTAwNzE5OTI1NDc0MDk5MSwgInByb2plY3Rfc2x1ZyI6ICJzdXBwb3J0IiwgInNjb3BlI",
            "jogInNlc3Npb24iLCAiYnVkZ2V0X29rIjogdHJ1ZSwgImlhdCI6IDE3OTUwMDAwMDAsICJleHAiOiAxNzk1MDAwOTAwLCAia",
            "nRpIjogIjFwWHEiLCAiYWtpZCI6IDN9.ctg5J-50ssMkMzWNc8ItPPsw7NRe6TLQZR2hXV2Yx7E",
        );
        assert_eq!(verify(&ring(), token, NOW), Ok(claims()));
    }

    #[test]
    fn token_of_previous_key_is_accepted() {
        let token = forge(&json!({"alg": "HS256", "kid": "k1"}), &json!(claims()), &"1".repeat(32), Algorithm::HS256);
        assert_eq!(verify(&ring(), &token, NOW), Ok(claims()));
    }

    #[test]
    fn other_algorithms_are_refused() {
        for alg in ["none", "None", "", "hs256", "HS384", "HS512", "RS256", "ES256", "EdDSA"] {
            assert_eq!(with_header(&json!({"alg": alg, "kid": "k2"})), Err(SessionTokenError::Algorithm), "{alg}");
        }
        let header = json!({"alg": "HS512", "kid": "k2"});
        let hs512 = forge(&header, &json!(claims()), &"2".repeat(32), Algorithm::HS512);
        assert_eq!(verify(&ring(), &hs512, NOW), Err(SessionTokenError::Algorithm));
        let unsigned = format!("{}.", hs512.rsplit_once('.').unwrap().0);
        assert_eq!(verify(&ring(), &unsigned, NOW), Err(SessionTokenError::Algorithm));
        let signed = mint(&ring(), &claims());
        let stripped = format!("{}.", signed.expose().rsplit_once('.').unwrap().0);
        assert_eq!(verify(&ring(), &stripped, NOW), Err(SessionTokenError::Signature));
        assert_eq!(with_header(&json!({"kid": "k2"})), Err(SessionTokenError::Malformed));
        for crit in [json!(["exp"]), json!([]), json!(null)] {
            let header = json!({"alg": "HS256", "kid": "k2", "crit": crit});
            assert_eq!(with_header(&header), Err(SessionTokenError::Algorithm), "{header}");
        }
    }

    #[test]
    fn kid_must_name_a_key() {
        for kid in ["current", "", "k", "K2", "k2 ", "../k2", "2"] {
            assert_eq!(with_header(&json!({"alg": "HS256", "kid": kid})), Err(SessionTokenError::NoKid), "{kid}");
        }
        assert_eq!(with_header(&json!({"alg": "HS256"})), Err(SessionTokenError::NoKid));
        assert_eq!(with_header(&json!({"alg": "HS256", "kid": null})), Err(SessionTokenError::NoKid));
        assert_eq!(with_header(&json!({"alg": "HS256", "kid": 2})), Err(SessionTokenError::Malformed));
        assert_eq!(with_header(&json!({"alg": "HS256", "kid": "k3"})), Err(SessionTokenError::UnknownKid));
    }

    #[test]
    fn only_the_named_key_is_tried() {
        assert_eq!(with_header(&json!({"alg": "HS256", "kid": "k1"})), Err(SessionTokenError::Signature));
        let other = Keyring::single("k2", "3".repeat(32)).unwrap();
        assert_eq!(verify(&ring(), mint(&other, &claims()).expose(), NOW), Err(SessionTokenError::Signature));
        // A careless parser of the ring would accept the kid `current` with the secret `k2`.
        let token = forge(&json!({"alg": "HS256", "kid": "current"}), &json!(claims()), "k2", Algorithm::HS256);
        assert_eq!(verify(&ring(), &token, NOW), Err(SessionTokenError::NoKid));
    }

    #[test]
    fn lifetime_is_at_most_an_hour() {
        let exp = |exp: i64| with_claim("exp", json!(exp)).err();
        assert_eq!(exp(NOW + i64::from(TTL_MAX)), None);
        assert_eq!(exp(NOW + i64::from(TTL_MAX) + 1), Some(SessionTokenError::Lifetime));
        assert_eq!(exp(TIME_MAX), Some(SessionTokenError::Lifetime));
        assert_eq!(exp(NOW), Some(SessionTokenError::Lifetime));
        assert_eq!(exp(0), Some(SessionTokenError::Lifetime));
        assert_eq!(with_claim("iat", json!(0)), Err(SessionTokenError::Lifetime));
    }

    #[test]
    fn leeway_applies_and_iat_is_ignored() {
        let token = mint(&ring(), &claims());
        let at = |now| verify(&ring(), token.expose(), now).err();
        assert_eq!(at(claims().exp + LEEWAY - 1), None);
        assert_eq!(at(claims().exp + LEEWAY), Some(SessionTokenError::Expired));
        assert_eq!(at(i64::MAX), Some(SessionTokenError::Expired));
        assert_eq!(at(NOW - 86_400), None);
        assert_eq!(at(i64::MIN), None);
    }

    #[test]
    fn missing_or_invalid_claim_is_refused() {
        let names = "org_id org_slug project_id project_slug scope budget_ok iat exp jti akid";
        for name in names.split(' ') {
            assert_eq!(without_claim(name), Err(SessionTokenError::Claims), "without {name}");
            assert_eq!(with_claim(name, Value::Null), Err(SessionTokenError::Claims), "{name} is null");
        }
        for (name, value) in [
            ("exp", json!("1795000900")),
            ("scope", json!("admin")),
            ("scope", json!(["session"])),
            ("org_id", json!(0)),
            ("org_id", json!(1_u64 << 53)),
            ("project_id", json!(-1)),
            ("akid", json!("3")),
            ("sub", json!("")),
            ("sub", json!("u".repeat(256))),
        ] {
            assert_eq!(with_claim(name, value.clone()), Err(SessionTokenError::Claims), "{name}: {value}");
        }
        assert_eq!(with_claim("a_later_claim", json!(1)), Ok(claims()));
    }

    #[test]
    fn times_may_have_a_fraction() {
        let exp = NOW + 900;
        for (name, value, read) in [
            ("exp", json!(1_795_000_900.999), SessionClaims { exp, ..claims() }),
            ("exp", json!(1_795_000_900.0), SessionClaims { exp, ..claims() }),
            ("iat", json!(1_794_999_999.5), SessionClaims { iat: NOW - 1, ..claims() }),
        ] {
            assert_eq!(with_claim(name, value.clone()), Ok(read), "{name}: {value}");
        }
        // A fraction does not extend the hour.
        assert_eq!(with_claim("exp", json!(1_795_003_600.5)).map(|claims| claims.exp), Ok(NOW + 3_600));
        assert_eq!(with_claim("exp", json!(1_795_003_601.5)), Err(SessionTokenError::Lifetime));
    }

    #[test]
    fn invalid_time_is_refused() {
        let two_to_the_63rd = 1_u64 << 63;
        for value in [
            json!(two_to_the_63rd),
            json!(two_to_the_63rd - 1),
            json!(u64::MAX),
            json!(i64::MIN),
            json!(-1),
            json!(-0.5),
            json!(9.3e18),
            json!(1e300),
            json!(TIME_MAX + 1),
            json!(true),
            json!([NOW]),
            json!({ "$serde_json::private::Number": "1795000000" }),
        ] {
            for name in ["iat", "exp", "nbf"] {
                assert_eq!(with_claim(name, value.clone()), Err(SessionTokenError::Claims), "{name}: {value}");
            }
        }
        // Both times are out of range: the token would never expire.
        let far = |iat: i64| json!({ "iat": iat, "exp": iat + 900 });
        for iat in [i64::MAX - 900, TIME_MAX - 899] {
            let mut forged = json!(claims());
            forged.as_object_mut().unwrap().extend(far(iat).as_object().unwrap().clone());
            let token = forge(&json!({"alg": "HS256", "kid": "k2"}), &forged, &"2".repeat(32), Algorithm::HS256);
            assert_eq!(verify(&ring(), &token, NOW), Err(SessionTokenError::Claims), "{iat}");
        }
    }

    #[test]
    fn not_before_in_the_future_is_refused() {
        for (nbf, refused) in [
            (json!(0), None),
            (json!(NOW), None),
            (json!(NOW + LEEWAY), None),
            (json!(NOW + LEEWAY + 1), Some(SessionTokenError::NotBefore)),
            (json!(1_795_000_031.5), Some(SessionTokenError::NotBefore)),
            (json!("1795000000"), Some(SessionTokenError::Claims)),
            (json!(null), Some(SessionTokenError::Claims)),
        ] {
            assert_eq!(with_claim("nbf", nbf.clone()).err(), refused, "{nbf}");
        }
    }

    #[test]
    fn null_subject_is_refused() {
        assert_eq!(with_claim("sub", json!(null)), Err(SessionTokenError::Claims));
    }

    #[test]
    fn any_audience_is_refused() {
        for aud in [json!("karta"), json!(""), json!(["karta", "other"]), json!([]), json!({}), json!(7), json!(null)] {
            assert_eq!(with_claim("aud", aud.clone()), Err(SessionTokenError::Audience), "{aud}");
        }
    }

    #[test]
    fn header_and_claims_must_be_objects() {
        let verify_parts = |claims: &str, header: &str| {
            let message = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims));
            let key = EncodingKey::from_secret("2".repeat(32).as_bytes());
            let signature = jsonwebtoken::crypto::sign(message.as_bytes(), &key, Algorithm::HS256).unwrap();
            verify(&ring(), &format!("{message}.{signature}"), NOW)
        };
        let (header, object) = (r#"{"alg":"HS256","kid":"k2"}"#, json!(claims()).to_string());
        assert_eq!(verify_parts(&format!(" \n{object}"), header), Ok(claims()));
        for array in [r#"["HS256","k2",null]"#, r#" ["HS256","k2",null]"#, "[]", "null", "\"HS256\"", ""] {
            assert_eq!(verify_parts(&object, array), Err(SessionTokenError::Malformed), "{array}");
        }
        let in_order = json!([
            1,
            "acme",
            9_007_199_254_740_991_u64,
            "support",
            "session",
            true,
            NOW,
            NOW + 900,
            "1pXq",
            3,
            null,
            null,
            null
        ]);
        for claims in [in_order.to_string(), "[]".to_owned(), "null".to_owned(), String::new()] {
            assert_eq!(verify_parts(&claims, header), Err(SessionTokenError::Claims), "{claims}");
        }
        assert_eq!(with_claim("scope", json!({ "session": null })), Err(SessionTokenError::Claims));
    }

    #[test]
    fn repeated_claim_is_refused() {
        let claims = json!(claims()).to_string().replacen('{', r#"{"exp":1795000001,"#, 1);
        let header = URL_SAFE_NO_PAD.encode(r#"{"alg":"HS256","kid":"k2"}"#);
        let message = format!("{header}.{}", URL_SAFE_NO_PAD.encode(claims));
        let key = EncodingKey::from_secret("2".repeat(32).as_bytes());
        let signature = jsonwebtoken::crypto::sign(message.as_bytes(), &key, Algorithm::HS256).unwrap();
        assert_eq!(verify(&ring(), &format!("{message}.{signature}"), NOW), Err(SessionTokenError::Claims));
    }

    #[test]
    fn oversized_token_is_not_parsed() {
        let sub = "u".repeat(TOKEN_MAX_BYTES);
        assert_eq!(with_claim("a_later_claim", json!(sub)), Err(SessionTokenError::Malformed));
    }

    #[test]
    fn token_debug_output_is_redacted() {
        assert_eq!(format!("{:?}", mint(&ring(), &claims())), "SessionToken([redacted])");
    }

    proptest! {
        #[test]
        fn minted_token_verifies(
            ids in [1_u64..1 << 53, 1..1 << 53, 1..1 << 53],
            ttl in TTL_MIN..=TTL_MAX,
            sub in prop::option::of("\\PC{1,60}"),
            budget_ok: bool,
        ) {
            let [org_id, project_id, akid] = ids.map(|id| Id::new(id).unwrap());
            let claims = SessionClaims { org_id, project_id, akid, sub, budget_ok, exp: NOW + i64::from(ttl), ..claims() };
            prop_assert_eq!(verify(&ring(), mint(&ring(), &claims).expose(), NOW), Ok(claims));
        }

        #[test]
        fn changed_byte_is_refused(at: prop::sample::Index, to in "[0-9A-Za-z_.=-]") {
            let minted = mint(&ring(), &claims());
            let at = at.index(minted.expose().len());
            let mut forged = minted.expose().to_owned();
            forged.replace_range(at..=at, &to);
            prop_assert_eq!(verify(&ring(), &forged, NOW).is_ok(), forged == minted.expose());
        }

        #[test]
        fn junk_is_refused_without_panic(text in ".*", parts in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..80), 0..5)) {
            prop_assert!(verify(&ring(), &text, NOW).is_err());
            let parts: Vec<_> = parts.iter().map(|part| URL_SAFE_NO_PAD.encode(part)).collect();
            prop_assert!(verify(&ring(), &parts.join("."), NOW).is_err());
            let header = URL_SAFE_NO_PAD.encode(r#"{"alg":"HS256","kid":"k2"}"#);
            let unsigned = format!("{header}.{}", parts.join("."));
            prop_assert!(verify(&ring(), &unsigned, NOW).is_err());
        }
    }
}

//! The secrets that sign webhooks. All live secrets of an endpoint are sealed as one text.
//!
//! Each organization has its own subkey, derived from the ring's key. The text is bound to its
//! organization and endpoint, so that it does not open if it is moved to another item.

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::{
    domain::{Entropy, Id, Keyring, Kid, Timestamp, WebhookSecret},
    sealing::{self, SealingKey},
    store::{Ciphertext, SealedWebhookSecrets},
};

/// NEVER CHANGE: stored secrets are sealed for this purpose.
const PURPOSE: &[u8] = b"karta webhooks";
/// The current secret and two that were replaced recently.
const MAX_LIVE: usize = 3;

/// The secrets are bound to these values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WebhookSecretContext {
    pub organization: Id,
    pub endpoint: Id,
}

/// The current secret comes first.
#[derive(Debug)]
pub struct WebhookSecrets(Vec<Member>);

#[derive(Debug)]
struct Member {
    secret: WebhookSecret,
    /// `None` for the current secret.
    ends_at: Option<Timestamp>,
}

#[derive(Serialize, Deserialize)]
struct SealedMember<'a> {
    secret: &'a str,
    ends_at: Option<Timestamp>,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WebhookSecretUnsealError {
    /// The cached ring may be older than the sealed secrets.
    #[error(
        "webhook secrets are sealed under {0}, which the ring sealing-webhooks does not hold: add that key again, not as current"
    )]
    UnknownKid(Kid),
    #[error("webhook secrets cannot be unsealed: they were changed, or they belong to another item")]
    Tampered,
}

/// The maximum number of secrets is already live.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooManyLive;

impl WebhookSecrets {
    pub fn new(secret: WebhookSecret) -> Self {
        Self(vec![Member { secret, ends_at: None }])
    }

    /// Returns the secrets that sign at `now`, the current one first.
    pub fn live(&self, now: Timestamp) -> impl Iterator<Item = &WebhookSecret> {
        let live = self.0.iter().filter(move |member| member.ends_at.is_none_or(|end| now < end));
        live.map(|member| &member.secret)
    }

    /// Replaces the current secret, which also signs until `ends_at`.
    pub fn rotate(&mut self, secret: WebhookSecret, ends_at: Timestamp, now: Timestamp) -> Result<(), TooManyLive> {
        let stays_live = |member: &Member| now < member.ends_at.unwrap_or(ends_at);
        if self.0.iter().filter(|member| stays_live(member)).count() >= MAX_LIVE {
            return Err(TooManyLive);
        }
        self.0.retain(stays_live);
        for member in &mut self.0 {
            member.ends_at.get_or_insert(ends_at);
        }
        self.0.insert(0, Member { secret, ends_at: None });
        Ok(())
    }
}

impl WebhookSecretContext {
    /// Returns a text that is unique to this context, because its parts contain no slashes.
    fn associated_data(self) -> String {
        format!("{}/webhook_endpoint/{}", self.organization, self.endpoint)
    }

    fn subkey(self, secret: &[u8]) -> SealingKey {
        sealing::derive_key(secret, self.organization.to_string().as_bytes(), PURPOSE)
    }

    /// Seals under the ring's current key. `version` is the version of the item to write.
    pub fn seal<'a>(
        self,
        ring: &Keyring,
        entropy: &dyn Entropy,
        secrets: &'a WebhookSecrets,
        version: u64,
    ) -> SealedWebhookSecrets {
        let (kid, secret) = ring.current();
        let mut nonce = [0; 12];
        entropy.fill(&mut nonce);
        let written = |member: &'a Member| SealedMember { secret: member.secret.expose(), ends_at: member.ends_at };
        let members: Vec<_> = secrets.0.iter().map(written).collect();
        let text = serde_json::to_vec(&members).expect("texts and times always encode");
        let sealed = self.subkey(secret).seal(nonce, self.associated_data().as_bytes(), &Zeroizing::new(text));
        SealedWebhookSecrets { kid: kid.clone(), ciphertext: Ciphertext::new(sealed), version }
    }

    /// Opens under any key of the ring.
    pub fn open(
        self,
        ring: &Keyring,
        sealed: &SealedWebhookSecrets,
    ) -> Result<WebhookSecrets, WebhookSecretUnsealError> {
        let secret =
            ring.get(sealed.kid.as_str()).ok_or_else(|| WebhookSecretUnsealError::UnknownKid(sealed.kid.clone()))?;
        let opened = self.subkey(secret).open(self.associated_data().as_bytes(), sealed.ciphertext.as_bytes());
        let text = opened.map_err(|_| WebhookSecretUnsealError::Tampered)?;
        let members: Vec<SealedMember<'_>> =
            serde_json::from_slice(&text).map_err(|_| WebhookSecretUnsealError::Tampered)?;
        let member = |SealedMember { secret, ends_at }| {
            let secret = WebhookSecret::parse(secret).map_err(|_| WebhookSecretUnsealError::Tampered)?;
            Ok(Member { secret, ends_at })
        };
        members.into_iter().map(member).collect::<Result<_, _>>().map(WebhookSecrets)
    }

    /// Returns `None` if the secrets are already sealed under the ring's current key.
    pub fn reseal(
        self,
        ring: &Keyring,
        entropy: &dyn Entropy,
        sealed: &SealedWebhookSecrets,
    ) -> Result<Option<SealedWebhookSecrets>, WebhookSecretUnsealError> {
        if sealed.kid == *ring.current().0 {
            return Ok(None);
        }
        let secrets = self.open(ring, sealed)?;
        Ok(Some(self.seal(ring, entropy, &secrets, sealed.version + 1)))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::entropy::SeededEntropy;

    fn noon() -> Timestamp {
        "2026-11-22T12:00:00Z".parse().unwrap()
    }

    fn context(organization: u64, endpoint: u64) -> WebhookSecretContext {
        WebhookSecretContext { organization: Id::new(organization).unwrap(), endpoint: Id::new(endpoint).unwrap() }
    }

    fn ring(members: &str) -> Keyring {
        let (a, b) = ("a".repeat(32), "b".repeat(32));
        serde_json::from_str(&members.replace("<a>", &a).replace("<b>", &b)).unwrap()
    }

    fn exposed(secrets: &WebhookSecrets, now: Timestamp) -> Vec<String> {
        secrets.live(now).map(|secret| secret.expose().to_owned()).collect()
    }

    #[test]
    fn replaced_secret_signs_until_its_grace_ends() {
        let entropy = SeededEntropy::new(1);
        let new = || WebhookSecret::generate(&entropy);
        let (first, second) = (new(), new());
        let names = [&first, &second].map(|secret| secret.expose().to_owned());
        let mut secrets = WebhookSecrets::new(first);
        let end = noon().plus(Duration::from_hours(1));
        secrets.rotate(second, end, noon()).unwrap();
        assert_eq!(exposed(&secrets, noon()), [names[1].clone(), names[0].clone()]);
        assert_eq!(exposed(&secrets, end), [names[1].clone()]);

        let third = new();
        let name = third.expose().to_owned();
        secrets.rotate(third, end, noon()).unwrap();
        assert_eq!(exposed(&secrets, noon()), [name.clone(), names[1].clone(), names[0].clone()]);
        assert_eq!(secrets.rotate(new(), end, noon()), Err(TooManyLive));
        assert_eq!(exposed(&secrets, noon()).len(), 3, "a rejected rotation changes nothing");
        assert_eq!(exposed(&secrets, end.plus(Duration::from_hours(9))), [name], "the current secret does not end");
    }

    #[test]
    fn old_secret_ends_at_once_without_grace() {
        let entropy = SeededEntropy::new(1);
        let mut secrets = WebhookSecrets::new(WebhookSecret::generate(&entropy));
        let second = WebhookSecret::generate(&entropy);
        let name = second.expose().to_owned();
        secrets.rotate(second, noon(), noon()).unwrap();
        assert_eq!(exposed(&secrets, noon()), [name]);
    }

    proptest! {
        #[test]
        fn sealed_secrets_open_only_in_their_context(here in (1..30_u64, 1..30_u64), there in (1..30_u64, 1..30_u64)) {
            let (old, both) = (ring(r#"{"current":"k1","k1":"<a>"}"#), ring(r#"{"current":"k2","k1":"<a>","k2":"<b>"}"#));
            let entropy = SeededEntropy::new(3);
            let mut secrets = WebhookSecrets::new(WebhookSecret::generate(&entropy));
            secrets.rotate(WebhookSecret::generate(&entropy), noon().plus(Duration::from_secs(1)), noon()).unwrap();
            let sealed = context(here.0, here.1).seal(&old, &entropy, &secrets, 1);
            let opened = context(there.0, there.1).open(&both, &sealed);
            prop_assert_eq!(opened.is_ok(), here == there);
            if let Ok(opened) = opened {
                prop_assert_eq!(exposed(&opened, noon()), exposed(&secrets, noon()));
            }
            let resealed = context(here.0, here.1).seal(&both, &entropy, &secrets, 2);
            prop_assert_eq!(context(here.0, here.1).open(&old, &resealed).unwrap_err(), WebhookSecretUnsealError::UnknownKid(resealed.kid));
        }
    }
}

//! What webhooks are signed with: all live secrets of an endpoint, sealed as one text.
//!
//! Each organization has a subkey of its own, derived from the ring's, and the text is bound to its organization and its endpoint: carried to
//! another place in the store, it does not open.

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::{
    domain::{Entropy, Id, Keyring, Kid, Timestamp, WebhookSecret},
    sealing::{self, SealingKey},
    store::{Ciphertext, SealedWebhookSecrets},
};

/// What the subkeys are for. Never changes: whatever is stored was sealed under it.
const PURPOSE: &[u8] = b"karta webhooks";
/// How many secrets sign at once: the current one, and two that gave way to it lately.
const LIVE_AT_MOST: usize = 3;

/// Whose endpoint, and which: what its secrets are bound to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WebhookSecretContext {
    pub organization: Id,
    pub endpoint: Id,
}

/// The secrets of an endpoint, the current one first.
#[derive(Debug)]
pub struct WebhookSecrets(Vec<Member>);

#[derive(Debug)]
struct Member {
    secret: WebhookSecret,
    /// The current one has no end.
    ends_at: Option<Timestamp>,
}

/// A member as it is sealed.
#[derive(Serialize, Deserialize)]
struct SealedMember<'a> {
    secret: &'a str,
    ends_at: Option<Timestamp>,
}

/// Why sealed secrets do not open.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WebhookSecretUnsealError {
    /// The ring at hand may be older than the sealed secrets.
    #[error("webhook secrets are sealed under {0}, which the ring does not hold")]
    UnknownKid(Kid),
    #[error("webhook secrets were changed, or carried here from elsewhere")]
    Tampered,
}

/// As many secrets are live as may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooManyLive;

impl WebhookSecrets {
    pub fn new(secret: WebhookSecret) -> Self {
        Self(vec![Member { secret, ends_at: None }])
    }

    /// Those that sign at a time, the current one first.
    pub fn live(&self, now: Timestamp) -> impl Iterator<Item = &WebhookSecret> {
        let live = self.0.iter().filter(move |member| member.ends_at.is_none_or(|end| now < end));
        live.map(|member| &member.secret)
    }

    /// Takes a secret into use; the one before it goes on signing until `ends_at`.
    pub fn rotate(&mut self, secret: WebhookSecret, ends_at: Timestamp, now: Timestamp) -> Result<(), TooManyLive> {
        let goes_on = |member: &Member| now < member.ends_at.unwrap_or(ends_at);
        if self.0.iter().filter(|member| goes_on(member)).count() >= LIVE_AT_MOST {
            return Err(TooManyLive);
        }
        self.0.retain(goes_on);
        for member in &mut self.0 {
            member.ends_at.get_or_insert(ends_at);
        }
        self.0.insert(0, Member { secret, ends_at: None });
        Ok(())
    }
}

impl WebhookSecretContext {
    /// Numbers and words without a slash: no two places are written alike.
    fn associated_data(self) -> String {
        format!("{}/webhook_endpoint/{}", self.organization, self.endpoint)
    }

    fn subkey(self, secret: &[u8]) -> SealingKey {
        sealing::derive_key(secret, self.organization.to_string().as_bytes(), PURPOSE)
    }

    /// Seals under the ring's current key. `version` is that of the item that is written.
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
        let text = serde_json::to_vec(&members).expect("texts and times encode");
        let sealed = self.subkey(secret).seal(nonce, self.associated_data().as_bytes(), &Zeroizing::new(text));
        SealedWebhookSecrets { kid: kid.clone(), ciphertext: Ciphertext::new(sealed), version }
    }

    /// Opens what was sealed for this place, under whichever key of the ring.
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

    /// Seals anew what is not sealed under the ring's current key.
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

    fn place(organization: u64, endpoint: u64) -> WebhookSecretContext {
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
    fn a_secret_that_gave_way_signs_until_its_grace_ends() {
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
        assert_eq!(exposed(&secrets, noon()).len(), 3, "a refused rotation changes nothing");
        assert_eq!(exposed(&secrets, end.plus(Duration::from_hours(9))), [name], "the current one has no end");
    }

    #[test]
    fn without_a_grace_the_old_secret_ends_at_once() {
        let entropy = SeededEntropy::new(1);
        let mut secrets = WebhookSecrets::new(WebhookSecret::generate(&entropy));
        let second = WebhookSecret::generate(&entropy);
        let name = second.expose().to_owned();
        secrets.rotate(second, noon(), noon()).unwrap();
        assert_eq!(exposed(&secrets, noon()), [name]);
    }

    proptest! {
        #[test]
        fn sealed_secrets_open_in_their_place_alone(here in (1..30_u64, 1..30_u64), there in (1..30_u64, 1..30_u64)) {
            let (old, both) = (ring(r#"{"current":"k1","k1":"<a>"}"#), ring(r#"{"current":"k2","k1":"<a>","k2":"<b>"}"#));
            let entropy = SeededEntropy::new(3);
            let mut secrets = WebhookSecrets::new(WebhookSecret::generate(&entropy));
            secrets.rotate(WebhookSecret::generate(&entropy), noon().plus(Duration::from_secs(1)), noon()).unwrap();
            let sealed = place(here.0, here.1).seal(&old, &entropy, &secrets, 1);
            let opened = place(there.0, there.1).open(&both, &sealed);
            prop_assert_eq!(opened.is_ok(), here == there);
            if let Ok(opened) = opened {
                prop_assert_eq!(exposed(&opened, noon()), exposed(&secrets, noon()));
            }
            let anew = place(here.0, here.1).seal(&both, &entropy, &secrets, 2);
            prop_assert_eq!(place(here.0, here.1).open(&old, &anew).unwrap_err(), WebhookSecretUnsealError::UnknownKid(anew.kid));
        }
    }
}

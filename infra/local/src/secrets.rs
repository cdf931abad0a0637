//! Secrets of a local run: generated once and stored beside the data in a file that only its owner
//! can read.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs,
    io::{ErrorKind, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use anyhow::{Context, Result, bail, ensure};
use karta_shared::{
    config::{Ring, Secret, SecretSource},
    domain::{CredentialKind, Entropy, Keyring, ObjectMembers, Power, ServiceTokens, StripeSecrets},
};
use secrecy::{ExposeSecret, SecretString};
use serde::de::IgnoredAny;

use crate::emulator::STORE_FILE;

/// Secrets by name, each in the JSON that Secrets Manager would hold. `service-token` holds
/// tokens separated by commas.
type StoredSecrets = BTreeMap<String, String>;

const SERVICE_TOKEN: &str = "service-token";
const SECRETS_FILE: &str = "secrets.json";
/// Lists the rings that were generated for the data, one per line. Only a ring that is not listed is
/// new in this version of the program; a listed ring that is missing was lost.
const RINGS_FILE: &str = "rings";
/// The rings of data from before [`RINGS_FILE`].
const UNLISTED_RINGS: [Ring; 6] =
    [Ring::SessionSigning, Ring::KeyTag, Ring::Cursor, Ring::Audit, Ring::SealingByok, Ring::SealingWebhooks];

/// Secrets from the environment, used instead of generated ones.
#[derive(Default)]
pub struct ProvidedSecrets {
    pub session_token_secret: Option<SecretString>,
    /// Tokens, separated by commas.
    pub service_tokens: Option<SecretString>,
    /// The JSON that Secrets Manager would hold.
    pub data_planes: Option<SecretString>,
    /// Signing secrets of Stripe's events, separated by commas.
    pub stripe_secrets: Option<SecretString>,
}

impl ProvidedSecrets {
    /// Rejects a session token secret that is not one plain text, a guessable secret, and a secret with
    /// two purposes: its holder for one purpose would also hold it for the other. A data plane's token
    /// that is also a service token is rejected later, when both secrets are read.
    pub fn check(&self) -> Result<()> {
        if let Some(secret) = &self.session_token_secret {
            check_plain(secret.expose_secret()).context("KARTA_SESSION_TOKEN_SECRET")?;
        }
        let secrets: Vec<(&str, usize, &str)> = [
            ("KARTA_SESSION_TOKEN_SECRET", self.session_token_secret.as_ref(), false),
            ("KARTA_SERVICE_TOKENS", self.service_tokens.as_ref(), true),
            ("KARTA_STRIPE_SECRETS", self.stripe_secrets.as_ref(), true),
        ]
        .into_iter()
        .filter_map(|(variable, text, is_list)| Some((variable, text?.expose_secret(), is_list)))
        .flat_map(|(variable, text, is_list)| {
            let entries: Vec<&str> = if is_list { text.split(',').collect() } else { vec![text] };
            entries.into_iter().enumerate().map(move |(at, entry)| (variable, at + 1, entry))
        })
        .collect();
        for (variable, position, secret) in &secrets {
            if is_guessable(secret) {
                bail!(
                    "{variable}: entry {position} has fewer than {MIN_DISTINCT_CHARACTERS} different characters: use the output of `openssl rand -hex 32`"
                );
            }
            if let Some((other, other_position, _)) =
                secrets.iter().find(|(other, _, twin)| other != variable && twin == secret)
            {
                bail!(
                    "{variable} and {other}: entry {position} of the first equals entry {other_position} of the second: use a separate secret for each"
                );
            }
        }
        Ok(())
    }
}

/// A secret that data planes share must be the same text for all of them: some would trim blanks.
fn check_plain(secret: &str) -> Result<()> {
    ensure!(secret.trim() == secret, "must not start or end with blanks or line ends: remove them");
    ensure!(
        serde_json::from_str::<ObjectMembers<IgnoredAny>>(secret).is_err(),
        "must be one plain secret, not the JSON of a ring: use the ring's current key"
    );
    Ok(())
}

/// Random text of 32 characters has more different characters, even in hexadecimal.
const MIN_DISTINCT_CHARACTERS: usize = 8;
/// Shorter secrets fail the length rule of their kind, whose message is more precise.
const MIN_CHECKED_LENGTH: usize = 16;

fn is_guessable(secret: &str) -> bool {
    let random = CredentialKind::ALL.iter().find_map(|kind| secret.strip_prefix(kind.brand())).unwrap_or(secret);
    random.len() >= MIN_CHECKED_LENGTH && random.bytes().collect::<BTreeSet<_>>().len() < MIN_DISTINCT_CHARACTERS
}

pub struct LocalSecrets {
    texts: HashMap<Secret, SecretString>,
    /// The first service token for the internal routes.
    pub service_token: SecretString,
    /// The secret of the signing ring's current key. A data plane on this machine verifies session
    /// tokens with it.
    pub session_token_secret: SecretString,
}

impl LocalSecrets {
    /// Reads the secrets in `folder` and generates those that are new; without a folder, generates
    /// all of them. Fails if the folder's data needs a ring that is missing. Secrets in `given` are
    /// used but not stored.
    pub fn open(folder: Option<&Path>, given: ProvidedSecrets, entropy: &dyn Entropy) -> Result<Self> {
        let path = folder.map(|folder| folder.join(SECRETS_FILE));
        let mut stored = path.as_deref().map(read).transpose()?.unwrap_or_default();
        if let Some(folder) = folder {
            // Before the check, so that an operator can delete a lost ring from the list.
            if folder.join(STORE_FILE).exists() && !folder.join(RINGS_FILE).exists() {
                write_rings(folder, &listed_rings(folder)?)?;
            }
            require_rings(folder, &stored)?;
        }
        let known = stored.len();
        for ring in Ring::ALL {
            stored.entry(ring.name().to_owned()).or_insert_with(|| ring_json(&random_hex(entropy)));
        }
        stored
            .entry(SERVICE_TOKEN.to_owned())
            .or_insert_with(|| format!("{}{}", CredentialKind::ServiceToken.brand(), random_hex(entropy)));
        if let Some(path) = &path
            && stored.len() > known
        {
            write(path, &serde_json::to_vec_pretty(&stored)?)?;
        }
        if let Some(folder) = folder {
            list_rings(folder)?;
        }
        if let Some(secret) = given.session_token_secret {
            Keyring::single("k1", secret.clone()).context("KARTA_SESSION_TOKEN_SECRET")?;
            stored.insert(Ring::SessionSigning.name().to_owned(), ring_json(secret.expose_secret()));
        }
        if let Some(tokens) = &given.service_tokens {
            serde_json::from_str::<ServiceTokens>(&service_tokens_json(tokens.expose_secret()))
                .context("KARTA_SERVICE_TOKENS")?;
            stored.insert(SERVICE_TOKEN.to_owned(), tokens.expose_secret().to_owned());
        }
        let stripe = given.stripe_secrets.map_or_else(|| "{}".to_owned(), |list| stripe_json(list.expose_secret()));
        serde_json::from_str::<StripeSecrets>(&stripe).context("KARTA_STRIPE_SECRETS")?;
        let service_tokens = &stored[SERVICE_TOKEN];
        let signing: Keyring =
            serde_json::from_str(&stored[Ring::SessionSigning.name()]).context("the session-signing ring")?;
        Ok(Self {
            session_token_secret: String::from_utf8_lossy(signing.current().1).into_owned().into(),
            service_token: service_tokens.split(',').next().unwrap_or_default().into(),
            texts: Ring::ALL
                .into_iter()
                .map(|ring| (ring.into(), stored[ring.name()].clone().into()))
                .chain([
                    (Secret::ServiceTokens, service_tokens_json(service_tokens).into()),
                    (Secret::DataPlanes, given.data_planes.unwrap_or_else(|| "{}".into())),
                    (Secret::Stripe, stripe.into()),
                ])
                .collect(),
        })
    }

    pub fn source(&self) -> SecretSource {
        SecretSource::Fixed(self.texts.clone())
    }
}

fn ring_json(secret: &str) -> String {
    serde_json::json!({ "current": "k1", "k1": secret }).to_string()
}

/// Returns the secret with these comma-separated service tokens. Each token has every power.
fn service_tokens_json(list: &str) -> String {
    let named = || list.split(',').enumerate().map(|(at, token)| (format!("local-{}", at + 1), token));
    let powers: BTreeMap<_, _> = named().map(|(name, _)| (name, Power::ALL.map(Power::as_str))).collect();
    let mut tokens = serde_json::json!({ "powers": powers });
    for (name, token) in named() {
        tokens[name] = token.into();
    }
    tokens.to_string()
}

/// Returns the secret with these comma-separated signing secrets of Stripe's test events.
fn stripe_json(list: &str) -> String {
    serde_json::json!({ "livemode": false, "signing_secrets": list.split(',').collect::<Vec<_>>() }).to_string()
}

/// Returns 64 hexadecimal digits: 256 bits.
pub(crate) fn random_hex(entropy: &dyn Entropy) -> String {
    let mut halves = [[0; 16]; 2];
    for half in &mut halves {
        entropy.fill(half);
    }
    let [high, low] = halves.map(u128::from_be_bytes);
    format!("{high:032x}{low:032x}")
}

/// Fails if `folder` contains data and `stored` lacks a ring that was generated for it: a new ring
/// would make every key, or everything that is sealed, invalid.
fn require_rings(folder: &Path, stored: &StoredSecrets) -> Result<()> {
    if !folder.join(STORE_FILE).exists() {
        return Ok(());
    }
    let folder_name = folder.display();
    ensure!(
        !stored.is_empty(),
        "{folder_name} contains data but no secrets.json, without which its keys cannot be used. Restore secrets.json, or remove {folder_name} to start over"
    );
    let mut lost = listed_rings(folder)?;
    lost.retain(|ring| !stored.contains_key(ring));
    ensure!(
        lost.is_empty(),
        "{folder_name} contains data but its secrets.json lacks rings, without which the data cannot be used: {}. Restore them from a copy of secrets.json, or remove {folder_name} to start over",
        lost.into_iter().collect::<Vec<_>>().join(", ")
    );
    Ok(())
}

fn listed_rings(folder: &Path) -> Result<BTreeSet<String>> {
    let path = folder.join(RINGS_FILE);
    let text = match fs::read_to_string(&path) {
        Err(error) if error.kind() == ErrorKind::NotFound => String::new(),
        text => text.with_context(|| format!("cannot read {}", path.display()))?,
    };
    let listed: BTreeSet<_> = text.split_whitespace().map(ToOwned::to_owned).collect();
    if listed.is_empty() { Ok(UNLISTED_RINGS.map(|ring| ring.name().to_owned()).into()) } else { Ok(listed) }
}

/// Adds this version's rings to the list. A later version's rings stay listed.
fn list_rings(folder: &Path) -> Result<()> {
    let mut rings = listed_rings(folder)?;
    rings.extend(Ring::ALL.map(|ring| ring.name().to_owned()));
    write_rings(folder, &rings)
}

fn write_rings(folder: &Path, rings: &BTreeSet<String>) -> Result<()> {
    let path = folder.join(RINGS_FILE);
    let text: String = rings.iter().flat_map(|ring| [ring.as_str(), "\n"]).collect();
    if fs::read(&path).is_ok_and(|listed| listed == text.as_bytes()) { Ok(()) } else { write(&path, text.as_bytes()) }
}

fn read(path: &Path) -> Result<StoredSecrets> {
    match fs::read(path) {
        // serde_json's message could quote a secret.
        Ok(bytes) => serde_json::from_slice::<ObjectMembers<String>>(&bytes)
            .ok()
            .and_then(|members| members.by_name().ok())
            .with_context(|| format!("{} must be an object of strings, each name once", path.display())),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(StoredSecrets::new()),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
}

/// Replaces the file atomically: a crash must not lose part of a key ring, because the data sealed
/// with it would be lost.
fn write(path: &Path, contents: &[u8]) -> Result<()> {
    let next = path.with_extension("next");
    let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&next)?;
    file.write_all(contents)?;
    file.sync_all()?;
    fs::rename(&next, path).with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use karta_shared::entropy::OsEntropy;
    use tempfile::TempDir;

    use super::*;

    fn open(folder: &TempDir) -> Result<StoredSecrets> {
        LocalSecrets::open(Some(folder.path()), ProvidedSecrets::default(), &OsEntropy)?;
        stored(folder)
    }

    fn stored(folder: &TempDir) -> Result<StoredSecrets> {
        read(&folder.path().join(SECRETS_FILE))
    }

    fn listed(folder: &TempDir) -> String {
        fs::read_to_string(folder.path().join(RINGS_FILE)).unwrap()
    }

    /// Returns a folder with secrets and data.
    fn used() -> TempDir {
        let folder = tempfile::tempdir().unwrap();
        open(&folder).unwrap();
        fs::write(folder.path().join(STORE_FILE), "").unwrap();
        folder
    }

    fn remove_secret(folder: &TempDir, name: &str) {
        let mut secrets = stored(folder).unwrap();
        secrets.remove(name).unwrap();
        fs::write(folder.path().join(SECRETS_FILE), serde_json::to_vec(&secrets).unwrap()).unwrap();
    }

    #[test]
    fn lost_ring_stops_the_start() {
        for ring in Ring::ALL.map(Ring::name) {
            for is_listed in [true, false] {
                if !is_listed && !UNLISTED_RINGS.map(Ring::name).contains(&ring) {
                    continue;
                }
                let folder = used();
                if !is_listed {
                    fs::remove_file(folder.path().join(RINGS_FILE)).unwrap();
                }
                remove_secret(&folder, ring);
                for _ in 0..2 {
                    let error = open(&folder).unwrap_err().to_string();
                    assert!(error.contains(&format!("cannot be used: {ring}. Restore")), "{error}");
                    assert!(!stored(&folder).unwrap().contains_key(ring), "nothing is generated");
                }
            }
        }
        let folder = used();
        remove_secret(&folder, "audit");
        remove_secret(&folder, "key-tag");
        assert!(open(&folder).unwrap_err().to_string().contains("cannot be used: audit, key-tag. Restore"));
        fs::remove_file(folder.path().join(SECRETS_FILE)).unwrap();
        assert!(open(&folder).unwrap_err().to_string().contains("contains data but no secrets.json"));
    }

    #[test]
    fn ring_of_an_upgrade_is_generated() {
        let folder = used();
        let (before, list) = (stored(&folder).unwrap(), listed(&folder));
        remove_secret(&folder, "cursor");
        fs::write(folder.path().join(RINGS_FILE), list.replace("cursor\n", "later\n")).unwrap();
        let error = open(&folder).unwrap_err().to_string();
        assert!(error.contains("cannot be used: later. Restore"), "{error}");
        fs::write(folder.path().join(RINGS_FILE), list.replace("cursor\n", "")).unwrap();
        let after = open(&folder).unwrap();
        assert_eq!(listed(&folder), list);
        for (name, secret) in &before {
            assert_eq!(*secret == after[name], name != "cursor", "{name}");
        }
        remove_secret(&folder, "cursor");
        assert!(open(&folder).is_err(), "the generated ring is listed");
    }

    #[test]
    fn unlisted_folder_is_complete_and_gets_listed() {
        let folder = used();
        let (before, list) = (stored(&folder).unwrap(), listed(&folder));
        assert_eq!(list.lines().count(), Ring::ALL.len());
        fs::remove_file(folder.path().join(RINGS_FILE)).unwrap();
        assert_eq!(open(&folder).unwrap(), before);
        assert_eq!(listed(&folder), list);
    }

    #[test]
    fn missing_secrets_without_data_are_generated() {
        let folder = used();
        fs::remove_file(folder.path().join(STORE_FILE)).unwrap();
        remove_secret(&folder, "key-tag");
        assert!(open(&folder).unwrap().contains_key("key-tag"));
        // The service token needs no data: a new token replaces it.
        let folder = used();
        let before = stored(&folder).unwrap();
        remove_secret(&folder, SERVICE_TOKEN);
        assert_ne!(open(&folder).unwrap()[SERVICE_TOKEN], before[SERVICE_TOKEN]);
    }
}

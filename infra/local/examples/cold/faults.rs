use std::{collections::BTreeMap, path::Path};

use anyhow::{Context, Result, ensure};

use crate::{aws::MALFORMED, lambda::Lambda};

/// Variables with a default.
const OPTIONAL: [&str; 7] = [
    "KARTA_BCRYPT_COST",
    "KARTA_INTERNAL_ALLOWED_IPS",
    "KARTA_INTERNAL_HOSTS",
    "KARTA_PRICES",
    "KARTA_PROVIDER_BASE_URLS",
    "KARTA_RESPONSE_TRANSFER_MODE",
    "KARTA_SESSION_RETENTION_DAYS",
];
/// Invalid values of variables, except those with the id of a secret.
const INVALID: [(&str, &str); 13] = [
    ("KARTA_TABLE", "a table"),
    ("KARTA_CREDENTIALS_TABLE", "a table"),
    ("KARTA_OUTBOX_TABLE", "a table"),
    ("KARTA_USAGE_TABLE", "a table"),
    ("KARTA_ANCHORS_TABLE", "a table"),
    ("KARTA_SESSIONS_TABLE", "a table"),
    ("KARTA_BCRYPT_COST", "9"),
    ("KARTA_INTERNAL_ALLOWED_IPS", "203.0.113.0/33"),
    ("KARTA_INTERNAL_HOSTS", "https://example.com"),
    ("KARTA_PRICES", "{"),
    ("KARTA_PROVIDER_BASE_URLS", "{"),
    ("KARTA_RESPONSE_TRANSFER_MODE", "STREAM"),
    ("KARTA_SESSION_RETENTION_DAYS", "0"),
];

/// An invalid setting that contains a secret, which the log must redact.
const WITH_SECRET: (&str, &str) = ("KARTA_PRICES", "/kt_live_AbC123SECRETsecret0123456789ABCD");
const SCRUBBED: &str = "/kt_live_AbC123[redacted]";

/// Starts a function without each of its settings in turn, and with an invalid value for each.
/// Every start must fail with a log that names the setting. Returns the number of starts.
pub(crate) async fn check_settings(binary: &Path, environment: &BTreeMap<String, String>) -> Result<usize> {
    let settings: Vec<_> = environment.keys().filter(|name| name.starts_with("KARTA_")).cloned().collect();
    let mut starts = 0;
    for name in settings {
        let mut changed = Vec::new();
        if !OPTIONAL.contains(&&*name) {
            changed.push((None, name.clone()));
        }
        if let Some((_, invalid)) = INVALID.iter().find(|(variable, _)| *variable == name) {
            changed.push((Some((*invalid).to_owned()), name.clone()));
        }
        if let Some(secret) = name.strip_prefix("KARTA_SECRET_") {
            let secret = secret.to_ascii_lowercase().replace('_', "-");
            changed.push((Some("karta/nowhere".to_owned()), secret.clone()));
            changed.push((Some(MALFORMED.to_owned()), secret));
        }
        for (value, named) in changed {
            let mut environment = environment.clone();
            environment.remove(&name);
            environment.extend(value.clone().map(|value| (name.clone(), value)));
            let fault = || format!("{name} is {}", value.as_deref().unwrap_or("not set"));
            let (succeeded, log) = Lambda::start(binary, &environment).await?.exit().await.with_context(fault)?;
            ensure!(!succeeded && log.contains(&named), "{}: the log does not name it: {log}", fault());
            starts += 1;
        }
    }
    // The binary compiles its redaction patterns at the first log line that needs them: this line
    // does.
    let mut environment = environment.clone();
    environment.insert(WITH_SECRET.0.to_owned(), WITH_SECRET.1.to_owned());
    let (succeeded, log) = Lambda::start(binary, &environment).await?.exit().await.context(WITH_SECRET.0)?;
    ensure!(!succeeded && log.contains(SCRUBBED) && !log.contains(WITH_SECRET.1), "{}: {log}", WITH_SECRET.0);
    Ok(starts + 1)
}

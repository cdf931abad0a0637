use std::{collections::BTreeMap, path::Path};

use anyhow::{Context, Result, ensure};

use crate::{aws::MALFORMED, lambda::Lambda};

/// What a function can do without: each has a default.
const OPTIONAL: [&str; 4] = ["KARTA_BCRYPT_COST", "KARTA_INTERNAL_ALLOWED_IPS", "KARTA_INTERNAL_HOSTS", "KARTA_PRICES"];
/// Of the variables that are not secrets' ids, those that have a form.
const WRONG: [(&str, &str); 9] = [
    ("KARTA_TABLE", "a table"),
    ("KARTA_CREDENTIALS_TABLE", "a table"),
    ("KARTA_OUTBOX_TABLE", "a table"),
    ("KARTA_USAGE_TABLE", "a table"),
    ("KARTA_ANCHORS_TABLE", "a table"),
    ("KARTA_BCRYPT_COST", "9"),
    ("KARTA_INTERNAL_ALLOWED_IPS", "203.0.113.0/33"),
    ("KARTA_INTERNAL_HOSTS", "https://example.com"),
    ("KARTA_PRICES", "{"),
];

/// A setting with a secret in it, which the log must show without.
const SECRET: (&str, &str) = ("KARTA_PRICES", "/kt_live_AbC123SECRETsecret0123456789ABCD");
const SCRUBBED: &str = "/kt_live_AbC123[redacted]";

/// Takes away each setting of a function in turn, and makes it wrong: each time the start must fail with a log that names it. Says how many
/// starts that were.
pub(crate) async fn refused(binary: &Path, environment: &BTreeMap<String, String>) -> Result<usize> {
    let settings: Vec<_> = environment.keys().filter(|name| name.starts_with("KARTA_")).cloned().collect();
    let mut starts = 0;
    for name in settings {
        let mut changed = Vec::new();
        if !OPTIONAL.contains(&&*name) {
            changed.push((None, name.clone()));
        }
        if let Some((_, wrong)) = WRONG.iter().find(|(variable, _)| *variable == name) {
            changed.push((Some((*wrong).to_owned()), name.clone()));
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
            let what = || format!("{name} is {}", value.as_deref().unwrap_or("not set"));
            let (is_well, log) = Lambda::start(binary, &environment).await?.ended().await.with_context(what)?;
            ensure!(!is_well && log.contains(&named), "{}: its log does not name it: {log}", what());
            starts += 1;
        }
    }
    // The scrubber's patterns are made for the first line that needs them, out of what this binary was built with.
    let mut environment = environment.clone();
    environment.insert(SECRET.0.to_owned(), SECRET.1.to_owned());
    let (is_well, log) = Lambda::start(binary, &environment).await?.ended().await.context(SECRET.0)?;
    ensure!(!is_well && log.contains(SCRUBBED) && !log.contains(SECRET.1), "{}: {log}", SECRET.0);
    Ok(starts + 1)
}

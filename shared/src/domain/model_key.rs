use std::{collections::BTreeMap, fmt};

use aws_lc_rs::rsa::KeyPair;
use base64::{Engine, prelude::BASE64_STANDARD};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use zeroize::Zeroizing;

use super::{Change, Changes, Id, Name, Timestamp, Value};

const MIN_CHARACTERS: usize = 20;
const TAIL_CHARACTERS: usize = 4;

/// The provider of a model key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Provider {
    Anthropic,
    OpenAi,
    Bedrock,
    Vertex,
    OpenRouter,
}

impl Provider {
    pub const ALL: [Self; 5] = [Self::Anthropic, Self::OpenAi, Self::Bedrock, Self::Vertex, Self::OpenRouter];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Anthropic => "anthropic",
            Self::OpenAi => "openai",
            Self::Bedrock => "bedrock",
            Self::Vertex => "vertex",
            Self::OpenRouter => "openrouter",
        }
    }

    const fn key_name(self) -> &'static str {
        match self {
            Self::Anthropic => "an Anthropic key",
            Self::OpenAi => "an OpenAI key",
            Self::Bedrock => "an AWS credential",
            Self::Vertex => "the key of a Google service account",
            Self::OpenRouter => "an OpenRouter key",
        }
    }

    const fn expected(self) -> &'static str {
        match self {
            Self::Anthropic => "a key that starts with sk-ant-",
            Self::OpenAi => "a key that starts with sk-",
            Self::Bedrock => {
                r#"a Bedrock API key that starts with ABSK, or JSON of strings: {"access_key_id":"AKIA...","secret_access_key":"..."}, with "session_token" and "region" if you have them"#
            }
            Self::Vertex => "the JSON file of a Google service account's key",
            Self::OpenRouter => "a key that starts with sk-or-",
        }
    }

    const fn takes_json(self) -> bool {
        matches!(self, Self::Bedrock | Self::Vertex)
    }
}

impl fmt::Display for Provider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A key that looks as if its provider issued it. The provider is not asked.
#[derive(Debug, Clone)]
pub struct ProviderKey {
    provider: Provider,
    plaintext: SecretString,
    tail: String,
}

/// The members of a JSON object of strings.
pub type Members = BTreeMap<String, SecretString>;

/// Credentials for other purposes, by their first characters.
const OTHER_PURPOSES: [(&str, &str); 8] = [
    ("sk-ant-admin", "a key that administers the account at its provider"),
    ("sk-admin-", "a key that administers the account at its provider"),
    ("sk-ant-oat", "an OAuth access token of a Claude login (sk-ant-oat)"),
    ("sk-ant-ort", "an OAuth refresh token of a Claude login (sk-ant-ort)"),
    ("sk-ant-sid", "a session token of the Claude website (sk-ant-sid)"),
    ("sk-lf-", "a secret key of Langfuse (sk-lf-)"),
    ("sk-helicone-", "a key of Helicone (sk-helicone-)"),
    ("bedrock-api-key-", "a short-term Bedrock API key, which ends within 12 hours"),
];
/// Parts of keys in examples and templates, in lower case and without `-` and `_`.
const PLACEHOLDERS: [&str; 8] =
    ["apikey", "yourkey", "keyhere", "placeholder", "example", "changeme", "xxxxxx", "skantapi03"];
/// Words of such keys between `-` and `_`.
const PLACEHOLDER_WORDS: [&str; 6] = ["your", "replace", "insert", "dummy", "here", "goes"];
/// Starts of the kinds of keys that providers issue, each with its minimum length. Anthropic's keys
/// have 108 characters, OpenAI's project keys 164 and earlier fewer, and OpenRouter's 73. A key of
/// another kind has `MIN_CHARACTERS`, because the operator's base URLs may lead to a gateway with
/// keys of its own.
const KINDS: [(&str, usize); 4] = [("sk-ant-api03-", 90), ("sk-proj-", 48), ("sk-svcacct-", 48), ("sk-or-v1-", 73)];
/// Starts of keys. Within a key they are the start of a second key: random characters equal the
/// shortest of them in less than one of a hundred million keys.
const STARTS: [&str; 6] = ["sk-ant-", "sk-or-", "sk-proj-", "sk-svcacct-", "sk-admin-", "kt_live_"];
/// Part of every key that OpenAI issues, between two random parts.
const OPENAI_MARK: &str = "T3BlbkFJ";
/// Minimum number of characters after the mark.
const MIN_AFTER_MARK: usize = 20;
/// Minimum number of distinct letters and digits in the random part of a key.
const MIN_DISTINCT: usize = 8;
const BEDROCK_API_KEY: &str = "ABSK";
const MIN_BEDROCK_BYTES: usize = 32;
/// Minimum length of the secret in a Bedrock API key of the console.
const MIN_BEDROCK_SECRET: usize = 32;
/// Start of a Bedrock API key in plain text, if its user was created by the console. The user's
/// name, a colon and the secret follow. AWS does not document the form for other users.
const BEDROCK_USER: &[u8] = b"BedrockAPIKey-";
/// Length of the id of every AWS access key.
const ACCESS_KEY_ID: usize = 20;
/// Length of the secret of every AWS access key.
const SECRET_ACCESS_KEY: usize = 40;
const SECRET_MEMBERS: [&str; 3] = ["secret_access_key", "session_token", "private_key"];
/// Minimum length of a part that counts as the key.
const MIN_PART: usize = 16;
/// 64 by RFC 7468, 76 by MIME.
const MAX_PEM_LINE: usize = 76;

/// Completes the sentence "key …" and contains nothing of the key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyRejected {
    #[error("has blanks or line breaks around it: paste only the key")]
    BlankAround,
    #[error("contains a blank or another character that keys do not have: paste printable ASCII without blanks")]
    Characters,
    #[error("must have 20 characters or more")]
    Short,
    #[error("looks like {}: choose provider {looks_like}, or paste {}", looks_like.key_name(), expected.expected())]
    Foreign { looks_like: Provider, expected: Provider },
    #[error("looks like an API key of this service: paste {}", .0.expected())]
    Ours(Provider),
    #[error("must be {}", .0.expected())]
    Unlike(Provider),
    #[error("may only contain {0} after its start")]
    Word(&'static str),
    #[error("is a placeholder: paste {}", .0.expected())]
    Placeholder(Provider),
    #[error("contains more than one key: paste one key once")]
    Several,
    #[error("is not a whole key: one that starts with {start} has {min} characters or more, so paste all of it")]
    Incomplete { start: &'static str, min: usize },
    #[error("is not a whole OpenAI key: paste all of it")]
    CutOpenAi,
    #[error("is not a whole Bedrock API key: paste ABSK and all of the base64 after it")]
    Cut,
    #[error("must contain {member}: {rule}")]
    Member { member: &'static str, rule: &'static str },
    #[error("may only contain access_key_id, secret_access_key, session_token and region")]
    UnknownMember,
    #[error("must contain each member once")]
    TwiceMember,
    #[error("is {what}: create an API key for servers and paste {}", expected.expected())]
    OtherPurpose { what: &'static str, expected: Provider },
}

impl ProviderKey {
    /// Checks a key. `members` are those of `text` if it is a JSON object of strings.
    pub fn parse(provider: Provider, text: SecretString, members: Option<&Members>) -> Result<Self, KeyRejected> {
        let tail = check(provider, text.expose_secret(), members)?;
        let start = tail.len().saturating_sub(TAIL_CHARACTERS);
        let tail = tail[start..].to_owned();
        Ok(Self { provider, plaintext: text, tail })
    }

    pub fn provider(&self) -> Provider {
        self.provider
    }

    pub fn expose(&self) -> &str {
        self.plaintext.expose_secret()
    }

    /// Returns whether a text that will be shown contains this key or is a part of it. Of
    /// `members`, only the secret ones count, because people use the others as names.
    pub fn occurs_in(&self, shown: &str, members: Option<&Members>) -> bool {
        let shown = shown.trim();
        let holds = |secret: &str| shown.contains(secret) || (shown.len() >= MIN_PART && secret.contains(shown));
        match members {
            Some(members) => {
                SECRET_MEMBERS.iter().filter_map(|name| members.get(*name)).any(|secret| holds(secret.expose_secret()))
            }
            None => holds(self.expose()),
        }
    }
}

/// Returns the part whose tail may be shown: the key itself or, for JSON, its id.
fn check<'a>(provider: Provider, text: &'a str, members: Option<&'a Members>) -> Result<&'a str, KeyRejected> {
    // Blanks around JSON have no meaning, and a file ends in a line break.
    let padded = text.starts_with(char::is_whitespace) || text.ends_with(char::is_whitespace);
    if padded && members.is_none() {
        return Err(KeyRejected::BlankAround);
    }
    // A JSON file keeps its line breaks. Inside its strings they are escaped.
    let json = (provider.takes_json() && !text.starts_with(BEDROCK_API_KEY)) || members.is_some();
    let layout = |c: char| json && matches!(c, ' ' | '\n' | '\r' | '\t');
    if !text.chars().all(|c| c.is_ascii_graphic() || layout(c)) {
        return Err(KeyRejected::Characters);
    }
    if text.starts_with("kt_live_") {
        return Err(KeyRejected::Ours(provider));
    }
    if let Some(&(_, what)) = OTHER_PURPOSES.iter().find(|(start, _)| text.starts_with(start)) {
        return Err(KeyRejected::OtherPurpose { what, expected: provider });
    }
    let looks_like = looks_like(text, members);
    if let Some(looks_like) = looks_like.filter(|looks_like| *looks_like != provider) {
        return Err(KeyRejected::Foreign { looks_like, expected: provider });
    }
    if text.len() < MIN_CHARACTERS {
        return Err(KeyRejected::Short);
    }
    if members.is_none() && looks_like.is_some() && is_several(text) {
        return Err(KeyRejected::Several);
    }
    match (provider, members) {
        (Provider::Anthropic, _) => word(provider, text, "sk-ant-"),
        (Provider::OpenAi, _) => word(provider, text, "sk-"),
        (Provider::OpenRouter, _) => word(provider, text, "sk-or-"),
        (Provider::Bedrock, Some(members)) => access_key(members),
        (Provider::Vertex, Some(members)) => service_account(members),
        (Provider::Bedrock, None) if text.starts_with(BEDROCK_API_KEY) => bedrock_api_key(text),
        (Provider::Bedrock | Provider::Vertex, None) => Err(KeyRejected::Unlike(provider)),
    }
}

/// Returns whether a key that was pasted twice, or two keys, would replace a working key.
fn is_several(text: &str) -> bool {
    let rest = &text[1..];
    rest.contains(&text[..MIN_CHARACTERS])
        || STARTS.iter().any(|start| rest.contains(start))
        || text.matches(OPENAI_MARK).nth(1).is_some()
}

fn looks_like(text: &str, members: Option<&Members>) -> Option<Provider> {
    if let Some(members) = members {
        let service_account = members.get("type").is_some_and(|kind| kind.expose_secret() == "service_account");
        let access_key = members.contains_key("access_key_id");
        return service_account.then_some(Provider::Vertex).or(access_key.then_some(Provider::Bedrock));
    }
    let starts = [
        ("sk-ant-", Provider::Anthropic),
        ("sk-or-", Provider::OpenRouter),
        ("sk-", Provider::OpenAi),
        (BEDROCK_API_KEY, Provider::Bedrock),
        ("AKIA", Provider::Bedrock),
        ("ASIA", Provider::Bedrock),
    ];
    starts.into_iter().find(|(start, _)| text.starts_with(start)).map(|(_, provider)| provider)
}

fn word<'a>(provider: Provider, text: &'a str, start: &str) -> Result<&'a str, KeyRejected> {
    let rest = text.strip_prefix(start).ok_or(KeyRejected::Unlike(provider))?;
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    if !rest.bytes().all(allowed) {
        return Err(KeyRejected::Word("letters, digits, - and _"));
    }
    let kind = KINDS.iter().find(|(kind, _)| text.starts_with(kind));
    if is_placeholder(kind.map_or(rest, |(kind, _)| &text[kind.len()..])) {
        return Err(KeyRejected::Placeholder(provider));
    }
    if let Some(&(start, min)) = kind.filter(|(_, min)| text.len() < *min) {
        return Err(KeyRejected::Incomplete { start, min });
    }
    match text.split_once(OPENAI_MARK) {
        Some((_, end)) if provider == Provider::OpenAi && end.len() < MIN_AFTER_MARK => Err(KeyRejected::CutOpenAi),
        _ => Ok(text),
    }
}

/// Returns whether the random part of a key is a word of an example, a row of `x`, or has few
/// distinct characters. A placeholder would replace a working key and fail at the data plane.
fn is_placeholder(random: &str) -> bool {
    let distinct = (b'0'..=b'z').filter(|byte| byte.is_ascii_alphanumeric() && random.as_bytes().contains(byte));
    let is_crossed_out = |part: &str| part.len() >= 4 && part.bytes().all(|byte| byte.eq_ignore_ascii_case(&b'x'));
    // The capacity suffices, so no copy of the key is left behind.
    let mut letters = Zeroizing::new(Vec::<u8>::with_capacity(random.len()));
    letters.extend(random.bytes().filter(u8::is_ascii_alphanumeric).map(|byte| byte.to_ascii_lowercase()));
    distinct.count() < MIN_DISTINCT
        || random
            .split(['-', '_'])
            .any(|part| is_crossed_out(part) || PLACEHOLDER_WORDS.iter().any(|word| part.eq_ignore_ascii_case(word)))
        || PLACEHOLDERS.iter().any(|word| letters.windows(word.len()).any(|part| part == word.as_bytes()))
}

/// Accepts `ABSK` and base64 with its padding. The base64 is decoded, because a key that was cut
/// would replace a working key.
fn bedrock_api_key(text: &str) -> Result<&str, KeyRejected> {
    let word = text.strip_suffix("==").or(text.strip_suffix('=')).unwrap_or(text);
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'+' || byte == b'/';
    if !word.bytes().all(allowed) {
        return Err(KeyRejected::Word("letters, digits, + and /, and = only at its end"));
    }
    let base64 = &text[BEDROCK_API_KEY.len()..];
    let plain = BASE64_STANDARD.decode(base64).map(Zeroizing::new).map_err(|_| KeyRejected::Cut)?;
    let secret = plain.iter().position(|byte| *byte == b':').map_or(0, |colon| plain.len() - colon - 1);
    if plain.len() < MIN_BEDROCK_BYTES || (plain.starts_with(BEDROCK_USER) && secret < MIN_BEDROCK_SECRET) {
        return Err(KeyRejected::Cut);
    }
    if is_placeholder(base64) { Err(KeyRejected::Placeholder(Provider::Bedrock)) } else { Ok(text) }
}

/// Accepts `{"access_key_id", "secret_access_key", "session_token"?, "region"?}`. Rejects other
/// members, because a misspelled name would be missed where the key is used.
fn access_key(members: &Members) -> Result<&str, KeyRejected> {
    let known = ["access_key_id", "secret_access_key", "session_token", "region"];
    if !members.keys().all(|name| known.contains(&name.as_str())) {
        return Err(KeyRejected::UnknownMember);
    }
    let id = member(members, "access_key_id", "AKIA or ASIA and 16 capital letters and digits", |id| {
        (id.starts_with("AKIA") || id.starts_with("ASIA"))
            && id.len() == ACCESS_KEY_ID
            && id.bytes().all(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit())
    })?;
    let rule = "40 letters, digits, /, + and =, neither the access key id nor a placeholder";
    member(members, "secret_access_key", rule, |secret| {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"/+=".contains(&byte);
        secret.len() == SECRET_ACCESS_KEY && secret.bytes().all(allowed) && secret != id && !is_placeholder(secret)
    })?;
    if members.contains_key("session_token") && id.starts_with("AKIA") {
        let rule = "one that starts with ASIA, because session_token belongs to a temporary access key";
        return Err(KeyRejected::Member { member: "access_key_id", rule });
    }
    if id.starts_with("ASIA") {
        let rule = "printable ASCII without blanks; an access key that starts with ASIA is temporary and requires it";
        member(members, "session_token", rule, is_word)?;
    }
    if members.contains_key("region") {
        member(members, "region", "the name of an AWS region such as us-east-1", is_region)?;
    }
    Ok(id)
}

/// Google's token endpoints. Google's libraries call the URL in the file, so any other URL would
/// lead a data plane there.
const TOKEN_URIS: [&str; 2] = ["https://oauth2.googleapis.com/token", "https://accounts.google.com/o/oauth2/token"];

/// Accepts the file that Google issues, with any other members.
fn service_account(members: &Members) -> Result<&str, KeyRejected> {
    member(members, "type", "service_account", |kind| kind == "service_account")?;
    // The project id becomes part of a URL's path.
    member(members, "project_id", "the id of a Google Cloud project", |project| {
        let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-.:".contains(&byte);
        project.len() >= 4 && project.bytes().all(allowed)
    })?;
    let id = member(members, "private_key_id", "8 or more letters and digits", |id| {
        id.len() >= 8 && id.bytes().all(|byte| byte.is_ascii_alphanumeric())
    })?;
    let has_escapes = |pem: &SecretString| pem.expose_secret().contains("\\n");
    let rule = if members.get("private_key").is_some_and(has_escapes) {
        r"a PKCS #8 PEM with line breaks, not with the characters \ and n in their place: paste the file unchanged"
    } else {
        "the service account's RSA private key as PKCS #8 PEM (BEGIN PRIVATE KEY): paste the file unchanged"
    };
    member(members, "private_key", rule, is_rsa_private_key)?;
    member(members, "client_email", "the service account's e-mail address", |email| {
        let halves = email.split_once('@');
        is_word(email)
            && halves.is_some_and(|(name, host)| !name.is_empty() && host.contains('.') && !host.contains('@'))
    })?;
    if members.contains_key("token_uri") {
        member(members, "token_uri", "Google's token endpoint, https://oauth2.googleapis.com/token", |uri| {
            TOKEN_URIS.contains(&uri)
        })?;
    }
    if members.contains_key("universe_domain") {
        member(members, "universe_domain", "googleapis.com", |domain| domain == "googleapis.com")?;
    }
    Ok(id)
}

/// Requires at least 2,048 bits, as PKCS #8 in PEM. The key is decoded, because a damaged key would
/// replace a working key and fail at the data plane.
fn is_rsa_private_key(pem: &str) -> bool {
    let body = pem.trim_end().strip_prefix("-----BEGIN PRIVATE KEY-----");
    let body = body.and_then(|body| body.strip_suffix("-----END PRIVATE KEY-----"));
    let body = body.and_then(|body| body.strip_prefix("\r\n").or(body.strip_prefix('\n')));
    let Some(body) = body.filter(|body| body.ends_with('\n')) else {
        return false;
    };
    let mut base64 = Zeroizing::new(String::with_capacity(body.len()));
    for line in body.lines() {
        if !(1..=MAX_PEM_LINE).contains(&line.len()) {
            return false;
        }
        base64.push_str(line);
    }
    let der = BASE64_STANDARD.decode(&*base64).map(Zeroizing::new);
    der.is_ok_and(|der| is_one_sequence(&der) && KeyPair::from_pkcs8(&der).is_ok())
}

/// Returns whether a DER sequence ends where the bytes end. AWS-LC ignores bytes after it. The
/// length of a key of 2,048 bits or more takes two bytes.
fn is_one_sequence(der: &[u8]) -> bool {
    let [0x30, 0x82, high, low, content @ ..] = der else { return false };
    content.len() == usize::from(u16::from_be_bytes([*high, *low]))
}

/// Words and a number: `us-east-1`, `us-gov-west-1`.
fn is_region(text: &str) -> bool {
    let words: Vec<_> = text.split('-').collect();
    let [words @ .., number] = words.as_slice() else { return false };
    let of_letters = |word: &&str| !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_lowercase());
    text.len() <= 32
        && words.len() >= 2
        && words.iter().all(of_letters)
        && !number.is_empty()
        && number.bytes().all(|byte| byte.is_ascii_digit())
}

fn is_word(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic())
}

fn member<'a>(
    members: &'a Members,
    member: &'static str,
    rule: &'static str,
    fits: impl FnOnce(&str) -> bool,
) -> Result<&'a str, KeyRejected> {
    let value = members.get(member).map(SecretString::expose_secret);
    value.filter(|value| fits(value)).ok_or(KeyRejected::Member { member, rule })
}

/// A provider key without the key itself, which is stored sealed until it is revoked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelKey {
    pub id: Id,
    pub provider: Provider,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<Name>,
    /// The last four characters of the key or, for a JSON credential, of its id.
    pub tail: String,
    pub created_at: Timestamp,
    /// When the key was revoked or replaced.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub revoked_at: Option<Timestamp>,
    /// Counts changes: a write that depends on a read is conditional on it.
    pub version: u64,
}

impl ModelKey {
    pub fn new(id: Id, key: &ProviderKey, name: Option<Name>, now: Timestamp) -> Self {
        Self { id, provider: key.provider, name, tail: key.tail.clone(), created_at: now, revoked_at: None, version: 1 }
    }

    /// Returns false if the key is already revoked.
    pub fn revoke(&mut self, now: Timestamp) -> bool {
        let active = self.revoked_at.is_none();
        if active {
            self.revoked_at = Some(now);
            self.version += 1;
        }
        active
    }

    /// Returns the settings as the audit event of the creation shows them.
    pub fn creation(&self) -> Changes {
        let chosen = [
            ("provider", self.provider.as_str().into()),
            ("name", self.name.as_ref().map(Name::as_str).into()),
            ("tail", self.tail.as_str().into()),
        ];
        chosen.map(|(field, after)| (field.to_owned(), Change { before: Value::Null, after })).into()
    }

    /// Returns the changes. `successor` is the key that replaced this one, if there is one.
    pub fn revocation(&self, successor: Option<Id>) -> Changes {
        let became = [
            ("revoked_at", self.revoked_at.map(Value::from)),
            ("replaced_by", successor.map(|id| Value::from(id.get()))),
        ];
        let became = became.into_iter().filter_map(|(field, after)| Some((field.to_owned(), after?)));
        became.map(|(field, after)| (field, Change { before: Value::Null, after })).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use aws_lc_rs::{
        encoding::{AsDer, Pkcs8V1Der},
        rsa::KeySize,
        signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair},
    };
    use proptest::prelude::*;

    use super::*;

    fn pem(der: &[u8]) -> String {
        let base64 = BASE64_STANDARD.encode(der);
        let lines: Vec<_> = base64.as_bytes().chunks(64).map(|line| str::from_utf8(line).unwrap()).collect();
        format!("-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n", lines.join("\n"))
    }

    static PRIVATE_KEY: LazyLock<String> = LazyLock::new(|| {
        let key = KeyPair::generate(KeySize::Rsa2048).unwrap();
        pem(AsDer::<Pkcs8V1Der<'_>>::as_der(&key).unwrap().as_ref())
    });

    const ACCESS_KEY: [(&str, &str); 2] =
        [("access_key_id", "AKIAIOSFODNN7EXAMPLE"), ("secret_access_key", "wJalrXUtnFEMI/K7MDENG/bPxRfiCY0123456789")];
    static SERVICE_ACCOUNT: LazyLock<[(&str, &str); 6]> = LazyLock::new(|| {
        [
            ("type", "service_account"),
            ("project_id", "acme-1"),
            ("private_key_id", "0123456789abcdef0123456789abcdef01234567"),
            ("private_key", PRIVATE_KEY.as_str()),
            ("client_email", "karta@acme-1.iam.gserviceaccount.com"),
            ("token_uri", "https://oauth2.googleapis.com/token"),
        ]
    });

    fn bedrock_key(plain: &str) -> String {
        format!("ABSK{}", BASE64_STANDARD.encode(plain))
    }

    /// Returns characters as random as those of a key.
    fn random(length: usize) -> String {
        (0..length).map(|at| char::from(b"7QxW9z3RkT5mVb2NpL8cJ4hYsD6fGa1"[at * 7 % 31])).collect()
    }

    fn parsed(provider: Provider, text: &str) -> Result<String, String> {
        let key = ProviderKey::parse(provider, text.into(), None);
        key.map(|key| key.tail).map_err(|rejected| rejected.to_string())
    }

    /// Removes a member that is changed to an empty text.
    fn parsed_json(provider: Provider, members: &[(&str, &str)], changes: &[(&str, &str)]) -> Result<String, String> {
        let members = members.iter().chain(changes).map(|(name, value)| ((*name).to_owned(), *value));
        let members: BTreeMap<_, _> = members.collect();
        let members: Members = members
            .into_iter()
            .filter(|(_, value)| !value.is_empty())
            .map(|(name, value)| (name, value.into()))
            .collect();
        let key = ProviderKey::parse(provider, "{ as the caller\n read it }".into(), Some(&members));
        key.map(|key| key.tail).map_err(|rejected| rejected.to_string())
    }

    #[test]
    fn valid_keys_show_their_last_four_characters() {
        let of_console = bedrock_key(&format!("BedrockAPIKey-a1b2-at-123456789012:{}", random(33)));
        let of_own_user = bedrock_key("ci-at-123456789012:0123456789abcd");
        for (provider, text, tail) in [
            (Provider::Anthropic, &*format!("sk-ant-api03-{}_B-9876", random(88)), "9876"),
            (Provider::OpenAi, "sk-abcdefghijklmnop1234", "1234"),
            (Provider::OpenAi, &*format!("sk-{}T3BlbkFJ{}", random(20), random(20)), "c6xT"),
            (Provider::OpenAi, &*format!("sk-proj-{}T3BlbkFJ{}-_Zz", random(74), random(70)), "-_Zz"),
            (Provider::OpenAi, &*format!("sk-svcacct-{}-_Zz", random(33)), "-_Zz"),
            (Provider::OpenRouter, &*format!("sk-or-v1-{}cdef", random(60)), "cdef"),
            (Provider::Bedrock, &*of_console, &of_console[of_console.len() - 4..]),
            (Provider::Bedrock, &*of_own_user, &of_own_user[of_own_user.len() - 4..]),
        ] {
            assert_eq!(parsed(provider, text).as_deref(), Ok(tail));
        }
        assert_eq!(parsed_json(Provider::Bedrock, &ACCESS_KEY, &[]).as_deref(), Ok("MPLE"));
        let temporary =
            [("access_key_id", "ASIAIOSFODNN7EXAMPLX"), ("session_token", "IQoJ+/="), ("region", "eu-west-1")];
        assert_eq!(parsed_json(Provider::Bedrock, &ACCESS_KEY, &temporary).as_deref(), Ok("MPLX"));
        assert_eq!(parsed_json(Provider::Vertex, &SERVICE_ACCOUNT[..], &[]).as_deref(), Ok("4567"));
    }

    #[test]
    fn key_of_another_provider_is_recognised() {
        let foreign = |provider, text| parsed(provider, text).unwrap_err();
        assert_eq!(
            foreign(Provider::Anthropic, "sk-proj-abcdefghijklmnop"),
            "looks like an OpenAI key: choose provider openai, or paste a key that starts with sk-ant-"
        );
        for (provider, text, named) in [
            (Provider::OpenAi, "sk-ant-api03-abcdefghijkl", "anthropic"),
            (Provider::OpenAi, "sk-or-v1-abcdefghijklmnop", "openrouter"),
            (Provider::OpenRouter, "sk-ant-api03-abcdefghijkl", "anthropic"),
            (Provider::OpenRouter, "sk-abcdefghijklmnopqrst", "openai"),
            (Provider::Vertex, "AKIAIOSFODNN7EXAMPLE", "bedrock"),
            (Provider::Bedrock, "sk-ant-api03-abcdefghijkl", "anthropic"),
            (Provider::OpenAi, "ABSKQmVkcm9ja0FQSUtleS1hYmNk", "bedrock"),
            (Provider::Vertex, "ABSKQmVkcm9ja0FQSUtleS1hYmNk", "bedrock"),
        ] {
            assert!(foreign(provider, text).contains(&format!("choose provider {named}, ")), "{provider} {text}");
        }
        for (provider, members, named) in
            [(Provider::OpenAi, &ACCESS_KEY[..], "bedrock"), (Provider::Bedrock, &SERVICE_ACCOUNT[..], "vertex")]
        {
            let refusal = parsed_json(provider, members, &[]).unwrap_err();
            assert!(refusal.contains(&format!("choose provider {named}, ")), "{refusal}");
        }
        let ours = foreign(Provider::Anthropic, "kt_live_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA");
        assert_eq!(ours, "looks like an API key of this service: paste a key that starts with sk-ant-");
    }

    #[test]
    fn credentials_for_other_purposes_are_rejected() {
        for provider in Provider::ALL {
            for (text, named) in [
                ("sk-ant-admin01-abcdefghijklmnop", "a key that administers the account"),
                ("sk-admin-abcdefghijklmnopqrst", "a key that administers the account"),
                ("sk-ant-oat01-abcdefghijklmnopq", "an OAuth access token of a Claude login (sk-ant-oat)"),
                ("sk-ant-ort01-abcdefghijklmnopq", "an OAuth refresh token of a Claude login (sk-ant-ort)"),
                ("sk-ant-sid01-abcdefghijklmnopq", "a session token of the Claude website (sk-ant-sid)"),
                ("sk-lf-01234567-89ab-cdef-0123-456789abcdef", "a secret key of Langfuse (sk-lf-)"),
                ("sk-helicone-7qxw9z3-rkt5mvb-2npl8cj-4hysd6f", "a key of Helicone (sk-helicone-)"),
                ("sk-helicone-eu-7qxw9z3-rkt5mvb-2npl8cj-4hysd6f", "a key of Helicone (sk-helicone-)"),
                ("bedrock-api-key-YmVkcm9jay5hbWF6b25h", "a short-term Bedrock API key"),
            ] {
                let refusal = parsed(provider, text).unwrap_err();
                assert!(refusal.contains(named) && refusal.contains(provider.expected()), "{refusal}");
            }
        }
        assert!(parsed(Provider::Anthropic, &format!("sk-ant-api03-admin-{}", random(80))).is_ok());
    }

    #[test]
    fn openai_refuses_brands_of_other_services() {
        let examples = crate::domain::secret_examples();
        let examples: Vec<_> = examples.iter().filter(|secret| secret.starts_with("sk-")).collect();
        for secret in &examples {
            let is_own = ["sk-7", "sk-proj-", "sk-svcacct-"].iter().any(|brand| secret.starts_with(brand));
            assert_eq!(parsed(Provider::OpenAi, &format!("{secret}-{}", random(20))).is_ok(), is_own, "{secret}");
        }
        assert!(examples.len() >= 8);
    }

    #[test]
    fn cut_keys_are_rejected() {
        let whole = [
            (Provider::Anthropic, format!("sk-ant-api03-{}", random(95)), 90),
            (Provider::OpenAi, format!("sk-proj-{}", random(40)), 48),
            (Provider::OpenAi, format!("sk-svcacct-{}", random(40)), 48),
            (Provider::OpenRouter, format!("sk-or-v1-{}", random(64)), 73),
        ];
        for (provider, whole, min) in &whole {
            assert!(parsed(*provider, whole).is_ok() && parsed(*provider, &whole[..*min]).is_ok(), "{whole}");
            for length in [23, 24, 40, min - 1] {
                let refusal = parsed(*provider, &whole[..length]).unwrap_err();
                assert!(refusal.starts_with("is not a whole key: one that starts with sk-"), "{refusal}");
                assert!(refusal.ends_with(&format!("- has {min} characters or more, so paste all of it")), "{refusal}");
            }
        }
        for start in ["sk-", "sk-proj-", "sk-svcacct-"] {
            let whole = format!("{start}{}T3BlbkFJ{}", random(58), random(58));
            assert!(parsed(Provider::OpenAi, &whole).is_ok(), "{start}");
            let refusal = parsed(Provider::OpenAi, &whole[..whole.len() - 39]).unwrap_err();
            assert_eq!(refusal, "is not a whole OpenAI key: paste all of it");
        }
        let cut = parsed(Provider::Anthropic, "sk-ant-api03-bzVVtPBVwQW");
        let message =
            "is not a whole key: one that starts with sk-ant-api03- has 90 characters or more, so paste all of it";
        assert_eq!(cut, Err(message.to_owned()));
    }

    #[test]
    fn several_keys_are_rejected() {
        let anthropic = format!("sk-ant-api03-{}", random(95));
        let openrouter = format!("sk-or-v1-{}", random(64));
        let project = format!("sk-proj-{}T3BlbkFJ{}", random(74), random(74));
        let legacy = format!("sk-{}T3BlbkFJ{}", random(20), random(20));
        let gateway = "sk-7QxW9z3RkT5mVb2NpL8cJ4";
        let bedrock = bedrock_key(&format!("BedrockAPIKey-a1b2-at-123456789012:{}", random(34)));
        assert!(!bedrock.ends_with('=') && parsed(Provider::Bedrock, &bedrock).is_ok());
        for (provider, text) in [
            (Provider::Anthropic, anthropic.repeat(2)),
            (Provider::Anthropic, format!("{anthropic}{}", &anthropic[..30])),
            (Provider::Anthropic, format!("{anthropic}{project}")),
            (Provider::Anthropic, format!("{anthropic}_kt_live_{}", random(32))),
            (Provider::OpenRouter, openrouter.repeat(2)),
            (Provider::OpenRouter, openrouter.repeat(3)),
            (Provider::OpenAi, project.repeat(2)),
            (Provider::OpenAi, format!("{project}{legacy}")),
            (Provider::OpenAi, format!("{legacy}{anthropic}")),
            (Provider::OpenAi, legacy.repeat(2)),
            (Provider::OpenAi, gateway.repeat(2)),
            (Provider::Bedrock, bedrock.repeat(2)),
        ] {
            assert_eq!(
                parsed(provider, &text),
                Err("contains more than one key: paste one key once".to_owned()),
                "{text}"
            );
        }
        for body in ["sk-7QxW9z3RkT5mVb2N", "7QxW9z3RkT5mVb2Nsk-", "7QxW9z3R-ant-api03-kT5mVb2N"] {
            assert!(parsed(Provider::OpenAi, &format!("sk-{body}")).is_ok(), "{body}");
        }
    }

    #[test]
    fn placeholders_are_rejected() {
        for provider in [Provider::Anthropic, Provider::OpenAi, Provider::OpenRouter] {
            let start = provider.expected().rsplit(' ').next().unwrap();
            for rest in [
                "your-api-key-goes-here",
                "YOUR_API_KEY_0123456789",
                "yourKey0123456789abcdef",
                "put-your-key-here-0123456789",
                "placeholder-0123456789",
                "EXAMPLE0123456789abcdef",
                "exam-ple_0123456789abcdef",
                "0123456789-change-me-now",
                "xxxxxxxxxxxxxxxxxxxxxxxx",
                "XXXX-0123456789abcdef",
                "0123456789abcdXxXxXx",
                "aaaaaaaaaaaaaaaaaaaaaaaa",
                "1234567123456712345671234567",
                "api03-0000000000000000000000",
                "proj-1111111111111111111111",
                "svcacct-----------------------",
                "v1-abcabcabcabcabcabcabcabc",
            ] {
                let refusal = parsed(provider, &format!("{start}{rest}")).unwrap_err();
                assert_eq!(refusal, format!("is a placeholder: paste {}", provider.expected()), "{rest}");
            }
            let long = format!("api03-{}", random(80));
            for rest in ["0123456789abcdefghij", &long, "0xxx1xxxx2xxxxx3456789-xxx"] {
                assert!(parsed(provider, &format!("{start}{rest}")).is_ok(), "{rest}");
            }
        }
    }

    #[test]
    fn damaged_bedrock_keys_are_rejected() {
        let whole = bedrock_key(&format!("BedrockAPIKey-a1b2-at-123456789012:{}", random(33)));
        assert!(parsed(Provider::Bedrock, &whole).is_ok());
        for (what, text) in [
            ("without its last character", &whole[..whole.len() - 1]),
            ("cut to 30 bytes", &whole[..4 + 40]),
            ("cut to 66 bytes", &whole[..4 + 88]),
            ("no base64", "ABSK0123456789abcdef0123456789abcdef0123456789abcdefA"),
            ("without a secret", bedrock_key("BedrockAPIKey-a1b2-at-123456789012-0123456789ab").as_str()),
        ] {
            let cut = "is not a whole Bedrock API key: paste ABSK and all of the base64 after it";
            assert_eq!(parsed(Provider::Bedrock, text), Err(cut.to_owned()), "{what}");
        }
        let blank = parsed(Provider::Bedrock, &format!("ABSK{}", "A".repeat(48))).unwrap_err();
        assert!(blank.starts_with("is a placeholder: paste a Bedrock API key"), "{blank}");
    }

    #[test]
    fn name_that_contains_the_key_is_recognised() {
        let text = r#"{"access_key_id":"AKIAIOSFODNN7EXAMPLE","secret_access_key":"wJalrXUtnFEMI/K7MDENG/bPxRfiCY0123456789"}"#;
        let members: Members = ACCESS_KEY.map(|(name, value)| (name.to_owned(), value.into())).into();
        let key = ProviderKey::parse(Provider::Bedrock, text.into(), Some(&members)).unwrap();
        let word = ProviderKey::parse(Provider::OpenAi, "sk-abcdefghijklmnop1234".into(), None).unwrap();
        for name in [ACCESS_KEY[1].1, &format!(" {text}\n"), &ACCESS_KEY[1].1[3..30]] {
            assert!(key.occurs_in(name, Some(&members)), "{name}");
        }
        assert!(word.occurs_in("prod sk-abcdefghijklmnop1234 key", None) && word.occurs_in("abcdefghijklmnop", None));
        for name in ["Production", "AKIA", "1234", "secret_access_key", "secret", "us-east-1"] {
            assert!(!key.occurs_in(name, Some(&members)) && !word.occurs_in(name, None), "{name}");
        }
    }

    #[test]
    fn file_may_end_in_a_line_break() {
        let members: Members =
            SERVICE_ACCOUNT.iter().map(|(name, value)| ((*name).to_owned(), (*value).into())).collect();
        let key = ProviderKey::parse(Provider::Vertex, "{ as the caller read it }\n".into(), Some(&members)).unwrap();
        assert!(key.expose().ends_with('\n'), "it is stored unchanged");
    }

    #[test]
    fn errors_name_the_fault() {
        for (provider, text, message) in [
            (Provider::Anthropic, "", "20 characters or more"),
            (Provider::Anthropic, "sk-ant-012345678901", "20 characters or more"),
            (Provider::Anthropic, "ant-0123456789012345", "must be a key that starts with sk-ant-"),
            (Provider::OpenAi, "pk-0123456789012345678", "must be a key that starts with sk-"),
            (Provider::Anthropic, " sk-ant-0123456789012", "blanks or line breaks around"),
            (Provider::Anthropic, "sk-ant-0123456789012\n", "blanks or line breaks around"),
            (Provider::Anthropic, "sk-ant-0123456789012\u{a0}", "blanks or line breaks around"),
            (Provider::Anthropic, "sk-ant-012345 6789012", "printable ASCII"),
            (Provider::Anthropic, "sk-ant-012345\n6789012", "printable ASCII"),
            (Provider::Anthropic, "sk-ant-012345\u{0}6789012", "printable ASCII"),
            (Provider::Anthropic, "sk-ant-012345é6789012", "printable ASCII"),
            (Provider::Anthropic, "sk-ant-012345\u{200b}6789012", "printable ASCII"),
            (Provider::Anthropic, "sk-ant-0123456=6789012", "only contain letters, digits, - and _"),
            (Provider::Bedrock, "AKIAIOSFODNN7EXAMPLE", r#"starts with ABSK, or JSON of strings: {"access_key_id""#),
            (Provider::Bedrock, "ABSKQmVkcm9ja0FQSU", "20 characters or more"),
            (Provider::Bedrock, "ABSKQmVkcm9ja0FQSUtleS1h-bc", "only contain letters, digits, + and /"),
            (Provider::Bedrock, "ABSKQmVkcm9ja0FQ=UtleS1hYmNk", "and = only at its end"),
            (Provider::Bedrock, "ABSKQmVkcm9ja0FQSUtleS1hYmNk===", "and = only at its end"),
            (Provider::Bedrock, "ABSKQmVkcm9ja0FQSUtl S1hYmNk", "printable ASCII"),
            (Provider::Bedrock, "ABSKQmVkcm9ja0FQSUtleS1hYmNk\n", "blanks or line breaks around"),
            (Provider::Vertex, "not JSON at all, I fear", "must be the JSON file"),
        ] {
            let refusal = parsed(provider, text).unwrap_err();
            assert!(refusal.contains(message), "{text:?}: {refusal}");
        }
    }

    #[test]
    fn each_member_of_a_json_credential_is_checked() {
        for (change, message) in [
            (("access_key_id", "AKIAIOSFODNN7EXAMPLe"), "must contain access_key_id"),
            (("access_key_id", "AROAIOSFODNN7EXAMPLE"), "must contain access_key_id"),
            (("access_key_id", "AKIAIOSFODNN7EXA"), "AKIA or ASIA and 16 capital letters and digits"),
            (("access_key_id", "AKIAIOSFODNN7EXAMPL"), "AKIA or ASIA and 16 capital letters and digits"),
            (("access_key_id", "AKIAIOSFODNN7EXAMPLE2"), "AKIA or ASIA and 16 capital letters and digits"),
            (
                ("access_key_id", "AKIAIOSFODNN7EXAMPLEAKIAIOSFODNN7EXAMPLE"),
                "AKIA or ASIA and 16 capital letters and digits",
            ),
            (("secret_access_key", ""), "must contain secret_access_key"),
            (("secret_access_key", "wJalrXUtnFEMI K7MDENG"), "must contain secret_access_key"),
            (("secret_access_key", "wJalrXUtnFEMI/K7MDENG/bPxRfiCY012345678"), "must contain secret_access_key: 40 "),
            (("secret_access_key", "wJalrXUtnFEMI/K7MDENG/bPxRfiCY01234567890"), "must contain secret_access_key: 40 "),
            (("secret_access_key", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"), "must contain secret_access_key: 40 "),
            (("secret_access_key", "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"), "must contain secret_access_key: 40 "),
            (("secret_access_key", "AKIAIOSFODNN7EXAMPLE"), "must contain secret_access_key: 40 "),
            (("session_token", "IQoJ"), "must contain access_key_id: one that starts with ASIA, because session_token"),
            (
                ("access_key_id", "ASIAIOSFODNN7EXAMPLE"),
                "must contain session_token: printable ASCII without blanks; an access key that starts with ASIA is temporary",
            ),
            (("region", "US East"), "must contain region"),
            (("region", "us-east"), "must contain region"),
            (("region", "useast1"), "must contain region"),
            (("region", "us-east-1a"), "must contain region"),
            (("region", "us--east-1"), "must contain region"),
            (("region", "us-east-1.example.com"), "must contain region"),
            (("SessionToken", "a"), "may only contain"),
        ] {
            let refusal = parsed_json(Provider::Bedrock, &ACCESS_KEY, &[change]).unwrap_err();
            assert!(refusal.contains(message), "{change:?}: {refusal}");
        }
        let capitalised = [("AccessKeyId", "AKIAIOSFODNN7EXAMPLE"), ("SecretAccessKey", ACCESS_KEY[1].1)];
        assert!(parsed_json(Provider::Bedrock, &capitalised, &[]).unwrap_err().contains("access_key_id"));
        for (change, message) in [
            (("type", "authorized_user"), "must contain type: service_account"),
            (("project_id", ""), "must contain project_id"),
            (("project_id", "acme/../other"), "must contain project_id"),
            (("project_id", "acme%2f1"), "must contain project_id"),
            (("private_key_id", "a"), "must contain private_key_id"),
            (("private_key_id", "0123 4567"), "must contain private_key_id"),
            (("private_key", "MIIE"), "must contain private_key: "),
            (("client_email", "nobody"), "must contain client_email"),
            (("client_email", "@acme-1.iam.gserviceaccount.com"), "must contain client_email"),
            (("client_email", "a@b@acme-1.iam.gserviceaccount.com"), "must contain client_email"),
            (("token_uri", "http://169.254.169.254/token"), "must contain token_uri: Google's token endpoint"),
            (("universe_domain", "example.com"), "must contain universe_domain"),
        ] {
            let refusal = parsed_json(Provider::Vertex, &SERVICE_ACCOUNT[..], &[change]).unwrap_err();
            assert!(refusal.contains(message), "{change:?}: {refusal}");
        }
    }

    #[test]
    fn private_key_must_parse_as_rsa_in_pkcs8() {
        let refusal =
            |pem: &str| parsed_json(Provider::Vertex, &SERVICE_ACCOUNT[..], &[("private_key", pem)]).unwrap_err();
        let escaped = refusal(&PRIVATE_KEY.replace('\n', "\\n"));
        assert!(escaped.contains(r"with line breaks, not with the characters \ and n"), "{escaped}");
        let lines: Vec<_> = PRIVATE_KEY.lines().collect();
        let without = |index: usize| [&lines[..index], &lines[index + 1..]].concat().join("\n");
        let one_line = lines[1..lines.len() - 1].concat();
        let flipped =
            PRIVATE_KEY.replacen(&lines[12][..4], if lines[12].starts_with("AAAA") { "BBBB" } else { "AAAA" }, 1);
        let elliptic = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING).unwrap();
        for (what, damaged) in [
            ("only the first line", lines[0].to_owned()),
            ("no key in it", "-----BEGIN PRIVATE KEY-----\nMIIE\n-----END PRIVATE KEY-----\n".to_owned()),
            ("blanks for line breaks", PRIVATE_KEY.replace('\n', " ")),
            ("no line breaks", PRIVATE_KEY.replace('\n', "")),
            ("one long line", format!("{}\n{one_line}\n{}\n", lines[0], lines[lines.len() - 1])),
            ("a line missing", without(9)),
            ("no first line", without(0)),
            ("no last line", without(lines.len() - 1)),
            ("changed digits", flipped),
            ("PKCS #1", PRIVATE_KEY.replace("PRIVATE KEY", "RSA PRIVATE KEY")),
            ("encrypted", PRIVATE_KEY.replace("PRIVATE KEY", "ENCRYPTED PRIVATE KEY")),
            ("another algorithm", pem(elliptic.to_pkcs8v1().unwrap().as_ref())),
            ("text before it", format!("key:\n{}", *PRIVATE_KEY)),
            ("text after it", format!("{}x", *PRIVATE_KEY)),
        ] {
            let message = refusal(&damaged);
            assert!(
                message.starts_with("must contain private_key: the service account's RSA private key"),
                "{what}: {message}"
            );
        }
        let mut der = BASE64_STANDARD.decode(&one_line).unwrap();
        for extra in [&b"\0"[..], b"0\0", &der.clone()] {
            der.extend(extra);
            assert!(
                refusal(&pem(&der)).contains("the service account's RSA private key"),
                "{} bytes more",
                extra.len()
            );
        }
        let windows = PRIVATE_KEY.replace('\n', "\r\n");
        let unended = PRIVATE_KEY.trim_end();
        for rule in [windows.as_str(), unended] {
            assert!(parsed_json(Provider::Vertex, &SERVICE_ACCOUNT[..], &[("private_key", rule)]).is_ok());
        }
    }

    #[test]
    fn key_is_revoked_once() {
        let now: Timestamp = "2026-11-21T12:00:00Z".parse().unwrap();
        let later: Timestamp = "2026-11-21T13:00:00Z".parse().unwrap();
        let key = ProviderKey::parse(Provider::Anthropic, "sk-ant-01234567890123456789".into(), None).unwrap();
        let mut model_key = ModelKey::new(Id::new(7).unwrap(), &key, None, now);
        assert!(model_key.revoke(now));
        assert!(!model_key.revoke(later));
        assert_eq!((model_key.revoked_at, model_key.version), (Some(now), 2));
        assert_eq!(model_key.revocation(None).keys().collect::<Vec<_>>(), ["revoked_at"]);
        let replaced = model_key.revocation(Id::new(8));
        assert_eq!(replaced["replaced_by"], Change { before: Value::Null, after: 8.into() });
    }

    #[test]
    fn key_is_not_printed() {
        let text = "sk-ant-01234567890123456789";
        let key = ProviderKey::parse(Provider::Anthropic, text.into(), None).unwrap();
        assert!(!format!("{key:?}").contains(&text[..12]));
    }

    proptest! {
        #[test]
        fn errors_contain_nothing_of_the_text(text in "(sk-|sk-ant-|AKIA|kt_live_)?\\PC{0,40}", secret in "[0-9A-Z]{24}") {
            for provider in Provider::ALL {
                for text in [format!("{text}{secret}"), format!("{secret}{text}")] {
                    if let Err(rejected) = ProviderKey::parse(provider, text.as_str().into(), None) {
                        let message = format!("{rejected} {rejected:?}");
                        prop_assert!(!message.contains(&secret));
                    }
                }
            }
        }

        #[test]
        fn accepted_key_belongs_to_one_provider(text in "(sk-|sk-ant-|sk-or-|sk-proj-)[0-9A-Za-z_-]{60,100}") {
            let accepting: Vec<_> = Provider::ALL.into_iter().filter(|provider| parsed(*provider, &text).is_ok()).collect();
            prop_assert_eq!(accepting.len(), 1);
            prop_assert_eq!(parsed(accepting[0], &text), Ok(text[text.len() - 4..].to_owned()));
        }

        #[test]
        fn arbitrary_text_never_panics(
            text in ".{0,60}",
            members in prop::collection::btree_map("type|access_key_id|private_key_id|.{0,4}", ".{0,30}|service_account", 0..6),
        ) {
            let members: Members = members.into_iter().map(|(name, value)| (name, value.into())).collect();
            for provider in Provider::ALL {
                for members in [None, Some(&members)] {
                    if let Ok(key) = ProviderKey::parse(provider, text.as_str().into(), members) {
                        prop_assert_eq!(key.tail.chars().count(), 4);
                    }
                }
            }
        }
    }
}

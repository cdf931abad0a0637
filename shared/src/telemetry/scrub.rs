use std::{borrow::Cow, sync::LazyLock};

use regex::{Captures, Regex};

use crate::domain::redact_shapes;

/// The starts of the secrets that the rules below redact, or of the names before them. Most log
/// lines match none of these and need no other search.
static HINT: LazyLock<Option<Regex>> = LazyLock::new(|| {
    Regex::new(concat!(
        "kt_live_|karta_service_|sk-|whsec_|eyJ|gh[opsur]_|glpat-|github_pat_|npm_|AIza|xox[a-z]-|xapp-|[rs]k_(?:live|test)_|AKIA|ASIA|ABSK|bedrock-api-key-|",
        r":\\?/\\?/[^/]*@|PRIVATE KEY|Private-Lines: |",
        "(?i-u:bearer|",
        "(?:authorization|x-api-key|secret[ _-]?(?:access[ _-]?)?key|(?:session|security)[ _-]?token)",
        // The characters that `named` may match next. A string that ends after the name does not
        // count as a name.
        r#"(?:\\{0,3}["'][ \t\r\n\\\x1b:=]|[ \t\r\n\\\x1b\[:=>]))"#,
    ))
    .ok()
});

/// An ANSI colour sequence such as ESC `[31m`, raw or escaped.
macro_rules! colour {
    () => {
        r"(?:\x1b|\\u001[bB]|\\x1[bB])\[[0-9;]{0,16}[A-Za-z]"
    };
}

/// The text that may precede a token without being part of its word. A letter may not (`task-…`),
/// unless it ends an escape (`\n`, `\u001b`, `%3D`) or a colour sequence.
const BORDER: &str = concat!(r"(^|[^A-Za-z]|\\[bfnrt]|\\u[0-9A-Fa-f]{4}|%[0-9A-Fa-f]{2}|", colour!(), ")");

/// The redaction rules, applied in this order.
///
/// - Each pattern matches or fails within the run of characters that it starts in, so scrubbing
///   takes linear time.
/// - A rule does not change its own replacement.
/// - No match takes a quote or separates a backslash from the character that it escapes, so JSON
///   stays valid.
/// - If one secret may contain the start of another by chance, the rule with the longer secret
///   comes first.
fn rules() -> Result<Vec<(Regex, &'static str)>, regex::Error> {
    let rules = [
        // First, because any other secret may extend up to this word and include it.
        (
            format!(
                r#"((?:(?i-u:bearer)(?:[ \t\r\n]|\\[nrt])+|{}){{1,}})(?:(kt_live_[0-9A-Za-z]{{6}})[^ \t\r\n"',\\]*|[^ \t\r\n"',\\]+)"#,
                named("authorization", "[:=]", "(?i-u:basic|token|digest|apikey|negotiate)[ \\t]{1,4}")
                    .replacen('(', "(?:", 1)
            ),
            "${1}${2}[redacted]",
        ),
        // An empty signature matches too.
        (r"eyJ[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]*){2,}".to_owned(), "eyJ[redacted]"),
        // The first 14 characters are public.
        ("(kt_live_[0-9A-Za-z]{6})[0-9A-Za-z]+".to_owned(), "${1}[redacted]"),
        ("karta_service_[A-Za-z0-9+/=._~-]{16,}".to_owned(), "karta_service_[redacted]"),
        ("sk-ant-[A-Za-z0-9_-]+".to_owned(), "sk-ant-[redacted]"),
        ("AIza[A-Za-z0-9_-]{20,}".to_owned(), "AIza[redacted]"),
        ("(gh[opsur]_|glpat-)[A-Za-z0-9_-]{16,}".to_owned(), "${1}[redacted]"),
        (format!("{BORDER}sk-[A-Za-z0-9_-]{{8,}}"), "${1}sk-[redacted]"),
        ("whsec_[A-Za-z0-9+/=_%-]+".to_owned(), "whsec_[redacted]"),
        ("github_pat_[A-Za-z0-9_]{16,}".to_owned(), "github_pat_[redacted]"),
        ("(xox[a-z]-|xapp-)[A-Za-z0-9-]{8,}".to_owned(), "${1}[redacted]"),
        ("npm_[A-Za-z0-9]{20,}".to_owned(), "npm_[redacted]"),
        ("([rs]k_(?:live|test)_)[A-Za-z0-9]{8,}".to_owned(), "${1}[redacted]"),
        ("bedrock-api-key-[A-Za-z0-9+/=_-]{16,}".to_owned(), "bedrock-api-key-[redacted]"),
        (format!("{BORDER}ABSK[A-Za-z0-9+/=]{{16,}}"), "${1}ABSK[redacted]"),
        (
            named(
                "secret[ _-]?(?:access[ _-]?)?key|(?:session|security)[ _-]?token",
                "[:=> \t]",
                "[A-Za-z0-9/+=%_-]{16,}",
            ),
            "${1}[redacted]",
        ),
        // Under any other scheme or without one: a value that is longer than the name of any
        // scheme.
        (
            named(
                "authorization|x-api-key",
                "[:=]",
                r"([A-Za-z][A-Za-z0-9-]{0,15}[ \t]{1,4})?[A-Za-z0-9+/=._~:-]{17,}",
            ),
            "${1}${2}[redacted]",
        ),
        // A password, or a user name that is as long as a token.
        (r#"(:\\?/\\?/[^ \t\r\n/:@"'\\]*:)[^ \t\r\n/"'\\]+@"#.to_owned(), "${1}[redacted]@"),
        (r#"(:\\?/\\?/)[^ \t\r\n/:@"'\\]{16,}@"#.to_owned(), "${1}[redacted]@"),
    ];
    rules.into_iter().map(|(pattern, replacement)| Ok((Regex::new(&pattern)?, replacement))).collect()
}

/// Builds a pattern for a value after its name: `name=value`, `<name>value`, `"name": "value"` or
/// `"name": ["value"`. After a quoted name it matches quoted values only, because JSON allows a
/// bare number there.
fn named(names: &str, separator: &str, value: &str) -> String {
    let blanks = concat!(r"(?:[ \t\r\n]|\\[nrt]|", colour!(), "){0,16}");
    let quote = r#"\\{0,3}["']"#;
    // `AWS Secret Access Key [None]: `
    let default = r#"(?:\[[^ \t\r\n\[\]"'\\]{0,16}\])?"#;
    format!(
        "((?i-u:{names})(?:{quote}{blanks}[:=]>?{blanks}(?:\\[{blanks})?{quote}|{blanks}{default}{separator}>?{blanks}(?:{quote})?)){value}"
    )
}

/// Compiled patterns. They must not use Unicode classes (`\\s`, `\\w`, `(?i)` without `-u`): the
/// Unicode tables are compiled in only if another crate of the build needs them.
struct Patterns {
    rules: Vec<(Regex, &'static str)>,
    /// The id of an AWS access key, and the secret key if it follows.
    access_key: Regex,
    begin: Regex,
    end: Regex,
    /// An escape, a line end, a quote, or the text between them.
    piece: Regex,
    /// The characters of a line of a key.
    base64: Regex,
}

/// Compiled for the first text with a hint, because compiling takes longer than the rest of a
/// function's startup. `None` if a pattern is invalid: every text with a hint is then redacted
/// completely. An invalid pattern must not panic, because scrubbing may run during a panic.
static PATTERNS: LazyLock<Option<Patterns>> = LazyLock::new(|| Patterns::new().ok());

impl Patterns {
    fn new() -> Result<Self, regex::Error> {
        let access_key = concat!(
            r#"(AKIA|ASIA)[0-9A-Z]{12,}(?:((?:[ \t\r\n"',:;|=&]|\\[nrt"'\\]|"#,
            colour!(),
            "){1,8})([A-Za-z0-9/+]{40,}))?"
        );
        Ok(Self {
            rules: rules()?,
            access_key: Regex::new(access_key)?,
            begin: Regex::new("-----BEGIN [A-Z0-9 ]{0,32}PRIVATE KEY(?: BLOCK)?-----|Private-Lines: [0-9]{1,4}")?,
            end: Regex::new("-----END [A-Z0-9 ]{0,32}PRIVATE KEY|Private-MAC: ")?,
            piece: Regex::new(r#"\\u[0-9A-Fa-f]{4}|(?s:\\.)|\n|"|[^ \t\r\n"\\]+"#)?,
            base64: Regex::new("[A-Za-z0-9+/=]{16,}")?,
        })
    }
}

const MAX_PRIVATE_KEY_BYTES: usize = 32 * 1024;
/// Maximum number of passes. A replacement may reveal a secret that an earlier rule looks for:
/// `AKIA…sk-…` is one word until its first half is replaced. No text is known that needs more than
/// two.
const MAX_PASSES: u32 = 4;
/// Maximum number of other lines, such as headers, within a private key whose end is missing.
const MAX_OTHER_LINES: u32 = 4;

/// Replaces text that has the shape of a secret with `[redacted]`, after a hint of its kind:
/// `kt_live_AbC123[redacted]`, `Bearer [redacted]`. Borrows the text if there is nothing to
/// replace.
///
/// Recognizes in plain text and inside JSON strings: API keys, service tokens, provider keys
/// (`sk-…`), webhook secrets (`whsec_…`), JWTs; tokens of GitHub, GitLab, npm, Google, Slack and
/// Stripe; AWS access keys with the secret that follows, Bedrock API keys, session tokens;
/// `Authorization` headers and bearer tokens, passwords in URLs, private keys in PEM and `PuTTY`
/// formats, and every shape and named value that the input check rejects ([`redact_shapes`]).
pub fn scrub(text: &str) -> Cow<'_, str> {
    let mut scrubbed = scrub_once(text);
    for _ in 1..MAX_PASSES {
        match scrub_once(&scrubbed) {
            Cow::Owned(again) if again != *scrubbed => scrubbed = Cow::Owned(again),
            _ => break,
        }
    }
    scrubbed
}

fn scrub_once(text: &str) -> Cow<'_, str> {
    if HINT.as_ref().is_some_and(|hint| !hint.is_match(text)) {
        return redact_shapes(text);
    }
    let mut scrubbed = PATTERNS.as_ref().map_or(Cow::Borrowed("[redacted]"), |patterns| apply_all(patterns, text));
    apply(&mut scrubbed, redact_shapes);
    scrubbed
}

fn apply_all<'a>(patterns: &Patterns, text: &'a str) -> Cow<'a, str> {
    let mut scrubbed = Cow::Borrowed(text);
    apply(&mut scrubbed, |text| private_keys(patterns, text));
    for (pattern, replacement) in &patterns.rules {
        apply(&mut scrubbed, |text| pattern.replace_all(text, *replacement));
    }
    apply(&mut scrubbed, |text| patterns.access_key.replace_all(text, access_key));
    scrubbed
}

fn apply(text: &mut Cow<'_, str>, rule: impl FnOnce(&str) -> Cow<'_, str>) {
    if let Cow::Owned(changed) = rule(text) {
        *text = Cow::Owned(changed);
    }
}

fn access_key(found: &Captures<'_>) -> String {
    let (brand, secret) = (&found[1], found.get(3).map_or("", |secret| secret.as_str()));
    let between = found.get(2).map_or("", |between| between.as_str());
    match secret {
        "" => format!("{brand}[redacted]"),
        // A commit hash.
        hash if is_hexadecimal(hash) => format!("{brand}[redacted]{between}{hash}"),
        _ => format!("{brand}[redacted]{between}[redacted]"),
    }
}

fn is_hexadecimal(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Redacts the lines between the first and the last line of a private key. Keeps both markers and
/// the line ends, so that line numbers stay the same.
fn private_keys<'a>(patterns: &Patterns, text: &'a str) -> Cow<'a, str> {
    let (mut begins, mut ends) = (patterns.begin.find_iter(text).peekable(), patterns.end.find_iter(text).peekable());
    if begins.peek().is_none() {
        return Cow::Borrowed(text);
    }
    let (mut scrubbed, mut done) = (String::with_capacity(text.len()), 0);
    while let Some(begin) = begins.next() {
        if begin.start() < done {
            continue;
        }
        scrubbed.push_str(&text[done..begin.end()]);
        while ends.next_if(|end| end.start() < begin.end()).is_some() {}
        let limit = text.floor_char_boundary(begin.end() + MAX_PRIVATE_KEY_BYTES);
        let end = ends.peek().map(regex::Match::start).filter(|end| *end <= limit);
        let next = begins.peek().map_or(limit, |next| limit.min(next.start()));
        done = end.unwrap_or(next);
        scrub_private_key(patterns, &text[begin.end()..done], end.is_some(), &mut scrubbed);
    }
    scrubbed.push_str(&text[done..]);
    Cow::Owned(scrubbed)
}

/// Redacts a complete key entirely. If its end is missing, or after the end of the JSON string that
/// it starts in, redacts only words that look like lines of a key.
fn scrub_private_key(patterns: &Patterns, body: &str, complete: bool, scrubbed: &mut String) {
    let (mut complete, mut other_lines, mut found, mut done) = (complete, 0, false, 0);
    for piece in patterns.piece.find_iter(body) {
        scrubbed.push_str(&body[done..piece.start()]);
        let word = piece.as_str();
        done = piece.end();
        match word {
            "\"" => complete = false,
            "\n" | "\\n" => {
                other_lines = if found { 0 } else { other_lines + 1 };
                found = false;
            }
            _ => {}
        }
        if !complete && other_lines > MAX_OTHER_LINES {
            done = piece.start();
            break;
        }
        if word.starts_with(['\\', '"', '\n']) {
            scrubbed.push_str(word);
        } else if complete {
            scrubbed.push_str("[redacted]");
        } else {
            let line = patterns.base64.replace_all(word, |line: &Captures<'_>| {
                // Mixed case excludes hashes, paths and numbers, which JSON allows outside strings.
                let mixed = line[0].contains(|c: char| c.is_ascii_uppercase())
                    && line[0].contains(|c: char| c.is_ascii_lowercase());
                if mixed && !is_hexadecimal(&line[0]) { "[redacted]".to_owned() } else { line[0].to_owned() }
            });
            found |= line != word;
            scrubbed.push_str(&line);
        }
    }
    scrubbed.push_str(&body[done..]);
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;
    use crate::domain::CredentialKind;

    #[test]
    fn redacted_secret_keeps_its_hint() {
        for (text, scrubbed) in [
            ("kt_live_AbC123XyZ", "kt_live_AbC123[redacted]"),
            ("a=kt_live_AbC123XyZ&b", "a=kt_live_AbC123[redacted]&b"),
            ("sk-ant-api03-a_B-9 x", "sk-ant-[redacted] x"),
            ("sk-proj-12345678", "sk-[redacted]"),
            ("key:sk-12345678,sk-abcdefgh", "key:sk-[redacted],sk-[redacted]"),
            ("whsec_aB+/9%2F==.", "whsec_[redacted]."),
            ("Bearer abc.DEF~+/=", "Bearer [redacted]"),
            ("BEARER  a,bearer\tb'", "BEARER  [redacted],bearer\t[redacted]'"),
            (r#"{"h":"Bearer x\"y"}"#, r#"{"h":"Bearer [redacted]\"y"}"#),
            ("Bearer kt_live_AbC123XyZ!?", "Bearer kt_live_AbC123[redacted]"),
            ("eyJhbGci.eyJpc3Mi.c2ln-_", "eyJ[redacted]"),
            ("eyJhbGci.eyJpc3Mi. end", "eyJ[redacted] end"),
            ("eyJhbGci..a.b.c-sk-12345678", "eyJ[redacted]"),
        ] {
            assert_eq!(scrub(text), scrubbed);
        }
    }

    #[test]
    fn every_karta_credential_is_redacted() {
        let body = "0123456789abcdefABCDEF0123456789abcdefABCDEF0123456789abcdefABCDEF";
        for kind in CredentialKind::ALL {
            let credential = match kind {
                CredentialKind::SessionToken => format!("{}{body}.{body}.{body}", kind.brand()),
                _ => format!("{}{body}", kind.brand()),
            };
            for (before, after) in
                [("", ""), ("field ", ": unknown"), ("a=", "&b"), ("\n", "\n"), ("{\"", "\":1}"), ("['", "']")]
            {
                let scrubbed = scrub(&format!("{before}{credential}{after}")).into_owned();
                assert!(scrubbed.starts_with(&format!("{before}{}", kind.brand())), "{kind:?}: {scrubbed}");
                assert!(scrubbed.ends_with(after) && !scrubbed.contains(&body[6..]), "{kind:?}: {scrubbed}");
            }
        }
    }

    #[test]
    fn every_rejected_shape_is_redacted() {
        for secret in crate::domain::secret_examples() {
            for (before, after) in [("", ""), ("a ", " b"), ("log\\n", "\\n"), ("{\"", "\"}")] {
                let scrubbed = scrub(&format!("{before}{secret}{after}")).into_owned();
                assert!(scrubbed.starts_with(before) && scrubbed.ends_with(after), "{secret}: {scrubbed}");
                for body in ["7QxW9z3R", "7QXW9Z3R", "7a0f9c3e"] {
                    assert!(!scrubbed.contains(body), "{secret}: {scrubbed}");
                }
            }
        }
    }

    #[test]
    fn values_after_common_names_are_redacted() {
        for (before, secret, after) in [
            ("DB_PASSWORD=", "Hunter22", " next"),
            (r#"{"password":""#, "Sommer2026!", r#"","n":1}"#),
            ("Server=db;Pwd=", "Sommer2026", ";Encrypt=True"),
            ("x-auth-token: ", "0123456789abcdef", "\n"),
            ("password=\"", "Abc12345;def", "\", next"),
            ("pwd: '", "Abc,Def123 it", "'\n"),
            (r#"{"m":"password=\""#, "Abc,Def123", r#"\" next"}"#),
            (r#"{"m":"{\"client_secret\":\""#, "7QxW9z3RkT5mVb2N", r#"\"}"}"#),
            ("proxy: Basic ", "dXNlcjpwYXNzdw==", ","),
        ] {
            assert_eq!(scrub(&format!("{before}{secret}{after}")), format!("{before}[redacted]{after}"));
        }
    }

    #[test]
    fn every_pattern_compiles() {
        assert!(HINT.is_some());
        Patterns::new().unwrap();
    }

    #[test]
    fn usual_log_lines_have_no_hint() {
        let hint = HINT.as_ref().unwrap();
        for line in [
            r#"{"level":"INFO","message":"authorization","route":"authorizer","outcome":"valid"}"#,
            r#"{"route":"session-tokens-create","status":201,"message":"request"}"#,
            r#"{"route":"webhook-endpoints-rotate-secret","message":"authorization"}"#,
        ] {
            assert!(!hint.is_match(line), "{line}");
        }
    }

    #[test]
    fn escape_before_a_key_does_not_hide_it() {
        for before in [r"\n", r"\\n", r"\t", r"\u001b", "%3D", "%20", "_", "é", "9", "\n"] {
            assert_eq!(scrub(&format!("x{before}sk-12345678")), format!("x{before}sk-[redacted]"));
        }
        assert_eq!(scrub("AKIAIOSFODNN7EXAMPLEsk-12345678"), "AKIA[redacted]sk-[redacted]");
        assert_eq!(scrub(r"Bearer\tabc"), r"Bearer\t[redacted]");
        assert_eq!(scrub("\u{1b}[31msk-ant-abc"), "\u{1b}[31msk-ant-[redacted]");
    }

    #[test]
    fn harmless_text_is_borrowed_unchanged() {
        for text in [
            "",
            "{\"message\":\"key created\",\"prefix\":\"kt_live_AbC123\"}",
            "task-management risk-assessment disk-00000000 sk-1234567",
            "eyJhbGci.only-two whsec_ kt_live_ karta_service_ karta_service_tokens",
            "HEAD is now at 0a1b2c3d4e5f60718293a4b5c6d7e8f901234567, node sha256:0a1b2c3d4e5f60718293a4b5c6d7e8f90123456789abcdef0123456789abcdef",
            "FROM registry.example.com/app:1.4@sha256:0a1b2c3d4e5f60718293a4b5c6d7e8f90123456789abcdef0123456789abcdef",
            "git+ssh://git@github.com/acme/app.git https://example.com:443/a@b npm_config_cache npm_lifecycle_event",
            "authorization failed, authorization: none, session token expired, no secret access key given",
            "{\"authorization\":true,\"session_token\":12345678901234567890,\"x-api-key\":null}",
            "no key: -----BEGIN CERTIFICATE-----\nMIIEpAIBAAKCAQEA0123456789\n-----END CERTIFICATE-----",
            "a bearer, the Bearer",
            "PWD=/home/app1/src2 password=changeme api_key: kt_live_a1B2c3 basic authentication",
            "{\"password\":12345678e9,\"api_key\":null}",
        ] {
            assert!(matches!(scrub(text), Cow::Borrowed(same) if same == text), "{text}: {}", scrub(text));
        }
    }

    #[test]
    fn tokens_of_other_services_are_redacted() {
        let body = "AbC123XyZ0123456789abcdefghijklmnopq";
        for brand in [
            "ghp_",
            "gho_",
            "ghs_",
            "ghu_",
            "ghr_",
            "github_pat_",
            "glpat-",
            "npm_",
            "AIza",
            "xoxb-",
            "xoxp-",
            "xoxa-",
            "xoxr-",
            "xapp-",
            "sk_live_",
            "rk_live_",
            "sk_test_",
            "whsec_",
            "karta_service_",
            "sk-or-v1-",
            "sk-proj-",
            "AKIA",
            "ASIA",
            "ABSK",
            "bedrock-api-key-",
        ] {
            let body = if brand.ends_with("IA") { "IOSFODNN7EXAMPLE" } else { body };
            let kept = if brand.starts_with("sk-") { "sk-" } else { brand };
            for (before, after) in [
                ("TOKEN=", " x"),
                ("\u{1b}[33m", "\u{1b}[0m"),
                ("\\n", "\\n"),
                ("https://", "@github.com/a.git"),
                ("", ""),
            ] {
                let scrubbed = scrub(&format!("{before}{brand}{body}{after}")).into_owned();
                let known = [format!("{before}{kept}[redacted]{after}"), format!("{before}[redacted]{after}")];
                assert!(known.contains(&scrubbed), "{scrubbed}");
            }
        }
    }

    /// Test builds include the Unicode tables; functions do not.
    #[test]
    fn patterns_need_no_unicode_tables() {
        let (code, _) = include_str!("scrub.rs").split_once("#[cfg(test)]").unwrap();
        for line in code.lines().filter(|line| !line.trim_start().starts_with("//")) {
            for class in [r"\s", r"\S", r"\w", r"\W", r"\d", r"\D", r"\b", r"\B", r"\p", "(?i)", "(?i:"] {
                assert!(!line.replace(r"\\", "").contains(class), "{class} in {line}");
            }
        }
    }

    #[test]
    fn value_after_its_name_is_redacted() {
        let secret = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY";
        for before in [
            "AWS_SECRET_ACCESS_KEY=",
            "export aws_secret_access_key = '",
            r#"{"SecretAccessKey": ""#,
            r#"{\"secretAccessKey\":\""#,
            "<SecretAccessKey>",
            "AWS Secret Access Key [None]: ",
            "secret-access-key:\n    ",
            "aws_session_token=",
            "AKIA[redacted]:\nAWS_SECRET_KEY: ",
            "Authorization: Basic ",
            "authorization: token ",
            "-H 'Authorization: ",
            r#""Authorization": "ApiKey "#,
            "x-api-key: ",
            r#""x-api-key":[""#,
            r#"\"Authorization\": [ \"Basic "#,
        ] {
            for after in ["", "\n", "\" next", r"\n"] {
                assert_eq!(scrub(&format!("{before}{secret}{after}")), format!("{before}[redacted]{after}"));
            }
        }
        for coloured in
            ["AWS_SECRET_ACCESS_KEY=\x1b[33m", "AWS_SECRET_KEY\x1b[m\x1b[K=", "authorization: \x1b[1;31mBasic "]
        {
            assert_eq!(scrub(&format!("{coloured}{secret}")), format!("{coloured}[redacted]"));
        }
        for between in [" ", ":", ",", "\x1b[0m ", "\n", "\",\"", r"\n", " | "] {
            let pair = format!("AKIAIOSFODNN7EXAMPLE{between}{secret}");
            assert_eq!(scrub(&pair), format!("AKIA[redacted]{between}[redacted]"));
        }
        let hash = "0a1b2c3d4e5f60718293a4b5c6d7e8f901234567";
        assert_eq!(scrub(&format!("AKIAIOSFODNN7EXAMPLE {hash}")), format!("AKIA[redacted] {hash}"));
    }

    #[test]
    fn passwords_in_urls_are_redacted() {
        for (url, scrubbed) in [
            ("https://user:p@ss:w0rd@example.com/a@b", "https://user:[redacted]@example.com/a@b"),
            ("postgres://app:hunter2@db:5432/app", "postgres://app:[redacted]@db:5432/app"),
            (r"https:\/\/user:hunter2@example.com", r"https:\/\/user:[redacted]@example.com"),
            ("https://0123456789abcdef01@example.com", "https://[redacted]@example.com"),
            ("redis://:hunter2@cache", "redis://:[redacted]@cache"),
        ] {
            assert_eq!(scrub(url), scrubbed);
        }
    }

    #[test]
    fn private_key_keeps_markers_and_line_numbers() {
        let key =
            "-----BEGIN RSA PRIVATE KEY-----\nMIIEpAIBAAKCAQEA0123456789\nQ==\n-----END RSA PRIVATE KEY-----\nnext";
        let kept = "-----BEGIN RSA PRIVATE KEY-----\n[redacted]\n[redacted]\n-----END RSA PRIVATE KEY-----\nnext";
        assert_eq!(scrub(key), kept);
        let escaped = |text: &str| text.replace('\n', "\\n");
        assert_eq!(scrub(&escaped(key)), escaped(kept));
        let numbered = "-----BEGIN PRIVATE KEY-----\n#9 0.5 MIIEpAIBAAKCAQEA\n#9 0.5 -----END PRIVATE KEY-----";
        assert!(!scrub(numbered).contains("MIIE"));
        let torn = "-----BEGIN PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\n\nMIIEpAIBAAKCAQEA0123456789\nMIIEpAIBAAKCAQEA9876543210";
        let plain = "\nfetched packages/some-package/index\n".repeat(9);
        let scrubbed = scrub(&format!("{torn}{plain}")).into_owned();
        assert!(
            !scrubbed.contains("MIIE") && scrubbed.ends_with("\nfetched packages/some-package/index\n"),
            "{scrubbed}"
        );
        let strings = "\"-----BEGIN PRIVATE KEY-----\\n\" +\n\"MIIEpAIBAAKCAQEA0123456789\\n\"";
        assert!(!scrub(strings).contains("MIIE"));
    }

    #[test]
    fn scrubbing_time_is_linear_in_text_length() {
        let long = |unit: &str| unit.repeat(128 * 1024 / unit.len());
        let time = |text: &str| {
            let started = std::time::Instant::now();
            scrub(text);
            started.elapsed()
        };
        let usual = long("sk-12345678 compiling some-package v1.2.3\n");
        time(&usual);
        let usual = time(&usual);
        for unit in [
            "-----BEGIN PRIVATE KEY-----",
            "-----BEGIN PRIVATE KEY-----\n\"",
            "://a:",
            "://a:b@",
            "eyJa.",
            "eyJa..",
            "Bearer ",
            "Authorization: ",
            "Authorization: Basic x",
            "secret_access_key = ",
            "secret_access_key",
            "AKIA",
            "AKIAIOSFODNN7EXAMPLE:",
            "sk-",
            "\\n",
            "[redacted]",
            "x@",
            "password='",
        ] {
            // A busy machine interrupts some runs, but not all of them.
            let quickest = (0..10).map(|_| time(&long(unit))).find(|taken| *taken < usual * 20);
            assert!(quickest.is_some(), "{unit:?} takes longer than 20 times {usual:?}");
        }
    }

    /// Text composed of fragments of the patterns, so that they meet in every order.
    fn pieces() -> impl Strategy<Value = String> {
        let piece = prop_oneof![
            prop::sample::select(vec![
                "kt_live_",
                "AbC123",
                "XyZ",
                "sk-",
                "ant-",
                "12345678",
                "whsec_",
                "karta_service_",
                "Bearer",
                "bearer",
                "eyJ",
                ".",
                "-",
                "_",
                " ",
                "\\n",
                "\\",
                "\"",
                "'",
                ",",
                ";",
                "%3D",
                "[redacted]",
                "[",
                "]",
                "é",
                "\n",
                "\\u001b",
                "task-",
                "ghp_",
                "npm_",
                "AIza",
                "xoxb-",
                "AKIA",
                "IOSFODNN7EXAMPLE",
                "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
                "aws_secret_access_key",
                "session_token",
                "password",
                "Hunter22",
                "Basic dXNlcjpwYXNzdw==",
                "authorization",
                "Basic ",
                ":",
                "=",
                "://",
                "@",
                "-----BEGIN PRIVATE KEY-----",
                "-----END PRIVATE KEY-----",
                "1234567890123456",
            ])
            .prop_map(str::to_owned),
            ".",
        ];
        vec(piece, 0..24).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1024))]

        #[test]
        fn scrubbing_twice_changes_nothing(text in pieces()) {
            let once = scrub(&text).into_owned();
            prop_assert_eq!(&scrub(&once), &once);
        }

        #[test]
        fn scrubbed_json_stays_valid(text in pieces(), key in pieces()) {
            let line = serde_json::json!({ key: text }).to_string();
            prop_assert!(serde_json::from_str::<serde_json::Value>(&scrub(&line)).is_ok());
        }

        #[test]
        fn secret_is_redacted_in_any_context(
            before in pieces(),
            border in prop::sample::select(vec![" ", "\\n", "\"", ","]),
            secret in "[0-9A-Za-z]{26}",
            after in pieces(),
        ) {
            for brand in [
                "kt_live_AbC123", "sk-ant-", "sk-", "whsec_", "karta_service_", "Bearer ", "eyJhbGci.eyJpc3Mi.", "ghp_", "github_pat_", "npm_", "AIza", "xoxb-",
                "sk_live_", "AWS_SECRET_ACCESS_KEY=", "Authorization: Basic ", "https://user:", "-----BEGIN PRIVATE KEY-----\nZz",
            ] {
                let after = if brand.starts_with("https") { format!("@{after}") } else { after.clone() };
                let text = format!("{before}{border}{brand}{secret}{after}");
                prop_assert!(!scrub(&text).contains(&secret), "{}", text);
            }
        }
    }
}

use std::{borrow::Cow, sync::LazyLock};

use regex::Regex;

/// What every secret below begins with. Most lines have none of it and are done after one literal search.
static HINT: LazyLock<Regex> = LazyLock::new(|| regex("kt_live_|sk-|whsec_|eyJ|(?i-u:bearer)"));

/// Applied in this order. Each pattern fails or succeeds within the run of characters that it starts in, which keeps scrubbing
/// linear, and none matches its own replacement, which makes it idempotent. No match takes a quote or splits a backslash from
/// what it escapes, so JSON stays JSON.
static RULES: LazyLock<[(Regex, &str); 6]> = LazyLock::new(|| {
    [
        // First, since any other secret may run up to the word and take it.
        (
            r#"((?:(?i-u:bearer)(?:[ \t\r\n]|\\[nrt])+)+)(?:(kt_live_[0-9A-Za-z]{6})[^ \t\r\n"',\\]*|[^ \t\r\n"',\\]+)"#,
            "${1}${2}[redacted]",
        ),
        // Before the rest: a signature may by chance hold what they look for. An empty signature counts.
        (r"eyJ[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]*){2,}", "eyJ[redacted]"),
        // The first 14 characters are public.
        ("(kt_live_[0-9A-Za-z]{6})[0-9A-Za-z]+", "${1}[redacted]"),
        ("sk-ant-[A-Za-z0-9_-]+", "sk-ant-[redacted]"),
        // No letter before it (`task-…`), unless that letter ends an escape: `\n`, `\u001b`, `%3D`.
        (
            r"(^|[^A-Za-z]|\\[bfnrt]|\\u[0-9A-Fa-f]{4}|%[0-9A-Fa-f]{2})sk-[A-Za-z0-9_-]{8,}",
            "${1}sk-[redacted]",
        ),
        ("whsec_[A-Za-z0-9+/=_%-]+", "whsec_[redacted]"),
    ]
    .map(|(pattern, replacement)| (regex(pattern), replacement))
});

fn regex(pattern: &str) -> Regex {
    Regex::new(pattern).expect("a constant pattern")
}

/// Replaces what is shaped like a secret by `[redacted]`, behind a hint of its kind: `kt_live_AbC123[redacted]`,
/// `Bearer [redacted]`. Borrows when there is nothing to replace.
///
/// Knows API keys, provider keys (`sk-…`), webhook secrets (`whsec_…`), JWTs and bearer tokens, in plain text and inside JSON strings.
pub fn scrub(text: &str) -> Cow<'_, str> {
    let mut scrubbed = Cow::Borrowed(text);
    if HINT.is_match(text) {
        for (pattern, replacement) in &*RULES {
            if let Cow::Owned(changed) = pattern.replace_all(&scrubbed, *replacement) {
                scrubbed = Cow::Owned(changed);
            }
        }
    }
    scrubbed
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    #[test]
    fn each_kind_leaves_its_hint() {
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
    fn an_escape_before_a_key_does_not_hide_it() {
        for before in [r"\n", r"\\n", r"\t", r"\u001b", "%3D", "%20", "_", "é", "9", "\n"] {
            assert_eq!(scrub(&format!("x{before}sk-12345678")), format!("x{before}sk-[redacted]"));
        }
        assert_eq!(scrub(r"Bearer\tabc"), r"Bearer\t[redacted]");
        assert_eq!(scrub("\u{1b}[31msk-ant-abc"), "\u{1b}[31msk-ant-[redacted]");
    }

    #[test]
    fn what_is_no_secret_stays_and_is_borrowed() {
        for text in [
            "",
            "{\"message\":\"key created\",\"prefix\":\"kt_live_AbC123\"}",
            "task-management risk-assessment disk-00000000 sk-1234567",
            "eyJhbGci.only-two whsec_ kt_live_",
            "a bearer, the Bearer",
        ] {
            assert!(matches!(scrub(text), Cow::Borrowed(same) if same == text), "{text}");
        }
    }

    /// Text out of the pieces that patterns are made of, so that they meet in every way.
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
                "%3D",
                "[redacted]",
                "[",
                "]",
                "é",
                "\n",
                "\\u001b",
                "task-",
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
        fn json_stays_json(text in pieces(), key in pieces()) {
            let line = serde_json::json!({ key: text }).to_string();
            prop_assert!(serde_json::from_str::<serde_json::Value>(&scrub(&line)).is_ok());
        }

        #[test]
        fn no_secret_survives_whatever_stands_around_it(
            before in pieces(),
            border in prop::sample::select(vec![" ", "\\n", "\"", ","]),
            secret in "[0-9A-Za-z]{26}",
            after in pieces(),
        ) {
            for brand in ["kt_live_AbC123", "sk-ant-", "sk-", "whsec_", "Bearer ", "eyJhbGci.eyJpc3Mi."] {
                let text = format!("{before}{border}{brand}{secret}{after}");
                prop_assert!(!scrub(&text).contains(&secret), "{}", text);
            }
        }
    }
}

const SCHEME: &str = "bearer";
/// Maximum blanks between the scheme and the token. `ValidationExpression` in `template.yaml` has the same bound.
const BLANKS_MAX: usize = 8;

/// Returns the token of an `Authorization` header: `Bearer` in any case, one to eight blanks, visible ASCII (RFC 9110 §11.1 and §11.4).
///
/// The only parser of that header: the authorizer, the route frame and the gateway's `ValidationExpression` accept the same headers.
pub fn bearer(header: &str) -> Option<&str> {
    let (scheme, rest) = header.split_at_checked(SCHEME.len())?;
    let token = rest.trim_start_matches(' ');
    let blanks = rest.len() - token.len();
    let is_right = scheme.eq_ignore_ascii_case(SCHEME)
        && (1..=BLANKS_MAX).contains(&blanks)
        && !token.is_empty()
        && token.bytes().all(|byte| byte.is_ascii_graphic());
    is_right.then_some(token)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn one_to_eight_blanks_pass() {
        for blanks in 0..=10 {
            let header = format!("Bearer{}abc", " ".repeat(blanks));
            assert_eq!(bearer(&header), (1..=8).contains(&blanks).then_some("abc"), "{blanks} blanks");
        }
    }

    #[test]
    fn scheme_has_any_case() {
        for scheme in ["Bearer", "bearer", "BEARER", "bEaReR"] {
            assert_eq!(bearer(&format!("{scheme} abc")), Some("abc"));
        }
    }

    #[test]
    fn other_grammar_is_refused() {
        for header in [
            "",
            "Bearer",
            "Bearer ",
            "Bearer        ",
            " Bearer abc",
            "Bearer\tabc",
            "Bearer \tabc",
            "Bearer\u{a0}abc",
            "Bearer abc ",
            "Bearer abc\t",
            "Bearer a b",
            "Bearer abc, Bearer abc",
            "Bearer abc\u{7f}",
            "Bearer abcé",
            "Beareé abc",
            "Basic abc",
            "Bearers abc",
            "BearerAbc abc",
        ] {
            assert_eq!(bearer(header), None, "{header:?}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_judged(text in ".*", after in "[ \t]{0,10}\\PC{0,20}") {
            prop_assert!(bearer(&text).is_none_or(|token| text.ends_with(token)));
            let header = format!("Bearer{after}");
            prop_assert!(bearer(&header).is_none_or(|token| !token.is_empty() && header.ends_with(token)));
        }
    }
}

const SCHEME: &str = "bearer";
/// Maximum spaces between the scheme and the token. `ValidationExpression` in `template.yaml` has
/// the same bound.
const SPACES_MAX: usize = 8;

/// Returns the token of an `Authorization` header with the scheme `Bearer`, or `None` if the header
/// is malformed. The scheme may be in any case. One to eight spaces follow it, and then visible
/// ASCII (RFC 9110 §11.1 and §11.4).
///
/// The authorizer and the route frame share this parser. The gateway's `ValidationExpression`
/// accepts the same headers.
pub fn bearer(header: &str) -> Option<&str> {
    let (scheme, rest) = header.split_at_checked(SCHEME.len())?;
    let token = rest.trim_start_matches(' ');
    let spaces = rest.len() - token.len();
    let is_valid = scheme.eq_ignore_ascii_case(SCHEME)
        && (1..=SPACES_MAX).contains(&spaces)
        && !token.is_empty()
        && token.bytes().all(|byte| byte.is_ascii_graphic());
    is_valid.then_some(token)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn one_to_eight_spaces_are_accepted() {
        for spaces in 0..=10 {
            let header = format!("Bearer{}abc", " ".repeat(spaces));
            assert_eq!(bearer(&header), (1..=8).contains(&spaces).then_some("abc"), "{spaces} spaces");
        }
    }

    #[test]
    fn scheme_may_be_in_any_case() {
        for scheme in ["Bearer", "bearer", "BEARER", "bEaReR"] {
            assert_eq!(bearer(&format!("{scheme} abc")), Some("abc"));
        }
    }

    #[test]
    fn malformed_header_is_refused() {
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
        fn token_is_suffix_of_any_header(text in ".*", after in "[ \t]{0,10}\\PC{0,20}") {
            prop_assert!(bearer(&text).is_none_or(|token| text.ends_with(token)));
            let header = format!("Bearer{after}");
            prop_assert!(bearer(&header).is_none_or(|token| !token.is_empty() && header.ends_with(token)));
        }
    }
}

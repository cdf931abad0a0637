use std::borrow::Cow;

/// Decodes the percent-encoded unreserved characters of a path, which are equivalent to the
/// characters themselves (RFC 3986 §6.2.2.2). Other escapes stay, so the decoded path has the same
/// segments. A path with a malformed escape stays unchanged.
pub fn decode_unreserved(path: &str) -> Cow<'_, str> {
    if path.contains('%') { decoded(path).map_or(Cow::Borrowed(path), Cow::Owned) } else { Cow::Borrowed(path) }
}

fn decoded(path: &str) -> Option<String> {
    let mut parts = path.split('%');
    let mut decoded = parts.next()?.to_owned();
    for part in parts {
        let (escape, rest) = part.split_at_checked(2)?;
        let is_hexadecimal = escape.bytes().all(|byte| byte.is_ascii_hexdigit());
        let byte = u8::from_str_radix(escape, 16).ok().filter(|_| is_hexadecimal)?;
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            decoded.push(char::from(byte));
        } else {
            decoded.push('%');
            decoded.push_str(escape);
        }
        decoded.push_str(rest);
    }
    Some(decoded)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn only_unreserved_characters_are_decoded() {
        for (path, decoded) in [
            ("/v1/whoami", "/v1/whoami"),
            ("/%76%31/%77hoami", "/v1/whoami"),
            ("/%2D%2d%2E%5F%7E%30", "/--._~0"),
            ("/a%2Fb%25%20%3F%23", "/a%2Fb%25%20%3F%23"),
            ("/%2561", "/%2561"),
            ("/%61%", "/%61%"),
            ("/%61%4", "/%61%4"),
            ("/%61%+1", "/%61%+1"),
            ("/%61%é", "/%61%é"),
        ] {
            assert_eq!(decode_unreserved(path), decoded, "{path}");
        }
    }

    proptest! {
        #[test]
        fn decoding_again_changes_nothing(path in "[%0-9A-Fa-f/é]{0,30}|.*") {
            let once = decode_unreserved(&path);
            prop_assert_eq!(decode_unreserved(&once), once.as_ref());
            prop_assert_eq!(once.matches('/').count(), path.matches('/').count());
        }
    }
}

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{Entropy, Invalid};

const DIGITS: usize = 32;

/// Defines an id that is a prefix and 128 random bits as 32 lower-case hexadecimal digits.
macro_rules! opaque_id {
    ($(#[$doc:meta])* $name:ident, $prefix:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String")]
        pub struct $name(String);

        impl $name {
            pub fn draw(entropy: &dyn Entropy) -> Self {
                Self(draw($prefix, entropy))
            }

            /// Returns `None` unless the text is exactly an id in its printed form.
            pub fn parse(text: &str) -> Option<Self> {
                has_form($prefix, text).then(|| Self(text.to_owned()))
            }

            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $name {
            type Error = Invalid;

            fn try_from(text: String) -> Result<Self, Invalid> {
                if has_form($prefix, &text) {
                    Ok(Self(text))
                } else {
                    Err(Invalid::new(concat!("must be ", $prefix, " and 32 lower-case hexadecimal digits")))
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

opaque_id!(
    /// The id of a session: `sess_…`.
    SessionId,
    "sess_"
);
opaque_id!(
    /// The id of a turn: `turn_…`.
    TurnId,
    "turn_"
);
opaque_id!(
    /// The id of a message: `msg_…`.
    MessageId,
    "msg_"
);

fn draw(prefix: &str, entropy: &dyn Entropy) -> String {
    let mut random = [0; 16];
    entropy.fill(&mut random);
    format!("{prefix}{:032x}", u128::from_be_bytes(random))
}

fn has_form(prefix: &str, text: &str) -> bool {
    let is_digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    text.strip_prefix(prefix).is_some_and(|digits| digits.len() == DIGITS && digits.bytes().all(is_digit))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::entropy::SeededEntropy;

    #[test]
    fn invalid_ids_are_rejected() {
        let digits = "0123456789abcdef".repeat(2);
        assert!(SessionId::parse(&format!("sess_{digits}")).is_some());
        for text in [
            digits.clone(),
            format!("turn_{digits}"),
            format!("sess_{}", &digits[1..]),
            format!("sess_{digits}0"),
            format!("sess_{}", digits.to_uppercase()),
            format!("sess_{}g", &digits[1..]),
            format!(" sess_{digits}"),
            format!("sess_{}é", &digits[2..]),
        ] {
            assert_eq!(SessionId::parse(&text), None, "{text}");
            assert!(serde_json::from_value::<SessionId>(text.clone().into()).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn drawn_ids_parse_and_differ(seed: u64) {
            let entropy = SeededEntropy::new(seed);
            let (session, turn, message) =
                (SessionId::draw(&entropy), TurnId::draw(&entropy), MessageId::draw(&entropy));
            prop_assert_eq!(SessionId::parse(session.as_str()), Some(session.clone()));
            prop_assert_eq!(TurnId::parse(&turn.to_string()), Some(turn));
            prop_assert_eq!(MessageId::parse(message.as_str()), Some(message));
            prop_assert_eq!(serde_json::to_value(&session).unwrap(), session.as_str());
            prop_assert_ne!(SessionId::draw(&entropy), session);
        }

        #[test]
        fn parse_accepts_only_the_printed_form(text in "(sess_)?[0-9a-fA-F]{30,34}|.*") {
            if let Some(id) = SessionId::parse(&text) {
                prop_assert_eq!(id.as_str(), text);
            }
        }
    }
}

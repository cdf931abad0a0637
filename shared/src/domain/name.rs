use std::fmt;

use serde::{Deserialize, Serialize};

use super::{
    Invalid,
    invisible::holds_invisible,
    secret_shape::{finds_secret, is_named_password},
};

const UNREADABLE: Invalid = Invalid::new("must not contain control or invisible characters");

/// A display name: 1 to 100 characters, not all blank, no control or invisible characters.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "CheckedText")]
pub struct Name(String);

/// A text of a request, after [`check_text`], or a text of the store. A type that reads this does
/// not look for invisible characters again, so stored texts stay readable when their table grows.
#[derive(Deserialize)]
#[serde(transparent)]
pub(super) struct CheckedText(pub(super) String);

impl Name {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for Name {
    type Error = Invalid;

    fn try_from(text: String) -> Result<Self, Invalid> {
        if holds_invisible(&text) {
            return Err(UNREADABLE);
        }
        CheckedText(text).try_into()
    }
}

impl TryFrom<CheckedText> for Name {
    type Error = Invalid;

    fn try_from(CheckedText(text): CheckedText) -> Result<Self, Invalid> {
        if text.trim().is_empty() {
            return Err(Invalid::new("must be 1 to 100 characters that are not all blank"));
        }
        if text.chars().count() > 100 {
            return Err(Invalid::new("must have at most 100 characters"));
        }
        if text.chars().any(char::is_control) {
            return Err(UNREADABLE);
        }
        Ok(Self(text))
    }
}

/// Checks a text of a request before its field's own rule: no credentials, no invisible characters,
/// and no control characters but tabs and line ends. Fields that hold a credential skip this check,
/// and so do stored texts, which stay readable when the rules change.
pub fn check_text(text: &str) -> Result<(), Invalid> {
    let is_control = |character: char| character.is_control() && !matches!(character, '\t' | '\n' | '\r');
    // Most texts are ASCII, which has no invisible characters.
    let is_unreadable = if text.is_ascii() {
        text.bytes().any(|byte| is_control(byte.into()))
    } else {
        text.chars().any(is_control) || holds_invisible(text)
    };
    if is_unreadable {
        return Err(UNREADABLE);
    }
    if finds_secret(text) { Err(HOLDS_SECRET) } else { Ok(()) }
}

/// Checks the text of a field that the caller named, in addition to [`check_text`]: the name may say
/// that the text is a credential, as `password` does.
pub fn check_named_text(name: &str, text: &str) -> Result<(), Invalid> {
    check_text(&format!("{name}={text}"))?;
    if is_named_password(name, text) { Err(HOLDS_SECRET) } else { Ok(()) }
}

/// Checks a name that the caller chooses for a field, such as a key of `metadata`: a text on one
/// line that is not blank.
pub fn check_key(key: &str) -> Result<(), Invalid> {
    check_text(key)?;
    if key.chars().any(char::is_control) {
        return Err(UNREADABLE);
    }
    if key.chars().count() > 40 {
        return Err(Invalid::new("must have a name of 1 to 40 characters"));
    }
    // The type has its own rule for the empty key.
    if !key.is_empty() && key.trim().is_empty() {
        return Err(Invalid::new("must not be blank: use a visible name"));
    }
    Ok(())
}

pub(super) const HOLDS_SECRET: Invalid = Invalid::new(
    "must not contain a key, token or password, because it is stored and shown: revoke the credential that you sent",
);

/// A name for use in URLs: `[a-z0-9-]{1,63}`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub struct Slug(String);

impl Slug {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for Slug {
    type Error = Invalid;

    fn try_from(text: String) -> Result<Self, Invalid> {
        let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        if text.is_empty() || text.len() > 63 || !text.bytes().all(allowed) {
            return Err(Invalid::new("must be 1 to 63 characters from a-z, 0-9 and -"));
        }
        Ok(Self(text))
    }
}

impl fmt::Display for Slug {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The end user that a session token is minted for, as the caller identifies them: 1 to 255 bytes,
/// not all blank, no control characters.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub struct UserId(String);

impl UserId {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for UserId {
    type Error = Invalid;

    fn try_from(text: String) -> Result<Self, Invalid> {
        if text.trim().is_empty() || text.len() > 255 {
            return Err(Invalid::new("must be 1 to 255 bytes that are not all blank"));
        }
        if text.chars().any(char::is_control) {
            return Err(Invalid::new("must not contain control characters"));
        }
        Ok(Self(text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_counted_in_characters() {
        assert!(Name::try_from("é".repeat(100)).is_ok());
        for text in ["", "   ", &"é".repeat(101), "a\u{0}b", "a\nb"] {
            assert!(Name::try_from(text.to_owned()).is_err(), "{text:?}");
        }
    }

    #[test]
    fn invisible_names_are_rejected() {
        for text in ["Ann \u{2764}\u{FE0F}", "\u{1F511}", "Łódź 東京", "\u{2801}a"] {
            assert!(Name::try_from(text.to_owned()).is_ok(), "{text:?}");
        }
        let refused = "\u{AD}\u{34F}\u{115F}\u{1160}\u{200B}\u{200C}\u{200D}\u{200F}\u{2028}\u{202A}\u{202E}\u{2060}\u{2064}\u{2066}\
            \u{2069}\u{2800}\u{3164}\u{FEFF}\u{FFA0}\u{E0000}\u{E007F}\u{E0100}";
        for character in refused.chars() {
            for text in [format!("a{character}b"), character.to_string()] {
                assert!(Name::try_from(text.clone()).is_err(), "{text:?}");
            }
        }
        for text in ["\u{FE0F}", " \u{FE00}", "\u{2800}", "\u{3000}"] {
            assert!(Name::try_from(text.to_owned()).is_err(), "{text:?}");
        }
    }

    #[test]
    fn stored_names_stay_readable() {
        let read = |text: &str| serde_json::from_value::<Name>(text.into());
        for text in ["Ann\u{FE0F}", "\u{2800}a", "a\u{FFFE}"] {
            assert_eq!(read(text).unwrap().as_str(), text);
            assert_eq!(check_text(text), Err(UNREADABLE), "requests are checked first: {text:?}");
        }
        for text in ["", " ", "a\nb", &"é".repeat(101)] {
            assert!(read(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn joiners_are_accepted_in_joining_scripts() {
        for text in [
            "می\u{200C}خواهم",
            "क्\u{200D}ष",
            "\u{1F468}\u{200D}\u{1F469}\u{200D}\u{1F467}",
            "\u{2764}\u{FE0F}\u{200D}\u{1F525}",
            "\u{1F3F3}\u{FE0F}\u{200D}\u{1F308} crew",
            "\u{1F9D1}\u{1F3FD}\u{200D}\u{1F680}",
        ] {
            assert!(Name::try_from(text.to_owned()).is_ok() && check_text(text).is_ok(), "{text:?}");
        }
        for text in [
            "\u{200C}می",
            "می\u{200D}",
            "می\u{200C}\u{200C}خواهم",
            "می\u{200C} خواهم",
            "ad\u{200D}min",
            "é\u{200C}é",
            "東\u{200D}京",
            "\u{1F468}\u{200D}",
            "\u{FE0F}\u{200D}\u{1F525}",
            "می\u{200B}خواهم",
        ] {
            assert!(Name::try_from(text.to_owned()).is_err() && check_text(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn every_text_is_checked_for_hidden_content() {
        for text in ["", "two\nlines\r\n\tof text", "Łódź 東京 \u{1F511}", "kt_live_AbC123"] {
            assert_eq!(check_text(text), Ok(()), "{text:?}");
        }
        for text in ["a\0b", "\u{1b}[31m", "a\u{7f}", "a\u{85}b", "a\u{202e}b", "a\u{feff}b", "é\0"] {
            assert_eq!(check_text(text), Err(UNREADABLE), "{text:?}");
        }
        for secret in crate::domain::secret_examples() {
            assert_eq!(check_text(&format!("für {secret}")), Err(HOLDS_SECRET), "{secret}");
        }
    }

    #[test]
    fn keys_are_visible_and_on_one_line() {
        for key in ["", "team", "cost center", "größe", "\u{2764}\u{FE0F}"] {
            assert_eq!(check_key(key), Ok(()), "{key:?}");
        }
        for key in ["a\tb", "a\nb", "a\rb", "a\0b", "\t", "\u{85}", "a\u{200b}b"] {
            assert_eq!(check_key(key), Err(UNREADABLE), "{key:?}");
        }
        for key in [" ", "   ", "\u{a0}", "\u{3000}"] {
            assert!(check_key(key).is_err(), "{key:?}");
        }
        let secret = &crate::domain::secret_examples()[0];
        assert_eq!(check_key(secret), Err(HOLDS_SECRET));
    }

    #[test]
    fn slugs_are_lower_case_ascii() {
        assert!(Slug::try_from("my-app-2".to_owned()).is_ok());
        for text in ["", "My-app", "my_app", "my app", "é", &"a".repeat(64), "a/b", "."] {
            assert!(Slug::try_from(text.to_owned()).is_err(), "{text:?}");
        }
    }

    #[test]
    fn user_ids_are_counted_in_bytes() {
        assert!(UserId::try_from("é".repeat(127)).is_ok());
        assert!(UserId::try_from("é".repeat(128)).is_err());
        for text in ["", " ", "\u{a0}\u{3000}", "a\tb"] {
            assert!(UserId::try_from(text.to_owned()).is_err(), "{text:?}");
        }
    }
}

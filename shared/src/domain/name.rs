use std::fmt;

use serde::{Deserialize, Serialize};

use super::Invalid;

/// A human's name for something: 1 to 100 characters, not blank, no control characters.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub struct Name(String);

impl Name {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for Name {
    type Error = Invalid;

    fn try_from(text: String) -> Result<Self, Invalid> {
        if text.trim().is_empty() {
            return Err(Invalid::new("is required: 1 to 100 characters that are not all blank"));
        }
        if text.chars().count() > 100 {
            return Err(Invalid::new("must be at most 100 characters"));
        }
        if text.chars().any(|c| c.is_control() || is_invisible(c)) {
            return Err(Invalid::new("must not contain control characters or invisible ones"));
        }
        Ok(Self(text))
    }
}

/// Characters that take no space or turn the text around: two names could look alike, or one like nothing.
fn is_invisible(character: char) -> bool {
    matches!(character, '\u{200B}' | '\u{200E}'..='\u{200F}' | '\u{2028}'..='\u{202E}' | '\u{2060}'..='\u{206F}' | '\u{FEFF}')
}

/// A name for URLs: `[a-z0-9-]{1,63}`.
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
            return Err(Invalid::new("must be 1 to 63 characters out of a-z, 0-9 and -"));
        }
        Ok(Self(text))
    }
}

impl fmt::Display for Slug {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The end user a session token is minted for, in the caller's own terms: 1 to 255 bytes, no control characters.
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
        if text.is_empty() || text.len() > 255 {
            return Err(Invalid::new("must be 1 to 255 bytes"));
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
        for text in ["", "   ", &"é".repeat(101), "a\u{0}b", "a\nb", "\u{200B}", "a\u{202E}b", "\u{FEFF}"] {
            assert!(Name::try_from(text.to_owned()).is_err(), "{text:?}");
        }
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
        assert!(UserId::try_from(String::new()).is_err());
    }
}

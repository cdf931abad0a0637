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
        if !text.chars().any(is_seen) {
            return Err(Invalid::new("is required: 1 to 100 characters that are not all blank"));
        }
        if text.chars().count() > 100 {
            return Err(Invalid::new("must be at most 100 characters"));
        }
        if text.chars().any(is_unreadable) {
            return Err(Invalid::new("must not contain control characters or invisible ones"));
        }
        Ok(Self(text))
    }
}

/// Whether a character must not stand in a text that people tell things apart by. Control characters, line separators and what Unicode
/// calls default-ignorable: it takes no space or turns the text around, so that two names could look alike. Variation selectors may
/// stand there, since emoji need them.
pub(super) fn is_unreadable(character: char) -> bool {
    character.is_control()
        || matches!(
            character,
            '\u{AD}'
                | '\u{34F}'
                | '\u{61C}'
                | '\u{115F}'..='\u{1160}'
                | '\u{17B4}'..='\u{17B5}'
                | '\u{180B}'..='\u{180F}'
                | '\u{200B}'..='\u{200F}'
                | '\u{2028}'..='\u{202E}'
                | '\u{2060}'..='\u{206F}'
                | '\u{3164}'
                | '\u{FEFF}'
                | '\u{FFA0}'
                | '\u{FFF0}'..='\u{FFF8}'
                | '\u{1BCA0}'..='\u{1BCA3}'
                | '\u{1D173}'..='\u{1D17A}'
                | '\u{E0000}'..='\u{E0FFF}'
        )
}

/// Whether a character can be seen by itself: a text needs one at least. Not so blanks, the empty Braille pattern and variation selectors.
pub(super) fn is_seen(character: char) -> bool {
    !character.is_whitespace()
        && !matches!(character, '\u{2800}' | '\u{FE00}'..='\u{FE0F}')
        && !is_unreadable(character)
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
        for text in ["", "   ", &"é".repeat(101), "a\u{0}b", "a\nb"] {
            assert!(Name::try_from(text.to_owned()).is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_name_can_be_seen_and_looks_like_no_other() {
        for text in ["Ann \u{2764}\u{FE0F}", "\u{1F511}", "Łódź 東京", "\u{2800}a"] {
            assert!(Name::try_from(text.to_owned()).is_ok(), "{text:?}");
        }
        let refused = "\u{AD}\u{34F}\u{115F}\u{1160}\u{200B}\u{200C}\u{200D}\u{200F}\u{2028}\u{202A}\u{202E}\u{2060}\u{2064}\u{2066}\
            \u{2069}\u{3164}\u{FEFF}\u{FFA0}\u{E0000}\u{E007F}\u{E0100}";
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

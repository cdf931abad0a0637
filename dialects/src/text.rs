//! Text of an answer whose characters may be split over two events.

use std::mem;

use crate::Delta;

/// A code unit of UTF-16 that has no character without the other half of its pair.
const HIGH_HALVES: std::ops::RangeInclusive<u32> = 0xD800..=0xDBFF;
const LOW_HALVES: std::ops::RangeInclusive<u32> = 0xDC00..=0xDFFF;

/// A JSON string's text: a low half surrogate, characters, and a high half surrogate. Other halves are
/// replaced by U+FFFD.
#[derive(Default)]
pub(crate) struct Text {
    first_half: Option<u32>,
    characters: String,
    last_half: Option<u32>,
}

impl Text {
    /// Reads UTF-8 that may hold half surrogates in their three-byte form (WTF-8).
    pub(crate) fn from_wtf8(bytes: Vec<u8>) -> Self {
        match String::from_utf8(bytes) {
            Ok(characters) => Self { characters, ..Self::default() },
            Err(fault) => Self::with_halves(&fault.into_bytes()),
        }
    }

    fn with_halves(mut bytes: &[u8]) -> Self {
        let mut text = Self::default();
        while !bytes.is_empty() {
            let valid = std::str::from_utf8(bytes).map_or_else(|fault| fault.valid_up_to(), str::len);
            text.characters.push_str(&String::from_utf8_lossy(&bytes[..valid]));
            bytes = &bytes[valid..];
            let Some((half, rest)) = bytes.split_at_checked(3) else { break };
            let half = 0xD000 | (u32::from(half[1] & 0x3F) << 6) | u32::from(half[2] & 0x3F);
            let is_first = text.characters.is_empty() && text.first_half.is_none();
            if is_first && LOW_HALVES.contains(&half) {
                text.first_half = Some(half);
            } else if rest.is_empty() && HIGH_HALVES.contains(&half) {
                text.last_half = Some(half);
            } else {
                text.characters.push(char::REPLACEMENT_CHARACTER);
            }
            bytes = rest;
        }
        text
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.characters.is_empty() && self.first_half.is_none() && self.last_half.is_none()
    }

    /// Returns the text with U+FFFD for each half surrogate.
    pub(crate) fn into_string(self) -> String {
        let Self { first_half, characters, last_half } = self;
        let replacement = |half: Option<u32>| half.map(|_| char::REPLACEMENT_CHARACTER);
        if first_half.is_none() && last_half.is_none() {
            return characters;
        }
        replacement(first_half).into_iter().chain(characters.chars()).chain(replacement(last_half)).collect()
    }
}

/// A block of the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    Text(u32),
    Reasoning(u32),
}

impl Part {
    fn delta(self, text: String) -> Delta {
        match self {
            Self::Text(part) => Delta::Text { part, text },
            Self::Reasoning(part) => Delta::Reasoning { part, text },
        }
    }
}

/// Joins the halves of a character that the provider split over two events of one part.
#[derive(Default)]
pub(crate) struct Joiner {
    high_half: Option<(Part, u32)>,
}

impl Joiner {
    /// Appends the delta of this text to `out`. A high half at the text's end is kept until the next
    /// text.
    pub(crate) fn push(&mut self, part: Part, mut text: Text, out: &mut Vec<Delta>) {
        if let Some((_, high)) = self.high_half.take_if(|(of, _)| *of == part && text.first_half.is_some()) {
            let low = text.first_half.take().unwrap_or_default();
            let joined = char::from_u32(0x10000 + ((high & 0x3FF) << 10) + (low & 0x3FF));
            text.characters.insert(0, joined.unwrap_or(char::REPLACEMENT_CHARACTER));
        }
        self.finish(out);
        self.high_half = mem::take(&mut text.last_half).map(|half| (part, half));
        if !text.is_empty() {
            out.push(part.delta(text.into_string()));
        }
    }

    /// Appends U+FFFD for a half whose other half did not follow.
    pub(crate) fn finish(&mut self, out: &mut Vec<Delta>) {
        if let Some((part, _)) = self.high_half.take() {
            out.push(part.delta(char::REPLACEMENT_CHARACTER.to_string()));
        }
    }
}

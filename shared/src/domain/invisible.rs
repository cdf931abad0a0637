//! Characters that show nothing. Two texts that differ only in them look alike.

/// Ranges of invisible characters, by Unicode property:
///
/// - `Default_Ignorable_Code_Point`, assigned or not: fillers, joiners, variation selectors, tags.
/// - General category `Cf`, except the numeral and verse signs of `Prepended_Concatenation_Mark`,
///   which are visible. U+070F, a mark over other letters, is rejected.
/// - General categories `Zl` and `Zp`.
/// - `Noncharacter_Code_Point`, with [`is_noncharacter`] for the last two of each plane.
/// - Signs that are blank by their name: U+2800 (Braille), U+16FE4 (Khitan), U+1D159 (music).
static INVISIBLE: [(char, char); 23] = [
    ('\u{AD}', '\u{AD}'),
    ('\u{34F}', '\u{34F}'),
    ('\u{61C}', '\u{61C}'),
    ('\u{70F}', '\u{70F}'),
    ('\u{115F}', '\u{1160}'),
    ('\u{17B4}', '\u{17B5}'),
    ('\u{180B}', '\u{180F}'),
    ('\u{200B}', '\u{200F}'),
    ('\u{2028}', '\u{202E}'),
    ('\u{2060}', '\u{206F}'),
    ('\u{2800}', '\u{2800}'),
    ('\u{3164}', '\u{3164}'),
    ('\u{FDD0}', '\u{FDEF}'),
    ('\u{FE00}', '\u{FE0F}'),
    ('\u{FEFF}', '\u{FEFF}'),
    ('\u{FFA0}', '\u{FFA0}'),
    ('\u{FFF0}', '\u{FFFB}'),
    ('\u{13430}', '\u{1343F}'),
    ('\u{16FE4}', '\u{16FE4}'),
    ('\u{1BCA0}', '\u{1BCA3}'),
    ('\u{1D159}', '\u{1D159}'),
    ('\u{1D173}', '\u{1D17A}'),
    ('\u{E0000}', '\u{E0FFF}'),
];

const ZERO_WIDTH_NON_JOINER: char = '\u{200C}';
const ZERO_WIDTH_JOINER: char = '\u{200D}';
const TEXT_STYLE: char = '\u{FE0E}';
const EMOJI_STYLE: char = '\u{FE0F}';
const KEYCAP: char = '\u{20E3}';
const BLACK_FLAG: char = '\u{1F3F4}';
const END_OF_TAGS: char = '\u{E007F}';

/// Returns whether a text contains an invisible character that neither its script nor an emoji
/// needs. Control characters do not count, because each field has its own rule for them.
///
/// - A joiner must be next to letters that join, or emoji. Elsewhere it shows nothing.
/// - A variation selector must follow an emoji that it changes, or be part of a keycap.
/// - Tags must spell a region after a black flag, as in the flag of England.
pub fn holds_invisible(text: &str) -> bool {
    let (mut before, mut characters) = (None, text.chars());
    while let Some(character) = characters.next() {
        let rest = characters.as_str();
        let is_hidden = match character {
            ZERO_WIDTH_NON_JOINER | ZERO_WIDTH_JOINER => {
                !before.is_some_and(is_joined) || !rest.chars().next().is_some_and(is_joined)
            }
            other => is_invisible(other),
        };
        if is_hidden {
            return true;
        }
        before = Some(character);
        characters = without_emoji_parts(character, rest).chars();
    }
    false
}

fn is_invisible(character: char) -> bool {
    INVISIBLE.iter().any(|(first, last)| (*first..=*last).contains(&character)) || is_noncharacter(character)
}

/// Returns true for U+FFFE and U+FFFF, and for the last two characters of every other plane.
fn is_noncharacter(character: char) -> bool {
    u32::from(character) & 0xFFFE == 0xFFFE
}

/// Skips the invisible characters after `base` that belong to its emoji.
fn without_emoji_parts(base: char, rest: &str) -> &str {
    let after = match base {
        '0'..='9' | '#' | '*' => rest.strip_prefix(EMOJI_STYLE).filter(|rest| rest.starts_with(KEYCAP)),
        BLACK_FLAG => without_region_tags(rest),
        base if has_styles(base) => rest.strip_prefix([TEXT_STYLE, EMOJI_STYLE]),
        _ => None,
    };
    after.unwrap_or(rest)
}

/// Skips the tags of a region: two letters, one to four letters or digits, and the end.
fn without_region_tags(rest: &str) -> Option<&str> {
    let is_letter = |tag: char| ('\u{E0061}'..='\u{E007A}').contains(&tag);
    let is_digit = |tag: char| ('\u{E0030}'..='\u{E0039}').contains(&tag);
    let (tags, rest) = rest.split_at(rest.find(|tag: char| !is_letter(tag) && !is_digit(tag))?);
    let is_region = (3..=6).contains(&tags.chars().count()) && tags.chars().take(2).all(is_letter);
    rest.strip_prefix(END_OF_TAGS).filter(|_| is_region)
}

/// Returns whether a character can be shown as text and as an emoji. Approximates
/// `emoji-variation-sequences.txt` by the property `Emoji`, and in the pictographs by blocks.
fn has_styles(base: char) -> bool {
    matches!(
        base,
        '\u{A9}' | '\u{AE}' | '\u{203C}' | '\u{2049}' | '\u{2122}' | '\u{2139}' | '\u{2194}'..='\u{2199}'
            | '\u{21A9}'..='\u{21AA}' | '\u{231A}'..='\u{231B}' | '\u{2328}' | '\u{23CF}' | '\u{23E9}'..='\u{23F3}'
            | '\u{23F8}'..='\u{23FA}' | '\u{24C2}' | '\u{25AA}'..='\u{25AB}' | '\u{25B6}' | '\u{25C0}'
            | '\u{25FB}'..='\u{25FE}' | '\u{2600}'..='\u{2604}' | '\u{260E}' | '\u{2611}' | '\u{2614}'..='\u{2615}'
            | '\u{2618}' | '\u{261D}' | '\u{2620}' | '\u{2622}'..='\u{2623}' | '\u{2626}' | '\u{262A}'
            | '\u{262E}'..='\u{262F}' | '\u{2638}'..='\u{263A}' | '\u{2640}' | '\u{2642}' | '\u{2648}'..='\u{2653}'
            | '\u{265F}'..='\u{2660}' | '\u{2663}' | '\u{2665}'..='\u{2666}' | '\u{2668}' | '\u{267B}'
            | '\u{267E}'..='\u{267F}' | '\u{2692}'..='\u{2697}' | '\u{2699}' | '\u{269B}'..='\u{269C}'
            | '\u{26A0}'..='\u{26A1}' | '\u{26A7}' | '\u{26AA}'..='\u{26AB}' | '\u{26B0}'..='\u{26B1}'
            | '\u{26BD}'..='\u{26BE}' | '\u{26C4}'..='\u{26C5}' | '\u{26C8}' | '\u{26CE}'..='\u{26CF}' | '\u{26D1}'
            | '\u{26D3}'..='\u{26D4}' | '\u{26E9}'..='\u{26EA}' | '\u{26F0}'..='\u{26F5}' | '\u{26F7}'..='\u{26FA}'
            | '\u{26FD}' | '\u{2702}' | '\u{2705}' | '\u{2708}'..='\u{270D}' | '\u{270F}' | '\u{2712}' | '\u{2714}'
            | '\u{2716}' | '\u{271D}' | '\u{2721}' | '\u{2728}' | '\u{2733}'..='\u{2734}' | '\u{2744}' | '\u{2747}'
            | '\u{274C}' | '\u{274E}' | '\u{2753}'..='\u{2755}' | '\u{2757}' | '\u{2763}'..='\u{2764}'
            | '\u{2795}'..='\u{2797}' | '\u{27A1}' | '\u{27B0}' | '\u{27BF}' | '\u{2934}'..='\u{2935}'
            | '\u{2B05}'..='\u{2B07}' | '\u{2B1B}'..='\u{2B1C}' | '\u{2B50}' | '\u{2B55}' | '\u{3030}' | '\u{303D}'
            | '\u{3297}' | '\u{3299}' | '\u{1F004}' | '\u{1F0CF}' | '\u{1F170}'..='\u{1F171}'
            | '\u{1F17E}'..='\u{1F17F}' | '\u{1F202}' | '\u{1F21A}' | '\u{1F22F}' | '\u{1F237}'
            | '\u{1F300}'..='\u{1F3FA}' | '\u{1F400}'..='\u{1F64F}' | '\u{1F680}'..='\u{1F6FF}'
            | '\u{1F7E0}'..='\u{1F7EB}' | '\u{1F900}'..='\u{1F9FF}' | '\u{1FA70}'..='\u{1FAFF}'
    )
}

/// Returns whether a joiner next to this character is visible: letters and marks of the scripts of
/// Western, South and Southeast Asia and of Mongolia, and emoji.
fn is_joined(character: char) -> bool {
    let script = matches!(
        character,
        '\u{600}'..='\u{109F}' | '\u{1700}'..='\u{18AF}' | '\u{1900}'..='\u{1CFF}' | '\u{A800}'..='\u{ABFF}' | '\u{FB50}'..='\u{FDFF}'
            | '\u{FE70}'..='\u{FEFC}' | '\u{10A00}'..='\u{11FFF}' | '\u{1E900}'..='\u{1E95F}'
    );
    (script && !is_invisible(character) && !character.is_whitespace())
        || matches!(character, '\u{2190}'..='\u{2BFF}' | '\u{1F000}'..='\u{1FAFF}')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::domain::{ModelId, Name, check_text};

    /// Sequences that need an invisible character.
    const VISIBLE: [&str; 18] = [
        "\u{2764}\u{FE0F}",
        "\u{263A}\u{FE0F}",
        "\u{263A}\u{FE0E}",
        "\u{A9}\u{FE0F}",
        "\u{3030}\u{FE0F}",
        "\u{1F170}\u{FE0F}",
        "1\u{FE0F}\u{20E3}",
        "#\u{FE0F}\u{20E3}",
        "*\u{FE0F}\u{20E3}",
        "\u{2764}\u{FE0F}\u{200D}\u{1F525}",
        "\u{1F3F3}\u{FE0F}\u{200D}\u{1F308}",
        "\u{1F3F4}\u{200D}\u{2620}\u{FE0F}",
        "\u{26F9}\u{1F3FD}\u{200D}\u{2642}\u{FE0F}",
        "\u{1F468}\u{200D}\u{1F469}\u{200D}\u{1F467}",
        // England, and Texas.
        "\u{1F3F4}\u{E0067}\u{E0062}\u{E0065}\u{E006E}\u{E0067}\u{E007F}",
        "\u{1F3F4}\u{E0075}\u{E0073}\u{E0074}\u{E0078}\u{E007F}",
        "\u{645}\u{6CC}\u{200C}\u{62E}\u{648}\u{627}\u{647}\u{645}",
        "\u{915}\u{94D}\u{200D}\u{937}",
    ];

    fn accepts(text: &str) -> [bool; 3] {
        let (name, model) = (Name::try_from(text.to_owned()), ModelId::try_from(text.to_owned()));
        [check_text(text).is_ok(), name.is_ok(), model.is_ok()]
    }

    #[test]
    fn every_invisible_character_is_refused() {
        let table = INVISIBLE.iter().flat_map(|(first, last)| *first..=*last);
        let ends =
            (0..=16).flat_map(|plane| [(plane << 16) | 0xFFFE, (plane << 16) | 0xFFFF]).filter_map(char::from_u32);
        for character in table.chain(ends) {
            for text in [format!("a{character}b"), format!("a{character}"), format!("1{character}")] {
                assert_eq!(accepts(&text), [false; 3], "{text:?}");
            }
        }
    }

    #[test]
    fn visible_sequences_are_accepted() {
        for text in VISIBLE {
            for text in [text.to_owned(), format!("a{text}"), format!("{text}b"), text.repeat(2)] {
                assert_eq!(accepts(&text), [true; 3], "{text:?}");
            }
        }
        // Visible signs of the category Cf, and neighbours of rows.
        for text in ["\u{600}1", "\u{6DD}", "\u{8E2}", "\u{110BD}", "\u{2801}", "\u{FFFC}", "\u{FFFD}", "東京"] {
            assert_eq!(accepts(text), [true; 3], "{text:?}");
        }
    }

    #[test]
    fn incomplete_sequences_are_refused() {
        let england: Vec<char> = VISIBLE[14].chars().collect();
        let without = |at: usize| -> String {
            england.iter().enumerate().filter(|(of, _)| *of != at).map(|(_, tag)| *tag).collect()
        };
        let without_end = without(6);
        for text in [
            "\u{FE0F}",
            "a\u{FE0F}",
            "\u{FE0F}\u{2764}",
            "\u{2764}\u{FE0F}\u{FE0F}",
            "\u{2764}\u{FE0E}\u{FE0F}",
            "\u{2764}\u{FE00}",
            "\u{2764}\u{E0100}",
            "\u{1F3FD}\u{FE0F}",
            "\u{845B}\u{E0100}",
            "1\u{FE0F}",
            "1\u{FE0E}\u{20E3}",
            "1\u{FE0F}a\u{20E3}",
            "a\u{FE0F}\u{20E3}",
            "\u{1F3F4}\u{E0067}",
            "\u{1F3F4}\u{E007F}",
            "\u{1F3F4}\u{E0067}\u{E0062}\u{E007F}",
            "\u{1F3F4}\u{E0031}\u{E0062}\u{E0065}\u{E007F}",
            "\u{1F3F4}\u{E0067}\u{E0062}\u{E0020}\u{E007F}",
            "\u{1F3F3}\u{E0067}\u{E0062}\u{E0065}\u{E006E}\u{E0067}\u{E007F}",
            &without_end,
            &without(0),
            &format!("{without_end}\u{E0067}\u{E0067}\u{E007F}"),
            &format!("{}\u{E007F}", VISIBLE[14]),
        ] {
            assert_eq!(accepts(text), [false; 3], "{text:?}");
        }
    }

    /// Removes the sequences that are allowed to hold invisible characters.
    fn without_sequences(text: &str) -> String {
        let mut sequences = VISIBLE;
        // A sequence may contain a shorter sequence.
        sequences.sort_by_key(|sequence| std::cmp::Reverse(sequence.len()));
        sequences.iter().fold(text.to_owned(), |text, sequence| text.replace(sequence, ""))
    }

    proptest! {
        #[test]
        fn accepted_names_hide_nothing(
            pieces in prop::collection::vec(
                prop_oneof![
                    prop::sample::select(VISIBLE.to_vec()).prop_map(str::to_owned),
                    prop::sample::select(INVISIBLE.to_vec()).prop_map(|(first, _)| first.to_string()),
                    "[a-z0-9 ]",
                    any::<char>().prop_filter("visible", |of| !is_invisible(*of)).prop_map(String::from),
                ],
                1..6,
            ),
        ) {
            let text = pieces.concat();
            if accepts(&text)[1] {
                let rest = without_sequences(&text);
                prop_assert!(!rest.chars().any(is_invisible), "{:?}", text);
            }
        }
    }
}

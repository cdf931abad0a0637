//! Decodes the labels of international domain names (Punycode, RFC 3492).

const BASE: u32 = 36;
const MIN_THRESHOLD: u32 = 1;
const MAX_THRESHOLD: u32 = 26;
const SKEW: u32 = 38;
const DAMP: u32 = 700;
const INITIAL_BIAS: u32 = 72;
const INITIAL_CODE_POINT: u32 = 128;

/// Decodes the part of a lower-case label that follows `xn--`. `None` if it is not Punycode.
pub(super) fn decode(text: &str) -> Option<Vec<char>> {
    let (basic, extended) = match text.rsplit_once('-') {
        Some((basic, _)) if basic.is_empty() || !basic.is_ascii() => return None,
        Some(parts) => parts,
        None => ("", text),
    };
    let mut decoded: Vec<char> = basic.chars().collect();
    let (mut code_point, mut position, mut bias) = (INITIAL_CODE_POINT, 0_u32, INITIAL_BIAS);
    let mut digits = extended.bytes().peekable();
    while digits.peek().is_some() {
        let before = position;
        let (mut weight, mut offset) = (1_u32, BASE);
        loop {
            let digit = digit(digits.next()?)?;
            position = position.checked_add(digit.checked_mul(weight)?)?;
            let threshold = offset.saturating_sub(bias).clamp(MIN_THRESHOLD, MAX_THRESHOLD);
            if digit < threshold {
                break;
            }
            weight = weight.checked_mul(BASE - threshold)?;
            offset += BASE;
        }
        let length = u32::try_from(decoded.len()).ok()? + 1;
        bias = adapted_bias(position - before, length, before == 0);
        code_point = code_point.checked_add(position / length)?;
        position %= length;
        decoded.insert(usize::try_from(position).ok()?, char::from_u32(code_point)?);
        position += 1;
    }
    Some(decoded)
}

fn digit(byte: u8) -> Option<u32> {
    match byte {
        b'a'..=b'z' => Some(u32::from(byte - b'a')),
        b'0'..=b'9' => Some(u32::from(byte - b'0') + 26),
        _ => None,
    }
}

fn adapted_bias(delta: u32, length: u32, is_first: bool) -> u32 {
    let mut delta = delta / if is_first { DAMP } else { 2 };
    delta += delta / length;
    let mut offset = 0;
    while delta > (BASE - MIN_THRESHOLD) * MAX_THRESHOLD / 2 {
        delta /= BASE - MIN_THRESHOLD;
        offset += BASE;
    }
    offset + (BASE - MIN_THRESHOLD + 1) * delta / (delta + SKEW)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Encodes as RFC 3492 §6.3 describes.
    fn encode(name: &[char]) -> String {
        let mut encoded: String = name.iter().filter(|c| c.is_ascii()).collect();
        let basic = u32::try_from(encoded.len()).unwrap();
        if basic > 0 {
            encoded.push('-');
        }
        let (mut code_point, mut delta, mut bias, mut handled) = (INITIAL_CODE_POINT, 0, INITIAL_BIAS, basic);
        while let Some(next) = name.iter().map(|c| u32::from(*c)).filter(|c| *c >= code_point).min() {
            delta += (next - code_point) * (handled + 1);
            code_point = next;
            for found in name.iter().map(|c| u32::from(*c)) {
                if found < code_point {
                    delta += 1;
                }
                if found == code_point {
                    let (mut rest, mut offset) = (delta, BASE);
                    loop {
                        let threshold = offset.saturating_sub(bias).clamp(MIN_THRESHOLD, MAX_THRESHOLD);
                        if rest < threshold {
                            break;
                        }
                        encoded.push(letter(threshold + (rest - threshold) % (BASE - threshold)));
                        rest = (rest - threshold) / (BASE - threshold);
                        offset += BASE;
                    }
                    encoded.push(letter(rest));
                    bias = adapted_bias(delta, handled + 1, handled == basic);
                    (delta, handled) = (0, handled + 1);
                }
            }
            (delta, code_point) = (delta + 1, code_point + 1);
        }
        encoded
    }

    fn letter(digit: u32) -> char {
        char::from(b"abcdefghijklmnopqrstuvwxyz0123456789"[usize::try_from(digit).unwrap()])
    }

    #[test]
    fn names_are_decoded() {
        // Those with spaces, capitals or symbols are left out of RFC 3492 §7.1.
        for (encoded, name) in [
            ("bcher-kva", "bücher"),
            ("p1ai", "рф"),
            ("ihqwcrb4cv8a8dqg056pqjye", "他们为什么不说中文"),
            ("proprostnemluvesky-uyb24dma41a", "pročprostěnemluvíčesky"),
            ("2-u9tlzr9756bt3uc0v", "ひとつ屋根の下2"),
            ("de-jg4avhby1noc0d", "パフィーdeルンバ"),
            ("11b3ar0d1b5d", "पुस्तक"),
            ("a", "\u{80}"),
            ("abc-", "abc"),
            ("", ""),
        ] {
            let name: Vec<char> = name.chars().collect();
            assert_eq!(decode(encoded).as_ref(), Some(&name), "{encoded}");
            assert_eq!(encode(&name), encoded);
        }
    }

    #[test]
    fn text_that_is_not_punycode_is_refused() {
        for text in ["0", "1", "a-b", "test", "99999999", "bcher-kva1", "-foo", "-", "ü", "ü-kva", "a_b", "A"] {
            assert_eq!(decode(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn encoded_name_is_decoded(name in "[a-z0-9à-öø-ÿα-ωа-яא-תぁ-ん一-龥😀-😎]{0,16}") {
            let name: Vec<char> = name.chars().collect();
            prop_assert_eq!(decode(&encode(&name)), Some(name));
        }

        #[test]
        fn decoded_text_is_the_only_encoding(text in "[a-z0-9-]{0,16}", other in ".{0,16}") {
            for text in [text, other] {
                if let Some(name) = decode(&text) {
                    prop_assert_eq!(encode(&name), text);
                }
            }
        }
    }
}

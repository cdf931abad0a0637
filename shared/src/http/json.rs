//! Parser of request JSON into a tree, in one pass over the bytes.
//!
//! [`parse`] rejects text that is not JSON. A JSON value that no field can hold stays in the tree: as
//! [`Json::Unusable`] (a repeated name, an unpaired surrogate, deep nesting), or as a [`Number`] out
//! of range. It is rejected when a type reads it. The error can then name the path, and one invalid
//! event of a batch does not affect the other events.

use std::{borrow::Cow, collections::BTreeMap};

use serde::{Serialize, Serializer};
#[cfg(test)]
use serde_json::Value;

use super::Error;

/// Maximum nesting of lists and objects. Bodies need only a few levels.
const DEPTH_MAX: usize = 64;

pub(super) const REPEATED: &str = "must be given once";
pub(super) const UNPAIRED: &str = "must not contain an unpaired surrogate";
pub(super) const UNPAIRED_IN_NAME: &str = "must not have an unpaired surrogate in its name";
pub(super) const TOO_DEEP: &str = "must not be nested more than 64 levels deep";

/// A JSON value. Texts without escapes borrow from the body.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Json<'a> {
    Null,
    Bool(bool),
    Number(Number),
    Text(Cow<'a, str>),
    List(Vec<Json<'a>>),
    /// The fields in the order of the body.
    Object(Vec<(Cow<'a, str>, Json<'a>)>),
    /// A value that no field can hold, with a problem that completes "`<field>` …".
    Unusable(&'static str),
}

/// A JSON number. `60.0` and `6e1` are the integer 60.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Number {
    Natural(u64),
    Negative(i64),
    Fraction(f64),
    AboveRange,
    BelowRange,
}

impl Number {
    /// Parses the text of a number. Whole numbers are exact.
    pub(super) fn new(text: &str) -> Self {
        let (negative, magnitude) = text.strip_prefix('-').map_or((false, text), |rest| (true, rest));
        if magnitude.len() < 20 && magnitude.bytes().all(|byte| byte.is_ascii_digit()) {
            return Self::whole(negative, magnitude, 0);
        }
        let (mantissa, exponent) = magnitude.split_once(['e', 'E']).unwrap_or((magnitude, "0"));
        let (before, after) = mantissa.split_once('.').unwrap_or((mantissa, ""));
        let digits = [before, after].concat();
        let significant = digits.trim_end_matches('0');
        let zeros = i64::try_from(digits.len() - significant.len()).unwrap_or(i64::MAX);
        let significant = significant.trim_start_matches('0');
        if significant.is_empty() {
            return Self::Natural(0);
        }
        let shifted = |exponent: i64| {
            let places = i64::try_from(after.len()).unwrap_or(i64::MAX);
            exponent.saturating_sub(places).saturating_add(zeros)
        };
        match exponent.parse().map(shifted) {
            Ok(scale) if scale >= 0 => Self::whole(negative, significant, scale),
            // An exponent of 20 digits.
            Err(_) if !exponent.starts_with('-') => Self::out_of_range(negative),
            _ => text
                .parse()
                .ok()
                .filter(|real: &f64| real.is_finite())
                .map_or(Self::out_of_range(negative), Self::Fraction),
        }
    }

    /// Returns the number `digits` followed by this many zeros.
    fn whole(negative: bool, digits: &str, zeros: i64) -> Self {
        let power = u32::try_from(zeros).ok().and_then(|zeros| 10_u128.checked_pow(zeros));
        let value = digits.parse::<u128>().ok().zip(power).and_then(|(digits, power)| digits.checked_mul(power));
        let found = match (value, negative) {
            (Some(0), _) => Some(Self::Natural(0)),
            (Some(value), false) => u64::try_from(value).ok().map(Self::Natural),
            (Some(value), true) => {
                i128::try_from(value).ok().and_then(|value| (-value).try_into().ok()).map(Self::Negative)
            }
            (None, _) => None,
        };
        found.unwrap_or(Self::out_of_range(negative))
    }

    fn out_of_range(negative: bool) -> Self {
        if negative { Self::BelowRange } else { Self::AboveRange }
    }
}

#[cfg(test)]
impl<'a> From<&'a Value> for Json<'a> {
    fn from(value: &'a Value) -> Self {
        match value {
            Value::Null => Self::Null,
            Value::Bool(value) => Self::Bool(*value),
            Value::Number(number) => Self::Number(Number::new(&number.to_string())),
            Value::String(text) => Self::Text(text.as_str().into()),
            Value::Array(items) => Self::List(items.iter().map(Self::from).collect()),
            Value::Object(fields) => {
                Self::Object(fields.iter().map(|(name, value)| (name.as_str().into(), value.into())).collect())
            }
        }
    }
}

/// Sorts the fields of every object, so that equivalent bodies are serialized equally.
impl Serialize for Json<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Null | Self::Unusable(_) | Self::Number(Number::AboveRange | Number::BelowRange) => {
                serializer.serialize_unit()
            }
            Self::Bool(value) => serializer.serialize_bool(*value),
            Self::Number(Number::Natural(number)) => serializer.serialize_u64(*number),
            Self::Number(Number::Negative(number)) => serializer.serialize_i64(*number),
            Self::Number(Number::Fraction(number)) => serializer.serialize_f64(*number),
            Self::Text(text) => serializer.serialize_str(text),
            Self::List(items) => serializer.collect_seq(items),
            Self::Object(fields) => {
                let sorted: BTreeMap<_, _> = fields.iter().map(|(name, value)| (name, value)).collect();
                serializer.collect_map(sorted)
            }
        }
    }
}

pub(super) fn parse(bytes: &[u8]) -> Result<Json<'_>, Error> {
    if bytes.trim_ascii().is_empty() {
        return Err(Error::MalformedJson("The body is empty. Send a JSON object.".to_owned()));
    }
    let parsed = match std::str::from_utf8(bytes) {
        Ok(text) => Parser { text, bytes, at: 0 }.document(),
        Err(error) => Err(Malformed(error.valid_up_to())),
    };
    parsed.map_err(|Malformed(at)| {
        let before = &bytes[..at.min(bytes.len())];
        let (line, column) = before.iter().fold((1, 1), |(line, column), byte| match byte {
            b'\n' => (line + 1, 1),
            _ => (line, column + 1),
        });
        Error::MalformedJson(format!("The body is not JSON. See line {line}, column {column}."))
    })
}

/// The position at which a text stops being JSON.
struct Malformed(usize);

struct Parser<'a> {
    text: &'a str,
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Parser<'a> {
    fn document(mut self) -> Result<Json<'a>, Malformed> {
        let value = self.value(0)?;
        match self.peek() {
            None => Ok(value),
            Some(_) => Err(self.malformed()),
        }
    }

    fn malformed(&self) -> Malformed {
        Malformed(self.at)
    }

    /// Skips blanks and returns the next byte without consuming it.
    fn peek(&mut self) -> Option<u8> {
        let rest = &self.bytes[self.at..];
        let blank = rest.iter().position(|byte| !matches!(byte, b' ' | b'\n' | b'\r' | b'\t')).unwrap_or(rest.len());
        self.at += blank;
        self.bytes.get(self.at).copied()
    }

    /// Consumes the next byte that is not blank if it is `wanted`.
    fn take(&mut self, wanted: u8) -> bool {
        let found = self.peek() == Some(wanted);
        self.at += usize::from(found);
        found
    }

    fn expect(&mut self, wanted: u8) -> Result<(), Malformed> {
        if self.take(wanted) { Ok(()) } else { Err(self.malformed()) }
    }

    fn value(&mut self, depth: usize) -> Result<Json<'a>, Malformed> {
        match self.peek() {
            Some(b'{' | b'[') if depth == DEPTH_MAX => {
                self.skip()?;
                Ok(Json::Unusable(TOO_DEEP))
            }
            Some(b'{') => self.object(depth),
            Some(b'[') => self.list(depth),
            _ => self.scalar(),
        }
    }

    fn list(&mut self, depth: usize) -> Result<Json<'a>, Malformed> {
        self.at += 1;
        let mut items = Vec::new();
        if self.take(b']') {
            return Ok(Json::List(items));
        }
        loop {
            items.push(self.value(depth + 1)?);
            if !self.take(b',') {
                self.expect(b']')?;
                return Ok(Json::List(items));
            }
        }
    }

    fn object(&mut self, depth: usize) -> Result<Json<'a>, Malformed> {
        self.at += 1;
        let mut fields = Vec::new();
        if self.take(b'}') {
            return Ok(Json::Object(fields));
        }
        loop {
            let (name, is_paired) = self.name()?;
            let value = self.value(depth + 1)?;
            fields.push((name, if is_paired { value } else { Json::Unusable(UNPAIRED_IN_NAME) }));
            if !self.take(b',') {
                self.expect(b'}')?;
                mark_repeated(&mut fields);
                return Ok(Json::Object(fields));
            }
        }
    }

    fn name(&mut self) -> Result<(Cow<'a, str>, bool), Malformed> {
        if self.peek() != Some(b'"') {
            return Err(self.malformed());
        }
        let name = self.string()?;
        self.expect(b':')?;
        Ok(name)
    }

    fn scalar(&mut self) -> Result<Json<'a>, Malformed> {
        match self.peek() {
            Some(b'"') => Ok(match self.string()? {
                (text, true) => Json::Text(text),
                (_, false) => Json::Unusable(UNPAIRED),
            }),
            Some(b'-' | b'0'..=b'9') => self.number(),
            Some(b't') => self.word("true", Json::Bool(true)),
            Some(b'f') => self.word("false", Json::Bool(false)),
            Some(b'n') => self.word("null", Json::Null),
            _ => Err(self.malformed()),
        }
    }

    fn word(&mut self, word: &str, value: Json<'a>) -> Result<Json<'a>, Malformed> {
        if !self.bytes[self.at..].starts_with(word.as_bytes()) {
            return Err(self.malformed());
        }
        self.at += word.len();
        Ok(value)
    }

    fn number(&mut self) -> Result<Json<'a>, Malformed> {
        let start = self.at;
        self.at += usize::from(self.bytes[self.at] == b'-');
        let has_leading_zero = self.bytes.get(self.at) == Some(&b'0');
        if self.digits()? > 1 && has_leading_zero {
            return Err(self.malformed());
        }
        if self.bytes.get(self.at) == Some(&b'.') {
            self.at += 1;
            self.digits()?;
        }
        if matches!(self.bytes.get(self.at), Some(b'e' | b'E')) {
            self.at += 1;
            self.at += usize::from(matches!(self.bytes.get(self.at), Some(b'+' | b'-')));
            self.digits()?;
        }
        Ok(Json::Number(Number::new(&self.text[start..self.at])))
    }

    /// Consumes one or more digits and returns their number.
    fn digits(&mut self) -> Result<usize, Malformed> {
        let count = self.bytes[self.at..].iter().take_while(|byte| byte.is_ascii_digit()).count();
        self.at += count;
        if count == 0 { Err(self.malformed()) } else { Ok(count) }
    }

    /// Consumes a string. The flag is false if it contains an unpaired surrogate.
    fn string(&mut self) -> Result<(Cow<'a, str>, bool), Malformed> {
        self.at += 1;
        let start = self.at;
        let plain = self.plain();
        if self.bytes.get(self.at) == Some(&b'"') {
            self.at += 1;
            return Ok((Cow::Borrowed(plain), true));
        }
        let mut text = String::with_capacity(2 * (self.at - start));
        text.push_str(plain);
        let mut is_paired = true;
        loop {
            match self.bytes.get(self.at) {
                Some(b'"') => {
                    self.at += 1;
                    return Ok((Cow::Owned(text), is_paired));
                }
                Some(b'\\') => {
                    let character = self.escape()?;
                    is_paired &= character.is_some();
                    text.push(character.unwrap_or(char::REPLACEMENT_CHARACTER));
                }
                // The end of the text, or a control character.
                _ => return Err(self.malformed()),
            }
            text.push_str(self.plain());
        }
    }

    /// Consumes the characters up to a quote, an escape or a control character.
    fn plain(&mut self) -> &'a str {
        let rest = &self.bytes[self.at..];
        let end = rest.iter().position(|byte| matches!(byte, b'"' | b'\\' | 0..=0x1f)).unwrap_or(rest.len());
        let plain = &self.text[self.at..self.at + end];
        self.at += end;
        plain
    }

    /// Consumes an escape. Returns its character, or `None` for an unpaired surrogate.
    fn escape(&mut self) -> Result<Option<char>, Malformed> {
        let kind = self.bytes.get(self.at + 1).copied();
        let character = match kind {
            Some(b'"') => '"',
            Some(b'\\') => '\\',
            Some(b'/') => '/',
            Some(b'b') => '\u{8}',
            Some(b'f') => '\u{c}',
            Some(b'n') => '\n',
            Some(b'r') => '\r',
            Some(b't') => '\t',
            Some(b'u') => return self.unicode_escape(),
            _ => return Err(self.malformed()),
        };
        self.at += 2;
        Ok(Some(character))
    }

    fn unicode_escape(&mut self) -> Result<Option<char>, Malformed> {
        let first = self.unit(self.at).ok_or(self.malformed())?;
        self.at += 6;
        let second = if (0xD800..0xDC00).contains(&first) { self.unit(self.at) } else { None };
        match second.filter(|second| (0xDC00..0xE000).contains(second)) {
            Some(second) => {
                self.at += 6;
                Ok(char::from_u32(0x1_0000 + ((first - 0xD800) << 10) + (second - 0xDC00)))
            }
            None => Ok(char::from_u32(first)),
        }
    }

    /// Returns the UTF-16 unit of a `\uXXXX` escape at this position, if there is one.
    fn unit(&self, at: usize) -> Option<u32> {
        let digits = self.bytes.get(at..at + 6)?.strip_prefix(br"\u")?;
        digits.iter().try_fold(0, |unit, digit| Some(16 * unit + char::from(*digit).to_digit(16)?))
    }

    /// Skips a list or an object of any depth.
    fn skip(&mut self) -> Result<(), Malformed> {
        let mut open = Vec::new();
        loop {
            let is_open = match self.peek() {
                Some(b'{') => {
                    self.at += 1;
                    let is_open = !self.take(b'}');
                    if is_open {
                        self.name()?;
                        open.push(b'}');
                    }
                    is_open
                }
                Some(b'[') => {
                    self.at += 1;
                    let is_open = !self.take(b']');
                    if is_open {
                        open.push(b']');
                    }
                    is_open
                }
                _ => self.scalar().map(|_| false)?,
            };
            if is_open {
                continue;
            }
            while let Some(end) = open.last().copied() {
                if self.take(b',') {
                    if end == b'}' {
                        self.name()?;
                    }
                    break;
                }
                self.expect(end)?;
                open.pop();
            }
            if open.is_empty() {
                return Ok(());
            }
        }
    }
}

/// Marks every field whose name occurred before as unusable.
fn mark_repeated(fields: &mut [(Cow<'_, str>, Json<'_>)]) {
    // Most objects are small, and comparing a few names is cheaper than sorting them.
    if fields.len() <= 16 {
        for at in 1..fields.len() {
            let (before, rest) = fields.split_at_mut(at);
            if before.iter().any(|(name, _)| *name == rest[0].0) {
                rest[0].1 = Json::Unusable(REPEATED);
            }
        }
        return;
    }
    let mut order: Vec<usize> = (0..fields.len()).collect();
    order.sort_by(|one, other| fields[*one].0.cmp(&fields[*other].0));
    for pair in order.windows(2) {
        if fields[pair[0]].0 == fields[pair[1]].0 {
            fields[pair[1]].1 = Json::Unusable(REPEATED);
        }
    }
}

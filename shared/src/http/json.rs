//! JSON of requests as a tree, in one pass over the bytes.
//!
//! [`parse`] refuses what is not JSON. A value that is JSON and that no field can hold (a name given twice, half of a surrogate pair, a number out
//! of range, deep nesting) stays in the tree as [`Json::Unusable`]. It is refused where a type reads it, so that the refusal has a path and one
//! bad event of a batch leaves the others alone.

use std::{borrow::Cow, collections::BTreeMap};

use serde::{Serialize, Serializer};
#[cfg(test)]
use serde_json::Value;

use super::Error;

/// How deep lists and objects may be nested. No body needs more than a few levels.
const DEPTH_MAX: usize = 64;

pub(super) const TWICE: &str = "must be given once";
pub(super) const HALF: &str = "must not hold half of a surrogate pair";
pub(super) const HALF_NAME: &str = "must not have half of a surrogate pair in its name";
pub(super) const DEEP: &str = "must not be nested more than 64 levels deep";

/// A JSON value. Texts borrow from the body where it holds no escapes.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Json<'a> {
    Null,
    Bool(bool),
    Number(Number),
    Text(Cow<'a, str>),
    List(Vec<Json<'a>>),
    /// In the order that they were sent in.
    Object(Vec<(Cow<'a, str>, Json<'a>)>),
    /// A value that no field can hold, and what completes "`<field>` …".
    Unusable(&'static str),
}

/// JSON has one kind of number: 60.0 and 6e1 are 60, and an integer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Number {
    Natural(u64),
    Negative(i64),
    Fraction(f64),
    OutOfRange,
    /// Out of range and negative.
    BelowRange,
}

impl Number {
    /// The value of a number's text, exact for whole numbers.
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
            Err(_) if !exponent.starts_with('-') => Self::beyond(negative),
            _ => text.parse().ok().filter(|real: &f64| real.is_finite()).map_or(Self::beyond(negative), Self::Fraction),
        }
    }

    /// `digits` with so many zeros behind it.
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
        found.unwrap_or(Self::beyond(negative))
    }

    fn beyond(negative: bool) -> Self {
        if negative { Self::BelowRange } else { Self::OutOfRange }
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

/// With the fields of every object in order, so that two bodies that say the same are written alike.
impl Serialize for Json<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Null | Self::Unusable(_) | Self::Number(Number::OutOfRange | Number::BelowRange) => {
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

/// A body as JSON.
pub(super) fn parse(bytes: &[u8]) -> Result<Json<'_>, Error> {
    if bytes.trim_ascii().is_empty() {
        return Err(Error::MalformedJson("The body is empty: send a JSON object".to_owned()));
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
        Error::MalformedJson(format!("The body is not JSON: see line {line}, column {column}"))
    })
}

/// Where a text stops being JSON.
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

    /// The next byte that is not blank; it is not taken.
    fn peek(&mut self) -> Option<u8> {
        let rest = &self.bytes[self.at..];
        let blank = rest.iter().position(|byte| !matches!(byte, b' ' | b'\n' | b'\r' | b'\t')).unwrap_or(rest.len());
        self.at += blank;
        self.bytes.get(self.at).copied()
    }

    /// Takes the next byte that is not blank if it is this one.
    fn take(&mut self, wanted: u8) -> bool {
        let found = self.peek() == Some(wanted);
        self.at += usize::from(found);
        found
    }

    fn demand(&mut self, wanted: u8) -> Result<(), Malformed> {
        if self.take(wanted) { Ok(()) } else { Err(self.malformed()) }
    }

    fn value(&mut self, depth: usize) -> Result<Json<'a>, Malformed> {
        match self.peek() {
            Some(b'{' | b'[') if depth == DEPTH_MAX => {
                self.pass_over()?;
                Ok(Json::Unusable(DEEP))
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
                self.demand(b']')?;
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
            let (name, whole) = self.name()?;
            let value = self.value(depth + 1)?;
            fields.push((name, if whole { value } else { Json::Unusable(HALF_NAME) }));
            if !self.take(b',') {
                self.demand(b'}')?;
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
        self.demand(b':')?;
        Ok(name)
    }

    fn scalar(&mut self) -> Result<Json<'a>, Malformed> {
        match self.peek() {
            Some(b'"') => Ok(match self.string()? {
                (text, true) => Json::Text(text),
                (_, false) => Json::Unusable(HALF),
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
        let leads_with_zero = self.bytes.get(self.at) == Some(&b'0');
        if self.digits()? > 1 && leads_with_zero {
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

    /// One digit or more.
    fn digits(&mut self) -> Result<usize, Malformed> {
        let count = self.bytes[self.at..].iter().take_while(|byte| byte.is_ascii_digit()).count();
        self.at += count;
        if count == 0 { Err(self.malformed()) } else { Ok(count) }
    }

    /// A string, and whether every surrogate of it has its other half.
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
        let mut whole = true;
        loop {
            match self.bytes.get(self.at) {
                Some(b'"') => {
                    self.at += 1;
                    return Ok((Cow::Owned(text), whole));
                }
                Some(b'\\') => {
                    let character = self.escape()?;
                    whole &= character.is_some();
                    text.push(character.unwrap_or(char::REPLACEMENT_CHARACTER));
                }
                // The end, or a control character.
                _ => return Err(self.malformed()),
            }
            text.push_str(self.plain());
        }
    }

    /// The characters up to a quote, an escape or a control character.
    fn plain(&mut self) -> &'a str {
        let rest = &self.bytes[self.at..];
        let end = rest.iter().position(|byte| matches!(byte, b'"' | b'\\' | 0..=0x1f)).unwrap_or(rest.len());
        let plain = &self.text[self.at..self.at + end];
        self.at += end;
        plain
    }

    /// The character that an escape stands for, `None` for half of a surrogate pair.
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

    /// The UTF-16 unit of `\uXXXX`, if that is what is there.
    fn unit(&self, at: usize) -> Option<u32> {
        let digits = self.bytes.get(at..at + 6)?.strip_prefix(br"\u")?;
        digits.iter().try_fold(0, |unit, digit| Some(16 * unit + char::from(*digit).to_digit(16)?))
    }

    /// Passes over a list or an object of any depth.
    fn pass_over(&mut self) -> Result<(), Malformed> {
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
                self.demand(end)?;
                open.pop();
            }
            if open.is_empty() {
                return Ok(());
            }
        }
    }
}

/// Makes every field unusable whose name was given before.
fn mark_repeated(fields: &mut [(Cow<'_, str>, Json<'_>)]) {
    // Objects are small, and comparing a few names takes less than sorting them.
    if fields.len() <= 16 {
        for at in 1..fields.len() {
            let (before, rest) = fields.split_at_mut(at);
            if before.iter().any(|(name, _)| *name == rest[0].0) {
                rest[0].1 = Json::Unusable(TWICE);
            }
        }
        return;
    }
    let mut order: Vec<usize> = (0..fields.len()).collect();
    order.sort_by(|one, other| fields[*one].0.cmp(&fields[*other].0));
    for pair in order.windows(2) {
        if fields[pair[0]].0 == fields[pair[1]].0 {
            fields[pair[1]].1 = Json::Unusable(TWICE);
        }
    }
}

//! A serde deserializer over the JSON tree, with the API's error messages.
//!
//! It chooses the message by the type of the field, reads enumerations from strings only, and
//! checks every text before its type sees it. Use [`UncheckedText`](super::UncheckedText) for a text
//! that may be a secret.

use std::{
    borrow::Cow,
    cell::Cell,
    fmt::{self, Write as _},
    marker::PhantomData,
};

use serde::{
    Deserialize, Deserializer,
    de::{
        self, DeserializeOwned, DeserializeSeed, IntoDeserializer, MapAccess, SeqAccess, Visitor,
        value::StrDeserializer,
    },
};

use super::{
    Error,
    json::{Json, Number, REPEATED, TOO_DEEP, UNPAIRED, UNPAIRED_IN_NAME},
};
use crate::{
    domain::{Invalid, check_key, check_named_text, check_text, finds_secret},
    telemetry,
};

const RANGE: &str = "is out of range: use a number closer to zero";
const INTEGER: &str = "must be an integer";

/// The texts that a field accepts.
#[derive(Debug, Clone, Copy)]
pub(super) enum Texts<'a> {
    /// Texts without credentials, including the request's own, and without invisible characters.
    Checked { bearer: Option<&'a str> },
    /// The same for the value of a field that the caller named. Its name may say that it is a
    /// credential: `password`.
    Named { bearer: Option<&'a str>, name: &'a str },
    /// Any text: it comes from another service, or is not stored.
    Any,
}

impl<'a> Texts<'a> {
    fn under(self, name: &'a str) -> Self {
        match self {
            Self::Checked { bearer } | Self::Named { bearer, .. } => Self::Named { bearer, name },
            Self::Any => Self::Any,
        }
    }

    fn check(self, text: &str, rule: fn(&str) -> Result<(), Invalid>) -> Result<(), Rejection> {
        let (bearer, name) = match self {
            Self::Checked { bearer } => (bearer, None),
            Self::Named { bearer, name } => (bearer, Some(name)),
            Self::Any => return Ok(()),
        };
        rule(text).map_err(de::Error::custom)?;
        if let Some(name) = name {
            check_named_text(name, text).map_err(de::Error::custom)?;
        }
        // The request's own credential is searched literally, because its shape may be unknown. A short one
        // could be part of an ordinary word.
        match bearer.filter(|bearer| bearer.len() >= 16 && text.contains(bearer)) {
            Some(_) => Err(de::Error::custom("must not contain the credential of the request")),
            None => Ok(()),
        }
    }
}

/// JSON of another service, kept to be parsed in parts. Its texts may contain anything. A value
/// that no field can hold is rejected when a type reads it, so unread parts are not validated. For
/// routes with [`ANY_TEXT`](super::Route::ANY_TEXT).
#[derive(Debug, Clone)]
pub struct RawJson(Json<'static>);

impl RawJson {
    /// Parses the object as a `T`, or returns its first rejection.
    pub fn read<T: DeserializeOwned>(&self) -> Result<T, Error> {
        read("field", &self.0, Texts::Any)
    }

    /// Like [`read`](Self::read), for an object below the body. Messages name the fields below `path`.
    pub fn read_below<T: DeserializeOwned>(&self, path: &str) -> Result<T, Error> {
        let below = |rejection: Rejection| rejection.under(PathStep::Field(path.to_owned())).error("field");
        if !matches!(self.0, Json::Object(_)) {
            return Err(below(Rejection::new("must be a JSON object")));
        }
        T::deserialize(Reader { json: &self.0, texts: Texts::Any }).map_err(below)
    }

    /// Returns a member's text; `None` if the member is missing or not a text.
    pub fn text(&self, member: &str) -> Option<&str> {
        let Json::Object(members) = &self.0 else { return None };
        match members.iter().find(|(name, _)| name == member) {
            Some((_, Json::Text(text))) => Some(text),
            _ => None,
        }
    }
}

impl<'de> Deserialize<'de> for RawJson {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct JsonVisitor;
        impl<'de> Visitor<'de> for JsonVisitor {
            type Value = Json<'static>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("JSON")
            }

            fn visit_unit<E: de::Error>(self) -> Result<Self::Value, E> {
                Ok(Json::Null)
            }

            fn visit_bool<E: de::Error>(self, value: bool) -> Result<Self::Value, E> {
                Ok(Json::Bool(value))
            }

            fn visit_u64<E: de::Error>(self, number: u64) -> Result<Self::Value, E> {
                Ok(Json::Number(Number::Natural(number)))
            }

            fn visit_i64<E: de::Error>(self, number: i64) -> Result<Self::Value, E> {
                Ok(Json::Number(Number::Negative(number)))
            }

            fn visit_f64<E: de::Error>(self, number: f64) -> Result<Self::Value, E> {
                Ok(Json::Number(Number::Fraction(number)))
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Self::Value, E> {
                Ok(Json::Text(Cow::Owned(text.to_owned())))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Self::Value, A::Error> {
                let mut list = Vec::new();
                while let Some(RawJson(item)) = items.next_element::<RawJson>()? {
                    list.push(item);
                }
                Ok(Json::List(list))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Self::Value, A::Error> {
                let mut object = Vec::new();
                while let Some((name, RawJson(value))) = members.next_entry::<String, RawJson>()? {
                    object.push((Cow::Owned(name), value));
                }
                Ok(Json::Object(object))
            }
        }
        match deserializer.deserialize_any(JsonVisitor) {
            Ok(json) => Ok(Self(json)),
            Err(rejection) => unusable(&rejection.to_string()).map(Self).ok_or(rejection),
        }
    }
}

/// Returns the unusable value that caused this rejection, if any. serde erases the type of the
/// rejection, so only its message identifies the value.
fn unusable(rejection: &str) -> Option<Json<'static>> {
    if rejection.ends_with(RANGE) {
        return Some(Json::Number(Number::AboveRange));
    }
    [TOO_DEEP, UNPAIRED, UNPAIRED_IN_NAME, REPEATED]
        .into_iter()
        .find(|reason| rejection.ends_with(*reason))
        .map(Json::Unusable)
}

/// The word for a query parameter in messages.
pub(super) const PARAMETER: &str = "parameter";

/// Parses a request's JSON object as a `T`, or returns its first rejection. `field_noun` is the word for
/// a field in messages: `field` or [`PARAMETER`].
pub(super) fn read<T: DeserializeOwned>(field_noun: &str, json: &Json<'_>, texts: Texts<'_>) -> Result<T, Error> {
    if !matches!(json, Json::Object(_)) {
        return Err(Error::Invalid { field: "body".to_owned(), message: "The body must be a JSON object".to_owned() });
    }
    T::deserialize(Reader { json, texts }).map_err(|rejection| rejection.error(field_noun))
}

/// Returns the path in a form that is safe to show: the client chooses the names of unknown fields.
pub(super) fn printable(path: &str) -> String {
    telemetry::scrub(path)
        .chars()
        .take(200)
        .map(|c| if !c.is_control() && check_text(c.encode_utf8(&mut [0; 4])).is_ok() { c } else { '\u{FFFD}' })
        .collect()
}

/// A list item that is parsed separately: an invalid item does not affect the others.
#[derive(Debug, Clone)]
pub struct ItemResult<T>(pub Result<T, String>);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for ItemResult<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Self(T::deserialize(deserializer).map_err(|rejection| rejection.to_string())))
    }
}

/// A list of which at most `MAX` + 1 items are decoded. The extra item shows the handler that the
/// list is too long. The rest is not decoded.
#[derive(Debug, Clone)]
pub struct Bounded<T, const MAX: usize>(pub Vec<T>);

impl<'de, T: Deserialize<'de>, const MAX: usize> Deserialize<'de> for Bounded<T, MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct BoundedVisitor<T, const MAX: usize>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>, const MAX: usize> Visitor<'de> for BoundedVisitor<T, MAX> {
            type Value = Vec<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Vec<T>, A::Error> {
                let mut list = Vec::new();
                while list.len() <= MAX
                    && let Some(item) = items.next_element()?
                {
                    list.push(item);
                }
                Ok(list)
            }
        }
        deserializer.deserialize_seq(BoundedVisitor::<T, MAX>(PhantomData)).map(Self)
    }
}

/// Why a value is rejected, and its path as steps from the inside out.
#[derive(Debug)]
struct Rejection {
    steps: Vec<PathStep>,
    reason: Reason,
}

#[derive(Debug)]
enum PathStep {
    Field(String),
    Index(usize),
}

#[derive(Debug)]
enum Reason {
    Missing(&'static str),
    Unknown(&'static [&'static str]),
    /// Completes "`<field>` …".
    Other(Cow<'static, str>),
    /// The same, for a field that may be absent and has a blank text.
    Blank(Cow<'static, str>),
}

impl Rejection {
    fn new(reason: &'static str) -> Self {
        Self { steps: Vec::new(), reason: Reason::Other(reason.into()) }
    }

    #[must_use]
    fn under(mut self, step: PathStep) -> Self {
        self.steps.push(step);
        self
    }

    fn of_blank_option(self) -> Self {
        match self.reason {
            Reason::Other(reason) => Self { reason: Reason::Blank(reason), ..self },
            Reason::Missing(_) | Reason::Unknown(_) | Reason::Blank(_) => self,
        }
    }

    fn path(&self) -> String {
        let mut path = String::new();
        for step in self.steps.iter().rev() {
            match step {
                PathStep::Field(name) => {
                    path.push_str(if path.is_empty() { "" } else { "." });
                    path.push_str(match name.as_str() {
                        // Distinguishes the field from the whole body.
                        "" => "\"\"",
                        name if finds_secret(name) => "[redacted]",
                        name => name,
                    });
                }
                PathStep::Index(index) => drop(write!(path, "[{index}]")),
            }
        }
        printable(&path)
    }

    /// Returns the field and a sentence with the reason.
    fn describe(&self, field_noun: &str, whole: &str) -> (String, String) {
        let path = self.path();
        let (field, reason) = match &self.reason {
            Reason::Missing(field) if path.is_empty() => ((*field).to_owned(), "is required".into()),
            Reason::Missing(field) => (format!("{path}.{field}"), "is required".into()),
            Reason::Unknown([]) => (path, format!("is unknown: this request takes no {field_noun}s").into()),
            Reason::Unknown(known) => (path, format!("is not a {field_noun} here: use {}", one_of(known)).into()),
            Reason::Other(reason) => (path, Cow::Borrowed(&**reason)),
            Reason::Blank(reason) if field_noun == PARAMETER => (path, format!("{reason}, or leave it out").into()),
            // A PATCH keeps an absent field, so only null means none in every body.
            Reason::Blank(reason) => (path, format!("{reason}, or null for none").into()),
        };
        if field.is_empty() {
            (whole.to_owned(), format!("The {whole} {reason}"))
        } else {
            let message = format!("{field} {reason}");
            (field, message)
        }
    }

    fn error(&self, field_noun: &str) -> Error {
        let (field, message) = self.describe(field_noun, "body");
        Error::Invalid { field, message }
    }
}

/// `a`, `a or b`, `one of a, b, c`
fn one_of(words: &[&str]) -> String {
    match words {
        [] => "nothing".to_owned(),
        [word] => (*word).to_owned(),
        [one, other] => format!("{one} or {other}"),
        words => format!("one of {}", words.join(", ")),
    }
}

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.describe("field", "value").1)
    }
}

impl std::error::Error for Rejection {}

impl de::Error for Rejection {
    fn custom<T: fmt::Display>(reason: T) -> Self {
        Self { steps: Vec::new(), reason: Reason::Other(reason.to_string().into()) }
    }

    /// Omits the value, which may be a secret in the wrong field.
    fn invalid_type(_: de::Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        Self::custom(format_args!("must be {expected}"))
    }

    fn invalid_value(_: de::Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        Self::custom(format_args!("must be {expected}"))
    }

    fn invalid_length(_: usize, _: &dyn de::Expected) -> Self {
        Self::new("has the wrong number of items")
    }

    fn unknown_variant(_: &str, known: &'static [&'static str]) -> Self {
        Self::custom(format_args!("must be {}", one_of(known)))
    }

    fn unknown_field(_: &str, known: &'static [&'static str]) -> Self {
        Self { steps: Vec::new(), reason: Reason::Unknown(known) }
    }

    fn missing_field(field: &'static str) -> Self {
        Self { steps: Vec::new(), reason: Reason::Missing(field) }
    }

    fn duplicate_field(field: &'static str) -> Self {
        Self::new(REPEATED).under(PathStep::Field(field.to_owned()))
    }
}

/// A value of a request, as a serde deserializer.
#[derive(Clone, Copy)]
struct Reader<'j> {
    json: &'j Json<'j>,
    texts: Texts<'j>,
}

impl<'j> Reader<'j> {
    /// Returns the rejection of an unusable value or of a value of another kind.
    fn rejection(self, wanted: &'static str) -> Rejection {
        match self.json {
            Json::Unusable(reason) => Rejection::new(reason),
            _ => Rejection::new(wanted),
        }
    }

    fn text(self) -> Result<&'j str, Rejection> {
        match self.json {
            Json::Text(text) => self.texts.check(text, check_text).map(|()| &**text),
            _ => Err(self.rejection("must be a string")),
        }
    }

    fn natural<'de, V: Visitor<'de>>(self, max: u64, visitor: V) -> Result<V::Value, Rejection> {
        match self.json {
            Json::Number(Number::Natural(number)) if *number <= max => visitor.visit_u64(*number),
            Json::Number(Number::Fraction(_)) => Err(Rejection::new(INTEGER)),
            // Passes `u64::MAX`, so that the field's own rule rejects it with its range.
            Json::Number(_) if max == u64::MAX && !matches!(self.texts, Texts::Any) => visitor.visit_u64(max),
            Json::Number(_) => Err(de::Error::custom(format_args!("must be an integer from 0 to {max}"))),
            _ => Err(self.rejection(INTEGER)),
        }
    }

    fn integer<'de, V: Visitor<'de>>(self, min: i64, max: i64, visitor: V) -> Result<V::Value, Rejection> {
        let number = match self.json {
            Json::Number(Number::Natural(number)) => i64::try_from(*number).ok(),
            Json::Number(Number::Negative(number)) => Some(*number),
            Json::Number(Number::AboveRange | Number::BelowRange) => None,
            _ => return Err(self.rejection(INTEGER)),
        };
        match number.filter(|number| (min..=max).contains(number)) {
            Some(number) => visitor.visit_i64(number),
            None => Err(de::Error::custom(format_args!("must be an integer from {min} to {max}"))),
        }
    }

    fn real<'de, V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Rejection> {
        match self.json {
            Json::Number(Number::Natural(number)) => visitor.visit_u64(*number),
            Json::Number(Number::Negative(number)) => visitor.visit_i64(*number),
            Json::Number(Number::Fraction(number)) => visitor.visit_f64(*number),
            Json::Number(Number::AboveRange | Number::BelowRange) => Err(Rejection::new(RANGE)),
            _ => Err(self.rejection("must be a number")),
        }
    }

    fn items<'de, V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Rejection> {
        match self.json {
            Json::List(items) => visitor.visit_seq(ArrayItems { rest: items.iter(), at: 0, texts: self.texts }),
            _ => Err(self.rejection("must be a list")),
        }
    }

    fn fields<'de, V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Rejection> {
        match self.json {
            Json::Object(fields) => {
                let (rest, is_caller_named) = (fields.iter(), Cell::new(false));
                visitor.visit_map(Fields { rest, value: None, is_caller_named, texts: self.texts })
            }
            _ => Err(self.rejection("must be an object")),
        }
    }
}

impl<'de> Deserializer<'de> for Reader<'_> {
    type Error = Rejection;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Rejection> {
        match self.json {
            Json::Null => visitor.visit_unit(),
            Json::Bool(value) => visitor.visit_bool(*value),
            Json::Number(_) => self.real(visitor),
            Json::Text(_) => visitor.visit_str(self.text()?),
            Json::List(_) => self.items(visitor),
            Json::Object(_) => self.fields(visitor),
            Json::Unusable(reason) => Err(Rejection::new(reason)),
        }
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Rejection> {
        match self.json {
            Json::Bool(value) => visitor.visit_bool(*value),
            _ => Err(self.rejection("must be true or false")),
        }
    }

    fn deserialize_u8<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Rejection> {
        self.natural(u8::MAX.into(), visitor)
    }

    fn deserialize_u16<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Rejection> {
        self.natural(u16::MAX.into(), visitor)
    }

    fn deserialize_u32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Rejection> {
        self.natural(u32::MAX.into(), visitor)
    }

    fn deserialize_u64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Rejection> {
        self.natural(u64::MAX, visitor)
    }

    fn deserialize_u128<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Rejection> {
        self.natural(u64::MAX, visitor)
    }

    fn deserialize_i8<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Rejection> {
        self.integer(i8::MIN.into(), i8::MAX.into(), visitor)
    }

    fn deserialize_i16<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Rejection> {
        self.integer(i16::MIN.into(), i16::MAX.into(), visitor)
    }

    fn deserialize_i32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Rejection> {
        self.integer(i32::MIN.into(), i32::MAX.into(), visitor)
    }

    fn deserialize_i64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Rejection> {
        self.integer(i64::MIN, i64::MAX, visitor)
    }

    fn deserialize_i128<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Rejection> {
        self.integer(i64::MIN, i64::MAX, visitor)
    }

    fn deserialize_f32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Rejection> {
        self.real(visitor)
    }

    fn deserialize_f64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Rejection> {
        self.real(visitor)
    }

    fn deserialize_char<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Rejection> {
        visitor.visit_str(self.text()?)
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Rejection> {
        visitor.visit_str(self.text()?)
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Rejection> {
        visitor.visit_str(self.text()?)
    }

    /// Reads a text that may be a secret, without checks.
    fn deserialize_bytes<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Rejection> {
        visitor.visit_str(Reader { texts: Texts::Any, ..self }.text()?)
    }

    fn deserialize_byte_buf<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Rejection> {
        self.deserialize_bytes(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Rejection> {
        match self.json {
            Json::Null => visitor.visit_none(),
            Json::Text(text) if text.trim().is_empty() => visitor.visit_some(self).map_err(Rejection::of_blank_option),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_unit<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Rejection> {
        match self.json {
            Json::Null => visitor.visit_unit(),
            _ => Err(self.rejection("must be null")),
        }
    }

    fn deserialize_unit_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, Rejection> {
        self.deserialize_unit(visitor)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, Rejection> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Rejection> {
        self.items(visitor)
    }

    fn deserialize_tuple<V: Visitor<'de>>(self, _: usize, visitor: V) -> Result<V::Value, Rejection> {
        self.items(visitor)
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: usize,
        visitor: V,
    ) -> Result<V::Value, Rejection> {
        self.items(visitor)
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Rejection> {
        self.fields(visitor)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Rejection> {
        self.fields(visitor)
    }

    /// Reads strings only. The API does not document serde's other form, an object with one field.
    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Rejection> {
        match self.json {
            Json::Text(text) => {
                let word: StrDeserializer<'_, Rejection> = (**text).into_deserializer();
                visitor.visit_enum(word)
            }
            Json::Unusable(reason) => Err(Rejection::new(reason)),
            _ => Err(de::Error::unknown_variant("", variants)),
        }
    }

    fn deserialize_identifier<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Rejection> {
        self.deserialize_str(visitor)
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Rejection> {
        visitor.visit_unit()
    }
}

struct ArrayItems<'j> {
    rest: std::slice::Iter<'j, Json<'j>>,
    at: usize,
    texts: Texts<'j>,
}

impl<'de> SeqAccess<'de> for ArrayItems<'_> {
    type Error = Rejection;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Rejection> {
        let Some(json) = self.rest.next() else { return Ok(None) };
        let step = PathStep::Index(self.at);
        self.at += 1;
        seed.deserialize(Reader { json, texts: self.texts }).map(Some).map_err(|rejection| rejection.under(step))
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.rest.len())
    }
}

struct Fields<'j> {
    rest: std::slice::Iter<'j, (Cow<'j, str>, Json<'j>)>,
    /// The name and value that are read next.
    value: Option<(&'j str, &'j Json<'j>)>,
    /// Whether the caller chose that name.
    is_caller_named: Cell<bool>,
    texts: Texts<'j>,
}

impl<'de> MapAccess<'de> for Fields<'_> {
    type Error = Rejection;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Rejection> {
        let Some((name, json)) = self.rest.next() else { return Ok(None) };
        self.value = Some((name, json));
        self.is_caller_named.set(false);
        let key = seed.deserialize(FieldName { name, texts: self.texts, is_caller_named: &self.is_caller_named });
        key.map(Some).map_err(|rejection| rejection.under(PathStep::Field(name.to_string())))
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Rejection> {
        let (name, json) = self.value.take().ok_or_else(|| Rejection::new("must have a value"))?;
        let texts = if self.is_caller_named.get() { self.texts.under(name) } else { self.texts };
        let value = seed.deserialize(Reader { json, texts });
        value.map_err(|rejection| rejection.under(PathStep::Field(name.to_owned())))
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.rest.len())
    }
}

/// The name of a field. Names that the caller chooses (map keys) are stored, so they are checked like
/// values, and must be visible.
struct FieldName<'j> {
    name: &'j str,
    texts: Texts<'j>,
    is_caller_named: &'j Cell<bool>,
}

impl<'de> Deserializer<'de> for FieldName<'_> {
    type Error = Rejection;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Rejection> {
        self.is_caller_named.set(true);
        self.texts.check(self.name, check_key)?;
        visitor.visit_str(self.name)
    }

    fn deserialize_identifier<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Rejection> {
        visitor.visit_str(self.name)
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit unit_struct newtype_struct seq tuple
        tuple_struct map struct enum ignored_any
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use std::collections::BTreeMap;

    use super::{super::json::parse, *};
    use crate::{
        domain::{AllowedCidrs, Budget, Metadata, Name, Provider, ScopeSet, Timestamp, UsageKind, secret_examples},
        http::{NoQuery, UncheckedText},
    };

    fn checked<T: DeserializeOwned>(value: &Value) -> Result<T, Error> {
        read("field", &value.into(), Texts::Checked { bearer: None })
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[expect(dead_code, reason = "only read for its errors")]
    struct Input {
        name: Name,
        scopes: ScopeSet,
        expires_at: Option<Timestamp>,
        allowed_cidrs: Option<AllowedCidrs>,
        budget: Option<Budget>,
        metadata: Option<Metadata>,
    }

    fn rejection(change: &str, value: Value) -> (String, String) {
        let mut body = json!({"name": "ci", "scopes": ["read"]});
        match value {
            Value::Null => body.as_object_mut().unwrap().remove(change),
            value => body.as_object_mut().unwrap().insert(change.to_owned(), value),
        };
        match checked::<Input>(&body).unwrap_err() {
            Error::Invalid { field, message } => (field, message),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn every_rejection_names_field_fault_and_fix() {
        for (change, value, field, message) in [
            ("name", Value::Null, "name", "name is required"),
            ("name", json!(5), "name", "name must be a string"),
            ("name", json!(""), "name", "name must be 1 to 100 characters that are not all blank"),
            ("scopes", json!("read"), "scopes", "scopes must be a list"),
            ("scopes", json!(["read", "root"]), "scopes[1]", "scopes[1] must be one of read, write, admin"),
            (
                "expires_at",
                json!("soon"),
                "expires_at",
                "expires_at must be an RFC 3339 date and time before 9999-12-30T22:00:00Z, such as 2027-01-31T12:00:00Z",
            ),
            (
                "expires_at",
                json!(" "),
                "expires_at",
                "expires_at must be an RFC 3339 date and time before 9999-12-30T22:00:00Z, such as 2027-01-31T12:00:00Z, or null for none",
            ),
            (
                "allowed_cidrs",
                json!(["10.0.0.0/8", "all"]),
                "allowed_cidrs[1]",
                "allowed_cidrs[1] must be an IPv4 or IPv6 range such as 203.0.113.0/24 or 2001:db8::/32",
            ),
            ("budget", json!({"cost_cents": "much"}), "budget.cost_cents", "budget.cost_cents must be an integer"),
            ("budget", json!([1]), "budget", "budget must be an object"),
            ("metadata", json!({"team": 1}), "metadata.team", "metadata.team must be a string"),
            (
                "metadata",
                json!({ "team": "x".repeat(501) }),
                "metadata.team",
                "metadata.team must have at most 500 characters",
            ),
            (
                "metadata",
                json!({ "a\tb": "x" }),
                "metadata.a\u{FFFD}b",
                "metadata.a\u{FFFD}b must not contain control or invisible characters",
            ),
            ("metadata", json!({ " ": "x" }), "metadata. ", "metadata.  must not be blank: use a visible name"),
            ("metadata", json!({ "": "x" }), "metadata", "metadata must have keys of 1 to 40 characters"),
            (
                "owner",
                json!("me"),
                "owner",
                "owner is not a field here: use one of name, scopes, expires_at, allowed_cidrs, budget, metadata",
            ),
        ] {
            assert_eq!(rejection(change, value), (field.to_owned(), message.to_owned()));
        }
    }

    #[test]
    fn no_rejection_repeats_a_value() {
        let secret = "kt_live_0123456789abcdefghijklmnopqrstuv";
        // Two of them imitate serde's own messages.
        for text in [secret, &format!("a, expected {secret}"), &format!("`, expected {secret}, there are no fields")] {
            let mut bodies = vec![json!({"metadata": { text: 1 }}), json!({ text: 1 })];
            for field in ["name", "scopes", "expires_at", "allowed_cidrs", "budget", "metadata", "owner"] {
                for value in [json!(text), json!([text]), json!({"cost_cents": text}), json!({ "team": [text] })] {
                    bodies.push(json!({ field: value }));
                }
            }
            for mut body in bodies {
                let bare = checked::<NoQuery>(&body).err();
                for (field, value) in [("name", json!("ci")), ("scopes", json!(["read"]))] {
                    body.as_object_mut().unwrap().entry(field).or_insert(value);
                }
                for rejection in [bare, checked::<Input>(&body).err()].into_iter().flatten() {
                    let Error::Invalid { message, field } = rejection else { panic!("{rejection:?}") };
                    assert!(!message.contains(secret) && !field.contains(secret), "{message}");
                }
            }
        }
    }

    #[test]
    fn whole_numbers_are_exact_in_any_notation() {
        for (text, number) in [
            ("0", Number::Natural(0)),
            ("-0", Number::Natural(0)),
            ("0.000e-999999999999999999999999", Number::Natural(0)),
            ("60.0", Number::Natural(60)),
            ("6e1", Number::Natural(60)),
            ("6000E-2", Number::Natural(60)),
            ("0.06e3", Number::Natural(60)),
            ("1234567890.00", Number::Natural(1_234_567_890)),
            ("9007199254740993", Number::Natural(9_007_199_254_740_993)),
            ("9007199254740993.0", Number::Natural(9_007_199_254_740_993)),
            ("18446744073709551615", Number::Natural(u64::MAX)),
            ("1.8446744073709551615e19", Number::Natural(u64::MAX)),
            ("18446744073709551616", Number::AboveRange),
            ("-9223372036854775808", Number::Negative(i64::MIN)),
            ("-9223372036854775809", Number::BelowRange),
            ("-6e1", Number::Negative(-60)),
            ("1e400", Number::AboveRange),
            ("-1e400", Number::BelowRange),
            ("1e99999999999999999999", Number::AboveRange),
            ("1.5e400", Number::AboveRange),
            ("60.5", Number::Fraction(60.5)),
            ("60.00000000000000000001", Number::Fraction(60.0)),
            ("1e-400", Number::Fraction(0.0)),
            ("1e-99999999999999999999", Number::Fraction(0.0)),
        ] {
            assert_eq!(Number::new(text), number, "{text}");
        }
        for (text, reason) in [
            ("1e400", "must be an integer from 0 to 9007199254740991"),
            ("9223372036854775808", "must be an integer from 0 to 9007199254740991"),
            ("-1e400", "must be an integer from 0 to 9007199254740991"),
            ("-1", "must be an integer from 0 to 9007199254740991"),
            ("1e-400", INTEGER),
            ("60.00000000000000000001", INTEGER),
            ("true", INTEGER),
        ] {
            let body = format!(r#"{{"name":"ci","scopes":["read"],"budget":{{"cost_cents":{text}}}}}"#);
            assert_eq!(
                rejected(&body),
                ("budget.cost_cents".to_owned(), format!("budget.cost_cents {reason}")),
                "{text}"
            );
        }
    }

    fn rejected(body: &str) -> (String, String) {
        let json = parse(body.as_bytes()).unwrap();
        match read::<Input>("field", &json, Texts::Checked { bearer: Some("a token of any shape") }).unwrap_err() {
            Error::Invalid { field, message } => (field, message),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn unusable_values_are_rejected_with_their_path() {
        let deep = "[".repeat(200) + &"]".repeat(200);
        for (body, field, reason) in [
            (r#"{"name":"a","name":"a"}"#.to_owned(), "name", REPEATED),
            (r#"{"name":"a","n\u0061me":"b"}"#.to_owned(), "name", REPEATED),
            (r#"{"budget":{"cost_cents":1,"cost_cents":1}}"#.to_owned(), "budget.cost_cents", REPEATED),
            (r#"{"metadata":{"team":"a","team":"a"}}"#.to_owned(), "metadata.team", REPEATED),
            (r#"{"name":"chat \ud83d"}"#.to_owned(), "name", UNPAIRED),
            (r#"{"name":"\ude00\ud83d chat"}"#.to_owned(), "name", UNPAIRED),
            (r#"{"name":"\ud83d\n"}"#.to_owned(), "name", UNPAIRED),
            (r#"{"scopes":["\ud83d"]}"#.to_owned(), "scopes[0]", UNPAIRED),
            (r#"{"metadata":{"a\ud83d":"b"}}"#.to_owned(), "metadata.a\u{FFFD}", UNPAIRED_IN_NAME),
            (format!(r#"{{"scopes":{deep}}}"#), "scopes[0]", "must be one of read, write, admin"),
            (format!(r#"{{"metadata":{{"a":{deep}}}}}"#), "metadata.a", "must be a string"),
        ] {
            assert_eq!(rejected(&body), (field.to_owned(), format!("{field} {reason}")), "{body}");
        }
        let whole = parse(br#"{"name":"\ud83d\ude00 chat","scopes":["read"]}"#).unwrap();
        let input: Input = read("field", &whole, Texts::Checked { bearer: None }).unwrap();
        assert_eq!(input.name.as_str(), "\u{1F600} chat");
    }

    #[test]
    fn repeated_names_are_found_among_many() {
        let fields = |twice: usize| {
            let names = (0..1_000).chain([twice]).map(|name| format!(r#""{name}":1"#)).collect::<Vec<_>>();
            format!("{{{}}}", names.join(","))
        };
        for twice in [0, 500, 999] {
            let text = fields(twice);
            let Json::Object(fields) = parse(text.as_bytes()).unwrap() else { panic!() };
            let unusable: Vec<_> = (0..fields.len()).filter(|at| fields[*at].1 == Json::Unusable(REPEATED)).collect();
            assert_eq!(unusable, [1_000]);
        }
    }

    #[test]
    fn deep_nesting_is_skipped() {
        for (open, close) in [("[", "]"), (r#"{"a":"#, "}"), (r#"[{"a":[1,{"b":"\u0041"},"#, "]}]")] {
            for levels in [10, 63, 64, 200, 5_000] {
                let text = format!("{}1{}", open.repeat(levels), close.repeat(levels));
                assert!(parse(text.as_bytes()).is_ok(), "{open} {levels}");
                for broken in [&text[1..], &text[..text.len() - 1], &text.replacen('1', "x", 1)] {
                    assert!(parse(broken.as_bytes()).is_err(), "{open} {levels}");
                }
            }
        }
    }

    #[test]
    fn enumerations_are_strings() {
        for value in
            [json!({ "read": null }), json!({ "read": {} }), json!(["read"]), json!(5), json!(null), json!("root")]
        {
            assert_eq!(rejection("scopes", json!([value])).1, "scopes[0] must be one of read, write, admin", "{value}");
            let provider = checked::<BTreeMap<String, Provider>>(&json!({ "provider": value })).unwrap_err();
            let Error::Invalid { message, .. } = provider else { panic!("{provider:?}") };
            assert_eq!(message, "provider must be one of anthropic, openai, bedrock, vertex, openrouter");
            let kind = checked::<BTreeMap<String, UsageKind>>(&json!({ "kind": value })).unwrap_err();
            let Error::Invalid { message, .. } = kind else { panic!("{kind:?}") };
            assert_eq!(
                message,
                "kind must be one of input_tokens, output_tokens, cache_read_tokens, cache_write_tokens"
            );
        }
    }

    #[test]
    fn rejections_do_not_use_serde_terms() {
        #[derive(Debug, Deserialize)]
        #[serde(deny_unknown_fields)]
        #[expect(dead_code, reason = "only read for its errors")]
        struct Every {
            a: Option<bool>,
            b: Option<u8>,
            c: Option<i8>,
            d: Option<f64>,
            e: Option<char>,
            f: Option<Vec<String>>,
            g: Option<(u8, u8)>,
            h: Option<BTreeMap<String, u8>>,
            i: Option<Provider>,
            j: Option<()>,
            k: Option<UncheckedText>,
            l: Option<String>,
            m: Option<u128>,
            n: Option<NoQuery>,
        }
        let serde_terms = [
            "map", "sequence", "variant", "struct", "borrowed", "tuple", "invalid", "u8", "i8", "f64", "unit", "bytes",
        ];
        for field in 'a'..='n' {
            for value in [
                json!(true),
                json!(300),
                json!(-300),
                json!(0.5),
                json!("words"),
                json!([]),
                json!([1]),
                json!([[]]),
                json!({}),
                json!({ "x": null }),
                json!({ "x": [] }),
            ] {
                let mut body = json!({});
                body[field.to_string()] = value;
                if let Err(Error::Invalid { message, .. }) = checked::<Every>(&body) {
                    assert!(
                        !serde_terms.iter().any(|word| message.split(' ').any(|said| said == *word)),
                        "{body}: {message}"
                    );
                }
            }
        }
    }

    #[test]
    fn stored_text_must_not_contain_credentials() {
        for secret in secret_examples() {
            for (body, field) in [
                (json!({ "name": secret }), "name"),
                (json!({ "metadata": { "note": format!("see {secret}") } }), "metadata.note"),
                (json!({ "metadata": { secret.clone(): "x" } }), "metadata."),
                (json!({ "expires_at": secret }), "expires_at"),
                (json!({ "allowed_cidrs": [secret] }), "allowed_cidrs[0]"),
                (json!({ secret.clone(): 1 }), ""),
            ] {
                let (named, message) = rejected(&body.to_string());
                assert!(named.starts_with(field), "{body}: {named}");
                assert!(!named.contains(&secret) && !message.contains(&secret), "{message}");
            }
        }
        let own = rejected(r#"{"name":"it is a token of any shape."}"#);
        assert_eq!(own, ("name".to_owned(), "name must not contain the credential of the request".to_owned()));
        let secrets: BTreeMap<String, UncheckedText> =
            checked(&json!({ "key": secret_examples()[0], "log": "a\0b\u{202e}" })).unwrap();
        assert_eq!(secrets["key"].expose(), secret_examples()[0]);
    }

    #[test]
    fn credential_is_recognised_by_its_key() {
        for (key, value) in [
            ("password", "Hunter22"),
            ("password", "Abc,Def123"),
            ("db_password", "Abc;Def123"),
            ("X-Api-Key", "0a1b2c3d4e5f60718293"),
            ("stripe_api_key", "9f8e7d6c5b4a39281706"),
            ("secret", "0a1b2c3d4e5f6071"),
            ("JWT_SECRET", "0a1b2c3d4e5f6071"),
            ("SECRET_KEY_BASE", "0a1b2c3d4e5f60718293"),
            ("token", "0a1b2c3d4e5f6071"),
            ("vault-token", "0a1b2c3d4e5f6071"),
            ("DB_PASS", "Hunter22"),
            ("pass", "0a1b2c3d4e5f6071"),
            ("passphrase", "0a1b2c3d4e5f6071"),
            ("encryption key", "0a1b2c3d4e5f6071"),
            ("ACCESS_KEY", "0a1b2c3d4e5f6071"),
            ("Cookie", "sid=0a1b2c3d4e5f6071"),
        ] {
            let (field, message) = rejection("metadata", json!({ key: value }));
            assert_eq!(field, format!("metadata.{key}"));
            assert!(message.contains("must not contain a key, token or password"), "{message}");
        }
        let harmless = json!({
            "password": "changeme", "password_policy": "strict2026", "api_key": "kt_live_a1B2c3", "pwd": "",
            "secret": "kept in the vault", "token": "deploy-bot-2026", "pass": "Summer2026", "passphrase": "see the vault",
            "next_page_token": "0a1b2c3d4e5f6071", "max_tokens": "128000", "cookie": "theme=dark",
        });
        let read: BTreeMap<String, String> = checked(&harmless).unwrap();
        assert_eq!(json!(read), harmless);
    }

    #[test]
    fn bad_list_value_does_not_affect_the_others() {
        #[derive(Debug, Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Item {
            a: u64,
        }
        let text = r#"[{"a":1},{"a":-1},{"a":1,"a":1},{"a":"\ud83d"},{"b":1},5,{"\ud83d":1},{"a":1e400},{},{"a":3}]"#;
        let json = parse(text.as_bytes()).unwrap();
        let items = Vec::<ItemResult<Item>>::deserialize(Reader { json: &json, texts: Texts::Any }).unwrap();
        let messages: Vec<_> =
            items.iter().map(|ItemResult(item)| item.as_ref().map(|item| item.a).map_err(String::as_str)).collect();
        assert_eq!(
            messages,
            [
                Ok(1),
                Err("a must be an integer from 0 to 18446744073709551615"),
                Err("a must be given once"),
                Err("a must not contain an unpaired surrogate"),
                Err("b is not a field here: use a"),
                Err("The value must be an object"),
                Err("\u{FFFD} is not a field here: use a"),
                Err("a must be an integer from 0 to 18446744073709551615"),
                Err("a is required"),
                Ok(3),
            ]
        );
    }

    #[test]
    fn unread_parts_are_not_validated() {
        #[derive(Debug, Deserialize)]
        struct Whole {
            part: RawJson,
        }
        #[derive(Debug, Deserialize)]
        #[expect(dead_code, reason = "only read for its errors")]
        struct Part {
            a: u64,
        }
        let whole = |part: &str| format!(r#"{{"type":"x","part":{part},"odd":"\ud83d","odd":1e999}}"#);
        let any = |text: &str| {
            let json = parse(text.as_bytes()).unwrap();
            let RawJson(kept) = read::<RawJson>("field", &json, Texts::Any).unwrap();
            assert_eq!(kept, json, "{text}");
            RawJson(kept)
        };
        let deep = "[".repeat(200) + &"]".repeat(200);
        for (odd, reason) in [
            (r#""\ud83d""#, UNPAIRED),
            ("1e999", "must be an integer from 0 to 18446744073709551615"),
            ("123456789012345678901234567890", "must be an integer from 0 to 18446744073709551615"),
            (deep.as_str(), INTEGER),
            ("{\"b\":1,\"b\":1}", INTEGER),
            ("{\"\\ud83d\":1}", INTEGER),
            ("[null,true,-1,0.5,\"\\u0041\"]", INTEGER),
            ("1,\"a\":2", REPEATED),
        ] {
            let unread = any(&whole(&format!(r#"{{"a":1,"b":{}}}"#, odd.replace("\"a\"", "\"b\""))));
            assert_eq!((unread.text("type"), unread.text("odd"), unread.text("none")), (Some("x"), None, None));
            unread.read::<Whole>().unwrap().part.read::<Part>().unwrap();
            let read = any(&whole(&format!(r#"{{"a":{odd}}}"#))).read::<Whole>().unwrap().part.read::<Part>();
            let Err(Error::Invalid { field, message }) = read else { panic!("{odd}: {read:?}") };
            assert_eq!((field.as_str(), message), ("a", format!("a {reason}")), "{odd}");
        }
        let missing = any("{}").read::<Whole>().unwrap_err();
        assert!(matches!(missing, Error::Invalid { field, .. } if field == "part"));
    }

    #[test]
    fn invalid_json_is_rejected_with_its_position() {
        for text in [
            "",
            " ",
            "{",
            "[1,]",
            "{,}",
            "{\"a\"}",
            "{\"a\":}",
            "{\"a\":1,}",
            "{a:1}",
            "01",
            "-",
            "1.",
            ".5",
            "1e",
            "+1",
            "nul",
            "tru",
            "NaN",
            "'a'",
            "\"a",
            "\"\\x\"",
            "\"\\u12g4\"",
            "\"\\u12\"",
            "\"a\nb\"",
            "\"\0\"",
            "[1 2]",
            "{} {}",
            "\u{FEFF}{}",
            "[\"a\\",
            "\u{a0}1",
        ] {
            assert!(matches!(parse(text.as_bytes()), Err(Error::MalformedJson(_))), "{text:?}");
        }
        assert!(parse(b"\"\xff\"").is_err() && parse(b"\"\xed\xa0\xbd\"").is_err());
        let Err(Error::MalformedJson(message)) = parse(b"{\n  \"a\": x}") else { panic!() };
        assert_eq!(message, "The body is not JSON. See line 2, column 8.");
    }

    proptest::proptest! {
        #[test]
        fn parser_agrees_with_serde_json(text in r#"[\[\]{}:,"a\\u0-9dDeE.+ \-ntrufals\n]{0,40}"#) {
            let known: Result<Value, _> = serde_json::from_str(&text);
            match parse(text.as_bytes()) {
                Ok(json) if holds_unusable(&json) => {}
                Ok(json) => assert_eq!(Json::from(&known.unwrap()).serialized(), json.serialized()),
                Err(_) => assert!(known.is_err(), "{text}"),
            }
        }

        #[test]
        fn json_value_round_trips(text in ".*", number: i64, real in -1e9..1e9) {
            let value = json!({ "text": text, "list": [number, real, null, true, { "a": [] }], text.clone(): {} });
            let serialized = value.to_string();
            let json = parse(serialized.as_bytes()).unwrap();
            assert_eq!(json.serialized(), Json::from(&value).serialized());
            let back = Value::deserialize(Reader { json: &json, texts: Texts::Any }).unwrap();
            assert_eq!(Json::from(&back).serialized(), json.serialized());
        }
    }

    fn holds_unusable(json: &Json<'_>) -> bool {
        match json {
            Json::Unusable(_) | Json::Number(Number::AboveRange | Number::BelowRange) => true,
            Json::List(items) => items.iter().any(holds_unusable),
            Json::Object(fields) => fields.iter().any(|(_, value)| holds_unusable(value)),
            _ => false,
        }
    }

    impl Json<'_> {
        fn serialized(&self) -> String {
            serde_json::to_string(self).unwrap()
        }
    }

    #[test]
    fn empty_names_are_shown_in_quotes() {
        let quoted = |path: &str, message: &str| (path.to_owned(), format!("{path} {message}"));
        assert_eq!(rejected(r#"{"metadata":{"":1}}"#), quoted("metadata.\"\"", "must be a string"));
        let (field, message) = rejected(r#"{"":1}"#);
        assert!(field == "\"\"" && message.starts_with("\"\" is not a field here"), "{message}");
        assert_eq!(rejected(r#"{"budget":{"":1}}"#).0, "budget.\"\"");
        assert_eq!(printable("a\nb\tc\u{1b}"), "a\u{FFFD}b\u{FFFD}c\u{FFFD}");
    }

    #[test]
    fn bounded_list_stops_after_its_bound() {
        for (count, kept) in [(0, 0), (3, 3), (4, 4), (100, 4)] {
            let list = Json::List(vec![Json::Null; count]);
            let items = Bounded::<ItemResult<u8>, 3>::deserialize(Reader { json: &list, texts: Texts::Any }).unwrap();
            assert_eq!(items.0.len(), kept);
        }
    }

    #[test]
    fn body_must_be_an_object() {
        for value in [json!([]), json!("x"), json!(null), json!(1)] {
            assert!(matches!(checked::<Input>(&value), Err(Error::Invalid { field, .. }) if field == "body"));
        }
    }
}

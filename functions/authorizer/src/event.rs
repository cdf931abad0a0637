use std::collections::HashMap;

use karta_shared::http::EventText;
use serde::Deserialize;

/// An event of API Gateway for a TOKEN or a REQUEST authorizer. No client text makes the conversion
/// fail, because a failed invocation is a 503.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct AuthorizerEvent {
    #[serde(rename = "type")]
    kind: EventKind,
    method_arn: Option<EventText>,
    /// The `Authorization` header; TOKEN events only.
    authorization_token: Option<EventText>,
    /// All headers, with names in the client's case; REQUEST events only.
    multi_value_headers: Option<HashMap<EventText, Vec<EventText>>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub(crate) enum EventKind {
    /// API Gateway caches the verdict.
    #[default]
    Token,
    /// The verdict is for this request only.
    Request,
}

impl AuthorizerEvent {
    /// Creates the event of a TOKEN authorizer.
    pub fn token(header: impl Into<String>, method_arn: impl Into<String>) -> Self {
        Self {
            kind: EventKind::Token,
            method_arn: Some(EventText::from(method_arn.into())),
            authorization_token: Some(EventText::from(header.into())),
            multi_value_headers: None,
        }
    }

    /// Creates the event of a REQUEST authorizer, with the names and values of all headers.
    pub fn request(headers: impl IntoIterator<Item = (String, String)>, method_arn: impl Into<String>) -> Self {
        let mut all: HashMap<EventText, Vec<EventText>> = HashMap::new();
        for (name, value) in headers {
            all.entry(name.into()).or_default().push(value.into());
        }
        Self {
            kind: EventKind::Request,
            method_arn: Some(EventText::from(method_arn.into())),
            authorization_token: None,
            multi_value_headers: Some(all),
        }
    }

    pub(crate) fn kind(&self) -> EventKind {
        self.kind
    }

    pub(crate) fn method_arn(&self) -> &str {
        self.method_arn.as_ref().map(EventText::as_str).unwrap_or_default()
    }

    /// Returns the `Authorization` header, or `None` if it is missing or repeated.
    pub(crate) fn authorization(&self) -> Option<&str> {
        if self.kind == EventKind::Token {
            return self.authorization_token.as_ref().map(EventText::as_str);
        }
        let headers = self.multi_value_headers.iter().flatten();
        let named = headers.filter(|(name, _)| name.as_str().eq_ignore_ascii_case("authorization"));
        let mut values = named.flat_map(|(_, values)| values);
        values.next().filter(|_| values.next().is_none()).map(EventText::as_str)
    }
}

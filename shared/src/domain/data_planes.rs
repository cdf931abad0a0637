use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, Ipv6Addr},
};

use secrecy::{ExposeSecret, SecretString};
use serde::{
    Deserialize, Deserializer,
    de::{Error as _, IgnoredAny},
};

use super::{Invalid, ServiceTokens, endpoint_url::split_scheme};

const MOST: usize = 20;
const TOKEN_MIN_BYTES: usize = 32;
/// Shorter than any token, so that a token in the place of a name is refused and not shown.
const NAME_MAX: usize = TOKEN_MIN_BYTES - 1;
const URL_MAX: usize = 300;

/// Somebody who keeps verdicts about keys, and the token that proves us to them.
#[derive(Clone)]
pub struct DataPlane {
    name: String,
    /// `https://<host>`, without a slash at its end.
    url: String,
    token: SecretString,
}

impl DataPlane {
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The base URL, without a slash at its end.
    pub fn url(&self) -> &str {
        &self.url
    }

    pub fn expose_token(&self) -> &str {
        self.token.expose_secret()
    }

    /// Whether the token opens our own internal routes too: whoever it is sent to could then call them.
    pub fn overlaps(&self, tokens: &ServiceTokens) -> bool {
        tokens.find(self.expose_token()).is_some()
    }
}

impl fmt::Debug for DataPlane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DataPlane").field("name", &self.name).field("url", &self.url).finish_non_exhaustive()
    }
}

/// Whom to tell that caches are out of date: `{"eu":{"url":"https://plane.example.com","token":"<token>"}}`.
#[derive(Debug)]
pub struct DataPlanes(Vec<DataPlane>);

/// The same in a local run, where a data plane may also be `http` on loopback.
#[derive(Debug)]
pub struct LocalDataPlanes(pub DataPlanes);

/// Why a text is no set of data planes. Names a data plane only once its name is known to be one: what stands in its place may be a token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DataPlanesError {
    #[error("it must be a JSON object of data planes by name")]
    Shape,
    #[error("it holds {0} data planes; 20 at most")]
    TooMany(usize),
    #[error("a name of {0} bytes is none: 1 to 31 characters out of a-z, 0-9 and -")]
    NameShape(usize),
    #[error("the data plane {0} must be an object of url and token")]
    PlaneShape(String),
    #[error("the data plane {0} has a field beside url and token")]
    FieldUnknown(String),
    #[error("{field} of the data plane {name} {problem}")]
    Field { name: String, field: &'static str, problem: Invalid },
    #[error("the data planes {0} and {1} have the same token")]
    TokenTwice(String, String),
}

#[derive(Deserialize)]
#[serde(untagged)]
enum RawDataPlanes {
    Planes(BTreeMap<String, RawDataPlane>),
    Other(IgnoredAny),
}

#[derive(Deserialize)]
#[serde(untagged)]
enum RawDataPlane {
    Fields(BTreeMap<String, RawField>),
    Other(IgnoredAny),
}

#[derive(Deserialize)]
#[serde(untagged)]
enum RawField {
    Text(RawText),
    Other(IgnoredAny),
}

/// Into a wiping type at once, so that what is refused is wiped too.
#[derive(Deserialize)]
#[serde(from = "String")]
struct RawText(SecretString);

impl From<String> for RawText {
    fn from(text: String) -> Self {
        Self(text.into())
    }
}

/// Where a data plane may be.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Transport {
    Https,
    /// Also `http` on loopback.
    Loopback,
}

impl DataPlanes {
    pub fn iter(&self) -> impl Iterator<Item = &DataPlane> {
        self.0.iter()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The first whose token opens our own internal routes.
    pub fn overlapping(&self, tokens: &ServiceTokens) -> Option<&DataPlane> {
        self.iter().find(|plane| plane.overlaps(tokens))
    }

    fn checked(written: RawDataPlanes, reach: Transport) -> Result<Self, DataPlanesError> {
        let RawDataPlanes::Planes(written) = written else {
            return Err(DataPlanesError::Shape);
        };
        if written.len() > MOST {
            return Err(DataPlanesError::TooMany(written.len()));
        }
        let mut planes: Vec<DataPlane> = Vec::with_capacity(written.len());
        for (name, plane) in written {
            let plane = checked_plane(checked_name(name)?, plane, reach)?;
            if let Some(twin) = planes.iter().find(|twin| twin.expose_token() == plane.expose_token()) {
                return Err(DataPlanesError::TokenTwice(twin.name.clone(), plane.name));
            }
            planes.push(plane);
        }
        Ok(Self(planes))
    }
}

fn checked_name(name: String) -> Result<String, DataPlanesError> {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    if (1..=NAME_MAX).contains(&name.len()) && name.bytes().all(allowed) {
        Ok(name)
    } else {
        Err(DataPlanesError::NameShape(name.len()))
    }
}

fn checked_plane(name: String, written: RawDataPlane, reach: Transport) -> Result<DataPlane, DataPlanesError> {
    let RawDataPlane::Fields(mut fields) = written else {
        return Err(DataPlanesError::PlaneShape(name));
    };
    let mut field = |field: &'static str, check: &dyn Fn(&str) -> Result<(), Invalid>| {
        let text = match fields.remove(field) {
            Some(RawField::Text(RawText(text))) => check(text.expose_secret()).map(|()| text),
            Some(RawField::Other(_)) => Err(Invalid::new("must be a string")),
            None => Err(Invalid::new("is missing")),
        };
        text.map_err(|problem| DataPlanesError::Field { name: name.clone(), field, problem })
    };
    let url = field("url", &|url| check_url(url, reach))?;
    let token = field("token", &check_token)?;
    if !fields.is_empty() {
        return Err(DataPlanesError::FieldUnknown(name));
    }
    let url = url.expose_secret();
    // The URL holds only scheme, host and port, which are case-insensitive.
    Ok(DataPlane { url: url.strip_suffix('/').unwrap_or(url).to_ascii_lowercase(), name, token })
}

fn check_token(token: &str) -> Result<(), Invalid> {
    if token.len() < TOKEN_MIN_BYTES {
        return Err(Invalid::new("must have at least 32 bytes"));
    }
    if token.bytes().all(|byte| byte.is_ascii_graphic()) {
        Ok(())
    } else {
        Err(Invalid::new("must be printable ASCII without spaces"))
    }
}

/// Scheme, host and port in a notation that every reader of URLs understands alike, and nothing after them.
fn check_url(url: &str, reach: Transport) -> Result<(), Invalid> {
    let (secure, authority) = match split_scheme(url) {
        Some((secure, rest)) if secure || reach == Transport::Loopback => (secure, rest),
        _ => return Err(Invalid::new("must start with https://")),
    };
    let authority = authority.strip_suffix('/').unwrap_or(authority);
    if url.len() > URL_MAX || authority.contains(['/', '?', '#', '@', '\\']) {
        return Err(Invalid::new("must be a host and no more: no path, query or credentials"));
    }
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
        _ => (authority, None),
    };
    let is_port = |port: &str| !port.starts_with(['0', '+']) && port.parse::<u16>().is_ok();
    if !port.is_none_or(is_port) {
        return Err(Invalid::new("must have a port from 1 to 65535"));
    }
    let address = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let address = address.map(|address| address.parse::<Ipv6Addr>().ok());
    if address.map_or_else(|| !is_host_name(host), |address| address.is_none()) {
        return Err(Invalid::new("must have a host name or an address as its host"));
    }
    let address = address.flatten().map(IpAddr::V6).or_else(|| host.parse().ok());
    if secure || host.eq_ignore_ascii_case("localhost") || address.is_some_and(|address| address.is_loopback()) {
        Ok(())
    } else {
        Err(Invalid::new("must start with https://, unless it is on loopback"))
    }
}

fn is_host_name(host: &str) -> bool {
    let is_label = |label: &str| {
        let inside = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
        (1..=63).contains(&label.len()) && label.bytes().all(inside)
    };
    host.len() <= 253 && host.split('.').all(is_label)
}

fn read<'de, D: Deserializer<'de>>(deserializer: D, reach: Transport) -> Result<DataPlanes, D::Error> {
    // By hand because serde's own messages quote what they met.
    let written = RawDataPlanes::deserialize(deserializer).map_err(|_| D::Error::custom(DataPlanesError::Shape))?;
    DataPlanes::checked(written, reach).map_err(D::Error::custom)
}

impl<'de> Deserialize<'de> for DataPlanes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        read(deserializer, Transport::Https)
    }
}

impl<'de> Deserialize<'de> for LocalDataPlanes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        read(deserializer, Transport::Loopback).map(Self)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn parsed(value: &Value) -> Result<DataPlanes, String> {
        serde_json::from_str(&value.to_string()).map_err(|error| error.to_string())
    }

    fn token(letter: &str) -> String {
        letter.repeat(TOKEN_MIN_BYTES)
    }

    fn at(url: &str) -> Value {
        json!({ "eu": { "url": url, "token": token("a") } })
    }

    #[test]
    fn every_data_plane_has_its_url_and_its_own_token() {
        let us = json!({ "url": "HTTPS://US.Example.com:8443/", "token": token("b") });
        let planes = parsed(&json!({ "us": us, "eu": at("https://eu.example.com")["eu"] })).unwrap();
        let planes: Vec<_> = planes.iter().map(|plane| (plane.name(), plane.url(), plane.expose_token())).collect();
        let (a, b) = (token("a"), token("b"));
        assert_eq!(planes, [("eu", "https://eu.example.com", &*a), ("us", "https://us.example.com:8443", &*b)]);
        assert!(parsed(&json!({})).unwrap().is_empty());
    }

    #[test]
    fn refusals_name_the_data_plane_and_the_field_and_show_nothing() {
        let secret = "zq9x".repeat(8);
        let url = "https://eu.example.com";
        let many: Value = (0..21).map(|n| (format!("p{n}"), json!({}))).collect::<serde_json::Map<_, _>>().into();
        for (value, problem) in [
            (json!(secret), "it must be a JSON object of data planes by name"),
            (json!([secret]), "it must be a JSON object of data planes by name"),
            (many, "it holds 21 data planes; 20 at most"),
            (json!({ secret.clone(): { "url": url, "token": secret } }), "a name of 32 bytes is none"),
            (json!({ "EU": { "url": url, "token": secret } }), "a name of 2 bytes is none"),
            (json!({ "": {} }), "a name of 0 bytes is none"),
            (json!({ "eu": secret }), "the data plane eu must be an object of url and token"),
            (json!({ "eu": { "token": secret } }), "url of the data plane eu is missing"),
            (json!({ "eu": { "url": [secret], "token": secret } }), "url of the data plane eu must be a string"),
            (json!({ "eu": { "url": secret, "token": secret } }), "url of the data plane eu must start with https://"),
            (json!({ "eu": { "url": url } }), "token of the data plane eu is missing"),
            (json!({ "eu": { "url": url, "token": { "zq9x": 1 } } }), "token of the data plane eu must be a string"),
            (
                json!({ "eu": { "url": url, "token": secret[1..] } }),
                "token of the data plane eu must have at least 32 bytes",
            ),
            (
                json!({ "eu": { "url": url, "token": format!("{secret} ") } }),
                "token of the data plane eu must be printable ASCII without spaces",
            ),
            (
                json!({ "eu": { "url": url, "token": secret, secret.clone(): 1 } }),
                "the data plane eu has a field beside url and token",
            ),
            (
                json!({ "a": { "url": url, "token": secret }, "b": { "url": url, "token": secret } }),
                "the data planes a and b have the same token",
            ),
        ] {
            let refusal = parsed(&value).unwrap_err();
            assert!(refusal.starts_with(problem), "{problem}: {refusal}");
            assert!(!refusal.contains("zq9x"), "{refusal}");
        }
        let whole = parsed(&json!({ "eu": { "url": url, "token": secret } })).unwrap();
        let printed = r#"DataPlanes([DataPlane { name: "eu", url: "https://eu.example.com", .. }])"#;
        assert_eq!(format!("{whole:?}"), printed);
    }

    #[test]
    fn a_url_is_a_secure_host_and_no_more() {
        let longest = format!("https://{}.example.com", "a".repeat(63));
        for url in ["https://10.0.0.7", "https://[2001:db8::1]:8443/", "https://plane.internal:1/", &*longest] {
            assert!(parsed(&at(url)).is_ok(), "{url}");
        }
        for url in [
            "",
            "https://",
            "https:///",
            "HTTP://eu.example.com",
            "ftp://eu.example.com",
            "http://eu.example.com",
            "http://127.0.0.1:8080",
            "https://eu.example.com//",
            "https://eu.example.com/v1",
            "https://eu.example.com?x=1",
            "https://eu.example.com#x",
            "https://user@eu.example.com",
            "https://user:pass@eu.example.com",
            "https://eu.example.com\\@evil.example",
            "https://eu.example.com:",
            "https://eu.example.com:0",
            "https://eu.example.com:+443",
            "https://eu.example.com:65536",
            "https://eu example.com",
            "https://eu..example.com",
            "https://[::1",
            "https://[eu]",
            "https://::1",
            "https://bücher.example",
            " https://eu.example.com",
        ] {
            assert!(parsed(&at(url)).is_err(), "{url}");
        }
    }

    #[test]
    fn a_local_run_takes_plain_http_on_loopback_alone() {
        let local = |url: &str| serde_json::from_value::<LocalDataPlanes>(at(url)).is_ok();
        for url in ["http://127.0.0.1:8080/", "http://127.9.9.9", "http://localhost:1", "http://[::1]:8080"] {
            assert!(local(url), "{url}");
        }
        assert!(local("https://eu.example.com"));
        for url in ["http://eu.example.com", "http://10.0.0.7", "http://[2001:db8::1]", "http://localhost.example.com"]
        {
            assert!(!local(url), "{url}");
        }
    }

    #[test]
    fn a_token_that_opens_the_internal_routes_is_found() {
        let both = token("b");
        let tokens = format!(r#"{{"powers":{{"ops":["usage"]}},"ops":"{both}"}}"#);
        let tokens: ServiceTokens = serde_json::from_str(&tokens).unwrap();
        let url = "https://eu.example.com";
        let planes = json!({ "eu": { "url": url, "token": token("a") }, "us": { "url": url, "token": both } });
        assert_eq!(parsed(&planes).unwrap().overlapping(&tokens).map(DataPlane::name), Some("us"));
        assert!(parsed(&at(url)).unwrap().overlapping(&tokens).is_none());
    }
}

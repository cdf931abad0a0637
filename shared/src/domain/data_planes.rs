use std::{
    fmt,
    net::{IpAddr, Ipv6Addr},
};

use secrecy::{ExposeSecret, SecretString};
use serde::{
    Deserialize, Deserializer,
    de::{Error as _, IgnoredAny},
};

use super::{Invalid, ObjectMembers, SecretText, ServiceTokens, endpoint_url::split_scheme};

const MAX_PLANES: usize = 20;
const MIN_TOKEN_BYTES: usize = 32;
/// Shorter than any token, so that a token in the place of a name is rejected and not shown.
const MAX_NAME: usize = MIN_TOKEN_BYTES - 1;
const MAX_URL: usize = 300;

/// A service that caches verdicts, and the token that authenticates us to it.
#[derive(Clone)]
pub struct DataPlane {
    name: String,
    /// `https://<host>`, without a trailing slash.
    url: String,
    token: SecretString,
}

impl DataPlane {
    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn url(&self) -> &str {
        &self.url
    }

    pub fn expose_token(&self) -> &str {
        self.token.expose_secret()
    }

    /// Returns whether the token is also a service token, with which its receiver could call the
    /// internal routes.
    pub fn overlaps(&self, tokens: &ServiceTokens) -> bool {
        tokens.find(self.expose_token()).is_some()
    }
}

impl fmt::Debug for DataPlane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DataPlane").field("name", &self.name).field("url", &self.url).finish_non_exhaustive()
    }
}

/// The receivers of invalidations: `{"eu":{"url":"https://plane.example.com","token":"<token>"}}`.
#[derive(Debug)]
pub struct DataPlanes(Vec<DataPlane>);

/// Also allows `http` on loopback.
#[derive(Debug)]
pub struct LocalDataPlanes(pub DataPlanes);

/// Why a set of data planes is invalid. Shows a name only if it is valid, because it may be a
/// token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DataPlanesError {
    #[error("it must be a JSON object of data planes by name")]
    Shape,
    #[error("it has {0} data planes; the limit is 20")]
    TooMany(usize),
    #[error("invalid name ({0} bytes): must be 1 to 31 characters from a-z, 0-9 and -")]
    NameShape(usize),
    #[error("more than one data plane has the name {0}")]
    NameTwice(String),
    #[error("the data plane {0} must be an object with url and token")]
    PlaneShape(String),
    #[error("the data plane {0} has a field other than url and token")]
    FieldUnknown(String),
    #[error("{field} of the data plane {name} {problem}")]
    Field { name: String, field: &'static str, problem: Invalid },
    #[error("the data planes {0} and {1} have the same token: give each its own")]
    TokenTwice(String, String),
}

#[derive(Deserialize)]
#[serde(untagged)]
enum RawDataPlanes {
    Planes(ObjectMembers<RawDataPlane>),
    Other(IgnoredAny),
}

#[derive(Deserialize)]
#[serde(untagged)]
enum RawDataPlane {
    Fields(ObjectMembers<RawField>),
    Other(IgnoredAny),
}

#[derive(Deserialize)]
#[serde(untagged)]
enum RawField {
    Text(SecretText),
    Other(IgnoredAny),
}

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

    pub fn overlapping(&self, tokens: &ServiceTokens) -> Option<&DataPlane> {
        self.iter().find(|plane| plane.overlaps(tokens))
    }

    fn checked(written: RawDataPlanes, reach: Transport) -> Result<Self, DataPlanesError> {
        let RawDataPlanes::Planes(written) = written else {
            return Err(DataPlanesError::Shape);
        };
        let twice = |name| checked_name(name).map_or_else(|invalid| invalid, DataPlanesError::NameTwice);
        let written = written.by_name().map_err(twice)?;
        if written.len() > MAX_PLANES {
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
    if (1..=MAX_NAME).contains(&name.len()) && name.bytes().all(allowed) {
        Ok(name)
    } else {
        Err(DataPlanesError::NameShape(name.len()))
    }
}

fn checked_plane(name: String, written: RawDataPlane, reach: Transport) -> Result<DataPlane, DataPlanesError> {
    let RawDataPlane::Fields(fields) = written else {
        return Err(DataPlanesError::PlaneShape(name));
    };
    let twice = |field: String| match ["url", "token"].into_iter().find(|known| *known == field) {
        Some(field) => {
            DataPlanesError::Field { name: name.clone(), field, problem: Invalid::new("must be given once") }
        }
        None => DataPlanesError::FieldUnknown(name.clone()),
    };
    let mut fields = fields.by_name().map_err(twice)?;
    let mut field = |field: &'static str, check: &dyn Fn(&str) -> Result<(), Invalid>| {
        let text = match fields.remove(field) {
            Some(RawField::Text(SecretText(text))) => check(text.expose_secret()).map(|()| text),
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
    // Scheme, host and port are case-insensitive.
    Ok(DataPlane { url: url.strip_suffix('/').unwrap_or(url).to_ascii_lowercase(), name, token })
}

fn check_token(token: &str) -> Result<(), Invalid> {
    if token.len() < MIN_TOKEN_BYTES {
        return Err(Invalid::new("must have at least 32 bytes"));
    }
    if token.bytes().all(|byte| byte.is_ascii_graphic()) {
        Ok(())
    } else {
        Err(Invalid::new("must be printable ASCII without spaces"))
    }
}

/// Accepts only scheme, host and port, in a notation that all URL parsers read alike.
fn check_url(url: &str, reach: Transport) -> Result<(), Invalid> {
    let (secure, authority) = match split_scheme(url) {
        Some((secure, rest)) if secure || reach == Transport::Loopback => (secure, rest),
        _ => return Err(Invalid::new("must start with https://")),
    };
    let authority = authority.strip_suffix('/').unwrap_or(authority);
    if url.len() > MAX_URL || authority.contains(['/', '?', '#', '@', '\\']) {
        return Err(Invalid::new("must be only a host: no path, query or credentials"));
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
        return Err(Invalid::new("must have a host name or an IP address as its host"));
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
    // serde's own message would quote the input.
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
        letter.repeat(MIN_TOKEN_BYTES)
    }

    fn at(url: &str) -> Value {
        json!({ "eu": { "url": url, "token": token("a") } })
    }

    #[test]
    fn data_planes_keep_their_url_and_token() {
        let us = json!({ "url": "HTTPS://US.Example.com:8443/", "token": token("b") });
        let planes = parsed(&json!({ "us": us, "eu": at("https://eu.example.com")["eu"] })).unwrap();
        let planes: Vec<_> = planes.iter().map(|plane| (plane.name(), plane.url(), plane.expose_token())).collect();
        let (a, b) = (token("a"), token("b"));
        assert_eq!(planes, [("eu", "https://eu.example.com", &*a), ("us", "https://us.example.com:8443", &*b)]);
        assert!(parsed(&json!({})).unwrap().is_empty());
    }

    #[test]
    fn errors_name_plane_and_field_without_values() {
        let secret = "zq9x".repeat(8);
        let url = "https://eu.example.com";
        let many: Value = (0..21).map(|n| (format!("p{n}"), json!({}))).collect::<serde_json::Map<_, _>>().into();
        for (value, problem) in [
            (json!(secret), "it must be a JSON object of data planes by name"),
            (json!([secret]), "it must be a JSON object of data planes by name"),
            (many, "it has 21 data planes; the limit is 20"),
            (json!({ secret.clone(): { "url": url, "token": secret } }), "invalid name (32 bytes)"),
            (json!({ "EU": { "url": url, "token": secret } }), "invalid name (2 bytes)"),
            (json!({ "": {} }), "invalid name (0 bytes)"),
            (json!({ "eu": secret }), "the data plane eu must be an object with url and token"),
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
                "the data plane eu has a field other than url and token",
            ),
            (
                json!({ "a": { "url": url, "token": secret }, "b": { "url": url, "token": secret } }),
                "the data planes a and b have the same token: give each its own",
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
    fn data_plane_url_has_only_https_and_host() {
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
    fn local_run_accepts_http_only_on_loopback() {
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
    fn overlap_with_service_tokens_is_found() {
        let both = token("b");
        let tokens = format!(r#"{{"powers":{{"ops":["usage"]}},"ops":"{both}"}}"#);
        let tokens: ServiceTokens = serde_json::from_str(&tokens).unwrap();
        let url = "https://eu.example.com";
        let planes = json!({ "eu": { "url": url, "token": token("a") }, "us": { "url": url, "token": both } });
        assert_eq!(parsed(&planes).unwrap().overlapping(&tokens).map(DataPlane::name), Some("us"));
        assert!(parsed(&at(url)).unwrap().overlapping(&tokens).is_none());
    }
}

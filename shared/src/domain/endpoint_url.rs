use serde::{Deserialize, Serialize};

use super::Invalid;

/// Top-level names that never lead to the public internet: the special-use names of RFC 6761, 6762, 7686, 8375 and 9476, and what private
/// networks and clouds call their own.
const PRIVATE: [&str; 17] = [
    "alt",
    "arpa",
    "consul",
    "corp",
    "docker",
    "home",
    "internal",
    "intranet",
    "invalid",
    "lan",
    "local",
    "localdomain",
    "localhost",
    "onion",
    "private",
    "svc",
    "test",
];

/// A URL that requests will be sent below: `https`, a public DNS name, the default port, no credentials, no query. Judged by its text alone; what the
/// name resolves to is judged when it is called.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub struct EndpointUrl(String);

impl EndpointUrl {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for EndpointUrl {
    type Error = Invalid;

    fn try_from(text: String) -> Result<Self, Invalid> {
        // A backslash is a slash to browsers' parsers: what two parsers read differently is no URL here.
        if text.len() > 2_048 || !text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'\\') {
            return Err(Invalid::new("must be a URL of at most 2048 printable ASCII characters"));
        }
        let rest = text.strip_prefix("https://").ok_or(Invalid::new("must start with https://"))?;
        if rest.contains(['?', '#']) {
            // Paths are put behind it; and a query is where keys are put, which would be shown and audited.
            return Err(Invalid::new("must not have a query or a fragment"));
        }
        let authority = rest.split('/').next().unwrap_or_default();
        if authority.contains('@') {
            return Err(Invalid::new("must not hold a user name or password"));
        }
        let (host, port) = authority.split_once(':').unwrap_or((authority, "443"));
        if port != "443" {
            return Err(Invalid::new("must use the default port 443"));
        }
        if is_public_name(&host.to_ascii_lowercase()) {
            Ok(Self(text))
        } else {
            Err(Invalid::new("must have a public DNS name as its host, no IP address and no private or local name"))
        }
    }
}

/// Whether a lower-case name has two labels or more and ends in a public top-level name. Those never start with a digit, as every
/// notation of an IPv4 address ends in one.
fn is_public_name(host: &str) -> bool {
    let is_label = |label: &str| {
        let inside = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        (1..=63).contains(&label.len()) && label.bytes().all(inside) && !label.starts_with('-') && !label.ends_with('-')
    };
    let Some((_, top)) = host.rsplit_once('.') else {
        return false;
    };
    host.len() <= 253
        && host.split('.').all(is_label)
        && top.starts_with(|first: char| first.is_ascii_lowercase())
        && !PRIVATE.contains(&top)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_public_https_url_is_kept_as_it_was_written() {
        for text in [
            "https://api.example.com",
            "https://api.example.com/v1/messages",
            "https://API.Example.COM:443/",
            "https://xn--bcher-kva.example/",
            "https://api.example.com/a@b:c",
        ] {
            assert_eq!(EndpointUrl::try_from(text.to_owned()).unwrap().as_str(), text);
        }
    }

    #[test]
    fn what_may_lead_elsewhere_is_refused() {
        for text in [
            "",
            "http://api.example.com",
            "HTTPS://api.example.com",
            "ftp://api.example.com",
            "https:///v1",
            "https://",
            "https://localhost",
            "https://api.localhost/",
            "https://printer.local",
            "https://metadata.google.internal/",
            "https://router.home.arpa",
            "https://intranet",
            "https://api.default.svc",
            "https://vault.service.consul/v1",
            "https://gateway.docker",
            "https://127.0.0.1",
            "https://127.1",
            "https://2130706433/",
            "https://0x7f.0.0.1",
            "https://example.0x7f",
            "https://[::1]/",
            "https://169.254.169.254/latest",
            "https://user@api.example.com",
            "https://user:secret@api.example.com",
            "https://api.example.com@127.0.0.1/",
            "https://api.example.com:8443",
            "https://api.example.com:",
            "https://api.example.com:443:443",
            "https://api.example.com./",
            "https://api..example.com",
            "https://-api.example.com",
            "https://api_1.example.com",
            "https://%61pi.example.com",
            "https://api.example.com\\@127.0.0.1",
            "https://api.example.com/a b",
            "https://bücher.example",
            "https://api.example.com?x=1",
            "https://api.example.com/v1?",
            "https://api.example.com/v1#",
            "https://api.example.com#@127.0.0.1",
            &format!("https://api.example.com/{}", "a".repeat(2_048)),
        ] {
            assert!(EndpointUrl::try_from(text.to_owned()).is_err(), "{text}");
        }
    }
}

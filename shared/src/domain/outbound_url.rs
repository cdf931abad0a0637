use std::fmt;

use serde::{Deserialize, Serialize};

use super::{
    Invalid, Reach, canonical_host,
    endpoint_url::{Outline, is_loopback},
    name::HOLDS_SECRET,
    secret_shape::{finds_own_secret, finds_secret},
};

/// A URL that Karta calls for a customer, of a webhook endpoint or of a model provider: `https`, a
/// public DNS name, port 443, no credentials, no fragment. A query is allowed, because webhook
/// receivers put ids into it. The address that the name resolves to is checked at each request.
///
/// Deserialization accepts any text, so that a stricter rule leaves stored URLs readable: they are
/// checked again before they are called. Parse input with [`parse`](Self::parse).
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct OutboundUrl(String);

impl OutboundUrl {
    /// Checks only the text. With [`Reach::Loopback`], loopback (`127.0.0.0/8`, `[::1]`,
    /// `localhost`) may also use `http` and any port.
    pub fn parse(text: &str, reach: Reach) -> Result<Self, Invalid> {
        let outline = Outline::checked(text, reach)?;
        outline.check_international()?;
        outline.check_path()?;
        // Receivers put their own keys into the query, which only the organization's admins see.
        // Karta's own credentials are not allowed anywhere.
        let without_query = text.split('?').next().unwrap_or(text);
        if finds_secret(without_query) || finds_own_secret(text) {
            return Err(HOLDS_SECRET);
        }
        Ok(Self(outline.normalised(text)))
    }

    /// Returns the URL for everyone except the organization's admins: a query becomes `?redacted`.
    #[must_use]
    pub fn without_query(&self) -> Self {
        let (start, query) = self.0.split_once('?').map_or((&*self.0, false), |(start, _)| (start, true));
        Self(format!("{start}{}", if query { "?redacted" } else { "" }))
    }

    /// Checks the notation of a stored URL as [`parse`](Self::parse) does, but not for credentials.
    pub fn check(&self, reach: Reach) -> Result<(), Invalid> {
        Outline::checked(&self.0, reach).map(drop)
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns the host in lower case, without port, and an IPv6 address in brackets. Empty if a
    /// stored URL has no valid host.
    pub fn host(&self) -> String {
        Outline::checked(&self.0, Reach::Loopback)
            .map_or_else(|_| String::new(), |outline| outline.host.to_ascii_lowercase())
    }

    pub fn is_loopback(&self) -> bool {
        is_loopback(&self.host())
    }

    /// Compares as the internal allowlist does: in any case, without ports and trailing dots.
    pub fn is_on(&self, hosts: &[String]) -> bool {
        let own = canonical_host(&self.host());
        own.is_some() && hosts.iter().any(|host| canonical_host(host) == own)
    }
}

impl fmt::Debug for OutboundUrl {
    /// Omits path and query, which grant access at some receivers.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("OutboundUrl").field(&self.host()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn query_is_kept_and_debug_shows_host_only() {
        for reach in [Reach::Public, Reach::Loopback] {
            let url = OutboundUrl::parse("https://Hooks.example.com/T000/s3cret?id=s3cret/1", reach).unwrap();
            assert_eq!(url.as_str(), "https://hooks.example.com/T000/s3cret?id=s3cret/1");
            assert_eq!(url.without_query().as_str(), "https://hooks.example.com/T000/s3cret?redacted");
            assert_eq!(format!("{url:?}"), r#"OutboundUrl("hooks.example.com")"#);
            assert!(!url.is_loopback());
        }
        // A name that contains an address is a name. It is resolved and checked at delivery.
        assert!(OutboundUrl::parse("https://127.0.0.1.nip.io/", Reach::Public).is_ok());
    }

    #[test]
    fn invalid_international_name_is_refused_but_readable() {
        for reach in [Reach::Public, Reach::Loopback] {
            assert!(OutboundUrl::parse("https://xn--bcher-kva.example.com/hook", reach).is_ok());
            for text in ["https://xn--a.com/hook", "https://hooks.XN--A.com/", "https://xn--gba.com?x=1"] {
                assert!(OutboundUrl::parse(text, reach).unwrap_err().to_string().contains("Punycode"), "{text}");
            }
        }
        let stored: OutboundUrl = serde_json::from_value("https://xn--a.com/hook".into()).unwrap();
        assert_eq!((stored.check(Reach::Public), &*stored.host()), (Ok(()), "xn--a.com"));
    }

    #[test]
    fn ambiguous_path_is_refused_but_readable() {
        for reach in [Reach::Public, Reach::Loopback] {
            for text in ["https://example.com/a/../b", "https://example.com/%zz?x=1"] {
                assert!(OutboundUrl::parse(text, reach).unwrap_err().to_string().contains("in its path"), "{text}");
            }
            assert!(OutboundUrl::parse("https://example.com/a%2Fb?x=../%zz", reach).is_ok());
        }
        let stored: OutboundUrl = serde_json::from_value("https://example.com/a/../b".into()).unwrap();
        assert_eq!(stored.check(Reach::Public), Ok(()));
    }

    #[test]
    fn only_the_query_may_hold_a_foreign_key() {
        let parse = |text: &str| OutboundUrl::parse(text, Reach::Public);
        let google = format!("AIza{}", "7QxW9z3RkT5mVb2NpL8c".repeat(2));
        assert!(parse(&format!("https://chat.example.com/v1/spaces/A?key={google}")).is_ok());
        assert_eq!(parse(&format!("https://chat.example.com/v1/{google}")), Err(HOLDS_SECRET));
        // The shape of some keys begins in the host.
        let slack = "https://hooks.slack.com/services/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";
        assert_eq!(parse(slack), Err(HOLDS_SECRET));
        let ours = format!("kt_live_{}", "7QxW9z3RkT5mVb2NpL8c".repeat(2));
        for text in [format!("https://example.com/{ours}"), format!("https://example.com/?k={ours}")] {
            assert_eq!(parse(&text), Err(HOLDS_SECRET));
        }
        let url = parse("HTTPS://EXAMPLE.NET/K").unwrap();
        assert_eq!((url.as_str(), url.without_query().as_str()), ("https://example.net/K", "https://example.net/K"));
    }

    #[test]
    fn loopback_reach_allows_http_and_any_port() {
        for text in [
            "http://127.0.0.1",
            "http://127.0.0.1:8080/hooks?x=1",
            "http://127.255.255.254:1/",
            "https://127.0.0.1:8443/",
            "http://localhost:65535/",
            "HTTP://LOCALHOST/",
            "https://localhost/",
            "http://[::1]:8080/",
            "http://[::1]",
            "http://[0:0:0:0:0:0:0:1]/",
        ] {
            let url = OutboundUrl::parse(text, Reach::Loopback).expect(text);
            assert!(url.is_loopback() && url.check(Reach::Loopback).is_ok(), "{text}");
            assert!(OutboundUrl::parse(text, Reach::Public).is_err(), "{text}");
        }
    }

    #[test]
    fn loopback_reach_allows_nothing_else() {
        for text in [
            "http://api.example.com/",
            "https://api.example.com:8443/",
            "http://10.0.0.1/",
            "https://10.0.0.1/",
            "http://169.254.169.254/",
            "http://0.0.0.0:8080/",
            "http://[::]:8080/",
            "http://[::ffff:127.0.0.1]/",
            "http://[::1",
            "http://::1/",
            "http://[127.0.0.1]/",
            "http://127.1/",
            "http://0177.0.0.1/",
            "http://2130706433/",
            "http://0x7f.1/",
            "http://api.localhost/",
            "http://localhost./",
            "http://localhost.localdomain/",
            "http://printer.local/",
            "http://user@127.0.0.1/",
            "http://127.0.0.1@10.0.0.1/",
            "http://127.0.0.1#@10.0.0.1/",
            "http://127.0.0.1\\@10.0.0.1/",
            "http://127.0.0.1:0/",
            "http://127.0.0.1:/",
            "http://127.0.0.1:65536/",
            "http://127.0.0.1:080/",
            "http://127.0.0.1:+80/",
            "http://127.0.0.1:80:80/",
            "http://[::1]x:80/",
            "http://[::1]80/",
            "ftp://127.0.0.1/",
            "file:///etc/passwd",
        ] {
            assert!(OutboundUrl::parse(text, Reach::Loopback).is_err(), "{text}");
        }
    }

    #[test]
    fn stored_url_is_read_and_checked_again() {
        let read = |text: &str| serde_json::from_value::<OutboundUrl>(text.into()).unwrap();
        let kept = OutboundUrl::parse("http://localhost:8080/hooks", Reach::Loopback).unwrap();
        assert_eq!(read(kept.as_str()), kept);
        assert_eq!(serde_json::to_value(&kept).unwrap(), kept.as_str());
        assert!(kept.check(Reach::Public).is_err());
        let odd = read("gopher://10.0.0.1/");
        assert!(odd.check(Reach::Loopback).is_err() && !odd.is_loopback() && odd.host().is_empty());
    }

    #[test]
    fn own_hosts_match_in_any_notation() {
        let own =
            ["api.example.com.", "Control.example.com", "local.example.com:8787", "dot.example.com.:443", "", "a b"];
        let own = own.map(ToOwned::to_owned);
        for (text, is_own) in [
            ("https://api.example.com/v1", true),
            ("https://API.EXAMPLE.com:443?x=1", true),
            ("https://control.example.com", true),
            ("https://local.example.com/hooks", true),
            ("https://local.example.com:443/", true),
            ("https://dot.example.com", true),
            ("https://x.api.example.com/", false),
            ("https://example.com/api.example.com", false),
        ] {
            assert_eq!(OutboundUrl::parse(text, Reach::Public).unwrap().is_on(&own), is_own, "{text}");
        }
        let loopback = OutboundUrl::parse("http://[0:0:0:0:0:0:0:1]:9/", Reach::Loopback).unwrap();
        assert!(loopback.is_on(&["[::1]:8787".to_owned()]) && !loopback.is_on(&["localhost".to_owned()]));
        let unreadable: OutboundUrl = serde_json::from_value("no URL".into()).unwrap();
        assert!(!unreadable.is_on(&own), "no host equals no host");
    }
}

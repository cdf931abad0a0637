use std::fmt;

use serde::{Deserialize, Serialize};

use super::{
    Invalid, Reach,
    endpoint_url::{Outline, is_loopback},
    name::HOLDS_SECRET,
    secret_shape::{finds_own_secret, finds_secret},
};

/// Where a webhook endpoint's deliveries go: `https`, a public DNS name, port 443, no credentials, no fragment. A query may stand, as receivers put
/// ids there. What the name resolves to is judged at each delivery.
///
/// Deserializing is for what the store kept, which was judged when it was written and is judged again before it is called: it takes any text, so
/// that a stricter rule leaves stored endpoints readable. Input is read by [`parse`](Self::parse).
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct WebhookUrl(String);

impl WebhookUrl {
    /// Judges by text alone. Under [`Reach::Loopback`] loopback (`127.0.0.0/8`, `[::1]`, `localhost`) may also be `http` and on any port.
    pub fn parse(text: &str, reach: Reach) -> Result<Self, Invalid> {
        let outline = Outline::judged(text, reach)?;
        // Receivers put keys of their own into the query, which is shown to nobody else; ours belong nowhere.
        let path = outline.behind.split('?').next().unwrap_or_default();
        if finds_secret(outline.host) || finds_secret(path) || finds_own_secret(text) {
            return Err(HOLDS_SECRET);
        }
        Ok(Self(outline.normalised(text)))
    }

    /// The URL as everybody but an organization's admins may see it: a query becomes `?redacted`.
    #[must_use]
    pub fn without_query(&self) -> Self {
        let (start, query) = self.0.split_once('?').map_or((&*self.0, false), |(start, _)| (start, true));
        Self(format!("{start}{}", if query { "?redacted" } else { "" }))
    }

    /// Judges what the store kept as [`parse`](Self::parse) would today.
    pub fn judge(&self, reach: Reach) -> Result<(), Invalid> {
        Outline::judged(&self.0, reach).map(drop)
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// In lower case, without port, an IPv6 address in its brackets; empty where a URL from the store has none.
    pub fn host(&self) -> String {
        Outline::judged(&self.0, Reach::Loopback)
            .map_or_else(|_| String::new(), |outline| outline.host.to_ascii_lowercase())
    }

    /// Whether it leads to this machine by its text.
    pub fn is_loopback(&self) -> bool {
        is_loopback(&self.host())
    }

    /// Whether its host is one of these names, in any case and with or without a dot at the end.
    pub fn is_on(&self, hosts: &[String]) -> bool {
        let own = self.host();
        hosts.iter().any(|host| host.strip_suffix('.').unwrap_or(host).eq_ignore_ascii_case(&own))
    }
}

impl fmt::Debug for WebhookUrl {
    /// Without path and query, which let in whoever knows them at some receivers.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("WebhookUrl").field(&self.host()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_stands_and_debug_shows_the_host_alone() {
        for reach in [Reach::Public, Reach::Loopback] {
            let url = WebhookUrl::parse("https://Hooks.example.com/T000/s3cret?id=s3cret/1", reach).unwrap();
            assert_eq!(url.as_str(), "https://hooks.example.com/T000/s3cret?id=s3cret/1");
            assert_eq!(url.without_query().as_str(), "https://hooks.example.com/T000/s3cret?redacted");
            assert_eq!(format!("{url:?}"), r#"WebhookUrl("hooks.example.com")"#);
            assert!(!url.is_loopback());
        }
        // A name that carries an address is a name: what it resolves to is judged at delivery.
        assert!(WebhookUrl::parse("https://127.0.0.1.nip.io/", Reach::Public).is_ok());
    }

    #[test]
    fn only_the_query_holds_a_foreign_key() {
        let parse = |text: &str| WebhookUrl::parse(text, Reach::Public);
        let google = format!("AIza{}", "7QxW9z3RkT5mVb2NpL8c".repeat(2));
        assert!(parse(&format!("https://chat.example.com/v1/spaces/A?key={google}")).is_ok());
        assert_eq!(parse(&format!("https://chat.example.com/v1/{google}")), Err(HOLDS_SECRET));
        let ours = format!("kt_live_{}", "7QxW9z3RkT5mVb2NpL8c".repeat(2));
        for text in [format!("https://example.com/{ours}"), format!("https://example.com/?k={ours}")] {
            assert_eq!(parse(&text), Err(HOLDS_SECRET));
        }
        let url = parse("HTTPS://EXAMPLE.NET/K").unwrap();
        assert_eq!((url.as_str(), url.without_query().as_str()), ("https://example.net/K", "https://example.net/K"));
    }

    #[test]
    fn loopback_may_be_http_on_any_port_where_it_is_allowed_and_nowhere_else() {
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
            let url = WebhookUrl::parse(text, Reach::Loopback).expect(text);
            assert!(url.is_loopback() && url.judge(Reach::Loopback).is_ok(), "{text}");
            assert!(WebhookUrl::parse(text, Reach::Public).is_err(), "{text}");
        }
    }

    #[test]
    fn beside_loopback_nothing_more_is_allowed() {
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
            assert!(WebhookUrl::parse(text, Reach::Loopback).is_err(), "{text}");
        }
    }

    #[test]
    fn what_the_store_kept_is_read_and_judged_again() {
        let read = |text: &str| serde_json::from_value::<WebhookUrl>(text.into()).unwrap();
        let kept = WebhookUrl::parse("http://localhost:8080/hooks", Reach::Loopback).unwrap();
        assert_eq!(read(kept.as_str()), kept);
        assert_eq!(serde_json::to_value(&kept).unwrap(), kept.as_str());
        assert!(kept.judge(Reach::Public).is_err());
        let odd = read("gopher://10.0.0.1/");
        assert!(odd.judge(Reach::Loopback).is_err() && !odd.is_loopback() && odd.host().is_empty());
    }

    #[test]
    fn own_hosts_are_known_in_any_notation() {
        let own = ["api.example.com.".to_owned(), "Control.example.com".to_owned()];
        for (text, is_own) in [
            ("https://api.example.com/v1", true),
            ("https://API.EXAMPLE.com:443?x=1", true),
            ("https://control.example.com", true),
            ("https://x.api.example.com/", false),
            ("https://example.com/api.example.com", false),
        ] {
            assert_eq!(WebhookUrl::parse(text, Reach::Public).unwrap().is_on(&own), is_own, "{text}");
        }
    }
}

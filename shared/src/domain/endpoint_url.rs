use std::net::{IpAddr, Ipv6Addr};

use serde::{Deserialize, Serialize};

use super::{Invalid, Reach, Timestamp, punycode};

/// Top-level names that are never on the public internet: the special-use names of RFC 6761, 6762,
/// 7686, 8375 and 9476, names that ICANN does not delegate, and names that private networks and
/// clouds use.
const PRIVATE: [&str; 27] = [
    "alt",
    "arpa",
    "belkin",
    "consul",
    "corp",
    "dhcp",
    "docker",
    "example",
    "gateway",
    "home",
    "internal",
    "intra",
    "intranet",
    "invalid",
    "lan",
    "local",
    "localdomain",
    "localhost",
    "localnet",
    "mail",
    "onion",
    "private",
    "router",
    "svc",
    "test",
    "workgroup",
    "zeroconf",
];

const INVALID_PORT: Invalid = Invalid::new("must have a port from 1 to 65535");

/// A base URL for requests: `https`, a public DNS name, the default port, no credentials, no query.
/// The address that the name resolves to is checked when the URL is called.
///
/// Parsing accepts loopback, so that URLs of a local run that allowed it stay readable. Check input
/// with [`check_input`](Self::check_input).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub struct EndpointUrl(String);

impl EndpointUrl {
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns whether both URLs lead to one place, so that a key for one may be sent to the other.
    pub fn is_same_target(first: Option<&Self>, second: Option<&Self>) -> bool {
        first.map(Self::target) == second.map(Self::target)
    }

    /// Returns whether TLS is used, host and port, and the path. Requests ignore slashes at its end.
    fn target(&self) -> (bool, &str, &str) {
        let (secure, rest) = split_scheme(&self.0).unwrap_or((true, &self.0));
        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let default_port = if secure { ":443" } else { ":80" };
        (secure, authority.strip_suffix(default_port).unwrap_or(authority), path.trim_end_matches('/'))
    }

    /// Checks the network, the `xn--` labels of the host, and the path. Only for input: parsing does
    /// not include it, because stored URLs are parsed too and must stay readable.
    pub fn check_input(&self, reach: Reach) -> Result<(), Invalid> {
        let outline = Outline::checked(&self.0, reach)?;
        outline.check_international()?;
        outline.check_path()
    }
}

impl TryFrom<String> for EndpointUrl {
    type Error = Invalid;

    fn try_from(text: String) -> Result<Self, Invalid> {
        let outline = Outline::checked(&text, Reach::Loopback)?;
        if outline.path_and_query.contains('?') {
            // Callers append paths to the URL. A query may hold a key, which would be shown and
            // audited.
            return Err(Invalid::new("must not have a query"));
        }
        Ok(Self(outline.normalised(&text)))
    }
}

/// Returns whether a model key may be sent to an `endpoint_url`. Only a key that was stored after
/// the URL was set may, so that a changed URL does not receive earlier keys. `None` means that the
/// time is unknown, because the URL was set before Karta stored it.
pub fn may_send_key_to(endpoint_set_at: Option<Timestamp>, key_created_at: Timestamp) -> bool {
    endpoint_set_at.is_some_and(|set_at| set_at < key_created_at)
}

/// The parts of a URL that decide its destination.
#[derive(Debug, Clone, Copy)]
pub(super) struct Outline<'a> {
    secure: bool,
    /// The host as written: in any case, and an IPv6 address in brackets.
    pub(super) host: &'a str,
    port: Option<&'a str>,
    pub(super) path_and_query: &'a str,
}

impl<'a> Outline<'a> {
    /// Checks a customer's URL, which all URL parsers must read alike: `https`, a public DNS name,
    /// port 443, no credentials, no fragment. With [`Reach::Loopback`], loopback may also use
    /// `http`, any port and an IP address.
    pub(super) fn checked(text: &'a str, reach: Reach) -> Result<Self, Invalid> {
        // Some parsers treat a backslash as a slash and ignore tabs and line breaks.
        if text.len() > 2_048 || !text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'\\') {
            return Err(Invalid::new(
                "must have at most 2048 printable ASCII characters, without spaces or backslashes. Write an international host name in its xn-- form",
            ));
        }
        let outline = Self::read(text, reach)?;
        if reach == Reach::Loopback && is_loopback(outline.host) {
            return if outline.port.is_none_or(is_port) { Ok(outline) } else { Err(INVALID_PORT) };
        }
        check_public_name(&outline.host.to_ascii_lowercase())?;
        if !outline.secure {
            return Err(Invalid::new("must start with https://, unless it is on loopback"));
        }
        if outline.port.is_none_or(|port| port == "443") {
            Ok(outline)
        } else {
            Err(Invalid::new("must use the default port 443"))
        }
    }

    /// Checks an operator's URL: `https`, any host and port, no credentials, no fragment. With
    /// [`Reach::Loopback`], loopback may also use `http`.
    pub(super) fn operated(text: &'a str, reach: Reach) -> Result<Self, Invalid> {
        if text.len() > 2_048 || !text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'\\') {
            return Err(Invalid::new(
                "must have at most 2048 printable ASCII characters, without spaces or backslashes",
            ));
        }
        let outline = Self::read(text, reach)?;
        let address = outline.host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        let is_in_name = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
        let is_name = !outline.host.is_empty() && outline.host.bytes().all(is_in_name);
        if !address.map_or(is_name, |address| address.parse::<Ipv6Addr>().is_ok()) {
            return Err(Invalid::new("must have a host name or an IP address as its host"));
        }
        if !outline.port.is_none_or(is_port) {
            return Err(INVALID_PORT);
        }
        if outline.secure || is_loopback(outline.host) {
            Ok(outline)
        } else {
            Err(Invalid::new("must start with https://, unless it is on loopback"))
        }
    }

    /// Checks that every `xn--` label of the host is the Punycode (RFC 3492) of an international
    /// name. URL parsers reject other labels, so a client could never call the URL. Their rules (UTS
    /// #46) need large tables; this check accepts every name that they accept, apart from symbols,
    /// and some that they reject.
    pub(super) fn check_international(&self) -> Result<(), Invalid> {
        let is_valid = |label: &str| match label.strip_prefix("xn--").map(punycode::decode) {
            Some(Some(name)) => !name.iter().all(char::is_ascii) && name.into_iter().all(is_in_name),
            Some(None) => false,
            None => true,
        };
        if self.host.to_ascii_lowercase().split('.').all(is_valid) {
            Ok(())
        } else {
            Err(Invalid::new(
                "must have a valid host name: a label that starts with xn-- must be the Punycode of an international name in lower case",
            ))
        }
    }

    /// See [`check_path`].
    pub(super) fn check_path(&self) -> Result<(), Invalid> {
        check_path(self.path())
    }

    fn path(&self) -> &'a str {
        self.path_and_query.split('?').next().unwrap_or_default()
    }

    /// Puts scheme and host into lower case (RFC 3986 §6.2.2.1).
    pub(super) fn normalised(&self, text: &str) -> String {
        let (start, path_and_query) = text.split_at(text.len() - self.path_and_query.len());
        start.to_ascii_lowercase() + path_and_query
    }

    fn read(text: &'a str, reach: Reach) -> Result<Self, Invalid> {
        let (secure, rest) = match split_scheme(text) {
            Some((secure, rest)) if secure || reach == Reach::Loopback => (secure, rest),
            _ => return Err(Invalid::new("must start with https://")),
        };
        if rest.contains('#') {
            return Err(Invalid::new("must not have a fragment (the part from #)"));
        }
        let (authority, path_and_query) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
        if authority.contains('@') {
            return Err(Invalid::new("must not contain a user name or password"));
        }
        // An IPv6 address contains colons.
        let address_end = authority.rfind(']').map_or(0, |at| at + 1);
        let port_at = authority[address_end..].find(':').map(|at| address_end + at);
        let (host, port) = authority.split_at(port_at.unwrap_or(authority.len()));
        Ok(Self { secure, host, port: port.strip_prefix(':'), path_and_query })
    }
}

fn is_port(port: &str) -> bool {
    !port.starts_with(['0', '+']) && port.parse::<u16>().is_ok()
}

/// Checks that all clients read a path alike. Some remove dot segments, also percent-encoded ones,
/// and some replace an invalid escape.
pub(super) fn check_path(path: &str) -> Result<(), Invalid> {
    let is_escape = |rest: &str| {
        let pair = rest.as_bytes().get(..2);
        pair.is_some_and(|pair| pair.iter().all(u8::is_ascii_hexdigit))
    };
    if !path.split('%').skip(1).all(is_escape) {
        return Err(Invalid::new("must have two hexadecimal digits after each % in its path: write %25 for a %"));
    }
    let is_dots = |segment: &str| matches!(&*segment.to_ascii_lowercase().replace("%2e", "."), "." | "..");
    if path.split('/').any(is_dots) {
        return Err(Invalid::new("must not have a . or .. segment in its path: write the path that it leads to"));
    }
    Ok(())
}

/// Splits off `https://` (true) or `http://`, in any case (RFC 3986 §3.1).
pub(super) fn split_scheme(text: &str) -> Option<(bool, &str)> {
    let (scheme, rest) = text.split_once("://")?;
    let is = |name: &str| scheme.eq_ignore_ascii_case(name);
    (is("https") || is("http")).then(|| (is("https"), rest))
}

/// Accepts an address in its usual notation, and `localhost`.
pub(super) fn is_loopback(host: &str) -> bool {
    let address = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let address = address.map_or_else(|| host.parse().ok(), |host| host.parse::<Ipv6Addr>().ok().map(IpAddr::V6));
    host.eq_ignore_ascii_case("localhost") || address.is_some_and(|address: IpAddr| address.is_loopback())
}

/// Checks that a lower-case name has at least two labels and ends in a public top-level name, which
/// never starts with a digit. Every notation of an IPv4 address ends in a label that does.
fn check_public_name(host: &str) -> Result<(), Invalid> {
    let top = host.rsplit('.').next().unwrap_or_default();
    if host.starts_with('[') || top.starts_with(|first: char| first.is_ascii_digit()) {
        return Err(Invalid::new("must have a DNS name as its host, not an IP address in any notation"));
    }
    if host.ends_with('.') {
        return Err(Invalid::new("must have a host name without a trailing dot"));
    }
    let is_label = |label: &str| {
        let inside = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        (1..=63).contains(&label.len()) && label.bytes().all(inside) && !label.starts_with('-') && !label.ends_with('-')
    };
    if host.len() > 253 || !host.split('.').all(is_label) {
        return Err(Invalid::new(
            "must have a DNS name as its host: at most 253 characters, labels of 1 to 63 letters, digits and inner hyphens between single dots",
        ));
    }
    if top.len() == host.len() {
        return Err(Invalid::new(
            "must have a public DNS name as its host, with a dot in it, not a name of a private network",
        ));
    }
    if PRIVATE.contains(&top) {
        return Err(Invalid::new(
            "must have a public DNS name as its host, not one that is reserved for private or special use",
        ));
    }
    Ok(())
}

/// Returns false for a character that no valid name holds: a symbol of Latin scripts other than the
/// middle dot (RFC 5892), a letter that case folding replaces, a full-width or mathematical form of
/// another letter, a blank, and private use.
fn is_in_name(c: char) -> bool {
    let is_symbol = c != '·' && (c < '\u{C0}' || (c < '\u{300}' && !c.is_alphabetic()));
    let is_folded = match c {
        // Case folding replaces the small letters of Cherokee, because its capitals are older.
        '\u{13A0}'..='\u{13F5}' => false,
        '\u{13F8}'..='\u{13FD}' | '\u{AB70}'..='\u{ABBF}' => true,
        _ => c.to_lowercase().next() != Some(c),
    };
    let is_variant = matches!(c, '\u{FF00}'..='\u{FFEF}' | '\u{1D400}'..='\u{1D7FF}');
    let is_private = matches!(c, '\u{E000}'..='\u{F8FF}' | '\u{E0000}'..='\u{10FFFF}');
    c.is_ascii() || !(is_symbol || is_folded || is_variant || c.is_whitespace() || is_private)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_later_keys_go_to_an_endpoint() {
        let at = |minute: u8| format!("2026-11-22T12:{minute:02}:00Z").parse().unwrap();
        let is_sent = |set: Option<u8>, created: u8| may_send_key_to(set.map(at), at(created));
        assert_eq!(
            [is_sent(Some(1), 2), is_sent(Some(2), 2), is_sent(Some(3), 2), is_sent(None, 2)],
            [true, false, false, false]
        );
    }

    #[test]
    fn xn_labels_are_international_names() {
        let checked =
            |host: &str| EndpointUrl::try_from(format!("https://{host}/hook")).expect(host).check_input(Reach::Public);
        for host in [
            "example.com",
            "ab--cd.example.com",
            "xn.example.com",
            "xn-a.example.com",
            // bücher, пример.рф, पुस्तक, faß, a·b, i❤, Cherokee in capitals, Cyrillic а in аpple
            "xn--bcher-kva.example.com",
            "XN--BCHER-KVA.example.com",
            "a.xn--e1afmkfd.xn--p1ai",
            "xn--11b3ar0d1b5d.example.com",
            "xn--fa-hia.example.com",
            "xn--ab-0ea.example.com",
            "xn--i-7iq.example.com",
            "xn--58dc.example.com",
            "xn--pple-43d.example.com",
        ] {
            assert_eq!(checked(host), Ok(()), "{host}");
        }
        for host in [
            "xn--a.com",
            "XN--A.com",
            "xn--a.example.com",
            "hooks.xn--a",
            "xn--test.com",
            "xn--99999999.com",
            "xn---foo.com",
            "xn--bcher-kva1.com",
            // ©, bÜcher, a blank, private use, x×y, Cherokee in small letters, full-width api, bold a
            "xn--gba.com",
            "xn--bcher-2pa.com",
            "xn--a-3ba.com",
            "xn--0y0c.com",
            "xn--xy-rha.com",
            "xn--kz9a8a.com",
            "xn--oce.com",
            "xn--mi7cqau.com",
            "xn--gz1h.com",
        ] {
            assert!(checked(host).unwrap_err().to_string().contains("Punycode"), "{host}");
        }
    }

    #[test]
    fn scheme_and_host_are_stored_lower_case() {
        for (text, kept) in [
            ("https://api.example.com", "https://api.example.com"),
            ("https://api.example.com/v1/messages", "https://api.example.com/v1/messages"),
            ("https://API.Example.COM:443/", "https://api.example.com:443/"),
            ("HTTPS://EXAMPLE.NET/k", "https://example.net/k"),
            ("hTTps://Api.Example.com", "https://api.example.com"),
            ("https://Api.Example.com/Path/A%2Fb", "https://api.example.com/Path/A%2Fb"),
            ("https://xn--bcher-kva.example.com/", "https://xn--bcher-kva.example.com/"),
            ("https://api.example.com/a@b:c", "https://api.example.com/a@b:c"),
        ] {
            assert_eq!(EndpointUrl::try_from(text.to_owned()).unwrap().as_str(), kept);
        }
    }

    #[test]
    fn path_has_one_reading() {
        let checked = |path: &str| {
            EndpointUrl::try_from(format!("https://api.example.com{path}")).unwrap().check_input(Reach::Public)
        };
        for path in ["", "/", "/v1/", "//", "/a..b/.c/...", "/a%2Fb%25", "/%2e%2e%2e", "/v1.%2E/"] {
            assert_eq!(checked(path), Ok(()), "{path}");
        }
        for path in ["/.", "/..", "/a/../b", "/a/./b", "/%2e%2E/b", "/a/.%2e", "/%2e"] {
            assert!(checked(path).unwrap_err().to_string().contains(". or .. segment"), "{path}");
        }
        for path in ["/%zz", "/a%", "/a%2", "/%2/", "/100%/x", "/%%25"] {
            assert!(checked(path).unwrap_err().to_string().contains("after each % in its path"), "{path}");
        }
        let stored: EndpointUrl = serde_json::from_value("https://api.example.com/a/../%zz".into()).unwrap();
        assert_eq!(stored.as_str(), "https://api.example.com/a/../%zz");
    }

    #[test]
    fn query_is_rejected() {
        for text in ["https://api.example.com?x=1", "https://api.example.com/v1?", "https://api.example.com/?a=b/c"] {
            assert_eq!(EndpointUrl::try_from(text.to_owned()), Err(Invalid::new("must not have a query")));
        }
    }

    const ADDRESS: &str = "not an IP address in any notation";
    const NO_NAME: &str = "labels of 1 to 63 letters, digits and inner hyphens";
    const SINGLE: &str = "with a dot in it";
    const SPECIAL: &str = "reserved for private or special use";
    const SCHEME: &str = "must start with https://";
    const ASCII: &str = "printable ASCII characters, without spaces or backslashes";
    const DOT: &str = "without a trailing dot";
    const USER: &str = "must not contain a user name or password";
    const PORT: &str = "must use the default port 443";
    const FRAGMENT: &str = "must not have a fragment";

    const HOSTILE: &[(&str, &str)] = &[
        // Schemes.
        ("", SCHEME),
        ("api.example.com/v1", SCHEME),
        ("//api.example.com/v1", SCHEME),
        ("http://api.example.com", SCHEME),
        ("HTTP://api.example.com", SCHEME),
        ("HTTPS:api.example.com", SCHEME),
        ("https:api.example.com", SCHEME),
        ("https:/api.example.com", SCHEME),
        ("ftp://api.example.com", SCHEME),
        ("file:///etc/passwd", SCHEME),
        ("gopher://api.example.com/_POST", SCHEME),
        ("javascript:alert(1)", SCHEME),
        ("data:text/plain,hello", SCHEME),
        ("ws://api.example.com", SCHEME),
        ("wss://api.example.com", SCHEME),
        ("dict://api.example.com:11211/", SCHEME),
        ("unix:///var/run/docker.sock", SCHEME),
        // Addresses, in every notation that some parser accepts.
        ("https://127.0.0.1", ADDRESS),
        ("https://127.1", ADDRESS),
        ("https://127.0.1/", ADDRESS),
        ("https://2130706433/", ADDRESS),
        ("https://017700000001/", ADDRESS),
        ("https://0177.0.0.1/", ADDRESS),
        ("https://0x7f.0.0.1", ADDRESS),
        ("https://0x7f000001/", ADDRESS),
        ("https://0/", ADDRESS),
        ("https://8.8.8.8/", ADDRESS),
        ("https://10.0.0.1/", ADDRESS),
        ("https://169.254.169.254/latest/meta-data/", ADDRESS),
        ("https://example.0x7f", ADDRESS),
        ("https://example.7", ADDRESS),
        ("https://[::1]/", ADDRESS),
        ("https://[::ffff:169.254.169.254]/", ADDRESS),
        ("https://[fd00:ec2::254]/", ADDRESS),
        ("https://[2606:4700:4700::1111]/", ADDRESS),
        ("https://[fe80::1%25eth0]/", ADDRESS),
        ("https://[::1]:443@api.example.com/", USER),
        ("https://::1/", NO_NAME),
        // Credentials, and text that some parsers take for a host.
        ("https://user@api.example.com", USER),
        ("https://user:secret@api.example.com", USER),
        ("https://:@api.example.com", USER),
        ("https://api.example.com@127.0.0.1/", USER),
        ("https://api.example.com:443@127.0.0.1/", USER),
        ("https://api.example.com%40127.0.0.1/", ADDRESS),
        ("https://api.example.com#@127.0.0.1", FRAGMENT),
        ("https://api.example.com/v1#", FRAGMENT),
        // Characters that some parsers drop, turn into a slash, or treat as a line end.
        ("https://api.example.com\\@127.0.0.1", ASCII),
        ("https:\\\\127.0.0.1\\", ASCII),
        ("https://api.exa\tmple.com/", ASCII),
        ("https://api.example.com/\r\nHost: 127.0.0.1", ASCII),
        ("https://api.example.com/a b", ASCII),
        (" https://api.example.com/", ASCII),
        ("https://api.example.com/\n", ASCII),
        ("https://api.example.com\0.internal/", ASCII),
        // Names whose written form differs from the name that is resolved.
        ("https://%61pi.example.com", NO_NAME),
        ("https://127%2e0%2e0%2e1/", ADDRESS),
        ("https://api%00.example.com/", NO_NAME),
        ("https://bücher.example.com", ASCII),
        ("https://127。0。0。1/", ASCII),
        ("https://169．254．169．254/", ASCII),
        ("https://ⓛocalhost/", ASCII),
        ("https://loca\u{ad}lhost/", ASCII),
        ("https://api.example.com\u{202e}/", ASCII),
        ("https://api_1.example.com", NO_NAME),
        ("https://*.example.com", NO_NAME),
        // Dots and lengths.
        ("https://", NO_NAME),
        ("https:///v1", NO_NAME),
        ("https://?x=1", NO_NAME),
        ("https://api.example.com./", DOT),
        ("https://localhost./", DOT),
        ("https://./", DOT),
        ("https://127.0.0.1./", DOT),
        ("https://.example.com/", NO_NAME),
        ("https://api..example.com", NO_NAME),
        ("https://-api.example.com", NO_NAME),
        ("https://api-.example.com", NO_NAME),
        // Names of this machine, of private networks and for special use.
        ("https://localhost", SINGLE),
        ("https://LOCALHOST/", SINGLE),
        ("https://ip6-localhost/", SINGLE),
        ("https://intranet", SINGLE),
        ("https://metadata/computeMetadata/v1/", SINGLE),
        ("https://instance-data/latest/", SINGLE),
        ("https://com/", SINGLE),
        ("https://api.localhost/", SPECIAL),
        ("https://localhost.localdomain/", SPECIAL),
        ("https://printer.local", SPECIAL),
        ("https://PRINTER.LOCAL", SPECIAL),
        ("https://receiver.test", SPECIAL),
        ("https://receiver.invalid", SPECIAL),
        ("https://receiver.example", SPECIAL),
        ("https://abcdefghijklmnop.onion/", SPECIAL),
        ("https://receiver.alt", SPECIAL),
        ("https://router.home.arpa", SPECIAL),
        ("https://1.0.0.127.in-addr.arpa", SPECIAL),
        ("https://metadata.google.internal/computeMetadata/v1/", SPECIAL),
        ("https://ip-10-0-0-1.ec2.internal/", SPECIAL),
        ("https://api.default.svc", SPECIAL),
        ("https://kubernetes.default.svc.cluster.local", SPECIAL),
        ("https://vault.service.consul/v1", SPECIAL),
        ("https://gateway.docker", SPECIAL),
        ("https://mail.corp", SPECIAL),
        ("https://nas.lan", SPECIAL),
        ("https://nas.home", SPECIAL),
        // Ports.
        ("https://api.example.com:8443", PORT),
        ("https://api.example.com:80", PORT),
        ("https://api.example.com:22", PORT),
        ("https://api.example.com:0", PORT),
        ("https://api.example.com:", PORT),
        ("https://api.example.com:0443", PORT),
        ("https://api.example.com:+443", PORT),
        ("https://api.example.com:443:443", PORT),
        ("https://api.example.com:99999", PORT),
    ];

    #[test]
    fn loopback_is_input_of_a_local_run_only() {
        for text in ["http://127.0.0.1:8080/v1", "http://localhost", "https://[::1]:1"] {
            let url = EndpointUrl::try_from(text.to_owned()).unwrap();
            assert!(url.check_input(Reach::Loopback).is_ok() && url.check_input(Reach::Public).is_err(), "{text}");
        }
        let foreign = EndpointUrl::try_from("http://10.0.0.1".to_owned());
        assert!(foreign.is_err());
    }

    #[test]
    fn hostile_urls_are_rejected_with_their_reason() {
        let long = [
            (format!("https://{}.example.com/", "a".repeat(64)), NO_NAME),
            (format!("https://{}example.com/", "a.".repeat(122)), NO_NAME),
            (format!("https://api.example.com/{}", "a".repeat(2_048)), ASCII),
        ];
        let long = long.iter().map(|(text, reason)| (text.as_str(), *reason));
        for (text, reason) in HOSTILE.iter().copied().chain(long) {
            let checked = EndpointUrl::try_from(text.to_owned()).and_then(|url| url.check_input(Reach::Public));
            let refusal = checked.expect_err(text).to_string();
            assert!(refusal.contains(reason), "{text}: {refusal}");
        }
    }
}

use std::{
    net::{IpAddr, Ipv6Addr},
    str::FromStr,
};

use super::{Cidr, Invalid};

const LOOPBACK_HOSTS: [&str; 3] = ["localhost", "127.0.0.1", "[::1]"];

/// The client addresses and host names that may use the internal routes. All others are rejected.
#[derive(Debug, Clone, Default)]
pub struct InternalGuard {
    /// `None` if the list is not set.
    pub addresses: Option<AddressList>,
    /// `None` if the list is not set.
    pub hosts: Option<HostList>,
}

impl InternalGuard {
    /// Allows loopback where a list is not set, for a process that other machines cannot reach.
    #[must_use]
    pub fn or_loopback(self) -> Self {
        let loopback =
            ["127.0.0.0/8", "::1"].map(|range| Cidr::try_from(range.to_owned()).expect("loopback ranges are valid"));
        let hosts = LOOPBACK_HOSTS.map(ToOwned::to_owned);
        Self {
            addresses: self.addresses.or_else(|| Some(AddressList(loopback.to_vec()))),
            hosts: self.hosts.or_else(|| Some(HostList(hosts.to_vec()))),
        }
    }

    /// Expects a canonical `address`: an IPv4-mapped IPv6 address is given as IPv4.
    pub fn permits(&self, address: Option<IpAddr>, host: Option<&str>) -> bool {
        let listed = |list: &AddressList| address.is_some_and(|at| list.0.iter().any(|range| range.contains(at)));
        let host = host.and_then(canonical_host);
        self.addresses.as_ref().is_some_and(listed)
            && self.hosts.as_ref().zip(host).is_some_and(|(list, host)| list.0.contains(&host))
    }
}

/// Client addresses and ranges: `203.0.113.7, 2001:db8::/32`.
#[derive(Debug, Clone)]
pub struct AddressList(Vec<Cidr>);

/// Host names: `control.example.com, [2001:db8::1]`. Case, port and a trailing dot do not matter.
#[derive(Debug, Clone)]
pub struct HostList(Vec<String>);

/// Maximum length of a part without dots and colons that an error shows. A service token is longer,
/// and one might be in the list by mistake.
const MAX_SHOWN: usize = 31;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("entry {position}{} {problem}", shown.as_ref().map(|entry| format!(" ({entry:?})")).unwrap_or_default())]
pub struct EntryError {
    position: usize,
    /// The entry, unless it may be a token.
    shown: Option<String>,
    problem: Invalid,
}

impl FromStr for AddressList {
    type Err = EntryError;

    fn from_str(text: &str) -> Result<Self, EntryError> {
        entries(text, |entry| Cidr::try_from(entry.to_owned())).map(Self)
    }
}

impl FromStr for HostList {
    type Err = EntryError;

    fn from_str(text: &str) -> Result<Self, EntryError> {
        let problem = Invalid::new("must be a host name such as control.example.com or an address such as [::1]");
        entries(text, |entry| canonical_host(entry).ok_or_else(|| problem.clone())).map(Self)
    }
}

/// Parses the entries between commas. Fails with the first invalid one.
fn entries<T>(text: &str, read: impl Fn(&str) -> Result<T, Invalid>) -> Result<Vec<T>, EntryError> {
    let bad = |at: usize, entry: &str, problem| {
        let may_be_token = entry.split(['.', ':']).any(|run| run.chars().count() > MAX_SHOWN);
        let shown = (!may_be_token).then(|| entry.chars().take(100).collect());
        EntryError { position: at + 1, shown, problem }
    };
    let entries = text.split(',').map(str::trim).enumerate();
    entries.map(|(at, entry)| read(entry).map_err(|problem| bad(at, entry, problem))).collect()
}

/// Returns a host in lower case, without port and trailing dot; `None` if it is invalid.
pub fn canonical_host(text: &str) -> Option<String> {
    if let Some(rest) = text.strip_prefix('[') {
        let (address, port) = rest.split_once(']')?;
        let address: Ipv6Addr = address.parse().ok()?;
        return (port.is_empty() || is_port(port.strip_prefix(':')?)).then(|| format!("[{address}]"));
    }
    let (host, port) = text.split_once(':').map_or((text, None), |(host, port)| (host, Some(port)));
    let host = host.strip_suffix('.').unwrap_or(host);
    let in_a_label = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    let is_label = |label: &str| (1..=63).contains(&label.len()) && label.bytes().all(in_a_label);
    let is_host = host.len() <= 253 && host.split('.').all(is_label) && port.is_none_or(is_port);
    is_host.then(|| host.to_ascii_lowercase())
}

fn is_port(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_digit()) && text.parse::<u16>().is_ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::domain::client_address;

    fn guard(addresses: &str, hosts: &str) -> InternalGuard {
        InternalGuard { addresses: Some(addresses.parse().unwrap()), hosts: Some(hosts.parse().unwrap()) }
    }

    #[test]
    fn address_and_host_must_both_be_listed() {
        let guard = guard("10.0.0.0/8, 2001:db8::7", "Control.example.com");
        let permits = |address, host| guard.permits(client_address(address), host);
        let host = Some("control.example.com");
        for address in ["10.1.2.3", "::ffff:10.1.2.3", "2001:db8::7", "2001:DB8:0::7"] {
            assert!(permits(address, host), "{address}");
        }
        for address in ["11.0.0.1", "2001:db8::8", "::10.1.2.3", "", "10.1.2.3, 11.0.0.1", "localhost"] {
            assert!(!permits(address, host), "{address}");
        }
        for host in
            ["CONTROL.EXAMPLE.COM", "control.example.com.", "control.example.com:443", "control.example.com.:443"]
        {
            assert!(permits("10.1.2.3", Some(host)), "{host}");
        }
        for host in [
            "",
            "example.com",
            "a.control.example.com",
            "control.example.com:",
            "control.example.com:443:443",
            "control.example.com..",
            "control.example.com@evil.example",
            " control.example.com",
        ] {
            assert!(!permits("10.1.2.3", Some(host)), "{host}");
        }
        assert!(!permits("10.1.2.3", None));
        assert!(!guard.permits(None, host));
    }

    #[test]
    fn unset_list_rejects_all_unless_loopback_is_default() {
        let here = client_address("127.0.0.1");
        assert!(!InternalGuard::default().permits(here, Some("localhost")));
        let loopback = InternalGuard::default().or_loopback();
        for (address, host) in [("127.0.0.1", "localhost:8787"), ("::1", "[::1]:8787"), ("127.0.0.9", "127.0.0.1")] {
            assert!(loopback.permits(client_address(address), Some(host)), "{host}");
        }
        assert!(!loopback.permits(client_address("192.0.2.1"), Some("localhost")));
        assert!(!loopback.permits(here, Some("rebound.example")));
        let set = InternalGuard { addresses: Some("10.0.0.0/8".parse().unwrap()), hosts: None }.or_loopback();
        assert!(!set.permits(here, Some("localhost")), "a list that is set is kept");
    }

    #[test]
    fn invalid_entry_is_named() {
        for (text, position, entry) in [
            ("10.0.0.0/8,10.0.0.1/8", 2, "10.0.0.1/8"),
            ("10.0.0.0/8,", 2, ""),
            ("everywhere", 1, "everywhere"),
            ("10.0.0.0/33", 1, "10.0.0.0/33"),
            ("10.0.0.0/8 192.0.2.1", 1, "10.0.0.0/8 192.0.2.1"),
        ] {
            let error = text.parse::<AddressList>().unwrap_err();
            assert_eq!((error.position, error.shown.as_deref()), (position, Some(entry)));
        }
        for entry in
            ["", "*", "https://a.example", "a.example/v1", "a b", "::1", "[::1", "a.example:x", "a..b", ".a", "é"]
        {
            let error = format!("ok.example, {entry}").parse::<HostList>().unwrap_err();
            assert_eq!((error.position, error.shown.as_deref()), (2, Some(entry)));
        }
        let error = "a.example,*.b".parse::<HostList>().unwrap_err().to_string();
        assert!(error.starts_with(r#"entry 2 ("*.b") must be a host name"#), "{error}");
    }

    #[test]
    fn possible_token_is_named_by_position_only() {
        let token = "zq9x".repeat(8);
        for entry in
            [token.clone(), format!("Bearer {token}"), format!("user:{token}@a.example"), format!("eyJ.{token}.a")]
        {
            let addresses = format!("10.0.0.0/8, {entry}").parse::<AddressList>().unwrap_err().to_string();
            assert!(addresses.starts_with("entry 2 must be an IPv4 or IPv6 range"), "{addresses}");
            let hosts = format!("a.example, {entry}/").parse::<HostList>().unwrap_err().to_string();
            assert!(hosts.starts_with("entry 2 must be a host name"), "{hosts}");
        }
        assert!("zq9x".repeat(8)[1..].parse::<AddressList>().unwrap_err().to_string().contains("zq9x"));
    }

    proptest! {
        #[test]
        fn canonical_host_is_unchanged(text in "[a-zA-Z0-9.:\\[\\]-]{0,20}") {
            if let Some(host) = canonical_host(&text) {
                prop_assert_eq!(canonical_host(&host), Some(host.clone()));
                prop_assert_eq!(host.to_ascii_lowercase(), host);
            }
        }
    }
}

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::Invalid;

/// A range of client addresses, IPv4 or IPv6. A single address is parsed as a range of one. Prints
/// the canonical form.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub struct Cidr(IpNet);

impl TryFrom<String> for Cidr {
    type Error = Invalid;

    fn try_from(text: String) -> Result<Self, Invalid> {
        let range =
            read(&text).ok_or(Invalid::new("must be an IPv4 or IPv6 range such as 203.0.113.0/24 or 2001:db8::/32"))?;
        if range.trunc() != range {
            return Err(Invalid::new(
                "must start at its network address: the bits after the prefix length must be zero",
            ));
        }
        if matches!(range.addr(), IpAddr::V6(addr) if addr.to_ipv4_mapped().is_some()) {
            return Err(Invalid::new("must be written as IPv4, not as an IPv4-mapped IPv6 range"));
        }
        Ok(Self(range))
    }
}

/// Rejects leading zeros, which `ipnet` accepts and other parsers read as octal.
fn read(text: &str) -> Option<IpNet> {
    let Some((address, length)) = text.split_once('/') else {
        return text.parse().ok().map(|address: IpAddr| address.into());
    };
    let plain = length.bytes().all(|byte| byte.is_ascii_digit()) && (length == "0" || !length.starts_with('0'));
    IpNet::new(address.parse().ok()?, length.parse().ok().filter(|_| plain)?).ok()
}

impl Cidr {
    pub fn contains(&self, address: IpAddr) -> bool {
        self.0.contains(&address)
    }
}

/// The client addresses that may use a key. An empty list allows all.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<Cidr>")]
pub struct AllowedCidrs(Vec<Cidr>);

impl AllowedCidrs {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Permits an unknown address only if the list is empty.
    pub fn permit(&self, address: Option<IpAddr>) -> bool {
        self.0.is_empty() || address.is_some_and(|address| self.0.iter().any(|range| range.contains(address)))
    }

    /// Parses the output of [`to_words`](Self::to_words). Returns `None` for any other text.
    pub fn from_words(text: &str) -> Option<Self> {
        let ranges = text.split(' ').filter(|_| !text.is_empty());
        let ranges: Result<Vec<_>, _> = ranges.map(|word| Cidr::try_from(word.to_owned())).collect();
        Self::try_from(ranges.ok()?).ok()
    }

    /// Separates the ranges by spaces.
    pub fn to_words(&self) -> String {
        let ranges: Vec<_> = self.0.iter().map(|range| range.0.to_string()).collect();
        ranges.join(" ")
    }
}

impl TryFrom<Vec<Cidr>> for AllowedCidrs {
    type Error = Invalid;

    fn try_from(ranges: Vec<Cidr>) -> Result<Self, Invalid> {
        if ranges.len() > 20 {
            return Err(Invalid::new("must have at most 20 ranges"));
        }
        // In the caller's order: a set of at most 20 ranges needs no index.
        let mut distinct = Vec::with_capacity(ranges.len());
        for range in ranges {
            if !distinct.contains(&range) {
                distinct.push(range);
            }
        }
        Ok(Self(distinct))
    }
}

/// Turns an IPv4-mapped IPv6 address into its IPv4 address.
pub fn client_address(text: &str) -> Option<IpAddr> {
    text.parse::<IpAddr>().ok().map(|address| address.to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowed(ranges: &[&str]) -> AllowedCidrs {
        let ranges: Vec<_> = ranges.iter().map(|text| Cidr::try_from((*text).to_owned()).unwrap()).collect();
        AllowedCidrs::try_from(ranges).unwrap()
    }

    #[test]
    fn client_in_range_passes_in_any_notation() {
        let cidrs = allowed(&["203.0.113.0/24", "2001:db8::/32", "192.0.2.7"]);
        for address in ["203.0.113.9", "::ffff:203.0.113.9", "2001:db8:1::1", "192.0.2.7"] {
            assert!(cidrs.permit(client_address(address)), "{address}");
        }
        for address in ["203.0.114.1", "2001:db9::1", "192.0.2.8", "", "not an address"] {
            assert!(!cidrs.permit(client_address(address)), "{address}");
        }
        assert!(AllowedCidrs::default().permit(None));
        assert_eq!(AllowedCidrs::from_words(&cidrs.to_words()), Some(cidrs));
    }

    #[test]
    fn repeated_ranges_are_kept_once() {
        let cidrs =
            allowed(&["10.0.0.0/8", "192.0.2.7", "10.0.0.0/8", "192.0.2.7/32", "2001:db8::/32", "2001:DB8:0::/32"]);
        assert_eq!(cidrs.to_words(), "10.0.0.0/8 192.0.2.7/32 2001:db8::/32");
    }

    #[test]
    fn invalid_ranges_are_rejected() {
        for text in [
            "",
            "10.0.0.1/8",
            "10.0.0.0/33",
            "10.0.0/8",
            "fe80::1%eth0",
            "::ffff:10.0.0.0/104",
            "any",
            "010.0.0.0/8",
            "192.168.010.0/24",
            "::127.0.0.01/128",
            "10.0.0.0/08",
            "10.0.0.0/+8",
            "10.0.0.0/",
        ] {
            assert!(Cidr::try_from(text.to_owned()).is_err(), "{text}");
        }
        assert!(AllowedCidrs::try_from(vec![Cidr::try_from("10.0.0.0/8".to_owned()).unwrap(); 21]).is_err());
    }
}

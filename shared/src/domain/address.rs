use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

/// The networks that a request to a customer's URL may reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    Public,
    /// Also loopback, for a local run that allows it.
    Loopback,
}

const fn v4(octets: [u8; 4], prefix_len: u8) -> IpNet {
    IpNet::new_assert(IpAddr::V4(Ipv4Addr::from_octets(octets)), prefix_len)
}

const fn v6(segments: [u16; 8], prefix_len: u8) -> IpNet {
    IpNet::new_assert(IpAddr::V6(Ipv6Addr::from_segments(segments)), prefix_len)
}

const GLOBAL_UNICAST_V6: IpNet = v6([0x2000, 0, 0, 0, 0, 0, 0, 0], 3);

/// Blocks that are not on the public internet: every row of IANA's IPv4 Special-Purpose Address
/// Registry (RFC 6890, as of 2025-10), globally reachable or not, and blocks that other registries
/// and a cloud reserve. A block comes after the blocks inside it, so the first match is the most
/// specific.
const SPECIAL: [(IpNet, &str); 57] = [
    (v4([0, 0, 0, 0], 32), "\"this host\" (RFC 1122)"),
    (v4([0, 0, 0, 0], 8), "\"this network\" (RFC 791)"),
    (v4([10, 0, 0, 0], 8), "private use (RFC 1918)"),
    (v4([100, 64, 0, 0], 10), "a provider's shared address space (RFC 6598)"),
    (v4([127, 0, 0, 0], 8), "loopback (RFC 1122)"),
    (v4([169, 254, 0, 0], 16), "link-local (RFC 3927)"),
    (v4([172, 16, 0, 0], 12), "private use (RFC 1918)"),
    (v4([192, 0, 0, 0], 29), "IPv4 service continuity (RFC 7335)"),
    (v4([192, 0, 0, 8], 32), "the IPv4 dummy address (RFC 7600)"),
    (v4([192, 0, 0, 9], 32), "Port Control Protocol anycast (RFC 7723)"),
    (v4([192, 0, 0, 10], 32), "TURN anycast (RFC 8155)"),
    (v4([192, 0, 0, 170], 31), "NAT64 and DNS64 discovery (RFC 8880)"),
    (v4([192, 0, 0, 0], 24), "IETF protocol assignments (RFC 6890)"),
    (v4([192, 0, 2, 0], 24), "documentation (RFC 5737)"),
    (v4([192, 31, 196, 0], 24), "AS112 (RFC 7535)"),
    (v4([192, 52, 193, 0], 24), "multicast tunneling (RFC 7450)"),
    (v4([192, 88, 99, 2], 32), "6a44 relay anycast (RFC 6751)"),
    (v4([192, 88, 99, 0], 24), "6to4 relay anycast (RFC 7526)"),
    (v4([192, 168, 0, 0], 16), "private use (RFC 1918)"),
    (v4([192, 175, 48, 0], 24), "AS112 (RFC 7534)"),
    (v4([198, 18, 0, 0], 15), "benchmarking (RFC 2544)"),
    (v4([198, 51, 100, 0], 24), "documentation (RFC 5737)"),
    (v4([203, 0, 113, 0], 24), "documentation (RFC 5737)"),
    (v4([255, 255, 255, 255], 32), "limited broadcast (RFC 919)"),
    (v4([240, 0, 0, 0], 4), "reserved (RFC 1112)"),
    // IPv4 Multicast Address Space Registry
    (v4([233, 252, 0, 0], 24), "multicast for documentation (RFC 6676)"),
    (v4([224, 0, 0, 0], 4), "multicast (RFC 5771)"),
    // This address is in no registry. It looks public, but inside Azure it is what 169.254.169.254
    // is elsewhere.
    (v4([168, 63, 129, 16], 32), "a cloud's internal service (Azure's WireServer)"),
    // IANA's IPv6 Special-Purpose Address Registry, and blocks that RFC 4291 and its successors
    // reserve.
    (v6([0, 0, 0, 0, 0, 0, 0, 1], 128), "loopback (RFC 4291)"),
    (v6([0, 0, 0, 0, 0, 0, 0, 0], 128), "the unspecified address (RFC 4291)"),
    (v6([0, 0, 0, 0, 0, 0xffff, 0, 0], 96), "an IPv4-mapped address (RFC 4291)"),
    (v6([0, 0, 0, 0, 0, 0, 0, 0], 96), "an IPv4-compatible address (RFC 4291)"),
    (v6([0x64, 0xff9b, 0, 0, 0, 0, 0, 0], 96), "NAT64 (RFC 6052)"),
    (v6([0x64, 0xff9b, 1, 0, 0, 0, 0, 0], 48), "local-use NAT64 (RFC 8215)"),
    (v6([0x100, 0, 0, 0, 0, 0, 0, 0], 64), "discard-only (RFC 6666)"),
    (v6([0x100, 0, 0, 1, 0, 0, 0, 0], 64), "the IPv6 dummy prefix (RFC 9780)"),
    (v6([0x2001, 0, 0, 0, 0, 0, 0, 0], 32), "Teredo (RFC 4380)"),
    (v6([0x2001, 1, 0, 0, 0, 0, 0, 1], 128), "Port Control Protocol anycast (RFC 7723)"),
    (v6([0x2001, 1, 0, 0, 0, 0, 0, 2], 128), "TURN anycast (RFC 8155)"),
    (v6([0x2001, 1, 0, 0, 0, 0, 0, 3], 128), "DNS-SD registration anycast (RFC 9665)"),
    (v6([0x2001, 2, 0, 0, 0, 0, 0, 0], 48), "benchmarking (RFC 5180)"),
    (v6([0x2001, 3, 0, 0, 0, 0, 0, 0], 32), "multicast tunneling (RFC 7450)"),
    (v6([0x2001, 4, 0x112, 0, 0, 0, 0, 0], 48), "AS112 (RFC 7535)"),
    (v6([0x2001, 0x10, 0, 0, 0, 0, 0, 0], 28), "ORCHID (RFC 4843)"),
    (v6([0x2001, 0x20, 0, 0, 0, 0, 0, 0], 28), "ORCHIDv2 (RFC 7343)"),
    (v6([0x2001, 0x30, 0, 0, 0, 0, 0, 0], 28), "drone remote identification (RFC 9374)"),
    (v6([0x2001, 0, 0, 0, 0, 0, 0, 0], 23), "IETF protocol assignments (RFC 2928)"),
    (v6([0x2001, 0xdb8, 0, 0, 0, 0, 0, 0], 32), "documentation (RFC 3849)"),
    (v6([0x2002, 0, 0, 0, 0, 0, 0, 0], 16), "6to4 (RFC 3056)"),
    (v6([0x2620, 0x4f, 0x8000, 0, 0, 0, 0, 0], 48), "AS112 (RFC 7534)"),
    (v6([0x3ffe, 0, 0, 0, 0, 0, 0, 0], 16), "the former 6bone (RFC 3701)"),
    (v6([0x3fff, 0, 0, 0, 0, 0, 0, 0], 20), "documentation (RFC 9637)"),
    (v6([0x5f00, 0, 0, 0, 0, 0, 0, 0], 16), "segment routing (RFC 9602)"),
    (v6([0xfc00, 0, 0, 0, 0, 0, 0, 0], 7), "unique-local (RFC 4193)"),
    (v6([0xfe80, 0, 0, 0, 0, 0, 0, 0], 10), "link-local (RFC 4291)"),
    (v6([0xfec0, 0, 0, 0, 0, 0, 0, 0], 10), "site-local (RFC 3879)"),
    (v6([0xff00, 0, 0, 0, 0, 0, 0, 0], 8), "multicast (RFC 4291)"),
];

/// Checks whether a request to a customer's URL may go to an address. The error completes the
/// sentence "the address is …" and does not repeat the address.
pub fn check(address: IpAddr, reach: Reach) -> Result<(), &'static str> {
    if reach == Reach::Loopback && address.is_loopback() {
        return Ok(());
    }
    if let Some((_, what)) = SPECIAL.iter().find(|(block, _)| block.contains(&address)) {
        return Err(what);
    }
    if address.is_ipv4() || GLOBAL_UNICAST_V6.contains(&address) {
        Ok(())
    } else {
        Err("outside 2000::/3, the only block in public use (RFC 4291)")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn checked(address: &str, reach: Reach) -> Result<(), &'static str> {
        check(address.parse().unwrap(), reach)
    }

    #[test]
    fn non_public_address_is_rejected_with_its_reason() {
        for (address, reason) in [
            ("0.0.0.0", "this host"),
            ("0.0.0.1", "this network"),
            ("0.255.255.255", "this network"),
            ("10.0.0.0", "private use"),
            ("10.255.255.255", "private use"),
            ("100.64.0.0", "shared address space"),
            // Metadata service of Alibaba Cloud.
            ("100.100.100.200", "shared address space"),
            ("100.127.255.255", "shared address space"),
            ("127.0.0.1", "loopback"),
            ("127.0.0.53", "loopback"),
            ("127.255.255.255", "loopback"),
            // Metadata services of AWS, Google Cloud, Azure and others; credentials of AWS
            // containers; DNS of AWS.
            ("169.254.169.254", "link-local"),
            ("169.254.170.2", "link-local"),
            ("169.254.169.253", "link-local"),
            ("169.254.0.0", "link-local"),
            ("172.16.0.0", "private use"),
            // Docker's bridge.
            ("172.17.0.1", "private use"),
            ("172.31.255.255", "private use"),
            ("192.0.0.1", "IPv4 service continuity"),
            ("192.0.0.9", "Port Control Protocol"),
            ("192.0.0.170", "NAT64 and DNS64"),
            ("192.0.0.171", "NAT64 and DNS64"),
            // Metadata service of Oracle Cloud.
            ("192.0.0.192", "IETF protocol assignments"),
            ("192.0.2.1", "documentation"),
            ("192.31.196.1", "AS112"),
            ("192.52.193.1", "multicast tunneling"),
            ("192.88.99.1", "6to4 relay"),
            ("192.88.99.2", "6a44"),
            ("192.168.1.1", "private use"),
            ("192.175.48.1", "AS112"),
            ("198.18.0.1", "benchmarking"),
            ("198.19.255.255", "benchmarking"),
            ("198.51.100.7", "documentation"),
            ("203.0.113.7", "documentation"),
            ("168.63.129.16", "WireServer"),
            ("224.0.0.1", "multicast"),
            ("233.252.0.1", "documentation"),
            ("239.255.255.255", "multicast"),
            ("240.0.0.1", "reserved"),
            ("255.255.255.254", "reserved"),
            ("255.255.255.255", "broadcast"),
            ("::", "unspecified"),
            ("::1", "loopback"),
            ("::7f00:1", "IPv4-compatible"),
            ("::8.8.8.8", "IPv4-compatible"),
            ("::ffff:127.0.0.1", "IPv4-mapped"),
            ("::ffff:8.8.8.8", "IPv4-mapped"),
            ("::ffff:0:127.0.0.1", "outside 2000::/3"),
            ("64:ff9b::a9fe:a9fe", "NAT64"),
            ("64:ff9b::8.8.8.8", "NAT64"),
            ("64:ff9b:1::a9fe:a9fe", "local-use NAT64"),
            ("100::1", "discard-only"),
            ("100:0:0:1::1", "dummy prefix"),
            ("200::1", "outside 2000::/3"),
            ("1fff:ffff::1", "outside 2000::/3"),
            ("2001::1", "Teredo"),
            ("2001:0:a9fe:a9fe::1", "Teredo"),
            ("2001:1::1", "Port Control Protocol"),
            ("2001:1::9", "IETF protocol assignments"),
            ("2001:2::1", "benchmarking"),
            ("2001:3::1", "multicast tunneling"),
            ("2001:4:112::1", "AS112"),
            ("2001:10::1", "ORCHID"),
            ("2001:20::1", "ORCHIDv2"),
            ("2001:30::1", "drone"),
            ("2001:1ff::1", "IETF protocol assignments"),
            ("2001:db8::1", "documentation"),
            ("2002:a9fe:a9fe::1", "6to4"),
            ("2002:7f00:1::", "6to4"),
            ("2620:4f:8000::1", "AS112"),
            ("3ffe::1", "6bone"),
            ("3fff:0fff::1", "documentation"),
            ("4000::1", "outside 2000::/3"),
            ("5f00::1", "segment routing"),
            ("fc00::1", "unique-local"),
            // Metadata services of AWS and Google Cloud.
            ("fd00:ec2::254", "unique-local"),
            ("fd20:ce::254", "unique-local"),
            ("fe80::1", "link-local"),
            ("febf::1", "link-local"),
            ("fec0::1", "site-local"),
            ("ff02::1", "multicast"),
            ("ff0e::1", "multicast"),
            ("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "multicast"),
        ] {
            let refusal = checked(address, Reach::Public).expect_err(address);
            assert!(refusal.contains(reason), "{address}: {refusal}");
            let loopback = refusal.starts_with("loopback");
            assert_eq!(checked(address, Reach::Loopback).is_ok(), loopback, "{address}");
        }
    }

    #[test]
    fn public_address_is_accepted() {
        for address in [
            "1.1.1.1",
            "8.8.8.8",
            "9.255.255.255",
            "11.0.0.0",
            "93.184.216.34",
            "100.63.255.255",
            "100.128.0.0",
            "126.255.255.255",
            "128.0.0.0",
            "169.253.255.255",
            "169.255.0.0",
            "172.15.255.255",
            "172.32.0.0",
            "191.255.255.255",
            "192.0.1.0",
            "192.0.3.0",
            "192.167.255.255",
            "192.169.0.0",
            "198.17.255.255",
            "198.20.0.0",
            "203.0.112.255",
            "203.0.114.0",
            "223.255.255.255",
            "2000::1",
            "2001:200::1",
            "2001:4860:4860::8888",
            "2001:db9::1",
            "2003::1",
            "2600:1f18::1",
            "2606:4700:4700::1111",
            "2620:4f:8001::1",
            "3ffd::1",
            "3fff:1000::1",
        ] {
            assert_eq!(checked(address, Reach::Public), Ok(()), "{address}");
            assert_eq!(checked(address, Reach::Loopback), Ok(()), "{address}");
        }
    }

    #[test]
    fn every_block_is_rejected_at_both_ends() {
        for (at, (block, what)) in SPECIAL.iter().enumerate() {
            assert_eq!(block.trunc(), *block, "{what}");
            assert!(!SPECIAL[..at].iter().any(|(before, _)| before.contains(block)), "{block} is never matched");
            for end in [block.network(), block.broadcast()] {
                assert!(check(end, Reach::Public).is_err(), "{end}");
            }
        }
    }

    proptest! {
        #[test]
        fn rules_are_at_least_as_strict_as_std(v4: u32, v6: u128) {
            let v4 = Ipv4Addr::from(v4);
            let special = v4.is_private() || v4.is_loopback() || v4.is_link_local() || v4.is_multicast() || v4.is_documentation();
            prop_assert!(!special || check(v4.into(), Reach::Public).is_err());
            prop_assert!(check(v4.to_ipv6_mapped().into(), Reach::Public).is_err());
            prop_assert!(check(v4.to_ipv6_compatible().into(), Reach::Public).is_err());
            let v6 = Ipv6Addr::from(v6);
            prop_assert!(v6.segments()[0] >> 13 == 1 || check(v6.into(), Reach::Public).is_err());
        }
    }
}

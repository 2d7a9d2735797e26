//! Which addresses an endpoint may have: nobody gets us to talk to machines that only we can reach.
//!
//! | address | https | http |
//! |---|---|---|
//! | in WEBHOOK_ALLOWED_SUBNETS | yes | yes |
//! | public | yes | no |
//! | private, loopback, link-local, metadata, multicast, reserved | no | no |
//!
//! A name is resolved once, by the client that connects to what was checked: there is no second look-up that could say
//! something else. A name that has one refused address is refused altogether.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use reqwest::Url;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};

use crate::config::Cidr;

/// Why an address is not connected to.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Only machines near us are there.
    #[error("{0} is not a public address")]
    NotPublic(IpAddr),
    /// Anybody on the way could read and change it.
    #[error("http is only for addresses of WEBHOOK_ALLOWED_SUBNETS; use https")]
    PlainHttp,
    /// The name leads nowhere.
    #[error("the name has no address")]
    NoAddress,
}

/// The rules. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Guard {
    allowed: Arc<[Cidr]>,
}

impl Guard {
    /// With exceptions.
    #[must_use]
    pub fn new(allowed: &[Cidr]) -> Self {
        Self { allowed: allowed.into() }
    }

    /// Whether an address may be connected to.
    pub fn check(&self, address: IpAddr, is_https: bool) -> Result<(), Refused> {
        if self.allowed.iter().any(|range| range.contains(address)) {
            return Ok(());
        }
        match (is_public(address), is_https) {
            (true, true) => Ok(()),
            (true, false) => Err(Refused::PlainHttp),
            (false, _) => Err(Refused::NotPublic(address)),
        }
    }

    /// What can be said of a URL without asking for addresses: all of it where the host is an address.
    pub fn check_literal(&self, url: &Url) -> Result<(), Refused> {
        let is_https = url.scheme() == "https";
        let host = url.host_str().unwrap_or_default();
        match host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>() {
            Ok(address) => self.check(address, is_https),
            // Every address of the name would be refused.
            Err(_) if !is_https && self.allowed.is_empty() => Err(Refused::PlainHttp),
            Err(_) => Ok(()),
        }
    }

    /// Every address of a name, or why it is refused.
    async fn resolve(
        &self,
        name: &str,
        is_https: bool,
    ) -> Result<Vec<SocketAddr>, Box<dyn std::error::Error + Send + Sync>> {
        let found: Vec<SocketAddr> = tokio::net::lookup_host((name, 0)).await?.collect();
        for address in &found {
            self.check(address.ip(), is_https)?;
        }
        if found.is_empty() {
            return Err(Refused::NoAddress.into());
        }
        Ok(found)
    }
}

/// Resolves names for the HTTP client, and answers only with addresses that were checked.
#[derive(Debug, Clone)]
pub(super) struct GuardedResolver {
    pub guard: Guard,
    pub is_https: bool,
}

impl Resolve for GuardedResolver {
    fn resolve(&self, name: Name) -> Resolving {
        let this = self.clone();
        Box::pin(async move {
            let found = this.guard.resolve(name.as_str(), this.is_https).await?;
            Ok(Box::new(found.into_iter()) as Addrs)
        })
    }
}

/// Whether the whole internet can reach an address (IANA's special-purpose registries).
fn is_public(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(address) => is_public_v4(address),
        IpAddr::V6(address) => is_public_v6(address),
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    let [a, b, c, _] = address.octets();
    !matches!(
        (a, b, c),
        (0 | 10 | 127 | 224..=255, _, _)
            | (100, 64..=127, _)
            | (169, 254, _)
            | (172, 16..=31, _)
            | (192, 0, 0 | 2)
            | (192, 88, 99)
            | (192, 168, _)
            | (198, 18 | 19, _)
            | (198, 51, 100)
            | (203, 0, 113)
    )
}

/// Only 2000::/3 is assigned to the internet; what in it translates to IPv4 or is for documents is refused too.
fn is_public_v6(address: Ipv6Addr) -> bool {
    let segments = address.segments();
    let (first, second) = (segments[0], segments[1]);
    let is_global = first & 0xe000 == 0x2000;
    let is_protocol = first == 0x2001 && second < 0x0200;
    let is_document = (first == 0x2001 && second == 0x0db8) || first & 0xfff0 == 0x3ff0;
    is_global && !is_protocol && !is_document && first != 0x2002
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_public_addresses_are_public() {
        for refused in [
            "0.0.0.0",
            "10.1.2.3",
            "100.64.0.1",
            "100.100.100.200",
            "127.0.0.1",
            "127.9.9.9",
            "169.254.169.254",
            "172.16.0.1",
            "172.31.255.255",
            "192.0.0.192",
            "192.0.2.1",
            "192.168.1.1",
            "198.18.0.1",
            "198.19.255.255",
            "203.0.113.5",
            "224.0.0.1",
            "239.1.1.1",
            "255.255.255.255",
            "::",
            "::1",
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "::127.0.0.1",
            "64:ff9b::7f00:1",
            "100::1",
            "2001::1",
            "2001:db8::1",
            "2002:7f00:1::",
            "3fff::1",
            "fc00::1",
            "fd00:ec2::254",
            "fe80::1",
            "fec0::1",
            "ff02::1",
        ] {
            assert!(!is_public(refused.parse().unwrap()), "{refused}");
        }
        for public in
            ["1.1.1.1", "172.32.0.1", "192.0.1.1", "8.8.8.8", "2606:4700::1111", "2a00:1450::1", "::ffff:1.1.1.1"]
        {
            assert!(is_public(public.parse().unwrap()), "{public}");
        }
    }

    #[test]
    fn urls_with_an_address_are_judged_at_once_however_it_is_written() {
        let (closed, open) = (Guard::default(), Guard::new(&Cidr::loopback()));
        let judge = |guard: &Guard, url: &str| guard.check_literal(&Url::parse(url).unwrap()).is_ok();
        for url in [
            "https://127.0.0.1/",
            "https://2130706433/",
            "https://0x7f.1/",
            "https://[::1]/",
            "https://[::ffff:127.0.0.1]/",
        ] {
            assert!(!judge(&closed, url) && judge(&open, url), "{url}");
        }
        assert!(judge(&closed, "https://example.com/") && !judge(&closed, "http://example.com/"));
        assert!(judge(&open, "http://127.0.0.1:3000/") && !judge(&open, "http://1.1.1.1/"));
        assert!(judge(&closed, "https://1.1.1.1/") && !judge(&closed, "https://169.254.169.254/latest/meta-data"));
    }

    #[tokio::test]
    async fn a_name_that_leads_to_a_refused_address_is_refused() {
        assert!(Guard::default().resolve("localhost", true).await.is_err());
        assert!(!Guard::new(&Cidr::loopback()).resolve("localhost", false).await.unwrap().is_empty());
    }
}
